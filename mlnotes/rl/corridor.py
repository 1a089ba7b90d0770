"""The short corridor with switched actions (Sutton & Barto, example 13.1) and REINFORCE on it (sections 13.3, 13.4).

Three cells and a goal, one step cell by cell; in the middle cell left and right are switched. All cells look alike to
the policy, so that the best one is random: it goes right with probability 2 - sqrt(2) = 0.586 and earns -11.66.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mlnotes.rl.env import Discrete, Environment, TimeStep, init_actors, rollout
from mlnotes.rl.returns import discounted_returns

RIGHT, LEFT = 0, 1
GOAL = 3
BEST_RIGHT = 2 - math.sqrt(2)
# No action is less probable than that: without it about one run in fifty at alpha = 2^-12 overshoots to a policy that
# always goes right, or always left, and never learns again.
FLOOR = 0.05


def compute_start_value(right: float) -> float:
  """The expected return from the first cell when every step goes right with probability `right` in (0, 1).

  Of the three equations v_0 = -1 + p v_1 + (1 - p) v_0, v_1 = -1 + p v_0 + (1 - p) v_2, v_2 = -1 + (1 - p) v_1:

      v_0 = -2 (2 - p) / (p (1 - p))
  """
  return -2 * (2 - right) / (right * (1 - right))


def make_corridor(time_limit: int) -> Environment:
  """-1 per step; observations number the cells. A bump into the left end stays there."""

  def reset(key):
    cell = jnp.zeros([], jnp.int32)
    return (cell, jnp.zeros([], jnp.int32)), cell

  def step(key, state, action):
    cell, time = state
    move = jnp.where((action == RIGHT) != (cell == 1), 1, -1)
    cell, time = jnp.maximum(cell + move, 0), time + 1
    arrived = cell == GOAL
    discount = 1.0 - arrived.astype(jnp.float32)
    return (cell, time), TimeStep(cell, jnp.float32(-1), discount, arrived | (time >= time_limit), cell)

  return Environment("ShortCorridor", reset, step, Discrete(GOAL + 1), Discrete(2), time_limit)


class Parameters(NamedTuple):
  """theta: preferences for right and left, the same in all cells; w: the baseline, one number for all cells."""

  theta: Float[Array, " 2"]
  w: Float[Array, ""]


def init_parameters(right: float) -> Parameters:
  """A policy that goes right with that probability, and a baseline of zero."""
  return Parameters(jnp.log(jnp.array([right, 1 - right], jnp.float32)), jnp.zeros([]))


def compute_policy(theta: Float[Array, " 2"]) -> Float[Array, " 2"]:
  """The probabilities of right and left: softmax(theta), kept within [0.05, 0.95]."""
  return jnp.clip(jax.nn.softmax(theta), FLOOR, 1 - FLOOR)


def update_reinforce(
  params: Parameters,
  action: Int[Array, " T"],
  returns: Float[Array, " T"],
  mask: Float[Array, " T"],
  theta_step: Float[Array, ""] | float,
  w_step: Float[Array, ""] | float,
) -> Parameters:
  """One episode of REINFORCE with baseline, step after step; `mask` is 1 up to the episode's end, then 0.

      delta = G_t - v(S_t, w)
      w <- w + alpha_w delta
      theta <- theta + alpha_theta delta grad ln pi(A_t|S_t, theta)

  Sutton & Barto, the box in section 13.4, undiscounted. A step size of 0 for w leaves out the baseline (section 13.3).

  Differences from the book: the probabilities have a floor, which the gradient ignores; see `compute_policy`.
  """

  def one(params, inputs):
    action, target, mask = inputs
    delta = mask * (target - params.w)
    score = jax.nn.one_hot(action, 2) - compute_policy(params.theta)
    return Parameters(params.theta + theta_step * delta * score, params.w + w_step * delta), None

  return jax.lax.scan(one, params, (action, returns, mask))[0]


def run_reinforce(
  env: Environment,
  key: Key[Array, ""],
  params: Parameters,
  theta_step: Float[Array, ""] | float,
  w_step: Float[Array, ""] | float,
  num_episodes: int,
) -> tuple[Parameters, Float[Array, " E"]]:
  """(parameters at the end, total reward of each episode) of one run. Episodes end at the time limit at the latest."""

  def one(params, number):
    noise_key, rollout_key, reset_key = jax.random.split(jax.random.fold_in(key, number), 3)
    right = compute_policy(params.theta)[RIGHT]
    act = lambda noise, observation: jnp.where(noise < right, RIGHT, LEFT)
    noise = jax.random.uniform(noise_key, (env.time_limit, 1))
    _, trajectory = rollout(env, act, noise, rollout_key, init_actors(env, reset_key, 1))
    episode = jax.tree.map(lambda x: x[:, 0], trajectory)
    mask = (jnp.cumsum(episode.last) - episode.last == 0).astype(jnp.float32)
    zeros = jnp.zeros_like(episode.reward)
    returns = discounted_returns(episode.reward, episode.discount, episode.last, zeros)
    return update_reinforce(params, episode.action, returns, mask, theta_step, w_step), jnp.sum(mask * episode.reward)

  return jax.lax.scan(one, params, jnp.arange(num_episodes))
