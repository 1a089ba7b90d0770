"""What is trained in `lm.agent`, as a function of goals and a table; its figures, agent.png and trace.txt."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from mlnotes.engine.errors import InputError, nearest
from mlnotes.engine.experiment import Mean, root_key, stream_key
from mlnotes.lm import Acted, LanguageModel, Surroundings, act
from mlnotes.lm.tasks import Goal, Trace, World, imitate, make_desk, observe, solve, write_goal
from mlnotes.lm.tasks.tools import (
  ANSWER,
  CALL,
  DO,
  ID,
  LOOK_UP,
  PAD,
  RECALL,
  SLOTS,
  THINGS,
  TOOL_WORDS,
  answer_tokens,
  goal_room,
  trace_room,
)

_REPORT_SEED, _REPORTED = 1, 512
_MOST_CALLS = 6  # of agent.png: from there on together
_NOTHING = ID["none"]
_COLORS = {"goal": "0.55", "plan": "C0", "call": "C1", "result": "C2", "answer": "C3"}


def surroundings(agents: int) -> Surroundings:
  """The tools of `mlnotes.lm.tasks.tools`; of 0 agents none: what is said calls nothing."""
  heard = lambda token: jnp.where(token == CALL, PAD, token) if agents == 0 else token
  return Surroundings(
    next=lambda desk: (desk.queue[0], desk.left > 0, desk.context, desk.places[(desk.context > 0).astype(jnp.int32)]),
    observe=lambda desk, token, put: observe(desk, heard(token), put, agents),
    done=lambda desk: desk.done,
  )


class Answered(NamedTuple):
  """A number, or None where none was found; the words of the trace by its lines; the memory afterwards."""

  answer: int | None
  trace: list[str]
  memory: dict[str, int]


class Model(NamedTuple):
  """(goals, table, memory) to what is answered, with the trace.

  model(["price apple times 3 plus recall red"], {"price": {"apple": 12}}, {"red": 100})
  """

  module: LanguageModel
  params: dict[str, Any]
  terms: int
  agents: int

  def __call__(
    self, goals: Sequence[str], table: Mapping[str, Mapping[str, int]], memory: Mapping[str, int] | None = None
  ) -> list[Answered]:
    tokens, lengths = encode_goals(goals, goal_room(self.terms))
    world = make_world(table, memory or {})
    worlds = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(goals), *x.shape)), world)
    acted = jax.device_get(self.act(worlds, tokens, lengths))
    answers = np.asarray(find_answer(acted))
    found = []
    for i, (answer, slots) in enumerate(zip(answers, acted.state.world.memory)):
      digits = [int(token) - ID["0"] for token in answer[:3]]
      known = all(0 <= digit < 10 for digit in digits)
      number = int("".join(map(str, digits))) if known else None
      kept = {name: int(value) for name, value in zip(SLOTS, slots) if value >= 0}
      found.append(Answered(number, [" ".join(line.words) for line in split_trace(acted, i)], kept))
    return found

  def act(self, worlds: World, goals: Int[Array, "B G"], lengths: Int[Array, " B"], name: str = "agent") -> Acted:
    """`name` "alone": the network that has no tools."""
    count = trace_room(self.terms, self.agents) if name == "agent" else goal_room(self.terms) + 5
    agents = self.agents if name == "agent" else 0
    return _act(self.module, agents, count, self.params[name], worlds, goals, lengths)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _act(module, agents, count, params, worlds, goals, lengths):
  desks = jax.vmap(make_desk)(worlds, goals, lengths)
  return act(module, {"params": params}, surroundings(agents), desks, count)


def find_answer(acted: Acted) -> Int[Array, "B 4"]:
  """What stands behind the word answer, END and padding at its end; padding alone where it was not said."""
  said = (acted.tokens == ANSWER) & acted.own
  first = jnp.argmax(said, 1)
  place = first[:, None] + 1 + jnp.arange(4)[None]
  tokens = jnp.pad(acted.tokens, ((0, 0), (0, 4)), constant_values=PAD)
  return jnp.where(jnp.any(said, 1)[:, None], jnp.take_along_axis(tokens, place, 1), PAD)


def is_right(acted: Acted, answers: Int[Array, " B"]) -> Bool[Array, " B"]:
  """Whether an answer is exactly that number, or none for -1, and ends there."""
  return jnp.all(find_answer(acted) == jax.vmap(answer_tokens)(answers), 1)


def count_right_calls(acted: Acted, faultless: Trace) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
  """(calls of the faultless trace up to which everything was said alike, all of its calls)."""
  alike = jnp.cumprod(acted.tokens == faultless.tokens, 1) > 0
  calls = (faultless.tokens == DO) & faultless.own
  return jnp.sum(calls & alike, 1), jnp.sum(calls, 1)


def measure_answers(
  model: Model, worlds: World, goals: Goal, faultless: Trace, mask: Float[Array, " B"]
) -> dict[str, Mean]:
  """accuracy: answers that are right, of the agent and of the network alone; right_calls: of those of a faultless one,
  call for call and word for word; errors: calls of the agent that no tool takes, for each goal."""
  written = jax.vmap(write_goal)(goals)
  answers = jax.vmap(solve)(worlds, goals)
  acted = model.act(worlds, written.tokens, written.length)
  alone = model.act(worlds, written.tokens, written.length, "alone")
  right, calls = count_right_calls(acted, faultless)
  over = lambda values, count=1.0: Mean(jnp.sum(values * mask), jnp.sum(count * mask))
  return {
    "accuracy": over(is_right(acted, answers)),
    "alone_accuracy": over(is_right(alone, answers)),
    "right_calls": over(right, calls),
    "errors": over(acted.state.errors),
  }


def report_agent(model: Model, draw: Callable[[Key[Array, ""]], dict[str, Any]], directory: Path) -> dict[str, float]:
  """Answers by the number of calls that a goal takes, of new goals and tables; sums that a later goal recalls.

  accuracy_N: of goals that take N calls, with a second look-up where the first finds nothing; of the last N or more.
  session: right answers to the later goal, with the memory as the earlier one left it; session_emptied: with nothing
  in it. tried_again: right answers where the first look-up of a term finds nothing.
  """
  keys = jax.random.split(stream_key(root_key(_REPORT_SEED), "report"), _REPORTED)
  drawn = jax.jit(jax.vmap(draw))(keys)
  worlds, goals = drawn["world"], drawn["goal"]
  # Given, not closed over: XLA would fold what follows from constants while it compiles.
  pose = jax.jit(lambda worlds, goals: (jax.vmap(write_goal)(goals), jax.vmap(solve)(worlds, goals)))
  written, answers = pose(worlds, goals)
  acted = model.act(worlds, written.tokens, written.length)
  alone = model.act(worlds, written.tokens, written.length, "alone")
  right = {"with tools": np.asarray(is_right(acted, answers)), "alone": np.asarray(is_right(alone, answers))}
  count = np.minimum(np.asarray(count_calls(worlds, goals)), _MOST_CALLS)
  figures = {}
  for name, rows in right.items():
    prefix = "" if name == "with tools" else "alone_"
    figures |= {f"{prefix}accuracy_{n}": float(rows[count == n].mean()) for n in np.unique(count)}
  again = np.asarray(jnp.any((acted.tokens == _NOTHING) & ~acted.own, 1))
  if again.any():
    figures["tried_again"] = float(right["with tools"][again].mean())
  figures |= measure_sessions(model, worlds, goals)
  chosen = choose_trace(acted, goals, right["with tools"])
  acted = jax.device_get(acted)
  write_traces(acted, right["with tools"], np.asarray(answers), [chosen, *range(12)], directory / "trace.txt")
  draw_agent(model, figures, split_trace(acted, chosen), directory / "agent.png")
  return figures


@jax.jit
def count_calls(worlds: World, goals: Goal) -> Int[Array, " B"]:
  """Calls of a faultless agent that has all tools."""
  faultless = jax.vmap(imitate)(worlds, goals)
  return jnp.sum((faultless.tokens == DO) & faultless.own, 1)


def measure_sessions(model: Model, worlds: World, goals: Goal) -> dict[str, float]:
  """Goals that keep their sum, then, with other tables and in a fresh context, goals that recall it."""
  slot = goals.slot[:, 0]
  # The earlier goal: look-ups alone, with an empty memory.
  earlier = goals._replace(kind=jnp.full_like(goals.kind, LOOK_UP), save=slot)
  empty = worlds._replace(memory=jnp.full_like(worlds.memory, -1))
  kind = jnp.where(jnp.arange(goals.kind.shape[1]) == 0, RECALL, LOOK_UP)
  later = goals._replace(kind=jnp.broadcast_to(kind, goals.kind.shape), save=jnp.full_like(goals.save, -1))
  roll = lambda x: jnp.roll(x, 1, 0)
  tables = roll(worlds.table)

  @jax.jit
  def write(goals):
    found = jax.vmap(write_goal)(goals)
    return found.tokens, found.length

  first = model.act(empty, *write(earlier))
  kept = World(tables, first.state.world.memory)
  answer = jax.jit(jax.vmap(solve))
  right_memory = jnp.where(jnp.arange(len(SLOTS))[None] == slot[:, None], answer(empty, earlier)[:, None], -1)
  answers = answer(World(tables, right_memory), later)
  share = lambda memory: float(jnp.mean(is_right(model.act(World(tables, memory), *write(later)), answers)))
  return {"session": share(kept.memory), "session_emptied": share(empty.memory)}


def choose_trace(acted: Acted, goals: Goal, right: Bool[np.ndarray, " B"]) -> int:
  """One that shows much: of the right ones that with the most calls among those with a second try."""
  again = np.asarray(jnp.any((acted.tokens == _NOTHING) & ~acted.own, 1))
  return int(np.argmax(np.asarray(acted.state.calls) + 100 * right + 10 * again))


class Line(NamedTuple):
  """Words of a trace that belong together: what they are, whose context, and the words; a call with its result."""

  kind: str
  context: int
  words: list[str]
  own: list[bool]


def split_trace(acted: Acted, row: int) -> list[Line]:
  """Goal, plan, calls and answer, each a line; a task of two agents too."""
  lines: list[Line] = []
  for i in range(int(acted.length[row])):
    word, context, own = TOOL_WORDS[acted.tokens[row, i]], int(acted.context[row, i]), bool(acted.own[row, i])
    starts = word in ("goal", "task", "plan", "call", "answer") or not lines or lines[-1].context != context
    if starts:
      kind = {"goal": "goal", "task": "goal", "plan": "plan", "answer": "answer"}.get(word, "call")
      lines.append(Line(kind, context, [], []))
    lines[-1].words.append(word)
    lines[-1].own.append(own)
  return lines


def write_traces(acted: Acted, right: Any, answers: Any, rows: Sequence[int], path: Path) -> None:
  """In [ ] what the tools or the task put there; a worker's lines are indented."""
  told = ["[ ] was put there by tools; the rest was said", ""]
  for row in rows:
    for line in split_trace(acted, row):
      words = [word if own else f"[{word}]" for word, own in zip(line.words, line.own)]
      text = " ".join(words).replace("] [", " ")
      told.append("    " * (line.context > 0) + text)
    number = "none" if answers[row] < 0 else f"{answers[row]:03d}"
    told += [f"= {'right' if right[row] else f'wrong, expected {number}'}", ""]
  path.write_text("\n".join(told), encoding="utf-8")


def draw_agent(model: Model, figures: Mapping[str, float], lines: Sequence[Line], path: Path) -> None:
  """Left, right answers by the number of calls; right, one trace from top to bottom, coloured by what is said."""
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(1, 2, width=11.5, height=max(4.4, 0.27 * len(lines) + 1.2))
  bars, trace = axes[0]
  numbers = sorted(int(name.rpartition("_")[2]) for name in figures if name.startswith("accuracy_"))
  for shift, prefix, color, label in ((-0.2, "", "C0", "with tools"), (0.2, "alone_", "0.7", "answering at once")):
    heights = [100 * figures[f"{prefix}accuracy_{n}"] for n in numbers]
    bars.bar(np.array(numbers) + shift, heights, 0.38, color=color, label=label)
    for n, height in zip(numbers, heights):
      bars.text(n + shift, height + 1, f"{height:.0f}", ha="center", fontsize=8)
  place = numbers[-1] + 1.6
  for shift, name, color in ((-0.2, "session", "C2"), (0.2, "session_emptied", "0.7")):
    bars.bar(place + shift, 100 * figures[name], 0.38, color=color)
    bars.text(place + shift, 100 * figures[name] + 1, f"{100 * figures[name]:.0f}", ha="center", fontsize=8)
  counted = [f"{n} or more" if n == _MOST_CALLS else str(n) for n in numbers]
  ticks = [*counted, "recalled\n(grey: memory\nemptied)"]
  bars.set_xticks([*numbers, place], ticks)
  bars.set(
    xlabel="calls that the goal takes", ylabel="answers that are right (%)", ylim=(0, 118), yticks=range(0, 101, 20)
  )
  bars.set_title("new goals, numbers no training table had")
  bars.legend(frameon=False, loc="upper right", ncols=2, fontsize=9)
  trace.set_axis_off()
  trace.set(xlim=(0, 1), ylim=(len(lines) + 0.2, -1.2))
  for i, (name, color) in enumerate(_COLORS.items()):
    trace.text(0.02 + 0.19 * i, -0.9, name, color=color, fontsize=9, fontweight="bold", va="center")
  for row, line in enumerate(lines):
    spans = _color_words(line)
    x = 0.02 + 0.06 * (line.context > 0)
    for text, color in spans:
      trace.text(x, row, text, color=color, fontsize=8, family="monospace", va="center")
      x += 0.0126 * (len(text) + 1.5)
  save_figure(figure, path)


def _color_words(line: Line) -> list[tuple[str, str]]:
  """Stretches of a line with their colours."""
  spans: list[tuple[str, str]] = []
  for word, own in zip(line.words, line.own):
    color = _COLORS["result" if line.kind in ("call", "plan") and not own else line.kind]
    if spans and spans[-1][1] == color:
      spans[-1] = (f"{spans[-1][0]} {word}", color)
    else:
      spans.append((word, color))
  return spans


def encode_goals(goals: Sequence[str], room: int) -> tuple[Int[Array, "B G"], Int[Array, " B"]]:
  """Goals in the task's words. Raises InputError, one sentence, for another word, too many, or none at all."""
  if isinstance(goals, str) or not len(goals):
    found = "one text" if isinstance(goals, str) else "no goal"
    raise InputError(f"goals: found {found}, expected a list of one or more.")
  rows = np.full((len(goals), room), PAD, np.int32)
  for row, goal in zip(rows, goals):
    words = ["goal", *goal.split(), "act"]
    for word in words:
      if word not in ID:
        raise InputError(f"goals: {goal!r} has the word {word!r}: {nearest(word, TOOL_WORDS[2:])}")
    if not 4 <= len(words) <= room:
      raise InputError(f"goals: {goal!r} has {len(words) - 2} words, expected 2 to {room - 2}.")
    row[: len(words)] = [ID[word] for word in words]
  return jnp.asarray(rows), jnp.sum(jnp.asarray(rows) != PAD, 1)


def make_world(table: Mapping[str, Mapping[str, int]], memory: Mapping[str, int]) -> World:
  """Raises InputError for names that the tools do not know, and numbers that are not 0 to 999."""
  names = [name for pair in THINGS for name in pair]
  values, slots = np.full((2, len(names)), -1, np.int32), np.full(len(SLOTS), -1, np.int32)
  entries = [(column, name, n) for column, rows in table.items() for name, n in rows.items()]
  for column, name, number in entries:
    for word, known in ((column, ("price", "stock")), (name, names)):
      if word not in known:
        raise InputError(f"table: found {word!r}: {nearest(word, known)}")
    values[("price", "stock").index(column), names.index(name)] = _three_digits(number, f"table: {column} of {name}")
  for name, number in memory.items():
    if name not in SLOTS:
      raise InputError(f"memory: found {name!r}: {nearest(name, SLOTS)}")
    slots[SLOTS.index(name)] = _three_digits(number, f"memory: {name}")
  return World(jnp.asarray(values), jnp.asarray(slots))


def _three_digits(number: int, said: str) -> int:
  if not 0 <= number < 1000:
    raise InputError(f"{said} is {number}: expected 0 to 999.")
  return number
