"""Losses of sequence to sequence models beside the cross entropy, one value for each example, and what they draw."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

Scalar = Float[Array, ""] | float


def real_places(lengths: Int[Array, " B"], places: int) -> Bool[Array, "B T"]:
  """Which of the places are no padding."""
  return jnp.arange(places)[None] < lengths[:, None]


def coverage_loss(
  attention: Float[Array, "B T S"], source_lengths: Int[Array, " B"], target_lengths: Int[Array, " B"]
) -> Float[Array, " B"]:
  """mean_t sum_i min(a_i^t, c_i^t), c^t = sum_{t' < t} a^t', over the real places. See et al. 2017, eq. 12 and 13.

  0 where no place is looked at twice, 1 at most. A mean over t as the cross entropy it is added to is one.
  """
  covered = jnp.cumsum(attention, 1) - attention
  real = _real_pairs(attention, source_lengths, target_lengths)
  each = jnp.sum(jnp.where(real, jnp.minimum(attention, covered), 0), (1, 2))
  return each / jnp.maximum(target_lengths, 1)


def guided_attention_loss(
  attention: Float[Array, "B T S"],
  source_lengths: Int[Array, " B"],
  target_lengths: Int[Array, " B"],
  g: Scalar = 0.2,
  descending: bool = False,
) -> Float[Array, " B"]:
  """mean of a_tn (1 - exp(-(n / N - t / T)^2 / (2 g^2))) over the real places. Tachibana et al. 2018, eq. 6 and 7.

  N and T are each example's own lengths, so that its diagonal ends in its own corner. `descending`: towards the other
  diagonal, n / N near 1 - t / T, for targets in reversed order (not in the paper). Numbers count from 0, as there.
  """
  of_source = jnp.arange(attention.shape[2])[None] / jnp.maximum(source_lengths, 1)[:, None]
  of_target = jnp.arange(attention.shape[1])[None] / jnp.maximum(target_lengths, 1)[:, None]
  if descending:
    # The last real place minus the place: the diagonal of the reversed target.
    of_target = (target_lengths[:, None] - 1 - jnp.arange(attention.shape[1])[None]) / jnp.maximum(target_lengths, 1)[
      :, None
    ]
  apart = of_source[:, None, :] - of_target[:, :, None]
  away = 1 - jnp.exp(-(apart**2) / (2 * g**2))
  real = _real_pairs(attention, source_lengths, target_lengths)
  total = jnp.sum(jnp.where(real, attention * away, 0), (1, 2))
  return total / jnp.maximum(source_lengths * target_lengths, 1)


def _real_pairs(attention: Array, source_lengths: Array, target_lengths: Array) -> Bool[Array, "B T S"]:
  of_target = real_places(target_lengths, attention.shape[1])
  return of_target[:, :, None] & real_places(source_lengths, attention.shape[2])[:, None, :]


def inverse_sigmoid_decay(step: Int[Array, ""] | int, k: float) -> Float[Array, ""]:
  """k / (k + exp(step / k)): the probability of reading the true token, one half at k ln k. Bengio et al. 2015, 2.4.

  Raises ValueError for k below 1.
  """
  if k < 1:
    raise ValueError(f"k={k} is out of range: expected 1 or more")
  return jax.nn.sigmoid(jnp.log(k) - jnp.asarray(step, jnp.float32) / k)


def draw_coins(key: Key[Array, ""], shape: tuple[int, int], probability: Scalar) -> Bool[Array, "B T"]:
  """A coin for each token, True with `probability`: read what the model said. Never the first one, which is START.

  A coin for each token and not for each sequence or batch: Bengio et al. 2015, sec. 2.4.
  """
  coins = jax.random.bernoulli(key, probability, shape)
  return coins & (jnp.arange(shape[1]) > 0)[None]


def draw_inputs(
  key: Key[Array, ""], inputs: Int[Array, "B T"], log_probability: Float[Array, "B T V"], probability: Scalar
) -> Int[Array, "B T"]:
  """Inputs with tokens in the place of some that a first pass over the true ones has drawn there.

  Scheduled sampling where steps are not taken one after the other: Mihaylova & Martins 2019, sec. 3.2. What is drawn at
  t - 1 is read at t.
  """
  of_coins, of_tokens = jax.random.split(key)
  drawn = jax.random.categorical(of_tokens, log_probability, -1).astype(inputs.dtype)
  drawn = jnp.concatenate([inputs[:, :1], drawn[:, :-1]], 1)
  return jnp.where(draw_coins(of_coins, inputs.shape, probability), drawn, inputs)


def self_critical_loss(
  log_probability: Float[Array, "B T"],
  lengths: Int[Array, " B"],
  reward: Float[Array, " B"],
  baseline: Float[Array, " B"],
) -> Float[Array, " B"]:
  """-(r - b) sum_t log p(w_t), whose gradient is REINFORCE's. Rennie et al. 2017, eq. 7.

  Of a drawn sequence: `log_probability` of its tokens, `lengths` with END, whose choice counts, and without what
  follows. The baseline is the reward of the greedily decoded sequence, the reward of a drawn one has no gradient.
  """
  total = jnp.sum(jnp.where(real_places(lengths, log_probability.shape[1]), log_probability, 0), 1)
  return -jax.lax.stop_gradient(reward - baseline) * total


def minimum_risk_loss(
  log_probability: Float[Array, "B N"], cost: Float[Array, "B N"], sharpness: Scalar = 5e-3
) -> Float[Array, " B"]:
  """sum_n Q_n cost_n of N candidates, Q proportional to p^alpha over these. Shen et al. 2016, eq. 11 to 13.

  `log_probability` of whole sequences; `sharpness` is alpha. A sequence that stands twice among them counts twice: give
  distinct ones, or -inf to the copies.
  """
  weight = jax.nn.softmax(sharpness * log_probability, -1)
  return jnp.sum(weight * jax.lax.stop_gradient(cost), -1)
