"""Which parameters are decayed."""

from typing import Any

import jax

# Leaf names of Flax's layers. What has another name, or none, is judged by its axes.
_DECAYED = ("kernel", "embedding")
_KEPT = ("bias", "scale")
# Subtrees of what is learned beside weights: the inner loop's rates, though each bears the name of its parameter.
_KEPT_TREES = ("rates",)


def _names(path: tuple[Any, ...]) -> list[str]:
  """The names on a leaf's path, without positions in lists and tuples."""
  names = (getattr(entry, "key", getattr(entry, "name", None)) for entry in path)
  return [name for name in names if isinstance(name, str)]


def _is_decayed(path: tuple[Any, ...], leaf: Any) -> bool:
  names = _names(path)
  if any(name in _KEPT_TREES for name in names):
    return False
  last = names[-1] if names else ""
  if last in _DECAYED or last in _KEPT:
    return last in _DECAYED
  return leaf.ndim > 1


def is_decayed(params: Any) -> Any:
  """Which leaves are decayed and penalised, as a tree of booleans: an optax mask.

  By what a leaf is, whatever axes are stacked in front of it: a "kernel" or "embedding" is; a "bias" or "scale" is not,
  nor is anything below the name "rates" (learned rates of an inner loop). Leaves of other names, and arrays without
  names, are if they have more than one axis.
  """
  return jax.tree_util.tree_map_with_path(_is_decayed, params)
