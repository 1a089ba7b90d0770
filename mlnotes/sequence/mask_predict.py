"""All tokens at once, and again those that were least sure: conditional masked language model, Mask-Predict.

Ghazvininejad et al. 2019. How many tokens there are is predicted first.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from mlnotes.attention import Mask, Transformer, sinusoidal_positions
from mlnotes.sequence.decoding import Decoded
from mlnotes.sequence.losses import real_places
from mlnotes.sequence.seq2seq import forbid


class MaskedScored(NamedTuple):
  """Log-probabilities of the token at each place (B, N, V) and of how many there are (B, M + 1), 0 to M."""

  log_probability: Float[Array, "B N V"]
  length: Float[Array, "B M"]


class MaskedSeq2Seq(nn.Module):
  """A Transformer whose decoder sees all places, some of them masked: Ghazvininejad et al. 2019, sec. 2 and 3.

  Targets are tokens alone, without START and END; the id `vocabulary` is the mask. Their number, up to `longest`, is
  classified from the mean of the encoder's outputs (the paper: from a token of its own in the encoder).

  `never` are ids that are no target. Raises ValueError where `heads` does not divide `width`, which is even.
  """

  vocabulary: int
  longest: int
  width: int = 64
  depth: int = 2
  heads: int = 4
  hidden: int | None = None
  dropout: float = 0.0
  never: tuple[int, ...] = ()
  dtype: DTypeLike | None = None

  def __post_init__(self):
    if self.width % self.heads or self.width % 2:
      raise ValueError(f"heads is {self.heads}, width {self.width}: expected a divisor of an even number")
    super().__post_init__()

  @property
  def mask_id(self) -> int:
    return self.vocabulary

  def setup(self):
    init = nn.initializers.normal(self.width**-0.5)
    self.embed = nn.Embed(self.vocabulary + 1, self.width, embedding_init=init, dtype=self.dtype)
    shared = dict(
      depth=self.depth, heads=self.heads, width=self.width, hidden=self.hidden, activation="relu",
      dropout=self.dropout, dtype=self.dtype,
    )  # fmt: skip
    self.encoder = Transformer(**shared)
    self.decoder = Transformer(**shared, cross=True)
    self.head = nn.Dense(self.vocabulary, dtype=self.dtype)
    self.length_head = nn.Dense(self.longest + 1, dtype=self.dtype)
    self.drop = nn.Dropout(self.dropout)

  def __call__(
    self,
    source: Int[Array, "B S"],
    lengths: Int[Array, " B"],
    inputs: Int[Array, "B N"],
    target_lengths: Int[Array, " B"],
    train: bool = False,
  ) -> MaskedScored:
    """Of `inputs`, `target_lengths` of each real and some of these the mask."""
    memory, length = self.encode(source, lengths, train)
    return MaskedScored(self.predict(memory, lengths, inputs, target_lengths, train), length)

  def encode(
    self, source: Int[Array, "B S"], lengths: Int[Array, " B"], train: bool = False
  ) -> tuple[Float[Array, "B S D"], Float[Array, "B M"]]:
    """(outputs of the encoder, log-probabilities of the target's length)."""
    memory = self.encoder(self._embed(source, train), mask=Mask.of_self(lengths=lengths), train=train)
    real = real_places(lengths, source.shape[1])[..., None]
    mean = jnp.sum(jnp.where(real, memory, 0), 1) / jnp.maximum(lengths, 1)[:, None]
    return memory, jax.nn.log_softmax(self.length_head(mean).astype(jnp.float32))

  def predict(
    self,
    memory: Float[Array, "B S D"],
    lengths: Int[Array, " B"],
    inputs: Int[Array, "B N"],
    target_lengths: Int[Array, " B"],
    train: bool = False,
  ) -> Float[Array, "B N V"]:
    x = self._embed(inputs, train)
    across = Mask(key_lengths=lengths, query_lengths=target_lengths)
    x = self.decoder(x, memory, Mask.of_self(lengths=target_lengths), across, train=train)
    return forbid(self.head(x), self.never)

  def _embed(self, tokens: Int[Array, "B T"], train: bool) -> Float[Array, "B T D"]:
    x = self.embed(tokens) * self.width**0.5
    places = sinusoidal_positions(jnp.arange(tokens.shape[1])[None], self.width)
    return self.drop(x + places.astype(x.dtype), deterministic=not train)


def draw_masked(key: Key[Array, ""], lengths: Int[Array, " B"], places: int) -> Bool[Array, "B N"]:
  """Which real places are masked in training: as many as a number drawn from 1 ... length, anywhere (sec. 3.1)."""
  of_count, of_places = jax.random.split(key)
  uniform = jax.random.uniform(of_count, lengths.shape)
  count = jnp.clip(jnp.floor(uniform * lengths).astype(jnp.int32) + 1, 0, lengths)
  order = jnp.where(real_places(lengths, places), jax.random.uniform(of_places, (lengths.shape[0], places)), jnp.inf)
  return _lowest(order, count)


def refine(
  predict: Callable[[Int[Array, "B N"]], Float[Array, "B N V"]],
  lengths: Int[Array, " B"],
  places: int,
  iterations: int,
  mask_id: int,
) -> tuple[Int[Array, "B N"], Float[Array, "B N"]]:
  """(tokens, log-probability of each when it was chosen) after `iterations` calls of `predict`, 1 or more.

  First all places are masked; before call t = 1 ... T - 1 the n = floor(N (T - t) / T) that were least sure are, and
  only these change (sec. 3.2). Behind a row's length stands the mask, with log-probability 0.
  """
  real = real_places(lengths, places)

  def turn(t, carry):
    tokens, sure = carry
    count = lengths * (iterations - t) // iterations
    masked = _lowest(jnp.where(real, sure, jnp.inf), count)
    logs = predict(jnp.where(masked, mask_id, tokens))
    found, best = jnp.argmax(logs, -1).astype(jnp.int32), jnp.max(logs, -1)
    return jnp.where(masked, found, tokens), jnp.where(masked, best, sure)

  first = (jnp.full(real.shape, mask_id, jnp.int32), jnp.zeros(real.shape, jnp.float32))
  return jax.lax.fori_loop(0, iterations, turn, first)


def mask_predict(
  model: MaskedSeq2Seq,
  variables: Any,
  source: Int[Array, "B S"],
  lengths: Int[Array, " B"],
  end: int,
  pad: int,
  iterations: int = 4,
  length_beam: int = 3,
  length_weight: float = 1.0,
) -> Decoded:
  """(B, longest + 1) tokens with END, by refining the `length_beam` likeliest lengths N and taking the best of them.

    score = (sum_i log p(token i) + length_weight log p(N)) / N

  `log_probability` is the sum over the tokens, END not among them.
  Differences from the paper: a weight of 0 is its sec. 3.3. The mean over the tokens alone may prefer a length that was
  never seen in training, where all tokens are sure: of dates, which always have 10, it took another one for 29 %.

  Raises ValueError for fewer than one of either, or more lengths than there are.
  """
  if iterations < 1 or not 1 <= length_beam <= model.longest:
    raise ValueError(
      f"iterations={iterations}, length_beam={length_beam}: expected 1 or more, at most {model.longest} lengths"
    )
  memory, of_length = model.apply(variables, source, lengths, method="encode")
  likely, chosen = jax.lax.top_k(of_length[:, 1:], length_beam)  # at least one token
  size = (chosen + 1).reshape(-1)
  widen = lambda x: jnp.repeat(x, length_beam, axis=0)
  memory, source_lengths = widen(memory), widen(lengths)
  predict = lambda tokens: model.apply(variables, memory, source_lengths, tokens, size, method="predict")
  tokens, sure = refine(predict, size, model.longest, iterations, model.mask_id)
  total = jnp.sum(sure, 1).reshape(-1, length_beam)
  score = (total + length_weight * likely) / size.reshape(-1, length_beam)
  best = jnp.argmax(score, 1)[:, None]
  pick = lambda x: jnp.take_along_axis(x.reshape(-1, length_beam), best, 1)[:, 0]
  tokens = jnp.take_along_axis(tokens.reshape(-1, length_beam, model.longest), best[..., None], 1)[:, 0]
  size, place = pick(size), jnp.arange(model.longest + 1)[None]
  tokens = jnp.concatenate([tokens, tokens[:, :1]], 1)
  tokens = jnp.where(place < size[:, None], tokens, jnp.where(place == size[:, None], end, pad))
  return Decoded(tokens, size + 1, pick(total), pick(score))


def _lowest(values: Float[Array, "B N"], count: Int[Array, " B"]) -> Bool[Array, "B N"]:
  """Which are the `count` lowest of each row; of equal ones the first."""
  return jnp.argsort(jnp.argsort(values, -1), -1) < count[:, None]
