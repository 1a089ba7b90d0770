"""The loop over a sequence of cells that mix their state by matrices, with as few products in it as there can be.

What a cell takes from its inputs does not depend on its state: W x_t + b of all steps are one product before the loop.
And what changes a recurrent matrix U changes the sums U h_{t-1} as if it were added to them, so that its gradient,

  dU = sum_t h_{t-1}^T d(U h_{t-1}),

is one product behind the backward loop, instead of a sum that each turn reads and writes.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.extend.core.primitives import dot_general_p, logistic_p, tanh_p
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from mlnotes.engine.experiment import root_key

Carry = Any
Named = Mapping[str, Array]
Multiply = Callable[[str, Array], Array]


class LoopedCell(nn.RNNCellBase):
  """A cell by two methods, for one step and for a whole sequence alike.

  `_products(carry, inputs)` gives (kernels, added, more, mask): the recurrent matrices by name; what is added to the
  product with each, and what else a step reads or None, both of inputs with any leading axes; the mask of recurrent
  dropout or None. `_step(carry, more, multiply)` gives the new carry, whose last leaf is the output;
  `multiply(name, h)` is (mask h) U + added of that name, and the step sees no other parameter.
  """

  def _products(self, carry: Carry, inputs: Array) -> tuple[Named, Named, Any, Array | None]:
    raise NotImplementedError

  def _step(self, carry: Carry, more: Any, multiply: Multiply) -> Carry:
    raise NotImplementedError

  def __call__(self, carry: Carry, inputs: Float[Array, "*B D"]) -> tuple[Carry, Float[Array, "*B F"]]:
    """One step."""
    kernels, added, more, mask = self._products(carry, inputs)
    new, _ = _make_step(self._step, self.dtype, kernels, mask)(carry, added, more)
    return new, _output(new)

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
    marks = jax.tree.map(jnp.transpose, (real, starts))
    first = self.initialize_carry(root_key(0), (batch, width))
    fixed = (mask, first, marks)
    last, outputs = _loop(self._step, self.dtype, unroll, kernels, carry, added, more, fixed)
    return last, outputs.swapaxes(0, 1)

  @property
  def num_feature_axes(self) -> int:
    return 1


def _output(carry: Carry) -> Float[Array, "*B F"]:
  return jax.tree.leaves(carry)[-1]


def _multiply(h: Float[Array, "*B F"], kernel: Float[Array, "F G"], dtype: DTypeLike | None) -> Float[Array, "*B G"]:
  """h U over one axis of rows: with two of them XLA needs more than half as long again for U's gradient on CPUs."""
  h, kernel = promote_dtype(h, kernel, dtype=dtype)
  return (h.reshape(-1, h.shape[-1]) @ kernel).reshape(*h.shape[:-1], -1)


def _make_step(step: Callable[..., Carry], dtype: DTypeLike | None, kernels: Named, mask: Array | None) -> Callable:
  """(carry, added, more) -> (new carry, what each kernel was multiplied with)."""

  def run(carry, added, more):
    seen = {}

    def multiply(name, h):
      seen[name] = h if mask is None else h * mask
      return _multiply(seen[name], kernels[name], dtype) + added[name]

    return step(carry, more, multiply), seen

  return run


def _is_kept(primitive: Any, *_: Any, **__: Any) -> bool:
  """Whether a step's values are kept for the backward loop, where what is entrywise and cheap is computed again."""
  return primitive in (dot_general_p, logistic_p, tanh_p)


def _scan(step, dtype, unroll, kernels, carry, added, more, fixed):
  """((last carry, outputs), what each kernel was multiplied with at each step)."""
  mask, first, marks = fixed
  run = jax.checkpoint(_make_step(step, dtype, kernels, mask), policy=_is_kept, prevent_cse=False)

  def turn(carry, x):
    added, more, (real, starts) = x
    before = carry if starts is None else _choose(starts, first, carry)
    new, seen = run(before, added, more)
    new = new if real is None else _choose(real, new, carry)
    return new, (_output(new), seen)

  last, (outputs, seen) = jax.lax.scan(turn, carry, (added, more, marks), unroll=unroll)
  return (last, outputs), seen


def _choose(rows: Bool[Array, " B"], new: Carry, old: Carry) -> Carry:
  return jax.tree.map(lambda new, old: jnp.where(rows[:, None], new, old), new, old)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _loop(step, dtype, unroll, kernels, carry, added, more, fixed):
  """(last carry, outputs); nothing is differentiated by what is `fixed`."""
  return _scan(step, dtype, unroll, kernels, carry, added, more, fixed)[0]


@_loop.defjvp
def _push_forward(step, dtype, unroll, primals, tangents):
  """The loop's derivative with constant kernels; their change goes in by what is added to their products."""
  kernels, *inputs, fixed = primals
  d_kernels, d_carry, d_added, d_more, _ = tangents
  scan = lambda *inputs: _scan(step, dtype, unroll, kernels, *inputs, fixed)
  found, push, seen = jax.linearize(scan, *inputs, has_aux=True)
  d_added = {name: _multiply(seen[name], d_kernels[name], dtype) + d_added[name] for name in seen}
  return found, push(d_carry, d_added, d_more)
