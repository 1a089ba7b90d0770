"""Regression in context: the learners beside it against closed forms, what the model may see, its curriculum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lm import in_context
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key
from mlnotes.lm.tasks import (
  Prompt,
  averaged_predictions,
  draw_regression,
  expected_error,
  leave_features_out,
  ridge_predictions,
)


def test_ridge_is_that_of_another_library_and_sees_nothing_of_what_is_asked():
  from sklearn.linear_model import Ridge

  prompt = draw_regression(root_key(0), 7, 3, noise=0.5)
  found = np.asarray(ridge_predictions(prompt.x, prompt.y, 0.5))
  x, y = np.asarray(prompt.x, np.float64), np.asarray(prompt.y, np.float64)
  assert found[0] == 0
  for k in range(1, 7):
    theirs = Ridge(alpha=0.25, fit_intercept=False).fit(x[:k], y[:k]).predict(x[k : k + 1])[0]
    np.testing.assert_allclose(found[k], theirs, rtol=1e-4, atol=1e-5)
  later = ridge_predictions(prompt.x, prompt.y.at[4:].add(9.0), 0.5)
  np.testing.assert_allclose(found[:5], later[:5], rtol=1e-5)


def test_errors_are_as_theory_says():
  """Noiseless: d - k for k < d, then none; of the mean of y x, whose covariance is (d + 1) / k, d (d + 1) / k."""
  prompts = jax.jit(jax.vmap(lambda key: draw_regression(key, 6, 4)))(jax.random.split(root_key(1), 4000))
  said = jax.jit(jax.vmap(lambda x, y: ridge_predictions(x, y, 0.0)))(prompts.x, prompts.y)
  error = np.asarray(jnp.mean(jnp.square(said - prompts.y), 0))
  np.testing.assert_allclose(error, expected_error(6, 4), rtol=0.1, atol=0.02)
  said = jax.jit(jax.vmap(averaged_predictions))(prompts.x, prompts.y)
  error = np.asarray(jnp.mean(jnp.square(said - prompts.y), 0))
  np.testing.assert_allclose(error[1:], 4 * 5 / np.arange(1, 6), rtol=0.15)


def test_a_smaller_function_is_the_same_one_without_some_features():
  prompt = draw_regression(root_key(2), 5, 4)
  small = leave_features_out(prompt, 2)
  np.testing.assert_allclose(small.y, prompt.x[:, :2] @ prompt.w[:2], rtol=1e-5, atol=1e-6)
  assert not np.any(small.x[:, 2:]) and np.all(small.x[:, :2] == prompt.x[:, :2])
  jax.tree.map(np.testing.assert_array_equal, leave_features_out(prompt, 4), prompt)
  noisy = draw_regression(root_key(2), 2000, 1, noise=0.5, scale=3.0)
  assert abs(np.std(noisy.y - noisy.x @ noisy.w) - 0.5) < 0.05 and abs(np.std(noisy.x) - 3) < 0.2


def test_the_model_says_each_output_from_what_is_before_it():
  config = in_context.Config(features=2, points=4, depth=1, heads=2, width=8)
  module = in_context.build_module(config)
  x, y = jax.random.normal(root_key(0), (1, 4, 2)), jax.random.normal(root_key(1), (1, 4))
  params = module.init(root_key(2), x, y)
  params = jax.tree.map(lambda p: 3 * p, params)
  call = jax.jit(lambda x, y: module.apply(params, x, y)[0])
  said = call(x, y)
  changed = np.asarray(jnp.abs(call(x, y.at[0, 1].add(1.0)) - said)) > 1e-5
  np.testing.assert_array_equal(changed, [False, False, True, True])
  changed = np.asarray(jnp.abs(call(x.at[0, 1].add(1.0), y) - said)) > 1e-5
  np.testing.assert_array_equal(changed, [False, True, True, True])


def test_a_curriculum_grows():
  config = in_context.Config(features=4, points=8, curriculum=2, curriculum_every=10)
  found = [tuple(int(x) for x in in_context.growth(config, jnp.int32(step))) for step in (0, 9, 10, 25, 999)]
  assert found == [(2, 4), (2, 4), (3, 6), (4, 8), (4, 8)]
  assert tuple(map(int, in_context.growth(in_context.Config(features=4, points=8), jnp.int32(0)))) == (4, 8)


def test_an_update_counts_what_the_curriculum_has_and_a_report_measures(tmp_path, monkeypatch):
  asked = []
  best = lambda x, y, noise: asked.append(noise) or ridge_predictions(x, y, noise)
  monkeypatch.setattr(in_context, "ridge_predictions", best)
  flags = dict(features=2, points=4, depth=1, heads=2, width=8, batch_size=8, curriculum=1, curriculum_every=5)
  config = in_context.Config(**flags, test_prompts=16)
  experiment, feeds = in_context.make(config), in_context.make_feeds(config)
  batch = feeds.train.draw(feeds.train.arrays, root_key(0), 0)
  state = jax.jit(experiment.init)(root_key(0), batch)
  _, metrics = jax.jit(experiment.step)(state, batch)
  small = jax.vmap(lambda *prompt: leave_features_out(Prompt(*prompt), 1))(batch["x"], batch["y"], batch["w"])
  said = jax.jit(lambda x, y: experiment.model(state)(x, y))(small.x, small.y)
  error = np.square(np.asarray(said) - np.asarray(small.y))
  np.testing.assert_allclose(metrics["loss"], error[:, :2].mean(), rtol=1e-4)
  given = feeds.evaluate.draw(feeds.evaluate.arrays, 0)
  found = jax.jit(experiment.evaluate)(state, given)
  assert found["loss"].count == 8 * 4 and found["ridge"].total < found["loss"].total
  reported = experiment.report(state, tmp_path)
  assert len(asked) == 3 and set(asked) == {config.noise} == {0.5}  # a deviation, as the learner wants it
  assert reported["worst_ratio"] > 1 and (tmp_path / "in_context.png").stat().st_size > 5000


@pytest.mark.parametrize(
  ("flags", "name"), [(dict(points=1), "points"), (dict(noise=-1.0), "noise"), (dict(heads=3), "heads"),
                      (dict(curriculum=9), "curriculum"), (dict(features=0), "features")],
)  # fmt: skip
def test_bad_flags_are_one_sentence(flags, name):
  with pytest.raises(InputError, match=f"--{name}"):
    in_context.Config(**flags)
