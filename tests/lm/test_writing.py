"""Text behind prompts: what prompts become, which are refused, a run from its directory."""

import dataclasses
import json
import shutil
import types

import jax
import jax.numpy as jnp
import pytest

from experiments.lm import generate, pretrain
from mlnotes.data import Corpus, Windows
from mlnotes.data.tokenizer import train_tokenizer
from mlnotes.engine.errors import InputError
from mlnotes.lm import Sampling, make_bert, make_gpt2, save_hugging_face

SIZES = dict(depth=1, width=8, heads=2, length=6, batch_size=4, steps=4, warmup_steps=0, log_every=2, eval_every=0)


def corpus_of(documents):
  tokenizer = train_tokenizer("characters", ("abc",), 0, ("<end>",))
  end = tokenizer.special["<end>"]
  tokens = tokenizer.encode("abcabcabc")
  tokens[4:5] = end if documents else tokens[4]
  return Corpus("x", Windows(tokens, 3), Windows(tokens, 3), tokenizer), end


def encode(prompt, corpus):
  return generate.encode_prompt(prompt, corpus.tokenizer, corpus.end, 6)


def test_a_prompt_stands_behind_the_beginning_of_a_document():
  corpus, end = corpus_of(documents=True)
  assert encode("", corpus) == [end]
  assert encode("ab", corpus) == [end, 0, 1]
  assert encode("abcab", corpus) == [0, 1, 2, 0, 1]  # no room for it
  assert encode("ab", corpus_of(documents=False)[0]) == [0, 1]


@pytest.mark.parametrize("prompt, documents, words", [
  ("", False, "--prompt is empty and the run's text has no <end>"),
  ("abcabc", True, "--prompt has 6 tokens: expected fewer than the 6 of the run's windows"),
  ("axb?", True, r"--prompt has '\?', 'x': expected what the run's text had"),
])  # fmt: skip
def test_prompts_that_cannot_be_gone_on_from(prompt, documents, words):
  with pytest.raises(InputError, match=words):
    encode(prompt, corpus_of(documents)[0])


def test_flags_reach_the_sampling():
  sampling = lambda **flags: generate.make_sampling(generate.Config(**flags))
  assert sampling() == Sampling(temperature=0.8)
  assert sampling(temperature=0.0, top_k=3, repetition_penalty=1.2) == Sampling(repetition_penalty=1.2)
  everything = dict(temperature=1.5, top_k=3, top_p=0.9, min_p=0.1, repetition_penalty=1.2)
  assert sampling(**everything) == Sampling(**everything)
  assert {"top_k", "top_p", "min_p", "seed"} <= set(generate.Config(temperature=0.0).idle_flags())


@pytest.mark.parametrize("flags, words", [
  (dict(tokens=0), "--tokens"),
  (dict(texts=0), "--texts"),
  (dict(temperature=-1.0), "--temperature"),
  (dict(top_p=0.0), "--top_p"),
  (dict(min_p=1.5), "--min_p"),
  (dict(repetition_penalty=0.0), "--repetition_penalty"),
  (dict(prompt="a", file="b"), "--prompt and --file"),
  (dict(run="a", weights="b"), "--run and --weights"),
])  # fmt: skip
def test_what_does_not_fit_is_one_sentence(flags, words):
  with pytest.raises(InputError, match=words):
    generate.Config(**flags)


def test_each_line_of_a_file_is_a_prompt(tmp_path):
  path = tmp_path / "prompts.txt"
  path.write_text("one\n\ntwo \n")
  assert generate.read_prompts(generate.Config(file=str(path))) == ["one", "two "]
  path.write_text("\n")
  with pytest.raises(InputError, match="has no prompt"):
    generate.read_prompts(generate.Config(file=str(path)))


def test_a_file_that_cannot_be_is_refused_before_anything_is_written(tmp_path):
  """Nor is a run trained first."""
  for out, words in ((tmp_path, "is a folder"), (tmp_path / "absent" / "x.txt", "absent, which is no folder")):
    with pytest.raises(InputError, match=words):
      generate.main(generate.Config(out=str(out)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A GPT-2 of random weights with its tokenizer, as others save them."""
  library = pytest.importorskip("tokenizers")
  directory = tmp_path_factory.mktemp("gpt2")
  module = make_gpt2(vocabulary=6, length=8, depth=1, heads=2, width=8)
  save_hugging_face(directory, module, module.init(jax.random.key(0), jnp.zeros((1, 8), int))["params"])
  config = json.loads((directory / "config.json").read_text())
  (directory / "config.json").write_text(json.dumps(config | {"bos_token_id": 0, "eos_token_id": 1}))
  words = {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "c": 4}
  made = library.Tokenizer(library.models.WordLevel(words, unk_token="c"))
  made.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
  made.add_special_tokens(["<s>", "</s>"])
  made.save(str(directory / "tokenizer.json"))
  return directory


def test_weights_of_others_write(folder, monkeypatch, capsys, tmp_path):
  asked = []

  def write(model, prompts, count, seed, sampling, end):
    asked.append((model.module.vocabulary, prompts, count, end))
    drawn.append((seed, sampling))
    return [[3, 2, 1, 2], [3], [4], [2]][: len(prompts)]

  drawn = []
  monkeypatch.setattr(generate, "write_tokens", write)
  assert generate.main(generate.Config(weights=str(folder), prompt="a b", tokens=5, stop=True)) == 0
  assert asked == [(6, [[0, 2, 3]], 5, 1)]
  assert capsys.readouterr().out == "a b b a\na\n"
  several = tmp_path / "several"
  shutil.copytree(folder, several)
  config = json.loads((several / "config.json").read_text())
  (several / "config.json").write_text(json.dumps(config | {"eos_token_id": [1, 0]}))
  assert generate.load_weights(str(several)).end == 1
  (tmp_path / "prompts.txt").write_text("a\nb\n")
  given = dict(file=str(tmp_path / "prompts.txt"), texts=2, seed=7, temperature=0.5, top_k=3, out=str(tmp_path / "out"))
  assert generate.main(generate.Config(weights=str(folder), tokens=5, **given)) == 0
  assert asked[1] == (6, [[0, 2], [0, 2], [0, 3], [0, 3]], 5, -1)
  assert drawn == [(0, Sampling(0.8)), (7, Sampling(0.5, top_k=3))]
  line = "-" * 40
  assert capsys.readouterr().out == f"a b a\na\n{line}\na b\n{line}\nb c\n{line}\nb a\n"
  assert (tmp_path / "out").read_text() == f"a b a\na\n{line}\na b\n{line}\nb c\n{line}\nb a\n"


def test_a_prompt_of_a_file_is_named_by_its_number(folder, tmp_path):
  (tmp_path / "prompts.txt").write_text("a\na b a b a b a b a\n")
  with pytest.raises(InputError, match=r"--file=.*prompts\.txt: prompt 2 has 9 tokens"):
    generate.main(generate.Config(weights=str(folder), file=str(tmp_path / "prompts.txt")))


def test_what_writes_is_the_run_its_seed_and_its_checkpoint(monkeypatch, tmp_path):
  """As the flags name them, with the data where they are now, on one device."""
  path, asked, made = tmp_path / "text.txt", [], []
  path.write_text("a few words " * 9)
  trained = pretrain.Config(dataset=str(path), seed=3, seeds=4, devices=2, data_dir="old", **SIZES)

  def restore(directory, experiment, feeds, config, checkpoint, seed):
    asked.append((directory, checkpoint, seed, config.devices, config.data_dir))
    return {seed: f"state {seed}"}, 9

  model = lambda config: types.SimpleNamespace(model=lambda state: made.append(state))
  monkeypatch.setattr(generate, "find_stage", lambda flag, given, module, first: given or first)
  monkeypatch.setattr(generate, "load_config", lambda directory, known: ("lm.pretrain", trained))
  monkeypatch.setattr(generate, "restore_states", restore)
  monkeypatch.setattr(pretrain, "make", model)
  for flags in ({}, dict(checkpoint="best", model_seed=5, data_dir="new")):
    writer = generate.load_run(generate.Config(run="w", **flags))
    assert writer.start == writer.end == writer.tokenizer.special["<end>"] and writer.told == "step 9"
  assert asked == [("w", "last", 3, 1, "old"), ("w", "best", 5, 1, "new")] and made == ["state 3", "state 5"]
  trained = dataclasses.replace(trained, objective="masked")
  with pytest.raises(InputError, match="learned by --objective=masked: expected causal, which foretell"):
    generate.load_run(generate.Config(run="w"))


@pytest.mark.parametrize("change, words", [
  (dict(vocab_size=4), "wte.weight"),
  (None, "has no readable config.json"),
  ("encoder", "reads from both sides"),
])  # fmt: skip
def test_a_folder_that_cannot_write_is_refused(change, words, folder, tmp_path):
  if change == "encoder":
    module = make_bert(vocabulary=6, length=8, depth=1, heads=2, width=8)
    save_hugging_face(tmp_path, module, module.init(jax.random.key(0), jnp.zeros((1, 8), int))["params"])
  elif change:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
  with pytest.raises(InputError, match=words):
    generate.main(generate.Config(weights=str(tmp_path)))


@pytest.mark.thorough
def test_a_run_is_trained_and_writes(tmp_path, capsys):
  text = tmp_path / "lines.txt"
  text.write_text("\n".join(f"{i} and {i * i}" for i in range(40)))
  workdir = tmp_path / "run"
  flags = dict(dataset=str(text), documents="line", workdir=str(workdir), devices=1)
  assert pretrain.main(pretrain.Config(**flags, **SIZES)) == 0
  assert (workdir / "result.json").exists() and (workdir / "sample.txt").exists()
  capsys.readouterr()
  flags = dict(run=str(workdir), prompt="1 an", tokens=9, out=str(tmp_path / "out.txt"))
  assert generate.main(generate.Config(**flags, texts=2)) == 0
  first, second = capsys.readouterr().out.strip("\n").split(f"\n{'-' * 40}\n")
  assert first.startswith("1 an") and second.startswith("1 an") and first != second
  assert generate.main(generate.Config(**flags)) == 0
  assert capsys.readouterr().out.rstrip("\n") == first  # whatever else is asked for
  assert (tmp_path / "out.txt").read_text().rstrip("\n") == first
  with pytest.raises(InputError, match="--prompt has 6 tokens"):
    generate.main(generate.Config(run=str(workdir), prompt="1 and "))
