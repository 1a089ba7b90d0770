"""The loop over a sequence of cells that mix their state by matrices, with as few products in it as there can be.

What a cell takes from its inputs, W x_t + b, does not hang on the state: all steps at once before the loop. Nor does the
gradient of a recurrent matrix U hang on the loop once the gradients of the sums U h_{t-1} are known:

  dU = sum_t h_{t-1}^T d(U h_{t-1})

is one product behind the backward loop instead of a sum that each of its turns reads and writes.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from mlnotes.engine.experiment import root_key

Carry = Any
Multiply = Callable[[str, Array], Array]


def multiply_by(
  kernels: Mapping[str, Array], added: Mapping[str, Array], mask: Array | None, dtype: DTypeLike | None
) -> Multiply:
  """(name, h) -> (mask h) U + added, computed in `dtype`, of the kernel U and the summand of that name."""

  def multiply(name, h):
    return _multiply(h if mask is None else h * mask, kernels[name], dtype) + added[name]

  return multiply


def _multiply(h: Float[Array, "*B F"], kernel: Float[Array, "F G"], dtype: DTypeLike | None) -> Float[Array, "*B G"]:
  """h U with one axis of rows: the gradient of U is then one plain product, which XLA has faster on CPUs."""
  h, kernel = promote_dtype(h, kernel, dtype=dtype)
  return (h.reshape(-1, h.shape[-1]) @ kernel).reshape(*h.shape[:-1], -1)


class LoopedCell(nn.RNNCellBase):
  """A cell by two methods, one step at a time or over a whole sequence.

  `_products(carry, inputs)` gives (kernels, added, more, mask): recurrent matrices by name; what is added to the product
  of each, and what else the step reads, both from inputs of any leading axes; the mask of recurrent dropout or None.
  `_step(carry, more, multiply)` gives the new carry, from what `multiply_by` gives and no parameter else. The output is
  the last leaf of the carry.
  """

  def _products(self, carry: Carry, inputs: Array) -> tuple[dict[str, Array], dict[str, Array], Any, Array | None]:
    raise NotImplementedError

  def _step(self, carry: Carry, more: Any, multiply: Multiply) -> Carry:
    raise NotImplementedError

  def __call__(self, carry: Carry, inputs: Float[Array, "*B D"]) -> tuple[Carry, Float[Array, "*B F"]]:
    """One step."""
    kernels, added, more, mask = self._products(carry, inputs)
    carry = self._step(carry, more, multiply_by(kernels, added, mask, self.dtype))
    return carry, _output(carry)

  def scan(
    self,
    carry: Carry,
    inputs: Float[Array, "B T D"],
    real: Bool[Array, "B T"] | None = None,
    starts: Bool[Array, "B T"] | None = None,
    unroll: int = 1,
  ) -> tuple[Carry, Float[Array, "B T F"]]:
    """All steps: what as many calls give, to rounding.

    The state stands still where `real` is False, and is as at the beginning before the steps where `starts` is True.
    """
    batch, length, width = inputs.shape
    kernels, added, more, mask = self._products(carry, inputs.swapaxes(0, 1).reshape(-1, width))
    by_step = lambda x: jnp.broadcast_to(x, (length * batch, x.shape[-1])).reshape(length, batch, -1)
    added, more = jax.tree.map(by_step, (added, more))
    first = self.initialize_carry(root_key(0), inputs[:, 0].shape)
    marks = jax.tree.map(jnp.transpose, (real, starts))
    last, outputs = _loop(self._step, self.dtype, unroll, kernels, carry, added, more, (marks, first, mask))
    return last, outputs.swapaxes(0, 1)

  @property
  def num_feature_axes(self) -> int:
    return 1


def _output(carry: Carry) -> Float[Array, "*B F"]:
  return jax.tree.leaves(carry)[-1]


def _where(marked: Bool[Array, " B"] | None, new: Carry, old: Carry) -> Carry:
  """`new` in the rows that are marked, `old` in the others."""
  return jax.tree.map(lambda a, b: jnp.where(marked[:, None], a, b), new, old)


def _scan(step, dtype, unroll, kernels, carry, added, more, fixed):
  """((last carry, outputs), what each kernel was multiplied with at each step)."""
  marks, first, mask = fixed

  def turn(carry, x):
    added, more, (real, starts) = x
    seen = {}

    def multiply(name, h):
      seen[name] = h if mask is None else h * mask
      return _multiply(seen[name], kernels[name], dtype) + added[name]

    carry = carry if starts is None else _where(starts, first, carry)
    new = step(carry, more, multiply)
    new = new if real is None else _where(real, new, carry)
    return new, (_output(new), seen)

  last, (outputs, seen) = jax.lax.scan(turn, carry, (added, more, marks), unroll=unroll)
  return (last, outputs), seen


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _loop(step, dtype, unroll, *arguments):
  return _scan(step, dtype, unroll, *arguments)[0]


@_loop.defjvp
def _push(step, dtype, unroll, primals, tangents):
  """A change of a kernel is a change of what is added to its products: the loop knows the kernels as constants."""
  kernels, *inputs, fixed = primals
  d_kernels, d_carry, d_added, d_more, _ = tangents
  run = lambda *inputs: _scan(step, dtype, unroll, kernels, *inputs, fixed)
  found, push, seen = jax.linearize(run, *inputs, has_aux=True)
  d_added = {name: _multiply(seen[name], d_kernels[name], dtype) + d_added[name] for name in seen}
  return found, push(d_carry, d_added, d_more)
