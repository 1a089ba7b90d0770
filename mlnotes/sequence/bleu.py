"""BLEU of token ids, compiled and batched: rewards of sequences that are drawn while a model trains.

Of texts that are to be compared with published figures use sacrebleu, whose tokens are everybody's.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def count_ngrams(
  hypothesis: Int[Array, "B T"],
  length: Int[Array, " B"],
  reference: Int[Array, "B R"],
  reference_length: Int[Array, " B"],
  order: int = 4,
) -> tuple[Int[Array, "B N"], Int[Array, "B N"]]:
  """(matches, possible) of 1- to `order`-grams: a hypothesis' n-grams that the reference has, each at most as often.

  What stands behind the lengths counts for nothing. Papineni et al. 2002, sec. 2.1.1. Memory grows with T (T + R).
  """

  def of_pair(hypothesis, length, reference, reference_length):
    starts, places = jnp.arange(hypothesis.shape[0]), jnp.arange(reference.shape[0])
    among = jnp.ones((starts.size, starts.size), bool)
    across = jnp.ones((starts.size, places.size), bool)
    matches, possible = [], []
    for n in range(order):
      ahead, behind = jnp.roll(hypothesis, -n), jnp.roll(reference, -n)
      among &= ahead[:, None] == ahead[None, :]
      across &= ahead[:, None] == behind[None, :]
      whole = starts + n < length
      there = places + n < reference_length
      # An n-gram matches if it stood fewer times before it than it stands in the reference.
      earlier = jnp.sum(among & whole[None] & (starts[None] < starts[:, None]), 1)
      known = jnp.sum(across & there[None], 1)
      matches.append(jnp.sum(whole & (earlier < known)))
      possible.append(jnp.sum(whole))
    return jnp.stack(matches), jnp.stack(possible)

  return jax.vmap(of_pair)(hypothesis, length, reference, reference_length)


def bleu_of_counts(
  matches: Int[Array, "*B N"],
  possible: Int[Array, "*B N"],
  length: Int[Array, "*B"],
  reference_length: Int[Array, "*B"],
  smoothing: float = 0.0,
) -> Float[Array, "*B"]:
  """min(1, e^(1 - r / c)) (prod_n p_n)^(1 / N) on [0, 1]. Papineni et al. 2002, sec. 2.3.

  Counts of several sentences are summed before: the figure of a corpus. `smoothing` is added to both counts of every
  order above the first, 1 for single sentences (Lin & Och 2004, sec. 4); 0 where a count is 0 without it.
  """
  extra = smoothing * (jnp.arange(matches.shape[-1]) > 0).astype(jnp.float32)
  extra = jnp.broadcast_to(extra, matches.shape)
  top, bottom = matches + extra, possible + extra
  some = (top > 0) & (bottom > 0)
  logs = jnp.log(jnp.where(some, top, 1) / jnp.where(bottom > 0, bottom, 1))
  precision = jnp.where(jnp.all(some, -1), jnp.exp(jnp.mean(logs, -1)), 0)
  ratio = reference_length / jnp.maximum(length, 1)
  return jnp.where(length > 0, precision * jnp.exp(jnp.minimum(1 - ratio, 0)), 0)


def sentence_bleu(
  hypothesis: Int[Array, "B T"],
  length: Int[Array, " B"],
  reference: Int[Array, "B R"],
  reference_length: Int[Array, " B"],
  order: int = 4,
) -> Float[Array, " B"]:
  """Of each sentence, smoothed by 1. On [0, 1]."""
  counts = count_ngrams(hypothesis, length, reference, reference_length, order)
  return bleu_of_counts(*counts, length, reference_length, 1.0)
