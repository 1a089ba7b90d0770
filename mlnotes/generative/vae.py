"""Variational auto-encoders: bounds on the likelihood, their gradients, and what the latent variables carry.

One example at a time, in nats; the caller averages over the batch. Sums, never means, over pixels and latents.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

LOG_2PI = math.log(2 * math.pi)


class GaussianPosterior(NamedTuple):
  """q(z|x): independent normal variables. `log_var` is log sigma^2."""

  mean: Float[Array, "*B D"]
  log_var: Float[Array, "*B D"]


def split_posterior(features: Float[Array, "*B D2"]) -> GaussianPosterior:
  """The two halves of an encoder's output: means, log variances. Raises ValueError for an odd number of features."""
  if features.shape[-1] % 2:
    raise ValueError(
      f"an encoder gives a mean and a log variance for each latent: found {features.shape[-1]} features."
    )
  return GaussianPosterior(*jnp.split(features, 2, axis=-1))


def reparameterize(q: GaussianPosterior, noise: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
  """mean + sigma * noise, of standard normal noise: gradients pass to both (Kingma & Welling 2014, section 2.4)."""
  return q.mean + jnp.exp(q.log_var / 2) * noise


def gaussian_kl(q: GaussianPosterior) -> Float[Array, "*B D"]:
  """KL(q(z_d|x) || N(0, 1)) of each latent, in nats; their sum is that of q(z|x). Kingma & Welling 2014, appendix B.

  (mean^2 + sigma^2 - 1 - log sigma^2) / 2
  """
  return (q.mean**2 + jnp.expm1(q.log_var) - q.log_var) / 2


def gaussian_log_prob(x: ArrayLike, mean: ArrayLike, log_var: ArrayLike) -> Float[Array, "..."]:
  """log N(x; mean, exp(log_var)), for each number; the three are broadcast."""
  x, mean, log_var = jnp.broadcast_arrays(x, mean, log_var)
  return -((x - mean) ** 2 * jnp.exp(-log_var) + log_var + LOG_2PI) / 2


def bernoulli_log_prob(x: Float[Array, "*B"], logits: Float[Array, "*B"]) -> Float[Array, "*B"]:
  """log of the probability of x, 0 or 1, for each pixel. For grey values it is no likelihood: see the next."""
  return x * logits - jax.nn.softplus(logits)


def continuous_bernoulli_log_prob(x: Float[Array, "*B"], logits: Float[Array, "*B"]) -> Float[Array, "*B"]:
  """Log density on [0, 1] of the Bernoulli's formula with the constant that makes it one.

    l^x (1 - l)^(1 - x) C(l),  l = sigmoid(logits),  C = 2 artanh(1 - 2 l) / (1 - 2 l), 2 at l = 1/2

  Loaiza-Ganem & Cunningham 2019. In the logits C is logits / tanh(logits / 2), even in them; near 0 by its
  series 2 + logits^2 / 6.
  """
  size = jnp.abs(logits)
  safe = jnp.where(size < 1e-2, 1.0, size)
  constant = jnp.where(size < 1e-2, math.log(2) + size**2 / 12, jnp.log(safe) - jnp.log(jnp.tanh(safe / 2)))
  return bernoulli_log_prob(x, logits) + constant


def log_mean_exp(log_weights: Float[Array, "K *B"]) -> Float[Array, "*B"]:
  """log of the mean of exp over the first axis: of k importance weights the bound of Burda et al. 2016, eq. 8.

  With one weight the evidence lower bound (ELBO); on average it never falls with k, and goes to log p(x).
  """
  return jax.nn.logsumexp(log_weights, axis=0) - math.log(log_weights.shape[0])


class Bound(NamedTuple):
  """A bound for each example, and its terms.

  bound:          log p(x) >= bound, in nats, on average over z
  log_likelihood: log p(x|z), the mean over z
  kl:             KL(q(z|x) || p(z)) of each latent
  objective:      its value means nothing; its gradient is that of what is to rise
  """

  bound: Float[Array, " B"]
  log_likelihood: Float[Array, " B"]
  kl: Float[Array, "B D"]
  objective: Float[Array, " B"]


# The log likelihood log p(x|z) of each example for latents (B, D).
LogLikelihood = Callable[[Float[Array, "B D"]], Float[Array, " B"]]


def compute_elbo(noise: Float[Array, "K B D"], q: GaussianPosterior, log_likelihood: LogLikelihood) -> Bound:
  """E_q log p(x|z) - KL(q(z|x) || p(z)) with the KL in closed form: Kingma & Welling 2014, eq. 10.

  `noise` is standard normal, for K latents of each example.
  """
  kl = gaussian_kl(q)
  likelihood = jnp.mean(jax.vmap(lambda noise: log_likelihood(reparameterize(q, noise)))(noise), axis=0)
  bound = likelihood - jnp.sum(kl, axis=-1)
  return Bound(bound, likelihood, kl, bound)


def compute_iwae(
  noise: Float[Array, "K B D"],
  q: GaussianPosterior,
  log_likelihood: LogLikelihood,
  doubly_reparameterized: bool = False,
) -> Bound:
  """The importance-weighted bound of K weights: log 1/K sum_k p(x, z_k) / q(z_k|x). Burda et al. 2016, eq. 8.

  `noise` is standard normal. The gradient of its encoder has the less signal the larger K is (Rainforth et al. 2018).
  Doubly reparameterised, it goes through the samples alone, with squared weights (Tucker et al. 2019): unbiased,
  and the better the larger K is. The decoder's gradient is the same in both.
  """
  z = jax.vmap(reparameterize, (None, 0))(q, noise)
  kl = gaussian_kl(q)

  def weigh(z: Array, q: GaussianPosterior) -> tuple[Array, Array]:
    likelihood = jax.vmap(log_likelihood)(z)
    prior = jnp.sum(gaussian_log_prob(z, 0.0, 0.0), axis=-1)
    posterior = jnp.sum(gaussian_log_prob(z, q.mean, q.log_var), axis=-1)
    return likelihood, likelihood + prior - posterior

  if not doubly_reparameterized:
    likelihood, log_weights = weigh(z, q)
    bound = log_mean_exp(log_weights)
    return Bound(bound, jnp.mean(likelihood, axis=0), kl, bound)
  fixed = jax.lax.stop_gradient
  _, log_weights = weigh(fixed(z), fixed(q))  # the same numbers as below, which the compiler computes once
  weights = fixed(jax.nn.softmax(log_weights, axis=0))
  likelihood, log_weights = weigh(scale_gradient(z, weights[..., None]), fixed(q))
  objective = jnp.sum(weights * log_weights, axis=0)
  return Bound(log_mean_exp(log_weights), jnp.mean(likelihood, axis=0), kl, objective)


@jax.custom_vjp
def scale_gradient(x: Float[Array, "..."], scale: ArrayLike) -> Float[Array, "..."]:
  """x itself, whose gradient is multiplied by `scale`, one number or some for each of x; `scale` gets none."""
  return x


scale_gradient.defvjp(lambda x, scale: (x, scale), lambda scale, g: (g * scale, jnp.zeros_like(scale)))


def clip_free_bits(kl: Float[Array, "B D"], free: ArrayLike) -> Float[Array, ""]:
  """The KL that is paid for: each latent's mean over the batch, or `free` nats where that is more.

    sum_d max(free, mean_B KL_d)                                  Kingma et al. 2016, appendix C.8

  A latent that carries less than `free` nats has no gradient here: nothing drives it to 0. 0: all of the KL.
  """
  return jnp.sum(jnp.maximum(jnp.mean(kl, axis=0), free))


class KLParts(NamedTuple):
  """The mean KL of a batch in three parts (Chen et al. 2018, eq. 2), in nats.

  index_code:        I(z; n), what a latent vector tells of which example it is of
  total_correlation: KL(q(z) || prod_d q(z_d))
  dimension_wise:    sum_d KL(q(z_d) || p(z_d))
  """

  index_code: Float[Array, ""]
  total_correlation: Float[Array, ""]
  dimension_wise: Float[Array, ""]


def decompose_kl(z: Float[Array, "B D"], q: GaussianPosterior, num_examples: int) -> KLParts:
  """Estimates the parts from one batch of samples `z` of `q`, by weighted sampling (Chen et al. 2018, appendix C.1).

  `num_examples`: in the data set. Their sum is a one-sample estimate of the KL. Couples the examples of the batch.

  Differences from the paper: none; it is biased, the less the larger the batch is.
  """
  log_q = gaussian_log_prob(z[:, None], q.mean[None], q.log_var[None])  # (B samples, B examples, D)
  constant = math.log(len(z) * num_examples)
  log_qz = jax.nn.logsumexp(jnp.sum(log_q, axis=-1), axis=1) - constant
  log_qz_product = jnp.sum(jax.nn.logsumexp(log_q, axis=1) - constant, axis=-1)
  log_own = jnp.sum(gaussian_log_prob(z, q.mean, q.log_var), axis=-1)
  log_prior = jnp.sum(gaussian_log_prob(z, 0.0, 0.0), axis=-1)
  parts = (log_own - log_qz, log_qz - log_qz_product, log_qz_product - log_prior)
  return KLParts(*(jnp.mean(part) for part in parts))


def count_active(means: Num[Array, "N D"], threshold: float = 0.01) -> Num[Array, ""]:
  """Latents whose mean varies over the data: Var_x E[z_d|x] > .01 (Burda et al. 2016, appendix C)."""
  return jnp.sum(jnp.var(means, axis=0) > threshold)
