"""Distances between distributions that game theory and optimal transport give, where they are known exactly."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def jensen_shannon(p: Float[Array, " K"], q: Float[Array, " K"]) -> Float[Array, ""]:
  """Jensen-Shannon divergence of two discrete distributions in nats, from 0 to log 2.

    1/2 KL(p || m) + 1/2 KL(q || m),  m = (p + q) / 2                        Goodfellow et al. 2014, theorem 1

  A discriminator at its best has the loss 2 log 2 - 2 JS. Its gradient is finite where p or q is 0 if the other is not.
  """
  middle = (p + q) / 2
  return 0.5 * jnp.sum(jax.scipy.special.rel_entr(p, middle) + jax.scipy.special.rel_entr(q, middle))


def wasserstein_1d(x: Float[Array, " N"], y: Float[Array, " N"]) -> Float[Array, ""]:
  """Wasserstein-1 distance of two samples of one size on the line: the mean distance of their sorted values.

    W(P, Q) = integral_0^1 |F^-1(u) - G^-1(u)| du                            Peyre & Cuturi 2019

  Raises ValueError for samples of two sizes.
  """
  if x.shape != y.shape or x.ndim != 1:
    raise ValueError(f"found samples of the shapes {x.shape} and {y.shape}, expected one shape (N,).")
  return jnp.mean(jnp.abs(jnp.sort(x) - jnp.sort(y)))


class ParallelLines(NamedTuple):
  """The distances of two uniform distributions on parallel segments, and their derivatives with respect to theta."""

  kullback_leibler: Float[Array, " N"]
  jensen_shannon: Float[Array, " N"]
  total_variation: Float[Array, " N"]
  wasserstein: Float[Array, " N"]
  jensen_shannon_gradient: Float[Array, " N"]
  wasserstein_gradient: Float[Array, " N"]


def parallel_lines(theta: Float[Array, " N"]) -> ParallelLines:
  """(0, U) against (theta, U), U uniform on [0, 1]: Arjovsky et al. 2017, example 1.

  Off theta = 0 the supports are disjoint: KL is infinite, JS log 2, TV 1, all without a gradient, and W is |theta|. The
  derivatives at 0 are given as 0 (JS jumps there, W has a kink).
  """
  apart = theta != 0
  return ParallelLines(
    kullback_leibler=jnp.where(apart, jnp.inf, 0.0),
    jensen_shannon=jnp.where(apart, math.log(2), 0.0),
    total_variation=jnp.where(apart, 1.0, 0.0),
    wasserstein=jnp.abs(theta),
    jensen_shannon_gradient=jnp.zeros_like(theta),
    wasserstein_gradient=jnp.sign(theta),
  )


def nearest_is_own(
  x: Float[Array, "B D"],
  index: Int[Array, " B"],
  own: Float[Array, "N D"],
  own_index: Int[Array, " N"],
  other: Float[Array, "M D"],
  mask: Float[Array, " N"],
) -> Float[Array, " B"]:
  """1 where the nearest neighbour of a row of x is of its own sample, 0 where it is of the other.

  The nearest-neighbour two-sample test (Lopez-Paz & Oquab 2017): the mean over both samples, of one size, is 1 where
  they lie apart, 1/2 where both come from one distribution, and below where one repeats the other. `own` holds x
  itself, under the numbers in `index`, which do not count as neighbours. Rows with `mask` 0 do not count in either.
  """

  def nearest(rows, counted):
    squared = jnp.sum(jnp.square(rows), axis=1)[None] - 2 * x @ rows.T
    return jnp.min(jnp.where(counted, squared, jnp.inf), axis=1)

  there = (mask > 0)[None]
  within = nearest(own, there & (own_index[None] != index[:, None]))
  return (within < nearest(other, there)).astype(jnp.float32)
