"""AdaBound and AMSBound: Adam whose rates are held between two bounds that close in on one rate."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from mlnotes.optim.checks import require_non_negative, require_positive
from mlnotes.optim.precision import accumulate_in_float32, init_moment

Scalar = Float[Array, ""] | float


class ScaleByAdaBoundState(NamedTuple):
  """`nu_max` is () for AdaBound, the largest second moment so far for AMSBound."""

  count: Int[Array, ""]
  mu: chex.ArrayTree
  nu: chex.ArrayTree
  nu_max: chex.ArrayTree


def compute_rate_bounds(count: Int[Array, ""], final_learning_rate: Scalar, gamma: Scalar) -> tuple[Array, Array]:
  """(lower, upper) bound of the rate of update number `count` >= 1; both tend to the final rate.

  final (1 - 1 / (gamma t + 1)),  final (1 + 1 / (gamma t))       Luo et al. 2019, section 5
  """
  t = gamma * count
  return final_learning_rate * (1 - 1 / (t + 1)), final_learning_rate * (1 + 1 / t)


def scale_by_adabound(
  learning_rate: Scalar,
  final_learning_rate: Scalar = 0.1,
  b1: Scalar = 0.9,
  b2: Scalar = 0.999,
  eps: Scalar = 1e-8,
  gamma: Scalar = 1e-3,
  amsbound: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """The first moment times each parameter's own clipped rate: it starts as Adam and ends as SGD with momentum.

    rate = clip(learning_rate sqrt(1 - b2^t) / (1 - b1^t) / (sqrt(nu_t) + eps), lower_t, upper_t);  u_t = rate mu_t

  The learning rate is in here since the bounds do not scale with it; what follows need only flip the sign, and a
  schedule that follows scales the bounds too, as in the authors' code. `amsbound` divides by the largest nu so far.

  Differences from the paper (Luo et al. 2019, algorithms 2 and 3), as in the authors' code: Adam's bias corrections,
  no 1 / sqrt(t) decay; eps is added to the uncorrected root.
  """

  if callable(learning_rate):
    raise TypeError(
      "learning_rate is a schedule: expected a number, with optax.scale_by_schedule after the rule, which scales the "
      "bounds too."
    )
  require_non_negative("learning_rate", learning_rate)
  require_positive("final_learning_rate", final_learning_rate)

  def init(params):
    nu_max = init_moment(params) if amsbound else ()
    return ScaleByAdaBoundState(jnp.zeros([], jnp.int32), init_moment(params), init_moment(params), nu_max)

  def update(updates, state, params=None):
    del params
    count = optax.safe_increment(state.count)
    mu = optax.tree.update_moment(updates, state.mu, b1, 1)
    nu = optax.tree.update_moment(updates, state.nu, b2, 2)
    nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu) if amsbound else ()
    rate = learning_rate * jnp.sqrt(1 - b2**count) / (1 - b1**count)
    lower, upper = compute_rate_bounds(count, final_learning_rate, gamma)
    scaled = lambda m, v: jnp.clip(rate.astype(m.dtype) / (jnp.sqrt(v) + eps), lower, upper) * m
    return jax.tree.map(scaled, mu, nu_max if amsbound else nu), ScaleByAdaBoundState(count, mu, nu, nu_max)

  return accumulate_in_float32(optax.GradientTransformation(init, update))


def adabound(
  learning_rate: Scalar = 1e-3,
  final_learning_rate: Scalar = 0.1,
  b1: Scalar = 0.9,
  b2: Scalar = 0.999,
  eps: Scalar = 1e-8,
  gamma: Scalar = 1e-3,
  amsbound: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """`scale_by_adabound` as an optimizer: AdaBound, or AMSBound (Luo et al. 2019, algorithms 2 and 3)."""
  scaled = scale_by_adabound(learning_rate, final_learning_rate, b1, b2, eps, gamma, amsbound)
  return accumulate_in_float32(optax.chain(scaled, optax.scale(-1.0)))
