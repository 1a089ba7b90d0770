"""The experiment on memories: what is learned from, what is counted at which length, what the flags and report do."""

import re
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.sequence import ntm
from mlnotes.engine import plot
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key
from mlnotes.sequence import BitExample

SMALL = dict(
  bits=2, most=3, lengths=(2, 5), test_sequences=6, batch_size=4, units=6, cells=6, test_cells=7, width=3, steps=4,
  log_every=2, eval_every=0, repeats=2,
)  # fmt: skip


def small(**more):
  return ntm.Config(**{**SMALL, **more})


def first(config):
  """(experiment, feeds, state, batch, batches of the evaluation)."""
  experiment, feeds = ntm.make(config), ntm.make_feeds(config)

  @jax.jit
  def begin():
    batch = feeds.train.draw((), root_key(0), 0)
    return experiment.init(root_key(0), batch), batch

  test = jax.jit(lambda i: feeds.evaluate.draw((), i))
  return experiment, feeds, *begin(), [test(i) for i in range(feeds.evaluate.num_batches)]


@pytest.fixture(scope="module")
def plain():
  return first(small())


def test_losses_and_wrong_bits_are_those_of_what_is_asked():
  logits = np.array([[[3.0, -1.0], [0.5, 2.0], [-4.0, 1.0]]])
  targets = np.array([[[0, 1], [1, 1], [1, 0]]])
  example = BitExample(jnp.zeros((1, 3, 3)), jnp.float32(targets), jnp.array([[0.0, 1.0, 1.0]]))
  expected = sum(
    -np.log(1 / (1 + np.exp(-x if t else x))) for x, t in zip(logits[0, 1:].ravel(), targets[0, 1:].ravel())
  )
  np.testing.assert_allclose(ntm.bit_losses(jnp.float32(logits), example), [expected], rtol=1e-5)
  np.testing.assert_array_equal(ntm.wrong_bits(jnp.float32(logits), example), [2])
  np.testing.assert_array_equal(ntm.asked_bits(example), [4])


def test_an_update_follows_the_mean_over_all_asked_bits(plain):
  experiment, _, state, batch, _ = plain
  step = jax.jit(experiment.step)
  after, metrics = step(state, batch)
  model = ntm.make(small(test_cells=small().cells)).model(state)
  logits = np.asarray(jax.jit(lambda x: model(x))(batch.inputs), np.float64)
  targets, asked = np.asarray(batch.targets), np.asarray(batch.asked) > 0
  each = np.log1p(np.exp(-logits * (2 * targets - 1)))[asked]
  np.testing.assert_allclose(metrics["loss"], each.mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics["wrong_bits"], ((logits > 0) != (targets > 0.5))[asked].sum() / 4, rtol=1e-5)
  other, _ = step(state, batch._replace(targets=np.where(asked[..., None], targets, 1.0).astype(np.float32)))
  jax.tree.map(np.testing.assert_array_equal, after.params, other.params)
  assert any(np.any(x != y) for x, y in zip(*map(jax.tree.leaves, (state.params, after.params))))
  for _ in range(20):
    after, later = step(after, batch)
  assert later["loss"] < metrics["loss"]


def test_training_draws_all_lengths_and_tests_their_own(plain):
  _, feeds, _, batch, tests = plain
  assert batch.inputs.shape == (4, 7, 3)
  draw = jax.jit(lambda i: feeds.train.draw((), root_key(0), i))
  many = [draw(i) for i in range(5)]
  lengths = {int(n) for batch in many for n in np.asarray(batch.asked).sum(1)}
  assert lengths == {1, 2, 3}
  assert any(np.any(many[0].inputs != batch.inputs) for batch in many[1:])
  for length in (2, 5):
    assert tests[0][str(length)].inputs.shape == (4, 2 * length + 1, 3)
    np.testing.assert_array_equal(np.asarray(tests[0][str(length)].asked).sum(1), length)
  np.testing.assert_array_equal(tests[1]["mask"], [1, 1, 0, 0])
  assert np.any(tests[0]["2"].inputs[:, :2] != tests[0]["5"].inputs[:, :2])


def test_tests_are_the_same_in_every_run(monkeypatch):
  monkeypatch.setattr(ntm, "make_drawn_eval", lambda draw, arrays, seed, *sizes: (seed, sizes))
  tests = [ntm.make_feeds(small(seed=seed)).evaluate for seed in (0, 5)]
  assert tests[0] == tests[1] and tests[0][1] == (6, 4)


def test_evaluations_count_each_length_without_the_padding(plain, averaged):
  experiment, feeds, state, _, batches = plain
  found = ntm.measure(experiment.evaluate, averaged(state), feeds)
  model = experiment.model(averaged(state))
  ask = jax.jit(lambda x: model(x))
  for length in (2, 5):
    wrong, nats = [], []
    for batch, count in zip(batches, (4, 2)):
      example = jax.tree.map(np.asarray, batch[str(length)])
      logits = np.asarray(ask(example.inputs))
      wrong += list((((logits > 0) != (example.targets > 0.5)) * example.asked[..., None]).sum((1, 2))[:count])
      each = np.log1p(np.exp(-logits * (2 * example.targets - 1)))
      nats += [np.mean(row[asked > 0]) for row, asked in zip(each[:count], example.asked)]
    np.testing.assert_allclose(found[f"wrong_bits_{length}"], np.mean(wrong), rtol=1e-6)
    if length == 2:
      np.testing.assert_allclose(found["loss"], np.mean(nats), rtol=1e-5)
  assert set(found) == {"wrong_bits_2", "wrong_bits_5", "loss"}


def test_solved_is_a_tenth_of_a_bit_where_trained_and_five_beyond():
  judge = lambda near, far: ntm.judge(ntm.Config(), {"wrong_bits_20": near, "wrong_bits_120": far})
  assert judge(0.1, 5.0) == {"solved": 1.0, "coin_20": 80.0, "coin_120": 480.0}
  assert judge(0.11, 0.0)["solved"] == 0 and judge(0.0, 5.1)["solved"] == 0


def test_a_coin_solves_nothing():
  """A twentieth of its wrong bits is the most where that is less."""
  judge = lambda near, far: ntm.judge(small(), {"wrong_bits_2": near, "wrong_bits_5": far})["solved"]
  assert judge(0.1, 0.25) == 1 and judge(0.0, 0.26) == 0
  assert ntm.coin_errors(small(), 5) == 5.0
  assert ntm.coin_errors(small(task="repeat_copy"), 2) == 7.5  # twice two vectors and the mark, of three channels


@pytest.mark.thorough
def test_it_learns_to_copy():
  """Of one bit at a time in sequences of up to two; a coin has .69 nats."""
  config = small(bits=1, most=2, lengths=(2,), steps=300, learning_rate=2e-2, batch_size=16, units=16, clip_norm=1.0)
  experiment, feeds = ntm.make(config), ntm.make_feeds(config)
  draw = lambda i: feeds.train.draw((), root_key(0), i)

  def update(state, i):
    state, metrics = experiment.step(state, draw(i))
    return state, metrics["loss"]

  losses = jax.jit(lambda: jax.lax.scan(update, experiment.init(root_key(0), draw(0)), jnp.arange(300))[1])()
  assert np.mean(losses[:10]) > 0.6 and np.mean(losses[-30:]) < 0.25


@pytest.mark.parametrize(
  ("flag", "value"),
  [("controller", "lstm"), ("width", 5), ("units", 7), ("read_heads", 2), ("write_heads", 2),
   ("reach", 2), ("model", "lstm")],
)  # fmt: skip
def test_a_flag_changes_the_machine(plain, flag, value):
  experiment = ntm.make(small(**{flag: value}))
  batch = plain[3]
  shapes = lambda init: jax.tree.map(jnp.shape, jax.eval_shape(init, root_key(0), batch).params)
  assert shapes(experiment.init) != shapes(plain[0].init)


def test_it_is_trained_with_the_cells_of_one_flag_and_tested_with_those_of_another(plain):
  """As it is written, without compiling."""
  experiment, _, state, batch, tests = plain
  assert jax.eval_shape(lambda: experiment.model(state).trace(batch.inputs)).memory.shape == (4, 7, 3, 7)

  def written(what, given, **more):
    return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(getattr(ntm.make(small(**more)), what))(state, given)))

  steps = [written("step", batch, **more) for more in ({}, dict(test_cells=9), dict(cells=9))]
  assert steps[0] == steps[1] != steps[2]
  evaluations = [written("evaluate", tests[0], **more) for more in ({}, dict(cells=9), dict(test_cells=9))]
  assert evaluations[0] == evaluations[1] != evaluations[2]


def test_layers_of_the_lstm_are_a_flag(plain):
  shapes = [
    jax.tree.map(jnp.shape, jax.eval_shape(ntm.make(small(model="lstm", depth=d)).init, root_key(0), plain[3]).params)
    for d in (1, 2)
  ]
  assert shapes[0] != shapes[1]


@pytest.mark.parametrize(
  ("task", "steps", "channels"), [("copy", 9, (3, 2)), ("repeat_copy", 14, (4, 3)), ("associative_recall", 24, (4, 2))]
)
def test_tasks_have_their_sizes(task, steps, channels):
  config = small(task=task, most=4, lengths=(4,), repeats=2)
  made = ntm.make_task(config)
  assert (made.length, made.inputs, made.targets) == (steps, *channels)


def test_sizes_of_tasks_are_those_of_the_flags(monkeypatch):
  """In training from the least to the most; a test has one size, and says it as often as ever."""
  for name in ("make_copy", "make_repeat_copy", "make_associative_recall"):
    monkeypatch.setattr(ntm, name, lambda *given: given)
  sizes = dict(most=4, lengths=(6,), repeats=5)
  for flags, trained, tested in (
    (dict(), (2, 1, 4), (2, 6, 6)),
    (dict(least=3), (2, 3, 4), (2, 6, 6)),
    (dict(task="repeat_copy"), (2, 1, 4, 1, 5, (1, 5)), (2, 6, 6, 5, 5, (1, 5))),
    (dict(task="associative_recall"), (2, 2, 4), (2, 6, 6)),
  ):
    config = small(**sizes, **flags)
    assert (ntm.make_task(config), ntm.make_task(config, 6)) == (trained, tested)


def test_longer_tests_say_repeats_on_the_scale_of_training():
  config = small(task="repeat_copy", repeats=4, lengths=(2,))
  example = jax.jit(lambda: ntm.make_task(config, 2).draw(root_key(3)))()
  np.testing.assert_allclose(example.inputs[2, 3], 1.5 / 1.25**0.5, rtol=1e-6)


@pytest.mark.parametrize(
  ("more", "said"),
  [
    (dict(cells=0), "--cells=0"),
    (dict(reach=3), "--reach=3 is out of range: expected less than half of the 6 cells"),
    (dict(lengths=(5, 2)), "--lengths=5,2"),
    (dict(least=4), "--task=copy: copy of 4 to 3 vectors"),
    (dict(task="associative_recall", lengths=(1,)), "--task=associative_recall: associative recall of 1 to 1 items"),
    (dict(least=-1), "--least=-1"),
  ],
)
def test_flags_that_do_not_fit_are_refused_in_one_sentence(more, said):
  with pytest.raises(InputError, match=said) as error:
    small(**more)
  assert "\n" not in str(error.value)


def test_flags_without_effect_say_so():
  assert {"depth", "repeats", "precision"} <= set(small().idle_flags())
  idle = small(model="lstm", task="repeat_copy").idle_flags()
  assert {"controller", "cells", "test_cells", "width", "reach"} <= set(idle) and not {"depth", "repeats"} & set(idle)


def test_the_report_draws_memory_and_says_whether_it_is_solved(plain, averaged, tmp_path):
  experiment, _, state, _, _ = plain
  figures = experiment.report(averaged(state), tmp_path)
  assert figures == {"solved": 0.0, "coin_2": 2.0, "coin_5": 5.0}
  assert (tmp_path / "memory.png").stat().st_size > 10_000


class Looks(NamedTuple):
  """Says nothing; its first head, which reads, stands in cell 1, the second, which writes, in cell 2."""

  params: Any

  def __call__(self, inputs):
    return jnp.zeros((*inputs.shape[:2], 2))

  def trace(self, inputs):
    return types.SimpleNamespace(weights=jnp.broadcast_to(jnp.eye(7)[1:3], (*inputs.shape[:2], 2, 7)))


def test_the_picture_shows_what_was_wrong_and_which_heads_stood_where(monkeypatch, tmp_path):
  drawn = []
  monkeypatch.setattr(plot, "save_figure", lambda figure, path: drawn.append(figure))
  ntm.draw_memory(Looks({}), small(lengths=(2,)), tmp_path / "memory.png")
  panels = {axis.get_ylabel(): axis.get_images()[0].get_array() for axis in drawn[0].axes}
  asked = panels["asked for"]
  for name, cell in (("where it reads", 1), ("where it writes", 2)):
    # Of the seven cells those that a head touches, and one on either side.
    np.testing.assert_array_equal(panels[name], np.tile(np.eye(7)[cell][:4, None], 5))
  np.testing.assert_array_equal(panels["wrong"], asked)  # nothing is said: the ones are wrong
  assert drawn[0].axes[0].get_title() == f"length 2: {int(asked.sum())} of 4 bits wrong"
  ntm.draw_memory(Looks({}), small(lengths=(2,), model="lstm"), tmp_path / "memory.png")
  assert [axis.get_ylabel() for axis in drawn[1].axes] == ["seen", "asked for", "said", "wrong"]
