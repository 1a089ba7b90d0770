"""How well rewards were learned: beside the true ones where they are known, or by the pairs that are told apart."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.lm._listed import Listed

_AT_ONCE = 64  # pairs


def report_listed(listed: Listed, rewards: Float[Array, "N A"], directory: Path) -> dict[str, float]:
  """Writes reward.png.

  correlation: of the rewards with the true ones, each prompt's mean taken out. best_accuracy and least_loss: of drawn
  pairs, by who knows the true reward.
  """
  from mlnotes.engine.plot import new_figure, save_figure

  true, said = (np.asarray(x) - np.asarray(x).mean(1, keepdims=True) for x in (listed.reward, rewards))
  figure, axes = new_figure(width=4.6, height=4.4)
  axis = axes[0, 0]
  ends = [true.min(), true.max()]
  axis.plot(ends, ends, color="0.6", linewidth=1, label="the true reward")
  for i, (x, y) in enumerate(zip(true, said)):
    axis.plot(x, y, "o", markersize=3, label=f"prompt {listed.decode(listed.prompts[i])}" if i < 6 else None)
  axis.set(xlabel="true reward of an answer", ylabel="reward that was learned", title="each prompt's mean taken out")
  axis.legend(frameon=False, fontsize=8)
  save_figure(figure, directory / "reward.png")
  margin = np.asarray(listed.reward)[:, :, None] - np.asarray(listed.reward)[:, None, :]
  pairs = margin[:, ~np.eye(margin.shape[1], dtype=bool)]
  p = 1 / (1 + np.exp(-pairs))
  return {
    "correlation": float(np.corrcoef(true.ravel(), said.ravel())[0, 1]),
    "best_accuracy": float(np.maximum(p, 1 - p).mean()),
    "least_loss": float(-(p * np.log(p) + (1 - p) * np.log1p(-p)).mean()),
  }


def report_pairs(
  judge: Callable[..., Any], params: Any, arrays: Mapping[str, Array], directory: Path, name: str = "reward.png"
) -> dict[str, float]:
  """Writes a picture of the test pairs. longer: the share of pairs whose preferred answer is the longer one."""
  from mlnotes.engine.plot import new_figure, save_figure

  count = len(arrays["chosen"])
  parts = []
  for first in range(0, count, _AT_ONCE):
    rows = np.minimum(np.arange(first, first + _AT_ONCE), count - 1)
    parts.append(jax.tree.map(np.asarray, judge(params, {name: jnp.asarray(x)[rows] for name, x in arrays.items()})))
  chosen, rejected = (np.concatenate(x)[:count] for x in zip(*parts))
  figure, axes = new_figure(1, 2, width=8.4, height=3.6)
  left, right = axes[0]
  bins = np.linspace(min(chosen.min(), rejected.min()), max(chosen.max(), rejected.max()) + 1e-6, 30)
  for rewards, label, color in ((rejected, "not preferred", "0.6"), (chosen, "preferred", "C0")):
    left.hist(rewards, bins, alpha=0.7, color=color, label=label)
  left.set(xlabel="reward", ylabel=f"of {count} test pairs", title="rewards of both answers")
  left.legend(frameon=False)
  margin = np.sort(chosen - rejected)
  edges = np.quantile(np.abs(margin), np.linspace(0, 1, 9))
  for low, high in pairwise(edges):
    some = (np.abs(margin) >= low) & (np.abs(margin) <= high)
    if some.any():  # none, where there are few pairs: an edge is as exact as its interpolation
      right.plot(np.abs(margin[some]).mean(), (margin[some] > 0).mean(), "o", color="C0")
  x = np.linspace(0, edges[-1], 50)
  right.plot(x, 1 / (1 + np.exp(-x)), color="0.6", label="as sure as it is right")
  right.set(xlabel="difference of the rewards", ylabel="share that is told apart", title="how sure, and how right")
  right.legend(frameon=False, fontsize=8)
  save_figure(figure, directory / name)
  longer, shorter = (np.asarray(arrays[f"{side}_length"]) for side in ("chosen", "rejected"))
  return {"longer": float(np.mean(np.where(longer == shorter, 0.5, longer > shorter)))}
