"""Back-propagation through a multilayer perceptron, written out: what `jax.grad` does for it.

    z_l = h_{l-1} W_l + b_l,   h_l = f(z_l),   h_0 = x,   logits = z_L                       forward
    delta_L = dLoss / dz_L,    delta_{l-1} = (delta_l W_l^T) * f'(z_{l-1})                    backward
    dLoss / dW_l = h_{l-1}^T delta_l,    dLoss / db_l = sum_b delta_l

Rumelhart, Hinton & Williams 1986, eq. 4-7; Goodfellow, Bengio & Courville 2016, algorithms 6.3 and 6.4. Rows are
examples, so the sums over the batch are matrix products.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Affine(NamedTuple):
  """One layer, or the gradient with respect to it."""

  kernel: Float[Array, "I O"]
  bias: Float[Array, " O"]


class Activation(NamedTuple):
  """A function of each value, and its derivative, as a function of z as well."""

  value: Callable[[Array], Array]
  derivative: Callable[[Array], Array]


class Tape(NamedTuple):
  """What the backward pass needs of the forward pass: each layer's input h_{l-1} and sum z_l."""

  inputs: tuple[Float[Array, "B _"], ...]
  sums: tuple[Float[Array, "B _"], ...]


RELU = Activation(lambda z: jnp.maximum(z, 0), lambda z: (z > 0).astype(z.dtype))
SIGMOID = Activation(jax.nn.sigmoid, lambda z: jax.nn.sigmoid(z) * jax.nn.sigmoid(-z))
TANH = Activation(jnp.tanh, lambda z: 1 - jnp.square(jnp.tanh(z)))


def forward(layers: Sequence[Affine], x: Float[Array, "B I"], activation: Activation = RELU) -> tuple[Array, Tape]:
  """The last layer's sums, (B, O), and what `backward` needs. No activation behind the last layer.

  Raises ValueError where there is no layer.
  """
  if not layers:
    raise ValueError("forward got no layers, expected one or more")
  inputs, sums = [], []
  h = x
  for index, layer in enumerate(layers):
    inputs.append(h)
    sums.append(h @ layer.kernel + layer.bias[None])
    h = activation.value(sums[-1]) if index < len(layers) - 1 else sums[-1]
  return h, Tape(tuple(inputs), tuple(sums))


def backward(
  layers: Sequence[Affine], tape: Tape, delta: Float[Array, "B O"], activation: Activation = RELU
) -> tuple[list[Affine], Float[Array, "B I"]]:
  """Gradients with respect to each layer and to the input, from `delta`, that with respect to the last sums."""
  gradients = []
  for index in reversed(range(len(layers))):
    gradients.append(Affine(tape.inputs[index].T @ delta, jnp.sum(delta, axis=0)))
    delta = delta @ layers[index].kernel.T
    if index:
      delta = delta * activation.derivative(tape.sums[index - 1])
  return gradients[::-1], delta


def cross_entropy_delta(logits: Float[Array, "B K"], labels: Int[Array, " B"]) -> Float[Array, "B K"]:
  """Gradient of the mean cross-entropy with respect to the logits: (softmax(z) - onehot) / B."""
  return (jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)) / len(logits)


def squared_error_delta(prediction: Float[Array, "B O"], target: Float[Array, "B O"]) -> Float[Array, "B O"]:
  """Gradient of sum_o (prediction - target)^2, averaged over the batch: 2 (prediction - target) / B."""
  return 2 * (prediction - target) / len(prediction)
