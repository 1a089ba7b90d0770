"""Soft actor-critic: continuous actions, a stochastic actor, a learned temperature. Pendulum, MountainCarContinuous.

  python -m experiments.rl.sac --seeds=10                                # Pendulum-v1

Haarnoja et al. 2018b. One update acts `--train_every` times in each of `--num_envs` environments, then takes
`--gradient_steps` gradient steps; the replay too is on the device.
"""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from experiments.rl._agent import as_policy, make_evaluate, make_report, train_agent
from experiments.rl._agent import make_feeds as make_feeds
from experiments.rl._off_policy import OffPolicyConfig
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.rl import sac
from mlnotes.rl.ddpg import Critic, normalize_actions, sample_action_noise, scale_action
from mlnotes.rl.env import Actors, init_actors, rollout
from mlnotes.rl.episodes import finished_episodes, observation_size, observation_vector, require_box
from mlnotes.rl.off_policy import can_learn, learn, update_target
from mlnotes.rl.registry import make_env
from mlnotes.rl.replay import Replay, add, as_transitions, init_env_replay, sample_batches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(OffPolicyConfig):
  """Defaults: Pendulum-v1."""

  env: str = "Pendulum-v1"
  discount: float = 0.98
  steps: int = 5000
  learning_rate: float = 1e-3
  log_every: int = 100
  eval_every: int = 500
  checkpoint_every: int = 1000

  num_envs: int = 4
  train_every: int = 1
  gradient_steps: int = 4
  batch_size: int = 128
  replay_capacity: int = 20_000
  hidden: tuple[int, ...] = (64, 64)
  initial_temperature: float = field(1.0, "weight of the entropy at the start, > 0; it is learned")
  target_entropy: float = field(-1.0, "entropy per action component, in nats, that the temperature is learned for")

  def __post_init__(self):
    super().__post_init__()
    require(self.initial_temperature > 0, "initial_temperature", self.initial_temperature, "a number above 0")


class State(NamedTuple):
  """`params` hold "actor", "critics" and "log_alpha"; `target` is a moving average of the critics."""

  step: Int[Array, ""]
  key: Key[Array, ""]
  params: dict[str, chex.ArrayTree]
  target: chex.ArrayTree
  opt_state: optax.OptState
  replay: Replay
  actors: Actors
  hparams: dict[str, Float[Array, ""]]


def make(config: Config) -> Experiment:
  outer = make_env(config.env)
  bounds = require_box(outer)
  env = normalize_actions(outer)
  (action_size,) = bounds.shape
  dtype = jnp.dtype(config.precision)
  actor_network = sac.GaussianActor(config.hidden, action_size, dtype=dtype)
  critic_network = Critic(config.hidden, dtype=dtype)
  both = sac.make_critics(critic_network)
  actor = lambda params, observation: actor_network.apply(params, observation_vector(env, observation))
  critics = lambda params, observation, action: both(params, observation_vector(env, observation), action)
  optimizer = config.make_optimizer()

  def init(key, batch) -> State:
    observation, action = jnp.zeros(observation_size(env)), jnp.zeros(action_size)
    params = {
      "actor": actor_network.init(stream_key(key, "actor"), observation),
      "critics": sac.init_critics(critic_network, stream_key(key, "critics"), observation, action),
      "log_alpha": jnp.log(jnp.float32(config.initial_temperature)),
    }
    # A copy: parameters and target are updated in place, each its own.
    target = jax.tree.map(jnp.copy, params["critics"])
    actors = init_actors(env, stream_key(key, "reset"), config.num_envs)
    replay = init_env_replay(env, config.replay_capacity)
    hparams = {name: jnp.float32(getattr(config, name)) for name in ("discount", "tau", "target_entropy")}
    return State(jnp.zeros([], jnp.int32), key, params, target, optimizer.init(params), replay, actors, hparams)

  def step(state: State, batch):
    stream = lambda name: stream_key(state.key, name, state.step)
    h = state.hparams
    noise = sample_action_noise(stream("explore"), (config.train_every, config.num_envs, action_size))
    warm = can_learn(state.replay, config.learning_starts)

    def act(noise, observation):
      chosen, _ = actor(state.params["actor"], observation).sample(noise.normal)
      return jnp.where(warm, chosen, noise.uniform)

    actors, trajectory = rollout(env, act, noise, stream("rollout"), state.actors)
    replay = add(state.replay, as_transitions(trajectory))

    def losses(params, target, t, normal):
      critic_loss = sac.compute_critic_loss(actor, critics, params, target, t, normal[0], h["discount"])
      actor_loss, log_prob = sac.compute_actor_loss(actor, critics, params, t.observation, normal[1])
      loss = sac.compute_temperature_loss(params["log_alpha"], log_prob, h["target_entropy"] * action_size)
      return {"critic_loss": critic_loss, "actor_loss": actor_loss, "temperature_loss": loss, "entropy": -log_prob}

    def mean_losses(params, target, transitions, normal):
      means = jax.tree.map(jnp.mean, jax.vmap(losses, (None, None, 0, 0))(params, target, transitions, normal))
      # Each loss has a gradient for its own part only, so that their sum trains all three.
      return means["critic_loss"] + means["actor_loss"] + means["temperature_loss"], means

    def gradient_step(learner, inputs):
      params, target, opt_state = learner
      grads, means = jax.grad(mean_losses, has_aux=True)(params, target, *inputs)
      updates, opt_state = optimizer.update(grads, opt_state, params)
      params = optax.apply_updates(params, updates)
      means["temperature"] = jnp.exp(params["log_alpha"])
      return (params, update_target(target, params["critics"], h["tau"]), opt_state), means

    size = (config.gradient_steps, config.batch_size)
    inputs = (
      sample_batches(replay, stream("replay"), *size),
      jax.random.normal(stream("actions"), (*size, 2, action_size)),
    )
    learner = (state.params, state.target, state.opt_state)
    learner, metrics = learn(gradient_step, learner, inputs, can_learn(replay, config.learning_starts))
    state = State(state.step + 1, state.key, *learner, replay, actors, h)
    return state, {
      **metrics,
      **finished_episodes(trajectory.last, trajectory.episode_return, trajectory.episode_length),
    }

  def act(state: State, observation):
    return scale_action(actor(state.params["actor"], observation).mode(), bounds.low, bounds.high)

  return Experiment(
    init, step, make_evaluate(outer, act, config), make_report(outer, act, config), model=as_policy(act)
  )


def main(config: Config) -> int:
  return train_agent(make(config), config)


if __name__ == "__main__":
  run(main, Config)
