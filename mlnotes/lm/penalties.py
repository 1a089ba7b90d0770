"""What keeps a tuned network near the one it started from."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mlnotes.lm.trainable import flatten

Scalar = Float[Array, ""] | float | int


def l2_sp(
  params: Any, start: Any, alpha: Scalar = 0.1, beta: Scalar = 0.01, importance: Any | None = None
) -> Float[Array, ""]:
  """alpha / 2 |w_S - w_S^0|^2 + beta / 2 |w_R|^2. Li et al. 2018 (L2-SP).

  S are the parameters that `start` has, R those that it has not, such as a new head, which decay towards 0. With an
  `importance` of each parameter of `start` its square counts by it: alpha / 2 sum_i F_i (w_i - w_i^0)^2, elastic weight
  consolidation, Kirkpatrick et al. 2017. In float32. Parameters that `params` lacks, frozen ones, are left out.
  Raises ValueError where a shape has changed.
  """
  flat, before = flatten(params), flatten(start)
  weights = None if importance is None else flatten(importance)
  total = jnp.zeros((), jnp.float32)
  for path, x in flat.items():
    square = jnp.square(x.astype(jnp.float32))
    if path in before:
      if before[path].shape != x.shape:
        raise ValueError(f"{path} has shape {x.shape}, expected that of the start, {before[path].shape}")
      square = jnp.square(x.astype(jnp.float32) - jax.lax.stop_gradient(before[path]).astype(jnp.float32))
      square = square if weights is None else square * weights[path].astype(jnp.float32)
    total += (alpha if path in before else beta) / 2 * jnp.sum(square)
  return total


def estimate_fisher(log_probability: Callable[[Any, Any], Float[Array, ""]], params: Any, examples: Any) -> Any:
  """The mean square of each parameter's derivative of log p over the examples: the diagonal of Fisher's information.

  `log_probability` is of (params, one example); labels drawn from the model give the information itself, those of the
  data its empirical form, as is usual. The importance that `l2_sp` takes.
  """
  of_one = lambda example: jax.tree.map(jnp.square, jax.grad(log_probability)(params, example))
  return jax.tree.map(lambda x: jnp.mean(x, 0), jax.lax.map(of_one, examples))
