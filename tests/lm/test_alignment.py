"""Alignment where all answers are listed: what is drawn is what is counted, first steps, methods, flags."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lm import dpo, rlhf
from experiments.lm._alignment import batch_prompts, make_situation
from experiments.lm._alignment_report import exact_figures
from experiments.lm._answers import Prompts, judge_tokens, list_log_probabilities
from experiments.lm._policy import Policy
from experiments.lm._preferences import draw_listed_pair, read_preferences, weigh_labels
from mlnotes.data import DataError
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key, stream_key

SIZES = dict(beta=0.5, prompts=3, words=2, answer_tokens=2, width=8, depth=1)


@pytest.fixture(scope="module")
def situation():
  return make_situation(rlhf.Config(**SIZES))


@pytest.fixture(scope="module")
def figures(situation):
  """Of parameters, at the beta of all tests here."""
  return jax.jit(lambda params: exact_figures(situation, params, SIZES["beta"]))


@pytest.fixture(scope="module")
def listed_logs(situation):
  return np.asarray(jax.jit(lambda params: list_log_probabilities(situation.listed, params))(situation.reference))


def test_the_reference_says_every_answer_with_probabilities_that_sum_to_one(listed_logs):
  logs = listed_logs
  assert logs.shape == (3, 1 + 2 + 4)
  np.testing.assert_allclose(np.exp(logs).sum(1), 1, rtol=1e-5)
  assert np.exp(logs).max() < 0.95 and logs.std() > 0.3  # neither sure nor even


def test_what_is_drawn_is_what_is_listed(situation, listed_logs):
  """How often each answer is drawn, and the reward it is given, beside the list."""
  prompts, draws = jnp.asarray(situation.test.arrays["tokens"]), 3000
  rows = Prompts(jnp.repeat(prompts, draws, 0), jnp.full(3 * draws, prompts.shape[1]))
  keys = jax.random.split(root_key(0), 3 * draws)
  answered = jax.jit(lambda keys: situation.draw(situation.reference, rows, keys))(keys)
  judge = jax.jit(lambda answered: judge_tokens(situation.module, situation.reference, rows, *answered[:2]))
  logs, every = judge(answered)
  np.testing.assert_allclose(logs, answered.log_probability, atol=1e-4)
  np.testing.assert_allclose(np.exp(np.asarray(every)).sum(-1), 1, rtol=1e-4)
  listed = {tuple(row): i for i, row in enumerate(situation.listed.answers.tokens.tolist())}
  found = np.array([listed[tuple(row)] for row in np.asarray(answered.tokens).tolist()]).reshape(3, draws)
  p = np.exp(listed_logs)
  for n in range(3):
    share = np.bincount(found[n], minlength=7) / draws
    assert np.all(np.abs(share - p[n]) < 4.5 * np.sqrt(p[n] * (1 - p[n]) / draws) + 1e-3)
  score = situation.judge.score((), rows, answered.tokens, answered.lengths)
  expected = np.asarray(situation.listed.reward)[np.repeat(np.arange(3), draws), found.reshape(-1)]
  np.testing.assert_allclose(score, expected, rtol=1e-6)
  np.testing.assert_array_equal(answered.ended, (np.asarray(answered.tokens) == situation.end).any(1))


def start(module, **flags):
  config = module.Config(**{**SIZES, "learning_rate": 1e-2, **flags})
  experiment = module.make(config)
  feed = module.make_feeds(config).train
  batch = jax.jit(lambda step: feed.draw(feed.arrays, root_key(0), step))
  state = jax.jit(experiment.init)(root_key(0), batch(0))
  return config, experiment, batch, state


def value_loss_by_hand(config, situation, state, batch):
  """Half the mean squared advantage of the tokens: as it is, not whitened."""

  @jax.jit
  def compute(state, batch):
    prompts = batch_prompts(batch).repeat(config.answers)
    keys = jax.random.split(stream_key(state.key, "answers", 0), len(prompts.tokens))
    answered = situation.draw(situation.reference, prompts, keys)
    score = situation.judge.score((), prompts, answered.tokens, answered.lengths)
    value = rlhf.read_values(situation.module, state.params["value"], prompts, answered.tokens)
    logs = answered.log_probability
    found = rlhf.find_advantages(config, 0.5, score, logs, logs, value, answered)
    return 0.5 * jnp.sum(found**2) / jnp.sum(answered.lengths)

  return compute(state, batch)


@pytest.mark.parametrize("method", ["ppo", "rloo", "grpo"])
def test_a_first_update_begins_at_the_reference_and_updates_raise_the_reward(method, situation, figures):
  flags = dict(method=method, batch_size=8, answers=4, epochs=1, minibatches=1, steps=40, schedule="constant")
  config, experiment, batch, state = start(rlhf, **flags)
  before = figures(state.params["policy"])
  assert abs(before["kl"]) < 1e-6
  step = jax.jit(experiment.step)
  expected = value_loss_by_hand(config, situation, state, batch(0)) if method == "ppo" else None
  state, first = step(state, batch(0))
  # One pass, one gradient step: the ratio is 1 there, and nothing is apart from the reference.
  assert first["clip_fraction"] == 0 and abs(first["kl"]) < 1e-5 and first["entropy"] > 0
  if method == "ppo":
    np.testing.assert_allclose(first["value_loss"], expected, rtol=1e-3)
  for i in range(1, 40):
    state, metrics = step(state, batch(i))
  after = figures(state.params["policy"])
  assert after["reward"] > before["reward"] + 0.15 and after["kl"] > 0.01
  if method != "grpo":  # its KL, in the loss, is another one
    assert after["kl_to_optimum"] < 0.7 * before["kl_to_optimum"]
  assert np.isfinite(metrics["policy_loss"])


def test_values_are_held_to_those_of_the_rollout(monkeypatch):
  """Clipped around what was said when the answers were drawn, towards the returns: neither is what is learned now."""
  seen, loss = [], rlhf.clipped_value_loss

  def watch(value, old, target, clip):
    seen.append((value is old, value is target, old is target))
    return loss(value, old, target, clip)

  monkeypatch.setattr(rlhf, "clipped_value_loss", watch)
  config = rlhf.Config(**SIZES, batch_size=4, answers=2, minibatches=2, steps=4)
  experiment, feeds = rlhf.make(config), rlhf.make_feeds(config)
  batch = jax.eval_shape(lambda: feeds.train.draw(feeds.train.arrays, root_key(0), 0))
  jax.eval_shape(experiment.step, jax.eval_shape(experiment.init, root_key(0), batch), batch)
  assert seen and not any(any(same) for same in seen)


def test_what_the_kl_costs_is_read_from_the_state():
  """The larger beta is, the nearer to the reference."""
  flags = dict(method="rloo", batch_size=8, answers=4, epochs=1, minibatches=1, steps=30, schedule="constant")
  _, experiment, batch, state = start(rlhf, **flags)
  step, found = jax.jit(experiment.step), []
  for beta in (0.2, 5.0):
    one = state._replace(hparams={**state.hparams, "beta": jnp.float32(beta)})
    for i in range(30):
      one, metrics = step(one, batch(i))
    found.append(float(metrics["kl"]))
  assert found[0] > 5 * abs(found[1])


def test_advantages_by_hand():
  score, zeros = jnp.array([1.0, 3.0, 0.0, 0.0]), jnp.zeros((4, 2))
  answered = rlhf.Answered(jnp.zeros((4, 2), int), jnp.array([2, 1, 2, 1]), jnp.ones(4, bool), zeros)
  find = lambda method, old: np.asarray(
    rlhf.find_advantages(rlhf.Config(**SIZES, method=method, answers=2), 0.5, score, old, zeros, zeros, answered)
  )
  np.testing.assert_allclose(find("rloo", zeros), [[-2, -2], [2, 0], [0, 0], [0, 0]])
  np.testing.assert_allclose(find("grpo", zeros), [[-1, -1], [1, 0], [0, 0], [0, 0]])
  # A nat of KL, of the first answer, costs beta.
  np.testing.assert_allclose(find("rloo", zeros.at[0].set(0.5))[0], [-2.5, -2.5])
  np.testing.assert_allclose(find("ppo", zeros.at[0].set(0.5))[:2], [[0.75 * 0.95 - 0.25, 0.75], [3, 0]])


def test_an_answer_that_does_not_end_scores_what_is_said():
  given = rlhf.Config(**SIZES, penalize_unended=True, unended_reward=-7.0)
  plain, punished = make_situation(rlhf.Config(**SIZES)).listed, make_situation(given).listed
  ended = plain.answers.ended
  np.testing.assert_array_equal(plain.reward[:, ended], punished.reward[:, ended])
  assert np.all(np.asarray(punished.reward)[:, ~ended] == -7)


def test_dpo_begins_at_log_two_and_nears_the_optimum(figures, tmp_path):
  _, experiment, batch, state = start(dpo, batch_size=128, steps=150, schedule="constant")
  step = jax.jit(experiment.step)
  before = figures(state.params)
  state, first = step(state, batch(0))
  np.testing.assert_allclose(first["loss"], np.log(2), rtol=1e-5)
  assert first["accuracy"] == 0.5
  for i in range(1, 150):
    state, metrics = step(state, batch(i))
  after = figures(state.params)
  assert metrics["loss"] < 0.66 and after["kl_to_optimum"] < 0.5 * before["kl_to_optimum"]
  found = experiment.report(state, tmp_path)
  assert 0.5 < found["reached"] <= 1 and (tmp_path / "frontier.png").stat().st_size > 5000


def test_listed_pairs_are_preferred_as_bradley_and_terry_have_it(situation):
  draw = jax.jit(jax.vmap(lambda key: draw_listed_pair(situation.listed, key)))
  pairs = jax.tree.map(np.asarray, draw(jax.random.split(root_key(1), 4000)))
  assert not np.any((pairs["chosen"] == pairs["rejected"]).all(1))
  listed = {tuple(row): i for i, row in enumerate(situation.listed.answers.tokens.tolist())}
  places = {tuple(row): i for i, row in enumerate(situation.test.arrays["tokens"].tolist())}
  size, rewards = pairs["prompt"][0], np.asarray(situation.listed.reward)
  of = lambda name: np.array([
    rewards[places[tuple(row[:size])], listed[tuple(row[size:])]] for row in pairs[name].tolist()
  ])  # fmt: skip
  margin = of("chosen") - of("rejected")
  # Of a pair of margin m the better one is chosen with probability sigmoid(|m|).
  expected = 1 / (1 + np.exp(-np.abs(margin)))
  assert abs(np.mean(margin > 0) - expected.mean()) < 4 * np.sqrt(0.25 / len(margin))
  lengths = situation.listed.answers.lengths
  chosen = [listed[tuple(row[size:])] for row in pairs["chosen"].tolist()]
  np.testing.assert_array_equal(pairs["chosen_length"] - size, lengths[chosen])
  rejected = [listed[tuple(row[size:])] for row in pairs["rejected"].tolist()]
  np.testing.assert_array_equal(pairs["rejected_length"] - size, lengths[rejected])


def test_pairs_count_both_ways_by_how_likely_each_is(situation):
  """At the optimum the gradient is nothing where preferences are expected, whatever pairs are drawn."""
  pairs = jax.vmap(lambda key: draw_listed_pair(situation.listed, key, True))(jax.random.split(root_key(1), 64))
  found = np.sort(np.asarray(pairs["certainty"]))
  assert found[0] < 0.5 < found[-1]  # of the one that was drawn, the likelier or not
  margin = np.log(found / (1 - found))  # r_w - r_l, which beta times the log ratios are there

  def loss(scale, certainty):
    of_chosen = scale * jnp.asarray(margin, jnp.float32)
    each = weigh_labels(of_chosen, certainty)
    return jnp.mean(each)

  slope = jax.grad(loss)
  assert abs(slope(1.0, jnp.asarray(found))) < 1e-5 < abs(slope(1.0, 1.0))
  np.testing.assert_allclose(
    loss(1.0, 0.9), np.mean(0.9 * np.log1p(np.exp(-margin)) + 0.1 * np.log1p(np.exp(margin))), rtol=1e-4
  )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_label_smoothing_reaches_the_loss(smoothing):
  _, experiment, batch, state = start(dpo, batch_size=8, label_smoothing=smoothing, expected_labels=False)
  rows = batch(0)
  assert "certainty" not in rows
  moved = jax.tree.map(lambda x: x * 1.3, state.params)
  means = jax.jit(experiment.evaluate)(state._replace(params=moved), {**rows, "mask": jnp.ones(8)})
  margin = means["chosen_reward"].total - means["rejected_reward"].total
  plain = jax.jit(dpo.make(dpo.Config(**SIZES, expected_labels=False)).evaluate)(
    state._replace(params=moved), {**rows, "mask": jnp.ones(8)}
  )
  # -log sigmoid(-m) = -log sigmoid(m) + m.
  np.testing.assert_allclose(means["loss"].total, plain["loss"].total + smoothing * margin, rtol=1e-4)


@pytest.mark.parametrize(
  ("flags", "sentence"),
  [
    (dict(beta=0.0), "--beta=0"),
    (dict(policy="runs/lm"), "--policy=runs/lm has nothing to be aligned to: expected --reward, --labelled too"),
    (dict(learned_reward=True, policy="runs/lm"), "--policy=runs/lm has nothing"),
    (dict(learned_reward=True, reward="runs/r"), "--learned_reward is of the listed task"),
    (dict(answers=1, method="rloo"), "--answers"),
    (dict(minibatches=3), "--minibatches"),
    (dict(words=9, answer_tokens=6), "--answer_tokens"),
    (dict(clip=0.0), "--clip"),
    (dict(width=6), "--width"),
    (dict(labelled="x", reward_steps=-1), "--reward_steps=-1"),
    (dict(labelled="x", pretrain_steps=0), "--pretrain_steps=0"),
  ],
)
def test_bad_flags_are_one_sentence(flags, sentence):
  with pytest.raises(InputError, match=sentence):
    rlhf.Config(**flags)


def test_preferences_of_a_file(tmp_path, situation):
  """Each line <end>, a prompt, an answer and <end>; answers that are equal are refused."""
  encode = lambda text: [ord(letter) - 97 for letter in text]
  tokenizer = types.SimpleNamespace(encode=encode)
  given = Policy(situation.module.clone(length=8), None, types.SimpleNamespace(tokenizer=tokenizer, end=2), "", None)
  path = tmp_path / "pairs.jsonl"
  rows = [{"prompt": "ab"[: 1 + i % 2], "chosen": "ab" * (i % 3), "rejected": "b"} for i in range(6)]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  train, test = read_preferences(str(path), given)
  assert len(train) + len(test) == 6
  both = {name: np.concatenate([train.arrays[name], test.arrays[name]]) for name in train.arrays}
  found = {tuple(row[:size].tolist()) for row, size in zip(both["chosen"], both["chosen_length"])}
  assert found == {(2, *encode(row["prompt"]), *encode(row["chosen"]), 2) for row in rows}
  assert sorted(both["prompt"].tolist()) == [2, 2, 2, 3, 3, 3] and set(both["rejected_length"].tolist()) == {4, 5}
  tested = {tuple(row[:size].tolist()) for row, size in zip(test.arrays["chosen"], test.arrays["prompt"])}
  assert len(tested) == 1  # all pairs of a prompt are on one side
  for content, sentence, error in (
    ({"prompt": "a", "chosen": "b", "rejected": "b"}, "line 1: found two answers that are equal", InputError),
    ({"prompt": "a" * 7, "chosen": "b", "rejected": "a"}, "line 1: found 10 tokens", InputError),
    ({"prompt": "a", "chosen": "b"}, "expected an object with a string in the field rejected", DataError),
    ({"prompt": "a", "chosen": "b", "rejected": "a"}, "found 1 pairs, of 1 prompt, expected two prompts", InputError),
  ):
    path.write_text(json.dumps(content) + "\n")
    with pytest.raises(error, match=sentence):
      read_preferences(str(path), given)
  path.write_text("")
  with pytest.raises(InputError, match="found no pair, expected two prompts or more"):
    read_preferences(str(path), given)
  path.write_text(json.dumps({"prompt": "a", "chosen": "x", "rejected": "y"}) + "\n")
  tokenizer.encode = lambda text: [3 if letter in "xy" else 1 for letter in text]
  with pytest.raises(InputError, match="line 1: found two answers that are the same tokens to --policy=p"):
    read_preferences(str(path), given._replace(said="--policy=p"))


def test_a_policy_that_answers_is_asked_as_it_has_learned(tmp_path, situation):
  """In front of its separator, whether or not the file has space there; nothing alone is not asked."""
  encode = lambda text: list(map(ord, text))
  corpus = types.SimpleNamespace(tokenizer=types.SimpleNamespace(encode=encode), end=2)
  given = Policy(situation.module.clone(length=8), None, corpus, "", object(), "?\n")
  path = tmp_path / "pairs.jsonl"
  path.write_text("".join(json.dumps({"prompt": x, "chosen": "b", "rejected": "c"}) + "\n" for x in ("a", "d \n", "")))
  found = [split.arrays for split in read_preferences(str(path), given)]
  rows = {tuple(row[:size].tolist()) for split in found for row, size in zip(split["chosen"], split["prompt"])}
  assert rows == {(2, *encode("a?\n")), (2, *encode("d?\n")), (2,)}
  assert given._replace(answered=None).encode_prompt("a ") == [2, *encode("a ")]


@pytest.mark.parametrize(
  ("flags", "sentence"),
  [
    (dict(preferred="good"), "--preferred=good"),
    (dict(prompt_tokens=40), "--prompt_tokens=40 and --answer_tokens=24 pass the 48 tokens of the policy"),
    (dict(labelled="absent"), "--labelled=absent"),
  ],
)
@pytest.mark.parametrize("module", [rlhf, dpo])
def test_what_does_not_fit_is_said_before_a_policy_trains(module, flags, sentence, tmp_path, monkeypatch):
  monkeypatch.setattr("experiments.lm._alignment.find_stage", lambda *_, **__: pytest.fail("trained"))
  for name in ("neg", "pos"):
    (tmp_path / f"{name}.txt").write_text("".join(f"{name} {i}\n" for i in range(3)))
  with pytest.raises((InputError, DataError), match=sentence):
    module.main(module.Config.tuned(**{"labelled": str(tmp_path), **flags}))


@pytest.mark.parametrize(
  ("module", "sentence"),
  [(rlhf, "179 or fewer, the prompts of --labelled=.*texts"), (dpo, "200 or fewer, the pairs that are drawn")],
)
def test_a_batch_of_more_than_there_is_is_said_before_a_policy_trains(module, sentence, tmp_path, monkeypatch):
  monkeypatch.setattr("experiments.lm._alignment.find_stage", lambda *_, **__: pytest.fail("trained"))
  (tmp_path / "texts").mkdir()
  for name in ("neg", "pos"):
    (tmp_path / "texts" / f"{name}.txt").write_text("".join(f"{name} and {i} more\n" for i in range(100)))
  given = dict(labelled=str(tmp_path / "texts"), prompt_tokens=2, answer_tokens=6, batch_size=256)
  given |= dict(pairs=200) if module is dpo else {}
  with pytest.raises(InputError, match=f"--batch_size=256 is out of range: expected {sentence}"):
    module.main(module.Config.tuned(**given))
  most = 1026 if module is rlhf else 2000  # three prompts, each often
  with pytest.raises(InputError, match=f"--batch_size=4000 is out of range: expected {most} or fewer"):
    module.main(module.Config.tuned(**SIZES, learned_reward=True, batch_size=4000))
