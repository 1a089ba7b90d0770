"""Figures and the picture of what a mixture's experts are given."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

KINDS = ("lower case", "capitals", "digits", "spaces", "line ends", "other signs")


def loads_of(choices: Int[np.ndarray, "N T k"], experts: int) -> Float[np.ndarray, "N E"]:
  """The share of all choices that each expert of each layer gets."""
  return np.stack([np.bincount(layer.reshape(-1), minlength=experts) / layer.size for layer in choices])


def measure_choices(choices: Int[np.ndarray, "N T k"], experts: int) -> dict[str, float]:
  """How even the loads are, of the layer where they are least so.

  imbalance:          max |E load - 1|: 0 where every expert gets the same, E / k - 1 where k of them get all
  effective_experts:  exp of the loads' entropy: E where they are even, k where k experts get all
  """
  loads = loads_of(choices, experts)
  entropy = -np.sum(loads * np.log(np.where(loads > 0, loads, 1)), 1)
  return {
    "imbalance": float(np.max(np.abs(experts * loads - 1))),
    "effective_experts": float(np.exp(entropy).min()),
  }


def kind_of_token(text: str) -> int:
  """Which of KINDS its first character is of; the end of a document, which has none, ends a line."""
  first = text[:1]
  tests = (str.islower, str.isupper, str.isdigit, lambda c: c.isspace() and c != "\n", lambda c: c in ("", "\n"))
  return next((i for i, test in enumerate(tests) if test(first)), len(tests))


def draw_experts(choices: Int[np.ndarray, "N T k"], words: Sequence[str], experts: int, path: Path) -> None:
  """A row for each layer. Left: the load of each expert. Right: where tokens of each kind go."""
  from mlnotes.engine.plot import new_figure, save_figure

  kinds = np.array([kind_of_token(word) for word in words])
  loads = loads_of(choices, experts)
  layers = len(loads)
  figure, axes = new_figure(layers, 2, width=5.0 + 0.75 * experts, height=0.6 + 2.7 * layers)
  for layer, (left, right) in enumerate(axes):
    relative = experts * loads[layer]
    left.bar(range(experts), relative, color=["C3" if load < 0.5 else "C0" for load in relative], width=0.7)
    left.axhline(1, color="0.3", linewidth=1, linestyle="--")
    left.set(ylabel=f"layer {layer + 1}: load / even share", ylim=(0, 1.1 * max(relative.max(), 1.5)))
    used = int(np.sum(relative >= 0.5))
    left.set_title(f"{used} of {experts} get half an even share or more; the largest {relative.max():.2f} of it",
                   fontsize=9)  # fmt: skip
    shares = np.stack([loads_of(choices[layer : layer + 1, kinds == kind], experts)[0] if np.any(kinds == kind)
                       else np.zeros(experts) for kind in range(len(KINDS))])  # fmt: skip
    right.imshow(shares, cmap="Blues", vmin=0, vmax=max(0.5, shares.max()), aspect="auto")
    for row, column in np.ndindex(shares.shape):
      if shares[row, column] >= 0.005:
        dark = shares[row, column] > 0.6 * max(0.5, shares.max())
        right.text(column, row, f"{100 * shares[row, column]:.0f}", ha="center", va="center", fontsize=7,
                   color="white" if dark else "black")  # fmt: skip
    right.set_yticks(range(len(KINDS)), KINDS, fontsize=8)
    right.set_title("% of each kind of token that an expert takes", fontsize=9)
    for axis in (left, right):
      axis.set_xticks(range(experts), [str(i + 1) for i in range(experts)], fontsize=8)
  for axis in axes[-1]:
    axis.set_xlabel("expert")
  figure.suptitle("what the experts of each layer are given of the test text", fontsize=11)
  save_figure(figure, path)
