"""The Hessian of a loss without forming it: products, extreme eigenvalues, spectrum; minima, saddles and their escape.

A `loss` is a function of a parameter pytree alone, with its batch inside. It is given parameters in float32 where they
are narrower: second differences are below the resolution of bfloat16.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, SupportsFloat

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from mlnotes.engine.experiment import root_key
from mlnotes.optim.precision import to_accumulator

Loss = Callable[[Any], Float[Array, ""]]
Vector = Float[Array, " N"]


def hessian_vector_product(loss: Loss, params: Any, vector: Any) -> Any:
  """H v as a pytree like the parameters, at about twice the cost of a gradient (Pearlmutter 1994)."""
  return jax.jvp(jax.grad(loss), (params,), (vector,))[1]


def _flatten(params: Any) -> tuple[Vector, Callable[[Vector], Any]]:
  """`ravel_pytree` of the parameters in float32 or wider."""
  return ravel_pytree(jax.tree.map(to_accumulator, params))


def compute_hessian(loss: Loss, params: Any) -> Float[Array, "N N"]:
  """The full Hessian in the order of `ravel_pytree`: for networks of up to a few thousand parameters."""
  flat, unravel = _flatten(params)
  return jax.hessian(lambda x: loss(unravel(x)))(flat)


def flat_product(loss: Loss, params: Any) -> tuple[Callable[[Vector], Vector], Callable[[Vector], Any], int]:
  """(v -> H v on flat vectors, the function that turns a flat vector into a pytree, number of parameters)."""
  flat, unravel = _flatten(params)
  product = lambda v: ravel_pytree(hessian_vector_product(loss, unravel(flat), unravel(v)))[0]
  return product, unravel, flat.size


class Tridiagonal(NamedTuple):
  """Lanczos' T: `diagonal` (M,), `off_diagonal` (M - 1,), and its orthonormal `basis` (M, N) as rows."""

  diagonal: Float[Array, " M"]
  off_diagonal: Float[Array, " M-1"]
  basis: Float[Array, "M N"]


def lanczos(product: Callable[[Vector], Vector], start: Vector, num_steps: int) -> Tridiagonal:
  """The symmetric matrix behind `product` on the Krylov space of `start`, tridiagonal.

  Each new vector is orthogonalised twice against all earlier ones (Golub & Van Loan 2013, section 10.3): without that,
  rounding brings copies of the extreme eigenvalues. `num_steps` of at most len(start). Where the space is exhausted
  early the off-diagonal is 0, and the rest goes on in an orthogonal direction. In float32 where `start` is narrower.
  """
  narrow, start = start.dtype, to_accumulator(start)
  count, size = num_steps, start.size
  if not 1 <= count <= size:
    raise ValueError(f"num_steps={count} is out of range: expected 1 to {size}, the number of parameters.")
  fallback = jax.random.normal(root_key(0), (count, size), start.dtype)

  def body(carry, step):
    basis, v = carry
    basis = basis.at[step].set(v)
    w = product(v.astype(narrow)).astype(v.dtype)
    diagonal = w @ v
    scale = jnp.linalg.norm(w)
    orthogonal = lambda w: w - (basis @ w) @ basis
    w = orthogonal(orthogonal(w))
    off = jnp.linalg.norm(w)
    exhausted = off <= 10 * jnp.finfo(w.dtype).eps * jnp.maximum(scale, jnp.finfo(w.dtype).tiny)
    w = jnp.where(exhausted, orthogonal(orthogonal(fallback[step])), w)
    return (basis, w / jnp.linalg.norm(w)), (diagonal, jnp.where(exhausted, 0, off))

  start = start / jnp.linalg.norm(start)
  (basis, _), (diagonal, off) = jax.lax.scan(body, (jnp.zeros((count, size), start.dtype), start), jnp.arange(count))
  return Tridiagonal(diagonal, off[:-1], basis)


def _eigh(tridiagonal: Tridiagonal) -> tuple[Array, Array]:
  dense = (
    jnp.diag(tridiagonal.diagonal) + jnp.diag(tridiagonal.off_diagonal, 1) + jnp.diag(tridiagonal.off_diagonal, -1)
  )
  return jnp.linalg.eigh(dense)


class Extremes(NamedTuple):
  """Smallest and largest eigenvalue of the Hessian, with unit eigenvectors as pytrees like the parameters."""

  smallest: Float[Array, ""]
  largest: Float[Array, ""]
  lowest_direction: Any
  highest_direction: Any


def compute_extreme_eigenvalues(loss: Loss, params: Any, key: Key[Array, ""], num_steps: int = 64) -> Extremes:
  """The ends of the spectrum by Lanczos from a random vector; `num_steps` products, or as many as parameters."""
  product, unravel, size = flat_product(loss, params)
  start = jax.random.normal(key, (size,), _flatten(params)[0].dtype)
  tridiagonal = lanczos(product, start, min(num_steps, size))
  values, vectors = _eigh(tridiagonal)
  direction = lambda column: unravel(vectors[:, column] @ tridiagonal.basis)
  return Extremes(values[0], values[-1], direction(0), direction(-1))


class Spectrum(NamedTuple):
  """Estimated eigenvalue distribution: points `nodes` (P, M) with `weights` (P, M) that sum to 1 per probe."""

  nodes: Float[Array, "P M"]
  weights: Float[Array, "P M"]

  def density(self, grid: Float[Array, " G"], width: float) -> Float[Array, " G"]:
    """The density on `grid`, each node widened to a Gaussian of standard deviation `width`; mean over probes."""
    kernel = jnp.exp(-0.5 * ((grid[:, None, None] - self.nodes[None]) / width) ** 2) / (width * np.sqrt(2 * np.pi))
    return jnp.mean(jnp.sum(kernel * self.weights[None], 2), 1)

  def fraction_above(self, threshold: float = 0.0) -> Float[Array, ""]:
    """The share of eigenvalues above `threshold`; above 0 it is an estimate of the minimum ratio."""
    return jnp.mean(jnp.sum(self.weights * (self.nodes > threshold), 1))


def estimate_spectrum(
  loss: Loss, params: Any, key: Key[Array, ""], num_steps: int = 64, num_probes: int = 8
) -> Spectrum:
  """Stochastic Lanczos quadrature of the Hessian's spectrum (Ghorbani et al. 2019, section 2).

  Each probe is a random unit vector v; Gauss' rule for the measure sum_i (v.u_i)^2 delta(lambda_i) has the eigenvalues
  of Lanczos' T as nodes and the squared first entries of its eigenvectors as weights. Exact in all moments up to
  2 num_steps - 1 of that measure, whose mean over probes is the spectrum.
  """
  product, _, size = flat_product(loss, params)

  def probe(key):
    start = jax.random.normal(key, (size,), _flatten(params)[0].dtype)
    values, vectors = _eigh(lanczos(product, start, min(num_steps, size)))
    return values, vectors[0] ** 2

  return Spectrum(*jax.lax.map(probe, jax.random.split(key, num_probes)))


def compute_minimum_ratio(eigenvalues: Float[Array, " N"], tolerance: float = 0.0) -> Float[Array, ""]:
  """The share of positive eigenvalues at a critical point: 1 in a minimum, about 1/2 on a saddle in between.

  `tolerance`: eigenvalues up to it count as zero.
  """
  return jnp.mean(eigenvalues > tolerance)


def classify_critical_point(
  gradient_norm: SupportsFloat, smallest: SupportsFloat, largest: SupportsFloat, tolerance: float = 1e-3
) -> str:
  """ "minimum", "maximum", "saddle", "flat" or "not critical", from the gradient and the extreme eigenvalues.

  `tolerance`: a gradient, and relative to the largest absolute eigenvalue an eigenvalue, below it counts as zero.
  A minimum may have flat directions. Raises ValueError for NaN.
  """
  gradient_norm, smallest, largest = float(gradient_norm), float(smallest), float(largest)
  if np.isnan([gradient_norm, smallest, largest]).any():
    raise ValueError(
      f"found NaN among gradient_norm={gradient_norm}, smallest={smallest}, largest={largest}: expected numbers."
    )
  if gradient_norm > tolerance:
    return "not critical"
  zero = tolerance * max(abs(smallest), abs(largest))
  down, up = smallest < -zero, largest > zero
  return {(True, True): "saddle", (False, True): "minimum", (True, False): "maximum"}.get((down, up), "flat")


class Escape(NamedTuple):
  """Where a step along negative curvature leads; `decrease` is 0, and the parameters the same, where there is none."""

  params: Any
  decrease: Float[Array, ""]
  eigenvalue: Float[Array, ""]


def escape_saddle(
  loss: Loss, params: Any, key: Key[Array, ""], max_step: float = 1.0, num_steps: int = 64, halvings: int = 12
) -> Escape:
  """The best of the steps +-max_step / 2^i along the eigenvector of the most negative eigenvalue.

  Where the gradient vanishes the loss changes by lambda step^2 / 2 along it: gradient descent stays, this goes on.
  """
  extremes = compute_extreme_eigenvalues(loss, params, key, num_steps)
  sizes = max_step * 0.5 ** jnp.arange(halvings)
  sizes = jnp.concatenate([jnp.zeros(1), sizes, -sizes])
  move = lambda size: jax.tree.map(lambda p, d: p + (size * d).astype(p.dtype), params, extremes.lowest_direction)
  losses = jax.lax.map(lambda size: loss(move(size)), sizes)
  allowed = jnp.where((extremes.smallest < 0) & jnp.isfinite(losses), losses, jnp.inf).at[0].set(losses[0])
  best = jnp.argmin(allowed)
  return Escape(move(sizes[best]), losses[0] - allowed[best], extremes.smallest)


def compute_sharpness(
  loss: Loss, params: Any, radius: float, key: Key[Array, ""], num_steps: int = 20
) -> Float[Array, ""]:
  """max over |d| <= radius of loss(params + d) - loss(params), by projected ascent along normalised gradients.

  Starts in a random direction, as at a minimum the gradient is 0. Close to radius^2 / 2 times the largest eigenvalue
  there. Keskar et al. 2017, section 2.2.2, with a ball in the place of the box and without their division by 1 + loss.
  """
  flat, unravel = _flatten(params)
  value = lambda d: loss(unravel(flat + d))
  unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x), jnp.finfo(x.dtype).tiny)

  def body(d, _):
    # The ascent of a quadratic along its gradient, back on the sphere, is a power iteration.
    d = radius * unit(d + radius * unit(jax.grad(value)(d)))
    return d, value(d)

  _, values = jax.lax.scan(body, radius * unit(jax.random.normal(key, flat.shape, flat.dtype)), length=num_steps)
  return jnp.maximum(jnp.max(values) - loss(unravel(flat)), 0)
