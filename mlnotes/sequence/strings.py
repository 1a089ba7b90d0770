"""Strings drawn on the device from labelled parts: a line of images side by side, clips of sound one after the other.

Each function draws one example, {"input": ..., "length": .., "labels": (L,), "label_length": ..}, of `shortest` to
`longest` = L parts; labels count from 1, for 0 is the blank, which fills them up. Batches are `vmap`s.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Num, Real


def line_width(image_width: int, longest: int, overlap: tuple[int, int]) -> int:
  """Columns of the widest line."""
  return image_width + (longest - 1) * (image_width - overlap[0])


def draw_line(
  key: Key[Array, ""],
  images: Float[Array, "N H W"],
  labels: Int[Array, " N"],
  shortest: int,
  longest: int,
  overlap: tuple[int, int] = (-1, 2),
  augment: Callable[[Key[Array, ""], Float[Array, "H W"]], Float[Array, "H W"]] | None = None,
) -> dict[str, Array]:
  """A line of images, of which each begins some columns before the last one's end: "input" is (columns, H).

  overlap: the least and the most columns that neighbours share; below 0 are columns left empty between them. Where
  they overlap the brighter pixel shows. `augment` is applied to each image by itself. Columns behind "length" are 0.
  """
  of_count, of_images, of_overlap, of_change = jax.random.split(key, 4)
  width = images.shape[2]
  count, there = _draw_count(of_count, shortest, longest)
  index = jax.random.randint(of_images, (longest,), 0, len(images))
  parts = images[index]
  if augment is not None:
    parts = jax.vmap(augment)(jax.random.split(of_change, longest), parts)
  shared = jax.random.randint(of_overlap, (longest,), overlap[0], overlap[1] + 1)
  start = jnp.cumsum(jnp.where(jnp.arange(longest) == 0, 0, width - shared))
  columns = line_width(width, longest, overlap)
  place = jnp.arange(columns)[None] - start[:, None]
  inside = (place >= 0) & (place < width) & there[:, None]
  shown = jnp.take_along_axis(parts, jnp.clip(place, 0, width - 1)[:, None], 2)
  line = jnp.max(jnp.where(inside[:, None], shown, 0), 0)
  length = jnp.max(jnp.where(there, start + width, 0))
  return {"input": line.T, "length": length, **_as_labels(labels[index], there, count)}


def draw_utterance(
  key: Key[Array, ""],
  clips: Any,
  shortest: int,
  longest: int,
  longest_clip: int,
  pause: int = 0,
  stretch: float = 0.0,
) -> dict[str, Array]:
  """Clips of one speaker one after the other: "input" is (samples,), in [-1, 1].

  clips: a `mlnotes.data.clips.Clips`. pause: up to so many samples of silence between two. stretch: the string is
  played 1 - stretch to 1 + stretch times as fast, pitch and all (speed perturbation, Ko et al. 2015), by linear
  interpolation. `longest_clip` is in samples.
  """
  of_count, of_first, of_others, of_pause, of_speed = jax.random.split(key, 5)
  count, there = _draw_count(of_count, shortest, longest)
  group = clips.group[jax.random.randint(of_first, (), 0, clips.group.shape[0])]
  index = jax.random.randint(of_others, (longest,), clips.first[group], clips.first[group + 1])
  speed = jax.random.uniform(of_speed, (), minval=1 - stretch, maxval=1 + stretch)
  lengths = jnp.where(there, jnp.floor((clips.length[index] - 1) / speed).astype(jnp.int32) + 1, 0)
  gaps = jax.random.randint(of_pause, (longest,), 0, pause + 1) * (there & (jnp.arange(longest) > 0))
  start = jnp.cumsum(lengths + gaps) - lengths
  length = jnp.sum(lengths + gaps)
  place = jnp.arange(utterance_samples(longest, longest_clip, pause, stretch))
  part = jnp.searchsorted(start, place, side="right", method="compare_all") - 1
  part = jnp.maximum(part, 0)
  offset = place - start[part]
  inside = (offset >= 0) & (offset < lengths[part])
  return {
    "input": jnp.where(inside, _play(clips, index[part], jnp.where(inside, offset, 0) * speed), 0),
    "length": length,
    **_as_labels(clips.label[index], there, count),
  }


def utterance_samples(longest: int, longest_clip: int, pause: int, stretch: float) -> int:
  """Samples of the longest string."""
  return longest * (int(longest_clip / (1 - stretch)) + 1) + (longest - 1) * pause


def _play(clips: Any, index: Int[Array, " S"], offset: Real[Array, " S"]) -> Float[Array, " S"]:
  """The samples of the clips at places between whole ones."""
  before = jnp.floor(offset).astype(jnp.int32)
  last = clips.length[index] - 1
  read = lambda place: _as_unit(clips.audio[clips.start[index] + jnp.minimum(place, last)])
  share = offset - before
  return (1 - share) * read(before) + share * read(before + 1)


def _as_unit(samples: Num[Array, " S"]) -> Float[Array, " S"]:
  return samples.astype(jnp.float32) / 2**15 if samples.dtype == jnp.int16 else samples


def _draw_count(key: Key[Array, ""], shortest: int, longest: int) -> tuple[Int[Array, ""], Bool[Array, " L"]]:
  count = jax.random.randint(key, (), shortest, longest + 1)
  return count, jnp.arange(longest) < count


def _as_labels(label: Int[Array, " L"], there: Bool[Array, " L"], count: Int[Array, ""]) -> dict[str, Array]:
  return {"labels": jnp.where(there, label + 1, 0), "label_length": count}
