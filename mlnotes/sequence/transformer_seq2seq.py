"""The Transformer from sequence to sequence, with a cache for decoding. Vaswani et al. 2017."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from mlnotes.attention import Cache, Mask, Transformer, masked_softmax, sinusoidal_positions
from mlnotes.attention.transformer import Order
from mlnotes.sequence.decoding import Decoder
from mlnotes.sequence.losses import real_places
from mlnotes.sequence.seq2seq import Scored, forbid, mix_copied


class TransformerSeq2Seq(nn.Module):
  """Encoder and decoder with the interface of `RecurrentSeq2Seq`.

  One embedding of both sides and of the softmax, times sqrt(width), sines added (sec. 3.4 and 3.5). `order` "post" is
  the paper's, "pre" needs no warm-up. With `copy` one more head over the source points at what is copied: See et al.
  2017, eq. 8 and 9, its weights are then the attention that `score` gives. Without it that is the mean over the heads
  of the last layer.

  `never` are ids that are no target. Raises ValueError where `heads` does not divide `width`, which is even.
  """

  vocabulary: int
  width: int = 64
  depth: int = 2
  heads: int = 4
  hidden: int | None = None
  order: Order = "pre"
  copy: bool = False
  dropout: float = 0.0
  never: tuple[int, ...] = ()
  dtype: DTypeLike | None = None

  def __post_init__(self):
    if self.width % self.heads or self.width % 2:
      raise ValueError(f"heads is {self.heads}, width {self.width}: expected a divisor of an even number")
    super().__post_init__()

  def setup(self):
    init = nn.initializers.normal(self.width**-0.5)
    self.embed = nn.Embed(self.vocabulary, self.width, embedding_init=init, dtype=self.dtype)
    shared = dict(
      depth=self.depth, heads=self.heads, width=self.width, hidden=self.hidden, order=self.order, activation="relu",
      dropout=self.dropout, dtype=self.dtype,
    )  # fmt: skip
    self.encoder = Transformer(**shared)
    self.decoder = Transformer(**shared, cross=True)
    self.drop = nn.Dropout(self.dropout)
    if self.copy:
      self.pointer_query, self.pointer_key = (nn.Dense(self.width, dtype=self.dtype) for _ in range(2))
      self.gate = nn.Dense(1, dtype=self.dtype)

  def encode(self, source: Int[Array, "B S"], lengths: Int[Array, " B"], train: bool = False) -> Float[Array, "B S D"]:
    return self.encoder(self._embed(source, 0, train), mask=Mask.of_self(lengths=lengths), train=train)

  def __call__(
    self,
    source: Int[Array, "B S"],
    lengths: Int[Array, " B"],
    inputs: Int[Array, "B T"],
    train: bool = False,
  ) -> Scored:
    """The log-probabilities of what follows each of `inputs`, START and the target."""
    memory = self.encode(source, lengths, train)
    x = self._embed(inputs, 0, train)
    x = self.decoder(x, memory, Mask.of_self(causal=True), Mask(key_lengths=lengths), train=train)
    found, attention = self._log_probability(x, memory, source, real_places(lengths, source.shape[1]))
    return Scored(found, attention, inputs)

  def step(
    self,
    memory: Float[Array, "B S D"],
    source: Int[Array, "B S"],
    real: Bool[Array, "B S"],
    caches: tuple[Cache, ...],
    token: Int[Array, " B"],
  ) -> tuple[Float[Array, "B V"], tuple[Cache, ...], Float[Array, "B S"] | None]:
    """(log-probabilities of the next token, caches, attention where copying has one)."""
    x = self._embed(token[:, None], caches[0].length, False)
    lengths = jnp.sum(real, 1)
    x, caches = self.decoder(x, memory, Mask(causal=True), Mask(key_lengths=lengths), cache=caches)
    found, attention = self._log_probability(x, memory, source, real)
    return found[:, 0], caches, None if attention is None else attention[:, 0]

  def _embed(self, tokens: Int[Array, "B T"], first: Any, train: bool) -> Float[Array, "B T D"]:
    x = self.embed(tokens) * self.width**0.5
    places = sinusoidal_positions((first + jnp.arange(tokens.shape[1]))[None], self.width)
    return self.drop(x + places.astype(x.dtype), deterministic=not train)

  def _log_probability(self, x, memory, source, real) -> tuple[Array, Array | None]:
    found = forbid(self.embed.attend(x), self.never)
    if not self.copy:
      return found, None
    scores = jnp.einsum("btd,bsd->bts", self.pointer_query(x), self.pointer_key(memory)) / self.width**0.5
    attention = masked_softmax(scores, jnp.broadcast_to(real[:, None], scores.shape))
    return mix_copied(found, self.gate(x)[..., 0], attention, source), attention

  @nn.nowrap
  def score(
    self, variables: Any, source: Array, lengths: Array, inputs: Array, attention: bool = False, **more: Any
  ) -> Scored:
    """`__call__` from variables; with `attention` also what the last layer's heads looked at, in their mean."""
    rngs = more.pop("rngs", None)
    if not attention or self.copy:
      return self.apply(variables, source, lengths, inputs, rngs=rngs, **more)
    scored, found = self.apply(variables, source, lengths, inputs, rngs=rngs, mutable=["weights"], **more)
    return scored._replace(attention=self._of_last_layer(found))

  @nn.nowrap
  def _of_last_layer(self, found: Any) -> Float[Array, "B T S"]:
    (weights,) = found["weights"]["decoder"][f"block{self.depth - 1}"]["cross_attention"]["weights"]
    return jnp.mean(weights.astype(jnp.float32), 1)

  @nn.nowrap
  def make_decoder(
    self, variables: Any, source: Int[Array, "B S"], lengths: Int[Array, " B"], room: int, attention: bool = False
  ) -> Decoder:
    """For `mlnotes.sequence.decoding`, of at most `room` tokens; `attention` for a penalty of coverage."""
    memory = self.apply(variables, source, lengths, method="encode")
    kept = (memory, source, real_places(lengths, source.shape[1]))

    def step(source, caches, token):
      if not attention or self.copy:
        return self.apply(variables, *source, caches, token, method="step")
      (found, caches, _), more = self.apply(variables, *source, caches, token, method="step", mutable=["weights"])
      return found, caches, self._of_last_layer(more)[:, 0]

    shape = Transformer(self.depth, self.heads, self.width, dtype=self.dtype)
    return Decoder(step, shape.make_cache(source.shape[0], room), kept, lengths)
