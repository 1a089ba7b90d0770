"""Where strings of labels come from: lines of handwritten digits, or clips of sound one after the other."""

import functools
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mlnotes.data import load
from mlnotes.data.augment import random_affine
from mlnotes.data.clips import Clips, SpokenClips, load_clips
from mlnotes.data.fingerprint import fingerprint, fingerprint_splits
from mlnotes.data.floors import floors as image_floors
from mlnotes.data.split import NamedArrays
from mlnotes.engine.errors import InputError
from mlnotes.sequence import draw_line, draw_utterance, log_mel
from mlnotes.sequence.strings import utterance_samples

LINES = "digit_lines"
# Columns that neighbours of a line share; -1 is a column left empty.
_OVERLAP = (-1, 2)
# Seconds of a frame of sound and from one to the next, as of speech recognition; of silence between clips; how much
# faster or slower clips are in training.
_WINDOW, HOP, _PAUSE, _STRETCH = 0.025, 0.01, 0.1, 0.1
# Of a clip as the linear classifier sees it.
_PARTS = 10


class Source(NamedTuple):
  """Two kinds of strings and how a network sees them.

  arrays, draw: of the training part and of the test part, as `make_drawn_feed` takes them.
  front: (input, length) of a batch -> (frames (B, T, M), lengths).
  class_names: of the labels 1, 2, ...
  floors: test accuracy on single parts of what learns no features, and from it the floor of a whole string.
  """

  arrays: tuple[Any, Any]
  draw: tuple[Callable[[Key[Array, ""], Any], dict[str, Array]], Callable[[Key[Array, ""], Any], dict[str, Array]]]
  front: Callable[[Float[Array, "B ..."], Int[Array, " B"]], tuple[Float[Array, "B T M"], Int[Array, " B"]]]
  class_names: tuple[str, ...]
  floors: Callable[[], Mapping[str, float]]
  fingerprint: str
  notes: tuple[str, ...]


@functools.lru_cache(maxsize=1)
def load_source(dataset: str, split: str, seconds: float, shortest: int, longest: int, mels: int) -> Source:
  """The strings of the flags. Raises DataError as `load_clips` does, InputError for what `log_mel` refuses."""
  if dataset == LINES:
    return _line_source(shortest, longest)
  return _clip_source(load_clips(dataset, split, seconds), shortest, longest, mels)


def _line_source(shortest: int, longest: int) -> Source:
  data = load("digits_halves")
  arrays = tuple(
    {"images": part.image[..., 0].astype(np.float32) / (data.levels - 1), "labels": part.label.astype(np.int32)}
    for part in (data.train, data.test)
  )
  move = random_affine(15.0, 1.0, (0.8, 1.2))
  augment = lambda key, image: move(key, image[..., None])[..., 0]

  def draw(change):
    return lambda key, arrays: draw_line(
      key, **arrays, shortest=shortest, longest=longest, overlap=_OVERLAP, augment=change
    )

  whole = lambda columns, lengths: (columns, lengths)
  return Source(
    arrays, (draw(augment), draw(None)), whole, data.class_names, lambda: image_floors(data), fingerprint(data), ()
  )


def _clip_source(data: SpokenClips, shortest: int, longest: int, mels: int) -> Source:
  window, hop, pause = (round(seconds * data.rate) for seconds in (_WINDOW, HOP, _PAUSE))
  longest_clip = int(max(data.train.length.max(), data.test.length.max()))

  def draw(stretch):
    more = dict(shortest=shortest, longest=longest, longest_clip=longest_clip, pause=pause, stretch=stretch)
    return lambda key, clips: draw_utterance(key, clips, **more)

  def front(audio, lengths):
    return standardize(*log_mel(audio, lengths, data.rate, window, hop, mels))

  # Of the shorter strings, those of the test: what has no frame, or a band without a frequency, shows before training.
  samples = jax.ShapeDtypeStruct((1, utterance_samples(longest, longest_clip, pause, 0.0)), jnp.float32)
  try:
    jax.eval_shape(front, samples, jax.ShapeDtypeStruct((1,), jnp.int32))
  except ValueError as error:
    raise InputError(f"--mels={mels} at {data.rate} samples a second: {error}.") from error
  return Source(
    (data.train, data.test), (draw(_STRETCH), draw(0.0)), front, data.class_names,
    functools.cache(functools.partial(clip_floors, data, window, hop, mels)),
    fingerprint_splits(*(_as_split(clips, data.rate) for clips in (data.train, data.test))), data.notes,
  )  # fmt: skip


def _as_split(clips: Clips, rate: int) -> NamedArrays:
  """What strings of the clips depend on, a row for each clip."""
  of_clip = {"start": clips.start, "label": clips.label, "group": clips.group, "sum": _sums(clips)}
  return NamedArrays(of_clip | {"rate": np.full(len(clips), rate)})


def _sums(clips: Clips) -> np.ndarray:
  """A number for each clip that depends on all of its samples."""
  return np.add.reduceat(clips.audio.astype(np.float64) * (1 + np.arange(len(clips.audio)) % 97), clips.start)


def standardize(x: Float[Array, "B T M"], lengths: Int[Array, " B"]) -> tuple[Float[Array, "B T M"], Int[Array, " B"]]:
  """Each feature of each row to mean 0, and each row to deviation 1, over its frames; 0 behind these."""
  there = (jnp.arange(x.shape[1])[None] < lengths[:, None])[..., None]
  count = jnp.maximum(lengths, 1)[:, None, None]
  x = jnp.where(there, x - jnp.sum(x, 1, keepdims=True, where=there) / count, 0)
  return x / jnp.sqrt(jnp.sum(jnp.square(x), (1, 2), keepdims=True) / (count * x.shape[2]) + 1e-5), lengths


def clip_floors(data: SpokenClips, window: int, hop: int, mels: int) -> dict[str, float]:
  """Test accuracy on single clips of the nearest neighbour of the mean log-mel frame, and of a linear classifier of the
  means of ten parts of a clip; the latter where there is more than one class to tell apart.
  """
  from sklearn.linear_model import LogisticRegression
  from sklearn.neighbors import KNeighborsClassifier
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import StandardScaler
  from threadpoolctl import threadpool_limits

  (train, label), (test, wanted) = (
    _clip_features(clips, data.rate, window, hop, mels) for clips in (data.train, data.test)
  )
  with threadpool_limits(1):
    nearest = KNeighborsClassifier(1).fit(train.mean(1), label).score(test.mean(1), wanted)
    figures = {"nearest_neighbour": float(nearest)}
    if len(np.unique(label)) > 1:
      linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(
        train.reshape(len(train), -1), label
      )
      figures["linear_classifier"] = float(linear.score(test.reshape(len(test), -1), wanted))
  return figures


def _clip_features(clips: Clips, rate: int, window: int, hop: int, mels: int):
  """(means of the log-mel frames in ten parts of each clip (N, 10, M), labels)."""
  size = int(max(clips.length.max(), window))
  frames = jax.jit(lambda audio, lengths: log_mel(audio, lengths, rate, window, hop, mels))
  out = np.zeros((len(clips), _PARTS, mels), np.float32)
  for begin in range(0, len(clips), 128):
    rows = np.minimum(np.arange(begin, begin + 128), len(clips) - 1)
    audio = np.zeros((len(rows), size), np.float32)
    for row, i in enumerate(rows):
      audio[row, : clips.length[i]] = clips.clip(int(i))
    found, counts = map(np.asarray, frames(audio, np.maximum(clips.length[rows], window)))
    for i, one, count in zip(rows, found, counts):
      ends = np.maximum(np.linspace(0, count, _PARTS + 1).astype(int), 0)
      out[i] = [one[min(a, count - 1) : max(b, min(a, count - 1) + 1)].mean(0) for a, b in pairwise(ends)]
  return out, clips.label
