"""Sinusoid regression: the family of tasks on which few-shot adaptation is seen at a glance (Finn et al. 2017, 5.1)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mlnotes.meta.task import Task

AMPLITUDE = (0.1, 5.0)
PHASE = (0.0, jnp.pi)
INPUT = (-5.0, 5.0)


class Sinusoid(NamedTuple):
  """y = amplitude * sin(x - phase)."""

  amplitude: Float[Array, ""]
  phase: Float[Array, ""]

  def __call__(self, x: Float[Array, "*N"]) -> Float[Array, "*N"]:
    return self.amplitude * jnp.sin(x - self.phase)


def sample_sinusoid(key: Key[Array, ""]) -> Sinusoid:
  """Amplitude uniform on [0.1, 5], phase uniform on [0, pi]."""
  amplitude, phase = (jax.random.uniform(k, (), minval=low, maxval=high)
                      for k, (low, high) in zip(jax.random.split(key), (AMPLITUDE, PHASE)))  # fmt: skip
  return Sinusoid(amplitude, phase)


def sample_sinusoid_task(key: Key[Array, ""], shots: int, queries: int) -> Task:
  """`shots` support and `queries` query points of one sinusoid: {"x": (K, 1), "y": (K, 1)}, x uniform on [-5, 5]."""
  curve_key, x_key = jax.random.split(key)
  x = jax.random.uniform(x_key, (shots + queries, 1), minval=INPUT[0], maxval=INPUT[1])
  points = {"x": x, "y": sample_sinusoid(curve_key)(x)}
  return Task(*({name: value[part] for name, value in points.items()} for part in (slice(shots), slice(shots, None))))
