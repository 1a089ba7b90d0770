"""Slices of a loss: lines and planes in parameter space, along random, filter-normalised or trajectory directions."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from mlnotes.optim.decay import is_decayed

Loss = Callable[[Any], Float[Array, ""]]


def sample_direction(key: Key[Array, ""], params: Any) -> Any:
  """A direction with standard normal entries, as a pytree like the parameters."""
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(key, len(leaves))
  return treedef.unflatten([jax.random.normal(k, p.shape, p.dtype) for k, p in zip(keys, leaves)])


def normalize_filters(direction: Any, params: Any) -> Any:
  """`direction` with each filter scaled to the norm of the parameters' filter; biases and other vectors set to 0.

    d_ij <- d_ij / |d_ij| |p_ij|       Li et al. 2018, section 4

  A filter is what feeds one output: all but the last axis of a kernel. Without this a network that is rescaled, layer
  against layer, without changing what it computes, looks flatter or sharper.
  """

  def scale(d, p, is_kernel):
    if not is_kernel:
      return jnp.zeros_like(d)
    norm = lambda x: jnp.linalg.norm(x.reshape(-1, x.shape[-1]), axis=0)
    ratio = norm(p) / jnp.maximum(norm(d), jnp.finfo(d.dtype).tiny)
    return d * jnp.expand_dims(ratio, range(d.ndim - 1))

  return jax.tree.map(scale, direction, params, is_decayed(params))


class Plane(NamedTuple):
  """The plane origin + x first + y second; `explained` is the share of the trajectory's variance along each."""

  origin: Any
  first: Any
  second: Any
  explained: Float[Array, " 2"]


def fit_plane(trajectory: Sequence[Any]) -> Plane:
  """The plane through the last point along the two principal components of the others' offsets from it.

  `trajectory`: parameter pytrees in order of time, three or more. Coordinates are distances: the axes are unit
  vectors. Li et al. 2018, section 7.1. Raises ValueError where the points lie on one line, unless they are traced.
  """
  if len(trajectory) < 3:
    raise ValueError(f"trajectory has {len(trajectory)} points: expected three or more, as a plane needs them.")
  origin, unravel = ravel_pytree(trajectory[-1])
  moved = jnp.stack([ravel_pytree(params)[0] for params in trajectory[:-1]]) - origin[None]
  _, scale, axes = jnp.linalg.svd(moved, full_matrices=False)
  # Not `<=`: NaN is refused as well.
  flat = not isinstance(scale, jax.core.Tracer) and not scale[1] > 100 * jnp.finfo(scale.dtype).eps * scale[0]
  if scale.size < 2 or flat:
    raise ValueError("the points of trajectory lie on one line or are not finite: expected a plane through them.")
  return Plane(unravel(origin), unravel(axes[0]), unravel(axes[1]), (scale**2 / jnp.sum(scale**2))[:2])


def project(plane: Plane, params: Any) -> Float[Array, " 2"]:
  """The coordinates of the point of the plane that is nearest to `params`; the plane's axes must be orthonormal."""
  offset = ravel_pytree(params)[0] - ravel_pytree(plane.origin)[0]
  return jnp.stack([offset @ ravel_pytree(plane.first)[0], offset @ ravel_pytree(plane.second)[0]])


def slice_line(loss: Loss, params: Any, direction: Any, steps: Float[Array, " X"]) -> Float[Array, " X"]:
  """loss(params + step direction) for each step."""
  at = lambda step: loss(jax.tree.map(lambda p, d: p + step * d, params, direction))
  return jax.lax.map(at, steps)


def slice_plane(
  loss: Loss, params: Any, first: Any, second: Any, x: Float[Array, " X"], y: Float[Array, " Y"]
) -> Float[Array, "Y X"]:
  """loss(params + x first + y second) on a grid; rows are y, as contour plots want it."""

  def row(v):
    moved = jax.tree.map(lambda p, d: p + v * d, params, second)
    return slice_line(loss, moved, first, x)

  return jax.lax.map(row, y)
