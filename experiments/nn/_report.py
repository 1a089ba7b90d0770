"""The figures and pictures of a trained classifier."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from mlnotes.data import DataSet, Split, fixed_subset
from mlnotes.data.floors import floor_images, floor_test_index, floors
from mlnotes.engine.plot import as_text, new_figure, save_figure, show_images
from mlnotes.nn.calibration import calibration_bins, confusion_matrix, expected_calibration_error

_CHUNK = 256
# Of a larger training split a fixed pseudo-random subset of this size is judged.
MOST_TRAIN = 10_000
_BINS = 15
# Of more classes the most confused ones are drawn.
_MOST_CLASSES = 20
_MOST_MISTAKES = 24
_DRAWN = ("image", "seen")
# A turn counts as recovered within so many degrees.
NEAR_DEGREES = 10.0


class Judged(NamedTuple):
  """A split as the network judges it: logits, and what it was judged on.

  `degrees` is what each image was turned by, `theta` and `upright_theta` the transforms that the network chose for it
  and for the image as it was before, (N, 2, 3); None where it has no spatial transformer. `look` gives what is drawn of
  some rows, (M, H, W, C) on [0, 1]: "image", as the network saw it, and "seen", what a transformer made of it.
  """

  index: Int[np.ndarray, " N"]
  logits: Float[np.ndarray, "N K"]
  label: Int[np.ndarray, " N"]
  degrees: Float[np.ndarray, " N"]
  theta: Float[np.ndarray, "N 2 3"] | None
  upright_theta: Float[np.ndarray, "N 2 3"] | None
  look: Callable[[Int[np.ndarray, " M"]], dict[str, np.ndarray]]

  @property
  def predicted(self) -> Int[np.ndarray, " N"]:
    return self.logits.argmax(-1)

  @property
  def probability(self) -> Float[np.ndarray, "N K"]:
    shifted = np.exp(self.logits - self.logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)

  @property
  def confidence(self) -> Float[np.ndarray, " N"]:
    return self.probability.max(-1)


def judge(predict: Callable, variables: Any, split: Split, most: int = 0) -> Judged:
  """`predict(variables, batch)` over a split, in chunks of one size; of at most `most` examples, 0: all."""
  index = fixed_subset(len(split), min(most or len(split), len(split)))

  def over(index: np.ndarray, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    rows = []
    for start in range(0, len(index), _CHUNK):
      # The last chunk is filled up with copies, so that there is one compilation.
      here = index[np.minimum(np.arange(start, start + _CHUNK), len(index) - 1)].astype(np.int32)
      batch = split.read(here)
      out = predict(variables, {**batch, "index": jnp.asarray(here)})
      rows.append(jax.device_get({name: value for name, value in out.items() if wanted(name)}))
      rows[-1] |= {"index": here, "label": batch["label"]}
    return {name: np.concatenate([row[name] for row in rows])[: len(index)] for name in rows[0]}

  # The images of a whole split would not fit into memory: those that are drawn are looked at again.
  found = over(index, lambda name: name not in _DRAWN)
  return Judged(
    **{"theta": None, "upright_theta": None, **found}, look=lambda rows: over(index[rows], _DRAWN.__contains__)
  )


def measure(judged: Judged) -> dict[str, float]:
  """Mean cross-entropy (nats), accuracy and expected calibration error."""
  shifted = judged.logits - judged.logits.max(-1, keepdims=True)
  log_probability = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
  loss = -log_probability[np.arange(len(judged.label)), judged.label]
  bins = calibration_bins(jnp.asarray(judged.probability), jnp.asarray(judged.label), _BINS)
  return {
    "loss": float(loss.mean()),
    "accuracy": float(np.mean(judged.predicted == judged.label)),
    "calibration_error": float(expected_calibration_error(bins)),
  }


def turned(theta: Float[np.ndarray, "N 2 3"]) -> Float[np.ndarray, " N"]:
  """Degrees by which the transforms turn their sampling grid, clockwise as seen: those of the nearest rotation.

  theta maps places (x, y), y down, of the output to places of the input; [[a, b], [c, d]] is nearest to the rotation
  by atan2(c - b, a + d). An image that was turned counter-clockwise by the negative of it is upright after it.
  """
  return np.degrees(np.arctan2(theta[:, 1, 0] - theta[:, 0, 1], theta[:, 0, 0] + theta[:, 1, 1]))


def angle_errors(judged: Judged) -> Float[np.ndarray, " N"]:
  """Degrees between the turn that each image was given and the one that the transformer takes back.

  What is taken back is the difference to the same image before it was turned: which way up a digit is, is for the
  network to choose, class by class.
  """
  recovered = turned(judged.upright_theta) - turned(judged.theta)
  return np.abs((recovered - judged.degrees + 180) % 360 - 180)


def write_report(predict: Callable, variables: Any, data: DataSet, config: Any, directory: Path) -> dict[str, float]:
  """Draws confusion, calibration, mistakes, and what a spatial transformer does; returns the figures of both splits.

  `predict` is compiled, so that seeds share it. Says on standard error where the network loses to the nearest
  neighbour on raw pixels.
  """
  test, train = judge(predict, variables, data.test), judge(predict, variables, data.train, MOST_TRAIN)
  figures = {f"test_{name}": value for name, value in measure(test).items()}
  figures |= {f"train_{name}": value for name, value in measure(train).items()}
  if test.theta is not None and config.distort != "none":
    errors = angle_errors(test)
    figures |= {
      "angle_error": float(np.median(errors)),
      "angle_within_10": float(np.mean(errors <= NEAR_DEGREES)),
      # Of a transformer that turns nothing back.
      "angle_error_untouched": float(np.median(np.abs(test.degrees))),
    }
  if config.distort == "none":
    figures |= floors(data) | floor_images(data)
    same = np.isin(test.index, floor_test_index(data))
    accuracy = np.mean(test.predicted[same] == test.label[same])
    if accuracy < figures["nearest_neighbour"]:
      print(
        f"the network loses to the nearest neighbour of raw pixels on the same {np.sum(same):,} test images: "
        f"{accuracy:.1%} against {figures['nearest_neighbour']:.1%}; try more --steps or another --learning_rate",
        file=sys.stderr,
      )
  write_table(test, data, directory / "classes.md")
  draw_confusion(test, data, directory / "confusion.png")
  draw_calibration({"test": test, "training": train}, directory / "calibration.png")
  draw_mistakes(test, data, directory / "misclassified.png")
  if test.theta is not None:
    draw_transformed(test, directory / "transformed.png")
  return figures


def write_table(judged: Judged, data: DataSet, path: Path) -> None:
  """Accuracy on the test images of each class, and what it is taken for most often."""
  rows = ["| class | test images | accuracy (%) | most often taken for |", "|---|---|---|---|"]
  counts = np.asarray(confusion_matrix(jnp.asarray(judged.label), jnp.asarray(judged.predicted), data.num_classes))
  for label, row in enumerate(counts):
    wrong = np.where(np.arange(len(row)) == label, 0, row)
    other = f"{data.class_names[wrong.argmax()]} ({wrong.max():.0f})" if wrong.max() else ""
    share = f"{100 * row[label] / row.sum():.1f}" if row.sum() else ""
    rows.append(f"| {data.class_names[label]} | {row.sum():.0f} | {share} | {other} |")
  total = f"{100 * np.mean(judged.predicted == judged.label):.1f}"
  rows.append(f"| all | {len(judged.label)} | {total} | |")
  path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def draw_confusion(judged: Judged, data: DataSet, path: Path) -> None:
  """How often each class (row) is taken for each (column); the colours are of the mistakes, the diagonal is grey."""
  counts = np.asarray(confusion_matrix(jnp.asarray(judged.label), jnp.asarray(judged.predicted), data.num_classes))
  wrong = np.where(np.eye(len(counts)), 0, counts)
  shown = np.sort(np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:_MOST_CLASSES])
  counts, wrong = counts[np.ix_(shown, shown)], wrong[np.ix_(shown, shown)]
  names = [as_text(data.class_names[i]) for i in shown]
  side = 2.0 + 0.38 * len(shown)
  figure, axes = new_figure(width=side + 0.8, height=side)
  axis = axes[0, 0]
  axis.imshow(np.where(np.eye(len(counts)), np.nan, wrong), cmap="Reds", vmin=0, vmax=max(wrong.max(), 1))
  axis.set_facecolor("0.93")
  for row, column in np.ndindex(counts.shape):
    if counts[row, column]:
      dark = row != column and wrong[row, column] > 0.6 * wrong.max()
      color = "white" if dark else "0.45" if row == column else "black"
      axis.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", fontsize=8, color=color)
  axis.set_xticks(range(len(shown)), names, rotation=0 if max(map(len, names)) < 3 else 90)
  axis.set_yticks(range(len(shown)), names)
  axis.set(xlabel="taken for", ylabel="class")
  errors = int(np.sum(judged.predicted != judged.label))
  few = f", the {len(shown)} most confused classes" if len(shown) < data.num_classes else ""
  axis.set_title(f"{errors} mistakes of {len(judged.label)} test images{few}", fontsize=10)
  save_figure(figure, path)


def draw_calibration(splits: dict[str, Judged], path: Path) -> None:
  """Above: how often the network is right, over how sure it is. Below: how often it is so sure."""
  figure, axes = new_figure(2, 1, width=4.6, height=5.4)
  above, below = axes[:, 0]
  above.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="as sure as right")
  edges = np.linspace(0, 1, 11)
  for position, (name, judged) in enumerate(splits.items()):
    bins = np.digitize(judged.confidence, edges[1:-1])
    right = judged.predicted == judged.label
    used = [i for i in range(10) if np.any(bins == i)]
    mean = lambda values: [np.mean(values[bins == i]) for i in used]  # noqa: B023
    spread = [np.std(right[bins == i]) / np.sqrt(np.sum(bins == i)) for i in used]
    error = 100 * measure(judged)["calibration_error"]
    above.errorbar(
      mean(judged.confidence), mean(right), spread, marker="o", markersize=4, capsize=2, color=f"C{position}",
      label=f"{name} (off by {error:.1f} % on average)",
    )  # fmt: skip
    share = np.array([np.mean(bins == i) for i in range(10)])
    below.bar(edges[:-1] + 0.025 + 0.045 * position, 100 * share, 0.045, color=f"C{position}", label=name)
  above.set(xlim=(0, 1.02), ylim=(0, 1.04), ylabel="share that is right")
  above.legend(frameon=False, fontsize=8, loc="lower right")
  above.set_title("is the network as often right as it says?", fontsize=10)
  below.set(xlim=(0, 1.02), xlabel="probability that it gives its answer", ylabel="% of images", yscale="log")
  save_figure(figure, path)


def draw_mistakes(judged: Judged, data: DataSet, path: Path) -> None:
  """Test images that were taken for another class, the surest mistake first."""
  wrong = np.flatnonzero(judged.predicted != judged.label)
  order = wrong[np.argsort(-judged.confidence[wrong], kind="stable")][:_MOST_MISTAKES]
  images = judged.look(order)["image"] if len(order) else ()
  columns = min(8, max(len(order), 4))
  rows = max(1, -(-len(order) // columns))
  figure, axes = new_figure(rows, columns, width=1.15 * columns, height=1.4 * rows + 0.5)
  for axis in axes.flat:
    axis.axis("off")
  for axis, i, image in zip(axes.flat, order, images):
    axis.axis("on")
    show_images(axis, image[None], 1)
    truth, answer = (as_text(data.class_names[label]) for label in (judged.label[i], judged.predicted[i]))
    axis.set_title(f"said {answer}, is {truth}\n{judged.confidence[i]:.0%} sure", fontsize=8)
  which = "all" if len(order) == len(wrong) else f"the {len(order)} surest"
  title = f"{which} {len(wrong)} mistakes" if len(order) == len(wrong) else f"{which} of {len(wrong)} mistakes"
  title = f"{title} on {len(judged.label)} test images" if len(wrong) else "no mistake on the test images"
  figure.suptitle(title, fontsize=10)
  save_figure(figure, path)


def draw_transformed(judged: Judged, path: Path, columns: int = 12) -> None:
  """Test images as they come in, and what the spatial transformer makes of them for the network behind it."""
  first = [np.flatnonzero(judged.label == label)[:2] for label in np.unique(judged.label)]
  order = np.concatenate(first)[:24]
  pictures = judged.look(order)
  rows = -(-len(order) // columns)
  figure, axes = new_figure(2 * rows, 1, width=9.0, height=1.75 * rows + 0.6)
  for row in range(rows):
    some = slice(row * columns, (row + 1) * columns)
    for axis, kind, name in ((axes[2 * row, 0], "image", "image"), (axes[2 * row + 1, 0], "seen", "after")):
      images = np.clip(pictures[kind][some], 0, 1)
      blank = np.ones((columns - len(images), *images.shape[1:]))
      show_images(axis, np.concatenate([images, blank]), columns)
      axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
  figure.suptitle("what the spatial transformer makes of test images", fontsize=10)
  save_figure(figure, path)
