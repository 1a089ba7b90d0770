"""Folders as Hugging Face has them: config.json, and model.safetensors or its parts with an index.

module, params = load_hugging_face("gpt2/")
logits = module.apply({"params": params}, tokens)
save_hugging_face("mine/", module, params)        # for transformers' from_pretrained
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.typing import DTypeLike

from mlnotes.engine.errors import InputError
from mlnotes.lm.hugging_face import from_hugging_face, to_hugging_face
from mlnotes.lm.model import EncoderDecoder, LanguageModel

_WHOLE, _INDEX, _CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"


def load_hugging_face(
  directory: str | Path, dtype: DTypeLike | None = None
) -> tuple[LanguageModel | EncoderDecoder, dict[str, Any]]:
  """(module, params in float32) of a folder that holds a GPT-2, BERT, T5 or Llama.

  `dtype` is that of the module's arithmetic. Nothing is downloaded. Raises InputError, one sentence that names the
  folder and what is missing, left over or of another shape in it.
  """
  directory = Path(directory).expanduser()
  config = _read_json(directory, _CONFIG)
  names = [_WHOLE]
  if not (directory / _WHOLE).is_file():
    if not (directory / _INDEX).is_file():
      raise InputError(f"{directory} has neither {_WHOLE} nor {_INDEX}: expected a folder with weights.")
    places = _read_json(directory, _INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(x, str) and Path(x).name == x for x in places.values()):
      raise InputError(f"{directory / _INDEX} has no weight_map of names of files beside it.")
    names = sorted(set(places.values()))
  tensors: dict[str, Any] = {}
  for name in names:
    tensors |= _read_tensors(directory / name)
  try:
    return from_hugging_face(config, tensors, dtype)
  except KeyError as error:
    raise InputError(f"{directory}: {error} was not found in {_CONFIG}, expected a number.") from error
  except ValueError as error:
    raise InputError(f"{directory}: {error}.") from error


def save_hugging_face(directory: str | Path, module: LanguageModel | EncoderDecoder, params: Mapping[str, Any]) -> None:
  """Writes config.json and model.safetensors. Raises ValueError as `to_hugging_face` does."""
  from safetensors.numpy import save_file

  config, tensors = to_hugging_face(module, params)
  directory = Path(directory).expanduser()
  directory.mkdir(parents=True, exist_ok=True)
  (directory / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
  save_file(tensors, directory / _WHOLE, metadata={"format": "pt"})


def _read_json(directory: Path, name: str) -> dict[str, Any]:
  try:
    found = json.loads((directory / name).read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise InputError(f"{directory} has no readable {name}: expected a folder of Hugging Face's form.") from error
  if not isinstance(found, dict):
    raise InputError(f"{directory / name} holds no object: expected settings by their names.")
  return found


def _read_tensors(path: Path) -> dict[str, Any]:
  try:
    from safetensors import SafetensorError, safe_open
  except ImportError as error:
    raise InputError(f"{path} cannot be read without safetensors: expected `pip install -e '.[weights]'`.") from error
  import ml_dtypes  # noqa: F401 - for bfloat16

  try:
    with safe_open(path, framework="np") as file:
      return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
  except (OSError, SafetensorError) as error:
    raise InputError(f"{path} cannot be read: {error}.") from error
