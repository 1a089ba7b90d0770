"""The network that the flags of reading by CTC describe, and what is read from what it says."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mlnotes.attention import Transformer
from mlnotes.engine.errors import InputError
from mlnotes.sequence import FrameClassifier, RecurrentStack, ctc_greedy, ctc_prefix_beam, make_cell


def build_network(config: Any, num_classes: int) -> FrameClassifier:
  """The network of the flags, for so many labels and the blank."""
  dtype = jnp.dtype(config.precision)
  body: Any = None
  if config.cell == "transformer":
    body = Transformer(
      config.depth, config.heads, config.width, dropout=config.dropout, rotary_base=10000.0, dtype=dtype
    )
  elif config.cell != "none":
    body = RecurrentStack(build_cell(config), config.depth, config.bidirectional, config.dropout)
  return FrameClassifier(
    num_classes + 1, config.width, body, time_strides=config.time_strides, dropout=config.dropout, dtype=dtype
  )


def build_cell(config: Any) -> Any:
  """The recurrent cell of the flags. Raises InputError for what it refuses."""
  try:
    return make_cell(config.cell, config.width, dtype=jnp.dtype(config.precision))
  except ValueError as error:
    raise InputError(f"--cell={config.cell} with --width={config.width}: {error}.") from error


class Model(NamedTuple):
  """A batch of columns (B, W, H), ink in [0, 1], or of samples (B, S) in [-1, 1], with lengths, to logits (B, T, K + 1)
  and their lengths.

  Class 0 is the blank. `read` gives the labels themselves, which count from 1, and how many there are; label k is
  `class_names[k - 1]`, and `read_names` gives these.
  """

  network: FrameClassifier
  params: Any
  front: Any
  beam: int = 0
  class_names: tuple[str, ...] = ()

  def __call__(self, x: Float[Array, "B ..."], lengths: Int[Array, " B"]) -> tuple[Array, Array]:
    return _logits(self.network, self.front, self.params, x, lengths)

  def frames(self, x: Float[Array, "B ..."], lengths: Int[Array, " B"]) -> tuple[Array, Array]:
    """What the network sees, (B, T, M), and how many frames there are."""
    return jax.jit(self.front)(x, lengths)

  def read(self, x: Float[Array, "B ..."], lengths: Int[Array, " B"]) -> tuple[Array, Array]:
    return decode(*self(x, lengths), self.beam)

  def read_names(self, x: Float[Array, "B ..."], lengths: Int[Array, " B"]) -> list[list[str]]:
    """The names of what is read in each row."""
    labels, counts = (np.asarray(each) for each in self.read(x, lengths))
    return [[self.class_names[label - 1] for label in row[:count]] for row, count in zip(labels, counts)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logits(network, front, params, x, lengths):
  return network.apply({"params": params}, *front(x, lengths))


def decode(logits: Float[Array, "B T K"], lengths: Int[Array, " B"], beam: int) -> tuple[Array, Array]:
  """(labels (B, T), how many): of the likeliest path, or by a beam of prefixes."""
  if not beam:
    return ctc_greedy(logits, lengths)
  found = ctc_prefix_beam(logits, lengths, beam)
  return found.labels[:, 0], found.lengths[:, 0]
