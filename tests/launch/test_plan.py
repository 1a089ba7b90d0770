"""From a sweep's text to its runs, and every way in which it is refused before anything is started."""

import json
import math

import pytest

from launch.plan import combine, draw_settings, make_runs, name_run, parse_grid, read_list
from launch.sweep import Config, explain, main
from mlnotes.engine.errors import InputError, nearest


def test_grid_gives_all_combinations():
  assert parse_grid("a=1,2; b=x") == [{"a": "1", "b": "x"}, {"a": "2", "b": "x"}]
  assert [point["seed"] for point in parse_grid("seed=0..3,7")] == ["0", "1", "2", "3", "7"]
  points = parse_grid("--multipliers = (1,2),(1,2,4); dataset='a;b.npz',\"c d\"")
  assert [point["multipliers"] for point in points] == ["1,2", "1,2", "1,2,4", "1,2,4"]
  assert {point["dataset"] for point in points} == {"a;b.npz", "c d"}


@pytest.mark.parametrize("text", ["a", "a=", "=1", "a=1;a=2", "a=(1,2", "a=1)", "a='1", "a b=1", "seed=3..1"])
def test_grid_that_is_none(text):
  with pytest.raises(InputError, match="expected"):
    parse_grid(text)


def test_draws_follow_their_laws():
  rows = draw_settings("rate=log(1e-4,1e-2); n=int(0,3); p=uniform(-1,1); m=choice((1,2),(4))", 2000, 0)
  rates = [float(row["rate"]) for row in rows]
  # Uniform in the logarithm: half are below the geometric mean; five standard deviations are 5 sqrt(2000) / 2.
  below = sum(rate < math.sqrt(1e-4 * 1e-2) for rate in rates)
  assert abs(below - 1000) < 112 and min(rates) >= 1e-4 and max(rates) <= 1e-2
  assert {row["n"] for row in rows} == {"0", "1", "2", "3"} and {row["m"] for row in rows} == {"1,2", "4"}
  assert abs(sum(float(row["p"]) for row in rows)) < 5 * math.sqrt(2000 / 3)
  # More draws, or more names, leave the first ones alone.
  assert draw_settings("rate=log(1e-4,1e-2)", 3, 0) == [{"rate": row["rate"]} for row in rows[:3]]
  assert draw_settings("rate=log(1e-4,1e-2)", 3, 1) != draw_settings("rate=log(1e-4,1e-2)", 3, 0)


@pytest.mark.parametrize(
  "text", ["a=log(0,1)", "a=log(1)", "a=normal(0,1)", "a=5", "a=int(2,1)", "a=uniform(a,b)", "a=choice()"]
)
def test_laws_that_are_none(text):
  with pytest.raises(InputError, match="log"):
    draw_settings(text, 1, 0)


def test_list_files(tmp_path):
  rows = [{"learning_rate": 0.001, "gif": False}, {"hidden": [8, 8], "env": "CartPole-v1"}]
  (tmp_path / "a.json").write_text(json.dumps(rows))
  (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
  expected = [{"learning_rate": "0.001", "gif": "false"}, {"hidden": "8,8", "env": "CartPole-v1"}]
  assert read_list(tmp_path / "a.json") == read_list(tmp_path / "a.jsonl") == expected
  (tmp_path / "bad.jsonl").write_text('{"seed": 1}\n{"seed" 2}\n')
  with pytest.raises(InputError, match=r"bad\.jsonl cannot be read \(line 2: "):
    read_list(tmp_path / "bad.jsonl")
  for text in ("{}", "[1]", "[", "[]", '[{"a": null}]'):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(InputError, match=r"--list=.*expected"):
      read_list(tmp_path / "bad.json")


def test_factors_multiply():
  assert len(combine(parse_grid("a=1,2"), draw_settings("b=int(1,9)", 3, 0))) == 6
  with pytest.raises(InputError, match="--a is varied twice"):
    combine(parse_grid("a=1"), [{"a": "2"}])


def test_names_are_readable_and_differ():
  assert name_run({"learning_rate": 0.001, "nesterov": True, "hidden": (64, 64)}) == (
    "learning_rate=0.001,nesterov=true,hidden=(64,64)"
  )
  odd = [name_run({"dataset": text}) for text in ("a/b", "a b", "a?b", "x" * 300, "x" * 301, "数")]
  assert len(set(odd)) == len(odd)
  assert all(len(name) < 200 and "/" not in name and name.isascii() for name in odd)


def test_runs_are_checked_configs(tmp_path):
  runs = make_runs(["rl.ppo", "rl.a2c"], "--steps=7 --hidden=8,8 --nogif", parse_grid("discount=.9,0.90,.99"), tmp_path)
  assert [str(run.directory.relative_to(tmp_path)) for run in runs] == [
    "rl.ppo/discount=0.9", "rl.ppo/discount=0.99", "rl.a2c/discount=0.9", "rl.a2c/discount=0.99",
  ]  # fmt: skip
  assert all((r.config.steps, r.config.hidden, r.config.gif) == (7, (8, 8), False) for r in runs)
  assert [r.config.discount for r in runs] == [0.9, 0.99] * 2
  assert runs[0].config.workdir == str(runs[0].directory)
  tuned = make_runs(["rl.ppo"], "", parse_grid("env=Pendulum-v1"), tmp_path)[0].config
  assert tuned.gae_lambda == 0.9  # the environment's own setting


@pytest.mark.parametrize(
  "flags, words",
  [
    (dict(experiment=("rl.pppo",)), ["--experiment=rl.pppo", "did you mean rl.ppo?"]),
    (dict(experiment=("ppo",)), ["did you mean rl.ppo?"]),
    (dict(experiment=("diffusion.sample",)), ["diffusion.sample has no --workdir"]),
    (dict(fixed="--stpes=3"), ["rl.q_learning has no flag --stpes", "did you mean --steps?"]),
    (dict(fixed="--steps=x"), ["steps", "x"]),
    (dict(fixed="steps=3"), ["steps=3", "--name=value"]),
    (dict(fixed="--env='a"), ["--fixed", "quotation"]),
    (dict(fixed="--workdir=x"), ["--workdir is set by the sweep"]),
    (dict(grid="learning_rte=1"), ["rl.q_learning has no flag --learning_rte", "did you mean --learning_rate?"]),
    (dict(grid="workdir=a,b"), ["--workdir is set by the sweep"]),
    (dict(grid="discount=.9,1.5"), ["--discount=1.5", "[0, 1]"]),
    (dict(grid="precision=float16"), ["precision", "bfloat16"]),
    (dict(grid="steps=3", fixed="--steps=4"), ["--steps", "--fixed"]),
    (dict(fixed="steps=3"), ["--fixed='steps=3'"]),
    (dict(grid="seed=0,1; env=FrozenLake-v1,Nope-v1"), ["rl.q_learning: --env=Nope-v1", "FrozenLake-v1"]),
    (dict(workdir=""), ["--workdir= is out of range"]),
    (dict(draws=5), ["--draws=5", "--random"]),
    (dict(partition="gpu"), ["--partition=gpu", "--cluster=slurm"]),
    (dict(random="learning_rate=log(0,1)"), ["log(0,1)", "0 < low"]),
    (dict(random="learning_rate=log(1,2"), ["--random holds", "in pairs"]),
    (dict(workdir="{tmp}/file/runs"), ["--workdir=", "cannot be written", "Not a directory"]),
    (dict(workdir="/proc/runs"), ["--workdir=/proc/runs cannot be written"]),
    (dict(cluster="slurm"), ["--cluster=slurm", "sbatch is not on this machine"]),
    (dict(cluster="slurm", vectorize=True, grid="seed=0,1"), ["sbatch is not on this machine"]),
  ],
)
def test_what_cannot_run_is_refused_first(flags, words, tmp_path, monkeypatch):
  monkeypatch.setenv("PATH", str(tmp_path))
  (tmp_path / "file").write_text("")
  given = {"experiment": ("rl.q_learning",), "workdir": "{tmp}/runs", **flags}
  with pytest.raises(InputError) as caught:
    main(Config(**{**given, "workdir": given["workdir"].format(tmp=tmp_path)}))
  message = str(caught.value)
  assert all(word in message for word in words), message
  assert "\n" not in message and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_directory_of_other_settings_is_refused(tmp_path):
  run = make_runs(["rl.q_learning"], "--steps=3", parse_grid("seed=1"), tmp_path)[0]
  run.directory.mkdir(parents=True)
  saved = {"experiment": "rl.q_learning", "config": {"steps": 3}}
  (run.directory / "config.json").write_text(json.dumps(saved))
  with pytest.raises(InputError, match="belongs to a run with other settings"):
    main(Config(experiment=("rl.q_learning",), fixed="--steps=4", grid="seed=1", workdir=str(tmp_path)))


def test_nearest():
  assert nearest("lerning_rate", ["seed", "learning_rate"]) == "did you mean learning_rate?"
  assert nearest("zzz", ["seed", "steps"]) == "expected one of seed, steps."


def test_a_flag_of_the_experiment_is_told_from_one_that_nobody_has(monkeypatch):
  monkeypatch.setattr("sys.argv", ["sweep", "--experiment=rl.ppo", "--steps=3"])
  assert "--fixed='--steps" in explain("steps") and "--fixed='--nogif" in explain("nogif")
  assert explain("zzz") == ""


def test_dry_run_creates_nothing(tmp_path, capsys):
  config = Config(
    experiment=("rl.q_learning", "rl.sarsa"), fixed="--steps=3", grid="seed=0..2; learning_rate=.1,.5",
    workdir=str(tmp_path / "runs"), dry_run=True,
  )  # fmt: skip
  assert main(config) == 0
  out = capsys.readouterr().out
  assert "12 runs: 0 finished before, 12 to run in 12 jobs" in out and "--steps=3" in out
  assert f"{tmp_path}/runs/rl.sarsa/seed=2,learning_rate=0.5  --seed=2 --learning_rate=.5" in out
  assert not (tmp_path / "runs").exists()
