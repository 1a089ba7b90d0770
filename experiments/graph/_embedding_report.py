"""The figures and pictures of vectors of nodes: what a classifier makes of them, beside what needs no learning."""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from experiments.graph._drawing import MOST_DRAWN, color_nodes, cut_name, draw_graph, lay_out_edges, name_colors
from mlnotes import graph
from mlnotes.engine.plot import new_figure, save_figure
from mlnotes.graph import floors

# A graph of more nodes is no picture; a map of more points is slow and no clearer.
_MOST_ON_A_MAP = 3000
# Below this spread of unit vectors around their mean (1: all directions) they are one point.
_COLLAPSED = 0.02
_FEWEST_TO_CHOOSE_ON = 20  # held-out edges
FLOORS = {
  "jaccard": graph.jaccard,
  "common_neighbors": graph.common_neighbors,
  "adamic_adar": graph.adamic_adar,
  "degree_product": graph.degree_product,
}
_NO_VECTORS = "not finite: their figures are NaN"


def to_unit(vectors: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
  """Their directions; 0 of a vector that is 0."""
  return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def describe_collapse(vectors: Float[np.ndarray, "N D"]) -> str:
  """What is wrong with the vectors as a whole, "" where nothing is."""
  if not np.isfinite(vectors).all():
    return f"the vectors are {_NO_VECTORS}"
  spread = 1 - np.linalg.norm(to_unit(vectors).mean(axis=0))
  return f"collapsed: all vectors point one way (spread {spread:.3f}, 1 is even)" if spread < _COLLAPSED else ""


def classify(vectors: Float[np.ndarray, "N D"], label, train: Bool[np.ndarray, " N"], c: float):
  """The class of every node by one-vs-rest logistic regression on the training nodes' vectors."""
  from sklearn.linear_model import LogisticRegression
  from sklearn.multiclass import OneVsRestClassifier

  model = OneVsRestClassifier(LogisticRegression(C=c, max_iter=1000))
  return model.fit(vectors[train], label[train]).predict(vectors)


def report_classes(vectors: np.ndarray, world: Any, config: Any, directory: Path) -> dict[str, float]:
  """Test accuracies by the graph's split, and of the clusters of vectors how well they agree with the classes."""
  from sklearn.metrics import adjusted_rand_score

  data = world.data
  rate = lambda found, mask: float(np.mean(found[mask] == data.label[mask]))
  most = np.bincount(data.label[data.train]).argmax()
  edges = graph.make_edges(jnp.asarray(data.senders), jnp.asarray(data.receivers))
  figures = {
    "accuracy_majority": rate(np.full(data.num_nodes, most), data.test),
    "accuracy_label_spreading": rate(floors.spread_labels(edges, data.label, data.train), data.test),
    "accuracy_logistic": np.nan,
  }
  if problem := describe_collapse(vectors):
    print(problem, file=sys.stderr)
    if _NO_VECTORS in problem:
      return figures
  # In units of their own deviation, so that C means the same for vectors of any length.
  scaled = vectors / np.maximum(vectors.std(), 1e-12)
  found = classify(scaled, data.label, data.train, config.inverse_l2)
  figures["accuracy_logistic"] = rate(found, data.test)
  if data.valid.any():
    figures["accuracy_logistic_valid"] = rate(found, data.valid)
  clusters = find_clusters(vectors, data.num_classes)
  figures["clusters_rand"] = float(adjusted_rand_score(data.label, clusters))
  if figures["accuracy_logistic"] < figures["accuracy_label_spreading"]:
    print(
      f"the vectors lose to label spreading: {figures['accuracy_logistic']:.1%} against "
      f"{figures['accuracy_label_spreading']:.1%} of the test nodes",
      file=sys.stderr,
    )
  if data.num_nodes <= MOST_DRAWN:
    draw_clusters(world, clusters, directory / "graph.png")
  draw_maps(vectors, data, directory / "vectors.png")
  return figures


def find_clusters(vectors: Float[np.ndarray, "N D"], count: int) -> Int[np.ndarray, " N"]:
  """As many clusters as classes, by k-means of the vectors' directions."""
  import warnings

  from sklearn.cluster import KMeans
  from sklearn.exceptions import ConvergenceWarning
  from threadpoolctl import threadpool_limits

  unit = to_unit(vectors)
  with threadpool_limits(1), warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)  # of fewer directions than clusters
    return KMeans(count, n_init=10, random_state=0).fit_predict(unit)


# -- links -------------------------------------------------------------------------------------------------------------


def score_links(vectors: np.ndarray, links: graph.LinkSplit, c: float) -> dict[str, dict[str, np.ndarray]]:
  """{score: {part: scores of its edges, then of its non-edges}}: cosines, and logistic regression on each operator."""
  from sklearn.linear_model import LogisticRegression
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import StandardScaler

  parts = {"test": np.concatenate([links.test, links.test_non_edges])}
  if len(links.valid):
    parts["valid"] = np.concatenate([links.valid, links.valid_non_edges])
  training = np.concatenate([links.edges, links.non_edges])
  is_edge = np.arange(len(training)) < len(links.edges)
  unit = to_unit(vectors)
  scores = {"cosine": {name: np.sum(unit[pairs[:, 0]] * unit[pairs[:, 1]], axis=1) for name, pairs in parts.items()}}
  for operator, combine in graph.PAIR_OPERATORS.items():
    features = lambda pairs, combine=combine: combine(vectors[pairs[:, 0]], vectors[pairs[:, 1]])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000)).fit(features(training), is_edge)
    scores[operator] = {name: model.decision_function(features(pairs)) for name, pairs in parts.items()}
  return scores


def score_floors(world: Any, pairs: Int[np.ndarray, "P 2"]) -> dict[str, np.ndarray]:
  """Scores of similarity on the graph that is left."""
  pairs = jnp.asarray(pairs)
  return {name: np.asarray(jax.jit(score)(world.rows, pairs)) for name, score in FLOORS.items()}


def rank(scores: np.ndarray) -> float:
  """The area under the curve of as many edges as non-edges, in this order."""
  from sklearn.metrics import roc_auc_score

  return float(roc_auc_score(np.arange(len(scores)) < len(scores) // 2, scores))


def report_links(vectors: np.ndarray, world: Any, config: Any, directory: Path) -> dict[str, float]:
  """Areas under the ROC curve of the held-out test edges; `auc` is that of the operator that is best on valid ones."""
  links = world.links
  floors = score_floors(world, np.concatenate([links.test, links.test_non_edges]))
  figures = {f"auc_{name}": rank(scores) for name, scores in floors.items()} | {"auc": np.nan}
  if problem := describe_collapse(vectors):
    print(problem, file=sys.stderr)
    if _NO_VECTORS in problem:
      return figures
  scores = score_links(vectors, links, config.inverse_l2)
  chosen = choose_operator(scores)
  figures |= {f"auc_{name}": rank(parts["test"]) for name, parts in scores.items() if name != "cosine"}
  figures |= {"auc_cosine_test": rank(scores["cosine"]["test"]), "auc": rank(scores[chosen]["test"])}
  best = max(floors, key=lambda name: figures[f"auc_{name}"])
  if figures["auc"] < figures[f"auc_{best}"]:
    print(
      f"the vectors lose to {best}: an area of {figures['auc']:.3f} against {figures[f'auc_{best}']:.3f}",
      file=sys.stderr,
    )
  draw_curves({f"vectors, {chosen}": scores[chosen]["test"], **floors}, len(links.test), directory / "roc.png")
  draw_maps(vectors, world.data, directory / "vectors.png")
  return figures


def choose_operator(scores: dict[str, dict[str, np.ndarray]]) -> str:
  """The best on the validation edges; Hadamard, which the paper advises, where they are too few to choose on."""
  if len(scores["hadamard"].get("valid", ())) < 2 * _FEWEST_TO_CHOOSE_ON:
    return "hadamard"
  return max(scores, key=lambda name: rank(scores[name]["valid"]))


# -- pictures ----------------------------------------------------------------------------------------------------------


def draw_clusters(world: Any, clusters: Int[np.ndarray, " N"], path: Path) -> None:
  """The graph twice: coloured by its classes, and by the clusters of the vectors, which knew of edges alone."""
  data = world.data
  place = lay_out_edges(data.senders, data.receivers, data.num_nodes)
  colors = color_nodes(max(data.num_classes, int(clusters.max()) + 1))
  figure, axes = new_figure(1, 2, width=10.0, height=4.8)
  names = ("classes; ringed: labelled", "clusters of the vectors, in colours of the classes they match")
  for axis, kinds, title in zip(axes[0], (data.label, match_colours(clusters, data.label)), names):
    draw_graph(axis, place, data.senders, data.receivers, colors[kinds], known=data.train)
    axis.set_title(title, fontsize=9)
  name_colors(figure, colors, data.class_names)
  save_figure(figure, path)


def match_colours(clusters: Int[np.ndarray, " N"], label: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
  """Clusters with the numbers of the classes that most of them share, one to one."""
  from scipy.optimize import linear_sum_assignment

  size = max(clusters.max(), label.max()) + 1
  shared = np.zeros((size, size))
  np.add.at(shared, (clusters, label), 1)
  return linear_sum_assignment(-shared)[1][clusters]


def draw_maps(vectors: Float[np.ndarray, "N D"], data: Any, path: Path) -> None:
  """The vectors in two dimensions, by PCA and by t-SNE, coloured by class."""
  from sklearn.decomposition import PCA
  from sklearn.manifold import TSNE
  from threadpoolctl import threadpool_limits

  some = np.random.default_rng(0).permutation(data.num_nodes)[:_MOST_ON_A_MAP]
  unit = to_unit(vectors[some])
  if min(unit.shape) < 2 or unit.std(axis=0).max() < 1e-5 or len(some) < 10:
    return
  flat = PCA(min(50, *unit.shape), random_state=0).fit_transform(unit)
  tsne = TSNE(2, perplexity=min(30, max(2, len(some) // 4)), init="pca", random_state=0, max_iter=500)
  with threadpool_limits(1):
    maps = {"PCA": flat[:, :2], "t-SNE": tsne.fit_transform(flat)}
  figure, axes = new_figure(1, 2, width=9.5, height=4.4)
  for axis, (name, points) in zip(axes[0], maps.items()):
    few = dict(cmap="tab10", vmin=0, vmax=9)  # the colours of the other picture
    dots = axis.scatter(*points.T, c=data.label[some], s=8, **few if data.num_classes <= 10 else dict(cmap="turbo"))
    axis.set(title=f"{name} of {len(some)} vectors' directions", xticks=[], yticks=[])
  if data.num_classes <= 20:
    shown = np.unique(data.label[some])
    handles = [
      axes[0, 1].scatter([], [], color=dots.cmap(dots.norm(i)), s=16, label=cut_name(data.class_names[i]))
      for i in shown
    ]
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8)
  save_figure(figure, path)


def draw_curves(scores: dict[str, np.ndarray], edges: int, path: Path) -> None:
  """Of each score the share of held-out edges that is found as more pairs without an edge are let in."""
  from sklearn.metrics import roc_curve

  figure, axes = new_figure(width=5.2, height=5.0)
  axis = axes[0, 0]
  for i, (name, values) in enumerate(scores.items()):
    wrong, right, _ = roc_curve(np.arange(len(values)) < edges, values)
    style = dict(linewidth=2.2) if i == 0 else dict(linewidth=1.2, linestyle="--")
    axis.plot(wrong, right, label=f"{name.replace('_', ' ')}: {rank(values):.3f}", **style)
  axis.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
  axis.set(xlabel="share of pairs without an edge", ylabel="share of held-out edges", title=f"{edges} held-out edges")
  axis.legend(frameon=False, fontsize=8, title="area under the curve", title_fontsize=8)
  save_figure(figure, path)
