"""What pretraining makes of an objective: its keys, parts, rates and averages. The objective is one number, w."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lm import _objectives, pretrain
from mlnotes.engine.experiment import Mean, root_key
from mlnotes.lm import Objective

FLAGS = dict(
  length=6, batch_size=4, steps=4, warmup_steps=0, log_every=2, eval_every=0, weight_decay=0.0, clip_norm=0.0
)


@pytest.fixture
def start(monkeypatch, tmp_path):
  """(**flags) -> a run whose terms are w, what `prepare` drew, and what dropout's key says; `rows` trained at once."""
  path = tmp_path / "text.txt"
  path.write_text("a few words in a line\n" * 40)
  rows = []

  def task(config, corpus):
    def terms(params, examples, key):
      ones = jnp.ones(len(examples["tokens"]))
      if key is not None:
        rows.append(len(ones))
      found = {"loss": params["w"] * ones, "drawn": examples["drawn"], "trains": ones * (key is not None)}
      dropped = ones * (0 if key is None else jax.random.uniform(key))
      return {name: Mean(x, ones) for name, x in {**found, "dropped": dropped}.items()}

    prepare = lambda key, tokens: {"tokens": tokens, "drawn": jax.random.uniform(key)}
    objective = Objective(lambda key, examples: {"w": jnp.float32(5)}, prepare, terms, {"loss": 1.0})
    return _objectives.Task(objective, lambda params: params, lambda params, directory: {"w": params["w"]}, None)

  monkeypatch.setitem(_objectives.OBJECTIVES, "causal", task)

  def make(**flags):
    config = pretrain.Config(**{**FLAGS, "dataset": str(path), **flags})
    experiment, feeds = pretrain.make(config), pretrain.make_feeds(config)
    batch = feeds.train.draw(feeds.train.arrays, root_key(0), 0)
    state = experiment.init(root_key(0), batch)
    step, evaluate = jax.jit(experiment.step), jax.jit(experiment.evaluate)
    return types.SimpleNamespace(batch=batch, state=state, step=step, evaluate=evaluate, rows=rows, of=experiment)

  return make


def test_what_is_hidden_and_dropped_is_drawn_anew_for_each_update(start):
  run = start()
  at = lambda i: run.step(run.state._replace(step=jnp.int32(i)), run.batch)[1]
  for name in ("drawn", "dropped"):
    first, again, next_one = (float(found[name].total) for found in (at(0), at(0), at(1)))
    assert first == again != next_one
  assert run.step(run.state._replace(key=root_key(7)), run.batch)[1]["drawn"].total != at(0)["drawn"].total


def test_parts_are_as_large_as_the_flag_says(start):
  run = start(accumulate=2)
  run.step(run.state, run.batch)
  assert set(run.rows) == {2}
  run.rows.clear()
  run = start()
  run.step(run.state, run.batch)
  assert set(run.rows) == {4}


def test_an_evaluation_goes_by_the_window_and_trains_nothing(start):
  run = start()
  window = lambda i, place: {
    "tokens": run.batch["tokens"], "index": jnp.zeros(4, int).at[place].set(i), "mask": jnp.zeros(4).at[place].set(1)
  }  # fmt: skip
  first, moved, other = (run.evaluate(run.state, window(*at)) for at in ((7, 0), (7, 2), (8, 2)))
  assert first["drawn"].total == moved["drawn"].total != other["drawn"].total
  assert first["trains"].total == first["dropped"].total == 0 and first["loss"] == Mean(5, 1)


def test_the_schedule_ends_with_the_run(start):
  """Adam's first updates of a constant slope are the rate itself."""
  run = start(schedule="linear", learning_rate=0.5)
  weights, state = [5.0], run.state
  for _ in range(4):
    state, _ = run.step(state, run.batch)
    weights.append(float(state.params["w"]))
  np.testing.assert_allclose(-np.diff(weights), [0.5, 0.375, 0.25, 0.125], rtol=1e-3)


def test_what_is_kept_of_lookahead_are_its_slow_weights(start, tmp_path):
  run = start(lookahead=3, learning_rate=0.5)
  state, _ = run.step(run.state, run.batch)
  batch = {**run.batch, "index": jnp.arange(4), "mask": jnp.ones(4)}
  assert state.params["w"] < 5 and run.evaluate(state, batch)["loss"] == Mean(20, 4)
  assert run.of.model(state)["w"] == run.of.report(state, tmp_path)["w"] == 5
