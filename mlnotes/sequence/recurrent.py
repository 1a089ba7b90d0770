"""A recurrent layer and a stack of them: lengths, both directions, dropout, states that go in and come out."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.recurrent import flip_sequences
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from mlnotes.engine.experiment import root_key
from mlnotes.nn.dropout import Dropout, SharedDropout
from mlnotes.nn.norm import RMSNorm

Carry = Any


class Recurrent(nn.Module):
  """One cell over a sequence, forward, backward or both.

    layer = Recurrent(make_cell("gru", 64), bidirectional=True)
    variables = layer.init(key, x)                            # x (B, T, D)
    outputs, carry = layer.apply(variables, x, lengths)       # (B, T, 128)
    outputs, carry = layer.apply(variables, more, carry=carry)  # goes on where the last step ended

  Of `bidirectional` the outputs of both directions stand side by side at each step, (B, T, 2 F), the backward cell
  starts at each sequence's own end, and the carry is (forward, backward): the states after the last step and after
  the first (Schuster & Paliwal 1997). `reverse` alone is the backward cell.

  Lengths are from 0 to T, longer ones count as T. Outputs behind a sequence's length are 0, what stands there, NaN
  included, reaches no value and no gradient, and the carry that comes back is that of the last real step; of a sequence
  of length 0 it is the one that went in.

  Before the steps where `starts` is True, the first ones of documents that stand one behind another, the state is as at
  the beginning; forward alone.

  A cell that has `scan` (minimal ones; LSTM, GRU, Elman) goes over the sequence by that, any other by `flax.linen.RNN`;
  `unroll` steps in each turn of a loop. With `train` a cell that has dropout uses it. Raises ValueError for `starts` in
  a layer that reads backward.
  """

  cell: nn.RNNCellBase
  bidirectional: bool = False
  reverse: bool = False
  unroll: int = 1

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    lengths: Int[Array, " B"] | None = None,
    carry: Carry = None,
    train: bool = False,
    starts: Bool[Array, "B T"] | None = None,
  ) -> tuple[Float[Array, "B T F"], Carry]:
    if starts is not None and (self.bidirectional or self.reverse):
      raise ValueError("starts of documents are known to a layer that reads forward alone")
    real = None
    if lengths is not None:
      lengths = jnp.minimum(lengths, x.shape[1])
      real = jnp.arange(x.shape[1])[None] < lengths[:, None]
      x = jnp.where(real[..., None], x, 0)
    if not self.bidirectional:
      carry, outputs = self._run(self.reverse, x, lengths, real, carry, train, starts)
    else:
      carries = (None, None) if carry is None else carry
      found = [self._run(back, x, lengths, real, each, train) for back, each in zip((False, True), carries)]
      carry, outputs = tuple(each for each, _ in found), jnp.concatenate([y for _, y in found], -1)
    return outputs if real is None else jnp.where(real[..., None], outputs, 0), carry

  def _run(
    self,
    reverse: bool,
    x: Float[Array, "B T D"],
    lengths: Int[Array, " B"] | None,
    real: Bool[Array, "B T"] | None,
    carry: Carry,
    train: bool,
    starts: Bool[Array, "B T"] | None = None,
  ) -> tuple[Carry, Float[Array, "B T F"]]:
    more = {"deterministic": not train} if hasattr(self.cell, "deterministic") else {}
    cell = self.cell.clone(parent=self, name="backward" if reverse else "forward", **more)
    if carry is None:
      carry = cell.initialize_carry(root_key(0), (x.shape[0], x.shape[2]))
    if hasattr(cell, "scan"):
      flip = lambda y: flip_sequences(y, lengths, num_batch_dims=1, time_major=False) if reverse else y
      carry, outputs = cell.scan(carry, flip(x), real, starts, self.unroll)
      return carry, flip(outputs)
    if starts is not None:
      x = jnp.concatenate([x, starts[..., None].astype(x.dtype)], -1)
      cell = _Starting(cell)
    loop = nn.RNN(
      cell, return_carry=True, reverse=reverse, keep_order=True, unroll=self.unroll,
      split_rngs={"params": False, "dropout": False},
    )  # fmt: skip
    last, outputs = loop(x, initial_carry=carry, seq_lengths=lengths)
    if lengths is not None:
      some = lambda new: (lengths > 0).reshape(-1, *(1,) * (new.ndim - 1))
      last = jax.tree.map(lambda new, old: jnp.where(some(new), new, old), last, carry)
    return last, outputs


class _Starting(nn.RNNCellBase):
  """A cell whose state is as at the beginning before each step whose last feature is not 0."""

  cell: nn.RNNCellBase

  def __call__(self, carry: Carry, inputs: Float[Array, "B D"]) -> tuple[Carry, Float[Array, "B F"]]:
    x, starts = inputs[:, :-1], inputs[:, -1] > 0
    first = self.cell.initialize_carry(root_key(0), x.shape)
    some = lambda new: starts.reshape(-1, *(1,) * (new.ndim - 1))
    return self.cell(jax.tree.map(lambda new, old: jnp.where(some(new), new, old), first, carry), x)

  @property
  def num_feature_axes(self) -> int:
    return 1


class RecurrentStack(nn.Module):
  """Recurrent layers on top of each other, all of the same cell; the carry is a tuple of theirs.

  `dropout` is of the inputs of every layer but the first, another mask for each step; with `shared_dropout` it is of
  the inputs of all layers, one mask for all steps (Gal & Ghahramani 2016, whose mask of h_{t-1} is the cell's
  `recurrent_dropout`). `residual` adds a layer's input to its output where they are of one width.
  """

  cell: nn.RNNCellBase
  depth: int = 1
  bidirectional: bool = False
  dropout: float = 0.0
  shared_dropout: bool = False
  residual: bool = False
  unroll: int = 1

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    lengths: Int[Array, " B"] | None = None,
    carry: tuple[Carry, ...] | None = None,
    train: bool = False,
    starts: Bool[Array, "B T"] | None = None,
  ) -> tuple[Float[Array, "B T F"], tuple[Carry, ...]]:
    carries = []
    for layer in range(self.depth):
      if self.dropout and self.shared_dropout:
        x = SharedDropout(self.dropout, name=f"dropout{layer}")(x, deterministic=not train)
      elif self.dropout and layer:
        x = Dropout(self.dropout, name=f"dropout{layer}")(x, deterministic=not train)
      recurrent = Recurrent(self.cell.clone(parent=None), self.bidirectional, unroll=self.unroll, name=f"layer{layer}")
      y, last = recurrent(x, lengths, None if carry is None else carry[layer], train, starts)
      x = x + y if self.residual and x.shape == y.shape else y
      carries.append(last)
    return x, tuple(carries)


class RecurrentBlocks(nn.Module):
  """Recurrent layers in the Transformer's place for attention: a residual step each, and one of a network behind it.

    x + W R(norm(x)),   then   x + W_2 gelu(W_1 norm(x)),   norm at the end          Feng et al. 2024, appendix C.2

  R is a layer of the cell, W brings its outputs to the width of x; `expansion` times that width are between W_1 and
  W_2, 0 leaves this step out. `dropout` is of what a step adds. Norms are `RMSNorm`. The carry is a tuple of the
  layers'.
  """

  cell: nn.RNNCellBase
  depth: int = 1
  expansion: float = 4.0
  dropout: float = 0.0
  dtype: DTypeLike | None = None
  unroll: int = 1

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    lengths: Int[Array, " B"] | None = None,
    carry: tuple[Carry, ...] | None = None,
    train: bool = False,
    starts: Bool[Array, "B T"] | None = None,
  ) -> tuple[Float[Array, "B T D"], tuple[Carry, ...]]:
    carries = []
    width = x.shape[-1]
    add = lambda x, y, name: x + Dropout(self.dropout, name=f"{name}_dropout")(y, deterministic=not train)
    for layer in range(self.depth):
      recurrent = Recurrent(self.cell.clone(parent=None), unroll=self.unroll, name=f"layer{layer}")
      y = RMSNorm(dtype=self.dtype, name=f"norm{layer}")(x)
      y, last = recurrent(y, lengths, None if carry is None else carry[layer], train, starts)
      x = add(x, nn.Dense(width, dtype=self.dtype, name=f"out{layer}")(y), f"layer{layer}")
      if self.expansion:
        y = RMSNorm(dtype=self.dtype, name=f"second_norm{layer}")(x)
        y = nn.Dense(int(self.expansion * width), dtype=self.dtype, name=f"widen{layer}")(y)
        y = nn.Dense(width, dtype=self.dtype, name=f"narrow{layer}")(jax.nn.gelu(y))
        x = add(x, y, f"feed_forward{layer}")
      carries.append(last)
    return RMSNorm(dtype=self.dtype, name="last_norm")(x), tuple(carries)
