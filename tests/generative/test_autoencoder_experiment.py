"""What `autoencoder` makes of its parts: an update and an evaluation against NumPy, closed forms, and the report."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.generative import _autoencoding, autoencoder
from mlnotes.data import ArraySplit, DataSet
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import example_keys, set_hparams, stream_key
from mlnotes.generative import masked_autoencoder as mae
from mlnotes.generative.networks import to_unit
from mlnotes.optim.flags import OptimConfig

SHAPE = (4, 4, 1)


def make_data(train=24, test=36, seed=0):
  rng = np.random.default_rng(seed)
  basis = rng.normal(size=(5, *SHAPE))
  image = (
    np.tensordot(rng.normal(size=(train + test, 5)), basis, 1) * 25 + 128 + 5 * rng.normal(size=(train + test, *SHAPE))
  )
  image = np.clip(image, 0, 255).astype(np.uint8)
  label = np.arange(train + test, dtype=np.int32) % 3
  split = lambda part: ArraySplit(image[part], label[part])
  return DataSet("toys", split(slice(train)), split(slice(train, None)), 3, tuple("abc"), 256, SHAPE)


def make_config(**given):
  plain = dict(optimizer="sgd", momentum=0.0, schedule="constant", warmup_steps=0, learning_rate=0.1)
  defaults = dict(batch_size=8, codes=6, network="single", k=2, steps=10)
  return autoencoder.Config(**{**plain, **defaults, **given})


@pytest.fixture
def data(monkeypatch):
  data = make_data()
  monkeypatch.setattr(autoencoder, "load_data", lambda config: data)
  return data


@functools.cache
def compiled(config):
  experiment = autoencoder.make(config)
  return experiment, jax.jit(experiment.step), jax.jit(experiment.evaluate)


def first_update(config, data, step=7, **hparams):
  """(batch, state before, state after, metrics) of an update that is not the first."""
  experiment, update, _ = compiled(config)
  index = np.arange(config.batch_size) + 3
  batch = {**jax.tree.map(jnp.asarray, data.train.read(index)), "index": jnp.asarray(index)}
  before = set_hparams(experiment.init(jax.random.key(3), batch)._replace(step=jnp.int32(step)), **hparams)
  return batch, before, *update(before, batch)


def corrupt(config, state, batch, level, stream, step=0):
  """The corrupted images, from the streams that are the experiment's contract."""
  x = np.asarray(batch["image"], np.float64) / 255
  keys = example_keys(stream_key(jax.random.clone(state.key), stream, step), batch["index"])
  if config.kind != "denoising":
    return x, x
  if config.corruption == "gaussian":
    return x, x + level * np.asarray(jax.vmap(lambda key: jax.random.normal(key, SHAPE))(keys))
  hidden = np.asarray(jax.vmap(lambda key: jax.random.bernoulli(key, level, SHAPE))(keys))
  assert 0 < hidden.sum() < hidden.size
  return x, np.where(hidden, 0, x)


def exact(config, params, x, seen, rho=0.05, weight=0.1):
  """(loss, squared error of each image, code) of single layers, in float64."""
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  layer = lambda part, x: x @ params[part]["Dense_0"]["kernel"] + params[part]["Dense_0"]["bias"]
  code = layer("encoder", seen.reshape(len(seen), -1))
  penalty = 0.0
  if config.kind == "sparse":
    code = sigmoid(code)
    mean = code.mean(0)
    penalty = weight * np.sum(rho * np.log(rho / mean) + (1 - rho) * np.log((1 - rho) / (1 - mean)))
  if config.kind == "k_sparse":
    code = np.where(code >= np.sort(code, 1)[:, [-config.k]], code, 0)
  output = layer("decoder", code)
  if config.activation != "linear" and config.kind != "k_sparse":
    output = sigmoid(output)
  error = ((output.reshape(x.shape) - x) ** 2).mean((1, 2, 3))
  return 16 * error.mean() / 2 + penalty, error, code


SETTINGS = {
  "plain": {},
  "linear": dict(activation="linear"),
  "noise": dict(kind="denoising"),
  "masked pixels": dict(kind="denoising", corruption="masking"),
  "sparse": dict(kind="sparse"),
  "k_sparse": dict(kind="k_sparse"),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_one_update_and_an_evaluation_are_those_of_numpy(data, setting):
  config = make_config(**SETTINGS[setting])
  level = {"noise": 0.4, "masked pixels": 0.5}.get(setting, 0.0)
  hparams = {"corruption_level": level} if level else {}
  hparams |= {"sparsity_weight": 0.7, "target_activation": 0.2} if setting == "sparse" else {}
  batch, before, after, metrics = first_update(config, data, **hparams)
  x, seen = corrupt(config, before, batch, level, "corruption", 7)
  params = jax.tree.map(lambda p: np.asarray(p, np.float64), before.params)
  loss = lambda params: exact(config, params, x, seen, 0.2, 0.7)[0]
  assert float(metrics["loss"]) == pytest.approx(loss(params), rel=1e-4)
  # Plain gradient descent with rate 0.1: along a direction in each array the loss falls as the update says.
  rng = np.random.default_rng(0)
  leaves, tree = jax.tree.flatten(params)
  for i, leaf in enumerate(leaves):
    direction = rng.normal(size=leaf.shape)
    ends = [
      loss(jax.tree.unflatten(tree, [*leaves[:i], leaf + way * direction, *leaves[i + 1 :]])) for way in (1e-5, -1e-5)
    ]
    slope = (ends[0] - ends[1]) / 2e-5
    gradient = (leaf - np.asarray(jax.tree.leaves(after.params)[i], np.float64)) / 0.1
    assert np.sum(gradient * direction) == pytest.approx(slope, rel=2e-2, abs=2e-3)
  assert int(after.step) == 8

  index = np.array([1, 5, 2, 30], np.int32)
  held_out = {**jax.tree.map(jnp.asarray, data.test.read(index)), "index": jnp.asarray(index)}
  held_out["mask"] = jnp.array([1.0, 1, 1, 0])
  found = compiled(config)[2](before, held_out)
  x, seen = corrupt(config, before, held_out, level, "evaluate")
  _, error, code = exact(config, params, x, seen)
  name = "denoising_mse" if config.kind == "denoising" else "mse"
  assert float(found[name].total) == pytest.approx(error[:3].sum(), rel=1e-4) and found[name].count == 3
  if config.kind == "denoising":
    assert float(found["mse"].total) == pytest.approx(exact(config, params, x, x)[1][:3].sum(), rel=1e-4)
  if config.kind == "sparse":
    assert float(found["mean_activation"].total) == pytest.approx(code.mean(1)[:3].sum(), rel=1e-4)


def test_numbers_that_a_sweep_varies_start_as_their_flags_say(data):
  for given in (
    dict(kind="denoising", corruption_level=0.3), dict(kind="sparse", target_activation=0.2, sparsity_weight=0.5)
  ):  # fmt: skip
    state = first_update(make_config(**given), data)[1]
    assert {name: round(float(value), 6) for name, value in state.hparams.items()} == {
      name: value for name, value in given.items() if name != "kind"
    }


MASKED = dict(kind="masked", width=8, heads=2, depth=1, decoder_width=4, decoder_depth=1, mask_share=0.5)


def test_hidden_patches_of_this_step_are_guessed_and_judged(data):
  config = make_config(**MASKED)
  network = mae.MaskedAutoencoder(SHAPE, 2, 1, 2, 8, 1, 2, 4)

  @jax.jit
  def guess(params, keys, x):
    masking = mae.draw_masking(keys, 4, 0.5)
    return masking.hidden, network.apply({"params": params}, x, masking)

  losses = []
  for step in (7, 8):
    batch, before, _, metrics = first_update(config, data, step)
    keys = example_keys(stream_key(jax.random.clone(before.key), "corruption", step), batch["index"])
    x = np.asarray(to_unit(batch["image"], 256))
    hidden, predicted = (np.asarray(a) for a in guess(before.params, keys, x))
    squares = x.reshape(8, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4).reshape(8, 4, 4)
    target = (squares - squares.mean(-1, keepdims=True)) / np.sqrt(squares.var(-1, keepdims=True, ddof=1) + 1e-6)
    errors = [((predicted - target)[i, hidden[i]] ** 2).mean() for i in range(8)]
    assert float(metrics["masked_error"]) == pytest.approx(np.mean(errors), rel=1e-3)
    losses.append(float(metrics["masked_error"]))
  assert losses[0] != losses[1]


def test_what_is_drawn_of_a_masked_image_is_what_was_seen(data):
  config = make_config(**MASKED)
  batch, state, *_ = first_update(config, data)
  model = autoencoder.make_model(config, SHAPE)
  x = jnp.asarray(batch["image"], jnp.float32) / 255
  outcome = model.apply(state.params, example_keys(jax.random.key(0), batch["index"]), x, {})
  grey = np.asarray(mae.patchify(outcome.seen, 2) == 0.5).all(-1)
  assert np.all(grey.sum(1) == 2)
  same = np.isclose(mae.patchify(outcome.output, 2), mae.patchify(x, 2)).all(-1)
  np.testing.assert_array_equal(same, ~grey)
  assert model.encode(state.params, x).shape == (8, 8) and model.decode is None


def test_every_flag_of_the_networks_reaches_them(data):
  shapes = lambda **given: {
    "/".join(str(key.key) for key in path): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      jax.eval_shape(
        autoencoder.make_model(make_config(**given), (8, 8, 1)).init, jax.random.key(0), jnp.zeros((1, 8, 8, 1))
      )
    )
  }
  mlp = shapes(network="mlp", hidden=(5, 7))
  assert [mlp[f"encoder/Dense_{i}/kernel"] for i in range(3)] == [(64, 5), (5, 7), (7, 6)]
  assert [mlp[f"decoder/Dense_{i}/kernel"] for i in range(3)] == [(6, 7), (7, 5), (5, 64)]
  conv = shapes(network="conv", channels=(3, 5), hidden=(9,))
  assert conv["encoder/Conv_1/kernel"] == (4, 4, 3, 5) and conv["encoder/Dense_0/kernel"] == (20, 9)
  masked = shapes(**{**MASKED, "depth": 2, "decoder_depth": 3, "patch": 4})
  blocks = lambda part: len({name.split("/")[1] for name in masked if name.startswith(f"{part}/block")})
  assert (blocks("encoder"), blocks("decoder")) == (2, 3)
  assert masked["embed/kernel"] == (16, 8) and masked["narrow/kernel"] == (8, 4) and masked["head/kernel"] == (4, 16)
  assert shapes(**MASKED)["embed/kernel"] == (4, 8)  # patches of 2 pixels where none are given
  auto = lambda **given: autoencoder.choose_network(make_config(network="auto", **given))
  assert [auto(), auto(kind="sparse"), auto(activation="linear")] == ["mlp", "single", "single"]
  # The activation between layers, and none in a linear one.
  x = jnp.asarray(data.test.image, jnp.float32) / 255
  outputs = []
  for name in ("relu", "tanh", "linear"):
    model = autoencoder.make_model(make_config(network="mlp", hidden=(5,), activation=name), SHAPE)
    params = model.init(jax.random.key(0), x)
    outputs.append(np.asarray(model.encode(params, x)))
    double = np.asarray(model.encode(params, 2 * x)) - 2 * outputs[-1]
    assert np.allclose(double, 0, atol=1e-5) == (name != "tanh")
  assert not np.allclose(outputs[0], outputs[2])


def test_a_denoiser_of_gaussian_images_is_the_closed_form(monkeypatch):
  """E[x | x + sigma n] = mean + C (C + sigma^2 I)^-1 (x + sigma n - mean)."""
  rng = np.random.default_rng(5)
  images = rng.multivariate_normal(np.full(4, 128), 900 * (0.3 * np.eye(4) + 0.7), 2000)
  image = np.clip(np.round(images), 0, 255).astype(np.uint8).reshape(-1, 2, 2, 1)
  label = np.zeros(len(image), np.int32)
  data = DataSet("normal", ArraySplit(image, label), ArraySplit(image[:8], label[:8]), 1, ("a",), 256, (2, 2, 1))
  monkeypatch.setattr(autoencoder, "load_data", lambda config: data)
  config = make_config(
    kind="denoising", corruption_level=0.1, activation="linear", codes=4, optimizer="adam", momentum=0.9, steps=6000,
    learning_rate=0.01, schedule="cosine",
  )  # fmt: skip
  experiment = autoencoder.make(config)
  batch = {"image": jnp.asarray(image), "index": jnp.arange(len(image))}
  state = experiment.init(jax.random.key(0), batch)
  state = jax.jit(lambda state: jax.lax.scan(lambda s, _: (experiment.step(s, batch)[0], None), state, None, 6000)[0])(
    state
  )
  x = image.reshape(-1, 4) / 255.0
  covariance = np.cov(x.T, ddof=0)
  exact = np.linalg.solve(covariance + 0.01 * np.eye(4), covariance)
  kernel = lambda part: np.asarray(state.params[part]["Dense_0"]["kernel"], np.float64)
  np.testing.assert_allclose(kernel("encoder") @ kernel("decoder"), exact, atol=0.02)
  assert np.abs(exact - np.eye(4)).max() > 0.3
  floor = _autoencoding._linear_denoiser_mse(config, data, *(x.reshape(image.shape),) * 2)
  bias = x.mean(0) @ (np.eye(4) - exact)
  assert floor == pytest.approx(np.mean((x @ exact + bias - x) ** 2), rel=0.1)


def test_floors_are_those_of_numpy_on_training_images_alone():
  data = make_data(seed=1)
  train, test = (split.image.reshape(len(split), -1) / 255.0 for split in (data.train, data.test))
  centre = train.mean(0)
  directions = np.linalg.svd(train - centre, full_matrices=False)[2][:3]
  through = (test - centre) @ directions.T @ directions + centre
  pca_mse, mean_mse = _autoencoding.compute_pca_mse(data, 3)
  assert pca_mse == pytest.approx(np.mean((through - test) ** 2), rel=1e-4)
  assert mean_mse == pytest.approx(np.mean((test - centre) ** 2), rel=1e-4)
  assert _autoencoding.compute_pca_mse(data, 16)[0] == 0


ALWAYS = {"reconstructions", "units", "interpolation"}
REPORTS = {
  "plain": (dict(codes=2), {*ALWAYS, "code_map"}, {"pca_mse_2", "mse_over_pca", "mean_image_mse"}),
  "denoising": (
    dict(kind="denoising"), ALWAYS, {"corrupted_mse", "linear_denoiser_mse", "pca_mse_6", "mean_image_mse"}
  ),
  "k_sparse": (dict(kind="k_sparse"), ALWAYS, {"dead_units", "pca_mse_2", "mse_over_pca", "mean_image_mse"}),
  "masked": (MASKED, {"reconstructions"}, {"masked_error_of_mean"}),
}  # fmt: skip


@pytest.mark.parametrize(("given", "pictures", "figures"), REPORTS.values(), ids=REPORTS)
def test_a_report_leaves_its_figures_and_pictures(data, tmp_path, capsys, given, pictures, figures):
  config = make_config(**given)
  experiment, *_ = compiled(config)
  _, state, *_ = first_update(config, data)
  found = experiment.report(state, tmp_path)
  probes = {f"{kind}_probe_{name}" for kind in ("linear", "pixel") for name in ("24_labels", "10_per_class")}
  assert set(found) == figures | probes | {"collapsed"}
  assert {path.stem for path in tmp_path.glob("*.png")} == pictures
  assert all(np.isfinite(value) for value in found.values())
  if config.kind == "k_sparse":
    code = np.asarray(experiment.model(state)(jnp.asarray(data.test.image)))
    assert found["dead_units"] == pytest.approx(np.mean(code.max(0) - code.min(0) < 1e-3))
  if config.kind == "masked":
    squares = data.test.image.reshape(-1, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 4) / 255
    target = (squares - squares.mean(1, keepdims=True)) / np.sqrt(squares.var(1, keepdims=True, ddof=1) + 1e-6)
    assert found["masked_error_of_mean"] == pytest.approx((target**2).mean(), rel=1e-4)
  if config.kind == "denoising":
    seen = corrupt(config, state, {**data.test.read(np.arange(36)), "index": jnp.arange(36)}, 0.25, "evaluate")[1]
    assert found["corrupted_mse"] == pytest.approx(((seen - data.test.image / 255) ** 2).mean(), rel=1e-4)
  # Nothing has been learned yet, and that is said.
  assert found["collapsed"] == 1 and "collapsed: the error" in capsys.readouterr().err
  if "mse_over_pca" in found:
    name = next(name for name in found if name.startswith("pca_mse"))
    batch = {**data.test.read(np.arange(36)), "index": np.arange(36), "mask": np.ones(36, np.float32)}
    own = experiment.evaluate(state, jax.tree.map(jnp.asarray, batch))["mse"]
    assert found["mse_over_pca"] * found[name] == pytest.approx(float(own.total / own.count), rel=1e-3)


def test_the_map_of_few_images_has_all_of_them(tmp_path, monkeypatch):
  """Quantiles of four numbers leave the outer ones out."""
  figures, code = [], np.array([[0, 1], [1, 3], [2, 0], [5, 2.0]])
  monkeypatch.setattr(_autoencoding, "save_figure", lambda figure, path: figures.append(figure))
  data = type("Data", (), {"class_names": ("a", "b")})
  _autoencoding._draw_map(lambda code: np.zeros((len(code), 2, 2, 1)), code, np.array([0, 0, 1, 1]), data, tmp_path)
  axis = figures[0].axes[0]
  for (low, high), place in zip((axis.get_xlim(), axis.get_ylim()), code.T):
    assert low < place.min() and place.max() < high


def test_probes_learn_from_training_codes_and_from_as_many_labels_as_they_say(data, monkeypatch):
  asked = []
  probe = lambda train, test, per_class: asked.append((train, test, per_class)) or np.array([per_class + len(train[0])])
  monkeypatch.setattr(_autoencoding, "compute_probe_accuracy", probe)
  code = {name: np.full((size, 2), size) for name, size in (("train", 20), ("test", 36))}
  train, test = (code["train"], data.train.label[:20]), (code["test"], data.test.label)
  figures = _autoencoding._probe(data, make_config(), train, test)
  assert figures == {
    "linear_probe_20_labels": 20, "pixel_probe_20_labels": 20, "linear_probe_10_per_class": 30,
    "pixel_probe_10_per_class": 30,
  }  # fmt: skip
  assert asked[0][0] is train and asked[0][1] is test
  rows = lambda images: {row.tobytes() for row in np.round(images * 255).astype(np.uint8).reshape(len(images), -1)}
  flat = lambda split: {row.tobytes() for row in split.image.reshape(len(split), -1)}
  assert rows(asked[1][0][0]) <= flat(data.train) and rows(asked[1][1][0]) == flat(data.test)


def test_a_report_is_of_as_many_training_images_as_asked_for_and_of_the_slow_weights(data, monkeypatch, tmp_path):
  probed, made = [], []
  for name in ("_draw_reconstructions", "_draw_units", "_draw_interpolation"):
    monkeypatch.setattr(_autoencoding, name, lambda *_: None)
  monkeypatch.setattr(_autoencoding, "_compare", lambda *given: made.append(given) or {})
  monkeypatch.setattr(_autoencoding, "_probe", lambda data, config, train, test: probed.extend((train, test)) or {})
  experiment = autoencoder.make(make_config(lookahead=5, probe_examples=7))
  batch = {**jax.tree.map(jnp.asarray, data.train.read(np.arange(8))), "index": jnp.arange(8)}
  state = experiment.init(jax.random.key(3), batch)
  experiment.report(state._replace(params=jax.tree.map(lambda leaf: leaf + 1, state.params)), tmp_path)
  assert [len(part) for pair in probed for part in pair] == [7, 7, 36, 36]
  codes = experiment.model(state)(jnp.asarray(data.test.image))
  np.testing.assert_allclose(probed[1][0], codes, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(probed[1][1], data.test.label)
  np.testing.assert_allclose(made[0][-1], data.test.image / 255, rtol=1e-6)


def test_masked_pixels_have_the_best_linear_map_of_masked_pixels(data):
  """Its error falls to nothing where nothing is masked."""
  clean = data.test.image / 255.0
  errors = [
    _autoencoding._linear_denoiser_mse(
      make_config(kind="denoising", corruption="masking", corruption_level=level), data, seen, clean
    )
    for level, seen in ((0.0, clean), (0.99, np.zeros_like(clean)))
  ]
  assert errors[0] < 1e-3 and errors[1] > 0.9 * _autoencoding.compute_pca_mse(data, 1)[1]


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (dict(kind="k_sparse", k=7), "--k=7 .* at most --codes=6"),
    (dict(mask_share=1.0), "--mask_share=1.0"),
    (dict(kind="denoising", corruption="masking", corruption_level=1.0), "--corruption_level=1.0 .* below 1"),
    (dict(kind="masked", width=6), "--width=6 .* a multiple of 4 and of --heads=4"),
    (dict(target_activation=0.0), "--target_activation=0.0"),
    (dict(network="conv", channels=()), "--channels=.* one or more with --network=conv"),
  ],
)
def test_bad_values_are_a_sentence(given, message):
  with pytest.raises(InputError, match=message):
    make_config(**given)


def test_patches_that_do_not_fit_are_a_sentence(data):
  with pytest.raises(InputError, match="--patch=3: found images of 4 x 4"):
    autoencoder.make(make_config(**MASKED, patch=3))
  with pytest.raises(InputError, match=r"--mask_share=0\.9: a share of 0\.9 masked of 4 patches leaves 0"):
    autoencoder.make(make_config(**{**MASKED, "mask_share": 0.9}))


def test_flags_without_effect_are_told():
  always = {"data_dir", "train_split", "test_split", "precision"} | set(OptimConfig(optimizer="sgd").idle_flags())
  of_masked = {"mask_share", "patch", "width", "depth", "heads", "decoder_width", "decoder_depth"}
  others = {"corruption", "corruption_level", "target_activation", "sparsity_weight", "k"}
  idle = lambda **given: set(make_config(network="auto", **given).idle_flags()) - always
  assert idle() == of_masked | others | {"channels"}
  assert idle(kind="denoising") == of_masked | others - {"corruption", "corruption_level"} | {"channels"}
  assert idle(kind="sparse") == of_masked | {"corruption", "corruption_level", "k", "channels", "hidden", "activation"}
  assert "activation" not in idle(activation="linear")
  assert idle(**MASKED) == others | {"codes", "network", "hidden", "channels", "activation"}
  tuned = autoencoder.Config.tuned(kind="masked")
  assert (tuned.optimizer, tuned.beta2, tuned.weight_decay) == ("adamw", 0.95, 0.05)
  assert autoencoder.Config.tuned(activation="linear").learning_rate == 1e-2
  assert autoencoder.Config.tuned(kind="sparse").codes == 64 and autoencoder.Config.tuned().codes == 8


@pytest.mark.parametrize(
  ("kind", "metric"), [("plain", "mse"), ("denoising", "denoising_mse"), ("masked", "masked_error")]
)
def test_the_best_checkpoint_has_the_least_error(data, monkeypatch, kind, metric):
  called = {}
  monkeypatch.setattr(autoencoder, "train", lambda *args, **options: called.update(options) or 0)
  assert autoencoder.main(make_config(**(MASKED if kind == "masked" else dict(kind=kind)))) == 0
  assert called["best_metric"] == metric and called.get("best_mode", "min") == "min"


def test_what_is_evaluated_are_the_slow_weights(data):
  experiment = autoencoder.make(make_config(lookahead=5))
  index = jnp.arange(8)
  batch = {**jax.tree.map(jnp.asarray, data.train.read(np.arange(8))), "index": index, "mask": jnp.ones(8)}
  before = experiment.init(jax.random.key(3), batch)
  after = before._replace(params=jax.tree.map(lambda leaf: leaf + 1, before.params))
  assert experiment.evaluate(after, batch)["mse"].total == experiment.evaluate(before, batch)["mse"].total
  np.testing.assert_array_equal(*(experiment.model(state)(batch["image"]) for state in (before, after)))


def test_a_trained_one_encodes_images_as_they_are_stored(data):
  experiment, *_ = compiled(make_config())
  _, state, *_ = first_update(make_config(), data)
  trained = experiment.model(state)
  x = data.test.image / 255.0
  params = jax.tree.map(lambda p: np.asarray(p, np.float64), state.params)
  codes = trained(jnp.asarray(data.test.image))
  np.testing.assert_allclose(codes, exact(make_config(), params, x, x)[2], rtol=1e-3, atol=1e-4)
  assert trained.decode(codes).shape == x.shape
  masked = autoencoder.TrainedAutoencoder(autoencoder.make_model(make_config(**MASKED), SHAPE), {}, 256)
  with pytest.raises(InputError, match="from patches, not from a code"):
    masked.decode(codes)
