import datetime
import json
from types import SimpleNamespace

import numpy as np
import pytest

from mlnotes.data import DataError, flags, load_pairs, read_pairs, train_tokenizer
from mlnotes.data.flags import PairConfig, load_data, make_feeds
from mlnotes.engine.errors import InputError


def read_back(pairs, split):
  """The texts of a split, by the ids and lengths alone."""
  names, special, texts = ("source", "source_length", "target", "target_length"), pairs.tokenizer.special, []
  for source, size, target, length in zip(*(split.arrays[name] for name in names)):
    assert set(source[size:]) | set(target[length:]) <= {special["<pad>"]}
    assert (target[0], target[length - 1]) == (special["<start>"], special["<end>"])
    texts.append((pairs.tokenizer.decode(source[:size]), pairs.tokenizer.decode(target[1 : length - 1])))
  return texts


@pytest.mark.parametrize("tokenizer", ["characters", "bytes", "bpe"])
def test_pairs_decode_to_the_texts_that_were_written(tokenizer, tmp_path):
  texts = [(f"é{'x' * (i % 7)} {i}", f'[{i}] "q"{"猫" * (i % 3)}') for i in range(40)]
  (tmp_path / "a.tsv").write_text("\n\n".join("\t".join(pair) for pair in texts[:30]) + "\n", encoding="utf-8-sig")
  records = [f'{{"target": "{b}", "n": 1, "source": "{a}"}}\n' for a, b in ((a, b.replace('"', "'")) for a, b in texts)]
  (tmp_path / "b.jsonl").write_text("".join(records[30:]))
  pairs = load_pairs(str(tmp_path / "a.tsv"), str(tmp_path / "b.jsonl"), tokenizer, vocab_size=270)
  assert read_back(pairs, pairs.train) == texts[:30]
  expected = [(a, b.replace('"', "'")) for a, b in texts[30:]]
  if tokenizer == "characters":  # ' is not in the training pairs
    expected = [(a, b.replace("'", "\ufffd")) for a, b in expected]
  assert read_back(pairs, pairs.test) == expected and len(pairs.notes) == (tokenizer == "characters")
  for name, value in pairs.train.arrays.items():
    assert value.dtype == np.int32 and value.shape[1:] == pairs.test.arrays[name].shape[1:]
  both = [
    np.concatenate([split.arrays[f"{side}_length"] for split in pairs[1:3]]).max() for side in ("source", "target")
  ]
  assert both == [pairs.train.arrays[side].shape[1] for side in ("source", "target")]


def test_a_saved_tokenizer_gives_the_same_ids(tmp_path):
  pairs = load_pairs("dates")
  pairs.tokenizer.save(tmp_path / "t.json")
  again = load_pairs("dates", tokenizer=str(tmp_path / "t.json"))
  np.testing.assert_array_equal(again.test.arrays["target"], pairs.test.arrays["target"])
  train_tokenizer("bytes", [], special=("<end>",)).save(tmp_path / "text.json")
  with pytest.raises(DataError, match="found no special token <pad>, expected <pad>, <start>, <end>"):
    load_pairs("dates", tokenizer=str(tmp_path / "text.json"))


def test_dates_are_written_in_two_ways():
  train, test = read_pairs("dates")
  assert (len(train), len(test)) == (3600, 400) and len({*train, *test}) == 4000
  for source, target in (*train, *test):
    assert datetime.datetime.strptime(source, "%d %B %Y").date() == datetime.date.fromisoformat(target)
    assert not source.startswith("0")
  assert not {target for _, target in train} & {target for _, target in test}
  months = np.bincount([int(target[5:7]) for _, target in train], minlength=13)[1:]
  np.testing.assert_allclose(months, 300, rtol=0.25)  # four standard deviations
  pairs = load_pairs("dates")
  assert read_back(pairs, pairs.train) == list(train) and read_back(pairs, pairs.test) == list(test)


def test_what_is_longer_is_left_out_and_counted(tmp_path, capsys):
  texts = [("a" * i, "b" * j) for i in range(1, 7) for j in range(1, 7)]
  for name in ("a.tsv", "b.tsv"):
    (tmp_path / name).write_text("".join(f"{a}\t{b}\n" for a, b in texts))
  flags = {"dataset": str(tmp_path / "a.tsv"), "test_dataset": str(tmp_path / "b.tsv"), "batch_size": 4}
  config = PairConfig(**flags, longest_source=4, longest_target=2)
  pairs = load_data(config)
  assert read_back(pairs, pairs.train) == [(a, b) for a, b in texts if len(a) <= 4 and len(b) <= 2]
  assert pairs.train.arrays["source"].shape == (8, 4) and pairs.train.arrays["target"].shape == (8, 4)
  for _ in range(2):
    feeds = make_feeds(pairs, config)
  (note,) = capsys.readouterr().err.splitlines()
  assert note.endswith(
    "a.tsv: 28 of 36 training pairs and 28 of 36 test pairs are longer than --longest_source=4 or --longest_target=2 "
    "and left out."
  )
  batch = feeds.evaluate.draw(feeds.evaluate.arrays, 0)
  assert set(batch) == {"source", "source_length", "target", "target_length", "index", "mask"}
  (tmp_path / "b.tsv").write_text("aaaaaa\tbbb\n")
  with pytest.raises(DataError, match=r"no test pair is within --longest_source=4 .* sides have 6 and 3 tokens"):
    load_pairs(flags["dataset"], flags["test_dataset"], longest_source=4)


def test_short_pairs_are_learned_and_all_are_tested(tmp_path):
  texts = [("a" * i, "b" * j) for i in range(1, 7) for j in range(1, 7)]
  (tmp_path / "a.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in texts))
  file = str(tmp_path / "a.tsv")
  pairs = load_pairs(file, file, longest_target=5, longest_training=3)
  assert read_back(pairs, pairs.train) == [(a, b) for a, b in texts if max(len(a), len(b)) <= 3]
  assert read_back(pairs, pairs.test) == [(a, b) for a, b in texts if len(b) <= 5]
  assert [pairs.train.arrays[side].shape[1] for side in ("source", "target")] == [3, 5]
  assert [pairs.test.arrays[side].shape[1] for side in ("source", "target")] == [6, 7]
  assert "(in training --longest_training=3)" in pairs.notes[0]
  (tmp_path / "b.tsv").write_text("aa\tb\n")  # a test pair that is shorter: room for what the training pairs need
  pairs = load_pairs(file, str(tmp_path / "b.tsv"), longest_training=3)
  assert [pairs.test.arrays[side].shape[1] for side in ("source", "target")] == [3, 5]
  with pytest.raises(InputError, match="--longest_training=-1"):
    PairConfig(longest_training=-1)


def test_no_source_is_in_both_parts_of_a_file(tmp_path):
  (tmp_path / "a.tsv").write_text("".join(f"s{i % 20}\tt{i}\n" for i in range(60)))
  train, test = read_pairs(str(tmp_path / "a.tsv"))
  assert len(test) == 6 and len(train) == 54 and {*train, *test} == {(f"s{i % 20}", f"t{i}") for i in range(60)}
  assert not {source for source, _ in train} & {source for source, _ in test}


@pytest.mark.parametrize(
  ("name", "content", "sentence"),
  [
    ("t.tsv", b"a\tb\n\xff", r"byte 4 is no UTF-8"),
    ("t.tsv", b"\r\n \n", "found no pair, expected one or more"),
    ("t.tsv", b"a\tb\n\nc", "line 3 has 1 column, expected 2 with a tab between them"),
    ("t.tsv", b"a\tb\tc", "line 1 has 3 columns, expected 2"),
    ("t.tsv", b"a\tb\n\tc", "line 2: found an empty source, expected a text on both sides"),
    ("t.tsv", b"a\t \r\n", "line 1: found an empty target"),
    ("t.tsv", b"a\tb\na\tc", "found 1 example, expected at least 2 to set a test split aside"),
    ("t.jsonl", b'{"source": "a", "target": ""}', "line 1: found an empty target"),
    ("t.jsonl", b'{"source": "a"', "line 1 is no JSON .*, expected an object with the fields source and target"),
    ("t.jsonl", b'{"source": "a"}', "line 1: found the fields source, expected .* a string in the field target"),
    ("t.jsonl", b'{"source": "a", "target": 3}', "line 1: found int in the field target"),
    ("t.jsonl", b'\n["a", "b"]', "line 2: found list"),
    ("t.jsonl", b'{"source": "\\ud800", "target": "a"}', "line 1: found half a surrogate pair"),
  ],
)
def test_pairs_that_cannot_be_used_are_refused(name, content, sentence, tmp_path):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(DataError, match=sentence) as refused:
    load_pairs(str(tmp_path / name))
  assert str(refused.value).startswith(f"--dataset={tmp_path / name}: ")


def test_two_files_are_the_sides_of_the_pairs(tmp_path):
  (tmp_path / "a.en").write_text("one\n\ntwo  words\r\nthree\n")
  (tmp_path / "b.de").write_text("eins\n\nzwei\ndrei")
  name = f"{tmp_path / 'a.en'},{tmp_path / 'b.de'}"
  train, test = read_pairs(name, name)
  assert train == test == [("one", "eins"), ("two  words", "zwei"), ("three", "drei")]
  assert load_pairs(name, name).name == "b"
  for content, sentence in (
    ("eins\n\nzwei\n", r"a.en has 4 lines and .*b.de 3, expected as many in both\.$"),
    ("eins\n\n\ndrei\n", "line 3: found an empty target"),
    ("eins\nzwei\ndrei\nvier", "line 2: found an empty source"),
  ):
    (tmp_path / "b.de").write_text(content)
    with pytest.raises(DataError, match=sentence):
      read_pairs(name)
  for wrong, sentence in (
    (f"{name},c", "found 3 names, expected two"),
    (f"{tmp_path / 'a.en'},no.de", "no.de: no such file"),
  ):
    with pytest.raises(DataError, match=sentence):
      read_pairs(wrong)


def test_lines_of_a_text_are_paired_with_themselves(tmp_path):
  (tmp_path / "names.txt").write_text("".join(f"n{i % 20}\n" for i in range(40)) + "\n")
  train, test = read_pairs(str(tmp_path / "names.txt"))
  assert len(train) + len(test) == 40 and all(source == target for source, target in (*train, *test))
  assert not {source for source, _ in train} & {source for source, _ in test}


def test_every_tree_reads_as_its_sentence_and_no_other_tree_does():
  train, test = read_pairs("brackets")
  assert (len(train), len(test)) == (3600, 400)
  assert len({source for source, _ in (*train, *test)}) == 4000  # so that a sentence has one tree
  for source, tree in test:
    words = tree.replace("(", " ( ").replace(")", " ) ").split()
    assert " ".join(word for i, word in enumerate(words) if word not in "()" and words[i - 1] != "(") == source
    depth = np.cumsum([(word == "(") - (word == ")") for word in words])
    assert depth[-1] == 0 and min(depth[:-1]) == 1 and words[1] == "S"
  assert read_pairs("sentences")[1][0] == (test[0][0], test[0][0])


def test_what_test_pairs_say_that_training_did_not_is_counted_and_kept_as_written(tmp_path):
  (tmp_path / "a.tsv").write_text("ab\tba\nb\ta\n")
  (tmp_path / "b.tsv").write_text("abba\tz\naz\tb\n")
  pairs = load_pairs(str(tmp_path / "a.tsv"), str(tmp_path / "b.tsv"), longest_source=3)
  assert pairs.test_texts == (("az", "b"),)  # the other one is longer
  assert pairs.notes[-1].startswith("1 tokens of the test pairs are <unknown>")
  assert len(load_pairs(str(tmp_path / "a.tsv"), str(tmp_path / "a.tsv")).notes) == 0


def test_another_text_is_no_start(tmp_path):
  write = lambda **config: (tmp_path / "config.json").write_text(json.dumps({"config": config}))
  asked = SimpleNamespace(start_from=str(tmp_path), dataset="dates", tokenizer="words", vocab_size=1024)
  write(dataset="dates", tokenizer="words", vocab_size=1024, steps=3)
  flags._require_same_tokens(asked)
  write(dataset="dates", tokenizer="words", vocab_size=512)
  with pytest.raises(InputError, match="--vocab_size=512, found --vocab_size=1024"):
    flags._require_same_tokens(asked)
  write(dataset="dates", tokenizer="characters", vocab_size=512)
  flags._require_same_tokens(SimpleNamespace(**{**vars(asked), "tokenizer": "characters"}))  # has its own size
  write(dataset="mine.tsv", tokenizer="words", vocab_size=1024)
  with pytest.raises(InputError, match=r"learned the tokens of --dataset=mine\.tsv, found --dataset=dates"):
    flags._require_same_tokens(asked)
  flags._require_same_tokens(SimpleNamespace(**{**vars(asked), "tokenizer": "both.json"}))


@pytest.mark.parametrize("dataset", ["brackets", "sentences"])
def test_sentences_of_both_splits_are_as_long(dataset):
  """Distinct ones are drawn: short ones are found first."""
  train, test = (np.mean([len(source) for source, _ in split]) for split in read_pairs(dataset))
  assert abs(test / train - 1) < 0.05


def test_other_names_and_flags_without_effect():
  for name, sentence in (
    ("wmt", "no such pairs, expected dates, brackets, sentences, a file.tsv, a file.jsonl, two files a.en,b.de or the"),
    ("a.tsv", "no such file"),
  ):
    with pytest.raises(DataError, match=sentence):
      read_pairs(name)
  with pytest.raises(InputError, match="--longest_source=0 is out of range: expected 1 or more"):
    PairConfig(longest_source=0)
  assert set(PairConfig().idle_flags()) == {"test_dataset", "vocab_size"}
  assert not PairConfig(dataset="a.tsv", tokenizer="bpe").idle_flags()
