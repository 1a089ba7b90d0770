"""Goals that take tools: a table to look up, a calculator, a memory, a colleague. Words, tools, and traces to imitate.

A goal such as `price apple times 3 plus recall red save blue` is answered with three digits, modulo 1000. What the
table says is nowhere but in the table, which is drawn anew for each goal, as is under which of its two names a thing is
filed. A call is `call NAME ARGUMENTS do`; what stands behind it is the tool's, not the speaker's:

    price NAME, stock NAME    three digits, or none where nothing is filed under that name
    plus DIGITS               the sum of two numbers of three digits, modulo 1000
    times DIGITS              the product of one of three digits and one digit, modulo 1000
    read SLOT, write SLOT DIGITS    the memory, which outlives the goal: three digits or none; ok
    ask WORDS, reply WORDS    of two agents: the planner's words are the worker's task, whose reply is what it gets

Anything else is answered by error.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

_THINGS = "apple pomme|pear poire|lemon citron|cherry cerise|nut noix|bean feve|fish poisson|bread pain"
_SLOTS = "red blue green white"
THINGS = tuple(tuple(pair.split()) for pair in _THINGS.split("|"))
SLOTS = tuple(_SLOTS.split())
TOOL_WORDS: tuple[str, ...] = (
  "<pad>", "<end>", "goal", "plan", "act", "call", "do", "task", "answer", "none", "ok", "error", "price", "stock",
  "times", "plus", "recall", "save", "read", "write", "ask", "reply", *map(str, range(10)), *SLOTS,
  *(name for pair in THINGS for name in pair),
)  # fmt: skip
ID = {word: i for i, word in enumerate(TOOL_WORDS)}
PAD, END, CALL, DO, NONE, OK, ERROR, ACT, TASK, ANSWER = (
  ID[word] for word in ("<pad>", "<end>", "call", "do", "none", "ok", "error", "act", "task", "answer")
)
_PRICE, _DIGIT, _SLOT, _NAME = ID["price"], ID["0"], ID[SLOTS[0]], ID[THINGS[0][0]]
_ARGUMENTS = 8  # of a call, its name among them
# Two-digit numbers that no table has in training: each digit is in others.
HELD_OUT = tuple(n for n in range(100) if (n // 10 + n % 10) % 5 == 0)
LEARNED = tuple(n for n in range(100) if n not in HELD_OUT)
LOOK_UP, RECALL = 0, 1


class World(NamedTuple):
  """What the tools know: (2, 16) price and stock by name, (4,) the memory; -1 where there is nothing."""

  table: Int[Array, "2 F"]
  memory: Int[Array, " S"]


class Goal(NamedTuple):
  """A sum of the first `count` of N terms, kept in slot `save` of the memory where that is not -1.

  Attributes:
    kind: LOOK_UP or RECALL of each.
    column, thing, name: of a look-up: price or stock, of which thing, by which of its two names.
    factor: of a look-up: what it is taken times, 1: nothing is said of it.
    slot: of a recall.
  """

  count: Int[Array, ""]
  kind: Int[Array, " N"]
  column: Int[Array, " N"]
  thing: Int[Array, " N"]
  name: Int[Array, " N"]
  factor: Int[Array, " N"]
  slot: Int[Array, " N"]
  save: Int[Array, ""]


def draw_world(key: Key[Array, ""], held_out: bool) -> World:
  """Everything has a price and a stock, filed under one of its names; a fifth of the memory is empty.

  `held_out`: whether the table's numbers are those that none has in training.
  """
  of_table, of_names, of_memory = jax.random.split(key, 3)
  numbers = jnp.asarray(HELD_OUT if held_out else LEARNED)
  values = jax.random.choice(of_table, numbers, (2, len(THINGS)))
  filed = jax.random.randint(of_names, (len(THINGS),), 0, 2)
  under = jnp.arange(2)[None] == filed[:, None]
  table = jnp.where(under[None], values[..., None], -1).reshape(2, -1)
  of_numbers, of_empty = jax.random.split(of_memory)
  empty = jax.random.uniform(of_empty, (len(SLOTS),)) < 0.2
  return World(table, jnp.where(empty, -1, jax.random.randint(of_numbers, (len(SLOTS),), 0, 1000)))


def draw_goal(key: Key[Array, ""], most: int) -> Goal:
  """Of 1 to `most` terms of different things, half of which are taken times 2 to 9.

  A sixth of the terms are recalled, and a quarter of the sums are kept. Raises ValueError for more than eight terms.
  """
  if not 1 <= most <= len(THINGS):
    raise ValueError(f"most is {most}, expected 1 to {len(THINGS)}: as many things as there are")
  keys = jax.random.split(key, 8)
  draw = lambda i, low, high: jax.random.randint(keys[i], (most,), low, high)
  thing = jax.lax.top_k(jax.random.uniform(keys[1], (len(THINGS),)), most)[1]
  factor = jnp.where(draw(2, 0, 2) == 0, 1, draw(3, 2, 10))
  chance = jax.random.uniform(keys[4])
  kept = jnp.where(chance < 0.25, jax.random.randint(keys[5], (), 0, len(SLOTS)), -1)
  kind = jnp.where(draw(6, 0, 6) == 0, RECALL, LOOK_UP)
  columns, names, slots = jax.random.split(keys[7], 3)
  count = jax.random.randint(keys[0], (), 1, most + 1)
  flip = lambda key: jax.random.randint(key, (most,), 0, 2)
  return Goal(
    count, kind, flip(columns), thing, flip(names), factor, jax.random.randint(slots, (most,), 0, len(SLOTS)), kept
  )


def look_up(world: World, goal: Goal) -> tuple[Int[Array, " N"], Bool[Array, " N"]]:
  """(what the table or the memory has of each term, under whichever name; whether it is found by the goal's own)."""
  entry = lambda name: world.table[goal.column, 2 * goal.thing + name]
  said, other = entry(goal.name), entry(1 - goal.name)
  recalled, kept = goal.kind == RECALL, world.memory[goal.slot]
  return jnp.where(recalled, kept, jnp.maximum(said, other)), jnp.where(recalled, kept, said) >= 0


def solve(world: World, goal: Goal) -> Int[Array, ""]:
  """The right answer, 0 to 999; -1, which is none, where it takes something that was never kept."""
  value, _ = look_up(world, goal)
  factor = jnp.where(goal.kind == RECALL, 1, goal.factor)
  counts = jnp.arange(len(value)) < goal.count
  return jnp.where(jnp.any(counts & (value < 0)), -1, jnp.sum(jnp.where(counts, value * factor, 0)) % 1000)


def to_digits(number: Int[Array, "..."]) -> Int[Array, "... 3"]:
  """The tokens of three digits."""
  return _DIGIT + jnp.stack([number // 100 % 10, number // 10 % 10, number % 10], -1)


# -- tools -------------------------------------------------------------------------------------------------------------


class Desk(NamedTuple):
  """What surrounds the agents of one goal, between two tokens.

  Attributes:
    queue, left: what the tools or the goal will put next, and how many tokens of it are left.
    arguments, given: of the call that is open, its name first; -1 given: none is open.
    context: who reads and writes: 0 the planner (or the only agent), else the number of the worker's task.
    opened: tasks so far. places: of the next token of the planner, and of the worker's task.
    calls, errors: calls that were closed, and those of them that were answered by error.
    done: the planner has said END.
  """

  world: World
  queue: Int[Array, " Q"]
  left: Int[Array, ""]
  arguments: Int[Array, " A"]
  given: Int[Array, ""]
  context: Int[Array, ""]
  opened: Int[Array, ""]
  places: Int[Array, " 2"]
  calls: Int[Array, ""]
  errors: Int[Array, ""]
  done: Bool[Array, ""]


def make_desk(world: World, goal: Int[Array, " G"], length: Int[Array, ""]) -> Desk:
  """With the goal's tokens to be read first."""
  queue = jnp.pad(goal, (0, max(0, _ARGUMENTS + 2 - len(goal))), constant_values=PAD)
  zero = jnp.int32(0)
  arguments = jnp.full((_ARGUMENTS,), PAD, jnp.int32)
  return Desk(
    world, queue, length, arguments, jnp.int32(-1), zero, zero, jnp.zeros(2, jnp.int32), zero, zero, jnp.array(False)
  )


def observe(desk: Desk, token: Int[Array, ""], forced: Bool[Array, ""], agents: int = 1) -> Desk:
  """What the token changes: a call that it closes is carried out, and its result queues. A forced one closes none."""
  role = (desk.context > 0).astype(jnp.int32)
  desk = desk._replace(
    places=desk.places.at[role].add(1),
    queue=jnp.where(forced, jnp.roll(desk.queue, -1), desk.queue),
    left=desk.left - forced,
  )
  said = ~forced & ~desk.done
  closes = said & (token == DO) & (desk.given >= 0)
  opens = said & (token == CALL)
  writes = said & (desk.given >= 0) & ~closes & ~opens
  inside = jnp.arange(_ARGUMENTS) == desk.given
  after = desk._replace(
    arguments=jnp.where(writes & inside, token, desk.arguments),
    given=jnp.where(opens, 0, jnp.where(closes, -1, desk.given + writes)),
    done=desk.done | (said & (token == END) & (desk.context == 0)),
  )
  carried = _carry_out(after, desk.given, agents)
  return jax.tree.map(lambda a, b: jnp.where(closes, a, b), carried, after)


def _carry_out(desk: Desk, given: Int[Array, ""], agents: int) -> Desk:
  """The call of `given` words that `arguments` holds."""
  words, world = desk.arguments, desk.world
  name, first = words[0], words[1]
  is_number = lambda words: jnp.all((words >= _DIGIT) & (words < _DIGIT + 10))
  number = lambda words: jnp.sum((words - _DIGIT) * jnp.array([100, 10, 1]))
  by_worker = (desk.context > 0) if agents == 2 else True
  by_planner = desk.context == 0
  slot, thing = first - _SLOT, first - _NAME
  a_slot = (slot >= 0) & (slot < len(SLOTS))
  column = name - _PRICE
  entry = world.table[jnp.clip(column, 0, 1), jnp.clip(thing, 0, 2 * len(THINGS) - 1)]
  kept = world.memory[jnp.clip(slot, 0, len(SLOTS) - 1)]
  is_call = lambda word, count: (name == ID[word]) & (given == count)
  looks = (column >= 0) & (column < 2) & (given == 2) & (thing >= 0) & (thing < 2 * len(THINGS)) & by_worker
  adds = is_call("plus", 7) & is_number(words[1:7])
  multiplies = is_call("times", 5) & is_number(words[1:5]) & by_worker
  reads = is_call("read", 2) & a_slot & by_planner
  writes = is_call("write", 5) & a_slot & is_number(words[2:5]) & by_planner
  asks = (name == ID["ask"]) & (given >= 2) & (given <= _ARGUMENTS) & by_planner & (agents == 2)
  replies = (name == ID["reply"]) & (given >= 2) & (given <= _ARGUMENTS) & ~by_planner

  result = jnp.select(
    [looks, adds, multiplies, reads],
    [entry, number(words[1:4]) + number(words[4:7]), number(words[1:4]) * (words[4] - _DIGIT), kept],
    -1,
  )
  room = len(desk.queue)
  put = lambda *tokens: jnp.pad(jnp.stack([jnp.asarray(t, jnp.int32) for t in tokens]), (0, room - len(tokens)))
  spread = jnp.pad(words[1:], (0, room - _ARGUMENTS + 1))
  task = jnp.roll(spread, 1).at[0].set(TASK)
  task = jnp.where(jnp.arange(room) == given, ACT, task)
  known = looks | adds | multiplies | reads
  queue, left = put(ERROR), jnp.int32(1)
  for condition, tokens, count in (
    (known & (result >= 0), put(*to_digits(result % 1000)), 3),
    (known & (result < 0), put(NONE), 1),
    (writes, put(OK), 1),
    (asks, task, given + 1),
    (replies, spread, given - 1),
  ):
    queue, left = jnp.where(condition, tokens, queue), jnp.where(condition, count, left)
  here = writes & (jnp.arange(len(SLOTS)) == slot)
  opened = desk.opened + asks
  return desk._replace(
    world=world._replace(memory=jnp.where(here, number(words[2:5]), world.memory)),
    queue=queue,
    left=left.astype(jnp.int32),
    context=jnp.where(asks, opened, jnp.where(replies, 0, desk.context)),
    opened=opened,
    places=jnp.where(asks & (jnp.arange(2) == 1), 0, desk.places),
    calls=desk.calls + 1,
    errors=desk.errors + ~(known | writes | asks | replies),
  )


# -- traces to imitate -------------------------------------------------------------------------------------------------


class Trace(NamedTuple):
  """Tokens in the order of time, of all contexts, padding behind them.

  Attributes:
    own: whether an agent says it, and so learns it; results, tasks and the goal are put there.
    context, position: whose it is (`Desk.context`; -1 of padding) and its place there.
  """

  tokens: Int[Array, " T"]
  own: Bool[Array, " T"]
  context: Int[Array, " T"]
  position: Int[Array, " T"]
  length: Int[Array, ""]


class _Script:
  """Words that may stand, each with the condition under which it does."""

  def __init__(self):
    self.rows: list[tuple[Any, Any, bool, bool]] = []

  def say(self, words: Sequence[Any], there: Any = True, own: bool = True, worker: bool = False) -> None:
    """`words` are words, or arrays of tokens."""
    for word in words:
      self.rows.append((ID[word] if isinstance(word, str) else word, there, own, worker))

  def compact(self, room: int) -> Trace:
    """Those that stand, in a row of `room` tokens, which must hold them: what passes it is lost."""
    tokens, there, own, worker = (jnp.stack([jnp.asarray(x) for x in column]) for column in zip(*self.rows))
    place = jnp.where(there, jnp.cumsum(there) - 1, room)
    put = lambda x, empty: jnp.full((room,), empty, x.dtype).at[place].set(x, mode="drop")
    tokens, own, worker = put(tokens.astype(jnp.int32), PAD), put(own, False), put(worker, False)
    real = jnp.arange(room) < jnp.sum(there)
    begins = (tokens == TASK) & worker
    context = jnp.where(worker, jnp.cumsum(begins), 0)
    time = jnp.arange(room)
    since = jax.lax.cummax(jnp.where(begins, time, 0))
    position = jnp.where(worker, time - since, jnp.cumsum(~worker) - 1)
    return Trace(tokens, own, jnp.where(real, context, -1), jnp.where(real, position, 0), jnp.sum(there))


def _terms(script: _Script, goal: Goal, postfix: bool, **options: bool) -> None:
  """The goal's words: `a plus b`, of a plan `a b plus`."""
  for i in range(len(goal.kind)):
    there, found = i < goal.count, goal.kind[i] == LOOK_UP
    if i and not postfix:
      script.say(["plus"], there, **options)
    script.say([_PRICE + goal.column[i], _NAME + 2 * goal.thing[i] + goal.name[i]], there & found, **options)
    script.say(["times", _DIGIT + goal.factor[i]], there & found & (goal.factor[i] > 1), **options)
    script.say(["recall", _SLOT + goal.slot[i]], there & ~found, **options)
    if i and postfix:
      script.say(["plus"], there, **options)
  script.say(["save", _SLOT + goal.save], goal.save >= 0, **options)


def goal_room(most: int) -> int:
  """Tokens of the longest goal."""
  return 5 * most + 3


def trace_room(most: int, agents: int) -> int:
  """Tokens of the longest trace."""
  look_ups = most * (22 + (22 if agents == 2 else 0))
  return 2 * goal_room(most) + look_ups + 12 * (most - 1) + 8 + 5


def write_goal(goal: Goal) -> Trace:
  """Its words alone, as they are given to an agent."""
  script = _Script()
  script.say(["goal"], own=False)
  _terms(script, goal, postfix=False, own=False)
  script.say(["act"], own=False)
  return script.compact(goal_room(len(goal.kind)))


def answer_at_once(world: World, goal: Goal) -> Trace:
  """The goal and its answer, with no tool between: what can be said without any."""
  script = _Script()
  script.say(["goal"], own=False)
  _terms(script, goal, postfix=False, own=False)
  script.say(["act"], own=False)
  right = solve(world, goal)
  _say_answer(script, right, right >= 0)
  return script.compact(goal_room(len(goal.kind)) + 5)


def answer_tokens(answer: Int[Array, ""]) -> Int[Array, " 4"]:
  """What stands behind the word answer: three digits or, for -1, none; END; padding."""
  nothing = jnp.array([NONE, END, PAD, PAD])
  return jnp.where(answer < 0, nothing, jnp.append(to_digits(answer), END))


def _say_answer(script: _Script, number: Int[Array, ""], known: Any) -> None:
  script.say(["answer"])
  script.say([*to_digits(number)], known)
  script.say(["none"], ~known)
  script.say(["<end>"])


def imitate(world: World, goal: Goal, agents: int = 1, reflection: bool = True, memory: bool = True) -> Trace:
  """What a faultless agent does: a plan in the order of work, its steps one by one, the answer.

  Where nothing is filed under a name it looks under the other one; without `reflection` it answers none, as it does
  where it would have to recall what was never kept, or anything without `memory`. Of two agents the planner asks for
  each term that is looked up, and the worker, which has table and products, sees that term alone.
  """
  script, most = _Script(), len(goal.kind)
  script.say(["goal"], own=False)
  _terms(script, goal, postfix=False, own=False)
  script.say(["act"], own=False)
  script.say(["plan"])
  _terms(script, goal, postfix=True)
  script.say(["act"])
  value, found = look_up(world, goal)
  going, total = jnp.array(True), jnp.int32(0)
  for i in range(most):
    there = going & (i < goal.count)
    sought = there & (goal.kind[i] == LOOK_UP)
    product = _look_up_term(script, goal, i, value[i], found[i], sought, agents, reflection)
    recalled = there & (goal.kind[i] == RECALL)
    if memory:
      script.say(["call", "read", _SLOT + goal.slot[i], "do"], recalled)
      script.say([*to_digits(value[i])], recalled & found[i], own=False)
      script.say(["none"], recalled & ~found[i], own=False)
    lost = ~found[i] if memory else True
    going = going & ~(recalled & lost) & ~(sought & ~found[i] & (not reflection))
    there = there & going
    term = jnp.where(goal.kind[i] == RECALL, value[i], product)
    if i:
      script.say(["call", "plus", *to_digits(total), *to_digits(term), "do"], there)
      total = jnp.where(there, (total + term) % 1000, total)
      script.say([*to_digits(total)], there, own=False)
    else:
      total = term
  kept = going & (goal.save >= 0)
  if memory:
    script.say(["call", "write", _SLOT + goal.save, *to_digits(total), "do"], kept)
    script.say(["ok"], kept, own=False)
  _say_answer(script, total, going)
  return script.compact(trace_room(most, agents))


def _look_up_term(script, goal, i, value, found, sought, agents: int, reflection: bool) -> Int[Array, ""]:
  """The calls of a term that is looked up; gives its product."""
  column, name = _PRICE + goal.column[i], _NAME + 2 * goal.thing[i] + goal.name[i]
  other = _NAME + 2 * goal.thing[i] + 1 - goal.name[i]
  times = goal.factor[i] > 1
  product = jnp.where(times, value * goal.factor[i] % 1000, value)
  worker = agents == 2
  known = found | reflection
  if worker:
    script.say(["call", "ask", column, name], sought)
    script.say(["times", _DIGIT + goal.factor[i]], sought & times)
    script.say(["do"], sought)
    script.say(["task", column, name], sought, own=False, worker=True)
    script.say(["times", _DIGIT + goal.factor[i]], sought & times, own=False, worker=True)
    script.say(["act"], sought, own=False, worker=True)
  script.say(["call", column, name, "do"], sought, worker=worker)
  script.say(["none"], sought & ~found, own=False, worker=worker)
  script.say(["call", column, other, "do"], sought & ~found & reflection, worker=worker)
  script.say([*to_digits(value)], sought & known, own=False, worker=worker)
  there = sought & times & known
  script.say(["call", "times", *to_digits(value), _DIGIT + goal.factor[i], "do"], there, worker=worker)
  script.say([*to_digits(product)], there, own=False, worker=worker)
  if worker:
    script.say(["call", "reply"], sought, worker=True)
    for says, condition in ((to_digits(product), known), (["none"], ~known)):
      script.say([*says], sought & condition, worker=True)
    script.say(["do"], sought, worker=True)
    for says, condition in ((to_digits(product), known), (["none"], ~known)):
      script.say([*says], sought & condition, own=False)
  return product
