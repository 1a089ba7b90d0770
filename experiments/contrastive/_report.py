"""The figures and pictures of a contrastive run."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from mlnotes.contrastive.knn import choose_k, compute_knn_accuracy
from mlnotes.contrastive.metrics import alignment, effective_rank, embedding_spread, participation_ratio, uniformity
from mlnotes.contrastive.probe import compute_probe_accuracy
from mlnotes.data import DataSet, Split, fixed_subset
from mlnotes.engine.experiment import example_keys, root_key, stream_key
from mlnotes.engine.plot import new_figure, save_figure, show_images

# A run counts as collapsed where its embeddings are one point, or lie along one line: below this spread (1 is even), or
# with fewer directions than this in use. Of N examples that spread over R directions about N R / (N + R) are found, so
# that with ten examples per direction the line is told from the plane; fewer give no verdict.
COLLAPSED_SPREAD = 0.02
COLLAPSED_RANK = 2.0
_FEWEST_JUDGED = int(10 * COLLAPSED_RANK)
_CHUNK = 512
# How many test images at most, a fixed pseudo-random subset, the metrics see that compare all pairs ...
_PAIRED_EXAMPLES = 2000
# ... and the map of the embedding. It needs so many that differ.
_MOST_ON_A_MAP = 1000
_FEWEST_ON_A_MAP = 10


class Features(NamedTuple):
  features: Float[np.ndarray, "N D"]
  embedding: Float[np.ndarray, "N E"]
  label: Int[np.ndarray, " N"]


def embed_split(embed: Callable, state: Any, split: Split) -> Features:
  """The features of a split's examples, in order. `embed` is that of the experiment."""
  size, rows = len(split), []
  for start in range(0, size, _CHUNK):
    # The last chunk is filled up with copies, so that there is one compilation.
    index = np.minimum(np.arange(start, start + _CHUNK), size - 1)
    batch = {**split.read(index), "index": index, "mask": np.ones(_CHUNK, np.float32)}
    out = jax.device_get(embed(state, batch))
    rows.append([np.asarray(out[name], np.float32) for name in ("features", "embedding")] + [batch["label"]])
  return Features(*(np.concatenate(column)[:size] for column in zip(*rows)))


def to_pixels(split: Split, levels: int) -> Float[np.ndarray, "N D"]:
  """Images as vectors on [0, 1]: the features that need no learning."""
  images = split.read(np.arange(len(split)))["image"]
  return images.reshape(len(images), -1).astype(np.float32) / (levels - 1)


@functools.lru_cache(maxsize=4)
def _pixel_probe(data: DataSet, per_class: int) -> float:
  """Mean accuracy of the probe on raw pixels: the same for all seeds of a run."""
  train, test = ((to_pixels(split, data.levels), split.read(np.arange(len(split)))["label"]) for split in data[1:3])
  return float(compute_probe_accuracy(train, test, per_class).mean())


def write_report(
  embed: Callable, augment_batch: Callable, state: Any, data: DataSet, config: Any, directory: Path, recipe: str
) -> dict[str, float]:
  """Draws views, neighbours and a map of the embedding; returns the figures of the final features.

  `embed` is the experiment's and `augment_batch` (keys, images) -> views, of which `recipe` is the name; both compiled,
  so that seeds share them. Of features that are not finite all figures are NaN. Says on standard error where the
  embedding has collapsed, and where the features are worth less than raw pixels.
  """
  train, test = embed_split(embed, state, data.train), embed_split(embed, state, data.test)
  classes = data.num_classes
  knn = functools.partial(compute_knn_accuracy, k=choose_k(config.knn_k, len(train.label)))
  few = config.labels_per_class
  pair = (train.features, train.label), (test.features, test.label)
  some = jnp.asarray(test.embedding[fixed_subset(len(test.label), _PAIRED_EXAMPLES)])
  searched = jnp.asarray(train.embedding[fixed_subset(len(train.label), config.knn_examples or len(train.label))])
  spread, rank = float(embedding_spread(searched)), float(participation_ratio(searched))
  finite = all(np.isfinite(x).all() for x in (train.features, test.features, test.embedding))
  figures = {
    "knn_accuracy_all": knn(
      test.features, test.label, train.features, train.label, classes, temperature=config.knn_temperature
    ),
    "alignment": _test_alignment(embed, augment_batch, state, data),
    "uniformity": float(uniformity(some)),
    "effective_rank": float(effective_rank(some)),
    "collapsed": np.nan,
  }
  if len(np.unique(train.label)) > 1:  # a line needs two sides
    figures |= {
      "linear_probe": float(compute_probe_accuracy(*pair).mean()),
      f"linear_probe_{few}_per_class": float(compute_probe_accuracy(*pair, few).mean()),
      f"pixel_probe_{few}_per_class": _pixel_probe(data, few),
    }
    _compare_with_pixels(figures, few, recipe)
  if not finite:
    print("the features are not finite: all their figures are NaN", file=sys.stderr)
  else:
    verdict, sentence = judge_collapse(spread, rank, len(searched), len(np.unique(train.label)))
    if verdict is None:
      del figures["collapsed"]
    else:
      figures["collapsed"] = float(verdict)
    if sentence:
      print(sentence, file=sys.stderr)
  if recipe != "none":
    _draw_views(augment_batch, data, directory / "views.png")
  _draw_neighbours(data, train, test, directory / "neighbours.png")
  if finite:
    _draw_map(data, test, "collapsed" if figures.get("collapsed") else "learned", directory / "map.png")
  return figures


def judge_collapse(spread: float, rank: float, images: int, classes: int) -> tuple[bool | None, str]:
  """(whether the embedding of so many images has collapsed, the sentence to say), None where they are too few to tell.

  By `embedding_spread` and `embedding_rank` as the last evaluation prints them. Two classes that lie as far apart as
  there is room take one line, three a plane: with no more than these the spread alone decides.
  """
  of = f"the embeddings of {images} training images lie"
  numbers = f"(embedding_spread {spread:.2f}, 1 is even; embedding_rank {rank:.1f})"
  if spread < COLLAPSED_SPREAD:
    return True, f"collapsed: {of} at one point {numbers}"
  if classes - 1 <= COLLAPSED_RANK:
    return False, ""
  if images < _FEWEST_JUDGED:
    return None, f"{images} training images are too few to say whether the embedding has collapsed {numbers}"
  return rank < COLLAPSED_RANK, f"collapsed: {of} along one line {numbers}" if rank < COLLAPSED_RANK else ""


def _compare_with_pixels(figures: dict[str, float], few: int, recipe: str) -> None:
  """Says so where pretraining has made things worse."""
  learned, pixels = (figures[f"{kind}_probe_{few}_per_class"] for kind in ("linear", "pixel"))
  if learned < pixels:
    print(
      f"the features lose to raw pixels: {learned:.1%} against {pixels:.1%} by a linear probe with {few} labels per "
      f"class; try more --steps, or views that leave what tells the classes apart (--augmentation={recipe} here)",
      file=sys.stderr,
    )


def _make_test_views(
  augment_batch: Callable, data: DataSet, seed: int, index: np.ndarray
) -> UInt8[np.ndarray, "N H W C"]:
  """One view of each test image at `index`, back in grey levels."""
  image = data.test.read(index)["image"].astype(np.float32) / (data.levels - 1)
  keys = example_keys(stream_key(root_key(seed), "report"), jnp.asarray(index))
  return np.asarray(np.round(augment_batch(keys, image) * (data.levels - 1)), np.uint8)


def _test_alignment(embed, augment_batch, state, data: DataSet) -> float:
  some = fixed_subset(len(data.test), _CHUNK)
  index = np.resize(some, _CHUNK)  # the batch's shape is that of `embed_split`
  label = data.test.read(index)["label"]
  one, two = (
    embed(state, {"image": _make_test_views(augment_batch, data, seed, index), "label": label, "mask": label})
    for seed in (0, 1)
  )
  return float(np.mean(alignment(one["embedding"], two["embedding"])[: len(some)]))


def _draw_views(augment_batch, data: DataSet, path: Path, rows: int = 8, views: int = 9) -> None:
  """Each row: a test image and views of it as training sees them."""
  index = fixed_subset(len(data.test), rows)
  images = [
    data.test.read(index)["image"],
    *(_make_test_views(augment_batch, data, seed, index) for seed in range(views)),
  ]
  sheet = np.stack(images, axis=1).reshape(-1, *data.image_shape) / (data.levels - 1)
  figure, axes = new_figure(width=7.0, height=0.7 * len(index) + 0.5)
  show_images(axes[0, 0], sheet, columns=views + 1)
  axes[0, 0].set_title("left: the image; right of it: views of it, as training sees them", fontsize=9)
  save_figure(figure, path)


def _draw_neighbours(
  data: DataSet, train: Features, test: Features, path: Path, rows: int = 10, columns: int = 8
) -> None:
  """One test image of each class, and its nearest training images: framed green where the class is the same."""
  unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
  _, first = np.unique(test.label, return_index=True)
  queries = first[:rows]
  nearest = np.argsort(-unit(test.features[queries]) @ unit(train.features).T, axis=1)[:, :columns]
  figure, axes = new_figure(len(queries), columns + 1, width=0.75 * (columns + 1), height=0.78 * len(queries) + 0.5)
  show = lambda axis, image: show_images(axis, image[None] / (data.levels - 1), 1)
  for row, (query, neighbours) in enumerate(zip(queries, nearest)):
    show(axes[row, 0], data.test.read(np.array([query]))["image"][0])
    axes[row, 0].set_ylabel(data.class_names[test.label[query]], rotation=0, ha="right", va="center", fontsize=8)
    for axis, neighbour in zip(axes[row, 1:], neighbours):
      show(axis, data.train.read(np.array([neighbour]))["image"][0])
      same = train.label[neighbour] == test.label[query]
      for spine in axis.spines.values():
        spine.set(visible=True, color="tab:green" if same else "tab:red", linewidth=2)
  share = float(np.mean(train.label[nearest] == test.label[queries, None]))
  figure.suptitle(
    f"left: test image; right: its nearest training images ({share:.0%} of the same class, framed green)", fontsize=9
  )
  save_figure(figure, path)


def _fits_a_map(x: Float[np.ndarray, "N D"]) -> bool:
  """Whether t-SNE can lay these points out: it crashes on points that hardly differ."""
  spread = x.std(axis=0)
  if x.shape[1] < 2 or spread.max() <= 1e-5 * max(np.abs(x).max(), 1e-30):
    return False
  return len(np.unique(np.round((x - x.mean(axis=0)) / spread.max(), 3), axis=0)) >= _FEWEST_ON_A_MAP


def _draw_map(data: DataSet, test: Features, kind: str, path: Path) -> None:
  """The test features in two dimensions (t-SNE), beside the raw pixels in the same way; nothing where either cannot."""
  from sklearn.decomposition import PCA
  from sklearn.manifold import TSNE
  from threadpoolctl import threadpool_limits

  index = fixed_subset(len(test.label), _MOST_ON_A_MAP)
  size, label = len(index), test.label[index]
  pixels, features = to_pixels(data.test, data.levels)[index], test.features[index]
  if not (_fits_a_map(pixels) and _fits_a_map(features)):
    return
  figure, axes = new_figure(1, 2, width=9.5, height=4.4)
  for axis, x, title in (
    (axes[0, 0], pixels, "raw pixels"),
    (axes[0, 1], features, f"{kind} features"),
  ):
    x = PCA(min(50, *x.shape), random_state=0).fit_transform(x)
    tsne = TSNE(2, perplexity=min(30, max(2, size // 4)), init="pca", random_state=0, max_iter=500)
    with threadpool_limits(1):  # more threads are slower on this few points
      points = tsne.fit_transform(x)
    dots = axis.scatter(*points.T, c=label, cmap="tab10" if data.num_classes <= 10 else "turbo", s=6)
    axis.set(title=f"{title}, {size} test images (t-SNE)", xticks=[], yticks=[])
  classes = np.unique(label)
  if len(classes) <= 20:
    handles = [
      axes[0, 1].scatter([], [], color=dots.cmap(dots.norm(i)), s=16, label=data.class_names[i]) for i in classes
    ]
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8)
  save_figure(figure, path)
