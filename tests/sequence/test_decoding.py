"""Decoding against all sequences there are, one row against many, and what a search may stop at."""

import functools
import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.sequence.decoding import Decoder, beam_search, greedy, length_normalizer, sample

V, T, S = 4, 4, 3
END, PAD, START = 2, 3, 0  # of four ids, padding is never predicted
CHOICES = (0, 1, 2)


def step(source, state, token):
  """Each prefix has a distribution of its own: by a hash of it, and by the row's number."""
  prefix = state["prefix"] * 5 + token + 1
  ids = jnp.arange(V)[None]
  angle = jnp.sin((prefix * 37 % 101 + 13 * source["row"]).astype(jnp.float32)[:, None] * (1.0 + ids))
  logits = 2.5 * angle + jnp.where(ids == END, source["bias"][:, None], 0.0)
  logits = jnp.where(ids == PAD, -jnp.inf, logits)
  attention = jax.nn.softmax(jnp.cos(prefix[:, None] * (1.0 + jnp.arange(S)[None])), -1)
  return jax.nn.log_softmax(logits), {"prefix": prefix, "count": state["count"] + 1}, attention


one = jax.jit(step)


def make(rows=6, lengths=None, first=0):
  number = np.arange(first, first + rows)
  source = {"row": jnp.asarray(number), "bias": jnp.asarray(np.sin(3.0 * number), jnp.float32)}
  return Decoder(step, {"prefix": jnp.asarray(np.zeros(rows, np.int32)), "count": jnp.int32(0)}, source, lengths)


def all_sequences(row, alpha, beta=0.0, length=S, max_length=T):
  """{tokens: (score, log-probability)} of every complete sequence, one step after the other in float64."""
  decoder, found = make(1, first=row), {}

  def grow(prefix, state, last, log_probability, coverage):
    if len(prefix) == max_length:
      return
    logs, state, attention = jax.tree.map(np.asarray, one(decoder.source, state, np.array([last])))
    coverage = coverage + np.asarray(attention[0], np.float64)
    for token in CHOICES:
      total = log_probability + float(logs[0, token])
      if token == END:
        size = len(prefix) + 1
        penalty = beta * sum(math.log(min(max(c, 1e-6), 1.0)) for c in coverage[:length])
        found[(*prefix, END)] = (total / ((5 + size) / 6) ** alpha + penalty, total)
      else:
        grow((*prefix, token), state, token, total, coverage)

  grow((), decoder.state, START, 0.0, np.zeros(S))
  return found


def as_tuple(tokens, length):
  return tuple(int(token) for token in tokens[:length])


look = lambda decoder, **more: wrapped(decoder.state, decoder.source, decoder.lengths, **more)


@partial(jax.jit, static_argnames=("width", "coverage_penalty", "monotonic", "max_length"))
def wrapped(state, source, lengths, *, width, length_penalty=0.0, coverage_penalty=0.0, monotonic=False, max_length=T):
  return beam_search(
    Decoder(step, state, source, lengths), START, END, PAD, max_length, width, length_penalty, coverage_penalty,
    monotonic,
  )  # fmt: skip


@functools.cache
def greedily():
  return jax.jit(lambda: greedy(make(ROWS), START, END, PAD, T))()


@pytest.fixture(scope="module")
def everything():
  """All sequences of each row, by their log-probability; other scores follow from it and the length."""
  return [all_sequences(row, 0.0) for row in range(6)]


ROWS = 40  # of all batches, which share their programs; those that are compared with loops are the first six


@pytest.mark.parametrize("monotonic", [False, True])
@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.6, 1.0, 2.0])
def test_beams_for_every_prefix_find_the_best_of_all_sequences(everything, alpha, monotonic):
  found = look(make(ROWS), width=30, length_penalty=alpha, monotonic=monotonic)
  for row, log_probabilities in enumerate(everything):
    expected = {k: p / ((5 + len(k)) / 6) ** alpha for k, (p, _) in log_probabilities.items()}
    best = sorted(expected, key=expected.get, reverse=True)[:5]
    ours = [as_tuple(*pair) for pair in zip(found.tokens[row], found.length[row])]
    assert ours[: len(best)] == best
    np.testing.assert_allclose(found.score[row, :5], [expected[k] for k in best], rtol=1e-5)
    np.testing.assert_allclose(found.log_probability[row, :5], [log_probabilities[k][1] for k in best], rtol=1e-5)


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.6, 1.0, 2.0])
def test_a_narrow_beam_stops_as_late_as_one_that_never_stops(alpha):
  """Its list of finished sequences is that of a plain loop over all steps, a row at a time."""
  for width in (1, 2, 4):
    found = look(make(ROWS), width=width, length_penalty=alpha)
    for row in range(6):
      expected = plain_search(row, width, alpha)
      ours = [
        (float(s), as_tuple(t, n))
        for s, t, n in zip(found.score[row], found.tokens[row], found.length[row])
        if np.isfinite(s)
      ]
      assert [k for _, k in ours] == [k for _, k in expected]
      np.testing.assert_allclose([s for s, _ in ours], [s for s, _ in expected], rtol=1e-5)


@pytest.mark.parametrize(("alpha", "first_end", "size"), [(2.0, 0.6, 12), (-1.0, 0.4, 2)])
def test_a_search_goes_on_as_long_as_what_runs_can_still_win(alpha, first_end, size):
  """END comes first with some probability, else after `size` tokens with nearly none of the others' cost.

  Ended at once, the score is log `first_end`; gone on, log(1 - first_end) over the normaliser of all tokens.
  """

  def lead(source, state, token):
    end = jnp.where(state == 0, first_end, jnp.where(state == size - 1, 0.999, 0.0005))[:, None]
    probability = jnp.concatenate([1 - end - 2e-5, jnp.full_like(end, 1e-5), end, jnp.full_like(end, 1e-5)], 1)
    return jnp.log(probability), state + 1, None

  search = jax.jit(lambda state: beam_search(Decoder(lead, state), START, END, PAD, 12, 1, alpha))
  found = search(np.zeros(1, np.int32))
  assert math.log(1 - first_end) / ((5 + size) / 6) ** alpha > math.log(first_end)
  assert found.length[0, 0] == size


def plain_search(row, width, alpha):
  """Beam search as lists: every step is taken, nothing stops early."""
  decoder = make(1, first=row)
  running, done = [(0.0, (), decoder.state)], []
  for _ in range(T):
    nearby = []
    for total, prefix, state in running:
      logs, state, _ = jax.tree.map(np.asarray, one(decoder.source, state, np.array([prefix[-1] if prefix else START])))
      for token in CHOICES:
        nearby.append((total + float(logs[0, token]), (*prefix, token), state))
    done += [(total / ((5 + len(p)) / 6) ** alpha, p) for total, p, _ in nearby if p[-1] == END]
    going = [x for x in nearby if x[1][-1] != END]
    running = sorted(going, key=lambda x: -x[0])[:width]
  return sorted(done, key=lambda x: -x[0])[:width]


def test_a_search_of_one_beam_goes_where_greedy_decoding_goes():
  """Greedy decoding ends at the first END that is likeliest; one beam knows its score and may look further."""
  many, found = look(make(ROWS), width=1), greedily()
  for row in range(ROWS):
    tokens = as_tuple(found.tokens[row], found.length[row])
    if tokens[-1] == END:
      assert many.score[row, 0] >= found.log_probability[row] - 1e-6
      chosen = as_tuple(many.tokens[row, 0], many.length[row, 0])
      assert chosen[:-1] == tokens[: len(chosen) - 1]


def test_a_wider_monotonic_search_never_returns_a_lower_score():
  decoder = make(ROWS)
  for alpha in (-1.0, 0.0, 0.6, 2.0):
    best = [look(decoder, width=w, length_penalty=alpha, monotonic=True).score[:, 0] for w in (1, 2, 4, 30)]
    for narrow, wide in itertools.pairwise(best):
      assert np.all(np.asarray(wide) >= np.asarray(narrow) - 1e-6)


@pytest.mark.parametrize("alpha", [-1.0, 0.6, 2.0])
def test_no_width_returns_more_than_all_sequences_have_nor_the_shortest(alpha):
  """The usual choice: below the best of all, and where alpha is large longer ones win."""
  decoder = make(ROWS)
  best = look(decoder, width=30, length_penalty=alpha)
  for width in (1, 2, 4):
    assert np.all(look(decoder, width=width, length_penalty=alpha).score[:, 0] <= best.score[:, 0] + 1e-6)
  lengths = [float(np.mean(look(decoder, width=30, length_penalty=a).length[:, 0])) for a in (-1.0, 0.6, 2.0)]
  assert lengths[0] < lengths[1] < lengths[2]


@pytest.mark.parametrize("monotonic", [False, True])
def test_a_row_alone_gives_what_it_gives_among_others(monotonic):
  lengths = jnp.array([3, 1, 2, 3, 2, 1])
  options = dict(width=3, length_penalty=0.6, coverage_penalty=0.2, monotonic=monotonic)
  together = look(make(6, lengths), **options)
  for row in (0, 4):
    alone = look(make(1, lengths[row : row + 1], row), **options)
    np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
    np.testing.assert_allclose(alone.score[0], together.score[row], rtol=1e-5)


def test_coverage_counts_the_real_places_of_the_source():
  lengths = np.array([3, 1, 2, 3, 2, 1])
  found = look(make(6, jnp.array(lengths)), width=30, length_penalty=0.6, coverage_penalty=0.8)
  moved = 0
  for row in range(6):
    expected = all_sequences(row, 0.6, 0.8, lengths[row])
    best = max(expected, key=lambda k: expected[k][0])
    moved += best != max(expected, key=lambda k: expected[k][1] / ((5 + len(k)) / 6) ** 0.6)
    assert as_tuple(found.tokens[row, 0], found.length[row, 0]) == best
    np.testing.assert_allclose(found.score[row, 0], expected[best][0], rtol=1e-5)
  assert moved  # it changes what is found


def test_padding_follows_end_and_length_is_the_first_of_it():
  found, one = jax.tree.map(np.asarray, (look(make(ROWS), width=4), greedily()))
  for tokens, length in [*zip(found.tokens.reshape(-1, T), found.length.reshape(-1)), *zip(one.tokens, one.length)]:
    assert np.all(tokens[length:] == PAD) and not np.any(tokens[:length] == PAD)
    assert list(tokens).count(END) <= 1
    if length < T:
      assert tokens[length - 1] == END
  assert len({int(n) for n in found.length[:, 0]}) > 2  # of several lengths


def test_where_nothing_ends_the_score_says_so():
  def never(source, state, token):
    log_probability, state, attention = step(source, state, token)
    return log_probability.at[:, END].set(-jnp.inf), state, attention

  decoder = make(2)._replace(step=never)
  both = jax.jit(lambda: (beam_search(decoder, START, END, PAD, T, 2), greedy(decoder, START, END, PAD, T)))
  found, cut = both()
  assert np.all(found.score == -np.inf)
  np.testing.assert_array_equal(cut.length, T)
  assert not np.any(cut.tokens == END)


def test_draws_have_the_models_distribution_and_do_not_depend_on_the_batch(key):
  count = 4000
  decoder = make(1, first=3)
  repeat = lambda x: jnp.repeat(x, count, 0) if jnp.ndim(x) else x
  many = decoder._replace(state=jax.tree.map(repeat, decoder.state), source=jax.tree.map(repeat, decoder.source))
  keys = jax.random.split(key, count)
  draw = jax.jit(lambda keys, state, source: sample(keys, Decoder(step, state, source), START, END, PAD, T))
  found = draw(keys, many.state, many.source)
  counts = {}
  for tokens, length, log_probability in zip(*map(np.asarray, found[:3])):
    k = as_tuple(tokens, length)
    counts.setdefault(k, [0, log_probability])[0] += 1
  for seen, log_probability in counts.values():
    p = math.exp(log_probability)
    assert abs(seen / count - p) < 5 * math.sqrt(p / count) + 1e-3
  alone = draw(keys[7:8], decoder.state, decoder.source)
  np.testing.assert_array_equal(alone.tokens[0], found.tokens[7])


def test_settings_that_make_no_sense_are_refused():
  decoder = make(1)
  for more, said in (
    (dict(width=0), "width=0"),
    (dict(coverage_penalty=-1.0), "coverage_penalty=-1.0"),
  ):
    with pytest.raises(ValueError, match=said):
      beam_search(decoder, START, END, PAD, T, **more)
  blind = decoder._replace(step=lambda *given: (*step(*given)[:2], None))
  with pytest.raises(ValueError, match="hold no array"):
    greedy(Decoder(lambda *given: None, ()), 0, 1, 2, 3)
  with pytest.raises(ValueError, match="gives no attention"):
    beam_search(blind, START, END, PAD, T, coverage_penalty=0.1)


def test_the_normalizer_is_one_for_a_single_token():
  np.testing.assert_allclose(length_normalizer(jnp.array([1, 7]), 2.0), [1.0, 4.0])
