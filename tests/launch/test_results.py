"""Tables, curves and page data of work directories written by hand."""

import csv
import io
import json

import numpy as np
import pytest

from launch import page, results
from launch.runs import Curve, choose_metric, find_mode, find_runs, group_runs, join_curves, rank, split_settings
from mlnotes.errors import InputError

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
  mean, std, count = best[0].final["episode_return"]
  assert (mean, count) == (6.0, 3) and std == pytest.approx(np.sqrt(3.0))
  assert best[0].seeds == [0, 1, 2] and best[0].finished
  assert best[0].wall_seconds == 12 and best[0].devices == "1 x cpu"
  assert best[2].state == "at update 10" and best[2].final["episode_return"] == (0.5, 0.0, 1)
  curve = best[0].curves["eval/episode_return"]
  np.testing.assert_array_equal(curve.steps, [10, 20])
  np.testing.assert_allclose(curve.mean, [3.0, 6.0])
  np.testing.assert_allclose(curve.std, [np.sqrt(3.0) / 2, np.sqrt(3.0)])
  assert best[0].final["train/loss"] == (pytest.approx(1 / 20), 0.0, 3)


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
  assert group.final["episode_return"] == (4.0, 0.0, 1)
  assert group.state == "1 of 2 finished, at update 10"


# -- which metric, which way -------------------------------------------------------------------------------------------


def test_metric_and_direction_are_those_of_the_cards(tmp_path):
  for i in range(2):
    write_run(tmp_path / f"a{i}", config={"learning_rate": i}, metric="score", best=("score", "min"))
  write_run(tmp_path / "b", experiment="rl.dqn")
  groups, _ = read(tmp_path)
  assert choose_metric(groups) == ("score", "min")
  assert find_mode(groups, "episode_return") == "max"


def test_metric_and_direction_by_name_without_a_card(tmp_path):
  write_run(tmp_path / "a", finished=False, metric="bits_per_dim_estimate")
  groups, _ = read(tmp_path)
  assert choose_metric(groups) == ("bits_per_dim_estimate", "min")
  assert find_mode(groups, "knn_accuracy") == "max"


def test_what_is_missing_or_not_finite_ranks_last(tmp_path):
  write_run(tmp_path / "nan", config={"learning_rate": 1}, final={"episode_return": [float("nan")]})
  write_run(tmp_path / "none", config={"learning_rate": 2}, final={"other": [1.0]}, curve=())
  write_run(tmp_path / "good", config={"learning_rate": 3}, final={"episode_return": [-5.0]})
  groups, _ = read(tmp_path)
  assert rank(groups, "episode_return", "max")[0].settings["learning_rate"] == 3


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
  text = results.to_markdown(rank(groups, "episode_return", "max"), "episode_return")
  header, _, first, *_ = text.split("\n\n")[1].splitlines()
  assert [cell.strip() for cell in header.split("|")[1:3]] == ["learning_rate", "episode_return"]
  assert [cell.strip() for cell in first.split("|")[1:3]] == ["0.01", "6 ± 1.7"]
  assert text.count("steps=20") == 1


def test_markdown_survives_any_name(tmp_path):
  write_run(tmp_path / "a", experiment="<script>", config={"note": "a|b\nc"})
  write_run(tmp_path / "b", experiment="<script>", config={"note": "d"})
  groups, _ = read(tmp_path)
  text = results.to_markdown(groups, "episode_return")
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
