"""One HTML file that shows many runs: table, curves and pictures inside it, nothing fetched, no server.

The page itself is `page.html`; this module gives it its data, thinned so that hundreds of runs stay a few megabytes.
"""

import base64
import colorsys
import html
import io
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from launch.runs import Curve, Group, choose_metric, find_mode, split_settings
from mlnotes.engine.record import to_json, write_atomically

# Three numbers are kept of each point of a curve, of some seven characters each.
_CURVE_BYTES = 3_000_000
_BYTES_PER_POINT = 21
_POINTS = (24, 300)
# A larger picture is made smaller, and of a large animation the first frame is shown.
_LARGE_PICTURE = 300_000
_PICTURE_SIDE = 1600
_PICTURES_PER_GROUP = 8
_TYPES = {".png": "png", ".gif": "gif", ".jpg": "jpeg", ".jpeg": "jpeg"}


def write_page(
  path: Path,
  groups: Sequence[Group],
  problems: Sequence[str],
  *,
  metric: str,
  mode: str,
  title: str,
  picture_bytes: int,
) -> None:
  """Writes the page about `groups`, best first by `metric`."""
  text = resources.files("launch").joinpath("page.html").read_text(encoding="utf-8")
  data = page_data(groups, problems, metric, mode, path.parent, picture_bytes)
  text = text.replace("{{title}}", html.escape(title))
  write_atomically(path, text.replace("{{data}}", embed_json(data)))


def embed_json(data: Any) -> str:
  """JSON that may stand in a script element, whatever the strings in it."""
  text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
  return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def colors(count: int) -> list[str]:
  """#rrggbb of each row: neighbours far apart, readable on light and on dark."""
  shades = (colorsys.hls_to_rgb((i * 137.508 + 210) % 360 / 360, (0.46, 0.36, 0.58)[i % 3], 0.7) for i in range(count))
  return ["#" + "".join(f"{round(255 * part):02x}" for part in shade) for shade in shades]


def page_data(
  groups: Sequence[Group], problems: Sequence[str], metric: str, mode: str, directory: Path, picture_bytes: int
) -> dict[str, Any]:
  """All that the page shows, as JSON."""
  experiments = {group.experiment: [g for g in groups if g.experiment == group.experiment] for group in groups}
  settings = {name: split_settings(own) for name, own in experiments.items()}
  metrics = sorted({name for group in groups for name in group.final}, key=lambda n: (n.startswith("train/"), n))
  judged = {name: choose_metric(own) for name, own in experiments.items()}
  stated = {run.best[0] for group in groups for run in group.runs if run.best}
  unknown = {name for name, way in judged.values() if not way} - stated
  curves = sum(len(group.curves) for group in groups)
  points = int(np.clip(_CURVE_BYTES / _BYTES_PER_POINT / max(curves, 1), *_POINTS))
  pictures = choose_pictures(groups, picture_bytes)
  return {
    "metric": metric,
    "metrics": metrics,
    "modes": {name: find_mode(groups, name) for name in metrics} | dict.fromkeys(unknown, "") | {metric: mode},
    "judged": {name: found for name, (found, _) in judged.items()},
    "shared": {name: to_json(shared) for name, (shared, _) in settings.items()},
    "problems": list(problems),
    "groups": [
      {
        "experiment": group.experiment,
        "task": group.task,
        "split": group.split,
        "color": shade,
        "settings": to_json({n: group.settings[n] for n in settings[group.experiment][1] if n in group.settings}),
        "seeds": group.seeds,
        "steps": max(run.step for run in group.runs),
        "finished": group.finished,
        "state": group.state,
        "wall": group.wall_seconds,
        "device": group.devices,
        "final": {name: [*_digits(figure[:2]), *figure[2:]] for name, figure in group.final.items()},
        "curves": {name: _thinned(curve, points) for name, curve in group.curves.items()},
        "runs": [
          {"path": str(run.directory), "link": _link(run.directory, directory), "command": run.command}
          for run in group.runs
        ],
        "pictures": pictures[i],
      }
      for i, (group, shade) in enumerate(zip(groups, colors(len(groups))))
    ],
  }


def _link(target: Path, directory: Path) -> str:
  """Relative, so that both can move together. Whatever the names are, it is a path: never a scheme or a query."""
  parts = Path(os.path.relpath(target.resolve(), directory.resolve())).parts
  return "/".join([".", *(quote(os.fsencode(part), safe="") for part in parts)]) + "/"


def _digits(values: Sequence[float]) -> list[float | None]:
  return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values]


def _thinned(curve: Curve, points: int) -> list[list[Any]]:
  """[steps, means, spreads] of at most `points` updates, the first and the last among them."""
  keep = np.unique(np.linspace(0, len(curve.steps) - 1, min(points, len(curve.steps))).round().astype(int))
  return [curve.steps[keep].tolist(), _digits(curve.mean[keep]), _digits(curve.std[keep])]


# -- pictures --------------------------------------------------------------------------------------------------------


def choose_pictures(groups: Sequence[Group], budget: int) -> list[list[Mapping[str, str]]]:
  """Per group [{"name", "path", "data"}], the best groups first; without "data" what `budget` bytes do not hold."""
  chosen: list[list[Mapping[str, str]]] = [[] for _ in groups]
  # One of each group in turn.
  turns = itertools.zip_longest(*(itertools.islice(_pictures(group), _PICTURES_PER_GROUP) for group in groups))
  for turn in turns:
    for found, path in zip(chosen, turn):
      if path is None:
        continue
      entry = {"name": path.name, "path": str(path)}
      # As text three bytes take four.
      if budget > 0 and (data := encode_picture(path)) is not None and 4 * len(data[1]) / 3 <= budget:
        budget -= 4 * len(data[1]) // 3
        entry["data"] = f"data:image/{data[0]};base64,{base64.b64encode(data[1]).decode()}"
      found.append(entry)
  return chosen


def _pictures(group: Group) -> Iterator[Path]:
  """Those of its first run with any; the curves, which the page draws itself, last."""
  pictures = next((run.pictures for run in group.runs if run.pictures), [])
  return iter(sorted(pictures, key=lambda path: path.name == "curves.png"))


def encode_picture(path: Path) -> tuple[str, bytes] | None:
  """(type, bytes) of a picture, smaller than the file where that is large; None where it cannot be read."""
  try:
    if path.stat().st_size <= _LARGE_PICTURE:
      return _TYPES[path.suffix.lower()], path.read_bytes()
    from PIL import Image

    with Image.open(path) as image:
      image = image.convert("RGB")
      image.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
      out = io.BytesIO()
      image.save(out, "JPEG", quality=80)
    return "jpeg", out.getvalue()
  except (OSError, ValueError):
    return None
