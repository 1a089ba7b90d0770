"""The experiment on tasks: what is learned from, what is counted, what the flags do, what the report holds."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.attention import _tokens, kinds, recall
from mlnotes.attention import KINDS
from mlnotes.attention.tasks import NOT_ASKED
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key

SMALL = dict(
  task="sorting", length=4, symbols=5, width=8, heads=2, depth=1, batch_size=8, steps=4, warmup_steps=0, window=2,
  rank=3, test_sequences=12, log_every=2, eval_every=0,
)  # fmt: skip


def small(**more):
  return recall.Config(**{**SMALL, **more})


def first(config):
  """(experiment, feeds, state, batch)."""
  experiment, feeds = recall.make(config), recall.make_feeds(config)
  batch = feeds.train.draw(feeds.train.arrays, root_key(0), 0)
  return experiment, feeds, jax.jit(experiment.init)(root_key(0), batch), batch


@pytest.fixture(scope="module")
def plain():
  return first(small())


def test_figures_are_those_of_the_asked_places(plain):
  """Loss and accuracy by hand, places that are not asked left out, sequences without weight too."""
  experiment, feeds, state, _ = plain
  batch = dict(feeds.evaluate.draw(feeds.evaluate.arrays, 1))  # 4 of the 8 are padding
  batch["target"] = batch["target"].at[:, 0].set(NOT_ASKED)
  batch["weight"] = batch["weight"].at[1].set(0)
  logits = np.asarray(experiment.model(state)(batch["tokens"]), np.float64)
  log_probability = logits - np.log(np.sum(np.exp(logits), -1, keepdims=True))
  losses, right, solved = [], [], []
  for i in (0, 2, 3):
    target = np.asarray(batch["target"][i])
    losses.append(np.mean([-log_probability[i, t, target[t]] for t in range(1, 4)]))
    right.append(np.mean([logits[i, t].argmax() == target[t] for t in range(1, 4)]))
    solved.append(right[-1] == 1)
  found = {name: float(x.total / x.count) for name, x in jax.jit(experiment.evaluate)(state, batch).items()}
  np.testing.assert_allclose(found["loss"], np.mean(losses), rtol=1e-5)
  np.testing.assert_allclose(found["accuracy"], np.mean(right), rtol=1e-6)
  np.testing.assert_allclose(found["solved"], np.mean(solved), rtol=1e-6)


def test_an_update_learns_from_the_asked_places_of_sequences_that_count(plain):
  experiment, _, state, batch = plain
  step = jax.jit(experiment.step)
  other = batch["tokens"].at[0].set((batch["tokens"][0] + 1) % 5)
  unlike = (
    step(state, batch)[0].params["head"]["kernel"]
    != step(state, {**batch, "tokens": other})[0].params["head"]["kernel"]
  )
  assert np.any(unlike)
  silent = {**batch, "weight": batch["weight"].at[0].set(0)}
  a, b = step(state, silent), step(state, {**silent, "tokens": other})
  assert jax.tree.all(jax.tree.map(lambda x, y: bool(jnp.all(x == y)), a[0].params, b[0].params))
  assert a[1] == b[1]
  loss = float(jnp.mean(_losses(experiment, state, batch)))
  np.testing.assert_allclose(step(state, batch)[1]["loss"], loss, rtol=1e-5)


def _losses(experiment, state, batch):
  logits = jax.nn.log_softmax(experiment.model(state)(batch["tokens"]))
  return -jnp.mean(jnp.take_along_axis(logits, batch["target"][..., None], -1)[..., 0], -1)


def test_it_learns():
  experiment, feeds, state, _ = first(small(steps=150, learning_rate=1e-2))
  step = jax.jit(lambda state, i: experiment.step(state, feeds.train.draw((), root_key(0), i)))
  losses = []
  for i in range(150):
    state, metrics = step(state, i)
    losses.append(float(metrics["loss"]))
  assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:10])


@pytest.mark.parametrize(
  ("flag", "value"),
  [("kind", "linear"), ("position", "none"), ("position", "rotary"), ("order", "post"), ("kv_heads", 1), ("depth", 2)],
)
def test_a_flag_changes_the_model(plain, flag, value):
  experiment, _, state, batch = first(small(**{flag: value}))
  ours, theirs = (x[0].model(x[2])(batch["tokens"]) for x in (plain, (experiment, None, state)))
  assert not np.allclose(ours, theirs)


def test_places_are_told_apart_by_a_bias_where_there_can_be_one():
  found = lambda **more: _tokens.build_model(small(**more), recall.make_task(small(**more))).position
  causal = dict(task="induction", length=6)
  assert (found(**causal), found(**causal, kind="linear"), found(task="sorting")) == ("alibi", "learned", "learned")
  assert found(**causal, position="sinusoidal") == "sinusoidal"


def test_what_looks_ahead_is_hidden_where_the_task_is_what_comes_next():
  config = small(task="induction", length=6)
  experiment, _, state, batch = first(config)
  model = experiment.model(state)
  tokens = batch["tokens"]
  changed = tokens.at[:, 3:].set((tokens[:, 3:] + 1) % 5)
  np.testing.assert_array_equal(model(tokens)[:, :3], model(changed)[:, :3])
  assert not np.allclose(model(tokens)[:, 3:], model(changed)[:, 3:])


def test_dropout_is_of_training_alone():
  experiment, _, state, batch = first(small(dropout=0.5))
  model = experiment.model(state)
  np.testing.assert_array_equal(model(batch["tokens"]), model(batch["tokens"]))
  loss = float(jnp.mean(_losses(experiment, state, batch)))
  step = jax.jit(experiment.step)
  one, two = (float(step(state._replace(step=jnp.int32(i)), batch)[1]["loss"]) for i in (0, 1))
  assert len({loss, one, two}) == 3


def test_hard_attention_has_the_gradient_of_the_expected_loss():
  """In the mean over all draws REINFORCE's gradient is that of the expectation: two draws of three, enumerated."""
  logits, costs = jnp.array([0.3, -0.2, 0.7]), jnp.array([1.0, 3.0, 0.5])
  expected = jax.grad(lambda x: 2 * jax.nn.softmax(x) @ costs / 2)(logits)

  def of_draw(places):
    def surrogate(x):
      log_probability = jax.nn.log_softmax(x)[jnp.array(places)].reshape(2, 1, 1)
      found = {"intermediates": {"kind": {"log_probability": (log_probability,)}}}
      return _tokens._reinforce(costs[jnp.array(places)], jnp.ones(2), found)

    probability = float(jnp.prod(jax.nn.softmax(logits)[jnp.array(places)]))
    return probability * jax.grad(surrogate)(logits)

  mean = sum(of_draw(places) for places in itertools.product(range(3), repeat=2))
  np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-6)


def test_the_update_of_hard_attention_uses_it():
  """Queries get a gradient through the draw alone."""
  experiment, _, state, batch = first(small(kind="hard", steps=10, learning_rate=0.1, weight_decay=0.0))
  query = lambda state: state.params["transformer"]["block0"]["attention"]["query"]["kernel"]
  after, _ = jax.jit(experiment.step)(state, batch)
  assert np.any(query(after) != query(state))


def test_centroids_of_routing_move_and_are_evaluated():
  experiment, _, state, batch = first(small(kind="routing"))
  after, _ = jax.jit(experiment.step)(state, batch)
  before, later = (jax.tree.leaves(x.extra)[0] for x in (state, after))
  assert np.any(before != later)
  swapped = after._replace(extra=jax.tree.map(lambda x: -x, after.extra))
  assert not np.allclose(experiment.model(after)(batch["tokens"]), experiment.model(swapped)(batch["tokens"]))


def test_the_floor_is_the_likeliest_answer_at_each_place(plain):
  feeds = plain[1]
  batches = [feeds.evaluate.draw((), i) for i in range(2)]
  keep = np.concatenate([b["weight"] * b["mask"] for b in batches]) > 0
  target = np.concatenate([b["target"] for b in batches])[keep]
  expected = np.mean([np.bincount(column).max() / len(column) for column in target.T])
  np.testing.assert_allclose(_tokens.constant_floor(feeds), expected)


@pytest.mark.parametrize(
  ("more", "said"),
  [
    (dict(heads=3), "--heads=3"),
    (dict(kv_heads=3, heads=4), "--kv_heads=3"),
    (dict(window=0), "--window=0"),
    (dict(task="recall", pairs=40), "--task=recall: recall of"),
    (dict(kind="strided", heads=1), "--kind=strided needs --heads"),
    (dict(kind="linear", position="alibi"), "--position=alibi"),
    (dict(kind="reformer", kv_heads=1), "--kind=reformer has its queries as keys"),
    (dict(width=6, position="rotary"), "--position=rotary"),
    (dict(width=7, heads=1, position="sinusoidal"), "--position=sinusoidal.*--width is 7"),
    (dict(dropout=1.0), "--dropout=1.0"),
  ],
)
def test_flags_that_do_not_fit_are_refused_in_one_sentence(more, said):
  with pytest.raises(InputError, match=said) as error:
    small(**more)
  assert "\n" not in str(error.value)


def test_a_kind_without_a_causal_form_is_refused_for_what_comes_next():
  with pytest.raises(InputError, match="--kind=linformer has no causal form"):
    recall.make(small(kind="linformer", task="induction", length=6))


def test_flags_without_effect_say_so():
  idle = small(kind="linear").idle_flags()
  assert {"window", "rank", "rounds", "pairs", "queries"} <= set(idle) and "length" not in idle


def test_the_report_draws_what_is_looked_at_and_says_the_floor(plain, tmp_path):
  experiment, feeds, state, _ = plain
  figures = experiment.report(state, tmp_path)
  assert figures == {"floor": _tokens.constant_floor(feeds)}
  assert (tmp_path / "weights.png").stat().st_size > 10_000


def test_weights_are_those_of_each_layer_and_sum_to_one(plain):
  experiment, _, state, batch = plain
  (weights,) = experiment.model(state).weights(batch["tokens"])
  assert weights.shape == (8, 2, 4, 4)
  np.testing.assert_allclose(np.sum(weights, -1), 1, rtol=1e-5)


# -- every kind beside each other ------------------------------------------------------------------------------------


def test_the_study_compares_seeds_of_each_kind_with_the_floor(tmp_path, monkeypatch, capsys):
  config = kinds.Config(
    workdir=str(tmp_path / "run"), tasks=("sorting",), kinds=("dense", "linformer"), seeds=2, steps=3, width=8, heads=2,
    depth=1, batch_size=4, test_sequences=8,
  )  # fmt: skip
  assert kinds.main(config) == 0
  card = json.loads((tmp_path / "run" / "result.json").read_text())
  metrics = card["metrics"]
  assert set(metrics) == {"sorting/dense", "sorting/linformer", "sorting/floor"}
  seeds = metrics["sorting/dense"]["seeds"]
  assert len(seeds) == 2 and seeds[0] != seeds[1]
  # The same run by itself: the experiment's own state after as many updates, from the same key.
  own = kinds.run_config(config, "sorting", "dense")
  experiment, feeds = recall.make(own), recall.make_feeds(own)
  draw = lambda i: feeds.train.draw((), root_key(1), i)
  state = jax.jit(lambda: experiment.init(root_key(1), draw(0)))()
  step = jax.jit(lambda state, i: experiment.step(state, draw(i))[0])
  for i in range(3):
    state = step(state, i)
  evaluate = jax.jit(lambda state, i: experiment.evaluate(state, feeds.evaluate.draw((), i))["accuracy"])
  parts = [evaluate(state, i) for i in range(2)]
  alone = float(sum(x.total for x in parts) / sum(x.count for x in parts))
  np.testing.assert_allclose(seeds[1], alone, atol=1e-6)
  table = (tmp_path / "run" / "table.md").read_text()
  assert table.count("| sorting |") == 3 and (tmp_path / "run" / "tasks.png").exists()


def test_the_study_says_which_names_it_does_not_know():
  for more, said in (
    (dict(kinds=("lineer",)), "linear"),
    (dict(tasks=("sort",)), "sorting"),
    (dict(seeds=0), "--seeds=0"),
    (dict(kinds=("routing", "linformer")), "none of --kinds=routing,linformer has a causal form"),
    (dict(tasks=("state",), kinds=("routing",)), "--kinds=routing has no causal form"),
    (dict(tasks=("state",), kinds=("dense", "strided")), "one head, of which --kinds=strided has no form"),
  ):
    with pytest.raises(InputError, match=said):
      kinds.Config(**more)


def test_flags_of_the_study_without_effect_say_so():
  idle = kinds.Config(kinds=("dense", "local")).idle_flags()
  assert "rank" in idle and not {"window", "heads"} & set(idle)
  assert {"heads", "rank"} <= set(kinds.Config(tasks=("state",), kinds=("performer",)).idle_flags())


def test_every_kind_has_settings_for_every_task():
  for kind in KINDS:
    for task in ("sorting", "listops"):
      assert kinds.run_config(kinds.Config(), task, kind).kind == kind
