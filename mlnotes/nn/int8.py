"""Whole numbers of 8 bits in the place of weights and activations: a quarter of float32's memory.

    y = int8_product(x, quantize(w, axis=0))                    # x (..., K) in rows, w (K, N) in columns
    layers, rest = quantize_layers(params)                      # the matrices of all dense layers
    with int8_layers(layers):
      logits = model.apply({"params": rest}, tokens)

Symmetric: 0 stays 0, and the largest value of a row or column becomes 127. Dettmers et al. 2022, sec. 2 and 3.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8

from mlnotes.nn.dense import Dense


class Quantized(NamedTuple):
  """x is about `values` times `scale`, which has the axes that it was quantized over at size 1."""

  values: Int8[Array, "..."]
  scale: Float[Array, "..."]


def quantize(x: Float[Array, "..."], axis: int | tuple[int, ...], bits: int = 8) -> Quantized:
  """round(127 x / max |x|), the maximum over `axis`. Dettmers et al. 2022, sec. 2.1.

  The error of each value is half a step at most, scale / 2; what is all 0 has the scale 1. Of fewer `bits` the largest
  is 2^(bits - 1) - 1 in the place of 127; the array's numbers have 8 all the same. Raises ValueError for fewer than 2
  bits or more than 8.
  """
  if not 2 <= bits <= 8:
    raise ValueError(f"bits is {bits}, expected 2 to 8")
  most = 2 ** (bits - 1) - 1
  largest = jnp.max(jnp.abs(x.astype(jnp.float32)), axis, keepdims=True)
  scale = jnp.where(largest > 0, largest / most, 1)
  return Quantized(jnp.round(x.astype(jnp.float32) / scale).astype(jnp.int8), scale)


def dequantize(x: Quantized, dtype: DTypeLike = jnp.float32) -> Float[Array, "..."]:
  return (x.values.astype(jnp.float32) * x.scale).astype(dtype)


def int8_product(x: Float[Array, "*B K"], weight: Quantized, outlier: float = 6.0) -> Float[Array, "*B N"]:
  """x W of a W (K, N) that is quantized over axis 0, in x's dtype. Dettmers et al. 2022, sec. 3: LLM.int8().

  Each row of x is quantized, products are summed in 32-bit whole numbers, exactly, and multiplied by both scales.
  Features of x that have a value beyond `outlier` anywhere are left out of that and multiplied as they are, with W's
  rows turned back; 0: none are. Raises ValueError for a weight that is quantized over another axis.
  """
  values, scale = weight
  if values.ndim != 2 or scale.shape != (1, values.shape[1]):
    raise ValueError(
      f"the weight's scale has shape {scale.shape}, expected (1, {values.shape[-1]}): quantize over axis 0"
    )
  if outlier:
    beyond = jnp.any(jnp.abs(x) > outlier, tuple(range(x.ndim - 1)), keepdims=True)
    apart, x_in = jnp.where(beyond, x, 0), jnp.where(beyond, 0, x)
  else:
    apart, x_in = None, x
  rows = quantize(x_in, -1)
  product = jax.lax.dot_general(
    rows.values, values, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=jnp.int32
  )
  wide = lambda array: jnp.expand_dims(array, range(x.ndim - 2)) if x.ndim > 2 else array
  y = product.astype(jnp.float32) * rows.scale * (wide(scale) if x.ndim > 1 else scale[0])
  if apart is not None:
    y = y + apart.astype(jnp.float32) @ dequantize(weight)
  return y.astype(x.dtype)


def quantize_layers(params: Any, name: str = "kernel", bits: int = 8) -> tuple[dict[str, Quantized], Any]:
  """({path: its matrix, quantized over the inputs}, the parameters without them) of what is called `name`.

  `bits` is that of `quantize`. Raises ValueError where nothing with two axes is.
  """
  flat = flatten_dict(params, sep="/")
  chosen = {path: x for path, x in flat.items() if path.rsplit("/", 1)[-1] == name and x.ndim == 2}
  if not chosen:
    raise ValueError(f"found no matrix called {name!r} among the parameters, expected some")
  rest = {path: x for path, x in flat.items() if path not in chosen}
  return {path: quantize(x, 0, bits) for path, x in chosen.items()}, unflatten_dict(rest, sep="/")


@contextlib.contextmanager
def int8_layers(layers: Mapping[str, Quantized], outlier: float = 6.0) -> Iterator[None]:
  """Within it, every dense layer with a quantized matrix computes `int8_product` and adds its bias.

  Of any network of Flax's dense layers, or this library's. Raises ValueError where a matrix is of no such layer.
  """
  met = set()

  def replace(call, args, kwargs, context):
    path = "/".join((*context.module.path, "kernel"))
    if context.method_name != "__call__" or not isinstance(context.module, nn.Dense | Dense) or path not in layers:
      return call(*args, **kwargs)
    met.add(path)
    x = args[0] if args else kwargs["inputs"]
    x = x.astype(context.module.dtype or x.dtype)
    y = int8_product(x, layers[path], outlier)
    if context.module.use_bias:
      bias = context.module.get_variable("params", "bias").astype(y.dtype)
      y = y + jnp.expand_dims(bias, range(y.ndim - 1))
    return y

  with nn.intercept_methods(replace):
    yield
  missed = sorted(layers.keys() - met)
  if missed:
    raise ValueError(f"{missed[0]} is of no Dense layer that was called, expected one")
