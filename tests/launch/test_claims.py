"""Claims: figures that stand beside the command that gives them, and what re-runs them."""

import dataclasses
import json
import subprocess
from importlib import import_module
from pathlib import Path

import pytest

from experiments import catalogue
from launch import claims
from mlnotes.engine.errors import InputError
from mlnotes.engine.flags import parse, read

TOML = """
machine = "a machine"

[[claims]]
id = "maze"
command = "rl.q_learning --env=DynaMaze --steps=20 --seeds=2"
minutes = 0.1
date = "2026-01-01"
revision = "abc"
figures = [
  # kept
  { name = "start_value", mean = 0.5, std = 0.1, seeds = 2, band = [0, 1], against = "1: the shortest way" },
  { name = "timing.step_seconds", mean = 0.5, band = [0, 60] },
]

[[claims]]
id = "images"
command = "optim.compare --dataset=mnist --data_dir={data_dir}"
minutes = 5
date = "2026-01-01"
revision = "abc"
figures = [{ name = "test_accuracy_adam", mean = 0.9, band = [0.8, 1] }]
"""


@pytest.fixture
def chapter(tmp_path, monkeypatch):
  """One chapter with two claims, in place of the project's."""
  path = tmp_path / "rl" / "claims.toml"
  path.parent.mkdir()
  path.write_text(TOML)
  monkeypatch.setattr(claims, "claim_files", lambda: [path])
  return path


def config(*flags):
  return parse(claims.Config, read(claims.Config, flags, "launch.claims"))


def result_card(mean):
  metrics = {"start_value": {"mean": mean, "std": 0.2, "seeds": [mean, mean]}}
  return {"finished": True, "metrics": metrics, "timing": {"step_seconds": 0.25}, "revision": "def", "clean": True}


def fake_runs(monkeypatch, mean):
  found = {"card": result_card(mean), "minutes": 0.5}
  monkeypatch.setattr(claims, "run_claim", lambda claim, directory, data_dir: found)


def with_before(claim, before, command):
  return dataclasses.replace(claim, before=before, command=command)


@pytest.mark.parametrize("value, holds", [(0, True), (1, True), (1.01, False), (-0.1, False), (None, False)])
def test_both_ends_belong_to_a_band(value, holds):
  assert claims.Figure(name="x", mean=0.5, band=(0, 1)).holds(value) == holds


def test_what_is_not_finite_is_in_no_band():
  assert not claims.Figure(name="x", mean=0.5, band=(float("-inf"), float("inf"))).holds(float("nan"))


def test_names_chapters_cost_and_data_choose_the_claims(chapter, tmp_path):
  found = claims.all_claims()
  names = lambda *flags: [claim.name for claim in claims.choose(found, config(*flags), "revision")]
  assert names("--check=rl") == names("--check=all") == names("--check=rl.maze") == ["rl.maze"]  # the other needs data
  assert names("--check=all", "--data_dir=D") == ["rl.maze", "rl.images"]
  assert names("--check=all", "--data_dir=D", "--max_minutes=1") == ["rl.maze"]
  assert len(names("--check=all", "--data_dir=D", "--sample=1")) == 1
  (arguments,) = found[1].arguments("a set's", tmp_path)
  assert arguments[0] == "experiments.optim.compare" and arguments[2] == "--data_dir=a set's"
  assert arguments[-1] == f"--workdir={tmp_path / 'run'}"
  with pytest.raises(InputError, match=r"--check=rl.maz is no claim: .*rl\.maze"):
    names("--check=rl.maz")


def test_every_revision_draws_its_own_sample():
  same = dict(chapter="c", command="rl.ppo", minutes=0, date="", revision="", machine="", figures=())
  each = [claims.Claim(id=str(i), **same) for i in range(20)]
  draw = lambda revision: [c.id for c in claims.choose(each, config("--check=all", "--sample=3"), revision)]
  assert draw("a") == draw("a") and len({tuple(draw(r)) for r in "abcdefgh"}) > 4


@pytest.mark.parametrize("mean, code, word", [(0.7, 0, "ok"), (1.2, 1, "BROKEN"), (None, 1, "BROKEN")])
def test_a_figure_outside_its_band_is_caught(chapter, monkeypatch, capsys, tmp_path, mean, code, word):
  fake_runs(monkeypatch, mean)
  assert claims.main(config("--check=rl.maze", f"--json={tmp_path / 'found.json'}")) == code
  out = capsys.readouterr().out
  assert f"  {word}" in out and ("broken: rl.maze" in out) == bool(code)
  (row,) = json.loads((tmp_path / "found.json").read_text())
  assert [figure["in_band"] for figure in row["figures"]] == [not code, True]


def test_a_command_that_fails_is_broken_and_says_its_last_words(tmp_path, chapter):
  bad = with_before(claims.read_claims(chapter)[0], "", "rl.q_learning --env=DynaMaze --steps=0")
  found = claims.run_claim(bad, tmp_path / "run", "")
  assert "exit code 2" in found["error"] and "--steps=0 is out of range" in found["error"]


def test_a_claim_of_a_trained_run_trains_it_first(tmp_path, chapter):
  maze, images = claims.read_claims(chapter)
  probe = with_before(images, "contrastive.simclr --data_dir={data_dir} --seeds=8", "contrastive.probe --run={before}")
  first, then = probe.arguments("D", tmp_path)
  assert first == ["experiments.contrastive.simclr", "--data_dir=D", "--seeds=8", f"--workdir={tmp_path / 'before'}"]
  assert then == ["experiments.contrastive.probe", f"--run={tmp_path / 'before'}", f"--workdir={tmp_path / 'run'}"]
  assert claims.choose([with_before(maze, "x --data_dir={data_dir}", "y")], config("--check=all"), "revision") == []
  assert "| `contrastive.simclr --data_dir={data_dir} --seeds=8`, then `contrastive.probe" in claims.render([probe])
  found = claims.run_claim(with_before(maze, "rl.q_learning --steps=0", "rl.q_learning"), tmp_path / "broken", "")
  assert "--steps=0 is out of range" in found["error"] and not (tmp_path / "broken" / "run").exists()


def test_a_run_that_is_there_already_is_no_new_measurement(chapter, tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "result.json").write_text('{"finished": true, "metrics": {}}')
  with pytest.raises(InputError, match="run is there already: expected a directory without runs"):
    claims.run_claim(claims.read_claims(chapter)[0], tmp_path, "")


@pytest.mark.processes
def test_a_command_runs_again_and_is_measured(chapter, tmp_path):
  found = claims.run_claim(claims.read_claims(chapter)[0], tmp_path / "run", "")
  (start, measured, _), (_, timing, good) = claims.judge(claims.read_claims(chapter)[0], found)
  assert start.name == "start_value" and measured[2] == 2 and good and timing[0] > 0


def test_what_was_measured_is_written_and_words_stay(chapter, monkeypatch):
  fake_runs(monkeypatch, 0.75)
  claims.main(config("--check=rl.maze", "--update"))
  maze, images = claims.read_claims(chapter)
  assert (maze.minutes, maze.revision) == (0.5, "def") and maze.date > "2026-01-01"
  assert (maze.figures[0].mean, maze.figures[0].std, maze.figures[1].mean) == (0.75, 0.2, 0.25)
  assert maze.figures[0].band == (0, 1) and "# kept" in chapter.read_text() and images.date == "2026-01-01"


def test_tables_stand_between_the_markers_of_a_page(chapter):
  page = chapter.with_name("README.md")
  with pytest.raises(InputError, match="expected the page of the chapter"):
    claims.main(config("--write"))
  page.write_text(f"before\n{claims.BEGIN}\nold\n{claims.END}\nafter\n")
  claims.main(config("--write"))
  text = page.read_text()
  first = "| `rl.maze` | `rl.q_learning --env=DynaMaze --steps=20 --seeds=2` | `start_value` 0.5 ± 0.1 | 2 "
  assert first + "| 1: the shortest way | 0 to 1 | 2026-01-01 | 0.1 |\n" in text
  assert "|  |  | `timing.step_seconds` 0.5 | 1 |  | 0 to 60 |  |  |\n" in text and "old" not in text
  assert text.startswith("before\n") and text.endswith("\nafter\n")
  claims.main(config("--write"))
  assert page.read_text() == text
  page.write_text("no place")
  with pytest.raises(InputError, match="no place for the claims"):
    claims.main(config("--write"))


def test_an_incomplete_claim_is_named(chapter):
  chapter.write_text(TOML.replace("band = [0, 1], ", ""))
  with pytest.raises(InputError, match="the claim maze is incomplete: 'band'"):
    claims.read_claims(chapter)


# -- the project's own -------------------------------------------------------------------------------------------------


def test_the_projects_claims_are_those_of_its_experiments(tmp_path):
  names = {name for name, _ in catalogue()}
  found = claims.all_claims()
  assert len({claim.name for claim in found}) == len(found)
  for claim in found:
    assert claim.experiment in names and claim.experiment.startswith(f"{claim.chapter}."), claim.name
    assert claim.figures and all(figure.holds(figure.mean) for figure in claim.figures), claim.name
    for module, *flags in claim.arguments("DIR", tmp_path):
      read(import_module(module).Config, flags, claim.name)  # raises where a flag is gone


# This list only ever gets shorter: what enters the catalogue brings a claim.
UNCLAIMED = {
  "diffusion.sample": "leaves no result card: pictures and an .npz of what another run has learned",
  "lm.generate": "leaves no result card: text that another run's model writes",
  "lm.sentences": "not measured yet with seeds and spread",
}


def test_every_experiment_has_a_claim_or_a_reason():
  assert sorted(claims.unclaimed(claims.all_claims())) == sorted(UNCLAIMED)


def test_every_page_shows_the_claims_of_today():
  shown = list(claims.pages())
  assert {page.parent.name for page, _, _ in shown} == {name.partition(".")[0] for name, _ in catalogue()}
  for page, text, wanted in shown:
    assert text == wanted, f"{page}: run python -m launch.claims --write"


def test_every_revision_is_in_the_history():
  """A figure can be traced to the code that gave it, where there is a whole history to look into."""
  git = lambda *words: subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True)
  if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
    pytest.skip("no whole history")
  history = git("rev-list", "HEAD").stdout.split()
  revisions = {claim.revision for claim in claims.all_claims()}
  unknown = [revision for revision in revisions if not any(commit.startswith(revision) for commit in history)]
  assert revisions and not unknown
