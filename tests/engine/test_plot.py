"""Pictures are drawn whatever Matplotlib has been told elsewhere, and whatever things are called."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from mlnotes.engine import plot, progress
from mlnotes.engine.plot import as_text, new_figure, plain_style, plot_curves, save_figure, sheet_height, show_images

ROOT = Path(__file__).parents[2]


def draw(path, name="name"):
  figure, axes = new_figure(width=3.0, height=2.0)
  axes[0, 0].plot([1, 2], [1, 3], label=name)
  axes[0, 0].set_title(name)
  axes[0, 0].set_yticks([1, 2], [name, "other"])
  axes[0, 0].legend()
  save_figure(figure, path)
  return path.read_bytes()


def test_pictures_are_the_same_whatever_matplotlib_is_told(tmp_path):
  plain = draw(tmp_path / "plain.png")
  with matplotlib.rc_context({"text.usetex": True, "axes.facecolor": "red", "font.size": 30, "savefig.format": "pdf"}):
    assert draw(tmp_path / "told.png") and not progress.take_warnings()
    with plain_style():
      assert draw(tmp_path / "told.png") == plain
    assert matplotlib.rcParams["text.usetex"]  # what the user has set stays


def test_a_backend_that_is_not_there_does_not_matter(tmp_path):
  draw_one = "figure, _ = new_figure(width=3.0, height=2.0); save_figure(figure, Path(sys.argv[1]))"
  code = f"import sys; from pathlib import Path; from mlnotes.engine.plot import new_figure, save_figure; {draw_one}"
  for backend in ("module://not_installed", "no such backend"):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": backend}
    done = subprocess.run(
      [sys.executable, "-c", code, str(tmp_path / "x.png")], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.png").exists()
    (tmp_path / "x.png").unlink()


@pytest.mark.parametrize("name", ["$$", "$", "a$b$", r"\frac$", "$\\frac$", "^_{}%#&", "日本"])
def test_whatever_things_are_called(name, tmp_path):
  assert draw(tmp_path / "x.png", name) and not progress.take_warnings()
  assert draw(tmp_path / "y.png", as_text(name)) and not progress.take_warnings()


def test_letters_without_a_font_are_told_once_and_found_in_another(tmp_path, capsys, monkeypatch):
  """STIXGeneral, which comes with Matplotlib, has the script A that DejaVu Sans has not; nothing has the other."""
  monkeypatch.setattr(plot, "_MORE_LETTERS", ())
  boxes = draw(tmp_path / "x.png", "\U0001d49c\U000f0000")
  told = capsys.readouterr().err
  assert told.count("\n") == 1 and "2 letters are boxes in x.png" in told
  monkeypatch.setattr(plot, "_MORE_LETTERS", ("A font that nobody has", "STIXGeneral"))
  assert draw(tmp_path / "x.png", "\U0001d49c\U000f0000") != boxes
  assert "1 letter is a box in x.png" in capsys.readouterr().err
  assert draw(tmp_path / "x.png", "plain") and not capsys.readouterr().err


def test_a_picture_that_cannot_be_drawn_is_a_warning_that_names_it(tmp_path, capsys):
  figure, axes = new_figure(width=3.0, height=2.0)
  axes[0, 0].plot([1, 2])
  axes[0, 0].xaxis.set_major_formatter(lambda value, position: 1 / 0)
  save_figure(figure, tmp_path / "broken.png")
  (warning,) = progress.take_warnings()
  assert str(tmp_path / "broken.png") in warning and warning in capsys.readouterr().err
  assert not (tmp_path / "broken.png").exists()


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path):
  (tmp_path / "file").write_text("")
  figure, _ = new_figure(width=3.0, height=2.0)
  with pytest.raises(OSError):
    save_figure(figure, tmp_path / "file" / "x.png")


def test_curves_have_one_scale_and_ticks_that_stand_apart(tmp_path, monkeypatch):
  """Also of a metric with a single point; one without any has no panel."""
  lines = [{"step": step, "train/loss": 1 / step, "train/empty": None} for step in range(2000, 16001, 2000)]
  lines.append({"step": 16000, "eval/score": 3.0})
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  figures = []
  monkeypatch.setattr(plot, "save_figure", lambda figure, path: figures.append(figure))
  plot_curves(tmp_path, "env_steps", 50)
  (figure,) = figures
  assert [axis.get_title() for axis in figure.axes] == ["loss", "score"]
  figure.canvas.draw()
  for axis in figure.axes:
    low, high = axis.get_xlim()
    assert low == 0 and 800_000 < high < 850_000
    boxes = [label.get_window_extent() for label in axis.get_xticklabels()]
    shown = [box for box, tick in zip(boxes, axis.get_xticks()) if low <= tick <= high]
    assert len(shown) >= 3 and all(a.x1 + 5 < b.x0 for a, b in itertools.pairwise(shown))


@pytest.mark.parametrize("count", [3, 20, 25])
def test_a_sheet_is_as_high_as_its_images(count):
  images = np.zeros((count, 6, 8, 1))
  _, axes = new_figure(width=5.0, height=2.0)
  show_images(axes[0, 0], images, 10, gap=0)
  height, width = axes[0, 0].images[0].get_array().shape
  np.testing.assert_allclose(sheet_height(5.0, images, 10), 5.0 * height / width)
