"""What is said of hidden states (B, T, D): a class of a sentence, of a pair, of each token, a span of the text."""

from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from mlnotes.attention.dot_product import NOT_SEEN
from mlnotes.sequence.losses import real_places

Pooling = Literal["first", "last", "mean", "max"]


def pool(hidden: Float[Array, "B T D"], lengths: Int[Array, " B"], how: Pooling = "mean") -> Float[Array, "B D"]:
  """One vector for each row, from its real places alone: the first, the last, their mean, the largest of each feature.

  0 for a row of length 0, but for "first". Raises ValueError for another `how`.
  """
  if how == "first":
    return hidden[:, 0]
  if how == "last":
    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], 1)[:, 0]
    return jnp.where(lengths[:, None] > 0, last, 0)
  real = real_places(lengths, hidden.shape[1])[..., None]
  if how == "mean":
    count = jnp.maximum(lengths, 1)[:, None].astype(hidden.dtype)
    return jnp.sum(jnp.where(real, hidden, 0), 1) / count
  if how == "max":
    return jnp.where(lengths[:, None] > 0, jnp.max(jnp.where(real, hidden, -jnp.inf), 1), 0)
  raise ValueError(f"how is {how!r}, expected first, last, mean or max")


class SentenceHead(nn.Module):
  """Logits of `classes` from a pooled vector; with 1 class a number, as of a reward or a similarity.

  With `tanh` a layer of as many features as there are comes before them, as BERT's pooler has it: Devlin et al. 2019,
  its authors' code. A pair that was packed into one row is a sentence here; one read as two rows goes to `PairHead`.
  """

  classes: int
  pooling: Pooling = "first"
  tanh: bool = False
  dropout: float = 0.0
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self, hidden: Float[Array, "B T D"], lengths: Int[Array, " B"], train: bool = False
  ) -> Float[Array, "B K"]:
    """In float32."""
    x = pool(hidden, lengths, self.pooling)
    if self.tanh:
      x = jnp.tanh(nn.Dense(x.shape[-1], dtype=self.dtype, name="pooler")(x))
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return nn.Dense(self.classes, dtype=self.dtype, name="logits")(x).astype(jnp.float32)


class PairHead(nn.Module):
  """Logits of a pair from the vectors u and v of its two sentences: [u; v; |u - v|; u * v]. Conneau et al. 2017.

  Without `ordered`, [|u - v|; u * v] alone, which does not know which came first.
  """

  classes: int
  pooling: Pooling = "mean"
  ordered: bool = True
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self,
    first: Float[Array, "B T D"],
    first_lengths: Int[Array, " B"],
    second: Float[Array, "B S D"],
    second_lengths: Int[Array, " B"],
  ) -> Float[Array, "B K"]:
    """In float32."""
    u, v = pool(first, first_lengths, self.pooling), pool(second, second_lengths, self.pooling)
    parts = [jnp.abs(u - v), u * v]
    x = jnp.concatenate([u, v, *parts] if self.ordered else parts, -1)
    return nn.Dense(self.classes, dtype=self.dtype, name="logits")(x).astype(jnp.float32)


class TokenHead(nn.Module):
  """Logits of a class of each token. What stands behind a row's length has them too, and no part in a loss."""

  classes: int
  dropout: float = 0.0
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, hidden: Float[Array, "B T D"], train: bool = False) -> Float[Array, "B T K"]:
    """In float32."""
    x = nn.Dropout(self.dropout, deterministic=not train)(hidden)
    return nn.Dense(self.classes, dtype=self.dtype, name="logits")(x).astype(jnp.float32)


class SpanLogits(NamedTuple):
  """Of each place, that a span begins there, that it ends there; very low behind a row's length."""

  start: Float[Array, "B T"]
  end: Float[Array, "B T"]


class SpanHead(nn.Module):
  """Where an answer begins and ends, by a vector each. Devlin et al. 2019, sec. 4.2."""

  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, hidden: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> SpanLogits:
    """In float32."""
    logits = nn.Dense(2, dtype=self.dtype, name="logits")(hidden).astype(jnp.float32)
    real = real_places(lengths, hidden.shape[1])[..., None]
    return SpanLogits(*jnp.moveaxis(jnp.where(real, logits, NOT_SEEN), -1, 0))


def span_loss(logits: SpanLogits, start: Int[Array, " B"], end: Int[Array, " B"]) -> Float[Array, " B"]:
  """The mean of -log p(start) and -log p(end), places of the first and the last token. In nats."""

  def nats(scores: Array, place: Array) -> Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(scores, -1), place[:, None], 1)[:, 0]

  return (nats(logits.start, start) + nats(logits.end, end)) / 2


def best_span(logits: SpanLogits, longest: int) -> tuple[Int[Array, " B"], Int[Array, " B"], Float[Array, " B"]]:
  """(start, end, score) of the span of 1 to `longest` tokens whose two logits sum highest; of equal ones the first.

  Raises ValueError for a longest below 1.
  """
  if longest < 1:
    raise ValueError(f"longest is {longest}, expected 1 or more")
  places = logits.start.shape[1]
  longest = min(longest, places)
  ends = jnp.pad(logits.end, ((0, 0), (0, longest - 1)), constant_values=2 * NOT_SEEN)
  shifted = jnp.stack([ends[:, i : i + places] for i in range(longest)], 2)
  scores = (logits.start[..., None] + shifted).reshape(len(ends), -1)
  best = jnp.argmax(scores, -1)
  start = best // longest
  return start, start + best % longest, jnp.max(scores, -1)
