"""Which checkpoint is kept as the best, and what a log says of seeds that have nothing to say.

An experiment whose evaluations are written down beforehand: seed s is judged by `SCRIPT[s][step]`.
"""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlnotes
from mlnotes.data import Feeds
from mlnotes.engine.checkpoint import Checkpoints
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import Experiment, Mean
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.engine.record import read_metrics

NAN = float("nan")
NO_DATA = Feeds()


class State(NamedTuple):
  step: jax.Array
  key: jax.Array
  params: jax.Array  # which seed it is


def make(script, counts=None):
  """`counts[s][step]`: how many values seed s has of a metric that not every update has, each 5 + s."""
  script = jnp.asarray(script, jnp.float32)
  counts = jnp.ones_like(script) if counts is None else jnp.asarray(counts, jnp.float32)

  def init(key, batch):
    return State(jnp.zeros([], jnp.int32), key, jax.random.key_data(key)[-1].astype(jnp.float32))

  def step(state, batch):
    seed, state = state.params.astype(int), state._replace(step=state.step + 1)
    count = counts[seed, state.step]
    return state, {"loss": jnp.float32(1), "now_and_then": Mean(count * (5.0 + seed), count)}

  evaluate = lambda state, batch: {"loss": Mean(script[state.params.astype(int), state.step], jnp.float32(1))}
  return Experiment(init, step, evaluate, lambda state, directory: None)


def run(directory, script, *, counts=None, feeds=NO_DATA, best_metric="loss", best_mode="min", **flags):
  steps = len(script[0]) - 1
  settings = dict(log_every=1, eval_every=1, checkpoint_every=2, devices=1, tensorboard=False) | flags
  config = LoopConfig(workdir=str(directory), steps=steps, seeds=len(script), **settings)
  experiment = make(script, counts)
  assert train(experiment, feeds, config, name="written", best_metric=best_metric, best_mode=best_mode) == 0
  checkpoints = Checkpoints(directory / "checkpoints")
  best = checkpoints.best_step()
  checkpoints.close()
  return best, json.loads((directory / "result.json").read_text())


def test_an_evaluation_between_two_checkpoints_can_be_the_best(tmp_path):
  """Also where no checkpoint is due, and where the last two of them have an equal score."""
  best, card = run(tmp_path / "a", [[0, 5, 4, 1, 4, 4, 4]])
  assert best == 3 and card["best_checkpoint"] == {"step": 3, "value": 1.0, "lost_seeds": 0}
  best, card = run(tmp_path / "b", [[0, 5, 4, 1, 4, 9, 4]], best_mode="max")
  assert best == 5 and card["best_checkpoint"]["value"] == 9.0
  best, _ = run(tmp_path / "c", [[0, 9, 9, 1, 9, 9, 9]], eval_every=3, checkpoint_every=4)
  assert best == 3
  # Of equals the first, as on the card: later ones were no better.
  best, card = run(tmp_path / "e", [[0, 5, 1, 3, 1, 4, 1]])
  assert best == 2 and card["best_checkpoint"]["step"] == 2
  # Asked for none on the way: then there is the last one.
  assert run(tmp_path / "d", [[0, 5, 1, 4, 3]], checkpoint_every=0)[0] == 4


def test_a_seed_that_diverged_does_not_block_the_others(tmp_path):
  lost = [0, NAN, NAN, NAN, NAN]
  best, card = run(tmp_path / "from the start", [[0, 5, 1, 3, 4], lost])
  assert best == 2 and card["best_checkpoint"] == {"step": 2, "value": 1.0, "lost_seeds": 1}
  # What all seeds were there for is better than what they were not.
  best, card = run(tmp_path / "later", [[0, 5, 4, 1, 1], [0, 5, 4, NAN, NAN]])
  assert best == 2 and card["best_checkpoint"]["lost_seeds"] == 0
  assert card["metrics"]["loss"]["mean"] == 1.0 and card["metrics"]["loss"]["finite"] == 1
  assert card["metrics"]["loss"]["seeds"] == [1.0, None]


def test_a_best_metric_that_is_not_measured_is_refused_before_training(tmp_path):
  with pytest.raises(InputError, match=r"best_metric is 'lose': expected one that is evaluated \(loss\)"):
    run(tmp_path / "run", [[0, 1]], best_metric="lose")
  assert not (tmp_path / "run" / "metrics.jsonl").exists() and not (tmp_path / "run" / "checkpoints").exists()


def test_the_split_that_chose_is_said(tmp_path, capsys):
  _, card = run(tmp_path / "a", [[0, 5, 1, 4]], feeds=Feeds(split="test"))
  assert card["best_split"] == "test" and card["prng"] == "threefry2x32"
  assert card["versions"]["mlnotes"] == mlnotes.__version__ and set(card) >= {"revision", "clean"}
  assert "best checkpoint: step 2, loss 1, chosen on the test split\n" in capsys.readouterr().out
  _, card = run(tmp_path / "b", [[0, 5, 1, 4]])
  assert card["best_split"] == "" and "best checkpoint: step 2, loss 1\n" in capsys.readouterr().out


def test_a_metric_is_logged_for_the_seeds_that_have_it(tmp_path):
  counts = [[0, 0, 2, 1], [0, 0, 0, 1], [0, 0, 1, 1]]
  run(tmp_path, [[0, 1, 1, 1]] * 3, counts=counts)
  first, second, third = (line for line in read_metrics(tmp_path / "metrics.jsonl") if "train/loss" in line)
  assert "train/now_and_then" not in first and first["train/loss/seeds"] == [1, 1, 1]
  assert second["train/now_and_then"] == 6.0 and second["train/now_and_then/seeds"] == [5.0, None, 7.0]
  assert second["train/now_and_then/finite"] == 2 and second["train/now_and_then/std"] == pytest.approx(np.sqrt(2))
  assert third["train/now_and_then/seeds"] == [5.0, 6.0, 7.0] and "train/now_and_then/finite" not in third


def test_a_seed_without_a_count_is_not_taken_for_diverged(tmp_path):
  """Nor is one that has diverged saved by another that has nothing to say."""
  run(tmp_path / "a", [[0, 1, 1, 1]], counts=[[0, 0, 0, 1]])
  with pytest.raises(InputError, match="now_and_then not finite"):
    run(tmp_path / "b", [[0, 1, 1, 1]] * 2, counts=[[0, 0, NAN, 1], [0, 0, NAN, 1]])
