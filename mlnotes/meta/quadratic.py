"""Random least-squares problems: tasks whose loss, gradient and solution are known exactly."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


class Quadratic(NamedTuple):
  """f(x) = |matrix x - target|^2, with gradient 2 matrix^T (matrix x - target) and Hessian 2 matrix^T matrix."""

  matrix: Float[Array, "*B M D"]
  target: Float[Array, "*B M"]


def sample_quadratic(key: Key[Array, ""], size: int = 10) -> Quadratic:
  """A problem in `size` variables with as many equations, entries standard normal (Andrychowicz et al. 2016, 3.1)."""
  matrix_key, target_key = jax.random.split(key)
  return Quadratic(jax.random.normal(matrix_key, (size, size)), jax.random.normal(target_key, (size,)))


def quadratic_loss(params: Float[Array, " D"], problem: Quadratic) -> Float[Array, ""]:
  """f(params) of one problem; its minimum is 0 where `matrix` has full rank and M <= D."""
  return jnp.sum(jnp.square(problem.matrix @ params - problem.target))
