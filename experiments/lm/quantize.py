"""A trained language model in 8 bits, and fewer: what it loses, and what memory it saves. Dettmers et al. 2022.

  python -m experiments.lm.quantize                                          # trains a small Llama first
  python -m experiments.lm.quantize --pretrained=runs/lm --bits=8,4,3
  python -m experiments.lm.quantize --pretrained=runs/lm --outliers=4

Matrices by columns and largest values (absmax), alone in --bits each (weights_8, ...); in 8 bits with inputs quantized
row by row as they come, products summed in whole numbers, but for columns beyond --outliers (products; plain: without
these); the cache of keys and values in 8 bits (cache); both (all). Each beside float32: the loss of the whole test text
and its rise, how many tokens are foretold and written alike, bytes. Writes quantize.png and the card.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.lm import pretrain
from experiments.lm._quantize_report import draw
from experiments.lm._trained import Decoder, cut_prompts, load_decoder
from mlnotes.data import Corpus
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.layout import Layout, choose_layout
from mlnotes.engine.stage import find_stage
from mlnotes.engine.study import run_study
from mlnotes.lm import LanguageModel, count_bytes, generate, token_cross_entropy
from mlnotes.nn.dense import Dense
from mlnotes.nn.int8 import Quantized, dequantize, int8_layers, quantize_layers

_AT_ONCE = 16  # windows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  pretrained: str = field("", "work directory of a causal run of lm.pretrain; empty: one is trained first")
  pretrain_steps: int = field(1000, "updates of the run that is trained first")
  checkpoint: Literal["last", "best"] = field("last", "which of the two kept checkpoints; best: the least loss")
  model_seed: int = field(-1, "which seed of a run with several; -1: its first")
  bits: tuple[int, ...] = field((8, 6, 5, 4, 3, 2), "of weights alone, 2 to 8, several to compare")
  outliers: float = field(6.0, "features of which an input is larger than this are multiplied as they are; 0: none")
  prompts: int = field(8, "stretches of the test text that greedy texts begin with")
  prompt_tokens: int = field(16, "tokens of each prompt")
  tokens: int = field(48, "tokens of each greedy text, the prompt not counted")
  data_dir: str = field("", "where the run's TFDS data set is now; empty: as in the run")
  workdir: str = field("", "directory of the picture and figures; empty: runs/lm.quantize", free=True)

  def __post_init__(self):
    super().__post_init__()
    for name in ("pretrain_steps", "prompts", "prompt_tokens", "tokens"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.outliers >= 0, "outliers", self.outliers, "0 or more")
    said = ",".join(map(str, self.bits))
    fits = len(set(self.bits)) == len(self.bits) and all(2 <= bits <= 8 for bits in self.bits)
    require(fits and len(self.bits) > 0, "bits", said, "numbers from 2 to 8, each once")
    if not self.pretrained:  # said before it is trained
      check_room(self, pretrain.Config.length)

  def idle_flags(self):
    own = dict.fromkeys(("pretrain_steps",), f"--pretrained={self.pretrained} has been trained")
    none = dict.fromkeys(("checkpoint", "model_seed", "data_dir"), "--pretrained is empty")
    return super().idle_flags() | (own if self.pretrained else none)

  def cpu_layout(self, cores: int) -> Layout:
    return choose_layout(1, cores, fills_cores=False, batch_size=pretrain.Config.batch_size)


class Parts(NamedTuple):
  """A network of which some matrices are whole numbers: `layers` by their paths, and the other parameters."""

  layers: dict[str, Quantized]
  rest: Any


class Form(NamedTuple):
  """A way to compute with a network.

  Attributes:
    parts: what it is made of; `layers` are those of 8-bit products.
    outliers: of these products.
    cache: the dtype of keys and values; None: as the network has them.
    weight_bytes: what its weights take where each number has as many bits as it needs.
  """

  parts: Parts
  weight_bytes: float
  outliers: float = 0.0
  cache: Any = None


def split(params: Any, bits: int = 8) -> Parts:
  """The matrices of dense layers in so many bits, and the rest: embeddings, norms, biases, a head that is not tied."""
  apart = {name: params[name] for name in ("head",) if name in params}
  layers, rest = quantize_layers({name: x for name, x in params.items() if name not in apart}, bits=bits)
  return Parts(layers, {**rest, **apart})


def join(parts: Parts, params: Any) -> Any:
  """All parameters as floats again; `params` says in what dtypes."""
  from flax.traverse_util import flatten_dict, unflatten_dict

  flat = flatten_dict(params, sep="/")
  back = {path: dequantize(x, flat[path].dtype) for path, x in parts.layers.items()}
  return unflatten_dict(flatten_dict(parts.rest, sep="/") | back, sep="/")


def packed_bytes(parts: Parts, bits: int) -> float:
  """Bytes of the rest, the scales, and the numbers at so many bits each."""
  numbers = sum(x.values.size for x in parts.layers.values())
  return count_bytes(parts.rest) + count_bytes([x.scale for x in parts.layers.values()]) + numbers * bits / 8


def make_forms(config: Config, params: Any) -> dict[str, Form]:
  none = lambda params: Parts({}, params)
  forms = {"float": Form(none(params), count_bytes(params))}
  for bits in config.bits:
    parts = split(params, bits)
    forms[f"weights_{bits}"] = Form(none(join(parts, params)), packed_bytes(parts, bits))
  parts = split(params)
  size = packed_bytes(parts, 8)
  forms["products"] = Form(parts, size, config.outliers)
  if config.outliers:
    forms["plain"] = Form(parts, size)
  forms["cache"] = Form(none(params), count_bytes(params), cache=jnp.int8)
  forms["all"] = Form(parts, size, config.outliers, jnp.int8)
  return forms


@contextlib.contextmanager
def computing(form: Form, parts: Parts):
  """Within it the network computes as the form says; gives the parameters that it is applied to."""
  with int8_layers(parts.layers, form.outliers) if parts.layers else contextlib.nullcontext():
    yield {"params": parts.rest}


class Judged(NamedTuple):
  """Of each token of the test text's windows, (W, T): its nats, and the likeliest in its place."""

  losses: Float[np.ndarray, "W T"]
  likeliest: Int[np.ndarray, "W T"]


def make_judge(module: LanguageModel, form: Form) -> Callable[[Parts, Int[Array, "B T1"]], Any]:
  """(parts, windows) -> (nats, likeliest) of each token of the windows. A cache of bytes is read as it is written."""

  def judge(parts: Parts, tokens: Int[Array, "B T1"]):
    shown, asked = tokens[:, :-1], tokens[:, 1:]
    with computing(form, parts) as variables:
      if form.cache is None:
        logits = module.apply(variables, shown)
      else:
        cache = module.make_cache(*shown.shape, form.cache)
        logits, _ = module.apply(variables, shown, None, False, cache)
    return token_cross_entropy(logits, asked)[0], jnp.argmax(logits, -1)

  return jax.jit(judge)


def judge_text(corpus: Corpus, judge: Callable[..., Any], parts: Parts) -> Judged:
  """Over all windows of the test text, side by side; a batch that is not full repeats the last one."""
  count, found = len(corpus.test), []
  size = min(_AT_ONCE, count)
  for first in range(0, count, size):
    rows = np.minimum(np.arange(first, first + size), count - 1)
    found.append([np.asarray(x) for x in judge(parts, jnp.asarray(corpus.test.read(rows)["tokens"]))])
  return Judged(*(np.concatenate(x)[:count] for x in zip(*found)))


def make_writer(module: LanguageModel, form: Form, count: int) -> Callable[[Parts, Int[Array, "B P"]], Array]:
  """(parts, prompts) -> the likeliest tokens that follow each."""

  def write(parts: Parts, prompts: Int[Array, "B P"]) -> Int[Array, "B N"]:
    with computing(form, parts) as variables:
      return generate(module, variables, prompts, count=count, cache_dtype=form.cache).tokens

  return jax.jit(write)


def count_outliers(run_of: Decoder, outliers: float) -> float:
  """The share of the features of dense layers' inputs that are beyond `outliers` anywhere in 16 test windows."""
  met = []

  def look(call, args, kwargs, context):
    if context.method_name == "__call__" and isinstance(context.module, nn.Dense | Dense):
      met.append(jnp.any(jnp.abs(args[0]) > outliers, tuple(range(args[0].ndim - 1))))
    return call(*args, **kwargs)

  windows = run_of.corpus.test.read(np.arange(min(_AT_ONCE, len(run_of.corpus.test))))["tokens"]

  @jax.jit
  def each(params, tokens):
    met.clear()
    with nn.intercept_methods(look):
      run_of.module.apply({"params": params}, tokens)
    return jnp.concatenate(met)

  return float(jnp.mean(each(run_of.params, jnp.asarray(windows[:, :-1]))))


def largest_error(params: Any, parts: Parts) -> float:
  """The largest error of a weight, in steps of its column: half a step at most."""
  from flax.traverse_util import flatten_dict

  flat = flatten_dict(params, sep="/")
  each = [jnp.max(jnp.abs(flat[path] - dequantize(x)) / x.scale) for path, x in parts.layers.items()]
  return float(jnp.max(jnp.stack(each)))


def compare(config: Config, run_of: Decoder) -> dict[str, dict[str, float]]:
  """{form: its figures}. Forms that differ in their numbers alone share their programs."""
  forms, prompts = make_forms(config, run_of.params), cut_prompts(run_of.corpus, config.prompts, config.prompt_tokens)
  programs: dict[Any, Any] = {}
  found: dict[str, dict[str, float]] = {}
  float_form = judged_float = texts_float = None
  for name, form in forms.items():
    kind = bool(form.parts.layers), form.outliers, form.cache
    if kind not in programs:
      programs[kind] = make_judge(run_of.module, form), make_writer(run_of.module, form, config.tokens)
    judge, write = programs[kind]
    judged = judge_text(run_of.corpus, judge, form.parts)
    texts = np.asarray(write(form.parts, jnp.asarray(prompts)))
    if float_form is None:
      float_form, judged_float, texts_float = form, judged, texts
    rises = (judged.losses - judged_float.losses).mean(1)
    cache = run_of.module.make_cache(1, run_of.module.length, form.cache)
    found[name] = {
      "loss": float(judged.losses.mean()),
      "rise": float(rises.mean()),
      "rise_error": float(rises.std(ddof=1) / np.sqrt(len(rises))) if len(rises) > 1 else 0.0,
      "same_next": float(np.mean(judged.likeliest == judged_float.likeliest)),
      "same_greedy": float(np.mean(texts == texts_float)),
      "weight_bytes": float(form.weight_bytes),
      "cache_bytes": float(count_bytes(cache)),
    }
    print(f"{name:>12}  {found[name]['loss']:.4f} nats, {found[name]['rise']:+.5f}", flush=True)
  return found


def gather(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
  """The card's figures; `weight_ratio` and `cache_ratio` are of 8 bits to float32."""
  figures = {f"{form}/{name}": value for form, values in found.items() for name, value in values.items()}
  of = lambda form, name: found[form][name] / found["float"][name]
  return figures | {"weight_ratio": of("all", "weight_bytes"), "cache_ratio": of("all", "cache_bytes")}


def check_run(config: Config, run_of: Decoder) -> None:
  """Raises InputError for a run that has no form here, and texts that do not fit its windows."""
  said = f"--pretrained={config.pretrained}"
  if run_of.config.experts:
    raise InputError(f"{said} has experts, whose matrices stay as they are: expected a run without.")
  if run_of.config.precision != "float32":
    raise InputError(f"{said} computes in {run_of.config.precision}: expected --precision=float32 to compare with.")
  check_room(config, run_of.module.length)


def check_room(config: Config, window: int) -> None:
  """Raises InputError where prompt and text pass a window of so many tokens."""
  most = window + 1 - config.prompt_tokens
  require(config.tokens <= most, "tokens", config.tokens,
          f"at most {most}: prompt and text stand in the run's windows of {window}")  # fmt: skip


def main(config: Config) -> int:
  workdir = Path(config.workdir or "runs/lm.quantize").expanduser()
  if not config.pretrained:
    check_room(config, pretrain.Config.length)
  directory = find_stage(
    "pretrained", config.pretrained, pretrain, workdir, steps=config.pretrain_steps, eval_every=0
  )  # fmt: skip
  run_of = load_decoder("pretrained", directory, config.checkpoint, config.model_seed, config.data_dir)
  check_run(config, run_of)

  def study(out: Path) -> dict[str, Any]:
    found = compare(config, run_of)
    figures = gather(found)
    figures["outlier_share"] = count_outliers(run_of, config.outliers) if config.outliers else 0.0
    figures["largest_error_steps"] = largest_error(run_of.params, split(run_of.params))
    draw(found, config.bits, config.outliers, out / "quantize.png")
    return figures

  return run_study("lm.quantize", dataclasses.replace(config, workdir=str(workdir)), study)


if __name__ == "__main__":
  run(main, Config)
