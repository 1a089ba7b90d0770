"""The pictures that reports share. Matplotlib is imported when one is drawn, without a display."""

from pathlib import Path
from typing import Any

import numpy as np


def new_figure(rows: int = 1, columns: int = 1, *, width: float, height: float) -> tuple[Any, np.ndarray]:
  """(figure, axes[rows, columns]) in inches, independent of any global Matplotlib state."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
  return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure: Any, path: Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path)


def show_images(axis: Any, images: np.ndarray, columns: int, *, gap: int = 1) -> None:
  """Tiles images (N, H, W, C) with values in [0, 1] row by row on `axis`, without ticks. C is 1 or 3."""
  count, height, width, channels = images.shape
  rows = -(-count // columns)
  sheet = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, channels))
  for i, image in enumerate(images):
    top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
    sheet[top : top + height, left : left + width] = image
  axis.imshow(np.squeeze(np.clip(sheet, 0, 1)), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
  axis.set_xticks([])
  axis.set_yticks([])
  for spine in axis.spines.values():
    spine.set_visible(False)
