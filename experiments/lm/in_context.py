"""A Transformer that learns a function from examples in its prompt, without any update: linear regression in context.

  python -m experiments.lm.in_context                                      # 5 features, noisy examples
  python -m experiments.lm.in_context --noise=0 --points=11
  python -m experiments.lm.in_context --features=20 --points=41 --curriculum=5 --depth=12 --heads=8 --width=256 \\
    --learning_rate=1e-4 --steps=500000                                    # Garg et al. 2022

Inputs and outputs stand by turns, x_1 y_1 x_2 y_2 ..., and the model says each y from what is before it. Writes
in_context.png: the squared error by the number of examples, beside ridge regression with the true prior and noise, than
which no learner is better, and for inputs of twice the size it was trained on.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from mlnotes.data import Feeds, make_drawn_eval, make_drawn_feed
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, Mean, root_key, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.lm import LanguageModel, make_gpt2
from mlnotes.lm.tasks import Prompt, averaged_predictions, draw_regression, leave_features_out, ridge_predictions
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, OptimizerName, make_optimizer

# Of the prompts of evaluations and of the report: the same in every run.
_EVAL_SEED, _REPORT_SEED, _REPORTED = 0, 1, 2048
_OUTSIDE = 2.0  # how many times larger the inputs are that ask outside of the training


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(OptimConfig, LoopConfig):
  """Defaults: five features, some minutes on two CPU cores."""

  UNIT: ClassVar[str] = "prompts"
  fills_cores: ClassVar[bool] = False
  parts_batches: ClassVar[bool] = True

  features: int = field(5, "of each input, d")
  points: int = field(16, "examples of a prompt, the last of which is asked too")
  noise: float = field(0.5, "deviation of the noise of each output")
  curriculum: int = field(0, "begin with so many features, and a share of the points, and grow; 0: all from the start")
  curriculum_every: int = field(2000, "of --curriculum: updates between two steps of it")
  depth: int = field(4, "layers")
  heads: int = field(4, "heads, a divisor of --width")
  width: int = field(64, "features of a token")
  test_prompts: int = field(1024, "prompts of the evaluation")

  batch_size: int = field(64, "prompts of an update")
  steps: int = 10000
  learning_rate: float = 1e-3
  optimizer: OptimizerName = "adam"
  schedule: ScheduleName = "warmup_cosine"
  warmup_steps: int = 500
  clip_norm: float = 1.0
  log_every: int = 200
  eval_every: int = 1000
  checkpoint_every: int = 2000

  def __post_init__(self):
    super().__post_init__()
    for name in ("features", "depth", "heads", "width", "batch_size", "test_prompts", "curriculum_every"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.points >= 2, "points", self.points, "2 or more: one to learn from, one to be asked")
    require(self.noise >= 0, "noise", self.noise, "0 or more")
    require(self.width % self.heads == 0, "heads", self.heads, f"a divisor of --width={self.width}")
    fits = 0 <= self.curriculum <= self.features
    require(fits, "curriculum", self.curriculum, f"0 to --features={self.features}")

  def idle_flags(self):
    idle = super().idle_flags()
    if not self.curriculum:
      idle["curriculum_every"] = "--curriculum=0 begins with all features"
    return idle


class Reader(nn.Module):
  """(x, y) of prompts to what is said of each y: tokens [x, 0] and [0 ... 0, y], and what is read behind each x."""

  body: LanguageModel

  @nn.compact
  def __call__(self, x: Float[Array, "B K D"], y: Float[Array, "B K"]) -> Float[Array, "B K"]:
    batch, points, features = x.shape
    inputs = jnp.concatenate([x, jnp.zeros((batch, points, 1))], -1)
    outputs = jnp.concatenate([jnp.zeros((batch, points, features)), y[..., None]], -1)
    tokens = jnp.stack([inputs, outputs], 2).reshape(batch, 2 * points, features + 1)
    embedded = nn.Dense(self.body.transformer.width, name="read_in")(tokens)
    hidden = self.body.hidden(jnp.zeros(tokens.shape[:2], jnp.int32), embedded=embedded)
    return nn.Dense(1, name="read_out")(hidden[:, ::2])[..., 0]


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  opt_state: optax.OptState


class Model(NamedTuple):
  """(x (B, K, D), y (B, K)) to what is said of each y from what is before it."""

  module: Reader
  params: Any

  def __call__(self, x: Float[Array, "B K D"], y: Float[Array, "B K"]) -> Float[Array, "B K"]:
    return self.module.apply({"params": self.params}, x, y)


def draw(config: Config, key: Key[Array, ""], scale: float = 1.0) -> dict[str, Array]:
  return draw_regression(key, config.points, config.features, config.noise, scale)._asdict()


def make_feeds(config: Config) -> Feeds:
  one = lambda key, arrays: draw(config, key)
  evaluate = make_drawn_eval(one, (), _EVAL_SEED, config.test_prompts, config.batch_size)
  return Feeds(make_drawn_feed(one, (), config.batch_size), evaluate, split="test")


def build_module(config: Config) -> Reader:
  body = make_gpt2(1, 2 * config.points, config.depth, config.heads, config.width)
  return Reader(body)


def growth(config: Config, step: Int[Array, ""]) -> tuple[Array, Array]:
  """(features that are not 0, points that count) at a step: one feature and its share of the points at a time."""
  if not config.curriculum:
    return jnp.int32(config.features), jnp.int32(config.points)
  used = jnp.minimum(config.curriculum + step // config.curriculum_every, config.features)
  return used, jnp.ceil(config.points * used / config.features).astype(jnp.int32)


def make(config: Config) -> Experiment:
  module, optimizer = build_module(config), make_optimizer(config, config.steps)

  def init(key, batch) -> State:
    params = module.init(stream_key(key, "init"), batch["x"], batch["y"])["params"]
    return State(jnp.zeros([], jnp.int32), key, params, optimizer.init(params))

  def step(state: State, batch):
    used, asked = growth(config, state.step)
    x, y = batch["x"], batch["y"]
    if config.curriculum:
      x, y, _ = jax.vmap(lambda *prompt: leave_features_out(Prompt(*prompt), used))(x, y, batch["w"])
    counted = (jnp.arange(config.points)[None] < asked) & jnp.ones((len(y), 1), bool)

    def objective(params):
      error = jnp.square(module.apply({"params": params}, x, y) - y)
      return jnp.sum(jnp.where(counted, error, 0)) / jnp.sum(counted)

    loss, grads = jax.value_and_grad(objective)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = {"loss": loss, "grad_norm": optax.global_norm(grads)}
    return State(state.step + 1, state.key, optax.apply_updates(state.params, updates), opt_state), metrics

  model = lambda state: Model(module, eval_params(state.opt_state, state.params))

  def evaluate(state: State, batch) -> dict[str, Mean]:
    """Mean squared errors; of the best learner too, and how much more the model's is."""
    said = model(state)(batch["x"], batch["y"])
    best = jax.vmap(lambda x, y: ridge_predictions(x, y, config.noise))(batch["x"], batch["y"])
    mask = batch["mask"][:, None] * jnp.ones_like(said)
    over = lambda x: Mean(jnp.sum(jnp.square(x - batch["y"]) * mask), jnp.sum(mask))
    return {"loss": over(said), "ridge": over(best)}

  def report(state: State, directory: Path) -> dict[str, float]:
    curves = {
      name: measure_errors(config, model(state), scale) for name, scale in (("inside", 1.0), ("outside", _OUTSIDE))
    }
    draw_errors(config, curves, directory / "in_context.png")
    inside, outside = curves["inside"], curves["outside"]
    worst = np.max(inside["model"] / inside["ridge"])
    return {
      "worst_ratio": float(worst),
      "last_error": float(inside["model"][-1]),
      "last_ridge": float(inside["ridge"][-1]),
      "outside_ratio": float(np.mean(outside["model"]) / np.mean(outside["ridge"])),
    }

  return Experiment(init, step, evaluate, report, model=model)


def measure_errors(config: Config, model: Model, scale: float) -> dict[str, Float[np.ndarray, " K"]]:
  """Mean squared error of each of the points, by the model and by learners that see the same examples."""
  keys = jax.random.split(stream_key(root_key(_REPORT_SEED), "report"), _REPORTED)
  prompts = jax.jit(jax.vmap(lambda key: draw(config, key, scale)))(keys)
  x, y = prompts["x"], prompts["y"]
  learners = {
    "model": model,
    "ridge": jax.vmap(lambda x, y: ridge_predictions(x, y, config.noise)),
    "average": jax.vmap(averaged_predictions),
    "nothing": lambda x, y: jnp.zeros_like(y),
  }
  error = lambda f, x, y: jnp.mean(jnp.square(f(x, y) - y), 0)
  return {name: np.array(jax.jit(partial(error, f))(x, y)) for name, f in learners.items()}


def draw_errors(config: Config, curves: Any, path: Path) -> None:
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(1, 2, width=9.6, height=3.8)
  styles = {
    "nothing": ("0.75", ":", "always 0"), "average": ("C1", "--", "mean of y x"),
    "ridge": ("0.2", "-", "ridge: the best there is"), "model": ("C0", "-", "Transformer"),
  }  # fmt: skip
  titles = ("inputs as in training", f"inputs {_OUTSIDE:g} times as large")
  for axis, title, found in zip(axes[0], titles, curves.values()):
    for name, (color, line, label) in styles.items():
      axis.plot(found[name], line, color=color, label=label, linewidth=2 if name == "model" else 1.3)
    axis.axvline(config.features, color="0.85", zorder=0)
    axis.set(xlabel="examples before the one that is asked", title=title, yscale="log")
  axes[0, 0].set(ylabel="mean squared error")
  axes[0, 0].legend(frameon=False, fontsize=8)
  save_figure(figure, path)


def main(config: Config) -> int:
  return train(make(config), make_feeds(config), config, best_metric="loss")


if __name__ == "__main__":
  run(main, Config)
