"""Probes: their labels found again by brute force, halves, ends of spans, letters that have no other case."""

import re

import numpy as np
import pytest

from mlnotes.lm.tasks import (
  cut_words,
  draw_starts,
  exchange_words,
  follow_passages,
  lower_case,
  move_spans,
  shift_words,
)

TEXT = " ".join(f"{word}{i}" for i in range(60) for word in ("ab", "cde", "f"))
TOKENS = np.array([ord(x) for x in TEXT], np.uint8)


def rng():
  return np.random.default_rng(3)


def find(row):
  """Everywhere in the text that these tokens stand."""
  return [found.start() for found in re.finditer(f"(?={re.escape(''.join(map(chr, row)))})", TEXT)]


def test_windows_are_distinct_and_within_documents():
  tokens = np.array([1, 2, 0, 3, 4, 5, 0, 6, 7, 8, 9])
  assert sorted(draw_starts(rng(), tokens, 2, 100, end=0)) == [0, 3, 4, 7, 8, 9]
  assert sorted(draw_starts(rng(), tokens, 2, 100, end=0, step=2)) == [0, 4, 8]
  assert sorted(draw_starts(rng(), tokens, 4, 100, end=0)) == [7]
  some = draw_starts(rng(), TOKENS, 10, 50)
  assert len(set(some)) == 50 and min(some) >= 0 and max(some) <= len(TOKENS) - 10
  assert sorted(draw_starts(rng(), TOKENS, len(TOKENS), 5)) == [0]
  for length in (5, 12):
    with pytest.raises(ValueError, match="expected a window of it in 11 tokens"):
      draw_starts(rng(), tokens, length, 1, end=0)


def test_exchanged_words_are_neighbours_that_differ_and_spaces_stay():
  text, found = "a  a b\nc a", set()
  for seed in range(40):
    shifted, place = exchange_words(np.random.default_rng(seed), text)
    words = shifted.split()
    words[place : place + 2] = reversed(words[place : place + 2])
    assert words == text.split() and shifted != text
    assert re.sub(r"\S+", "w", shifted) == re.sub(r"\S+", "w", text)
    found.add(place)
  assert found == {1, 2, 3}
  with pytest.raises(ValueError, match="two neighbouring words that differ"):
    exchange_words(rng(), "a a")


def test_half_of_the_texts_are_shifted_and_the_others_as_they_were():
  texts = [f"one{i} two three" for i in range(30)] + ["same same", "one", ""]
  made = shift_words(rng(), texts)
  assert len(made.texts) == len(made.label) == 30 and made.label.sum() == 15
  assert 0 < made.label[:15].sum() < 15  # in any order
  for before, after, label, place in zip(texts, made.texts, made.label, made.place):
    assert sorted(after.split()) == sorted(before.split())
    assert (after != before) == label and (place >= 0) == label
  with pytest.raises(ValueError, match="expected 2 or more"):
    shift_words(rng(), ["one two"])


def test_the_second_passage_follows_or_is_elsewhere():
  starts = draw_starts(rng(), TOKENS, 16, 81)
  made = follow_passages(rng(), TOKENS, starts, 8)
  assert made.label.sum() == 40 and made.tokens.shape == (81, 16) and made.tokens.dtype == np.int32
  elsewhere = []
  for row, start, label, place in zip(made.tokens, starts, made.label, made.place):
    assert start in find(row[:8]) and place in find(row[8:])
    assert (start in find(row)) == label and (place == start + 8) == label
    if not label:
      elsewhere.append(place)
      assert abs(place - start - 8) >= 8
  # Of the same kind as those that follow: a passage behind a row's first one.
  assert set(elsewhere) <= set(starts + 8)
  with pytest.raises(ValueError, match="expected one 8 tokens away"):
    follow_passages(rng(), TOKENS, np.array([0, 1]), 8)


def test_a_moved_span_is_from_elsewhere_and_its_ends_can_be_told():
  starts = draw_starts(rng(), TOKENS, 20, 200)
  made = move_spans(rng(), TOKENS, starts, 20, 2, 5)
  sizes, edges = set(), set()
  for row, begin, start, end in zip(made.tokens, starts, made.start, made.end):
    stood = TOKENS[begin : begin + 20]
    np.testing.assert_array_equal(np.delete(row, range(start, end + 1)), np.delete(stood, range(start, end + 1)))
    assert row[start] != stood[start] and row[end] != stood[end]
    assert any(abs(place - begin) >= 20 for place in find(row[start : end + 1]))
    sizes.add(end - start + 1)
    edges |= {("first", start == 0), ("last", end == 19)}
  assert sizes == {2, 3, 4, 5} and len(edges) == 4
  with pytest.raises(ValueError, match="expected 1 <= shortest <= longest <= 20"):
    move_spans(rng(), TOKENS, starts, 20, 3, 21)
  with pytest.raises(ValueError, match="expected one 20 tokens away"):
    move_spans(rng(), TOKENS, starts[:1], 20, 2, 5)


def test_capitals_are_found_again_where_both_cases_are_one_character():
  text = "Ab, Éıß\u0130 X-9ǅ"
  made = lower_case(text)
  assert made.text == "ab, éıß\u0130 x-9" + made.text[-1]
  restored = "".join(x.upper() if label else x for x, label in zip(made.text, made.label))
  assert restored[:-1] == text[:-1]
  assert made.weight.tolist()[:8] == [1, 1, 0, 0, 1, 1, 0, 0]
  known = lower_case("aBc", "aBcC")  # no b, no A
  assert known.text == "aBc" and known.label.tolist() == [0, 0, 0] and known.weight.tolist() == [0, 0, 1]


def test_words_that_may_be_cut_off_are_left_out():
  assert cut_words("rd whole words and pa") == "whole words and"
  assert cut_words(" all of it\n") == "all of it"
  assert cut_words("one") == "" and cut_words("tw o") == ""
