"""That the studies measure what they say: one update by hand, sweeps whose optimum is known, figures by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.optim import batch_size, compare, landscape
from mlnotes.data import fixed_subset, load
from mlnotes.optim import eval_params, lookahead
from mlnotes.optim.curvature import Extremes
from mlnotes.optim.flags import OptimConfig, make_optimizer
from mlnotes.optim.surfaces import SURFACES
from mlnotes.optim.testbed import Classifier, Curves, make_classifier, train_once

# ---- One run -------------------------------------------------------------------------------------------------------

# Minima at 0, 1, 2, .. in turn: the order of the batches is seen in the parameters.
TOY = Classifier(
  init=lambda key: {"w": jnp.float32(5.0)},
  loss=lambda params, batch: (params["w"] - batch) ** 2 / 2,
  accuracy=lambda params, batch: params["w"] * batch,
  draw=lambda key, step: step.astype(jnp.float32),
  train=10.0,
  test=100.0,
)


def by_hand(rate, steps):
  """Plain SGD's parameter after each update."""
  w, path = 5.0, []
  for step in range(steps):
    w -= rate * (w - step)
    path.append(w)
  return np.array(path)


def test_a_run_is_the_one_that_was_asked_for():
  """The given rate and not the optimizer's, every batch once, a point of the curves after every second update."""
  optimizer = make_optimizer(OptimConfig(optimizer="sgd", momentum=0.0, learning_rate=99.0), 6)
  found = jax.jit(lambda: train_once(TOY, optimizer, jax.random.key(0), jnp.float32(0.3), 6, 2))()
  path = by_hand(0.3, 6)[1::2]
  np.testing.assert_allclose(found.train_loss, (path - 10) ** 2 / 2, rtol=1e-5)
  np.testing.assert_allclose(found.test_accuracy, 100 * path, rtol=1e-5)
  np.testing.assert_allclose(found.params["w"], path[-1], rtol=1e-5)


def test_lookahead_is_judged_by_what_it_returns():
  """Slow weights: 5 until the second update, then half of the way to the fast ones."""
  optimizer = make_optimizer(OptimConfig(optimizer="sgd", momentum=0.0, lookahead=2), 3)
  found = jax.jit(lambda: train_once(TOY, optimizer, jax.random.key(0), jnp.float32(0.3), 3, 1))()
  slow = np.array([5.0, 5 + (by_hand(0.3, 2)[-1] - 5) / 2, 5 + (by_hand(0.3, 2)[-1] - 5) / 2])
  np.testing.assert_allclose(found.test_accuracy, 100 * slow, rtol=1e-5)
  np.testing.assert_allclose(found.params["w"], slow[-1], rtol=1e-5)
  plain = optax.adam(0.1)
  params = {"w": jnp.ones(2)}
  assert eval_params(plain.init(params), params) is params
  half = {"w": jnp.ones(2, jnp.bfloat16)}
  assert eval_params(lookahead(plain).init(half), half)["w"].dtype == jnp.bfloat16


def test_figures_are_of_a_pseudo_random_part_of_each_split():
  data = load("digits")
  classifier = make_classifier(data, (), 8, 100)
  for held, split in ((classifier.train, data.train), (classifier.test, data.test)):
    index = fixed_subset(len(split), 100)
    assert len(np.unique(index)) == 100 and index.max() > 0.8 * len(split)
    np.testing.assert_array_equal(held["label"], split.label[index])
    np.testing.assert_array_equal(held["image"], split.image[index])
  assert "100 of 1437 training examples and 100 of 360 test examples" in compare.judged_on(classifier, data)
  everything = make_classifier(data, (), 8, 0)
  assert len(everything.test["label"]) == 360 and compare.judged_on(everything, data) == ""


# ---- Optimizers compared -------------------------------------------------------------------------------------------


def fake_run(best_loss, best_accuracy):
  """A run whose final loss is least at one rate and whose accuracy is largest at another; seeds shift both alike."""

  def once(classifier, optimizer, key, rate, steps, every):
    seed = jax.random.key_data(key)[-1].astype(jnp.float32)
    where = jnp.log10(rate)
    points = jnp.arange(steps // every, dtype=jnp.float32)[::-1]
    losses = (where - jnp.log10(best_loss)) ** 2 + 0.1 * seed + points
    return Curves(losses, 1 / (1 + (where - jnp.log10(best_accuracy)) ** 2) - points, ())

  return once


def settings(**changes):
  return compare.Config(**{**dict(optimizers=("sgd",), seeds=2, seed=3, rates=5, steps=6, points=3), **changes})


@pytest.fixture(scope="module")
def swept():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(compare, "train_once", fake_run(0.1 * 10**0.5, 1e-3))
    return compare.sweep(settings(), None, "sgd")


def test_the_sweep_is_of_half_decades_around_the_rules_own_rate(swept):
  np.testing.assert_allclose(swept.rates, 0.1 * 10 ** np.array([-1, -0.5, 0, 0.5, 1]))
  assert swept.train_loss.shape == swept.test_accuracy.shape == (5, 2, 3)
  np.testing.assert_allclose(swept.train_loss[2, :, -1], [0.25 + 0.3, 0.25 + 0.4], rtol=1e-4)


def test_the_best_rate_is_by_the_last_training_loss(swept):
  np.testing.assert_allclose(swept.rates[swept.best], 0.1 * 10**0.5)
  assert not swept.at_edge
  assert swept.test_accuracy[:, 0, -1].argmax() == 0  # another one


def test_the_sweep_moves_on_until_the_best_is_within(monkeypatch):
  monkeypatch.setattr(compare, "train_once", fake_run(1e-4, 1.0))
  found = compare.sweep(settings(rates=3), None, "sgd")
  np.testing.assert_allclose(found.rates[found.best], 1e-4, rtol=1e-5)
  assert not found.at_edge
  np.testing.assert_allclose(np.diff(np.log10(found.rates)), 0.5, rtol=1e-5)  # nothing is passed over


@pytest.mark.parametrize(
  "name, expected",
  [
    ("plain_sgd", dict(optimizer="sgd", momentum=0.0)),
    ("sgd", dict(optimizer="sgd")),
    ("sgdw", dict(optimizer="sgdw", weight_decay=0.02)),
    ("adamw", dict(optimizer="adamw", weight_decay=0.02)),
    ("lookahead_adamw", dict(optimizer="adamw", weight_decay=0.02, lookahead=5)),
    ("lookahead_plain_sgd", dict(optimizer="sgd", momentum=0.0, lookahead=5)),
    ("adam", dict(optimizer="adam")),
  ],
)
def test_each_name_stands_for_its_rule(name, expected):
  config = settings(optimizers=(name,), weight_decay=0.02, schedule="linear", warmup_steps=3)
  assert compare.optim_config(config, name) == OptimConfig(**expected, schedule="linear", warmup_steps=3)
  assert ("weight_decay" in config.idle_flags()) == ("weight_decay" not in expected)


def test_the_flags_rule_is_what_is_run(monkeypatch):
  """Steps, points and the optimizer reach each run: its first update of a gradient of 1 and a parameter of 1."""

  def once(classifier, optimizer, key, rate, steps, every):
    params = {"kernel": jnp.ones((1, 1))}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    return Curves(jnp.stack([updates["kernel"][0, 0], jnp.float32(steps / every)]), jnp.zeros(2), ())

  monkeypatch.setattr(compare, "train_once", once)
  monkeypatch.setattr(compare, "MOST_SHIFTS", 0)
  for name, expected in (("sgd", -1e-3), ("adagrad", -1e-3), ("sgdw", -1e-3 * 1.5)):
    found = compare.sweep(settings(optimizers=(name,), weight_decay=0.5, seeds=1, rates=3), None, name)
    np.testing.assert_allclose(found.train_loss[0, 0], [expected, 3], rtol=1e-4)


def test_schedules_span_the_run_of_a_sweep(monkeypatch):
  """The last of six updates, of a gradient of 1, is a sixth of the rate; a seed's key is the seed's."""

  def once(classifier, optimizer, key, rate, steps, every):
    ones = {"kernel": jnp.ones((1, 1))}
    state = optimizer.init(ones)
    for _ in range(steps):
      updates, state = optimizer.update(ones, state, ones)
    return Curves(jnp.stack([updates["kernel"][0, 0], jax.random.key_data(key)[-1].astype(float)]), jnp.zeros(2), ())

  monkeypatch.setattr(compare, "train_once", once)
  monkeypatch.setattr(compare, "MOST_SHIFTS", 0)
  found = compare.sweep(settings(optimizers=("plain_sgd",), schedule="linear", rates=3), None, "plain_sgd")
  np.testing.assert_allclose(found.train_loss[0], [[-1e-3 / 6, 3], [-1e-3 / 6, 4]], rtol=1e-4)


def test_the_time_of_an_update_is_that_of_one_run(monkeypatch):
  """Every look at the clock is a second later: one for the compilation, one for each sweep of 3 x 2 runs of 6."""
  seconds = iter(range(100))
  monkeypatch.setattr(compare.time, "perf_counter", lambda: float(next(seconds)))
  for best, sweeps in ((0.1, 1), (1e-2, 2)):
    monkeypatch.setattr(compare, "train_once", fake_run(best, 1.0))
    found = compare.sweep(settings(rates=3), None, "sgd")
    assert len(found.rates) == (3 if sweeps == 1 else 5) and found.compile_seconds == 1
    assert found.update_seconds == pytest.approx(1 / (3 * 2 * 6))


def test_the_curves_are_those_of_the_best_rate(monkeypatch, tmp_path):
  """Loss and error beside the updates after which they were taken; the sensitivity is of the mean over seeds."""
  rng = np.random.default_rng(0)
  losses, accuracies = rng.uniform(0.1, 0.9, (2, 3, 2, 3))
  losses[1, :, -1] = 0.01  # the middle rate is the best, by training loss alone
  accuracies[1, :, -1] = 0.02
  found = compare.Sweep(np.array([0.01, 0.1, 1.0]), losses, accuracies, 2.0, 3e-6)
  figures = []
  monkeypatch.setattr("mlnotes.engine.plot.save_figure", lambda figure, path: figures.append(figure))
  compare.draw_curves(settings(), {"sgd": found}, tmp_path)
  compare.draw_sensitivity(settings(), {"sgd": found}, tmp_path)
  (loss,), (error,) = (axis.get_lines() for axis in figures[0].axes)
  np.testing.assert_array_equal(loss.get_xdata(), [2, 4, 6])
  np.testing.assert_allclose(loss.get_ydata(), losses[1].mean(0))
  np.testing.assert_allclose(error.get_ydata(), 100 - 100 * accuracies[1].mean(0))
  (line,) = figures[1].axes[0].get_lines()
  np.testing.assert_allclose(line.get_xdata(), [0.01, 0.1, 1.0])
  np.testing.assert_allclose(line.get_ydata(), losses[..., -1].mean(1))


def sweep_of(losses, accuracies):
  """A sweep of three rates with these final figures: (rates, seeds)."""
  expand = lambda x: np.stack([np.full(np.shape(x), 0.77), np.array(x, np.float64)], -1)
  return compare.Sweep(np.array([0.01, 0.1, 1.0]), expand(losses), expand(accuracies), 2.0, 3e-6)


def test_rates_with_seeds_that_diverged_rank_below():
  nan = np.nan
  found = sweep_of([[0.9, 0.9, 0.9], [0.1, 0.1, nan], [0.1, nan, nan]], np.zeros((3, 3)))
  assert found.best == 0
  assert sweep_of([[nan, nan, 0.1], [0.5, 0.7, nan], [0.5, np.inf, 0.6]], np.zeros((3, 3))).best == 2
  assert sweep_of([[0.3, 0.3], [0.2, 0.3], [0.1, 0.9]], [[0, 0], [0, 0], [1, 1]]).best == 1


def test_the_table_and_the_card_are_of_the_best_rate(monkeypatch, tmp_path, capsys):
  sweeps = {
    "sgd": sweep_of([[0.4, 0.6], [0.2, 0.4], [0.5, 0.5]], [[0.5, 0.5], [0.8, 0.9], [0.1, 0.1]]),
    "adam": sweep_of([[np.nan, 0.3], [np.nan, np.nan], [0.2, np.inf]], [[0.1, 0.7], [0.1, 0.1], [0.6, 0.1]]),
  }
  monkeypatch.setattr(compare, "sweep", lambda config, classifier, name: sweeps[name])
  drawn = []
  for name in ("draw_curves", "draw_sensitivity"):
    monkeypatch.setattr(compare, name, lambda config, found, path: drawn.append((found, path.name)))
  card, made = [], []
  monkeypatch.setattr(compare, "run_study", lambda name, config, study, suffix: card.append(study(tmp_path)) or 0)
  make = compare.make_classifier
  monkeypatch.setattr(compare, "make_classifier", lambda data, *sizes: made.append(sizes) or make(data, *sizes))
  assert compare.main(settings(optimizers=("sgd", "adam"), widths=(7,), batch_size=16, eval_examples=100)) == 0
  assert made == [((7,), 16, 100)]
  lines = (tmp_path / "table.md").read_text().splitlines()
  assert lines[2].startswith("| sgd | 0.1 | 0.3 ± 0.14 | 85 ± 7.1 | 3 | 2.0 |")
  assert (
    "| adam | 1 (at the edge of the sweep) | 0.2 ± 0 (1 of 2 seeds finite) | 60 ± 0 (1 of 2 seeds finite) |" in lines[3]
  )
  np.testing.assert_allclose(card[0]["sgd/train_loss"], [0.2, 0.4])
  np.testing.assert_allclose(card[0]["sgd/test_accuracy"], [0.8, 0.9])
  assert card[0]["sgd/learning_rate"] == 0.1 and card[0]["adam/learning_rate"] == 1.0
  assert (card[0]["sgd/update_microseconds"], card[0]["sgd/compile_seconds"]) == (3, 2)
  assert lines[-1].startswith("Figures are of a fixed pseudo-random subset: 100 of 1437 training")
  assert [name for _, name in drawn] == ["compare.png", "sensitivity.png"] and drawn[0][0] == sweeps


# ---- Batch sizes ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
  return load("digits")


def recorded(calls):
  """Writes down what each run was asked for; its parameter ends at the learning rate."""

  def once(classifier, optimizer, key, rate, steps, every):
    ones = {"kernel": jnp.ones((1, 1))}
    rates, state = [], optimizer.init(ones)
    for _ in range(min(steps, 3)):
      updates, state = optimizer.update(ones, state, ones)
      rates.append(-updates["kernel"][0, 0])
    calls.append((len(classifier.draw(jax.random.key(0), 0)["label"]), steps, every))
    return Curves(jnp.full(steps // every, rate), jnp.stack(rates), {"w": rate})

  return once


@pytest.mark.parametrize("size", [8, 512, 1024, 1437])
def test_every_batch_size_sees_as_many_examples(monkeypatch, digits, size):
  calls = []
  monkeypatch.setattr(batch_size, "train_once", recorded(calls))
  monkeypatch.setattr(batch_size, "time_updates", lambda *_: 2e-3)
  ends = lambda loss, params, key, steps: Extremes(-params["w"], 3 * params["w"], None, None)
  monkeypatch.setattr(batch_size, "compute_extreme_eigenvalues", ends)
  config = batch_size.Config(epochs=20, seeds=2, learning_rate=0.02)
  found = batch_size.measure_batch_size(config, digits, size)
  ((drawn, steps, every),) = calls
  assert drawn == size and every == steps
  assert abs(steps * size - 20 * 1437) <= size / 2
  assert (found["updates"], found["examples"]) == (steps, steps * size)
  # The rate as it is, then in proportion to the batch.
  np.testing.assert_allclose(found["train_loss"], np.array([[0.02] * 2, [0.02 * size / 32] * 2]), rtol=1e-5)
  np.testing.assert_allclose(found["sharpness"], 3 * found["train_loss"], rtol=1e-5)
  np.testing.assert_allclose(found["epoch_milliseconds"], 2 * 1437 / size)
  np.testing.assert_allclose(found["examples_per_second"], size / 2e-3)


def test_with_and_without_warm_up_differ_by_it_alone(monkeypatch, digits):
  calls = []
  monkeypatch.setattr(batch_size, "train_once", recorded(calls))
  config = batch_size.Config(seeds=2, rates=(0.1, 0.2), warmup_updates=2, warmup_total=5)
  found = batch_size.measure_warmup(config, make_classifier(digits, (), 64))
  assert [call[1:] for call in calls] == [(5, 1), (5, 1)]
  assert found["with"].train_loss.shape == (2, 2, 5)
  np.testing.assert_allclose(found["without"].train_loss[..., -1], [[0.1, 0.1], [0.2, 0.2]], rtol=1e-6)
  # Of a rate of 1e-3 (the runs here do not set theirs): Adam's first updates are the rate.
  np.testing.assert_allclose(found["with"].test_accuracy[0, 0], 1e-3 * np.array([0, 0.5, 1]), rtol=1e-4)
  assert found["without"].test_accuracy[0, 0, 0] == pytest.approx(1e-3, rel=1e-4)


def test_spreads_are_sample_standard_deviations():
  np.testing.assert_allclose(batch_size.deviation(np.array([[1.0, 3.0], [2.0, 2.0]])), [2**0.5, 0])
  np.testing.assert_allclose(batch_size.deviation(np.array([[1.0], [2.0]])), [0, 0])


# ---- Landscapes ----------------------------------------------------------------------------------------------------


def test_ways_on_surfaces_begin_at_their_start_and_go_downhill():
  """The first update of each: rate times gradient, at the rate of that surface."""
  rates = (1e-3, 2e-3, 3e-3, 4e-3)
  paths = landscape.descend(dict(optimizer="sgd", momentum=0.0), rates)
  for path, surface, rate in zip(paths, SURFACES, rates, strict=True):
    start = np.array(surface.start)
    gradient = np.asarray(jax.grad(surface.value)(jnp.array(surface.start)))
    assert path.shape == (landscape.SURFACE_STEPS + 1, 2)
    np.testing.assert_allclose(path[0], start)
    np.testing.assert_allclose(path[1], start - rate * gradient, rtol=1e-4)


def test_the_saved_way_of_a_network_is_its_way(monkeypatch):
  monkeypatch.setattr(landscape, "SAVED", 3)
  config = landscape.Config(steps=6)
  found = landscape.train_network(config, TOY, dict(optimizer="sgd", momentum=0.0, learning_rate=0.3))
  path = np.concatenate([[5.0], by_hand(0.3, 6)[1::2]])
  np.testing.assert_allclose([float(point["w"]) for point in found.trajectory], path, rtol=1e-5)
  np.testing.assert_allclose(found.losses, (path[1:] - 10) ** 2 / 2, rtol=1e-5)


def bowl(params):
  """A saddle, in fact: curvatures -2, 0, 1 and 5."""
  return jnp.sum(jnp.array([[-2.0, 0.0], [1.0, 5.0]]) * params["kernel"] ** 2) / 2


def point(scale):
  return {"kernel": scale * jnp.array([[1.0, 2.0], [3.0, -1.0]])}


@pytest.mark.thorough
def test_curvature_is_reported_with_its_sign_at_the_ends_of_the_ways(tmp_path):
  config = landscape.Config(lanczos_steps=4, probes=2)
  runs = {"sgd": landscape.Run([point(3.0), point(0.0)], np.zeros(1))}
  found = landscape.measure_curvature(config, bowl, runs, jax.random.key(0), tmp_path / "a.png")
  for where in ("at_the_start", "after_sgd"):
    for end, value in (("largest", 5), ("smallest", -2)):
      np.testing.assert_allclose(found[f"{where}/{end}"], value, rtol=1e-4)
      np.testing.assert_allclose(found[f"{where}/{end}_lanczos"], value, rtol=1e-3)
    np.testing.assert_allclose(found[f"{where}/minimum_ratio"], 0.5)
    spectrum = landscape.optim.estimate_spectrum(bowl, point(0.0), jax.random.key(0), 4, 2)
    above = np.sum(np.asarray(spectrum.weights)[np.asarray(spectrum.nodes) > 0.5]) / 2  # of 1 and 5, by two probes
    np.testing.assert_allclose(found[f"{where}/minimum_ratio_lanczos"], above, rtol=1e-3)
  # At a critical point the loss rises most along the largest eigenvalue: 5 0.1^2 / 2.
  np.testing.assert_allclose(found["after_sgd/sharpness"], 0.025, rtol=1e-2)


def test_a_landscape_is_of_the_training_loss_and_of_its_flags(monkeypatch, tmp_path):
  """The network, its batches, its seed and the estimates' sizes; the loss whose curvature is measured is TOY's."""
  asked, keys, estimates = [], [], []
  monkeypatch.setattr(landscape, "make_classifier", lambda data, *sizes: asked.append(sizes) or TOY)
  monkeypatch.setattr(landscape, "draw_surfaces", lambda path: {"surfaces": 1.0})
  make_key = landscape.root_key
  monkeypatch.setattr(landscape, "root_key", lambda seed: keys.append(seed) or make_key(seed))
  losses = []
  monkeypatch.setattr(landscape, "draw_network", lambda loss, *_: losses.append(float(loss({"w": 4.0}))) or {})
  curvature = lambda config, loss, runs, *_: losses.append(float(loss({"w": 4.0}))) or {"names": len(runs)}
  monkeypatch.setattr(landscape, "measure_curvature", curvature)
  monkeypatch.setattr(landscape, "run_study", lambda name, config, study: asked.append(study(tmp_path)) or 0)
  config = landscape.Config(width=5, batch_size=17, seed=6, steps=40, lanczos_steps=3, probes=2)
  assert landscape.main(config) == 0
  assert asked == [((5,), 17), {"surfaces": 1.0, "names": 3}] and set(keys) == {6}
  assert losses == [(4 - 10) ** 2 / 2] * 2  # of the training examples, whose minimum is at 10
  monkeypatch.undo()
  estimate = landscape.optim.estimate_spectrum
  record = lambda loss, p, key, *sizes: estimates.append(sizes) or estimate(loss, p, key, *sizes)
  monkeypatch.setattr(landscape.optim, "estimate_spectrum", record)
  runs = {"sgd": landscape.Run([point(3.0), point(0.0)], np.zeros(1))}
  landscape.measure_curvature(config, bowl, runs, jax.random.key(0), tmp_path / "a.png")
  assert set(estimates) == {(3, 2)}


def test_slices_go_through_the_ends_along_filters_of_their_norms(monkeypatch, tmp_path):
  """Columns are filters. The plane holds every point of the ways."""
  monkeypatch.setattr(landscape, "GRID", 5)
  way = [point(3.0), {"kernel": jnp.array([[1.0, 0.5], [0.0, 2.0]])}, point(1.0)]
  runs = {"sgd": landscape.Run(way, np.array([3.0, 2.0]))}
  lines, planes = [], []
  slice_line, slice_plane = landscape.optim.slice_line, landscape.optim.slice_plane

  keep = lambda seen: lambda *values: seen.append([np.asarray(value) for value in values])

  def line(loss, params, direction, steps):
    jax.debug.callback(keep(lines), params["kernel"], direction["kernel"], steps)
    return slice_line(loss, params, direction, steps)

  def plane(loss, *where):
    jax.debug.callback(keep(planes), *jax.tree.leaves(where))
    return slice_plane(loss, *where)

  monkeypatch.setattr(landscape.optim, "slice_line", line)
  monkeypatch.setattr(landscape.optim, "slice_plane", plane)
  positive = lambda params: 1.0 + bowl(params) ** 2
  found = landscape.draw_network(positive, runs, jax.random.key(0), tmp_path / "a.png")
  jax.effects_barrier()
  assert len(lines) == 8 and found["sgd/train_loss"] == 2.0
  for params, direction, steps in lines:
    np.testing.assert_array_equal(params, point(1.0)["kernel"])
    np.testing.assert_allclose(np.linalg.norm(direction, axis=0), np.linalg.norm(params, axis=0), rtol=1e-4)
    np.testing.assert_allclose(steps, [-1, -0.5, 0, 0.5, 1])
  assert len({tuple(direction.ravel()) for _, direction, _ in lines}) == 8
  ((origin, first, second, x, y),) = planes
  np.testing.assert_array_equal(origin, way[-1]["kernel"])
  for each in way:
    offset = each["kernel"] - origin
    along = [np.sum(offset * axis) for axis in (first, second)]
    np.testing.assert_allclose(along[0] * first + along[1] * second, offset, atol=1e-4)
    assert x.min() <= along[0] <= x.max() and y.min() <= along[1] <= y.max()
