"""Answers to prompts of their own lengths: drawn, and told how likely they are."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from experiments.lm._listed import Listed
from mlnotes.lm import LanguageModel, Sampling, generate, token_log_probability
from mlnotes.sequence.losses import real_places


class Prompts(NamedTuple):
  """Padded behind their real tokens."""

  tokens: Int[Array, "B P"]
  lengths: Int[Array, " B"]

  def join(self, answers: Int[Array, "B L"], padding: int = 0) -> Int[Array, "B PL"]:
    """Each answer right behind its prompt."""
    place = jnp.arange(self.tokens.shape[1] + answers.shape[1])[None]
    of_prompt = jnp.take_along_axis(self.tokens, jnp.minimum(place, self.tokens.shape[1] - 1), 1)
    behind = place - self.lengths[:, None]
    of_answer = jnp.take_along_axis(answers, jnp.clip(behind, 0, answers.shape[1] - 1), 1)
    joined = jnp.where(behind < 0, of_prompt, of_answer)
    return jnp.where(behind < answers.shape[1], joined, padding)

  def repeat(self, count: int) -> "Prompts":
    return Prompts(*(jnp.repeat(x, count, 0) for x in self))


class Answered(NamedTuple):
  """Answers to a batch of prompts, their <end> with them, padded with it; log p of each token, 0 behind them."""

  tokens: Int[Array, "B L"]
  lengths: Int[Array, " B"]
  ended: Array
  log_probability: Float[Array, "B L"]


def draw_answers(module: LanguageModel, params: Any, prompts: Prompts, keys: Array, count: int, end: int) -> Answered:
  """Of `count` tokens at most, drawn from the policy at temperature 1, which it is trained at too."""
  found = generate(
    module, {"params": params}, prompts.tokens, prompts.lengths, keys, count, Sampling(temperature=1.0), end, end
  )
  last = jnp.take_along_axis(found.tokens, found.length[:, None] - 1, 1)[:, 0]
  return Answered(found.tokens, found.length, last == end, found.log_probability)


def read_answers(module: LanguageModel, params: Any, prompts: Prompts, answers: Any) -> Float[Array, "B L D"]:
  """Features in front of each token of the answers."""
  rows = prompts.join(answers)[:, :-1]
  hidden = module.apply({"params": params}, rows, method="hidden")
  place = prompts.lengths[:, None] - 1 + jnp.arange(answers.shape[1])[None]
  return jnp.take_along_axis(hidden, place[..., None], 1)


def judge_tokens(
  module: LanguageModel, params: Any, prompts: Prompts, answers: Int[Array, "B L"], lengths: Int[Array, " B"]
) -> tuple[Float[Array, "B L"], Float[Array, "B L V"]]:
  """(log p of each token of the answers, 0 behind them; the log probabilities of all tokens there)."""
  hidden = read_answers(module, params, prompts, answers)
  logits = module.apply({"params": params}, hidden, method="logits")
  real = real_places(lengths, answers.shape[1])
  return jnp.where(real, token_log_probability(logits, answers), 0), jax.nn.log_softmax(logits, -1)


def list_log_probabilities(listed: Listed, params: Any) -> Float[Array, "N A"]:
  """log p of every answer to every prompt."""
  prompts, answers, lengths = listed.every_row()
  whole = Prompts(prompts, jnp.full(len(prompts), prompts.shape[1]))
  logs, _ = judge_tokens(listed.module, params, whole, answers, lengths)
  return jnp.sum(logs, 1).reshape(listed.reward.shape)
