"""What an embedding looks like without labels: alignment, uniformity, spread and rank."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from mlnotes.contrastive.loss import normalize, require_same_shape


def alignment(x: Float[Array, "B D"], y: Float[Array, "B D"]) -> Float[Array, " B"]:
  """|x - y|^2 of the two views of each example, as unit vectors; 0 is perfect. Wang & Isola 2020, eq. 2 (alpha = 2)."""
  require_same_shape("alignment", x, y)
  return jnp.sum(jnp.square(normalize(x) - normalize(y)), axis=-1)


def uniformity(x: Float[Array, "B D"]) -> Float[Array, ""]:
  """log mean exp(-2 |x_i - x_j|^2) over the pairs i != j of unit vectors: 0 collapsed, near -4 spread evenly.

  Wang & Isola 2020, eq. 3 (t = 2).
  """
  x = normalize(x)
  exponents = -2 * (2 - 2 * x @ x.T)
  pairs = ~jnp.eye(len(x), dtype=bool)
  return jax.nn.logsumexp(jnp.where(pairs, exponents, -jnp.inf)) - jnp.log(len(x) * (len(x) - 1.0))


def embedding_spread(x: Float[Array, "B D"], mask: Num[Array, " B"] | None = None) -> Float[Array, ""]:
  """Mean standard deviation of the coordinates of unit vectors, times sqrt(D): 1 spread evenly, 0 collapsed.

  Rows where `mask` is 0 do not count. Chen & He 2021, section 4.1, in units of its 1 / sqrt(D).
  """
  where = None if mask is None else mask[:, None] > 0
  return jnp.mean(jnp.std(normalize(x), axis=0, where=where)) * jnp.sqrt(float(x.shape[1]))


def participation_ratio(x: Float[Array, "B D"], mask: Num[Array, " B"] | None = None) -> Float[Array, ""]:
  """How many directions the centred features use evenly: (sum l)^2 / sum l^2 of the covariance's eigenvalues l.

  Between 1 and min(B - 1, D). Needs no eigenvalues: sum l is the trace, sum l^2 the squared Frobenius norm. 0 where
  all rows are the same. Rows where `mask` is 0 do not count.
  """
  x = x.astype(jnp.float32)
  where = None if mask is None else mask[:, None] > 0
  x = x - jnp.mean(x, axis=0, keepdims=True, where=where)
  x = x if where is None else jnp.where(where, x, 0)
  gram = x @ x.T if x.shape[0] < x.shape[1] else x.T @ x
  return jnp.square(jnp.trace(gram)) / jnp.maximum(jnp.sum(jnp.square(gram)), 1e-30)


def effective_rank(x: Float[Array, "B D"]) -> Float[Array, ""]:
  """exp of the entropy of the normalised singular values of the features. Garrido et al. 2023 (RankMe), eq. 1."""
  singular = jnp.linalg.svd(x.astype(jnp.float32), compute_uv=False)
  p = singular / jnp.maximum(jnp.sum(singular), 1e-30) + 1e-7
  return jnp.exp(-jnp.sum(p * jnp.log(p)))
