"""What a CTC network reads in all test strings; pictures of what it says at each place, above it the string itself."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from experiments.sequence._ctc_network import Model, decode
from experiments.sequence._strings import HOP
from mlnotes.data import Feeds
from mlnotes.sequence import ctc_loss, edit_distance


class Read(NamedTuple):
  """Strings, what they say, what was read, and how many labels of it are wrong. `infeasible` are numbers of rows."""

  input: Float[np.ndarray, "N ..."]
  lengths: Int[np.ndarray, " N"]
  labels: Int[np.ndarray, "N L"]
  label_lengths: Int[np.ndarray, " N"]
  found: Int[np.ndarray, "N T"]
  found_lengths: Int[np.ndarray, " N"]
  wrong: Int[np.ndarray, " N"]
  infeasible: Int[np.ndarray, " R"]

  def wanted(self, i: int, names: tuple[str, ...]) -> str:
    return _spell(self.labels[i][: self.label_lengths[i]], names)

  def said(self, i: int, names: tuple[str, ...]) -> str:
    return _spell(self.found[i][: self.found_lengths[i]], names)


def _spell(labels: Int[np.ndarray, " L"], names: tuple[str, ...]) -> str:
  short = all(len(name) == 1 for name in names)
  return ("" if short else " ").join(names[label - 1] for label in labels)


def read_all(model: Model, feeds: Feeds) -> Read:
  """Every string of the evaluation and what the model reads there."""

  def one(arrays, i):
    batch = feeds.evaluate.draw(arrays, i)
    logits, counts = model(batch["input"], batch["length"])
    found = decode(logits, counts, model.beam)
    _, feasible = ctc_loss(logits, counts, batch["labels"], batch["label_length"])
    wrong = edit_distance(*found, batch["labels"], batch["label_length"])
    return (batch["input"], batch["length"], batch["labels"], batch["label_length"], *found, wrong, feasible), batch[
      "mask"
    ]

  one = jax.jit(one)
  parts = []
  for i in range(feeds.evaluate.num_batches):
    arrays, mask = jax.tree.map(np.asarray, one(feeds.evaluate.arrays, i))
    parts.append([x[mask > 0] for x in arrays])
  *arrays, feasible = (np.concatenate(x) for x in zip(*parts))
  return Read(*arrays, np.flatnonzero(~feasible))


def draw_spikes(model: Any, read: Read, names: tuple[str, ...], path: Path, count: int = 4) -> None:
  """Strings that are read right, and where each of their labels stands."""
  right = np.flatnonzero(read.wrong == 0)
  order = right if len(right) else np.arange(len(read.wrong))
  # The longest among the first: each shows many labels.
  order = order[:200][np.argsort(-read.label_lengths[order[:200]], kind="stable")]
  told = f"{len(right)} of {len(read.wrong)} strings are read right" + (", these among them" if len(right) else "")
  _draw(model, read, names, path, order[:count], f"{told}; one colour a label, grey the blank")


def draw_mistakes(model: Any, read: Read, names: tuple[str, ...], path: Path, count: int = 4) -> None:
  """The strings with the most labels wrong, for their length."""
  share = read.wrong / np.maximum(read.label_lengths, 1)
  order = np.argsort(-share, kind="stable")[:count]
  order = order[read.wrong[order] > 0]
  if len(order):
    _draw(model, read, names, path, order, f"the worst of {len(read.wrong)} test strings")
  else:
    Path(path).unlink(missing_ok=True)  # of an earlier report


def _draw(model: Any, read: Read, names: tuple[str, ...], path: Path, rows: Int[np.ndarray, " R"], title: str) -> None:
  from mlnotes.engine.plot import as_text, new_figure, save_figure

  frames, frame_lengths = map(np.asarray, model.frames(read.input[rows], read.lengths[rows]))
  logits, lengths = model(read.input[rows], read.lengths[rows])
  logits, lengths = np.asarray(logits, np.float64), np.asarray(lengths)
  y = np.exp(logits - logits.max(-1, keepdims=True))
  y /= y.sum(-1, keepdims=True)
  figure, axes = new_figure(2 * len(rows), 1, width=9.0, height=2.1 * len(rows) + 0.5)
  colours = _colours(len(names))
  for place, row in enumerate(rows):
    above, below = axes[2 * place, 0], axes[2 * place + 1, 0]
    width, steps = max(int(frame_lengths[place]), 1), max(int(lengths[place]), 1)
    stride = width / steps
    above.imshow(frames[place, :width].T, cmap="gray" if frames.shape[2] <= 8 else "magma", aspect="auto",
                 origin="upper" if read.input.ndim == 3 else "lower", extent=(0, width, 0, 1))  # fmt: skip
    centres = (np.arange(steps) + 0.5) * stride
    below.fill_between(centres, y[place, :steps, 0], color="0.85", linewidth=0)
    for label in range(1, len(names) + 1):
      line = y[place, :steps, label]
      if line.max() > 0.05:
        below.plot(centres, line, color=colours[label - 1], linewidth=1.4)
    _name_spikes(below, y[place, :steps], centres, names, colours)
    wanted, said = read.wanted(row, names), read.said(row, names)
    text = f"{wanted}" if wanted == said else f"{wanted}, read as {said or 'nothing'}"
    above.set_title(as_text(text), fontsize=10, color="black" if wanted == said else "firebrick")
    above.set_yticks([])
    above.set_xticks([])
    below.set_xlim(0, width)
    below.set_ylim(0, 1.25)
    below.set_ylabel("probability", fontsize=8)
    below.tick_params(labelsize=7)
    below.set_yticks([0, 1])
    sound = read.input.ndim == 2
    above.set_ylabel("mel bands" if sound else "", fontsize=8)
    if sound:
      below.xaxis.set_major_formatter(lambda x, _: f"{x * HOP:g}")
    if place == len(rows) - 1:
      below.set_xlabel("seconds" if sound else "columns of the picture", fontsize=8)
  figure.suptitle(title, fontsize=11)
  save_figure(figure, path)


def _name_spikes(
  axis: Any, y: Float[np.ndarray, "T K"], centres: Float[np.ndarray, " T"], names: Any, colours: Any
) -> None:
  """The label of each run of frames in which it is the likeliest, at its highest."""
  best = y.argmax(1)
  start = 0
  for end in range(1, len(best) + 1):
    if end < len(best) and best[end] == best[start]:
      continue
    label = best[start]
    if label:
      top = start + int(y[start:end, label].argmax())
      axis.text(centres[top], 1.04, names[label - 1], ha="center", fontsize=9, color=colours[label - 1])
    start = end


def _colours(count: int) -> Any:
  import matplotlib

  if count > 10:
    return [matplotlib.colormaps["hsv"](i / count) for i in range(count)]
  ten = [matplotlib.colormaps["tab10"](i) for i in range(10)]
  ten[7] = (0.0, 0.0, 0.0, 1.0)  # grey is the blank
  return ten[:count]
