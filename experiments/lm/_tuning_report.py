"""What a tuned model makes of the test texts: figures of classes, floors, tuning.png, mistakes.txt."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from experiments.lm._tuning_floors import measure_floors, span_figures
from experiments.lm._tuning_model import Tuned, softmax
from experiments.lm._tuning_tasks import Question
from experiments.sequence.char_lm import token_texts
from mlnotes.data import fixed_subset

_LINES, _COLUMNS, _MISTAKES = 14, 100, 200
_TITLE = 11  # letters of the title in an inch, the room beside the lines left out
_RIGHT, _WRONG, _END = ((0.55, 0.8, 0.55), (0.95, 0.5, 0.45), (0.45, 0.6, 0.95))


class Line(NamedTuple):
  """A text of the picture: of each character the colour behind it, and whether it is bold."""

  text: str
  colour: Float[np.ndarray, "T 3"]
  bold: Bool[np.ndarray, " T"]
  said: str


def write_report(title: str, question: Question, model: Tuned, directory: Path) -> dict[str, float]:
  arrays = question.test.arrays
  outputs = model.outputs(arrays["tokens"], arrays["length"])
  report = {"sentence": _report_sentences, "token": _report_tokens, "span": _report_spans}[question.kind.name]
  figures, lines, mistakes, told = report(question, model, outputs)
  draw_lines(lines, f"{title}: {told}", directory / "tuning.png")
  (directory / "mistakes.txt").write_text("\n".join(mistakes) + "\n", encoding="utf-8")
  return figures | measure_floors(question)


def _pieces(model: Tuned, tokens: Int[np.ndarray, " T"]) -> list[str]:
  """What each token adds to the text, on one line."""
  return token_texts(model.tokenizer, tokens)


def blend(share: Float[np.ndarray, " T"], colour: Sequence[float]) -> Float[np.ndarray, "T 3"]:
  """White where the share is 0, the colour where it is 1."""
  return 1 - np.asarray(share)[:, None] * (1 - np.asarray(colour)[None])


def _spread(pieces: Sequence[str], values: np.ndarray) -> np.ndarray:
  """The value of each token for each of its characters."""
  return np.repeat(values, [len(piece) for piece in pieces], axis=0)


# -- a class of a text -------------------------------------------------------------------------------------------------


def _report_sentences(question: Question, model: Tuned, logits: Float[np.ndarray, "N K"]):
  arrays, classes = question.test.arrays, question.classes
  label, probability = arrays["label"], softmax(logits)
  said = probability.argmax(-1)
  figures = {
    f"accuracy_{_slug(name)}": float(np.mean(said[label == i] == i))
    for i, name in enumerate(classes)
    if np.any(label == i)
  }
  sure = probability.max(-1)
  order = np.argsort(-sure, kind="stable")
  wrong = order[said[order] != label[order]]
  right = order[said[order] == label[order]]
  texts = [model.tokenizer.decode(row[:size]) for row, size in zip(arrays["tokens"], arrays["length"])]
  lines = []
  for i in [*wrong[: _LINES // 2], *right[: _LINES - min(len(wrong), _LINES // 2)]]:
    text = texts[i].replace("\n", "¶").replace("\t", " ")
    colour = blend(np.full(len(text), sure[i]), _WRONG if said[i] != label[i] else _RIGHT)
    if question.half:
      marked = np.arange(len(text)) >= len(model.tokenizer.decode(arrays["tokens"][i, : question.half]))
    else:
      marked = mark_words(text, -1 if question.place is None else question.place[i])
    lines.append(Line(text, colour, marked, f"{classes[said[i]]} {sure[i]:.2f}"))
  mistakes = [f"{len(wrong)} of {len(label)} are said wrong, the surest first"]
  for i in wrong[:_MISTAKES]:
    mistakes.append(f"said {classes[said[i]]} ({sure[i]:.3f}), is {classes[label[i]]}: {texts[i]!r}")
  bold = "; bold: what was exchanged" if question.place is not None else ""
  bold = "; bold: the second passage" if question.half else bold
  return figures, lines, mistakes, f"the surest mistakes, red, and the surest that are right{bold}"


def _slug(name: str) -> str:
  return re.sub(r"\W+", "_", name)


def mark_words(text: str, place: int) -> Bool[np.ndarray, " T"]:
  """Word number `place` and the next one; none where it is negative. A ¶ parts words, being a line break."""
  bold = np.zeros(len(text), bool)
  if place >= 0:
    for word in list(re.finditer(r"[^\s¶]+", text))[place : place + 2]:
      bold[word.start() : word.end()] = True
  return bold


# -- a class of each token ---------------------------------------------------------------------------------------------


def _report_tokens(question: Question, model: Tuned, logits: Float[np.ndarray, "N T K"]):
  arrays = question.test.arrays
  label, weight = arrays["label"], arrays["weight"] > 0
  probability = softmax(logits)
  said = probability.argmax(-1)
  figures = {
    f"accuracy_{_slug(name)}": float(np.mean(said[weight & (label == i)] == i))
    for i, name in enumerate(question.classes)
    if np.any(weight & (label == i))
  }
  true, claimed = np.sum(weight & (said == 1) & (label == 1)), np.sum(weight & (said == 1))
  if claimed:
    figures["precision"] = float(true / claimed)
  pieces = [_pieces(model, row[:size]) for row, size in zip(arrays["tokens"], arrays["length"])]
  write = lambda row, capital: "".join(x.upper() if up else x for x, up in zip(row, capital))
  lines = []
  for i in fixed_subset(len(label), _LINES):
    row, size = pieces[i], len(pieces[i])
    share = np.where(weight[i], probability[i, :, 1], 0)[:size]
    off = weight[i, :size] & (said[i, :size] != label[i, :size])
    colour = np.where(off[:, None], blend(np.maximum(share, 0.5), _WRONG), blend(share, _RIGHT))
    bold = _spread(row, label[i, :size] > 0)
    lines.append(Line(write(row, label[i]), _spread(row, colour), bold, f"{off.sum()} wrong"))
  wrong = np.sum(weight & (said != label), 1)
  mistakes = [f"{int(wrong.sum())} of {int(weight.sum())} are said wrong; the texts with most of them first"]
  for i in np.argsort(-wrong, kind="stable")[:_MISTAKES]:
    if wrong[i]:
      mistakes += [f"said  {write(pieces[i], said[i] * weight[i])}", f"is    {write(pieces[i], label[i])}", ""]
  name = question.classes[1]
  return figures, lines, mistakes, f"green: said to be {name}, the darker the surer; red: said wrong; bold: is {name}"


# -- a span ------------------------------------------------------------------------------------------------------------


def _report_spans(question: Question, model: Tuned, logits: Any):
  arrays = question.test.arrays
  start, end = model.spans(logits)
  exact, f1 = span_figures(start, end, arrays)
  chances = [softmax(x) for x in logits]
  places = np.arange(arrays["tokens"].shape[1])
  inside = (places >= arrays["start"][:, None]) & (places <= arrays["end"][:, None])
  pieces = [_pieces(model, row) for row in arrays["tokens"]]
  lines = []
  for i in fixed_subset(len(start), _LINES):
    starts, ends = (blend(np.sqrt(chance[i]), colour) for chance, colour in zip(chances, (_RIGHT, _END)))
    right = "right" if (start[i], end[i]) == (arrays["start"][i], arrays["end"][i]) else "wrong"
    lines.append(Line("".join(pieces[i]), _spread(pieces[i], starts + ends - 1), _spread(pieces[i], inside[i]), right))
  wrong = (start != arrays["start"]) | (end != arrays["end"])
  sure = chances[0][np.arange(len(start)), start] * chances[1][np.arange(len(start)), end]
  order = [i for i in np.argsort(-sure, kind="stable") if wrong[i]]
  mistakes = [f"{len(order)} of {len(start)} are said wrong, the surest first; [ ] is what was said, {{ }} what is"]
  for i in order[:_MISTAKES]:
    marked = list(pieces[i])
    for first, last, marks in ((arrays["start"][i], arrays["end"][i], "{}"), (start[i], end[i], "[]")):
      marked[first], marked[last] = marks[0] + marked[first], marked[last] + marks[1]
    mistakes.append("".join(marked))
  return (
    {"exact": exact, "f1": f1}, lines, mistakes, "bold: from elsewhere; green: said to begin here, blue: to end here"
  )  # fmt: skip


def draw_lines(lines: Sequence[Line], title: str, path: Path) -> None:
  """Each text on a line, what was said of it beside."""
  from mlnotes.engine.plot import as_text, new_figure, save_figure

  columns = min(_COLUMNS, max(len(line.text) for line in lines))
  width = 3.0 + 0.085 * columns
  figure, axes = new_figure(width=width, height=1.0 + 0.26 * len(lines))
  axis, sheet = axes[0, 0], np.ones((len(lines), columns, 3))
  for i, line in enumerate(lines):
    size = min(len(line.text), columns)
    sheet[i, :size] = line.colour[:size]
    for j in range(size):
      weight, tone = ("bold", "black") if line.bold[j] else ("normal", "#333333")
      axis.text(j, i, as_text(line.text[j]), fontsize=8, family="monospace", ha="center", va="center", weight=weight,
                color=tone)  # fmt: skip
  axis.imshow(np.clip(sheet, 0, 1), aspect="auto", interpolation="nearest")
  axis.set_xticks([])
  axis.set_yticks(range(len(lines)), [as_text(line.said) for line in lines], fontsize=8)
  for spine in axis.spines.values():
    spine.set_visible(False)
  axis.tick_params(length=0)
  axis.set_title(as_text(textwrap.fill(title, int(_TITLE * width))), fontsize=9)
  save_figure(figure, path)
