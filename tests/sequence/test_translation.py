"""Translation: what counts in losses and figures, what each flag does, stages, what the report leaves."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.sequence import _seq2seq, _translation_report, translation
from mlnotes.data.flags import load_data
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key
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
      eval_every=0, beams=(1, 3), tensorboard=False, devices=1,
    )  # fmt: skip
    return translation.Config(**{**given, **more})

  return make


@pytest.fixture(scope="module")
def first(small):
  """(experiment, config, state, batch) of settings; those with the same network share a state."""

  @functools.cache
  def start(**network):
    config = small(**network)
    experiment, feeds = translation.make(config), translation.make_feeds(config)
    batch = jax.jit(lambda: feeds.train.draw(feeds.train.arrays, root_key(0), 0))()
    return jax.jit(experiment.init)(root_key(0), batch), batch

  def build(**more):
    config = small(**more)
    names = ("model", "attention", "copy", "coverage")
    state, batch = start(**{name: more[name] for name in names if name in more})
    hparams = {name: jnp.float32(getattr(config, name)) for name in state.hparams}
    return translation.make(config), config, state._replace(hparams=hparams), batch

  return build


@pytest.fixture(scope="module")
def objective(first):
  """(loss, metrics) of an update's objective by settings, without its gradient, compiled once each."""

  @functools.cache
  def compute(step=0, **more):
    _, config, state, batch = first(**more)
    task = _seq2seq.describe(load_data(config))
    found = translation.make_objective(config, task, _seq2seq.build_model(config, task))
    return jax.jit(found)(state.params, state._replace(step=jnp.int32(step)), batch)

  return compute


def logs_of(config, state, batch):
  task = _seq2seq.describe(load_data(config))
  model = _seq2seq.build_model(config, task)
  variables = {"params": state.params}
  scored = model.score(variables, batch["source"], batch["source_length"], batch["target"][:, :-1], attention=True)
  return task, model, scored


def test_the_loss_is_the_mean_over_real_tokens_with_end_and_without_padding(first, objective):
  """By a loop over the tokens; the smoothed one spreads over what can be a target at all."""
  _, config, state, batch = first()
  loss, metrics = objective()
  assert loss == metrics["loss"]
  task, _, scored = logs_of(config, state, batch)
  total = smoothed = right = count = 0
  for row in range(4):
    for t in range(int(batch["target_length"][row]) - 1):
      logs, token = np.asarray(scored.log_probability[row, t], np.float64), int(batch["target"][row, t + 1])
      possible = np.delete(logs, [task.pad, task.start])
      total -= logs[token]
      smoothed -= 0.9 * logs[token] + 0.1 * possible.mean()
      right += logs.argmax() == token
      count += 1
  np.testing.assert_allclose(metrics["loss"], total / count, rtol=1e-5)
  np.testing.assert_allclose(metrics["accuracy"], right / count, rtol=1e-5)
  np.testing.assert_allclose(objective(label_smoothing=0.1)[0], smoothed / count, rtol=1e-5)


def test_an_evaluation_counts_each_test_pair_once(first):
  """Loss by token, exact by pair; rows that fill up the batch count for nothing."""
  experiment, config, state, batch = first()
  batch = {**batch, "mask": jnp.array([1.0, 1, 0, 1]), "index": jnp.arange(4)}
  found = {k: (float(x.total), float(x.count)) for k, x in jax.jit(experiment.evaluate)(state, batch).items()}
  task, _, scored = logs_of(config, state, batch)
  each, right, count = _seq2seq.sum_losses(task, scored.log_probability, batch)
  keep = np.array([0, 1, 3])
  np.testing.assert_allclose(found["loss"], (np.sum(each[keep]), np.sum(count[keep])), rtol=1e-5)
  np.testing.assert_allclose(found["accuracy"], (np.sum(right[keep]), np.sum(count[keep])), rtol=1e-5)
  assert found["exact"][1] == 3


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
  bleu = _seq2seq.reward("bleu", task, found, batch)
  np.testing.assert_allclose(bleu[0], 1.0, rtol=1e-6)
  assert np.all(bleu[1:] < 1)
  np.testing.assert_array_equal(_seq2seq.reward("exact", task, found, batch), [1, 0, 0])


@pytest.mark.parametrize(
  ("near", "more"),
  [
    (dict(guided="diagonal"), dict(guided="antidiagonal")),
    (dict(guided="diagonal"), dict(guided="diagonal", guided_width=0.5)),
    ({}, dict(attention="dot")),
    ({}, dict(dropout=0.5)),
    (dict(model="transformer"), dict(model="transformer", scheduled_sampling=1.0)),
    (dict(train_on="minimum_risk"), dict(train_on="minimum_risk", metric="exact")),
    (dict(train_on="minimum_risk"), dict(train_on="minimum_risk", sharpness=5.0)),
  ],
  ids=str,
)
def test_a_flag_changes_what_is_learned(first, near, more):
  """As traced, without compiling."""

  def trace(**settings):
    _, config, state, batch = first(**settings)
    task = _seq2seq.describe(load_data(config))
    objective = translation.make_objective(config, task, _seq2seq.build_model(config, task))
    return str(jax.make_jaxpr(objective)(state.params, state, batch).jaxpr)

  assert trace(**more) != trace(**near)


def test_an_update_learns_from_the_objective_and_counts(first, objective):
  experiment, _, state, batch = first()
  step = jax.jit(experiment.step)
  after, metrics = step(state, batch)
  np.testing.assert_allclose(metrics["loss"], objective()[0], rtol=1e-5)
  assert after.step == 1
  for _ in range(3):
    after, metrics = step(after, batch)
  assert metrics["loss"] < objective()[0]


def test_the_losses_of_attention_are_of_the_real_lengths_and_join_the_loss(first, objective):
  for more, name, expected in (
    (
      dict(guided="antidiagonal", guided_weight=0.3),
      "guided_loss",
      lambda a, s, t: losses.guided_attention_loss(a, s, t, 0.2, True),
    ),
    (dict(coverage=0.5), "coverage_loss", losses.coverage_loss),
  ):
    _, config, state, batch = first(**more)
    loss, metrics = objective(**more)
    attention = logs_of(config, state, batch)[2].attention
    each = expected(attention, batch["source_length"], batch["target_length"] - 1)
    np.testing.assert_allclose(metrics[name], np.mean(each), rtol=1e-4)
    weight = config.guided_weight if "guided" in more else config.coverage
    np.testing.assert_allclose(loss - metrics["loss"], weight * metrics[name], rtol=1e-3)


def test_the_share_of_own_tokens_grows(objective):
  early, late = (objective(step=step, scheduled_sampling=1.0)[1]["own_tokens"] for step in (0, 5))
  np.testing.assert_allclose([early, late], [0.5, 1 - 1 / (1 + np.exp(5))], rtol=1e-5)


@pytest.mark.parametrize("model", ["rnn", "transformer"])
def test_a_model_that_reads_its_own_tokens_learns_from_other_inputs(objective, model):
  """After 50 updates with k = 1 all tokens are its own."""
  shown, own = (objective(step=50, model=model, **more)[0] for more in ({}, dict(scheduled_sampling=1.0)))
  assert abs(shown - own) > 1e-4


@pytest.mark.parametrize("train_on", ["self_critical", "minimum_risk"])
def test_the_metric_raises_what_was_drawn(first, monkeypatch, train_on):
  """With a reward of 1 for what ends at once, ending becomes likelier."""
  _, config, state, batch = first()
  config = dataclasses.replace(config, train_on=train_on)
  task = _seq2seq.describe(load_data(config))
  model = _seq2seq.build_model(config, task)
  short = lambda metric, task, found, batch: (found.length == 1).astype(jnp.float32)
  monkeypatch.setattr(_seq2seq, "reward", short)
  objective = translation.make_objective(config, task, model)

  def loss(bias, step):
    params = {**state.params, "head": {**state.params["head"], "bias": bias}}
    return objective(params, state._replace(step=step), batch)[0]

  gradient, bias = jax.jit(jax.grad(loss)), state.params["head"]["bias"]
  mean = sum(gradient(bias, jnp.int32(i)) for i in range(24))
  assert mean[task.end] < 0  # a descent raises END


def test_the_risk_takes_each_candidate_once():
  tokens = jnp.array([[[1, 2], [1, 2], [2, 1], [1, 2]], [[1, 1], [1, 2], [2, 1], [1, 2]]])
  expected = [[False, True, False, True], [False, False, False, True]]
  np.testing.assert_array_equal(translation._again(tokens), expected)


def test_masked_training_asks_for_masked_places_and_the_length(first, objective):
  loss, metrics = objective(model="mask_predict")
  np.testing.assert_allclose(loss, metrics["loss"] + 0.1 * metrics["length_loss"], rtol=1e-5)
  assert metrics["length_loss"] > 0.1
  smoothed = objective(model="mask_predict", label_smoothing=0.1)[1]["loss"]
  assert smoothed < 20 and smoothed != metrics["loss"]  # nothing goes to END, which is no token of its
  experiment, _, state, batch = first(model="mask_predict")
  figures = jax.jit(experiment.evaluate)(state, {**batch, "mask": jnp.ones(4), "index": jnp.arange(4)})
  assert {"exact", "length_accuracy"} <= set(figures)


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


def test_a_report_leaves_a_table_of_beams_texts_and_a_picture(first, tmp_path):
  experiment, _, state, _ = first()
  figures = experiment.report(state, tmp_path)
  assert set(figures) == {"decoded_exact", "token_bleu", "sequences_per_second"}
  assert (tmp_path / "attention.png").stat().st_size > 10_000
  table = (tmp_path / "table.md").read_text()
  assert "| greedy |" in table and "| 1 | 0.6 |" in table and "| 3 | 0.6 |" in table
  text = (tmp_path / "translations.txt").read_text()
  assert text.count("source ") == len(WORDS) and text.startswith(f"{round(16 * figures['decoded_exact'])} of 16")


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


def test_a_report_of_mask_predict_takes_its_rounds_and_lengths(first, monkeypatch, tmp_path):
  experiment, _, state, _ = first(model="mask_predict", iterations=2, length_beam=3)
  asked, refine = [], translation.mask_predict
  monkeypatch.setattr(translation, "mask_predict", lambda *given: asked.append(given[-2:]) or refine(*given))
  figures = experiment.report(state, tmp_path)
  assert set(asked) == {(2, 3)} and 0 <= figures["decoded_exact"] <= 1
  lines = (tmp_path / "table.md").read_text().splitlines()
  assert len(lines) == 3 and lines[-1].startswith("| in rounds | |")
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


def test_the_trained_model_translates_texts(first):
  experiment, _, state, _ = first()
  translate = experiment.model(state)
  (one, two) = translate(["ab", "abab"])
  assert isinstance(one, str) and translate(["abab"]) == [two]
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
