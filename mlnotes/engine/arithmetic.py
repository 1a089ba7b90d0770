"""How much arithmetic a program asks for."""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.extend import core

# One operation for each element of the result; transcendental functions count as one too.
_ELEMENTWISE = frozenset({
  "add", "add_any", "sub", "mul", "div", "rem", "neg", "abs", "sign", "floor", "ceil", "round", "max", "min", "clamp",
  "pow", "integer_pow", "square", "sqrt", "rsqrt", "cbrt", "exp", "exp2", "expm1", "log", "log1p", "logistic", "tanh",
  "sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "erf", "erfc", "erf_inv", "lgamma", "digamma",
})  # fmt: skip
# These are several: log(x) * constant, (1 + x) * (1 - x).
_COMPOSED = {"log2": 2, "one_minus_square": 3}
# One operation for each element that goes in.
_REDUCTIONS = frozenset({
  "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp",
})  # fmt: skip


class Work(NamedTuple):
  """Floating-point operations: `flops` in all, `matrix_flops` of them in matrix products and convolutions.

  `exact` is False where a loop's number of turns depends on the data: its body counts once.
  """

  flops: float = 0.0
  matrix_flops: float = 0.0
  exact: bool = True

  def plus(self, other: "Work", times: float | int = 1) -> "Work":
    return Work(
      self.flops + times * other.flops, self.matrix_flops + times * other.matrix_flops, self.exact and other.exact
    )


def count_flops(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> Work:
  """The arithmetic of a traced function: an addition and a multiplication are one operation each.

  A scan counts as often as it turns, which XLA's own analysis does not do; of a conditional the dearest side counts.
  """
  work = Work()
  for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
    work = work.plus(_count_equation(equation))
  return work


def _count_equation(equation: core.JaxprEqn) -> Work:
  name, params = equation.primitive.name, equation.params
  if name == "scan":
    return Work().plus(count_flops(params["jaxpr"]), params["length"])
  if name == "shard_map":  # the body is what one device does
    return Work().plus(count_flops(params["jaxpr"]), params["mesh"].size)
  if name == "while":
    turn = count_flops(params["cond_jaxpr"]).plus(count_flops(params["body_jaxpr"]))
    return turn._replace(exact=turn.exact and turn.flops == 0)
  if name == "cond":
    return max(map(count_flops, params["branches"]), key=lambda work: work.flops)
  if name in _PRODUCTS:
    flops = 2.0 * _PRODUCTS[name](equation)
    return Work(flops, flops)
  result = equation.outvars[0].aval if equation.outvars else None
  if name in _ELEMENTWISE or name in _COMPOSED or name in _REDUCTIONS:
    counted = equation.invars[0].aval if name in _REDUCTIONS else result
    each = _COMPOSED.get(name, 1)
    return Work(float(each * counted.size) if jnp.issubdtype(result.dtype, jnp.inexact) else 0.0)
  if name.startswith(("scatter", "reduce")):  # hold the function of two elements that they combine by
    return Work()
  return functools.reduce(Work.plus, map(count_flops, core.jaxprs_in_params(params)), Work())


def _dot_products(equation: core.JaxprEqn) -> int:
  (contracted, _), _ = equation.params["dimension_numbers"]
  return equation.outvars[0].aval.size * math.prod(equation.invars[0].aval.shape[i] for i in contracted)


def _convolution_products(equation: core.JaxprEqn) -> int:
  params, numbers = equation.params, equation.params["dimension_numbers"]
  lhs, rhs, out = (v.aval.shape for v in (*equation.invars[:2], equation.outvars[0]))
  spatial = lambda shape, spec: [shape[i] for i in spec[2:]]
  sizes = (spatial(lhs, numbers.lhs_spec), spatial(rhs, numbers.rhs_spec), spatial(out, numbers.out_spec))
  names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
  pairs = math.prod(map(_count_pairs, *sizes, *(params[name] for name in names)))
  return out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * rhs[numbers.rhs_spec[1]] * pairs


def _count_pairs(size: int, taps: int, positions: int, stride: int, padding, lhs_dilation: int, dilation: int) -> int:
  """Along one axis, the pairs of a position and a tap that meet an input, not the zeros of padding and dilation."""
  at = np.arange(positions)[:, None] * stride + np.arange(taps) * dilation - padding[0]
  return int(np.sum((at >= 0) & (at % lhs_dilation == 0) & (at // lhs_dilation < size)))


def _form_products(equation: core.JaxprEqn) -> int:
  """Of `mlnotes.nn.trilinear`'s own primitive: as many for a convolution as for either of its gradients."""
  geometry, out = equation.params["geometry"], equation.params["out"]
  names = [name for name in ("x", "kernel", "y") if name != out]
  shapes = {name: v.aval.shape for name, v in zip((*names, out), (*equation.invars, *equation.outvars))}
  rank = len(geometry.window)
  lead, (batch, *positions, outputs) = math.prod(shapes["y"][: -rank - 2]), shapes["y"][-rank - 2 :]
  ones = (1,) * rank
  pairs = math.prod(
    map(_count_pairs, geometry.sizes, geometry.window, positions, geometry.strides, geometry.padding, ones,
        geometry.dilation)
  )  # fmt: skip
  return lead * batch * shapes["x"][-1] * outputs * pairs // geometry.groups


def _ragged_products(equation: core.JaxprEqn) -> int:
  """Each row of the first operand meets one matrix of the second."""
  return equation.outvars[0].aval.size * equation.invars[0].aval.shape[-1]


# Multiplications, each with its addition.
_PRODUCTS = {
  "dot_general": _dot_products,
  "conv_general_dilated": _convolution_products,
  "convolution_form": _form_products,
  "ragged_dot_general": _ragged_products,
}
