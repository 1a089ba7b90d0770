"""The experiment on hulls and tours: what is drawn, what is learned from, what is counted, what the flags do."""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import ConvexHull

from experiments.sequence import pointer
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key

SMALL = dict(
  sizes=(3, 5), test_sizes=(4, 6), test_sets=6, batch_size=4, width=8, heads=2, depth=1, steps=4, warmup_steps=0,
  log_every=2, eval_every=0, encoder="lstm",
)  # fmt: skip


def small(**more):
  return pointer.Config(**{**SMALL, **more})


class First(NamedTuple):
  """An experiment before training, its first batch and those of its evaluation; what is compiled, compiled once."""

  experiment: Any
  feeds: Any
  state: Any
  batch: Any
  tests: list
  draw: Any
  step: Any
  evaluate: Any


def first(config):
  experiment, feeds = pointer.make(config), pointer.make_feeds(config)
  draw = jax.jit(lambda i: feeds.train.draw((), root_key(0), i))
  init = jax.jit(lambda: experiment.init(root_key(0), draw(0)))
  test = jax.jit(lambda i: feeds.evaluate.draw((), i))
  tests = [test(i) for i in range(feeds.evaluate.num_batches)]
  return First(
    experiment, feeds, init(), draw(0), tests, draw, jax.jit(experiment.step), jax.jit(experiment.evaluate)
  )  # fmt: skip


@pytest.fixture(scope="module")
def plain():
  return first(small())


def test_training_draws_all_sizes_with_the_hulls_of_scipy(plain):
  counts = set()
  for sets in map(plain.draw, range(4)):
    for points, count, answer in zip(*map(np.asarray, sets)):
      corners = list(ConvexHull(points[:count].astype(np.float64)).vertices)
      at = corners.index(min(corners))
      expected = corners[at:] + corners[:at] + [5]
      assert list(answer) == expected + [-1] * (6 - len(expected))
      counts.add(int(count))
  assert counts == {3, 4, 5}


def test_tests_are_of_their_sizes_and_each_batch_other_than_training(plain):
  one, two = plain.tests
  for n in (4, 6):
    assert one[str(n)].points.shape == (4, n, 2) and np.all(one[str(n)].count == n)
  assert np.any(one["4"].points != two["4"].points)
  np.testing.assert_array_equal(two["mask"], [1, 1, 0, 0])
  assert np.any(one["4"].points != one["6"].points[:, :4]) and np.any(one["4"].points != plain.batch.points[:, :4])


def test_tests_are_the_same_in_every_run(monkeypatch):
  monkeypatch.setattr(pointer, "make_drawn_eval", lambda draw, arrays, seed, *sizes: (seed, sizes))
  tests = [pointer.make_feeds(small(seed=seed)).evaluate for seed in (0, 5)]
  assert tests[0] == tests[1] and tests[0][1] == (6, 4)


def test_an_update_follows_the_mean_over_the_steps_of_answers(plain):
  after, metrics = plain.step(plain.state, plain.batch)
  model = plain.experiment.model(plain.state)
  logits = np.asarray(jax.jit(lambda sets: model.logits(sets))(plain.batch), np.float64)
  nats = []
  for row, answer in zip(logits, np.asarray(plain.batch.answer)):
    for step, target in zip(row, answer):
      if target >= 0:
        nats.append(np.log(np.sum(np.exp(step))) - step[target])
  np.testing.assert_allclose(metrics["loss"], np.mean(nats), rtol=1e-5)
  assert any(np.any(x != y) for x, y in zip(*map(jax.tree.leaves, (plain.state.params, after.params))))


def test_figures_of_hulls_by_hand():
  square = jnp.array([[0, 0], [1, 0], [1, 1], [0, 1], [0.5, 0.5]], jnp.float32)
  answers = [[0, 1, 2, 3, 5, -1], [2, 3, 0, 1, 5, -1], [0, 3, 2, 1, 5, -1], [0, 2, 1, 3, 5, -1], [0, 1, 2, 5, -1, -1]]
  said = jnp.array(answers)
  sets = pointer.PointSet(jnp.tile(square, (5, 1, 1)), jnp.full(5, 5), jnp.tile(said[:1], (5, 1)))
  found = jax.jit(functools.partial(pointer.judge, "hull"))(sets, said)
  np.testing.assert_array_equal(found["accuracy"][0], [1, 1, 0, 0, 0])
  np.testing.assert_array_equal(found["simple"][0], [1, 1, 1, 0, 1])
  np.testing.assert_array_equal(found["area"][0], [1, 1, 1, 0, 0.5])
  np.testing.assert_array_equal(found["area"][1], [1, 1, 1, 0, 1])


def test_figures_of_tours_by_hand():
  square = jnp.array([[0, 0], [1, 0], [1, 1], [0, 1]], jnp.float32)
  said = jnp.array([[0, 1, 2, 3, 4], [0, 3, 2, 1, 4], [0, 2, 1, 3, 4]])
  sets = pointer.PointSet(jnp.tile(square, (3, 1, 1)), jnp.full(3, 4), jnp.tile(said[:1], (3, 1)))
  found = jax.jit(functools.partial(pointer.judge, "tsp"))(sets, said)
  np.testing.assert_allclose(found["ratio"][0], [4, 4, 2 + 2 * 2**0.5], rtol=1e-6)
  np.testing.assert_allclose(found["ratio"][1], [4, 4, 4], rtol=1e-6)
  np.testing.assert_array_equal(found["optimal"][0], [1, 1, 0])


def test_evaluations_are_means_of_the_decoded_answers_without_the_padding(plain, averaged):
  model = plain.experiment.model(averaged(plain.state))

  @jax.jit
  def ask(sets):
    said = model(sets.points, sets.count)
    again = jnp.argmax(model.logits(sets._replace(answer=said)), -1)  # of the same points, its own answer before
    losses = pointer.answer_losses(model.logits(sets), sets.answer)
    return said, jnp.where(said < 0, said, again), pointer.judge("hull", sets, said)["accuracy"][0], losses

  parts = [plain.evaluate(averaged(plain.state), batch) for batch in plain.tests]
  right, nats, steps = [], 0.0, 0
  for batch, count in zip(plain.tests, (4, 2)):
    for n in ("4", "6"):
      said, again, accuracy, (loss, asked) = jax.tree.map(lambda x, count=count: np.asarray(x[:count]), ask(batch[n]))
      np.testing.assert_array_equal(said, again)
      right += list(accuracy) if n == "6" else []
      nats, steps = nats + float(loss.sum()), steps + float(asked.sum())
  mean = lambda name: float(sum(p[name].total for p in parts) / sum(p[name].count for p in parts))
  np.testing.assert_allclose(mean("accuracy_6"), np.mean(right), atol=1e-6)
  np.testing.assert_allclose(mean("loss"), nats / steps, rtol=1e-5)
  assert set(parts[0]) == {"loss", *(f"{name}_{n}" for name in ("accuracy", "simple", "area") for n in (4, 6))}


def test_areas_of_no_simple_answer_are_no_nan(plain, averaged):
  """Nor is anything else of which there is none."""
  found = plain.evaluate(averaged(plain.state), {**plain.tests[0], "mask": jnp.zeros(4)})
  assert found["area_4"].total / found["area_4"].count == 0


def test_tours_visit_everything_before_training_too(plain, averaged, draw_like, tmp_path):
  config = small(task="tsp", test_sizes=(5,))
  experiment, feeds = pointer.make(config), pointer.make_feeds(config)
  test = jax.jit(lambda i: feeds.evaluate.draw((), i))
  sets = [test(i)["5"] for i in range(2)]
  params = draw_like(jax.eval_shape(experiment.init, root_key(0), plain.batch).params)
  state = averaged(pointer.State(jnp.int32(0), root_key(0), params, ()))
  model = experiment.model(state)
  answer = jax.jit(lambda sets: model(sets.points, sets.count))
  for each in sets:
    said = np.asarray(answer(each))
    np.testing.assert_array_equal(np.sort(said[:, :5]), np.tile(np.arange(5), (4, 1)))
    assert np.all(said[:, 5] == 5)
  figures = experiment.report(state, tmp_path)
  assert set(figures) == {"nearest_5", "shortest_5"}
  assert (tmp_path / "answers.png").stat().st_size > 10_000
  pairs = [
    (np.asarray(p), np.asarray(a)) for each, n in zip(sets, (4, 2)) for p, a in zip(each.points[:n], each.answer)
  ]
  best = [min(way(p, (0, *order)) for order in itertools.permutations(range(1, 5))) for p, _ in pairs]
  np.testing.assert_allclose([way(p, a[:5]) for p, a in pairs], best, rtol=1e-5)
  np.testing.assert_allclose(figures["shortest_5"], np.mean(best), rtol=1e-5)
  np.testing.assert_allclose(figures["nearest_5"], np.mean([walk(p) for p, _ in pairs]) / np.mean(best), rtol=1e-5)


def way(points, order):
  """The length of a round trip."""
  return sum(np.hypot(*(points[a] - points[b])) for a, b in zip(order, (*order[1:], order[0])))


def walk(points):
  """The length of the way from point 0 to whichever is nearest of the rest, and back."""
  way, left = [points[0]], list(points[1:])
  while left:
    way.append(left.pop(int(np.argmin([np.hypot(*(other - way[-1])) for other in left]))))
  return sum(np.hypot(*(a - b)) for a, b in zip(way, [*way[1:], way[0]]))


def test_updates_lower_the_loss(plain):
  state, losses = plain.state, []
  for _ in range(4):
    state, metrics = plain.step(state, plain.batch)
    losses.append(float(metrics["loss"]))
  assert losses[-1] < losses[0]


@pytest.mark.thorough
def test_it_learns_hulls():
  """Of three points: the order around them; .69 nats of six are a coin's."""
  config = small(sizes=(3, 3), test_sizes=(3,), steps=150, learning_rate=1e-2, batch_size=32)
  experiment, feeds = pointer.make(config), pointer.make_feeds(config)
  draw = lambda i: feeds.train.draw((), root_key(0), i)

  def update(state, i):
    state, metrics = experiment.step(state, draw(i))
    return state, metrics["loss"]

  losses = jax.jit(lambda: jax.lax.scan(update, experiment.init(root_key(0), draw(0)), jnp.arange(150))[1])()
  assert np.mean(losses[-20:]) < 0.4 * np.mean(losses[:5])


@pytest.mark.parametrize(
  ("flag", "value"), [("encoder", "transformer"), ("encoder", "bilstm"), ("width", 10), ("glimpse", True)]
)
def test_a_flag_changes_the_network(plain, flag, value):
  shapes = lambda init: jax.tree.map(jnp.shape, jax.eval_shape(init, root_key(0), plain.batch).params)
  assert shapes(pointer.make(small(**{flag: value})).init) != shapes(plain.experiment.init)


def test_flags_are_those_of_the_network():
  more = dict(encoder="bilstm", width=12, depth=3, heads=3, glimpse=True)
  module = pointer.make(small(**more)).model(pointer.State(0, 0, {}, ())).module
  assert {name: getattr(module, name) for name in more} == more and not module.visits_all
  assert pointer.make(small(task="tsp")).model(pointer.State(0, 0, {}, ())).module.visits_all


@pytest.mark.parametrize(
  ("more", "said"),
  [
    (dict(sizes=(5, 3)), "--sizes=5,3"),
    (dict(sizes=(5,)), "--sizes=5 is out of range: expected two ascending"),
    (dict(task="tsp", sizes=(5, 20)), "--sizes=5,20 is out of range: expected .* from 3 to 12 of --task=tsp"),
    (dict(sizes=(2, 3)), "--sizes=2,3"),
    (dict(test_sizes=(2,)), "--test_sizes=2"),
    (dict(test_sizes=(6, 4)), "--test_sizes=6,4"),
    (dict(encoder="transformer", heads=3), "--heads=3"),
    (dict(encoder="bilstm", width=7), "--width=7"),
    (dict(test_sets=0), "--test_sets=0"),
  ],
)
def test_flags_that_do_not_fit_are_refused_in_one_sentence(more, said):
  with pytest.raises(InputError, match=said) as error:
    small(**more)
  assert "\n" not in str(error.value)


def test_flags_without_effect_say_so():
  assert {"depth", "heads", "precision"} <= set(small().idle_flags())
  assert not {"depth", "heads"} & set(small(encoder="transformer").idle_flags())


def test_the_report_draws_answers(plain, averaged, tmp_path):
  assert plain.experiment.report(averaged(plain.state), tmp_path) == {}
  assert (tmp_path / "answers.png").stat().st_size > 10_000
