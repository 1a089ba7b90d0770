"""A network that somebody else has trained, from a folder of Hugging Face's form, in the place of the flags' own."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.lm._task import Task
from mlnotes.engine.errors import InputError
from mlnotes.lm import LanguageModel, load_hugging_face

# Objectives whose parameters are those of the network alone.
STARTS_FROM_WEIGHTS = ("causal", "masked", "prefix", "permutation")
# Flags that describe a network, which is the folder's.
NETWORK = (
  "model", "depth", "heads", "width", "kv_heads", "hidden", "tied", "experts", "experts_per_token", "capacity_factor",
)  # fmt: skip


def require_folder(folder: str) -> None:
  """Raises InputError, which names the flag, before what the folder holds is looked for one by one."""
  if not Path(folder).expanduser().is_dir():
    raise InputError(f"--weights={folder} is no folder: expected config.json, model.safetensors and tokenizer.json.")


def tokenizer_of(folder: str) -> str:
  return str(Path(folder) / "tokenizer.json")


def objective_of(folder: str) -> str:
  """The objective by which the folder's network has learned: "masked" of a BERT, else "causal"."""
  try:
    found = json.loads((Path(folder).expanduser() / "config.json").read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return "causal"  # refused later, where it is read
  return "masked" if isinstance(found, dict) and found.get("model_type") == "bert" else "causal"


def load_weights(config: Any) -> tuple[LanguageModel, Any]:
  """(module, params) of --weights. Raises InputError as `load_hugging_face` does, and for what is no single stack."""
  return _load(config.weights, config.precision)


@functools.lru_cache(maxsize=2)
def _load(folder: str, precision: str) -> tuple[LanguageModel, Any]:
  module, params = load_hugging_face(folder, jnp.dtype(precision))
  if not isinstance(module, LanguageModel):
    raise InputError(f"--weights={folder} has an encoder and a decoder: expected a GPT-2, a Llama or a BERT.")
  return module, params


def build_from_weights(config: Any, vocabulary: int) -> LanguageModel:
  """The folder's module, with the flags' dropout. Raises InputError where it does not fit the flags."""
  module, _ = load_weights(config)
  said = f"--weights={config.weights}"
  if config.objective == "causal" and not module.causal:
    raise InputError(f"{said} reads from both sides: expected --objective=masked.")
  if module.vocabulary < vocabulary:
    raise InputError(
      f"{said} has {module.vocabulary} embeddings: expected {vocabulary} or more, for --tokenizer={config.tokenizer} "
      f"and --objective={config.objective}."
    )
  if module.position == "learned" and config.length > module.length:
    raise InputError(f"{said} has positions for {module.length} tokens: expected --length of so many at most.")
  body = module.transformer.clone(
    dropout=config.dropout, attention_dropout=config.attention_dropout, remat=config.remat
  )
  return module.clone(dropout=config.dropout, transformer=body)


def start_from_weights(config: Any, task: Task) -> Task:
  """The task, whose first parameters are the folder's."""

  def init(key, examples):
    params = load_weights(config)[1]
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    # By a call of the host: as constants they would be compiled, and kept with the program.
    return jax.pure_callback(lambda: params, like, vmap_method="sequential")

  return task._replace(objective=task.objective._replace(init=init))
