"""How much arithmetic a program asks for, and how much a device can do."""

import functools
import math
from typing import NamedTuple

import jax
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

  def plus(self, other: "Work", times: float = 1) -> "Work":
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


# Multiplications, each with its addition.
_PRODUCTS = {
  "dot_general": _dot_products,
  "conv_general_dilated": _convolution_products,
  "convolution_form": _form_products,
}


# Peak TFLOP/s of one JAX device, dense: (with --precision=bfloat16, with float32). The float32 figure is that of the
# units which float32 matrix products run on at JAX's default precision: TF32 on NVIDIA's tensor cores from the A100
# on, bfloat16 passes on TPUs. The first name that `device_kind` starts with counts.
#
# NVIDIA: data sheets of V100 and T4 (Tensor Core figures are for float16, bfloat16 runs on the float32 units), A100,
#   L4, L40S, H100 (SXM5, PCIe, NVL), H200 and B200; where a sheet prints figures "with sparsity", half of them.
# TPU: cloud.google.com/tpu/docs/v4, v5e, v5p, v6e and tpu7x; on v2, v3 and 7x one JAX device is one of the two cores of
#   a chip, so half a chip's.
_PEAK_TFLOPS = {
  "NVIDIA A100": (312.0, 156.0),
  "NVIDIA H100 PCIe": (756.5, 378.0),
  "NVIDIA H100 NVL": (835.5, 417.5),
  "NVIDIA H100": (989.5, 494.5),
  "NVIDIA H200 NVL": (835.5, 417.5),
  "NVIDIA H200": (989.5, 494.5),
  "NVIDIA GH200": (989.5, 494.5),
  "NVIDIA B200": (2250.0, 1125.0),
  "NVIDIA L40S": (362.0, 183.0),
  "NVIDIA L4": (121.0, 60.0),
  "Tesla V100": (15.7, 15.7),
  "Tesla T4": (8.1, 8.1),
  "TPU v2": (23.0, 23.0),
  "TPU v3": (61.5, 61.5),
  "TPU v4 lite": (137.0, 137.0),
  "TPU v4": (275.0, 275.0),
  "TPU v5 lite": (197.0, 197.0),
  "TPU v5e": (197.0, 197.0),
  "TPU v5": (459.0, 459.0),
  "TPU v6": (918.0, 918.0),
  "TPU7": (1153.5, 1153.5),
}


class Peak(NamedTuple):
  """FLOP/s of all the devices together; None where it is not known."""

  flops_per_second: float | None
  source: str


def find_peak(devices: list[jax.Device], precision: str) -> Peak:
  """The peak of equal devices: from the table, or on the CPU measured by a matrix product on each at once."""
  kind = devices[0].device_kind
  if devices[0].platform == "cpu":
    return Peak(_time_matrix_product(devices, precision), "matrix products of 2048 x 2048, measured")
  for name, (bfloat16, float32) in _PEAK_TFLOPS.items():
    if kind.startswith(name):
      return Peak(1e12 * len(devices) * (bfloat16 if precision == "bfloat16" else float32), f"data sheet of {name}")
  return Peak(None, f"unknown: no entry for {kind!r}")


def _time_matrix_product(devices: list[jax.Device], precision: str, size: int = 2048, repeats: int = 5) -> float:
  from launch.timing import time_call

  operands = [jax.device_put(jnp.ones((size, size), precision), device) for device in devices]
  product = jax.jit(jnp.dot)
  call = lambda: [product(x, x) for x in operands]
  jax.block_until_ready(call())
  return len(devices) * 2 * size**3 / min(time_call(call) for _ in range(repeats))
