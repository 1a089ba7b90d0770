"""Small networks put behind the sublayers of one that stays as it is. Houlsby et al. 2019.

    adapters = init_adapters(key, 16, lambda: model.apply({"params": params}, tokens))

    def loss_of(adapters):
      with insert_adapters(adapters):
        return loss(model.apply({"params": params}, tokens))

Of any network whose sublayers are modules, as those of `mlnotes.attention` are, without a class of its own.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mlnotes.lm.trainable import flatten, unflatten

Adapters = dict[str, Any]

# What a block adds to its residual stream: attention and the network at each position.
SUBLAYERS = r"(^|/)(attention|feed_forward)$"


def init_adapters(
  key: Key[Array, ""],
  width: int,
  call: Callable[[], Any],
  where: str = SUBLAYERS,
  scale: float = 1e-2,
) -> Adapters:
  """An adapter for each module of `call` whose path the pattern finds, `width` features between its two matrices.

  Matrices are drawn from a normal distribution of the standard deviation `scale`, cut at two of them, biases are 0, so
  that what goes through is nearly what came: Houlsby et al. 2019, sec. 2.1. Nothing is computed: `call`, which applies
  the network, is traced for its shapes. In the paper norms train beside adapters, and the head: see `trainable.NORMS`.
  Raises ValueError for a width below 1, or where the pattern finds nothing.
  """
  if width < 1:
    raise ValueError(f"width is {width}, expected 1 or more")
  features: dict[str, int] = {}

  def note(y: Array, path: str) -> Array:
    features[path] = y.shape[-1]
    return y

  with _behind(lambda path: re.search(where, path) is not None, note):
    jax.eval_shape(call)
  if not features:
    raise ValueError(f"the pattern {where!r} finds no module of what ran, expected some")
  draw = nn.initializers.truncated_normal(scale)
  adapters = {}
  for path, of_path in zip(features, jax.random.split(key, len(features))):
    down, up = jax.random.split(of_path)
    adapters[f"{path}/adapter/down/kernel"] = draw(down, (features[path], width))
    adapters[f"{path}/adapter/down/bias"] = jnp.zeros((width,))
    adapters[f"{path}/adapter/up/kernel"] = draw(up, (width, features[path]))
    adapters[f"{path}/adapter/up/bias"] = jnp.zeros((features[path],))
  return unflatten(adapters)


def adapt(y: Float[Array, "... D"], adapter: Any) -> Float[Array, "... D"]:
  """y + W_up gelu(W_down y + b_down) + b_up. Houlsby et al. 2019, fig. 2."""
  wide = lambda bias: jnp.expand_dims(bias.astype(y.dtype), range(y.ndim - 1))
  layer = lambda x, part: x @ part["kernel"].astype(y.dtype) + wide(part["bias"])
  return y + layer(jax.nn.gelu(layer(y, adapter["down"])), adapter["up"])


@contextlib.contextmanager
def insert_adapters(adapters: Adapters) -> Iterator[None]:
  """Within it, what each adapted module gives passes its adapter before anything is done with it.

  A block adds a sublayer's output to its residual stream, so that an adapter stands before the addition. Caches that a
  module gives beside its output pass by. Difference from the paper: there dropout comes before the adapter.
  Raises ValueError where a module with an adapter was not called.
  """
  flat, found = flatten(adapters), {}
  for path in flat:
    name = path.partition("/adapter/")[0]
    part = lambda side, name=name: {kind: flat[f"{name}/adapter/{side}/{kind}"] for kind in ("kernel", "bias")}
    found[name] = {"down": part("down"), "up": part("up")}
  met = set()

  def through(y: Array, path: str) -> Array:
    met.add(path)
    return adapt(y, found[path])

  with _behind(found.__contains__, through):
    yield
  missed = sorted(found.keys() - met)
  if missed:
    raise ValueError(f"{missed[0]} has an adapter and was not called, expected a network with this module")


@contextlib.contextmanager
def _behind(applies: Callable[[str], bool], change: Callable[[Array, str], Array]) -> Iterator[None]:
  """Within it, outputs of the modules whose paths apply are changed."""

  def intercept(call, args, kwargs, context):
    found = call(*args, **kwargs)
    path = "/".join(context.module.path)
    if context.method_name != "__call__" or not applies(path):
      return found
    return (change(found[0], path), *found[1:]) if isinstance(found, tuple) else change(found, path)

  with nn.intercept_methods(intercept):
    yield
