"""Any number of runs side by side: tables, comparison curves and one page to look through them.

  python -m launch.results runs
  python -m launch.results runs/sweep runs/simclr-* --out=results --metric=knn_accuracy

Work directories are found at any depth, finished or not. Runs that differ only in the seed make one row, with mean and
sample standard deviation. Leaves in --out: index.html, which opens without a server or network, results.csv with every
metric, results.md, comparison.png. The best row of a task (an environment, a data set) is that of the lowest or highest
--metric among those that lost the fewest seeds.
"""

import csv
import dataclasses
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from launch.page import colors, write_page
from launch.runs import (
  Curve,
  Group,
  by_task,
  choose_best,
  choose_metric,
  find_mode,
  find_runs,
  group_runs,
  judge,
  rank,
  split_settings,
)
from mlnotes.engine.errors import InputError, nearest, require
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.plot import new_figure, save_figure
from mlnotes.engine.record import write_atomically
from mlnotes.engine.summary import format_summary

# Beyond these a table or picture is no longer read.
_METRICS_IN_MARKDOWN = 6
_LINES_PER_PANEL = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  out: str = field("results", "directory for the tables, the picture and the page")
  metric: str = field(
    "", "what to sort by and to draw; empty: what most of the runs are judged by, and no best row where none says"
  )
  mode: Literal["auto", "min", "max"] = field("auto", "which values of --metric are better; auto: as the runs say")
  title: str = field("Results", "heading of the page")
  picture_megabytes: float = field(3.0, "of the runs' pictures in the page, >= 0; the rest is named by path")

  def __post_init__(self):
    super().__post_init__()
    require(self.picture_megabytes >= 0, "picture_megabytes", self.picture_megabytes, "0 or more")


def by_experiment(groups: Iterable[Group]) -> dict[str, list[Group]]:
  found: dict[str, list[Group]] = {}
  for group in groups:
    found.setdefault(group.experiment, []).append(group)
  return dict(sorted(found.items()))


def sections(groups: Iterable[Group]) -> dict[str, list[Group]]:
  """{heading: groups} of each experiment and task: rows that can be compared with one another."""
  found = {}
  for experiment, own in by_experiment(groups).items():
    tasks = by_task(own)
    for task, rows in tasks.items():
      found[experiment if len(tasks) == 1 else f"{experiment} {task.partition(' ')[2]}"] = rows
  return found


def format_setting(value: Any) -> str:
  return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def count(number: int, what: str) -> str:
  """`1 run`, `2 runs`."""
  return f"{number} {what}{'' if number == 1 else 's'}"


def describe_seeds(seeds: Sequence[int]) -> str:
  """0-4 for neighbours, else 0, 3, 7."""
  if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
    return f"{seeds[0]}-{seeds[-1]}"
  return ", ".join(map(str, seeds))


def label(group: Group, differ: Iterable[str]) -> str:
  """The settings that tell a group from the others of its experiment."""
  return " ".join(f"{n}={format_setting(group.settings[n])}" for n in differ if n in group.settings)


# -- tables ----------------------------------------------------------------------------------------------------------


def to_csv(groups: Sequence[Group]) -> str:
  """One line per group: every differing setting and every metric."""
  settings = list(dict.fromkeys(n for own in by_experiment(groups).values() for n in split_settings(own)[1]))
  if any("revision" in group.settings for group in groups):
    settings = [*(name for name in settings if name != "revision"), "revision"]
  metrics = sorted({name for group in groups for name in group.final}, key=lambda n: (n.startswith("train/"), n))
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  figures = [f"{name} {what}" for name in metrics for what in ("mean", "std", "finite seeds", "seeds")]
  fixed = ["seeds", "steps", "state", "wall_seconds", "device", "judged on"]
  writer.writerow(["experiment", *settings, *fixed, *figures, "directories"])
  for group in groups:
    wall = group.wall_seconds
    writer.writerow([
      group.experiment,
      *(format_setting(group.settings[n]) if n in group.settings else "" for n in settings),
      describe_seeds(group.seeds), max(run.step for run in group.runs), group.state,
      "" if wall is None else f"{wall:.1f}", group.devices, group.split,
      *(value for name in metrics for value in group.final.get(name, ("", "", "", ""))),
      "; ".join(str(run.directory) for run in group.runs),
    ])  # fmt: skip
  return printable(out.getvalue())


def printable(text: str) -> str:
  """`text` as UTF-8 can hold it: bytes in the name of a file that are none are written out."""
  return text.encode("utf-8", "backslashreplace").decode("utf-8")


def to_markdown(groups: Sequence[Group], metric: str, mode: str) -> str:
  """A section for each experiment and task: a row per group, best first, then what all of them share.

  Where nobody says which way is better (`mode` is ""), the rows are in no order, and nothing is said of one.
  """
  parts = []
  for heading, own in sections(groups).items():
    sort_by, way = judge(own, metric, mode)
    own = rank(own, sort_by, way)
    shared, differ = split_settings(own)
    others = [n for n in dict.fromkeys(n for g in own for n in g.final) if n != sort_by and not n.startswith("train/")]
    metrics = [sort_by, *others[: _METRICS_IN_MARKDOWN - 1]]
    header = [*differ, *metrics, "seeds", "steps", "wall, s", "device", "state"]
    rows = [
      [
        *(format_setting(group.settings[n]) if n in group.settings else "" for n in differ),
        *(format_summary(group.final[name]) if name in group.final else "" for name in metrics),
        describe_seeds(group.seeds), str(max(run.step for run in group.runs)),
        "" if group.wall_seconds is None else f"{group.wall_seconds:.0f}", group.devices, group.state,
      ]
      for group in own
    ]  # fmt: skip
    common = ", ".join(f"{name}={format_setting(value)}" for name, value in shared.items())
    chosen = f"Rows are ordered by {sort_by}{chosen_on(own)}." if len(own) > 1 and way else ""
    end = "\n\n".join(_escape(part) for part in (chosen, f"All with {common}.") if part)
    parts.append(f"## {_escape(heading)}\n\n{_markdown_table(header, rows)}\n\n{end}\n")
  return printable("\n".join(parts))


def chosen_on(groups: Sequence[Group]) -> str:
  """`, chosen on the test split` where one of several rows is picked by figures that were measured there."""
  splits = sorted({group.split for group in groups if group.split})
  return f", chosen on the {' and '.join(splits)} split" if splits and len(groups) > 1 else ""


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  rows = [[_escape(cell) for cell in row] for row in (header, *rows)]
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
  return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _escape(text: str) -> str:
  return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


# -- the picture -----------------------------------------------------------------------------------------------------


def find_curve(group: Group, metric: str) -> Curve | None:
  """The curve of what the tables call `metric`: of the evaluations, or of training where it is a train/<name>.

  Never one for the other: a training loss in the place of the evaluation's would tell another story than the ranking.
  """
  return group.curves.get(metric if metric.startswith("train/") else f"eval/{metric}")


def describe_metric(metric: str) -> str:
  """`metric` with the split that it is measured on."""
  name = metric.removeprefix("train/")
  return f"{name}, {'training' if name != metric else 'evaluation'}"


def draw_comparison(groups: Sequence[Group], metric: str, mode: str, path: Path) -> None:
  """A panel for each experiment and task: mean and band over the seeds against updates, a line for each of the best.

  A group has the colour that it has in the page.
  """
  panels, color = [], dict(zip(map(id, groups), colors(len(groups))))
  for heading, own in sections(groups).items():
    name, way = judge(own, metric, mode)
    best = rank(own, name, way)
    differ = split_settings(own)[1]
    lines = [(label(group, differ) or heading, find_curve(group, name), color[id(group)]) for group in best]
    lines = [line for line in lines if line[1] is not None and np.isfinite(line[1].mean).any()]
    if lines:
      panels.append((heading, name, way, lines))
  if not panels:
    return
  columns = min(2, len(panels))
  rows = -(-len(panels) // columns)
  figure, axes = new_figure(rows, columns, width=7.0 * columns, height=4.2 * rows)
  for axis, (title, name, way, lines) in zip(axes.flat, panels):
    for text, curve, shade in lines[:_LINES_PER_PANEL]:
      _draw_line(axis, curve, text, shade)
    rest = len(lines) - _LINES_PER_PANEL
    some = f" ({'best' if way else 'first'} {_LINES_PER_PANEL} of {len(lines)})" if rest > 0 else ""
    axis.set_title(_no_mathematics(title) + some)
    axis.set_xlabel("update")
    axis.set_xlim(0, 1.04 * max(curve.steps[-1] for _, curve, _ in lines))  # also for a single point
    axis.locator_params(axis="x", nbins=6)
    axis.set_ylabel(_no_mathematics(describe_metric(name)))
    axis.legend(frameon=False, fontsize="small")
  for axis in axes.flat[len(panels) :]:
    axis.remove()
  save_figure(figure, path)


def _no_mathematics(text: str) -> str:
  return printable(text).replace("$", r"\$")


def _draw_line(axis: Any, curve: Curve, text: str, color: str) -> None:
  steps, mean, std = curve.steps, curve.mean, curve.std
  text = _no_mathematics(text if len(text) <= 60 else text[:57] + "...")
  style = "o-" if len(steps) < 3 else "-"
  axis.plot(steps, mean, style, markersize=3, linewidth=1.3, color=color, label=f" {text}")
  axis.fill_between(steps, mean - std, mean + std, alpha=0.2, color=color, linewidth=0)


# -- the command -----------------------------------------------------------------------------------------------------


def write_results(directories: Sequence[str], config: Config) -> Mapping[str, Any]:
  """Reads the runs and writes everything; {"groups", "metric", "problems"}. Raises InputError for bad input."""
  runs, problems = find_runs(directories)
  groups, repeated = group_runs(runs)
  problems += repeated
  judged_by, chosen = choose_metric(groups)
  metric = config.metric or judged_by
  known = sorted({name for group in groups for name in group.final})
  if config.metric and metric not in known:
    raise InputError(f"--metric={metric} is in none of the runs: {nearest(metric, known or ['none'])}")
  auto = find_mode(groups, metric) if config.metric else chosen
  mode = auto if config.mode == "auto" else config.mode
  groups = rank(groups, metric, mode)
  out = Path(config.out).expanduser()
  try:
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "results.csv", to_csv(groups))
    write_atomically(out / "results.md", to_markdown(groups, metric, mode))
    draw_comparison(groups, metric, mode, out / "comparison.png")
    write_page(
      out / "index.html", groups, problems, metric=metric, mode=mode, title=config.title,
      picture_bytes=int(1e6 * config.picture_megabytes),
    )  # fmt: skip
  except OSError as error:
    raise InputError(f"--out={out} cannot be written: {error.strerror or error}.") from error
  return {"groups": groups, "metric": metric, "mode": mode, "problems": problems}


def main(config: Config, directories: Sequence[str]) -> int:
  if not directories:
    raise InputError("found no directory: expected python -m launch.results DIRECTORY... [--out=results].")
  found = write_results(directories, config)
  groups, metric = found["groups"], found["metric"]
  for problem in found["problems"]:
    print(printable(f"warning: {problem}"), file=sys.stderr)
  print(to_markdown(groups, metric, found["mode"]))
  best, tasks = choose_best(groups, metric, found["mode"]), by_task(groups)
  for task, (group, name, mode) in best.items():
    kind = {"min": "lowest", "max": "highest"}[mode]
    differ = split_settings([g for g in tasks[task] if g.experiment == group.experiment])[1]
    where = f" of {task}" if len(tasks) > 1 else ""
    text = f"{group.experiment} {label(group, differ)}".strip()
    print(printable(f"{kind} {name}{where}: {format_summary(group.final[name])}, {text}{chosen_on(tasks[task])}"))
  out = Path(config.out).expanduser()
  runs = count(sum(len(g.runs) for g in groups), "run")
  print(f"{runs} in {count(len(groups), 'group')}: open {out / 'index.html'}")
  return 0


if __name__ == "__main__":
  run(main, Config, arguments=True)
