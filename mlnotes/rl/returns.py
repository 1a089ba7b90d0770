"""Returns and advantages along one trajectory, time first; `jax.vmap` makes it many.

Every function reads what happened from three arrays of length T:

    reward[t]    R_{t+1}, of the action at t
    discount[t]  gamma times 1 - terminated[t]: gamma, or 0 where the episode terminated with this action
    last[t]      bool: whether the episode ended with this action, by termination or by a time limit

and bootstraps from `next_value[t]`, the value of the observation that the action led to *before* any reset. Where a
time limit ends an episode the future still counts (`discount` stays gamma), and it is `next_value[t]` that says how
much; nothing from step t + 1, which belongs to another episode, is used. The end of the trajectory is treated alike.

Other conventions: CleanRL's `dones[t]` says that observation t *begins* an episode, which is `last[t - 1]` here, and
`gamma` is a number that goes with it. Passed as they are they would be bootstrapped through terminations; shapes and
types are checked, so that a number for `discount` or floats for `last` raise InputError, as do arrays of two axes and
lambda outside [0, 1].

Gradients flow through everything: put `jax.lax.stop_gradient` around what is to be a target.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mlnotes.engine.errors import InputError


def _check(function: str, last, *lambdas, **arrays) -> None:
  """Raises InputError unless all are arrays of one trajectory and every lambda that is a plain number is in [0, 1]."""
  length = jnp.shape(last)
  for name, array in {"last": last, **arrays}.items():
    shape = jnp.shape(array)
    if len(shape) == 1 and shape[0] and shape == length:
      continue
    if len(length) != 1 or not length[0] or name == "last":
      expected = "(T,) with T >= 1, one trajectory; jax.vmap over the other axes makes it many"
    else:
      expected = f"{length}, as last has"
    meaning = ", gamma times 1 - terminated of each step" if name == "discount" else ""
    raise InputError(f"{function} got {name} of shape {shape}: expected {expected}{meaning}.")
  if jnp.result_type(last) != jnp.bool_:
    raise InputError(
      f"{function} got last of dtype {jnp.result_type(last)}: expected bool, true where the action at t ended the "
      "episode (a `done` that says that observation t begins one is a step late)."
    )
  for lambda_ in lambdas:
    if isinstance(lambda_, int | float) and not 0 <= lambda_ <= 1:
      raise InputError(f"{function} got lambda_={lambda_}: expected a number in [0, 1].")


def _backward(base: Float[Array, " T"], factor: Float[Array, " T"]) -> Float[Array, " T"]:
  """y_t = base_t + factor_t y_{t+1} with y_T = 0. On a CPU a scan takes a half to a tenth of an associative scan."""

  def one(carry, inputs):
    base, factor = inputs
    carry = base + factor * carry
    return carry, carry

  return jax.lax.scan(one, jnp.zeros_like(base[0]), (base, factor), reverse=True)[1]


def _goes_on(last: Bool[Array, " T"]) -> Float[Array, " T"]:
  """1 where step t + 1 belongs to the same episode and to this trajectory, otherwise 0."""
  return jnp.where(last, 0.0, 1.0).at[-1].set(0.0)


def _shift(values: Float[Array, " T"]) -> Float[Array, " T"]:
  """values[t + 1], and 0 after the end."""
  return jnp.concatenate([values[1:], jnp.zeros_like(values[:1])])


def discounted_returns(
  reward: Float[Array, " T"],
  discount: Float[Array, " T"],
  last: Bool[Array, " T"],
  bootstrap: Float[Array, " T"],
) -> Float[Array, " T"]:
  """The discounted sum of rewards up to the end of each episode.

      G_t = R_{t+1} + discount_t G_{t+1}           within an episode
      G_t = R_{t+1} + discount_t bootstrap_t       at its end, and at the end of the trajectory

  Sutton & Barto, eq. 3.9. `bootstrap` is the value of each next observation; it counts at truncations and at the end
  of the trajectory only. Zeros there: the sum of the rewards that were seen, as REINFORCE takes it.
  """
  _check("discounted_returns", last, reward=reward, discount=discount, bootstrap=bootstrap)
  goes_on = _goes_on(last)
  return _backward(reward + discount * (1 - goes_on) * bootstrap, discount * goes_on)


def n_step_returns(
  reward: Float[Array, " T"],
  discount: Float[Array, " T"],
  last: Bool[Array, " T"],
  next_value: Float[Array, " T"],
  n: int,
) -> Float[Array, " T"]:
  """The return over n steps and the value of where they led; fewer where the episode or the trajectory ends before.

      G_{t:t+n} = R_{t+1} + gamma R_{t+2} + ... + gamma^{n-1} R_{t+n} + gamma^n V(S_{t+n})

  Sutton & Barto, eq. 7.1. Raises InputError for n < 1.
  """
  _check("n_step_returns", last, reward=reward, discount=discount, next_value=next_value)
  if n < 1:
    raise InputError(f"n_step_returns got n = {n}: expected 1 or more.")
  goes_on = _goes_on(last)
  one_step = reward + discount * next_value

  def longer(_, returns):
    return jnp.where(goes_on > 0, reward + discount * _shift(returns), one_step)

  return jax.lax.fori_loop(0, min(n, reward.shape[0]) - 1, longer, one_step)


def lambda_returns(
  reward: Float[Array, " T"],
  discount: Float[Array, " T"],
  last: Bool[Array, " T"],
  next_value: Float[Array, " T"],
  lambda_: Float[Array, ""] | float,
) -> Float[Array, " T"]:
  """The average of the n-step returns with weights (1 - lambda) lambda^{n-1}; the longest one has what remains.

      G_t = R_{t+1} + discount_t ((1 - lambda) V(S_{t+1}) + lambda G_{t+1})

  Sutton & Barto, eq. 12.18. lambda in [0, 1]: 0 is the one-step target, 1 the full return.
  """
  _check("lambda_returns", last, lambda_, reward=reward, discount=discount, next_value=next_value)
  mix = lambda_ * _goes_on(last)
  return _backward(reward + discount * (1 - mix) * next_value, discount * mix)


def compute_gae(
  reward: Float[Array, " T"],
  discount: Float[Array, " T"],
  last: Bool[Array, " T"],
  value: Float[Array, " T"],
  next_value: Float[Array, " T"],
  lambda_: Float[Array, ""] | float,
) -> Float[Array, " T"]:
  """Generalized advantage estimates; `value` + advantage is the lambda-return.

      delta_t = R_{t+1} + discount_t V(S_{t+1}) - V(S_t)
      A_t = delta_t + discount_t lambda A_{t+1}

  Schulman et al. 2016, eq. 16. `value` is that of the observation acted on, `discount` gamma times 1 - terminated,
  lambda in [0, 1]. Everything is (T,), one trajectory; for arrays (T, N) of N environments

      jax.vmap(compute_gae, in_axes=(1, 1, 1, 1, 1, None), out_axes=1)
  """
  _check("compute_gae", last, lambda_, reward=reward, discount=discount, value=value, next_value=next_value)
  delta = reward + discount * next_value - value
  return _backward(delta, discount * lambda_ * _goes_on(last))


class VTrace(NamedTuple):
  """Targets of the value function and advantages of the behaviour's actions under the target policy, (T,) each."""

  target: Float[Array, " T"]
  advantage: Float[Array, " T"]


def vtrace(
  reward: Float[Array, " T"],
  discount: Float[Array, " T"],
  last: Bool[Array, " T"],
  value: Float[Array, " T"],
  next_value: Float[Array, " T"],
  ratio: Float[Array, " T"],
  *,
  lambda_: Float[Array, ""] | float = 1.0,
  rho_clip: Float[Array, ""] | float = 1.0,
  c_clip: Float[Array, ""] | float = 1.0,
) -> VTrace:
  """V-trace: values of the target policy from actions of another, `ratio` = pi(A|S) / mu(A|S) >= 0.

      rho_t = min(rho_clip, ratio_t),  c_t = lambda min(c_clip, ratio_t)
      v_t = V(S_t) + rho_t delta_t + discount_t c_t (v_{t+1} - V(S_{t+1}))
      advantage_t = R_{t+1} + discount_t v_{t+1} - V(S_t)

  Espeholt et al. 2018, eq. 1, remark 1 and remark 2; at the end of an episode or of the trajectory V(S_{t+1}) stands
  for v_{t+1}. With every ratio 1 the targets are lambda-returns. Without clipping (`jnp.inf`) they are the per-decision
  importance-sampled returns with control variates (Sutton & Barto, eq. 7.13).

  Differences from the paper: the advantage is not yet multiplied by rho_t; the policy gradient is
  min(rho_clip, ratio_t) * advantage_t * grad log pi(A_t|S_t).
  """
  arrays = dict(reward=reward, discount=discount, value=value, next_value=next_value, ratio=ratio)
  _check("vtrace", last, lambda_, **arrays)
  goes_on = _goes_on(last)
  rho = jnp.minimum(rho_clip, ratio)
  c = lambda_ * jnp.minimum(c_clip, ratio)
  delta = reward + discount * next_value - value
  correction = _backward(rho * delta, discount * c * goes_on)
  target = value + correction
  next_target = next_value + goes_on * _shift(correction)
  return VTrace(target, reward + discount * next_target - value)


def retrace(
  reward: Float[Array, " T"],
  discount: Float[Array, " T"],
  last: Bool[Array, " T"],
  q: Float[Array, " T"],
  expected_next_q: Float[Array, " T"],
  ratio: Float[Array, " T"],
  *,
  lambda_: Float[Array, ""] | float = 1.0,
) -> Float[Array, " T"]:
  """Retrace targets of Q(S_t, A_t) from actions of another policy, `ratio` = pi(A|S) / mu(A|S) >= 0.

      c_t = lambda min(1, ratio_t)
      delta_t = R_{t+1} + discount_t E_pi[Q(S_{t+1}, .)] - Q(S_t, A_t)
      target_t = Q(S_t, A_t) + delta_t + discount_t c_{t+1} (target_{t+1} - Q(S_{t+1}, A_{t+1}))

  Munos et al. 2016, eq. 3 and 4. `q` is of the action taken, `expected_next_q` the mean under the target policy of the
  values of the next observation; the first ratio has no part in it, as the first action is given.
  """
  arrays = dict(reward=reward, discount=discount, q=q, expected_next_q=expected_next_q, ratio=ratio)
  _check("retrace", last, lambda_, **arrays)
  c = lambda_ * jnp.minimum(1.0, ratio)
  delta = reward + discount * expected_next_q - q
  return q + _backward(delta, discount * _shift(c) * _goes_on(last))
