"""What --objective names: what is hidden and asked, what the loss is the mean of, and what the report shows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.lm import _objectives, pretrain
from experiments.lm._corruption import add_ids
from mlnotes.data.flags import load_data
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key, stream_key
from mlnotes.lm.encoder_objectives import UNILM_SHARES

SIZES = dict(depth=1, width=8, heads=2, length=12, batch_size=4, steps=4, warmup_steps=0, log_every=2, eval_every=0)
OBJECTIVES = [name for name in _objectives.OBJECTIVES if name != "causal"]


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
  path = tmp_path_factory.mktemp("text") / "lines.txt"
  path.write_text("\n".join(f"{i} and {i * i}" for i in range(30)))
  return str(path)


def start(**flags):
  config = pretrain.Config(**{**SIZES, "documents": "line", **flags})
  experiment, feeds = pretrain.make(config), pretrain.make_feeds(config)
  batch = feeds.train.draw(feeds.train.arrays, root_key(0), 0)
  return config, experiment, feeds, jax.jit(experiment.init)(root_key(0), batch), batch


def examples_of(config, batch):
  task = _objectives.OBJECTIVES[config.objective](config, load_data(config))
  keys = jax.random.split(jax.random.key(1), len(batch["tokens"]))
  return task.objective, jax.vmap(task.objective.prepare)(keys, batch["tokens"])


def nats_of(logits, targets, weights):
  nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  return jnp.sum(nats * weights, 1)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_updates_evaluation_and_report(name, lines, tmp_path):
  """Parts of a batch weigh by what they ask; an evaluation corrupts the same way whatever the state's key."""
  config, experiment, feeds, state, batch = start(dataset=lines, objective=name, accumulate=2)
  objective = _objectives.OBJECTIVES[name](config, load_data(config)).objective
  keys = jax.random.split(stream_key(state.key, "prepare", state.step), len(batch["tokens"]))
  terms = jax.jit(lambda params, keys, tokens: objective.terms(params, jax.vmap(objective.prepare)(keys, tokens), None))
  found = terms(state.params, keys, batch["tokens"])
  after, metrics = jax.jit(experiment.step)(state, batch)
  for term in found:
    np.testing.assert_allclose(metrics[term], found[term].total.sum() / max(found[term].count.sum(), 1), rtol=1e-4)
  given = feeds.evaluate.draw(feeds.evaluate.arrays, 0)
  evaluate = jax.jit(experiment.evaluate)
  first, second = evaluate(after, given), evaluate(after._replace(key=root_key(5), step=state.step), given)
  jax.tree.map(np.testing.assert_array_equal, first, second)
  assert first["loss"].count > 0 and np.isfinite(first["loss"].total)
  assert experiment.report(after, tmp_path)["parameters"] > 0
  shown = (tmp_path / "filled.txt").read_text()
  assert shown.count("stood ") == min(8, len(load_data(config).test))


def test_masked_words_are_said_from_both_sides(lines):
  config, experiment, _, state, batch = start(dataset=lines, objective="masked", mask_rate=0.5)
  objective, examples = examples_of(config, batch)
  ids, corpus = add_ids(load_data(config)), load_data(config)
  end = corpus.tokenizer.special["<end>"]
  assert not np.any((examples.targets == end) & (examples.weights > 0)) and np.any(examples.targets == end)
  assert np.all(examples.targets < corpus.vocab_size) and np.any(examples.inputs == ids.vocabulary.mask)
  model = experiment.model(state)
  found = objective.terms(state.params, examples, None)["loss"]
  np.testing.assert_allclose(found.total, nats_of(model(examples.inputs), *examples[1:]), rtol=1e-5)
  np.testing.assert_array_equal(found.count, examples.weights.sum(1))
  changed = examples.inputs.at[:, -1].set((examples.inputs[:, -1] + 1) % corpus.vocab_size)
  assert np.abs(model(changed) - model(examples.inputs))[:, 0].max() > 1e-7


def test_packed_masked_documents_do_not_see_each_other(lines):
  config, _, _, state, batch = start(dataset=lines, objective="masked", packed=True, mask_rate=0.5)
  objective, examples = examples_of(config, batch)
  end = load_data(config).tokenizer.special["<end>"]
  row = jnp.array([[3, 4, 5, end, 6, 7, 3, 4, 5, 6, 7, 8], [8, 9, 4, end, 6, 7, 3, 4, 5, 6, 7, 8]])
  weights = (jnp.arange(12) >= 3)[None] * jnp.ones((2, 1))
  totals = objective.terms(state.params, examples._replace(inputs=row, targets=row, weights=weights), None)[
    "loss"
  ].total
  np.testing.assert_allclose(*totals, rtol=1e-6)
  backward = 1 - weights
  totals = objective.terms(state.params, examples._replace(inputs=row, targets=row, weights=backward), None)
  assert abs(float(totals["loss"].total[0] - totals["loss"].total[1])) > 1e-4


def prepared(lines, name, **flags):
  """(config, objective, examples of a batch, parameters), without an experiment around them."""
  config = pretrain.Config(**{**SIZES, "documents": "line", "dataset": lines, "objective": name, **flags})
  corpus = load_data(config)
  tokens = jnp.asarray(corpus.train.arrays["tokens"][: 4 * 13]).astype(jnp.int32).reshape(4, 13)
  objective, examples = examples_of(config, {"tokens": tokens})
  return config, objective, examples, jax.jit(objective.init)(jax.random.key(0), examples), tokens


def test_a_row_read_forward_or_backward_sees_one_side(lines):
  _, objective, (masked, reading), params, _ = prepared(lines, "prefix", mask_rate=0.5)
  of_kind = lambda kind: jnp.full_like(reading.kind, kind)
  place = jnp.broadcast_to(jnp.arange(12), (4, 12))

  @jax.jit
  def totals(inputs, weights, order, kind):
    mask = reading.mask.replace(key_order=order, query_order=order)
    given = masked._replace(inputs=inputs, weights=weights), reading._replace(mask=mask, kind=kind)
    return objective.terms(params, given, None)

  ones = jnp.ones((4, 12))
  other = masked.inputs.at[:, 6].set((masked.inputs[:, 6] + 1) % 5)
  for order, same, kind in ((place, place < 6, "forward"), (11 - place, place > 6, "backward")):
    number = of_kind(list(UNILM_SHARES).index(kind))
    found = totals(masked.inputs, ones * same, order, number)
    again = totals(other, ones * same, order, number)["loss"].total
    np.testing.assert_allclose(found["loss"].total, again, rtol=1e-6)
    np.testing.assert_array_equal(found[f"{kind}_loss"].total, found["loss"].total)
    assert np.all(found["bidirectional_loss"].count == 0)
  free = totals(masked.inputs, ones * (place < 6), 0 * place, of_kind(0))["loss"].total
  assert np.all(free != totals(other, ones * (place < 6), 0 * place, of_kind(0))["loss"].total)


@pytest.mark.parametrize("flags, words", [
  (dict(objective="masked", mask_rate=0.0), "--mask_rate"),
  (dict(objective="masked", random_share=0.3), "--random_share"),
  (dict(objective="masked", length=1), "--length"),
  (dict(objective="prefix", packed=True), "--packed"),
])  # fmt: skip
def test_what_does_not_fit_is_one_sentence(flags, words):
  with pytest.raises(InputError, match=words):
    pretrain.Config(**{**SIZES, **flags})


def test_flags_that_do_nothing_say_so():
  idle = lambda **flags: set(pretrain.Config(**{**SIZES, **flags}).idle_flags())
  assert {"mask_rate", "mask_share", "random_share"} <= idle()
  assert not {"mask_rate", "mask_share", "random_share"} & idle(objective="masked")
