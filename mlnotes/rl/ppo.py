"""Proximal policy optimization: the clipped surrogate and what belongs to it (Schulman et al. 2017).

Losses are per transition; the caller averages.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def clipped_surrogate_loss(
  log_prob: Float[Array, "*B"],
  old_log_prob: Float[Array, "*B"],
  advantage: Float[Array, "*B"],
  clip: Float[Array, ""] | float,
) -> Float[Array, "*B"]:
  """-min(r A, clamp(r, 1 - clip, 1 + clip) A) with r = pi(a|s) / pi_old(a|s).

  Schulman et al. 2017, eq. 7, negated. Before the first gradient step r is 1 and the gradient is the policy gradient's.
  """
  ratio = jnp.exp(log_prob - old_log_prob)
  return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)


def clipped_value_loss(
  value: Float[Array, "*B"], old_value: Float[Array, "*B"], target: Float[Array, "*B"], clip: Float[Array, ""] | float
) -> Float[Array, "*B"]:
  """The larger of two halved squared errors: of the value, and of the value kept within `clip` of the old one.

  Of the authors' code, not of the paper (Huang et al. 2022, detail 9).
  """
  kept = old_value + jnp.clip(value - old_value, -clip, clip)
  return 0.5 * jnp.maximum((value - target) ** 2, (kept - target) ** 2)


def approximate_kl(log_prob: Float[Array, "*B"], old_log_prob: Float[Array, "*B"]) -> Float[Array, "*B"]:
  """r - 1 - log r >= 0, whose mean over actions of the old policy is KL(pi_old || pi).

  Schulman 2020, "Approximating KL divergence", estimator k3: unbiased, and of lower variance than -log r.
  """
  log_ratio = log_prob - old_log_prob
  return jnp.expm1(log_ratio) - log_ratio


def clip_fraction(
  log_prob: Float[Array, "*B"], old_log_prob: Float[Array, "*B"], clip: Float[Array, ""] | float
) -> Float[Array, "*B"]:
  """1 where the ratio is outside the clipping range, else 0."""
  return (jnp.abs(jnp.expm1(log_prob - old_log_prob)) > clip).astype(log_prob.dtype)
