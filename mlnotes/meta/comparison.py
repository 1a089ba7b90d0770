"""A learned optimizer beside hand-designed ones, each at the learning rate that is best for the problems at hand."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from mlnotes.experiment import set_hparams, stream_key
from mlnotes.meta.learned_optimizer import start, unroll
from mlnotes.meta.optimizee import Optimizee
from mlnotes.optim import OptimConfig, make_optimizer
from mlnotes.program import quick_compilation

BASELINES = {
  "sgd": OptimConfig(optimizer="sgd", momentum=0.0),
  "momentum": OptimConfig(optimizer="sgd"),
  "nesterov": OptimConfig(optimizer="nesterov"),
  "rmsprop": OptimConfig(optimizer="rmsprop"),
  "adam": OptimConfig(optimizer="adam"),
}
RATES = (1e-4, 10.0)  # the sweep's ends
LEARNED = "learned"
PROBLEM_SEED = 0  # of the frozen problems: the same for every run and every optimizer


class Family(NamedTuple):
  """Problems to compare on: `horizon` updates of each of `problems`; `per_decade` learning rates are tried."""

  optimizee: Optimizee
  horizon: int
  problems: int
  per_decade: int
  title: str


class Outcome(NamedTuple):
  """One optimizer on the test problems of a family: (P, T) losses after each update.

  A hand-designed one has two learning rates: for `final` that of the lowest loss after the last update, for `mean`
  that of the lowest mean over all updates, both chosen on validation problems. `carried` is the run at a given rate.
  """

  final: np.ndarray
  mean: np.ndarray
  carried: np.ndarray
  rates: tuple[float, float] = (np.nan, np.nan)
  at_edge: bool = False


def frozen_problems(split: str, count: int) -> Key[Array, " P"]:
  """The keys of the problems of a split: "validation" or "test"."""
  return jax.random.split(stream_key(jax.random.key(PROBLEM_SEED), split), count)


def follow(
  optimizee: Optimizee, optimizer: optax.GradientTransformation, keys: Key[Array, " P"], horizon: int
) -> Float[Array, "P T"]:
  """The loss after each update of each problem."""
  one = lambda key: unroll(optimizee, optimizer, start(optimizee, optimizer, key), horizon)[1]
  return jax.vmap(one)(keys)


def _at_rate(optimizer: optax.GradientTransformation, rate: Float[Array, ""]) -> optax.GradientTransformation:
  return optax.GradientTransformation(
    lambda params: set_hparams(optimizer.init(params), learning_rate=rate), optimizer.update
  )


def tune(family: Family, config: OptimConfig, carried: float | None = None) -> Outcome:
  """Sweeps the learning rate on validation problems; the outcome on test problems.

  `carried` is a learning rate from elsewhere, to be tried on the test problems as well; None: that of `final`.
  """
  optimizer = make_optimizer(config, family.horizon)
  low, high = np.log10(RATES)
  rates = np.logspace(low, high, round((high - low) * family.per_decade) + 1)

  @functools.partial(jax.jit, compiler_options=quick_compilation(jax.devices()[0], 1))
  def at_three(rates, keys):
    return jax.vmap(lambda rate: follow(family.optimizee, _at_rate(optimizer, rate), keys, family.horizon))(rates)

  def run(rates, split):
    padded = np.resize(rates, -(-len(rates) // 3) * 3).astype(np.float32)
    losses = [np.asarray(at_three(three, frozen_problems(split, family.problems))) for three in padded.reshape(-1, 3)]
    return np.concatenate(losses)[: len(rates)]

  validation = np.nan_to_num(run(rates, "validation").astype(np.float64), nan=np.inf).mean(1)
  best = [int(validation[:, -1].argmin()), int(validation.mean(1).argmin())]
  test = run(np.array([*rates[best], carried or rates[best[0]]]), "test")
  return Outcome(*test, tuple(map(float, rates[best])), bool({0, len(rates) - 1} & set(best)))


def compare(family: Family, learned: optax.GradientTransformation, tuned: Mapping[str, Outcome]) -> dict[str, Outcome]:
  """The learned optimizer on a family's test problems, beside what is `tuned` there."""
  run = jax.jit(lambda keys: follow(family.optimizee, learned, keys, family.horizon))
  losses = np.asarray(run(frozen_problems("test", family.problems)))
  return {LEARNED: Outcome(losses, losses, losses), **tuned}


def write_table(trained: dict[str, Outcome], families: Mapping[str, tuple[Family, dict[str, Outcome]]], path: Path):
  """Two tables in Markdown: the family that was trained on, and the final losses on the others."""
  rows = [
    "| optimizer | learning rate | final loss | median | mean loss (at its own best rate) | learned ends lower on |",
    "|---|---|---|---|---|---|",
  ]
  learned = trained[LEARNED].final[:, -1]
  for name, found in trained.items():
    rate = "" if name == LEARNED else f"{found.rates[0]:.2g}" + (" (at the edge of the sweep)" if found.at_edge else "")
    wins = "" if name == LEARNED else f"{np.mean(learned < found.final[:, -1]):.0%}"
    mean = f"{brief(found.mean.mean(1))}" + ("" if name == LEARNED else f" ({found.rates[1]:.2g})")
    rows.append(f"| {name} | {rate} | {brief(found.final[:, -1])} | {np.median(found.final[:, -1]):.2g} | {mean} | {wins} |")
  rows += ["", "| final loss | " + " | ".join(family.title for family, _ in families.values()) + " |"]
  rows.append("|---" * (1 + len(families)) + "|")
  for name in trained:
    cells = [brief(outcomes[name].final[:, -1]) for _, outcomes in families.values()]
    rows.append(f"| {name} | " + " | ".join(cells) + " |")
  for name in BASELINES:
    cells = [brief(outcomes[name].carried[:, -1]) for _, outcomes in families.values()]
    rows.append(f"| {name}, rate of the first table | " + " | ".join(cells) + " |")
  path.write_text("\n".join(rows) + "\n")


def brief(values: np.ndarray) -> str:
  """Mean and its standard error over problems."""
  if not np.all(np.isfinite(values)):
    return "diverged"
  return f"{values.mean():.3g} ± {values.std(ddof=1) / np.sqrt(len(values)):.1g}"


def style(name: str, position: int) -> dict[str, Any]:
  if name == LEARNED:
    return dict(color="black", linewidth=2.2, label="learned", zorder=3)
  return dict(color=f"C{position}", linewidth=1.3, label=name)


def _plot(axis: Any, losses: np.ndarray, lines: dict[str, Any], statistic: str = "mean") -> None:
  """Mean with its 95 % interval, or median with quartiles, over problems; a curve ends where one of them diverges."""
  step = np.arange(1, losses.shape[1] + 1)
  with np.errstate(over="ignore", invalid="ignore"):
    losses = losses.astype(np.float64)
    if statistic == "mean":
      middle, half = losses.mean(0), 1.96 * losses.std(0) / np.sqrt(len(losses))
      low, high = np.maximum(middle - half, 0.2 * middle), middle + half
    else:
      low, middle, high = np.quantile(losses, (0.25, 0.5, 0.75), axis=0)
  shown = np.isfinite(middle) & np.isfinite(high)
  axis.plot(step[shown], middle[shown], **lines)
  axis.fill_between(step[shown], low[shown], high[shown], color=lines["color"], alpha=0.15, linewidth=0)
  axis.set_yscale("log")


def draw_trained(family: Family, outcomes: dict[str, Outcome], path: Path) -> None:
  """`optimizers.png`: means and medians on the problems that the learned optimizer was trained for."""
  from mlnotes.plot import new_figure, save_figure

  figure, axes = new_figure(1, 2, width=10, height=4.2)
  titles = {"mean": "mean over problems, 95 % interval", "median": "median over problems, quartiles"}
  for axis, (statistic, title) in zip(axes[0], titles.items()):
    for position, (name, found) in enumerate(outcomes.items()):
      _plot(axis, found.final, style(name, position), statistic)
    axis.set_title(title)
    axis.set_xlabel("update of the optimizee")
  axes[0, 0].set_ylabel("loss")
  axes[0, 0].legend(frameon=False)
  note = f"{family.title}: {family.problems} held-out problems; each hand-designed optimizer at its best learning rate"
  figure.suptitle(note, fontsize=11)
  save_figure(figure, path)


def draw_families(families: Mapping[str, tuple[Family, dict[str, Outcome]]], trained: str, horizon: int, path: Path) -> None:
  """`generalization.png`: one panel for each family that the learned optimizer was not trained for."""
  from mlnotes.plot import new_figure, save_figure

  columns = min(3, len(families))
  rows = -(-len(families) // columns)
  figure, axes = new_figure(rows, columns, width=4.2 * columns, height=3.4 * rows)
  for axis, (family, outcomes) in zip(axes.flat, families.values()):
    for position, (name, found) in enumerate(outcomes.items()):
      _plot(axis, found.final, style(name, position))
    if "adam" in outcomes:
      position = list(outcomes).index("adam")
      lines = {**style("adam", position), "linestyle": "--", "label": "adam, rate not tuned again"}
      _plot(axis, outcomes["adam"].carried, lines)
    if family.horizon > horizon:
      axis.axvline(horizon, color="grey", linewidth=0.8, linestyle=":")
    axis.set_title(family.title)
  for axis in axes.flat[len(families) :]:
    axis.remove()
  for axis in axes[-1]:
    axis.set_xlabel("update of the optimizee")
  for axis in axes[:, 0]:
    axis.set_ylabel("loss")
  axes[0, 0].legend(frameon=False, fontsize=7)
  note = f"trained on {trained}, {horizon} updates (dotted line); the hand-designed ones tuned anew for each panel"
  figure.suptitle(f"What the learned optimizer was not trained for: {note}", fontsize=11)
  save_figure(figure, path)
