"""Tuning: what each method moves, penalties, what is measured and left behind."""

import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlnotes
from experiments.lm import _tuning_network, pretrain, tune
from experiments.lm._tuning import METHODS, build_tuning, layer_outputs
from experiments.lm._tuning_report import _report_sentences
from mlnotes.attention.mask import Mask
from mlnotes.engine.experiment import example_keys, root_key
from mlnotes.lm import insert_adapters
from mlnotes.lm.trainable import combine, count_bytes, count_parameters, flatten, unflatten

LENGTH = 24  # of the network's window
SMALL = dict(
  task="shift", method="lora", batch_size=4, steps=4, learning_rate=0.1, weight_decay=0.1, schedule="constant",
  warmup_steps=0, log_every=2, eval_every=0, train_rows=40, test_rows=12, adapter_width=3, lora_alpha=32.0,
  tensorboard=False, devices=1,
)  # fmt: skip


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
