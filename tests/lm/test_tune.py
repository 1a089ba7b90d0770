"""Tuning: what each method moves, what is measured, what rows are made of, flags, stages, what is left behind."""

import dataclasses
import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlnotes
from experiments.lm import _tuning_network, _tuning_tasks, pretrain, tune
from experiments.lm._tuning import METHODS, build_tuning, find_targets, layer_outputs
from experiments.lm._tuning_floors import measure_floors
from experiments.lm._tuning_report import _report_sentences
from mlnotes.attention.mask import Mask
from mlnotes.engine.checkpoint import Checkpoints
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import example_keys, root_key
from mlnotes.engine.program import Window
from mlnotes.engine.record import config_dict
from mlnotes.lm import SpanLogits, insert_adapters
from mlnotes.lm.trainable import combine, count_bytes, count_parameters, flatten, unflatten

LENGTH = 24
NETWORK = dict(model="gpt2", tied=False, depth=2, width=8, heads=2, length=LENGTH)
SMALL = dict(
  task="shift", method="lora", batch_size=4, steps=4, learning_rate=0.1, weight_decay=0.1, schedule="constant",
  warmup_steps=0, log_every=2, eval_every=0, train_rows=40, test_rows=12, adapter_width=3, lora_alpha=32.0,
  tensorboard=False, devices=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory):
  path = tmp_path_factory.mktemp("text") / "lines.txt"
  path.write_text("\n".join(f"Number {i} and Square {i * i}, Tom says it" for i in range(120)))
  return str(path)


@pytest.fixture(scope="module")
def pretrained(text, tmp_path_factory):
  """A run that was never trained: its head is apart from its embedding, and nothing of it is 0 or 1."""
  directory = tmp_path_factory.mktemp("run")
  config = pretrain.Config(objective="masked", dataset=text, batch_size=4, devices=1, **NETWORK)
  experiment, feeds = pretrain.make(config), pretrain.make_feeds(config)
  batch = feeds.train.draw(feeds.train.arrays, root_key(0), 0)
  state = jax.eval_shape(experiment.init, root_key(0), batch)
  metrics = jax.eval_shape(experiment.step, state, batch)[1]
  numbers = np.random.default_rng(0)
  drawn = jax.tree.map(lambda x: jnp.asarray(0.4 * numbers.normal(size=x.shape), x.dtype), state.params)
  optimizer = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state.opt_state)
  state = state._replace(step=jnp.int32(2), key=root_key(0), params=drawn, opt_state=optimizer)
  (directory / "config.json").write_text(json.dumps({"experiment": "lm.pretrain", "config": config_dict(config)}))
  zeros = {name: jnp.zeros(()) for name in metrics}
  with Checkpoints(directory / "checkpoints") as checkpoints:
    checkpoints.save(2, {"state": state, "window": Window(zeros, zeros)}, {}, None)
    checkpoints.wait()
  return str(directory)


def start(**flags):
  config = tune.Config(**{**SMALL, **flags})
  experiment, feeds = tune.make(config), tune.make_feeds(config)
  batch = jax.jit(lambda: feeds.train.draw(feeds.train.arrays, root_key(0), 0))()
  state = jax.jit(experiment.init)(root_key(3), batch)
  return types.SimpleNamespace(
    config=config, experiment=experiment, feeds=feeds, batch=batch, state=state, step=jax.jit(experiment.step),
    network=tune.load_network(config),
  )  # fmt: skip


@pytest.fixture(scope="module")
def tuned(pretrained):
  """Runs by method after three updates, each with its first state."""
  found = {}

  def get(method):
    if method not in found:
      run = start(pretrained=pretrained, method=method)
      run.after = run.state
      for _ in range(3):
        run.after, run.metrics = run.step(run.after, run.batch)
      found[method] = run
    return found[method]

  return get


def is_trained(method, path):
  """Of the network's parameters, by their names."""
  if path.startswith("head/"):
    return False  # pretraining's: nothing of it is read
  return {
    "full": True,
    "last": path.startswith(("transformer/block1/", "transformer/last_norm/")),
    "bias": path.endswith("/bias"),
    "adapters": "_norm/" in path,
  }.get(method, False)


ADDED = {
  "adapters": {
    f"adapters/transformer/block{i}/{part}/adapter/{side}/{kind}"
    for i in range(2)
    for part in ("attention", "feed_forward")
    for side in ("down", "up")
    for kind in ("kernel", "bias")
  },
  "lora": {
    f"lora/transformer/block{i}/attention/{name}/kernel/lora_{part}"
    for i in range(2)
    for name in ("query", "value")
    for part in "ab"
  },
  "mix": {"mix/scores", "mix/gamma"},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_moves_its_parameters_and_no_bit_of_the_others(method, tuned):
  """With decay, and the optimizer keeps nothing of what stays."""
  run = tuned(method)
  before = flatten(run.network.params)
  expected = {f"network/{path}" for path in before if is_trained(method, path)}
  expected |= ADDED.get(method, set()) | {"head/logits/kernel", "head/logits/bias"}
  trained, after = flatten(run.state.params), flatten(run.after.params)
  assert set(trained) == set(after) == expected
  frozen = flatten(run.after.frozen)
  assert {f"network/{path}" for path in before} == {f"network/{path}" for path in frozen} | {
    path for path in expected if path.startswith("network/")
  }
  for path, x in frozen.items():
    np.testing.assert_array_equal(x, before[path])
  for path in before.keys() - frozen.keys():
    np.testing.assert_array_equal(trained[f"network/{path}"], before[path])
  still = {path for path in expected if np.array_equal(trained[path], after[path])}
  # Keys' biases change no attention; what is not attended to in four rows of one length may stay.
  assert {path for path in still if not re.search("key/bias|embedding", path)} == set()
  # Adam's two moments of each; and a rate, a decay, counts.
  assert 0 < count_parameters(run.state.opt_state) - 2 * count_parameters(run.state.params) < 10


def test_lora_starts_as_the_network_and_ends_as_its_merged_matrices(tuned):
  run, plain = tuned("lora"), tuned("features")
  tuning = build_tuning(run.config, run.network.task)
  read = lambda state: tuning.features(
    tune.Parts(state.params, state.frozen), state.hparams, run.batch["tokens"], run.batch["length"]
  )
  network = lambda params: run.network.task.read(params, run.batch["tokens"], run.batch["length"], None)
  np.testing.assert_array_equal(read(run.state), network(plain.state.frozen))
  merged = dict(flatten(run.after.frozen))
  lora = flatten(run.after.params["lora"])
  for path in list(merged):
    if f"{path}/lora_a" in lora:
      merged[path] = merged[path] + 32 / 4 * np.asarray(lora[f"{path}/lora_a"]) @ np.asarray(lora[f"{path}/lora_b"])
  found = read(run.after)
  np.testing.assert_allclose(found, network(unflatten(merged)), rtol=2e-4, atol=2e-5)
  assert np.abs(found - read(run.state)).max() > 1e-3


def test_alpha_is_read_from_the_state(tuned):
  run = tuned("lora")
  evaluate = jax.jit(run.experiment.evaluate)
  batch = run.feeds.evaluate.draw(run.feeds.evaluate.arrays, 0)
  none = run.after._replace(hparams={"lora_alpha": jnp.float32(0)})
  first = run.state._replace(params={**run.state.params, "head": run.after.params["head"]})
  assert run.after.hparams == {"lora_alpha": 32}
  a, b, c = (evaluate(state, batch)["loss"].total for state in (run.after, none, first))
  np.testing.assert_allclose(b, c, rtol=1e-6)
  assert abs(a - b) > 1e-3


def test_dropout_of_lora_is_in_training_alone(pretrained, tuned):
  run = start(pretrained=pretrained, method="lora", lora_dropout=0.9)
  usual = tuned("lora")
  state = run.state._replace(params=usual.after.params)
  batch = run.feeds.evaluate.draw(run.feeds.evaluate.arrays, 0)
  a, b = (jax.jit(x.experiment.evaluate)(state, batch)["loss"] for x in (run, usual))
  np.testing.assert_allclose(a, b, rtol=1e-6)
  without, dropped = (x.step(state, run.batch)[1]["loss"].total for x in (usual, run))
  assert abs(without - dropped) > 1e-4


@pytest.mark.parametrize("method", ["features", "mix", "lora"])
def test_dropout_of_the_network_is_for_what_learns(method, pretrained):
  """A frozen network is read as it is; the head drops what it is given."""
  run = start(pretrained=pretrained, method=method, dropout=0.5, attention_dropout=0.25)
  tuning = build_tuning(run.config, run.network.task)
  parts = tune.Parts(run.state.params, run.state.frozen)
  given = (parts, run.state.hparams, run.batch["tokens"], run.batch["length"])
  assert run.network.task.read is not None and run.network.config.dropout == 0.5
  assert run.network.config.attention_dropout == 0.25
  same = np.array_equal(tuning.features(*given), tuning.features(*given, root_key(1)))
  assert same == (method != "lora")
  losses = [float(run.step(run.state._replace(step=jnp.int32(i)), run.batch)[1]["loss"].total) for i in range(2)]
  assert losses[0] != losses[1]


def test_an_evaluation_drops_nothing_and_reads_the_slow_weights(pretrained, tuned):
  """Of Lookahead: until its period ends those are the first."""
  run, usual = start(pretrained=pretrained, method="features", dropout=0.5, lookahead=9), tuned("features")
  after, _ = run.step(run.state, run.batch)
  assert np.any(after.params["head"]["logits"]["kernel"] != run.state.params["head"]["logits"]["kernel"])
  batch = run.feeds.evaluate.draw(run.feeds.evaluate.arrays, 0)
  expected = jax.jit(usual.experiment.evaluate)(usual.state, batch)["loss"]
  np.testing.assert_allclose(jax.jit(run.experiment.evaluate)(after, batch)["loss"], expected, rtol=1e-6)


def test_a_head_on_a_frozen_network_is_logistic_regression(pretrained):
  """One step along the closed form's gradient, X^T (p - y) / B."""
  run = start(pretrained=pretrained, method="features", optimizer="sgd", momentum=0.0, weight_decay=0.0, clip_norm=0.0,
              learning_rate=1.0)  # fmt: skip
  hidden = np.asarray(run.network.task.read(run.state.frozen, run.batch["tokens"], run.batch["length"], None))
  sizes = np.asarray(run.batch["length"])
  assert len(set(sizes)) > 1
  x = np.stack([row[:size].mean(0) for row, size in zip(hidden, sizes)]).astype(np.float64)
  head = run.state.params["head"]["logits"]
  odds = np.exp(x @ np.asarray(head["kernel"]) + np.asarray(head["bias"]))
  wrong = odds / odds.sum(1, keepdims=True) - np.eye(2)[np.asarray(run.batch["label"])]
  after, metrics = run.step(run.state, run.batch)
  moved = jax.tree.map(lambda a, b: a - b, head, after.params["head"]["logits"])
  np.testing.assert_allclose(moved["kernel"], x.T @ wrong / len(x), rtol=1e-3, atol=1e-6)
  np.testing.assert_allclose(moved["bias"], wrong.mean(0), rtol=1e-3, atol=1e-6)
  nats = -np.log(np.take_along_axis(odds / odds.sum(1, keepdims=True), np.asarray(run.batch["label"])[:, None], 1))
  np.testing.assert_allclose(metrics["loss"].total / metrics["loss"].count, nats.mean(), rtol=1e-5)


def test_layers_are_mixed_by_softmax_and_gamma(tuned):
  """Against what Flax captures: the embeddings and each block, normalised without parameters."""
  run = tuned("mix")
  tokens, lengths = run.batch["tokens"], run.batch["length"]
  params = run.network.params
  module = run.network.task.model(params).module
  _, caught = module.apply(
    {"params": params}, tokens, Mask.of_self(lengths=lengths), method="hidden", capture_intermediates=True
  )
  found = caught["intermediates"]["transformer"]
  layers = layer_outputs(lambda: run.network.task.read(params, tokens, lengths, None))
  embedded = params["embed"]["embedding"][tokens] + params["positions"]["embedding"][None, : tokens.shape[1]]
  expected = [embedded, found["block0"]["__call__"][0], found["block1"]["__call__"][0]]
  for a, b in zip(layers, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  parts = tune.Parts(run.after.params, run.after.frozen)
  mixed = build_tuning(run.config, run.network.task).features(parts, {}, tokens, lengths)
  norm = lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  weights = np.exp(np.asarray(run.after.params["mix"]["scores"]))
  total = sum(w * norm(np.asarray(x)) for w, x in zip(weights / weights.sum(), expected))
  size = int(lengths[0])
  np.testing.assert_allclose(mixed[0, :size], run.after.params["mix"]["gamma"] * total[0, :size], rtol=5e-3, atol=5e-3)
  assert not np.any(mixed[0, size:])
  assert len(set(np.round(weights, 4))) == 3


# -- penalties, pretraining's loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", ["l2_sp", "fisher"])
def test_a_penalty_is_on_the_way_from_the_pretrained_parameters(penalty, pretrained):
  """By NumPy; its weights are read from the state, and it is in the gradient."""
  plain = dict(optimizer="sgd", momentum=0.0, weight_decay=0.0, clip_norm=0.0)
  weights = dict(penalty_weight=0.3, head_penalty=0.05, fisher_windows=3)
  run = start(pretrained=pretrained, method="last", penalty=penalty, **weights, **plain)
  away = lambda x: 0.1 * jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
  moved = jax.tree.map(lambda x: x + away(x), run.state.params)
  state = run.state._replace(params=moved)
  start_of = flatten(run.state.params["network"])
  weights = flatten(run.state.anchor.importance) if penalty == "fisher" else dict.fromkeys(start_of, 1.0)
  square = sum(np.sum(weights[path] * np.square(x - start_of[path])) for path, x in flatten(moved["network"]).items())
  new = sum(np.sum(np.square(x)) for x in jax.tree.leaves(moved["head"]))
  after, metrics = run.step(state, run.batch)
  np.testing.assert_allclose(metrics["penalty"], 0.15 * square + 0.025 * new, rtol=1e-4)
  heavy = state._replace(hparams={**state.hparams, "penalty_weight": jnp.float32(3)})
  other, metrics = run.step(heavy, run.batch)
  np.testing.assert_allclose(metrics["penalty"], 1.5 * square + 0.025 * new, rtol=1e-4)
  path = "transformer/block1/feed_forward/widen/kernel"
  pull = (flatten(after.params["network"])[path] - flatten(other.params["network"])[path]) / 0.1
  np.testing.assert_allclose(pull, 2.7 * weights[path] * away(start_of[path]), rtol=2e-3, atol=2e-5)


def test_importance_is_of_training_windows_as_many_as_asked_for(pretrained, monkeypatch):
  seen = []
  monkeypatch.setattr(
    _tuning_network, "estimate_fisher", lambda f, params, examples: seen.append(examples) or examples.targets
  )
  config = tune.Config(**{**SMALL, "pretrained": pretrained, "method": "last", "penalty": "fisher"}, fisher_windows=3)
  network = tune.load_network(config)
  found = tune._importance(config, network, build_tuning(config, network.task))
  rows = np.random.default_rng(0).permutation(len(network.corpus.train))[:3]
  np.testing.assert_array_equal(found, network.corpus.train.read(rows)["tokens"][:, :-1])
  assert len(seen) == 1


@pytest.mark.thorough
def test_importance_is_the_mean_square_of_gradients_of_training_windows(pretrained):
  run = start(pretrained=pretrained, method="last", penalty="fisher", fisher_windows=3)
  rows = np.random.default_rng(0).permutation(len(run.network.corpus.train))[:3]
  objective, total = run.network.task.objective, 0
  keys = example_keys(root_key(0), jnp.asarray(rows))
  for key, tokens in zip(keys, run.network.corpus.train.read(rows)["tokens"]):
    one = jax.tree.map(lambda x: x[None], objective.prepare(key, jnp.asarray(tokens)))
    nats = lambda params, one=one: objective.terms(params, one, None)["loss"].total.sum()
    grads = jax.grad(nats)(run.network.params)
    total = total + np.square(flatten(grads)["transformer/block1/attention/query/kernel"]) / 3
  found = flatten(run.state.anchor.importance)
  np.testing.assert_allclose(found["transformer/block1/attention/query/kernel"], total, rtol=1e-3, atol=1e-9)
  assert set(found) == set(flatten(run.state.params["network"]))


def pretraining_evaluation(pretrained, params):
  """By the pretraining experiment itself."""
  config = _tuning_network.network_config(tune.Config(pretrained=pretrained, **SMALL))
  experiment, feeds = pretrain.make(config), pretrain.make_feeds(config)
  state = types.SimpleNamespace(params=params, opt_state=())
  found = [
    experiment.evaluate(state, feeds.evaluate.draw(feeds.evaluate.arrays, i))["loss"]
    for i in range(feeds.evaluate.num_batches)
  ]
  return sum(x.total for x in found) / sum(x.count for x in found)


@pytest.mark.thorough
def test_pretraining_is_measured_again_with_the_tuned_network(pretrained, tuned, tmp_path):
  reports = {method: tuned(method).experiment.report(tuned(method).after, tmp_path) for method in ("full", "adapters")}
  before = pretraining_evaluation(pretrained, tuned("full").network.params)
  for report in reports.values():
    np.testing.assert_allclose(report["pretraining_loss_before"], before, rtol=1e-5)
    assert abs(report["pretraining_loss_after"] - before) > 1e-3
  run = tuned("full")
  whole = combine(run.after.params["network"], run.after.frozen)
  np.testing.assert_allclose(
    reports["full"]["pretraining_loss_after"], pretraining_evaluation(pretrained, whole), rtol=1e-5
  )
  report, run = reports["adapters"], tuned("adapters")
  whole = combine(run.after.params["network"], run.after.frozen)
  with insert_adapters(run.after.params["adapters"]):
    inserted = pretraining_evaluation(pretrained, whole)
  np.testing.assert_allclose(report["pretraining_loss_after"], inserted, rtol=1e-5)
  assert abs(inserted - pretraining_evaluation(pretrained, whole)) > 3e-4  # and the two above agree to 4e-5
  assert report["trained_parameters"] == count_parameters(tuned("adapters").after.params)
  assert report["head_parameters"] == 18 and report["parameters"] == count_parameters(run.network.params)
  assert report["optimizer_bytes"] == count_bytes(tuned("adapters").after.opt_state)
  assert 8 * report["trained_parameters"] <= report["optimizer_bytes"] < 8 * report["trained_parameters"] + 100


def test_what_stays_forgets_nothing(tuned, tmp_path):
  report = tuned("features").experiment.report(tuned("features").after, tmp_path)
  assert report["pretraining_loss_after"] == report["pretraining_loss_before"]
  before = pretraining_evaluation(tuned("features").config.pretrained, tuned("features").network.params)
  np.testing.assert_allclose(report["pretraining_loss_before"], before, rtol=1e-5)
  assert report["optimizer_bytes"] == count_bytes(tuned("features").after.opt_state)
  assert report["trained_parameters"] == report["head_parameters"] == 18


# -- rows and figures --------------------------------------------------------------------------------------------------


def question_of(task, text, **flags):
  config = tune.Config(**{**SMALL, "scratch": True, "dataset": text, "task": task, **NETWORK, **flags})
  return tune.build(config)


@pytest.mark.parametrize("task", ["shift", "follows", "case", "moved"])
def test_each_split_is_made_of_its_own_text(task, text):
  """Every row is found in that text again once its label is undone."""
  network, question = question_of(task, text)
  texts = [
    network.corpus.tokenizer.decode(split.arrays["tokens"]) for split in (network.corpus.train, network.corpus.test)
  ]
  for text, other, split in ((*texts, question.train), (*texts[::-1], question.test)):
    elsewhere = 0
    for i, row in enumerate(split.arrays["tokens"]):
      read = network.corpus.tokenizer.decode(row[: split.arrays["length"][i]])
      for part in undone(task, read, i, split, question):
        assert part in text
        elsewhere += part not in other
    assert elsewhere > len(split) / 3
  assert len(question.train) == 40 and 2 < len(question.test) <= 12
  if "label" in question.train.arrays and task != "case":
    assert question.train.arrays["label"].sum() == 20


def undone(task, read, i, split, question):
  arrays = split.arrays
  if task == "shift":
    words = re.split(r"(\s+)", read)
    if arrays["label"][i] and split is question.test:
      place = 2 * question.place[i]
      words[place], words[place + 2] = words[place + 2], words[place]
    return ["".join(words)] if split is question.test or not arrays["label"][i] else []
  if task == "follows":
    half = len(read) // 2
    return [read] if arrays["label"][i] else [read[:half], read[half:]]
  if task == "case":
    return ["".join(x.upper() if up else x for x, up in zip(read, arrays["label"][i]))]
  first, last = arrays["start"][i], arrays["end"][i] + 1
  return [read[:first], read[first:last], read[last:]]


def test_letters_are_asked_in_lower_case(text):
  network, question = question_of("case", text)
  arrays = question.test.arrays
  read = network.corpus.tokenizer.decode(arrays["tokens"][0])
  assert read == read.lower() and arrays["label"].sum() > 0
  # Of these alone the text has both cases.
  np.testing.assert_array_equal(arrays["weight"][0] > 0, [x in "nst" for x in read])
  assert set(np.unique(arrays["label"][arrays["weight"] == 0])) <= {0}


def test_figures_of_sentences_and_of_tokens_from_known_logits():
  question = None
  logits = jnp.array([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
  found = _tuning_tasks.SENTENCE.judge(question, logits, {"label": jnp.array([0, 0, 1])})
  assert found["accuracy"].total.tolist() == [1, 0, 1] and found["error"].total.tolist() == [0, 1, 0]
  np.testing.assert_allclose(found["loss"].total, np.log1p(np.exp([-2.0, 1.0, -3.0])), rtol=1e-5)
  logits = jnp.array([[[0, 5.0], [0, 5.0], [5.0, 0], [5.0, 0], [0, 9.0]], [[5.0, 0]] * 5])
  label, weight = jnp.array([[1, 0, 1, 0, 1], [1, 0, 0, 0, 0]]), jnp.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0.0]])
  found = _tuning_tasks.TOKEN.judge(question, logits, {"label": label, "weight": weight})
  assert found["accuracy"].total.tolist() == [2, 1] and found["accuracy"].count.tolist() == [4, 2]
  # One capital is found, one is missed in each row, one is none.
  total = lambda name: [float(jnp.sum(x)) for x in found[name]]
  assert total("f1") == [2, 2 + 3] and total("error") == [3, 6]
  small, large = np.log1p(np.exp(-5.0)), np.log1p(np.exp(5.0))
  np.testing.assert_allclose(found["loss"].total, [2 * small + 2 * large, small + large], rtol=1e-5)


def test_figures_of_spans_from_known_logits():
  question = types.SimpleNamespace(longest=4)
  peak = lambda *places: 9.0 * jnp.eye(8)[jnp.array(places)]
  logits = SpanLogits(peak(2, 2, 0, 5), peak(4, 4, 1, 7))
  batch = {"start": jnp.array([2, 3, 6, 4]), "end": jnp.array([4, 5, 7, 7])}
  found = {name: mean.total.tolist() for name, mean in _tuning_tasks.SPAN.judge(question, logits, batch).items()}
  assert found["exact"] == [1, 0, 0, 0]
  np.testing.assert_allclose(found["f1"], [1, 2 * 2 / 6, 0, 2 * 3 / 7], rtol=1e-6)
  assert found["start_accuracy"] == [1, 0, 0, 0] and found["end_accuracy"] == [1, 0, 0, 1]
  assert found["loss"][0] < 0.01 < 4 < found["loss"][3] < 9


def test_rows_that_fill_up_the_last_batch_count_nothing(tuned):
  run = tuned("bias")
  batch = run.feeds.evaluate.draw(run.feeds.evaluate.arrays, 0)
  evaluate = jax.jit(run.experiment.evaluate)
  some = {**batch, "mask": jnp.array([1, 0, 1, 1])}
  other = {**some, "label": batch["label"].at[1].set(1 - batch["label"][1])}
  a, b = evaluate(run.after, some), evaluate(run.after, other)
  jax.tree.map(np.testing.assert_array_equal, a, b)
  assert a["loss"].count == 3


@pytest.mark.parametrize("method", ["full", "adapters", "mix"])
def test_padding_changes_nothing(method, tuned):
  run = tuned(method)
  batch = run.feeds.evaluate.draw(run.feeds.evaluate.arrays, 0)
  behind = jnp.arange(LENGTH)[None] >= batch["length"][:, None]
  assert jnp.any(behind)
  other = {**batch, "tokens": jnp.where(behind, 5, batch["tokens"])}
  evaluate = jax.jit(run.experiment.evaluate)
  np.testing.assert_allclose(evaluate(run.after, batch)["loss"], evaluate(run.after, other)["loss"], rtol=1e-6)


# -- flags and stages --------------------------------------------------------------------------------------------------


def test_flags_reach_what_they_name(text, monkeypatch):
  pooled = []
  monkeypatch.setattr(_tuning_tasks, "SentenceHead", lambda *args: pooled.append(args) or _Head(*args))
  given = dict(scratch=True, dataset=text, method="features", **NETWORK)
  steps, make = [], tune.make_optimizer
  monkeypatch.setattr(tune, "make_optimizer", lambda config, total: steps.append(total) or make(config, total))
  for flags in ({}, dict(objective="causal"), dict(pooling="max", head_layer=True, dropout=0.25)):
    tune.make(tune.Config(**{**SMALL, **given, **flags}))
  assert steps == [4, 4, 4]  # the schedule's
  mixed = {**SMALL, "method": "mix"}
  mixer = lambda norm: build_tuning(tune.Config(**mixed, mix_norm=norm), types.SimpleNamespace(part="")).mixer
  assert mixer(True).norm and not mixer(False).norm
  assert [args[:4] for args in pooled] == [(2, "mean", False, 0.0), (2, "last", False, 0.0), (2, "max", True, 0.25)]
  assert find_targets("query,out") == r"(^|/)(query|out)/kernel$" and find_targets("block0/.*/out") == "block0/.*/out"


_Head = _tuning_tasks.SentenceHead


def test_rank_targets_and_widths_are_those_of_the_flags(pretrained):
  run = start(pretrained=pretrained, method="lora", lora_rank=2, lora_targets="block1.*(key|narrow)/kernel")
  shapes = {path: x.shape for path, x in flatten(run.state.params["lora"]).items()}
  place = "transformer/block1/attention/key/kernel"
  assert len(shapes) == 4 and shapes[f"{place}/lora_a"] == (8, 2)
  run = start(pretrained=pretrained, method="adapters", adapter_width=5)
  assert run.state.params["adapters"]["transformer"]["block0"]["attention"]["adapter"]["up"]["kernel"].shape == (5, 8)
  assert len(flatten(start(pretrained=pretrained, method="last", last_layers=2).state.params["network"])) == 34


def test_a_network_from_scratch_is_the_same_one_and_has_read_nothing(pretrained, tuned):
  """As many parameters, drawn by the key, the same rows."""
  run, usual = start(pretrained=pretrained, method="features", scratch=True), tuned("features")
  assert run.network.params is None
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.shape, b.shape), run.state.frozen, usual.state.frozen)
  kernel = lambda state: state.frozen["transformer"]["block0"]["attention"]["query"]["kernel"]
  other = jax.jit(run.experiment.init)(root_key(4), run.batch)
  assert not np.allclose(kernel(run.state), kernel(usual.state)) and not np.allclose(kernel(run.state), kernel(other))
  same = jax.jit(usual.experiment.init)(root_key(4), usual.batch)
  np.testing.assert_array_equal(kernel(same), kernel(usual.state))
  jax.tree.map(np.testing.assert_array_equal, run.batch, usual.batch)


def test_the_first_stage_is_a_pretraining_with_the_flags_given(monkeypatch, text):
  asked, trained = [], []
  find = lambda flag, given, module, workdir, **settings: asked.append((flag, module, settings)) or workdir / "first"
  monkeypatch.setattr(_tuning_network, "find_stage", find)
  monkeypatch.setattr(tune, "make", lambda config: None)
  monkeypatch.setattr(tune, "make_feeds", lambda config: None)
  monkeypatch.setattr(tune, "train", lambda experiment, feeds, config, **more: trained.append((config, more)) or 0)
  config = tune.Config(**{**SMALL, **NETWORK, "dataset": text, "objective": "prefix", "pretrain_steps": 7, "seed": 5,
                          "dropout": 0.3, "workdir": "w"})  # fmt: skip
  assert tune.main(config) == 0
  ((flag, module, settings),) = asked
  stage = pretrain.Config(**settings)
  assert flag == "pretrained" and module is pretrain
  assert (stage.objective, stage.dataset, stage.steps, stage.seed, stage.dropout) == ("prefix", text, 7, 5, 0.0)
  assert all(getattr(stage, name) == value for name, value in NETWORK.items())
  assert stage.batch_size == pretrain.Config().batch_size and stage.learning_rate == 1e-3
  assert trained[0][0].pretrained == "w/first" and trained[0][1]["best_metric"] == "accuracy"
  tune.main(dataclasses.replace(config, scratch=True))
  tune.main(dataclasses.replace(config, pretrained="elsewhere", task="moved"))
  assert len(asked) == 1 and trained[1][0].pretrained == ""
  assert trained[2][1] == {"best_metric": "exact", "best_mode": "max"}


@pytest.mark.parametrize("flags, words", [
  (dict(task="file", labelled="absent.tsv"), "--labelled=absent.tsv: no such file"),
  (dict(method="lora", lora_rank=9), "does not fit the network of the flags: rank is 9"),
  (dict(penalty="fisher", method="last", last_layers=5), "--last_layers=5 does not fit"),
])  # fmt: skip
def test_what_does_not_fit_is_said_before_a_network_is_trained(flags, words, monkeypatch, text):
  monkeypatch.setattr(_tuning_network, "find_stage", lambda *given, **settings: pytest.fail("trained"))
  with pytest.raises(InputError, match=words):
    tune.main(tune.Config(**{**SMALL, **NETWORK, "dataset": text, **flags}))


def test_the_seed_and_the_checkpoint_of_the_run_are_chosen(pretrained, monkeypatch):
  asked = []

  def restore(directory, experiment, feeds, config, checkpoint, seed, said):
    asked.append((str(directory), checkpoint, seed, said))
    return {seed: types.SimpleNamespace(params={"w": jnp.ones(2)}, opt_state=())}, 2

  monkeypatch.setattr(_tuning_network, "restore_states", restore)
  for flags in (dict(steps=5), dict(checkpoint="best", model_seed=4)):
    tune.load_network(tune.Config(**{**SMALL, "pretrained": pretrained, **flags}))
  said = f"--pretrained={pretrained}"
  assert asked == [(pretrained, "last", 0, said), (pretrained, "best", 4, said)]


@pytest.mark.parametrize("flags, words", [
  (dict(lora_rank=0), "--lora_rank=0 is out of range"),
  (dict(adapter_width=0), "--adapter_width=0"),
  (dict(last_layers=0), "--last_layers=0"),
  (dict(lora_dropout=1.0), "--lora_dropout"),
  (dict(lora_targets="(query"), "--lora_targets=.query is no regular expression"),
  (dict(penalty_weight=-1.0), "--penalty_weight"),
  (dict(task="file"), "expected --labelled=FILE.tsv"),
  (dict(penalty="l2_sp", method="lora"), "--method=lora leaves them as they are"),
  (dict(penalty="fisher", method="full", scratch=True), "--scratch has none"),
])  # fmt: skip
def test_what_does_not_fit_is_one_sentence(flags, words):
  with pytest.raises(InputError, match=words):
    tune.Config(**{**SMALL, **flags})


@pytest.mark.parametrize("flags, words", [
  (dict(lora_rank=9), "--lora_rank=9 .*does not fit the network of .*rank is 9, expected at most 8"),
  (dict(lora_targets="nothing"), "--lora_targets=nothing does not fit .* finds none"),
  (dict(lora_targets="embed/embedding", lora_dropout=0.1), "is of no Dense layer"),
  (dict(method="last", last_layers=3), "--last_layers=3 does not fit .*expected 1 to 2"),
  (dict(method="bias", model="llama"), "has no biases, expected a network that has"),
  (dict(task="case", tokenizer="bytes", dataset="small"), "it has no capitals"),
  (dict(task="case", tokenizer="words"), "--task=case asks each letter: .*found --tokenizer=words"),
  (dict(task="shift", tokenizer="words", length=2), "--task=shift: the train text does not allow it"),
  (dict(scratch=False), "--pretrained is empty"),
])  # fmt: skip
def test_what_the_network_or_its_text_does_not_allow_is_one_sentence(flags, words, text, tmp_path):
  if flags.get("dataset"):
    path = tmp_path / "small.txt"
    path.write_text("only small letters here " * 60)
    flags = {**flags, "dataset": str(path)}
  given = {**SMALL, "scratch": True, "dataset": text, "method": "lora", **NETWORK, **flags}
  with pytest.raises(InputError, match=words):
    tune.make(tune.Config(**given))


def test_a_folder_must_be_a_run_of_pretraining(tmp_path):
  refuse = lambda words: pytest.raises(InputError, match=words)
  with refuse(f"--pretrained={tmp_path} has no readable config.json"):
    tune.make(tune.Config(**{**SMALL, "pretrained": str(tmp_path)}))
  (tmp_path / "config.json").write_text(json.dumps({"experiment": "sequence.char_lm", "config": {}}))
  with refuse("is a run of sequence.char_lm, expected lm.pretrain"):
    tune.make(tune.Config(**{**SMALL, "pretrained": str(tmp_path)}))


def test_flags_that_do_nothing_say_so():
  idle = lambda **flags: set(tune.Config(**{**SMALL, **flags}).idle_flags())
  assert {"model_seed", "checkpoint", "adapter_width", "penalty_weight", "labelled"} <= idle()
  assert not {"lora_rank", "pooling", "depth", "pretrain_steps", "dropout"} & idle()
  given = idle(pretrained="run", method="full")
  assert {"depth", "dataset", "length", "objective", "pretrain_steps", "lora_rank"} <= given
  assert not {"dropout", "batch_size", "precision", "model_seed", "data_dir"} & given
  assert {"pooling", "head_layer"} <= idle(task="case") and "train_rows" in idle(task="file", labelled="x.tsv")
  assert "pretrain_steps" in idle(scratch=True) and "fisher_windows" in idle(penalty="l2_sp", method="full")
  rates = {method: tune.Config.tuned(method=method).learning_rate for method in METHODS}
  assert rates["full"] < rates["lora"] and tune.Config.tuned(learning_rate=0.5).learning_rate == 0.5
  assert (
    tune.Config.tuned(method="bias").model == "gpt2"
    and tune.Config.tuned(method="bias", pretrained="x").model == "llama"
  )


def test_floors_are_learned_from_the_training_rows_and_counted_on_the_test_rows():
  """The training rows say that 5 is label 1 and 6 label 0, and 1 more often; test rows say 0 more often."""
  rows = lambda first, length: np.tile(np.array(first)[:, None], (1, length)).astype(np.int32)
  train, test = [5] * 6 + [6] * 4, [5, 6, 6, 5, 6]
  label, asked = np.array([1] * 6 + [0] * 4), np.array([1, 1, 0, 0, 0])
  arrays = lambda first, **more: types.SimpleNamespace(
    arrays={"tokens": rows(first, 4), "length": np.full(len(first), 4), **more}
  )
  of = lambda kind, **given: measure_floors(_tuning_tasks.Question(kind, **given, longest=2))
  found = of(_tuning_tasks.SENTENCE, train=arrays(train, label=label), test=arrays(test, label=asked))
  assert found == {"floor_majority": 0.4, "floor_bag": 0.6}
  each = lambda label: dict(label=np.tile(label[:, None], (1, 4)), weight=np.ones((len(label), 4)))
  found = of(_tuning_tasks.TOKEN, train=arrays(train, **each(label)), test=arrays(test, **each(asked)))
  # Two are said to be 1, of which one is, and one is missed.
  assert found == {"floor_majority": 0.4, "floor_bag": 0.6, "floor_bag_f1": 0.5}
  ends = lambda start, count: dict(start=np.full(count, start), end=np.full(count, start + 1))
  found = of(_tuning_tasks.SPAN, train=arrays(train, **ends(1, 10)), test=arrays(test, **ends(2, 5)))
  assert found["floor_majority"] == 0 and found["floor_majority_f1"] == 0.5


# -- what is left behind -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task, figures", [
  ("follows", {"accuracy_elsewhere", "accuracy_follows", "floor_majority", "floor_bag"}),
  pytest.param(
    "case", {"accuracy_small", "accuracy_capital", "floor_majority", "floor_bag", "floor_bag_f1"},
    marks=pytest.mark.thorough,
  ),
  pytest.param(
    "moved", {"exact", "f1", "floor_majority", "floor_majority_f1", "floor_bag", "floor_bag_f1"},
    marks=pytest.mark.thorough,
  ),
])  # fmt: skip
def test_a_report_has_floors_a_picture_and_mistakes(task, figures, pretrained, tmp_path):
  run = start(pretrained=pretrained, task=task, method="features")
  found = run.experiment.report(run.state, tmp_path)
  assert figures <= set(found) and all(np.isfinite(x) for x in found.values())
  assert (tmp_path / "tuning.png").stat().st_size > 8000
  assert " are said wrong" in (tmp_path / "mistakes.txt").read_text().splitlines()[0]
  model = run.experiment.model(run.state)
  arrays = tune.build(run.config)[1].test.arrays
  texts = [model.tokenizer.decode(row) for row in arrays["tokens"]]
  said = model(texts)
  if task == "moved":
    assert found["exact"] == np.mean((said.start == arrays["start"]) & (said.end == arrays["end"]))
    assert said.texts[0] == texts[0][said.start[0] : said.end[0] + 1]
  if task == "case":
    right = np.stack(said.labels) == arrays["label"]
    capital = (arrays["label"] == 1) & (arrays["weight"] > 0)
    np.testing.assert_allclose(found["accuracy_capital"], right[capital].mean())
  if task == "follows":
    right = (np.array(said.labels) == "follows") == (arrays["label"] == 1)
    np.testing.assert_allclose(found["accuracy_follows"], right[arrays["label"] == 1].mean())
    question, outputs = tune.build(run.config)[1], model.outputs(arrays["tokens"], arrays["length"])
    for line in _report_sentences(question, model, outputs)[1]:  # a letter a token: the second half is bold
      half = question.half
      assert len(line.bold) > half and not line.bold[:half].any() and line.bold[half:].all()


@pytest.mark.thorough
def test_a_run_is_read_back_as_a_function_of_texts(pretrained, tmp_path):
  path = tmp_path / "texts.tsv"
  path.write_text("".join(f"{('Tom says', 'and Square')[i % 2]} {i}\t{('good', 'bad')[i % 2]}\n" for i in range(60)))
  config = tune.Config(**{**SMALL, "pretrained": pretrained, "task": "file", "labelled": str(path), "method": "full",
                          "steps": 60, "learning_rate": 0.02, "workdir": str(tmp_path / "w")})  # fmt: skip
  assert tune.main(config) == 0
  run = mlnotes.load_run(tmp_path / "w")
  long = "Tom says it is longer than what is read"
  found = run.model(["Tom says 12", "and Square 7", "Tom says 4", long, long[:LENGTH]])
  assert found.labels[:3] == ("good", "bad", "good") and found.probability.shape == (5, 2)
  np.testing.assert_allclose(found.probability[3], found.probability[4], rtol=1e-6)
  np.testing.assert_allclose(found.probability.sum(1), 1, rtol=1e-5)
  card = json.loads((tmp_path / "w" / "result.json").read_text())["metrics"]
  assert card["accuracy"]["mean"] == 1 and card["floor_majority"]["mean"] == 0.5 and card["floor_bag"]["mean"] == 1
  assert card["pretraining_loss_after"]["mean"] != card["pretraining_loss_before"]["mean"]
  with pytest.raises(ValueError, match="expected a list of one text or more"):
    run.model("one text")


@pytest.mark.parametrize("kind, size", [("characters", 16), ("words", 16), ("bpe", 12), ("hugging_face", 12)])
def test_words_of_pieces_have_room_to_become_more(kind, size):
  assert _tuning_tasks._passage(types.SimpleNamespace(kind=kind), 16) == size
