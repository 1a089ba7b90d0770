"""Deep deterministic policy gradient: continuous actions, a deterministic actor. Pendulum, MountainCarContinuous.

  python -m experiments.rl.ddpg --seeds=10                               # Pendulum-v1

Lillicrap et al. 2016, with Gaussian exploration noise. One update acts `--train_every` times in each of `--num_envs`
environments, then takes `--gradient_steps` gradient steps; the replay too is on the device.
"""

import dataclasses

import jax
import jax.numpy as jnp

from experiments.rl._agent import make_feeds as make_feeds, train_agent
from experiments.rl._off_policy import Method, OffPolicyConfig, make_off_policy_experiment
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.rl import ddpg
from mlnotes.rl.env import Environment
from mlnotes.rl.episodes import observation_size, observation_vector, require_box
from mlnotes.rl.off_policy import can_learn
from mlnotes.rl.registry import make_env


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

  def make_world(self) -> Environment:
    env = super().make_world()
    require_box(env)
    return env


def make(config: Config) -> Experiment:
  """`params` and `target` hold "actor" and "critic"."""
  played = make_env(config.env)
  bounds = require_box(played)
  env = ddpg.normalize_actions(played)
  (action_size,) = bounds.shape
  dtype = jnp.dtype(config.precision)
  actor_network = ddpg.Actor(config.hidden, action_size, dtype=dtype)
  critic_network = ddpg.Critic(config.hidden, dtype=dtype)
  actor = lambda params, observation: actor_network.apply(params, observation_vector(env, observation))
  critic = lambda params, observation, action: critic_network.apply(
    params, observation_vector(env, observation), action
  )

  def init(key):
    observation, action = jnp.zeros(observation_size(env)), jnp.zeros(action_size)
    return {
      "actor": actor_network.init(stream_key(key, "actor"), observation),
      "critic": critic_network.init(stream_key(key, "critic"), observation, action),
    }

  def explore(state, key, size):
    warm = can_learn(state.replay, config.learning_starts)

    def act(noise, observation):
      chosen = actor(state.params["actor"], observation)
      chosen = ddpg.add_exploration_noise(chosen, noise.normal, state.hparams["exploration_noise"])
      return jnp.where(warm, chosen, noise.uniform)

    return act, ddpg.sample_action_noise(key, (*size, action_size)), None

  def gradient(params, target, transitions, drawn, state):
    def mean_losses(params):
      discount = state.hparams["discount"]
      critic_loss = lambda t: ddpg.compute_critic_loss(actor, critic, params, target, t, discount)
      actor_loss = lambda t: ddpg.compute_actor_loss(actor, critic, params, t.observation)
      losses = {"critic_loss": critic_loss, "actor_loss": actor_loss}
      means = {name: jnp.mean(jax.vmap(loss)(transitions)) for name, loss in losses.items()}
      # Each loss has a gradient for its own network only, so that their sum trains both.
      return sum(means.values()), means

    return jax.grad(mean_losses, has_aux=True)(params)

  def act(state, observation):
    return ddpg.scale_action(actor(state.params["actor"], observation), bounds.low, bounds.high)

  method = Method(init, explore, gradient, act, hparams=("discount", "tau", "exploration_noise"))
  return make_off_policy_experiment(method, env, config, played)


def main(config: Config) -> int:
  return train_agent(make(config), config)


if __name__ == "__main__":
  run(main, Config)
