"""Actor-critic with eligibility traces, linear in its features, learning after every single step. CartPole.

  python -m experiments.rl.actor_critic --seeds=10

Sutton & Barto, section 13.5; features of Konidaris et al. 2011. The environments of a seed advance together and share
the parameters, which move by the mean of what each suggests; one update is `--steps_per_update` steps in all of them.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from experiments.rl._agent import RLConfig, as_policy, make_evaluate, make_feeds as make_feeds, make_report, train_agent
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.rl.env import Actors, init_actors, step_with_reset
from mlnotes.rl.episodes import finished_episodes, require_discrete
from mlnotes.rl.registry import make_env
from mlnotes.rl.tiles import fourier_features, make_fourier_basis, observation_bounds
from mlnotes.rl.traces import Features, Parameters, Traces, Transition, compute_logits, init_parameters, update_traces


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RLConfig):
  """Defaults: CartPole-v1 solved in 200,000 environment steps."""

  steps: int = 200
  eval_episodes: int = 20
  gym_episodes: int = 100
  log_every: int = 5
  eval_every: int = 20
  checkpoint_every: int = 100

  num_envs: int = field(8, "environments per seed")
  steps_per_update: int = field(125, "steps in each environment in one update")
  order: int = field(2, "highest frequency of the critic's Fourier features")
  actor_features: Literal["linear", "fourier"] = field("linear", "of the policy: the observation, or as the critic's")
  learning_rate: float = field(0.03, "step size of the policy, > 0")
  critic_learning_rate: float = field(0.01, "step size of the values, > 0")
  schedule: Literal["constant", "linear"] = field("linear", "of both step sizes; linear: down to 0 over the run")
  actor_decay: float = field(0.8, "lambda of the policy's traces, in [0, 1]; 0: one step")
  critic_decay: float = field(0.8, "lambda of the values' traces, in [0, 1]; 0: one step")

  @property
  def env_steps_per_update(self) -> int:
    return self.num_envs * self.steps_per_update

  def __post_init__(self):
    super().__post_init__()
    for name in ("num_envs", "steps_per_update", "order"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("actor_decay", "critic_decay"):
      require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a number in [0, 1]")
    for name in ("learning_rate", "critic_learning_rate"):
      require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")

  def idle_flags(self):
    return super().idle_flags() | {"precision": "features and weights are float32"}


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  params: Parameters
  traces: Traces
  actors: Actors
  hparams: dict[str, Float[Array, ""]]


def make_features(config: Config):
  """(observation -> Features, and by how much the step size of each actor's and each critic's feature is scaled)."""
  bounds = observation_bounds(config.env)
  basis = make_fourier_basis(*bounds, config.order)
  fourier = lambda observation: fourier_features(basis, observation)
  if config.actor_features == "fourier":
    same = lambda observation: Features(fourier(observation), fourier(observation))
    return same, basis.step_scale[:, None], basis.step_scale
  low, high = map(jnp.array, bounds)

  def features(observation) -> Features:
    # The observation in units of half the box, without clipping, and a constant.
    scaled = (2 * observation - low - high) / (high - low)
    return Features(jnp.append(scaled, 1.0), fourier(observation))

  return features, 1.0, basis.step_scale


def make(config: Config) -> Experiment:
  env = make_env(config.env)
  num_actions = require_discrete(env)
  features, actor_scale, critic_scale = make_features(config)
  extract = jax.vmap(features)
  names = ("learning_rate", "critic_learning_rate", "actor_decay", "critic_decay", "discount")

  def init(key, batch) -> State:
    params = init_parameters(features(jnp.zeros(env.observations.shape)), num_actions)
    traces = Traces(*(jnp.zeros((config.num_envs, *x.shape)) for x in params))
    actors = init_actors(env, stream_key(key, "reset"), config.num_envs)
    hparams = {name: jnp.float32(getattr(config, name)) for name in names}
    return State(jnp.zeros([], jnp.int32), key, params, traces, actors, hparams)

  def learn_step(hparams, left, carry, inputs):
    """One step in every environment, and what is learnt from it."""
    params, traces, actors, x = carry
    noise, keys, fresh = inputs
    # The largest of logits plus Gumbel noise is a sample of their softmax.
    action = jnp.argmax(jax.vmap(compute_logits, (None, 0))(params.actor, x.actor) + noise, axis=-1)
    state, timestep = jax.vmap(step_with_reset, (None, 0, 0, 0, 0))(env, keys, actors.state, action, fresh)
    discount = hparams["discount"] * timestep.discount
    transition = Transition(x, action, timestep.reward, discount, timestep.last, extract(timestep.next_observation))
    update = jax.vmap(update_traces, in_axes=(None, 0, 0, None, None))
    direction, traces, error = update(params, traces, transition, hparams["actor_decay"], hparams["critic_decay"])
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), direction)
    params = Parameters(
      params.actor + hparams["learning_rate"] * left * actor_scale * mean.actor,
      params.critic + hparams["critic_learning_rate"] * left * critic_scale * mean.critic,
    )
    returned, length = actors.episode_return + timestep.reward, actors.episode_length + 1
    from_zero = lambda x: jnp.where(timestep.last, 0, x)
    actors = Actors(state, timestep.observation, from_zero(returned), from_zero(length))
    return (params, traces, actors, extract(timestep.observation)), (timestep.last, returned, length, error)

  def step(state: State, batch):
    stream = lambda name: stream_key(state.key, name, state.step)
    shape = (config.steps_per_update, config.num_envs)
    noise = jax.random.gumbel(stream("act"), (*shape, num_actions))
    fresh = jax.vmap(jax.vmap(env.reset))(jax.random.split(stream("fresh"), shape))
    inputs = (noise, jax.random.split(stream("step"), shape), fresh)
    left = 1 - state.step / config.steps if config.schedule == "linear" else jnp.float32(1)
    carry = (state.params, state.traces, state.actors, extract(state.actors.observation))
    one = lambda carry, inputs: learn_step(state.hparams, left, carry, inputs)
    (params, traces, actors, _), (last, returned, length, error) = jax.lax.scan(one, carry, inputs)
    metrics = {
      "squared_td_error": jnp.mean(error**2),
      **finished_episodes(last, returned, length),
    }
    return state._replace(step=state.step + 1, params=params, traces=traces, actors=actors), metrics

  def act(state: State, observation):
    return jnp.argmax(compute_logits(state.params.actor, features(observation).actor))

  return Experiment(init, step, make_evaluate(env, act, config), make_report(env, act, config), model=as_policy(act))


def main(config: Config) -> int:
  return train_agent(make(config), config)


if __name__ == "__main__":
  run(main, Config)
