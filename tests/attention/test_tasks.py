"""The tasks' answers against plain Python, and who gets which sequences."""

import jax
import numpy as np
import pytest

from experiments.attention import _tokens
from mlnotes.attention import make_copying, make_induction, make_listops, make_recall, make_sorting
from mlnotes.attention.tasks import NOT_ASKED


def draw(task, count=64, seed=0):
  tokens, targets = jax.jit(jax.vmap(task.draw))(jax.random.split(jax.random.key(seed), count))
  assert tokens.shape == targets.shape == (count, task.length)
  assert np.all((tokens >= 0) & (tokens < task.vocabulary))
  assert np.all((targets >= NOT_ASKED) & (targets < task.vocabulary))
  return np.asarray(tokens).tolist(), np.asarray(targets).tolist()


def test_recall_asks_for_the_value_of_a_key():
  seen = set()
  for tokens, targets in zip(*draw(make_recall(pairs=5, queries=3, symbols=12))):
    keys, values = tokens[:10:2], tokens[1:10:2]
    assert len(set(keys)) == 5 and max(keys) < 6 <= min(values)
    assert targets[:10] == [NOT_ASKED] * 10 and len(set(tokens[10:])) == 3
    assert targets[10:] == [dict(zip(keys, values))[key] for key in tokens[10:]]
    seen |= {keys.index(key) for key in tokens[10:]}
  assert seen == set(range(5))


def test_induction_asks_for_what_came_after_the_marker():
  places = set()
  for tokens, targets in zip(*draw(make_induction(9, 7), 200)):
    place = tokens.index(7)
    assert tokens.count(7) == 2 and tokens[-1] == 7
    assert targets == [NOT_ASKED] * 8 + [tokens[place + 1]]
    places.add(place)
  assert places == set(range(7))  # all but the last two: something has to follow


def test_copying_asks_for_the_symbols_in_their_order():
  for tokens, targets in zip(*draw(make_copying(count=4, symbols=5, gap=6))):
    said = [token for token in tokens[:10] if token != 5]
    assert len(said) == 4 and tokens[10:] == [6] * 4
    assert targets == [NOT_ASKED] * 10 + said


def test_sorting_asks_for_the_sorted_symbols():
  for tokens, targets in zip(*draw(make_sorting(7, 5))):
    assert targets == sorted(tokens)


def evaluate(tokens):
  """(value, what is left) of the expression that `tokens` begin with."""
  if tokens[0] < 10:
    return tokens[0], tokens[1:]
  kind, rest, arguments = tokens[0] - 10, tokens[1:], []
  while rest[0] != 14:
    value, rest = evaluate(rest)
    arguments.append(value)
  assert 2 <= len(arguments) <= 4
  value = [min, max, lambda x: int(np.median(x)), lambda x: sum(x) % 10][kind](arguments)
  return value, rest[1:]


def nesting(tokens):
  depth = most = 0
  for token in tokens:
    depth += (10 <= token < 14) - (token == 14)
    most = max(most, depth)
  return most


@pytest.mark.parametrize("length", [7, 30])
def test_listops_asks_for_the_value(length):
  depths, kinds, answers = set(), set(), set()
  for tokens, targets in zip(*draw(make_listops(length, depth=3, most=4), 300)):
    value, rest = evaluate(tokens)
    assert tokens[0] >= 10 and rest[-1] == 16 and set(rest[:-1]) <= {15}
    assert targets == [NOT_ASKED] * (length - 1) + [value]
    depths.add(nesting(tokens))
    kinds |= {token - 10 for token in tokens if 10 <= token < 14}
    answers.add(value)
  assert depths == ({1, 2, 3} if length == 30 else {1, 2} if 2 in depths else {1})
  assert kinds == {0, 1, 2, 3} and answers == set(range(10))


@pytest.mark.parametrize(
  ("make", "said"),
  [
    (lambda: make_recall(9, 4, 16), "8 keys"),
    (lambda: make_recall(4, 5, 16), "5 queries"),
    (lambda: make_induction(3), "4 or more"),
    (lambda: make_listops(6), "length 6"),
  ],
)
def test_sizes_that_do_not_fit_are_refused(make, said):
  with pytest.raises(ValueError, match=said):
    make()


def test_no_sequence_is_trained_on_and_tested():
  task = make_sorting(2, 6)  # 36 sequences in all
  parts = []
  for test in (False, True):
    keys = jax.random.split(jax.random.key(3), 2000)
    drawn = jax.jit(jax.vmap(lambda key, test=test: _tokens.draw_of_part(task, test, 16)(key, ())))(keys)
    assert np.mean(drawn["weight"]) > 0.9
    parts.append({tuple(x) for x, w in zip(np.asarray(drawn["tokens"]).tolist(), drawn["weight"]) if w})
  assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 36
  assert 3 <= len(parts[1]) <= 15  # about a quarter
