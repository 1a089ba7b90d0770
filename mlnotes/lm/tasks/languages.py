"""Two languages of one grammar that share no word: what does a model of both make of them? Dufter & Schuetze 2020.

Word i of the second is the id i + words: nothing in any text says that the two belong together, and a model that puts
them side by side has found the grammar.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


class Grammar(NamedTuple):
  """A Markov chain over V words.

  Attributes:
    transition: (V, V) probability of the next word (last axis) after each.
    stationary: (V,) how often each word is, and with what probability a document begins with it.
  """

  transition: Float[Array, "V V"]
  stationary: Float[Array, " V"]


def make_grammar(key: Key[Array, ""], words: int = 32, concentration: float = 0.2, noise: float = 0.01) -> Grammar:
  """What follows each word is drawn from a Dirichlet distribution, with `noise` of every word mixed in.

  A low `concentration` leaves each word few that may follow. Words are told apart by what stands around them alone.
  Raises ValueError for fewer than 2 words, or numbers out of range.
  """
  if words < 2 or concentration <= 0 or not 0 < noise <= 1:
    raise ValueError(
      f"words is {words}, concentration {concentration}, noise {noise}: expected 2 or more, above 0, in (0, 1]"
    )
  drawn = jax.random.dirichlet(key, jnp.full((words,), concentration), (words,))
  transition = (1 - noise) * drawn + noise / words
  # Powers of it by squaring: every row tends to the stationary distribution, at 1 - noise a step or faster.
  many = jax.lax.fori_loop(0, 16, lambda _, x: (x @ x) / jnp.sum(x @ x, 1, keepdims=True), transition)
  return Grammar(transition, many[0])


def entropy_rate(grammar: Grammar) -> Float[Array, ""]:
  """Nats of a word given the one before it: no model that knows the language of a text has a lower loss on average.

  -sum_i pi_i sum_j T_ij log T_ij                        Cover & Thomas, "Elements of Information Theory", ch. 4
  """
  return jnp.sum(grammar.stationary * jnp.sum(jax.scipy.special.entr(grammar.transition), 1))


def bridge_entropy(grammar: Grammar) -> Float[Array, ""]:
  """Nats of a word given those on both sides: what a hidden word costs at least, where nothing of it is shown.

  H(x_t | x_{t-1}, x_{t+1}) = 2 H(x_{t+1} | x_t) - H(x_{t+1} | x_{t-1}), by the chain rule and Markov's property
  """
  twice = grammar._replace(transition=grammar.transition @ grammar.transition)
  return 2 * entropy_rate(grammar) - entropy_rate(twice)


class Documents(NamedTuple):
  """Rows of words, each of one language, 0 or 1."""

  tokens: Int[Array, "B T"]
  language: Int[Array, " B"]


def draw_documents(
  key: Key[Array, ""], grammar: Grammar, batch: int, length: int, share: float = 0.5, languages: int = 2
) -> Documents:
  """`batch` documents, each with probability `share` of another language than the first, all others as likely.

  Ids are 0 ... languages V - 1; the same words with V added are the next language's.
  """
  of_language, of_first, of_next, of_which = jax.random.split(key, 4)
  words = len(grammar.stationary)
  other = jax.random.randint(of_which, (batch,), 1, max(languages, 2))
  language = jnp.where(jax.random.bernoulli(of_language, share, (batch,)) & (languages > 1), other, 0)
  below = jnp.cumsum(grammar.transition, 1)  # a number in [0, 1) is below the first of them that is greater
  first = jax.random.categorical(of_first, jnp.log(grammar.stationary), shape=(batch,))

  def step(word, drawn):
    following = jnp.minimum(jnp.sum(below[word] <= drawn[:, None], 1), words - 1)
    return following, following

  _, rest = jax.lax.scan(step, first, jax.random.uniform(of_next, (length - 1, batch)))
  tokens = jnp.concatenate([first[None], rest]).T.astype(jnp.int32)
  return Documents(tokens + words * language[:, None], language)


def share_words(tokens: Int[Array, "..."], words: int, anchors: int) -> Int[Array, "..."]:
  """The first `anchors` words of each language are the first language's: the same id in all.

  Anchor points, as Conneau et al. 2020 call what two languages spell alike.
  """
  word = tokens % words
  return jnp.where(word < anchors, word, tokens)


class Alignment(NamedTuple):
  """How well words of two languages find each other, in the mean over both directions.

  Attributes:
    precision: share of words whose nearest in the other language is their own translation; 1 / V at chance.
    reciprocal_rank: the mean of 1 / rank of the translation; 1 where all are nearest.
    similarity: mean cosine of translations, less that of all other pairs.
  """

  precision: Float[Array, ""]
  reciprocal_rank: Float[Array, ""]
  similarity: Float[Array, ""]


def measure_alignment(first: Float[Array, "V D"], second: Float[Array, "W E"], centered: bool = False) -> Alignment:
  """Of vectors of the words of two languages, row i of the one being the translation of row i of the other.

  By cosines; with `centered` the mean vector of each language is taken away first, which is often all that tells the
  languages apart. Vectors that are equally near count against a word. Raises ValueError where the shapes differ.
  """
  if first.shape != second.shape:
    raise ValueError(f"first has shape {first.shape}, second {second.shape}: expected one vector of each word in both")

  def unit(x: Array) -> Array:
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, 0, keepdims=True) if centered else x
    return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)

  cosine = unit(first) @ unit(second).T
  own = jnp.diagonal(cosine)
  others = ~jnp.eye(len(cosine), dtype=bool)
  rank = lambda cosine: 1 + jnp.sum((cosine >= own[:, None] - 1e-6) & others, 1)  # but for rounding
  ranks = jnp.concatenate([rank(cosine), rank(cosine.T)])
  apart = jnp.sum(jnp.where(others, cosine, 0)) / jnp.maximum(jnp.sum(others), 1)
  return Alignment(jnp.mean(ranks == 1), jnp.mean(1.0 / ranks), jnp.mean(own) - apart)
