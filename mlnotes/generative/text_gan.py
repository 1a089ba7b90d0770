"""Adversarial training of models of sequences: a discrete choice has no gradient, so one is estimated or relaxed.

Sequences have T tokens from a vocabulary of V, all of one length. A model of them is a `Policy`; everything here takes
any policy, whatever network or table is behind it. Random numbers come in as arrays, drawn by the caller: uniform on
[0, 1), one for each token that is chosen.

  policy gradient   `sample_sequences`, `roll_out_values`, `leave_one_out`, `policy_gradient_loss`: Yu et al. 2017
  relaxation        `relax_sequences`: Jang et al. 2017, Kusner & Hernandez-Lobato 2016
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Tokens = Int[Array, "B T"]
Scalar = Float[Array, ""] | float

# Below it the softmax of a relaxed choice has no gradient that float32 can tell from 0.
MIN_TEMPERATURE = 1e-2


class Policy(NamedTuple):
  """A model of sequences, token by token.

  read:    tokens (B, T) -> logits (B, T, V) of each token given those before it.
  start:   B -> (carry, logits (B, V)) of the first token.
  advance: (carry, token (B,), or weights over tokens (B, V)) -> (carry, logits of what follows).
  """

  read: Callable[[Tokens], Float[Array, "B T V"]]
  start: Callable[[int], tuple[Any, Float[Array, "B V"]]]
  advance: Callable[[Any, Array], tuple[Any, Float[Array, "B V"]]]


def at_temperature(policy: Policy, temperature: Scalar) -> Policy:
  """The policy with logits / temperature, where it reads as where it writes."""

  def start(count):
    carry, logits = policy.start(count)
    return carry, logits / temperature

  def advance(carry, token):
    carry, logits = policy.advance(carry, token)
    return carry, logits / temperature

  return Policy(lambda tokens: policy.read(tokens) / temperature, start, advance)


def token_log_probability(policy: Policy, tokens: Tokens) -> Float[Array, "B T"]:
  """log p(y_t | y_1 .. y_{t-1}) in nats; their sum over t is the log-probability of the sequence."""
  logits = policy.read(tokens)
  return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)[..., 0]


def pick_token(logits: Float[Array, "*B V"], uniform: Float[Array, "*B"]) -> Int[Array, "*B"]:
  """The token at which the cumulated softmax of the logits passes `uniform`; never one of probability 0."""
  total = jnp.cumsum(jax.nn.softmax(logits), -1)
  passed = jnp.sum(total <= uniform[..., None] * total[..., -1:], -1)
  # A number next to 1 may be rounded up to the whole: the last token that has a share of it.
  return jnp.minimum(passed, jnp.sum(total < total[..., -1:], -1)).astype(jnp.int32)


def sample_sequences(policy: Policy, uniform: Float[Array, "B T"]) -> Tokens:
  """B sequences of T tokens, each token drawn given those before it."""

  def choose(given, u):
    carry, logits = given
    token = pick_token(logits, u)
    return policy.advance(carry, token), token

  _, tokens = jax.lax.scan(choose, policy.start(uniform.shape[0]), uniform.T)
  return tokens.T


def roll_out(policy: Policy, tokens: Tokens, uniform: Float[Array, "N P B T"]) -> Int[Array, "N P B T"]:
  """N completions of each of the P = T - 1 proper beginnings of each sequence: [n, p] keeps the first p + 1 tokens.

  What the policy writes behind them is drawn with the numbers of `uniform` at the same places, whose others are unused.
  """
  num_roll_outs, beginnings, batch, length = uniform.shape
  if tokens.shape != (batch, length) or beginnings != length - 1:
    raise ValueError(
      f"uniform has shape {uniform.shape}, expected (N, {tokens.shape[1] - 1}, {tokens.shape[0]}, {tokens.shape[1]}) "
      f"for tokens of shape {tokens.shape}."
    )
  lanes = num_roll_outs * beginnings * batch
  spread = lambda x: jnp.broadcast_to(x, (num_roll_outs, beginnings, batch)).reshape(lanes)
  kept = spread(1 + jnp.arange(beginnings)[:, None])

  def choose(given, inputs):
    carry, logits = given
    t, token, u = inputs
    token = jnp.where(t < kept, spread(token), pick_token(logits, u))
    return policy.advance(carry, token), token

  inputs = (jnp.arange(length), tokens.T, jnp.moveaxis(uniform, -1, 0).reshape(length, lanes))
  _, completed = jax.lax.scan(choose, policy.start(lanes), inputs)
  return jnp.moveaxis(completed.reshape(length, num_roll_outs, beginnings, batch), 0, -1)


def roll_out_values(
  reward: Callable[[Tokens], Float[Array, " B"]], policy: Policy, tokens: Tokens, uniform: Float[Array, "N P B T"]
) -> Float[Array, "B T"]:
  """What each choice of a token is worth: the mean reward of N completions of the sequence up to and with it.

    Q(y_1 .. y_{t-1}, y_t) = 1/N sum_n r(completion n of y_1 .. y_t),   at t = T: r(y)          Yu et al. 2017

  `reward` is of whole sequences; `policy` is the roll-out policy, which may lag behind the one that chose.
  """
  num_roll_outs, beginnings, batch, length = uniform.shape
  completed = roll_out(policy, tokens, uniform).reshape(-1, length)
  rewards = reward(jnp.concatenate([completed, tokens.astype(completed.dtype)]))
  values = jnp.mean(rewards[:-batch].reshape(num_roll_outs, beginnings, batch), 0)
  return jnp.concatenate([values, rewards[None, -batch:]]).T


def leave_one_out(values: Float[Array, "B *T"]) -> Float[Array, "B *T"]:
  """The mean of the other sequences' values at the same place: a baseline that does not hang on one's own choice.

  So the gradient stays unbiased; where all values are equal nothing is left. Raises ValueError for one sequence.
  """
  if len(values) < 2:
    raise ValueError(f"found {len(values)} sequence, expected two or more: a baseline is the mean of the others.")
  # Of differences: a mean of equal values may differ from them by rounding.
  others = jnp.sum(values[None] - values[:, None], 1) / (len(values) - 1)
  return values + others


def policy_gradient_loss(
  log_probability: Float[Array, "B T"], values: Float[Array, "B T"], baseline: Float[Array, "B T"] | float = 0.0
) -> Float[Array, " B"]:
  """-sum_t (Q_t - b_t) log p(y_t | ..), whose gradient is that of minus the expected reward, for drawn sequences.

  Yu et al. 2017. No gradient passes through values and baseline; the loss' own value says nothing.
  """
  return -jnp.sum(jax.lax.stop_gradient(values - baseline) * log_probability, 1)


def maligan_values(score: Float[Array, " B"]) -> Float[Array, " B"]:
  """B D / (1 - D), normalised over the batch: 1 on average. Che et al. 2017.

  exp(score) = D / (1 - D) is p_data / p_model of the best discriminator, so that sampled sequences weighted by it are
  as if drawn from the data. The batch is coupled; less 1, or a leave-one-out mean, it is an advantage.
  """
  return jax.nn.softmax(score) * len(score)


def gumbel_noise(uniform: Float[Array, "*B"]) -> Float[Array, "*B"]:
  """-log(-log u), finite from u = 0 to u = 1: argmax(logits + noise) is a draw from softmax(logits)."""
  info = jnp.finfo(uniform.dtype)
  return -jnp.log(-jnp.log(jnp.clip(uniform, info.tiny, 1 - info.epsneg)))


def relax_choice(
  logits: Float[Array, "*B V"], uniform: Float[Array, "*B V"], temperature: Scalar, straight_through: bool = False
) -> Float[Array, "*B V"]:
  """softmax((logits + Gumbel noise) / temperature): weights over tokens that have a gradient. Jang et al. 2017.

  `straight_through`: one-hot, with the gradient of those weights. Temperatures below `MIN_TEMPERATURE` count as that.
  """
  noisy = jax.nn.log_softmax(logits) + gumbel_noise(uniform)
  weights = jax.nn.softmax(noisy / jnp.maximum(temperature, MIN_TEMPERATURE))
  if not straight_through:
    return weights
  chosen = jax.nn.one_hot(jnp.argmax(noisy, -1), logits.shape[-1], dtype=weights.dtype)
  # In this order the value is one-hot to the bit.
  return chosen + (weights - jax.lax.stop_gradient(weights))


def relax_sequences(
  policy: Policy, uniform: Float[Array, "B T V"], temperature: Scalar, straight_through: bool = False
) -> Float[Array, "B T V"]:
  """Sequences of relaxed choices, each read by the policy before the next: differentiable in its parameters."""

  def choose(given, u):
    carry, logits = given
    weights = relax_choice(logits, u, temperature, straight_through)
    return policy.advance(carry, weights), weights

  _, weights = jax.lax.scan(choose, policy.start(uniform.shape[0]), jnp.moveaxis(uniform, 1, 0))
  return jnp.moveaxis(weights, 0, 1)


def make_table_policy(logits: Float[Array, "S V"]) -> Policy:
  """A policy that knows the last token alone: row a of (V + 1) is of what follows a, the last row of what comes first.

  One row: of every token, whatever stands before it.
  """
  rows, vocabulary = logits.shape
  if rows not in (1, vocabulary + 1):
    raise ValueError(f"logits have {rows} rows, expected 1 or {vocabulary + 1} for {vocabulary} tokens.")

  def follow(token):
    if rows == 1:
      return jnp.broadcast_to(logits[0], (*token.shape, vocabulary))
    return logits[token]

  def read(tokens):
    first = jnp.full((len(tokens), 1), vocabulary, tokens.dtype)
    return follow(jnp.concatenate([first, tokens[:, :-1]], 1))

  def advance(carry, token):
    if token.ndim == 2:
      of_token = logits[:-1] if rows > 1 else jnp.broadcast_to(logits, (vocabulary, vocabulary))
      return carry, token @ of_token
    return carry, follow(token)

  return Policy(read, lambda count: ((), follow(jnp.full(count, vocabulary, jnp.int32))), advance)


def fit_tables(
  tokens: Int[np.ndarray, "N T"], vocabulary: int
) -> tuple[Float[np.ndarray, "1 V"], Float[np.ndarray, "S V"]]:
  """Log-probabilities of single tokens, and of tokens behind each other: floors, as tables of `make_table_policy`.

  p(b) = (n_b + 1) / (n + V),    p(b | a) = (n_ab + p(b)) / (n_a + 1)       MacKay & Peto 1995, as `data.text_floors`
  """
  single = (np.bincount(tokens.ravel(), minlength=vocabulary) + 1.0) / (tokens.size + vocabulary)
  before = np.concatenate([np.full((len(tokens), 1), vocabulary), tokens[:, :-1]], 1)
  pairs = np.zeros((vocabulary + 1, vocabulary))
  np.add.at(pairs, (before.ravel(), tokens.ravel()), 1.0)
  double = (pairs + single) / (np.sum(pairs, 1, keepdims=True) + 1)
  return np.log(single)[None].astype(np.float32), np.log(double).astype(np.float32)
