"""What needs no network: the floors that models of text are held against."""

import numpy as np
from jaxtyping import Float, Int

from mlnotes.data.text import END, Corpus


def ngram_floors(corpus: Corpus) -> dict[str, float]:
  """Nats per token of the test text by the frequencies of single tokens, and of tokens behind each other.

    p(b) = (n_b + 1) / (n + V),    p(b | a) = (n_ab + p(b)) / (n_a + 1)

  The latter is the mean under a Dirichlet prior of one token drawn by p. MacKay & Peto 1995.
  """
  train, test = (np.asarray(split.arrays["tokens"], np.int64) for split in (corpus.train, corpus.test))
  single = (np.bincount(train, minlength=corpus.vocab_size) + 1) / (len(train) + corpus.vocab_size)
  before, after = test[:-1], test[1:]
  pairs, counts = np.unique(train[:-1] * corpus.vocab_size + train[1:], return_counts=True)
  count = _look_up(pairs, counts, before * corpus.vocab_size + after)
  total = np.bincount(train[:-1], minlength=corpus.vocab_size)
  double = (count + single[after]) / (total[before] + 1)
  return {"unigram": float(-np.mean(np.log(single[after]))), "bigram": float(-np.mean(np.log(double)))}


def witten_bell_floors(corpus: Corpus, orders: tuple[int, ...] = (2, 3, 4, 5)) -> dict[str, float]:
  """Nats per token of the test text, its first token left out, by interpolated n-grams; `orders` are their n.

    p(w | h) = (c(hw) + t(h) p(w | h')) / (c(h) + t(h))               Witten & Bell 1991; Chen & Goodman 1999, eq. 15

  t(h) is how many different tokens came behind h, h' is h without its first token, and below single tokens stands 1 /
  V. A context does not reach into the document before where documents end with `<end>`: it is filled up with that.
  """
  train, test = (np.asarray(split.arrays["tokens"], np.int64) for split in (corpus.train, corpus.test))
  end = corpus.tokenizer.special.get(END, -1)
  found = {}
  chance = np.full(len(test), 1 / corpus.vocab_size)
  contexts = [_contexts(tokens, max(orders) - 1, end) for tokens in (train, test)]
  # Of each n-gram a number: that of its context, which is looked up among those of the training text, and its token.
  ids = [np.zeros(len(tokens), np.int64) for tokens in (train, test)]
  for n in range(1, max(orders) + 1):
    if n > 1:
      ids = _join(*(place * corpus.vocab_size + context[n - 2] for place, context in zip(ids, contexts)))
    chance = _interpolate(chance, *ids, train, test, corpus.vocab_size)
    if n in orders:
      found[f"{n}_gram"] = float(-np.mean(np.log(chance[1:])))
  return found


def _contexts(tokens: Int[np.ndarray, " T"], most: int, end: int) -> list[Int[np.ndarray, " T"]]:
  """The token before each, the one before that, ...; `end` from the end of a document, or the text's start, on."""
  start, found = max(end, 0), []
  over = np.zeros(len(tokens), bool)
  for back in range(1, most + 1):
    before = np.concatenate([np.full(min(back, len(tokens)), start), tokens[:-back]])
    found.append(np.where(over, start, before))
    over = over | (found[-1] == end)
  return found


def _join(train: Int[np.ndarray, " T"], test: Int[np.ndarray, " S"]) -> list[np.ndarray]:
  """The same numbers as small ones, far below 0 where one of the test text is none of the training text's."""
  known, first = np.unique(train, return_inverse=True)
  place = np.minimum(np.searchsorted(known, test), len(known) - 1)
  return [first.reshape(-1), np.where(known[place] == test, place, -(2**31))]


def _interpolate(
  lower: Float[np.ndarray, " S"],
  context: Int[np.ndarray, " T"],
  asked: Int[np.ndarray, " S"],
  train: Int[np.ndarray, " T"],
  test: Int[np.ndarray, " S"],
  vocab_size: int,
) -> Float[np.ndarray, " S"]:
  """p(w | h) of each token of the test text, from p(w | h'); a context below 0 was never seen."""
  pairs, counts = np.unique(context * vocab_size + train, return_counts=True)
  total = np.bincount(context)
  kinds = np.bincount(pairs // vocab_size, minlength=len(total))
  seen = asked >= 0
  at = np.where(seen, asked, 0)
  count = _look_up(pairs, counts, at * vocab_size + test)
  return np.where(seen, (count + kinds[at] * lower) / (total[at] + kinds[at]), lower)


def _look_up(
  known: Int[np.ndarray, " N"], counts: Int[np.ndarray, " N"], asked: Int[np.ndarray, " S"]
) -> Int[np.ndarray, " S"]:
  """How often each was seen, of what is known in ascending order."""
  place = np.minimum(np.searchsorted(known, asked), len(known) - 1)
  return np.where(known[place] == asked, counts[place], 0)
