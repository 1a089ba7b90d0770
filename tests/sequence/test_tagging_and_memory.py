"""The experiment on memory: what is read, counted and learned from, what the flags reach, what the report holds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.sequence import tagging_and_memory as memory
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key, stream_key
from mlnotes.optim.flags import make_optimizer
from mlnotes.sequence.tagging import WORDS
from mlnotes.sequence.tasks import NOT_ASKED

SMALL = dict(width=4, batch_size=8, test_sequences=12, steps=4, warmup_steps=0, log_every=2, eval_every=0)


def small(**more):
  return memory.Config(**{**SMALL, "task": "slots", **more})


@pytest.fixture(scope="module")
def slots(draw_like):
  """(experiment, batches of the evaluation, state, batch, jitted step and evaluation)."""
  config = small(dropout=0.5, shared_dropout=True)
  experiment, feeds = memory.make(config), memory.make_feeds(config)
  batch = jax.jit(lambda: feeds.train.draw((), root_key(0), 0))()
  test = jax.jit(lambda i: feeds.evaluate.draw((), i))
  params = draw_like(jax.eval_shape(experiment.init, root_key(0), batch).params)
  optimizer = jax.jit(make_optimizer(config, config.steps).init)(params)
  state = memory.State(jnp.int32(0), root_key(0), params, optimizer)
  return experiment, [test(i) for i in range(2)], state, batch, jax.jit(experiment.step), jax.jit(experiment.evaluate)


def test_figures_are_those_of_the_asked_words(slots, averaged):
  """By hand, without the rows that fill the last batch up; the test sets nothing in training mode."""
  experiment, (_, batch), state, _, _, evaluate = slots  # of which 4 of the 8 are padding
  model = experiment.model(averaged(state))
  logits = np.asarray(jax.jit(lambda x, lengths: model(x, lengths))(batch["inputs"], batch["length"]), np.float64)
  log_probability = logits - np.log(np.sum(np.exp(logits), -1, keepdims=True))
  losses, right, solved = [], [], []
  for i in range(4):
    target, length = np.asarray(batch["target"][i]), int(batch["length"][i])
    losses.append(np.mean([-log_probability[i, t, target[t]] for t in range(length)]))
    right.append(np.mean(logits[i, :length].argmax(-1) == target[:length]))
    solved.append(right[-1] == 1)
  found = {name: float(x.total / x.count) for name, x in evaluate(averaged(state), batch).items()}
  np.testing.assert_allclose(found["loss"], np.mean(losses), rtol=1e-5)
  np.testing.assert_allclose(found["accuracy"], np.mean(right), rtol=1e-5)
  np.testing.assert_allclose(found["solved"], np.mean(solved), atol=1e-6)


def test_f1_is_over_all_entities_together(slots, averaged):
  """A model that is right on one request and silent on another."""
  _, (test, _), state, _, _, evaluate = slots
  batch = dict(test)
  batch["mask"] = jnp.array([1.0, 1, 0, 0, 0, 0, 0, 0])
  batch["target"] = batch["target"].at[1].set(jnp.where(batch["target"][1] >= 0, 0, NOT_ASKED))
  params = jax.tree.map(jnp.zeros_like, state.params)
  params["head"]["bias"] = jnp.zeros(13).at[1].set(1.0)  # every word begins a city that one leaves
  found = evaluate(averaged(state._replace(params=params)), batch)["entity_f1"]
  target = np.asarray(batch["target"][0])
  there = np.sum((target > 0) & (target % 2 == 1))
  alone = [t for t in np.flatnonzero(target == 1) if target[t + 1] != 2]
  said = int(batch["length"][0] + batch["length"][1])
  assert float(found.total) == 2 * len(alone) and float(found.count) == there + said


def test_a_sum_is_right_within_four_hundredths():
  batch = {"target": jnp.array([1.0, 1.0, 1.0])}
  found = memory.judge(jnp.array([1.039, 0.959, 0.5]), batch)
  np.testing.assert_array_equal(found["solved"], [1, 0, 0])
  np.testing.assert_allclose(found["loss"], [0.039**2, 0.041**2, 0.25], rtol=1e-4)


def test_a_sequence_is_solved_where_every_asked_step_is_right():
  target = jnp.array([[0, 1, NOT_ASKED], [1, 1, 0], [NOT_ASKED, NOT_ASKED, 1]])
  said = 9.0 * jax.nn.one_hot(jnp.array([[0, 1, 0], [1, 1, 1], [1, 0, 1]]), 2)
  found = jax.jit(memory.judge)(said, {"target": target})
  np.testing.assert_array_equal(found["solved"], [1, 0, 1])
  np.testing.assert_allclose(found["accuracy"], [1, 2 / 3, 1], rtol=1e-6)


def test_a_number_is_read_at_the_end_of_each_direction(draw_variables):
  """Of a shorter sequence in a longer row at its own end; what the head sees, from the stack's outputs."""
  config = small(task="adding", length=6, bidirectional=True, cell="elman")
  inputs, lengths = np.random.default_rng(0).normal(size=(8, 6, 2)).astype(np.float32), np.full(8, 4)
  module = memory.Reader(memory.build_stack(config), 0)
  model = memory.Model(module, draw_variables(module, inputs, lengths)["params"])
  # Once as it is; then with one direction's weights at 0, where the answer still hangs on the first step and the last.
  heads = [np.where(np.isin(np.arange(8)[:, None], rows), 0, 1) for rows in ((), range(4), range(4, 8))]

  @jax.jit
  def ask(inputs, lengths, head):
    kernel = model.params["head"]["kernel"] * head
    params = {**model.params, "head": {**model.params["head"], "kernel": kernel}}

    def total(inputs):
      said = model._replace(params=params)(inputs, lengths)
      return jnp.sum(said), said

    seen, said = jax.grad(total, has_aux=True)(inputs)
    return said, seen

  whole = jax.jit(lambda x: model(x, jnp.asarray(lengths)))(inputs[:, :4])
  said, seen = ask(inputs, lengths, heads[0])
  np.testing.assert_allclose(said, whole, atol=1e-6)
  assert not np.any(seen[:, 4:])
  for side, head in zip(("forward", "backward"), heads[1:]):
    _, seen = ask(inputs, lengths, head)
    assert np.abs(seen[:, 0]).max() > 0 and np.abs(seen[:, 3]).max() > 0, side


def test_an_update_is_along_the_gradient_of_the_mean_loss(slots):
  experiment, _, state, batch, step, _ = slots
  after, metrics = step(state, batch)
  module = experiment.model(state).module

  def mean_loss(params):
    rngs = {"dropout": stream_key(root_key(0), "dropout", 0)}
    logits = module.apply({"params": params}, batch["inputs"], batch["length"], True, rngs=rngs)
    asked = batch["target"] >= 0
    each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(batch["target"], 0))
    return jnp.mean(jnp.sum(each * asked, 1) / jnp.sum(asked, 1))

  @jax.jit
  def update(params):
    loss, grads = jax.value_and_grad(mean_loss)(params)
    optimizer = make_optimizer(small(), 4)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return loss, optax.global_norm(grads), optax.apply_updates(params, updates)

  loss, norm, expected = update(state.params)
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
  np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), after.params, expected)


def test_dropout_is_drawn_anew_each_update_and_not_in_tests(slots, averaged):
  _, (test, _), state, batch, step, evaluate = slots
  losses = [float(step(state._replace(step=jnp.int32(i)), batch)[1]["loss"]) for i in (0, 0, 1)]
  assert losses[0] == losses[1] != losses[2]
  plain = jax.jit(memory.make(small()).evaluate)
  found = (which(averaged(state), test)["loss"].total for which in (evaluate, plain))
  np.testing.assert_allclose(*found, rtol=1e-6)


def test_training_and_test_sequences_are_others_and_those_of_tests_stay():
  config = small(task="parity", length=40)
  feeds = memory.make_feeds(config)
  rows = lambda batch: {row.tobytes() for row in np.asarray(batch["inputs"])}
  draw = jax.jit(lambda key, i: feeds.train.draw((), key, i))
  trained = set().union(*(rows(draw(root_key(0), i)) for i in range(3)))
  tests = [memory.make_feeds(dataclasses.replace(config, seed=seed)).evaluate for seed in (0, 5)]
  test, again = (rows(each) for each in jax.jit(lambda: [feed.draw((), 0) for feed in tests])())
  assert len(trained) == 24 and not trained & test and again == test
  assert not rows(draw(root_key(5), 0)) & trained


@pytest.mark.parametrize("flags, features, classes, length", [
  (dict(task="adding", length=9), 2, 0, 9),
  (dict(task="copying", length=9), 10, 9, 29),
  (dict(task="parity", length=9), 2, 2, 9),
  (dict(task="dyck", length=9, brackets=3), 2, 4, 9),
  (dict(task="dyck", length=9, kinds=2, brackets=3), 4, 3, 9),
])  # fmt: skip
def test_flags_make_the_task(flags, features, classes, length):
  task = memory.make_task(small(**flags))
  assert (task.features, task.classes, task.length) == (features, classes, length)


def test_flags_reach_the_layers():
  def build(**flags):
    stack = memory.build_stack(small(**flags))
    return stack, jax.eval_shape(stack.init, jax.random.key(0), jnp.zeros((1, 3, 2)))["params"]

  stack, params = build(cell="lstm", depth=2, bidirectional=True, forget_bias=2.0, longest=9, dropout=0.25,
                        shared_dropout=True, residual=True, recurrent_dropout=0.5)  # fmt: skip
  assert set(params) == {"layer0", "layer1"} and set(params["layer0"]) == {"forward", "backward"}
  assert (stack.dropout, stack.shared_dropout, stack.residual) == (0.25, True, True)
  assert (stack.cell.forget_bias, stack.cell.longest, stack.cell.recurrent_dropout) == (2.0, 9, 0.5)
  assert build(cell="clockwork", periods=(1, 3))[0].cell.periods == (1, 3)
  assert build(cell="scrn", learn_alpha=True)[0].cell.learn_alpha
  assert build(cell="gru", reset="before")[0].cell.reset == "before"
  assert not build(cell="mingru", positive=False)[0].cell.positive
  assert build(cell="minlstm", forget_bias=3.0)[0].cell.forget_bias == 3.0
  assert build(precision="bfloat16")[0].cell.dtype == jnp.bfloat16


@pytest.mark.parametrize("flags, words", [
  (dict(task="adding", length=1), "expected 2 or more"),
  (dict(task="dyck", brackets=0), "--task=dyck"),
  (dict(cell="mingru", recurrent_dropout=0.1), "does not have"),
  (dict(cell="clockwork", width=6, periods=(1, 2, 4, 8)), "divide"),
  (dict(longest=2), "longest"),
  (dict(width=0), "--width"),
  (dict(dropout=1.0), "--dropout"),
])  # fmt: skip
def test_what_does_not_fit_is_one_sentence(flags, words):
  with pytest.raises(InputError, match=words):
    small(**flags)


def test_the_floor_of_words_is_counted_on_other_requests():
  """Of requests of one word and any tag, of which none is known before: 1 of 13, where they are counted 1 of 3."""

  def draw(key):
    word, tag = jax.random.randint(key, (2, 1), 0, 13 * len(WORDS))
    return {"inputs": jax.nn.one_hot(word % len(WORDS), len(WORDS)), "target": tag % 13}

  assert memory.word_floor(memory.make_task(small())._replace(draw=draw))["floor_accuracy"] < 0.15


def test_the_best_has_the_least_loss(monkeypatch):
  given = {}
  monkeypatch.setattr(memory, "train", lambda *parts, **more: given.update(more) or 0)
  assert memory.main(small()) == 0 and given == {"best_metric": "loss"}


def test_flags_that_do_nothing_say_so():
  assert {"length", "kinds", "brackets", "periods", "reset", "learn_alpha", "positive", "shared_dropout"} <= set(
    small().idle_flags()
  )
  assert "longest" in small(cell="gru").idle_flags() and "longest" not in small().idle_flags()
  assert {"residual", "dropout"} <= set(small(dropout=0.1).idle_flags())
  assert "dropout" not in small(dropout=0.1, shared_dropout=True).idle_flags()
  assert not {"residual", "dropout"} & set(small(dropout=0.1, depth=2).idle_flags())
  assert "residual" not in small(task="adding", width=2).idle_flags()  # as wide as what goes in
  assert "forget_bias" in small(longest=9).idle_flags() and "forget_bias" not in small(cell="minlstm").idle_flags()


@pytest.mark.parametrize("flags", [dict(task="adding", length=4), dict(task="dyck", length=5), dict()])
def test_the_report_is_a_picture_and_its_floors(draw_like, averaged, flags, tmp_path):
  config = small(**flags, cell="mingru")
  experiment, task = memory.make(config), memory.make_task(config)
  params = draw_like(jax.eval_shape(experiment.init, root_key(0), None).params)
  found = experiment.report(averaged(memory.State(jnp.int32(0), root_key(0), params, ())), tmp_path)
  assert (tmp_path / "answers.png").stat().st_size > 5000
  if config.task == "slots":
    assert 0.5 < found["floor_entity_f1"] < 0.8 < found["floor_accuracy"] < 1
  else:
    assert found["floor_loss"] == task.floor and ("floor_accuracy" in found) == (task.classes > 0)
