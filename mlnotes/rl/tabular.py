"""Learning action values in a table, one transition at a time (Sutton & Barto, chapters 5 to 8 and 12).

A `Rule` is two pure functions: `init` makes what the method remembers, `update` learns from one transition.

    rule = RULES["q_learning"]()
    learner = init_learner(rule, num_states, num_actions)
    learner = rule.update(learner, transition, settings, noise)

Every target bootstraps with `transition.discount`, which is 0 only where the episode terminated: where a time limit cut
it off, the value of the final observation counts. What belongs to one episode (traces, returns) starts anew after
`last`, whichever of the two ended it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Scalar = Float[Array, ""] | float


class Transition(NamedTuple):
  """One step of one environment, before any reset.

  Attributes:
    discount: 0 where the episode terminated, otherwise 1.
    last: whether the episode ended, by termination or by truncation.
    next_action: what the policy chose in `next_observation`; read only by the rules that `looks_ahead`.
  """

  observation: Int[Array, ""]
  action: Int[Array, ""]
  reward: Float[Array, ""]
  discount: Float[Array, ""]
  last: Bool[Array, ""]
  next_observation: Int[Array, ""]
  next_action: Int[Array, ""]


class Settings(NamedTuple):
  """Numbers that a rule reads; each rule reads those it needs.

  Attributes:
    learning_rate: step size of the first update of a pair, in (0, 1].
    step_size_power: p in  learning_rate / N(s, a)^p,  N being the updates of the pair so far; 0: constant.
    discount: gamma.
    epsilon: probability of a random action in the policy that acts.
    trace_decay: lambda.
  """

  learning_rate: Scalar
  step_size_power: Scalar
  discount: Scalar
  epsilon: Scalar
  trace_decay: Scalar


class Learner(NamedTuple):
  """What a rule has learned.

  Attributes:
    table: action values and how often each was updated, side by side: a step then reads and writes one place, which
      XLA does without a copy of the table. Two arrays made a step on two CPU cores ten times slower. The count is
      kept in two parts, modulo 2^20 and the rest: a float32 cannot count beyond 2^24.
    memory: what else the rule remembers, a pytree of arrays.
  """

  table: Float[Array, "S A 3"]
  memory: Any

  @property
  def q(self) -> Float[Array, "S A"]:
    return self.table[..., 0]

  @property
  def visits(self) -> Float[Array, "S A"]:
    """Updates of each pair so far, rounded to 24 bits."""
    return _join_count(self.table)

  def read_row(self, s: Int[Array, ""]) -> Float[Array, " A"]:
    """The action values of one state."""
    return _read(self.table, s)[:, 0]


_CARRY = 2.0**20


def _join_count(entry: Float[Array, "*B 3"]) -> Float[Array, "*B"]:
  return entry[..., 1] + _CARRY * entry[..., 2]


def _add_count(entry: Float[Array, "*B 3"], more: Float[Array, "*B"] | float) -> Float[Array, "*B 2"]:
  """Both parts of the count after `more` updates, which are at most 2^20."""
  low = entry[..., 1] + more
  carry = (low >= _CARRY).astype(low.dtype)
  return jnp.stack([low - carry * _CARRY, entry[..., 2] + carry], axis=-1)


def _read(table: Array, *at: Int[Array, ""]) -> Array:
  # The numbers come from the world itself: no check of their range.
  return table.at[at].get(mode="promise_in_bounds", wrap_negative_indices=False)


class Rule(NamedTuple):
  """One method.

  Attributes:
    init: (S, A) zeros -> memory.
    update: (Learner, Transition, Settings, noise) -> Learner; `noise` is `noise_size` numbers uniform on [0, 1).
    looks_ahead: whether the action after the transition is chosen before the update, as SARSA needs it.
  """

  init: Callable[[Float[Array, "S A"]], Any]
  update: Callable[[Learner, Transition, Settings, Float[Array, " n"]], Learner]
  looks_ahead: bool = False
  noise_size: int = 0


def init_learner(rule: Rule, num_states: int, num_actions: int, initial_value: Scalar = 0.0) -> Learner:
  """A learner whose every action is worth `initial_value`."""
  zeros = jnp.zeros((num_states, num_actions))
  return Learner(jnp.stack([zeros + initial_value, zeros, zeros], axis=-1), rule.init(zeros))


# -- acting ------------------------------------------------------------------------------------------------------------


def choose_index(mask: Bool[Array, " A"], uniform: Float[Array, ""]) -> Int[Array, ""]:
  """One of the indices where `mask` is true, each as probable; `uniform` is a number on [0, 1)."""
  rank = jnp.cumsum(mask)
  chosen = jnp.minimum(jnp.floor(uniform * rank[-1]).astype(rank.dtype), rank[-1] - 1)
  return jnp.sum(rank <= chosen).astype(jnp.int32)


def epsilon_greedy(q: Float[Array, " A"], epsilon: Scalar, uniform: Float[Array, ""]) -> Int[Array, ""]:
  """With probability epsilon any action, otherwise a best one; equals are as probable as each other.

  One number uniform on [0, 1) decides both: below epsilon it explores, and where it lies in its part chooses.
  """
  explores = uniform < epsilon
  low, width = jnp.where(explores, 0.0, epsilon), jnp.where(explores, epsilon, 1 - epsilon)
  return choose_index(explores | (q == jnp.max(q)), jnp.clip((uniform - low) / jnp.maximum(width, 1e-12), 0, 1))


def epsilon_greedy_value(q: Float[Array, " A"], epsilon: Scalar) -> Float[Array, ""]:
  """Expected value of the action that `epsilon_greedy` takes; equals are worth the same, whichever it takes."""
  return epsilon * jnp.mean(q) + (1 - epsilon) * jnp.max(q)


# -- one-step rules ----------------------------------------------------------------------------------------------------


def _without_memory(zeros: Float[Array, "S A"]) -> tuple[()]:
  del zeros
  return ()


def compute_step_size(settings: Settings, count: Float[Array, "*n"]) -> Float[Array, "*n"]:
  """learning_rate / N^p  for the update number N = `count` of a pair."""
  return settings.learning_rate * jnp.maximum(count, 1.0) ** -settings.step_size_power


def move_towards(
  learner: Learner, observation: Int[Array, ""], action: Int[Array, ""], target: Float[Array, ""], settings: Settings
) -> Learner:
  """Q(s, a) <- Q(s, a) + alpha (target - Q(s, a)), and counts the update."""
  entry = _read(learner.table, observation)[action]
  change = compute_step_size(settings, _join_count(entry) + 1) * (target - entry[0])
  carry = (entry[1] + 1 >= _CARRY).astype(entry.dtype)
  change = jnp.stack([change, 1 - carry * _CARRY, carry])
  return learner._replace(table=learner.table.at[observation, action].add(change))


def update_sarsa(
  learner: Learner, transition: Transition, settings: Settings, noise: Float[Array, " n"] | None = None
) -> Learner:
  """Target  R + gamma Q(S', A').     Sutton & Barto, (6.7)"""
  next_value = learner.read_row(transition.next_observation)[transition.next_action]
  target = transition.reward + settings.discount * transition.discount * next_value
  return move_towards(learner, transition.observation, transition.action, target, settings)


def update_expected_sarsa(
  learner: Learner, transition: Transition, settings: Settings, noise: Float[Array, " n"] | None = None
) -> Learner:
  """Target  R + gamma sum_a pi(a | S') Q(S', a)  for the epsilon-greedy policy pi.     Sutton & Barto, (6.9)"""
  next_value = epsilon_greedy_value(learner.read_row(transition.next_observation), settings.epsilon)
  target = transition.reward + settings.discount * transition.discount * next_value
  return move_towards(learner, transition.observation, transition.action, target, settings)


def update_q_learning(
  learner: Learner, transition: Transition, settings: Settings, noise: Float[Array, " n"] | None = None
) -> Learner:
  """Target  R + gamma max_a Q(S', a).     Watkins 1989; Sutton & Barto, (6.8)"""
  next_value = jnp.max(learner.read_row(transition.next_observation))
  target = transition.reward + settings.discount * transition.discount * next_value
  return move_towards(learner, transition.observation, transition.action, target, settings)


# -- eligibility traces ------------------------------------------------------------------------------------------------


def _mark(traces, transition: Transition, replacing: bool):
  at = (transition.observation, transition.action)
  return traces.at[at].set(1.0) if replacing else traces.at[at].add(1.0)


def _update_with_traces(learner, transition, settings, next_value, keep, replacing) -> Learner:
  """Moves every pair by its trace, whose mark for the current pair is set first; `keep` is 0 where traces are cut."""
  at = (transition.observation, transition.action)
  traces = _mark(learner.memory, transition, replacing)
  target = transition.reward + settings.discount * transition.discount * next_value
  entry = learner.table[at]
  step_size = compute_step_size(settings, _join_count(entry) + 1)
  q = learner.q + step_size * (target - entry[0]) * traces
  table = learner.table.at[..., 0].set(q).at[(*at, slice(1, None))].set(_add_count(entry, 1.0))
  decay = settings.discount * settings.trace_decay * keep * (1 - transition.last)
  return Learner(table, decay * traces)


def update_sarsa_lambda(
  learner: Learner,
  transition: Transition,
  settings: Settings,
  noise: Float[Array, " n"] | None = None,
  *,
  replacing: bool = False,
) -> Learner:
  """SARSA(lambda), backward view.

  delta = R + gamma Q(S', A') - Q(S, A);  e(S, A) <- e(S, A) + 1, or 1 where traces are replaced;
  Q <- Q + alpha delta e;  e <- gamma lambda e                 Rummery & Niranjan 1994; Sutton & Barto, 12.7

  The step size is that of the current pair for all of them.
  """
  next_value = learner.read_row(transition.next_observation)[transition.next_action]
  return _update_with_traces(learner, transition, settings, next_value, 1.0, replacing)


def update_watkins(
  learner: Learner,
  transition: Transition,
  settings: Settings,
  noise: Float[Array, " n"] | None = None,
  *,
  replacing: bool = False,
) -> Learner:
  """Watkins's Q(lambda): the error of Q-learning, and traces that end where the next action is not a greedy one.

  Watkins 1989; Sutton & Barto, section 12.10.
  """
  row = learner.read_row(transition.next_observation)
  best = jnp.max(row)
  keep = (row[transition.next_action] == best).astype(jnp.float32)
  return _update_with_traces(learner, transition, settings, best, keep, replacing)


# -- Monte Carlo -------------------------------------------------------------------------------------------------------


class EpisodeReturns(NamedTuple):
  """Returns of the visits in the current episode, summed while it lasts, so that it need not be kept.

  Attributes:
    weight: sum over the visits of gamma^(steps since), what the next reward adds to `total` per unit.
    total: sum over the visits of the discounted rewards since.
    count: visits.
  """

  weight: Float[Array, "S A"]
  total: Float[Array, "S A"]
  count: Float[Array, "S A"]


def init_episode_returns(zeros: Float[Array, "S A"]) -> EpisodeReturns:
  """No visit yet."""
  return EpisodeReturns(zeros, jnp.zeros_like(zeros), jnp.zeros_like(zeros))


def update_monte_carlo(
  learner: Learner,
  transition: Transition,
  settings: Settings,
  noise: Float[Array, " n"] | None = None,
  *,
  first_visit: bool = False,
) -> Learner:
  """On-policy Monte-Carlo control: at the end of an episode every pair in it moves towards its mean return.

  Q(s, a) <- Q(s, a) + min(1, m alpha) (mean of the m returns - Q(s, a))                Sutton & Barto, section 5.4

  With learning_rate 1 and step_size_power 1, alpha = 1 / N, this is the mean of all returns so far. `first_visit`
  counts only the return of the first visit of an episode.

  Differences from the book: the return of an episode that a time limit cut off goes on with the value of the
  epsilon-greedy policy in the final observation.
  """
  at = (transition.observation, transition.action)
  episode = learner.memory
  counted = (episode.count[at] == 0).astype(jnp.float32) if first_visit else 1.0
  weight = (settings.discount * episode.weight).at[at].add(counted)
  total = episode.total + transition.reward * weight
  count = episode.count.at[at].add(counted)

  next_value = epsilon_greedy_value(learner.read_row(transition.next_observation), settings.epsilon)
  returns = total + settings.discount * transition.discount * next_value * weight
  ends = transition.last
  counted = jnp.concatenate([learner.q[..., None], _add_count(learner.table, ends * count)], axis=-1)
  visits = _join_count(counted)
  share = jnp.minimum(1.0, count * compute_step_size(settings, visits))
  moved = learner.q + share * (returns / jnp.maximum(count, 1.0) - learner.q)
  q = jnp.where(ends & (count > 0), moved, learner.q)
  goes_on = 1.0 - ends
  memory = EpisodeReturns(goes_on * weight, goes_on * total, goes_on * count)
  return Learner(counted.at[..., 0].set(q), memory)


# -- planning ----------------------------------------------------------------------------------------------------------


class Model(NamedTuple):
  """What each action last led to, and which states have been acted in, in the order of their first time.

  Attributes:
    outcomes: next state, reward, discount and 1 if the pair was seen, in one array for the reason that
      `Learner.table` is one; a float32 holds the number of a state exactly up to 2^24.
    known: states seen so far.
    states: the same as a list: the first `num_states` entries.
  """

  outcomes: Float[Array, "S A 4"]
  known: Bool[Array, " S"]
  states: Int[Array, " S"]
  num_states: Int[Array, ""]


def init_model(zeros: Float[Array, "S A"]) -> Model:
  """Nothing seen yet."""
  number = jnp.zeros(len(zeros), jnp.int32)
  return Model(jnp.zeros((*zeros.shape, 4)), number > 0, number, jnp.zeros([], jnp.int32))


def update_model(model: Model, transition: Transition) -> Model:
  """Keeps the transition in place of what the pair led to before."""
  s, a = transition.observation, transition.action
  next_state = transition.next_observation.astype(jnp.float32)
  outcome = jnp.stack([next_state, transition.reward, transition.discount, jnp.ones([])])
  is_new = ~model.known[s]
  # Where the state is known, its own entry is not touched: the write falls off the end.
  slot = jnp.where(is_new, model.num_states, len(model.states))
  return Model(
    outcomes=model.outcomes.at[s, a].set(outcome, mode="promise_in_bounds"),
    known=model.known.at[s].set(True),
    states=model.states.at[slot].set(s, mode="drop"),
    num_states=model.num_states + is_new,
  )


def sample_model(model: Model, uniform: Float[Array, ""]) -> Transition:
  """A state seen before and an action taken in it before, both uniform, and what that led to."""
  position = uniform * model.num_states
  index = jnp.minimum(jnp.floor(position).astype(jnp.int32), model.num_states - 1)
  s = _read(model.states, index)
  row = _read(model.outcomes, s)
  a = choose_index(row[:, 3] > 0, jnp.clip(position - index, 0, 1))
  next_state, reward, discount, _ = row[a]
  return Transition(s, a, reward, discount, discount == 0, next_state.astype(jnp.int32), a)


def update_dyna_q(learner: Learner, transition: Transition, settings: Settings, noise: Float[Array, " n"]) -> Learner:
  """Dyna-Q: learns from the transition, keeps it in the model, then learns from n transitions of the model.

  Sutton 1990; Sutton & Barto, section 8.2. `noise` holds one number per planning step.
  """
  learner = update_q_learning(learner, transition, settings)
  model = update_model(learner.memory, transition)
  plan = lambda learner, uniform: (update_q_learning(learner, sample_model(model, uniform), settings), None)
  return jax.lax.scan(plan, learner._replace(memory=()), noise)[0]._replace(memory=model)


# -- the rules by name -------------------------------------------------------------------------------------------------


def make_monte_carlo(first_visit: bool = False) -> Rule:
  """`update_monte_carlo`: every visit of an episode counts, or the first alone."""
  return Rule(init_episode_returns, functools.partial(update_monte_carlo, first_visit=first_visit))


def make_sarsa_lambda(replacing: bool = False) -> Rule:
  """`update_sarsa_lambda` with traces that accumulate or are replaced."""
  return Rule(jnp.copy, functools.partial(update_sarsa_lambda, replacing=replacing), looks_ahead=True)


def make_watkins(replacing: bool = False) -> Rule:
  """`update_watkins` with traces that accumulate or are replaced."""
  return Rule(jnp.copy, functools.partial(update_watkins, replacing=replacing), looks_ahead=True)


def make_dyna_q(planning_steps: int = 5) -> Rule:
  """`update_dyna_q` with that many updates from the model after each step in the world."""
  return Rule(init_model, update_dyna_q, noise_size=planning_steps)


RULES: dict[str, Callable[..., Rule]] = {
  "monte_carlo": make_monte_carlo,
  "sarsa": lambda: Rule(_without_memory, update_sarsa, looks_ahead=True),
  "expected_sarsa": lambda: Rule(_without_memory, update_expected_sarsa),
  "q_learning": lambda: Rule(_without_memory, update_q_learning),
  "sarsa_lambda": make_sarsa_lambda,
  "watkins_q": make_watkins,
  "dyna_q": make_dyna_q,
}
