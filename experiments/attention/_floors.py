"""What needs no network: the floors that models of text in this chapter are held against."""

import numpy as np

from mlnotes.data import Corpus


def ngram_floors(corpus: Corpus) -> dict[str, float]:
  """Nats per token of the test text by the frequencies of single tokens, and of tokens behind each other.

    p(b) = (n_b + 1) / (n + V),    p(b | a) = (n_ab + p(b)) / (n_a + 1)

  The latter is the mean under a Dirichlet prior of one token drawn by p. MacKay & Peto 1995.
  """
  train, test = (np.asarray(split.arrays["tokens"], np.int64) for split in (corpus.train, corpus.test))
  single = (np.bincount(train, minlength=corpus.vocab_size) + 1) / (len(train) + corpus.vocab_size)
  pairs = np.zeros((corpus.vocab_size, corpus.vocab_size))
  np.add.at(pairs, (train[:-1], train[1:]), 1)
  double = (pairs + single[None]) / (pairs.sum(1, keepdims=True) + 1)
  before, after = test[:-1], test[1:]
  return {"unigram": float(-np.mean(np.log(single[after]))), "bigram": float(-np.mean(np.log(double[before, after])))}
