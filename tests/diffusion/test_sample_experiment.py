"""`diffusion.sample`: which parameters, sampler and flags its images come from."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probe import NUM_CLASSES, SHAPE, STEPS, Probe, make_config, make_data

import mlnotes.plot
from experiments.diffusion import ddpm
from experiments.diffusion import sample as sample_experiment
from mlnotes.diffusion import (
  VARIANCES,
  clip_to_unit,
  ddim_step,
  ddpm_step,
  make_denoiser,
  make_timesteps,
  sample,
)
from mlnotes.errors import InputError
from mlnotes.experiment import stream_key


@pytest.fixture
def draw(monkeypatch, tmp_path):
  """(flags, the config of the run) -> (images, labels, arguments of the restoring); a state in place of a run."""
  data, seen = make_data(), {}
  for module in (ddpm, sample_experiment):
    monkeypatch.setattr(module, "load_data", lambda config: data)
  monkeypatch.setattr(ddpm, "UNet", Probe)
  for name in ("new_figure", "save_figure", "show_images"):
    monkeypatch.setattr(mlnotes.plot, name, lambda *_, **__: (None, np.array([[None]])))

  def write(trained=None, **flags):
    trained = make_config(label_dropout=0.1, variance="learned") if trained is None else trained
    monkeypatch.setattr(sample_experiment, "load_config", lambda directory, classes: ("diffusion.ddpm", trained))

    def restore(directory, experiment, feeds, config, checkpoint, seed):
      seen.update(directory=directory, checkpoint=checkpoint, seed=seed)
      state = experiment.init(jax.random.key(0), jax.tree.map(jnp.asarray, data.train.read(np.arange(2))))
      return {seed: state._replace(params=jax.tree.map(jnp.zeros_like, state.params))}, 11

    monkeypatch.setattr(sample_experiment, "restore_states", restore)
    config = sample_experiment.Config(run=str(tmp_path), num_samples=7, sample_batch=4, **flags)
    assert sample_experiment.main(config) == 0
    with np.load(tmp_path / "samples" / "samples.npz") as file:
      return file["image"], file["label"], dict(seen)

  return write


def expected(label, step, num_steps, weight=1.0, seed=0):
  """From the parts: the probe's output is x / 2 - .3 t + offset, guided; offsets .1, .2, .3, and .4 for no label."""
  model = ddpm.make_model(make_config(label_dropout=0.1, variance="learned"), make_data())
  offset = 0.4 + weight * ((label + 1) / 10 - 0.4)

  def network(offset, x, t):
    mean = 0.5 * x - 0.3 * (t[:, None, None, None] + 1) / STEPS + offset[:, None, None, None]
    return jnp.concatenate([mean, jnp.full_like(x, 0.2)], axis=-1)

  images = []
  for i in range(0, len(label), 4):
    chunk = jnp.asarray(np.resize(offset[i : i + 4], 4), jnp.float32)
    denoise = make_denoiser(functools.partial(network, chunk), model.schedule, model.parameterization, clip_to_unit)
    key = stream_key(jax.random.key(seed), "sample", i // 4)
    times = make_timesteps(STEPS, num_steps)
    x = jax.jit(lambda key, d=denoise, t=times: sample(key, d, model.schedule, (4, *SHAPE), step, t))(key)
    images.append(np.asarray(x)[: len(label) - i])
  return np.round((np.concatenate(images) + 1) * 127.5)


ANCESTRAL = functools.partial(ddpm_step, variance=VARIANCES["learned"])


@pytest.mark.parametrize(
  ("flags", "options"),
  [
    (dict(), dict(step=ddim_step, num_steps=STEPS)),
    (dict(sampler="ddpm", sample_steps=0, seed=5), dict(step=ANCESTRAL, num_steps=STEPS, seed=5)),
    (dict(eta=0.5, sample_steps=3), dict(step=functools.partial(ddim_step, eta=0.5), num_steps=3)),
    (dict(guidance=2.0, sample_steps=2), dict(step=ddim_step, num_steps=2, weight=2.0)),
  ],
)
def test_samples_are_those_of_the_averaged_parameters_and_the_flags(draw, flags, options):
  images, label, _ = draw(**flags)
  np.testing.assert_array_equal(label, np.arange(7) % NUM_CLASSES)
  assert images.dtype == np.uint8 and images.shape == (7, *SHAPE)
  np.testing.assert_allclose(images, expected(label, **options), atol=1)
  assert images.std() > 5


def test_the_label_checkpoint_and_seed_that_were_asked_for(draw, tmp_path):
  images, label, seen = draw(label=2, checkpoint="best")
  assert label.tolist() == [2] * 7 and seen == dict(directory=tmp_path, checkpoint="best", seed=0)
  np.testing.assert_allclose(images, expected(label, ddim_step, STEPS), atol=1)
  trained = dataclasses.replace(make_config(label_dropout=0.1, variance="learned"), seed=4, seeds=3)
  assert draw(trained)[2]["seed"] == 4 and draw(trained, model_seed=6)[2] == dict(
    directory=tmp_path, checkpoint="last", seed=6
  )


def test_what_the_run_cannot_sample_is_refused(draw):
  with pytest.raises(InputError, match=r"--guidance=3 needs a network .* found --label_dropout of .*=0, expected"):
    draw(make_config(), guidance=3.0)
  with pytest.raises(InputError, match="--label=3 is out of range: expected -1 to 2"):
    draw(label=3)
  unconditional = make_config(conditional=False)
  with pytest.raises(InputError, match=r"--label=0 .* expected -1: .* was trained with --noconditional"):
    draw(unconditional, label=0)
  with pytest.raises(InputError, match=r"--guidance=2.0 .* expected 1: .* was trained with --noconditional"):
    draw(unconditional, guidance=2.0)


def test_eta_is_told_to_be_idle_where_it_is():
  config = functools.partial(sample_experiment.Config, run="runs/digits")
  assert config(sampler="ddpm").idle_flags().keys() == {"eta"} and config().idle_flags() == {}
