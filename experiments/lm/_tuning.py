"""What --method trains of a pretrained network: a transformation of its parameters, of any network."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from experiments.lm._objectives import Task
from mlnotes.attention.transformer import TransformerBlock
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key, stream_key
from mlnotes.lm import (
  apply_lora,
  combine,
  init_adapters,
  init_lora,
  insert_adapters,
  last_layers,
  lora_layers,
)
from mlnotes.lm.layer_mix import LayerMix
from mlnotes.lm.trainable import ALL, BIASES, NORMS, find_paths, flatten, paths_read, unflatten

Tree = dict[str, Any]
Numbers = Mapping[str, Array]


def _shortest_text() -> tuple[Array, Array]:
  """Tokens and length of one, for what is traced."""
  return jnp.zeros((1, 2), jnp.int32), jnp.full((1,), 2, jnp.int32)


class Parts(NamedTuple):
  """A pretrained network in two.

  Attributes:
    trained: {"network": some of its parameters, ...}, and what the method adds; only this is differentiated.
    frozen: the rest of its parameters.
  """

  trained: Tree
  frozen: Tree


class Method(NamedTuple):
  """What is trained beside the head.

  Attributes:
    pattern: (params) -> which of the network's parameters; None: none.
    add: (key, params, read) -> what comes beside them, by names. `params` are those that are read, `read` is a function
      of nothing that reads a text.
    enter: (params, added, numbers, key) -> a context in which the parameters that it gives read as the tuned network.
      With a key as in training, with dropout of what was added.
    mixes: features are mixed of all layers.
  """

  pattern: Callable[[Tree], str | None]
  add: Callable[[Key[Array, ""], Tree, Callable[[], Any]], Tree]
  enter: Callable[..., contextlib.AbstractContextManager[Tree]]
  mixes: bool = False


@contextlib.contextmanager
def _plain(params: Tree, added: Tree, numbers: Numbers, key: Any = None) -> Iterator[Tree]:
  yield params


@contextlib.contextmanager
def _with_adapters(params: Tree, added: Tree, numbers: Numbers, key: Any = None) -> Iterator[Tree]:
  with insert_adapters(added["adapters"]):
    yield params


def _nothing(key: Any, params: Tree, read: Any) -> Tree:
  return {}


def find_targets(targets: str) -> str:
  """A regular expression of kernels from names of layers with commas between them, or itself."""
  names = targets.split(",")
  return rf"(^|/)({'|'.join(names)})/kernel$" if all(re.fullmatch(r"\w+", name) for name in names) else targets


def _lora(config: Any, part: str) -> Method:
  @contextlib.contextmanager
  def enter(params, added, numbers, key=None):
    if not config.lora_dropout or key is None:
      yield apply_lora(params, added["lora"], numbers["lora_alpha"])
      return
    of_network = added["lora"][part] if part else added["lora"]
    with lora_layers(of_network, numbers["lora_alpha"], config.lora_dropout, stream_key(key, "lora")):
      yield params

  targets = find_targets(config.lora_targets)
  add = lambda key, params, read: {"lora": init_lora(key, params, config.lora_rank, targets)}
  return Method(lambda params: None, add, enter)


def _adapters(config: Any, part: str) -> Method:
  """Norms train beside them: Houlsby et al. 2019, sec. 2.1."""
  add = lambda key, params, read: {"adapters": init_adapters(key, config.adapter_width, read)}
  return Method(lambda params: NORMS, add, _with_adapters)


def _mix(config: Any, part: str) -> Method:
  def add(key, params, read):
    shapes = jax.eval_shape(lambda: layer_outputs(read))
    layers = [jnp.zeros(x.shape, x.dtype) for x in shapes]
    return {"mix": LayerMix(config.mix_norm).init(key, layers)["params"]}

  return Method(lambda params: None, add, _plain, mixes=True)


def _some(pattern: Callable[[Any, Tree], str | None]) -> Callable[[Any, str], Method]:
  return lambda config, part: Method(lambda params: pattern(config, params), _nothing, _plain)


# {name: (config, where in the parameters the network is that reads) -> Method}.
METHODS: dict[str, Callable[[Any, str], Method]] = {
  "full": _some(lambda config, params: ALL),
  "last": _some(lambda config, params: last_layers(params, config.last_layers)),
  "bias": _some(lambda config, params: BIASES),
  "adapters": _adapters,
  "lora": _lora,
  "features": _some(lambda config, params: None),
  "mix": _mix,
}


def layer_outputs(read: Callable[[], Any]) -> list[Array]:
  """What the first block of the stack that `read` applies is given, and what each block gives: ELMo's layers."""
  found: list[Array] = []

  def keep(call, args, kwargs, context):
    y = call(*args, **kwargs)
    if isinstance(context.module, TransformerBlock) and context.method_name == "__call__":
      if not found:
        found.append(args[0])
      found.append(y[0] if isinstance(y, tuple) else y)
    return y

  with nn.intercept_methods(keep):
    read()
  return found


class Tuning(NamedTuple):
  """A method on the network of a task.

  Attributes:
    mixer: of the layers' outputs; None where the method mixes none.
  """

  method: Method
  task: Task
  mixer: LayerMix | None

  def split(self, key: Key[Array, ""], params: Tree) -> Parts:
    """What trains, as the pretrained parameters have it, and the rest. Raises ValueError where nothing is found."""
    read = lambda params: self.task.read(params, *_shortest_text(), None)
    pattern = self.method.pattern(params)
    known = set(paths_read(read, params))
    chosen = set() if pattern is None else set(find_paths(params, pattern)) & known
    flat = flatten(params)
    take = lambda paths: unflatten({path: x for path, x in flat.items() if path in paths})
    added = self.method.add(key, take(known), lambda: read(params))
    return Parts({"network": take(chosen), **added}, take(flat.keys() - chosen))

  def tuned(self, parts: Parts, numbers: Numbers, key: Any = None) -> contextlib.AbstractContextManager[Tree]:
    """A context in which the parameters that it gives are the tuned network's, its head left out."""
    return self.method.enter(combine(parts.trained["network"], parts.frozen), parts.trained, numbers, key)

  def features(self, parts: Parts, numbers: Numbers, tokens: Array, lengths: Array, key: Any = None) -> Array:
    """(B, T, D) of a text as the tuned network reads it; with dropout where a key is given and it trains."""
    if not self.trains(parts):
      key = None
    with self.tuned(parts, numbers, key) as params:
      dropout = None if key is None else stream_key(key, "network")
      read = lambda: self.task.read(params, tokens, lengths, dropout)
      if not self.method.mixes:
        return read()
      layers = layer_outputs(read)
    real = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
    return self.mixer.apply({"params": parts.trained["mix"]}, layers, real)

  def trains(self, parts: Parts) -> bool:
    """Whether any of what reads does; a network that stays as it is has no dropout."""
    return bool(jax.tree.leaves({name: x for name, x in parts.trained.items() if name not in ("mix", "head")}))


def build_tuning(config: Any, task: Task, method: str = "") -> Tuning:
  """By --method, or by another one with the same flags."""
  found = METHODS[method or config.method](config, task.part)
  return Tuning(found, task, LayerMix(config.mix_norm) if found.mixes else None)


def check_tuning(config: Any, tuning: Tuning, params: Any, said: str) -> None:
  """Traces the method on the network. Raises InputError that names the flag where it does not fit."""
  flag = {
    "last": f"--last_layers={config.last_layers}",
    "lora": f"--lora_rank={config.lora_rank} --lora_targets={config.lora_targets}",
  }.get(config.method, f"--method={config.method}")  # fmt: skip
  key = jax.eval_shape(lambda: root_key(0))

  def trace(key, params):
    if config.method == "bias" and not any(re.search(BIASES, path) for path in flatten(params)):
      raise InputError(f"--method=bias: {said} has no biases, expected a network that has, such as --model=gpt2's.")
    parts = tuning.split(key, params)
    numbers = {"lora_alpha": jnp.float32(1)}
    return parts, tuning.features(parts, numbers, *_shortest_text(), key)

  try:
    jax.eval_shape(trace, key, params)
  except InputError:
    raise
  except (ValueError, re.error) as error:
    raise InputError(f"{flag} does not fit {said}: {error}.") from error
