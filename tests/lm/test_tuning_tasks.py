"""What tuning asks: rows of each split's own text, figures from known logits, floors."""

import re
import types

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lm import _tuning_tasks, tune
from experiments.lm._tuning_floors import measure_floors
from mlnotes.lm import SpanLogits

SIZES = dict(
  scratch=True, model="gpt2", depth=2, width=8, heads=2, length=24, method="lora", batch_size=4, steps=4,
  warmup_steps=0, train_rows=40, test_rows=12, devices=1,
)  # fmt: skip


def question_of(task, text, **flags):
  config = tune.Config(**SIZES, dataset=text, task=task, **flags)
  return tune.build(config)


@pytest.mark.parametrize("task", ["shift", "follows", "case", "moved"])
def test_each_split_is_made_of_its_own_text(task, text):
  """Every row is found in that text again once its label is undone."""
  network, question = question_of(task, text)
  texts = [
    network.corpus.tokenizer.decode(split.arrays["tokens"]) for split in (network.corpus.train, network.corpus.test)
  ]
  for text, other, split in ((*texts, question.train), (*texts[::-1], question.test)):
    elsewhere = 0
    for i, row in enumerate(split.arrays["tokens"]):
      read = network.corpus.tokenizer.decode(row[: split.arrays["length"][i]])
      for part in undone(task, read, i, split, question):
        assert part in text
        elsewhere += part not in other
    assert elsewhere > len(split) / 3
  assert len(question.train) == 40 and 2 < len(question.test) <= 12
  if "label" in question.train.arrays and task != "case":
    assert question.train.arrays["label"].sum() == 20


def undone(task, read, i, split, question):
  arrays = split.arrays
  if task == "shift":
    words = re.split(r"(\s+)", read)
    if arrays["label"][i] and split is question.test:
      place = 2 * question.place[i]
      words[place], words[place + 2] = words[place + 2], words[place]
    return ["".join(words)] if split is question.test or not arrays["label"][i] else []
  if task == "follows":
    half = len(read) // 2
    return [read] if arrays["label"][i] else [read[:half], read[half:]]
  if task == "case":
    return ["".join(x.upper() if up else x for x, up in zip(read, arrays["label"][i]))]
  first, last = arrays["start"][i], arrays["end"][i] + 1
  return [read[:first], read[first:last], read[last:]]


def test_letters_are_asked_in_lower_case(text):
  network, question = question_of("case", text)
  arrays = question.test.arrays
  read = network.corpus.tokenizer.decode(arrays["tokens"][0])
  assert read == read.lower() and arrays["label"].sum() > 0
  # Of these alone the text has both cases.
  np.testing.assert_array_equal(arrays["weight"][0] > 0, [x in "nst" for x in read])
  assert set(np.unique(arrays["label"][arrays["weight"] == 0])) <= {0}


def test_figures_of_sentences_and_of_tokens_from_known_logits():
  question = None
  logits = jnp.array([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
  found = _tuning_tasks.SENTENCE.judge(question, logits, {"label": jnp.array([0, 0, 1])})
  assert found["accuracy"].total.tolist() == [1, 0, 1] and found["error"].total.tolist() == [0, 1, 0]
  np.testing.assert_allclose(found["loss"].total, np.log1p(np.exp([-2.0, 1.0, -3.0])), rtol=1e-5)
  logits = jnp.array([[[0, 5.0], [0, 5.0], [5.0, 0], [5.0, 0], [0, 9.0]], [[5.0, 0]] * 5])
  label, weight = jnp.array([[1, 0, 1, 0, 1], [1, 0, 0, 0, 0]]), jnp.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0.0]])
  found = _tuning_tasks.TOKEN.judge(question, logits, {"label": label, "weight": weight})
  assert found["accuracy"].total.tolist() == [2, 1] and found["accuracy"].count.tolist() == [4, 2]
  # One capital is found, one is missed in each row, one is none.
  total = lambda name: [float(jnp.sum(x)) for x in found[name]]
  assert total("f1") == [2, 2 + 3] and total("error") == [3, 6]
  small, large = np.log1p(np.exp(-5.0)), np.log1p(np.exp(5.0))
  np.testing.assert_allclose(found["loss"].total, [2 * small + 2 * large, small + large], rtol=1e-5)


def test_figures_of_spans_from_known_logits():
  question = types.SimpleNamespace(longest=4)
  peak = lambda *places: 9.0 * jnp.eye(8)[jnp.array(places)]
  logits = SpanLogits(peak(2, 2, 0, 5), peak(4, 4, 1, 7))
  batch = {"start": jnp.array([2, 3, 6, 4]), "end": jnp.array([4, 5, 7, 7])}
  found = {name: mean.total.tolist() for name, mean in _tuning_tasks.SPAN.judge(question, logits, batch).items()}
  assert found["exact"] == [1, 0, 0, 0]
  np.testing.assert_allclose(found["f1"], [1, 2 * 2 / 6, 0, 2 * 3 / 7], rtol=1e-6)
  assert found["start_accuracy"] == [1, 0, 0, 0] and found["end_accuracy"] == [1, 0, 0, 1]
  assert found["loss"][0] < 0.01 < 4 < found["loss"][3] < 9


def test_floors_are_learned_from_the_training_rows_and_counted_on_the_test_rows():
  """The training rows say that 5 is label 1 and 6 label 0, and 1 more often; test rows say 0 more often."""
  rows = lambda first, length: np.tile(np.array(first)[:, None], (1, length)).astype(np.int32)
  train, test = [5] * 6 + [6] * 4, [5, 6, 6, 5, 6]
  label, asked = np.array([1] * 6 + [0] * 4), np.array([1, 1, 0, 0, 0])
  arrays = lambda first, **more: types.SimpleNamespace(
    arrays={"tokens": rows(first, 4), "length": np.full(len(first), 4), **more}
  )
  of = lambda kind, **given: measure_floors(_tuning_tasks.Question(kind, **given, longest=2))
  found = of(_tuning_tasks.SENTENCE, train=arrays(train, label=label), test=arrays(test, label=asked))
  assert found == {"floor_majority": 0.4, "floor_bag": 0.6}
  each = lambda label: dict(label=np.tile(label[:, None], (1, 4)), weight=np.ones((len(label), 4)))
  found = of(_tuning_tasks.TOKEN, train=arrays(train, **each(label)), test=arrays(test, **each(asked)))
  # Two are said to be 1, of which one is, and one is missed.
  assert found == {"floor_majority": 0.4, "floor_bag": 0.6, "floor_bag_f1": 0.5}
  ends = lambda start, count: dict(start=np.full(count, start), end=np.full(count, start + 1))
  found = of(_tuning_tasks.SPAN, train=arrays(train, **ends(1, 10)), test=arrays(test, **ends(2, 5)))
  assert found["floor_majority"] == 0 and found["floor_majority_f1"] == 0.5


@pytest.mark.parametrize("kind, size", [("characters", 16), ("words", 16), ("bpe", 12), ("hugging_face", 12)])
def test_words_of_pieces_have_room_to_become_more(kind, size):
  assert _tuning_tasks._passage(types.SimpleNamespace(kind=kind), 16) == size
