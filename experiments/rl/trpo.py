"""Trust region policy optimization (TRPO): conjugate gradients, a line search, the KL divergence held.

  python -m experiments.rl.trpo --env=CartPole-v1 --seeds=8

Schulman et al. 2015 with generalised advantages (Schulman et al. 2016). The value function is fitted by the optimizer
of the flags; the policy needs none.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from experiments.rl._agent import make_feeds as make_feeds, train_agent
from experiments.rl._on_policy import OnPolicyConfig, make_on_policy_experiment
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment
from mlnotes.engine.flags import field, run
from mlnotes.optim import ScheduleName
from mlnotes.rl.on_policy import OnPolicyBatch, flatten_time, minibatch_rows, standardize
from mlnotes.rl.trpo import trust_region_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(OnPolicyConfig):
  """Defaults: 500,000 environment steps of CartPole-v1."""

  TUNED: ClassVar = {}

  steps: int = 244
  num_envs: int = 8
  rollout_length: int = 256
  learning_rate: float = 1e-3
  schedule: ScheduleName = "constant"
  log_every: int = 10
  eval_every: int = 50
  checkpoint_every: int = 50

  max_kl: float = field(0.01, "bound of the mean KL divergence between two policies, > 0")
  damping: float = field(0.1, "added to the diagonal of the Fisher matrix, >= 0")
  curvature_stride: int = field(5, "the Fisher matrix is that of one in so many states; the bound holds on all")
  cg_iterations: int = field(10, "of the conjugate gradients")
  max_backtracks: int = field(10, "how often the line search shortens the step before it gives up")
  value_epochs: int = field(10, "passes over each rollout for the value function")
  minibatches: int = field(8, "gradient steps per pass; divides num_envs * rollout_length")

  def __post_init__(self):
    super().__post_init__()
    for name in ("curvature_stride", "cg_iterations", "value_epochs", "minibatches"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    whole = self.env_steps_per_update % self.minibatches == 0
    require(whole, "minibatches", self.minibatches, f"a divisor of the {self.env_steps_per_update} steps of a rollout")
    require(self.max_kl > 0, "max_kl", self.max_kl, "a number above 0")
    require(self.damping >= 0, "damping", self.damping, "0 or more")
    shortest = self.env_steps_per_update // self.curvature_stride
    require(shortest >= 1, "curvature_stride", self.curvature_stride, f"at most {self.env_steps_per_update}")
    require(self.max_backtracks >= 0, "max_backtracks", self.max_backtracks, "0 or more")

  def idle_flags(self):
    return super().idle_flags() | {"value_weight": "the value function is fitted by itself, with a loss of its own"}


def make(config: Config) -> Experiment:
  def improve_policy(networks, state, data: OnPolicyBatch, key):
    vector, restore = ravel_pytree(state.params["actor"])
    policy = lambda vector: networks.policy({"actor": restore(vector)}, data.observation)
    old = jax.lax.stop_gradient(policy(vector))
    old_log_prob = old.log_prob(data.action)
    advantage = standardize(data.advantage) if config.normalize_advantages else data.advantage

    def surrogate(vector):
      new = policy(vector)
      gain = jnp.mean(jnp.exp(new.log_prob(data.action) - old_log_prob) * advantage)
      return gain + state.hparams["entropy_weight"] * jnp.mean(new.entropy())

    rows = minibatch_rows(key, 1, 1, config.env_steps_per_update)[0, :: config.curvature_stride]
    some = jax.tree.map(lambda x: x[rows], (data.observation, old))

    def curvature_kl(vector):
      observation, old = some
      return jnp.mean(old.kl(networks.policy({"actor": restore(vector)}, observation)))

    step = trust_region_step(
      surrogate,
      lambda vector: jnp.mean(old.kl(policy(vector))),
      vector,
      state.hparams["max_kl"],
      curvature_kl=curvature_kl,
      damping=state.hparams["damping"],
      cg_iterations=config.cg_iterations,
      max_backtracks=config.max_backtracks,
    )
    metrics = {
      "kl": step.kl,
      "surrogate_improvement": step.improvement,
      "step_accepted": step.accepted.astype(jnp.float32),
      "backtracks": step.backtracks.astype(jnp.float32),
      "entropy": jnp.mean(old.entropy()),
    }
    return restore(step.params), metrics

  def fit_value(networks, optimizer, params, opt_state, data: OnPolicyBatch, key):
    def gradient_step(carry, rows):
      params, opt_state = carry
      observation, target = data.observation[rows], data.target[rows]
      loss = lambda critic: 0.5 * jnp.mean((networks.value({"critic": critic}, observation) - target) ** 2)
      value, gradient = jax.value_and_grad(loss)(params["critic"])
      grads = {"actor": jax.tree.map(jnp.zeros_like, params["actor"]), "critic": gradient}
      updates, opt_state = optimizer.update(grads, opt_state, params)
      return (
        params | optax.apply_updates({"critic": params["critic"]}, {"critic": updates["critic"]}),
        opt_state,
      ), value

    rows = minibatch_rows(key, config.value_epochs, config.minibatches, config.env_steps_per_update)
    (params, opt_state), losses = jax.lax.scan(gradient_step, (params, opt_state), rows)
    # Decay, where it is asked for, is the value function's too.
    return params["critic"], opt_state, jnp.mean(losses)

  def learn(networks, optimizer, state, batch, key):
    data = flatten_time(batch)
    curvature_key, value_key = jax.random.split(key)
    actor, metrics = improve_policy(networks, state, data, curvature_key)
    critic, opt_state, value_loss = fit_value(networks, optimizer, state.params, state.opt_state, data, value_key)
    return {"actor": actor, "critic": critic}, opt_state, {**metrics, "value_loss": value_loss}

  hparams = {"max_kl": config.max_kl, "damping": config.damping}
  return make_on_policy_experiment(config, learn, hparams, config.value_epochs * config.minibatches)


def main(config: Config) -> int:
  return train_agent(make(config), config)


if __name__ == "__main__":
  run(main, Config)
