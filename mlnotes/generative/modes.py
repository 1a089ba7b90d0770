"""Points in the plane with known modes, and how many of the modes a generator has caught."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num

# A point belongs to a mode if it is no farther than so many standard deviations of the data.
DEVIATIONS = 3.0
_ARC_POINTS = 256


class PointMixture(NamedTuple):
  """Gaussians of one `deviation` at `centres`, as many points from each; `mode` says which mode a centre is part of."""

  centres: Float[np.ndarray, "M 2"]
  mode: Int[np.ndarray, " M"]
  deviation: float

  @property
  def num_modes(self) -> int:
    return int(self.mode.max()) + 1


def make_ring(modes: int = 8, radius: float = 2.0, deviation: float = 0.1) -> PointMixture:
  """Modes at equal angles on a circle. Eight of them are the usual test (Metz et al. 2017, who have .02)."""
  angles = 2 * math.pi * np.arange(modes) / modes
  return PointMixture(radius * np.stack([np.cos(angles), np.sin(angles)], axis=1), np.arange(modes), deviation)


def make_grid(side: int = 5, spacing: float = 1.0, deviation: float = 0.05) -> PointMixture:
  """`side` x `side` modes around the origin, `spacing` apart."""
  places = spacing * (np.arange(side) - (side - 1) / 2)
  centres = np.stack(np.meshgrid(places, places, indexing="ij"), axis=-1).reshape(-1, 2)
  return PointMixture(centres, np.arange(side * side), deviation)


def make_moons(deviation: float = 0.1) -> PointMixture:
  """Two half circles of radius 1 that reach into each other, as `sklearn.datasets.make_moons`; a mode each."""
  angles = math.pi * (np.arange(_ARC_POINTS) + 0.5) / _ARC_POINTS
  upper = np.stack([np.cos(angles), np.sin(angles)], axis=1)
  centres = np.concatenate([upper, np.array([1.0, 0.5]) - upper])
  return PointMixture(centres, np.repeat(np.arange(2), _ARC_POINTS), deviation)


def draw_point(key: Key[Array, ""], mixture: PointMixture) -> tuple[Float[Array, " 2"], Int[Array, ""]]:
  """One point and its mode."""
  of_centre, of_noise = jax.random.split(key)
  index = jax.random.randint(of_centre, (), 0, len(mixture.centres))
  point = jnp.asarray(mixture.centres, jnp.float32)[index] + mixture.deviation * jax.random.normal(of_noise, (2,))
  return point, jnp.asarray(mixture.mode, jnp.int32)[index]


def find_modes(points: Num[Array, "N 2"], mixture: PointMixture) -> Int[Array, " N"]:
  """The mode of the nearest centre of each point, -1 where that is farther than three deviations."""
  squared = jnp.sum(jnp.square(points[:, None] - jnp.asarray(mixture.centres, points.dtype)[None]), axis=-1)
  mode = jnp.asarray(mixture.mode, jnp.int32)[jnp.argmin(squared, axis=1)]
  return jnp.where(jnp.min(squared, axis=1) <= (DEVIATIONS * mixture.deviation) ** 2, mode, -1)


class ModeCounts(NamedTuple):
  """What share of the examples fell on each mode, and what follows.

  share:        per mode, of all examples; they sum to `high_quality`.
  caught:       modes with at least one example.
  high_quality: share of the examples that belong to some mode.
  divergence:   KL(generated || uniform) over the modes, of the examples on modes, in nats; log(modes) if they all are
                on one, and about (modes - 1) / (2 N) for N perfect samples. NaN where no example is on a mode.
  """

  share: Float[np.ndarray, " M"]
  caught: int
  high_quality: float
  divergence: float


def count_modes(mode: Int[np.ndarray, " N"], num_modes: int) -> ModeCounts:
  """Counts the examples of each mode; `mode` below 0 is none.

  Of stacked images the mode is a number made of the classes of the three channels: `stack_modes`. Raises ValueError
  where there is no example, and for a mode that does not exist.
  """
  mode = np.asarray(mode)
  if not mode.size or mode.max() >= num_modes:
    raise ValueError(f"found {mode.size} examples with modes up to {mode.max(initial=-1)}, expected below {num_modes}.")
  counts = np.bincount(mode[mode >= 0], minlength=num_modes)
  total = counts.sum()
  present = counts[counts > 0] / max(total, 1)
  divergence = float(np.sum(present * np.log(present * num_modes))) if total else float("nan")
  return ModeCounts(counts / mode.size, int(np.sum(counts > 0)), float(total / mode.size), divergence)


def stack_modes(classes: Int[np.ndarray, "N C"], num_classes: int = 10) -> Int[np.ndarray, " N"]:
  """One of num_classes^C modes from the class of each channel: 1,000 for stacked MNIST."""
  return np.asarray(classes) @ num_classes ** np.arange(classes.shape[1])[::-1]


class Birthday(NamedTuple):
  """How often a batch of `size` held two examples that are the same, and the support that this speaks for.

  support: of a uniform distribution over so many examples the probability would be `collisions`; infinite where none
           was seen, 1 where every batch held one.
  """

  size: int
  collisions: float
  support: float


def birthday_test(
  examples: Num[np.ndarray, "N D"], size: int, distance: float, num_batches: int = 200, seed: int = 0
) -> Birthday:
  """Draws batches of `size` from `examples` and looks for two that are closer than `distance`. Arora et al. 2018.

  Two are among sqrt(n) of n equally likely examples with a probability of about .4; whoever sees them in every second
  batch has a support of about `size`^2 / 1.4. Batches share examples, so N should be many times `size`.

  Raises ValueError for a `size` below 2 or above N.
  """
  from scipy.spatial.distance import pdist

  examples = np.asarray(examples, np.float64).reshape(len(examples), -1)
  if not 2 <= size <= len(examples):
    raise ValueError(f"size must be from 2 to {len(examples)}, the number of examples, found {size}.")
  rng = np.random.default_rng(seed)
  closest = [pdist(examples[rng.choice(len(examples), size, replace=False)]).min() for _ in range(num_batches)]
  collisions = float(np.mean(np.array(closest) <= distance))
  return Birthday(size, collisions, _support(size, collisions))


def _support(size: int, collisions: float) -> float:
  if collisions in (0.0, 1.0):
    return float("inf") if collisions == 0 else 1.0
  from scipy.optimize import brentq

  excess = lambda log_n: -np.expm1(np.sum(np.log1p(-np.arange(size) / np.exp(log_n)))) - collisions
  return float(np.exp(brentq(excess, np.log(size), 3 * np.log(size) + 30)))
