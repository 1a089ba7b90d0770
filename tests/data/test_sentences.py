"""Sentences: where they end, passages within a document, what is set aside, Python's documentation strings."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.data import DataError
from mlnotes.data.docstrings import read_docstrings
from mlnotes.data.sentences import Passages, load_sentences, split_sentences


def test_where_sentences_end():
  text = (
    'It cost 3.5 dollars, e.g. in Rome. "Who paid it?" She asked him\nagain! No.\n\nA new part here\nwithout a mark'
  )
  assert split_sentences(text) == [
    "It cost 3.5 dollars, e.g. in Rome.", '"Who paid it?"', "She asked him again!", "A new part here without a mark"
  ]  # fmt: skip
  assert split_sentences(text, fewest=1)[3] == "No."
  assert split_sentences("one two three\n\nfour five six. Seven eight nine", "line") == [
    "one two three", "four five six. Seven eight nine"
  ]  # fmt: skip


def test_passages_are_of_one_document_and_the_same_on_the_device():
  rows = [[np.arange(i, i + size) for i, size in enumerate(sizes)] for sizes in ((1, 5, 2), (3,), (2, 2, 2, 2, 1))]
  split = Passages(rows, 4, 2)
  assert split.document.tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 2]
  assert split.arrays["start"].tolist() == [0, 1, 4, 5, 6, 7] and len(split) == 6
  assert Passages(rows, 4, 2, overlap=False).arrays["start"].tolist() == [0, 4, 6]
  found = split.read(np.array([0, 5]))
  assert found["tokens"].tolist() == [[[0, 0, 0, 0], [1, 2, 3, 4]], [[3, 4, 0, 0], [4, 0, 0, 0]]]
  assert found["length"].tolist() == [[1, 4], [2, 1]]
  taken = split.take(jax.tree.map(jnp.asarray, split.arrays), jnp.array([0, 5]))
  for name, value in found.items():
    np.testing.assert_array_equal(taken[name], value)


def test_what_is_set_aside_is_in_no_training_sentence(tmp_path):
  """Two documents with a paragraph in common, cut into parts of 32; the repetition parts the second one."""
  first = [f"First says number x{'x' * i} here." for i in range(80)]
  second = [f"Second says number y{'y' * i} here." for i in range(80)]
  second[40:42] = first[3:5]
  path = tmp_path / "texts.jsonl"
  path.write_text("".join(json.dumps({"text": "\n\n".join(text)}) + "\n" for text in (first, second)))
  found = load_sentences(str(path), tokenizer="characters", length=200)
  codec = found.tokenizer
  texts = {
    name: [codec.decode(row[:size]) for row, size in zip(split.arrays["tokens"], split.arrays["length"])]
    for name, split in (("train", found.train), ("test", found.test))
  }
  assert tuple(texts["test"]) == found.texts and found.cut == 0
  assert sorted(texts["train"] + texts["test"]) == sorted(set(first + second))
  # 32 + 32 + 16 of the document that is read first; of the other one 3 up to what was repeated, then 32 + 32 + 11.
  sizes = np.concatenate([np.bincount(split.document) for split in (found.train, found.test)])
  assert sorted(sizes.tolist()) == [3, 11, 16, 32, 32, 32, 32] and found.test.document.max() == 0
  other = tmp_path / "other.txt"
  other.write_text("\n\n".join([*first[:9], "This one is new.", "That one is too.", "All three of them are."]))
  again = load_sentences(str(path), str(other), tokenizer="characters", length=9)
  assert len(again.texts) == 3
  assert again.cut == len(set(first + second)) + 3


@pytest.mark.parametrize(
  ("text", "sentence"), [("one two three.", "no 3 new sentences in a row"), ("a b", "no 3 new sentences")]
)
def test_a_text_of_too_few_sentences(text, sentence, tmp_path):
  path = tmp_path / "short.txt"
  path.write_text(text)
  with pytest.raises(DataError, match=sentence):
    load_sentences(str(path))


def test_documentation_strings_are_those_of_the_modules():
  import json.decoder

  found = read_docstrings()
  assert len(found) > 200 and sum(map(len, found)) > 500_000
  first = json.decoder.JSONDecoder.raw_decode.__doc__.split("\n")[0]
  assert any("Implementation of JSONDecoder" in text and first in text for text in found)
  assert not any("unittest for" in text[:40] for text in found)
