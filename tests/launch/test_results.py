"""Tables, curves and page data of work directories written by hand."""

import csv
import io
import json
import os
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

import numpy as np
import pytest

from launch import page, results
from launch.runs import (
  Curve,
  choose_best,
  choose_metric,
  find_mode,
  find_runs,
  group_runs,
  join_curves,
  rank,
  split_settings,
)
from mlnotes.engine.errors import InputError

from .work_directories import write_run


def read(*directories):
  runs, problems = find_runs(map(str, directories))
  groups, repeated = group_runs(runs)
  return groups, problems + repeated


@pytest.fixture
def sweep(tmp_path):
  """Two learning rates with three seeds each in single runs, and a third one, unfinished."""
  for rate, values in ((0.1, (1.0, 2.0, 3.0)), (0.01, (5.0, 5.0, 8.0))):
    for seed, value in enumerate(values):
      curve = ((10, value / 2), (20, value))
      write_run(tmp_path / f"lr{rate}" / f"seed{seed}", config={"seed": seed, "learning_rate": rate}, curve=curve)
  write_run(tmp_path / "open", config={"learning_rate": 1.0}, curve=((10, 0.5),), finished=False)
  return tmp_path


def test_runs_that_differ_in_the_seed_are_one_group(sweep):
  groups, problems = read(sweep)
  assert not problems and len(groups) == 3
  best = rank(groups, "episode_return", "max")
  assert [group.settings["learning_rate"] for group in best] == [0.01, 0.1, 1.0]
  mean, std, finite, count = best[0].final["episode_return"]
  assert (mean, finite, count) == (6.0, 3, 3) and std == pytest.approx(np.sqrt(3.0))
  assert best[0].seeds == [0, 1, 2] and best[0].finished
  assert best[0].wall_seconds == 12 and best[0].devices == "1 x cpu"
  assert best[2].state == "at update 10" and best[2].final["episode_return"] == (0.5, 0.0, 1, 1)
  curve = best[0].curves["eval/episode_return"]
  np.testing.assert_array_equal(curve.steps, [10, 20])
  np.testing.assert_allclose(curve.mean, [3.0, 6.0])
  np.testing.assert_allclose(curve.std, [np.sqrt(3.0) / 2, np.sqrt(3.0)])
  assert best[0].final["train/loss"] == (pytest.approx(1 / 20), 0.0, 3, 3)


def test_seeds_in_one_program_and_in_several_are_the_same(tmp_path):
  write_run(tmp_path / "together", config={"seeds": 3}, curve=((10, (1, 2, 4)), (20, (2, 3, 7))))
  for seed, (early, late) in enumerate(((1, 2), (2, 3), (4, 7))):
    write_run(tmp_path / f"apart{seed}", config={"seed": seed}, curve=((10, early), (20, late)))
  (together,), _ = read(tmp_path / "together")
  (apart,), _ = read(*(tmp_path / f"apart{seed}" for seed in range(3)))
  assert together.final["episode_return"] == apart.final["episode_return"]
  for part in ("steps", "mean", "std"):
    one, other = (getattr(group.curves["eval/episode_return"], part) for group in (together, apart))
    np.testing.assert_allclose(one, other)


def test_a_seed_that_is_there_twice_counts_once(tmp_path):
  write_run(tmp_path / "a", curve=((10, 1.0),), finished=False)
  write_run(tmp_path / "b")
  (group,), problems = read(tmp_path)
  assert len(group.runs) == 1 and group.finished
  assert problems == [f"{tmp_path / 'a'} repeats seeds of {tmp_path / 'b'}: left out."]


def test_curves_of_different_length():
  joined = join_curves(
    [Curve(np.array([1, 2]), np.array([[1.0, 2.0]])), Curve(np.array([2, 3]), np.array([[4.0, 5.0]]))]
  )
  np.testing.assert_array_equal(joined.steps, [1, 2, 3])
  np.testing.assert_allclose(joined.mean, [1, 3, 5])
  np.testing.assert_allclose(joined.std, [0, np.sqrt(2), 0])
  nothing = Curve(np.array([1]), np.array([[np.nan], [np.nan]]))
  assert np.isnan(nothing.mean[0]) and nothing.std[0] == 0


def test_finished_runs_count_where_there_are_any(tmp_path):
  write_run(tmp_path / "done", curve=((20, 4.0),))
  write_run(tmp_path / "early", config={"seed": 1}, curve=((10, 100.0),), finished=False)
  (group,), _ = read(tmp_path)
  assert group.final["episode_return"] == (4.0, 0.0, 1, 1)
  assert group.state == "1 of 2 finished, at update 10"


# -- which metric, which way -------------------------------------------------------------------------------------------


def test_metric_and_direction_are_those_of_the_cards(tmp_path):
  for i in range(2):
    write_run(tmp_path / f"a{i}", config={"learning_rate": i}, metric="score", best=("score", "min"))
  write_run(tmp_path / "b", experiment="rl.dqn")
  groups, _ = read(tmp_path)
  assert choose_metric(groups) == ("score", "min")
  assert find_mode(groups, "episode_return") == "max"


def test_a_run_on_its_way_is_judged_as_its_config_says(tmp_path, capsys):
  """Beside a metric that comes first in every line and would be taken otherwise."""
  for rate, values in ((0.1, (500, 1.0)), (0.2, (7, 2.0))):
    directory = write_run(tmp_path / str(rate), config={"learning_rate": rate}, finished=False)
    line = {"step": 10} | dict(zip(("eval/episode_length", "eval/score"), values))
    (directory / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    saved = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**saved, "best_metric": "score", "best_mode": "min"}))
  groups, _ = read(tmp_path)
  assert choose_metric(groups) == ("score", "min")
  results.main(results.Config(out=str(tmp_path / "out")), [str(tmp_path)])
  assert "lowest score: 1, rl.ppo learning_rate=0.1" in capsys.readouterr().out


def test_of_runs_that_do_not_say_what_they_are_judged_by_none_is_the_best(tmp_path, capsys):
  for rate in (0.1, 0.2):
    config = {"learning_rate": rate}
    write_run(tmp_path / str(rate), config=config, finished=False, metric="episode_length", curve=((20, 1 + rate),))
  groups, _ = read(tmp_path)
  assert choose_metric(groups) == ("episode_length", "") and not choose_best(groups, "episode_length", "")
  results.main(results.Config(out=str(tmp_path / "out")), [str(tmp_path)])
  said = capsys.readouterr().out
  assert "| 1.2 " in said and not re.search("highest|lowest|ordered", said)
  assert data_of(tmp_path / "out" / "index.html")["modes"]["episode_length"] == ""
  # Who asks for a metric is told which is the highest of it, or the lowest.
  assert find_mode(groups, "episode_length") == "max" and find_mode(groups, "bits_per_dim_estimate") == "min"
  results.main(results.Config(out=str(tmp_path / "out"), mode="min"), [str(tmp_path)])
  assert "lowest episode_length: 1.1, " in capsys.readouterr().out


def test_a_curve_is_of_the_split_that_the_table_ranks_by(tmp_path, monkeypatch):
  """Of one evaluation a point is drawn, and not the training curve of that name, however long."""
  for rate, loss in ((0.1, 3.0), (0.2, 4.0)):
    directory = write_run(
      tmp_path / str(rate), config={"learning_rate": rate}, metric="loss", best=("loss", "min"), curve=((20, loss),)
    )
    with (directory / "metrics.jsonl").open("a") as file:
      file.writelines(json.dumps({"step": step, "train/loss": 0.1}) + "\n" for step in (21, 22, 23))
  figures = []
  monkeypatch.setattr(results, "save_figure", lambda figure, path: figures.append(figure))
  for metric, points, label in (("", 1, "loss, evaluation"), ("train/loss", 4, "loss, training")):
    results.write_results([str(tmp_path)], results.Config(out=str(tmp_path / "out"), metric=metric))
    (axis,) = figures.pop().axes
    assert (
      axis.get_xlim()[0] == 0
      and axis.get_ylabel() == label
      and [len(line.get_xdata()) for line in axis.lines] == [points, points]
    )
    if not metric:
      assert [line.get_ydata().tolist() for line in axis.lines] == [[3.0], [4.0]]
      assert all(line.get_marker() == "o" for line in axis.lines)


def test_what_is_missing_or_not_finite_ranks_last(tmp_path):
  write_run(tmp_path / "nan", config={"learning_rate": 1}, final={"episode_return": [float("nan")]})
  write_run(tmp_path / "none", config={"learning_rate": 2}, final={"other": [1.0]}, curve=())
  write_run(tmp_path / "good", config={"learning_rate": 3}, final={"episode_return": [-5.0]})
  groups, _ = read(tmp_path)
  assert rank(groups, "episode_return", "max")[0].settings["learning_rate"] == 3


def test_a_row_that_lost_seeds_says_so_and_ranks_below_those_that_lost_fewer(tmp_path):
  """However good the rest of it is, either way."""
  nan = float("nan")
  for rate, values in ((0.1, [0.95] + 7 * [nan]), (0.01, 8 * [0.9]), (0.001, 8 * [nan]), (1.0, 4 * [nan] + 4 * [0.99])):
    write_run(tmp_path / f"{rate}", config={"seeds": 8, "learning_rate": rate}, final={"episode_return": values})
  groups, _ = read(tmp_path)
  for mode, order in (("max", [0.01, 1.0, 0.1, 0.001]), ("min", [0.01, 1.0, 0.1, 0.001])):
    assert [g.settings["learning_rate"] for g in rank(groups, "episode_return", mode)] == order
  text = results.to_markdown(rank(groups, "episode_return", "max"), "episode_return", "max")
  assert "0.95 ± 0 (1 of 8 seeds finite)" in text and "0.99 ± 0 (4 of 8 seeds finite)" in text
  assert "not finite (0 of 8 seeds)" in text and "| 0.9 ± 0 " in text
  rows = list(csv.DictReader(io.StringIO(results.to_csv(rank(groups, "episode_return", "max")))))
  assert [row["episode_return finite seeds"] for row in rows] == ["8", "4", "1", "0"]
  (best,) = choose_best(groups, "episode_return", "max").values()
  assert best[0].settings["learning_rate"] == 0.01


def test_a_seed_that_diverged_in_a_run_without_a_card_counts_as_lost(tmp_path):
  curve = ((10, (1.0, 5.0)), (20, (2.0, float("nan"))))
  write_run(tmp_path / "a", config={"seeds": 2}, curve=curve, finished=False)
  (group,), _ = read(tmp_path)
  assert group.final["episode_return"] == (2.0, 0.0, 1, 2)


def test_seeds_of_several_runs_count_together(tmp_path):
  for seed, value in enumerate((1.0, float("nan"), 3.0)):
    write_run(tmp_path / str(seed), config={"seed": seed}, final={"episode_return": [value]})
  (group,), _ = read(tmp_path)
  assert group.final["episode_return"] == (2.0, pytest.approx(np.sqrt(2.0)), 2, 3)


def test_each_task_has_its_own_best(tmp_path, capsys):
  for env, method, value in (
    ("A-v0", "ppo", 1.0),
    ("A-v0", "a2c", 2.0),
    ("B-v0", "ppo", 900.0),
    ("B-v0", "a2c", 800.0),
  ):
    write_run(tmp_path / env / method, f"rl.{method}", config={"env": env}, final={"episode_return": [value]})
  write_run(tmp_path / "c", "chapter.x", config={"dataset": "digits"}, metric="accuracy", best=("accuracy", "max"))
  groups, _ = read(tmp_path)
  best = choose_best(groups, "episode_return", "max")
  assert {task: (g.experiment, name) for task, (g, name, _) in best.items()} == {
    "rl env=A-v0": ("rl.a2c", "episode_return"),
    "rl env=B-v0": ("rl.ppo", "episode_return"),
    "chapter dataset=digits": ("chapter.x", "accuracy"),
  }
  assert results.main(results.Config(out=str(tmp_path / "out")), [str(tmp_path)]) == 0
  said = capsys.readouterr().out
  assert "highest episode_return of rl env=A-v0: 2, rl.a2c" in said
  assert "highest episode_return of rl env=B-v0: 900, rl.ppo" in said
  assert "## rl.ppo env=A-v0" in said and "## chapter.x\n" in said


def test_which_split_chose_the_row_is_said(tmp_path, capsys):
  for rate in (0.1, 0.2):
    write_run(tmp_path / str(rate), config={"learning_rate": rate}, best_split="test", curve=((20, rate),))
  results.main(results.Config(out=str(tmp_path / "out")), [str(tmp_path)])
  said = capsys.readouterr().out.splitlines()
  assert "highest episode_return: 0.2, rl.ppo learning_rate=0.2, chosen on the test split" in said
  assert "Rows are ordered by episode_return, chosen on the test split." in said
  assert any(line.startswith("All with ") for line in said) and said[-1].startswith("2 runs in 2 groups: open")
  results.main(results.Config(out=str(tmp_path / "out")), [str(tmp_path / "0.1")])
  assert capsys.readouterr().out.splitlines()[-1].startswith("1 run in 1 group: open")
  data = data_of(tmp_path / "out" / "index.html")
  assert {group["split"] for group in data["groups"]} == {"test"}


def test_runs_of_different_revisions_are_different_rows(tmp_path):
  write_run(tmp_path / "old", revision="a" * 40, clean=True, curve=((20, 1.0),))
  write_run(tmp_path / "new", revision="b" * 40, clean=False, curve=((20, 2.0),))
  groups, problems = read(tmp_path)
  assert not problems
  assert {g.settings["revision"]: g.final["episode_return"].mean for g in groups} == {
    "aaaaaaaaaa": 1.0, "bbbbbbbbbb+": 2.0
  }  # fmt: skip
  assert split_settings(groups)[1] == ["revision"]
  # One that has no card yet is of the only revision there is, or of none that is known.
  write_run(tmp_path / "third", config={"seed": 1}, finished=False)
  assert len(read(tmp_path)[0]) == 3 and len(read(tmp_path / "old", tmp_path / "third")[0]) == 1
  again, problems = read(tmp_path / "old", write_run(tmp_path / "again", revision="a" * 40, clean=True))
  assert len(again) == 1 and "repeats seeds of" in problems[0]
  rows = list(csv.DictReader(io.StringIO(results.to_csv(groups))))
  assert {row["revision"] for row in rows} == {"aaaaaaaaaa", "bbbbbbbbbb+"}


def test_flags_that_change_no_number_are_in_no_title(tmp_path):
  """Those of the experiment's own as well as those that all have."""
  for i in range(2):
    more = {"seed": i, "gif": bool(i), "checkpoint_every": i, "data_dir": str(i), "devices": i, "tensorboard": bool(i)}
    write_run(tmp_path / str(i), config=more)
  write_run(tmp_path / "other", config={"discount": 0.5, "data_dir": "elsewhere"})
  groups, problems = read(tmp_path)
  assert not problems and len(groups) == 2 and split_settings(groups)[1] == ["discount"]


# -- tables ----------------------------------------------------------------------------------------------------------


def test_csv_holds_every_metric(sweep):
  groups, _ = read(sweep)
  rows = list(csv.DictReader(io.StringIO(results.to_csv(rank(groups, "episode_return", "max")))))
  assert [row["learning_rate"] for row in rows] == ["0.01", "0.1", "1.0"]
  assert float(rows[0]["episode_return mean"]) == 6.0 and rows[0]["episode_return seeds"] == "3"
  assert rows[0]["seeds"] == "0-2" and rows[2]["wall_seconds"] == "" and rows[2]["state"] == "at update 10"
  assert "steps" in rows[0] and "seed" not in rows[0] and "workdir" not in rows[0]
  assert rows[0]["directories"].split("; ") == [str(sweep / "lr0.01" / f"seed{i}") for i in range(3)]


def test_markdown_lists_what_differs_and_once_what_does_not(sweep):
  groups, _ = read(sweep)
  text = results.to_markdown(rank(groups, "episode_return", "max"), "episode_return", "max")
  header, _, first, *_ = text.split("\n\n")[1].splitlines()
  assert [cell.strip() for cell in header.split("|")[1:3]] == ["learning_rate", "episode_return"]
  assert [cell.strip() for cell in first.split("|")[1:3]] == ["0.01", "6 ± 1.7"]
  assert text.count("steps=20") == 1


def test_markdown_survives_any_name(tmp_path):
  write_run(tmp_path / "a", experiment="<script>", config={"note": "a|b\nc"})
  write_run(tmp_path / "b", experiment="<script>", config={"note": "d"})
  groups, _ = read(tmp_path)
  text = results.to_markdown(groups, "episode_return", "max")
  assert "a\\|b c" in text and "<script" not in text


def test_settings_that_differ(sweep, tmp_path):
  groups, _ = read(sweep)
  shared, differ = split_settings(groups)
  assert differ == ["learning_rate"] and shared == {"steps": 20}
  write_run(tmp_path / "newer", config={"added": 1, "learning_rate": 7})
  groups, _ = read(tmp_path)
  assert set(split_settings(groups)[1]) == {"learning_rate", "added"}


def test_everything_is_written(sweep, tmp_path):
  out = tmp_path / "out"
  found = results.write_results([str(sweep)], results.Config(out=str(out)))
  assert {path.name for path in out.iterdir()} == {"index.html", "results.csv", "results.md", "comparison.png"}
  assert (found["metric"], found["mode"]) == ("episode_return", "max")
  lowest = results.write_results([str(sweep)], results.Config(out=str(out), metric="train/loss"))
  assert lowest["mode"] == "min"
  with pytest.raises(InputError, match=r"--metric=episod_return is in none of the runs: did you mean episode_return\?"):
    results.write_results([str(sweep)], results.Config(out=str(out), metric="episod_return"))
  with pytest.raises(InputError, match="--metric=x is in none of the runs: expected one of episode_return, train/loss"):
    results.write_results([str(sweep)], results.Config(out=str(out), metric="x"))


def test_out_that_cannot_be_written(sweep, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match=r"--out=.*file cannot be written"):
    results.write_results([str(sweep)], results.Config(out=str(tmp_path / "file")))


# -- what is broken --------------------------------------------------------------------------------------------------


def test_nothing_to_read(tmp_path):
  with pytest.raises(InputError, match="which is not a directory"):
    find_runs([str(tmp_path / "absent")])
  with pytest.raises(InputError, match="found no run in"):
    find_runs([str(tmp_path)])


@pytest.mark.parametrize(
  ("name", "content", "sentence"),
  [
    ("config.json", b"{", "is not that of a run"),
    ("config.json", b"[1]", "is not that of a run"),
    ("config.json", b'{"model": 3}', "is not that of a run (no 'experiment')"),
    ("config.json", b'{"experiment": "x", "config": {"seed": "a"}}', "is not that of a run"),
    ("config.json", b"\xff\xfe\x00", "is not that of a run"),
    ("result.json", b'{"finished": tr', "the run counts as unfinished"),
    ("result.json", b"[]", "the run counts as unfinished"),
    ("result.json", b'{"metrics": {"a": 3}}', "no figures that can be read"),
    ("result.json", b'{"metrics": [3], "timing": 7}', "no figures that can be read"),
    ("result.json", b'{"metrics": {"a": {"seeds": 3}}, "steps": "x", "revision": 3}', "no figures that can be read"),
    ("result.json", b'{"metrics": 3, "best_metric": [], "best_mode": {}, "steps": [1]}', "no figures that can be read"),
    ("result.json", b'{"metrics": 3, "timing": {"wall_seconds": "x"}, "steps": 1e999}', "no figures that can be read"),
    ("config.json", b'{"experiment": "x", "config": {"seeds": 1000000000}}', "is not that of a run"),
    ("config.json", b'{"experiment": "x", "config": {"seed": true}}', "is not that of a run"),
    ("config.json", b'{"experiment": "x", "config": [1]}', "is not that of a run"),
    ("config.json", b"3", "is not that of a run"),
    ("metrics.jsonl", b"\xff\xfe\x00\n", "no curves of this run"),
    ("metrics.jsonl", b"3\n", "no curves of this run"),
    ("metrics.jsonl", b'{"eval/x": 1}\n', "no curves of this run"),
    ("metrics.jsonl", b'{"step": 1, "eval/x": "high"}\n', "no curves of this run"),
    ("metrics.jsonl", b'{"step": 1, "eval/x": 1}\n{"step": 2, "eval/x": 1, "eval/x/seeds": [1, 2]}\n', "no curves"),
  ],
)  # fmt: skip
def test_broken_files_are_named_in_one_sentence(tmp_path, name, content, sentence):
  write_run(tmp_path / "good", config={"learning_rate": 7})
  broken = write_run(tmp_path / "broken")
  (broken / name).write_bytes(content)
  groups, problems = read(tmp_path)
  assert len(groups) == (1 if name == "config.json" else 2)
  results.to_csv(groups), results.to_markdown(groups, "episode_return", "max")
  (problem,) = problems
  assert str(broken / name) in problem and sentence in problem and "\n" not in problem


def test_half_a_line_at_the_end_is_left_out(tmp_path):
  directory = write_run(tmp_path / "a", finished=False)
  with (directory / "metrics.jsonl").open("a") as file:
    file.write('{"step": 30, "eval/epi')
  (group,), problems = read(tmp_path)
  assert not problems and group.runs[0].step == 20


def test_only_a_config_is_a_run_that_has_just_begun(tmp_path):
  directory = write_run(tmp_path / "a", finished=False)
  (directory / "metrics.jsonl").unlink()
  groups, problems = read(tmp_path)
  assert not problems and groups[0].state == "at update 0" and not groups[0].final
  results.write_results([str(tmp_path)], results.Config(out=str(tmp_path / "out")))


def test_metrics_without_a_config_are_named(tmp_path):
  write_run(tmp_path / "good")
  (write_run(tmp_path / "bad") / "config.json").unlink()
  _, problems = read(tmp_path)
  assert problems == [f"{tmp_path / 'bad'} has no config.json: skipped."]


# -- the page --------------------------------------------------------------------------------------------------------


def data_of(path):
  text = path.read_text()
  return json.loads(text.partition('<script type="application/json" id="data">')[2].partition("</script>")[0])


def test_page_holds_its_data_and_nothing_from_elsewhere(sweep, tmp_path):
  out = tmp_path / "out"
  results.write_results([str(sweep)], results.Config(out=str(out), title="a <b> & c"))
  text = (out / "index.html").read_text()
  assert "<title>a &lt;b&gt; &amp; c</title>" in text and "{{" not in text
  assert "src=" not in text and "@import" not in text and "url(" not in text
  data = data_of(out / "index.html")
  assert data["metric"] == "episode_return" and data["modes"]["train/loss"] == "min"
  best = data["groups"][0]
  assert best["settings"] == {"learning_rate": 0.01} and best["final"]["episode_return"][0] == 6.0
  assert best["curves"]["eval/episode_return"] == [[10, 20], [3.0, 6.0], [0.86603, 1.7321]]
  assert (out / best["runs"][0]["link"] / "config.json").exists()


def test_names_cannot_leave_the_data(tmp_path):
  name = "</script><script>alert(1)</script><!--"
  write_run(tmp_path / "a", experiment=name, config={"note": name})
  results.write_results([str(tmp_path)], results.Config(out=str(tmp_path / "out")))
  text = (tmp_path / "out" / "index.html").read_text()
  assert "alert(1)</script>" not in text and "<!--" not in text
  assert data_of(tmp_path / "out" / "index.html")["groups"][0]["experiment"] == name


HOSTILE = [
  "javascript:alert(1)<!--", "data:text/html,<script>alert(1)</script>", '"><script>alert(1)</script>', "a b",
  "100%", "%2e%2e", "#top", "?x=1&y", "a:b", "'onclick=alert(1)'", "\\\\host", "\n", "ü", "a..", "&quot;", b"\xff\xfe",
]  # fmt: skip


def test_a_link_is_a_path_whatever_the_directory_is_called(tmp_path):
  """As a browser resolves it: it stays on the page's own host and file system, and finds the directory."""
  for seed, name in enumerate(HOSTILE):
    parts = [part for part in os.fsdecode(name).split("/") if part]
    write_run(tmp_path.joinpath("runs", *parts), config={"seed": seed})
  for out in (tmp_path / "runs", tmp_path / "out"):  # beside the runs, where a link would begin with their name
    results.write_results([str(tmp_path / "runs")], results.Config(out=str(out)))
    (group,) = data_of(out / "index.html")["groups"]
    assert len(group["runs"]) == len(HOSTILE)
    for run in group["runs"]:
      link = run["link"]
      assert link.startswith("./") and re.fullmatch(r"[A-Za-z0-9_.~/%-]+", link)
      resolved = urlsplit(urljoin((out / "index.html").as_uri(), link))
      assert resolved.scheme == "file" and not (resolved.netloc or resolved.query or resolved.fragment)
      assert (Path(os.fsdecode(unquote_to_bytes(resolved.path))) / "config.json").exists()
    text = (out / "index.html").read_text()
    assert "<script>alert" not in text and "<!--" not in text
    (out / "results.md").read_text(), (out / "results.csv").read_text()


def test_the_page_takes_links_as_they_are():
  """Nothing is put together in the page: what `page_data` encodes is what is clicked."""
  text = (Path(page.__file__).parent / "page.html").read_text()
  assert re.findall(r"href:([^}]*)}", text) == [" r.link "]


def test_colors_are_those_of_the_picture(sweep, tmp_path, monkeypatch):
  drawn, draw = {}, results._draw_line
  record = lambda axis, curve, text, color: (drawn.update({text: color}), draw(axis, curve, text, color))
  monkeypatch.setattr(results, "_draw_line", record)
  results.write_results([str(sweep)], results.Config(out=str(tmp_path / "out")))
  groups = data_of(tmp_path / "out" / "index.html")["groups"]
  assert drawn == {f"learning_rate={g['settings']['learning_rate']}": g["color"] for g in groups}
  assert len(set(page.colors(40))) == 40 and all(re.fullmatch("#[0-9a-f]{6}", c) for c in page.colors(40))


def test_curves_are_thinned_so_that_hundreds_of_runs_stay_small(tmp_path):
  for i in range(3):
    write_run(tmp_path / f"r{i}", config={"learning_rate": i}, curve=[(t, 1 / 3 + t % 7) for t in range(1, 400)])
  groups, _ = read(tmp_path)
  few, many = (
    page.page_data(groups * times, [], "episode_return", "max", tmp_path, picture_bytes=0) for times in (1, 200)
  )
  steps = few["groups"][0]["curves"]["eval/episode_return"][0]
  assert len(steps) == 300 and (steps[0], steps[-1]) == (1, 399)
  assert len(many["groups"]) == 600 and many["groups"][599]["curves"]["eval/episode_return"][0][-1] == 399
  assert len(page.embed_json(many)) < 4e6


def test_pictures_within_their_budget(tmp_path):
  for i in range(3):
    write_run(tmp_path / f"r{i}", config={"learning_rate": i}, picture=True)
  groups, _ = read(tmp_path)
  chosen = page.choose_pictures(groups, 1_000_000)
  assert all(entry[0]["data"].startswith("data:image/png;base64,") for entry in chosen)
  (small,) = {len(entry[0]["data"]) for entry in chosen}
  chosen = page.choose_pictures(groups, 2 * small)
  assert ["data" in entry[0] for entry in chosen] == [True, True, False]
  assert all("data" not in entry[0] for entry in page.choose_pictures(groups, 0))


def test_large_and_broken_pictures(tmp_path):
  from PIL import Image

  noise = np.random.default_rng(0).integers(0, 256, (900, 1500, 3), np.uint8)
  Image.fromarray(noise).save(tmp_path / "large.png")
  kind, data = page.encode_picture(tmp_path / "large.png")
  assert kind == "jpeg" and len(data) < (tmp_path / "large.png").stat().st_size / 3
  (tmp_path / "broken.png").write_bytes(b"x" * 400_000)
  assert page.encode_picture(tmp_path / "broken.png") is None
