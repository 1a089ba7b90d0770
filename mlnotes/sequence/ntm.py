"""The neural Turing machine: a controller that reads and writes a memory by soft heads (Graves et al. 2014).

A memory has N cells of M numbers, and H heads look at it. The cells are the last axis of every array: sums over heads
and numbers then run along them. `*B` are leading axes.
"""

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mlnotes.engine.experiment import root_key
from mlnotes.nn.initializers import orthogonal

# Of a memory that nothing was written to; Collier & Beel 2018, sec. 4.2: constant is learned from in half the time.
BLANK = 1e-6
# Under the root of the cosine's denominator: a blank cell is like no key, and its gradient stays small.
_COSINE_EPSILON = 1e-6
_LEAST_WEIGHT = 1e-12


class HeadParameters(NamedTuple):
  """What a controller says to H heads: where to look (key, strength, gate, shift, sharpness)."""

  key: Float[Array, "*B H M"]
  strength: Float[Array, "*B H"]  # beta, above 0
  gate: Float[Array, "*B H"]  # g in (0, 1): 1 looks by content, 0 where the head stood
  shift: Float[Array, "*B H S"]  # sums to 1; entry i moves by i - (S - 1) / 2 cells
  sharpness: Float[Array, "*B H"]  # gamma, 1 or more


def content_weights(
  memory: Float[Array, "*B M N"], key: Float[Array, "*B H M"], strength: Float[Array, "*B H"]
) -> Float[Array, "*B H N"]:
  """Where the memory is like the keys: softmax over cells of strength times cosine. Graves et al. 2014, eq. 5 and 6."""
  dot = jnp.einsum("...mn,...hm->...hn", memory, key)
  norms = jnp.sum(memory**2, -2)[..., None, :] * jnp.sum(key**2, -1)[..., None]
  return jax.nn.softmax(strength[..., None] * dot * jax.lax.rsqrt(norms + _COSINE_EPSILON), -1)


def shift_weights(weights: Float[Array, "*B N"], shift: Float[Array, "*B S"]) -> Float[Array, "*B N"]:
  """Moves a head around the ring of cells: w~(i) = sum_j w(j) s(i - j). Graves et al. 2014, eq. 8.

  Entry i of `shift` moves by i - (S - 1) / 2 cells: with S = 3 the last one goes from cell 4 to cell 5, and from the
  last cell to the first. Raises ValueError where S is even or more than N.
  """
  size, cells = shift.shape[-1], weights.shape[-1]
  if size % 2 == 0 or size > cells:
    raise ValueError(f"a shift of {size} entries over {cells} cells: expected an odd number, at most the cells")
  moves = range(-(size // 2), size // 2 + 1)
  return sum(shift[..., i, None] * jnp.roll(weights, move, -1) for i, move in enumerate(moves))


def sharpen(weights: Float[Array, "*B N"], sharpness: Float[Array, "*B"]) -> Float[Array, "*B N"]:
  """w^gamma over its sum. Graves et al. 2014, eq. 9. In logarithms, so that cells without weight have a gradient."""
  return jax.nn.softmax(sharpness[..., None] * jnp.log(weights + _LEAST_WEIGHT), -1)


def address(
  memory: Float[Array, "*B M N"], previous: Float[Array, "*B H N"], head: HeadParameters
) -> Float[Array, "*B H N"]:
  """Where the heads look next: content, then gate, then shift, then sharpen. Graves et al. 2014, eq. 5-9.

  `previous` is where they looked; both are 0 or more and sum to 1.
  """
  content = content_weights(memory, head.key, head.strength)
  gate = head.gate[..., None]
  return sharpen(shift_weights(gate * content + (1 - gate) * previous, head.shift), head.sharpness)


def read(memory: Float[Array, "*B M N"], weights: Float[Array, "*B H N"]) -> Float[Array, "*B H M"]:
  """The cells in the mean by the weights of each head. Graves et al. 2014, eq. 2."""
  return jnp.einsum("...mn,...hn->...hm", memory, weights)


def write(
  memory: Float[Array, "*B M N"],
  weights: Float[Array, "*B H N"],
  erase: Float[Array, "*B H M"],
  add: Float[Array, "*B H M"],
) -> Float[Array, "*B M N"]:
  """Every head erases, then every head adds: M(i) <- M(i) (1 - w(i) e) + w(i) a. Graves et al. 2014, eq. 3 and 4."""
  heads = range(weights.shape[-2])
  outer = lambda what, i: what[..., i, :, None] * weights[..., i, None, :]
  for i in heads:
    memory = memory * (1 - outer(erase, i))
  return memory + sum(outer(add, i) for i in heads)


def split_head(raw: Float[Array, "*B H P"], width: int) -> HeadParameters:
  """The parameters of heads, P = width + S + 3 each, from numbers of any size."""
  key, strength, gate, sharpness, shift = jnp.split(raw, [width, width + 1, width + 2, width + 3], -1)
  return HeadParameters(
    jnp.tanh(key), jax.nn.softplus(strength[..., 0]), jax.nn.sigmoid(gate[..., 0]), jax.nn.softmax(shift, -1),
    1 + jax.nn.softplus(sharpness[..., 0]),
  )  # fmt: skip


class NTMCarry(NamedTuple):
  """What goes from one step to the next.

  Attributes:
    memory: its cells last.
    weights: where the reading heads looked, then the writing ones.
    reads: what the R reading heads read.
    controller: the state of an LSTM, () of a feed-forward controller.
  """

  memory: Float[Array, "B M N"]
  weights: Float[Array, "B H N"]
  reads: Float[Array, "B R M"]
  controller: tuple


class NTMCell(nn.RNNCellBase):
  """One step of a neural Turing machine: x (B, D) to (B, features).

  The controller sees x and what was read last. All heads look at the memory as the last step left it; it is read before
  it is written, and what comes out sees the controller and what was read now.
  Differences from the paper, which leaves them open: keys and what is added go through tanh.

  Attributes:
    features: numbers that come out of a step.
    cells: N, cells of the memory.
    width: M, numbers in a cell.
    read_heads, write_heads: how many of each.
    units: of the controller.
    controller: "lstm", or "feedforward", a layer with tanh that itself remembers nothing.
    reach: a head moves by up to so many cells in a step.
  """

  features: int
  cells: int = 128
  width: int = 20
  read_heads: int = 1
  write_heads: int = 1
  units: int = 100
  controller: Literal["lstm", "feedforward"] = "lstm"
  reach: int = 1

  @nn.compact
  def __call__(self, carry: NTMCarry, x: Float[Array, "B D"]) -> tuple[NTMCarry, Float[Array, "B F"]]:
    flat = lambda reads: reads.reshape(len(x), -1)
    seen = jnp.concatenate([x, flat(carry.reads)], -1)
    if self.controller == "lstm":
      cell = nn.OptimizedLSTMCell(self.units, recurrent_kernel_init=orthogonal(), name="controller")
      controller, hidden = cell(carry.controller, seen)
    else:
      controller, hidden = (), jnp.tanh(nn.Dense(self.units, name="controller")(seen))
    heads, each = self.read_heads + self.write_heads, self.width + 2 * self.reach + 4
    raw = nn.Dense(heads * each + self.write_heads * 2 * self.width, name="heads")(hidden)
    where = split_head(raw[:, : heads * each].reshape(-1, heads, each), self.width)
    what = raw[:, heads * each :].reshape(-1, 2, self.write_heads, self.width)
    weights = address(carry.memory, carry.weights, where)
    reads = read(carry.memory, weights[:, : self.read_heads])
    memory = write(carry.memory, weights[:, self.read_heads :], jax.nn.sigmoid(what[:, 0]), jnp.tanh(what[:, 1]))
    y = nn.Dense(self.features, name="output")(jnp.concatenate([hidden, flat(reads)], -1))
    return NTMCarry(memory, weights, reads, controller), y

  @nn.nowrap
  def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> NTMCarry:
    """A blank memory, every head at the first cell, nothing read. `input_shape` is (B, D)."""
    batch, heads = input_shape[0], self.read_heads + self.write_heads
    controller = ()
    if self.controller == "lstm":
      controller = nn.OptimizedLSTMCell(self.units, parent=None).initialize_carry(rng, input_shape)
    return NTMCarry(
      jnp.full((batch, self.width, self.cells), BLANK), jnp.zeros((batch, heads, self.cells)).at[:, :, 0].set(1),
      jnp.zeros((batch, self.read_heads, self.width)), controller,
    )  # fmt: skip

  @property
  def num_feature_axes(self) -> int:
    return 1


class NeuralTuringMachine(nn.Module):
  """`NTMCell` over sequences x (B, T, D), from a blank memory and learned first reads and places of the heads.

  The learned start is Collier & Beel's (2018, sec. 4.2); a head begins up to `reach` cells from the first one. No
  parameter goes by the number of cells: what was trained with few of them runs with many.
  """

  cell: NTMCell

  def setup(self):
    heads, moves = self.cell.read_heads + self.cell.write_heads, 2 * self.cell.reach + 1
    self.places = self.param("places", nn.initializers.normal(0.1), (heads, moves))
    self.reads = self.param("reads", nn.initializers.normal(0.1), (self.cell.read_heads, self.cell.width))

  def __call__(self, x: Float[Array, "B T D"], carry: NTMCarry | None = None) -> tuple[Float[Array, "B T F"], NTMCarry]:
    """(what comes out of each step, the carry behind the last one); from `carry`, None: from the learned start."""
    carry, y = self._scan(x, carry, lambda carry, y: y)
    return y, carry

  def trace(self, x: Float[Array, "B T D"]) -> NTMCarry:
    """The carry behind every step, with an axis (B, T, ..) for pictures of memory and heads."""
    return self._scan(x, None, lambda carry, y: carry)[1]

  def start(self, x: Float[Array, "B T D"]) -> NTMCarry:
    """The carry before the first step."""
    blank = self.cell.initialize_carry(root_key(0), (x.shape[0], x.shape[2]))
    spread = lambda learned: jnp.broadcast_to(learned, (x.shape[0], *learned.shape))
    # Around the middle, which starts with nearly all of the weight.
    moves = jax.nn.softmax(self.places.at[:, self.cell.reach].add(5.0), -1)
    weights = shift_weights(blank.weights, spread(moves))
    return blank._replace(weights=weights, reads=spread(jnp.tanh(self.reads)))

  def _scan(self, x, carry, keep) -> tuple[NTMCarry, Any]:
    def step(cell, carry, x):
      carry, y = cell(carry, x)
      return carry, keep(carry, y)

    # Each step is computed again backward: on a CPU that is faster than to keep copies of its memory.
    run = nn.scan(
      nn.remat(step, prevent_cse=False), variable_broadcast="params", split_rngs={"params": False}, in_axes=1,
      out_axes=1,
    )  # fmt: skip
    return run(self.cell, self.start(x) if carry is None else carry, x)
