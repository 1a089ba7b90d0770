"""Pointer networks: a decoder whose answers are places of its input (Vinyals et al. 2015)."""

from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mlnotes.attention.mask import Mask
from mlnotes.attention.position import sinusoidal_positions
from mlnotes.attention.transformer import Transformer
from mlnotes.sequence.cells import LSTMCell
from mlnotes.sequence.recurrent import Recurrent

_NEVER = -1e9


class Pointing(NamedTuple):
  """What a decoder points at: the encoded inputs, the end behind them.

  Attributes:
    encoded: what the next step is fed where it was pointed at.
    projected: W_1 e.
    real: False for padding.
  """

  encoded: Float[Array, "B S D"]
  projected: Float[Array, "B S D"]
  real: Bool[Array, "B S"]


class Decoding(NamedTuple):
  """Between two steps: the state of the LSTM, the input that was pointed at last, what may still be pointed at."""

  carry: tuple
  last: Float[Array, "B D"]
  free: Bool[Array, "B S"]


class PointerNetwork(nn.Module):
  """Inputs (B, N, F) to the order in which they are pointed at, and then the end, which has number N.

    u_j = v . tanh(W_1 e_j + W_2 d_i),   p(C_i = j) = softmax(u)_j          Vinyals et al. 2015, eq. 3

  over the inputs that were not pointed at before, in training as in decoding, and over the end: `visits_all` allows
  that last and alone, otherwise it is allowed from the second step on. With `glimpse` the decoder's state first reads
  the inputs by weights of the same kind, and what it read takes its place in the equation (Bello et al. 2016).
  Differences from the paper: the end is a learned vector among the encoded inputs; the decoder is fed those, not the
  inputs; "transformer" encoders see all inputs at once, with sinusoidal positions, and give the decoder their mean.

  Attributes:
    width: features of everything.
    encoder: "lstm", "bilstm" (both directions) or "transformer".
    depth, heads: layers and heads of a Transformer.
    visits_all: whether every input is pointed at, as in a tour.
  """

  width: int = 128
  encoder: Literal["lstm", "bilstm", "transformer"] = "lstm"
  depth: int = 2
  heads: int = 4
  glimpse: bool = False
  visits_all: bool = False

  def setup(self):
    dense = lambda bias=True: nn.Dense(self.width, use_bias=bias)
    self.embed, self.project, self.query, self.score = dense(), dense(False), dense(), nn.Dense(1, use_bias=False)
    self.cell = LSTMCell(self.width, forget_bias=0.0)
    self.end = self.param("end", nn.initializers.normal(0.1), (self.width,))
    self.start = self.param("start", nn.initializers.normal(0.1), (self.width,))
    self.carry_in = dense(), dense()
    if self.encoder == "transformer":
      self.transformer = Transformer(self.depth, self.heads, self.width)
    else:
      both = self.encoder == "bilstm"
      self.recurrent = Recurrent(LSTMCell(self.width // 2 if both else self.width, forget_bias=0.0), bidirectional=both)
    if self.glimpse:
      self.glimpse_project, self.glimpse_query = dense(False), dense()
      self.glimpse_score = nn.Dense(1, use_bias=False)

  def __call__(
    self, inputs: Float[Array, "B N F"], counts: Int[Array, " B"], targets: Int[Array, "B T"]
  ) -> Float[Array, "B T S"]:
    """Logits over the N inputs and the end, at each step with the targets before it as what was pointed at.

    A target below 0 is padding and counts as the end. Logits of what may not be pointed at are -1e9.
    """
    pointing, state = self.encode(inputs, counts)
    ends = pointing.real.shape[1] - 1
    targets = jnp.where(targets < 0, ends, targets)
    before = targets[:, :-1]
    fed = jnp.take_along_axis(pointing.encoded, before[..., None], 1)
    fed = jnp.concatenate([state.last[:, None], fed], 1)
    run = nn.scan(
      lambda cell, carry, x: cell(carry, x), variable_broadcast="params", split_rngs={"params": False}, in_axes=1,
      out_axes=1,
    )  # fmt: skip
    _, decoded = run(self.cell, state.carry, fed)
    visited = jnp.cumsum(jax.nn.one_hot(before, ends + 1, dtype=jnp.int32), 1) > 0
    visited = jnp.pad(visited, ((0, 0), (1, 0), (0, 0)))
    return self._logits(pointing, decoded, pointing.real[:, None] & ~visited)

  def encode(self, inputs: Float[Array, "B N F"], counts: Int[Array, " B"]) -> tuple[Pointing, Decoding]:
    """What is pointed at, and the state before the first step."""
    batch, size = inputs.shape[:2]
    real = jnp.arange(size)[None] < counts[:, None]
    x = self.embed(jnp.where(real[..., None], inputs, 0))
    if self.encoder == "transformer":
      x = x + sinusoidal_positions(jnp.arange(size), self.width)[None]
      encoded = self.transformer(x, mask=Mask.of_self(lengths=counts))
      summary = jnp.sum(jnp.where(real[..., None], encoded, 0), 1) / jnp.maximum(counts, 1)[:, None]
      carry = summary, summary
    else:
      encoded, carry = self.recurrent(x, counts)
      if self.encoder == "bilstm":
        carry = tuple(jnp.concatenate(both, -1) for both in zip(*carry))
    carry = tuple(dense(c) for dense, c in zip(self.carry_in, carry))
    encoded = jnp.concatenate([encoded, jnp.broadcast_to(self.end, (batch, 1, self.width))], 1)
    real = jnp.pad(real, ((0, 0), (0, 1)), constant_values=True)
    pointing = Pointing(encoded, self.project(encoded), real)
    return pointing, Decoding(carry, jnp.broadcast_to(self.start, (batch, self.width)), real)

  def step(self, pointing: Pointing, state: Decoding) -> tuple[Float[Array, "B S"], tuple]:
    """(logits of the next answer, the state of the LSTM behind it): `advance` takes both and what was chosen."""
    carry, decoded = self.cell(state.carry, state.last)
    return self._logits(pointing, decoded[:, None], state.free[:, None])[:, 0], carry

  def decode(self, inputs: Float[Array, "B N F"], counts: Int[Array, " B"]) -> Int[Array, "B T"]:
    """The likeliest answer at each of N + 1 steps, the end and -1 behind it. (B, N + 1)."""
    pointing, state = self.encode(inputs, counts)
    ends = pointing.real.shape[1] - 1

    def one(self, carry, _):
      state, done = carry
      logits, cell = self.step(pointing, state)
      chosen = jnp.argmax(logits, -1)
      said = jnp.where(done, -1, chosen)
      return (advance(pointing, state, cell, chosen), done | (chosen == ends)), said

    run = nn.scan(one, variable_broadcast="params", split_rngs={"params": False}, length=ends + 1, out_axes=1)
    return run(self, (state, jnp.zeros(len(inputs), bool)), None)[1]

  def _logits(
    self, pointing: Pointing, decoded: Float[Array, "B T D"], free: Bool[Array, "B T S"]
  ) -> Float[Array, "B T S"]:
    points = free[..., :-1]
    left = jnp.any(points, -1)
    any_visited = jnp.any(pointing.real[:, None, :-1] & ~points, -1)
    end = ~left if self.visits_all else ~left | any_visited
    free = jnp.concatenate([points, end[..., None]], -1)
    if self.glimpse:
      weights = self._scores(self.glimpse_score, self.glimpse_project(pointing.encoded), self.glimpse_query(decoded))
      weights = jax.nn.softmax(jnp.where(free, weights, _NEVER), -1)
      decoded = jnp.einsum("bts,bsd->btd", weights, pointing.encoded)
    return jnp.where(free, self._scores(self.score, pointing.projected, self.query(decoded)), _NEVER)

  def _scores(self, score, keys: Float[Array, "B S D"], queries: Float[Array, "B T D"]) -> Float[Array, "B T S"]:
    return score(jnp.tanh(keys[:, None] + queries[:, :, None]))[..., 0]


def advance(pointing: Pointing, state: Decoding, carry: tuple, chosen: Int[Array, " B"]) -> Decoding:
  """The state after pointing at `chosen`."""
  last = jnp.take_along_axis(pointing.encoded, chosen[:, None, None], 1)[:, 0]
  return Decoding(carry, last, state.free & (jnp.arange(state.free.shape[1])[None] != chosen[:, None]))
