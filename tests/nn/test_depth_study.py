"""The study of depth: the trainer against a loop, what each part compares, its figures, its pictures."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.nn import _depth_folds, _depth_norms, _depth_order, _depth_residual, _side_by_side, classifier, depth
from mlnotes.data import ArraySplit, DataSet, RecordSplit, make_resident_feed
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key, stream_key
from mlnotes.nn.mlp import MLP

CLASSES, BATCH, STEPS = 3, 5, 4


def make_split(size, seed):
  rng = np.random.default_rng(seed)
  return ArraySplit(rng.integers(0, 17, (size, 4, 4, 1), dtype=np.uint8), rng.integers(0, 3, size).astype(np.int32))


DATA = DataSet("noise", make_split(20, 0), make_split(9, 1), CLASSES, ("a", "b", "c"), 17, (4, 4, 1))


# -- the trainer -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def curves():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(_side_by_side, "_CHUNK", 4)  # nine test images: three chunks, the last of them not full
    return _side_by_side.train_seeds(
      MLP(4, 2, CLASSES), DATA, optax.sgd(0.3), seeds=range(3, 5), steps=STEPS, batch_size=BATCH, points=2
    )


@pytest.fixture(scope="module")
def reference():
  """Losses of each update, accuracy under running statistics, and gradients of the first update, of seeds 3 and 4."""
  network = MLP(4, 2, CLASSES)
  seen = lambda image: 2 * jnp.asarray(image, jnp.float32) / 16 - 1

  @jax.jit
  def gradient(params, stats, image, label):
    def loss(params):
      variables = {"params": params, "batch_stats": stats}
      logits, updated = network.apply(variables, seen(image), train=True, mutable=["batch_stats"])
      return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean(), updated["batch_stats"]

    return jax.value_and_grad(loss, has_aux=True)(params)

  out = []
  feed = make_resident_feed(DATA.train, BATCH)
  draw = jax.jit(feed.draw)
  init, predict = (jax.jit(partial(f, train=False)) for f in (network.init, network.apply))
  for seed in (3, 4):
    variables = init(stream_key(root_key(seed), "init"), seen(DATA.test.image[:1]))
    params, stats, losses, norms = variables["params"], variables["batch_stats"], [], None
    for step in range(STEPS):
      batch = draw(feed.arrays, root_key(seed), step)
      (loss, stats), grads = gradient(params, stats, batch["image"], batch["label"])
      norms = norms or [float(jnp.linalg.norm(grads[name]["kernel"])) for name in ("dense0", "head")]
      params = jax.tree.map(lambda p, g: p - 0.3 * g, params, grads)
      losses.append(float(loss))
    logits = predict({"params": params, "batch_stats": stats}, seen(DATA.test.image))
    out.append((losses, float(np.mean(np.argmax(logits, -1) == DATA.test.label)), *norms))
  return out


def test_seeds_side_by_side_are_a_loop_over_each(curves, reference):
  losses, accuracy, first, last = (np.array(values) for values in zip(*reference))
  np.testing.assert_allclose(curves.loss, losses.reshape(2, 2, 2).mean(-1), rtol=1e-4)
  np.testing.assert_allclose(curves.accuracy, accuracy, atol=1e-6)
  np.testing.assert_allclose(curves.first_gradient, first, rtol=1e-4)
  np.testing.assert_allclose(curves.last_gradient, last, rtol=1e-4)
  assert np.all(np.diff(curves.loss, axis=0) != 0)


# -- residual ----------------------------------------------------------------------------------------------------------


def gradient_norm(fields, layers, name="dense0"):
  network = MLP(16, layers, CLASSES, **fields)
  x = jax.random.normal(jax.random.key(0), (8, 16))
  variables = jax.jit(partial(network.init, train=False))(jax.random.key(1), x)

  def loss(params):
    logits, _ = network.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(8) % 3).mean()

  return float(jnp.linalg.norm(jax.jit(jax.grad(loss))(variables["params"])[name]["kernel"]))


def test_the_stacks_are_what_they_are_called():
  norms = {name: gradient_norm(fields, 8) for name, fields in _depth_residual.STACKS.items()}
  assert norms["plain_lecun"] < 0.3 * norms["plain_he"]  # 2^-3.5 of it, about
  assert norms["residual_batch_norm"] != norms["plain_batch_norm"]
  # Zero gamma: each pair starts as the identity, and no gradient passes through its first matrix.
  assert gradient_norm(_depth_residual.STACKS["residual_zero_gamma"], 4, "dense1") == 0
  assert gradient_norm(_depth_residual.STACKS["residual_batch_norm"], 4, "dense1") > 0
  assert set(_depth_residual.STACKS) == set(_depth_residual.TITLES)
  # But for the name, neighbours in the table differ in one thing.
  what = {name: (f["norm"], f["kernel_init"]) for name, f in _depth_residual.STACKS.items()}
  he = dict.fromkeys(("plain_batch_norm", "residual_batch_norm", "residual_zero_gamma"), ("batch", "he"))
  assert what == {"plain_lecun": ("none", "lecun"), "plain_he": ("none", "he"), **he}


def step_sizes(optimizer, count):
  """How far each of so many updates goes by Adam on a gradient of one."""
  params, sizes = {"w": jnp.ones(1)}, []
  state = optimizer.init(params)
  for _ in range(count):
    updates, state = optimizer.update({"w": jnp.ones(1)}, state)
    sizes.append(-float(updates["w"][0]))
  return sizes


def fake_curves(calls, loss=0.5):
  """In place of training: loss and accuracy tell which call it was, and which seed."""

  def train_seeds(network, data, optimizer, *, seeds, steps, batch_size, points, first="dense0", last="head"):
    calls.append(
      dict(network=network, optimizer=optimizer, seeds=seeds, steps=steps, batch_size=batch_size, first=first)
    )
    own = np.arange(len(seeds)) / 100 + len(calls) / 10
    return _side_by_side.Curves(np.full((len(seeds), points), loss) * own[:, None], own / 10, own, own / 2)

  return train_seeds


def test_residual_reports_every_stack_at_every_depth(tmp_path, monkeypatch, capsys):
  calls = []
  monkeypatch.setattr(_depth_residual, "train_seeds", fake_curves(calls))
  config = depth.Config(depths=(4, 6), seeds=2, seed=5, stack_width=7, stack_steps=8, batch_size=3)
  figures, rows = _depth_residual.measure(config, DATA, tmp_path)
  assert len(calls) == 10 and len(rows) == 12
  assert {(call["seeds"], call["steps"], call["batch_size"]) for call in calls} == {(range(5, 7), 8, 3)}
  assert [(call["network"].depth, call["network"].width) for call in calls] == [(4, 7)] * 5 + [(6, 7)] * 5
  assert [call["network"].residual for call in calls[:5]] == [False, False, False, True, True]
  np.testing.assert_allclose(figures["plain_he_4/accuracy"], [0.02, 0.021])
  np.testing.assert_allclose(figures["plain_he_4/loss"], [0.1, 0.105])
  np.testing.assert_allclose(figures["residual_zero_gamma_6/first_gradient"], [1.0, 1.01])
  np.testing.assert_allclose(figures["residual_zero_gamma_6/last_gradient"], [0.5, 0.505])
  assert "| residual, zero gamma | 6 | 1, 0.5 |" in rows[-1]
  np.testing.assert_allclose(step_sizes(calls[0]["optimizer"], 2), 1e-3, rtol=1e-3)
  assert (tmp_path / "residual.png").stat().st_size > 1000


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_what_diverged_is_drawn(loss, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(_depth_residual, "train_seeds", fake_curves([], loss))
  monkeypatch.setattr(_depth_order, "train_seeds", fake_curves([], loss))
  config = depth.Config(depths=(4,), seeds=2, stack_steps=4, order_steps=4, order_warmup=2)
  assert "not finite" in "\n".join(_depth_residual.measure(config, DATA, tmp_path)[1])
  assert "not finite" in "\n".join(_depth_order.measure(config, DATA, tmp_path)[1])


# -- norms -------------------------------------------------------------------------------------------------------------


def test_norms_are_compared_after_equally_many_epochs_at_rates_in_proportion():
  config = depth.Config(dataset="digits", image_size=8, seeds=2, seed=4, epochs=3, eval_examples=7)
  own = {size: _depth_norms.settings(config, DATA, "group", size) for size in (2, 5)}
  assert [(c.steps, c.batch_size) for c in own.values()] == [(30, 2), (12, 5)]
  assert own[5].learning_rate / own[2].learning_rate == pytest.approx(2.5)
  assert own[2].learning_rate == pytest.approx(0.1 * 2 / 64) and own[2].warmup_steps == 1
  assert {c.image_size for c in own.values()} == {8}
  for c in own.values():
    assert (c.norm, c.dataset, c.seeds, c.seed, c.eval_examples) == ("group", "digits", 2, 4, 7)


def test_the_gap_is_to_the_largest_batch_seed_by_seed(tmp_path, monkeypatch):
  errors = {("batch", 2): [0.3, 0.5], ("batch", 8): [0.1, 0.2], ("group", 2): [0.2, 0.2], ("group", 8): [0.25, 0.1]}

  def main(config):
    seeds = errors[config.norm, config.batch_size]
    Path(config.workdir).mkdir(parents=True)
    card = {"metrics": {"error": {"seeds": seeds}, "accuracy": {"seeds": [1 - e for e in seeds]}}}
    (Path(config.workdir) / "result.json").write_text(json.dumps(card))
    return 0

  monkeypatch.setattr(classifier, "main", main)
  config = depth.Config(batch_sizes=(8, 2), seeds=2)
  figures, rows = _depth_norms.measure(config, DATA, tmp_path)
  np.testing.assert_allclose(figures["batch_2/gap"], [20, 30])
  np.testing.assert_allclose(figures["group_2/gap"], [-5, 10])
  np.testing.assert_allclose(figures["group_8/error"], [25, 10])
  assert "batch_8/gap" not in figures and len(rows) == 6
  assert (tmp_path / "norms.png").stat().st_size > 1000
  monkeypatch.setattr(classifier, "main", lambda config: 143)
  with pytest.raises(SystemExit):
    _depth_norms.measure(config, DATA, tmp_path / "other")


# -- order -------------------------------------------------------------------------------------------------------------


def test_each_order_trains_with_and_without_warm_up(tmp_path, monkeypatch, capsys):
  calls = []
  monkeypatch.setattr(_depth_order, "train_seeds", fake_curves(calls))
  config = depth.Config(layers=3, order_rate=0.1, order_warmup=4, order_steps=8, order_batch=6, seeds=2, seed=7)
  figures, rows = _depth_order.measure(config, DATA, tmp_path)
  assert {(c["batch_size"], c["steps"], c["seeds"], c["first"]) for c in calls} == {(6, 8, range(7, 9), "embed")}
  assert [(c["network"].order, c["network"].depth) for c in calls] == [("pre", 3)] * 2 + [("post", 3)] * 2
  names = ["pre_norm_without_warmup", "pre_norm_with_warmup", "post_norm_without_warmup", "post_norm_with_warmup"]
  assert list(figures) == [f"{name}/{what}" for name in names for what in ("loss", "accuracy")]
  for call, warm in zip(calls, (False, True, False, True)):
    wanted = [0, 0.025, 0.05, 0.075, 0.1, 0.1] if warm else [0.1] * 6
    np.testing.assert_allclose(step_sizes(call["optimizer"], 6), wanted, rtol=1e-3, atol=1e-6)
  assert [row.split("|")[1:3] for row in rows[2:]] == [
    [" pre ", " 0 "],
    [" pre ", " 4 "],
    [" post ", " 0 "],
    [" post ", " 4 "],
  ]
  assert rows[2].endswith("| 1.0 |")  # the worse of 1 and 1.1 %
  assert (tmp_path / "order.png").stat().st_size > 1000


# -- width -------------------------------------------------------------------------------------------------------------


def test_wide_and_deep_have_the_same_parameters():
  for parameters in (100, 200, 1000):
    networks = _depth_folds.shapes(parameters)
    assert (len(networks["wide"]), len(networks["deep"])) == (1, 4)
    counts = []
    for widths in networks.values():
      params = jax.eval_shape(_depth_folds.Line(widths).init, jax.random.key(0), jnp.zeros((1, 1)))
      counts.append(sum(leaf.size for leaf in jax.tree.leaves(params)))
      assert counts[-1] == _depth_folds.count(widths)
    assert abs(counts[0] - counts[1]) <= 2 and abs(counts[1] / parameters - 1) < 0.2


def test_what_is_fitted_is_the_folded_line():
  config = depth.Config(seeds=2, fit_steps=300)
  error = _depth_folds.fit((16,), 1, config)
  assert error.shape == (2,) and np.all(error < 0.05)
  still = _depth_folds.fit((16,), 4, depth.Config(seeds=2, fit_steps=1))
  assert np.all(still > 0.2)  # the error of a constant is .29


def test_seeds_of_a_fit_start_at_the_flag():
  one, two = (_depth_folds.fit((2,), 1, depth.Config(seeds=2, seed=seed, fit_steps=1)) for seed in (0, 1))
  assert one[1] == pytest.approx(two[0], rel=1e-5) and one[0] != pytest.approx(two[0], rel=1e-3)


def test_width_reports_sums_folds_and_fits(tmp_path, monkeypatch):
  asked = []
  fake = lambda widths, times, config: asked.append((len(widths), times)) or np.array([0.1 * times, 0.2]) / len(widths)
  monkeypatch.setattr(_depth_folds, "fit", fake)
  figures, rows = _depth_folds.measure(depth.Config(folds=(1, 3)), DATA, tmp_path)
  assert asked == [(1, 1), (4, 1), (1, 3), (4, 3)]
  np.testing.assert_allclose(figures["deep_3_folds/error"], [0.075, 0.05])
  np.testing.assert_allclose(figures["wide_3_folds/error"], [0.3, 0.2])
  assert (figures["1_folds/pieces"], figures["3_folds/pieces"]) == (2, 8)
  # Twice the pieces, a quarter of the error: what straight lines owe a smooth curve.
  ratio = figures["hard_sigmoids_16/largest_error"] / figures["hard_sigmoids_32/largest_error"]
  assert 3.5 < ratio < 4.5
  # The largest error of a line through the ends of a short piece: an eighth of its square times the curvature.
  places = np.linspace(0, 1, 33)
  middles = (places[1:] + places[:-1]) / 2
  ends = _depth_folds.curve(places)
  largest = np.max(np.abs(_depth_folds.curve(middles) - (ends[1:] + ends[:-1]) / 2))
  assert figures["hard_sigmoids_32/largest_error"] == pytest.approx(largest, rel=0.05)
  row = next(row for row in rows if row.startswith("| 3 | 8 | 8, 6 |"))
  assert "| 0.25 (0.2 to 0.3) |" in row
  assert (tmp_path / "width.png").stat().st_size > 1000


# -- flags -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags, words", [
  ({"parts": ("residul",)}, "--parts=residul is no part: did you mean residual"),
  ({"parts": ()}, "--parts="),
  ({"depths": (8, 7)}, "--depths=8,7 .*even"),
  ({"depths": (2,)}, "--depths=2 "),
  ({"depths": (8, 8)}, "--depths=8,8 .*each once"),
  ({"batch_sizes": (1, 8)}, "--batch_sizes="),
  ({"norms": ("bach",)}, "--norms=bach"),
  ({"folds": (0,)}, "--folds=0 "),
  ({"folds": (11,)}, "--folds=11 "),
  ({"seeds": 0}, "--seeds=0"),
  ({"seed": -1}, "--seed=-1"),
  ({"epochs": 0}, "--epochs=0"),
  ({"order_warmup": 0}, "--order_warmup=0"),
  ({"fit_parameters": 10**9}, "--fit_parameters=1000000000"),
  ({"order_rate": 0.0}, "--order_rate=0.0"),
  ({"order_warmup": 401}, "--order_warmup=401"),
  ({"fit_parameters": 5}, "--fit_parameters=5"),
])  # fmt: skip
def test_a_bad_flag_is_one_sentence_that_names_it(flags, words):
  with pytest.raises(InputError, match=words):
    depth.Config(**flags)


def test_parts_run_alone_and_flags_of_the_others_are_idle(tmp_path, monkeypatch):
  monkeypatch.setitem(depth.PARTS, "width", lambda config, data, directory: ({"x": 1.0}, ["| row |"]))
  monkeypatch.setattr(depth, "load_data", lambda config: DATA)
  config = depth.Config(
    parts=("width",), workdir=str(tmp_path / "run"), batch_size=4, batch_sizes=(2, 8), order_batch=4
  )
  assert depth.main(config) == 0
  assert json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]["x"]["mean"] == 1
  assert (tmp_path / "run" / "table.md").read_text() == "| row |\n"
  monkeypatch.setitem(depth.PARTS, "order", lambda config, data, directory: ({"y": 2.0}, ["| other |"]))
  both = dict(parts=("width", "order"), workdir=str(tmp_path / "both"), batch_size=4, order_batch=4)
  assert depth.main(depth.Config(**both, batch_sizes=(2, 8))) == 0
  assert set(json.loads((tmp_path / "both" / "result.json").read_text())["metrics"]) >= {"x", "y"}
  assert (tmp_path / "both" / "table.md").read_text() == "| row |\n\n| other |\n"
  with pytest.raises(InputError, match="--batch_sizes=64"):  # its largest
    depth.main(depth.Config(parts=("norms",), batch_sizes=(2, 64), workdir=str(tmp_path / "large")))
  idle = config.idle_flags()
  assert {"depths", "norms", "layers", "batch_size"} <= set(idle) and not {"folds", "fit_steps"} & set(idle)


def test_data_that_do_not_fit_are_refused(tmp_path):
  with pytest.raises(InputError, match="--order_batch=64"):
    _side_by_side.require_resident(DATA, order_batch=64)
  streamed = DATA._replace(train=RecordSplit([], (4, 4, 1)))
  with pytest.raises(InputError, match="does not fit into memory"):
    _side_by_side.require_resident(streamed)
