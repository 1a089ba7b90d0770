"""Pretraining: flags reach the model and the loss, windows and documents, what is written, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.lm import _objectives, _text, pretrain
from experiments.lm._models import build_decoder
from mlnotes.data.flags import load_data
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import Mean, root_key
from mlnotes.lm import Objective
from mlnotes.optim.flags import make_optimizer

SIZES = dict(depth=1, width=8, heads=2, length=6, batch_size=4, steps=4, warmup_steps=0, log_every=2, eval_every=0)


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
  path = tmp_path_factory.mktemp("text") / "lines.txt"
  path.write_text("\n".join(f"{i} and {i * i}" for i in range(30)))
  return str(path)


def start(**flags):
  config = pretrain.Config(**{**SIZES, **flags})
  experiment, feeds = pretrain.make(config), pretrain.make_feeds(config)
  batch = feeds.train.draw(feeds.train.arrays, root_key(0), 0)
  return config, experiment, feeds, jax.jit(experiment.init)(root_key(0), batch), batch


@pytest.fixture(scope="module")
def plain(lines):
  return start(dataset=lines, documents="line")


def test_an_update_is_a_step_along_the_mean_nats_of_the_next_tokens(plain):
  config, experiment, _, state, batch = plain
  after, metrics = jax.jit(experiment.step)(state, batch)
  module = experiment.model(state).module

  def nats(params):
    logits = module.apply({"params": params}, batch["tokens"][:, :-1])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["tokens"][:, 1:]))

  loss, grads = jax.jit(jax.value_and_grad(nats))(state.params)
  optimizer = make_optimizer(config, config.steps)
  updates, _ = optimizer.update(grads, optimizer.init(state.params), state.params)
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
  np.testing.assert_allclose(metrics["grad_norm"], optax.global_norm(grads), rtol=1e-4)
  expected = optax.apply_updates(state.params, updates)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), after.params, expected)


def test_parts_of_a_batch_and_of_the_head_change_nothing(plain, lines):
  _, experiment, _, state, batch = plain
  whole = jax.jit(experiment.step)(state, batch)
  parts = start(dataset=lines, documents="line", accumulate=2, head_chunks=3)[1]
  found = jax.jit(parts.step)(state, batch)
  for a, b in zip(jax.tree.leaves((whole[0].params, whole[1])), jax.tree.leaves((found[0].params, found[1]))):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)


def test_the_evaluation_is_over_all_windows_of_the_test_text(plain):
  """Batches and what fills up the last one change nothing."""
  config, experiment, feeds, state, _ = plain
  corpus, model = load_data(config), experiment.model(state)
  total = count = 0.0
  for i in range(feeds.evaluate.num_batches):
    found = jax.jit(experiment.evaluate)(state, feeds.evaluate.draw(feeds.evaluate.arrays, i))["loss"]
    total, count = total + float(found.total), count + float(found.count)
  tokens = corpus.test.arrays["tokens"]
  assert count == config.length * ((len(tokens) - 1) // config.length)
  windows = jnp.stack([jnp.asarray(tokens[i : i + 7], jnp.int32) for i in range(0, int(count), 6)])
  nats = optax.softmax_cross_entropy_with_integer_labels(model(windows[:, :-1]), windows[:, 1:])
  np.testing.assert_allclose(total / count, nats.mean(), rtol=1e-5)
  losses = _text.window_losses(corpus, model)
  np.testing.assert_allclose(losses, np.asarray(nats).reshape(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("at_once", [5, 1000])
def test_windows_are_read_in_any_number(plain, monkeypatch, at_once):
  config, experiment, _, state, _ = plain
  expected = _text.window_losses(load_data(config), experiment.model(state))
  monkeypatch.setattr(_text, "_AT_ONCE", at_once)
  np.testing.assert_allclose(_text.window_losses(load_data(config), experiment.model(state)), expected, rtol=1e-5)


def test_packed_documents_do_not_see_each_other(lines):
  """What stands before <end> reaches nothing behind it."""
  config, experiment, _, state, _ = start(dataset=lines, documents="line", packed=True)
  end = load_data(config).end
  tokens = jnp.array([[3, 4, end, 5, 6, 7], [8, 9, end, 5, 6, 7]])
  model = experiment.model(state)
  logits = model(tokens)
  np.testing.assert_allclose(logits[0, 2:], logits[1, 2:], atol=1e-6)
  alone = model(tokens[:1, 2:])
  np.testing.assert_allclose(logits[0, 2:], alone[0], atol=1e-5)
  assert np.abs(model._replace(end=None)(tokens)[0, 2:] - alone[0]).max() > 1e-6
  rows = jnp.concatenate([tokens, tokens[:, :1]], 1)
  objective = _objectives.causal(config, load_data(config)).objective
  found = objective.terms(state.params, {"tokens": rows}, None)["loss"]
  nats = optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:])
  np.testing.assert_allclose(found.total, nats.sum(1), rtol=1e-5)


def test_text_is_written_in_stretches_of_half_a_window(plain, monkeypatch):
  """Each reads the last half window of its row, whatever the other rows are; rows that met the end stay."""
  _, experiment, _, state, _ = plain
  model, seen = experiment.model(state), []

  def next_numbers(module, variables, tokens, lengths, keys, count, sampling, end):
    seen.append((tokens.shape, count))
    last = jnp.take_along_axis(tokens, lengths[:, None] - 1, 1)
    return type("Found", (), {"tokens": (last + 1 + jnp.arange(count)[None]) % 10})

  monkeypatch.setattr(_text, "generate", next_numbers)
  found = _text.write_tokens(model, [[1, 2, 3], [7]], 7, end=2)
  assert found == [[4, 5, 6, 7, 8, 9, 0], [8, 9, 0, 1, 2]]
  assert seen == [((2, 3), 3)]  # compiled once
  assert _text.write_tokens(model, [[1, 2, 3, 4, 5, 6], [7]], 3) == [[7, 8, 9], [8, 9, 0]]
  assert seen[1:] == [((1, 3), 3), ((1, 5), 1), ((2, 3), 3)]  # a long prompt is read whole
  del seen[:]
  wide = model._replace(module=model.module.clone(length=2**17))
  assert _text.write_tokens(wide, [[1, 2, 3], [7] * 200], 2, end=-1) == [[4, 5], [8, 9]]
  assert seen == [((1, 64), 2), ((1, 256), 2)]  # what is asked for, not half of a long window
  with_documents = model._replace(end=0)
  assert _text.write_tokens(with_documents, [[8]], 4) == [[9, 0, 1, 2]]
  assert _text._last_document([4, 0, 5, 0, 6, 7], 0) == [0, 6, 7]


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_written_text_does_not_depend_on_the_rows_beside_it(model, lines):
  _, experiment, _, state, _ = start(dataset=lines, model=model)
  trained = experiment.model(state)
  together = _text.write_tokens(trained, [[1, 2, 3, 4], [5]], 8, seed=3)
  assert [len(row) for row in together] == [8, 8]
  assert _text.write_tokens(trained, [[1, 2, 3, 4]], 8, seed=3) == together[:1]


def test_the_report_has_floors_a_sample_and_a_picture(plain, tmp_path):
  _, experiment, _, state, _ = plain
  found = experiment.report(state, tmp_path)
  assert {"unigram", "bigram", "5_gram", "parameters"} <= set(found)
  assert found["parameters"] == sum(x.size for x in jax.tree.leaves(state.params))
  assert (tmp_path / "text.png").stat().st_size > 5000 and (tmp_path / "sample.txt").stat().st_size > 300


def test_flags_reach_the_model():
  build = lambda **flags: build_decoder(pretrain.Config(**{**SIZES, **flags}), 11)
  model = build(
    depth=2, heads=4, kv_heads=2, width=16, hidden=24, dropout=0.25, attention_dropout=0.5, tied=False, remat=True
  )
  body = model.transformer
  assert (body.depth, body.heads, body.kv_heads, body.hidden, body.activation) == (2, 4, 2, 24, "swiglu")
  assert body.rotary_base == 10000.0 and body.remat and not model.tied and model.dropout == body.dropout == 0.25
  assert body.attention_dropout == 0.5
  model = build(model="gpt2", precision="bfloat16", attention_dropout=0.5)
  assert model.position == "learned" and model.length == 6 and model.transformer.activation == "gelu"
  assert model.transformer.attention_dropout == 0.5
  assert model.dtype == model.transformer.dtype == jnp.bfloat16
  experts = build(experts=3, experts_per_token=1, capacity_factor=1.5).transformer.make_feed_forward(0)
  assert (experts.experts, experts.k, experts.capacity_factor) == (3, 1, 1.5)
  assert build(experts=3).transformer.make_feed_forward(0).capacity_factor is None


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_a_text_is_read_by_what_is_not_padding(objective, lines):
  """As the head reads it, and every real token sees what its model's mask shows."""
  config, _, _, state, _ = start(dataset=lines, objective=objective)
  task = _objectives.OBJECTIVES[objective](config, load_data(config))
  tokens, lengths = jnp.array([[3, 4, 5, 0, 0], [3, 4, 5, 6, 7]]), jnp.array([3, 5])
  found = task.read(state.params, tokens, lengths, None)
  other = task.read(state.params, tokens.at[0, 3:].set(8), lengths, None)
  np.testing.assert_allclose(found[0, :3], other[0, :3], atol=1e-6)
  later = task.read(state.params, tokens.at[1, 4].set(8), lengths, None)
  assert (np.abs(later[1, :4] - found[1, :4]).max() > 1e-6) == (objective == "masked")


def test_weights_of_several_terms_are_read_from_the_state(monkeypatch, lines):
  """Of an objective that is plugged in: the state's numbers weigh, and what is corrupted goes by the key."""

  def two_terms(config, corpus):
    def terms(params, examples, key):
      ones = jnp.ones(len(examples["tokens"]))
      return {"first": Mean(ones * params["w"], ones), "second": Mean(3 * ones * params["w"], ones)}

    prepare = lambda key, tokens: {"tokens": tokens, "drawn": jax.random.uniform(key)}
    objective = Objective(lambda key, examples: {"w": jnp.ones(())}, prepare, terms, {"first": 1.0, "second": 2.0})
    return _objectives.Task(objective, lambda params: params, lambda params, directory: {}, None)

  monkeypatch.setitem(_objectives.OBJECTIVES, "causal", two_terms)
  _, experiment, _, state, batch = start(dataset=lines)
  assert set(state.hparams) == {"first_weight", "second_weight"}
  _, metrics = jax.jit(experiment.step)(state, batch)
  assert metrics["objective"] == metrics["loss"] == 7 and metrics["second"] == 3
  heavier = state._replace(hparams={**state.hparams, "second_weight": jnp.float32(4)})
  assert jax.jit(experiment.step)(heavier, batch)[1]["objective"] == 13


@pytest.mark.parametrize("flags, words", [
  (dict(heads=3), "--heads"),
  (dict(width=6, heads=2), "into even numbers"),
  (dict(kv_heads=3), "--kv_heads"),
  (dict(dropout=1.0), "--dropout"),
  (dict(attention_dropout=1.0), "--attention_dropout"),
  (dict(experts=2, experts_per_token=3), "--experts_per_token"),
  (dict(accumulate=3), "--accumulate"),
  (dict(accumulate=2, head_chunks=5), "head_chunks=5 is out of range: expected a divisor of the 12 tokens"),
  (dict(packed=True, end_token=False), "--packed"),
  (dict(depth=0), "--depth"),
])  # fmt: skip
def test_what_does_not_fit_is_one_sentence(flags, words):
  with pytest.raises(InputError, match=words):
    pretrain.Config(**{**SIZES, **flags})


def test_flags_that_do_nothing_say_so():
  idle = lambda **flags: set(pretrain.Config(**{**SIZES, **flags}).idle_flags())
  assert {"experts_per_token", "capacity_factor"} <= idle() and "kv_heads" not in idle()
  assert "kv_heads" in idle(model="gpt2") and "experts_per_token" not in idle(experts=2)
