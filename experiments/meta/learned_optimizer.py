"""A learned optimizer: an LSTM that turns gradients into updates, against tuned hand-designed ones; where it fails.

  python -m experiments.meta.learned_optimizer --seeds=3                 # random quadratics
  python -m experiments.meta.learned_optimizer --optimizee=network       # training a small network on digits

Andrychowicz et al. 2016 (arXiv:1606.04474). Writes optimizers.png, generalization.png and table.md. Differences from
the paper: a batch of problems per update, of all ages, and a fixed number of updates instead of early stopping.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from experiments.meta import _comparison as comparison
from experiments.meta._comparison import BASELINES, Family
from mlnotes.data import Feeds, load
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, Mean, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.engine.progress import report_step
from mlnotes.meta.learned_optimizer import (
  CoordinateLSTM,
  Run,
  learned_optimizer,
  preprocess_gradient,
  raw_gradient,
  restart,
  start,
  unroll_loss,
)
from mlnotes.meta.optimizee import Optimizee, make_network_training, make_quadratics
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, make_optimizer
from mlnotes.optim.testbed import make_classifier


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(OptimConfig, LoopConfig):
  """Defaults: quadratics in ten variables."""

  TUNED: ClassVar[Mapping[str, Mapping[str, Any]]] = {
    "network": dict(batch_size=4, steps=1000, eval_problems=16, eval_every=250, checkpoint_every=250),
  }

  UNIT: ClassVar[str] = "problem_steps"

  learning_rate: float = 5e-3
  clip_norm: float = 1.0
  schedule: ScheduleName = "cosine"
  steps: int = 2000
  eval_every: int = 500

  optimizee: Literal["quadratic", "network"] = field(
    "quadratic", "what is optimized: |W x - y|^2, or a network of 20 sigmoid units on minibatches of digits"
  )
  variables: int = field(10, "of a quadratic")
  batch_size: int = field(64, "problems side by side in one update of the weights")
  horizon: int = field(100, "updates of a problem before a new one takes its place")
  unroll: int = field(20, "updates of each problem between two updates of the weights; divides --horizon")
  hidden: int = field(20, "units of each LSTM layer")
  layers: int = field(2, "LSTM layers")
  output_scale: float = field(0.1, "of the network's output, > 0")
  preprocess: bool = field(True, "feed exponent and sign of a gradient instead of its value")
  second_order: bool = field(False, "differentiate through the optimizee's gradients as well")
  eval_problems: int = field(256, "held-out problems, of validation and of the report each", free="report")
  families: bool = field(True, "compare on what it was not trained for as well", free="report")

  def __post_init__(self):
    super().__post_init__()
    for name in ("variables", "batch_size", "horizon", "unroll", "hidden", "layers"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.horizon % self.unroll == 0, "unroll", self.unroll, f"a divisor of --horizon={self.horizon}")
    require(self.output_scale > 0, "output_scale", self.output_scale, "a number above 0")
    require(self.eval_problems >= 2, "eval_problems", self.eval_problems, "2 or more")

  def idle_flags(self):
    idle = super().idle_flags() | {"precision": "problems and weights are in float32"}
    return idle | ({"variables": "they are those of --optimizee=quadratic"} if self.optimizee == "network" else {})

  @property
  def units_per_update(self) -> int:
    return self.batch_size * self.unroll

  @classmethod
  def tuned(cls, **given: Any) -> "Config":
    return cls(**{**cls.TUNED.get(given.get("optimizee", ""), {}), **given})


class State(NamedTuple):
  """`params` are the weights of the learned optimizer, `runs` the problems it is on: B of them, of different ages."""

  step: Int[Array, ""]
  key: Key[Array, ""]
  params: Any
  opt_state: optax.OptState
  runs: Run


def make_feeds(config: Config) -> Feeds:
  """Problems are drawn in the step."""
  return Feeds()


def make_mlp(widths: tuple[int, ...] = (20,), activation: Any = nn.sigmoid) -> Optimizee:
  return make_network_training(make_classifier(load("digits"), widths, 128, activation=activation))


def make_trained(config: Config) -> Family:
  """The problems that the flags ask to train on."""
  count, momenta = config.eval_problems, (0.8, 0.9, 0.95)
  if config.optimizee == "network":
    return Family("20 sigmoid units on digits", make_mlp(), config.horizon, count, count, 4, momenta)
  # Many: a rate at which one problem in a thousand diverges must not be chosen.
  title = f"quadratics in {config.variables} variables"
  return Family(title, make_quadratics(config.variables), config.horizon, count, 4 * count, 6, momenta)


def make_others(config: Config, trained: Family) -> dict[str, Family]:
  """Problems that it was not trained for."""
  count, many, few = config.eval_problems, max(config.eval_problems, 256), min(config.eval_problems, 16)
  longer = lambda n: Family(f"{n} times as long", trained.optimizee, n * config.horizon, count, count)
  quadratics = lambda title, *args: Family(title, make_quadratics(*args), config.horizon, many, many)
  network = lambda title, *args: Family(title, make_mlp(*args), config.horizon, few, few)
  relu = network("network: 20 ReLU units on digits", (20,), nn.relu)
  if config.optimizee == "network":
    return {
      "twice": longer(2),
      "five_times": longer(5),
      "units_40": network("40 sigmoid units", (40,)),
      "layers_2": network("two layers of 20 sigmoid units", (20, 20)),
      "relu": relu,
      "quadratic": quadratics("quadratics in 10 variables"),
    }
  return {
    "twice": longer(2),
    "ten_times": longer(10),
    "variables_50": quadratics("quadratics in 50 variables", 50),
    "condition_1e4": quadratics("condition number 10,000", config.variables, 1e4),
    "sigmoid": network("network: 20 sigmoid units on digits"),
    "relu": relu,
  }


def make(config: Config) -> Experiment:
  trained = make_trained(config)
  optimizee = trained.optimizee
  network = CoordinateLSTM(
    config.hidden, config.layers, config.output_scale, preprocess_gradient if config.preprocess else raw_gradient
  )
  outer = make_optimizer(config, config.steps)

  def start_all(params, key):
    one = lambda key: start(optimizee, learned_optimizer(network, params), key)
    return jax.vmap(one)(jax.random.split(key, config.batch_size))

  def init(key, batch):
    carry = network.initial_carry(1)
    params = network.init(stream_key(key, "init"), carry, jnp.zeros(1))
    # Of all ages from the first update on: otherwise every problem would be young at once, then old at once.
    ages = jnp.arange(config.batch_size, dtype=jnp.int32) * config.unroll % config.horizon
    runs = start_all(params, stream_key(key, "first problems"))._replace(step=ages)
    return State(jnp.zeros([], jnp.int32), key, params, outer.init(params), runs)

  def step(state, batch):
    fresh = start_all(state.params, stream_key(state.key, "problems", state.step))
    runs = restart(state.runs, fresh, config.horizon)

    def loss(params):
      one = lambda run: unroll_loss(params, network, optimizee, run, config.unroll, config.second_order)
      losses, after = jax.vmap(one)(runs)
      return jnp.mean(losses), after

    (value, runs), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    updates, opt_state = outer.update(grads, state.opt_state, state.params)
    metrics = {"loss": value / config.unroll, "gradient_norm": optax.tree.norm(grads)}
    params = optax.apply_updates(state.params, updates)
    return State(state.step + 1, state.key, params, opt_state, runs), metrics

  def evaluate(state, batch):
    keys = comparison.frozen_problems("validation", config.eval_problems)
    weights = eval_params(state.opt_state, state.params)
    losses = comparison.follow(optimizee, learned_optimizer(network, weights), keys, config.horizon)
    return {
      "loss": Mean(jnp.sum(losses), jnp.float32(losses.size)),
      "final_loss": Mean(jnp.sum(losses[:, -1]), jnp.float32(len(losses))),
    }

  @functools.cache
  def tune_all():
    """The hand-designed optimizers, once for all seeds: on what was trained for, then on each other family."""
    first = {name: comparison.tune(trained, name) for name in BASELINES}
    tune = lambda family: {name: comparison.tune(family, name, first[name].settings[0]) for name in BASELINES}
    others = make_others(config, trained) if config.families else {}
    return first, {key: (family, tune(family)) for key, family in others.items()}

  def report(state, directory: Path):
    report_step("tuning the hand-designed optimizers on each family of problems")  # once for all seeds
    first, others = tune_all()
    report_step("comparing them with the learned one")
    weights = eval_params(state.opt_state, state.params)
    beside = lambda family, tuned: comparison.compare(family, network, weights, tuned)
    outcomes = beside(trained, first)
    families = {key: (family, beside(family, tuned)) for key, (family, tuned) in others.items()}
    comparison.write_table(outcomes, families, directory / "table.md")
    comparison.draw_trained(trained, outcomes, directory / "optimizers.png")
    if families:
      comparison.draw_families(trained, families, directory / "generalization.png")
    figures = {f"{name}/mean_loss": float(found.mean.mean()) for name, found in outcomes.items()}
    for prefix, found in {"": outcomes, **{f"{key}/": found for key, (_, found) in families.items()}}.items():
      figures |= {f"{prefix}{name}/final_loss": float(outcome.final[:, -1].mean()) for name, outcome in found.items()}
    return figures

  # An optax optimizer like any other.
  model = lambda state: learned_optimizer(network, eval_params(state.opt_state, state.params))
  return Experiment(init, step, evaluate, report, model=model)


def main(config: Config) -> int:
  return train(make(config), make_feeds(config), config)


if __name__ == "__main__":
  run(main, Config)
