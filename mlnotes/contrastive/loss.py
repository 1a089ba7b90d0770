"""Losses that tell two views of the same thing from views of other things, in nats."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

Scalar = Float[Array, ""] | float


def normalize(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
  """Rows scaled to length 1, in float32; a zero row stays zero, with a zero gradient, and what is not finite is NaN."""
  x = x.astype(jnp.float32)
  squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  none = squared <= 1e-24  # false for NaN, which must not become a zero
  # The inner `where` keeps the root's infinite derivative at 0 out of the gradient.
  return jnp.where(none, 0.0, x * jax.lax.rsqrt(jnp.where(none, 1.0, squared)))


def require_same_shape(name: str, x: Array, y: Array) -> None:
  """Raises ValueError unless `x` and `y`, one row for each example, have one shape: else they would be broadcast."""
  if x.shape != y.shape or x.ndim < 2:
    raise ValueError(f"{name} got arrays of shape {x.shape} and {y.shape}: expected one shape (examples, features)")


def info_nce(
  query: Float[Array, "B D"], key: Float[Array, "B D"], negatives: Float[Array, "K D"], temperature: Scalar
) -> Float[Array, " B"]:
  """Contrastive loss of each query against its positive key and K shared negatives; log(K + 1) at chance.

    -log( exp(q.k / t) / (exp(q.k / t) + sum_j exp(q.n_j / t)) )       van den Oord et al. 2018, eq. 4

  Rows must be unit vectors where the temperature is to mean what it does in He et al. 2020, eq. 1. Gradients flow to
  whatever they are not stopped for: a queue's owner stops them for `key` and `negatives`.
  """
  require_same_shape("info_nce", query, key)
  positive = jnp.sum(query * key, axis=-1) / temperature
  others = query @ negatives.T / temperature
  return jnp.logaddexp(positive, jax.nn.logsumexp(others, axis=-1)) - positive


def in_batch_info_nce(
  query: Float[Array, "B D"], key: Float[Array, "B D"], temperature: Scalar, mask: Num[Array, " B"] | None = None
) -> Float[Array, " B"]:
  """`info_nce` with the keys of the other examples as negatives; log(B) at chance. Couples the examples.

    -log( exp(q_i.k_i / t) / sum_j exp(q_i.k_j / t) )

  Keys where `mask` is 0 are no candidates; the losses of their own queries mean nothing.
  """
  require_same_shape("in_batch_info_nce", query, key)
  logits = query @ key.T / temperature
  if mask is not None:
    logits = jnp.where(mask[None] > 0, logits, -jnp.inf)
  return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(query * key, axis=-1) / temperature


def nt_xent(z_a: Float[Array, "B D"], z_b: Float[Array, "B D"], temperature: Scalar) -> Float[Array, " 2*B"]:
  """Normalized temperature-scaled cross entropy of 2B views, first those of `z_a`; log(2B - 1) at chance.

    -log( exp(z_i.z_j / t) / sum_{k != i} exp(z_i.z_k / t) ),  j the other view of i      Chen et al. 2020, eq. 1

  Couples the examples: every other view in the batch is a negative. Rows must be unit vectors.
  """
  require_same_shape("nt_xent", z_a, z_b)
  views = jnp.concatenate([z_a, z_b])
  logits = views @ views.T / temperature
  logits = jnp.where(jnp.eye(len(views), dtype=bool), -jnp.inf, logits)
  positive = jnp.sum(z_a * z_b, axis=-1) / temperature
  return jax.nn.logsumexp(logits, axis=-1) - jnp.concatenate([positive, positive])


def negative_cosine(prediction: Float[Array, "B D"], target: Float[Array, "B D"]) -> Float[Array, " B"]:
  """D(p, z) = -p.z / (|p| |z|), in [-1, 1]: Chen & He 2021, eq. 1. Stop the gradient of `target` or it collapses."""
  require_same_shape("negative_cosine", prediction, target)
  return -jnp.sum(normalize(prediction) * normalize(target), axis=-1)


def nonparametric_softmax(
  feature: Float[Array, "B D"], index: Int[Array, " B"], bank: Float[Array, "N D"], temperature: Scalar
) -> Float[Array, " B"]:
  """Each of N examples a class of its own, its weight vector the memory of its feature; log(N) at chance.

    -log( exp(v_i.v / t) / sum_j exp(v_j.v / t) )                       Wu et al. 2018, eq. 2

  `index` says which example each feature belongs to. Rows must be unit vectors.
  """
  logits = feature @ bank.T / temperature
  return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(feature * bank[index], axis=-1) / temperature


def estimate_normalizer(
  feature: Float[Array, "B D"], noise: Float[Array, "B M D"], num_examples: int, temperature: Scalar
) -> Float[Array, ""]:
  """Monte-Carlo estimate of the constant Z that `nce` divides by, from M noise vectors of each feature.

  Z ~ N / (B M) sum_{i, k} exp(v_{j_k}.f_i / t)                        Wu et al. 2018, eq. 8
  """
  products = jnp.einsum("bd,bmd->bm", feature, noise) / temperature
  return num_examples * jnp.mean(jnp.exp(products))


def nce(
  feature: Float[Array, "B D"],
  positive: Float[Array, "B D"],
  noise: Float[Array, "B M D"],
  num_examples: int,
  normalizer: Scalar,
  temperature: Scalar,
) -> Float[Array, " B"]:
  """Noise-contrastive estimation of `nonparametric_softmax`: the example's own memory against M uniform draws.

    P(i|v) = exp(v_i.v / t) / Z,    h = P / (P + M / N)
    -log h(i, v) - sum_m log(1 - h(i_m, v))                              Wu et al. 2018, eq. 4, 6, 7

  Args:
    positive: the bank's vector of each example. noise: M vectors drawn from the bank for each.
    num_examples: N, the size of the bank.
    normalizer: Z, from `estimate_normalizer`; held constant, no gradient.
  """
  log_noise = jnp.log(noise.shape[1] / num_examples)
  # log h and log(1 - h) are log-sigmoids of log P - log(M / N), which neither overflows nor rounds to log 0.
  score = lambda products: products / temperature - jnp.log(normalizer) - log_noise
  own = score(jnp.sum(feature * positive, axis=-1))
  others = score(jnp.einsum("bd,bmd->bm", feature, noise))
  return -jax.nn.log_sigmoid(own) - jnp.sum(jax.nn.log_sigmoid(-others), axis=-1)


def proximal_penalty(feature: Float[Array, "B D"], previous: Float[Array, "B D"]) -> Float[Array, " B"]:
  """|v^(t) - v^(t-1)|^2: keeps a feature near its memory, visited once an epoch. Wu et al. 2018, eq. 9."""
  require_same_shape("proximal_penalty", feature, previous)
  return jnp.sum(jnp.square(feature - previous), axis=-1)


def mutual_information_bound(loss: Float[Array, "..."], num_candidates: int | Array) -> Float[Array, "..."]:
  """Lower bound on the mutual information of query and key, in nats: log(K) - loss, at most log(K).

  `num_candidates` K counts the positive too. van den Oord et al. 2018, section 2.3.
  """
  return jnp.log(jnp.float32(num_candidates)) - loss
