"""That flags, tasks, steps and figures are connected as they should be: one update and one evaluation in NumPy.

A task is a cloud of points (a, c) and the loss the mean of a (x w - c)^2 / 2 of a network with one number x in its body
and one number w in its head.
"""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.meta import (
  _family as families,
  _meta_training as shared,
  _report as reporting,
  maml,
  meta_sgd,
  reptile,
)
from experiments.meta._episodes import load_episode_sets
from experiments.meta._family import Family, make_family
from mlnotes.data import EvalBatches, Feeds
from mlnotes.engine.experiment import Experiment, set_hparams
from mlnotes.meta import Learner, Task, interval95
from mlnotes.meta.adapt import multi_step_weights
from mlnotes.meta.method import make_rule

START = np.array([0.8, 1.5])  # x, w
INNER, OUTER = 0.15, 0.3
TASKS = 3
POINTS = np.random.default_rng(0).uniform(0.5, 1.5, (2, TASKS, 2)) + np.array([0.0, 1.0])  # (side, task, (a, c))


def loss(params, data):
  return jnp.mean(data["a"] * (params["body"] * params["head"] - data["c"]) ** 2) / 2


def quadratic_batch(points=POINTS, copies=4):
  """Each side of a task holds `copies` of one point, so that every mini-batch is the same."""
  side = lambda p: {name: jnp.tile(jnp.asarray(p[:, i, None], jnp.float32), copies) for i, name in enumerate("ac")}
  return Task(side(points[0]), side(points[1]))


EVALUATED = np.random.default_rng(1).uniform(0.5, 1.5, (2, TASKS, 2)) + np.array([0.0, 1.0])


def make_fake_family(config):
  learner = Learner(
    init=lambda key, task: {"body": jnp.float32(START[0]), "head": jnp.float32(START[1])},
    support_loss=loss,
    query_loss=lambda params, task: (loss(params, task.query), {"output": params["body"] * params["head"]}),
    predict=lambda params, support, x: params["body"] * params["head"] * x,
  )
  batch = {"task": quadratic_batch(EVALUATED), "index": jnp.arange(TASKS), "mask": jnp.array([1.0, 1.0, 0.0])}
  test = EvalBatches((), lambda arrays, i: batch, 1)
  return Family(learner, Feeds(), test)


# ---- The same in NumPy ---------------------------------------------------------------------------------------------


def point_loss(p, point):
  return point[0] * (p[0] * p[1] - point[1]) ** 2 / 2


def point_gradient(p, point):
  residual = point[0] * (p[0] * p[1] - point[1])
  return residual * np.array([p[1], p[0]])


def descend(p, point, steps, rates=INNER, head=False, momentum=0.0):
  """The parameters after 0, 1, .. `steps` inner steps; `rates` may be one for each of (x, w), or (steps, 2)."""
  path, trace = [p], np.zeros(2)
  for i in range(steps):
    rate = np.broadcast_to(rates, (steps, 2))[i]
    trace = momentum * trace + point_gradient(path[-1], point)
    path.append(path[-1] - rate * trace * (np.array([0, 1]) if head else 1))
  return path


def query_loss(p, steps, weights=None, **options):
  """Mean over tasks of the query loss after the last step, or weighted over all of them."""
  total = 0.0
  for support, query in zip(*POINTS):
    losses = [point_loss(q, query) for q in descend(p, support, steps, **options)]
    total += losses[-1] if weights is None else np.dot(weights, losses[1:])
  return total / TASKS


def slope(function, at, width=1e-5):
  at = np.asarray(at, np.float64)
  out = np.zeros(at.size)
  for i in range(at.size):
    step = np.zeros(at.size)
    step[i] = width
    out[i] = (function((at.ravel() + step).reshape(at.shape)) - function((at.ravel() - step).reshape(at.shape))) / (
      2 * width
    )
  return out.reshape(at.shape)


def config_of(module, **changes):
  settings = dict(
    batch_size=TASKS, inner_learning_rate=INNER, inner_steps=2, eval_inner_steps=3, learning_rate=OUTER,
    optimizer="sgd", momentum=0.0, schedule="constant", steps=10, shots=4, queries=4,
  )  # fmt: skip
  return module.Config(**{**settings, **changes})


def update(monkeypatch, module, at_step=0, **changes):
  """(change of (x, w), new params, metrics, state, experiment) of one update from the start."""
  monkeypatch.setattr(module, "make_family", make_fake_family)
  config = config_of(module, **changes)
  experiment = module.make(config)
  state = experiment.init(jax.random.key(0), quadratic_batch())
  state = state._replace(step=jnp.int32(at_step))
  after, metrics = jax.jit(experiment.step)(state, quadratic_batch())
  pair = lambda params: np.array([params.initial["body"], params.initial["head"]])
  return pair(after.params) - pair(state.params), after.params, metrics, after, experiment


close = functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-6)


# ---- MAML ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"remat": True}, {"side_by_side": 1}])
def test_maml_descends_the_query_loss_after_adaptation(monkeypatch, more):
  change, _, metrics, state, _ = update(monkeypatch, maml, **more)
  close(change, -OUTER * slope(lambda p: query_loss(p, 2), START))
  close(metrics["grad_norm"], np.linalg.norm(change) / OUTER)
  close(metrics["loss_after_2"], query_loss(START, 2))
  assert int(state.step) == 1


def test_maml_first_order(monkeypatch):
  change, *_ = update(monkeypatch, maml, order="first")
  expected = np.mean([point_gradient(descend(START, s, 2)[-1], q) for s, q in zip(*POINTS)], 0)
  close(change, -OUTER * expected)
  assert np.abs(expected - slope(lambda p: query_loss(p, 2), START)).max() > 0.05


def test_maml_adapts_the_head_alone(monkeypatch):
  change, *_ = update(monkeypatch, maml, adapted="head")
  close(change, -OUTER * slope(lambda p: query_loss(p, 2, head=True), START))


@pytest.mark.parametrize("at_step", [0, 1, 4])
def test_maml_weighs_every_inner_step_and_less_with_time(monkeypatch, at_step):
  """Over four updates from (1/2, 1/2) to (0, 1)."""
  change, _, metrics, _, _ = update(monkeypatch, maml, at_step, multi_step_updates=4)
  early = 0.5 * (1 - at_step / 4)
  weights = np.array([early, 1 - early])
  close(multi_step_weights(jnp.int32(at_step), 2, 4), weights)
  close(change, -OUTER * slope(lambda p: query_loss(p, 2, weights), START))
  close(metrics["multi_step_loss"], query_loss(START, 2, weights))


def test_maml_inner_momentum(monkeypatch):
  change, *_ = update(monkeypatch, maml, inner_optimizer="momentum")
  close(change, -OUTER * slope(lambda p: query_loss(p, 2, momentum=0.9), START))


def test_maml_learns_a_rate_of_every_layer_and_step(monkeypatch):
  _, params, *_ = update(monkeypatch, maml, step_rates=True, weight_decay=0.5)
  expected = INNER - OUTER * slope(lambda rates: query_loss(START, 2, rates=rates), np.full((2, 2), INNER))
  close(np.stack([params.rates["body"], params.rates["head"]], -1), expected)


def test_meta_sgd_learns_a_rate_of_every_parameter(monkeypatch):
  _, params, *_ = update(monkeypatch, meta_sgd, weight_decay=0.5)
  expected = INNER - OUTER * slope(lambda rates: query_loss(START, 2, rates=rates), np.full(2, INNER))
  close([params.rates["body"], params.rates["head"]], expected)
  assert np.abs(expected - INNER).max() > 0.01


def test_meta_sgd_starts_as_maml_and_takes_its_flags(monkeypatch):
  change, *_ = update(monkeypatch, meta_sgd)
  close(change, -OUTER * slope(lambda p: query_loss(p, 2), START))
  change, params, *_ = update(monkeypatch, meta_sgd, adapted="head", order="first")
  ends = [(descend(START, s, 2, head=True)[-1], q) for s, q in zip(*POINTS)]
  close(change, -OUTER * np.mean([point_gradient(p, q) for p, q in ends], 0))
  assert params.rates["body"] is None


def test_a_sweep_of_the_inner_rate_reaches_the_inner_loop(monkeypatch):
  _, _, _, state, experiment = update(monkeypatch, maml)
  state = state._replace(params=shared.MetaParams({"body": jnp.float32(0.8), "head": jnp.float32(1.5)}))
  _, metrics = jax.jit(experiment.step)(set_hparams(state, inner_learning_rate=0.06), quadratic_batch())
  close(metrics["loss_after_2"], query_loss(START, 2, rates=0.06))
  assert abs(query_loss(START, 2, rates=0.06) - query_loss(START, 2)) > 0.01


@pytest.mark.parametrize("module", [maml, meta_sgd, reptile])
def test_evaluation_adapts_for_its_own_number_of_steps(monkeypatch, module):
  """The third task is padding, and does not count."""
  monkeypatch.setattr(module, "make_family", make_fake_family)
  experiment = module.make(config_of(module, inner_batch=2) if module is reptile else config_of(module))
  state = experiment.init(jax.random.key(0), quadratic_batch())
  found = jax.jit(experiment.evaluate)(state, make_fake_family(None).test.draw((), 0))
  paths = [[point_loss(p, q) for p in descend(START, s, 3)] for s, q in zip(*EVALUATED[:, :2])]
  mean = {name: float(figure.total / figure.count) for name, figure in found.items()}
  for name, step in (("loss", 3), ("loss_after_0", 0), ("loss_after_1", 1)):
    close(mean[name], np.mean(paths, 0)[step])
  close(mean["output"], np.mean([np.prod(descend(START, s, 3)[-1]) for s in EVALUATED[0, :2]]))


def test_evaluation_is_of_lookaheads_slow_weights(monkeypatch):
  _, fast, _, state, experiment = update(monkeypatch, maml, lookahead=5)
  batch = make_fake_family(None).test.draw((), 0)
  found = jax.jit(experiment.evaluate)(state, batch)["loss_after_0"]
  start = np.mean([point_loss(START, q) for q in EVALUATED[1, :2]])
  close(float(found.total / found.count), start)
  assert abs(float(fast.initial["body"]) - START[0]) > 0.01


@pytest.mark.parametrize("module", [maml, meta_sgd])
def test_evaluation_and_what_a_run_gives_adapt_what_training_adapts(monkeypatch, module):
  """The head alone, with --adapted=head, for the evaluation's three steps; the third task is padding."""
  _, _, _, _, experiment = update(monkeypatch, module, adapted="head")
  state = experiment.init(jax.random.key(0), quadratic_batch())
  batch = make_fake_family(None).test.draw((), 0)
  found = jax.jit(experiment.evaluate)(state, batch)["output"]
  ends = [descend(START, s, 3, head=True)[-1] for s in EVALUATED[0]]
  close(float(found.total / found.count), np.mean([np.prod(end) for end in ends[:2]]))
  given = experiment.model(state)
  for i in range(TASKS):
    support = jax.tree.map(lambda x, i=i: x[i], batch["task"].support)
    close(given(support, jnp.float32(2.0)), 2 * np.prod(ends[i]))


def captured_report(monkeypatch, tmp_path, experiment, state):
  """What the report is given: (tools, trained, untrained, hparams)."""
  seen = []
  monkeypatch.setattr(reporting, "write_report", lambda *given: seen.append(given[:4]) or {})
  experiment.report(state, tmp_path)
  return seen[0]


def test_the_report_compares_the_trained_start_with_the_first_one(monkeypatch, tmp_path):
  _, _, _, state, experiment = update(monkeypatch, maml)
  tools, trained, untrained, hparams = captured_report(
    monkeypatch, tmp_path, experiment, set_hparams(state, inner_learning_rate=0.06)
  )
  assert float(trained.initial["body"]) == float(state.params.initial["body"]) != START[0]
  close([untrained.initial["body"], untrained.initial["head"]], START)
  # Its judge and its predictions adapt for the evaluation's steps, at the rate of the state.
  batch = make_fake_family(None).test.draw((), 0)
  judged = tools.judge(untrained, hparams, (), 0)["loss"]
  paths = [descend(START, s, 3, rates=0.06) for s in EVALUATED[0]]
  close(judged, [[point_loss(p, q) for p in path] for path, q in zip(paths, EVALUATED[1])])
  one = jax.tree.map(lambda x: x[1], batch["task"])
  close(tools.predict(untrained, hparams, one, jnp.float32(2.0)), [2 * np.prod(p) for p in paths[1]])


def test_reports_and_what_a_run_gives_are_of_lookaheads_slow_weights(monkeypatch, tmp_path):
  _, fast, _, state, experiment = update(monkeypatch, maml, lookahead=5)
  _, trained, *_ = captured_report(monkeypatch, tmp_path, experiment, state)
  assert float(trained.initial["body"]) == np.float32(START[0]) != float(fast.initial["body"])
  support = jax.tree.map(lambda x: x[0], make_fake_family(None).test.draw((), 0)["task"].support)
  close(experiment.model(state)(support, jnp.float32(1.0)), np.prod(descend(START, EVALUATED[0, 0], 3)[-1]))


def test_meta_sgd_learns_rates_for_the_rule_of_its_flag(monkeypatch):
  change, *_ = update(monkeypatch, meta_sgd, inner_optimizer="momentum")
  close(change, -OUTER * slope(lambda p: query_loss(p, 2, momentum=0.9), START))


def test_inner_rules_are_those_of_their_names():
  """Two gradients in turn: as they are, with momentum 0.9, and Adam's without its first moment."""
  first, second = np.array([1.0, -2.0]), np.array([3.0, 0.5])
  squares = 0.001 * first**2 / 0.001, (0.999 * 0.001 * first**2 + 0.001 * second**2) / (1 - 0.999**2)
  expected = {
    "sgd": (first, second),
    "momentum": (first, second + 0.9 * first),
    "adam": tuple(g / np.sqrt(v) for g, v in zip((first, second), squares)),
  }
  for name, steps in expected.items():
    rule = make_rule(name)
    state = rule.init(jnp.zeros(2))
    for gradient, step in zip((first, second), steps):
      found, state = rule.update(jnp.asarray(gradient, jnp.float32), state)
      np.testing.assert_allclose(found, step, rtol=1e-4, err_msg=name)


# ---- Reptile -------------------------------------------------------------------------------------------------------


def reptile_move(steps, momentum=0.0):
  """Support and query points are copies of one point here, so that every mini-batch is that point."""
  return np.mean([descend(START, s, steps, momentum=momentum)[-1] - START for s in POINTS[0]], 0)


@pytest.mark.parametrize("inner, momentum", [("sgd", 0.0), ("momentum", 0.9)])
@pytest.mark.parametrize("chunk", [0, 1])
def test_reptile_moves_a_share_of_the_way_to_the_adapted_parameters(monkeypatch, inner, momentum, chunk):
  """The inner optimizer starts afresh on every task, whether tasks are side by side or one after the other."""
  same = np.stack([POINTS[0], POINTS[0]])
  monkeypatch.setattr(reptile, "make_family", make_fake_family)
  config = config_of(reptile, inner_batch=2, inner_optimizer=inner, side_by_side=chunk)
  experiment = reptile.make(config)
  batch = quadratic_batch(same)
  state = experiment.init(jax.random.key(0), batch)
  after, metrics = jax.jit(experiment.step)(state, batch)
  move = np.array([after.params.initial[name] - state.params.initial[name] for name in ("body", "head")])
  close(move, OUTER * reptile_move(2, momentum))
  close(metrics["inner_loss_first"], np.mean([point_loss(START, s) for s in POINTS[0]]))
  close(
    metrics["inner_loss_last"],
    np.mean([point_loss(descend(START, s, 1, momentum=momentum)[-1], s) for s in POINTS[0]]),
  )


def test_a_sweep_of_the_inner_rate_reaches_reptiles_inner_loop(monkeypatch):
  monkeypatch.setattr(reptile, "make_family", make_fake_family)
  experiment = reptile.make(config_of(reptile, inner_batch=2))
  batch = quadratic_batch(np.stack([POINTS[0], POINTS[0]]))
  state = set_hparams(experiment.init(jax.random.key(0), batch), inner_learning_rate=0.06)
  after, metrics = jax.jit(experiment.step)(state, batch)
  move = np.array([after.params.initial[name] - state.params.initial[name] for name in ("body", "head")])
  expected = OUTER * np.mean([descend(START, s, 2, rates=0.06)[-1] - START for s in POINTS[0]], 0)
  close(move, expected)
  close(metrics["grad_norm"], np.linalg.norm(expected) / OUTER)


def test_recipes_are_the_published_ones():
  """Omniglot in Finn et al. 2017 (5-way 1-shot), Li et al. 2017 and Nichol et al. 2018, whose steps are Adam's."""
  recipe = lambda config, *names: tuple(getattr(config, name) for name in names)
  inner = ("shots", "inner_optimizer", "inner_learning_rate", "inner_steps", "eval_inner_steps")
  assert recipe(maml.Config.tuned(tasks="images"), *inner) == (1, "sgd", 0.4, 1, 3)
  assert recipe(meta_sgd.Config.tuned(tasks="images"), *inner) == (1, "sgd", 0.4, 1, 1)
  assert recipe(reptile.Config.tuned(tasks="images"), *inner, "inner_batch") == (1, "adam", 1e-3, 5, 50, 10)
  # Sinusoids: ten points, and as many for Reptile's mini-batches of ten as fifty in all.
  assert recipe(maml.Config(), *inner) == (10, "sgd", 0.01, 1, 10) and meta_sgd.Config().eval_inner_steps == 1
  assert recipe(reptile.Config(), *inner, "queries", "inner_batch") == (10, "sgd", 0.01, 10, 10, 40, 10)


def test_reptiles_outer_rate_falls_to_0_by_default(monkeypatch):
  config = reptile.Config()
  assert (config.optimizer, config.momentum, config.learning_rate, config.schedule) == ("sgd", 0.0, 1.0, "linear")
  monkeypatch.setattr(reptile, "make_family", make_fake_family)
  experiment = reptile.make(config_of(reptile, inner_batch=2, schedule="linear", steps=4, inner_steps=1))
  batch = quadratic_batch(np.stack([POINTS[0], POINTS[0]]))
  state, moves = experiment.init(jax.random.key(0), batch), []
  step = jax.jit(experiment.step)
  for _ in range(4):
    after, _ = step(state, batch)
    moves.append(float(after.params.initial["body"] - state.params.initial["body"]))
    state = after._replace(params=state.params)
  close(np.array(moves) / moves[0], [1, 0.75, 0.5, 0.25])


def test_reptile_learns_from_support_and_query_together(monkeypatch):
  """Mini-batches of all eight examples: the loss is the mean over both sides."""
  monkeypatch.setattr(reptile, "make_family", make_fake_family)
  experiment = reptile.make(config_of(reptile, inner_batch=8, inner_steps=1))
  state = experiment.init(jax.random.key(0), quadratic_batch())
  after, _ = jax.jit(experiment.step)(state, quadratic_batch())
  gradient = np.mean([(point_gradient(START, s) + point_gradient(START, q)) / 2 for s, q in zip(*POINTS)], 0)
  move = [float(after.params.initial[name] - state.params.initial[name]) for name in ("body", "head")]
  close(move, -OUTER * INNER * gradient)


def test_reptiles_tasks_and_updates_have_mini_batches_of_their_own(monkeypatch):
  """Three copies of one task of eight different points, one point a step: the mean of three losses is none of eight."""
  monkeypatch.setattr(reptile, "make_family", make_fake_family)
  experiment = reptile.make(config_of(reptile, inner_batch=1, inner_steps=1))
  points = np.random.default_rng(3).uniform(0.5, 2.5, (2, 2, 4)).astype(np.float32)
  side = lambda p: {name: jnp.tile(p[i], (TASKS, 1)) for i, name in enumerate("ac")}
  batch = Task(*map(side, points))
  state, step = experiment.init(jax.random.key(0), batch), jax.jit(experiment.step)
  seen = [float(step(state._replace(step=jnp.int32(i)), batch)[1]["inner_loss_first"]) for i in range(2)]
  losses = [point_loss(START, point) for side in points for point in side.T]
  assert np.abs(np.subtract.outer(seen, losses)).min() > 1e-3 and abs(seen[0] - seen[1]) > 1e-3


# ---- Tasks ---------------------------------------------------------------------------------------------------------

each_family = pytest.mark.parametrize("tasks", ["sinusoid", "images"])


@functools.cache
def family_of(tasks, **changes):
  sizes = dict(ways=2, shots=3, queries=2, eval_queries=4, batch_size=4, eval_examples=5, test_tasks=6)
  return make_family(maml.Config(tasks=tasks, network="fully_connected", **{**sizes, **changes}))


def supports(task):
  """One row of numbers for each task of a batch."""
  leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(task.support)]
  return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], 1)


@each_family
def test_tasks_differ_within_an_update_between_updates_and_between_sets(tasks):
  family = family_of(tasks)
  train = family.feeds.train
  frozen = (family.feeds.evaluate, family.test)

  @jax.jit
  def draw():
    moments = ((0, 0), (0, 1), (1, 0))
    drawn = [train.draw(train.arrays, jax.random.key(seed), step) for seed, step in moments]
    return drawn + [each.draw(each.arrays, 0)["task"] for each in frozen]

  rows = np.concatenate([supports(task) for task in draw()])
  assert len(np.unique(rows, axis=0)) == len(rows) == 20


def test_each_set_of_tasks_has_its_classes_and_sizes():
  pools = load_episode_sets(maml.Config(tasks="images", ways=2))
  family = family_of("images")
  assert family.feeds.train.arrays.label.tolist() == pools.train.label.tolist()
  assert family.feeds.evaluate.arrays.label.tolist() == pools.valid.label.tolist()
  assert family.test.arrays.label.tolist() == pools.test.label.tolist()
  shape = lambda task: (task.support["label"].shape, task.query["label"].shape)
  train = family.feeds.train
  assert shape(jax.eval_shape(train.draw, train.arrays, jax.random.key(0), 0)) == ((4, 2 * 3), (4, 2 * 2))
  for frozen in (family.feeds.evaluate, family.test):
    batch = jax.eval_shape(frozen.draw, frozen.arrays, 1)
    assert shape(batch["task"]) == ((4, 2 * 3), (4, 2 * 4))
    assert frozen.num_batches == 2


def test_sinusoids_have_as_many_points_and_tasks_as_their_flags_say():
  family = family_of("sinusoid", eval_examples=5, test_tasks=9)
  points = lambda task: (task.support["x"].shape, task.query["x"].shape)
  train = family.feeds.train
  assert points(jax.eval_shape(train.draw, train.arrays, jax.random.key(0), 0)) == ((4, 3, 1), (4, 2, 1))
  for frozen, count in ((family.feeds.evaluate, 5), (family.test, 9)):
    batch = jax.eval_shape(frozen.draw, frozen.arrays, 1)
    assert points(batch["task"]) == ((4, 3, 1), (4, 100, 1))
    masks = [np.asarray(frozen.draw(frozen.arrays, i)["mask"]) for i in range(frozen.num_batches)]
    assert frozen.num_batches == -(-count // 4) and np.sum(masks) == count


@each_family
def test_frozen_tasks_are_those_of_their_seed(tasks):
  same = lambda a, b: np.array_equal(*(supports(x.draw(x.arrays, 0)["task"]) for x in (a, b)))
  one, again, other = family_of(tasks), family_of(tasks, eval_queries=5), family_of(tasks, eval_seed=5)
  for pick in (lambda family: family.feeds.evaluate, lambda family: family.test):
    assert same(pick(one), pick(again)) and not same(pick(one), pick(other))


@pytest.mark.parametrize(
  "flags, made",
  [
    (dict(tasks="sinusoid", widths=(6, 5)), ("Regressor", (6, 5))),
    (dict(tasks="images", network="conv4", width=6, ways=3), ("Conv4", 3, 6)),
    (dict(tasks="images", network="fully_connected", ways=3), ("FullyConnected", 3)),
  ],
)
def test_networks_are_those_of_the_flags(flags, made, monkeypatch):
  found = []

  def recorded(make, name):
    return lambda *sizes, dtype=jnp.float32: found.append((name, *sizes, dtype)) or make(*sizes, dtype=dtype)

  for name in ("Regressor", "Conv4", "FullyConnected"):
    monkeypatch.setattr(families, name, recorded(getattr(families, name), name))
  make_family(maml.Config(precision="bfloat16", shots=2, queries=2, **flags))
  assert found == [(*made, jnp.bfloat16)]


@pytest.mark.parametrize("rotations, turned", [("all", (4, 4, 4)), ("train", (4, 1, 1)), ("none", (1, 1, 1))])
def test_rotations_are_those_of_the_flag(rotations, turned):
  family = family_of("images", rotations=rotations)
  pools = (family.feeds.train.arrays, family.feeds.evaluate.arrays, family.test.arrays)
  assert tuple(len(pool.turns) for pool in pools) == turned


@pytest.mark.parametrize("mode", ["transductive", "support"])
def test_query_images_are_normalised_as_the_flag_says(mode):
  """Alone or among its companions: the same prediction unless their statistics leak."""
  family = family_of("images", batch_norm=mode)

  @jax.jit
  def predict():
    image = jax.random.uniform(jax.random.key(1), (6, 8, 8, 1))
    task = Task({"image": image, "label": jnp.arange(6) % 2}, {"image": 1 - image, "label": jnp.arange(6) % 2})
    params = family.learner.init(jax.random.key(0), task)
    return [family.learner.predict(params, task.support, task.query["image"][:count])[0] for count in (6, 2)]

  together, pair = predict()
  assert np.allclose(together, pair, atol=1e-4) == (mode == "support")


# ---- The report ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tasks, best", [("sinusoid", ("loss", "min")), ("images", ("accuracy", "max"))])
def test_the_best_checkpoint_is_by_the_figure_that_counts(monkeypatch, tasks, best):
  found = []
  monkeypatch.setattr(shared, "train", lambda *_, best_metric, best_mode: found.append((best_metric, best_mode)) or 0)
  monkeypatch.setattr(shared, "make_feeds", lambda config: None)
  nothing = Experiment(*4 * [lambda *_: None])
  shared.meta_train(nothing, maml.Config(tasks=tasks))
  assert found == [best]


def test_the_report_is_of_the_test_tasks_that_were_asked_for(monkeypatch, tmp_path):
  """Figures by hand: seven tasks in batches of four, of which five are asked for; accuracy after 0 .. 3 steps."""
  for name in ("draw_adaptation", "draw_fits", "draw_episodes"):
    monkeypatch.setattr(reporting, name, lambda *_: None)
  values = np.random.default_rng(2).uniform(size=(8, 4))
  judge = lambda params, hparams, arrays, i: {"accuracy": params * values[4 * i : 4 * i + 4]}
  floor = lambda arrays, i: values[4 * i : 4 * i + 4, 0] / 2
  test = EvalBatches((), lambda arrays, i: {"task": None}, 2)
  tools = reporting.Tools(judge, None, floor, test)
  monkeypatch.setattr(reporting, "_UNTRAINED_TASKS", 4)
  config = SimpleNamespace(test_tasks=5, eval_inner_steps=3, tasks="images")
  found = reporting.write_report(tools, 1.0, 0.1, {}, config, tmp_path)
  for step in (0, 1, 3):
    np.testing.assert_allclose(found[f"test_accuracy_after_{step}"], values[:5, step].mean())
    half = 1.96 * values[:5, step].std(ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(found[f"test_accuracy_after_{step}_interval"], half)
  np.testing.assert_allclose(found["untrained_accuracy_after_3"], 0.1 * values[:4, 3].mean())
  np.testing.assert_allclose(found["pixel_prototype_accuracy"], values[:5, 0].mean() / 2)
  assert interval95(np.array([1.0, 3.0])) == (2.0, pytest.approx(1.96))


# ---- Flags that change nothing -------------------------------------------------------------------------------------


def test_flags_of_images_are_idle_on_sinusoids_and_the_other_way():
  idle = maml.Config().idle_flags()
  assert {"dataset", "ways", "rotations", "batch_norm", "network", "multi_step_updates"} <= idle.keys()
  assert "widths" not in idle and "shots" not in idle
  idle = maml.Config(tasks="images", inner_steps=2).idle_flags()
  assert "widths" in idle and not {"width", "ways", "multi_step_updates"} & idle.keys()
  assert "width" in maml.Config(tasks="images", network="fully_connected").idle_flags()
  names = {item.name for item in dataclasses.fields(maml.Config)}
  assert set(shared._OF_IMAGES) <= names
