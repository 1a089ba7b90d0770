"""Pretraining that goes on from weights as Hugging Face saves them: whose parameters, tokens and masks they are."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lm import pretrain, tune
from experiments.lm._models import build_decoder
from experiments.lm._tuning_network import fresh_params
from mlnotes.data.flags import load_data
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key
from mlnotes.engine.record import config_dict
from mlnotes.lm import load_hugging_face, make_bert, make_gpt2, make_t5, save_hugging_face, token_cross_entropy

SIZES = dict(vocabulary=9, length=8, depth=1, heads=2, width=8)
FLAGS = dict(length=6, batch_size=4, steps=4, warmup_steps=0, log_every=2, eval_every=0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  library = pytest.importorskip("tokenizers")
  root = tmp_path_factory.mktemp("weights")
  made = library.Tokenizer(library.models.WordLevel({"[PAD]": 0, "[MASK]": 1, "<s>": 2, "</s>": 3, "[UNK]": 4, "a": 5,
                                                     "b": 6, "c": 7}, unk_token="[UNK]"))  # fmt: skip
  made.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
  made.add_special_tokens(["[PAD]", "[MASK]", "<s>", "</s>", "[UNK]"])
  forms = {"gpt2": make_gpt2(**SIZES), "bert": make_bert(**SIZES), "t5": make_t5(9, 1, 2, 8)}
  for name, module in forms.items():
    given = [jnp.zeros((1, 4), int)] * (2 if name == "t5" else 1)
    save_hugging_face(root / name, module, module.init(jax.random.key(3), *given)["params"])
    made.save(str(root / name / "tokenizer.json"))
  (root / "text.txt").write_text("a b c a a b b c " * 30)
  return root


def start(root, name, **flags):
  given = dict(dataset=str(root / "text.txt"), weights=str(root / name))
  config = pretrain.Config.tuned(**{**FLAGS, **given, **flags})
  experiment, feeds = pretrain.make(config), pretrain.make_feeds(config)
  batch = feeds.train.draw(feeds.train.arrays, root_key(0), 0)
  return config, experiment, batch, jax.jit(experiment.init)(root_key(0), batch)


def test_the_first_state_has_the_folders_parameters_and_reads_its_tokens(folders):
  config, experiment, batch, state = start(folders, "gpt2", dropout=0.5, attention_dropout=0.25)
  module = make_gpt2(**SIZES)
  params = module.init(jax.random.key(3), jnp.zeros((1, 4), int))["params"]
  jax.tree.map(np.testing.assert_array_equal, state.params, params)
  assert config.tokenizer.endswith("gpt2/tokenizer.json") and config.learning_rate == 1e-4
  assert set(np.unique(batch["tokens"])) <= {3, 5, 6, 7}
  given = dict(dataset=str(folders / "text.txt"), weights=str(folders / "gpt2"), remat=True, precision="bfloat16")
  wide = build_decoder(pretrain.Config.tuned(**FLAGS, **given), 9)
  assert wide.transformer.remat and wide.dtype == wide.transformer.dtype == jnp.bfloat16
  body = experiment.model(state).module.transformer
  assert (body.dropout, body.attention_dropout) == (0.5, 0.25)
  batch = {**batch, "index": jnp.arange(4), "mask": jnp.ones(4)}
  found = jax.jit(experiment.evaluate)(state, batch)["loss"]
  logits = module.apply({"params": params}, batch["tokens"][:, :-1])
  np.testing.assert_allclose(found.total, token_cross_entropy(logits, batch["tokens"][:, 1:])[0].sum(), rtol=1e-5)
  after, metrics = jax.jit(experiment.step)(state, batch)
  assert np.isfinite(metrics["loss"]) and any(
    jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.any(a != b)), after.params, params))
  )


def test_an_encoder_hides_words_by_its_own_mask(folders):
  config, experiment, batch, state = start(folders, "bert", objective="masked", mask_rate=0.9, mask_share=1.0,
                                           random_share=0.0)  # fmt: skip
  task = pretrain.make_task(config, load_data(config))
  shown = jax.vmap(task.objective.prepare)(jax.random.split(jax.random.key(0), 4), batch["tokens"])
  assert {1} < set(np.unique(shown.inputs)) <= {1, 3, 5, 6, 7}
  _, metrics = jax.jit(experiment.step)(state, batch)
  assert np.isfinite(metrics["loss"])


@pytest.mark.parametrize("name, flags, words", [
  ("bert", {}, "reads from both sides: expected --objective=masked"),
  ("gpt2", dict(length=9), "has positions for 8 tokens"),
  ("gpt2", dict(objective="replaced"), "--objective=replaced has more: expected one of causal"),
  ("bert", dict(objective="masked", pairs="order"), "--pairs=order has more: expected --pairs=none"),
  ("gpt2", dict(tokenizer="bytes"), "has 9 embeddings: expected 257 or more"),
  ("t5", {}, "has an encoder and a decoder"),
])  # fmt: skip
def test_weights_that_do_not_fit_the_flags_are_refused(name, flags, words, folders):
  with pytest.raises(InputError, match=words):
    start(folders, name, **flags)


@pytest.mark.parametrize("name, objective", [("bert", "masked"), ("gpt2", "causal")])
def test_what_others_have_trained_is_tuned(name, objective, folders):
  """LoRA's first state says what the folder's network does; only what was added and the head learn."""
  given = dict(dataset=str(folders / "text.txt"), weights=str(folders / name), objective=objective, task="follows")
  config = tune.Config.tuned(**given, **FLAGS, method="lora", lora_rank=2, train_rows=16, test_rows=4)
  experiment, feeds = tune.make(config), tune.make_feeds(config)
  batch = feeds.train.draw(feeds.train.arrays, root_key(0), 0)
  state = jax.jit(experiment.init)(root_key(0), batch)
  params = load_hugging_face(folders / name)[1]
  jax.tree.map(np.testing.assert_array_equal, state.frozen, params)
  after, metrics = jax.jit(experiment.step)(state, batch)
  assert np.all(np.isfinite(metrics["loss"]))
  assert set(after.params) == {"network", "lora", "head"} and not after.params["network"]
  with pytest.raises(InputError, match="--scratch is of a network that has learned nothing"):
    tune.Config.tuned(**given, scratch=True)


def test_what_others_have_trained_is_read_as_it_has_learned_to(folders):
  """Without a word about it: a GPT-2 from the left, a BERT from both sides."""
  tuned = lambda name, **flags: tune.Config.tuned(weights=str(folders / name), **flags).objective
  assert (tuned("gpt2"), tuned("bert"), tune.Config.tuned().objective) == ("causal", "masked", "masked")
  assert tuned("bert", objective="prefix") == "prefix"


def test_from_scratch_is_from_no_weights(folders, tmp_path):
  """Of a run that went on from a folder as of any other."""
  config = pretrain.Config.tuned(dataset=str(folders / "text.txt"), weights=str(folders / "gpt2"), **FLAGS)
  (tmp_path / "config.json").write_text(json.dumps({"experiment": "lm.pretrain", "config": config_dict(config)}))
  config = tune.Config(pretrained=str(tmp_path), scratch=True, task="follows", train_rows=16, test_rows=4, **FLAGS)
  network, _ = tune.build(config)
  found = jax.jit(lambda: fresh_params(network, root_key(0)))()
  theirs = load_hugging_face(folders / "gpt2")[1]
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.shape, b.shape), found, theirs)
  assert not np.allclose(found["embed"]["embedding"], theirs["embed"]["embedding"])


def test_texts_stand_between_the_marks_of_a_published_encoder(folders, tmp_path):
  """[CLS] and [SEP], also where a text is cut; a GPT-2 has none."""
  library = pytest.importorskip("tokenizers")
  names = ["[PAD]", "[MASK]", "[CLS]", "[SEP]", "[UNK]", "a", "b", "c"]
  made = library.Tokenizer(library.models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
  made.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
  made.add_special_tokens(names[:5])
  (tmp_path / "labels").mkdir()
  for label, text in (("0", "a b"), ("1", "c a b c a b c a")):
    (tmp_path / "labels" / f"{label}.txt").write_text("\n".join([text, f"{text} b"]))
  rows = {}
  for name in ("bert", "gpt2"):
    shutil.copytree(folders / name, tmp_path / name)
    made.save(str(tmp_path / name / "tokenizer.json"))
    given = dict(
      dataset=str(folders / "text.txt"), weights=str(tmp_path / name), task="file", length=6, method="features"
    )
    config = tune.Config.tuned(**given, labelled=str(tmp_path / "labels"))
    _, question = tune.build(config)
    both = [split.arrays["tokens"][:, : split.arrays["length"].max()] for split in (question.train, question.test)]
    rows[name] = {tuple(row.tolist()) for split in both for row in split}
    assert question.marks == (((2,), (3,)) if name == "bert" else ((), ()))
  assert {(2, 7, 5, 6, 7, 3)} <= rows["bert"] and all(row[0] == 2 and 3 in row for row in rows["bert"])
  assert not any({2, 3} & set(row) for row in rows["gpt2"])


def test_a_folder_that_is_not_there_is_named_by_its_flag(tmp_path):
  for experiment in (pretrain, tune):
    with pytest.raises(InputError, match=r"--weights=.*absent is no folder: expected config.json"):
      experiment.Config.tuned(weights=str(tmp_path / "absent"))


def test_flags_of_a_network_do_nothing_beside_weights(folders):
  idle = set(pretrain.Config.tuned(weights=str(folders / "gpt2")).idle_flags())
  assert {"model", "depth", "heads", "width", "tied"} <= idle and "length" not in idle
