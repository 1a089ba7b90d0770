"""Who may see whom, in words that every kind of attention understands."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int


class Tokens(NamedTuple):
  """What a mask knows of each query or of each key. Sorted, cut or gathered like the arrays that they belong to.

  Attributes:
    position: (B, T) where it stands, what "window" and biases go by.
    segment: (B, T) which sequence it belongs to.
    real: (B, T) False for padding.
    order: (B, T) what "causal" goes by: the position, where the mask has no order of its own.
  """

  position: Int[Array, "B *T"]
  segment: Int[Array, "B *T"]
  real: Bool[Array, "B *T"]
  order: Int[Array, "B *T"]


# Added to the scaled scores: an array that broadcasts to (B, N, T, S), or a function of the positions of queries and
# keys, (B, T) and (B, S), that gives one. Of a function no array larger than a block is made by the kinds in blocks.
Bias: TypeAlias = Float[Array, "#B #N #T #S"] | Callable[[Array, Array], Array]


class Words(NamedTuple):
  """What a mask says without its arrays, for kinds that take the tokens apart: known when a program is made."""

  causal: bool
  window: int | None
  segmented: bool

  def pairs(self, queries: Tokens, keys: Tokens) -> Bool[Array, "... T S"]:
    """Which of the keys (..., S) each of the queries (..., T) sees."""
    ask, offer = Tokens(*(x[..., :, None] for x in queries)), Tokens(*(x[..., None, :] for x in keys))
    seen = ask.real & offer.real
    if self.segmented:
      seen &= ask.segment == offer.segment
    if self.causal:
      seen &= offer.order <= ask.order
    if self.window is not None:
      seen &= jnp.abs(ask.position - offer.position) < self.window
    return seen


@struct.dataclass
class Mask:
  """Which keys a query sees: those that all of these words allow. `Mask()` allows everything.

  A query that sees no key at all, and one that is padding, gets 0, with a gradient of 0.

  Attributes:
    causal: only keys at the query's position or before it; where there is an order, that in the place of the position.
      Static.
    window: only keys less than `window` positions away, the query's own counted: the last `window` keys of a causal
      mask, `window - 1` on each side otherwise. Static.
    key_lengths: (B,) how many of the keys are real, from the first on; None: all.
    query_lengths: (B,) likewise of the queries.
    key_segments: (B, S) with `query_segments`, (B, T): only keys of the query's segment, for packed sequences.
    key_positions: (S,) or (B, S); None: 0, 1, ...
    query_positions: (T,) or (B, T); None: the last T positions of 0 ... S - 1, so that queries which go on behind
      cached keys see them (bottom-right, as flash-attn has it; jax.nn and torch align 0 with 0).
    key_order: (S,) or (B, S) with `query_order`, (T,) or (B, T): when a token is read, for models that do not read from
      the left to the right; None: the positions. Tokens of one number see each other. Kinds that go by the places in
      the arrays refuse it.

  Raises ValueError where `window` is below 1, one of the two segments or orders is missing, or an order is given
  without `causal`.
  """

  causal: bool = struct.field(pytree_node=False, default=False)
  window: int | None = struct.field(pytree_node=False, default=None)
  key_lengths: Int[Array, " B"] | None = None
  query_lengths: Int[Array, " B"] | None = None
  key_segments: Int[Array, "B S"] | None = None
  query_segments: Int[Array, "B T"] | None = None
  key_positions: Int[Array, "*B S"] | None = None
  query_positions: Int[Array, "*B T"] | None = None
  key_order: Int[Array, "*B S"] | None = None
  query_order: Int[Array, "*B T"] | None = None

  def __post_init__(self):
    if self.window is not None and self.window < 1:
      raise ValueError(f"window is {self.window}, expected 1 or more: the query's own position counts")
    if (self.key_segments is None) != (self.query_segments is None):
      raise ValueError("segments of queries or of keys are missing: a mask has both or none")
    if (self.key_order is None) != (self.query_order is None):
      raise ValueError("the order of queries or of keys is missing: a mask has both or none")
    if self.key_order is not None and not self.causal:
      raise ValueError("an order is what a causal mask goes by: expected causal=True")

  @classmethod
  def of_self(
    cls,
    *,
    causal: bool = False,
    window: int | None = None,
    lengths: Int[Array, " B"] | None = None,
    segments: Int[Array, "B T"] | None = None,
    positions: Int[Array, "*B T"] | None = None,
    order: Int[Array, "*B T"] | None = None,
  ) -> "Mask":
    """The mask of a sequence that attends to itself."""
    return cls(causal, window, lengths, lengths, segments, segments, positions, positions, order, order)

  def tokens(self, batch: int, queries: int, keys: int) -> tuple[Tokens, Tokens]:
    """(of the queries, of the keys). Raises ValueError where an array of the mask has another length or batch."""
    last = jnp.arange(queries) + (keys - queries)
    of_queries = (self.query_positions, self.query_segments, self.query_lengths, self.query_order)
    of_keys = (self.key_positions, self.key_segments, self.key_lengths, self.key_order)
    return (
      _tokens("query", batch, queries, *of_queries, last),
      _tokens("key", batch, keys, *of_keys, jnp.arange(keys)),
    )

  def pairs(self, queries: Tokens, keys: Tokens) -> Bool[Array, "... T S"]:
    """Which of the keys (..., S) each of the queries (..., T) sees."""
    return self.words.pairs(queries, keys)

  def matrix(self, batch: int, queries: int, keys: int) -> Bool[Array, "B T S"]:
    """The whole mask, in memory of the product of both lengths."""
    return self.pairs(*self.tokens(batch, queries, keys))

  @property
  def words(self) -> Words:
    """It without its arrays."""
    return Words(self.causal, self.window, self.key_segments is not None)

  @property
  def is_trivial(self) -> bool:
    """Whether everything is seen, whatever the positions."""
    return not self.causal and self.window is None and self._sees_all_tokens

  @property
  def is_plain_causal(self) -> bool:
    """Whether a query sees the keys up to its own place in the array, and nothing else is said."""
    return self.causal and self.window is None and self._sees_all_tokens and self.is_in_order

  @property
  def is_in_order(self) -> bool:
    """Whether neither positions nor an order are given, so that both are the places in the arrays."""
    return self.key_positions is None and self.query_positions is None and not self.has_order

  @property
  def has_order(self) -> bool:
    """Whether "causal" goes by an order of its own, not by the positions."""
    return self.key_order is not None

  @property
  def _sees_all_tokens(self) -> bool:
    return all(x is None for x in (self.key_lengths, self.query_lengths, self.key_segments))


EVERYTHING = Mask()


def _tokens(side: str, batch: int, length: int, position, segment, lengths, order, default) -> Tokens:
  def fit(name: str, x: Array | None, fill: Array) -> Array:
    if x is None:
      return jnp.broadcast_to(fill, (batch, length))
    if x.shape not in ((length,), (1, length), (batch, length)):
      raise ValueError(f"{side}_{name} of the mask has shape {x.shape}, expected ({batch}, {length})")
    return jnp.broadcast_to(x, (batch, length))

  if lengths is not None and lengths.shape != (batch,):
    raise ValueError(f"{side}_lengths of the mask has shape {lengths.shape}, expected ({batch},)")
  place = jnp.arange(length)[None, :]
  real = jnp.ones((batch, length), bool) if lengths is None else place < lengths[:, None]
  zeros = jnp.zeros((1, length), jnp.int32)
  position = fit("positions", position, default[None, :])
  return Tokens(position, fit("segments", segment, zeros), real, fit("order", order, position))


def bias_matrix(bias: Bias | None, queries: Tokens, keys: Tokens) -> Float[Array, "#B #N T S"] | None:
  """The bias as an array."""
  return bias(queries.position, keys.position) if callable(bias) else bias
