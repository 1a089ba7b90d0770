"""What people prefer: reward models, direct preference optimisation, and reinforcement learning of whole answers.

Losses are of one pair or one token; the caller takes the mean, over the tokens of the global batch where it is of
tokens. Log-probabilities are of answers' tokens: what stands in the prompt and behind the end has weight 0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mlnotes.rl.ppo import approximate_kl, clipped_surrogate_loss
from mlnotes.rl.returns import compute_gae
from mlnotes.sequence.losses import real_places

Scalar = Float[Array, ""] | float | int


def answer_weights(prompts: Int[Array, " B"], lengths: Int[Array, " B"], places: int) -> Float[Array, "B T"]:
  """1 where a target belongs to the answer, its END among them, by its place alone: nothing hangs on what PAD's id is.

  Of rows of `places` + 1 tokens, of which `prompts` are the prompt and `lengths` are real, prompt and END included:
  target t is token t + 1.
  """
  place = jnp.arange(places)[None] + 1
  return ((place >= prompts[:, None]) & (place < lengths[:, None])).astype(jnp.float32)


def token_log_probability(logits: Float[Array, "B T V"], targets: Int[Array, "B T"]) -> Float[Array, "B T"]:
  """log p of each target, in float32."""
  logs = jax.nn.log_softmax(logits.astype(jnp.float32), -1)
  return jnp.take_along_axis(logs, targets[..., None], -1)[..., 0]


def answer_log_probability(
  logits: Float[Array, "B T V"], targets: Int[Array, "B T"], weights: Float[Array, "B T"]
) -> Float[Array, " B"]:
  """The sum, not the mean, over the answer's tokens: log p(answer | prompt)."""
  return jnp.sum(jnp.where(weights > 0, token_log_probability(logits, targets) * weights, 0), -1)


# -- preferences without a reward model --------------------------------------------------------------------------------


class Preference(NamedTuple):
  """The loss of each pair in nats, log 2 at the start, and what the model's implicit reward is of both answers."""

  loss: Float[Array, " B"]
  chosen_reward: Float[Array, " B"]
  rejected_reward: Float[Array, " B"]


def dpo_loss(
  chosen: Float[Array, " B"],
  rejected: Float[Array, " B"],
  reference_chosen: Float[Array, " B"],
  reference_rejected: Float[Array, " B"],
  beta: Scalar = 0.1,
) -> Preference:
  """-log sigmoid(beta log pi(w) / ref(w) - beta log pi(l) / ref(l)). Rafailov et al. 2023, sec. 4.

  Of `answer_log_probability`'s sums. The reference has no gradient. With as many pairs as one likes, answered by
  Bradley and Terry's model of a reward r, its minimum is ref exp(r / beta) / Z.
  """
  of_chosen = beta * (chosen - jax.lax.stop_gradient(reference_chosen))
  of_rejected = beta * (rejected - jax.lax.stop_gradient(reference_rejected))
  return Preference(-jax.nn.log_sigmoid(of_chosen - of_rejected), of_chosen, of_rejected)


# -- reward models -----------------------------------------------------------------------------------------------------


def bradley_terry_loss(preferred: Float[Array, "*#B"], other: Float[Array, "*#B"]) -> Float[Array, "*B"]:
  """-log sigmoid(r_w - r_l), in nats: what a reward model learns from. Stiennon et al. 2020, sec. 3.4.

  A reward is a number at the answer's last real token. Only differences count: `shift_reward` fixes the rest.
  """
  return -jax.nn.log_sigmoid(preferred - other)


def ranking_loss(rewards: Float[Array, "B K"], count: Int[Array, " B"] | None = None) -> Float[Array, " B"]:
  """The mean of `bradley_terry_loss` over all pairs of K answers to a prompt, the best first. Ouyang et al. 2022, 3.5.

  All pairs of a prompt are one example: told apart they would be learned by heart. `count` of the K are real.
  """
  size = rewards.shape[1]
  count = jnp.full((len(rewards),), size) if count is None else count
  real = real_places(count, size)
  pairs = jnp.triu(jnp.ones((size, size), bool), 1)[None] & real[:, :, None] & real[:, None, :]
  losses = bradley_terry_loss(rewards[:, :, None], rewards[:, None, :])
  return jnp.sum(jnp.where(pairs, losses, 0), (1, 2)) / jnp.maximum(jnp.sum(pairs, (1, 2)), 1)


def shift_reward(reward: Float[Array, "*B"], of_references: Float[Array, " N"]) -> Float[Array, "*B"]:
  """Less the mean reward of reference answers, which is then 0. Stiennon et al. 2020, sec. 3.4."""
  return reward - jnp.mean(of_references)


# -- reinforcement learning --------------------------------------------------------------------------------------------


def answer_rewards(
  score: Float[Array, " B"],
  log_probability: Float[Array, "B T"],
  reference: Float[Array, "B T"],
  lengths: Int[Array, " B"],
  ended: Bool[Array, " B"],
  beta: Scalar = 0.05,
  unended: Scalar | None = -1.0,
) -> Float[Array, "B T"]:
  """-beta (log pi - log ref) at each token of an answer, and the score at its last. Ouyang et al. 2022, sec. 3.5.

  `lengths` counts an answer's tokens with END; behind it everything is 0. An answer that has not `ended` scores
  `unended` in the place of its score, None: its score. No gradient flows through rewards.
  """
  score = score if unended is None else jnp.where(ended, score, unended)
  real = real_places(lengths, log_probability.shape[1])
  last = jnp.arange(log_probability.shape[1])[None] == lengths[:, None] - 1
  reward = -beta * (log_probability - reference) + jnp.where(last, score[:, None], 0)
  return jax.lax.stop_gradient(jnp.where(real, reward, 0))


def answer_advantages(
  reward: Float[Array, "B T"],
  value: Float[Array, "B T"],
  lengths: Int[Array, " B"],
  gamma: Scalar = 1.0,
  lambda_: Scalar = 0.95,
) -> Float[Array, "B T"]:
  """Generalised advantages of an answer's tokens, each answer an episode that terminates with its last; 0 behind it.

  Advantage plus value is the target of the value function. Whiten them over the batch: `whiten`.
  """
  places = reward.shape[1]
  real = real_places(lengths, places)
  last = jnp.arange(places)[None] >= lengths[:, None] - 1
  discount = jnp.where(last, 0.0, jnp.asarray(gamma, jnp.float32))
  value = jnp.where(real, value, 0)
  following = jnp.concatenate([value[:, 1:], jnp.zeros_like(value[:, :1])], 1)
  of_one = lambda *arrays: compute_gae(*arrays, lambda_)
  return jnp.where(real, jax.vmap(of_one)(reward, discount, last, value, following), 0)


def whiten(x: Float[Array, "B T"], weights: Float[Array, "B T"]) -> Float[Array, "B T"]:
  """Mean 0 and standard deviation 1 over the places of weight 1, the others 0. Couples the examples."""
  count = jnp.maximum(jnp.sum(weights), 1)
  mean = jnp.sum(x * weights) / count
  variance = jnp.sum(jnp.square(x - mean) * weights) / count
  return (x - mean) * jax.lax.rsqrt(variance + 1e-8) * weights


def group_advantages(score: Float[Array, "B G"]) -> Float[Array, "B G"]:
  """(r - mean) / std over the G answers to one prompt; 0 where all score alike. Shao et al. 2024 (GRPO), sec. 4.1."""
  deviation = score - jnp.mean(score, 1, keepdims=True)
  spread = jnp.sqrt(jnp.mean(jnp.square(deviation), 1, keepdims=True))
  return jnp.where(spread > 1e-6, deviation / jnp.maximum(spread, 1e-6), 0)


def grpo_loss(
  log_probability: Float[Array, "B T"],
  old: Float[Array, "B T"],
  reference: Float[Array, "B T"],
  advantage: Float[Array, " B"],
  clip: Scalar = 0.2,
  beta: Scalar = 0.04,
) -> Float[Array, "B T"]:
  """PPO's clipped loss with one advantage for all tokens of an answer, and beta KL(pi || ref). Shao et al. 2024, 4.1.

  The KL is estimated at each token by ref / pi - log(ref / pi) - 1, whose mean under pi it is. The paper takes the mean
  over each answer's tokens, then over answers: an answer's length then weighs its tokens.
  """
  spread = jnp.broadcast_to(advantage[:, None], log_probability.shape)
  surrogate = clipped_surrogate_loss(log_probability, jax.lax.stop_gradient(old), spread, clip)
  return surrogate + beta * approximate_kl(jax.lax.stop_gradient(reference), log_probability)
