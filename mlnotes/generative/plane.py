"""Densities of the plane that are known exactly: two moons, rings, a grid of normals; what flows and mixtures learn.

Each is about as wide as a standard normal. `log_density` makes their entropy, in nats, a floor that no model of them
can be below: the mean of -log p(x) over points drawn from p.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


class PlaneDensity(NamedTuple):
  """draw: (key) -> one point; log_density: points -> nats."""

  draw: Callable[[Key[Array, ""]], Float[Array, "2"]]
  log_density: Callable[[Float[Array, "N 2"]], Float[Array, " N"]]


def _log_normal(squares: Float[Array, "*N"], deviation: float, dims: int) -> Float[Array, "*N"]:
  return -0.5 * squares / deviation**2 - dims * (math.log(deviation) + 0.5 * math.log(2 * math.pi))


def _mixture_log_density(x, centers, deviation):
  squares = jnp.sum(jnp.square(x[:, None] - centers[None]), -1)
  return jax.nn.logsumexp(_log_normal(squares, deviation, 2), axis=1) - math.log(len(centers))


def grid(side: int = 5, spacing: float = 0.7, deviation: float = 0.07) -> PlaneDensity:
  """side^2 normals of equal weight on a square grid about 0."""
  ticks = spacing * (jnp.arange(side) - (side - 1) / 2)
  centers = jnp.stack(jnp.meshgrid(ticks, ticks), -1).reshape(-1, 2)

  def draw(key):
    which, noise = jax.random.split(key)
    return centers[jax.random.randint(which, (), 0, side**2)] + deviation * jax.random.normal(noise, (2,))

  return PlaneDensity(draw, lambda x: _mixture_log_density(x, centers, deviation))


def rings(radii: tuple[float, ...] = (0.7, 1.6), deviation: float = 0.08) -> PlaneDensity:
  """Circles about 0, of equal weight, normal noise on the radius: p(x) = sum_k N(|x|; r_k, deviation) / K 2 pi |x|.

  Radii are many deviations, so that no noise reaches the centre.
  """
  known = jnp.asarray(radii)

  def draw(key):
    which, noise, turn = jax.random.split(key, 3)
    radius = known[jax.random.randint(which, (), 0, len(radii))] + deviation * jax.random.normal(noise)
    angle = jax.random.uniform(turn, maxval=2 * math.pi)
    return radius * jnp.stack((jnp.cos(angle), jnp.sin(angle)))

  def log_density(x):
    radius = jnp.linalg.norm(x, axis=-1)
    log_radius = jax.nn.logsumexp(_log_normal(jnp.square(radius[:, None] - known[None]), deviation, 1), axis=1)
    return log_radius - math.log(len(radii)) - jnp.log(2 * math.pi * radius)

  return PlaneDensity(draw, log_density)


def moons(deviation: float = 0.1, nodes: int = 512) -> PlaneDensity:
  """Two half circles of radius 1 that reach into each other, with normal noise: scikit-learn's `make_moons`, centred.

  The density is an average over `nodes` places on the circles (the midpoint rule), exact in float32 from about 100 on.
  """

  def place(angle, second):
    sign = jnp.where(second, -1.0, 1.0)
    return jnp.stack((sign * (jnp.cos(angle) - 0.5), sign * (jnp.sin(angle) - 0.25)), -1)

  def draw(key):
    which, turn, noise = jax.random.split(key, 3)
    on_circle = place(jax.random.uniform(turn, maxval=math.pi), jax.random.bernoulli(which))
    return on_circle + deviation * jax.random.normal(noise, (2,))

  def log_density(x):
    angles = (jnp.arange(nodes) + 0.5) * math.pi / nodes
    centers = jnp.concatenate([place(angles, jnp.full(nodes, second)) for second in (False, True)])
    return _mixture_log_density(x, centers, deviation)

  return PlaneDensity(draw, log_density)


PLANES = {"moons": moons, "rings": rings, "grid": grid}
