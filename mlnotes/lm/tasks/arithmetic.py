"""Sums and products with the steps that lead to them, written in characters, and answers that are read and voted on.

  1234+0678=4+8+0=12,3+7+1=11,2+6+1=09,1+0+0=01,#01912.

A scratchpad as that of Nye et al. 2021: of each column, ones first, its two digits, the carry that comes in, and what
they make. Behind # stands the answer, whatever is written before it.
"""

import re
from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, UInt

Task = Literal["addition", "multiplication"]
Thought = Literal["steps", "none"]
# A character's place is its token, and a digit's token the digit + 1. A space fills up, a full stop ends.
ALPHABET = " 0123456789+*=,>#."
PAD, END, ANSWER = 0, ALPHABET.index("."), ALPHABET.index("#")
HELD_OUT = 10  # one pair of so many is for testing alone


class Form(NamedTuple):
  """What a problem looks like: its operation, the digits of both numbers, and what is written ahead of the answer."""

  task: Task
  digits: int
  second_digits: int
  thought: Thought = "steps"

  @property
  def prompt_size(self) -> int:
    return self.digits + self.second_digits + 2

  @property
  def answer_size(self) -> int:
    if self.task == "addition":
      return max(self.digits, self.second_digits) + 1
    return self.digits + self.second_digits

  @property
  def trace_size(self) -> int:
    """Tokens behind the prompt: steps, #, the answer, END."""
    if self.thought == "none":
      steps = 0
    elif self.task == "addition":
      steps = 9 * max(self.digits, self.second_digits)
    else:
      steps = self.second_digits * (11 * self.digits + self.answer_size + 2)
    return steps + self.answer_size + 2

  @property
  def size(self) -> int:
    return self.prompt_size + self.trace_size


class Problem(NamedTuple):
  """Digits of two numbers, the largest place first, zeros in front where a number is short."""

  first: Int[Array, " D"]
  second: Int[Array, " E"]


class Solution(NamedTuple):
  """A problem written out.

  Attributes:
    tokens: the prompt and what follows it, END with it.
    answer: the digits of the result, the largest place first.
    carries: how many columns carry something on.
  """

  tokens: Int[Array, " T"]
  answer: Int[Array, " A"]
  carries: Int[Array, ""]


def encode_text(text: str) -> Int[Array, " T"]:
  """Raises ValueError for a character that is not in `ALPHABET`."""
  return jnp.asarray([ALPHABET.index(character) for character in text], jnp.int32)


def decode_tokens(tokens: Iterable[Any]) -> str:
  """The characters, without those that fill up behind them."""
  return "".join(ALPHABET[int(token)] for token in tokens).rstrip()


def is_held_out(problem: Problem) -> Bool[Array, ""]:
  """Whether a pair is for testing: one in `HELD_OUT`, by a hash of the two numbers alone.

  It goes by the numbers' values (zeros in front count for nothing) and not by their order: a + b is held out where
  b + a is.
  """
  one, other = (_hash(digits) for digits in problem)
  return _mix(one + other) % HELD_OUT == 0


def _hash(digits: Int[Array, " D"]) -> UInt[Array, ""]:
  # 0 stays 0, so that zeros in front change nothing.
  found = jnp.uint32(0)
  for digit in digits:
    found = _mix(found * jnp.uint32(10) + digit.astype(jnp.uint32))
  return found


def _mix(x: UInt[Array, ""]) -> UInt[Array, ""]:
  """MurmurHash3's last step, a permutation of the 32-bit integers, 0 of 0."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def draw_problem(key: Key[Array, ""], form: Form, held_out: bool) -> Problem:
  """Every digit alike, from the pairs that are held out or from the others: drawn again until it is one of them.

  Of fewer than a thousand pairs none might be held out: raises ValueError for fewer than three digits in all.
  """
  if form.digits < 1 or form.second_digits < 1 or form.digits + form.second_digits < 3:
    raise ValueError(f"found {form.digits} and {form.second_digits} digits, expected 1 or more of each, 3 in all")

  def draw(i) -> Problem:
    digits = jax.random.randint(jax.random.fold_in(key, i), (form.digits + form.second_digits,), 0, 10)
    return Problem(digits[: form.digits], digits[form.digits :])

  def again(carry):
    i, _, _ = carry
    problem = draw(i)
    return i + 1, problem, is_held_out(problem) == held_out

  nothing = Problem(jnp.zeros(form.digits, jnp.int32), jnp.zeros(form.second_digits, jnp.int32))
  return jax.lax.while_loop(lambda carry: ~carry[2], again, (jnp.int32(0), nothing, jnp.array(False)))[1]


def write_solution(form: Form, problem: Problem) -> Solution:
  """The problem, its steps where the form has them, # and the answer.

  addition        d+e+c=ss,     of each place, the ones first: both digits, the carry, the two digits of their sum
  multiplication  d*e+r+c=ss,   of each digit e of the second number and each d of the first, the ones first: r is
                                what stands at that place of the running sum; behind each e > and that sum
  """
  solve, sign = (_add, "+") if form.task == "addition" else (_multiply, "*")
  steps, answer, carries = solve(*problem)
  prompt = _characters(*(problem.first + 1), sign, *(problem.second + 1), "=")
  thought = [steps] if form.thought == "steps" else []
  tokens = jnp.concatenate([prompt, *thought, _characters("#", *(answer + 1), ".")])
  return Solution(tokens, answer, jnp.sum(carries > 0))


def _characters(*written: Array | str) -> Int[Array, "*B T"]:
  """Tokens side by side, those of characters repeated as need be."""
  tokens = [jnp.asarray(ALPHABET.index(x) if isinstance(x, str) else x, jnp.int32) for x in written]
  return jnp.stack(jnp.broadcast_arrays(*tokens), -1)


def _add(first: Int[Array, " D"], second: Int[Array, " E"]) -> tuple[Array, Array, Array]:
  """(tokens of the steps, the answer's digits, what each column carries on)."""
  places = max(len(first), len(second))
  first, second = (jnp.pad(x, (places - len(x), 0))[::-1] for x in (first, second))

  def column(carry, digits):
    total = digits[0] + digits[1] + carry
    return total // 10, (carry, total)

  last, (carry, total) = jax.lax.scan(column, jnp.int32(0), (first, second))
  ones, tens = total % 10 + 1, total // 10 + 1
  steps = _characters(first + 1, "+", second + 1, "+", carry + 1, "=", tens, ones, ",")
  return steps.ravel(), jnp.append(total % 10, last)[::-1], total // 10


def _multiply(first: Int[Array, " D"], second: Int[Array, " E"]) -> tuple[Array, Array, Array]:
  """(tokens of the steps, the answer's digits, what each column carries on)."""
  count, first = len(first), first[::-1]

  def column(carry, digits):
    d, e, stood = digits
    total = d * e + stood + carry
    return total // 10, (carry, total)

  def row(summed, given):  # the running sum has its ones first
    shift, e = given
    es = jnp.full_like(first, e)
    stood = jax.lax.dynamic_slice(summed, (shift,), (count,))
    last, (carry, total) = jax.lax.scan(column, jnp.int32(0), (first, es, stood))
    summed = jax.lax.dynamic_update_slice(summed, jnp.append(total % 10, last), (shift,))
    ones, tens = total % 10 + 1, total // 10 + 1
    columns = _characters(first + 1, "*", es + 1, "+", stood + 1, "+", carry + 1, "=", tens, ones, ",")
    return summed, (jnp.append(columns.ravel(), _characters(">", *(summed[::-1] + 1), ",")), total // 10)

  empty = jnp.zeros(count + len(second), jnp.int32)
  summed, (steps, carries) = jax.lax.scan(row, empty, (jnp.arange(len(second)), second[::-1]))
  return steps.ravel(), summed[::-1], carries.ravel()


def read_answer(form: Form, said: Int[Array, " N"]) -> tuple[Int[Array, " A"], Bool[Array, ""]]:
  """(the digits behind the last #, whether they are an answer: digits, as many as there have to be, and END)."""
  marks = said == ANSWER
  place = len(said) - 1 - jnp.argmax(marks[::-1])
  behind = jnp.take(said, place + 1 + jnp.arange(form.answer_size + 1), mode="fill", fill_value=PAD)
  digits = behind[:-1] - 1
  complete = jnp.all((digits >= 0) & (digits <= 9)) & (behind[-1] == END) & jnp.any(marks)
  return digits, complete


def majority_answer(answers: Int[Array, "N A"], valid: Bool[Array, " N"]) -> Int[Array, ""]:
  """Which of N answers has the most that are equal to it, the first of them where some have as many.

  Wang et al. 2023, self-consistency. What is no answer has no vote; where nothing is, 0.
  """
  equal = jnp.all(answers[:, None] == answers[None], -1) & valid[:, None] & valid[None]
  return jnp.argmax(jnp.sum(equal, 1))


_NUMBER = re.compile(r"([-+]?)\s*\$?\s*([-+]?)((?:\d[\d,]*)(?:\.\d+)?|\.\d+)(?:\s*/\s*(\d[\d,]*))?")


def final_answer(text: str) -> str | None:
  """The number behind the last #### of a solution in GSM8K's format, Cobbe et al. 2021; None where there is none.

    final_answer("... 6 * 7 = <<6*7=42>>42 eggs\n#### 42")                          # "42"
    final_answer("#### $1,200.50 a week")                                           # "1200.5"

  Written in one way, so that answers can be compared as strings: no commas, no plus, no zeros that mean nothing;
  currency, units and what else follows the number are left out. A fraction is in lowest terms: "3/4".
  """
  behind = text.rpartition("####")
  found = _NUMBER.search(behind[2].partition("\n")[0]) if behind[1] else None
  if found is None:
    return None
  sign, inner, number, divisor = found.groups()
  value = Fraction(Decimal(number.replace(",", "")))
  if divisor is not None:
    divisor = int(divisor.replace(",", ""))
    if not divisor:
      return None
    value /= divisor
  value = -value if "-" in sign + inner else value
  if value.denominator == 1 or divisor is not None:
    return str(value)
  return f"{Decimal(value.numerator) / Decimal(value.denominator):f}"
