import json

import numpy as np
import pytest

from mlnotes.data import DataError, load_documents, load_tokenizer, train_tokenizer
from mlnotes.data.tokenizer import Characters

UNICODE = [
  "",
  "a\r\n\tb ",
  "naïve Ünïcode",
  "中文 и кириллица",
  "👩‍👩‍👧‍👦\U0010ffff",
  "e\u0301 \u200b\u2028 \x00",
  "<end><unknown>",
]


@pytest.fixture(scope="module")
def pages():
  found = load_documents("pydoc")
  return found.train + found.test


@pytest.fixture(scope="module", params=["characters", "bytes", "bpe"])
def tokenizer(request, pages):
  return train_tokenizer(request.param, (*pages, *UNICODE), vocab_size=400, special=("<end>",))


def test_what_goes_in_comes_out(tokenizer, pages):
  for text in (*pages, *UNICODE):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert not ids.size or 0 <= ids.min() <= ids.max() < tokenizer.num_pieces
    assert tokenizer.decode(ids) == text


def test_it_is_saved_and_loaded(tokenizer, tmp_path):
  tokenizer.save(tmp_path / "t.json")
  json.loads((tmp_path / "t.json").read_text())
  again = load_tokenizer(tmp_path / "t.json")
  assert again == tokenizer and again.special == tokenizer.special and again.vocab_size == tokenizer.vocab_size
  text = "x = {'ü': 1}"
  np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))
  assert again != train_tokenizer("bytes", [""])


def test_special_tokens_come_last_and_no_text_makes_one(tokenizer):
  assert sorted(tokenizer.special.values()) == list(range(tokenizer.num_pieces, tokenizer.vocab_size))
  end = tokenizer.special["<end>"]
  assert end not in tokenizer.encode("a<end>b")
  assert tokenizer.decode([*tokenizer.encode("a"), end, *tokenizer.encode("b")]) == "ab"
  with pytest.raises(ValueError, match=f"found the id {tokenizer.vocab_size}: expected 0 to"):
    tokenizer.decode([0, tokenizer.vocab_size])
  with pytest.raises(UnicodeEncodeError):
    tokenizer.encode("\ud800")


def test_each_kind_by_hand(pages):
  words = train_tokenizer("words", ["the cat  saw\nthe dog", "the cat"], vocab_size=4, special=("<end>",))
  assert words.words == ("the", "cat") and words.vocab_size == 4  # <unknown> and <end> beside the most frequent
  assert words.decode(words.encode(" the dog \n the cat ")) == "the \ufffd the cat"
  letters = train_tokenizer("characters", ["cab", "b"])
  np.testing.assert_array_equal(letters.encode("abcz"), [0, 1, 2, 3])
  assert letters.decode([0, 3, 1]) == "a\ufffdb" and letters.vocab_size == 4
  np.testing.assert_array_equal(Characters("zay").encode("ayz"), [1, 2, 0])
  octets = train_tokenizer("bytes", [])
  np.testing.assert_array_equal(octets.encode("aé"), [97, 0xC3, 0xA9])
  assert octets.decode([0xC3]) == "\ufffd" and octets.vocab_size == 256
  # The pair that is most frequent is the first to be joined: "ab" of "ababab", then "abab".
  pairs = train_tokenizer("bpe", ["ababab" * 10], vocab_size=258)
  assert pairs.vocab_size == 258 and [pairs.decode([i]) for i in (256, 257)] == ["ab", "abab"]
  # Fewer pieces than characters.
  many = train_tokenizer("bpe", pages, vocab_size=1024, special=("<end>",))
  assert many.vocab_size == 1024
  assert sum(len(many.encode(page)) for page in pages) < 0.5 * sum(map(len, pages))


@pytest.mark.parametrize(
  ("content", "sentence"),
  [
    ("{", "not readable"),
    ("{}", "no tokenizer"),
    ('{"tokenizer": "sounds", "special": []}', "the kind 'sounds'"),
    ('{"tokenizer": "words", "special": [], "words": ["a b"]}', "distinct words"),
    ('{"tokenizer": "characters", "special": [], "alphabet": "aa"}', "distinct characters"),
    ('{"tokenizer": "bpe", "special": [], "model": {}}', "no tokenizer"),
  ],
)
def test_a_file_that_is_no_tokenizer_is_refused(content, sentence, tmp_path):
  (tmp_path / "t.json").write_text(content)
  with pytest.raises(DataError, match=f"--tokenizer=.*t.json.*{sentence}"):
    load_tokenizer(tmp_path / "t.json")


def test_what_cannot_be_trained_is_refused(monkeypatch):
  with pytest.raises(DataError, match="--tokenizer=byte is none: did you mean bytes"):
    train_tokenizer("byte", ["a"])
  with pytest.raises(DataError, match="--vocab_size=256 is out of range: expected 257"):
    train_tokenizer("bpe", ["a"], vocab_size=256, special=("<end>",))
  monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
  with pytest.raises(DataError, match=r"pip install -e '.\[text\]'"):
    train_tokenizer("bpe", ["a"], vocab_size=300)


def test_a_tokenizer_of_hugging_faces_form_keeps_its_ids(tmp_path):
  """Special tokens stand in front; a text that names one does not make it, and what the file cuts off is kept."""
  library = pytest.importorskip("tokenizers")
  made = library.Tokenizer(library.models.BPE({"[UNK]": 0, "[SEP]": 1, "a": 2, "b": 3}, [], unk_token="[UNK]"))
  made.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
  made.add_special_tokens(["[UNK]", "[SEP]"])
  made.enable_truncation(2)
  made.enable_padding(length=4)
  made.save(str(tmp_path / "tokenizer.json"))
  found = load_tokenizer(tmp_path / "tokenizer.json")
  assert found.vocab_size == 4 and found.special == {"[UNK]": 0, "[SEP]": 1, "<end>": 1, "<unknown>": 0}
  assert found.encode("a b a").tolist() == [2, 3, 2] and found.encode("a [SEP]").tolist() == [2, 0, 0, 0, 0, 0]
  assert found.decode([2, 1, 3]) == "a b"
  found.save(tmp_path / "mine.json")
  assert load_tokenizer(tmp_path / "mine.json") == found
  with pytest.raises(ValueError, match="found the id 4: expected 0 to 3"):
    found.decode([4])
