"""Written arithmetic: steps and answers against Python's integers, what is held out, what is read, who wins a vote."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.lm.tasks import (
  Form,
  Problem,
  decode_tokens,
  draw_problem,
  encode_text,
  final_answer,
  is_held_out,
  majority_answer,
  read_answer,
  write_solution,
)

FORMS = [Form("addition", 2, 4), Form("multiplication", 3, 2)]
number = lambda digits: int("".join(map(str, digits)))


@pytest.fixture(scope="module", params=FORMS, ids=str)
def drawn(request):
  """(form, problems, solutions, solutions without steps) of 200 keys, none held out."""
  form = request.param

  @jax.jit
  def draw(key):
    problem = draw_problem(key, form, held_out=False)
    return problem, write_solution(form, problem), write_solution(form._replace(thought="none"), problem)

  return form, *jax.tree.map(np.asarray, jax.vmap(draw)(jax.random.split(jax.random.key(0), 200)))


def test_answers_are_those_of_integers(drawn):
  form, problems, solutions, short = drawn
  sign, result = ("+", int.__add__) if form.task == "addition" else ("*", int.__mul__)
  for first, second, tokens, answer, alone in zip(*problems, solutions.tokens, solutions.answer, short.tokens):
    expected = result(number(first), number(second))
    assert number(answer) == expected
    prompt = f"{number(first):0{form.digits}}{sign}{number(second):0{form.second_digits}}="
    ending = f"#{expected:0{form.answer_size}}."
    assert decode_tokens(alone) == prompt + ending
    text = decode_tokens(tokens)
    assert text.startswith(prompt) and text.endswith(ending) and len(prompt) == form.prompt_size
  assert solutions.tokens.shape[1] == form.size and short.tokens.shape[1] == form._replace(thought="none").size


def test_steps_are_those_of_pencil_and_paper(drawn):
  """Each column is true by itself, takes the carry of the one before it, and its digits are those of the numbers."""
  form, problems, solutions, _ = drawn
  for first, second, tokens, answer, count in zip(*problems, *solutions):
    steps = decode_tokens(tokens)[form.prompt_size :].partition("#")[0]
    first, second, carries = first[::-1], second[::-1], 0
    if form.task == "addition":
      columns = re.findall(r"(\d)\+(\d)\+(\d)=(\d)(\d),", steps)
      places = max(len(first), len(second))
      assert len(columns) == places and len(steps) == 9 * places
      before = 0
      for i, (d, e, carry, tens, ones) in enumerate(np.array(columns, int)):
        assert (d, e) == tuple(x[i] if i < len(x) else 0 for x in (first, second)) and carry == before
        assert d + e + carry == 10 * tens + ones and ones == answer[::-1][i]
        before, carries = tens, carries + (tens > 0)
    else:
      total, rows = 0, re.findall(r"((?:\d\*\d\+\d\+\d=\d\d,)+)>(\d+),", steps)
      assert len(rows) == len(second)
      for j, (row, written) in enumerate(rows):
        before = 0
        for i, column in enumerate(row.rstrip(",").split(",")):
          d, e, stood, carry, made = map(int, re.split(r"[*+=]", column))
          assert (d, e) == (first[i], second[j]) and stood == total // 10 ** (i + j) % 10 and carry == before
          assert d * e + stood + carry == made
          before, carries = made // 10, carries + (made > 9)
        total += number(first[::-1]) * int(second[j]) * 10**j
        assert int(written) == total and len(written) == form.answer_size
    assert count == carries


def test_nothing_held_out_is_ever_drawn_for_learning(drawn):
  form, problems, _, _ = drawn
  held = np.asarray(jax.jit(jax.vmap(is_held_out))(Problem(*map(jnp.asarray, problems))))
  assert not held.any()
  draw = jax.jit(jax.vmap(lambda key: draw_problem(key, form, held_out=True)))
  tests = draw(jax.random.split(jax.random.key(0), 50))
  assert np.all(jax.vmap(is_held_out)(tests))
  pairs = lambda problems: {(number(a), number(b)) for a, b in zip(*map(np.asarray, problems))}
  assert not pairs(problems) & pairs(tests) and len(pairs(tests)) > 5


def test_one_pair_in_ten_is_held_out_whatever_its_order_and_zeros():
  digits = lambda x, size: jnp.stack([jnp.asarray(x) // 10**i % 10 for i in reversed(range(size))], -1)
  a, b = (x.ravel() for x in np.meshgrid(np.arange(100), np.arange(100)))
  held = lambda a, b, *sizes: np.asarray(
    jax.jit(jax.vmap(is_held_out))(Problem(*(digits(x, size) for x, size in zip((a, b), sizes))))
  )
  found = held(a, b, 2, 2)
  np.testing.assert_array_equal(found, held(b, a, 2, 2))
  np.testing.assert_array_equal(found, held(a, b, 4, 3))
  assert abs(found.mean() - 0.1) < 4 * np.sqrt(0.09 / 5000)
  # Of each number some of its pairs, and not all.
  table = found.reshape(100, 100)
  assert table.sum(1).max() < 30 and np.sum(table.sum(1) == 0) < 3


@pytest.mark.parametrize("held_out", [False, True])
def test_digits_are_all_alike(held_out):
  draw = jax.vmap(lambda key: draw_problem(key, Form("addition", 4, 3), held_out))
  found = np.concatenate(jax.jit(draw)(jax.random.split(jax.random.key(1), 3000)), 1)
  for place in found.T:
    counts = np.bincount(place, minlength=10)
    assert np.all(np.abs(counts - 300) < 5 * np.sqrt(270)), counts
  with pytest.raises(ValueError, match="found 1 and 1 digits"):
    draw_problem(jax.random.key(0), Form("addition", 1, 1), held_out)


def test_the_last_answer_is_read():
  form = Form("addition", 2, 2)
  texts = {
    "#123.": ("123", True),
    "4+5+0=09,#999,#123. ": ("123", True),
    "#123.#456.": ("456", True),
    "#123": (None, False),  # no end
    "#12.": (None, False),
    "#1234.": (None, False),
    "#12=.": (None, False),
    "123.": (None, False),
    "#123.9#": (None, False),
  }
  read = jax.jit(lambda said: read_answer(form, said))
  for text, (digits, complete) in texts.items():
    found, whole = read(encode_text(text.ljust(16)))
    assert bool(whole) == complete, text
    assert not complete or "".join(map(str, np.asarray(found))) == digits


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_majority_is_the_commonest_answer_and_the_first_of_equals(count):
  """Against collections.Counter, which names the first met of those that are as common."""
  vote = jax.jit(majority_answer)
  for i in range(40):
    key = jax.random.fold_in(jax.random.key(count), i)
    answers = np.asarray(jax.random.randint(key, (count, 2), 0, 2))
    valid = np.asarray(jax.random.bernoulli(jax.random.fold_in(key, 1), 0.7, (count,)))
    chosen = answers[int(vote(answers, valid))]
    if valid.any():
      expected = collections.Counter(map(tuple, answers[valid])).most_common(1)[0][0]
      assert tuple(chosen) == expected
  assert int(vote(jnp.ones((3, 2), jnp.int32), jnp.zeros(3, bool))) == 0


@pytest.mark.parametrize(
  ("text", "answer"),
  [
    ("Natalia sold 48/2 = <<48/2=24>>24 clips.\n48+24 = <<48+24=72>>72 altogether.\n#### 72", "72"),
    ("#### 1,234", "1234"),
    ("#### $1,200.50 a week", "1200.5"),
    ("####-3", "-3"),
    ("#### -$5", "-5"),
    ("#### $-5.0", "-5"),
    ("#### +007 apples", "7"),
    ("#### 15%", "15"),
    ("#### .5", "0.5"),
    ("#### 0.0", "0"),
    ("#### -0", "0"),
    ("#### 6/8 of it", "3/4"),
    ("#### 6 / 3", "2"),
    ("#### 1/0", None),
    ("#### 12.", "12"),
    ("#### 5\n#### 6", "6"),
    ("#### 7\nand 8", "7"),
    ("####\n8", None),
    ("#### none", None),
    ("the answer is 42", None),
    ("", None),
    ("#### 100000000000000000000", "100000000000000000000"),
  ],
)
def test_the_answer_of_a_text(text, answer):
  assert final_answer(text) == answer


def test_texts_are_encoded_and_what_has_no_token_is_refused():
  assert decode_tokens(encode_text("12+9=#021.  ")) == "12+9=#021."
  with pytest.raises(ValueError):
    encode_text("x")
