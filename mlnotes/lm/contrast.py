"""Sentences told by their neighbours: quick-thought vectors. Logeswaran & Lee 2018."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class QuickThought(NamedTuple):
  """Of each sentence: the loss in nats, how often a neighbour is the likeliest candidate, 0 or 1, and a weight.

  Attributes:
    weights: how many neighbours a sentence has in the batch; its loss is their mean, and 0 without any.
  """

  loss: Float[Array, " B"]
  correct: Float[Array, " B"]
  weights: Float[Array, " B"]


def quick_thought(
  sentence: Float[Array, "B D"],
  candidate: Float[Array, "B D"],
  document: Int[Array, " B"],
  context: int = 1,
  real: Bool[Array, " B"] | None = None,
) -> QuickThought:
  """The neighbours of each sentence among all others of the batch. Logeswaran & Lee 2018, sec. 3.

    -log( exp(f(s).g(s_c)) / sum_{c'} exp(f(s).g(s_c')) ),   the mean over the neighbours c of s

  `sentence` f and `candidate` g are two encoders' outputs of the same rows, in the order of the text; rows of one
  `document` at most `context` apart are neighbours. The sentence itself is no candidate, nor is one that is not
  `real`. The score is the inner product alone, so that what is learned is in the encoders; at test their outputs are
  concatenated. Couples the examples.
  log(B - 1) when nothing is learned. Raises ValueError for a batch of fewer than 2.
  """
  batch = len(sentence)
  if batch < 2:
    raise ValueError(f"quick_thought got {batch} sentences: expected 2 or more, candidates are the others")
  place = jnp.arange(batch)
  apart = jnp.abs(place[:, None] - place[None, :])
  near = (apart > 0) & (apart <= context) & (document[:, None] == document[None, :])
  there = (apart > 0) if real is None else (apart > 0) & real[None, :]
  near = near & there
  scores = jnp.where(there, sentence.astype(jnp.float32) @ candidate.astype(jnp.float32).T, -jnp.inf)
  logs = jnp.where(near, jax.nn.log_softmax(scores, -1), 0)
  count = jnp.sum(near, 1).astype(jnp.float32)
  best = jnp.take_along_axis(near, jnp.argmax(scores, -1)[:, None], 1)[:, 0]
  return QuickThought(-jnp.sum(logs, 1) / jnp.maximum(count, 1), best.astype(jnp.float32), count)
