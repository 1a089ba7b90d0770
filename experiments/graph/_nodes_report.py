"""What a trained network of nodes is worth beside floors, and pictures of what it learned."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from experiments.graph._drawing import (
  MOST_DRAWN,
  MOST_NAMED,
  color_nodes,
  cut_name,
  draw_graph,
  lay_out_edges,
  name_colors,
)
from experiments.graph._node_views import TEST, TRAIN, VALID, make_arrays, normalize_rows, view_whole
from mlnotes import graph as graphs
from mlnotes.data.graph import Graph
from mlnotes.engine.plot import as_text, new_figure, save_figure
from mlnotes.engine.progress import report_step, warn
from mlnotes.graph import floors

_ALPHAS = (0.5, 0.8, 0.9, 0.95, 0.99)
_STEPS, _INVERSE = (1, 2, 3, 4), (1.0, 100.0, 1000.0)
# Nodes above which label spreading's dense tables and t-SNE take too long.
_MOST_SPREAD, _MOST_MAPPED = 50_000, 3000
_MOST_NEIGHBORS = 12  # in a picture


def write_report(
  network: graphs.NodeNetwork, state: Any, data: Graph, config: Any, directory: Path
) -> dict[str, float]:
  """Writes the pictures and returns the figures of the floors, all by the split that the network learned from."""
  code = np.asarray(state.split.code)
  figures = floors_once(data, code, config)
  batch = make_arrays(config, data)
  view = jax.jit(lambda batch: view_whole(config, batch))(batch)
  apply = jax.jit(lambda params, view: network.apply({"params": params}, view, mutable=["intermediates"]))
  logits, sown = apply(state.best_params, view)
  hidden = sown["intermediates"]["hidden"]
  found = np.asarray(logits.argmax(-1))
  accuracy = float((found == data.label)[code == TEST].mean())
  floor = max(figures.values())
  if accuracy <= (majority := figures["test_accuracy_majority"]):
    warn(f"learned nothing: {accuracy:.3f} of the test nodes are right, {majority:.3f} by the commonest class.")
  elif accuracy < floor:
    name = max(figures, key=figures.get).removeprefix("test_accuracy_")
    warn(f"below a floor: {accuracy:.3f} of the test nodes are right, {floor:.3f} by {name}, which trains no network.")
  report_step("pictures")
  _draw_map(np.asarray(hidden[max(len(hidden) - 2, 0)]), data, code, config.map, directory / "map.png")
  _draw_confusion(found, data, code, directory / "confusion.png")
  if data.num_nodes <= MOST_DRAWN:
    _draw_nodes(jax.nn.softmax(logits), data, code, directory / "graph.png")
  weights = sown["intermediates"].get("layer_0", {}).get("attention")
  if weights is not None:
    weights, edges = np.asarray(weights[0]), jax.tree.map(np.asarray, view.hops[0].edges)
    figures["attention_entropy_share"] = measure_entropy(weights, edges, data.num_nodes)
    _draw_attention(weights, edges, data, directory / "attention.png")
  return figures


def measure_entropy(weights: Float[np.ndarray, "E H"], edges: graphs.Edges, num_nodes: int) -> float:
  """Entropy of the weights over a neighbourhood, as a share of what equal ones have: mean of heads and nodes.

  1: all neighbours count alike, as in a mean. Nodes that have themselves alone are left out.
  """
  entropy = np.zeros((num_nodes, weights.shape[1]))
  np.add.at(entropy, edges.receivers, -weights * np.log(np.maximum(weights, 1e-30)))
  degree = np.bincount(edges.receivers, weights=edges.mask, minlength=num_nodes)
  many = degree > 1
  return float((entropy[many] / np.log(degree[many])[:, None]).mean()) if many.any() else 1.0


# Of the split that was last asked for: the seeds of a public split have all the same.
_found: dict[tuple, dict[str, float]] = {}


def floors_once(data: Graph, code: Int[np.ndarray, " N"], config: Any) -> dict[str, float]:
  """`measure_floors`, kept for the next seed of the same split."""
  arrays = (data.label, data.senders, data.receivers, data.features, code)
  key = (config.normalize_features, *(hash(array.tobytes()) for array in arrays))
  if key not in _found:
    _found.clear()
    _found[key] = measure_floors(data, code, config)
  return dict(_found[key])


def measure_floors(data: Graph, code: Int[np.ndarray, " N"], config: Any) -> dict[str, float]:
  """Test accuracy of the commonest class, of labels that spread, of logistic regressions without and behind SGC.

  What they have to choose is chosen on the validation nodes.
  """
  train, valid, test = (code == number for number in (TRAIN, VALID, TEST))
  label, edges = data.label, graphs.make_edges(jnp.asarray(data.senders), jnp.asarray(data.receivers))
  score = lambda found: float((found == label)[test].mean())
  figures = {"test_accuracy_majority": score(floors.majority(label, train))}
  if data.num_nodes > _MOST_SPREAD:
    return figures
  report_step("floors: labels that spread, logistic regressions")
  spread = [lambda alpha=alpha: floors.spread_labels(edges, label, train, alpha) for alpha in _ALPHAS]
  figures["test_accuracy_label_spreading"] = score(floors.choose(spread, label, valid))
  x = normalize_rows(data.features) if config.normalize_features else data.features
  powers = [x]
  for _ in range(max(_STEPS)):
    powers.append(floors.simplified(edges, powers[-1], 1))
  fits = lambda steps: [
    lambda k=k, inverse=inverse: floors.fit_logistic(powers[k], label, train, inverse)
    for k in steps
    for inverse in _INVERSE
  ]
  figures["test_accuracy_logistic_regression"] = score(floors.choose(fits((0,)), label, valid))
  figures["test_accuracy_sgc_logistic"] = score(floors.choose(fits(_STEPS), label, valid))
  return figures


def _project(hidden: Float[np.ndarray, "N F"], kind: str) -> Float[np.ndarray, "N 2"]:
  from sklearn.decomposition import PCA
  from sklearn.manifold import TSNE

  hidden = np.pad(hidden, ((0, 0), (0, max(0, 2 - hidden.shape[1]))))
  if kind == "tsne" and len(hidden) > 10:
    return TSNE(perplexity=min(30, len(hidden) / 4), init="pca", random_state=0).fit_transform(hidden)
  return PCA(2, random_state=0).fit_transform(hidden)


def _draw_map(hidden: np.ndarray, data: Graph, code: np.ndarray, kind: str, path: Path) -> None:
  """The directions of hidden features of all nodes (or of some thousands) in the plane, by their true class."""
  hidden = hidden.reshape(len(hidden), -1)
  hidden = hidden / np.maximum(np.linalg.norm(hidden, axis=1, keepdims=True), 1e-9)
  shown = np.random.default_rng(0).permutation(len(hidden))[:_MOST_MAPPED]
  points = _project(hidden[shown], kind)
  figure, axes = new_figure(width=6.4, height=4.6)
  colors = color_nodes(data.num_classes)
  for number, name in enumerate(data.class_names):
    own = data.label[shown] == number
    said = cut_name(name) if data.num_classes <= MOST_NAMED else None
    axes[0, 0].scatter(*points[own].T, s=6, color=colors[number], label=said)
  known = code[shown] == TRAIN
  axes[0, 0].scatter(*points[known].T, s=26, facecolors="none", edgecolors="black", linewidths=0.8, label="labelled")
  axes[0, 0].legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
  axes[0, 0].set_xticks([])
  axes[0, 0].set_yticks([])
  spelled = {"pca": "two principal components", "tsne": "t-SNE"}[kind]
  axes[0, 0].set_title(f"{as_text(data.name)}: {spelled} of the hidden layer's directions, by true class", fontsize=9)
  save_figure(figure, path)


def _draw_confusion(found: np.ndarray, data: Graph, code: np.ndarray, path: Path) -> None:
  tested, size = code == TEST, data.num_classes
  table = np.zeros((size, size))
  np.add.at(table, (data.label[tested], found[tested]), 1)
  share = table / np.maximum(table.sum(1, keepdims=True), 1)
  figure, axes = new_figure(width=1.8 + 0.5 * size, height=1.4 + 0.5 * size)
  axes[0, 0].imshow(share, cmap="Blues", vmin=0, vmax=1)
  if size <= 20:
    for i, j in np.ndindex(size, size):
      axes[0, 0].text(j, i, f"{int(table[i, j])}", ha="center", va="center", fontsize=7,
                      color="white" if share[i, j] > 0.5 else "black")  # fmt: skip
  names = [as_text(name[:14]) for name in data.class_names]
  axes[0, 0].set_xticks(range(size), names, rotation=90, fontsize=7)
  axes[0, 0].set_yticks(range(size), names, fontsize=7)
  axes[0, 0].set_xlabel("what the network says", fontsize=8)
  axes[0, 0].set_ylabel("test nodes of class", fontsize=8)
  save_figure(figure, path)


def _draw_nodes(probabilities: Any, data: Graph, code: np.ndarray, path: Path) -> None:
  """The graph twice: coloured by the true class, and by what the network believes, paler where it is unsure."""
  points = lay_out_edges(data.senders, data.receivers, data.num_nodes)
  colors = color_nodes(data.num_classes)
  believed = np.asarray(probabilities)
  chance = 1 / data.num_classes
  sure = np.clip((believed.max(1) - chance) / (1 - chance), 0.15, 1)
  figure, axes = new_figure(1, 2, width=10.0, height=4.8)
  for axis, title, number, strength in (
    (axes[0, 0], "true class", data.label, np.ones(data.num_nodes)),
    (axes[0, 1], "what was learned, paler: less sure", believed.argmax(1), sure),
  ):
    draw_graph(axis, points, data.senders, data.receivers, colors[number], strength, known=code == TRAIN)
    wrong = (number != data.label) & (code != TRAIN)
    axis.scatter(*points[wrong].T, s=130, marker="x", color="black", linewidths=1.2)
    axis.set_title(f"{title} (ringed: labelled{'; crossed: wrong' if wrong.any() else ''})", fontsize=9)
  name_colors(figure, colors, data.class_names)
  save_figure(figure, path)


def _draw_attention(weights: np.ndarray, edges: Any, data: Graph, path: Path) -> None:
  """The first layer's attention of a node over itself and its neighbours: mean of the heads, and each head.

  Of the nodes with some neighbours, and not many, the one whose weights are least alike.
  """
  senders, receivers, real = edges.senders, edges.receivers, edges.mask > 0
  degree = np.bincount(receivers[real], minlength=data.num_nodes)
  greatest = np.zeros(data.num_nodes)
  np.maximum.at(greatest, receivers[real], weights[real].mean(1))
  node = int(np.argmax(greatest * degree * ((degree > 3) & (degree <= _MOST_NEIGHBORS + 1))))
  own = np.flatnonzero(real & (receivers == node))
  own = own[np.argsort(-weights[own].mean(1))]
  others, itself = own[senders[own] != node][:_MOST_NEIGHBORS], own[senders[own] == node]
  own = np.concatenate([itself, others])
  figure, axes = new_figure(1, 2, width=9.0, height=4.2)
  colors = color_nodes(data.num_classes)
  angle = 2 * np.pi * np.arange(len(others)) / max(1, len(others))
  for place, edge in enumerate(others):
    end = np.cos(angle[place]), np.sin(angle[place])
    axes[0, 0].plot([0, end[0]], [0, end[1]], color="gray", linewidth=0.5 + 14 * weights[edge].mean(), zorder=1)
    axes[0, 0].scatter(*end, s=160, color=colors[data.label[senders[edge]]], zorder=2, edgecolors="black")
    said = f"{senders[edge]}: {weights[edge].mean():.2f}"
    axes[0, 0].text(1.25 * end[0], 1.22 * end[1], said, ha="center", va="center", fontsize=7)
  axes[0, 0].scatter(0, 0, s=320, color=colors[data.label[node]], zorder=3, edgecolors="black")
  to_itself = f" ({weights[itself].mean():.2f} to itself)" if len(itself) else ""
  shown = f"the {len(others)} that count most" if len(own) < degree[node] else "all neighbours"
  axes[0, 0].set_title(f"node {node}{to_itself}, {shown}; colours: true classes", fontsize=9)
  axes[0, 0].axis("off")
  axes[0, 0].set_xlim(-1.5, 1.5)
  axes[0, 0].set_ylim(-1.4, 1.4)
  image = axes[0, 1].imshow(weights[own].T, cmap="viridis", vmin=0, aspect="auto")
  figure.colorbar(image, ax=axes[0, 1])
  names = ["itself" if senders[edge] == node else str(senders[edge]) for edge in own]
  axes[0, 1].set_xticks(range(len(own)), names, rotation=90, fontsize=7)
  axes[0, 1].set_xlabel("neighbour", fontsize=8)
  axes[0, 1].set_ylabel("head of the first layer", fontsize=8)
  axes[0, 1].yaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
  axes[0, 1].set_title(f"weights; uniform would be {1 / max(1, degree[node]):.2f}", fontsize=9)
  save_figure(figure, path)
