"""The study of blocks: what each run is told, what is read from its card, how blocks are ranked."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from experiments.nn import blocks, classifier
from mlnotes.data import ArraySplit, DataSet
from mlnotes.engine.errors import InputError
from mlnotes.engine.layout import Layout
from mlnotes.nn.blocks import BLOCKS, BlockNet, count_parameters


def make_split(size, seed):
  rng = np.random.default_rng(seed)
  return ArraySplit(rng.integers(0, 17, (size, 8, 8, 1), dtype=np.uint8), rng.integers(0, 3, size).astype(np.int32))


DATA = DataSet("noise", make_split(30, 0), make_split(10, 1), 3, ("a", "b", "c"), 17, (8, 8, 1))
CARDS = {
  "plain": dict(accuracy=[0.7, 0.9], loss=[0.3, 0.1], step_seconds=0.01),
  "residual": dict(accuracy=[0.95, 0.93], loss=[0.2, 0.2], step_seconds=0.03),
  "se": dict(accuracy=[1.0, None], loss=[0.0, None], step_seconds=0.02),
}


@pytest.fixture
def fake_runs(monkeypatch):
  """Cards in place of training, and the settings that each was asked for."""
  asked = []

  def main(config):
    asked.append(config)
    card = CARDS[config.network]
    metrics = {name: {"seeds": card[name], "mean": 0, "std": 0} for name in ("accuracy", "loss")}
    directory = Path(config.workdir)
    directory.mkdir(parents=True)
    text = json.dumps({"metrics": metrics, "timing": {"step_seconds": card["step_seconds"]}})
    (directory / "result.json").write_text(text)
    return 0

  monkeypatch.setattr(classifier, "main", main)
  monkeypatch.setattr(blocks, "load_data", lambda config: DATA)
  return asked


def outcome(accuracy, milliseconds=1.0):
  return blocks.Outcome(8, 1000, np.array(accuracy), np.zeros(len(accuracy)), milliseconds)


def test_the_study_reads_accuracy_cost_and_floors_and_ranks(fake_runs, tmp_path):
  config = blocks.Config(blocks=("plain", "se", "residual"), budget=24_500, seeds=2, workdir=str(tmp_path / "run"))
  assert blocks.main(config) == 0
  found = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
  assert found["plain/accuracy"]["seeds"] == [0.7, 0.9] and found["residual/accuracy"]["mean"] == pytest.approx(0.94)
  assert found["plain/loss"]["mean"] == pytest.approx(0.2)
  assert found["residual/update_milliseconds"]["mean"] == pytest.approx(15)  # 30 for two seeds
  assert abs(found["residual/parameters"]["mean"] / 24_500 - 1) < 0.05
  pixels = [split.image.reshape(len(split), -1).astype(float) for split in (DATA.train, DATA.test)]
  nearest = ((pixels[1][:, None] - pixels[0]) ** 2).sum(-1).argmin(1)
  assert found["nearest_neighbour"]["mean"] == pytest.approx(np.mean(DATA.train.label[nearest] == DATA.test.label))
  rows = (tmp_path / "run" / "table.md").read_text().splitlines()[2:]
  assert [row.split("|")[1].strip() for row in rows[:3]] == ["residual", "plain", "se"]  # se has lost a seed
  assert "| 80 ± 14 |" in rows[1] and "| 70.0 | 5.0 |" in rows[1] and "93.0" in rows[0]
  assert "(1 of 2 seeds finite)" in rows[2]
  assert rows[3].startswith("| nearest neighbour") and rows[4].startswith("| linear classifier")
  assert f"| {100 * found['nearest_neighbour']['mean']:.1f} |" in rows[3]
  assert (tmp_path / "run" / "blocks.png").stat().st_size > 1000


def test_every_run_is_told_the_same_but_for_its_block_and_width(fake_runs, tmp_path):
  flags = dict(
    dataset="digits", image_size=8, batch_size=7, eval_examples=9, seed=3, seeds=2, steps=11, learning_rate=0.5,
    augmentation="none",
  )  # fmt: skip
  config = blocks.Config(blocks=("plain", "residual"), budget=24_500, workdir=str(tmp_path / "run"), **flags)
  assert blocks.main(config) == 0
  for block, asked in zip(config.blocks, fake_runs, strict=True):
    assert {name: getattr(asked, name) for name in flags} == flags
    assert (asked.network, Path(asked.workdir)) == (block, tmp_path / "run" / block)
    assert (asked.eval_every, asked.checkpoint_every) == (0, 0)  # or they would count in the time of an update
    network = BlockNet(block, width=asked.width, num_classes=3)
    assert abs(count_parameters(network, (8, 8, 1)) / 24_500 - 1) < 0.05
  same = [dataclasses.replace(asked, network="plain", width=0, workdir="") for asked in fake_runs]
  assert same[0] == same[1]


def test_an_interrupted_run_ends_the_study_with_its_code(fake_runs, tmp_path, monkeypatch):
  monkeypatch.setattr(classifier, "main", lambda config: 143)
  with pytest.raises(SystemExit) as stopped:
    blocks.main(blocks.Config(blocks=("plain",), budget=24_500, seeds=2, workdir=str(tmp_path / "run")))
  assert stopped.value.code == 143


def test_the_most_accurate_is_first_and_lost_seeds_are_last():
  found = {"low": outcome([0.1, 0.2]), "lost": outcome([1.0, np.nan]), "high": outcome([0.9, 0.8])}
  assert blocks.rank(found) == ["high", "low", "lost"]


def test_the_picture_of_blocks_that_have_lost_seeds(tmp_path):
  found = {"plain": outcome([0.1, np.nan]), "se": outcome([np.nan, np.nan])}
  blocks.draw(found, {"nearest_neighbour": 0.5}, blocks.Config(), tmp_path / "blocks.png")
  assert (tmp_path / "blocks.png").stat().st_size > 1000


def test_all_nine_blocks_come_within_five_percent_of_the_default_budget():
  config = blocks.Config()
  data = DATA._replace(num_classes=10)
  assert len(config.blocks) == len(BLOCKS) == 9
  for block in ("cbam", "shuffled"):  # of those with the coarsest steps
    assert abs(blocks.fit_width(block, config, data)[1] / config.budget - 1) <= 0.05


@pytest.mark.parametrize("flags, words", [
  ({"blocks": ("residul",)}, "--blocks=residul is no block: did you mean residual"),
  ({"blocks": ("se", "se")}, "--blocks=se,se .*each name once"),
  ({"blocks": ()}, "--blocks="),
  ({"seeds": 0}, "--seeds=0"),
  ({"steps": 0}, "--steps=0"),
  ({"learning_rate": 0.0}, "--learning_rate=0.0"),
])  # fmt: skip
def test_a_bad_flag_is_one_sentence_that_names_it(flags, words):
  with pytest.raises(InputError, match=words):
    blocks.Config(**flags)


@pytest.mark.parametrize("budget", [100, 1300])
def test_a_budget_that_a_block_cannot_keep_is_refused_before_anything_is_written(budget, fake_runs, tmp_path):
  with pytest.raises(InputError, match=f"--budget={budget}"):
    blocks.main(blocks.Config(blocks=("residual",), budget=budget, workdir=str(tmp_path / "run")))
  assert not (tmp_path / "run").exists() and not fake_runs


@pytest.mark.parametrize("which", [0, 1])
def test_the_nearest_network_is_refused_below_the_budget_as_above_it(which):
  """Between two widths, a little nearer to one of them."""
  counts = [count_parameters(BlockNet("residual", width=width, num_classes=3), (8, 8, 1)) for width in (4, 5)]
  config = blocks.Config(budget=(sum(counts) - 1) // 2 + which)
  with pytest.raises(InputError, match=f"the nearest has {counts[which]}"):
    blocks.fit_width("residual", config, DATA)


def test_seeds_share_the_cores():
  assert blocks.Config(seeds=8).cpu_layout(2) == Layout(2, 1)
