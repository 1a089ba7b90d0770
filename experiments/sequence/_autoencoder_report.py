"""Figures, texts and the picture that an auto-encoder of sentences leaves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from experiments.sequence._seq2seq import to_texts
from experiments.sequence._translation_report import write_worst
from mlnotes.data import Pairs, fixed_subset

_BETWEEN = 7


def write_report(pairs: Pairs, model: Any, most: int, directory: Path) -> dict[str, float]:
  """`model` encodes texts and decodes codes."""
  examples = pairs.test.read(fixed_subset(len(pairs.test), most))
  lengths = examples["source_length"]
  texts = to_texts(pairs.tokenizer, examples["source"], lengths)
  codes = model.encode(texts)
  outputs = model.decode(codes)
  codes = np.asarray(codes)
  exact = np.array([a == b for a, b in zip(texts, outputs)])
  write_worst(texts, outputs, texts, exact, directory / "reconstructions.txt")
  draw_codes(codes, lengths, exact, directory / "codes.png")
  lines = between(model, texts[0], texts[-1])
  (directory / "between.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
  return {
    "given_back": float(exact.mean()),
    "given_back_longest_half": float(exact[lengths >= np.median(lengths)].mean()),
  }


def between(model: Any, first: str, last: str) -> list[str]:
  """What is read from codes on the line between those of two texts."""
  ends = np.asarray(model.encode([first, last]))
  shares = np.linspace(0, 1, _BETWEEN, dtype=np.float32)[:, None]
  texts = model.decode((1 - shares) * ends[:1] + shares * ends[1:])
  return [f"{share:.2f}  {text}" for share, text in zip(shares[:, 0], texts)]


def principal(codes: Float[np.ndarray, "N F"]) -> tuple[Float[np.ndarray, "N 2"], float]:
  """(coordinates along the two main directions, their share of the variance)."""
  centred = codes - codes.mean(0)
  u, s, _ = np.linalg.svd(centred, full_matrices=False)
  u = np.pad(u[:, :2] * s[:2], ((0, 0), (0, max(0, 2 - len(s)))))
  return u, float(np.sum(s[:2] ** 2) / max(np.sum(s**2), 1e-12))


def by_length(lengths: Int[np.ndarray, " N"], exact: Sequence[bool]) -> list[tuple[str, float, int]]:
  """(range of lengths, share that is given back, sentences) of up to six parts of equal size."""
  order = np.argsort(lengths, kind="stable")
  parts = [part for part in np.array_split(order, min(6, len(order))) if len(part)]
  right = np.asarray(exact)
  return [(f"{lengths[p].min()}-{lengths[p].max()}", float(right[p].mean()), len(p)) for p in parts]


def draw_codes(codes: Float[np.ndarray, "N F"], lengths: Int[np.ndarray, " N"], exact: Any, path: Path) -> None:
  """Left: a dot for each sentence, coloured by length, a cross where it is lost. Right: share given back by length."""
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(1, 2, width=10.5, height=4.2)
  left, right = axes[0]
  places, share = principal(codes)
  for marker, chosen, label in (("o", exact, "given back"), ("x", ~exact, "not")):
    if chosen.any():
      dots = left.scatter(*places[chosen].T, c=lengths[chosen], s=16, marker=marker, cmap="viridis", label=label,
                          vmin=lengths.min(), vmax=lengths.max())  # fmt: skip
  figure.colorbar(dots, ax=left, label="tokens of the sentence")
  left.set_title(f"codes by their two main directions, {100 * share:.0f} % of the variance", fontsize=10)
  left.legend(frameon=False, fontsize=8)
  parts = by_length(lengths, exact)
  right.bar(range(len(parts)), [100 * value for _, value, _ in parts], color="C0")
  for i, (_, value, _) in enumerate(parts):
    right.text(i, 100 * value + 1, f"{100 * value:.0f}", ha="center", fontsize=8)
  right.set_xticks(range(len(parts)), [name for name, _, _ in parts], fontsize=8)
  right.set(ylim=(0, 110), xlabel="tokens of the sentence", ylabel="given back without a mistake (%)")
  figure.suptitle("sentences of the test split through the final state", fontsize=11)
  save_figure(figure, path)
