"""What keeps a discriminator smooth: clipped weights, penalties on its gradient, kernels of spectral norm 1."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Key

# (one example, what else it is judged by, such as its label) -> its score
Critic = Callable[..., Float[Array, ""]]

# torch's `spectral_norm` begins with as many.
_FIRST_STEPS = 15
_TINY = 1e-12


def clip_weights(params: chex.ArrayTree, bound: float | Float[Array, ""]) -> chex.ArrayTree:
  """Every parameter, biases among them, brought into [-bound, bound]: Arjovsky et al. 2017, algorithm 1."""
  return jax.tree.map(lambda leaf: jnp.clip(leaf, -bound, bound), params)


def interpolate(
  real: Float[Array, "B *shape"], fake: Float[Array, "B *shape"], share: Float[Array, " B"]
) -> Float[Array, "B *shape"]:
  """share x + (1 - share) x' with one share for all numbers of an example. Gulrajani et al. 2017, algorithm 1."""
  share = jnp.expand_dims(share, range(1, real.ndim))
  return share * real + (1 - share) * fake


def gradient_norms(critic: Critic, examples: Float[Array, "B *shape"], *context: Array) -> Float[Array, " B"]:
  """The Euclidean norm of the gradient of `critic(example, *context)` with respect to each whole example.

  By `vmap(grad)`, so that no other example of a batch can enter it. At a gradient of 0 it is 1e-6, with a finite
  gradient of its own (0) where the root of a sum of squares has none.
  """
  gradients = jax.vmap(jax.grad(critic))(examples, *context)
  return jnp.sqrt(jnp.sum(jnp.square(gradients), axis=range(1, gradients.ndim)) + _TINY)


def gradient_penalty(
  critic: Critic,
  real: Float[Array, "B *shape"],
  fake: Float[Array, "B *shape"],
  share: Float[Array, " B"],
  *context: Array,
  one_sided: bool = False,
) -> Float[Array, " B"]:
  """How far the gradient's norm between a real and a generated example is from 1, squared; to be weighted by 10.

    (|grad f(x^)| - 1)^2,   x^ = share x + (1 - share) x', share uniform on [0, 1]      Gulrajani et al. 2017

  `one_sided`: norms below 1 cost nothing. `critic` scores one example: no statistics over a batch.
  """
  excess = gradient_norms(critic, interpolate(real, fake, share), *context) - 1
  return jnp.square(jax.nn.relu(excess) if one_sided else excess)


def r1_penalty(critic: Critic, real: Float[Array, "B *shape"], *context: Array) -> Float[Array, " B"]:
  """|grad f(x)|^2 / 2 at real examples: Mescheder et al. 2018, to be weighted by gamma (10 there)."""
  gradients = jax.vmap(jax.grad(critic))(real, *context)
  return 0.5 * jnp.sum(jnp.square(gradients), axis=range(1, gradients.ndim))


class PowerVectors(NamedTuple):
  """The leading singular vectors, nearly, of a kernel as a matrix W (rest, out): u of the outputs, v of the rest."""

  u: Float[Array, " out"]
  v: Float[Array, " rest"]


def init_power_vectors(key: Key[Array, ""], params: chex.ArrayTree) -> dict[str, PowerVectors]:
  """{path: vectors} of every kernel, that is of every parameter with two or more axes, after 15 power steps."""
  vectors = {}
  for number, (path, kernel) in enumerate(sorted(_kernels(params).items())):
    out = kernel.shape[-1]
    u = _unit(jax.random.normal(jax.random.fold_in(key, number), (out,), kernel.dtype))
    vectors[path] = PowerVectors(u, jnp.zeros(math.prod(kernel.shape[:-1]), kernel.dtype))
  for _ in range(_FIRST_STEPS):
    vectors = update_power_vectors(params, vectors)
  return vectors


def update_power_vectors(params: chex.ArrayTree, vectors: Mapping[str, PowerVectors]) -> dict[str, PowerVectors]:
  """One step of the power method for each kernel. No gradient passes: Miyato et al. 2018, algorithm 1.

  v <- W u / |W u|,   u <- W' v / |W' v|          W has the outputs along its last axis, as Flax keeps kernels
  """
  kernels = _kernels(params)
  updated = {}
  for path, old in vectors.items():
    matrix = jax.lax.stop_gradient(_matrix(kernels[path]))
    v = _unit(matrix @ old.u)
    updated[path] = PowerVectors(_unit(v @ matrix), v)
  return updated


def spectral_norms(params: chex.ArrayTree, vectors: Mapping[str, PowerVectors]) -> dict[str, Float[Array, ""]]:
  """v' W u of each kernel: its largest singular value where the vectors have converged, never more than that.

  A gradient passes through W and not through the vectors.
  """
  kernels = _kernels(params)
  held = jax.tree.map(jax.lax.stop_gradient, dict(vectors))
  return {path: v @ (_matrix(kernels[path]) @ u) for path, (u, v) in held.items()}


def spectral_normalize(
  params: chex.ArrayTree, vectors: Mapping[str, PowerVectors], bound: float | Float[Array, ""] = 1.0
) -> chex.ArrayTree:
  """The parameters with each kernel brought to the spectral norm `bound`; the others as they are. Miyato et al. 2018.

  It changes no vectors: in training call `update_power_vectors` once for each update of the discriminator, else never.
  """
  norms = spectral_norms(params, vectors)
  flat = flatten_dict(params, sep="/")
  return unflatten_dict(
    {path: leaf * (bound / norms[path]) if path in norms else leaf for path, leaf in flat.items()}, sep="/"
  )


def _kernels(params: chex.ArrayTree) -> dict[str, Array]:
  return {path: leaf for path, leaf in flatten_dict(params, sep="/").items() if leaf.ndim >= 2}


def _matrix(kernel: Array) -> Array:
  return kernel.reshape(-1, kernel.shape[-1])


def _unit(vector: Array) -> Array:
  return vector / (jnp.linalg.norm(vector) + _TINY)
