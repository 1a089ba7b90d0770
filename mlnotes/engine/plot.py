"""The pictures that reports share. Matplotlib is imported when one is drawn, without a display."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mlnotes.engine.progress import warn
from mlnotes.engine.record import read_metrics

# Fonts with letters that Matplotlib's own lacks: what it does not find in one it looks for in the next that is there.
_MORE_LETTERS = (
  "Noto Sans Mono CJK SC", "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei",
  "WenQuanYi Micro Hei", "Droid Sans Fallback", "PingFang SC", "Hiragino Sans GB", "Arial Unicode MS", "Noto Emoji",
  "Symbola",
)  # fmt: skip


@contextlib.contextmanager
def plain_style() -> Iterator[None]:
  """Within it pictures are drawn as Matplotlib draws by itself, whatever a matplotlibrc or MPLBACKEND asks for."""
  backend = os.environ.pop("MPLBACKEND", None)  # one that is not there is an error of the import
  try:
    import matplotlib
  finally:
    if backend is not None:
      os.environ["MPLBACKEND"] = backend
  with matplotlib.rc_context():
    matplotlib.rcdefaults()
    yield


def as_text(name: str) -> str:
  """`name` for a picture: a dollar is a dollar, not the beginning of a formula."""
  return name.replace("$", r"\$")


def new_figure(rows: int = 1, columns: int = 1, *, width: float, height: float) -> tuple[Any, np.ndarray]:
  """(figure, axes[rows, columns]) in inches, independent of any global Matplotlib state."""
  with plain_style():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure: Any, path: Path) -> None:
  """Writes the picture. One that cannot be drawn is a warning that names it; one that cannot be written an OSError.

  Letters that no font here has are boxes, of which a line on standard error tells.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  with plain_style(), _telling_boxes(path):
    from matplotlib.font_manager import get_font_names
    from matplotlib.text import Text

    more = sorted(set(_MORE_LETTERS).intersection(get_font_names()), key=_MORE_LETTERS.index)
    for text in figure.findobj(Text):
      text.set_usetex(False)
      if not text.get_text().isascii():
        text.set_fontfamily([*text.get_fontfamily(), *more])
    try:
      try:
        figure.savefig(path)
      except ValueError:  # such as a class called $$, which is no formula
        for text in figure.findobj(Text):
          text.set_parse_math(False)
        figure.savefig(path)
    except OSError:
      raise
    except Exception as error:
      path.unlink(missing_ok=True)
      warn(f"{path} could not be drawn: {(str(error).strip() or type(error).__name__).splitlines()[0]}.")


@contextlib.contextmanager
def _telling_boxes(path: Path) -> Iterator[None]:
  """One line in the place of a warning for each letter that no font has."""
  with warnings.catch_warnings(record=True) as met:
    warnings.filterwarnings("always", "Glyph .* missing from", UserWarning)
    yield
  boxes = {str(warning.message) for warning in met if str(warning.message).startswith("Glyph ")}
  for warning in met:
    if not str(warning.message).startswith("Glyph "):
      warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
  if boxes:
    letters = f"{len(boxes)} letter{'s are boxes' if len(boxes) > 1 else ' is a box'} in {path.name}"
    print(f"note: {letters}: no font of this machine has them; Noto Sans CJK has many.", file=sys.stderr, flush=True)


def show_images(axis: Any, images: np.ndarray, columns: int, *, gap: int = 1) -> None:
  """Tiles images (N, H, W, C) with values in [0, 1] row by row on `axis`, without ticks.

  C is 1 (grey), 3 (RGB), 2 or 4 (the same with opacity, over white); of more channels the first three are shown.
  """
  if images.shape[-1] in (2, 4):
    images = 1 - images[..., -1:] * (1 - images[..., :-1])
  images = images[..., :3]
  count, height, width, channels = images.shape
  rows = -(-count // columns)
  sheet = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, channels))
  for i, image in enumerate(images):
    top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
    sheet[top : top + height, left : left + width] = image
  sheet = sheet[..., 0] if channels == 1 else sheet
  axis.imshow(np.clip(sheet, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
  axis.set_xticks([])
  axis.set_yticks([])
  for spine in axis.spines.values():
    spine.set_visible(False)


def sheet_height(width: float, images: Any, columns: int) -> float:
  """How high `show_images` draws so many images (N, H, W, C) where they are `width` wide."""
  count, height, across = images.shape[:3]
  return width * (-(-count // columns) * height) / (columns * across)


def plot_curves(directory: Path, unit: str = "update", per_update: int = 1, first: str = "loss") -> None:
  """Draws `curves.png`: each metric over the updates, training and evaluation together, with spread over seeds.

  The axis counts `unit`s, of which an update has `per_update`; the metric called `first` is drawn first.
  """
  lines = read_metrics(directory / "metrics.jsonl")
  # One that is finite nowhere has no panel: it would be empty, on a scale of nothing.
  names = {
    name
    for line in lines
    for name, value in line.items()
    if name.startswith(("train/", "eval/")) and name.count("/") == 1 and value is not None
  }
  metrics = sorted({name.partition("/")[2] for name in names}, key=lambda metric: (metric != first, metric))
  if not metrics:
    return
  columns = min(3, len(metrics))
  rows = -(-len(metrics) // columns)
  figure, axes = new_figure(rows, columns, width=4.2 * columns, height=3.0 * rows)
  for axis, metric in zip(axes.flat, metrics):
    for split, style in (("train", "-"), ("eval", "o-")):
      _plot_metric(axis, lines, f"{split}/{metric}", style, per_update)
    axis.set_title(as_text(metric))
    axis.set_xlabel(unit)
    # The same updates in every panel, also in one of a single point; few ticks, so that large numbers stay apart.
    axis.set_xlim(0, 1.04 * per_update * lines[-1]["step"])
    axis.locator_params(axis="x", nbins=4)
    axis.legend(frameon=False)
  for axis in axes.flat[len(metrics) :]:
    axis.remove()
  save_figure(figure, directory / "curves.png")


def _plot_metric(axis: Any, lines: list[dict[str, Any]], name: str, style: str, scale: int) -> None:
  points = [(line["step"], line[name], line.get(f"{name}/std") or 0.0) for line in lines if line.get(name) is not None]
  if points:
    step, mean, std = np.array(points).T
    style = style if len(step) > 1 else "o"  # a line of one point would not show
    (line,) = axis.plot(scale * step, mean, style, markersize=3, linewidth=1.2, label=name.partition("/")[0])
    axis.fill_between(scale * step, mean - std, mean + std, alpha=0.2, color=line.get_color(), linewidth=0)
