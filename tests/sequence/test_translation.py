"""Translation: what counts in losses and figures, what each flag does, stages, what the report leaves."""

import dataclasses
import functools
import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.sequence import _seq2seq, _translation_report, translation
from mlnotes.data.flags import load_data
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key
from mlnotes.optim.flags import make_optimizer
from mlnotes.sequence import Decoded, losses

WORDS = ("ab", "ba", "aab", "bba", "abab", "b", "a", "bbb", "aba", "bab", "aaaa", "bb", "baa", "abb", "baab", "abba")


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory):
  """Words and their letters turned around, of several lengths."""
  path = tmp_path_factory.mktemp("pairs") / "turned.tsv"
  path.write_text("".join(f"{word}\t{word[::-1]}\n" for word in WORDS))
  return str(path)


@pytest.fixture(scope="module")
def small(pairs_file):
  def make(**more):
    given = dict(
      dataset=pairs_file, test_dataset=pairs_file, width=8, heads=2, batch_size=4, steps=4, warmup_steps=0, log_every=2,
      eval_every=0, beams=(3,), tensorboard=False, devices=1,
    )  # fmt: skip
    return translation.Config(**{**given, **more})

  return make


@pytest.fixture(scope="module")
def first(small, draw_like):
  """(experiment, config, state, batch) of settings; those with the same network share its random parameters."""

  @functools.cache
  def start(**network):
    config = small(**network)
    experiment, feeds = translation.make(config), translation.make_feeds(config)
    batch = jax.jit(lambda: feeds.train.draw(feeds.train.arrays, root_key(0), 0))()
    state = jax.eval_shape(experiment.init, root_key(0), batch)
    return state._replace(step=jnp.int32(0), key=root_key(0), params=draw_like(state.params)), batch

  def build(**more):
    config = small(**more)
    names = ("model", "attention", "copy", "coverage")
    state, batch = start(**{name: more[name] for name in names if name in more})
    hparams = {name: jnp.float32(getattr(config, name)) for name in state.hparams}
    return translation.make(config), config, state._replace(hparams=hparams), batch

  return build


@pytest.fixture(scope="module")
def objective(first):
  """(loss, metrics) of an update's objective by settings, without its gradient; smoothing compiles no other one."""

  @functools.cache
  def compiled(**more):
    _, config, _, _ = first(**more)
    task = _seq2seq.describe(load_data(config))
    found = translation.make_objective(config, task, _seq2seq.build_model(config, task))
    return jax.jit(lambda state, batch: found(state.params, state, batch))

  def compute(step=0, batch=None, label_smoothing=0.0, **more):
    _, _, state, usual = first(**more)
    state.hparams["label_smoothing"] = jnp.float32(label_smoothing)
    return compiled(**more)(state._replace(step=jnp.int32(step)), usual if batch is None else batch)

  return compute


@pytest.fixture(scope="module")
def scored(first):
  """(task, what the model of settings says of the batch's targets, compiled)."""

  @functools.cache
  def compute(**more):
    _, config, state, batch = first(**more)
    task = _seq2seq.describe(load_data(config))
    model = _seq2seq.build_model(config, task)
    given = (batch["source"], batch["source_length"], batch["target"][:, :-1])
    return task, jax.jit(lambda params: model.score({"params": params}, *given, attention=True))(state.params)

  return compute


def test_the_loss_is_the_mean_over_real_tokens_with_end_and_without_padding(first, objective, scored):
  """By a loop over the tokens; the smoothed one spreads over what can be a target at all."""
  _, _, _, batch = first()
  loss, metrics = objective()
  assert loss == metrics["loss"]
  task, said = scored()
  said, target = np.asarray(said.log_probability, np.float64), np.asarray(batch["target"])
  total = smoothed = right = count = 0
  for row in range(4):
    for t in range(int(batch["target_length"][row]) - 1):
      logs, token = said[row, t], target[row, t + 1]
      possible = np.delete(logs, [task.pad, task.start])
      total -= logs[token]
      smoothed -= 0.9 * logs[token] + 0.1 * possible.mean()
      right += logs.argmax() == token
      count += 1
  np.testing.assert_allclose(metrics["loss"], total / count, rtol=1e-5)
  np.testing.assert_allclose(metrics["accuracy"], right / count, rtol=1e-5)
  np.testing.assert_allclose(objective(label_smoothing=0.1)[0], smoothed / count, rtol=1e-5)


def test_an_evaluation_counts_each_test_pair_once(first, averaged, scored):
  """Loss by token, exact by pair; rows that fill up the batch count for nothing."""
  experiment, _, state, batch = first()
  batch = {**batch, "mask": jnp.array([1.0, 1, 0, 1]), "index": jnp.arange(4)}
  found, (task, said) = jax.jit(experiment.evaluate)(averaged(state), batch), scored()
  count = jax.jit(lambda logs: _seq2seq.sum_losses(task, logs, batch))
  each, right, count = map(np.asarray, count(said.log_probability))
  keep = np.array([0, 1, 3])
  pair = lambda name: (found[name].total, found[name].count)
  np.testing.assert_allclose(pair("loss"), (np.sum(each[keep]), np.sum(count[keep])), rtol=1e-5)
  np.testing.assert_allclose(pair("accuracy"), (np.sum(right[keep]), np.sum(count[keep])), rtol=1e-5)
  assert found["exact"].count == 3


def test_numbers_of_a_sweep_start_from_the_flags(small):
  config = small(label_smoothing=0.25, coverage=0.5, guided="diagonal", guided_weight=0.75)
  experiment, feeds = translation.make(config), translation.make_feeds(config)
  init = lambda: experiment.init(root_key(0), feeds.train.draw(feeds.train.arrays, root_key(0), 0)).hparams
  assert jax.jit(init)() == {"label_smoothing": 0.25, "coverage": 0.5, "guided_weight": 0.75}


def test_exact_is_every_token_and_the_end():
  batch = {"target": jnp.array([[7, 1, 2, 6, 8]] * 5)}
  tokens = jnp.array([[1, 2, 6, 8], [1, 2, 2, 6], [1, 6, 8, 8], [1, 1, 6, 8], [1, 6, 6, 8]])
  found = Decoded(tokens, jnp.array([3, 4, 2, 3, 2]), jnp.zeros(5), jnp.zeros(5))
  np.testing.assert_array_equal(_seq2seq.is_exact(found, batch), [True, False, False, False, False])


def test_rewards_leave_the_end_out_and_count_what_was_cut():
  task = _seq2seq.Task(9, 7, 6, 8, 5, 4)
  batch = {"target": jnp.array([[7, 1, 2, 6, 8]] * 3), "target_length": jnp.array([4, 4, 4])}
  tokens = jnp.array([[1, 2, 6, 8], [1, 2, 1, 2], [1, 2, 2, 6]])
  found = Decoded(tokens, jnp.array([3, 4, 4]), jnp.zeros(3), jnp.zeros(3))
  np.testing.assert_array_equal(_seq2seq.content_length(task, found), [2, 4, 3])
  bleu = jax.jit(lambda: _seq2seq.reward("bleu", task, found, batch))()
  np.testing.assert_allclose(bleu[0], 1.0, rtol=1e-6)
  assert np.all(bleu[1:] < 1)
  np.testing.assert_array_equal(_seq2seq.reward("exact", task, found, batch), [1, 0, 0])


@pytest.fixture(scope="module")
def traced(first):
  @functools.cache
  def trace(**settings):
    _, config, state, batch = first(**settings)
    task = _seq2seq.describe(load_data(config))
    found = translation.make_objective(config, task, _seq2seq.build_model(config, task))
    return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(found)(state.params, state, batch)))

  return trace


@pytest.mark.parametrize(
  ("near", "more"),
  [
    (dict(guided="diagonal"), dict(guided="antidiagonal")),
    (dict(guided="diagonal"), dict(guided="diagonal", guided_width=0.5)),
    ({}, dict(attention="dot")),
    ({}, dict(dropout=0.5)),
    (dict(model="mask_predict"), dict(model="mask_predict", dropout=0.5)),
    (dict(model="transformer"), dict(model="transformer", scheduled_sampling=1.0)),
    (dict(train_on="minimum_risk"), dict(train_on="minimum_risk", metric="exact")),
    (dict(train_on="minimum_risk"), dict(train_on="minimum_risk", sharpness=5.0)),
  ],
  ids=str,
)
def test_a_flag_changes_what_is_learned(traced, near, more):
  """As it is written, without compiling."""
  assert traced(**more) != traced(**near)


def test_an_update_learns_from_the_objective_and_counts(first, objective):
  experiment, config, state, batch = first()
  step = jax.jit(experiment.step)
  optimizer = jax.jit(make_optimizer(config, config.steps).init)(state.params)
  after, metrics = step(state._replace(opt_state=optimizer), batch)
  np.testing.assert_allclose(metrics["loss"], objective()[0], rtol=1e-5)
  assert after.step == 1
  for _ in range(3):
    after, metrics = step(after, batch)
  assert metrics["loss"] < objective()[0]


def test_the_losses_of_attention_are_of_the_real_lengths_and_join_the_loss(first, objective, scored):
  more = dict(guided="antidiagonal", guided_weight=0.3, coverage=0.5)
  batch, (loss, metrics) = first(**more)[3], objective(**more)
  given = (scored(coverage=0.5)[1].attention, batch["source_length"], batch["target_length"] - 1)
  guided, twice = jax.jit(lambda *x: (losses.guided_attention_loss(*x, 0.2, True), losses.coverage_loss(*x)))(*given)
  np.testing.assert_allclose(metrics["guided_loss"], np.mean(guided), rtol=1e-4)
  np.testing.assert_allclose(metrics["coverage_loss"], np.mean(twice), rtol=1e-4)
  np.testing.assert_allclose(loss - metrics["loss"], 0.3 * np.mean(guided) + 0.5 * np.mean(twice), rtol=1e-3)


def test_the_share_of_own_tokens_grows(objective):
  early, late = (objective(step=step, model="rnn", scheduled_sampling=1.0)[1]["own_tokens"] for step in (0, 5))
  np.testing.assert_allclose([early, late], [0.5, 1 - 1 / (1 + np.exp(5))], rtol=1e-5)


@pytest.mark.parametrize("model", ["rnn", "transformer"])
def test_a_model_that_reads_its_own_tokens_learns_from_other_inputs(objective, model):
  """With k = 1 all tokens are its own after 50 updates, and none would be 50 before."""
  shown, own = (objective(step=step, model=model, scheduled_sampling=1.0)[0] for step in (-50, 50))
  assert abs(shown - own) > 1e-4
  if model == "rnn":
    np.testing.assert_allclose(shown, objective()[0], rtol=1e-5)


def test_the_metric_raises_what_was_drawn(first, monkeypatch):
  """With a reward of 1 for what ends at once, ending becomes likelier."""
  _, config, state, batch = first()
  config = dataclasses.replace(config, train_on="self_critical")
  task = _seq2seq.describe(load_data(config))
  model = _seq2seq.build_model(config, task)
  short = lambda metric, task, found, batch: (found.length == 1).astype(jnp.float32)
  monkeypatch.setattr(_seq2seq, "reward", short)
  objective = translation.make_objective(config, task, model)

  def loss(bias, step):
    params = {**state.params, "head": {**state.params["head"], "bias": bias}}
    return objective(params, state._replace(step=step), batch)[0]

  bias = state.params["head"]["bias"]
  mean = jax.jit(lambda steps: jnp.sum(jax.lax.map(lambda i: jax.grad(loss)(bias, i), steps), 0))(jnp.arange(24))
  assert mean[task.end] < 0  # a descent raises END


def test_draws_are_of_their_own_source_and_others_at_each_update(monkeypatch):
  task, keys = _seq2seq.Task(9, 7, 6, 8, 5, 4), []
  monkeypatch.setattr(translation, "sample", lambda keys, decoder, *more: (jax.random.key_data(keys), decoder, more))
  model = types.SimpleNamespace(make_decoder=lambda variables, source, lengths, room: (source, lengths, room))
  batch = {"source": jnp.array([[1, 1], [2, 2]]), "source_length": jnp.array([1, 2]), "target": jnp.zeros((2, 5), int)}
  for step in (0, 1):
    state = types.SimpleNamespace(key=root_key(0), step=jnp.int32(step))
    of_rows, (source, lengths, room), more = translation._draw(task, model, {}, state, batch, 3)
    np.testing.assert_array_equal(source[:, 0], [1, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(lengths, [1, 1, 1, 2, 2, 2])
    assert room == 4 and more == (task.start, task.end, task.pad, 4)
    keys += [tuple(key) for key in np.asarray(of_rows)]
  assert len(set(keys)) == 12


@pytest.mark.parametrize(
  "longest, more",
  [
    (2, {"train_on": "minimum_risk"}),
    (2, {"train_on": "self_critical", "metric": "exact"}),
    (2, {"model": "mask_predict"}),
    (4, {}),
  ],
)
def test_training_pairs_that_are_shorter_or_longer_than_the_tests(small, pairs_file, tmp_path, longest, more):
  """Of longer ones the test has one letter, of shorter ones four."""
  (tmp_path / "one.tsv").write_text("a\tb\n")
  tested = pairs_file if longest == 2 else str(tmp_path / "one.tsv")
  config = small(longest_training=longest, test_dataset=tested, start_from="x" if more.get("train_on") else "", **more)
  experiment, feeds = translation.make(config), translation.make_feeds(config)
  batch = jax.eval_shape(lambda: feeds.train.draw(feeds.train.arrays, root_key(0), 0))
  tests = jax.eval_shape(lambda: feeds.evaluate.draw(feeds.evaluate.arrays, 0))
  assert batch["target"].shape[1] == longest + 2 and tests["target"].shape[1] == 6
  state = jax.eval_shape(experiment.init, root_key(0), batch)
  assert "exact" in jax.eval_shape(experiment.evaluate, state, tests)
  assert "loss" in jax.eval_shape(experiment.step, state, batch)[1]


def test_the_risk_is_of_the_distinct_candidates_with_the_reference(first, monkeypatch):
  """Four draws of which two are alike and one is the reference itself, by their probabilities."""
  _, config, state, batch = first()
  config = dataclasses.replace(config, train_on="minimum_risk", metric="exact", sharpness=0.7)
  task = _seq2seq.describe(load_data(config))
  a, b = load_data(config).tokenizer.encode("ab")
  start, wrong = np.full((4, 1), task.start), np.full((2, 4, task.room), task.pad)
  wrong[0, :, :5], wrong[1, :, :5] = (a, b, a, a, task.end), (b, b, b, a, task.end)  # none of the words turned around
  target, length = np.asarray(batch["target"][:, 1:]), np.asarray(batch["target_length"]) - 1
  draws = np.stack([wrong[0], target, wrong[0], wrong[1]], 1).reshape(16, -1)
  lengths = np.stack([np.full(4, 5), length, np.full(4, 5), np.full(4, 5)], 1).reshape(-1)
  found = Decoded(jnp.asarray(draws), jnp.asarray(lengths), jnp.zeros(16), jnp.zeros(16))
  monkeypatch.setattr(translation, "_draw", lambda *given: found)
  model = _seq2seq.build_model(config, task)

  @jax.jit
  def both(params):
    scored = []
    for tokens in (target, *wrong):
      inputs = jnp.asarray(np.concatenate([start, tokens[:, :-1]], 1))
      said = model.score({"params": params}, batch["source"], batch["source_length"], inputs).log_probability
      scored.append(jnp.take_along_axis(said, jnp.asarray(tokens)[..., None], -1)[..., 0])
    return translation.risk_objective(config, task, model, params, state, batch), scored

  (risk, metrics), scored = both(state.params)
  real = [np.arange(task.room)[None] < n for n in (length[:, None], 5, 5)]
  totals = np.stack([np.sum(np.where(where, each, 0), 1) for where, each in zip(real, scored)])
  weights = np.exp(0.7 * (totals - totals.max(0)))
  assert not any(np.all(target == tokens, 1).any() for tokens in wrong)
  np.testing.assert_allclose(risk, np.mean(1 - weights[0] / weights.sum(0)), rtol=1e-4)
  np.testing.assert_allclose(metrics["drawn_reward"], 1 / 4, rtol=1e-6)


def test_the_risk_takes_each_candidate_once():
  tokens = jnp.array([[[1, 2], [1, 2], [2, 1], [1, 2]], [[1, 1], [1, 2], [2, 1], [1, 2]]])
  expected = [[False, True, False, True], [False, False, False, True]]
  np.testing.assert_array_equal(translation._again(tokens), expected)


def test_masked_training_asks_for_masked_places_and_the_length(objective):
  loss, metrics = objective(model="mask_predict")
  np.testing.assert_allclose(loss, metrics["loss"] + 0.1 * metrics["length_loss"], rtol=1e-5)
  assert metrics["length_loss"] > 0.1
  assert objective(model="mask_predict", step=1)[1]["loss"] != metrics["loss"]  # other places are masked
  smoothed = objective(model="mask_predict", label_smoothing=0.1)[1]["loss"]
  assert smoothed < 20 and smoothed != metrics["loss"]  # nothing goes to END, which is no token of its


def test_a_length_is_right_with_its_end(first, monkeypatch):
  """Of the figures of Mask-Predict, with the right answers for what it says."""
  experiment, _, state, batch = first(model="mask_predict")
  found = Decoded(batch["target"][:, 1:], batch["target_length"] - 1, jnp.zeros(4), jnp.zeros(4))
  monkeypatch.setattr(translation, "decode", lambda *given: found)
  batch = {**batch, "mask": jnp.array([1.0, 1, 1, 0]), "index": jnp.arange(4)}
  figures = jax.jit(experiment.evaluate)(state, batch)
  for name in ("length_accuracy", "exact"):
    assert (figures[name].total, figures[name].count) == (3, 3)


def test_masks_of_dropout_are_others_at_each_update(first):
  _, _, state, _ = first()
  keys = [translation._rngs(state._replace(step=jnp.int32(i)), "sampling") for i in (0, 1)]
  drawn = {tuple(np.asarray(jax.random.key_data(key))) for rngs in keys for key in rngs.values()}
  assert len(drawn) == 4


def test_a_metric_starts_from_a_model_that_is_trained_first_on_the_same_data(small, monkeypatch):
  asked, trained = [], []
  find = lambda flag, given, module, workdir, **settings: asked.append((flag, settings)) or workdir / "start_from"
  monkeypatch.setattr(translation, "find_stage", find)
  monkeypatch.setattr(translation, "train", lambda experiment, feeds, config: trained.append(config) or 0)
  assert translation.main(small(train_on="self_critical", workdir="w", learning_rate=1e-4, copy=True)) == 0
  ((flag, settings),) = asked
  stage = translation.Config(**settings)
  own = small(copy=True)
  assert flag == "start_from" and stage.train_on == "likelihood" and stage.learning_rate == 5e-3
  assert all(getattr(stage, name) == getattr(own, name) for name in ("dataset", "test_dataset", "width", "copy"))
  assert trained[0].start_from == "w/start_from" and trained[0].train_on == "self_critical"
  translation.main(small(train_on="minimum_risk", start_from="elsewhere"))
  translation.main(small())
  assert len(asked) == 1 and [config.start_from for config in trained[1:]] == ["elsewhere", ""]


def test_a_report_leaves_a_table_of_beams_texts_and_a_picture(first, averaged, tmp_path):
  experiment, _, state, _ = first()
  figures = experiment.report(averaged(state), tmp_path)
  assert set(figures) == {"decoded_exact", "token_bleu", "sequences_per_second"}
  assert (tmp_path / "attention.png").stat().st_size > 10_000
  table = (tmp_path / "table.md").read_text()
  assert "| greedy |" in table and "| 3 | 0.6 |" in table
  text = (tmp_path / "translations.txt").read_text()
  assert text.count("source ") == len(WORDS) and text.startswith(f"{round(16 * figures['decoded_exact'])} of 16")


def test_all_test_pairs_are_decoded_in_their_order():
  """The last batch is filled up."""
  target = np.arange(20).reshape(10, 2)
  search = lambda variables, batch: Decoded(batch["target"] + variables, *3 * [batch["target"][:, 0]])
  found, seconds = _translation_report.decode_all(search, 1, {"source": target, "target": target}, 4)
  np.testing.assert_array_equal(found.tokens, target + 1)
  assert seconds > 0


def test_the_bleu_of_a_report_is_of_all_sentences_without_their_ends():
  """One for the references; 3 of 4 tokens, 2 of 3 pairs and so on for one that is a token short, beside a right one."""
  task = _seq2seq.Task(9, 7, 6, 8, 5, 6)
  target = np.array([[7, 1, 2, 3, 4, 5, 6, 8], [7, 1, 2, 3, 4, 6, 8, 8]])
  examples = {"target": target, "target_length": np.array([7, 6])}
  whole = Decoded(target[:, 1:], np.array([6, 5]), np.zeros(2), np.zeros(2))
  np.testing.assert_allclose(_translation_report.corpus_bleu(task, whole, examples), 1, rtol=1e-6)
  short = whole.tokens.copy()
  short[0, 4:6] = task.end, task.pad
  found = _translation_report.corpus_bleu(task, whole._replace(tokens=short, length=np.array([5, 5])), examples)
  np.testing.assert_allclose(found, np.exp(1 - 9 / 8), rtol=1e-5)


def test_a_report_searches_with_every_width_and_penalty(first, monkeypatch, tmp_path):
  experiment, _, state, _ = first(beams=(1, 3), length_penalties=(0.0, 0.7), coverage_penalty=0.2)
  asked = []

  def search(decoder, start, end, pad, room, width, alpha, beta):
    asked.append((width, alpha, beta))
    one = jnp.ones((4, width), jnp.int32)
    return Decoded(jnp.full((4, width, room), end), one, one, one)

  monkeypatch.setattr(translation, "beam_search", search)
  ended = lambda config, task, *given: jax.tree.map(lambda x: x[:, 0], search(None, 0, task.end, 0, task.room, 1, 0, 0))
  monkeypatch.setattr(translation, "decode", ended)
  monkeypatch.setattr(_translation_report, "draw_attention", lambda *given: None)
  experiment.report(state, tmp_path)
  assert [each for each in asked if each[2]] == [(1, 0.0, 0.2), (3, 0.0, 0.2), (1, 0.7, 0.2), (3, 0.7, 0.2)]


def test_a_report_of_mask_predict_takes_its_rounds_and_lengths(first, averaged, monkeypatch, tmp_path):
  experiment, _, state, _ = first(model="mask_predict", iterations=2, length_beam=3)
  asked, refine = [], translation.mask_predict
  monkeypatch.setattr(translation, "mask_predict", lambda *given: asked.append(given[-2:]) or refine(*given))
  figures = experiment.report(averaged(state), tmp_path)
  assert set(asked) == {(2, 3)} and 0 <= figures["decoded_exact"] <= 1
  lines = (tmp_path / "table.md").read_text().splitlines()
  assert len(lines) == 5 and lines[2].startswith("| in rounds | |")
  assert not (tmp_path / "attention.png").exists()


@pytest.mark.thorough
def test_a_run_on_the_likelihood_and_one_on_the_metric_from_it(small, tmp_path):
  likelihood = small(steps=60, warmup_steps=5, learning_rate=2e-2, width=16, workdir=str(tmp_path / "first"))
  assert translation.main(likelihood) == 0
  metric = dataclasses.replace(
    likelihood, train_on="self_critical", steps=20, learning_rate=1e-3, start_from=str(tmp_path / "first"),
    workdir=str(tmp_path / "second"),
  )  # fmt: skip
  assert translation.main(metric) == 0
  cards = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("first", "second")]
  assert all(card["finished"] for card in cards)
  assert cards[1]["metrics"]["token_bleu"]["mean"] > 0.8 * cards[0]["metrics"]["token_bleu"]["mean"]


def test_the_worst_stand_first_and_the_right_ones_last(tmp_path):
  _translation_report.write_worst(
    ["s0", "s1", "s2"], ["same", "xxxx", "sume"], ["same", "same", "same"], [True, False, False], tmp_path / "t.txt"
  )
  text = (tmp_path / "t.txt").read_text()
  assert text.startswith("1 of 3 are right")
  assert text.index("s1") < text.index("s2") < text.index("s0") and text.count("reference") == 2


def test_the_trained_model_translates_texts(first, averaged):
  experiment, _, state, _ = first()
  translate = experiment.model(averaged(state))
  one, two = translate(["ab", "abab"])
  assert isinstance(one, str) and translate(["abab", "abab"]) == [two, two]
  for text, said in (("", "0 tokens"), ("a" * 50, "50 tokens")):
    with pytest.raises(ValueError, match=said):
      translate([text])


def test_flags_that_do_not_fit_are_refused_in_one_sentence(small):
  for more, said in (
    (dict(model="transformer", heads=3), "--heads=3"),
    (dict(attention="none", copy=True), "--copy is of attention .* --attention=none has none"),
    (dict(model="mask_predict", guided="diagonal"), "--guided is of attention"),
    (dict(attention="dot", coverage=1.0), "--coverage is of additive scores"),
    (dict(model="mask_predict", train_on="self_critical"), "--train_on is of decoders"),
    (dict(train_on="minimum_risk", scheduled_sampling=10.0), "--scheduled_sampling is of --train_on=likelihood"),
    (dict(scheduled_sampling=0.5), "--scheduled_sampling=0.5"),
    (dict(beams=()), "--beams="),
    (dict(cell="clockwork", width=30), "--cell=clockwork --width=30: "),
    (dict(cell="scrn", width=3), "--cell=scrn --width=3: "),
    (dict(dropout=1.0), "--dropout=1.0"),
  ):
    with pytest.raises(InputError, match=said) as error:
      small(**more)
    assert "\n" not in str(error.value)


def test_flags_without_effect_say_so(small):
  idle = small().idle_flags()
  assert {"heads", "iterations", "metric", "guided_width"} <= set(idle) and not {"cell", "beams"} & set(idle)
  assert {"cell", "attention", "beams"} <= set(small(model="mask_predict").idle_flags())
  assert {"label_smoothing", "samples"} <= set(small(train_on="self_critical").idle_flags())
  for model, given, expected in (
    ("rnn", "", set()),
    ("rnn", "run", {"dropout"}),
    ("transformer", "", set()),
    ("transformer", "run", {"dropout", "coverage"}),
  ):
    idle = small(train_on="minimum_risk", coverage=1.0, model=model, start_from=given).idle_flags()
    assert {"dropout", "coverage"} & set(idle) == expected
  assert [translation.Config.tuned(model=name).steps for name in ("rnn", "transformer", "mask_predict")] == [
    400,
    1500,
    1500,
  ]
  tuned = translation.Config.tuned(train_on="minimum_risk", learning_rate=0.1)
  assert (tuned.steps, tuned.learning_rate) == (200, 0.1)
