"""What an update costs as its work grows: five experiments over batch, width, seeds or environments, on one page.

  python -m launch.benchmarks.scale --out=scale.png

Every point is a process of its own, in the layout that a run of it would have. The picture shows the time of a unit of
work (an example, a task, an environment step, a seed) over that of the first point, and the memory of the compiled
update likewise: a line that falls has cost that the work shares, a flat one is linear, a rising one grows faster.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from launch.bench import bench_apart, binary, duration, format_table, scaled
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.plot import new_figure, save_figure
from mlnotes.engine.record import check_writable, to_json, write_atomically


class Axis(NamedTuple):
  """One flag of one experiment, and its values; `more` are the other flags."""

  experiment: str
  flag: str
  values: tuple[int, ...]
  more: str = ""


AXES = (
  Axis("rl.ppo", "num_envs", (4, 16, 64, 256, 1024)),
  Axis("rl.ppo", "seeds", (1, 2, 4, 8, 16, 32)),
  Axis("rl.dqn", "seeds", (1, 2, 4, 8, 16, 32)),
  Axis("meta.maml", "batch_size", (5, 10, 25, 50, 100, 200)),
  Axis("contrastive.simclr", "batch_size", (16, 32, 64, 128, 256)),
  Axis("contrastive.simclr", "width", (8, 16, 32, 64)),
  Axis("diffusion.ddpm", "batch_size", (8, 16, 32, 64, 128)),
  Axis("diffusion.ddpm", "channels", (8, 16, 32, 64)),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  only: tuple[str, ...] = field((), "experiments among those measured; empty: all")
  points: int = field(0, "of each axis, the first so many; 0: all")
  measurements: int = field(5, "of each point, of which the median counts")
  seconds: float = field(0.3, "least duration of a measurement, > 0")
  out: str = field("scale.png", "the picture; the figures stand beside it as .json")

  def __post_init__(self):
    super().__post_init__()
    known = {axis.experiment for axis in AXES}
    for name in self.only:
      require(name in known, "only", name, f"some of {', '.join(sorted(known))}")
    require(self.points >= 0, "points", self.points, "0 or more")
    require(self.measurements >= 1, "measurements", self.measurements, "1 or more")
    require(self.seconds > 0, "seconds", self.seconds, "a number above 0")
    out = Path(self.out).expanduser().absolute()
    if out.suffix != ".png" or not out.parent.is_dir():
      raise InputError(f"--out={self.out} cannot be written: expected a .png in a directory that exists.")
    check_writable(out.parent, "out", self.out)


def measure(axis: Axis, value: int, config: Config) -> dict[str, Any] | None:
  """The row of `launch.bench` with the work of an update in units, the arithmetic per second included."""
  flags = [f"--{axis.flag}={value}", *axis.more.split(), "--cached"]
  flags += [f"--measurements={config.measurements}", f"--seconds={config.seconds}"]
  (row,) = bench_apart(axis.experiment, flags)["rows"]
  if "error" in row:
    print(f"{axis.experiment} --{axis.flag}={value}: {row['error']}", file=sys.stderr)
    return None
  return {
    "value": value,
    "step_seconds": row["step_seconds"]["median"],
    "flops": row["flops"],
    "flops_per_second": row["flops_per_second"],
    "program_bytes": row["memory"]["program_bytes"],
    "devices": row["devices"],
    "threads": row["threads"],
  }


def draw(found: list[tuple[Axis, list[dict[str, Any]]]], path: Path) -> None:
  """A panel for each axis: time and memory over value, both divided by value and by the first point's."""
  columns = min(4, len(found))
  rows = -(-len(found) // columns)
  figure, panels = new_figure(rows, columns, width=3.4 * columns, height=3.0 * rows)
  for panel in panels.flat[len(found) :]:
    panel.set_visible(False)
  for panel, (axis, points) in zip(panels.flat, found):
    value = np.array([point["value"] for point in points], float)
    for name, label, style in (
      ("step_seconds", "time of an update", "o-"),
      ("program_bytes", "memory of an update", "s--"),
      ("flops", "arithmetic", ":"),
    ):
      cost = np.array([point[name] for point in points], float) / value
      panel.plot(value, cost / cost[0], style, label=label, markersize=4)
    panel.axhline(1, color="0.8", linewidth=1, zorder=0)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log", base=2)
    panel.set_xticks(value, [f"{int(v)}" for v in value])
    panel.minorticks_off()
    ticks = 2.0 ** np.arange(np.floor(np.log2(panel.get_ylim()[0])), np.ceil(np.log2(panel.get_ylim()[1])) + 1)
    panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.set_title(f"{axis.experiment}, --{axis.flag}", fontsize=10)
    panel.set_xlabel(f"--{axis.flag}")
  for panel in panels[:, 0]:
    panel.set_ylabel("per unit of the flag, first point = 1")
  panels.flat[0].legend(fontsize=8)
  save_figure(figure, path)


def main(config: Config) -> int:
  path = Path(config.out).expanduser()
  found = []
  table = [["work", "layout", "update", "per unit", "arithmetic", "FLOP/s", "memory"]]
  for axis in AXES:
    if config.only and axis.experiment not in config.only:
      continue
    values = axis.values[: config.points or None]
    points = [point for value in values if (point := measure(axis, value, config))]
    if not points:
      continue
    found.append((axis, points))
    for point in points:
      table.append(
        [
          f"{axis.experiment} --{axis.flag}={point['value']}",
          f"{point['devices']} x {point['threads'] or '-'}",
          duration(point["step_seconds"]),
          duration(point["step_seconds"] / point["value"]),
          scaled(point["flops"], "FLOP"),
          scaled(point["flops_per_second"], "FLOP/s"),
          binary(point["program_bytes"]),
        ]
      )
    print(f"{axis.experiment} over --{axis.flag}: measured", file=sys.stderr, flush=True)
  if not found:
    return 1
  print(format_table(table))
  draw(found, path)
  figures = [{**axis._asdict(), "points": points} for axis, points in found]
  write_atomically(path.with_suffix(".json"), json.dumps(to_json(figures), indent=2) + "\n")
  print(f"{path} and {path.with_suffix('.json')}")
  return 0


if __name__ == "__main__":
  run(main, Config)
