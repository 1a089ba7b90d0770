"""What `ddpm` and `sample` make of their parts: an update, an evaluation, a report and samples against NumPy, with a
network of four numbers in place of the U-Net."""

import csv
import dataclasses
import functools
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiments.diffusion._report
import experiments.generative._judging
import mlnotes.engine.plot
import mlnotes.generative
from experiments.diffusion import ddpm, sample as sample_experiment
from mlnotes.data import ArraySplit, DataSet
from mlnotes.diffusion import (
  PARAMETERIZATIONS,
  VARIANCES,
  clip_to_unit,
  compute_log_snr,
  compute_vlb_term,
  ddim_step,
  ddpm_step,
  interpret_output,
  make_denoiser,
  make_timesteps,
  sample,
)
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import example_keys, set_hparams, stream_key
from mlnotes.optim.flags import OptimConfig

STEPS = 5  # T
SHAPE = (3, 4, 1)
NUM_CLASSES = 3


class Probe(nn.Module):
  """scale x + slope t / 1000 + offset[label] + variance, doubled in training: what it was given can be read off."""

  num_classes: int | None = None
  out_channels: int = 1
  channels: Any = None
  multipliers: Any = None
  num_blocks: Any = None
  attention_resolutions: Any = None
  dropout: Any = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x, t, label=None, train=False):
    number = lambda name, value: self.param(name, nn.initializers.constant(value), ())
    output = number("scale", 0.5) * x + (number("slope", -0.3) * t / 1000)[:, None, None, None]
    if self.num_classes:
      offset = self.param("offset", lambda key, shape: jnp.arange(1.0, shape[0] + 1) / 10, (self.num_classes + 1,))
      label = jnp.full(len(x), self.num_classes) if label is None else label
      output = output + offset[label][:, None, None, None]
    output = output * (2 if train else 1)
    spread = jnp.broadcast_to(number("spread", 0.2), x.shape)
    return jnp.concatenate([output, spread], axis=-1) if self.out_channels == 2 * x.shape[-1] else output


def run_probe(params, x, t, label, train):
  """The same in NumPy, of integer times 0 .. T - 1; its variance half left out."""
  params = {name: np.asarray(value, np.float64) for name, value in params.items()}
  t = (np.asarray(t) + 1) / STEPS
  output = params["scale"] * x + (params["slope"] * t)[:, None, None, None]
  if "offset" in params:
    output = output + params["offset"][label][:, None, None, None]
  return output * (2 if train else 1)


def make_data():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (40, *SHAPE), dtype=np.uint8)
  label = np.arange(40, dtype=np.int32) % NUM_CLASSES
  return DataSet(
    "toys",
    ArraySplit(image[:24], label[:24]),
    ArraySplit(image[24:], label[24:]),
    NUM_CLASSES,
    tuple("abc"),
    256,
    SHAPE,
  )


def make_config(**given):
  plain = dict(optimizer="sgd", momentum=0.0, schedule="constant", warmup_steps=0, learning_rate=0.1, clip_norm=0.0)
  defaults = dict(timesteps=STEPS, batch_size=16, variance="fixed_small", steps=10, sample_steps=3)
  return ddpm.Config(**{**plain, **defaults, **given})


@pytest.fixture
def data(monkeypatch):
  data = make_data()
  monkeypatch.setattr(ddpm, "load_data", lambda config: data)
  monkeypatch.setattr(ddpm, "UNet", Probe)
  return data


@functools.cache
def make_once(config):
  experiment = ddpm.make(config)
  return experiment, jax.jit(experiment.step)


def first_update(config, data, step=7, **hparams):
  """(batch, state before, state after, metrics) of an update that is not the first."""
  experiment, update = make_once(config)
  batch = jax.tree.map(jnp.asarray, data.train.read(np.arange(config.batch_size)))
  before = experiment.init(jax.random.key(3), batch)._replace(step=jnp.int32(step))
  before = set_hparams(before, **hparams)
  after, metrics = update(before, batch)
  return batch, before, after, metrics


def exact_log_snr(config):
  """Of the cosine schedule with the default ends."""
  a = lambda u: (u + 0.008) / 1.008 * np.pi / 2
  log_snr = lambda u: np.log(np.cos(a(u)) ** 2 / (np.cos(a(0)) ** 2 - np.cos(a(u)) ** 2))
  values = log_snr(np.linspace(1 / STEPS, 1, STEPS))
  return np.append(values[:-1], -12.0)


def draws(config, state, batch, dropout):
  """(x0, t, noise, labels) of an update, from the streams that are its contract."""
  key = lambda name: stream_key(jax.random.clone(state.key), name, state.step)
  x0 = np.asarray(batch["image"], np.float64) * 2 / 255 - 1
  if config.flip:
    mirrored = np.asarray(jax.random.bernoulli(key("flip"), shape=(len(x0),)))
    assert 0 < mirrored.sum() < len(x0)
    x0[mirrored] = x0[mirrored][:, :, ::-1]
  t = np.asarray(jax.random.randint(key("time"), (len(x0),), 0, STEPS))
  noise = np.asarray(jax.random.normal(key("noise"), x0.shape), np.float64)
  hidden = np.asarray(jax.random.bernoulli(key("label"), dropout, (len(x0),)))
  return x0, t, noise, np.where(hidden, NUM_CLASSES, batch["label"])


def exact_loss(config, params, x0, t, noise, label, train=True):
  """Per example, in float64: the squared error of the parameterization's target, weighted."""
  log_snr = exact_log_snr(config)[t][:, None, None, None]
  alpha, sigma = np.sqrt(1 / (1 + np.exp(-log_snr))), np.sqrt(1 / (1 + np.exp(log_snr)))
  target = {"epsilon": noise, "x0": x0, "v": alpha * noise - sigma * x0}[config.parameterization]
  error = (target - run_probe(params, alpha * x0 + sigma * noise, t, label, train)) ** 2
  snr = np.exp(log_snr[:, 0, 0, 0])
  capped = np.minimum(snr, 5)
  weight = {"epsilon": capped / snr, "x0": capped, "v": capped / (snr + 1)}[config.parameterization]
  return error.mean((1, 2, 3)) * (weight if config.loss_weight == "min_snr" else 1)


SETTINGS = {
  "plain": {},
  "epsilon": dict(parameterization="epsilon"),
  "x0": dict(parameterization="x0"),
  "mirrored": dict(flip=True),
  "labels hidden": dict(label_dropout=0.5),
  "weighted": dict(loss_weight="min_snr"),
  "unconditional": dict(conditional=False),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_one_update_is_that_of_numpy(data, setting):
  config = make_config(**SETTINGS[setting])
  batch, before, after, metrics = first_update(config, data)
  x0, t, noise, label = draws(config, before, batch, config.label_dropout)
  params = jax.device_get(before.params)
  assert ("offset" in params) == config.conditional
  if setting == "labels hidden":
    assert 0 < np.sum(label == NUM_CLASSES) < len(label)
  if setting == "plain":
    assert set(range(STEPS)) == set(t)  # the last time and the first are among them
  loss = lambda params: exact_loss(config, params, x0, t, noise, label).mean()
  assert float(metrics["loss"]) == pytest.approx(loss(params), rel=1e-4)
  # Its gradient by central differences, exact for a quadratic; plain gradient descent with rate 0.1.
  gradients = {}
  for name, value in params.items():
    gradient = np.zeros_like(value, np.float64)
    for i in np.ndindex(gradient.shape):
      ends = []
      for sign in (1, -1):
        moved = np.array(value, np.float64)
        moved[i] += sign
        ends.append(loss({**params, name: moved}))
      gradient[i] = (ends[0] - ends[1]) / 2
    gradients[name] = gradient
    np.testing.assert_allclose(after.params[name], value - 0.1 * gradient, rtol=1e-3, atol=1e-4, err_msg=name)
  norm = np.sqrt(sum(np.sum(gradient**2) for gradient in gradients.values()))
  assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-3)
  assert int(after.step) == 8


def test_numbers_that_a_sweep_varies_start_as_their_flags_say(data):
  given = dict(ema_decay=0.5, label_dropout=0.25, vlb_weight=0.75)
  experiment = ddpm.make(make_config(**given))
  state = experiment.init(jax.random.key(0), None)
  assert {name: float(value) for name, value in state.hparams.items()} == given


def test_the_average_of_the_parameters_moves_by_its_decay(data):
  for decay, kept in ((0.4, 0.4), (0.999, 8 / 17)):  # warmed up: (1 + step) / (10 + step) at step 7
    _, before, after, _ = first_update(make_config(), data, ema_decay=decay)
    for name, old in before.ema.items():
      np.testing.assert_allclose(after.ema[name], kept * old + (1 - kept) * after.params[name], rtol=1e-5)
    assert np.max(np.abs(after.ema["scale"] - after.params["scale"])) > 1e-4


def test_the_average_is_of_lookaheads_slow_weights(data):
  """Which the first updates leave as they were: no average of the fast ones moves."""
  _, before, after, _ = first_update(make_config(lookahead=5), data, ema_decay=0.5)
  np.testing.assert_allclose(after.ema["scale"], before.ema["scale"], rtol=1e-6)
  assert after.params["scale"] != before.params["scale"]


def test_a_learned_variance_adds_the_bound_with_its_weight(data):
  config = make_config(variance="learned")
  values = []
  for weight in (0.0, 2.0):
    batch, before, _, metrics = first_update(config, data, vlb_weight=weight)
    values.append(float(metrics["loss"]))
  x0, t, noise, label = draws(config, before, batch, 0.0)
  plain = exact_loss(config, jax.device_get(before.params), x0, t, noise, label)
  assert values[0] == pytest.approx(plain.mean(), rel=1e-4)
  schedule = ddpm.make_model(config, data).schedule
  log_snr = compute_log_snr(schedule, jnp.asarray(t))
  alpha, sigma = (np.sqrt(jax.nn.sigmoid(sign * log_snr))[:, None, None, None] for sign in (1, -1))
  x_t = alpha * x0 + sigma * noise
  output = run_probe(jax.device_get(before.params), x_t, t, label, train=True)
  output = np.concatenate([output, np.full_like(output, 0.2)], axis=-1)

  @jax.jit
  @jax.vmap
  def term(output, x_t, log_snr, x0, t):
    prediction = interpret_output(output, x_t, log_snr, PARAMETERIZATIONS["v"])
    return compute_vlb_term(schedule, prediction, x0, x_t, t, 256, VARIANCES["learned"])

  terms = np.asarray(term(jnp.float32(output), jnp.float32(x_t), log_snr, jnp.float32(x0), jnp.asarray(t)))
  assert np.mean(terms) > 0
  assert values[1] - values[0] == pytest.approx(2.0 * STEPS / np.prod(SHAPE) * np.mean(terms), rel=1e-3)
  # With --loss_weight=vlb the bound is all there is, whatever its weight beside another loss would be.
  bounds = [first_update(make_config(loss_weight="vlb"), data, vlb_weight=weight)[3]["loss"] for weight in (0.0, 2.0)]
  assert float(bounds[0]) == float(bounds[1]) > 1


def test_evaluation_is_that_of_the_averaged_parameters_without_dropout(data):
  config = make_config()
  experiment = ddpm.make(config)
  batch = data.test.read(np.arange(6))
  batch = {**jax.tree.map(jnp.asarray, batch), "index": jnp.array([0, 1, 2, 1_281_166, 4, 5], jnp.int32)}
  batch["mask"] = jnp.array([1.0, 1, 1, 1, 1, 0])
  state = experiment.init(jax.random.key(3), batch)
  state = state._replace(ema={**state.ema, "scale": jnp.float32(0.9)})
  found = jax.jit(experiment.evaluate)(state, batch)
  index = np.asarray(batch["index"])
  t = np.array([(int(i) * 2654435769 % 2**32) * STEPS >> 32 for i in index])
  keys = example_keys(stream_key(jax.random.clone(state.key), "evaluate"), batch["index"])
  noise = np.asarray(jax.vmap(lambda key: jax.random.normal(key, SHAPE))(keys), np.float64)
  x0 = np.asarray(batch["image"], np.float64) * 2 / 255 - 1
  losses = exact_loss(config, jax.device_get(state.ema), x0, t, noise, np.asarray(batch["label"]), train=False)
  assert float(found["loss"].total) == pytest.approx(losses[:5].sum(), rel=1e-4) and found["loss"].count == 5
  # In bits per dimension: far from a good model's, far from nothing.
  assert 5 * 3 < float(found["bits_per_dim_estimate"].total) < 5 * 1e5
  other = jax.jit(experiment.evaluate)(state._replace(params={**state.params, "scale": jnp.float32(3.0)}), batch)
  assert float(other["loss"].total) == float(found["loss"].total)


def test_every_flag_of_the_model_reaches_it(data):
  config = make_config(
    channels=24, multipliers=(1, 3), num_blocks=2, attention_resolutions=(3,), dropout=0.25, precision="bfloat16"
  )
  network = ddpm.make_model(config, data).network
  assert (network.channels, network.multipliers, network.num_blocks) == (24, (1, 3), 2)
  assert (network.attention_resolutions, network.dropout, network.dtype) == ((3,), 0.25, jnp.bfloat16)
  assert (network.num_classes, network.out_channels) == (3, 1)
  model = ddpm.make_model(make_config(variance="learned", conditional=False), data)
  assert (model.network.num_classes, model.num_classes, model.network.out_channels) == (None, None, 2)
  assert model.variance is VARIANCES["learned"] and (model.num_levels, model.image_shape) == (256, SHAPE)
  ends = lambda **given: np.asarray(ddpm.make_model(make_config(**given), data).schedule.log_snr)[[0, -1]]
  np.testing.assert_allclose(ends(timesteps=64)[1], -12)
  np.testing.assert_allclose(ends(timesteps=64, noise_schedule="linear")[1], -10.05, atol=0.01)
  # The first noise: given, and else 0.8 of half the distance between two of 256 grey levels.
  for given, noise in ((0.3, 0.3), (0.0, 0.8 / 255)):
    np.testing.assert_allclose(ends(timesteps=4000, first_noise=given)[0], np.log(1 / noise**2 - 1), atol=5e-3)


@pytest.mark.parametrize("timesteps", [2, 10, 620, 1000, 4000])
@pytest.mark.parametrize("noise_schedule", ["linear", "cosine"])
def test_every_published_number_of_noise_levels_makes_a_schedule(data, timesteps, noise_schedule):
  log_snr = ddpm.make_model(make_config(timesteps=timesteps, noise_schedule=noise_schedule), data).schedule.log_snr
  assert log_snr.shape == (timesteps,) and np.all(np.diff(log_snr) < 0) and log_snr[-1] >= -12


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (dict(guidance=3.0), r"--guidance=3 needs a network .* found --label_dropout=0"),
    (dict(guidance=0.0), r"--guidance=0 needs a network"),
    (dict(guidance=3.0, conditional=False), r"--guidance=3.0 .* expected 1 with --noconditional"),
    (dict(label_dropout=0.1, conditional=False), r"--label_dropout=0.1 .* expected 0 with --noconditional"),
    (dict(label_dropout=1.0), r"--label_dropout=1.0"),
    (dict(timesteps=1), r"--timesteps=1 .* 2 to 65536"),
    (dict(quality_samples=3), r"--quality_samples=3 .* 0, or 4 or more"),
  ],
)
def test_flags_that_need_another_are_refused(given, message):
  with pytest.raises(InputError, match=message):
    ddpm.Config(**given)


def test_flags_without_effect_are_told(data):
  always = {"data_dir", "train_split", "test_split"} | set(OptimConfig(optimizer="sgd").idle_flags())
  idle = lambda **given: set(make_config(**given).idle_flags()) - always
  assert idle(attention_resolutions=(3,)) == {"vlb_weight"}  # of the height of 3
  assert idle(attention_resolutions=(4,), variance="learned") == {"attention_resolutions"}
  assert idle(attention_resolutions=(3,), variance="learned") == set()
  assert idle(attention_resolutions=(3,), variance="learned", loss_weight="vlb") == {"vlb_weight"}
  nothing_drawn = {"sampler", "sample_steps", "guidance", "quality_samples"}
  assert idle(attention_resolutions=(3,), variance="learned", report_seeds=0) == nothing_drawn


def test_the_best_checkpoint_has_the_fewest_bits(data, monkeypatch):
  called = {}
  monkeypatch.setattr(ddpm, "train", lambda *args, **options: called.update(args=args, **options) or 0)
  assert ddpm.main(make_config()) == 0
  assert called["best_metric"] == "bits_per_dim_estimate"
  assert called.get("best_mode", "min") == "min"
  called.clear()
  few = data._replace(train=ArraySplit(data.train.image[:5], data.train.label[:5]))
  few = few._replace(test=ArraySplit(data.test.image[:2], data.test.label[:2]))
  monkeypatch.setattr(ddpm, "load_data", lambda config: few)
  with pytest.raises(InputError, match=r"found 7 images in toys, expected at least 8 .* or --report_seeds=0"):
    ddpm.main(make_config(batch_size=2))
  assert not called


def test_the_report_is_of_the_averaged_parameters(data, monkeypatch, tmp_path):
  seen = []
  monkeypatch.setattr(
    experiments.diffusion._report, "write_report", lambda model, params, *rest: seen.append(params) or {}
  )
  experiment = ddpm.make(make_config())
  state = experiment.init(jax.random.key(0), jax.tree.map(jnp.asarray, data.train.read(np.arange(2))))
  experiment.report(state._replace(ema={**state.ema, "scale": jnp.float32(0.75)}), tmp_path)
  assert float(seen[0]["scale"]) == 0.75
  # So is what a run gives for use elsewhere.
  given = experiment.model(state._replace(ema={**state.ema, "scale": jnp.float32(0.75)}))
  assert float(given.params["scale"]) == 0.75


def test_the_learning_rates_schedule_spans_the_run(data):
  """Plain descent: an update is as long as its gradient times the rate, here the whole one and then half of it."""
  config = make_config(schedule="linear", steps=2)
  experiment, update = make_once(config)
  batch = jax.tree.map(jnp.asarray, data.train.read(np.arange(config.batch_size)))
  state = experiment.init(jax.random.key(3), batch)
  for rate in (0.1, 0.05, 0.0):
    after, metrics = update(state, batch)
    moved = np.sqrt(sum(np.sum((np.asarray(after.params[n]) - state.params[n]) ** 2) for n in after.params))
    assert moved == pytest.approx(rate * float(metrics["grad_norm"]), rel=1e-3, abs=1e-6)
    state = after


class PixelJudge:
  """Features are pixels, the class that of the nearest training image."""

  def __init__(self, images, labels):
    self.images, self.labels = images, labels

  def features(self, images):
    return np.asarray(images, np.float64).reshape(len(images), -1)

  def predict(self, images):
    return self.labels[mlnotes.generative.find_nearest(images, self.images).index]


@pytest.fixture
def report(data, monkeypatch, tmp_path):
  """(samples of the chosen sampler, those of the others, config) -> figures of a report on them, without pictures."""

  def write(chosen, others, config):
    def sample(studio, key, label, sampler):
      images = chosen(label) if sampler == ("ddim", 3) else others(label)
      return images.astype(np.float32) * 2 / 255 - 1

    judge = lambda images, labels, *_: PixelJudge(images, labels)
    monkeypatch.setattr(mlnotes.generative, "load_or_train_judge", judge)
    monkeypatch.setattr(experiments.diffusion._report.Studio, "sample", sample)
    monkeypatch.setattr(experiments.diffusion._report.Studio, "bits_per_dim", lambda self, key, split: split["label"])
    for name in ("_draw_quality", "draw_samples", "_draw_trajectory", "draw_real_and_generated"):
      monkeypatch.setattr(experiments.diffusion._report, name, lambda *_: None)
    model = ddpm.make_model(config, data)
    return experiments.diffusion._report.write_report(model, {}, jax.random.key(1), data, config, tmp_path)

  return write


def test_a_report_on_copies_and_on_real_images(data, report, tmp_path, monkeypatch):
  """Samples that are training images are copies; samples that are the test images are as good as real."""
  compared, compare = [], mlnotes.generative.precision_recall
  monkeypatch.setattr(
    mlnotes.generative, "precision_recall", lambda *features: compared.append(features) or compare(*features)
  )
  config = make_config(quality_samples=16)
  of_class = lambda split, label: np.stack([split.image[np.flatnonzero(split.label == k)[0]] for k in label])
  noise = lambda label: np.random.default_rng(2).integers(0, 256, (len(label), *SHAPE)).astype(np.uint8)
  copied = report(lambda label: of_class(data.train, label), noise, config)
  assert copied["copies"] == copied["closer_than_real"] == 1 and copied["nearest_train_distance"] == 0
  assert copied["copies_real"] == 0 and copied["nearest_train_distance_real"] > 0
  assert copied["class_agreement"] == 1 and copied["judge_accuracy"] < 1
  assert copied["searched_training_images"] == 24 and copied["quality_samples"] == 16
  # In place of each image's bits its label: the bound is that of the test images, all 16 of them.
  assert copied["bits_per_dim"] == data.test.label.mean() and copied["bounded_test_images"] == 16
  # As many as the test images, all of them, in whatever order: precision and recall are those of equal sets.
  real = report(lambda label: np.resize(data.test.image, (len(label), *SHAPE)), noise, config)
  assert (real["precision"], real["recall"]) == (1, 1) and real["copies"] == 0
  for features in compared[-1]:  # of held-out images and of the samples, nothing done to either
    np.testing.assert_array_equal(features, data.test.image.reshape(16, -1))
  one = report(lambda label: np.repeat(data.test.image[:1], len(label), axis=0), noise, config)
  assert (one["precision"], one["recall"]) == (1, 1 / 16)  # a single image, over and over
  shifted = report(lambda label: np.resize(data.test.image, (len(label), *SHAPE)) // 8, noise, config)
  assert shifted["precision"] < 0.5 and shifted["frechet_distance"] > 2 * real["frechet_distance"]
  # The figures are those of the chosen sampler, the others' are beside them.
  black = report(lambda label: np.resize(data.test.image, (len(label), *SHAPE)), lambda label: 0 * noise(label), config)
  assert black["frechet_distance"] == real["frechet_distance"] < 0.2 * black["frechet_distance_ancestral"]
  with (tmp_path / "quality.csv").open() as file:
    rows = {(row["sampler"], int(row["steps"])): row for row in csv.DictReader(file)}
  assert set(rows) == {("ddim", 3), ("ddim", 5), ("ddpm", 5)}
  assert float(rows["ddim", 3]["frechet_distance"]) == pytest.approx(black["frechet_distance"])


def test_a_report_samples_and_draws_as_its_flags_say(data, monkeypatch, tmp_path):
  """Two ancestral steps under guidance give copies of training images, every other sampler gives noise."""
  drawn, sampled, guidances = [], [], []
  of_class = lambda label: np.stack([data.train.image[np.flatnonzero(data.train.label == k)[0]] for k in label])

  class Copier(experiments.diffusion._report.Studio):
    def __init__(self, model, params, guidance=1.0):
      super().__init__(model, params, guidance)
      guidances.append(guidance)

    def sample(self, key, label, sampler):
      sampled.append((label.tolist(), tuple(sampler)))
      noise = np.random.default_rng(2).integers(0, 256, (len(label), *SHAPE))
      return (of_class(label) if sampler == ("ddpm", 2) else noise).astype(np.float32) * 2 / 255 - 1

    bits_per_dim = lambda self, key, split: split["label"]

  reporting = experiments.diffusion._report
  monkeypatch.setattr(mlnotes.generative, "load_or_train_judge", lambda images, labels, *_: PixelJudge(images, labels))
  monkeypatch.setattr(reporting, "Studio", Copier)
  for name in ("_draw_quality", "_draw_trajectory"):
    monkeypatch.setattr(reporting, name, lambda *_: None)
  for module in (reporting, experiments.generative._judging):
    monkeypatch.setattr(module, "save_figure", lambda *_: None)
    monkeypatch.setattr(module, "show_images", lambda axis, images, columns: drawn.append(np.asarray(images)))
  config = make_config(sampler="ddpm", sample_steps=2, guidance=3.0, label_dropout=0.1, quality_samples=16)
  model = ddpm.make_model(config, data)
  found = reporting.write_report(model, {}, jax.random.key(1), data, config, tmp_path)
  assert guidances == [3.0] and found["copies"] == 1
  assert found["frechet_distance"] != found["frechet_distance_ancestral"]  # of all five steps
  # A row for each class, by the chosen sampler; then test images, samples, and the nearest training images of these.
  assert sampled[-1] == (np.repeat([0, 1, 2], 10).tolist(), ("ddpm", 2))
  grid, real, generated, nearest = drawn
  np.testing.assert_allclose(grid, of_class(np.repeat([0, 1, 2], 10)) / 255, atol=1e-6)
  rows = lambda images: {tuple(image.ravel().round(4)) for image in images}
  assert rows(real) == rows(data.test.image / 255)
  np.testing.assert_array_equal(generated, nearest)
  assert rows(generated) <= rows(data.train.image / 255)


def test_rows_of_the_trajectory_have_the_names_of_their_classes_and_no_margin(data, monkeypatch, tmp_path):
  class Still:
    model = SimpleNamespace(num_classes=3)

    def iterate(self, key, label, sampler):
      x = np.zeros((len(label), *SHAPE))
      yield from ((t, x, x) for t in (4, 2, 0, -1))

  reporting, figures = experiments.diffusion._report, []
  monkeypatch.setattr(reporting, "save_figure", lambda figure, path: figures.append(figure))
  reporting._draw_trajectory(Still(), jax.random.key(0), data, reporting.Sampler("ddim", 3), tmp_path / "t.png")
  (figure,) = figures
  left, right = figure.axes
  assert [label.get_text() for label in left.get_yticklabels()] == list(data.class_names)
  assert left.get_yticks().tolist() == [i * (SHAPE[0] + 1) + SHAPE[0] / 2 - 0.5 for i in range(3)]
  assert not len(right.get_yticks())
  rows, columns = left.images[0].get_array().shape
  assert figure.get_figheight() < 1.1 * 5.0 * rows / columns + 0.8


def test_samples_do_not_repeat_from_chunk_to_chunk(data, monkeypatch):
  monkeypatch.setattr(experiments.diffusion._report, "_CHUNK", 2)
  model = ddpm.make_model(make_config(), data)
  studio = experiments.diffusion._report.Studio(model, model.init(jax.random.key(0)))
  sampler = experiments.diffusion._report.Sampler("ddim", 2)
  images = studio.sample(jax.random.key(1), np.zeros(5, np.int32), sampler)
  assert images.shape == (5, *SHAPE) and len(np.unique(images.reshape(5, -1), axis=0)) == 5


def test_a_report_costs_about_what_the_training_did(data):
  """T = 5: DDIM with 3 and 5 steps, 5 ancestral ones and 5 for the bound are 18 passes for each image."""
  large = ArraySplit(np.zeros((5000, *SHAPE), np.uint8), np.zeros(5000, np.int32))
  count = lambda config: experiments.diffusion._report.count_affordable(data._replace(test=large), config)
  assert count(make_config(steps=600, batch_size=8)) == 2 * 600 * 8 // 18 == 533
  assert count(make_config(steps=10)) == 100 and count(make_config(steps=10**6)) == 1000
  assert experiments.diffusion._report.count_affordable(data, make_config(steps=10**6)) == 16
  chosen = experiments.diffusion._report.choose_num_samples
  assert chosen(data, make_config(quality_samples=7)) == 7 and chosen(data, make_config()) == 16


def test_guidance_leaves_likelihoods_alone(data):
  config = make_config(label_dropout=0.1, guidance=3.0)
  model = ddpm.make_model(config, data)
  params = model.init(jax.random.key(0))
  chunk = data.test.read(np.arange(4))
  studio = experiments.diffusion._report.Studio
  guided, plain = studio(model, params, 3.0), studio(model, params)
  bits = [each.bits_per_dim(jax.random.key(1), chunk) for each in (guided, plain)]
  np.testing.assert_array_equal(*bits)
  label = np.array([0, 2], np.int32)
  key = lambda: jax.random.key(2)
  steps = [
    next(each.iterate(key(), label, experiments.diffusion._report.Sampler("ddim", 3))) for each in (guided, plain)
  ]
  # output = unconditional + 3 (conditional - unconditional), of offsets .1, .3 and, without a label, .4
  alpha = np.sqrt(jax.nn.sigmoid(model.schedule.log_snr[-1]))
  sigma = np.sqrt(jax.nn.sigmoid(-model.schedule.log_snr[-1]))
  t, x, x0 = steps[0]
  x = np.asarray(x, np.float64)
  output = 0.5 * x - 0.3 + (0.4 + 3 * (np.array([0.1, 0.3]) - 0.4))[:, None, None, None]
  np.testing.assert_allclose(x0, np.clip(alpha * x - sigma * output, -1, 1), rtol=1e-4, atol=1e-5)
  assert t == STEPS - 1


@pytest.fixture
def draw(monkeypatch, tmp_path):
  """(flags, the config of the run) -> (images, labels, arguments of the restoring); a state in place of a run."""
  data, seen = make_data(), {}
  for module in (ddpm, sample_experiment):
    monkeypatch.setattr(module, "load_data", lambda config: data)
  monkeypatch.setattr(ddpm, "UNet", Probe)
  for name in ("new_figure", "save_figure", "show_images"):
    monkeypatch.setattr(mlnotes.engine.plot, name, lambda *_, **__: (None, np.array([[None]])))

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


def test_samples_go_where_they_are_wanted_in_rows_of_their_classes(draw, tmp_path, monkeypatch):
  """And the data set is where it is now, not where it was."""
  draw()
  data, asked, shown = make_data(), [], []
  monkeypatch.setattr(sample_experiment, "load_data", lambda config: asked.append(config.data_dir) or data)
  monkeypatch.setattr(mlnotes.engine.plot, "show_images", lambda axis, images, columns: shown.append(images))
  common = dict(run=str(tmp_path), num_samples=7, sample_batch=4)
  for flags in (dict(data_dir="here", out=str(tmp_path / "elsewhere")), {}):
    assert sample_experiment.main(sample_experiment.Config(**common, **flags)) == 0
  assert asked == ["here", ""]
  with np.load(tmp_path / "elsewhere" / "samples.npz") as file:
    image, label = file["image"], file["label"]
  np.testing.assert_allclose(shown[0], image[[0, 3, 6, 1, 4, 2, 5]] / 255)
  assert label.tolist() == [0, 1, 2, 0, 1, 2, 0]


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
