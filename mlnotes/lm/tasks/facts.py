"""Facts about people, told in documents and asked for in other words, with known answers; drawn on the device.

Each fact says that one of six relations of a person has a value, two words. Documents and questions name a person by
the full first name or the short one and a relation by one of three words, so that they share a part of their words.
Some documents name another person too. Nothing but the documents says what a value is: it is drawn anew for each store.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

_FIRST = """robert bob|william bill|elizabeth betty|margaret peggy|richard dick|edward ted|henry harry|john jack|
james jim|katherine kate|mary polly|sarah sally|anthony tony|charles chuck|thomas tom|dorothy dot|eleanor nell|
francis frank|joseph joe|lawrence larry|michael mike|patricia pat|samuel sam|theodore teddy"""
_LAST = """smith jones brown taylor wilson evans walker wright green hall wood clarke turner hill moore cooper ward
morris king baker allen carter parker young"""
_RELATIONS = """home residence dwelling|job profession trade|car vehicle auto|boat ship vessel|hobby pastime leisure|
doctor physician medic"""
_VALUE = (
  """red blue old new dark pale wet dry hot cold loud calm""",
  """river stone bird glass bridge garden tower
wheel lamp forest ring candle""",
)
_OTHERS = "the of is has what which does have tell me that unlike asked it"
PAD, END = 0, 1

FIRST_NAMES = tuple(tuple(pair.split()) for pair in _FIRST.replace("\n", "").split("|"))
LAST_NAMES = tuple(_LAST.split())
RELATIONS = tuple(tuple(words.split()) for words in _RELATIONS.replace("\n", "").split("|"))
VALUES = tuple(tuple(words.split()) for words in _VALUE)
FACT_WORDS: tuple[str, ...] = (
  "<pad>", "<end>", *_OTHERS.split(), *(word for pair in FIRST_NAMES for word in pair), *LAST_NAMES,
  *(word for words in RELATIONS for word in words), *VALUES[0], *VALUES[1],
)  # fmt: skip
DOCUMENT_TOKENS, QUESTION_TOKENS, ANSWER_TOKENS = 12, 8, 3

_ID = {word: i for i, word in enumerate(FACT_WORDS)}
_table = lambda rows: np.array([[_ID[word] for word in row] for row in rows], np.int32)
_FIRST_IDS, _LAST_IDS, _RELATION_IDS = _table(FIRST_NAMES), _table([LAST_NAMES])[0], _table(RELATIONS)
_VALUE_IDS = _table(VALUES)
# In a template: relation, first and last name, those of another person, both words of the value.
_SLOTS = ("R", "F", "L", "G", "M", "V", "W")


def _templates(lines: str, length: int) -> Int[np.ndarray, "M T"]:
  """Ids of words, and -1 - the number of a slot."""
  rows = [[-1 - _SLOTS.index(w) if w in _SLOTS else _ID[w] for w in line.split()] for line in lines.split("|")]
  return np.array([row + [PAD] * (length - len(row)) for row in rows], np.int32)


_DOCUMENTS = _templates(
  "the R of F L is V W|F L has the R V W|V W is the R of F L|unlike G M F L has the R V W|"
  "G M asked the R of F L it is V W",
  DOCUMENT_TOKENS,
)  # fmt: skip
_QUESTIONS = _templates("what is the R of F L|which R does F L have|tell me the R that F L has", QUESTION_TOKENS)


class Facts(NamedTuple):
  """N facts: what a store holds, and a question for each.

  Attributes:
    document, question: (N, 12) and (N, 8) tokens of `FACT_WORDS`, padding behind them.
    answer: (N, 3) the two words of the value, and END.
    person: (N, 2) numbers of first and last name.
    relation: (N,) its number.
  """

  document: Int[Array, "N T"]
  question: Int[Array, "N S"]
  answer: Int[Array, "N A"]
  person: Int[Array, "N 2"]
  relation: Int[Array, " N"]


def split_people(test_share: float = 0.25) -> tuple[Int[np.ndarray, "N 2"], Int[np.ndarray, "M 2"]]:
  """(people to learn from, people to be tested on): pairs of first and last name, the same ones each time.

  Each name is in both; no pair is.
  """
  names = np.stack(np.meshgrid(range(len(FIRST_NAMES)), range(len(LAST_NAMES)), indexing="ij"), -1).reshape(-1, 2)
  order = np.random.default_rng(0).permutation(len(names))
  cut = round(test_share * len(names))
  return names[np.sort(order[cut:])].astype(np.int32), names[np.sort(order[:cut])].astype(np.int32)


def draw_facts(key: Key[Array, ""], people: Int[Array, "P 2"], count: int) -> Facts:
  """All six relations of `count` of the people, in six documents each. Other people that are named are of these too.

  Raises ValueError for a count below 2 or more than there are people.
  """
  if not 2 <= count <= len(people):
    raise ValueError(f"count is {count}: expected 2 or more, of {len(people)} people at most")
  of_people, of_facts = jax.random.split(key)
  drawn = jax.lax.top_k(jax.random.uniform(of_people, (len(people),)), count)[1]
  chosen = jnp.asarray(people)[drawn]
  number = jnp.arange(count * len(RELATIONS))
  chances = jax.random.uniform(of_facts, (len(number), 11))
  pick = lambda column, many: jnp.minimum((chances[:, column] * many).astype(jnp.int32), many - 1)
  first, last, names = (jnp.asarray(x) for x in (_FIRST_IDS, _LAST_IDS, _RELATION_IDS))
  owner, relation = number // len(RELATIONS), number % len(RELATIONS)
  person, other = chosen[owner], chosen[(owner + 1 + pick(0, count - 1)) % count]
  value = jnp.stack([jnp.asarray(ids)[pick(1 + part, len(ids))] for part, ids in enumerate(_VALUE_IDS)], 1)

  def tell(templates, column: int) -> Int[Array, "N T"]:
    """Relation and first names are said in one of their words, each by itself."""
    said, short, others = names[relation, pick(column + 1, names.shape[1])], pick(column + 2, 2), pick(column + 3, 2)
    slots = jnp.stack([
      said, first[person[:, 0], short], last[person[:, 1]], first[other[:, 0], others], last[other[:, 1]],
      value[:, 0], value[:, 1],
    ], 1)  # fmt: skip
    template = jnp.asarray(templates)[pick(column, len(templates))]
    filled = jnp.take_along_axis(slots, jnp.maximum(-1 - template, 0), 1)
    return jnp.where(template < 0, filled, template)

  answer = jnp.append(value, jnp.full((len(value), 1), END, value.dtype), 1)
  return Facts(tell(_DOCUMENTS, 3), tell(_QUESTIONS, 7), answer, person, relation)


def count_tokens(tokens: Int[Array, "*N T"]) -> Int[Array, "*N"]:
  """How many tokens are no padding."""
  return jnp.sum(tokens != PAD, -1)


def swap_values(key: Key[Array, ""], facts: Facts) -> Facts:
  """The same documents, people and questions with other values: both words of each are other words."""
  many = _VALUE_IDS.shape[1]
  shift = jax.random.randint(key, (len(facts.answer), 2), 1, many)

  def other(tokens: Int[Array, "N T"]) -> Int[Array, "N T"]:
    for part, ids in enumerate(_VALUE_IDS):
      place = tokens - ids[0]  # the ids of a kind of word follow each other
      there = (place >= 0) & (place < many)
      tokens = jnp.where(there, ids[0] + (place + shift[:, part, None]) % many, tokens)
    return tokens

  return facts._replace(document=other(facts.document), answer=other(facts.answer))
