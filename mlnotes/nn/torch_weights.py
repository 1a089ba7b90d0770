"""Weights of torch's modules for the Flax modules that compute the same."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Of torch's name of an array, the collection and the names that it may have in Flax.
_NAMES = {
  "weight": ("params", ("kernel", "scale", "embedding")),
  "bias": ("params", ("bias",)),
  "running_mean": ("batch_stats", ("mean",)),
  "running_var": ("batch_stats", ("var",)),
}
_UNUSED = "num_batches_tracked"


def convert_torch_weights(
  state: Mapping[str, Any], modules: Mapping[str, str], variables: Mapping[str, Any]
) -> dict[str, Any]:
  """The Flax variables that hold a torch `state_dict()`.

    | torch                                   | Flax                           | change                              |
    |-----------------------------------------|--------------------------------|-------------------------------------|
    | Conv1d, 2d, 3d .weight (O, I/groups, *k)| kernel (*k, I/groups, O)       | axes                                |
    | Linear.weight (O, I)                    | kernel (I, O)                  | transposed                          |
    | Embedding.weight (N, D)                 | embedding (N, D)               |                                     |
    | BatchNorm, GroupNorm, LayerNorm .weight | scale                          |                                     |
    | .bias                                   | bias                           |                                     |
    | BatchNorm.running_mean, .running_var    | batch_stats: mean, var         | num_batches_tracked is left out     |

  Args:
    state: arrays or tensors by torch's names, such as "layer1.0.conv1.weight".
    modules: torch's name of each module that has arrays, and the path of its counterpart, as in
      {"layer1.0.conv1": "stage0_block0/Conv_0", "fc": "head"}; "" is the outermost module of either.
    variables: what `model.init` gives, or its shapes and types (`jax.eval_shape(model.init, ...)`).

  Returns variables of the same structure, shapes and types with torch's numbers.

  Four things no table can see: weights of a ConvTranspose have their channels the other way round and are not for this
  function; torch's epsilon is 1e-5 for every normalisation, Flax's 1e-6 for layer and group
  normalisation; torch's strided convolutions need padding="TORCH" (or explicit) here; and a Linear after flattening an
  image has its inputs in the order (C, H, W), here (H, W, C). Where a running variance was stored by torch it is the
  unbiased one, m / (m - 1) times what Flax would have stored of m numbers.

  Raises ValueError where a name, a path or a shape has no counterpart, or an array on either side is left over.
  """
  shapes = {
    tuple(str(getattr(entry, "key", entry)) for entry in path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
  }
  found = {}
  for name, value in state.items():
    module, _, array = name.rpartition(".")
    if array == _UNUSED:
      continue
    if module not in modules:
      raise ValueError(f"state has {name!r}, but modules has no {module!r}")
    if array not in _NAMES:
      raise ValueError(f"state has {name!r}, expected one of {', '.join(_NAMES)} as its last part")
    collection, leaves = _NAMES[array]
    path = (collection, *filter(None, modules[module].split("/")))
    target = next(((*path, leaf) for leaf in leaves if (*path, leaf) in shapes), None)
    if target is None:
      raise ValueError(f"variables has none of {', '.join(leaves)} at {'/'.join(path)!r}, for torch's {name!r}")
    if target in found:
      raise ValueError(f"{'/'.join(target)!r} has two counterparts, {name!r} and another one")
    value = _to_numpy(value)
    if target[-1] == "kernel":
      value = value.transpose(*range(2, value.ndim), 1, 0)
    if value.shape != shapes[target].shape:
      raise ValueError(f"{name!r} has shape {value.shape} in Flax's order of axes, expected {shapes[target].shape}")
    found[target] = jnp.asarray(value, shapes[target].dtype)
  absent = sorted("/".join(path) for path in shapes if path not in found)
  if absent:
    raise ValueError(f"state has nothing for {', '.join(absent)}")
  structure = jax.tree.structure(variables)
  return jax.tree.unflatten(structure, [found[path] for path in shapes])


def _to_numpy(value: Any) -> np.ndarray:
  if hasattr(value, "detach"):
    value = value.detach().cpu()
    if str(value.dtype) == "torch.bfloat16":  # NumPy has no such type
      value = value.float()
  return np.asarray(value)
