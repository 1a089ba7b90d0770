"""Where spans lie and how long they are: against enumeration and the distributions' own formulas."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mlnotes.lm.spans import (
  compact,
  cut_lengths,
  draw_composition,
  draw_lengths,
  geometric_lengths,
  place_spans,
  poisson_lengths,
  round_at_random,
)
from mlnotes.lm.vocabulary import Vocabulary, join_rows

DRAWS = 4000


def keys(seed, count=DRAWS):
  return jax.random.split(jax.random.key(seed), count)


def runs(row):
  """(lengths of the runs of True, of False) around the ring."""
  row = np.asarray(row)
  edges = np.flatnonzero(row != np.roll(row, 1))
  if not len(edges):
    return [], []
  row, lengths = np.roll(row, -edges[0]), np.diff(np.append(edges, edges[0] + len(row)))
  flags = row[np.cumsum(lengths) - lengths]
  return list(lengths[flags]), list(lengths[~flags])


def test_lengths_are_drawn_from_the_distributions_of_the_papers():
  geometric, poisson = geometric_lengths(), poisson_lengths()
  assert np.arange(11) @ geometric == pytest.approx(3.8, abs=0.01) and geometric[0] == 0  # Joshi et al., 3.1
  np.testing.assert_allclose(geometric[2:] / geometric[1:-1], 0.8)
  np.testing.assert_allclose(poisson, stats.poisson.pmf(np.arange(33), 3), atol=1e-12)
  for probabilities in (geometric, poisson[:9] / poisson[:9].sum()):
    found = np.bincount(jax.jit(lambda p=probabilities: draw_lengths(jax.random.key(1), p, 20000))(), minlength=9)
    some = probabilities > 0
    assert np.all(found[: len(some)][~some] == 0)
    assert stats.chisquare(found[: len(some)][some], 20000 * probabilities[some]).pvalue > 1e-3


def test_every_composition_is_as_likely():
  """6 as a sum of 3 numbers of 1 or more: 10 ways."""
  draw = jax.jit(jax.vmap(lambda key: draw_composition(key, jnp.int32(6), jnp.int32(3), 8)))
  found = collections.Counter(map(tuple, np.asarray(draw(keys(0)))))
  ways = {(a, b, 6 - a - b, 0, 0, 0, 0, 0) for a in range(1, 5) for b in range(1, 6 - a)}
  assert set(found) == ways and len(ways) == 10
  assert stats.chisquare(list(found.values())).pvalue > 1e-3


def test_lengths_are_cut_to_the_budget_and_rounding_keeps_the_mean():
  np.testing.assert_array_equal(cut_lengths(jnp.array([3, 0, 4, 5, 1]), jnp.int32(6)), [3, 0, 3, 0, 0])
  np.testing.assert_array_equal(cut_lengths(jnp.array([3, 1]), jnp.int32(9)), [3, 1])
  found = np.asarray(jax.vmap(lambda key: round_at_random(key, jnp.float32(2.3)))(keys(1)))
  assert set(found) == {2, 3} and abs(found.mean() - 2.3) < 3 * np.sqrt(0.21 / DRAWS)


@pytest.mark.parametrize("apart", [0, 1])
def test_spans_keep_their_lengths_and_hit_every_place_alike(apart):
  """On the ring; a row of 11 of 14 places. Each place is in a span with probability 6 / 11, no more at either end."""
  place = lambda key: place_spans(key, jnp.array([0, 3, 1, 0, 2]), jnp.int32(11), 14, apart)
  inside, first = map(np.asarray, jax.jit(jax.vmap(place))(keys(2)))
  assert not inside[:, 11:].any() and np.all(inside.sum(1) == 6) and not np.any(first & ~inside)
  rate, spread = inside[:, :11].mean(0), np.sqrt(6 / 11 * 5 / 11 / DRAWS)
  assert np.all(np.abs(rate - 6 / 11) < 4 * spread)
  cut = inside[:, 0] & inside[:, 10] & (first[:, :11].sum(1) == 4)  # within a span, which is two then
  assert np.all(first.sum(1) == 3 + cut)
  # Three of the ten places within the ring at which it is cut are inside a span: (6 - 3) / 11.
  assert abs(cut.mean() - 3 / 11) < 4 * np.sqrt(3 / 11 * 8 / 11 / DRAWS)
  shapes = [runs(row[:11]) for row in inside[:300]]
  if apart:
    assert all(sorted(spans) == [1, 2, 3] and len(gaps) == 3 for spans, gaps in shapes)
  else:
    assert {len(spans) for spans, _ in shapes} == {1, 2, 3}  # some touch


def test_no_spans_and_no_room():
  none = place_spans(jax.random.key(0), jnp.zeros(3, int), jnp.int32(5), 6)
  assert not np.any(none.inside)
  empty = place_spans(jax.random.key(0), jnp.zeros(3, int), jnp.int32(0), 6)
  assert not np.any(empty.inside)
  full = place_spans(jax.random.key(0), jnp.array([2, 2, 2]), jnp.int32(6), 6)  # nothing is left to stand between
  assert np.all(full.inside) and np.sum(full.first) in (3, 4)
  np.testing.assert_array_equal(compact(jnp.arange(5), jnp.array([1, 0, 1, 1, 0], bool), 2, 9), [0, 2])
  np.testing.assert_array_equal(compact(jnp.arange(3), jnp.array([0, 0, 1], bool), 3, 9), [2, 9, 9])


def test_rows_are_joined_part_behind_part():
  tokens, lengths = jnp.array([[1, 2, 3], [4, 5, 6]]), jnp.array([2, 0])
  rows, total = join_rows([9, (tokens, lengths), 8, (tokens[:, 1:], jnp.array([1, 2]))], 5, 0)
  np.testing.assert_array_equal(rows, [[9, 1, 2, 8, 2], [9, 8, 5, 6, 0]])
  np.testing.assert_array_equal(total, [5, 4])
  short, total = join_rows([9, (tokens, lengths + 1), 8], 3, 0)
  np.testing.assert_array_equal(short, [[9, 1, 2], [9, 4, 8]])  # what finds no room is dropped
  np.testing.assert_array_equal(total, [3, 3])


@pytest.mark.parametrize("settings, words", [
  (dict(size=4, special=(4,)), "special holds 4, expected ids from 0 to 3"),
  (dict(size=4, special=(0, 3), mask=2), r"mask is 2, expected one of the special ids \(0, 3\)"),
  (dict(size=4, special=(3,)), "pad is 0, expected one of"),
  (dict(size=2, special=(0, 1)), "all 2 ids are special"),
])  # fmt: skip
def test_vocabularies_that_cannot_be_are_refused(settings, words):
  with pytest.raises(ValueError, match=words):
    Vocabulary(**settings)


def test_words_are_what_is_not_special():
  vocabulary = Vocabulary(6, (0, 4), mask=4)
  np.testing.assert_array_equal(vocabulary.words, [1, 2, 3, 5])
  tokens = jnp.array([[1, 4, 2, 0, 5]])
  np.testing.assert_array_equal(vocabulary.is_word(tokens, jnp.array([4])), [[1, 0, 1, 0, 0]])
  with pytest.raises(ValueError, match="mask is None"):
    Vocabulary(6, (0,)).require_mask()


@pytest.mark.parametrize("call", [lambda: geometric_lengths(0.0), lambda: poisson_lengths(-1.0)])
def test_distributions_that_are_none_are_refused(call):
  with pytest.raises(ValueError, match="expected"):
    call()
