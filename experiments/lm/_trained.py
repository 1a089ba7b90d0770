"""Trained decoders, as what is done with them needs them."""

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from experiments.lm import pretrain
from mlnotes.data import Corpus
from mlnotes.data.flags import load_data
from mlnotes.engine.errors import InputError
from mlnotes.engine.trained import load_config, restore_seed, unplace
from mlnotes.lm import LanguageModel


class Decoder(NamedTuple):
  """A model that foretells what follows, with its text."""

  module: LanguageModel
  params: Any
  corpus: Corpus
  config: pretrain.Config


def restore_model(
  module: ModuleType,
  config: Any,
  directory: Path,
  said: str,
  checkpoint: Literal["last", "best"] = "last",
  model_seed: int = -1,
) -> Any:
  """What `Experiment.model` gives of a run of the experiment `module`, with its params on no device in particular.

  Of its first seed where `model_seed` is negative. `config` is the run's, as it is read on one device.
  """
  experiment, state = restore_seed(module, directory, config, checkpoint, model_seed, said)
  model = experiment.model(state)
  return model._replace(params=unplace(model.params))


def load_decoder(
  flag: str,
  directory: Path,
  checkpoint: Literal["last", "best"] = "last",
  model_seed: int = -1,
  data_dir: str = "",
) -> Decoder:
  """Of the run in `directory`, which --`flag` names.

  Raises InputError for a run of another objective, or of documents that do not see each other, and as `restore_states`.
  """
  said = f"--{flag}={directory}"
  _, trained = load_config(directory, {"lm.pretrain": pretrain.Config}, said)
  if trained.objective not in pretrain.WRITERS:
    raise InputError(
      f"{said} learned by --objective={trained.objective}: expected {' or '.join(pretrain.WRITERS)}, which foretells."
    )
  if trained.packed:
    raise InputError(f"{said} learned from --packed documents, which do not see each other: expected a run without.")
  trained = dataclasses.replace(trained, data_dir=data_dir or trained.data_dir, devices=1, fsdp=1, rows="")
  model = restore_model(pretrain, trained, directory, said, checkpoint, model_seed)
  return Decoder(model.module, model.params, load_data(trained), trained)


def cut_prompts(corpus: Corpus, count: int, length: int) -> Int[np.ndarray, "B P"]:
  """The beginnings of `count` stretches of the test text of equal length. Raises InputError where they overlap."""
  tokens = np.asarray(corpus.test.arrays["tokens"], np.int32)
  if count * length > len(tokens):
    raise InputError(
      f"--prompts={count} of {length} tokens are more than the {len(tokens)} of the test text: expected fewer."
    )
  starts = np.arange(count) * (len(tokens) // count)
  return tokens[starts[:, None] + np.arange(length)]
