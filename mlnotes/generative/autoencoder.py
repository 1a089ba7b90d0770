"""What is done to the input of an auto-encoder, or asked of its code, so that it learns more than to copy."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from mlnotes.engine.errors import InputError

Scalar = Float[Array, ""] | float


def mask_entries(key: Key[Array, ""], x: Float[Array, "*shape"], share: Scalar) -> Float[Array, "*shape"]:
  """Sets each entry to 0 with probability `share`. Vincent et al. 2008, sec. 2.3 (there a fixed number of them).

  Of one example, whose `key` it is.
  """
  return jnp.where(jax.random.bernoulli(key, share, x.shape), 0.0, x)


def add_gaussian_noise(key: Key[Array, ""], x: Float[Array, "*shape"], sigma: Scalar) -> Float[Array, "*shape"]:
  """x + sigma N(0, 1), of one example. For small sigma the best reconstruction is x + sigma^2 grad log p(x).

  Alain & Bengio 2014, theorem 1.
  """
  return x + sigma * jax.random.normal(key, x.shape, x.dtype)


def bernoulli_kl(activation: Float[Array, " D"], target: Scalar) -> Float[Array, " D"]:
  """KL between Bernoulli variables of mean `target` and of mean `activation`, for each unit, in nats.

    rho log(rho / rho_j) + (1 - rho) log((1 - rho) / (1 - rho_j))         Ng 2011 (CS294A notes), sparse auto-encoder

  `activation` is a unit's mean over the batch, in (0, 1): sigmoids, not the units of one example. It couples the
  examples of a batch, and of a small batch it is a poor estimate: use 100 or more.
  """
  # Saturated units have a gradient that is large, not infinite.
  rho = jnp.clip(activation, 1e-6, 1 - 1e-6)
  entropy = jax.scipy.special.entr(target) + jax.scipy.special.entr(1 - target)
  return -entropy - target * jnp.log(rho) - (1 - target) * jnp.log1p(-rho)


def keep_largest(code: Float[Array, "*B D"], k: int) -> Float[Array, "*B D"]:
  """The k largest units of each code, all others 0; no gradient passes these. Makhzani & Frey 2013, algorithm 1.

  Exactly k, the first of equals. Raises InputError for a k outside 1 .. D.
  """
  if not 1 <= k <= code.shape[-1]:
    raise InputError(f"keep_largest: found k={k}, expected 1 to {code.shape[-1]}, the units of a code.")
  return jnp.where(find_largest(code, k), code, 0.0)


def find_largest(code: Float[Array, "*B D"], k: int) -> Bool[Array, "*B D"]:
  """Which units of each code are among its k largest."""
  _, index = jax.lax.top_k(jax.lax.stop_gradient(code), k)
  return jnp.any(jax.nn.one_hot(index, code.shape[-1], dtype=bool), -2)
