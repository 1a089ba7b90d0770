"""What became of graphs.py's networks, beside what needs no network."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from mlnotes import graph
from mlnotes.data import GraphSet
from mlnotes.engine.plot import new_figure, save_figure
from mlnotes.engine.record import read_curves

_WL_ROUNDS = 3
_MOST_LABELS = 64
_SVM_COSTS = (0.01, 0.1, 1.0, 10.0, 100.0)


def write_report(
  state: Any, chosen: int, data: GraphSet, fold: Int[np.ndarray, " G"], config: Any, directory: Path
) -> dict[str, float]:
  """Writes choice.png; returns the accuracies on the fold that is judged.

  test_accuracy:      of the network and the pass that were best on the fold to choose on.
  test_accuracy_last: of the same network after the last pass.
  test_accuracy_peak: the greatest of all networks and passes: what choosing on the fold that is judged would claim.
  Floors: the commonest class; logistic regression on the numbers of nodes and of edges, and on how many nodes have each
  label; a support vector machine on Weisfeiler-Lehman colours.
  """
  own = int(state.fold)
  figures = {
    "test_accuracy": float(state.kept.test_accuracy[chosen]),
    "test_accuracy_last": float(state.last_accuracy[chosen]),
    "test_accuracy_peak": float(np.max(state.peak_accuracy)),
    "valid_accuracy_chosen": float(state.kept.valid_accuracy[chosen]),
  }
  floors = measure_floors(data, fold == own, fold == (own + 1) % config.folds)
  _draw(state, chosen, config, floors, figures, directory)
  return figures | floors


def measure_floors(data: GraphSet, test: Bool[np.ndarray, " G"], valid: Bool[np.ndarray, " G"]) -> dict[str, float]:
  """Accuracies on `test` of what is fitted to the graphs in neither; what is to be chosen is chosen on `valid`."""
  from sklearn.linear_model import LogisticRegression
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import StandardScaler
  from sklearn.svm import SVC

  train, label = ~test & ~valid, data.label
  regression = lambda x: (
    make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    .fit(x[train], label[train])
    .score(x[test], label[test])
  )
  counts = np.stack([data.num_nodes, data.num_edges], 1)
  of_node = np.repeat(np.arange(data.num_graphs), data.num_nodes)
  sums = np.zeros((data.num_graphs, data.features.shape[1]))
  np.add.at(sums, of_node, data.features)
  labels, start = np.unique(data.features, axis=0, return_inverse=True)
  # Real numbers are no labels: every node would be of a colour of its own.
  start = start.ravel() if len(labels) <= _MOST_LABELS else np.zeros(len(of_node), np.int64)
  colors = graph.refine_colors(start, data.senders, data.receivers, _WL_ROUNDS)
  words = graph.count_colors(colors, of_node)
  words = words[:, words[train].any(0)]  # a colour that no training graph has tells nothing
  kernel = (words @ words.T).astype(np.float64)
  root = np.sqrt(np.maximum(kernel.diagonal(), 1))  # 0 where all colours are new
  kernel /= root[:, None] * root[None, :]

  def score(cost: float, on: np.ndarray) -> float:
    fitted = SVC(C=cost, kernel="precomputed").fit(kernel[np.ix_(train, train)], label[train])
    return float(fitted.score(kernel[np.ix_(on, train)], label[on]))

  best = max(_SVM_COSTS, key=lambda cost: score(cost, valid))
  return {
    "test_accuracy_majority": float(np.mean(label[test] == np.bincount(label[train]).argmax())),
    "test_accuracy_two_counts": float(regression(counts)),
    "test_accuracy_feature_sums": float(regression(sums)),
    f"test_accuracy_wl{_WL_ROUNDS}_svm": score(best, test),
  }


def _draw(
  state: Any, chosen: int, config: Any, floors: dict[str, float], figures: dict[str, float], directory: Path
) -> None:
  curves = read_curves(directory, config)
  figure, axes = new_figure(1, 2, width=10.0, height=3.6)
  left, right = axes[0]
  for i, (name, (rate, dropout)) in enumerate(zip(config.candidate_names, config.candidates)):
    style = {"color": f"C{i}", "lw": 2.5 if i == chosen else 1.0}
    curve = curves.get(f"train/valid_accuracy_{name}", ([], []))
    left.plot(*curve, label=f"rate x {rate:g}, dropout {dropout:g}", **style)
    left.plot(int(state.kept.step[i]), float(state.kept.valid_accuracy[i]), "o", color=f"C{i}")
  left.set_xlabel("passes over the training folds")
  left.set_ylabel("accuracy on the fold to choose on")
  left.set_title("dots: the pass that each network is kept from", fontsize=9)
  left.legend(frameon=False, fontsize=8)
  bars: dict[str, Float[Any, ""]] = {
    "chosen on the test fold": figures["test_accuracy_peak"],
    "chosen on another fold": figures["test_accuracy"],
    **{name.removeprefix("test_accuracy_").replace("_", " "): value for name, value in floors.items()},
  }
  names = list(bars)[::-1]
  colors = ["0.7"] * len(floors) + ["C0", "C3"]
  right.barh(names, [bars[name] for name in names], color=colors)
  for place, name in enumerate(names):
    right.text(bars[name], place, f" {bars[name]:.3f}", va="center", fontsize=8)
  right.set_xlim(0, 1.12)
  right.set_xlabel("accuracy on the test fold")
  right.set_title("grey: needs no network", fontsize=9)
  save_figure(figure, directory / "choice.png")
