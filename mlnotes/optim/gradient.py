"""What is added to gradients: an L1 penalty, noise that fades."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from mlnotes.engine.experiment import root_key
from mlnotes.optim.precision import accumulate_in_float32

Scalar = Float[Array, ""] | float


def add_l1(strength: Scalar) -> optax.GradientTransformationExtraArgs:
  """Adds strength * sign(p), the subgradient of strength * sum |p|. Raises ValueError without parameters."""

  def update(updates, state, params=None):
    if params is None:
      raise ValueError(optax.NO_PARAMS_MSG)
    return jax.tree.map(lambda g, p: g + strength * jnp.sign(p), updates, params), state

  return accumulate_in_float32(optax.GradientTransformation(optax.init_empty_state, update))


class AddGradientNoiseState(NamedTuple):
  """`count`: updates done; `key`: the constant root of the noise."""

  count: Int[Array, ""]
  key: Key[Array, ""]


def _checksum(params: PyTree) -> Array:
  # A sum of integers is the same in any order, and so on any number of devices.
  bits = lambda p: jnp.sum(jax.lax.bitcast_convert_type(p.astype(jnp.float32), jnp.uint32), dtype=jnp.uint32)
  return sum((bits(p) for p in jax.tree.leaves(params)), jnp.uint32(0))


def add_gradient_noise(
  variance: Scalar = 0.01, decay: Scalar = 0.55, seed: int | Int[Array, ""] = 0
) -> optax.GradientTransformationExtraArgs:
  """Adds N(0, variance / (1 + t)^decay) to the gradient of update t = 0, 1, ...   Neelakantan et al. 2015, eq. 1

  The key comes from `seed` and the initial parameters, so that runs that start apart and are trained side by side get
  noise of their own; with `optax.add_noise` they share it.
  """

  def init(params):
    return AddGradientNoiseState(jnp.zeros([], jnp.int32), jax.random.fold_in(root_key(seed), _checksum(params)))

  def update(updates, state, params=None):
    del params
    leaves, treedef = jax.tree.flatten(updates)
    scale = jnp.sqrt(variance / (1.0 + state.count) ** decay)
    keys = jax.random.split(jax.random.fold_in(state.key, state.count), len(leaves))
    noisy = [g + scale.astype(g.dtype) * jax.random.normal(k, g.shape, g.dtype) for g, k in zip(leaves, keys)]
    return treedef.unflatten(noisy), state._replace(count=optax.safe_increment(state.count))

  return accumulate_in_float32(optax.GradientTransformation(init, update))
