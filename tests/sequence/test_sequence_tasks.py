"""Tasks of memory and slot filling: what is drawn, by plain rules; floors by counting; entities by sets of spans."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.sequence import count_entities, make_adding, make_copying, make_dyck, make_parity, make_slots
from mlnotes.sequence.tagging import KINDS, TAGS, WORDS, read_words, tags_of_words
from mlnotes.sequence.tasks import NOT_ASKED


def draw(task, count=4096):
  return jax.tree.map(np.asarray, jax.jit(jax.vmap(task.draw))(jax.random.split(jax.random.key(0), count)))


def test_adding_marks_one_number_of_each_half():
  task = make_adding(7)
  drawn = draw(task)
  values, marks = drawn["inputs"][..., 0], drawn["inputs"][..., 1]
  assert (marks[:, :3].sum(1) == 1).all() and (marks[:, 3:].sum(1) == 1).all()
  assert set(np.flatnonzero(marks.sum(0))) == set(range(7))
  np.testing.assert_allclose(drawn["target"], (values * marks).sum(1), atol=1e-6)
  assert values.min() >= 0 and values.max() < 1
  # The best without memory sees the last step: the mean, 1, but of a number that is marked there itself.
  said = 1 + marks[:, -1] * (values[:, -1] - 0.5)
  np.testing.assert_allclose(np.mean((drawn["target"] - said) ** 2), task.floor, rtol=0.03)


def test_copying_says_what_was_heard_behind_the_mark():
  task = make_copying(5, count=3, symbols=4)
  drawn = draw(task)
  heard, target = drawn["inputs"].argmax(-1), drawn["target"]
  assert heard.shape == target.shape == (4096, 11) and (drawn["length"] == 11).all()
  np.testing.assert_array_equal(target[:, -3:], heard[:, :3])
  assert (target[:, :-3] == 4).all() and (heard[:, 3:] >= 4).all()
  np.testing.assert_array_equal((heard == 5).nonzero()[1], 7)  # the mark is heard right before
  assert heard[:, :3].max() == 3
  shares = [max(np.bincount(place)) / len(place) for place in target.T]
  np.testing.assert_allclose(np.mean(shares), task.accuracy, atol=0.02)
  np.testing.assert_allclose(task.floor, 3 * np.log(4) / 11)


def test_parity_is_of_the_ones_so_far():
  task = make_parity(6)
  drawn = draw(task)
  np.testing.assert_array_equal(drawn["target"], np.cumsum(drawn["inputs"][..., 1], 1) % 2)
  np.testing.assert_allclose(drawn["inputs"][..., 1].mean(), 0.5, atol=0.02)
  assert counted_floors(drawn, 2) == pytest.approx((task.floor, task.accuracy), abs=0.01)


def counted_floors(drawn, tokens):
  """(nats, accuracy) of the frequencies of targets at each place behind each token."""
  heard, target = drawn["inputs"].argmax(-1), drawn["target"]
  nats, right = 0.0, 0.0
  for place in range(heard.shape[1]):
    for token in range(tokens):
      counts = np.bincount(target[heard[:, place] == token, place])
      if counts.sum():
        nats -= np.sum(counts * np.log(np.maximum(counts, 1) / counts.sum()))
        right += counts.max()
  return nats / target.size, right / target.size


@pytest.mark.parametrize("kinds, depth", [(1, 3), (2, 4)])
def test_brackets_close_in_order(kinds, depth):
  """Against a stack; floors against frequencies at each place behind each token."""
  task = make_dyck(9, kinds, depth)
  drawn = draw(task, 20000)
  deepest = 0
  for tokens, target in zip(drawn["inputs"][:300].argmax(-1), drawn["target"][:300]):
    stack = []
    for token, said in zip(tokens, target):
      if token < kinds:
        stack.append(token)
      else:
        assert stack.pop() == token - kinds
      deepest = max(deepest, len(stack))
      assert said == (len(stack) if kinds == 1 else stack[-1] + 1 if stack else 0)
  assert deepest == depth and task.classes == (depth + 1 if kinds == 1 else kinds + 1)
  assert counted_floors(drawn, 2 * kinds) == pytest.approx((task.floor, task.accuracy), abs=0.01)
  # At the first place a bracket opens, and what is asked is known.
  assert make_dyck(1, kinds, depth)[-2:] == (0, 1)


@pytest.mark.parametrize("make", [lambda: make_adding(1), lambda: make_copying(0), lambda: make_parity(0),
                                  lambda: make_dyck(4, 0), lambda: make_dyck(4, 1, 0)])  # fmt: skip
def test_sizes_that_are_no_task_are_refused(make):
  with pytest.raises(ValueError, match="expected"):
    make()


def test_requests_are_of_the_grammar():
  """As long as they say, entities of each kind at most once, tags in BIO form, and words that alone do not tell."""
  drawn = draw(make_slots(), 512)
  tags_seen = {}
  for inputs, target, length in zip(drawn["inputs"], drawn["target"], drawn["length"]):
    words = read_words(inputs)
    assert len(words) == length and (target[length:] == NOT_ASKED).all() and (target[:length] >= 0).all()
    assert not inputs[length:].any()
    first = [TAGS[tag] for tag in target[:length] if TAGS[tag].startswith("B-")]
    assert len(set(first)) == len(first) and 2 <= len(first) <= len(KINDS)
    for before, tag in zip([0, *target], target[:length]):
      if TAGS[tag].startswith("I-"):
        assert before in (tag, tag - 1)
    for word, tag in zip(words, target):
      tags_seen.setdefault(word, set()).add(TAGS[tag])
  assert {"B-from", "B-to"} <= tags_seen["boston"] and {"B-leave_day", "B-return_day"} <= tags_seen["monday"]
  assert {"B-from", "B-to", "B-airline"} <= tags_seen["new"] and set(tags_seen) == set(WORDS)
  by_word = tags_of_words(drawn["inputs"], drawn["target"])
  assert TAGS[by_word[WORDS.index("delta")]] == "B-airline" and by_word[WORDS.index("flights")] == 0


def spans(tags):
  """{(kind, first, behind the last)}, tag by tag."""
  found, start = set(), None
  for i, tag in enumerate([*tags, 0]):
    kind = (tag - 1) // 2 if tag else None
    inside = tag > 0 and tag % 2 == 0
    if start is not None and not (inside and kind == start[0]):
      found.add((*start, i))
      start = None
    if tag and start is None:
      start = (kind, i)
  return found


def test_entities_are_right_with_their_ends_and_kind():
  """Against sets of spans, on random tags: inner tags that follow nothing, neighbours of one kind, padding."""
  numbers = np.random.default_rng(0)
  target, said = numbers.integers(0, 5, (2, 200, 6))
  said = np.where(numbers.random((200, 6)) < 0.7, target, said)
  lengths = numbers.integers(0, 7, 200)
  real = np.arange(6)[None] < lengths[:, None]
  found = jax.jit(count_entities)(*map(jnp.asarray, (target, said, real)))
  for i, length in enumerate(lengths):
    a, b = spans(target[i, :length]), spans(said[i, :length])
    assert [int(x[i]) for x in found] == [len(a & b), len(b), len(a)]
