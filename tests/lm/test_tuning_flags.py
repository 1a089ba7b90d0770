"""The flags of tuning: what they reach, what trains first, what does not fit."""

import dataclasses
import json
import types

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lm import _tuning_network, _tuning_tasks, pretrain, tune
from experiments.lm._tuning import METHODS, build_tuning, find_targets
from mlnotes.engine.errors import InputError

NETWORK = dict(model="gpt2", tied=False, depth=2, width=8, heads=2, length=24)
SMALL = dict(
  task="shift", method="lora", batch_size=4, steps=4, warmup_steps=0, log_every=2, eval_every=0, train_rows=40,
  test_rows=12, devices=1,
)  # fmt: skip


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
  (dict(task="file", labelled="absent.tsv"), "--labelled=absent.tsv: no such file"),
  (dict(method="lora", lora_rank=9), "does not fit the network of the flags: rank is 9"),
  (dict(penalty="fisher", method="last", last_layers=5), "--last_layers=5 does not fit"),
])  # fmt: skip
def test_what_does_not_fit_is_said_before_a_network_is_trained(flags, words, monkeypatch, text):
  monkeypatch.setattr(_tuning_network, "find_stage", lambda *given, **settings: pytest.fail("trained"))
  with pytest.raises(InputError, match=words):
    tune.main(tune.Config(**{**SMALL, **NETWORK, "dataset": text, **flags}))


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
