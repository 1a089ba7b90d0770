"""Whole runs in small: what a run leaves behind, what it learns, what it refuses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.meta import maml, meta_sgd, reptile
from mlnotes.engine.errors import InputError
from mlnotes.meta import Task
from mlnotes.meta.method import mean_over_chunks
from mlnotes.meta.reptile import sample_minibatches

SMALL = dict(devices=1, eval_every=0, checkpoint_every=0, tensorboard=False)
IMAGES = dict(tasks="images", network="fully_connected", ways=3, shots=2, queries=3, eval_queries=3, batch_size=8)


def run(module, directory, **settings):
  assert module.main(module.Config(workdir=str(directory), **{**SMALL, **settings})) == 0
  return json.loads((directory / "result.json").read_text())["metrics"]


@pytest.mark.thorough
def test_sinusoids_are_learned_in_fewer_steps_than_before(tmp_path):
  """After some hundred updates one step goes further than the same step from an untrained start."""
  sizes = dict(batch_size=10, shots=5, queries=5, widths=(16, 16), eval_inner_steps=4, eval_examples=10, test_tasks=100)
  metrics = run(maml, tmp_path, steps=600, log_every=300, learning_rate=5e-3, inner_learning_rate=0.03, **sizes)
  after = {n: metrics[f"test_loss_after_{n}"]["mean"] for n in (0, 1, 4)}
  assert after[4] < after[1] < 0.75 * after[0]
  assert after[4] < 0.6 * metrics["untrained_loss_after_4"]["mean"]
  assert 0 < metrics["test_loss_after_4_interval"]["mean"] < after[4]
  for picture in ("fits", "adaptation", "curves"):
    assert (tmp_path / f"{picture}.png").stat().st_size > 1000


@pytest.mark.thorough
def test_image_runs_say_what_needs_no_learning(tmp_path):
  metrics = run(reptile, tmp_path, steps=3, eval_inner_steps=3, eval_examples=8, test_tasks=20, seeds=2, **IMAGES)
  assert len(metrics["test_accuracy_after_3"]["seeds"]) == 2
  floor = metrics["pixel_prototype_accuracy"]
  assert floor["std"] == 0 and 0.8 < floor["mean"] <= 1
  for seed in (0, 1):
    for picture in ("episodes", "adaptation"):
      assert (tmp_path / f"seed_{seed}" / f"{picture}.png").stat().st_size > 1000


@pytest.mark.parametrize(
  "module, changes, message",
  [
    (maml, dict(inner_steps=0), "--inner_steps=0 .* 1 or more"),
    (maml, dict(inner_learning_rate=0.0), "--inner_learning_rate=0.0 .* above 0"),
    (maml, dict(batch_size=10, side_by_side=4), "--side_by_side=4 .* divisor of --batch_size=10"),
    (maml, dict(test_tasks=1), "--test_tasks=1 .* 2 or more"),
    (maml, dict(widths=(4, 0)), "--widths=.* 1 or more"),
    (meta_sgd, dict(multi_step_updates=-1), "--multi_step_updates=-1 .* 0 or more"),
    (reptile, dict(inner_batch=60), "--inner_batch=60 .* at most 50, the examples of a task"),
    (reptile, dict(remat=True), "--remat=True .* no backward pass"),
  ],
)
def test_settings_that_make_no_sense_are_refused(module, changes, message):
  with pytest.raises(InputError, match=message):
    module.Config(**changes)


def test_images_bring_their_own_defaults():
  assert maml.Config.tuned(tasks="images").inner_learning_rate == 0.4
  assert maml.Config.tuned(tasks="images", inner_learning_rate=0.1).inner_learning_rate == 0.1
  assert maml.Config.tuned().inner_learning_rate == 0.01


@pytest.mark.parametrize("chunk", [0, 1, 2, 3, 6])
def test_chunks_change_nothing(chunk):
  tasks = Task(jnp.arange(12.0).reshape(6, 2), jnp.arange(6.0))
  mean = lambda tasks: {"support": jnp.mean(tasks.support, axis=0), "query": jnp.mean(tasks.query)}
  found = mean_over_chunks(mean, tasks, chunk)
  np.testing.assert_allclose(found["support"], [5.0, 6.0])
  np.testing.assert_allclose(found["query"], 2.5)


@pytest.mark.thorough
@pytest.mark.parametrize("module", [maml, reptile])
def test_an_update_is_the_same_in_chunks(module):
  """Each task keeps its own mini-batches when the tasks of an update are divided."""
  changes = dict(batch_size=4, shots=3, queries=3, widths=(8,), inner_steps=2, eval_examples=4)
  changes |= dict(inner_batch=2) if module is reptile else {}
  found = []
  for chunk in (0, 1, 2):
    config = module.Config(side_by_side=chunk, **changes)
    experiment, feed = module.make(config), module.make_feeds(config).train
    batch = feed.draw(feed.arrays, jax.random.key(0), 0)
    state, _ = jax.jit(experiment.step)(experiment.init(jax.random.key(1), batch), batch)
    found.append(state.params.initial)
  for other in found[1:]:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found[0], other)


def test_mini_batches_use_every_example_of_a_pass_once(key):
  numbers = jnp.arange(12)
  task = Task({"x": numbers[:5]}, {"x": numbers[5:]})
  batches = np.asarray(sample_minibatches(key, task, steps=5, size=4)["x"])
  assert batches.shape == (5, 4)
  assert sorted(batches[:3].ravel()) == list(range(12))
  assert len(set(batches[3:].ravel())) == 8
  other = np.asarray(sample_minibatches(jax.random.key(1), task, steps=5, size=4)["x"])
  assert (other != batches).any()
