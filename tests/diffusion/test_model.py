"""A model's own sampler and bound against the report's loop over the same network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.diffusion import ddpm
from experiments.diffusion._report import Sampler, Studio, make_reference, write_report
from mlnotes.data.flags import load_data
from mlnotes.engine.experiment import example_keys

pytestmark = pytest.mark.thorough  # whole runs

SMALL = dict(timesteps=6, channels=8, multipliers=(1, 2), num_blocks=1, attention_resolutions=(), sample_steps=3)


@pytest.fixture(scope="module")
def trained():
  """(config, data, model, parameters that are not the initial ones: these output zero)."""
  config = ddpm.Config(**SMALL, quality_samples=40)
  data = load_data(config)
  model = ddpm.make_model(config, data)
  params = jax.jit(model.init)(jax.random.key(0))
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  moved = [x + 0.05 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves)]
  return config, data, model, jax.tree.unflatten(treedef, moved)


@pytest.mark.parametrize("sampler", [Sampler("ddim", 3), Sampler("ddpm", 6)])
def test_the_reports_loop_samples_what_the_compiled_one_does(trained, sampler):
  _, _, model, params = trained
  label = jnp.arange(5)
  key = jax.random.key(2)
  *_, (_, _, looped) = Studio(model, params).iterate(key, label, sampler)
  key = jax.random.clone(key)  # the same numbers on purpose
  compiled = jax.jit(
    lambda params: model.sample(params, key, label, sampler=sampler.name, num_steps=sampler.num_steps)
  )(params)
  np.testing.assert_allclose(looped, compiled, atol=1e-4)


def test_the_reports_bound_is_the_models(trained):
  _, data, model, params = trained
  chunk = data.test.read(np.arange(7))
  key = jax.random.key(3)
  looped = Studio(model, params).bits_per_dim(key, chunk)
  keys = example_keys(key, jnp.arange(7))
  network = model.make_network(params, jnp.asarray(chunk["label"]))
  compiled = model.compute_bits_per_dim(keys, network, model.to_input(jnp.asarray(chunk["image"])))
  np.testing.assert_allclose(looped, compiled, rtol=1e-3)


def test_guidance_of_one_is_the_conditional_network(trained):
  _, _, model, params = trained
  x = jax.random.normal(jax.random.key(4), (3, *model.image_shape))
  label, t = jnp.array([1, 2, 3]), jnp.array([0, 2, 5])
  plain = model.make_network(params, label)(x, t)
  almost = model.make_network(params, label, weight=1.0 + 1e-6)(x, t)
  hidden = model.make_network(params, jnp.full(3, model.num_classes))(x, t)
  np.testing.assert_allclose(plain, almost, atol=1e-4)
  np.testing.assert_allclose(model.make_network(params, label, weight=0.0)(x, t)[..., :1], hidden[..., :1], atol=1e-4)
  assert np.max(np.abs(plain - hidden)) > 1e-3


def test_the_report_writes_figures_and_pictures(trained, tmp_path, monkeypatch):
  monkeypatch.setenv("MLNOTES_CACHE", str(tmp_path / "cache"))
  config, data, model, params = trained
  figures = write_report(model, params, jax.random.key(5), data, config, tmp_path)
  assert all(np.isfinite(value) for value in figures.values())
  assert figures["judge_accuracy"] > 0.97
  # An untrained model is far from the data, farther than real images are from each other.
  assert figures["frechet_distance"] > 2 * figures["real_distance"] and figures["bits_per_dim"] > 3
  for name in ("samples", "trajectory", "real_and_generated", "quality"):
    assert (tmp_path / f"{name}.png").stat().st_size > 1000
  assert "ddim,3" in (tmp_path / "quality.csv").read_text()
  # Real images measured as if they were samples come out as near as real ones are.
  reference = make_reference(data, 100)
  real = reference.features[np.random.default_rng(1).permutation(len(reference.features))[:100]]
  assert reference.distance(real) < 1.5 * reference.real_distance
