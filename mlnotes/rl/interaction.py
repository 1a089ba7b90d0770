"""A tabular learner in its world: many steps of one environment, with every random number drawn before the loop."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mlnotes.rl.table import Table, TableState, advance_table, sample_initial
from mlnotes.rl.tabular import Learner, Rule, Settings, Transition, epsilon_greedy, init_learner


class Actor(NamedTuple):
  """A learner in its world, in the middle of an episode.

  Attributes:
    action: what it does next where the rule looks ahead; otherwise what it did last.
    episode_return: undiscounted rewards of the episode so far.
  """

  learner: Learner
  env: TableState
  action: Int[Array, ""]
  episode_return: Float[Array, ""]


class Noise(NamedTuple):
  """The random numbers of one step (or of T steps, with a leading axis): uniform on [0, 1), and a first state.

  Attributes:
    explore: for the action that is chosen every step.
    outcome: for what the action leads to.
    first_state: of the next episode, should this step end one.
    first_action: for the action chosen there, where the rule looks ahead.
    update: what the rule itself draws.
  """

  explore: Float[Array, "*T"]
  outcome: Float[Array, "*T"]
  first_state: Int[Array, "*T"]
  first_action: Float[Array, "*T"]
  update: Float[Array, "*T n"]


class Outcome(NamedTuple):
  """What one step brought; return and length are those of the episode so far, complete where `last`."""

  reward: Float[Array, ""]
  last: Bool[Array, ""]
  episode_return: Float[Array, ""]
  episode_length: Int[Array, ""]


def draw_noise(table: Table, rule: Rule, key: Key[Array, ""], num_steps: int) -> Noise:
  """The random numbers of `num_steps` steps, one call per purpose."""
  keys = jax.random.split(key, 5)
  uniform = lambda i, shape: jax.random.uniform(keys[i], shape)
  return Noise(
    explore=uniform(0, (num_steps,)),
    outcome=uniform(1, (num_steps,)),
    first_state=sample_initial(table.dynamics, uniform(2, (num_steps,))),
    first_action=uniform(3, (num_steps,)),
    update=uniform(4, (num_steps, rule.noise_size)),
  )


def init_actor(table: Table, rule: Rule, key: Key[Array, ""], settings: Settings, initial_value=0.0) -> Actor:
  """A learner that knows nothing, in the first state of an episode."""
  learner = init_learner(rule, table.num_states, table.num_actions, initial_value)
  start_key, action_key = jax.random.split(key)
  index = sample_initial(table.dynamics, jax.random.uniform(start_key))
  action = epsilon_greedy(learner.read_row(index), settings.epsilon, jax.random.uniform(action_key))
  return Actor(learner, TableState(index, jnp.zeros([], jnp.int32)), action, jnp.zeros([]))


def interact(table: Table, rule: Rule, actor: Actor, noise: Noise, settings: Settings) -> tuple[Actor, Outcome]:
  """Acts once, learns from it, and goes on to the next episode where this one ended."""
  learner, env, action, episode_return = actor
  if not rule.looks_ahead:
    action = epsilon_greedy(learner.read_row(env.index), settings.epsilon, noise.explore)
  after, timestep = advance_table(table, noise.outcome, env, action)
  next_action = action
  if rule.looks_ahead:
    next_action = epsilon_greedy(learner.read_row(after.index), settings.epsilon, noise.explore)
  transition = Transition(
    env.index, action, timestep.reward, timestep.discount, timestep.last, after.index, next_action
  )
  learner = rule.update(learner, transition, settings, noise.update)
  if rule.looks_ahead:
    first_action = epsilon_greedy(learner.read_row(noise.first_state), settings.epsilon, noise.first_action)
    next_action = jnp.where(timestep.last, first_action, next_action)
  last = timestep.last
  env = TableState(jnp.where(last, noise.first_state, after.index), jnp.where(last, 0, after.time))
  returned = episode_return + timestep.reward
  actor = Actor(learner, env, next_action, jnp.where(last, 0.0, returned))
  return actor, Outcome(timestep.reward, last, returned, after.time)


def learn_episodes(
  table: Table,
  rule: Rule,
  settings: Settings,
  key: Key[Array, ""],
  num_episodes: int,
  chunk: int = 500,
  longest: int = 100_000,
) -> tuple[Float[Array, " E"], Int[Array, " E"]]:
  """(sum of rewards, steps) of each of the first `num_episodes` episodes of one learner, with constant settings.

  Where the table has no time limit, an episode is truncated after `longest` steps: a policy may never end one.
  """
  table = table._replace(time_limit=table.time_limit or longest)
  init_key, steps_key = jax.random.split(key)

  def one(carry, noise):
    actor, episode, rewards, steps = carry
    actor, outcome = interact(table, rule, actor, noise, settings)
    # Episodes beyond the last are not kept: writes off the end are dropped.
    rewards = rewards.at[episode].add(outcome.reward, mode="drop")
    steps = steps.at[episode].add(1, mode="drop")
    return (actor, episode + outcome.last, rewards, steps), None

  def many(loop):
    i, carry = loop
    noise = draw_noise(table, rule, jax.random.fold_in(steps_key, i), chunk)
    return i + 1, jax.lax.scan(one, carry, noise)[0]

  zero = jnp.zeros([], jnp.int32)
  actor = init_actor(table, rule, init_key, settings)
  carry = (actor, zero, jnp.zeros(num_episodes), jnp.zeros(num_episodes, jnp.int32))
  _, (_, _, rewards, steps) = jax.lax.while_loop(lambda loop: loop[1][1] < num_episodes, many, (zero, carry))
  return rewards, steps
