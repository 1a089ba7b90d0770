"""The wiring of `generative.vae`: each flag reaches what it names, and figures are of what they say."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from experiments.generative import _vae_report, vae
from experiments.generative._pixels import pixels_once
from mlnotes.data.flags import load_data
from mlnotes.engine.errors import InputError
from mlnotes.engine.progress import take_warnings
from mlnotes.generative import Bound, TrainedVAE

TINY = dict(latents=3, hidden=(5,), batch_size=6, steps=4, devices=1)
BIAS = 0.7  # of every pixel's logit


def make(**flags):
  config = vae.Config(**{**TINY, **flags})
  experiment = vae.make(config)
  split = load_data(config).train
  index = jnp.arange(config.batch_size)
  batch = {**split.read(np.arange(config.batch_size)), "index": index, "mask": jnp.ones(len(index))}
  state = experiment.init(jax.random.key(0), batch)
  return experiment, state, batch


def blank(params, mean=0.0):
  """Parameters that know nothing: every q(z|x) is N(mean, 1), every logit BIAS whatever the latents are."""
  params = jax.tree.map(jnp.zeros_like, params)
  encoder, decoder = params["encoder"]["Dense_1"], params["decoder"]["Dense_1"]
  encoder["bias"] = encoder["bias"].at[: TINY["latents"]].set(mean)
  decoder["bias"] = jnp.full_like(decoder["bias"], BIAS)
  return params


KL = 3 * 0.5**2 / 2  # of three latents at mean .5


def loss_of(flags, mean=0.5, **replaced):
  experiment, state, batch = make(**flags)
  state = state._replace(params=blank(state.params, mean), **replaced)
  _, metrics = experiment.step(state, batch)
  return float(metrics["loss"]), batch, metrics


def test_the_loss_sums_over_pixels_and_latents_and_averages_over_images():
  loss, batch, metrics = loss_of(dict(binarize="fixed"))
  config = vae.Config(**TINY, binarize="fixed")
  x = np.asarray(pixels_once(config, 17, jnp.asarray(batch["image"]), batch["index"]))
  expected = 64 * math.log1p(math.exp(BIAS)) - BIAS * x.sum() / len(x) + KL
  np.testing.assert_allclose([loss, metrics["negative_elbo"]], expected, rtol=1e-5)
  np.testing.assert_allclose(metrics["kl"], KL, rtol=1e-5)


@pytest.mark.parametrize(
  ("flags", "cost"),
  [
    (dict(beta=4.0), 4 * KL),
    (dict(beta=0.0), 0.0),
    (dict(free_bits=5.0), 15.0),
    (dict(beta=2.0, free_bits=5.0), 30.0),
    (dict(anneal_steps=10), 0.1 * KL),
    (dict(beta=2.0, anneal_steps=4), 0.5 * KL),
  ],
)
def test_what_is_paid_for_the_latents(flags, cost):
  loss, _, metrics = loss_of(dict(binarize="fixed", **flags))
  np.testing.assert_allclose(loss - (float(metrics["negative_elbo"]) - KL), cost, rtol=1e-4, atol=1e-4)


def test_annealing_ends():
  loss, _, metrics = loss_of(dict(binarize="fixed", anneal_steps=10), step=jnp.int32(9))
  np.testing.assert_allclose(loss, metrics["negative_elbo"], rtol=1e-6)


def test_the_total_correlation_alone_is_weighed():
  """q is one for all: samples tell nothing of the image, and its estimate has the size of the data set in it."""
  plain = loss_of(dict(binarize="fixed"))
  weighed = loss_of(dict(binarize="fixed", penalty="total_correlation", beta=3.0))
  # Of equal posteriors log q(z) - log prod q(z_d) is (D - 1) log N: the estimate's own bias.
  np.testing.assert_allclose(weighed[0] - plain[0], 2 * 2 * math.log(1437), rtol=1e-3)


def test_pixels_are_drawn_anew_or_once():
  for binarize, same in (("dynamic", False), ("fixed", True)):
    losses = {loss_of(dict(binarize=binarize), step=jnp.int32(step))[0] for step in range(3)}
    assert (len(losses) == 1) == same
  first, second = (loss_of(dict(binarize="fixed"), key=jax.random.key(seed))[0] for seed in range(2))
  assert first == second


def test_test_pixels_are_the_same_for_every_seed_and_as_often_on_as_they_are_grey():
  values = []
  for seed in range(2):
    experiment, state, batch = make()
    values.append(
      experiment.evaluate(state._replace(params=blank(state.params), key=jax.random.key(seed)), batch)["reconstruction"]
    )
  assert values[0] == values[1]
  config = vae.Config(**TINY)
  image = jnp.full((4000, 1, 1, 1), 4, jnp.uint8)
  drawn = pixels_once(config, 17, image, jnp.arange(4000))
  np.testing.assert_allclose(drawn.mean(), 0.25, atol=0.03)


def test_grey_pixels_stay_grey_for_densities():
  for likelihood in ("gaussian", "continuous_bernoulli"):
    config = vae.Config(**TINY, likelihood=likelihood)
    x = pixels_once(config, 17, jnp.full((2, 1, 1, 1), 4, jnp.uint8), jnp.arange(2))
    np.testing.assert_array_equal(x, 0.25)


@pytest.mark.parametrize(("sigma", "expected"), [(0.1, 0.1), (0.0, 1.0)])
def test_the_deviation_is_the_flags_or_learned(sigma, expected):
  loss, batch, _ = loss_of(dict(likelihood="gaussian", sigma=sigma), mean=0.0)
  x = batch["image"].astype(np.float64) / 16
  each = (x - BIAS) ** 2 / (2 * expected**2) + math.log(expected) + math.log(2 * math.pi) / 2
  np.testing.assert_allclose(loss, each.sum() / len(x), rtol=1e-4)
  experiment, state, batch = make(likelihood="gaussian", sigma=sigma)
  moved, _ = experiment.step(state, batch)
  assert ("log_sigma" in moved.params) == (sigma == 0)
  if sigma == 0:
    assert moved.params["log_sigma"] != state.params["log_sigma"]


def test_more_importance_samples_raise_the_bound():
  """With the same parameters; and the gradient of Tucker et al. is another one for the encoder alone."""
  losses, moved = {}, {}
  for name, flags in {
    "one": dict(bound="iwae"),
    "many": dict(bound="iwae", importance_samples=50),
    "doubly": dict(bound="iwae", importance_samples=50, doubly_reparameterized=True),
  }.items():
    experiment, state, batch = make(binarize="fixed", optimizer="sgd", momentum=0.0, learning_rate=1.0, **flags)
    # A decoder that leans on the latents, so that weights differ.
    state = state._replace(params=jax.tree.map(lambda p: 3 * p, state.params))
    after, metrics = experiment.step(state, batch)
    losses[name] = float(metrics["loss"])
    moved[name] = jax.tree.map(lambda a, b: a - b, after.params, state.params)
  assert losses["many"] < losses["one"] - 0.5
  close = lambda part: np.allclose(moved["many"][part]["Dense_0"]["kernel"], moved["doubly"][part]["Dense_0"]["kernel"])
  assert close("decoder") and not close("encoder")


def test_evaluation_is_of_the_averaged_parameters():
  experiment, state, batch = make(lookahead=5, learning_rate=0.1)
  moved, _ = experiment.step(state, batch)
  before, after = experiment.evaluate(state, batch), experiment.evaluate(moved, batch)
  assert before["reconstruction"] == after["reconstruction"]  # slow weights move at the fifth update


def test_latents_are_drawn_anew_in_each_update():
  experiment, state, batch = make(binarize="fixed")
  state = state._replace(params=jax.tree.map(lambda p: 3 * p, state.params))
  step = jax.jit(experiment.step)
  assert len({float(step(state._replace(step=jnp.int32(i)), batch)[1]["loss"]) for i in range(3)}) == 3


def test_evaluation_draws_latents_by_the_images_numbers_and_leaves_padding_out(monkeypatch):
  experiment, state, batch = make()
  noise = []

  def compute_elbo(drawn, q, log_likelihood):
    noise.append(np.asarray(drawn))
    rows = jnp.arange(1.0, len(q.mean) + 1)
    return Bound(-rows, -rows, jnp.zeros_like(q.mean), None)

  monkeypatch.setattr(vae, "compute_elbo", compute_elbo)
  found = experiment.evaluate(state, {**batch, "mask": jnp.array([1.0, 1, 1, 0, 0, 0])})
  assert (found["negative_elbo"].total, found["reconstruction"].total, found["kl"].count) == (6, 6, 3)
  experiment.evaluate(state._replace(step=jnp.int32(9)), {name: value[::-1] for name, value in batch.items()})
  np.testing.assert_array_equal(noise[0], noise[1][:, ::-1])
  assert noise[0].shape == (1, 6, 3) and 0.5 < noise[0].std() < 1.5 and len(np.unique(noise[0])) == 18


def test_what_is_reported_are_the_slow_weights(monkeypatch, tmp_path):
  experiment, state, _ = make(lookahead=5)
  given = []
  monkeypatch.setattr(_vae_report, "write_report", lambda model, *_: given.append(model.params) or {})
  experiment.report(state._replace(params=jax.tree.map(lambda p: p + 1, state.params)), tmp_path)
  jax.tree.map(np.testing.assert_array_equal, given[0], state.params)


def test_a_report_is_of_test_images_and_draws_the_latents_that_carry_most_first(monkeypatch, tmp_path):
  asked, orders = [], []
  kl = np.array([0.1, 3.0, 0.5])
  codes = np.random.default_rng(0).normal(size=(20, 3))
  monkeypatch.setattr(
    _vae_report, "encode_split", lambda encode, data, split, *_: asked.append(split) or (codes, kl, None)
  )
  for name in ("_draw_reconstructions", "_draw_samples", "_draw_interpolation"):
    monkeypatch.setattr(_vae_report, name, lambda *_: None)
  monkeypatch.setattr(_vae_report, "_draw_traversal", lambda decode, codes, kl, order, *_: orders.append(order))
  monkeypatch.setattr(_vae_report, "_draw_latent_map", lambda decode, codes, label, order, *_: orders.append(order))
  monkeypatch.setattr(_vae_report, "estimate_nll", lambda *_: 1.0)
  monkeypatch.setattr(_vae_report, "judge", lambda *_: {})
  config = vae.Config(**TINY, likelihood="gaussian", sigma=0.3)
  data = load_data(config)
  figures = _vae_report.write_report(
    TrainedVAE(vae.make_model(config, data), {}), jax.random.key(0), data, config, tmp_path
  )
  assert asked == [data.test] and [order.tolist() for order in orders] == [[1, 2, 0]] * 2
  assert figures["active_latents"] == 3 and figures["sigma"] == 0.3


def test_samples_are_decoded_from_the_prior(monkeypatch):
  config = vae.Config(**TINY, quality_samples=40)
  judged = []
  monkeypatch.setattr(_vae_report, "make_reference", lambda data, count: SimpleNamespace(num_samples=count))
  monkeypatch.setattr(_vae_report, "judge_samples", lambda reference, images: judged.append(images) or {})
  decode = lambda z: (z.reshape(-1, 3, 1, 1) + 4) / 8
  _vae_report.judge(decode, jax.random.key(0), 3, load_data(config), config)
  z = judged[0] / 16 * 8 - 4
  assert z.shape == (40, 3, 1, 1) and abs(z.mean()) < 0.3 and 0.8 < z.std() < 1.2


def test_the_best_checkpoint_has_the_best_bound(monkeypatch):
  called = {}
  monkeypatch.setattr(vae, "train", lambda *_, **options: called.update(options) or 0)
  assert vae.main(vae.Config(**TINY)) == 0
  assert called["best_metric"] == "negative_elbo" and called.get("best_mode", "min") == "min"


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
  directory = tmp_path_factory.mktemp("vae")
  config = vae.Config(**TINY, nll_samples=20, nll_examples=40, quality_samples=40)
  data = load_data(config)
  module = vae.make_model(config, data)
  params = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.zeros((1, 3)))["params"]

  take_warnings()
  model = TrainedVAE(module, blank(params))
  figures = _vae_report.write_report(model, jax.random.key(1), data, config, directory)
  return directory, figures, take_warnings()


def test_a_report_leaves_figures_and_pictures(reported):
  directory, figures, _ = reported
  pictures = {"reconstructions", "samples", "traversal", "latent_map", "interpolation"}
  assert {path.stem for path in directory.glob("*.png")} == pictures
  assert {"judge_distance_40", "judge_distance_40_real", "independent_pixels", "active_latents"} <= figures.keys()
  assert all(math.isfinite(value) for value in figures.values())


def test_the_likelihood_of_a_model_that_knows_nothing_is_exact(reported):
  """Its weights are all p(x): -log p is that of one logit for all pixels, and no less than the best such figure."""
  _, figures, _ = reported
  config = vae.Config(**TINY)
  data = load_data(config)
  index = np.asarray(_vae_report.fixed_subset(len(data.test), 40))
  x = np.asarray(pixels_once(config, 17, jnp.asarray(data.test.read(index)["image"]), jnp.asarray(index)))
  expected = 64 * math.log1p(math.exp(BIAS)) - BIAS * x.sum() / len(x)
  np.testing.assert_allclose(figures["negative_log_likelihood_k20"], expected, rtol=1e-4)


def test_a_likelihood_is_of_as_many_weights_as_asked_for(monkeypatch):
  """Each round counts by its number of weights: here every weight of a round of n is n."""

  class Model:
    module = vae.make_model(vae.Config(**TINY), load_data(vae.Config(**TINY)))
    encode = log_likelihood = staticmethod(lambda x: x)

  def bound(noise, x, _):
    return Bound(jnp.full(len(x), math.log(len(noise))), None, None, None)

  monkeypatch.setattr(_vae_report, "compute_iwae", bound)
  config = vae.Config(**TINY, nll_samples=70, nll_examples=5)
  found = _vae_report.estimate_nll(Model, jax.random.key(0), load_data(config), config)
  assert found == pytest.approx(-math.log((50**2 + 20**2) / 70), rel=1e-5)


def test_a_collapsed_run_says_so(reported):
  _, figures, warnings = reported
  assert figures["active_latents"] == 0
  (said,) = [text for text in warnings if text.startswith("collapsed")]
  assert "none of 3 latents" in said


def test_the_floor_is_that_of_independent_pixels(reported):
  """Against scikit-learn's Bernoulli with one class, on the same pixels."""
  from sklearn.naive_bayes import BernoulliNB

  _, figures, _ = reported
  config = vae.Config(**TINY)
  data = load_data(config)
  x = np.asarray(pixels_once(config, 17, jnp.asarray(data.test.image), jnp.arange(len(data.test))))
  grey = data.train.image.reshape(len(data.train), -1) / 16
  model = BernoulliNB(alpha=1e-10, force_alpha=True).fit(np.eye(64), np.zeros(64))
  share = np.clip(grey.mean(0), 1e-4, 1 - 1e-4)
  model.feature_log_prob_ = np.log(share)[None]
  scored = model._joint_log_likelihood(x.reshape(len(x), -1))[:, 0]
  np.testing.assert_allclose(figures["independent_pixels"], -scored.mean(), rtol=1e-4)


@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_the_floor_of_grey_pixels_is_a_normal_about_each_pixels_mean(sigma):
  config = vae.Config(**TINY, likelihood="gaussian", sigma=sigma)
  data = load_data(config)
  train, test = (split.image.reshape(len(split), -1) / 16 for split in (data.train, data.test))
  deviation = sigma or np.sqrt(((train - train.mean(0)) ** 2).mean())
  expected = -scipy.stats.norm(train.mean(0), deviation).logpdf(test).sum(1).mean()
  assert _vae_report.compute_pixel_floor(data, config) == pytest.approx(expected, rel=1e-3)


def test_codes_that_are_the_causes_of_sprites_are_disentangled(monkeypatch):
  from mlnotes.data.sprites import load_sprite_factors

  config = vae.Config(**TINY, dataset="sprites")
  factors = iter(load_sprite_factors())
  monkeypatch.setattr(_vae_report, "encode_split", lambda *_: (next(factors).astype(np.float32) / 3, np.zeros(5), None))
  figures = _vae_report.score_disentangling(None, load_data(config), config)
  assert figures["mig_20_bins"] > 0.95 and figures["factor_score_800_votes"] > 0.99
  assert figures["disentanglement_dci"] > 0.9 and figures["factor_score_chance"] == 0.2


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (dict(latents=0), "--latents=0"),
    (dict(bound="iwae", beta=2.0), "--beta=2.0"),
    (dict(bound="iwae", free_bits=0.1), "--free_bits=0.1"),
    (dict(penalty="total_correlation", free_bits=0.1), "--free_bits=0.1"),
    (dict(penalty="total_correlation", importance_samples=2), "--importance_samples=2"),
    (dict(penalty="total_correlation", anneal_steps=2), "--anneal_steps=2"),
    (dict(penalty="total_correlation", batch_size=1), "--batch_size=1"),
    (dict(hidden=()), "--hidden="),
    (dict(quality_samples=3), "--quality_samples=3"),
  ],
)
def test_settings_that_do_not_go_together_are_one_sentence(flags, said):
  with pytest.raises(InputError, match=said):
    vae.Config(**{**TINY, **flags})


def test_flags_without_effect_are_named():
  idle = vae.Config(**TINY, likelihood="gaussian", doubly_reparameterized=True).idle_flags()
  assert {"binarize", "doubly_reparameterized", "channels"} <= idle.keys()
  assert "binarize" in vae.Config(**TINY, dataset="sprites").idle_flags()
  weighed = lambda beta: vae.Config(**TINY, penalty="total_correlation", beta=beta).idle_flags()
  assert "penalty" in weighed(1.0) and "penalty" not in weighed(4.0)
