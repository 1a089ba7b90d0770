"""Supervised tuning: what a row is, what the loss is of, what stays as it was, what is told before and after."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlnotes
from experiments.lm import _sft_report, sft
from mlnotes.data import DataError, read_instructions
from mlnotes.data.docstrings import read_docstrings, read_summaries
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key
from mlnotes.engine.flags import config_fields

SMALL = dict(
  scratch=True, dataset="pydoc", tokenizer="characters", batch_size=4, length=24, depth=1, width=8, heads=2, steps=4,
  warmup_steps=1, eval_every=0, log_every=2, learning_rate=0.03, data_placement="device",
)  # fmt: skip
ROWS = [("a?", "bb"), ("cd?", "a"), ("e?", "ccc"), ("ab?", "b"), ("d?", "ca")] * 2


@pytest.fixture(scope="module")
def instructions(tmp_path_factory):
  path = tmp_path_factory.mktemp("instructions") / "rows.jsonl"
  path.write_text("".join(json.dumps({"prompt": a, "answer": b}) + "\n" for a, b in ROWS))
  return str(path)


def start(**flags):
  config = sft.Config(**{**SMALL, **flags})
  experiment, feeds = sft.make(config), sft.make_feeds(config)
  batch = jax.jit(lambda: feeds.train.draw(feeds.train.arrays, root_key(0), 0))()
  return config, experiment, batch, jax.jit(experiment.init)(root_key(3), batch)


def test_a_row_is_a_prompt_an_answer_and_end(instructions):
  network, rows = sft.build(sft.Config(**SMALL, instructions=instructions))
  tokenizer, end = network.corpus.tokenizer, network.corpus.end
  found = set()
  for split in (rows.train, rows.test):
    for row, prompt, length in zip(*(split.arrays[name] for name in ("tokens", "prompt", "length"))):
      assert row[0] == end and row[length - 1] == end
      found.add((tokenizer.decode(row[1:prompt]), tokenizer.decode(row[prompt : length - 1])))
  assert found == {(f"{a}\n", b) for a, b in ROWS}
  prompts = {tokenizer.decode(row[1:size]) for row, size in zip(rows.test.arrays["tokens"], rows.test.arrays["prompt"])}
  assert len(prompts) == 1 and {a for a, _ in rows.texts} == {text.strip() for text in prompts}


def test_the_loss_is_of_the_answers_tokens_and_their_end_alone(instructions):
  """A gradient with respect to each embedding's row, by hand: the mean over all tokens of the batch."""
  _, experiment, batch, state = start(instructions=instructions)
  means = jax.jit(experiment.evaluate)(state, {**batch, "mask": jnp.ones(4)})
  model = experiment.model(state)
  logs = np.asarray(jax.jit(lambda tokens: jax.nn.log_softmax(model(tokens)))(batch["tokens"][:, :-1]))
  total, count = 0.0, 0
  for n in range(4):
    for t in range(int(batch["prompt"][n]), int(batch["length"][n])):
      total -= logs[n, t - 1, int(batch["tokens"][n, t])]
      count += 1
  np.testing.assert_allclose(means["loss"].total, total, rtol=1e-4)
  assert means["loss"].count == count
  first, end, mean = _sft_report.nats_by_place(model.module, model.params, batch)
  of = lambda places: -np.mean([logs[n, t - 1, int(batch["tokens"][n, t])] for n, t in enumerate(map(int, places))])
  np.testing.assert_allclose(mean, total / count, rtol=1e-4)
  np.testing.assert_allclose((first[0], end), (of(batch["prompt"]), of(batch["length"] - 1)), rtol=1e-4)
  _, metrics = jax.jit(experiment.step)(state, batch)
  np.testing.assert_allclose(metrics["loss"].total / metrics["loss"].count, total / count, rtol=1e-4)


def test_the_answer_alone_or_the_prompt_too(instructions):
  _, experiment, batch, state = start(instructions=instructions, answer_only=False)
  means = jax.jit(experiment.evaluate)(state, {**batch, "mask": jnp.ones(4)})
  assert means["loss"].count == int(jnp.sum(batch["length"] - 1))


def test_a_tuned_model_answers_and_stops(instructions, tmp_path):
  given = {**SMALL, "instructions": instructions, "test_instructions": instructions, "steps": 150, "devices": 1}
  config = sft.Config(**given, workdir=str(tmp_path))
  assert sft.main(config) == 0
  card = json.loads((tmp_path / "result.json").read_text())["metrics"]
  figure = lambda name: card[name]["mean"]
  assert figure("exact") > 0.7 and figure("ended") == 1 and figure("ended_before") < 0.5
  assert figure("loss") < 0.5 < figure("loss_before") and figure("word_f1") > figure("word_f1_before")
  assert (tmp_path / "sft.png").stat().st_size > 5000 and "its answer" in (tmp_path / "answers.txt").read_text()
  found = mlnotes.load_run(tmp_path)
  assert found.model(jnp.zeros((1, 3), jnp.int32)).shape[:2] == (1, 3)


def test_lora_moves_nothing_but_what_it_adds(instructions):
  _, experiment, batch, state = start(instructions=instructions, method="lora", lora_rank=2, schedule="constant")
  before = jax.tree.map(np.asarray, state.frozen)
  say = jax.jit(lambda state: experiment.model(state)(batch["tokens"]))
  step, later = jax.jit(experiment.step), state
  for _ in range(3):
    later, _ = step(later, batch)
  jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, later.frozen))
  assert not np.allclose(say(state), say(later))


def test_prompts_that_are_learned_and_tested_are_counted(instructions):
  notes = lambda **flags: sft.build(sft.Config(**SMALL, instructions=instructions, **flags))[1].notes
  assert "10 of 10 test prompts are learned from too." in notes(test_instructions=instructions)
  assert not any("learned from too" in sentence for sentence in notes())


def test_its_flags_are_of_the_methods_that_it_has():
  """A run of lm.tune has others too."""
  told = {item.name: metadata["help"] for item, _, metadata in config_fields(sft.Config)}
  assert not told.keys() & {"adapter_width", "mix_norm"} and "lora_rank" in told
  assert "adapters" not in told["method"] and "last: --last_layers" in told["method"]
  assert not sft.Config().idle_flags().keys() - told.keys()


@pytest.mark.parametrize(
  ("flags", "sentence"),
  [
    (dict(instructions="runs/none.jsonl"), "--instructions=runs/none.jsonl: no such file"),
    (dict(instructions="notes"), "--instructions=notes: no such instructions"),
    (dict(test_instructions="x.jsonl"), "--test_instructions=x.jsonl"),
    (dict(length=2), "no prompt with its answer fits the 3 tokens"),
    (dict(end_token=False), "--dataset=pydoc has a text without <end>"),
  ],
)
def test_bad_input_is_one_sentence(flags, sentence):
  with pytest.raises((InputError, DataError), match=sentence):
    sft.build(sft.Config(**{**SMALL, **flags}))


def test_dropout_is_drawn_where_the_network_learns(instructions):
  _, experiment, batch, state = start(instructions=instructions, dropout=0.5)
  step = jax.jit(experiment.step)
  losses = [step(state._replace(step=jnp.int32(i)), batch)[1]["loss"].total for i in (0, 1)]
  assert losses[0] != losses[1]


def test_a_batch_that_is_too_large_is_said_before_a_network_is_trained(instructions, monkeypatch, tmp_path):
  monkeypatch.setattr(sft, "pretrain_first", lambda *given: pytest.fail("it was trained"))
  config = sft.Config(
    **{**SMALL, "instructions": instructions, "scratch": False, "batch_size": 9, "workdir": str(tmp_path)}
  )
  with pytest.raises(InputError, match="--batch_size=9 is out of range: expected 1 to 8 examples"):
    sft.main(config)


def test_a_bad_line_of_a_file_is_named(tmp_path):
  path = tmp_path / "rows.jsonl"
  for content, sentence in (
    ('{"prompt": "a", "answer": " "}', "line 1: found an empty answer"),
    ('{"prompt": "a"}', "line 1: found the fields prompt"),
    ("\n", "found no prompt"),
    ('{"prompt": "a", "answer": "b"}\n' * 2, "found one prompt, expected two or more, or --test_instructions"),
  ):
    path.write_text(content)
    with pytest.raises(DataError, match=sentence):
      read_instructions(str(path))
  path.write_text('{"question": "1 + 1", "answer": "2"}\n' * 2 + '{"question": "2", "answer": "2"}\n')
  found = read_instructions(str(path), fields=("question", "answer"))
  assert {len(found.train), len(found.test)} == {1, 2}


def test_built_in_prompts_of_modules_that_nobody_read():
  found = read_instructions("docstrings")
  assert len(found.train) > 1000 and len(found.test) > 50
  assert ("textwrap.dedent(text)", "Remove any common leading whitespace from every line in `text`.") in (
    found.train + found.test
  )
  module = lambda rows: {prompt.partition("(")[0].rpartition(".")[0] for prompt, _ in rows}
  top = {name for name in module(found.test) if "." not in name}
  assert not top & module(found.train)
  assert len(read_docstrings()) == len(read_summaries())


def test_words_shared():
  assert _sft_report.word_f1("Return the list.", "return a list") == pytest.approx(2 * 2 / 6)
  assert _sft_report.word_f1("", "") == 0 and _sft_report.word_f1("a a", "a") == pytest.approx(2 / 3)
