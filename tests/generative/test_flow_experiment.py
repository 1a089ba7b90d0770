"""The wiring of the flows' experiment: which images, which noise, which parameters each number is of."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from experiments.generative import _flow_report, flow
from mlnotes.data import ArraySplit, DataSet
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import stream_key
from mlnotes.generative.density_floors import gaussian_bits, histogram_bits
from mlnotes.generative.flow_layers import Flatten
from mlnotes.generative.flow_networks import FlowModel
from mlnotes.generative.plane import PLANES

LEVELS, SHAPE = 17, (4, 4, 1)


def make_split(size, seed, most):
  rng = np.random.default_rng(seed)
  return ArraySplit(
    rng.integers(0, most, (size, *SHAPE), dtype=np.uint8), rng.integers(0, 3, size).astype(np.int32)
  )  # fmt: skip


# Training images are dark, test images are not: whoever takes one for the other is found out.
DATA = DataSet("noise", make_split(30, 0, 9), make_split(9, 1, 17), 3, ("a", "b", "c"), LEVELS, SHAPE)


@pytest.fixture(autouse=True)
def small(monkeypatch):
  monkeypatch.setattr(flow, "load_data", lambda config: DATA)


def batch_of(split, index):
  index = np.asarray(index, np.int32)
  return {**split.read(index), "index": jnp.asarray(index), "mask": jnp.ones(len(index))}


BATCH = batch_of(DATA.train, [3, 11, 0, 7, 29])


def configure(**flags):
  settings = dict(flow="nice", couplings=2, width=4, optimizer="sgd", momentum=0.0, learning_rate=0.1, clip_norm=0.0,
                  schedule="constant", warmup_steps=0, batch_size=5, steps=20)  # fmt: skip
  return flow.Config(**{**settings, **flags})


@functools.cache
def built(**flags):
  experiment = flow.make(configure(**flags))
  return experiment, jax.jit(experiment.step), jax.jit(experiment.evaluate)


@functools.cache
def first(**flags):
  batch = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)), jnp.float32)} if "points" in flags else BATCH
  return jax.jit(built(**flags)[0].init)(jax.random.key(7), batch)


def points_by_hand(image, noise, alpha):
  """(where the flow begins, the log-determinant up to there), in float64."""
  x = (np.asarray(image, np.float64) + np.asarray(noise, np.float64)) / LEVELS
  if not alpha:
    return x.reshape(len(x), -1), np.zeros(len(x))
  p = alpha + (1 - 2 * alpha) * x
  return (np.log(p) - np.log(1 - p)).reshape(len(x), -1), np.log((1 - 2 * alpha) / (p * (1 - p))).reshape(
    len(x), -1
  ).sum(1)  # fmt: skip


@pytest.mark.parametrize(("alpha", "base"), [(0.0, "auto"), (0.1, "auto"), (0.1, "normal")])
def test_first_loss_is_the_bits_of_the_identity(alpha, base):
  """Sign, levels, noise of the update's own stream, alpha, base and the mean are all in it."""
  flags = dict(alpha=alpha, base=base, data_start=False)
  state = first(**flags)
  noise = jax.random.uniform(stream_key(state.key, "dequantize", 0), BATCH["image"].shape)
  y, log_det = points_by_hand(BATCH["image"], noise, alpha)
  density = scipy.stats.norm if base == "normal" else scipy.stats.logistic
  expected = np.mean(np.log2(LEVELS) - (density.logpdf(y).sum(1) + log_det) / 16 / np.log(2))
  _, metrics = built(**flags)[1](state, BATCH)
  assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)


def test_noise_is_new_in_each_update():
  flags = dict(data_start=False, base="normal")
  state, step = first(**flags), built(**flags)[1]
  losses = [float(step(state._replace(step=jnp.int32(i)), BATCH)[1]["loss"]) for i in range(3)]
  assert len(set(losses)) == 3


def test_evaluation_noise_belongs_to_the_image():
  """Not to its place in a batch, the batch's size, or the update."""
  _, _, evaluate = built()
  state = first()
  whole = evaluate(state, batch_of(DATA.test, range(8)))["bits_per_dim"]
  later = evaluate(state._replace(step=jnp.int32(9)), batch_of(DATA.test, range(8)))["bits_per_dim"]
  assert float(whole.total) == float(later.total)
  turned = evaluate(state, batch_of(DATA.test, [5, 2, 7, 0, 1, 3, 6, 4]))["bits_per_dim"]
  np.testing.assert_allclose(turned.total, whole.total, rtol=1e-6)
  same = {**batch_of(DATA.test, [0, 0]), "index": jnp.array([0, 1])}
  alone = [float(evaluate(state, {**same, "mask": jnp.eye(2)[i]})["bits_per_dim"].total) for i in (0, 1)]
  assert alone[0] != alone[1]


def test_padding_does_not_count():
  _, _, evaluate = built()
  batch = batch_of(DATA.test, [0, 1, 1])
  found = evaluate(first(), {**batch, "mask": jnp.array([1.0, 1.0, 0.0])})["loss"]
  one = [evaluate(first(), {**batch, "mask": jnp.eye(3)[i]})["loss"].total for i in (0, 1)]
  assert float(found.count) == 2
  np.testing.assert_allclose(found.total, sum(one), rtol=1e-6)


def test_the_average_is_evaluated_and_the_parameters_are_trained():
  _, step, evaluate = built()
  state, batch = first(), batch_of(DATA.test, [0, 1, 2])
  moved = jax.tree.map(lambda leaf: leaf + 0.1, state.params)
  bits = lambda state: float(evaluate(state, batch)["bits_per_dim"].total)
  assert bits(state._replace(params=moved)) == bits(state) != bits(state._replace(ema=moved))
  loss = lambda state: float(step(state, BATCH)[1]["loss"])
  assert loss(state._replace(ema=moved)) == loss(state) != loss(state._replace(params=moved))


def test_the_average_follows_at_its_decay():
  _, step, _ = built()
  state = first()._replace(step=jnp.int32(10**6))  # past the average's warm-up
  for decay in (0.0, 0.75):
    mix = lambda e, p, decay=decay: decay * e + (1 - decay) * p
    after, _ = step(state._replace(hparams={"ema_decay": jnp.float32(decay)}), BATCH)
    expected = jax.tree.map(mix, state.ema, after.params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), after.ema, expected)


def test_the_average_is_of_lookaheads_slow_weights():
  """Which the first updates leave as they were: no average of the fast ones moves."""
  flags = dict(data_start=False, lookahead=5)
  state = first(**flags)
  after, _ = built(**flags)[1](state, BATCH)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-8), after.ema, state.ema)
  assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(state.params)))


def test_an_update_goes_down():
  _, step, _ = built()
  state = first()
  after, metrics = step(state, BATCH)
  again = step(after._replace(step=state.step), BATCH)[1]["loss"]  # the same noise
  assert float(again) < float(metrics["loss"])


def test_actnorms_start_from_the_batch_that_init_gets():
  config = dict(flow="realnvp", couplings=1, levels=1)
  state = first(**config)
  noise = jax.random.uniform(stream_key(state.key, "first"), BATCH["image"].shape)
  y, _ = points_by_hand(BATCH["image"], noise, 0.05)
  norm = state.params["levels_0"]["layers_0"]
  assert float(norm["bias"][0]) == pytest.approx(-y.mean(), rel=1e-4)
  assert float(norm["log_scale"][0]) == pytest.approx(-np.log(y.std()), rel=1e-4)


def test_what_is_fixed_stays_and_belongs_to_the_seed():
  flags = dict(flow="glow", points="moons", couplings=2)
  experiment, step, _ = built(**flags)
  state = first(**flags)
  batch = {"x": jnp.ones((5, 2))}
  after, _ = step(state, batch)
  jax.tree.map(np.testing.assert_array_equal, after.fixed, state.fixed)
  assert len(jax.tree.leaves(state.fixed)) == 4 and not any("order" in str(p) for p in jax.tree.leaves(state.params))
  trained = experiment.model(after)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)), jnp.float32)
  np.testing.assert_allclose(trained.decode(trained.encode(x)), x, atol=1e-5)


def test_the_model_is_the_average():
  experiment, _, _ = built(data_start=False)
  state = first(data_start=False)
  moved = jax.tree.map(lambda leaf: leaf + 0.1, state.params)
  x = jnp.full((1, *SHAPE), 0.4)
  density = lambda state: float(experiment.model(state)(x)[0])
  assert density(state._replace(params=moved)) == density(state) != density(state._replace(ema=moved))


def test_points_of_the_plane_are_learned_in_nats_and_tested_on_others():
  flags = dict(points="rings", data_start=False, base="normal")
  x = jax.vmap(PLANES["rings"]().draw)(jax.random.split(jax.random.key(1), 5))
  _, metrics = built(**flags)[1](first(**flags), {"x": x})
  assert float(metrics["loss"]) == pytest.approx(-scipy.stats.norm.logpdf(np.asarray(x)).sum(1).mean(), rel=1e-5)
  config = configure(**flags)
  feeds = flow.make_feeds(config)
  trained = np.concatenate([feeds.train.draw((), jax.random.key(0), jnp.int32(i))["x"] for i in range(3)])
  tested = feeds.evaluate.draw((), jnp.int32(0))
  np.testing.assert_allclose(tested["x"], flow.evaluated_points("rings", 5), rtol=1e-6)
  assert np.min(np.linalg.norm(trained[:, None] - np.asarray(tested["x"])[None], axis=-1)) > 1e-6
  assert len(np.unique(np.round(trained, 5), axis=0)) == 15


def test_each_flag_of_the_network_changes_it():
  def shapes(**flags):
    config = flow.Config(**{"flow": "realnvp", "couplings": 1, "width": 4, **flags})
    model = flow.make_model(config, DATA)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, *SHAPE)))
    return [leaf.shape for leaf in jax.tree.leaves(variables)]

  found = [shapes(), *(shapes(**flags) for flags in (
    {"flow": "nice"}, {"flow": "glow"}, {"couplings": 2}, {"width": 5}, {"depth": 2}, {"data_start": False},
  ))]  # fmt: skip
  assert all(a != b for a, b in itertools.combinations(found, 2))
  model = lambda **flags: flow.make_model(configure(**flags), DATA)
  assert model().base == "logistic" and model(flow="glow").base == "normal" and model(base="normal").base == "normal"
  assert model(alpha=0.2).alpha == 0.2 and model().num_levels == LEVELS
  assert flow.make_model(configure(points="grid"), None).shape == (2,)
  assert flow.make_model(configure(precision="bfloat16"), DATA).network.layers[1].conditioner.dtype == jnp.bfloat16


# -- the report --------------------------------------------------------------------------------------------------------


class Reference:
  num_samples, train, test = 6, DATA.train.arrays, DATA.test.arrays


@pytest.fixture
def judged(monkeypatch):
  """What is judged and drawn, without a judge that has to be trained."""
  seen = {}
  monkeypatch.setattr(_flow_report, "make_reference", lambda data, count: seen.update(count=count) or Reference())
  monkeypatch.setattr(
    _flow_report, "judge_samples", lambda reference, images: seen.update(images=images) or {"judge_distance_6": 1.0}
  )
  monkeypatch.setattr(_flow_report, "draw_real_and_generated", lambda *args: None)
  draw = _flow_report._draw_samples
  monkeypatch.setattr(
    _flow_report, "_draw_samples", lambda images, *rest: seen.update(cooled=images) or draw(images, *rest)
  )
  return seen


def test_report_of_images(judged, tmp_path):
  own = dict(data_start=False, base="normal")
  figures = flow.make(configure(**own, temperature=1e-6, quality_samples=6)).report(first(**own), tmp_path)
  train, test = DATA.train.image, DATA.test.image
  assert figures["bits_per_dim_histogram"] == pytest.approx(histogram_bits(train, test, LEVELS).mean())
  assert figures["bits_per_dim_uniform"] == pytest.approx(np.log2(17))
  assert figures["bits_per_dim_normal"] == pytest.approx(gaussian_bits(train, test, LEVELS).mean())
  assert figures["bits_per_dim_normal_logit_05"] == pytest.approx(gaussian_bits(train, test, LEVELS, 0.05).mean())
  assert figures["bits_per_dim_normal_logit_1e_6"] == pytest.approx(gaussian_bits(train, test, LEVELS, 1e-6).mean())
  # The identity through the logit, with noise of its own: dark images have other logits than bright ones.
  y, log_det = points_by_hand(train, np.full(train.shape, 0.5), 0.05)
  expected = np.mean(np.log2(LEVELS) - (scipy.stats.norm.logpdf(y).sum(1) + log_det) / 16 / np.log(2))
  assert figures["bits_per_dim_train"] == pytest.approx(expected, abs=0.05)
  assert figures["inverse_error_max"] < 1e-5 and figures["inverse_error_levels_changed"] == 0
  assert judged["count"] == 6 and judged["images"].shape == (6, *SHAPE) and judged["images"].dtype == np.uint8
  assert judged["images"].std() > 1 and judged["cooled"].std() < 0.51  # z times 1e-6 is one image: levels 8 or so
  assert figures["below_floor"] == 1  # dark histograms say nothing of bright images
  names = {"samples", "temperature", "interpolation", "reconstruction"}
  assert {path.stem for path in tmp_path.glob("*.png")} == names


def test_test_images_are_held_against_the_floor(judged, tmp_path, monkeypatch):
  told = []
  monkeypatch.setattr(_flow_report, "_say_if_above", lambda bits, figures: told.append(bits) or {})
  own = dict(data_start=False, base="normal")
  state = first(**own)
  flow.make(configure(**own, quality_samples=6)).report(state, tmp_path)
  noise = jax.random.uniform(stream_key(stream_key(state.key, "report"), "test"), DATA.test.image.shape)
  y, log_det = points_by_hand(DATA.test.image, noise, 0.05)
  expected = np.mean(np.log2(LEVELS) - (scipy.stats.norm.logpdf(y).sum(1) + log_det) / 16 / np.log(2))
  assert told == [pytest.approx(expected, rel=1e-4)]


@pytest.mark.parametrize(
  "flags", [dict(data_start=False, base="normal"), dict(points="rings", data_start=False, base="normal")]
)
def test_what_is_reported_is_the_average(flags, monkeypatch, tmp_path):
  given = []
  for name in ("report_images", "report_plane"):
    monkeypatch.setattr(_flow_report, name, lambda trained, *_: given.append(trained.variables["params"]) or {})
  state = first(**flags)
  moved = jax.tree.map(lambda leaf: leaf + 0.1, state.params)
  built(**flags)[0].report(state._replace(params=moved), tmp_path)
  jax.tree.map(np.testing.assert_array_equal, given[0], state.ema)


def test_the_best_checkpoint_has_the_fewest_bits_or_nats(monkeypatch):
  for flags, metric in (({}, "bits_per_dim"), (dict(points="moons"), "nll")):
    called = {}
    monkeypatch.setattr(flow, "train", lambda *_, called=called, **options: called.update(options) or 0)
    assert flow.main(configure(**flags)) == 0
    assert called["best_metric"] == metric and called.get("best_mode", "min") == "min"


def test_the_plane_has_settings_of_its_own():
  asked = flow.Config.tuned(points="moons", width=8)
  assert (asked.steps, asked.batch_size, asked.width, asked.depth) == (4000, 256, 8, 2)
  assert flow.Config.tuned().steps == 600


def test_a_flow_below_the_floor_says_nothing(capsys):
  assert _flow_report._say_if_above(1.0, {"bits_per_dim_histogram": 2.0}) == {"below_floor": 1.0}
  assert capsys.readouterr().err == ""
  for bits in (2.5, float("nan")):
    assert _flow_report._say_if_above(bits, {"bits_per_dim_histogram": 2.0}) == {"below_floor": 0.0}
    assert "learned nothing that single pixels do not know" in capsys.readouterr().err


def test_report_of_points(tmp_path):
  flags = dict(points="rings", data_start=False, base="normal")
  figures = flow.make(configure(**flags)).report(first(**flags), tmp_path)
  x = np.asarray(flow.evaluated_points("rings"), np.float64)
  normal = scipy.stats.multivariate_normal(x.mean(0), np.cov(x.T, bias=True))
  assert figures["nll_normal"] == pytest.approx(-normal.logpdf(x).mean(), rel=1e-4)
  assert figures["nll_above_exact"] + figures["nll_exact"] == pytest.approx(
    -scipy.stats.norm.logpdf(x).sum(1).mean(), rel=1e-4
  )
  assert figures["nll_exact"] < figures["nll_normal"]
  assert figures["density_mass"] == pytest.approx(0.9946, abs=2e-3)  # of a normal within 3 deviations, twice
  assert (tmp_path / "density.png").exists()


# -- flags -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("flags", "sentence"),
  [
    (dict(alpha=0.5), "--alpha=0.5 is out of range"),
    (dict(width=0), "--width=0 is out of range"),
    (dict(ema_decay=1.0), "--ema_decay=1.0 is out of range"),
    (dict(temperature=0.0), "--temperature=0.0 is out of range"),
    (dict(quality_samples=3), "--quality_samples=3 is out of range"),
    (dict(couplings=-1), "--couplings=-1 is out of range"),
  ],
)
def test_bad_flags_are_refused_in_a_sentence(flags, sentence):
  with pytest.raises(InputError, match=sentence):
    flow.Config(**flags)


def test_too_many_levels_are_refused_before_time_is_spent():
  said = r"--flow=realnvp --levels=2: levels: an image of 4 x 4 can be squeezed 1 times .* --flow=nice takes any size"
  with pytest.raises(InputError, match=said):
    flow.make(flow.Config(levels=2))


def test_flags_without_effect_say_so():
  assert {"dataset", "alpha", "levels"} <= set(flow.Config(points="grid").idle_flags())
  assert "levels" in flow.Config(flow="nice").idle_flags()
  assert not {"levels", "alpha", "temperature"} & set(flow.Config().idle_flags())


def test_a_model_gives_levels_back():
  model = FlowModel(Flatten(SHAPE), SHAPE, LEVELS)
  assert model.to_levels(jnp.array([[-0.1, 0.0, 0.999, 1.2, 8.5 / 17]])).tolist() == [[0, 0, 16, 16, 8]]
