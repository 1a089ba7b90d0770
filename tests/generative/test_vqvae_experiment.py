"""What `vqvae` makes of its parts: what each part of an update moves, by how much, and the report."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.generative import _codes, vqvae
from mlnotes.data import ArraySplit, DataSet
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import set_hparams, stream_key
from mlnotes.generative import code_nats, vector_quantization as vectors

SHAPE = (4, 4, 1)


def make_data(train=40, test=12):
  rng = np.random.default_rng(0)
  label = np.arange(train + test, dtype=np.int32) % 3
  image = np.clip(60 * label[:, None, None, None] + rng.integers(0, 100, (train + test, *SHAPE)), 0, 255).astype(
    np.uint8
  )
  split = lambda part: ArraySplit(image[part], label[part])
  return DataSet("toys", split(slice(train)), split(slice(train, None)), 3, tuple("abc"), 256, SHAPE)


def make_config(**given):
  plain = dict(optimizer="sgd", momentum=0.0, schedule="constant", warmup_steps=0, learning_rate=1e-3)
  small = dict(batch_size=8, num_codes=6, code_width=3, channels=(4,), blocks=1, steps=10)
  prior = dict(prior_depth=1, prior_width=8, prior_heads=2, prior_dropout=0.0, prior_learning_rate=0.02)
  return vqvae.Config(**{**plain, **small, **prior, **given})


@pytest.fixture
def data(monkeypatch):
  data = make_data()
  monkeypatch.setattr(vqvae, "load_data", lambda config: data)
  return data


@functools.cache
def compiled(config):
  experiment = vqvae.make(config)
  return experiment, jax.jit(experiment.init), jax.jit(experiment.step)


def first_update(config, data, step=7, **hparams):
  """(batch, state before, state after, metrics) of an update that is not the first."""
  _, init, update = compiled(config)
  batch = jax.tree.map(jnp.asarray, data.train.read(np.arange(config.batch_size)))
  before = set_hparams(init(jax.random.key(3), batch)._replace(step=jnp.int32(step)), **hparams)
  return batch, before, *update(before, batch)


def parts(config, data, params, codes, batch):
  """(z, nearest code, its index, output) of a batch, each by its own network."""
  model = vqvae.make_model(config, data)
  x = jnp.asarray(batch["image"], jnp.float32) / 255
  z = model.encode(params, x)
  index = np.argmin(((np.asarray(z)[..., None, :] - np.asarray(codes)) ** 2).sum(-1), -1)
  chosen = jnp.asarray(np.asarray(codes)[index])
  return *(np.asarray(a) for a in (x, z, chosen, index)), np.asarray(model.decode(params, chosen))


def same(a, b):
  return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_the_loss_is_that_of_its_terms(data, codebook):
  config = make_config(codebook=codebook)
  values = []
  for beta in (0.0, 500.0):
    batch, before, after, metrics = first_update(config, data, beta=beta)
    values.append(float(metrics["loss"]))
  x, z, chosen, index, output = parts(config, data, before.params, before.codebook.codes, batch)
  error = np.sum((np.asarray(output) - x) ** 2, (1, 2, 3))
  distance = np.sum((np.asarray(z) - chosen) ** 2, (1, 2, 3))
  variance = np.var(data.train.image / 255.0, axis=0).mean()
  own = distance.mean() if codebook == "gradient" else 0.0
  assert values[0] == pytest.approx((error / variance).mean() + own, rel=1e-4)
  assert values[1] - values[0] == pytest.approx(500 * distance.mean(), rel=1e-3)
  assert float(metrics["mse"]) == pytest.approx(error.mean() / 16, rel=1e-4)
  counts = np.bincount(index.ravel(), minlength=6) / index.size
  entropy = -np.sum(counts[counts > 0] * np.log(counts[counts > 0]))
  assert float(metrics["batch_perplexity"]) == pytest.approx(np.exp(entropy), rel=1e-4)
  assert ("codes" in after.params) == (codebook == "gradient") and int(after.step) == 8


def test_codes_follow_the_averages_of_their_vectors(data):
  config = make_config()
  batch, before, after, _ = first_update(config, data, decay=0.6, restart=0.0)
  _, z, _, index, _ = parts(config, data, before.params, before.codebook.codes, batch)
  counts, sums = np.full(6, 0.6), 0.6 * np.asarray(before.codebook.codes, np.float64)
  np.add.at(counts, index.ravel(), 0.4)
  np.add.at(sums, index.ravel(), 0.4 * np.asarray(z).reshape(-1, 3))
  np.testing.assert_allclose(after.codebook.counts, counts, rtol=1e-4)
  np.testing.assert_allclose(after.codebook.codes, sums / counts[:, None], rtol=1e-3, atol=1e-4)


def test_codes_of_their_own_loss_move_by_its_gradient(data):
  config = make_config(codebook="gradient")
  batch, before, after, metrics = first_update(config, data)
  _, z, chosen, index, _ = parts(config, data, before.params, before.codebook.codes, batch)
  gradient = np.zeros((6, 3))
  np.add.at(gradient, index.ravel(), 2 * (np.asarray(chosen) - z).reshape(-1, 3) / 8)
  np.testing.assert_allclose(
    after.params["codes"], np.asarray(before.params["codes"]) - 1e-3 * gradient, rtol=1e-3, atol=1e-5
  )
  np.testing.assert_array_equal(after.codebook.codes, after.params["codes"])
  assert metrics["restarted_codes"] == 0


def test_unused_codes_restart_among_the_vectors_of_the_batch(data):
  config = make_config()
  _, before, after, metrics = first_update(config, data, restart=1e6)
  assert metrics["restarted_codes"] == 6
  batch = jax.tree.map(jnp.asarray, data.train.read(np.arange(8)))
  z = np.asarray(parts(config, data, before.params, before.codebook.codes, batch)[1]).reshape(-1, 3)
  distance = np.abs(z[None] - np.asarray(after.codebook.codes)[:, None]).max(-1).min(1)
  assert distance.max() < 1e-5
  again = first_update(config, data, step=8, restart=1e6)[2]
  assert not same(again.codebook.codes, after.codebook.codes)


def test_the_prior_learns_from_the_codes_and_the_autoencoder_not_from_the_prior(data):
  config = make_config()
  batch, before, after, metrics = first_update(config, data)
  _, _, _, index, _ = parts(config, data, before.params, before.codebook.codes, batch)
  model = vqvae.make_model(config, data)

  @jax.jit
  def mean_nats(prior):
    return jnp.mean(code_nats(model.prior, {"params": prior}, jnp.asarray(index.reshape(8, -1)), batch["label"]))

  nats, gradient = jax.value_and_grad(mean_nats)(before.prior)
  assert float(metrics["prior_bits_per_code"]) == pytest.approx(float(nats) / np.log(2), rel=1e-4)
  moved = jax.tree.map(lambda p, g: p - 0.02 * g, before.prior, gradient)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), after.prior, moved)
  # Another prior: the same auto-encoder.
  _, _, update = compiled(config)
  other, _ = update(before._replace(prior=jax.tree.map(lambda p: p + 1, before.prior)), batch)
  assert same(other.params, after.params) and same(other.codebook, after.codebook)
  assert not same(other.prior, after.prior)


def test_evaluation_is_of_the_codes_and_perplexity_of_all_reference_images(data):
  config = make_config()
  experiment, *_ = compiled(config)
  _, state, *_ = first_update(config, data)
  codes = jax.random.normal(jax.random.key(0), (6, 3)) * 0.3
  state = state._replace(codebook=state.codebook._replace(codes=codes))
  batch = {**jax.tree.map(jnp.asarray, data.test.read(np.arange(4))), "mask": jnp.array([1.0, 1, 1, 0])}
  train = {**jax.tree.map(jnp.asarray, data.train.read(np.arange(40))), "mask": jnp.ones(40).at[30:].set(0)}
  reference = jax.jit(experiment.embed)(state, train)
  found = jax.jit(experiment.evaluate)(state, batch, reference)
  x, _, _, index, output = parts(config, data, state.params, codes, batch)
  error = np.mean((np.asarray(output) - x) ** 2, (1, 2, 3))
  assert float(found["mse"].total) == pytest.approx(error[:3].sum(), rel=1e-4) and found["mse"].count == 3
  used = parts(config, data, state.params, codes, train)[3][:30]
  exact = vectors.compute_perplexity(jnp.asarray(np.bincount(used.ravel(), minlength=6)))
  assert float(found["epoch_perplexity"].total) == pytest.approx(float(exact), rel=1e-5)
  model = vqvae.make_model(config, data)
  nats = code_nats(model.prior, {"params": state.prior}, jnp.asarray(index.reshape(4, -1)), batch["label"])
  bits = np.asarray(nats).mean(1)[:3].sum() / np.log(2)
  assert float(found["prior_bits_per_code"].total) == pytest.approx(bits, rel=1e-4)
  feeds = vqvae.make_feeds(make_config(perplexity_examples=20))
  assert feeds.reference.num_batches == 3


def test_every_flag_reaches_its_part(data):
  model = vqvae.make_model(
    make_config(channels=(4, 5), blocks=3, code_width=2, prior_depth=2, prior_dropout=0.3, precision="bfloat16"), data
  )
  assert (model.grid, model.prior.length, model.prior.vocabulary, model.prior.num_codes) == ((1, 1), 1, 9, 6)
  for network in (model.encoder, model.decoder):
    assert (network.channels, network.depth, network.dtype) == ((4, 5), 3, jnp.bfloat16)
  assert model.encoder.features == 2 and model.prior.dropout == 0.3
  assert (model.prior.transformer.depth, model.prior.transformer.width, model.prior.transformer.heads) == (2, 8, 2)
  given = dict(beta=0.5, decay=0.9, restart=2.0)
  config = make_config(**given, prior_dropout=0.5)
  _, state, _, metrics = first_update(config, data)
  assert {name: round(float(value), 6) for name, value in state.hparams.items()} == given
  # Other residual steps are dropped in the next update.
  later = first_update(config, data, step=8)[-1]
  assert metrics["mse"] == later["mse"] and metrics["prior_bits_per_code"] != later["prior_bits_per_code"]
  # Codes begin among the encoder's vectors, or small.
  batch = jax.tree.map(jnp.asarray, data.train.read(np.arange(8)))
  z = np.asarray(parts(make_config(), data, state.params, state.codebook.codes, batch)[1]).reshape(-1, 3)
  assert np.abs(z[None] - np.asarray(state.codebook.codes)[:, None]).max(-1).min(1).max() < 1e-5
  _, uniform, *_ = first_update(make_config(code_init="uniform"), data)
  assert np.abs(uniform.codebook.codes).max() <= 1 / 6


@pytest.fixture
def reported(data, tmp_path, monkeypatch):
  """(state, figures, samples that were judged) of a report with a judge that counts."""
  judged = []

  class Reference:
    judge_accuracy, num_samples = 1.0, 12
    train, test = (split.read(np.arange(len(split))) for split in (data.train, data.test))

  def judge_samples(reference, images, label=None):
    judged.append((images, label))
    return {"judge_distance_12": 1.0 * len(judged), "judge_distance_12_real": 0.1, "judge_accuracy": 1.0}

  monkeypatch.setattr(_codes, "make_reference", lambda data, count: Reference())
  monkeypatch.setattr(_codes, "judge_samples", judge_samples)
  monkeypatch.setattr(_codes, "draw_real_and_generated", lambda *args: None)
  _, state, *_ = first_update(make_config(), data)
  return state, compiled(make_config(temperature=0.5))[0].report(state, tmp_path), judged


def test_a_report_leaves_its_figures_and_pictures(data, reported, tmp_path):
  state, figures, judged = reported
  assert {path.stem for path in tmp_path.glob("*.png")} == {"reconstructions", "samples", "codes"}
  distances = [figures[f"judge_distance_12{name}"] for name in ("", "_real", "_reconstructed", "_independent")]
  assert distances == [1.0, 0.1, 2.0, 3.0] and figures["judge_accuracy"] == 1
  (samples, label), (back, _), (independent, _) = judged
  model = vqvae.make_model(make_config(), data)
  output = parts(make_config(), data, state.params, state.codebook.codes, data.test.read(np.arange(12)))[-1]
  np.testing.assert_allclose(back, np.round(np.clip(output, 0, 1) * 255), atol=1)
  assert samples.dtype == np.uint8 and samples.shape == independent.shape == (12, *SHAPE)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(stream_key(jax.random.clone(state.key), "quality"), jnp.arange(12))
  codes = vqvae.sample_codes(model.prior, {"params": state.prior}, keys, jnp.asarray(label), 0.5)
  drawn = model.decode_index(state.params, state.codebook.codes, codes)
  np.testing.assert_allclose(samples, np.round(np.clip(drawn, 0, 1) * 255), atol=1)
  assert figures["bits_per_code_of_k"] == pytest.approx(np.log2(6))
  index = parts(make_config(), data, state.params, state.codebook.codes, data.train.read(np.arange(40)))[3]
  assert figures["used_codes"] == pytest.approx(len(np.unique(index)) / 6)
  share = np.stack([np.bincount(column, minlength=6) for column in index.reshape(40, -1).T]) / 40
  bits = -np.sum(np.where(share > 0, share * np.log2(np.maximum(share, 1e-9)), 0), 1)
  assert figures["independent_bits_per_code"] == pytest.approx(bits.mean(), rel=1e-5)
  assert figures["collapsed"] == 0


def test_independent_codes_are_drawn_from_those_of_their_own_place(data, reported, tmp_path):
  """By an auto-encoder that has one code at each place, and that shows codes as they are."""
  *_, judged = reported
  del judged[:]
  encoded = []

  class Trained:
    __call__ = lambda self, images: encoded.append(images) or np.tile(np.arange(4), (len(images), 1))
    decode = lambda self, index: np.repeat(np.repeat(index.reshape(-1, 2, 2, 1), 2, 1), 2, 2) / 255
    sample = lambda self, keys, label, temperature: np.full((len(label), 4), 5)

  _, state, *_ = first_update(make_config(), data)
  _codes.write_report(Trained(), state, data, make_config(), (2, 2), tmp_path)
  (samples, label), (_, of_test), (independent, _) = judged
  np.testing.assert_array_equal(independent[:, ::2, ::2, 0].reshape(-1, 4), np.tile(np.arange(4), (12, 1)))
  assert np.all(samples == 5) and set(label) == {0, 1, 2}
  np.testing.assert_array_equal(of_test, data.test.label)
  rows = lambda images: {image.tobytes() for image in np.asarray(images)}
  assert rows(encoded[0]) == rows(data.train.image)


def test_codes_that_are_one_are_told(data, tmp_path, capsys, reported):
  state, *_ = reported
  one = jnp.zeros((6, 3)).at[1:].set(1e3)
  state = state._replace(codebook=state.codebook._replace(codes=one))
  figures = compiled(make_config())[0].report(state, tmp_path)
  assert figures["collapsed"] == 1 and "collapsed: codes have a perplexity of 1.0 of 6" in capsys.readouterr().err


def test_what_is_evaluated_are_the_slow_weights(data):
  batch = jax.tree.map(jnp.asarray, data.train.read(np.arange(8)))
  before = compiled(make_config(codebook="gradient", lookahead=5))[1](jax.random.key(3), batch)
  fast = lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree)
  after = before._replace(params=fast(before.params), prior=fast(before.prior))
  slow = vqvae.as_evaluated(after._replace(codebook=after.codebook._replace(codes=after.params["codes"])))
  assert same(slow.params, before.params) and same(slow.prior, before.prior)
  assert same(slow.codebook.codes, before.params["codes"])
  experiment, *_ = compiled(make_config(codebook="gradient", lookahead=5))
  padded = {**batch, "mask": jnp.ones(8)}
  found = [
    jax.jit(lambda state: experiment.evaluate(state, padded, experiment.embed(state, padded)))(state)
    for state in (before, after._replace(codebook=after.codebook._replace(codes=after.params["codes"])))
  ]
  for name in found[0]:
    np.testing.assert_allclose(*(one[name].total for one in found), rtol=1e-5)
  np.testing.assert_array_equal(*(experiment.model(state)(batch["image"]) for state in (before, after)))


def test_the_best_checkpoint_has_the_least_error_and_few_images_are_refused(data, monkeypatch):
  called = {}
  monkeypatch.setattr(vqvae, "train", lambda *args, **options: called.update(options) or 0)
  assert vqvae.main(make_config()) == 0
  assert called["best_metric"] == "mse" and called.get("best_mode", "min") == "min"
  few = make_data(train=3, test=2)
  monkeypatch.setattr(vqvae, "load_data", lambda config: few)
  with pytest.raises(InputError, match="found 5 images in toys, expected at least 8"):
    vqvae.main(make_config())


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (dict(num_codes=1), "--num_codes=1 .* 2 or more"),
    (dict(channels=()), "--channels="),
    (dict(decay=1.0), "--decay=1.0"),
    (dict(beta=-0.1), "--beta=-0.1"),
    (dict(prior_width=9), "--prior_width=9 .* a multiple of --prior_heads=2"),
    (dict(temperature=0.0), "--temperature=0.0"),
    (dict(quality_samples=3), "--quality_samples=3 .* 0, or 4 or more"),
  ],
)
def test_bad_values_are_a_sentence(given, message):
  with pytest.raises(InputError, match=message):
    make_config(**given)


def test_flags_without_effect_are_told():
  idle = lambda **given: set(make_config(**given).idle_flags())
  assert idle(codebook="gradient") - idle() == {"restart", "decay"}
  assert idle(report_seeds=0) - idle() == {"temperature", "quality_samples"}
