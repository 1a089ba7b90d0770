"""Dynamic programming: values and policies of a world whose every outcome is known (Sutton & Barto, chapter 4).

    solution = value_iteration(read_table("FrozenLake-v1").dynamics, 0.99)
    policy = greedy_policy(compute_action_values(dynamics, solution.values, 0.99))

Policies are probabilities (S, A). All functions are pure and can be jitted; values of a state count what follows it,
so a state that only ends an episode is worth whatever its own row of the table says, and nobody asks.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mlnotes.engine.sharding import one_by_one_on_cpu
from mlnotes.rl.table import Dynamics, Table


class Solution(NamedTuple):
  """Values and how many sweeps they took."""

  values: Float[Array, " S"]
  iterations: Int[Array, ""]


class PolicySolution(NamedTuple):
  """Optimal values, how many improvements they took, and a policy that has them."""

  values: Float[Array, " S"]
  iterations: Int[Array, ""]
  policy: Float[Array, "S A"]


def compute_action_values(
  dynamics: Dynamics, values: Float[Array, " S"], discount: Float[Array, ""] | float
) -> Float[Array, "S A"]:
  """The value of each action where `values` holds from the next step on.

  q(s, a) = sum_{s', r} p(s', r | s, a) (r + gamma v(s')),  v(s') = 0 where the episode ended     Sutton & Barto, (4.6)
  """
  continues = 1.0 - jnp.asarray(dynamics.terminated, jnp.float32)
  future = discount * continues * values[jnp.asarray(dynamics.next_state)]
  return jnp.sum(dynamics.probability * (dynamics.reward + future), axis=-1)


def greedy_policy(action_values: Float[Array, "S A"]) -> Float[Array, "S A"]:
  """Probability 1 for the best action of each state, the first of equals.

  With `discount` 1 the first of equals may go round in circles for ever and never earn what the values promise: an
  optimal policy is that of `policy_iteration`.
  """
  return jax.nn.one_hot(jnp.argmax(action_values, axis=-1), action_values.shape[-1])


def compute_policy_model(
  dynamics: Dynamics, policy: Float[Array, "S A"]
) -> tuple[Float[Array, "S S"], Float[Array, " S"]]:
  """(P, r) under a policy: probability of going on from s in s', and expected reward.

  Rows of P sum to the probability that the episode does not end.
  """
  num_states = policy.shape[0]
  weight = policy[..., None] * dynamics.probability
  going_on = weight * (1.0 - jnp.asarray(dynamics.terminated, jnp.float32))
  source = jnp.broadcast_to(jnp.arange(num_states)[:, None, None], weight.shape)
  transitions = jnp.zeros((num_states, num_states)).at[source, jnp.asarray(dynamics.next_state)].add(going_on)
  return transitions, jnp.sum(weight * dynamics.reward, axis=(-2, -1))


def evaluate_policy(
  dynamics: Dynamics, policy: Float[Array, "S A"], discount: Float[Array, ""] | float
) -> Float[Array, " S"]:
  """The exact value of a policy without a time limit, by a linear solve: v = (I - gamma P)^-1 r.

  With `discount` 1 this is defined only where the policy ends every episode from every state.
  """
  transitions, reward = compute_policy_model(dynamics, policy)
  return one_by_one_on_cpu(jnp.linalg.solve)(jnp.eye(len(reward)) - discount * transitions, reward)


def evaluate_policy_iteratively(
  dynamics: Dynamics,
  policy: Float[Array, "S A"],
  discount: Float[Array, ""] | float,
  tolerance: Float[Array, ""] | float = 1e-6,
  max_iterations: int = 100_000,
) -> Solution:
  """The same by sweeps until no value changes by more than `tolerance` (Sutton & Barto, section 4.1).

  v(s) <- sum_a pi(a | s) q(s, a)                                                               Sutton & Barto, (4.5)

  Differences from the book: a sweep uses the previous sweep's values for every state, not those of this sweep.
  """
  sweep = lambda values: jnp.sum(policy * compute_action_values(dynamics, values, discount), axis=-1)
  return _iterate(sweep, policy.shape[0], tolerance, max_iterations)


def value_iteration(
  dynamics: Dynamics,
  discount: Float[Array, ""] | float,
  tolerance: Float[Array, ""] | float = 1e-6,
  max_iterations: int = 100_000,
) -> Solution:
  """Optimal values by sweeps until none changes by more than `tolerance`.

  v(s) <- max_a q(s, a)                                                                        Sutton & Barto, (4.10)

  Differences from the book: a sweep uses the previous sweep's values for every state, not those of this sweep.
  """
  sweep = lambda values: jnp.max(compute_action_values(dynamics, values, discount), axis=-1)
  return _iterate(sweep, dynamics.next_state.shape[0], tolerance, max_iterations)


def _iterate(sweep, num_states: int, tolerance, max_iterations: int) -> Solution:
  def changing(carry):
    _, change, count = carry
    return (change > tolerance) & (count < max_iterations)

  def one(carry):
    values, _, count = carry
    new = sweep(values)
    return new, jnp.max(jnp.abs(new - values)), count + 1

  start = (jnp.zeros(num_states), jnp.full([], jnp.inf), jnp.zeros([], jnp.int32))
  values, _, count = jax.lax.while_loop(changing, one, start)
  return Solution(values, count)


def choose_shortest_way(dynamics: Dynamics) -> Int[Array, " S"]:
  """In each state the action that may end the episode in the fewest steps, with luck and whatever it earns.

  Followed for long enough it ends every episode, if an end can be reached from every state.
  """
  possible = jnp.asarray(dynamics.probability) > 0
  next_state, terminated = jnp.asarray(dynamics.next_state), jnp.asarray(dynamics.terminated)

  def count_steps(steps):
    return 1 + jnp.min(jnp.where(possible, jnp.where(terminated, 0, steps[next_state]), jnp.inf), axis=-1)

  shorten = lambda _, steps: jnp.min(count_steps(steps), axis=-1)
  num_states = next_state.shape[0]
  steps = jax.lax.fori_loop(0, num_states, shorten, jnp.full(num_states, jnp.inf))
  return jnp.argmin(count_steps(steps), axis=-1).astype(jnp.int32)


def policy_iteration(
  dynamics: Dynamics,
  discount: Float[Array, ""] | float,
  tolerance: Float[Array, ""] | float = 1e-5,
  max_iterations: int = 1_000,
) -> PolicySolution:
  """Optimal values by exact evaluation and greedy improvement until the policy stays (Sutton & Barto, section 4.3).

  An action is given up only for one that is better by more than `tolerance`, or equals would be exchanged for ever.
  It starts from `choose_shortest_way`. So with `discount` 1 every policy on the way ends every episode, provided that
  an end can be reached from every state and that no circle earns more than it costs.
  """
  num_actions = dynamics.next_state.shape[1]

  def changing(carry):
    _, _, changed, count = carry
    return changed & (count < max_iterations)

  def one(carry):
    action, _, _, count = carry
    values = evaluate_policy(dynamics, jax.nn.one_hot(action, num_actions), discount)
    action_values = compute_action_values(dynamics, values, discount)
    current = jnp.take_along_axis(action_values, action[:, None], axis=-1)[:, 0]
    better = jnp.max(action_values, axis=-1) > current + tolerance
    action = jnp.where(better, jnp.argmax(action_values, axis=-1), action)
    return action, values, jnp.any(better), count + 1

  action = choose_shortest_way(dynamics)
  start = (action, jnp.zeros(action.shape), jnp.array(True), jnp.zeros([], jnp.int32))
  action, values, _, count = jax.lax.while_loop(changing, one, start)
  return PolicySolution(values, count, jax.nn.one_hot(action, num_actions))


# Errors add up over thousands of steps: by default a GPU rounds probabilities to 10 bits.
_matmul = functools.partial(jnp.matmul, precision="highest")


def evaluate_horizon(
  dynamics: Dynamics, policy: Float[Array, "S A"], discount: Float[Array, ""] | float, horizon: int
) -> Float[Array, " S"]:
  """The exact value of a policy when an episode is cut off after `horizon` steps.

  v_0 = 0,  v_{h+1}(s) = sum_a pi(a | s) sum_{s', r} p(s', r | s, a) (r + gamma v_h(s'))

  With `discount` 1 on FrozenLake, whose only reward is 1 at the goal, it is the probability of success under the limit.
  """
  transitions, reward = compute_policy_model(dynamics, policy)
  advance = lambda values, _: (reward + discount * _matmul(transitions, values), None)
  return jax.lax.scan(advance, jnp.zeros_like(reward), length=horizon)[0]


def evaluate_doubling(dynamics: Dynamics, policy: Float[Array, "S A"], doublings: int = 13) -> Float[Array, " S"]:
  """The undiscounted value of a policy when an episode is cut off after 2^doublings steps (8,192).

      v_{2h} = v_h + P^h v_h

  In place of `evaluate_policy` where the policy may never end an episode, which makes the linear system singular.
  """

  def double(carry, _):
    transitions, values = carry
    return (_matmul(transitions, transitions), values + _matmul(transitions, values)), None

  return jax.lax.scan(double, compute_policy_model(dynamics, policy), length=doublings)[0][1]


def start_value(dynamics: Dynamics, values: Float[Array, " S"]) -> Float[Array, ""]:
  """The mean of `values` over the first states of episodes."""
  return jnp.dot(jnp.asarray(dynamics.initial), values)


def optimal_action_values(table: Table, discount: float) -> tuple[Float[Array, "S A"], Int[Array, " S"]]:
  """(action values, actions of an optimal policy) of dynamic programming, to set beside learned ones."""
  solution = jax.jit(policy_iteration)(table.dynamics, discount)
  return compute_action_values(table.dynamics, solution.values, discount), jnp.argmax(solution.policy, axis=-1)
