"""Latent diffusion: what is frozen, what is scaled, and which images a first stage may be of."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.diffusion import _first_stage, _latent_report, latent
from experiments.generative import vae, vqvae
from mlnotes.data.flags import load_data
from mlnotes.engine.errors import InputError
from mlnotes.generative import find_nearest_code, to_unit

TINY = dict(
  timesteps=8, channels=8, num_blocks=1, attention_resolutions=(), first_channels=(4,), latent_channels=2, batch_size=6,
  steps=4, warmup_steps=0, first_steps=2, devices=1, quality_samples=20, sample_steps=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def built():
  config = latent.Config(**TINY)
  data = load_data(config)
  experiment = latent.make(config)
  batch = jax.tree.map(jnp.asarray, {**data.train.read(np.arange(6)), "index": np.arange(6), "mask": np.ones(6)})
  experiment = experiment._replace(step=jax.jit(experiment.step), evaluate=jax.jit(experiment.evaluate))
  return config, experiment, experiment.init(jax.random.key(0), batch), batch


def test_the_network_sees_latents_of_deviation_one(built):
  config, experiment, state, batch = built
  _, metrics = experiment.step(state, batch)
  np.testing.assert_allclose(metrics["latent_deviation"], 1, atol=0.25)  # of six images
  data = load_data(config)
  stage, frozen = _first_stage.load_first_stage(config, data)
  image = jnp.asarray(data.test.image)
  noise = jax.random.normal(jax.random.key(1), (len(image), *stage.grid))
  latents = _first_stage.encode_images(stage, frozen, noise, image, data.levels)
  np.testing.assert_allclose(jnp.std(latents), 1, atol=0.05)
  # There and back again, whatever the scale is.
  # By the training images alone.
  alone = _first_stage.load_first_stage(config, data._replace(test=None))[1].scale
  np.testing.assert_array_equal(alone, frozen.scale)
  straight = stage.decode(frozen.params, stage.encode(frozen.params, to_unit(image, data.levels), noise))
  np.testing.assert_allclose(_first_stage.decode_latents(stage, frozen, latents), np.clip(straight, 0, 1), atol=1e-5)


def test_the_posterior_is_drawn_anew_and_the_first_stage_never_moves(built):
  _, experiment, state, batch = built
  moved, metrics = experiment.step(state, batch)
  jax.tree.map(np.testing.assert_array_equal, moved.frozen, state.frozen)
  assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(moved.params), jax.tree.leaves(state.params)))
  _, later = experiment.step(state._replace(step=jnp.int32(1)), batch)
  assert metrics["latent_deviation"] != later["latent_deviation"]


def test_evaluation_and_samples_are_of_the_averaged_parameters(built):
  _, experiment, state, batch = built
  other = state._replace(params=jax.tree.map(lambda p: p + 1.0, state.params))
  assert experiment.evaluate(other, batch)["loss"] == experiment.evaluate(state, batch)["loss"]
  averaged = state._replace(ema=jax.tree.map(lambda p: p + 0.1, state.ema))
  assert experiment.evaluate(averaged, batch)["loss"] != experiment.evaluate(state, batch)["loss"]
  assert experiment.model(averaged).params is averaged.ema


def test_evaluation_hangs_on_the_images_alone(built):
  _, experiment, state, batch = built
  whole = experiment.evaluate(state, batch)["loss"].total
  parts = [experiment.evaluate(state, {name: value[i : i + 3] for name, value in batch.items()}) for i in (0, 3)]
  np.testing.assert_allclose(whole, sum(part["loss"].total for part in parts), rtol=1e-5)
  padded = experiment.evaluate(state, {**batch, "mask": jnp.array([1.0, 1, 1, 0, 0, 0])})["loss"]
  np.testing.assert_allclose(padded.total, parts[0]["loss"].total, rtol=1e-5)
  assert padded.count == 3
  assert experiment.evaluate(state._replace(step=jnp.int32(9)), batch)["loss"].total == whole


def test_labels_reach_the_loss_and_the_evaluation(built):
  _, experiment, state, batch = built
  aware = lambda tree: jax.tree.map(lambda p: p + 0.1, tree)
  state = state._replace(params=aware(state.params), ema=aware(state.ema))
  other = {**batch, "label": batch["label"] + 1}
  assert experiment.step(state, batch)[1]["loss"] != experiment.step(state, other)[1]["loss"]
  assert experiment.evaluate(state, batch)["loss"].total != experiment.evaluate(state, other)["loss"].total


def test_evaluation_draws_posterior_and_noise_apart_at_all_times(built, monkeypatch):
  config, _, state, batch = built
  drawn = []
  encode = lambda stage, frozen, noise, *_: drawn.append(noise) or noise

  def loss(network, schedule, x0, noise, t, parameterization):
    drawn.extend((noise, t))
    return jnp.zeros(len(t))

  monkeypatch.setattr(latent, "encode_images", encode)
  monkeypatch.setattr(latent.diffusion, "compute_denoising_loss", loss)
  latent.make(config).evaluate(state, batch)
  posterior, noise, t = drawn
  assert posterior.shape == noise.shape == (6, 4, 4, 2)
  assert abs(np.corrcoef(posterior.ravel(), noise.ravel())[0, 1]) < 0.3
  assert len(set(np.asarray(t).tolist())) > 3 and np.max(t) > 5


def test_mirrored_images_are_encoded_where_that_is_asked_for(built, monkeypatch):
  config, _, state, batch = built
  given = []
  monkeypatch.setattr(latent, "encode_images", lambda stage, frozen, noise, image, levels: given.append(image) or noise)
  monkeypatch.setattr(latent.ddpm, "update_state", lambda *given: (given[4], {}))
  for flip in (True, False):
    latent.make(dataclasses.replace(config, flip=flip)).step(state, batch)
  mirrored, straight = (np.asarray(images) for images in given)
  np.testing.assert_array_equal(straight, batch["image"])
  turned = [np.any(a != b) for a, b in zip(mirrored, straight)]
  assert 0 < sum(turned) < 6 and all(np.array_equal(a, b[:, ::-1]) for a, b, t in zip(mirrored, straight, turned) if t)


def test_latents_are_not_clipped(built):
  """A clean latent beyond 1 is expected as it is."""
  model = latent.make_model(built[0], (4, 4, 2))
  x0 = jnp.full((1, 4, 4, 2), 3.0)
  denoise = model.make_denoiser(lambda x, t: jnp.zeros_like(x))
  assert float(jnp.max(jnp.abs(denoise(x0, jnp.zeros(1, jnp.int32)).x0))) > 2


def test_labels_reach_the_network_and_guidance_the_samples(built):
  _, experiment, state, _ = built
  trained = experiment.model(state._replace(ema=jax.tree.map(lambda p: p + 0.1, state.ema)))

  def draw(label, **options):
    return np.asarray(trained.sample(jax.random.key(2), jnp.full(2, label), num_steps=2, **options))

  assert np.any(draw(0) != draw(1)) and np.any(draw(0) != draw(0, weight=3.0))

  # Latents are decoded at their own deviation.
  class Latents:
    sample = staticmethod(lambda params, key, label: z)

  z = jax.random.normal(jax.random.key(3), (2, *trained.stage.grid))
  decoded = _first_stage.decode_latents(trained.stage, trained.frozen, z)
  sampled = trained._replace(model=Latents).sample(jax.random.key(2), jnp.zeros(2, jnp.int32))
  np.testing.assert_allclose(sampled, decoded, atol=1e-5)
  assert trained.frozen.scale != 1 and np.any(decoded > 0)
  assert draw(0).shape == (2, 8, 8, 1) and draw(0).min() >= 0 and draw(0).max() <= 1


def test_a_report_leaves_figures_and_pictures(built, tmp_path, monkeypatch):
  _, experiment, state, _ = built
  asked, judged = [], []
  sample, judge = _latent_report.Studio.sample, _latent_report.judge_samples
  told = lambda seen, label, result: seen.append(np.asarray(label).tolist()) or result
  monkeypatch.setattr(
    _latent_report.Studio, "sample", lambda self, key, label, *rest: told(asked, label, sample(self, key, label, *rest))
  )
  monkeypatch.setattr(
    _latent_report, "judge_samples", lambda r, images, label: told(judged, label, judge(r, images, label))
  )
  figures = experiment.report(state, tmp_path)
  pictures = {"reconstructions", "samples", "trajectory", "real_and_generated"}
  assert {path.stem for path in tmp_path.glob("*.png")} == pictures
  assert judged == asked[:1] and len(set(judged[0])) > 1  # the classes that these samples were asked for
  assert all(math.isfinite(value) for value in figures.values())
  assert {"judge_distance_20", "judge_distance_20_real", "reconstruction_distance_20", "class_agreement"} <= set(
    figures
  )


def test_reconstructions_are_of_the_images_they_stand_beside(built, monkeypatch, tmp_path):
  """A first stage that gives images back as they were has no error."""
  config, experiment, state, _ = built
  config = dataclasses.replace(config, sampler="ddpm", sample_steps=3, label_dropout=0.1, guidance=2.0)
  encoded, asked = [], []
  encode = lambda stage, frozen, noise, image, levels: encoded.append(np.asarray(image)) or image
  monkeypatch.setattr(_latent_report, "encode_images", encode)

  class Studio:
    def __init__(self, model, params, guidance):
      asked.append(guidance)

    def sample(self, key, label, sampler):
      asked.append((sampler.name, sampler.num_steps))
      return np.zeros((len(label), 4, 4, 2))

  monkeypatch.setattr(_latent_report, "Studio", Studio)
  whole = lambda z: np.asarray(z) / 16 if z.dtype == jnp.uint8 else np.zeros((len(z), 8, 8, 1))
  monkeypatch.setattr(_latent_report, "decode_latents", lambda stage, frozen, z: whole(z))
  for name in ("draw_pairs", "draw_samples", "_draw_trajectory", "draw_real_and_generated"):
    monkeypatch.setattr(_latent_report, name, lambda *_: None)
  trained = experiment.model(state)
  figures = _latent_report.write_report(trained, jax.random.key(0), load_data(config), config, tmp_path)
  assert figures["reconstruction_mse"] < 1e-12
  assert figures["reconstruction_distance_20"] < figures["judge_distance_20"]
  assert asked == [2.0, ("ddpm", 3), ("ddpm", 3)]
  rows = lambda images: {image.tobytes() for image in np.asarray(images)}
  assert rows(encoded[0]) <= rows(load_data(config).test.image)


def test_vectors_of_a_vqvae_become_codes_on_their_way_back():
  config = vqvae.Config(num_codes=5, code_width=3, channels=(4,), prior_width=8, prior_heads=2)
  data = load_data(config)
  model = vqvae.make_model(config, data)
  x = to_unit(data.test.image[:3], data.levels)
  encoder, decoder = (network.init(jax.random.key(0), of)["params"] for network, of in (
    (model.encoder, x), (model.decoder, jnp.zeros((3, 4, 4, 3))),
  ))  # fmt: skip
  params = {"networks": {"encoder": encoder, "decoder": decoder}, "codes": jax.random.normal(jax.random.key(1), (5, 3))}
  stage = _first_stage.of_vqvae(model, config)
  z = stage.encode(params, x, jnp.zeros((3, *stage.grid)))
  assert z.shape == (3, *stage.grid) == (3, 4, 4, 3)
  nearest = params["codes"][find_nearest_code(z, params["codes"])]
  np.testing.assert_allclose(stage.decode(params, z), model.decode(params["networks"], nearest), atol=1e-6)


def test_the_first_stage_takes_no_more_images_than_there_are(tmp_path, monkeypatch):
  """No flag says how many it takes at a time."""
  batches = []
  monkeypatch.setattr(_first_stage.vae, "main", lambda config: batches.append(config.batch_size))
  np.savez(tmp_path / "few.npz", image=np.arange(30 * 64).reshape(30, 8, 8).astype(np.uint8), label=np.arange(30) % 2)
  for dataset in (str(tmp_path / "few.npz"), "digits"):
    _first_stage.train_first_stage(
      "diffusion.latent", latent.Config(**{**TINY, "dataset": dataset}, workdir=str(tmp_path))
    )
  assert batches == [27, 64]


def test_a_vqvae_is_taken_as_it_is_evaluated(monkeypatch):
  """With the parameters that its optimizer returns, not those that it moves."""
  found = vqvae.Config(num_codes=5, code_width=3, channels=(4,), prior_width=8, prior_heads=2)
  data, taken = load_data(found), []

  class State:
    params, codebook = {}, vqvae.generative.make_codebook(jnp.ones((5, 3)))

  monkeypatch.setattr(_first_stage, "load_config", lambda *_: ("generative.vqvae", found))
  monkeypatch.setattr(_first_stage, "restore_seed", lambda *_, **__: (None, "as it moves"))
  monkeypatch.setattr(_first_stage.vqvae, "as_evaluated", lambda state: taken.append(state) or State)
  monkeypatch.setattr(_first_stage, "_measure", lambda stage, params, data: (stage, params))
  stage, params = _first_stage.load_first_stage(latent.Config(**TINY, first_stage="somewhere"), data)
  assert taken == ["as it moves"] and stage.grid == (4, 4, 3)
  np.testing.assert_array_equal(params["codes"], 1)


def test_main_trains_the_first_stage_by_the_flags_and_takes_it_again(tmp_path):
  """And a run that will not do, of other images, of black and white ones, without a grid, is one sentence."""
  config = latent.Config(**TINY, workdir=str(tmp_path), report_seeds=0, eval_every=0, kl_weight=0.5)
  assert latent.main(config) == 0
  settings = tmp_path / "first_stage" / "config.json"
  saved = json.loads(settings.read_text())
  expected = dict(steps=2, beta=0.5, latents=2, channels=[4], likelihood="gaussian", network="grid", sigma=0.1)
  assert {name: saved["config"][name] for name in expected} == expected
  before = (tmp_path / "first_stage" / "result.json").read_bytes()
  assert latent.main(config) == 0
  assert (tmp_path / "first_stage" / "result.json").read_bytes() == before
  given = dataclasses.replace(config, first_stage=str(tmp_path / "first_stage"))
  stage, _ = _first_stage.load_first_stage(given, load_data(given))
  assert stage.grid == (4, 4, 2)
  other = dataclasses.replace(given, image_size=12)
  with pytest.raises(InputError, match=r"--first_stage=.* is of images \(8, 8, 1\), expected \(12, 12, 1\)"):
    _first_stage.load_first_stage(other, load_data(other))
  settings.write_text(json.dumps({**saved, "config": {**saved["config"], "likelihood": "bernoulli"}}))
  with pytest.raises(InputError, match="knows black and white pixels alone"):
    _first_stage.load_first_stage(given, load_data(given))
  with pytest.raises(InputError, match="--network=mlp: expected latents in a grid"):
    _first_stage.of_vae(vae.make_model(vae.Config(), load_data(config)))


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (dict(latent_channels=0), "--latent_channels=0"),
    (dict(first_noise=0.0), "--first_noise=0.0"),
    (dict(kl_weight=-1.0), "--kl_weight=-1.0"),
    (dict(first_channels=()), "--first_channels="),
    (dict(first_stage="nowhere"), "--first_stage=nowhere"),
  ],
)
def test_bad_input_is_one_sentence(flags, said):
  with pytest.raises(InputError, match=said):
    latent.main(latent.Config(**{**TINY, **flags}))


def test_sizes_that_do_not_fit_are_said_before_anything_trains(tmp_path):
  flags = {**TINY, "first_channels": (4, 4, 4), "multipliers": (1, 2)}
  with pytest.raises(InputError, match="--channels=8 --multipliers"):
    latent.main(latent.Config(**flags, workdir=str(tmp_path / "run")))
  assert not (tmp_path / "run").exists()
