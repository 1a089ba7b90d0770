"""Measured numbers that re-run themselves: every figure stands as data beside the command that gives it.

  python -m launch.claims                               every claim: its figures, band, cost and date
  python -m launch.claims --check=rl.ppo_cartpole       runs the command again: is the figure in its band?
  python -m launch.claims --check=rl,optim --max_minutes=2
  python -m launch.claims --check=all --sample=3 --max_minutes=.5     three of the cheap ones, others for each revision
  python -m launch.claims --check=rl.sac_pendulum --update            writes what was measured into the claim
  python -m launch.claims --write                       renders the tables of the chapters' pages

Claims are in experiments/<chapter>/claims.toml:

    machine = "two cores of an AMD EPYC"

    [[claims]]
    id = "ppo_cartpole"
    command = "rl.ppo --env=CartPole-v1 --seed=100 --seeds=10 --report_seeds=10 --nogif"
    minutes = 0.9
    date = "2026-11-26"
    revision = "8a4e37e"
    figures = [
      { name = "gymnasium_return", mean = 500.0, std = 0.0, seeds = 10, band = [475, 500], against = "475: solved" },
    ]

A figure is a metric of the result card, or another number of it by its path (`timing.examples_per_second`). `band` is
where the mean of a re-run must fall, both ends included; `against` is the floor or the published number that the figure
is held against, with its source. `{data_dir}` in a command stands for --data_dir, `{before}` for the work directory of
another command that is run first, the claim's `before` ("contrastive.simclr --seeds=8").
"""

import dataclasses
import datetime
import json
import math
import random
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import experiments
from experiments import catalogue
from launch.jobs import last_words
from mlnotes.engine.errors import InputError, nearest, require
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.record import check_writable, write_atomically
from mlnotes.engine.revision import find_revision
from mlnotes.engine.summary import Summary, format_summary

BEGIN, END = "<!-- claims -->", "<!-- /claims -->"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  check: tuple[str, ...] = field((), "claims to run again: ids, chapters or all, with commas")
  max_minutes: float = field(0.0, "leave out claims that cost more; 0: none")
  sample: int = field(0, "check only so many of them, drawn by the revision; 0: all")
  update: bool = field(False, "write the figures that were measured, their date and revision into the claims")
  write: bool = field(False, "render the tables of the chapters' pages")
  data_dir: str = field("", "directory of the TFDS sets and files that some claims need; empty: these are left out")
  workdir: str = field("", "keep the runs here, one directory a claim; empty: in a temporary place")
  json: str = field("", "file for what was found")

  def __post_init__(self):
    super().__post_init__()
    require(self.max_minutes >= 0, "max_minutes", self.max_minutes, "0 or more")
    require(self.sample >= 0, "sample", self.sample, "0 or more")
    require(not self.update or bool(self.check), "update", self.update, "--check with it")
    for name in ("workdir", "json"):
      if getattr(self, name):
        check_writable(Path(getattr(self, name)).expanduser(), name, getattr(self, name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
  name: str
  mean: float
  std: float = 0.0
  seeds: int = 1
  band: tuple[float, float]
  against: str = ""
  note: str = ""

  def holds(self, value: float | None) -> bool:
    """Whether `value` is in the band, both ends included; what is not finite is not."""
    return value is not None and math.isfinite(value) and self.band[0] <= value <= self.band[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
  id: str
  chapter: str
  command: str
  minutes: float
  date: str
  revision: str
  machine: str
  figures: tuple[Figure, ...]
  before: str = ""
  note: str = ""

  @property
  def name(self) -> str:
    return f"{self.chapter}.{self.id}"

  @property
  def experiment(self) -> str:
    return shlex.split(self.command)[0]

  @property
  def commands(self) -> str:
    """As it is written."""
    return ", then ".join(f"`{command}`" for command in (self.before, self.command) if command)

  def arguments(self, data_dir: str, directory: Path) -> list[list[str]]:
    """Of each command that is run, the last being the claim's own: its module, flags and work directory."""
    found = []
    for command, workdir in ((self.before, "before"), (self.command, "run")):
      if command:
        experiment, *flags = shlex.split(command.replace("{data_dir}", shlex.quote(data_dir)))
        flags = [flag.replace("{before}", str(directory / "before")) for flag in flags]
        found.append([f"experiments.{experiment}", *flags, f"--workdir={directory / workdir}"])
    return found


# -- reading -----------------------------------------------------------------------------------------------------------


def claim_files() -> list[Path]:
  """The claims of each chapter."""
  return sorted(Path(experiments.__path__[0]).glob("*/claims.toml"))


def read_claims(path: Path) -> list[Claim]:
  """The claims of one chapter. Raises InputError for a file that does not hold them, naming the claim."""
  try:
    found = tomllib.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise InputError(f"{path} cannot be read ({error}): expected claims.") from error
  machine, claims = found.get("machine", ""), []
  for entry in found.get("claims", ()):
    entry = {"machine": machine, "chapter": path.parent.name, **entry}
    try:
      entry["figures"] = tuple(Figure(**{**f, "band": tuple(map(float, f["band"]))}) for f in entry["figures"])
      claims.append(Claim(**entry))
    except (KeyError, TypeError, ValueError) as error:
      raise InputError(f"{path}: the claim {entry.get('id', '?')} is incomplete: {error}.") from error
  return claims


def all_claims() -> list[Claim]:
  return [claim for path in claim_files() for claim in read_claims(path)]


def choose(claims: Sequence[Claim], config: Config, revision: str) -> list[Claim]:
  """The claims that --check names, cheap enough, and of these --sample. Raises InputError for a name that is none."""
  known = {claim.name for claim in claims} | {claim.chapter for claim in claims} | {"all"}
  for name in config.check:
    if name not in known:
      chapters = ", ".join(sorted(known - {claim.name for claim in claims}))
      hint = nearest(name, sorted(known), f"expected one that `python -m launch.claims` lists, or of {chapters}.")
      raise InputError(f"--check={name} is no claim: {hint}")
  asked = set(config.check)
  chosen = [c for c in claims if asked & {c.name, c.chapter, "all"}]
  chosen = [c for c in chosen if not config.max_minutes or c.minutes <= config.max_minutes]
  chosen = [c for c in chosen if config.data_dir or "{data_dir}" not in c.before + c.command]
  if config.sample and config.sample < len(chosen):
    chosen = random.Random(revision).sample(chosen, config.sample)
  return chosen


# -- running -----------------------------------------------------------------------------------------------------------


def look_up(card: Mapping[str, Any], name: str) -> tuple[float | None, float, int]:
  """(mean, spread, number of seeds) of a metric, or of another number of the card by its dotted path."""
  if name in card.get("metrics", {}):
    summary = card["metrics"][name]
    return summary["mean"], summary["std"] or 0.0, len(summary["seeds"])
  value: Any = card
  for part in name.split("."):
    value = value.get(part) if isinstance(value, Mapping) else None
  return (float(value), 0.0, 1) if isinstance(value, (int, float)) else (None, 0.0, 0)


def run_claim(claim: Claim, directory: Path, data_dir: str) -> dict[str, Any]:
  """Runs the command in `directory`: {"card", "minutes"}, or {"error": its last words} where it left no card.

  Raises InputError where a run is there already: its card would be taken for a new measurement.
  """
  for name in ("before", "run"):
    if (directory / name).exists():
      raise InputError(f"--workdir: {directory / name} is there already: expected a directory without runs.")
  started = time.monotonic()
  directory.mkdir(parents=True, exist_ok=True)
  with (directory / "log.txt").open("w", encoding="utf-8") as log:
    for arguments in claim.arguments(data_dir, directory):
      command = [sys.executable, "-m", *arguments]
      code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
      if code:
        break
  minutes = (time.monotonic() - started) / 60
  try:
    card = json.loads((directory / "run" / "result.json").read_text(encoding="utf-8"))
  except (OSError, ValueError):
    card = {}
  if code or not card.get("finished"):
    return {"error": f"exit code {code}: {last_words(directory / 'log.txt') or 'no word'}", "minutes": minutes}
  return {"card": card, "minutes": minutes}


def judge(claim: Claim, found: Mapping[str, Any]) -> Iterator[tuple[Figure, tuple[float | None, float, int], bool]]:
  """(figure, what was measured, whether it is in its band) of each figure of the claim."""
  for figure in claim.figures:
    measured = look_up(found.get("card", {}), figure.name)
    yield figure, measured, figure.holds(measured[0])


def format_value(mean: float | None, std: float = 0.0, seeds: int = 1) -> str:
  """A figure of the card as it is printed everywhere; "nothing" where the card has none."""
  return "nothing" if mean is None else format_summary(Summary(mean, std, seeds, seeds))


def check_claims(claims: Sequence[Claim], config: Config) -> list[dict[str, Any]]:
  """Runs each claim and prints a line for each of its figures; what was found, claim by claim."""
  rows = []
  with tempfile.TemporaryDirectory() as temporary:
    for claim in claims:
      print(f"{claim.name}: {claim.command}  (about {claim.minutes:.2g} minutes)", flush=True)
      directory = Path(config.workdir or temporary).expanduser() / claim.name
      found = run_claim(claim, directory, config.data_dir)
      row = {"claim": claim.name, "minutes": found["minutes"], "error": found.get("error"), "figures": []}
      if "error" in found:
        print(f"  FAILED  {found['error']}")
      for figure, measured, good in judge(claim, found):
        low, high = figure.band
        said = f"{figure.name} {format_value(*measured)}, band {low:g} to {high:g}, claimed {format_value(figure.mean)}"
        print(f"  {'ok     ' if good else 'BROKEN '} {said}", flush=True)
        mean, std, seeds = measured
        row["figures"].append(dict(name=figure.name, mean=mean, std=std, seeds=seeds, in_band=good))
      row["card"] = found.get("card", {})
      rows.append(row)
  return rows


def update_claims(rows: Sequence[Mapping[str, Any]]) -> None:
  """Writes the measured figures, their date, revision and cost into the files; bands and words stay as they are."""
  import tomlkit

  rows = {row["claim"]: row for row in rows if not row["error"]}
  for path in claim_files():
    document = tomlkit.parse(path.read_text(encoding="utf-8"))
    for entry in document.get("claims", ()):
      if row := rows.get(f"{path.parent.name}.{entry['id']}"):
        entry["minutes"] = float(f"{row['minutes']:.2g}")
        entry["date"] = datetime.date.today().isoformat()
        # A figure of changed sources is not that of their commit.
        entry["revision"] = row["card"].get("revision", "") + ("" if row["card"].get("clean") else "+")
        for figure, measured in zip(entry["figures"], row["figures"]):
          if measured["mean"] is not None:
            figure["mean"], figure["std"] = float(f"{measured['mean']:.5g}"), float(f"{measured['std']:.2g}")
            figure["seeds"] = measured["seeds"]
    write_atomically(path, tomlkit.dumps(document))


# -- tables ------------------------------------------------------------------------------------------------------------


def render(claims: Sequence[Claim]) -> str:
  """The claims of a chapter as a Markdown table, a row for each figure."""
  lines = [
    "Before each command stands `python -m experiments.`; `python -m launch.claims --check=ID` runs it again and says",
    "whether each figure is in its band. (From `claims.toml`, by `python -m launch.claims --write`.)",
    "",
    "| id | command | figure | seeds | held against | band of a re-run | date | minutes |",
    "|---|---|---|---|---|---|---|---|",
  ]
  for claim in claims:
    for i, figure in enumerate(claim.figures):
      low, high = figure.band
      against = "; ".join(text for text in (figure.against, figure.note) if text)
      value = f"`{figure.name}` {format_value(figure.mean, figure.std, figure.seeds)}"
      cells = [value, str(figure.seeds), against, f"{low:g} to {high:g}"]
      first, last = [f"`{claim.name}`", claim.commands], [claim.date, f"{claim.minutes:g}"]
      cells = [*first, *cells, *last] if i == 0 else ["", "", *cells, "", ""]
      lines.append(f"| {' | '.join(cells)} |")
  machines = sorted({claim.machine for claim in claims})
  revisions = sorted({claim.revision for claim in claims})
  notes = [f"`{c.name}`: {c.note}" for c in claims if c.note]
  measured = f"Measured on: {'; '.join(machines)}. Revisions: {', '.join(revisions)}."
  return "\n".join([*lines, "", measured, *(["", *notes] if notes else [])])


def put_between(text: str, table: str) -> str:
  """`text` with `table` between the two markers. Raises InputError where these are not there."""
  head, begin, rest = text.partition(BEGIN)
  _, end, tail = rest.partition(END)
  if not begin or not end:
    raise InputError(f"found no place for the claims: expected the lines {BEGIN!r} and {END!r}.")
  return f"{head}{BEGIN}\n\n{table}\n\n{END}{tail}"


def pages() -> Iterator[tuple[Path, str, str]]:
  """(page, its text, its text with the claims of today) of each chapter that has claims."""
  for path in claim_files():
    page = path.parent / "README.md"
    if not page.exists():
      raise InputError(
        f"{page} is not there: expected the page of the chapter, with its claims between {BEGIN} and {END}."
      )
    text = page.read_text(encoding="utf-8")
    yield page, text, put_between(text, render(read_claims(path)))


def unclaimed(claims: Sequence[Claim]) -> list[str]:
  """The experiments of the catalogue that no claim runs."""
  claimed = {claim.experiment for claim in claims}
  return [name for name, _ in catalogue() if name not in claimed]


# -- the command -------------------------------------------------------------------------------------------------------


def list_claims(claims: Sequence[Claim]) -> None:
  for claim in claims:
    figures = ", ".join(f"{f.name} {format_value(f.mean, f.std, f.seeds)}" for f in claim.figures)
    print(f"{claim.name:40} {claim.minutes:6.2g} min  {claim.date}  {figures}")
    print(f"  {claim.commands}")
  print(f"{len(claims)} claims, {sum(claim.minutes for claim in claims):.0f} minutes in all.")


def main(config: Config) -> int:
  claims = all_claims()
  if config.write:
    for page, text, wanted in pages():
      if text != wanted:
        write_atomically(page, wanted)
        print(f"wrote {page}")
  if not config.check:
    if not config.write:
      list_claims(claims)
    return 0
  rows = check_claims(choose(claims, config, find_revision().revision), config)
  if config.json:
    write_atomically(Path(config.json).expanduser(), json.dumps(rows, indent=2) + "\n")
  if config.update:
    update_claims(rows)
  broken = [row["claim"] for row in rows if row["error"] or not all(f["in_band"] for f in row["figures"])]
  print(f"{len(rows) - len(broken)} of {len(rows)} claims hold" + (f"; broken: {', '.join(broken)}" if broken else "."))
  return int(bool(broken) or not rows)


if __name__ == "__main__":
  run(main, Config)
