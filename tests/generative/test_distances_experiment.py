"""The study of two parallel lines: figures from samples and from networks, beside closed forms."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.generative import distances
from mlnotes import generative
from mlnotes.engine.errors import InputError


def make_config(**given):
  return distances.Config(**{**dict(thetas=5, samples=64, steps=150, width=16, seeds=2, learning_rate=5e-3), **given})


@pytest.mark.parametrize("theta", [-0.5, 0.0, 0.25])
def test_samples_give_the_closed_forms(theta):
  found = distances.compute_from_samples(jnp.float32(theta), jax.random.key(0), 50)
  np.testing.assert_allclose(found, (np.log(2) * (theta != 0), abs(theta)), atol=1e-5)


def test_lines_are_drawn_at_their_distance_and_uniform_heights():
  x = np.asarray(distances.draw_line(jax.random.key(0), jnp.float32(0.3), 2000))
  assert x.shape == (2000, 2) and np.all(x[:, 0] == np.float32(0.3))
  np.testing.assert_allclose(np.quantile(x[:, 1], (0.25, 0.5, 0.75)), (0.25, 0.5, 0.75), atol=0.05)


@functools.cache
def learned():
  """At -.5 and .5."""
  learn = jax.jit(functools.partial(distances.learn, make_config()))
  found = [learn(jax.random.key(0), jnp.float32(theta)) for theta in (-0.5, 0.5)]
  return jax.tree.map(lambda *values: np.stack(values), *found)


def test_networks_learn_both_distances():
  """A classifier that tells all apart has the most of a divergence, log 2, a critic the distance."""
  found = learned()
  np.testing.assert_allclose(found.jensen_shannon, np.log(2), atol=0.05)
  np.testing.assert_allclose(found.wasserstein, 0.5, atol=0.1)


def test_slopes_point_away_from_the_data_and_those_of_minimax_are_the_least():
  found = learned()
  for slope in (found.wasserstein_slope, found.non_saturating, found.saturating):
    assert slope[0] < 0 < slope[1]
  np.testing.assert_allclose(np.abs(found.wasserstein_slope), 1, atol=0.2)
  assert np.all(np.abs(found.saturating) < 0.1 * np.abs(found.non_saturating))


def test_figures_are_largest_errors_and_mean_slopes_of_each_seed(tmp_path, monkeypatch):
  """Of networks that are off by known amounts; at no distance the divergence of a classifier does not count."""

  def learn(config, key, theta):
    exact = jax.tree.map(lambda of: of[0], generative.parallel_lines(theta[None]))
    return distances.Learned(
      jensen_shannon=jnp.where(theta == 0, 5.0, exact.jensen_shannon + 0.1 * (theta > 0.9)),
      wasserstein=exact.wasserstein - 0.2 * (theta < -0.9),
      saturating=jnp.where(theta == 0, 5.0, 0.01 * jnp.sign(theta)),
      non_saturating=jnp.where(theta == 0, 5.0, 4 * theta),
      wasserstein_slope=jnp.where(theta == 0, 5.0, jnp.where(theta < -0.9, 1.0, jnp.sign(theta))),
    )

  monkeypatch.setattr(distances, "learn", learn)
  monkeypatch.setattr(distances, "draw", lambda theta, exact, sampled, learned, path: path.touch())
  assert distances.main(make_config(workdir=str(tmp_path))) == 0
  metrics = json.loads((tmp_path / "result.json").read_text())["metrics"]
  expected = {
    "js_error": 0, "wasserstein_error": 0, "learned_js_error": 0.1, "learned_wasserstein_error": 0.2,
    "saturating_slope": 0.01, "non_saturating_slope": 3.0, "wasserstein_slope": 1.0, "wasserstein_slope_sign": 0.75,
  }  # fmt: skip
  assert metrics.keys() == expected.keys() and (tmp_path / "distances.png").exists()
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name]["seeds"], [value] * 2, atol=1e-5, err_msg=name)


def test_each_seed_and_distance_has_a_key_of_its_own(tmp_path, monkeypatch):
  keys = lambda config, key, theta: distances.Learned(*[jnp.float32(jax.random.uniform(key))] * 5)
  monkeypatch.setattr(distances, "learn", keys)
  seen = []
  monkeypatch.setattr(distances, "draw", lambda theta, exact, sampled, learned, path: seen.append(learned.saturating))
  distances.study(make_config(), tmp_path)
  assert seen[0].shape == (2, 5) and len(np.unique(seen[0])) == 10


def test_curves_of_the_first_seed_are_drawn(tmp_path):
  theta = np.linspace(-1, 1, 5)
  exact = jax.tree.map(np.asarray, generative.parallel_lines(jnp.asarray(theta)))
  found = distances.Learned(*[np.ones((2, 5))] * 5)
  distances.draw(theta, exact, (theta, theta), found, tmp_path / "distances.png")
  assert (tmp_path / "distances.png").stat().st_size > 1000


@pytest.mark.parametrize(
  ("flags", "sentence"),
  [
    (dict(thetas=4), "--thetas=4 is out of range: expected an odd number"),
    (dict(steps=0), "--steps=0"),
    (dict(learning_rate=0.0), "--learning_rate=0.0"),
  ],
)
def test_bad_flags_are_refused_in_a_sentence(flags, sentence):
  with pytest.raises(InputError, match=sentence):
    make_config(**flags)
