"""The pictures of lm.scaling: a law beside the runs that it was fitted to, and what more of something else buys."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.lm._scaling_studies import FACTORS, Batches, Ensembles, Epochs, Fitted, Runs
from mlnotes.lm import compute_optimal


def _short(number: float) -> str:
  """9,500 as 9.5k, 12,345,678 as 12M."""
  for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
    if number >= size:
      return f"{number / size:.3g}{letter}"
  return f"{number:.3g}"


def _plain(number: float) -> str:
  """Three digits that count, for a formula, where a k would be read as a factor."""
  return f"{number:.3g}" if number < 1000 else f"{float(f'{number:.3g}'):,.0f}".replace(",", "{,}")


def draw_law(runs: Runs, fitted: Fitted, path: Path) -> None:
  """Loss over tokens, a colour for each size; over arithmetic with the least that the law gives; the best size."""
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(1, 3, width=15.0, height=4.4)
  from matplotlib import colormaps  # behind new_figure, which imports it without a display
  from matplotlib.ticker import LogLocator, NullFormatter

  law = fitted.law
  by_tokens, by_flops, best = axes[0]
  sizes = sorted(set(runs.parameters))
  colors = colormaps["viridis"](np.linspace(0, 0.88, len(sizes)))
  tokens = np.geomspace(runs.tokens.min() / 1.3, runs.tokens.max() * 1.3, 60)
  for size, color in zip(sizes, colors):
    some = runs.parameters == size
    by_tokens.plot(runs.tokens[some], runs.losses[some], "o", color=color, label=f"{_short(size)} parameters")
    by_tokens.plot(tokens, law(np.full(60, size), tokens), color=color, linewidth=1.2)
    low, high = fitted.band(lambda law, size=size: law(np.full(60, size), tokens))
    by_tokens.fill_between(tokens, low, high, color=color, alpha=0.2, linewidth=0)
    by_flops.plot(runs.flops[some], runs.losses[some], "o", color=color)
    by_flops.plot(6 * size * tokens, law(np.full(60, size), tokens), color=color, linewidth=1.2)
  formula = rf"$L = {law.e:.2f} + {_plain(law.a)}/N^{{{law.alpha:.2f}}} + {_plain(law.b)}/D^{{{law.beta:.2f}}}$"
  by_tokens.set(xscale="log", xlabel="tokens read, D", ylabel="nats per test token", title=formula)
  by_tokens.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
  by_tokens.xaxis.set_major_formatter(lambda value, place: _short(value))
  by_tokens.xaxis.set_minor_formatter(NullFormatter())
  by_tokens.legend(frameon=False, fontsize=8)

  flops = np.geomspace(runs.flops.min(), runs.flops.max(), 60)
  optimum = lambda law: np.array([compute_optimal(law, c) for c in flops])
  least = lambda law: law(*optimum(law).T)
  by_flops.plot(flops, least(law), color="black", linewidth=2, label="the best size for it, by the law")
  by_flops.fill_between(flops, *fitted.band(least), color="black", alpha=0.15, linewidth=0)
  by_flops.set(xscale="log", xlabel="arithmetic of the run, 6 N D (FLOP)", ylabel="nats per test token")
  by_flops.set_title("a run's arithmetic, spent on size or on tokens")
  by_flops.set_ylim(*by_tokens.get_ylim())
  by_flops.legend(frameon=False, fontsize=8)

  size_of, tokens_of = (lambda law: optimum(law)[:, 0]), (lambda law: optimum(law)[:, 1])
  exponent = law.beta / (law.alpha + law.beta)
  for f, color, label in (
    (size_of, "C0", f"parameters: C to the power {exponent:.2f}"),
    (tokens_of, "C1", f"tokens: C to the power {1 - exponent:.2f}"),
  ):
    best.plot(flops, f(law), color=color, label=label)
    best.fill_between(flops, *fitted.band(f), color=color, alpha=0.2, linewidth=0)
  for values, color in ((runs.parameters, "C0"), (runs.tokens, "C1")):
    for edge in (values.min(), values.max()):
      best.axhline(edge, color=color, linewidth=0.8, linestyle=":")
  best.set(xscale="log", yscale="log", xlabel="arithmetic C (FLOP)", title="best N and D; dotted: what was tried")
  best.set_ylim(min(runs.parameters.min(), runs.tokens.min()) / 10, 10 * max(runs.parameters.max(), runs.tokens.max()))
  best.legend(frameon=False, fontsize=8)
  figure.suptitle(f"{len(runs.losses)} runs; bands: 80 % of {len(fitted.draws)} draws of them", fontsize=11)
  save_figure(figure, path)


def draw_batches(config: Any, found: Batches, path: Path) -> None:
  """Loss at equal tokens over the batch, a line for each rate and one for the best."""
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(1, 1, width=6.4, height=4.2)
  axis = axes[0, 0]
  means = found.losses.mean(-1)
  for i, factor in enumerate(FACTORS):
    axis.plot(found.sizes, means[:, i], "--", color=f"C{i}", linewidth=1, alpha=0.7, label=f"{factor:g} times the rate")
  best = found.losses[np.arange(len(found.sizes)), found.best]
  axis.plot(found.sizes, best.mean(-1), "o-", color="black", label="the best of the three, chosen on the test text")
  axis.fill_between(found.sizes, best.min(-1), best.max(-1), color="black", alpha=0.15, linewidth=0)
  axis.set_xscale("log", base=2)
  axis.set_xticks(found.sizes, [f"{size}\n{n:,}" for size, n in zip(found.sizes, found.updates)])
  axis.minorticks_off()
  axis.set(xlabel="windows of an update; below, updates", ylabel="nats per test token")
  axis.set_title(f"{_short(config.tokens)} tokens in smaller or larger batches, width {config.width}", fontsize=10)
  axis.legend(frameon=False, fontsize=8)
  save_figure(figure, path)


def draw_epochs(config: Any, found: Epochs, path: Path) -> None:
  """Loss over passes: what repeating gives beside new text and beside reading that text once."""
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(1, 1, width=6.4, height=4.2)
  axis = axes[0, 0]
  for values, color, label in (
    (found.once, "C7", "that text, read once"),
    (found.repeated, "C0", f"read again, up to {_short(config.tokens)} tokens"),
  ):
    axis.plot(found.epochs, values.mean(1), "o-", color=color, label=label)
    axis.fill_between(found.epochs, values.min(1), values.max(1), color=color, alpha=0.2, linewidth=0)
  if found.epochs[0] == 1:
    axis.axhline(found.repeated[0].mean(), color="C2", linestyle="--", linewidth=1, label="as much text, all of it new")
  axis.set_xscale("log", base=2)
  unique = [_short(config.tokens / epochs) for epochs in found.epochs]
  axis.set_xticks(found.epochs, [f"{epochs}\n{text}" for epochs, text in zip(found.epochs, unique)])
  axis.minorticks_off()
  axis.set(xlabel="times that the text is read; below, its tokens", ylabel="nats per test token")
  axis.set_title(f"less text, read more often, width {config.width}", fontsize=10)
  axis.legend(frameon=False, fontsize=8)
  save_figure(figure, path)


def draw_ensembles(config: Any, found: Ensembles, path: Path) -> None:
  """Loss over the number of networks that share the parameters: each alone, and their mean probability."""
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(1, 1, width=6.4, height=4.2)
  axis = axes[0, 0]
  for members, alone in zip(found.members, found.alone):
    label = "each alone" if members == found.members[-1] else None
    axis.plot(np.full(len(alone), members), alone, "o", color="C7", markersize=4, label=label)
  axis.plot(found.members, found.together, "o-", color="C0", label="mean of their probabilities")
  axis.axhline(found.together[0], color="C2", linestyle="--", linewidth=1,
               label="the one" if found.members[0] == 1 else f"the {found.members[0]}")  # fmt: skip
  axis.set_xscale("log", base=2)
  under = [f"{k}\nwidth {w}" for k, w in zip(found.members, found.widths)]
  axis.set_xticks(found.members, under)
  axis.minorticks_off()
  axis.set(xlabel="networks", ylabel="nats per test token")
  axis.set_title(
    f"{_short(np.mean(found.parameters))} parameters in one network or several, {_short(config.tokens)} tokens each",
    fontsize=10,
  )
  axis.legend(frameon=False, fontsize=8)
  save_figure(figure, path)
