"""Proximal policy optimization (PPO): clipped surrogate, minibatch epochs; discrete and continuous actions.

  python -m experiments.rl.ppo --env=CartPole-v1 --seeds=8
  python -m experiments.rl.ppo --env=Pendulum-v1
  python -m experiments.rl.ppo --env=Breakout-MinAtar --num_envs=64

Schulman et al. 2017 with the details of Huang et al. 2022: orthogonal initialisation, advantages normalised per
minibatch, clipped value loss, annealed learning rate, gradients clipped to a norm of 0.5, Adam with epsilon 1e-5.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from experiments.rl._agent import make_feeds as make_feeds, train_agent
from experiments.rl._on_policy import OnPolicyConfig, make_on_policy_experiment
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment
from mlnotes.engine.flags import field, run
from mlnotes.optim import ScheduleName
from mlnotes.rl.on_policy import OnPolicyBatch, flatten_time, minibatch_rows, standardize
from mlnotes.rl.ppo import approximate_kl, clip_fraction, clipped_surrogate_loss, clipped_value_loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(OnPolicyConfig):
  """Defaults: 500,000 environment steps of CartPole-v1."""

  TUNED: ClassVar = {
    "Pendulum-v1": dict(
      steps=240, num_envs=16, rollout_length=128, discount=0.95, gae_lambda=0.9, learning_rate=1e-3, epochs=10,
      minibatches=16, entropy_weight=0.0, clip_value_loss=False, normalize_rewards=True, log_every=10, eval_every=40,
      checkpoint_every=80,
    ),
    "Acrobot-v1": dict(num_envs=16, rollout_length=32, gae_lambda=0.94, entropy_weight=0.0),
  }  # fmt: skip

  steps: int = 976
  num_envs: int = 4
  rollout_length: int = 128
  learning_rate: float = 2.5e-4
  schedule: ScheduleName = "linear"
  adam_eps: float = 1e-5
  clip_norm: float = 0.5
  entropy_weight: float = 0.01
  log_every: int = 20
  eval_every: int = 200
  checkpoint_every: int = 200

  epochs: int = field(4, "passes over each rollout")
  minibatches: int = field(4, "gradient steps per pass; divides num_envs * rollout_length")
  clip: float = field(0.2, "how far the ratio may leave 1 before it is cut, > 0")
  clip_value_loss: bool = field(True, "keep the new value within --clip of the old one in the loss")

  def __post_init__(self):
    for name in ("epochs", "minibatches"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    super().__post_init__()
    whole = self.env_steps_per_update % self.minibatches == 0
    require(whole, "minibatches", self.minibatches, f"a divisor of the {self.env_steps_per_update} steps of a rollout")
    require(self.clip > 0, "clip", self.clip, "a number above 0")

  @property
  def rows_per_loss(self) -> int:
    return self.env_steps_per_update // self.minibatches

  def idle_flags(self):
    if self.epochs * self.minibatches > 1:
      return super().idle_flags()
    why = "at the only gradient step of an update nothing has moved yet that could be clipped"
    return super().idle_flags() | {"clip": why, "clip_value_loss": why}


def make(config: Config) -> Experiment:
  def learn(networks, optimizer, state, batch: OnPolicyBatch, key):
    hparams, clip = state.hparams, state.hparams["clip"]
    flat = flatten_time(batch)
    old_log_prob = networks.policy(state.params, flat.observation).log_prob(flat.action)

    def loss(params, data):
      batch, old_log_prob = data
      policy, value = networks.policy(params, batch.observation), networks.value(params, batch.observation)
      log_prob = policy.log_prob(batch.action)
      advantage = standardize(batch.advantage) if config.normalize_advantages else batch.advantage
      limit = clip if config.clip_value_loss else jnp.inf
      metrics = {
        "policy_loss": jnp.mean(clipped_surrogate_loss(log_prob, old_log_prob, advantage, clip)),
        "value_loss": jnp.mean(clipped_value_loss(value, batch.value, batch.target, limit)),
        "entropy": jnp.mean(policy.entropy()),
        "approximate_kl": jnp.mean(approximate_kl(log_prob, old_log_prob)),
        "clip_fraction": jnp.mean(clip_fraction(log_prob, old_log_prob, clip)),
      }
      total = metrics["policy_loss"] + hparams["value_weight"] * metrics["value_loss"]
      return total - hparams["entropy_weight"] * metrics["entropy"], metrics

    def gradient_step(carry, data):
      params, opt_state = carry
      grads, metrics = jax.grad(loss, has_aux=True)(params, data)
      updates, opt_state = optimizer.update(grads, opt_state, params)
      return (optax.apply_updates(params, updates), opt_state), metrics

    rows = minibatch_rows(key, config.epochs, config.minibatches, config.env_steps_per_update)
    data = jax.tree.map(lambda x: x[rows], (flat, old_log_prob))
    (params, opt_state), metrics = jax.lax.scan(gradient_step, (state.params, state.opt_state), data)
    return params, opt_state, jax.tree.map(jnp.mean, metrics)

  return make_on_policy_experiment(config, learn, {"clip": config.clip}, config.epochs * config.minibatches)


def main(config: Config) -> int:
  return train_agent(make(config), config)


if __name__ == "__main__":
  run(main, Config)
