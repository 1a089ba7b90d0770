"""A learned optimizer beside hand-designed ones, each at the learning rate that is best for the problems at hand."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from mlnotes.engine.experiment import root_key, set_hparams, stream_key
from mlnotes.engine.program import quick_compilation
from mlnotes.meta.learned_optimizer import CoordinateLSTM, learned_optimizer, start, unroll
from mlnotes.meta.optimizee import Optimizee
from mlnotes.optim.flags import OptimConfig, make_optimizer

BASELINES = {
  "sgd": OptimConfig(optimizer="sgd", momentum=0.0),
  "momentum": OptimConfig(optimizer="sgd"),
  "nesterov": OptimConfig(optimizer="nesterov"),
  "rmsprop": OptimConfig(optimizer="rmsprop"),
  "adam": OptimConfig(optimizer="adam"),
}
WITH_MOMENTUM = ("momentum", "nesterov", "adam")
LEARNED = "learned"
PROBLEM_SEED = 0  # of the frozen problems: the same for every run and every optimizer


class Family(NamedTuple):
  """Problems to compare on, for `horizon` updates, and how hand-designed optimizers are tuned for them.

  `per_decade` learning rates between 1e-3 and 10 are tried with each of `momenta`, on `validation` problems; the
  result is that of `test` others.
  """

  title: str
  optimizee: Optimizee
  horizon: int
  test: int
  validation: int
  per_decade: int = 3
  momenta: tuple[float, ...] = (0.9, 0.95)


class Setting(NamedTuple):
  """`momentum` is Adam's beta 1; 0 where the rule has none."""

  learning_rate: float
  momentum: float


class Outcome(NamedTuple):
  """One optimizer on the test problems of a family: (P, T) losses after each update.

  A hand-designed one has two settings: for `final` that of the lowest loss after the last update, for `mean` that of
  the lowest mean over all updates. `carried` is the run with a setting from elsewhere.
  """

  final: np.ndarray
  mean: np.ndarray
  carried: np.ndarray
  settings: tuple[Setting, ...] = ()
  at_edge: bool = False


def frozen_problems(split: str, count: int) -> Key[Array, " P"]:
  """The keys of the problems of a split: "validation" or "test"."""
  return jax.random.split(stream_key(root_key(PROBLEM_SEED), split), count)


def follow(
  optimizee: Optimizee, optimizer: optax.GradientTransformation, keys: Key[Array, " P"], horizon: int
) -> Float[Array, "P T"]:
  """The loss after each update of each problem."""
  one = lambda key: unroll(optimizee, optimizer, start(optimizee, optimizer, key), horizon)[1]
  return jax.vmap(one)(keys)


def tune(family: Family, name: str, carried: Setting | None = None) -> Outcome:
  """The hand-designed optimizer `name` with each setting on validation problems, with the best on the test problems.

  `carried` is a setting from elsewhere, to be tried on the test problems as well; None: that of `final`.
  """
  optimizer = make_optimizer(BASELINES[name], family.horizon)
  rates = np.logspace(-3, 1, 4 * family.per_decade + 1)
  momenta = family.momenta if name in WITH_MOMENTUM else (0.0,)
  settings = [Setting(float(rate), momentum) for momentum in momenta for rate in rates]

  @functools.partial(jax.jit, compiler_options=quick_compilation(jax.devices()[0], 1))
  @functools.partial(jax.vmap, in_axes=(0, None))
  def at_settings(setting, keys):
    init = lambda params: set_hparams(optimizer.init(params), **setting._asdict())
    chosen = optax.GradientTransformation(init, optimizer.update)
    return follow(family.optimizee, chosen, keys, family.horizon)

  def run(settings, split, count):
    """(S, P, T), three settings at a time: one program for the sweep and the test."""
    padded = np.resize(np.asarray(settings, np.float32), (-(-len(settings) // 3), 3, 2))
    losses = [at_settings(Setting(*three.T), frozen_problems(split, count)) for three in padded]
    return np.concatenate(losses)[: len(settings)].astype(np.float64)

  validation = run(settings, "validation", family.validation).mean(1)
  validation = np.where(np.isfinite(validation), validation, np.inf)
  best = [int(validation[:, -1].argmin()), int(validation.mean(1).argmin())]
  chosen = tuple(settings[i] for i in best)
  test = run([*chosen, carried or chosen[0]], "test", family.test)
  return Outcome(*test, chosen, any(i % len(rates) in (0, len(rates) - 1) for i in best))


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def _follow_learned(network, optimizee, weights, keys, horizon):
  return follow(optimizee, learned_optimizer(network, weights), keys, horizon)


def compare(family: Family, network: CoordinateLSTM, weights: Any, tuned: Mapping[str, Outcome]) -> dict[str, Outcome]:
  """The learned optimizer on a family's test problems, beside what is `tuned` there."""
  losses = _follow_learned(network, family.optimizee, weights, frozen_problems("test", family.test), family.horizon)
  losses = np.asarray(losses, np.float64)
  return {LEARNED: Outcome(losses, losses, losses), **tuned}


def write_table(trained: dict[str, Outcome], families: Mapping[str, tuple[Family, dict[str, Outcome]]], path: Path):
  """Two tables in Markdown: the family that was trained on, and the final losses on the others."""
  rows = [
    "| optimizer | rate, momentum | final loss | its median | learned ends lower on | mean loss (rate, momentum) |",
    "|---|---|---|---|---|---|",
  ]
  learned = trained[LEARNED].final[:, -1]
  for name, found in trained.items():
    setting, wins, other = "", "", ""
    if found.settings:
      setting, other = (f"{chosen.learning_rate:.2g}, {chosen.momentum:g}" for chosen in found.settings)
      setting += " (at the edge of the sweep)" if found.at_edge else ""
      theirs = np.nan_to_num(found.final[:, -1], nan=np.inf)  # what diverged ends above all else
      wins, other = f"{np.mean(learned < theirs):.0%}", f" ({other})"
    last = found.final[:, -1]
    rows.append(
      f"| {name} | {setting} | {brief(last)} | {np.median(last):.2g} | {wins} | {brief(found.mean.mean(1))}{other} |"
    )
  if families:
    rows += ["", "| final loss | " + " | ".join(family.title for family, _ in families.values()) + " |"]
    rows.append("|---" * (1 + len(families)) + "|")
    for name in trained:
      cells = [brief(outcomes[name].final[:, -1]) for _, outcomes in families.values()]
      rows.append(f"| {name} | " + " | ".join(cells) + " |")
    for name in BASELINES:
      cells = [brief(outcomes[name].carried[:, -1]) for _, outcomes in families.values()]
      rows.append(f"| {name}, not tuned again | " + " | ".join(cells) + " |")
  path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def brief(values: np.ndarray) -> str:
  """Mean and its standard error over problems; on how many it diverged where it did."""
  if diverged := np.sum(~np.isfinite(values)):
    return f"diverged on {diverged} of {len(values)}"
  return f"{values.mean():.3g} ± {values.std(ddof=1) / np.sqrt(len(values)):.1g}"


def _style(name: str, position: int) -> dict[str, Any]:
  if name == LEARNED:
    return dict(color="black", linewidth=2.2, label="learned", zorder=3)
  return dict(color=f"C{position}", linewidth=1.3, label=name)


def _plot(axis: Any, losses: np.ndarray, lines: dict[str, Any], statistic: str = "mean") -> None:
  """Mean with its 95 % interval, or median with quartiles, over problems; a curve ends where one of them diverges."""
  step = np.arange(1, losses.shape[1] + 1)
  losses = np.nan_to_num(losses, nan=np.inf).clip(None, 1e100)
  if statistic == "mean":
    middle, half = losses.mean(0), 1.96 * losses.std(0, ddof=1) / np.sqrt(len(losses))
    low, high = middle - half, middle + half
  else:
    low, middle, high = np.quantile(losses, (0.25, 0.5, 0.75), axis=0)
  axis.plot(step, middle, **lines)
  axis.fill_between(step, low, high, color=lines["color"], alpha=0.15, linewidth=0)


def _panel(axis: Any, outcomes: dict[str, Outcome], statistic: str = "mean", carried: bool = False) -> None:
  """One curve per optimizer; with `carried` also Adam's without being tuned again. What diverges leaves at the top."""
  for position, (name, found) in enumerate(outcomes.items()):
    _plot(axis, found.final, _style(name, position), statistic)
    if carried and name == "adam":
      lines = {**_style(name, position), "linestyle": "--", "label": "adam, not tuned again"}
      _plot(axis, found.carried, lines)
  # A band whose lower end is 0 or less goes down to the axis, whose range is that of the curves.
  axis.set_yscale("log", nonpositive="clip")
  curves = np.concatenate([line.get_ydata() for line in axis.get_lines()])
  axis.set_ylim(0.5 * np.min(curves[curves > 0], initial=1e100))
  axis.set_ylim(top=min(axis.get_ylim()[1], 5 * np.nanmax(outcomes[LEARNED].final.mean(0))))


def draw_trained(family: Family, outcomes: dict[str, Outcome], path: Path) -> None:
  """Means and medians on the problems that the learned optimizer was trained for."""
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(1, 2, width=10.0, height=4.4)
  titles = {"mean": "mean over problems, 95 % interval", "median": "median over problems, quartiles"}
  for axis, (statistic, title) in zip(axes[0], titles.items()):
    _panel(axis, outcomes, statistic)
    axis.set_title(title)
    axis.set_xlabel("update")
  axes[0, 0].set_ylabel("loss")
  axes[0, 0].legend(frameon=False)
  note = f"{family.title}: {family.test} held-out problems; each hand-designed optimizer with its best settings"
  figure.suptitle(note, fontsize=11)
  save_figure(figure, path)


def draw_families(trained: Family, families: Mapping[str, tuple[Family, dict[str, Outcome]]], path: Path) -> None:
  """One panel for each family that the learned optimizer was not trained for."""
  from mlnotes.engine.plot import new_figure, save_figure

  columns = min(3, len(families))
  rows = -(-len(families) // columns)
  figure, axes = new_figure(rows, columns, width=4.2 * columns, height=3.4 * rows)
  for axis, (family, outcomes) in zip(axes.flat, families.values()):
    _panel(axis, outcomes, carried=True)
    if family.horizon > trained.horizon:
      axis.axvline(trained.horizon, color="grey", linewidth=0.8, linestyle=":")
      axis.text(
        trained.horizon, 0.97, " trained up to here", transform=axis.get_xaxis_transform(), va="top", fontsize=8
      )
    axis.set_title(family.title)
    axis.set_xlabel("update")
  for axis in axes.flat[len(families) :]:
    axis.remove()
  for axis in axes[:, 0]:
    axis.set_ylabel("loss, mean over problems")
  figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=4)
  figure.suptitle(
    f"Trained on {trained.title}, {trained.horizon} updates, and tried on what it was not trained for\n"
    "(the hand-designed ones: learning rate and momentum tuned anew for each panel)",
    fontsize=11,
  )
  save_figure(figure, path)
