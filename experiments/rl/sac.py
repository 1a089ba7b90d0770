"""Soft actor-critic: continuous actions, a stochastic actor, a learned temperature. Pendulum, MountainCarContinuous.

  python -m experiments.rl.sac --seeds=10                                # Pendulum-v1

Haarnoja et al. 2018b. One update acts `--train_every` times in each of `--num_envs` environments, then takes
`--gradient_steps` gradient steps; the replay too is on the device.
"""

import dataclasses

import jax
import jax.numpy as jnp

from experiments.rl._agent import make_feeds as make_feeds, train_agent
from experiments.rl._off_policy import Method, OffPolicyConfig, make_off_policy_experiment
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.rl import sac
from mlnotes.rl.ddpg import Critic, normalize_actions, sample_action_noise, scale_action
from mlnotes.rl.env import Environment
from mlnotes.rl.episodes import observation_size, observation_vector, require_box
from mlnotes.rl.off_policy import can_learn
from mlnotes.rl.registry import make_env


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

  def make_world(self) -> Environment:
    env = super().make_world()
    require_box(env)
    return env


def make(config: Config) -> Experiment:
  """`params` hold "actor", "critics" and "log_alpha"; the target is a moving average of the critics."""
  played = make_env(config.env)
  bounds = require_box(played)
  env = normalize_actions(played)
  (action_size,) = bounds.shape
  dtype = jnp.dtype(config.precision)
  actor_network = sac.GaussianActor(config.hidden, action_size, dtype=dtype)
  critic_network = Critic(config.hidden, dtype=dtype)
  both = sac.make_critics(critic_network)
  actor = lambda params, observation: actor_network.apply(params, observation_vector(env, observation))
  critics = lambda params, observation, action: both(params, observation_vector(env, observation), action)

  def init(key):
    observation, action = jnp.zeros(observation_size(env)), jnp.zeros(action_size)
    return {
      "actor": actor_network.init(stream_key(key, "actor"), observation),
      "critics": sac.init_critics(critic_network, stream_key(key, "critics"), observation, action),
      "log_alpha": jnp.log(jnp.float32(config.initial_temperature)),
    }

  def explore(state, key, size):
    warm = can_learn(state.replay, config.learning_starts)

    def act(noise, observation):
      chosen, _ = actor(state.params["actor"], observation).sample(noise.normal)
      return jnp.where(warm, chosen, noise.uniform)

    return act, sample_action_noise(key, (*size, action_size)), None

  def gradient(params, target, transitions, normal, state):
    h = state.hparams

    def losses(params, t, normal):
      critic_loss = sac.compute_critic_loss(actor, critics, params, target, t, normal[0], h["discount"])
      actor_loss, log_prob = sac.compute_actor_loss(actor, critics, params, t.observation, normal[1])
      loss = sac.compute_temperature_loss(params["log_alpha"], log_prob, h["target_entropy"] * action_size)
      return {"critic_loss": critic_loss, "actor_loss": actor_loss, "temperature_loss": loss, "entropy": -log_prob}

    def mean_losses(params):
      means = jax.tree.map(jnp.mean, jax.vmap(losses, (None, 0, 0))(params, transitions, normal))
      # Each loss has a gradient for its own part only, so that their sum trains all three.
      return means["critic_loss"] + means["actor_loss"] + means["temperature_loss"], means

    return jax.grad(mean_losses, has_aux=True)(params)

  method = Method(
    init=init,
    explore=explore,
    gradient=gradient,
    act=lambda state, observation: scale_action(
      actor(state.params["actor"], observation).mode(), bounds.low, bounds.high
    ),
    hparams=("discount", "tau", "target_entropy"),
    draw=lambda key, size: jax.random.normal(key, (*size, 2, action_size)),
    tracked=lambda params: params["critics"],
    watch=lambda params: {"temperature": jnp.exp(params["log_alpha"])},
  )
  return make_off_policy_experiment(method, env, config, played)


def main(config: Config) -> int:
  return train_agent(make(config), config)


if __name__ == "__main__":
  run(main, Config)
