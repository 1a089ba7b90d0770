"""SWATS: Adam that switches to SGD, at a moment and with a learning rate that it finds itself."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from mlnotes.optim.precision import accumulate_in_float32, init_moment

Scalar = Float[Array, ""] | float


class ScaleBySwatsState(NamedTuple):
  """`count`: updates done; `switched`: whether SGD has taken over, `fresh`: in the last update.

  `mu`, `nu`: moments of Adam, and `mu` SGD's momentum after the switch. `estimate`: running mean of the rates at which
  SGD's step, projected, equals Adam's; not corrected for its start at 0. `sgd_rate`: the one it switched with.
  """

  count: Int[Array, ""]
  switched: Bool[Array, ""]
  fresh: Bool[Array, ""]
  estimate: Float[Array, ""]
  sgd_rate: Float[Array, ""]
  mu: chex.ArrayTree
  nu: chex.ArrayTree


def scale_by_swats(
  b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8, tolerance: Scalar = 1e-3
) -> optax.GradientTransformationExtraArgs:
  """Adam until the estimated rate of an equivalent SGD settles, from then on SGD with momentum b1 and that rate.

    p_t = Adam's update;  gamma_t = p.p / p.g;  l_t = b2 l_{t-1} + (1 - b2) gamma_t
    switch with rate L = l_t / (1 - b2^t) where t > 1, L > 0 and |L - gamma_t| <= tolerance |gamma_t|
    after it:  v_t = b1 v_{t-1} + g_t;  u_t = (1 - b1) L v_t          Keskar & Socher 2017, algorithm 1

  One decision for all parameters together. L is relative to the learning rate, which multiplies both phases.
  eps is added to the uncorrected root.

  Differences from the paper: the tolerance is relative (the paper's absolute 1e-9 is below float32's resolution of
  most rates), and L must be positive, as in public implementations. Under noisy gradients gamma_t crosses its mean at
  random, so that the switch comes after an order of 1 / tolerance updates. Near a minimum, where p.g is small and its
  sign random, L can be far too large.
  """

  def init(params):
    scalar = lambda dtype: jnp.zeros([], dtype)
    mu = init_moment(params)
    real = jnp.result_type(jnp.float32, *jax.tree.leaves(mu))
    return ScaleBySwatsState(
      scalar(jnp.int32), scalar(bool), scalar(bool), scalar(real), scalar(real), mu, init_moment(params)
    )

  def update(grads, state, params=None):
    del params
    count = optax.safe_increment(state.count)
    # SGD's momentum starts at 0. Forgetting Adam's one update after the switch saves writing it twice in one.
    keep = jnp.where(state.fresh, 0, b1)
    mu = jax.tree.map(lambda m, g: keep.astype(m.dtype) * m + (1 - b1) * g, state.mu, grads)
    nu = optax.tree.update_moment(grads, state.nu, b2, 2)
    correction = jnp.sqrt(1 - b2**count) / (1 - b1**count)
    adam = jax.tree.map(lambda m, v: correction.astype(m.dtype) * m / (jnp.sqrt(v) + eps), mu, nu)

    along = optax.tree.vdot(adam, grads)
    gamma = optax.tree.vdot(adam, adam) / jnp.where(along == 0, 1, along)
    estimate = jnp.where(along == 0, state.estimate, b2 * state.estimate + (1 - b2) * gamma)
    rate = estimate / (1 - b2**count)
    settled = (along != 0) & (rate > 0) & (count > 1) & (jnp.abs(rate - gamma) <= tolerance * jnp.abs(gamma))
    fresh = settled & ~state.switched
    updates = jax.tree.map(lambda a, m: jnp.where(state.switched, state.sgd_rate * m, a), adam, mu)
    sgd_rate = jnp.where(fresh, rate, state.sgd_rate)
    return updates, ScaleBySwatsState(count, state.switched | fresh, fresh, estimate, sgd_rate, mu, nu)

  return accumulate_in_float32(optax.GradientTransformation(init, update))


def swats(
  learning_rate: optax.ScalarOrSchedule = 1e-3,
  b1: Scalar = 0.9,
  b2: Scalar = 0.999,
  eps: Scalar = 1e-8,
  tolerance: Scalar = 1e-3,
) -> optax.GradientTransformationExtraArgs:
  """`scale_by_swats` as an optimizer (Keskar & Socher 2017)."""
  rule = optax.chain(scale_by_swats(b1, b2, eps, tolerance), optax.scale_by_learning_rate(learning_rate))
  return accumulate_in_float32(rule)
