"""Labelled texts: the three forms, what is set aside, and refusals in one sentence."""

import json

import numpy as np
import pytest

from mlnotes.data import DataError, read_labelled
from mlnotes.data.text import load_documents


def write(path, content):
  path.parent.mkdir(exist_ok=True)
  path.write_text(content, encoding="utf-8")
  return str(path)


@pytest.fixture
def forms(tmp_path):
  rows = [(f"text {i}, with é", ("bad", "good", "fair")[i % 3]) for i in range(60)]
  lines = "\n\n".join("\t".join(row) for row in rows)
  records = "".join(json.dumps({"label": label, "text": text, "n": 1}) + "\n" for text, label in rows)
  for name in ("bad", "good", "fair"):
    write(tmp_path / "folder" / f"{name}.txt", "\n".join(text for text, label in rows if label == name) + "\n")
  given = write(tmp_path / "a.tsv", lines + "\n"), write(tmp_path / "a.jsonl", records), str(tmp_path / "folder")
  return rows, given


def test_every_form_has_the_same_rows_and_a_tenth_of_each_class_is_set_aside(forms):
  rows, given = forms
  for path in given:
    found = read_labelled(path)
    assert found.classes == ("bad", "fair", "good")
    train = [(text, found.classes[i]) for text, i in zip(found.train, found.train_label)]
    test = [(text, found.classes[i]) for text, i in zip(found.test, found.test_label)]
    assert sorted(train + test) == sorted(rows)
    np.testing.assert_array_equal(np.bincount(found.test_label), [2, 2, 2])
    assert read_labelled(path).test == found.test


def test_a_text_that_stands_twice_is_on_one_side(tmp_path):
  path = write(tmp_path / "a.tsv", "".join(f"text {i % 12}\t{i % 2}\n" for i in range(48)) + "text 1\t0\n")
  found = read_labelled(path)
  assert not set(found.train) & set(found.test) and len(found.test) >= 4


def test_a_file_of_its_own_is_tested_on(forms, tmp_path):
  _, given = forms
  other = write(tmp_path / "b.jsonl", '{"text": " new ", "label": "good"}')
  found = read_labelled(given[0], other)
  assert found.test == ("new",) and found.test_label.tolist() == [2] and len(found.train) == 60
  numbers = read_labelled(
    write(tmp_path / "n.jsonl", "".join(f'{{"text": "t{i}", "label": {i % 2}}}\n' for i in range(20)))
  )
  assert numbers.classes == ("0", "1")


@pytest.mark.parametrize("name, content, words", [
  ("a.tsv", "one\ttwo\tthree\n", "line 1 has 3 columns, expected 2, a text and its label"),
  ("a.tsv", "ok\tyes\nalone\n", "line 2 has 1 column,"),
  ("a.tsv", "ok\tyes\n\tno\n", "line 2: found an empty text, expected both"),
  ("a.tsv", "ok\t \n", "line 1: found an empty label"),
  ("a.tsv", "\n", "found no text"),
  ("a.tsv", "a\tx\nb\tx\n", "found the class x alone, expected two classes"),
  ("a.tsv", "a\tx\nb\tx\nc\ty\n", "class y: found 1 example, expected at least 2"),
  ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": "a"}\n', "line 2: found nothing in the field label"),
  ("a.jsonl", '{"text": "a", "label": 0.5}\n', "found float in the field label, expected a word or a whole number"),
  ("a.jsonl", '{"text": "a", "label": true}\n', "found bool in the field label"),
  ("a.jsonl", '{"label": "x"}\n', "expected an object with a string in the field text"),
  ("a.csv", "a,x\n", "expected a file.tsv, a file.jsonl or a folder"),
  ("d/pos.txt", "a\n", "found 1 .txt in the folder, expected one for each of two classes"),
])  # fmt: skip
def test_what_cannot_be_read_is_one_sentence(tmp_path, name, content, words):
  path = write(tmp_path / name, content)
  with pytest.raises(DataError, match=words) as caught:
    read_labelled(path.removesuffix("/pos.txt"), flag="labelled")
  assert str(caught.value).startswith("--labelled=")


def test_a_class_of_the_test_texts_must_be_learned(tmp_path):
  paths = write(tmp_path / "a.tsv", "a\tx\nb\ty\n"), write(tmp_path / "b.tsv", "c\tz\n")
  with pytest.raises(DataError, match="found the class z in the test texts alone"):
    read_labelled(*paths)


def test_lines_of_a_folder_are_set_aside_as_its_labelled_texts_are(tmp_path):
  """What a network reads before it is tuned holds none of the texts that the tuning is tested on."""
  for name, count in (("neg", 23), ("pos", 38)):
    write(tmp_path / "folder" / f"{name}.txt", "\n".join(f"{name} {i}" for i in range(count)) + "\nboth\n")
  found, read = read_labelled(str(tmp_path / "folder")), load_documents(str(tmp_path / "folder"), documents="line")
  assert len(read.test) >= 5 and sorted(read.test) == sorted(found.test) and sorted(read.train) == sorted(found.train)
