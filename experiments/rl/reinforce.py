"""REINFORCE: the Monte-Carlo policy gradient on whole episodes, with a learned baseline or without (--nobaseline).

  python -m experiments.rl.reinforce --env=CartPole-v1 --seeds=8

Williams 1992; Sutton & Barto, sections 13.3 and 13.4. One update: `--num_envs` episodes, one gradient step.

Differences from the book: Adam on a batch of episodes, and no factor gamma^t. An episode cut by its time limit goes on
with the baseline's value of the last observation, where there is one.
"""

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from experiments.rl._agent import RLConfig, as_policy, make_evaluate, make_feeds as make_feeds, make_report, train_agent
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, Mean, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.optim import ScheduleName
from mlnotes.optim.flags import OptimConfig, make_optimizer
from mlnotes.rl.actor_critic import idle_for_discrete_actions, make_actor_critic, make_greedy
from mlnotes.rl.env import clip_actions
from mlnotes.rl.gymnasium_bridge import LONGEST_EPISODE
from mlnotes.rl.policy_gradient import masked_mean, masked_standardize, run_whole_episodes
from mlnotes.rl.registry import make_env
from mlnotes.rl.returns import discounted_returns


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(OptimConfig, RLConfig):
  """Defaults: 1000 episodes of CartPole-v1, at most 500,000 environment steps."""

  TUNED: ClassVar = {}
  UNIT: ClassVar = "episodes"

  steps: int = 250
  learning_rate: float = 5e-3
  schedule: ScheduleName = "linear"
  log_every: int = 10
  eval_every: int = 50
  checkpoint_every: int = 50

  num_envs: int = field(4, "episodes per update, side by side")
  baseline: bool = field(True, "subtract a learned value function from the returns")
  normalize_returns: bool = field(False, "standardise what multiplies the log-probabilities over the batch")
  entropy_weight: float = field(0.0, "weight of the policy's entropy in the loss")
  value_weight: float = field(0.5, "weight of the baseline's loss beside the policy's")
  hidden: tuple[int, ...] = field((64, 64), "widths of the hidden layers of policy and baseline")
  activation: Literal["tanh", "relu"] = field("tanh", "between the layers")
  initial_std: float = field(1.0, "standard deviation of a Gaussian policy at the start, > 0")

  def __post_init__(self):
    super().__post_init__()
    require(self.num_envs >= 1, "num_envs", self.num_envs, "1 or more")
    require(min(self.hidden, default=0) >= 1, "hidden", self.hidden, "one or more widths of 1 or more")
    require(self.initial_std > 0, "initial_std", self.initial_std, "a number above 0")
    require(self.value_weight >= 0, "value_weight", self.value_weight, "0 or more")

  @property
  def units_per_update(self) -> int:
    return self.num_envs

  def idle_flags(self):
    idle = {} if self.baseline else {"value_weight": "with --nobaseline nothing learns values"}
    return super().idle_flags() | idle | idle_for_discrete_actions(self.env)


class State(NamedTuple):
  """`env_steps` counts the steps of real episodes, without the padding after their ends."""

  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  opt_state: optax.OptState
  env_steps: Int[Array, ""]
  hparams: dict[str, Float[Array, ""]]


def make(config: Config) -> Experiment:
  env = clip_actions(make_env(config.env))
  networks = make_actor_critic(env, config.hidden, config.activation, config.initial_std, jnp.dtype(config.precision))
  optimizer = make_optimizer(config, config.steps)
  longest = env.time_limit or LONGEST_EPISODE

  def init(key, batch) -> State:
    params = networks.init(stream_key(key, "init"))
    hparams = {name: jnp.float32(getattr(config, name)) for name in ("discount", "entropy_weight", "value_weight")}
    zero = jnp.zeros([], jnp.int32)
    return State(zero, key, params, optimizer.init(params), jnp.zeros([], jnp.int32), hparams)

  def step(state: State, batch):
    noise = networks.sample_noise(stream_key(state.key, "act", state.step), (longest, config.num_envs))
    act = lambda noise, observation: networks.policy(state.params, observation).sample(noise)
    episodes = run_whole_episodes(env, act, noise, stream_key(state.key, "env", state.step))
    both = jnp.stack([episodes.observation, episodes.next_observation])
    # Without a baseline both values are 0, also after a truncation: the sum of the rewards that were seen.
    value, next_value = networks.value(state.params, both) * config.baseline
    along_time = jax.vmap(discounted_returns, in_axes=1, out_axes=1)
    discount = state.hparams["discount"] * episodes.discount
    returns = along_time(episodes.reward, discount, episodes.last, next_value)
    weight = returns - value
    if config.normalize_returns:
      weight = masked_standardize(weight, episodes.real)

    def loss(params):
      policy = networks.policy(params, episodes.observation)
      losses = -policy.log_prob(episodes.action) * weight
      value_loss = 0.5 * (networks.value(params, episodes.observation) - returns) ** 2 * config.baseline
      metrics = {"policy_loss": losses, "value_loss": value_loss, "entropy": policy.entropy()}
      metrics = {name: masked_mean(values, episodes.real) for name, values in metrics.items()}
      total = metrics["policy_loss"] + state.hparams["value_weight"] * metrics["value_loss"]
      return total - state.hparams["entropy_weight"] * metrics["entropy"], metrics

    grads, metrics = jax.grad(loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    real_steps = jnp.sum(episodes.real)
    metrics |= {
      "episode_return": jnp.sum(episodes.reward * episodes.real) / config.num_envs,
      "episode_length": real_steps / config.num_envs,
    }
    env_steps = state.env_steps + real_steps
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state, env_steps=env_steps), metrics

  act = make_greedy(env, networks)
  evaluate_policy = make_evaluate(env, act, config)

  def evaluate(state: State, batch):
    # With the evaluation, not with the training metrics: those are averaged over updates, and this is a count so far.
    return {**evaluate_policy(state, batch), "env_steps": Mean(state.env_steps, jnp.ones([]))}

  return Experiment(init, step, evaluate, make_report(env, act, config), model=as_policy(act))


def main(config: Config) -> int:
  return train_agent(make(config), config)


if __name__ == "__main__":
  run(main, Config)
