"""Networks of sequences of one length: recurrent models, a random oracle, a discriminator, an auto-encoder's parts."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from mlnotes.generative.text_gan import Policy
from mlnotes.nn.dense import Dense
from mlnotes.sequence import LSTMCell

Code = Float[Array, "B C"]
_TINY = 1e-12


def embed_tokens(table: Float[Array, "S D"], tokens: Array) -> Float[Array, "*B D"]:
  """Rows of the table: of integer tokens, or of weights over its first V rows as floating-point numbers (*B, V)."""
  if jnp.issubdtype(tokens.dtype, jnp.integer):
    return table[tokens]
  return tokens @ table[: tokens.shape[-1]]


class SequenceModel(nn.Module):
  """An LSTM that foretells each token from those before it, and from a code where there is one.

  Tokens are integers or weights over the vocabulary; before the first stands a start token of its own. A code is read
  beside every token, so that no step can forget it.
  """

  vocabulary: int
  width: int = 32
  dtype: DTypeLike | None = None

  def setup(self):
    self.embedding = self.param("embedding", nn.initializers.normal(1.0), (self.vocabulary + 1, self.width))
    self.cell = LSTMCell(self.width, dtype=self.dtype)
    self.head = Dense(self.vocabulary, dtype=self.dtype)

  def _inputs(self, tokens: Array, code: Code | None) -> Float[Array, "B *T D"]:
    x = embed_tokens(self.embedding, tokens)
    if code is None:
      return x
    return jnp.concatenate(
      [x, jnp.broadcast_to(code[:, None] if x.ndim == 3 else code, (*x.shape[:-1], code.shape[-1]))], -1
    )

  def _first(self, count: int) -> Int[Array, " B"]:
    return jnp.full(count, self.vocabulary, jnp.int32)

  def _no_carry(self, count: int) -> Any:
    return (jnp.zeros((count, self.width), self.dtype or jnp.float32),) * 2

  def __call__(self, tokens: Int[Array, "B T"], code: Code | None = None) -> Float[Array, "B T V"]:
    """Logits of each token given those before it."""
    count = len(tokens)
    before = jnp.concatenate([self._first(count)[:, None], tokens[:, :-1]], 1)
    _, hidden = self.cell.scan(self._no_carry(count), self._inputs(before, code), None, None, 1)
    return self.head(hidden).astype(jnp.float32)

  def advance(self, carry: Any, token: Array, code: Code | None = None) -> tuple[Any, Float[Array, "B V"]]:
    carry, hidden = self.cell(carry, self._inputs(token, code))
    return carry, self.head(hidden).astype(jnp.float32)

  def start(self, count: int, code: Code | None = None) -> tuple[Any, Float[Array, "B V"]]:
    return self.advance(self._no_carry(count), self._first(count), code)


def make_policy(model: SequenceModel, params: chex.ArrayTree, code: Code | None = None) -> Policy:
  """The model with these parameters, and where it reads a code with one for each sequence."""
  variables = {"params": params}
  return Policy(
    lambda tokens: model.apply(variables, tokens, code),
    lambda count: model.apply(variables, count, code, method="start"),
    lambda carry, token: model.apply(variables, carry, token, code, method="advance"),
  )


def make_oracle(vocabulary: int, width: int, key: Key[Array, ""]) -> tuple[SequenceModel, chex.ArrayTree]:
  """A recurrent model whose every parameter is drawn from N(0, 1) and never learned: data of known likelihood.

  Yu et al. 2017. A generator's sequences are scored by it, and it says how well
  a generator foretells the data at best.
  """
  model = SequenceModel(vocabulary, width)
  shapes = jax.eval_shape(model.init, key, jnp.zeros((1, 1), jnp.int32))["params"]
  leaves, tree = jax.tree.flatten(shapes)
  keys = jax.random.split(key, len(leaves))
  return model, tree.unflatten([jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves)])


class SequenceDiscriminator(nn.Module):
  """A score for each sequence by convolutions of several widths and the maximum of each over time.

  Kim 2014, with one fully connected layer behind as in Yu et al. 2017. `spans` wider than the sequence are left out.
  Sequences are integer tokens (B, T) or weights over the vocabulary (B, T, V).
  """

  vocabulary: int
  width: int = 32
  filters: int = 32
  spans: tuple[int, ...] = (1, 2, 3, 4)
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, tokens: Array) -> Float[Array, " B"]:
    table = self.param("embedding", nn.initializers.normal(1.0), (self.vocabulary, self.width))
    x = embed_tokens(table, tokens)
    length = x.shape[1]
    pooled = []
    for span in self.spans:
      if span <= length:
        # A convolution over time as a product with the tokens side by side.
        windows = jnp.concatenate([x[:, i : length - span + 1 + i] for i in range(span)], -1)
        found = Dense(self.filters, dtype=self.dtype, name=f"span{span}")(windows)
        pooled.append(jnp.max(nn.relu(found), 1))
    x = jnp.concatenate(pooled, -1)
    x = x + nn.relu(Dense(x.shape[-1], dtype=self.dtype, name="hidden")(x))
    return Dense(1, dtype=self.dtype, name="score")(x)[:, 0].astype(jnp.float32)


def to_sphere(x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
  """x / |x|; 0, with a gradient of 0, where x is 0."""
  squares = jnp.sum(jnp.square(x), -1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(squares, _TINY))


class SequenceEncoder(nn.Module):
  """The code of each sequence, on the unit sphere: an LSTM's last output. Zhao et al. 2018."""

  vocabulary: int
  width: int = 32
  code: int = 16
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B C"]:
    table = self.param("embedding", nn.initializers.normal(1.0), (self.vocabulary, self.width))
    start = (jnp.zeros((len(tokens), self.width), self.dtype or jnp.float32),) * 2
    (_, hidden), _ = LSTMCell(self.width, dtype=self.dtype, name="cell").scan(
      start, embed_tokens(table, tokens), None, None, 1
    )
    return to_sphere(Dense(self.code, dtype=self.dtype, name="code")(hidden).astype(jnp.float32))


class CodeNetwork(nn.Module):
  """Two fully connected layers: from noise to a code on the unit sphere (`sphere`), or from a code to a score."""

  features: int
  hidden: int = 64
  sphere: bool = False
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B F"]:
    for layer in range(2):
      x = nn.leaky_relu(Dense(self.hidden, dtype=self.dtype, name=f"layer{layer}")(x), 0.2)
    x = Dense(self.features, dtype=self.dtype, name="out")(x).astype(jnp.float32)
    return to_sphere(x) if self.sphere else x
