"""Advantage actor-critic (A2C): one gradient step on each short rollout of many environments.

  python -m experiments.rl.a2c --env=CartPole-v1 --seeds=8

The synchronous form of Mnih et al. 2016 (A3C), with generalised advantages (`--gae_lambda=1`: the paper's n-step
returns).

Differences from the paper: Adam instead of RMSProp, and the learning rate goes to 0 along a line.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from experiments.rl._agent import make_feeds as make_feeds, train_agent
from experiments.rl._on_policy import OnPolicyConfig, make_on_policy_experiment
from mlnotes.engine.experiment import Experiment
from mlnotes.engine.flags import run
from mlnotes.optim import ScheduleName
from mlnotes.rl.on_policy import OnPolicyBatch, flatten_time, standardize


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(OnPolicyConfig):
  """Defaults: 500,000 environment steps of CartPole-v1."""

  TUNED: ClassVar = {}

  steps: int = 3900
  num_envs: int = 16
  rollout_length: int = 8
  learning_rate: float = 2e-3
  schedule: ScheduleName = "linear"
  clip_norm: float = 0.5
  entropy_weight: float = 0.01
  normalize_advantages: bool = False
  log_every: int = 100
  eval_every: int = 1000
  checkpoint_every: int = 1000


def make(config: Config) -> Experiment:
  def learn(networks, optimizer, state, batch: OnPolicyBatch, key):
    data = flatten_time(batch)
    advantage = standardize(data.advantage) if config.normalize_advantages else data.advantage

    def loss(params):
      policy, value = networks.policy(params, data.observation), networks.value(params, data.observation)
      metrics = {
        "policy_loss": jnp.mean(-policy.log_prob(data.action) * advantage),
        "value_loss": 0.5 * jnp.mean((value - data.target) ** 2),
        "entropy": jnp.mean(policy.entropy()),
      }
      total = metrics["policy_loss"] + state.hparams["value_weight"] * metrics["value_loss"]
      return total - state.hparams["entropy_weight"] * metrics["entropy"], metrics

    grads, metrics = jax.grad(loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    return optax.apply_updates(state.params, updates), opt_state, metrics

  return make_on_policy_experiment(config, learn, {})


def main(config: Config) -> int:
  return train_agent(make(config), config)


if __name__ == "__main__":
  run(main, Config)
