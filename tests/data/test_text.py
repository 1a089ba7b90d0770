import json
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.data import DataError, Windows, load_corpus, load_documents, make_resident_feed, make_stream_feed
from mlnotes.data.flags import TextConfig, load_data
from mlnotes.data.text import pad_sequences, text_kind


@pytest.mark.parametrize(("size", "length", "stride"), [(100, 7, 0), (100, 7, 1), (99, 9, 9), (8, 7, 3), (300, 3, 5)])
def test_windows_are_slices(size, length, stride):
  tokens = np.random.default_rng(size).integers(0, 70000, size)
  windows = Windows(tokens, length, stride)
  step = stride or length
  expected = [tokens[i : i + length + 1] for i in range(0, size - length, step)]
  assert len(windows) == len(expected)
  index = np.arange(len(expected), dtype=np.int32)[::-1]
  for found in (
    windows.read(index),
    windows.take({"tokens": jnp.asarray(windows.arrays["tokens"])}, jnp.asarray(index)),
  ):
    np.testing.assert_array_equal(found["tokens"], np.array(expected)[::-1])
    assert found["tokens"].dtype == np.int32


def test_an_epoch_predicts_each_token_once():
  windows = Windows(np.arange(101), 10)
  targets = windows.read(np.arange(len(windows)))["tokens"][:, 1:]
  np.testing.assert_array_equal(np.sort(targets.ravel()), np.arange(1, 101))
  assert windows.nbytes == 101  # a byte an id is enough


def test_streamed_windows_are_the_resident_ones(key):
  windows = Windows(np.random.default_rng(0).integers(0, 300, 500), 6, 2)
  resident = make_resident_feed(windows, 8)
  streams = [make_stream_feed(windows, 8, 0, process_index=i, process_count=2) for i in range(2)]
  for step in range(4):
    expected = resident.draw(resident.arrays, key, step)
    parts = [stream.next() for stream in streams]
    for name in ("tokens", "index"):
      np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), expected[name])
  for stream in streams:
    stream.close()


def test_a_corpus_is_its_documents_one_after_the_other(tmp_path):
  (tmp_path / "a.jsonl").write_text('{"text": "ab\\ncé"}\n\n{"text": "d", "more": 1}\n')
  (tmp_path / "b.txt").write_text("abz")
  path, test = str(tmp_path / "a.jsonl"), str(tmp_path / "b.txt")
  corpus = load_corpus(path, test, length=2)
  end, unknown = (corpus.tokenizer.special[name] for name in ("<end>", "<unknown>"))
  assert corpus.tokenizer.alphabet == "\nabcdé" and corpus.vocab_size == 8
  np.testing.assert_array_equal(corpus.train.arrays["tokens"], [1, 2, 0, 3, 5, end, 4, end])
  np.testing.assert_array_equal(corpus.test.arrays["tokens"], [1, 2, unknown, end])  # z is not in the training text
  plain = load_corpus(path, test, end_token=False, tokenizer="bytes", length=2)
  assert bytes(plain.train.arrays["tokens"].astype(np.uint8)) == "ab\ncéd".encode()
  corpus.tokenizer.save(tmp_path / "t.json")
  again = load_corpus(path, test, tokenizer=str(tmp_path / "t.json"), length=2)
  np.testing.assert_array_equal(again.train.arrays["tokens"], corpus.train.arrays["tokens"])
  plain.tokenizer.save(tmp_path / "p.json")
  with pytest.raises(DataError, match="found no special token <end>"):
    load_corpus(path, test, tokenizer=str(tmp_path / "p.json"))


def test_training_windows_start_a_stride_apart_and_test_windows_side_by_side(tmp_path):
  (tmp_path / "t.txt").write_text("abcdefghij" * 4)
  corpus = load_corpus(str(tmp_path / "t.txt"), str(tmp_path / "t.txt"), end_token=False, length=6, stride=2)
  for split, step in ((corpus.train, 2), (corpus.test, 6)):
    starts = np.arange(0, 40 - 6, step)
    expected = (starts[:, np.newaxis] + np.arange(7)) % 10  # the ids of the letters in their order
    np.testing.assert_array_equal(split.read(np.arange(len(split)))["tokens"], expected)


def test_the_manual_pages():
  from pydoc_data.topics import topics

  found = load_documents("pydoc")
  assert sorted(found.train + found.test) == sorted(topics.values()) and len(found.test) == len(topics) // 10
  corpus = load_corpus("pydoc")
  assert corpus.train.arrays["tokens"].size == sum(map(len, found.train)) + len(found.train)


def test_what_is_set_aside_of_files(tmp_path):
  lines = "".join(f"line {i}\n" for i in range(20))
  (tmp_path / "t.txt").write_text("\ufeff" + lines.replace("\n", "\r\n"), newline="")
  by_line = load_documents(str(tmp_path / "t.txt"), documents="line")
  assert len(by_line.train) == 18 and set(by_line.train + by_line.test) == set(lines.split("\n")) - {""}
  (tmp_path / "t.txt").write_text(lines)
  (train,), (test,) = load_documents(str(tmp_path / "t.txt"))[1:]
  assert train + test == lines and train.endswith("\n") and test == "line 19\n"
  for text, test in (
    ("x" * 25, "xx"),
    ("x" * 94 + "\n" + "y" * 5, "xxxx\nyyyyy"),  # a line from the middle of the tenth on would leave half of it
    ("x" * 93 + "\n" + "y" * 6, "yyyyyy"),
    ("x" * 98 + "\ny", "xxxxxxxx\ny"),
    ("x" * 99 + "\n", "xxxxxxxxx\n"),
  ):
    (tmp_path / "t.txt").write_text(text)
    assert load_documents(str(tmp_path / "t.txt"))[1:] == ((text[: -len(test)],), (test,))


@pytest.mark.parametrize(
  ("name", "content", "sentence"),
  [
    ("t.txt", b"ab\xff", r"byte 2 is no UTF-8"),
    ("t.txt", b"", "found no text"),
    ("t.txt", b"a", "found a single character"),
    ("t.jsonl", b'{"text": "a"}\n{"text"', "line 2 is no JSON"),
    ("t.jsonl", b'{"body": "a"}', "line 1: found the fields body, expected an object with a string in the field text"),
    ("t.jsonl", b'{"text": 3}', "line 1: found int in the field text"),
    ("t.jsonl", b"[1]", "line 1: found list"),
    ("t.jsonl", b'{"text": "\\ud800"}', "line 1: found half a surrogate pair"),
    ("t.txt", b"abcdefghijklmnopqrst", r"the training text has 19 tokens, expected more than --length=64"),
  ],
)
def test_a_text_that_cannot_be_used_is_refused(name, content, sentence, tmp_path):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(DataError, match=sentence) as refused:
    load_corpus(str(tmp_path / name), length=64)
  assert str(refused.value).startswith(f"--dataset={tmp_path / name}")


def test_a_test_text_that_is_too_short_is_named_by_its_own_flag(tmp_path):
  (tmp_path / "t.txt").write_text("a text that is long enough")
  (tmp_path / "test.txt").write_text("short")
  with pytest.raises(DataError, match=r"test_dataset=.*test.txt: the test text has 6 tokens, expected more than"):
    load_corpus(str(tmp_path / "t.txt"), str(tmp_path / "test.txt"), length=8)


def test_much_that_is_unknown_is_told(tmp_path):
  (tmp_path / "t.txt").write_text("ab" * 20)
  for test, notes in (
    ("abab" * 50 + "c", ()),
    ("abc" * 6 + "a", ("30% of the test text's tokens are <unknown> to the tokenizer.",)),
  ):
    (tmp_path / "test.txt").write_text(test)
    assert load_corpus(str(tmp_path / "t.txt"), str(tmp_path / "test.txt"), length=8).notes == notes
  path = tmp_path / "words.txt"
  path.write_text("a a a b")
  words = load_corpus(str(path), str(path), tokenizer="words", vocab_size=3, length=3)
  assert [note[:19] for note in words.notes] == ["20% of the training", "20% of the test tex"]


def test_other_names_and_flags_without_effect():
  for name, sentence in (("wiki", "no such text, expected pydoc"), ("absent.txt", "no such file")):
    with pytest.raises(DataError, match=sentence):
      load_documents(name)
  with pytest.raises(ValueError, match="length=5 is out of range: expected less than the 5 tokens"):
    Windows(np.arange(5), 5)
  tfds = {"data_dir", "train_split", "test_split"}
  assert set(TextConfig().idle_flags()) == {"documents", "vocab_size", *tfds}
  assert set(TextConfig(dataset="a.txt", tokenizer="bpe").idle_flags()) == tfds
  assert set(TextConfig(dataset="imdb", tokenizer="bpe").idle_flags()) == {"documents", "test_dataset"}
  assert "documents" not in TextConfig(dataset="a.jsonl", test_dataset="b.txt").idle_flags()
  assert "documents" in TextConfig(dataset="a.jsonl", test_dataset="b.jsonl").idle_flags()


def test_sequences_of_their_own_lengths():
  found = pad_sequences([[1, 2, 3], [], [4]], padding=9)
  np.testing.assert_array_equal(found["tokens"], [[1, 2, 3], [9, 9, 9], [4, 9, 9]])
  np.testing.assert_array_equal(found["length"], [3, 0, 1])
  np.testing.assert_array_equal(pad_sequences([[1, 2, 3]], length=2)["tokens"], [[1, 2]])


def write_tfds(root, texts, feature="text"):
  """A TFDS directory of texts as `tfds build` leaves it, made without TensorFlow."""
  from array_record.python.array_record_module import ArrayRecordWriter
  from tensorflow_datasets.proto import tf_example_pb2

  directory, splits = root / "letters" / "1.0.0", []
  directory.mkdir(parents=True)
  for split, contents in texts.items():
    writer = ArrayRecordWriter(str(directory / f"letters-{split}.array_record-00000-of-00001"), "group_size:1")
    for text in contents:
      example = tf_example_pb2.Example()
      example.features.feature[feature].bytes_list.value.append(text)
      writer.write(example.SerializeToString())
    writer.close()
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    splits.append({"name": split, "shardLengths": [str(len(contents))], "numBytes": "1", "filepathTemplate": template})
  info = {"name": "letters", "version": "1.0.0", "fileFormat": "array_record", "splits": splits}
  (directory / "dataset_info.json").write_text(json.dumps(info))
  features = "tensorflow_datasets.core.features."
  text = {"pythonClassName": f"{features}text_feature.Text", "text": {}}
  content = {"featuresDict": {"features": {feature: text}}, "pythonClassName": f"{features}features_dict.FeaturesDict"}
  (directory / "features.json").write_text(json.dumps(content))


def test_a_tfds_set_is_its_texts(tmp_path):
  texts = ["one", "zwei\n", "", "trois é", "four"]
  write_tfds(tmp_path, {"train": [text.encode() for text in texts], "more": [b"five"], "bad": [b"a\xff"]})
  found = load_documents("letters", data_dir=str(tmp_path), test_split="more")
  assert found == ("letters", ("one", "zwei\n", "trois é", "four"), ("five",))
  found = load_documents("letters:1.0.0", data_dir=str(tmp_path), train_split="train[:2]", test_split="train[3:]")
  assert found[1:] == (("one", "zwei\n"), ("trois é", "four"))
  config = TextConfig(dataset="letters", data_dir=str(tmp_path), test_split="more", tokenizer="bytes", length=2)
  tokens = load_data(config).train.arrays["tokens"]
  assert bytes(tokens[tokens < 256].astype(np.uint8)).decode() == "".join(texts)
  for split, sentence in (("test", "no split 'test'; found train, more, bad"), ("bad", "a text that is no UTF-8")):
    with pytest.raises(DataError, match=sentence):
      load_documents("letters", data_dir=str(tmp_path), test_split=split)
  write_tfds(tmp_path / "other", {"train": [b"a"]}, feature="body")
  with pytest.raises(DataError, match=r"found the features body \(Text\), expected text \(Text\)"):
    load_documents("letters", data_dir=str(tmp_path / "other"))


def test_a_tfds_set_of_texts_is_read_without_tensorflow(tmp_path):
  write_tfds(tmp_path, {"train": [b"a text"], "test": [b"another"]})
  (tmp_path / "refused" / "tensorflow").mkdir(parents=True)
  (tmp_path / "refused" / "tensorflow" / "__init__.py").write_text("raise AssertionError('imports tensorflow')")
  code = f"""
from mlnotes.data import load_documents
assert load_documents("letters", data_dir={str(tmp_path)!r})[1:] == (("a text",), ("another",))
"""
  path = os.pathsep.join([str(tmp_path / "refused"), *sys.path])
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
  assert done.returncode == 0, done.stderr


def test_a_folder_is_its_text_files(tmp_path):
  for name, text in (("b.txt", "second\nthird\n"), ("a.txt", "first"), ("c.md", "no")):
    (tmp_path / name).write_text(text)
  folder = str(tmp_path)
  assert sorted(sum(load_documents(folder)[1:], ())) == ["first", "second\nthird\n"]
  lines = load_documents(folder, folder, documents="line")
  assert lines.train == lines.test == ("first", "second", "third") and text_kind(folder) == "file"
  (tmp_path / "empty").mkdir()
  with pytest.raises(DataError, match=r"empty: found no \.txt file in the folder"):
    load_documents(folder + "/empty")
  (tmp_path / "d.txt").write_text("")
  with pytest.raises(DataError, match=r"\(d\.txt\): found no text"):
    load_documents(folder)
