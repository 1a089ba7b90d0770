"""Connectionist temporal classification: labels without their places in time (notes: CTC).

A path gives every frame a class, K labels or the blank; repeats are merged, then blanks dropped, and what is left are
the labels. The loss sums over all paths that give the labels; decoding looks for the likeliest labels.

Graves et al. 2006.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int

# Stands for log(0), with room for sums over frames in float32. optax's own -1e5 is more than some true paths have.
_LOG_ZERO = -1e30


class CtcLoss(NamedTuple):
  """losses: (B,) in nats, 0 or more; 0 where nothing is feasible. feasible: (B,) whether any path gives the labels."""

  losses: Float[Array, " B"]
  feasible: Bool[Array, " B"]


class Prefixes(NamedTuple):
  """The beam of each row, the likeliest first.

  labels: (B, W, L), the blank behind their ends. lengths: (B, W), -1 where there are fewer prefixes than W.
  scores: (B, W), log-probability of the paths that were followed, of the labels as a whole; -inf where there is none.
  """

  labels: Int[Array, "B W L"]
  lengths: Int[Array, "B W"]
  scores: Float[Array, "B W"]


class Alignment(NamedTuple):
  """path: (B, T), the class of each frame, the blank behind the last. log_probability: (B,), -inf: there is no path."""

  path: Int[Array, "B T"]
  log_probability: Float[Array, " B"]


def ctc_feasible(
  lengths: Int[Array, " B"],
  labels: Int[Array, "B L"],
  label_lengths: Int[Array, " B"],
  num_classes: int,
  blank: int = 0,
) -> Bool[Array, " B"]:
  """Whether any path of `lengths` frames gives the labels.

  It takes a frame for each label and one for the blank between equal neighbours; a label that is the blank, or none
  of 0 ... num_classes - 1, has none.
  """
  there = jnp.arange(labels.shape[1])[None] < label_lengths[:, None]
  repeats = jnp.sum((labels[:, 1:] == labels[:, :-1]) & there[:, 1:], 1)
  known = (labels >= 0) & (labels < num_classes) & (labels != blank)
  return (lengths >= label_lengths + repeats) & jnp.all(known | ~there, 1)


def ctc_loss(
  logits: Float[Array, "B T K"],
  lengths: Int[Array, " B"] | None,
  labels: Int[Array, "B L"],
  label_lengths: Int[Array, " B"] | None,
  blank: int = 0,
) -> CtcLoss:
  """-log p(labels), each row by itself; K counts the blank, and None means as long as the array: what pads a label
  is a label then.

    p(l | x) = sum over paths pi with B(pi) = l of prod_t y(pi_t, t)        Graves et al. 2006, eq. 2, 3

  Rows that no path can give, as `ctc_feasible` says (too few frames; a label that is the blank or none of the K), have
  loss 0 and gradient 0, and are False in `feasible`: drop them from the mean, and report their index. inf where all
  paths have probability 0, such as by logits of -inf. What stands behind a row's lengths counts for nothing, NaN too.
  Computed by optax in float32 or better.
  """
  lengths, label_lengths = _all_unless(lengths, logits), _all_unless(label_lengths, labels)
  feasible = ctc_feasible(lengths, labels, label_lengths, logits.shape[-1], blank)
  past_end = jnp.arange(logits.shape[1])[None] >= lengths[:, None]
  past_label = jnp.arange(labels.shape[1])[None] >= label_lengths[:, None]
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  unused = past_end | ~feasible[:, None]
  logits = jnp.maximum(jnp.where(unused[..., None], 0, logits), _LOG_ZERO)
  labels = jnp.where(past_label | ~feasible[:, None], 0, labels)
  # One column more of padding: optax takes neither zero frames nor zero labels.
  more = lambda x, value: jnp.pad(x, ((0, 0), (0, 1)), constant_values=value)
  with jax.default_matmul_precision("highest"):  # optax picks log-probabilities by a product with one-hot rows
    losses = optax.ctc_loss(
      jnp.pad(logits, ((0, 0), (0, 1), (0, 0))), more(past_end.astype(logits.dtype), 1),
      more(labels, 0), more(past_label.astype(logits.dtype), 1), blank_id=blank, log_epsilon=_LOG_ZERO,
    )  # fmt: skip
  # Rounding may bring a sure alignment below zero: cut there, with the gradient as it is.
  losses = losses + lax.stop_gradient(jnp.maximum(losses, 0) - losses)
  losses = jnp.where(losses > -_LOG_ZERO / 10, jnp.inf, losses)
  return CtcLoss(jnp.where(feasible, losses, 0), feasible)


def ctc_collapse(
  path: Int[Array, "B T"], lengths: Int[Array, " B"] | None = None, blank: int = 0
) -> tuple[Int[Array, "B T"], Int[Array, " B"]]:
  """The labels of paths and how many there are: repeats are merged, then blanks dropped. Behind them the blank."""
  lengths = _all_unless(lengths, path)
  before = jnp.pad(path, ((0, 0), (1, 0)), constant_values=blank)[:, :-1]
  keep = (path != before) & (path != blank) & (jnp.arange(path.shape[1])[None] < lengths[:, None])
  place = jnp.where(keep, jnp.cumsum(keep, 1) - 1, path.shape[1])
  put = lambda place, path: jnp.full_like(path, blank).at[place].set(path, mode="drop")
  return jax.vmap(put)(place, path), jnp.sum(keep, 1).astype(jnp.int32)


def ctc_greedy(
  logits: Float[Array, "B T K"], lengths: Int[Array, " B"] | None = None, blank: int = 0
) -> tuple[Int[Array, "B T"], Int[Array, " B"]]:
  """The labels of the likeliest path and how many there are (best path decoding, Graves et al. 2006, eq. 4)."""
  return ctc_collapse(jnp.argmax(logits, -1).astype(jnp.int32), lengths, blank)


# -- prefix search -----------------------------------------------------------------------------------------------------


class _Beam(NamedTuple):
  """W prefixes of one row; log-probabilities of the paths to each that end in the blank, and in its last label.

  Prefixes are distinct; one with length -1 is none.
  """

  labels: Int[Array, "W L"]
  lengths: Int[Array, " W"]
  p_blank: Float[Array, " W"]
  p_label: Float[Array, " W"]


def ctc_prefix_beam(
  logits: Float[Array, "B T K"],
  lengths: Int[Array, " B"] | None = None,
  width: int = 8,
  blank: int = 0,
  max_labels: int | None = None,
) -> Prefixes:
  """The likeliest labels by a beam over prefixes, whose paths through the blank and through a label are kept apart.

  After each frame the `width` likeliest prefixes stay, of at most `max_labels` labels (None: as many as frames). With
  a beam as wide as there are prefixes it is exact. Hannun et al. 2014 (First-pass large vocabulary continuous speech
  recognition), algorithm 1, without a language model. Raises ValueError for a width below 1.
  """
  if width < 1:
    raise ValueError(f"width is {width}, expected 1 or more")
  size = logits.shape[1] if max_labels is None else max_labels
  log_p = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
  search = functools.partial(_search, width=width, size=size, blank=blank)
  beam = jax.vmap(search)(log_p, _all_unless(lengths, logits))
  return Prefixes(beam.labels, beam.lengths, jnp.logaddexp(beam.p_blank, beam.p_label))


def _search(log_p, length, width: int, size: int, blank: int) -> _Beam:
  nothing = jnp.full(width, -jnp.inf, log_p.dtype)
  start = _Beam(
    jnp.full((width, size), blank, jnp.int32),
    jnp.full(width, -1, jnp.int32).at[0].set(0),
    nothing.at[0].set(0),
    nothing,
  )

  def follow(beam, frame):
    y, there = frame
    after = _extend(beam, y, blank)
    return jax.tree.map(lambda new, old: jnp.where(there, new, old), after, beam), None

  return lax.scan(follow, start, (log_p, jnp.arange(len(log_p)) < length))[0]


def _extend(beam: _Beam, y: Float[Array, " K"], blank: int) -> _Beam:
  """The beam one frame later, whose log-probabilities are `y`."""
  width, size = beam.labels.shape
  rows = jnp.arange(width)
  total = jnp.logaddexp(beam.p_blank, beam.p_label)
  last = jnp.where(beam.lengths > 0, beam.labels[rows, jnp.maximum(beam.lengths - 1, 0)], blank)
  # Each stays as it is, by the blank or by its last label once more; or gets a label more, an equal one by blanks only.
  stay_blank, stay_label = total + y[blank], jnp.where(last == blank, -jnp.inf, beam.p_label + y[last])
  is_last = jnp.arange(len(y))[None] == last[:, None]
  longer = jnp.where(is_last, beam.p_blank[:, None], total[:, None]) + y[None]
  longer = longer.at[:, blank].set(-jnp.inf)
  longer = jnp.where((beam.lengths < size)[:, None], longer, -jnp.inf)
  # A longer one that is in the beam already joins it.
  alike = (beam.labels[:, None] == beam.labels[None]) | (jnp.arange(size)[None, None] >= beam.lengths[:, None, None])
  joins = jnp.all(alike, -1) & (beam.lengths[:, None] + 1 == beam.lengths[None]) & (beam.lengths[:, None] >= 0)
  parent = jnp.argmax(joins, 0)
  joined = jnp.any(joins, 0)
  stay_label = jnp.where(joined, jnp.logaddexp(stay_label, longer[parent, last]), stay_label)
  gone = jnp.zeros(longer.shape, bool).at[jnp.where(joined, parent, width), last].set(True, mode="drop")
  longer = jnp.where(gone, -jnp.inf, longer)

  scores, best = lax.top_k(jnp.concatenate([jnp.logaddexp(stay_blank, stay_label), longer.reshape(-1)]), width)
  grown = best >= width
  source, label = jnp.where(grown, (best - width) // len(y), best), (best - width) % len(y)
  lengths = jnp.where(scores > -jnp.inf, beam.lengths[source] + grown, -1)
  labels = beam.labels[source].at[rows, jnp.where(grown, lengths - 1, size)].set(label.astype(jnp.int32), mode="drop")
  p_blank = jnp.where(grown, -jnp.inf, stay_blank[source])
  p_label = jnp.where(grown, scores, stay_label[source])
  labels = jnp.where((lengths >= 0)[:, None], labels, blank)
  return _Beam(labels, lengths, p_blank, p_label)


# -- alignment ---------------------------------------------------------------------------------------------------------


def ctc_align(
  logits: Float[Array, "B T K"],
  lengths: Int[Array, " B"] | None,
  labels: Int[Array, "B L"],
  label_lengths: Int[Array, " B"] | None,
  blank: int = 0,
) -> Alignment:
  """The likeliest of the paths that give the labels (Viterbi over the labels with blanks between them).

  Rows that are not feasible have a path of blanks.
  """
  lengths, label_lengths = _all_unless(lengths, logits), _all_unless(label_lengths, labels)
  feasible = ctc_feasible(lengths, labels, label_lengths, logits.shape[-1], blank)
  labels = jnp.where(feasible[:, None], labels, blank)
  log_p = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
  path, score = jax.vmap(functools.partial(_align, blank=blank))(log_p, lengths, labels, label_lengths)
  return Alignment(jnp.where(feasible[:, None], path, blank), jnp.where(feasible, score, -jnp.inf))


def _align(log_p, length, labels, label_length, blank: int):
  states = jnp.full(2 * len(labels) + 1, blank, jnp.int32).at[1::2].set(labels)
  # From a label to the next without a blank, where they differ.
  skips = (jnp.arange(len(states)) >= 3) & (states != blank) & (states != jnp.roll(states, 2))
  there = jnp.arange(len(log_p)) < length

  def forward(score, frame):
    y, there = frame
    shifted = lambda n: jnp.pad(score, (n, 0), constant_values=-jnp.inf)[: len(score)]
    ways = jnp.stack([score, shifted(1), jnp.where(skips, shifted(2), -jnp.inf)])
    step = jnp.where(there, jnp.argmax(ways, 0), 0)
    return jnp.where(there, jnp.max(ways, 0) + y[states], score), step

  # Before the first frame: at the blank in front of all labels.
  start = jnp.full(len(states), -jnp.inf, log_p.dtype).at[0].set(0)
  score, steps = lax.scan(forward, start, (log_p, there))
  end = 2 * label_length
  before = jnp.maximum(end - 1, 0)
  end = jnp.where(score[before] > score[end], before, end)
  _, visited = lax.scan(lambda state, step: (state - step[state], state), end, steps, reverse=True)
  return jnp.where(there, states[visited], blank), score[end]


def _all_unless(lengths, array) -> Int[Array, " B"]:
  return jnp.full(array.shape[0], array.shape[1], jnp.int32) if lengths is None else lengths
