"""Reward models: the loss is of the right answers at the right places, rewards are known where answers are listed."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlnotes
from experiments.lm import _alignment, dpo, generate, pretrain, reward, rlhf, sft, tune
from experiments.lm._alignment import make_situation
from experiments.lm._alignment_report import count_words
from experiments.lm._answers import Prompts, draw_answers, judge_tokens
from experiments.lm._listed import list_answers
from experiments.lm._policy import Policy
from experiments.lm._preferences import pair_labelled
from experiments.lm._tuning_tasks import encode_texts, mark_rows
from mlnotes.data import NamedArrays
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key
from mlnotes.engine.trained import load_config
from mlnotes.lm import make_gpt2

SIZES = dict(prompts=3, words=2, answer_tokens=2, width=8, depth=1)


def test_answers_stand_behind_prompts_of_their_own_lengths():
  prompts = Prompts(jnp.array([[1, 2, 3], [4, 0, 0]]), jnp.array([3, 1]))
  answers = jnp.array([[5, 6], [7, 8]])
  np.testing.assert_array_equal(prompts.join(answers, 9), [[1, 2, 3, 5, 6], [4, 7, 8, 9, 9]])
  model = make_gpt2(10, 8, 1, 2, 8)
  params = jax.jit(model.init)(root_key(0), answers)["params"]
  lengths = jnp.array([2, 1])
  judge = jax.jit(lambda answers, lengths: judge_tokens(model, params, prompts, answers, lengths))
  logs, every = judge(answers, lengths)
  for n, row in enumerate(([1, 2, 3, 5, 6], [4, 7, 8])):
    first = int(prompts.lengths[n])
    each = np.asarray(jax.nn.log_softmax(jax.jit(model.apply)({"params": params}, jnp.array([row[:-1]]))[0]))
    for t in range(int(lengths[n])):
      np.testing.assert_allclose(logs[n, t], each[first - 1 + t, row[first + t]], rtol=1e-4)
      np.testing.assert_allclose(every[n, t], each[first - 1 + t], rtol=1e-3, atol=1e-5)
  assert logs[1, 1] == 0
  drawn = jax.jit(lambda keys: draw_answers(model, params, prompts, keys, 3, 9))(jax.random.split(root_key(1), 2))
  read, _ = judge(drawn.tokens, drawn.lengths)
  np.testing.assert_allclose(read, drawn.log_probability, atol=1e-4)


@pytest.fixture(scope="module")
def learned():
  config = reward.Config(**SIZES, batch_size=64, steps=200, learning_rate=1e-2)
  experiment, feeds = reward.make(config), reward.make_feeds(config)
  batch = lambda i: feeds.train.draw(feeds.train.arrays, root_key(0), i)
  state = jax.jit(experiment.init)(root_key(0), batch(0))
  step, first = jax.jit(lambda state, i: experiment.step(state, batch(i))), None
  for i in range(200):
    state, metrics = step(state, i)
    first = first or metrics
  model = jax.jit(lambda tokens, lengths: experiment.model(state)(tokens, lengths))
  return types.SimpleNamespace(
    config=config, experiment=experiment, state=state, feeds=feeds, first=first, model=model, batch=jax.jit(batch)
  )


def test_rewards_are_learned_from_pairs(learned, tmp_path):
  listed = list_answers(learned.config)
  figures = jax.jit(lambda rewards: reward.exact_figures(listed, rewards))
  found = figures(jax.jit(lambda params: reward.list_rewards(listed, params))(learned.state.params))
  nothing = figures(jnp.zeros_like(listed.reward))
  assert abs(float(learned.first["loss"]) - np.log(2)) < 0.35
  assert found["excess"] < 0.2 * nothing["excess"] and found["error"] < 0.6 * nothing["error"]
  card = learned.experiment.report(learned.state, tmp_path)
  assert card["correlation"] > 0.8 and 0.5 < card["best_accuracy"] < 1 and card["least_loss"] < np.log(2)
  assert (tmp_path / "reward.png").stat().st_size > 5000


def test_drawn_labels_lose_what_bradley_and_terry_say(learned):
  """The loss without the weights of both ways: of what was called chosen alone."""
  config = dataclasses.replace(learned.config, expected_labels=False)
  experiment, feed = reward.make(config), reward.make_feeds(config).train
  batch = jax.jit(lambda: feed.draw(feed.arrays, root_key(0), 3))()
  found = jax.jit(experiment.evaluate)(learned.state, {**batch, "mask": jnp.ones(64)})
  model = learned.model
  margin = np.asarray(
    model(batch["chosen"], batch["chosen_length"]) - model(batch["rejected"], batch["rejected_length"])
  )
  np.testing.assert_allclose(found["loss"].total, np.sum(np.log1p(np.exp(-margin))), rtol=1e-4)


def test_exact_figures_by_hand():
  listed = list_answers(reward.Config(**SIZES))
  found = reward.exact_figures(listed, listed.reward + jnp.arange(3.0)[:, None])
  np.testing.assert_allclose(found["excess"], 0, atol=1e-6)  # what a prompt's rewards have in common tells nothing
  np.testing.assert_allclose(found["error"], 0, atol=1e-5)
  two = listed._replace(reward=jnp.array([[0.0, np.log(3)]]))
  zero = reward.exact_figures(two, jnp.zeros((1, 2)))
  entropy = 0.75 * np.log(4 / 3) + 0.25 * np.log(4)
  np.testing.assert_allclose(zero["excess"], np.log(2) - entropy, rtol=1e-4)
  np.testing.assert_allclose(zero["error"], np.log(3) / 2, rtol=1e-5)


def test_a_reward_is_read_at_the_last_real_token(learned):
  listed, params = list_answers(learned.config), learned.state.params
  row = jnp.array([[0, 1, 0, 1]])
  read = jax.jit(lambda row, size: reward.read_reward(listed.module, params, row, size))
  short, other = read(row, jnp.array([3])), read(row.at[0, 3].set(2), jnp.array([3]))
  whole = read(row, jnp.array([4]))
  assert short == other and short != whole


def test_rewards_are_shifted_by_the_mean_of_what_it_learned_from(learned):
  model = learned.experiment.model(learned.state)
  batch = learned.batch(7)
  both = [learned.model(batch[name], batch[f"{name}_length"]) for name in ("chosen", "rejected")]
  read = jax.jit(lambda *rows: reward.read_reward(model.module, model.params, *rows))
  plain = read(batch["chosen"], batch["chosen_length"])
  assert abs(float(jnp.mean(jnp.stack(both)))) < 0.25 * float(jnp.std(jnp.stack(both)))
  np.testing.assert_allclose(both[0], plain - learned.state.mean, rtol=1e-5)


@pytest.mark.parametrize(
  ("flags", "sentence"),
  [
    (dict(preferences="x.jsonl"), "--preferences=x.jsonl is of texts: expected --policy"),
    (dict(policy="runs/lm"), "--policy=runs/lm: expected --preferences or --labelled"),
    (dict(policy="runs/lm", preferences="x", labelled="y"), "--preferences=x and --labelled=y: expected one"),
    (dict(pairs=0), "--pairs"),
  ],
)
def test_bad_flags_are_one_sentence(flags, sentence):
  with pytest.raises(InputError, match=sentence):
    reward.Config(**flags)


def test_a_learned_reward_is_what_a_policy_is_aligned_to(tmp_path, monkeypatch):
  """One command: the reward model first, then what it says, and PPO's values begin as it; another task is refused."""
  small, trained = dict(**SIZES, devices=1, steps=2, batch_size=4, answers=2, eval_every=0, log_every=2), []
  monkeypatch.setattr(rlhf, "train", lambda experiment, feeds, config, **more: trained.append(config) or 0)
  assert rlhf.main(rlhf.Config(**small, learned_reward=True, reward_steps=50, workdir=str(tmp_path))) == 0
  config = rlhf.Config(**small, reward=str(tmp_path / "reward"))
  assert trained == [dataclasses.replace(config, reward_steps=50, workdir=str(tmp_path))]
  situation, saved = make_situation(config), json.loads((tmp_path / "reward" / "config.json").read_text())["config"]
  assert saved["words"] == 2 and saved["prompts"] == 3
  judge, listed = situation.judge, situation.listed
  prompts, answers, lengths = listed.every_row()
  rows = Prompts(prompts, jnp.full(len(prompts), prompts.shape[1]))
  scores = jax.jit(judge.score)(judge.params, rows, answers, lengths)
  expected = jax.jit(lambda params: reward.list_rewards(listed, params))(judge.params.params) - judge.params.mean
  np.testing.assert_allclose(scores.reshape(expected.shape), expected, atol=1e-4)
  value = rlhf.start_value(situation, root_key(0))
  longer = jnp.concatenate([answers, answers[:, :1]], 1)
  at_end = jax.jit(lambda value: rlhf.read_values(listed.module, value, rows, longer))(value)
  # A value in front of token t is what the reward model says of the text up to there.
  read = jax.jit(lambda params: reward.read_reward(listed.module, params, prompts, rows.lengths))
  plain = read(judge.params.params)
  assert abs(float(judge.params.mean)) > 1e-3
  np.testing.assert_allclose(at_end[:, 0], plain - judge.params.mean, atol=1e-4)
  with pytest.raises(InputError, match="has learned with --words=2: expected 3"):
    make_situation(rlhf.Config(**{**small, "words": 3}, reward=str(tmp_path / "reward")))


def write_labelled(folder, **texts):
  folder.mkdir()
  for name, lines in texts.items():
    (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
  return str(folder)


def policy_of(length):
  """Of letters: a is 1, <end> is 0."""
  tokenizer = types.SimpleNamespace(encode=lambda text: [ord(letter) - 96 for letter in text])
  return Policy(types.SimpleNamespace(length=length), None, types.SimpleNamespace(tokenizer=tokenizer, end=0), "", None)


def test_rows_fit_the_window_of_who_reads_all_of_them(tmp_path, monkeypatch):
  long = [letter * 9 for letter in "abcdefgh"]
  path = write_labelled(tmp_path / "texts", neg=long, pos=[text + "z" for text in long])
  for split in pair_labelled(path, "", "", 4, 4, policy_of(6)):
    assert split.arrays["chosen"].shape[1] == 6
    assert np.all(split.arrays["chosen"][:, [0, 5]] == 0) and np.all(split.arrays["chosen_length"] == 6)
  file = tmp_path / "pairs.jsonl"
  file.write_text('{"prompt": "a", "chosen": "bbbb", "rejected": "c"}\n')
  monkeypatch.setattr(reward, "load_policy", lambda run: policy_of(6))
  with pytest.raises(InputError, match="line 1: found 7 tokens with the prompt, expected 6 at most"):
    reward.read_pairs(reward.Config(policy="x", preferences=str(file)))


def test_what_is_cut_ends_where_it_is_asked_as_where_it_was_learned(monkeypatch):
  shown = reward.RewardModel(policy_of(4).module, None, 0, policy_of(4))
  monkeypatch.setattr(
    reward.RewardModel, "__call__", lambda self, *given: np.concatenate([given[0], given[1][:, None]], 1)
  )
  np.testing.assert_array_equal(shown.texts([("a", "bcd"), ("", "b")]), [[0, 1, 2, 0, 4], [0, 2, 0, 0, 3]])


def test_a_test_file_of_one_class_is_refused(tmp_path):
  path = write_labelled(tmp_path / "texts", neg=["a", "b"], pos=["c", "d"])
  one = tmp_path / "one.tsv"
  one.write_text("e\tpos\nf\tpos\n")
  with pytest.raises(InputError, match=r"--test_labelled=.*found no test text that is not preferred"):
    pair_labelled(path, str(one), "pos", 4, 4, policy_of(6))
  with pytest.raises(InputError, match="found no test text that is preferred"):
    pair_labelled(path, str(one), "neg", 4, 4, policy_of(6))


@pytest.mark.parametrize("module", [rlhf, dpo])
def test_what_is_wrong_is_said_before_anything_trains(module, tmp_path, monkeypatch):
  monkeypatch.setattr(_alignment, "find_stage", lambda *given, **more: pytest.fail("a stage was trained"))
  labelled = write_labelled(tmp_path / "texts", neg=["a", "b"], pos=["c", "d"])
  for flags, sentence in (
    (dict(preferred="good"), "--preferred=good is out of range: expected one of neg, pos"),
    (dict(policy="x", reward="y", preferred="good"), "--preferred=good"),
    (dict(reward=str(tmp_path / "none")), "--reward=.*none has no readable config.json"),
    (dict(prompt_tokens=20, answer_tokens=29), "--prompt_tokens=20 and --answer_tokens=29 pass the 48 tokens"),
  ):
    given = dict(labelled=labelled, workdir=str(tmp_path / "run"), answer_tokens=3) | flags
    with pytest.raises(InputError, match=sentence):
      module.main(module.Config(**given))


def test_pairs_are_drawn_for_prompts_from_all_of_the_text():
  """Of more prompts than pairs not the first ones; of fewer all of them as often."""
  drawn = lambda params, prompts, keys: types.SimpleNamespace(
    tokens=jax.vmap(lambda key: jax.random.bits(key, (2,)).astype(jnp.int32))(keys), lengths=prompts.lengths + 1
  )
  judge = types.SimpleNamespace(params=(), score=lambda judge, prompts, tokens, lengths: 1.0 * tokens[:, 0])
  tokens = np.arange(300)[:, None]
  split = NamedArrays({"tokens": tokens, "length": np.ones(300, np.int32)})
  given = types.SimpleNamespace(train=split, test=split, draw=drawn, judge=judge, reference=(), end=0)

  def found(which, **flags):
    pairs = dpo._draw_pairs(dpo.Config(**flags), given, which).arrays
    assert np.all(pairs["chosen"][:, 1] > pairs["rejected"][:, 1])  # their rewards are far apart
    return pairs["chosen"][:, 0]

  some = {which: found(which, pairs=60, test_pairs=60) for which in ("train", "test")}
  for rows in some.values():
    assert len(set(rows.tolist())) == 60 and 100 < rows.mean() < 200
  assert set(some["train"].tolist()) != set(some["test"].tolist())
  assert set(np.bincount(found("test", test_pairs=600)).tolist()) == {2}


LM = dict(
  dataset="pydoc", batch_size=4, length=24, depth=1, width=8, heads=2, steps=2, warmup_steps=1, eval_every=0,
  log_every=2, data_placement="device", devices=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def road(tmp_path_factory):
  """A run of lm.pretrain, one of lm.sft on it, and a folder of labelled texts."""
  root = tmp_path_factory.mktemp("road")
  assert pretrain.main(pretrain.Config(**LM, workdir=str(root / "lm"))) == 0
  (root / "rows.jsonl").write_text(
    "".join(json.dumps({"prompt": "ab" * i, "answer": "a b"}) + "\n" for i in range(1, 8))
  )
  given = {**LM, "pretrained": str(root / "lm"), "instructions": str(root / "rows.jsonl"), "workdir": str(root / "sft")}
  assert sft.main(sft.Config(**given)) == 0
  (root / "labelled").mkdir()
  for name, word in (("neg", "bad"), ("pos", "fine")):
    (root / "labelled" / f"{name}.txt").write_text("".join(f"a {word} one {i}\n" for i in range(20)))
  return root


@pytest.fixture(scope="module")
def judge(road):
  """A reward model of the labelled texts, that begins with the tuned policy."""
  given = dict(policy=str(road / "sft"), labelled=str(road / "labelled"), workdir=str(road / "reward"))
  sizes = dict(devices=1, batch_size=4, steps=2, eval_every=0, log_every=2, test_pairs=6)
  assert reward.main(reward.Config(**given, **sizes)) == 0
  return str(road / "reward")


def test_labelled_texts_become_pairs(road):
  policy = reward.load_policy(str(road / "lm"))
  train, test = pair_labelled(str(road / "labelled"), "", "", 30, 8, policy)
  assert len(train) == 30 and len(test) == 8
  for split in (train, test):
    for name, word in (("chosen", "fine"), ("rejected", "bad")):
      for row, size in zip(split.arrays[name], split.arrays[f"{name}_length"]):
        text = policy.corpus.tokenizer.decode(row[1 : size - 1])
        assert row[0] == policy.end and row[size - 1] == policy.end and text.startswith(f"a {word} one")
  texts = lambda split: {tuple(row.tolist()) for row in split.arrays["chosen"]}
  assert not texts(train) & texts(test)
  other, _ = pair_labelled(str(road / "labelled"), "", "neg", 4, 2, policy)
  assert "bad" in policy.corpus.tokenizer.decode(other.arrays["chosen"][0])


@pytest.mark.parametrize("module", [rlhf, dpo])
def test_the_whole_road_on_texts(road, judge, tmp_path, module):
  """A tuned policy with prompts of their own lengths, and a reward model of labelled texts, by one command each."""
  more = dict(answers=2) if module is rlhf else dict(pairs=8, test_pairs=4)
  config = module.Config(
    policy=str(road / "sft"), reward=judge, answer_tokens=3, batch_size=2, steps=2, eval_every=0,
    log_every=2, devices=1, workdir=str(tmp_path / "run"), labelled=str(road / "labelled"), **more,
  )  # fmt: skip
  assert module.main(config) == 0
  card = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
  assert 0 <= card["reference_words"]["mean"] <= 1 and "policy_words" in card
  assert "reference" in (tmp_path / "run" / "answers.txt").read_text()
  situation = make_situation(config)
  assert len(set(situation.train.arrays["length"].tolist())) > 2 and (tmp_path / "run" / "rewards.png").exists()
  with pytest.raises(InputError, match="is of texts: expected one of listed answers"):
    make_situation(module.Config(**SIZES, reward=judge))


def test_pairs_of_a_file_leave_answers_and_a_picture(road, tmp_path):
  """To a policy that answers and to one that goes on: what both say, and the rewards that the policy stands for."""
  pairs = tmp_path / "pairs.jsonl"
  rows = [{"prompt": "ab" * (1 + i % 3), "chosen": "a" * (1 + i), "rejected": "b"} for i in range(6)]
  pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
  for name in ("lm", "sft"):
    given = dict(policy=str(road / name), preferences=str(pairs), workdir=str(tmp_path / name), devices=1)
    assert dpo.main(dpo.Config(**given, batch_size=2, steps=2, eval_every=0, log_every=2)) == 0
    said = (tmp_path / name / "answers.txt").read_text()
    assert said.count("prompt") == 1 and said.count("reference") == 1 and said.count("policy") == 1  # one is tested
    assert (tmp_path / name / "rewards.png").stat().st_size > 5000
    writer = generate.load_run(generate.Config(run=str(tmp_path / name)))
    assert writer.stops and writer.separator == {"lm": None, "sft": "\n"}[name]  # either ends as its answers did
  assert not generate.load_run(generate.Config(run=str(road / "lm"))).stops


def test_a_run_that_answers_is_asked_as_it_has_learned_and_stops(road, monkeypatch, capsys):
  """A policy that goes on from it likewise; what goes on from a text is given the prompt alone."""
  asked = []
  monkeypatch.setattr(generate, "write_tokens", lambda model, prompts, count, seed, sampling, end: (
    asked.append((prompts, end)) or [[*found.tokenizer.encode("b a").tolist(), found.end]]
  ))  # fmt: skip
  found = generate.load_run(generate.Config(run=str(road / "sft")))
  assert found.separator == "\n"
  assert generate.main(generate.Config(run=str(road / "sft"), prompt="abab ")) == 0
  ids = found.tokenizer.encode("abab\n").tolist()
  assert asked == [([[found.end, *ids]], found.end)] and capsys.readouterr().out == "abab\nb a\n\n"
  for name, behind in (("sft", "\n"), ("lm", None)):
    policy = rlhf.Config(policy=str(road / name), reward="r")
    corpus, separator = generate.find_text("lm.rlhf", policy, road)
    assert separator == behind and corpus.tokenizer == found.tokenizer
  with pytest.raises(InputError, match="writes listed answers of a few words: expected a run with --policy"):
    generate.find_text("lm.dpo", dpo.Config(), road)


def test_who_counts_words_tells_texts(road, tmp_path):
  fine, bad = ["a fine one", "fine"], ["a bad one", "bad thing"]
  assert count_words(str(road / "labelled"), "", fine, bad) == [1.0, 0.0]
  assert count_words(str(road / "labelled"), "neg", fine, bad) == [0.0, 1.0]
  (tmp_path / "neg.txt").write_text("one\ntwo\nthree\n")
  (tmp_path / "pos.txt").write_text("four\nfive\nsix\n")
  assert count_words(str(tmp_path), "", fine) == []  # nothing that could be counted


def test_a_judge_of_classes_does_not_read_end(road, tmp_path, monkeypatch):
  given = dict(pretrained=str(road / "lm"), task="file", labelled=str(road / "labelled"), workdir=str(tmp_path))
  assert tune.main(tune.Config(**given, devices=1, batch_size=4, steps=2, eval_every=0, log_every=2)) == 0
  config = rlhf.Config(policy=str(road / "lm"), reward=str(tmp_path), prompt_tokens=4, answer_tokens=3)
  judge = make_situation(config).judge
  prompts = Prompts(jnp.array([[0, 5, 6, 7]]).at[0, 0].set(reward.load_policy(str(road / "lm")).end), jnp.array([4]))
  end = prompts.tokens[0, 0]
  score = lambda answer, size: float(judge.score(judge.params, prompts, jnp.array([answer]), jnp.array([size]))[0])
  assert score([8, int(end), 3], 2) == pytest.approx(score([8, 9, 3], 1), abs=1e-5)
  assert score([8, int(end), 3], 2) != pytest.approx(score([8, 9, 3], 2), abs=1e-7)
  neg, pos = mlnotes.load_run(tmp_path).model.outputs(np.array([[5, 6, 7, 8, 9, 3]]), np.array([6]))[0]
  odds = pos - neg
  assert abs(odds) > 1e-3 and score([8, 9, 3], 3) == pytest.approx(odds, abs=1e-5)
  neg = make_situation(rlhf.Config(**{**config.__dict__, "preferred": "neg"})).judge
  given = neg.params, prompts, jnp.array([[8, 9, 3]]), jnp.array([3])
  assert float(neg.score(*given)[0]) == pytest.approx(-score([8, 9, 3], 3), abs=1e-5)  # log odds of the other class
  punished = make_situation(rlhf.Config(**{**config.__dict__, "penalize_unended": True, "unended_reward": -7.0})).judge
  assert punished.score(punished.params, prompts, jnp.array([[8, 9, 3]]), jnp.array([3]))[0] == -7
  # What it has learned with around its texts stands there too.
  monkeypatch.setattr("experiments.lm._tuning_tasks.find_marks", lambda *_: ((3,), (4, 6)))
  tune.build.cache_clear()
  marked = make_situation(rlhf.Config(**{**config.__dict__, "beta": 0.7})).judge
  tuned = dataclasses.replace(load_config(tmp_path, {"lm.tune": tune.Config}, "")[1], devices=1)
  said = tune.make(tuned).model(marked.params).say(jnp.array([[3, 5, 6, 7, 8, 9, 4, 6, 0]]), jnp.array([8]))[0]
  given = marked.params, prompts, jnp.array([[8, 9, int(end)]]), jnp.array([3])
  assert float(marked.score(*given)[0]) == pytest.approx(float(said[1] - said[0]), abs=1e-5)
  tune.build.cache_clear()


def test_marks_around_rows_are_those_around_texts():
  tokenizer = types.SimpleNamespace(encode=lambda text: np.array(list(map(int, text)), np.int32), special={})
  texts = ["5678", "7", "59"]
  rows = np.array([[5, 6, 7, 8], [7, 1, 1, 1], [5, 9, 1, 1]])
  for marks in (((3,), (4, 2)), ((3, 2), ()), ((), ())):
    expected = encode_texts(tokenizer, texts, 4 + sum(map(len, marks)), marks)
    found, size = jax.jit(mark_rows, static_argnums=2)(jnp.array(rows), jnp.array([4, 1, 2]), marks)
    np.testing.assert_array_equal(size, expected["length"])
    real = np.arange(found.shape[1]) < np.asarray(size)[:, None]
    np.testing.assert_array_equal(np.asarray(found)[real], expected["tokens"][real])
