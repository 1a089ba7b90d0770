"""Activations under the field's names. What `jax.nn` has is handed on; here stands what its names do not say.

relu:          derivative 0 at 0, as torch's; `jnp.maximum(x, 0)` has 1/2 there.
leaky_relu:    slope .01 below 0 by default, as torch's (the layer of Keras has .3), and 1 at 0, where torch has .01.
elu, celu:     differ by where alpha stands and are the same at alpha = 1; selu has both constants fixed.
silu:          x sigmoid(x), "swish" with beta = 1.
softplus:      log(1 + e^x) everywhere; torch's is x beyond 20, which differs by 2e-9 there.
hard_sigmoid:  relu6(x + 3) / 6, as torch's; Keras 2's is clip(.2 x + .5, 0, 1).
gelu_erf:      the definition, x Phi(x). `torch.nn.functional.gelu`'s default.
gelu_tanh:     its approximation. `jax.nn.gelu`'s default; up to 5e-4 from the other, so that a network
               trained with one form drifts when it is served with the other.
PReLU:         one learned slope for all channels, which starts at .01 in Flax, at .25 in torch and in He et al. 2015.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import PReLU as PReLU
from jax.nn import (
  celu as celu,
  elu as elu,
  hard_sigmoid as hard_sigmoid,
  hard_swish as hard_swish,
  leaky_relu as leaky_relu,
  mish as mish,
  relu as relu,
  selu as selu,
  sigmoid as sigmoid,
  silu as silu,
  softplus as softplus,
)
from jax.nn.initializers import Initializer, lecun_normal
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# Hendrycks & Gimpel 2016, sec. 2.
gelu_erf = partial(jax.nn.gelu, approximate=False)
gelu_tanh = partial(jax.nn.gelu, approximate=True)


class Maxout(nn.Module):
  """The largest of `pieces` affine functions for each feature: Goodfellow et al. 2013, sec. 3.

    h_i = max_j (x . W_ij + b_ij)

  Convex and piecewise linear, so it learns its own activation; `pieces` times the parameters of a Dense layer. At init
  the maximum of k normal values has a mean above 0 (.56 deviations for 2, 1.03 for 4) and a variance below 1.

  Raises ValueError where `pieces` is below 1.
  """

  features: int
  pieces: int = 2
  kernel_init: Initializer = lecun_normal()
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B D"]:
    if self.pieces < 1:
      raise ValueError(f"pieces={self.pieces} is out of range: expected 1 or more")
    y = nn.Dense(self.features * self.pieces, kernel_init=self.kernel_init, dtype=self.dtype, name="dense")(x)
    return jnp.max(y.reshape(*y.shape[:-1], self.features, self.pieces), axis=-1)


def softmax(
  logits: Float[Array, "..."], temperature: float | Float[Array, ""] = 1.0, axis: int = -1
) -> Float[Array, "..."]:
  """exp(z_i / T) / sum_j exp(z_j / T): Hinton et al. 2015, eq. 1. T towards 0 is argmax, large T uniform.

  Its derivative, (diag(p) - p p^T) / T, shrinks with T, and a cross-entropy with soft targets by T^2: distillation
  multiplies that loss by T^2. Computed in float32 at least, in the logits' type after.

  Raises ValueError where `temperature` is a number that is not above 0.
  """
  if isinstance(temperature, (int, float)) and not temperature > 0:
    raise ValueError(f"temperature={temperature} is out of range: expected a number above 0")
  exact = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  return jax.nn.softmax(exact / temperature, axis=axis).astype(logits.dtype)
