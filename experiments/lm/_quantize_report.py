"""The picture of lm.quantize: what each form of the numbers loses, over the bits, and the bytes that it takes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

ALLOWED = 0.01  # nats that 8 bits may lose

_EVEN = 1e-3  # nats below which the axis of the bits is even

TITLES = {
  "weights_8": "weights in 8 bits",
  "products": "weights and inputs,\noutliers apart",
  "plain": "weights and inputs,\nno outliers apart",
  "cache": "cache in 8 bits",
  "all": "weights, inputs,\nand cache",
}


def _signed(rise: float) -> str:
  """With four digits where it is small, 0 with no sign of its own."""
  return f"{round(rise, 4) + 0.0:+.4f}" if abs(rise) < 0.1 else f"{rise:+.2f}"


def draw(found: Mapping[str, Mapping[str, float]], bits: Sequence[int], outliers: float, path: Path) -> None:
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(1, 3, width=13.0, height=3.9)
  forms, curve, size = axes[0]
  names = [name for name in TITLES if name in found]
  for row, name in enumerate(names):
    rise, error = found[name]["rise"], found[name]["rise_error"]
    forms.errorbar(rise, row, xerr=2 * error, fmt="o", color="C0", capsize=3)
    forms.text(rise, row - 0.22, _signed(rise), ha="center", fontsize=8)
  forms.axvline(0, color="0.6", linewidth=1)
  forms.axvline(ALLOWED, color="C3", linestyle="--", linewidth=1)
  forms.text(ALLOWED, -0.75, f"{ALLOWED:g} nats ", color="C3", fontsize=8, ha="right", va="center")
  forms.set_yticks(range(len(names)), [TITLES[name] for name in names])
  least = min([0.0, *(found[name]["rise"] for name in names)])
  most = max([ALLOWED, *(found[name]["rise"] for name in names)])
  forms.set(xlim=(least - 0.1 * (most - least), most + 0.15 * (most - least)), ylim=(len(names) - 0.4, -1.0))
  forms.locator_params(axis="x", nbins=4)
  forms.set(
    xlabel="rise of the loss, nats a token", title=f"8 bits beside {found['float']['loss']:.3f} nats in float32"
  )

  ordered = sorted(bits)
  rises = np.array([found[f"weights_{b}"]["rise"] for b in ordered])
  curve.axhline(0, color="0.6", linewidth=1)
  curve.plot(ordered, rises, "o-", color="C0")
  for b, rise in zip(ordered, rises):
    curve.annotate(_signed(rise), (b, rise), xytext=(0, 7), textcoords="offset points", fontsize=8, ha="center")
  curve.axhline(ALLOWED, color="C3", linestyle="--", linewidth=1)
  curve.set_yscale("symlog", linthresh=_EVEN)  # a rise that is none comes out on either side of 0
  curve.set(xlabel="bits of a weight", ylabel="rise of the loss, nats a token", title="weights alone, in fewer bits")
  curve.set(xlim=(min(ordered) - 0.6, max(ordered) + 0.6))
  curve.set_ylim(min(2 * rises.min(), -_EVEN), 4 * max(rises.max(), ALLOWED))
  curve.set_xticks(ordered)

  weights = {"float32": found["float"]["weight_bytes"]}
  weights |= {f"{b} bits": found[f"weights_{b}"]["weight_bytes"] for b in (8, 4) if f"weights_{b}" in found}
  if len(weights) == 1:
    weights["8 bits"] = found["all"]["weight_bytes"]
  caches = {"float32": found["float"]["cache_bytes"], "8 bits": found["cache"]["cache_bytes"]}
  row, ticks = 0, []
  for what, sizes in (("weights", weights), ("cache of a window", caches)):
    whole = sizes["float32"]
    for name, value in sizes.items():
      size.barh(row, value / whole, color="0.6" if name == "float32" else "C0")
      size.text(
        max(1, value / whole), row, f" {value / 1e6:.2f} MB, {100 * value / whole:.0f} %", va="center", fontsize=8
      )
      ticks.append((row, f"{what}, {name}"))
      row += 1
    row += 0.6
  size.set_yticks(*zip(*ticks))
  size.axvline(0.5, color="C3", linestyle="--", linewidth=1, zorder=0)
  size.set(xlim=(0, 1.7), ylim=(row - 0.9, -0.7), xlabel="part of float32's bytes", title="memory")
  size.set_xticks([0, 0.5, 1])
  save_figure(figure, path)
