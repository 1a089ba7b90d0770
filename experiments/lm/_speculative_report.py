"""What lm.speculative shows: tokens of a call and speed over the number of drafted tokens, and who wrote a text."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lm._text import decode_text
from experiments.sequence.char_lm import token_texts
from mlnotes.data import Corpus
from mlnotes.lm import Speculated, expected_tokens

_COLUMNS, _ROWS = 64, 6
# Of the prompt, what the draft wrote and was kept, what the target wrote.
_COLORS = {"the prompt": "#ffffff", "the draft's, kept": "#a6dba0", "the target's": "#fdae6b"}


def write_texts(corpus: Corpus, prompt: int, texts: Sequence[Speculated], path: Path) -> None:
  """Each text, with brackets around what the draft has written."""
  found = []
  for text in texts:
    tokens, own = np.asarray(text.tokens), np.asarray(text.of_draft)
    ends = [0, *(np.flatnonzero(own[1:] != own[:-1]) + 1).tolist(), len(tokens)]
    parts = [(decode_text(corpus.tokenizer, tokens[a:b], corpus.end), own[a]) for a, b in pairwise(ends)]
    found.append("".join(f"[{part}]" if draft else part for part, draft in parts))
  line = f"\n{'-' * 40}\n"
  path.write_text(
    f"Prompts of {prompt} tokens; in brackets what the draft wrote{line}{line.join(found)}\n", encoding="utf-8"
  )


def draw(
  corpus: Corpus, figures: Mapping[str, Any], drafted: Sequence[int], prompt: int, text: Speculated, path: Path
) -> None:
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(2, 2, width=10.0, height=5.6)
  of = lambda name: [figures[f"drafted_{g}/{name}"] for g in drafted]
  tokens, speed = axes[0]
  fine = np.arange(1, max(drafted) + 1)
  overlap, best = figures["overlap"], int(figures["best_drafted"])
  tokens.plot(fine, fine + 1, color="0.75", linewidth=1, linestyle=":", label="if all were accepted")
  tokens.plot(fine, [float(expected_tokens(overlap, int(g))) for g in fine], color="C0",
              label=r"$(1 - a^{g+1})/(1 - a)$, " f"a = {overlap:.2f}")  # fmt: skip
  tokens.plot(drafted, of("tokens_per_call"), "o", color="C3", label="measured")
  tokens.set(title="tokens that a call of the target gives", ylim=(0.9, None))
  speed.axhline(1, color="0.6", linewidth=1)
  speed.text(1, 1, "the target alone", color="0.4", fontsize=8, va="bottom", transform=speed.get_yaxis_transform(),
             ha="right")  # fmt: skip
  ratio = figures["cost_ratio"]
  speed.plot(drafted, of("expected_speedup"), color="C0", label=f"divided by g c + 1, c = {ratio:.2f}")
  speed.plot(drafted, of("expected_speedup_of_calls"), color="C0", linestyle="--",
             label="also by what a call of g + 1 tokens costs")  # fmt: skip
  speed.plot(drafted, of("speedup"), "o", color="C3", label="measured")
  speed.set(
    title=f"times as fast as the target alone; {best} drafted: {figures['best_speedup']:.2f}",
    ylim=(0, 1.1 * max(1.1, *of("speedup"), *of("expected_speedup"))),
  )
  for axis in axes[0]:
    axis.set_xlabel("tokens drafted ahead of each call, g")
    axis.set_xticks(drafted)
    axis.legend(frameon=False, fontsize=8)
  grid = axes[1, 0].get_gridspec()
  grid.set_height_ratios((3, 1))
  for axis in axes[1]:
    axis.remove()
  _draw_text(corpus, prompt, text, best, figure.add_subplot(grid[1, :]))
  save_figure(figure, path)


def _draw_text(corpus: Corpus, prompt: int, text: Speculated, drafted: int, axis: Any) -> None:
  """A cell for each letter, coloured by who wrote it."""
  from matplotlib.colors import to_rgb
  from matplotlib.patches import Patch

  from mlnotes.engine.plot import as_text

  own = np.asarray(text.of_draft)
  writers = ["the prompt" if i < prompt else "the draft's, kept" if own[i] else "the target's" for i in range(len(own))]
  pieces = token_texts(corpus.tokenizer, np.asarray(text.tokens))
  cells = [(letter, writer) for piece, writer in zip(pieces, writers) for letter in piece][: _COLUMNS * _ROWS]
  rows = -(-len(cells) // _COLUMNS)
  sheet = np.ones((rows * _COLUMNS, 3))
  sheet[: len(cells)] = [to_rgb(_COLORS[writer]) for _, writer in cells]
  axis.imshow(sheet.reshape(rows, _COLUMNS, 3), aspect="auto")
  for i, (letter, _) in enumerate(cells):
    row, column = divmod(i, _COLUMNS)
    axis.text(column, row, as_text(letter), fontsize=8, family="monospace", ha="center", va="center")
  axis.axis("off")
  axis.set_title(f"who wrote a text, {drafted} drafted ahead of each call", fontsize=10)
  patches = [Patch(facecolor=color, edgecolor="0.6", label=name) for name, color in _COLORS.items()]
  axis.legend(handles=patches, ncols=3, frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.02))
