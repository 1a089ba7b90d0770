"""Low-rank updates of matrices: LoRA. Hu et al. 2022. A transformation of parameters, of any Flax network.

lora = init_lora(key, params, rank=4)
loss_of = lambda lora: loss(apply_lora(params, lora, alpha=8))       # differentiate, and optimise, lora alone
tuned = merge(params, lora, alpha=8)                                 # as many parameters as before
"""

import contextlib
import re
import zlib
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mlnotes.lm.trainable import find_paths, flatten, unflatten
from mlnotes.nn.dense import Dense

Scalar = Float[Array, ""] | float | int
Lora = dict[str, Any]

# Hu et al. 2022, sec. 4.2: of attention's matrices those of queries and values first.
QUERY_AND_VALUE = r"(^|/)(query|value)/kernel$"
_FACTOR = re.compile(r"(.*)/lora_(a|b)$")


def init_lora(key: Key[Array, ""], params: Any, rank: int, targets: str = QUERY_AND_VALUE, input_axes: int = 1) -> Lora:
  """A and B of each parameter whose path the pattern finds: W (D, K) gets A (D, r), drawn, and B (r, K), zeros.

  A network with them computes at first what it did without. Kernels of more than two axes are matrices from the first
  `input_axes` of them to the rest. A is uniform within 1 / sqrt(D), as in the authors' code; the paper says Gaussian.
  Raises ValueError for a rank below 1, or above the smaller side of a matrix, for a target with fewer than two axes,
  or where the pattern finds nothing.
  """
  if rank < 1:
    raise ValueError(f"rank is {rank}, expected 1 or more")
  flat = flatten(params)
  paths = find_paths(params, targets)
  lora = {}
  for path, of_path in zip(paths, jax.random.split(key, len(paths))):
    kernel = flat[path]
    if kernel.ndim <= input_axes:
      raise ValueError(f"{path} has shape {kernel.shape}, expected more than {input_axes} axes: targets are matrices")
    rows, columns = _sides(kernel, input_axes)
    if rank > min(rows, columns):
      raise ValueError(f"rank is {rank}, expected at most {min(rows, columns)} for {path} of {rows} x {columns}")
    bound = rows**-0.5
    lora[f"{path}/lora_a"] = jax.random.uniform(of_path, (rows, rank), kernel.dtype, -bound, bound)
    lora[f"{path}/lora_b"] = jnp.zeros((rank, columns), kernel.dtype)
  return unflatten(lora)


def _sides(kernel: Array, input_axes: int) -> tuple[int, int]:
  rows = 1
  for size in kernel.shape[:input_axes]:
    rows *= size
  return rows, kernel.size // rows


def _factors(lora: Lora) -> dict[str, tuple[Array, Array]]:
  """(A, B) of each target."""
  flat, found = flatten(lora), {}
  for path in flat:
    part = _FACTOR.match(path)
    if part is None or f"{part[1]}/lora_a" not in flat or f"{part[1]}/lora_b" not in flat:
      raise ValueError(f"found {path} among the factors, expected lora_a and lora_b of each target")
    found[part[1]] = (flat[f"{part[1]}/lora_a"], flat[f"{part[1]}/lora_b"])
  return found


def apply_lora(params: Any, lora: Lora, alpha: Scalar) -> dict[str, Any]:
  """The parameters with W + (alpha / r) A B in the place of each W. Hu et al. 2022, sec. 4.1.

  Within the step this is LoRA itself: the product x (W + s A B) is x W + s (x A) B, and gradients of A and B are the
  same. It costs a matrix of W's size for each target and update; `lora_layers` makes none, and has dropout on the input
  of A, which merged weights cannot have. A parameter that two layers share is changed for both. `alpha` / r as a
  whole scales: r is what A and B have.
  Raises ValueError where the parameters have no such W.
  """
  return _add(params, lora, alpha)


def merge(params: Any, lora: Lora, alpha: Scalar) -> dict[str, Any]:
  """For good: a network of the old size and speed. The sum is rounded to W's type."""
  return _add(params, lora, alpha)


def unmerge(params: Any, lora: Lora, alpha: Scalar) -> dict[str, Any]:
  """What was merged taken away again: the old parameters but for rounding in W's type."""
  return _add(params, lora, -alpha)


def _add(params: Any, lora: Lora, alpha: Scalar) -> dict[str, Any]:
  flat = dict(flatten(params))
  for path, (a, b) in _factors(lora).items():
    if path not in flat or flat[path].size != a.shape[0] * b.shape[1]:
      found = f"of shape {flat[path].shape}" if path in flat else "missing"
      raise ValueError(f"{path} is {found}, expected a matrix of {a.shape[0]} x {b.shape[1]} as the factors have it")
    kernel = flat[path]
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    product = jnp.matmul(a.astype(wide), b.astype(wide), precision="highest")
    added = (alpha / a.shape[1]) * product.reshape(kernel.shape)
    flat[path] = (kernel.astype(wide) + added).astype(kernel.dtype)
  return unflatten(flat)


@contextlib.contextmanager
def lora_layers(lora: Lora, alpha: Scalar, dropout: float = 0.0, key: Key[Array, ""] | None = None) -> Iterator[None]:
  """Within it, every dense layer with factors computes x W + (alpha / r) dropout(x) A B, and W is left alone.

    with lora_layers(lora, alpha=8, dropout=0.1, key=key):
      logits = model.apply({"params": params}, tokens)

  Of any network of Flax's dense layers, or this library's, without a class of its own: methods are intercepted while a
  program is traced. A layer that is called twice drops the same features twice. Raises ValueError for dropout without a
  key, and where a target was no Dense layer of what ran.
  """
  if dropout and key is None:
    raise ValueError(f"dropout is {dropout}, expected a key with it")
  factors, met = _factors(lora), set()

  def add(call, args, kwargs, context):
    y = call(*args, **kwargs)
    path = "/".join((*context.module.path, "kernel"))
    if context.method_name != "__call__" or not isinstance(context.module, nn.Dense | Dense) or path not in factors:
      return y
    met.add(path)
    a, b = (x.astype(y.dtype) for x in factors[path])
    x = args[0] if args else kwargs["inputs"]
    x = x.astype(y.dtype)
    if dropout:
      own = jax.random.fold_in(key, zlib.crc32(path.encode()))
      x = jnp.where(jax.random.bernoulli(own, 1 - dropout, x.shape), x / (1 - dropout), 0)
    return y + (alpha / a.shape[1]) * ((x @ a) @ b)

  with nn.intercept_methods(add):
    yield
  missed = sorted(factors.keys() - met)
  if missed:
    raise ValueError(f"{missed[0]} is of no Dense layer that was called, expected one: apply_lora takes any matrix")
