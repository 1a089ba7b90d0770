"""Classic two-dimensional test functions of optimization, with their minima."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float

Point = Float[Array, " 2"]


class Surface(NamedTuple):
  """`start`: where runs begin; `minimum`: None where the function is unbounded; `box`: (x0, x1, y0, y1) to draw."""

  name: str
  value: Callable[[Point], Float[Array, ""]]
  start: tuple[float, float]
  minimum: tuple[float, float] | None
  box: tuple[float, float, float, float]


def rosenbrock(p: Point) -> Float[Array, ""]:
  """(1 - x)^2 + 100 (y - x^2)^2: a curved valley whose floor hardly falls. Rosenbrock 1960."""
  return (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2


def beale(p: Point) -> Float[Array, ""]:
  """Plateaus with steep walls at the corners. Beale 1958."""
  x, y = p[0], p[1]
  return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def saddle(p: Point) -> Float[Array, ""]:
  """x^2 / 2 - y^2 / 2 + y^4 / 4: a saddle at 0 between minima at y = +-1 with value -1/4."""
  return 0.5 * p[0] ** 2 - 0.5 * p[1] ** 2 + 0.25 * p[1] ** 4


def ravine(p: Point) -> Float[Array, ""]:
  """(x^2 + 50 y^2) / 2: a quadratic of condition number 50, where plain gradient descent zigzags."""
  return 0.5 * (p[0] ** 2 + 50 * p[1] ** 2)


SURFACES = (
  Surface("Rosenbrock", rosenbrock, (-1.2, 1.0), (1.0, 1.0), (-1.6, 1.5, -0.5, 1.8)),
  Surface("Beale", beale, (1.0, 1.5), (3.0, 0.5), (-0.5, 4.2, -1.5, 2.0)),
  Surface("saddle", saddle, (1.5, 1e-3), (0.0, 1.0), (-1.7, 1.9, -1.5, 1.6)),
  Surface("ravine", ravine, (-4.0, 0.9), (0.0, 0.0), (-4.5, 2.0, -1.2, 1.2)),
)
