"""On-policy control with a linear function of tiles: semi-gradient SARSA, its n-step form, and SARSA(lambda).

A method is a pair of functions on one transition, `make_n_step_sarsa(...)` or `make_sarsa_lambda(...)`; `learn` lets
it act and learn for many steps. One environment each; `jax.vmap` makes it many seeds.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mlnotes.rl.env import Environment, step_with_reset
from mlnotes.rl.tiles import Tiling, compute_linear_value, tile_indices


class Transition(NamedTuple):
  """One transition in active tiles. `discount` is gamma, 0 at a termination; `last` also at a truncation.

  `next_active` and `next_action` belong to where the action led to before any reset.
  """

  active: Int[Array, " K"]
  action: Int[Array, ""]
  reward: Float[Array, ""]
  discount: Float[Array, ""]
  last: Bool[Array, ""]
  next_active: Int[Array, " K"]
  next_action: Int[Array, ""]


class Learner(NamedTuple):
  """A method as two pure functions.

  init: () -> memory, a NamedTuple of arrays with `weights` (F, A), which start at zero.
  update: (memory, transition, step_size, trace_decay) -> memory. The step size is per tile: alpha / number of tilings.
  """

  init: Callable[[], Any]
  update: Callable[[Any, Transition, Any, Any], Any]


def epsilon_greedy(
  q: Float[Array, " A"], noise: Float[Array, " A+1"], epsilon: Float[Array, ""] | float
) -> Int[Array, ""]:
  """An action: uniform with probability epsilon, otherwise one of the best, ties broken evenly.

  `noise` is uniform in [0, 1): the first number decides whether to explore, the largest of the others which action.
  """
  candidate = (q == jnp.max(q)) | (noise[0] < epsilon)
  return jnp.argmax(jnp.where(candidate, noise[1:], -1.0)).astype(jnp.int32)


def _compute_next_value(weights: Float[Array, "F A"], transition: Transition) -> Float[Array, ""]:
  return compute_linear_value(weights[:, transition.next_action], transition.next_active)


class NStepMemory(NamedTuple):
  """The last n transitions, the newest at the end, of which `filled` belong to the current episode."""

  weights: Float[Array, "F A"]
  active: Int[Array, "n K"]
  action: Int[Array, " n"]
  reward: Float[Array, " n"]
  discount: Float[Array, " n"]
  filled: Int[Array, ""]


def update_n_step_sarsa(
  memory: NStepMemory, transition: Transition, step_size: Float[Array, ""] | float
) -> NStepMemory:
  """Semi-gradient n-step SARSA; n is the length of the memory, n = 1 the one-step method.

      G_{t:t+n} = R_{t+1} + ... + gamma^{n-1} R_{t+n} + gamma^n q(S_{t+n}, A_{t+n}, w)
      w <- w + alpha (G_{t:t+n} - q(S_t, A_t, w)) grad q(S_t, A_t, w)

  Sutton & Barto, eq. 10.4 and 10.5 and the box in section 10.2. Where the episode ends, all pairs that wait are updated
  in order, with what there is of their returns; after a truncation these still count the value of the last pair.
  """
  n = memory.action.shape[0]
  push = lambda old, new: jnp.concatenate([old[1:], jnp.asarray(new, old.dtype)[None]])
  active = push(memory.active, transition.active)
  action = push(memory.action, transition.action)
  reward = push(memory.reward, transition.reward)
  discount = push(memory.discount, transition.discount)
  filled = jnp.minimum(memory.filled + 1, n)

  targets, target = [], _compute_next_value(memory.weights, transition)
  for i in reversed(range(n)):
    target = reward[i] + discount[i] * target
    targets.append(target)
  targets = jnp.stack(targets[::-1])

  def one(i, weights):
    # The oldest pair is due once n rewards have followed it, every pair when the episode ends.
    due = (i >= n - filled) & ((i == 0) | transition.last)
    error = targets[i] - compute_linear_value(weights[:, action[i]], active[i])
    return weights.at[active[i], action[i]].add(jnp.where(due, step_size * error, 0.0))

  weights = jax.lax.fori_loop(0, n, one, memory.weights) if n > 1 else one(0, memory.weights)
  return NStepMemory(weights, active, action, reward, discount, jnp.where(transition.last, 0, filled))


def make_n_step_sarsa(tiling: Tiling, num_actions: int, n: int) -> Learner:
  """`update_n_step_sarsa` from zero weights. `trace_decay` has no effect. Raises ValueError for n < 1."""
  if n < 1:
    raise ValueError(f"make_n_step_sarsa got n = {n}: expected 1 or more.")

  def init() -> NStepMemory:
    return NStepMemory(
      weights=jnp.zeros((tiling.num_features, num_actions)),
      active=jnp.zeros((n, tiling.num_tilings), jnp.int32),
      action=jnp.zeros(n, jnp.int32),
      reward=jnp.zeros(n),
      discount=jnp.zeros(n),
      filled=jnp.zeros([], jnp.int32),
    )

  return Learner(init, lambda memory, transition, step_size, _: update_n_step_sarsa(memory, transition, step_size))


class TraceMemory(NamedTuple):
  """`trace` has already decayed by gamma lambda since the last update; `old_value` is only used by dutch traces."""

  weights: Float[Array, "F A"]
  trace: Float[Array, "F A"]
  old_value: Float[Array, ""]


def update_sarsa_lambda(
  memory: TraceMemory,
  transition: Transition,
  step_size: Float[Array, ""] | float,
  trace_decay: Float[Array, ""] | float,
  traces: Literal["accumulating", "replacing", "dutch"] = "replacing",
) -> TraceMemory:
  """SARSA(lambda) with binary features x; `trace_decay` is lambda in [0, 1].

      delta = R_{t+1} + gamma q(S_{t+1}, A_{t+1}, w) - q(S_t, A_t, w)
      accumulating:  z <- gamma lambda z + x                                 w <- w + alpha delta z
      replacing:     z_i <- 1 for the active i, gamma lambda z_i elsewhere   w <- w + alpha delta z
      dutch:         z <- gamma lambda z + (1 - alpha gamma lambda z.x) x
                     w <- w + alpha (delta + q - q_old) z - alpha (q - q_old) x

  Sutton & Barto, sections 12.7 (the box and eq. 12.12) and 12.8 (true online SARSA(lambda), which is what dutch traces
  make of it). With lambda = 0 all three are the one-step method. Traces start at zero in every episode.
  """
  weights, trace, at = memory.weights, memory.trace, (transition.active, transition.action)
  value = jnp.sum(weights[at])
  next_value = _compute_next_value(weights, transition)
  error = transition.reward + transition.discount * next_value - value
  if traces == "accumulating":
    trace = trace.at[at].add(1.0)
  elif traces == "replacing":
    trace = trace.at[at].set(1.0)
  else:
    trace = trace.at[at].add(1.0 - step_size * jnp.sum(trace[at]))
    drift = value - memory.old_value
    weights = weights.at[at].add(-step_size * drift)
    error = error + drift
  weights = weights + step_size * error * trace
  keep = jnp.where(transition.last, 0.0, 1.0)
  return TraceMemory(weights, trace * (keep * transition.discount * trace_decay), keep * next_value)


def make_sarsa_lambda(
  tiling: Tiling, num_actions: int, traces: Literal["accumulating", "replacing", "dutch"] = "replacing"
) -> Learner:
  """`update_sarsa_lambda` from zero weights."""

  def init() -> TraceMemory:
    shape = (tiling.num_features, num_actions)
    return TraceMemory(jnp.zeros(shape), jnp.zeros(shape), jnp.zeros([]))

  def update(memory, transition, step_size, trace_decay):
    return update_sarsa_lambda(memory, transition, step_size, trace_decay, traces)

  return Learner(init, update)


class Agent(NamedTuple):
  """A learner in the middle of an episode, about to take `action`."""

  memory: Any
  env_state: Any
  active: Int[Array, " K"]
  action: Int[Array, ""]
  episode_return: Float[Array, ""]
  episode_length: Int[Array, ""]


class StepRecord(NamedTuple):
  """What happened at each step.

  `td_error` is R + gamma q(S', A') - q(S, A) before the update; `episode_return` and `episode_length` are those of the
  episode that ended with this step; read them where `last`.
  """

  td_error: Float[Array, " T"]
  last: Bool[Array, " T"]
  episode_return: Float[Array, " T"]
  episode_length: Int[Array, " T"]


def _draw_noise(env: Environment, key: Key[Array, ""], *shape: int) -> Float[Array, "..."]:
  return jax.random.uniform(key, (*shape, env.actions.n + 1))


def init_agent(
  env: Environment, tiling: Tiling, learner: Learner, key: Key[Array, ""], epsilon: Float[Array, ""] | float
) -> Agent:
  """A learner at the start of its first episode."""
  reset_key, noise_key = jax.random.split(key)
  env_state, observation = env.reset(reset_key)
  memory, active = learner.init(), tile_indices(tiling, observation)
  action = epsilon_greedy(compute_linear_value(memory.weights, active), _draw_noise(env, noise_key), epsilon)
  return Agent(memory, env_state, active, action, jnp.zeros([]), jnp.zeros([], jnp.int32))


def learn(
  env: Environment,
  tiling: Tiling,
  learner: Learner,
  agent: Agent,
  key: Key[Array, ""],
  num_steps: int,
  *,
  step_size: Float[Array, ""] | float,
  trace_decay: Float[Array, ""] | float,
  epsilon: Float[Array, ""] | float,
  discount: Float[Array, ""] | float,
) -> tuple[Agent, StepRecord]:
  """Acts epsilon-greedily and learns from every transition, for `num_steps` steps; episodes follow one another.

  The box in section 10.1 of Sutton & Barto: the next action is chosen before the update, and then taken. Where the
  episode ended, the next episode's first action is chosen after it.
  """
  step_key, reset_key, noise_key = jax.random.split(key, 3)
  step_keys = jax.random.split(step_key, num_steps)
  fresh = jax.vmap(env.reset)(jax.random.split(reset_key, num_steps))
  noise = _draw_noise(env, noise_key, num_steps, 2)

  def one(agent: Agent, inputs):
    key, fresh, noise = inputs
    weights = agent.memory.weights
    env_state, timestep = step_with_reset(env, key, agent.env_state, agent.action, fresh)
    next_active = tile_indices(tiling, timestep.next_observation)
    next_action = epsilon_greedy(compute_linear_value(weights, next_active), noise[0], epsilon)
    transition = Transition(
      agent.active, agent.action, timestep.reward, discount * timestep.discount, timestep.last, next_active, next_action
    )
    value = compute_linear_value(weights[:, agent.action], agent.active)
    td_error = timestep.reward + transition.discount * _compute_next_value(weights, transition) - value
    memory = learner.update(agent.memory, transition, step_size, trace_decay)
    first_active = tile_indices(tiling, timestep.observation)
    first_action = epsilon_greedy(compute_linear_value(memory.weights, first_active), noise[1], epsilon)
    action = jnp.where(timestep.last, first_action, next_action)
    returned, length = agent.episode_return + timestep.reward, agent.episode_length + 1
    goes_on = 1 - timestep.last
    agent = Agent(memory, env_state, first_active, action, returned * goes_on, length * goes_on)
    return agent, StepRecord(td_error, timestep.last, returned, length)

  return jax.lax.scan(one, agent, (step_keys, fresh, noise))
