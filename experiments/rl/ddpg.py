"""Deep deterministic policy gradient: continuous actions, a deterministic actor. Pendulum, MountainCarContinuous.

  python -m experiments.rl.ddpg --seeds=10                               # Pendulum-v1

Lillicrap et al. 2016, with Gaussian exploration noise. One update acts `--train_every` times in each of `--num_envs`
environments, then takes `--gradient_steps` gradient steps; the replay too is on the device.
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
from mlnotes.rl import ddpg
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
  steps: int = 7500
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
  exploration_noise: float = field(0.2, "standard deviation of the noise on actions in [-1, 1], 0 or more")

  def __post_init__(self):
    super().__post_init__()
    require(self.exploration_noise >= 0, "exploration_noise", self.exploration_noise, "0 or more")


class State(NamedTuple):
  """`params` and `target` hold "actor" and "critic"."""

  step: Int[Array, ""]
  key: Key[Array, ""]
  params: dict[str, chex.ArrayTree]
  target: dict[str, chex.ArrayTree]
  opt_state: optax.OptState
  replay: Replay
  actors: Actors
  hparams: dict[str, Float[Array, ""]]


def make(config: Config) -> Experiment:
  outer = make_env(config.env)
  bounds = require_box(outer)
  env = ddpg.normalize_actions(outer)
  (action_size,) = bounds.shape
  dtype = jnp.dtype(config.precision)
  actor_network = ddpg.Actor(config.hidden, action_size, dtype=dtype)
  critic_network = ddpg.Critic(config.hidden, dtype=dtype)
  actor = lambda params, observation: actor_network.apply(params, observation_vector(env, observation))
  critic = lambda params, observation, action: critic_network.apply(
    params, observation_vector(env, observation), action
  )
  optimizer = config.make_optimizer()

  def init(key, batch) -> State:
    observation, action = jnp.zeros(observation_size(env)), jnp.zeros(action_size)
    params = {
      "actor": actor_network.init(stream_key(key, "actor"), observation),
      "critic": critic_network.init(stream_key(key, "critic"), observation, action),
    }
    # A copy: parameters and target are updated in place, each its own.
    target = jax.tree.map(jnp.copy, params)
    actors = init_actors(env, stream_key(key, "reset"), config.num_envs)
    replay = init_env_replay(env, config.replay_capacity)
    hparams = {name: jnp.float32(getattr(config, name)) for name in ("discount", "tau", "exploration_noise")}
    return State(jnp.zeros([], jnp.int32), key, params, target, optimizer.init(params), replay, actors, hparams)

  def step(state: State, batch):
    stream = lambda name: stream_key(state.key, name, state.step)
    h = state.hparams
    noise = ddpg.sample_action_noise(stream("explore"), (config.train_every, config.num_envs, action_size))
    warm = can_learn(state.replay, config.learning_starts)

    def act(noise, observation):
      chosen = ddpg.add_exploration_noise(
        actor(state.params["actor"], observation), noise.normal, h["exploration_noise"]
      )
      return jnp.where(warm, chosen, noise.uniform)

    actors, trajectory = rollout(env, act, noise, stream("rollout"), state.actors)
    replay = add(state.replay, as_transitions(trajectory))

    def mean_losses(params, target, transitions):
      critic_loss = lambda t: ddpg.compute_critic_loss(actor, critic, params, target, t, h["discount"])
      actor_loss = lambda t: ddpg.compute_actor_loss(actor, critic, params, t.observation)
      losses = {"critic_loss": critic_loss, "actor_loss": actor_loss}
      means = {name: jnp.mean(jax.vmap(loss)(transitions)) for name, loss in losses.items()}
      # Each loss has a gradient for its own network only, so that their sum trains both.
      return sum(means.values()), means

    def gradient_step(learner, transitions):
      params, target, opt_state = learner
      grads, means = jax.grad(mean_losses, has_aux=True)(params, target, transitions)
      updates, opt_state = optimizer.update(grads, opt_state, params)
      params = optax.apply_updates(params, updates)
      return (params, update_target(target, params, h["tau"]), opt_state), means

    batches = sample_batches(replay, stream("replay"), config.gradient_steps, config.batch_size)
    learner = (state.params, state.target, state.opt_state)
    learner, metrics = learn(gradient_step, learner, batches, can_learn(replay, config.learning_starts))
    state = State(state.step + 1, state.key, *learner, replay, actors, h)
    return state, {
      **metrics,
      **finished_episodes(trajectory.last, trajectory.episode_return, trajectory.episode_length),
    }

  def act(state: State, observation):
    return ddpg.scale_action(actor(state.params["actor"], observation), bounds.low, bounds.high)

  return Experiment(
    init, step, make_evaluate(outer, act, config), make_report(outer, act, config), model=as_policy(act)
  )


def main(config: Config) -> int:
  return train_agent(make(config), config)


if __name__ == "__main__":
  run(main, Config)
