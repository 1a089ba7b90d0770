"""Answers from a store of documents: an index of vectors, BM25 beside it, and answers over several documents at once.

    index = encode(documents)                                      # (N, D)
    found = search(encode(questions), index, k=4)                  # numbers and inner products, exact
    prior = jax.nn.log_softmax(found.score)                        # log p(z | x) of the k that were found
    log_likelihood = marginalize_documents(prior, log_probability, real)

Karpukhin et al. 2020 (DPR) for the two encoders, Lewis et al. 2020 (RAG) for the answers.
"""

from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mlnotes.attention.mask import Mask
from mlnotes.lm.model import LanguageModel

Marginal = Literal["sequence", "token"]


class TextEncoder(nn.Module):
  """A vector of each text: the mean of the features of its tokens, those behind `length` left out."""

  body: LanguageModel

  @nn.compact
  def __call__(self, tokens: Int[Array, "B T"], length: Int[Array, " B"]) -> Float[Array, "B D"]:
    hidden = self.body.hidden(tokens, Mask.of_self(lengths=length)).astype(jnp.float32)
    real = jnp.arange(tokens.shape[1])[None] < length[:, None]
    return jnp.sum(jnp.where(real[..., None], hidden, 0), 1) / jnp.maximum(length, 1)[:, None]


def contrast_documents(
  query: Float[Array, "B D"], documents: Float[Array, "N D"], right: Int[Array, " B"]
) -> Float[Array, " B"]:
  """Loss of each question against its document, number `right`, among all N, in nats. Karpukhin et al. 2020, sec. 3.2.

  -log( exp(q.d_right) / sum_j exp(q.d_j) );   log(N) when nothing is learned
  """
  logs = jax.nn.log_softmax(query @ documents.T, -1)
  return -jnp.take_along_axis(logs, right[:, None], 1)[:, 0]


class Retrieved(NamedTuple):
  """The documents with the largest scores, the largest first; of equal ones those with the smallest numbers."""

  number: Int[Array, "B K"]
  score: Float[Array, "B K"]


def search(
  query: Float[Array, "B D"],
  index: Float[Array, "N D"],
  k: int,
  block: int = 1024,
  real: Bool[Array, " N"] | None = None,
) -> Retrieved:
  """The `k` largest inner products of each query with the index, exact. No more than `block` scores of a query at once.

  Documents that are not `real` have the score -inf. Raises ValueError for a k that is below 1 or above N, an empty
  index, and a block below 1.
  """
  count = len(index)
  if not 1 <= k <= count or block < 1:
    raise ValueError(
      f"found k={k}, block={block} and {count} documents: expected a k of 1 to these, a block of 1 or more"
    )
  block = min(block, count)
  blocks = -(-count // block)
  number = jnp.arange(blocks * block)
  there = jnp.ones(count, bool) if real is None else real
  there = jnp.pad(there, (0, len(number) - count))
  index = jnp.pad(index, ((0, len(number) - count), (0, 0)))

  def add(best: Retrieved, part):
    vectors, number, there = part
    score = jnp.where(there[None], query @ vectors.T, -jnp.inf)
    # What was there before stands in front: top_k takes the first of equal ones.
    scores = jnp.concatenate([best.score, score], 1)
    numbers = jnp.concatenate([best.number, jnp.broadcast_to(number[None], score.shape)], 1)
    score, place = jax.lax.top_k(scores, k)
    return Retrieved(jnp.take_along_axis(numbers, place, 1), score), None

  empty = Retrieved(
    jnp.full((len(query), k), count - 1, number.dtype), jnp.full((len(query), k), -jnp.inf, query.dtype)
  )
  parts = (index.reshape(blocks, block, -1), number.reshape(blocks, block), there.reshape(blocks, block))
  return jax.lax.scan(add, empty, parts)[0]


def count_words(tokens: Int[Array, "N T"], length: Int[Array, " N"], vocabulary: int) -> Float[Array, "N V"]:
  """How often each word stands in each text, what is behind `length` left out."""
  real = (jnp.arange(tokens.shape[1])[None] < length[:, None]).astype(jnp.float32)
  rows = jnp.broadcast_to(jnp.arange(len(tokens))[:, None], tokens.shape)
  return jnp.zeros((len(tokens), vocabulary), jnp.float32).at[rows, tokens].add(real)


def bm25_weights(
  documents: Int[Array, "N T"], length: Int[Array, " N"], vocabulary: int, k1: float = 1.2, b: float = 0.75
) -> Float[Array, "N V"]:
  """What each word of a question adds to the score of each document: BM25. Robertson & Zaragoza 2009, sec. 3.

    max(0, log((N - n + .5) / (n + .5)))  *  tf (k1 + 1) / (tf + k1 (1 - b + b length / mean length))

  N documents, n of which have the word; tf, how often it stands in this one. A word in half of the documents or more
  adds nothing. Differences from the source: the factor k1 + 1, which changes no order, and no weight below 0, both as
  in Python's rank_bm25 with epsilon = 0.
  """
  counts = count_words(documents, length, vocabulary)
  having = jnp.sum(counts > 0, 0)
  rarity = jnp.maximum(jnp.log((len(documents) - having + 0.5) / (having + 0.5)), 0)
  size = length / jnp.mean(length.astype(jnp.float32))
  return rarity[None] * counts * (k1 + 1) / (counts + k1 * (1 - b + b * size[:, None]))


def bm25_scores(
  questions: Int[Array, "B T"], length: Int[Array, " B"], weights: Float[Array, "N V"]
) -> Float[Array, "B N"]:
  """The sum of the weights of each question's words; one that stands there twice counts twice."""
  return count_words(questions, length, weights.shape[1]) @ weights.T


def marginalize_documents(
  prior: Float[Array, "*B K"],
  log_probability: Float[Array, "*B K T"],
  real: Bool[Array, "*B T"],
  by: Marginal = "sequence",
) -> Float[Array, "*B"]:
  """Log-likelihood of an answer of T tokens over K documents, in nats. Lewis et al. 2020, sec. 2.1.

    sequence:  log sum_z p(z | x) prod_i p(y_i | x, z, y_1:i-1)        one document for the whole answer
    token:     sum_i log sum_z p(z | x) p(y_i | x, z, y_1:i-1)         another one for each token may be

  `prior` is log p(z | x), whose exponentials sum to 1; tokens that are not `real` do not count.
  """
  logs = jnp.where(real[..., None, :], log_probability, 0)
  if by == "sequence":
    return jax.nn.logsumexp(prior + jnp.sum(logs, -1), -1)
  # Of what does not count each document says log 1: the sum over the prior is log 1 too, up to rounding.
  each = jax.nn.logsumexp(prior[..., None] + logs, -2)
  return jnp.sum(jnp.where(real, each, 0), -1)


def recall_at(number: Int[Array, "B K"], right: Int[Array, " B"]) -> Float[Array, " B"]:
  """1 where the right document is among those found, 0 elsewhere."""
  return jnp.any(number == right[:, None], 1).astype(jnp.float32)


def reciprocal_rank(scores: Float[Array, "B N"], right: Int[Array, " B"]) -> Float[Array, " B"]:
  """1 / rank of the right document among all; others with the same score stand before it."""
  own = jnp.take_along_axis(scores, right[:, None], 1)
  return 1 / jnp.sum(scores >= own, 1).astype(jnp.float32)
