"""Language models: decoders, encoders with heads, and an encoder with a decoder, all of Transformer blocks."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from mlnotes.attention.cache import Cache
from mlnotes.attention.mask import Bias, Mask
from mlnotes.attention.position import make_alibi, make_relative, sinusoidal_positions
from mlnotes.attention.transformer import Transformer
from mlnotes.nn.dense import Dense, rows_product
from mlnotes.nn.dropout import Dropout
from mlnotes.nn.norm import LayerNorm

Position = Literal["learned", "sinusoidal", "alibi", "relative", "none"]
FURTHEST = 128  # of T5's buckets of distances
_SMALL = nn.initializers.normal(0.02)


class LanguageModel(nn.Module):
  """Logits of a token at every place, from a Transformer over embedded tokens.

    model = make_gpt2(vocabulary=65, length=64, depth=4, heads=4, width=128)
    variables = model.init(key, tokens)
    logits = model.apply(variables, tokens)                                   # (B, T, V), float32
    hidden = model.apply(variables, tokens, method="hidden")                  # (B, T, D), the head left out
    some = model.apply(variables, hidden[:, :3], method="logits")             # the head alone, where it is needed

  A decoder and an encoder differ in the mask that stands where none is given: `causal` or everything. A call's own
  takes its place: documents packed by segments and positions, prompts of unequal lengths (`mlnotes.attention.Mask`).

  Attributes:
    length: tokens that there are positions for where these are "learned"; otherwise those it was trained on, and only
      told.
    position: an embedding of each place; sines; a bias of the scores, "alibi" or T5's "relative" buckets of distances;
      "none" where the transformer's `rotary_base` turns queries and keys, or order is not told at all.
    tied: the head's matrix is the embedding's, Press & Wolf 2017.
    types: kinds of tokens that are told apart by an embedding of their own (BERT's segments); 0: none.
    embed_norm: a norm of the sum of the embeddings; None: none.
    transform: activation of a dense layer and a norm (`embed_norm`'s) ahead of the head, which then has a bias, as
      BERT's; None: none of these.
    pooler: whether `pool` has its layer.

  Raises ValueError for more tokens than `length` where positions are learned and the mask names none, or types where
  `types` is 0; a position beyond the learned ones gives NaN.
  """

  vocabulary: int
  length: int
  transformer: Transformer
  causal: bool = True
  position: Position = "learned"
  tied: bool = True
  types: int = 0
  embed_norm: Callable[..., nn.Module] | None = None
  transform: Callable[[Array], Array] | None = None
  pooler: bool = False
  buckets: int = 32
  dropout: float = 0.0
  embed_init: Callable[..., Any] = _SMALL
  dtype: DTypeLike | None = None

  def setup(self):
    width = self.transformer.width
    # Looked up in float32: the gradients of a frequent token's many places are summed there.
    self.embed = nn.Embed(self.vocabulary, width, embedding_init=self.embed_init)
    if self.position == "learned":
      self.positions = nn.Embed(self.length, width, embedding_init=self.embed_init)
    if self.position == "relative":
      self.relative = nn.Embed(self.buckets, self.transformer.heads, embedding_init=self.embed_init)
    if self.types:
      self.token_types = nn.Embed(self.types, width, embedding_init=self.embed_init)
    if self.embed_norm:
      self.norm = self.embed_norm(dtype=self.dtype)
    if self.transform:
      self.head_dense = Dense(width, dtype=self.dtype, kernel_init=self.embed_init)
      self.head_norm = (self.embed_norm or LayerNorm)(dtype=self.dtype)
      self.head_bias = self.param("head_bias", nn.initializers.zeros, (self.vocabulary,))
    if not self.tied:
      self.head = Matrix((width, self.vocabulary), self.embed_init)
    if self.pooler:
      self.pool_dense = Dense(width, dtype=self.dtype, kernel_init=self.embed_init)
    self.drop = Dropout(self.dropout)

  def __call__(
    self,
    tokens: Int[Array, "B T"],
    mask: Mask | None = None,
    train: bool = False,
    cache: tuple[Cache, ...] | None = None,
    types: Int[Array, "B T"] | None = None,
  ) -> Any:
    """(B, T, vocabulary) in float32; with caches also these with what the tokens add."""
    found = self.hidden(tokens, mask, train, cache, types)
    hidden, cache = found if cache is not None else (found, None)
    if self.pooler and self.is_initializing():
      self.pool(hidden)
    logits = self.logits(hidden)
    return logits if cache is None else (logits, cache)

  def hidden(
    self,
    tokens: Int[Array, "B T"],
    mask: Mask | None = None,
    train: bool = False,
    cache: tuple[Cache, ...] | None = None,
    types: Int[Array, "B T"] | None = None,
    embedded: Float[Array, "B T D"] | None = None,
  ) -> Any:
    """(B, T, D), what the head reads; with caches also these. `embedded` takes the place of the tokens' embeddings."""
    mask = Mask(causal=self.causal) if mask is None else mask
    x = self.embed_tokens(tokens) if embedded is None else embedded
    if self.position == "learned" and mask.query_positions is None:
      _require_room(tokens, self.length)
    places = jnp.arange(tokens.shape[1])[None]
    if cache is not None:
      places = places + cache[0].length
    if mask.query_positions is not None:
      places = jnp.atleast_2d(mask.query_positions)
    x = self.add_places(x, places, types)
    if self.embed_norm:
      x = self.norm(x)
    x = self.drop(x if self.dtype is None else x.astype(self.dtype), deterministic=not train)
    return self.transformer(x, mask=mask, bias=self.bias(mask, cache, tokens.shape[1]), train=train, cache=cache)

  def embed_tokens(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """The embeddings alone, in float32."""
    return self.embed(tokens)

  def add_places(
    self, x: Float[Array, "B T D"], places: Int[Array, "#B T"], types: Int[Array, "B T"] | None = None
  ) -> Float[Array, "B T D"]:
    """`x` with what is added to it of its places and types."""
    if self.position == "learned":
      x = x + jnp.take(self.positions.embedding, places, axis=0, mode="fill")
    if self.position == "sinusoidal":
      width = self.transformer.width
      x = x * jnp.sqrt(width).astype(x.dtype) + sinusoidal_positions(places, width)
    if types is not None and not self.types:
      raise ValueError("types were given to a model without: expected types=None")
    if self.types:
      x = x + self.token_types(jnp.zeros(x.shape[:2], jnp.int32) if types is None else types)
    return x

  def bias(self, mask: Mask, cache: tuple[Cache, ...] | None, tokens: int) -> Bias | None:
    """What is added to the scores of every layer."""
    if self.position == "alibi":
      return make_alibi(self.transformer.heads)
    if self.position != "relative":
      return None
    bias = make_relative(self.relative.embedding, FURTHEST, not self.causal)
    return _once(bias, tokens) if cache is None and mask.is_in_order else bias

  def logits(self, hidden: Float[Array, "... D"], dtype: DTypeLike = jnp.float32) -> Float[Array, "... V"]:
    """The head: products in the model's dtype, summed in float32 and rounded to `dtype`."""
    if self.transform:
      hidden = self.head_norm(self.transform(self.head_dense(hidden)))
    table = self.embed.embedding if self.tied else self.head()
    logits = rows_product(hidden, table, self.tied, dtype)
    return logits + jnp.expand_dims(self.head_bias, range(logits.ndim - 1)).astype(dtype) if self.transform else logits

  def pool(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B D"]:
    """tanh of a layer over the first token, for what is asked of a whole sequence. Devlin et al. 2019, sec. 3."""
    return jnp.tanh(self.pool_dense(hidden[:, 0]))

  @nn.nowrap
  def make_cache(self, batch: int, size: int, dtype: DTypeLike | None = None) -> tuple[Cache, ...]:
    """Empty caches with room for `size` tokens, one for each layer."""
    return self.transformer.make_cache(batch, size, dtype)


class EncoderDecoder(nn.Module):
  """Logits of each target token, from an encoder over the source and a decoder that attends to it. T5's form, BART's.

    logits = model.apply(variables, source, target, lengths, target_lengths)      # (B, T, V), float32
    context = model.apply(variables, source, lengths, method="encode")
    hidden, cache = model.apply(variables, target[:, :1], context, lengths, cache=cache, method="decode")

  Both sides share the embedding of the tokens. Of a tied head the hidden features are divided by sqrt(width), as in
  T5's code.

  Attributes:
    tied: the head's matrix is the embedding's (T5), or its own (T5 1.1).
    divided: whether the head divides by sqrt(width); None: where it is tied.
    position: buckets of distances, whose table the layers of a side share ("relative"), or an embedding of each place,
      for each side its own ("learned").
    length: tokens of a side that there are positions for, where these are learned.
    embed_norm: a norm of the sum of the embeddings, for each side its own; None: none.

  Raises ValueError for more tokens than `length` where positions are learned.
  """

  vocabulary: int
  encoder: Transformer
  decoder: Transformer
  tied: bool = True
  divided: bool | None = None
  buckets: int = 32
  furthest: int = FURTHEST
  dropout: float = 0.0
  embed_init: Callable[..., Any] = nn.initializers.normal(1.0)
  position: Literal["relative", "learned"] = "relative"
  length: int = 0
  embed_norm: Callable[..., nn.Module] | None = None
  dtype: DTypeLike | None = None

  def setup(self):
    width = self.encoder.width
    self.embed = nn.Embed(self.vocabulary, width, embedding_init=self.embed_init)
    init = nn.initializers.normal(width**-0.5)
    if self.position == "relative":
      self.encoder_relative = nn.Embed(self.buckets, self.encoder.heads, embedding_init=init)
      self.decoder_relative = nn.Embed(self.buckets, self.decoder.heads, embedding_init=init)
    else:
      self.encoder_positions = nn.Embed(self.length, width, embedding_init=self.embed_init)
      self.decoder_positions = nn.Embed(self.length, width, embedding_init=self.embed_init)
    if self.embed_norm:
      self.encoder_embed_norm = self.embed_norm(dtype=self.dtype)
      self.decoder_embed_norm = self.embed_norm(dtype=self.dtype)
    if not self.tied:
      self.head = Matrix((width, self.vocabulary), init)
    self.drop = Dropout(self.dropout)

  def __call__(
    self,
    source: Int[Array, "B S"],
    target: Int[Array, "B T"],
    lengths: Int[Array, " B"] | None = None,
    target_lengths: Int[Array, " B"] | None = None,
    train: bool = False,
  ) -> Float[Array, "B T V"]:
    """Of what follows each token of the target, which begins with a start token. Lengths say how much is no padding."""
    context = self.encode(source, lengths, train)
    return self.logits(self.decode(target, context, lengths, target_lengths, train))

  def encode(
    self, source: Int[Array, "B S"], lengths: Int[Array, " B"] | None = None, train: bool = False
  ) -> Float[Array, "B S D"]:
    bias = None
    if self.position == "relative":
      bias = _once(make_relative(self.encoder_relative.embedding, self.furthest), source.shape[1])
      x = self._embed(source)
    else:
      _require_room(source, self.length)
      x = self._embed(source, self.encoder_positions, jnp.arange(source.shape[1])[None])
    if self.embed_norm:
      x = self.encoder_embed_norm(x)
    x = self.drop(x, deterministic=not train)
    found = self.encoder(x, mask=Mask.of_self(lengths=lengths), bias=bias, train=train)
    return self.drop(found, deterministic=not train)

  def decode(
    self,
    target: Int[Array, "B T"],
    context: Float[Array, "B S D"],
    lengths: Int[Array, " B"] | None = None,
    target_lengths: Int[Array, " B"] | None = None,
    train: bool = False,
    cache: tuple[Cache, ...] | None = None,
    positions: Int[Array, "B T"] | None = None,
  ) -> Any:
    """(B, T, D), what the head reads; with caches also these with what the target adds.

    `positions` says where the target's tokens stand; None: from 0 on, or behind what the cache holds. Distances do not
    tell where a target begins: with "relative" it is a ValueError.
    """
    mask, bias = Mask.of_self(causal=True, lengths=target_lengths), None
    if self.position == "relative":
      if positions is not None:
        raise ValueError("positions were given to a decoder that is told of distances alone: expected None")
      bias = make_relative(self.decoder_relative.embedding, self.furthest, bidirectional=False)
      bias = _once(bias, target.shape[1]) if cache is None else bias
      x = self._embed(target)
    else:
      if positions is None:
        _require_room(target, self.length)
        positions = jnp.arange(target.shape[1])[None] + (0 if cache is None else cache[0].length)
      x = self._embed(target, self.decoder_positions, positions)
    if self.embed_norm:
      x = self.decoder_embed_norm(x)
    x = self.drop(x, deterministic=not train)
    found = self.decoder(x, context, mask, Mask(key_lengths=lengths), bias, train, cache)
    hidden, cache = found if cache is not None else (found, None)
    hidden = self.drop(hidden, deterministic=not train)
    return hidden if cache is None else (hidden, cache)

  def logits(self, hidden: Float[Array, "... D"], dtype: DTypeLike = jnp.float32) -> Float[Array, "... V"]:
    """The head, as `LanguageModel.logits`."""
    if self.tied if self.divided is None else self.divided:
      hidden = hidden * jnp.asarray(self.encoder.width**-0.5, hidden.dtype)
    return rows_product(hidden, self.embed.embedding if self.tied else self.head(), self.tied, dtype)

  def _embed(
    self, tokens: Int[Array, "B T"], table: nn.Embed | None = None, places: Int[Array, "#B T"] | None = None
  ) -> Float[Array, "B T D"]:
    x = self.embed(tokens)
    if table is not None:
      x = x + jnp.take(table.embedding, places, axis=0, mode="fill")
    return x if self.dtype is None else x.astype(self.dtype)

  @nn.nowrap
  def make_cache(self, batch: int, size: int, dtype: DTypeLike | None = None) -> tuple[Cache, ...]:
    """Empty caches of the decoder with room for `size` tokens, one for each layer."""
    return self.decoder.make_cache(batch, size, dtype)


class Matrix(nn.Module):
  """A matrix by itself, for products of more than one kind."""

  shape: tuple[int, int]
  init_fn: Callable[..., Any]

  @nn.compact
  def __call__(self) -> Float[Array, "D V"]:
    return self.param("kernel", self.init_fn, self.shape)


def _require_room(tokens: Int[Array, "B T"], length: int) -> None:
  if tokens.shape[1] > length:
    raise ValueError(f"positions were learned for {length} tokens, found {tokens.shape[1]}")


def _once(bias: Callable[[Array, Array], Array], tokens: int) -> Float[Array, "1 N T T"]:
  """The bias of places 0 ... T - 1, the same in every example."""
  places = jnp.arange(tokens)[None]
  return bias(places, places)
