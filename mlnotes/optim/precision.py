"""Optimizer state in float32 whatever the parameters' dtype."""

import chex
import jax
import jax.numpy as jnp
import optax


def to_accumulator(x: jax.Array) -> jax.Array:
  """`x` in the dtype that moments are kept in: float32 for narrower floats, its own for float32 and wider ones."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def init_moment(params: chex.ArrayTree) -> chex.ArrayTree:
  """Zeros like the parameters, in `to_accumulator`'s dtype."""
  return jax.tree.map(lambda p: to_accumulator(jnp.zeros_like(p)), params)


def accumulate_in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
  """`inner` as if gradients and parameters were float32: its state is, and its updates until they are handed out.

  They have the parameters' dtype then, or the gradients' where `update` gets no parameters, as `optax.MultiSteps` and
  `lax.cond` ask for. In bfloat16 a second moment with decay 0.999 stops moving, as 1/1000 of a change is below its
  resolution of 1/256.
  """
  inner = optax.with_extra_args_support(inner)
  widen = lambda tree: None if tree is None else jax.tree.map(to_accumulator, tree)

  def update(updates, state, params=None, **extra):
    like = updates if params is None else params
    wide, state = inner.update(widen(updates), state, widen(params), **extra)
    return jax.tree.map(lambda u, p: u.astype(p.dtype), wide, like), state

  return optax.GradientTransformationExtraArgs(lambda params: inner.init(widen(params)), update)
