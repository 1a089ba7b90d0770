"""Grokking: what is learned and tested, the network against one by hand, what an update and a report hold."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.lm import grokking
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key
from mlnotes.lm.tasks import frequency_energy, modular_table
from mlnotes.optim.flags import make_optimizer
from mlnotes.optim.lookahead import LookaheadState

SMALL = dict(prime=7, width=8, heads=2, hidden=12, steps=4, warmup_steps=0, log_every=2, eval_every=0)


def small(**more):
  return grokking.Config(**{**SMALL, **more})


@pytest.fixture(scope="module")
def started():
  config = small(lookahead=2)
  experiment, feeds = grokking.make(config), grokking.make_feeds(config)
  batch = feeds.train.draw(feeds.train.arrays, root_key(0), 0)
  return config, experiment, feeds, jax.jit(experiment.init)(root_key(0), batch), batch


def pairs_of(batch):
  return list(zip(*(np.asarray(batch[name]).tolist() for name in ("first", "second", "answer"))))


def test_a_pair_is_learned_or_tested(started):
  _, _, feeds, _, batch = started
  tested = feeds.evaluate.draw(feeds.evaluate.arrays, 0)
  real = np.asarray(tested["mask"]) > 0
  learned, rest = pairs_of(batch), [pair for pair, is_real in zip(pairs_of(tested), real) if is_real]
  assert len(learned) == 24 and len(rest) == 25 and len(tested["mask"]) == 32
  assert sorted(learned + rest) == sorted(pairs_of(modular_table("add", 7)._asdict()))
  for step in (1, 2):
    assert pairs_of(feeds.train.draw(feeds.train.arrays, root_key(5), step)) == learned
  other = grokking.make_feeds(small(split_seed=1)).train
  assert pairs_of(other.arrays) != learned


def by_hand(params, first, second, heads):
  """Every token attends to all of the three in NumPy; the last one's features go on."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  logits = []
  for a, b in zip(first, second):
    x = params["embedding"][[a, b, len(params["embedding"]) - 1]] + params["positions"]
    query, key, value = (x @ params["attention"][name]["kernel"] for name in ("query", "key", "value"))
    size, out = x.shape[1] // heads, []
    for h in range(heads):
      part = slice(h * size, (h + 1) * size)
      scores = np.exp(query[:, part] @ key[:, part].T / np.sqrt(size))
      out.append(scores / scores.sum(1, keepdims=True) @ value[:, part])
    x = x + np.concatenate(out, 1) @ params["attention"]["out"]["kernel"]
    widen, narrow = params["network"]["widen"], params["network"]["narrow"]
    x = x + np.maximum(x @ widen["kernel"] + widen["bias"], 0) @ narrow["kernel"] + narrow["bias"]
    logits.append(x[-1] @ params["head"]["kernel"])
  return np.array(logits)


def test_the_network_is_a_layer_of_a_transformer_without_norms(started):
  config, experiment, _, state, batch = started
  params = jax.tree.map(lambda x: x + 0.1 * jnp.cos(7.0 * jnp.arange(x.size)).reshape(x.shape), state.params)
  model = experiment.model(state)._replace(params=params)
  found = jax.jit(lambda a, b: model(a, b))(batch["first"], batch["second"])
  expected = by_hand(params, np.asarray(batch["first"]), np.asarray(batch["second"]), config.heads)
  np.testing.assert_allclose(found, expected, atol=2e-4)
  assert np.abs(expected - expected.mean(0)).max() > 0.1


def test_an_update_is_along_the_gradient_over_all_that_is_learned(started):
  config, experiment, _, state, batch = started
  module = experiment.model(state).module

  def nats(params):
    logits = module.apply({"params": params}, batch["first"], batch["second"])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["answer"])), logits

  @jax.jit
  def update(params):
    (loss, logits), grads = jax.value_and_grad(nats, has_aux=True)(params)
    optimizer = make_optimizer(config, config.steps)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return loss, jnp.mean(jnp.argmax(logits, -1) == batch["answer"]), optax.apply_updates(params, updates)

  loss, right, expected = update(state.params)
  after, metrics = jax.jit(experiment.step)(state, batch)
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
  np.testing.assert_allclose(metrics["accuracy"], right, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), after.params, expected)


def test_decay_is_of_every_matrix_and_its_flag_counts(started):
  """From the same gradient: what a decay of 1 takes away is rate x parameter."""
  _, _, _, state, batch = started
  rate = 0.01

  def after(decay):
    experiment = grokking.make(small(weight_decay=decay, learning_rate=rate))
    first = experiment.init(root_key(0), batch)
    return experiment.step(first, batch)[0].params

  before, plain, decayed = jax.jit(lambda: (state.params, after(0.0), after(1.0)))()
  for name, expected in (("embedding", before["embedding"]), ("positions", before["positions"])):
    np.testing.assert_allclose(plain[name] - decayed[name], rate * expected, atol=1e-5)
  kernel = lambda params: params["network"]["narrow"]["kernel"]
  np.testing.assert_allclose(kernel(plain) - kernel(decayed), rate * kernel(before), atol=1e-5)
  assert small().weight_decay == 1.0


def test_an_evaluation_is_of_the_others_by_the_averaged_network(started):
  config, experiment, feeds, state, _ = started
  slow = jax.tree.map(lambda x: x + 0.3 * jnp.sin(9.0 * x), state.params)
  is_lookahead = lambda node: isinstance(node, LookaheadState)
  put = lambda node: node._replace(slow=slow) if is_lookahead(node) else node
  state = state._replace(opt_state=jax.tree.map(put, state.opt_state, is_leaf=is_lookahead))
  batch = feeds.evaluate.draw(feeds.evaluate.arrays, 0)
  logits = by_hand(slow, np.asarray(batch["first"]), np.asarray(batch["second"]), config.heads)[:25]
  answer = np.asarray(batch["answer"])[:25]
  nats = np.log(np.exp(logits).sum(1)) - logits[np.arange(25), answer]
  found = jax.jit(experiment.evaluate)(state, batch)
  assert found["loss"].count == found["accuracy"].count == 25
  np.testing.assert_allclose(found["loss"].total, nats.sum(), rtol=1e-4)
  assert found["accuracy"].total == np.sum(logits.argmax(1) == answer)
  assert 1 <= found["key_frequencies"].total / 25 <= 3


def planted(operation):
  """A network of no parameters that gives what a + b turns into on a circle; an embedding of that frequency alone."""
  config = small(operation=operation)
  pairs = grokking.make_pairs(config)
  order = grokking.group_order(operation, 7)
  size = len(order)
  place = np.zeros(7, int)
  place[order] = np.arange(size)
  angle = 2 * np.pi * 2 * (pairs.table.place[:, None] - place[None]) / size
  embedding = np.zeros((8, 2), np.float32)
  wave = 2 * np.pi * 2 * np.arange(size) / size
  embedding[order] = np.stack([np.cos(wave), np.sin(wave)], 1)
  logits = jnp.asarray(9 * np.cos(angle), jnp.float32)

  class Planted:
    def apply(self, variables, first, second):
      return logits

  return config, Planted(), {"embedding": jnp.asarray(embedding)}, pairs, np.asarray(logits, np.float64)


@pytest.mark.parametrize("operation", ["add", "multiply"])
def test_waves_of_a_planted_network(operation):
  config, module, params, pairs, logits = planted(operation)
  found = grokking.compute_waves(config, module, params, pairs)
  assert found["key_frequencies"] == 1 and found["energy_of_five"] == pytest.approx(1)
  answer = pairs.table.answer
  nats = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), answer]
  assert found["loss_of_all"] == pytest.approx(nats.mean(), rel=1e-4)
  # The waves are all there is: with nothing else the same, without them nothing is known.
  assert found["restricted_loss"] == pytest.approx(nats.mean(), rel=1e-3)
  assert found["excluded_loss"] == pytest.approx(np.log(7), rel=1e-3)


def write_metrics(path, lines):
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_curves_are_those_of_the_run_or_of_its_seed(tmp_path):
  write_metrics(
    tmp_path / "metrics.jsonl",
    [
      {"step": 1, "train/accuracy": 0.5, "train/accuracy/seeds": [0.4, 0.6], "train/loss": 1.0},
      {"step": 2, "train/accuracy": 0.995, "train/accuracy/seeds": [None, 1.0], "eval/accuracy": 0.2},
      {"step": 3, "eval/accuracy": 0.99, "eval/accuracy/seeds": [0.98, 1.0], "train/accuracy": 1.0},
    ],
  )
  alone = grokking.read_accuracy(small(), tmp_path)
  np.testing.assert_array_equal(alone["train/accuracy"].step, [1, 2, 3])
  np.testing.assert_array_equal(alone["eval/accuracy"].value, [0.2, 0.99])
  assert len(alone["eval/loss"].step) == 0
  assert grokking.when_known(alone) == {"memorised_after": 2, "understood_after": 3}
  first, second = (grokking.read_accuracy(small(seed=4, seeds=2), tmp_path / f"seed_{i}") for i in (4, 5))
  np.testing.assert_array_equal(first["train/accuracy"].value, [0.4])
  assert grokking.when_known(first) == {}
  assert grokking.when_known(second) == {"memorised_after": 2, "understood_after": 3}


def test_a_report_has_pictures_and_figures(started, tmp_path):
  _, experiment, _, state, _ = started
  write_metrics(
    tmp_path / "metrics.jsonl",
    [
      {"step": step, "train/accuracy": step / 2, "train/loss": 1 / step, "eval/accuracy": 0.1, "eval/loss": 2.0}
      for step in (1, 2)
    ],
  )
  found = experiment.report(state, tmp_path)
  assert found["memorised_after"] == 2 and "understood_after" not in found
  energy = np.asarray(frequency_energy(state.params["embedding"][:7]))[1:]
  fewest = next(n for n in range(1, 4) if np.sort(energy)[-n:].sum() >= 0.9 * energy.sum())
  assert found["key_frequencies"] == fewest
  for name in ("grokking.png", "frequencies.png"):
    assert (tmp_path / name).stat().st_size > 5000


def test_flags_reach_the_table_and_the_network():
  module = grokking.build_module(small(width=12, heads=3, hidden=0))
  assert (module.prime, module.width, module.heads, module.hidden) == (7, 12, 3, 48)
  assert grokking.build_module(small()).hidden == 12
  for operation, count in (("add", 49), ("divide", 36)):
    pairs = grokking.make_pairs(small(operation=operation))
    assert len(pairs.learned) + len(pairs.tested) == count
    assert (
      len(pairs.learned)
      == small(operation=operation).units_per_update
      == grokking.count_learned(small(operation=operation))
    )
  assert grokking.count_learned(small(share=0.99)) == 48 and grokking.count_learned(small(share=0.01)) == 8
  published = grokking.Config(prime=113, share=0.3)
  assert abs(grokking.count_learned(published) / 113**2 - 0.3) < 1e-3


@pytest.mark.parametrize("flags, words", [
  (dict(prime=9), "--prime"), (dict(prime=3), "--prime"), (dict(prime=2053), "--prime"), (dict(share=1.0), "--share"),
  (dict(share=0.0), "--share"), (dict(heads=3), "--heads"), (dict(hidden=-1), "--hidden"), (dict(width=0), "--width"),
  (dict(split_seed=-1), "--split_seed"),
])  # fmt: skip
def test_what_does_not_fit_is_one_sentence(flags, words):
  with pytest.raises(InputError, match=words):
    small(**flags)
