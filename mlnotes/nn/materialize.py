"""An array that the CPU computes once, whoever reads it.

XLA's CPU backend computes elementwise operations, slices and concatenations anew inside of each operation that reads
their result. Where every layer reads all earlier ones, as in a dense block, each then repeats the work of those before
it, forward and backward, and is as much larger to compile. `lax.optimization_barrier` does not help: the backend drops
it before it decides what to compute where.
"""

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Shaped


def materialize(x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
  """`x` itself; on the CPU it is in memory before anything reads it, and so is its cotangent."""
  return _materialize.bind(x)


_materialize = Primitive("materialize")
_materialize.def_impl(lambda x: x)
_materialize.def_abstract_eval(lambda x: x)
ad.deflinear2(_materialize, lambda cotangent, x: [cotangent if type(cotangent) is ad.Zero else materialize(cotangent)])
batching.primitive_batchers[_materialize] = lambda operands, axes: (materialize(operands[0]), axes[0])


def _in_a_loop(x: jax.Array) -> jax.Array:
  """What a loop starts from is computed first. This one swaps two channels of one pixel twice, in place.

  The batch is whole in it, so that devices that share it need nothing of each other.
  """
  if x.ndim < 2 or x.shape[-1] < 2 or x.size == 0:
    return x
  space = min(2, x.ndim - 2)
  lead = x.shape[: x.ndim - space - 1]
  at = lambda channel: (0,) * (x.ndim - 1) + (channel,)

  def swap(_, x):
    first, second = (lax.slice(x, at(c), (*lead, *(1,) * space, c + 1)) for c in (0, 1))
    return lax.dynamic_update_slice(lax.dynamic_update_slice(x, second, at(0)), first, at(1))

  return lax.fori_loop(0, 2, swap, x)


mlir.register_lowering(_materialize, lambda context, x: [x])
mlir.register_lowering(_materialize, mlir.lower_fun(_in_a_loop, multiple_results=False), platform="cpu")
