"""Linear functions to be learned from examples in the prompt, and what the best learner would say. Garg et al. 2022."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

Scalar = Float[Array, ""] | float | int


class Prompt(NamedTuple):
  """Examples of one function: K inputs of d features and their outputs, y_k = w . x_k + noise."""

  x: Float[Array, "K D"]
  y: Float[Array, " K"]
  w: Float[Array, " D"]


def draw_regression(
  key: Key[Array, ""], points: int, features: int, noise: Scalar = 0.0, scale: Scalar = 1.0
) -> Prompt:
  """w and every x from a standard normal distribution; the noise has a deviation of `noise`. Garg et al. 2022, sec. 3.

  `scale` is of the inputs: another one than that of training asks outside of what was learned.
  """
  of_x, of_w, of_noise = jax.random.split(key, 3)
  x = scale * jax.random.normal(of_x, (points, features))
  w = jax.random.normal(of_w, (features,))
  return Prompt(x, x @ w + noise * jax.random.normal(of_noise, (points,)), w)


def leave_features_out(prompt: Prompt, used: Int[Array, ""] | int) -> Prompt:
  """The same function of its first `used` features alone, for a curriculum of growing dimension. Garg et al. 2022."""
  lost = jnp.arange(prompt.x.shape[-1]) >= used
  gone = jnp.sum(jnp.where(lost[None], prompt.x * prompt.w[None], 0), -1)
  return Prompt(jnp.where(lost[None], 0, prompt.x), prompt.y - gone, jnp.where(lost, 0, prompt.w))


def ridge_predictions(x: Float[Array, "K D"], y: Float[Array, " K"], noise: Scalar) -> Float[Array, " K"]:
  """Of each y from the examples before it alone: w = (X^T X + noise^2 I)^-1 X^T y, the mean of the posterior.

  No other prediction has a smaller expected squared error where w is standard normal and the noise has this deviation;
  without noise it is the smallest w that fits (least squares from k = d on). 0 of the first.
  """
  points, features = x.shape
  # Without noise a hair of it stands for the limit.
  variance = jnp.maximum(jnp.square(jnp.asarray(noise, jnp.float32)), 1e-6)

  def predict(k):
    seen = jnp.where(jnp.arange(points)[:, None] < k, x, 0)
    w = jnp.linalg.solve(seen.T @ seen + variance * jnp.eye(features), seen.T @ y)
    return x[k] @ w

  return jax.vmap(predict)(jnp.arange(points))


def averaged_predictions(x: Float[Array, "K D"], y: Float[Array, " K"]) -> Float[Array, " K"]:
  """Of each y from those before it: w = mean of y x, one step of gradient descent from 0. 0 of the first."""
  products = jnp.cumsum(y[:, None] * x, 0)
  before = jnp.concatenate([jnp.zeros_like(products[:1]), products[:-1]])
  return jnp.sum(x * before, 1) / jnp.maximum(jnp.arange(len(y)), 1)


def expected_error(points: int, features: int) -> Float[Array, " K"]:
  """Of the smallest w that fits k noiseless examples: the mean of (y - prediction)^2 is d - k for k < d, then 0.

  k random directions are known, and each of the others has a variance of 1.
  """
  return jnp.maximum(features - jnp.arange(points, dtype=jnp.float32), 0)
