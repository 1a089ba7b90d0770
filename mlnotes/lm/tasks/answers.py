"""All answers that there are, and the best policy over them: what alignment by a reward is to find, in closed form."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Scalar = Float[Array, ""] | float | int


class Answers(NamedTuple):
  """Every answer of `words` words that ends, or is cut, after L tokens at most.

  Attributes:
    tokens: END is among them; padded with END, so that each answer is another row.
    lengths: END counted.
    ended: False for those that were cut.
  """

  tokens: Int[np.ndarray, "A L"]
  lengths: Int[np.ndarray, " A"]
  ended: Bool[np.ndarray, " A"]


def enumerate_answers(words: int, length: int, end: int) -> Answers:
  """The (W^L - 1) / (W - 1) answers of fewer than L words 0 ... W - 1 and END, and the W^L that are cut.

  Raises ValueError for more than 100,000 of them, sizes below 1, or an END that is a word.
  """
  if words < 1 or length < 1 or words**length > 100_000:
    raise ValueError(f"words is {words}, length {length}: expected 1 or more, and words^length of 100,000 at most")
  if 0 <= end < words:
    raise ValueError(f"end is {end}, expected none of the words 0 to {words - 1}")
  rows = [row for n in range(length) for row in itertools.product(range(words), repeat=n)]
  whole = list(itertools.product(range(words), repeat=length))
  tokens = np.full((len(rows) + len(whole), length), end, np.int32)
  for filled, row in zip(tokens, rows + whole):
    filled[: len(row)] = row
  lengths = np.array([len(row) + 1 for row in rows] + [length] * len(whole), np.int32)
  return Answers(tokens, lengths, np.arange(len(tokens)) < len(rows))


def find_answers(answers: Answers, tokens: Int[Array, "B L"]) -> Int[Array, " B"]:
  """The row of each answer, padded with END."""
  same = jnp.all(tokens[:, None] == jnp.asarray(answers.tokens)[None], -1)
  return jnp.argmax(same, 1)


def optimal_policy(reference: Float[Array, "*B A"], reward: Float[Array, "*B A"], beta: Scalar) -> Float[Array, "*B A"]:
  """log of pi* = ref exp(r / beta) / Z, which maximises E_pi[r] - beta KL(pi || ref). Rafailov et al. 2023, sec. 4.

  `reference` is log ref of all answers.
  """
  return jax.nn.log_softmax(reference + reward / beta, -1)


class Aligned(NamedTuple):
  """Of a policy over all answers: E[r], KL(pi || ref), KL(pi || pi*) in nats, and E[r] - beta KL(pi || ref)."""

  reward: Float[Array, "*B"]
  kl: Float[Array, "*B"]
  kl_to_optimum: Float[Array, "*B"]
  objective: Float[Array, "*B"]


def measure_policy(
  policy: Float[Array, "*B A"], reference: Float[Array, "*B A"], reward: Float[Array, "*B A"], beta: Scalar
) -> Aligned:
  """Exact: sums over all answers, of log pi and log ref."""
  mean = lambda x: jnp.sum(jnp.exp(policy) * x, -1)
  optimum = optimal_policy(reference, reward, beta)
  of_reward, kl = mean(reward), mean(policy - reference)
  return Aligned(of_reward, kl, mean(policy - optimum), of_reward - beta * kl)


def reward_frontier(
  reference: Float[Array, "*B A"], reward: Float[Array, "*B A"], betas: Float[Array, " K"]
) -> tuple[Float[Array, "*B K"], Float[Array, "*B K"]]:
  """(KL, E[r]) of the optimum for each beta: no policy has more reward at as little KL."""
  best = jax.vmap(lambda beta: measure_policy(optimal_policy(reference, reward, beta), reference, reward, beta))(betas)
  return jnp.moveaxis(best.kl, 0, -1), jnp.moveaxis(best.reward, 0, -1)
