"""Which parameters of a network train: told by their paths, of any tree of nested dictionaries.

Only what trains is differentiated, and only of that is there an optimizer's state:

    trained, frozen = partition(params, any_of(BIASES, HEAD))
    optimizer_state = optimizer.init(trained)
    grads = jax.grad(lambda trained: loss(combine(trained, frozen)))(trained)

What is frozen is in no gradient, no decay and no norm of the gradients: it cannot move. A parameter's path is its
names joined by "/", as "block0/attention/query/kernel"; which are meant is a regular expression that is searched in it.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

Params = dict[str, Any]

# All of them: fine-tuning. What is not named otherwise trains a part of it alone.
ALL = r""
# Ben Zaken et al. 2022 (BitFit): those of norms are among them.
BIASES = r"(^|/)bias$"
# Scales and biases of what has "norm" in its name.
NORMS = r"(?i)norm[^/]*/[^/]+$"
# Feature extraction: the network stays as it is.
HEAD = r"(^|/)head(/|$)"


def any_of(*patterns: str) -> str:
  """What any of the patterns finds. Each is a group, so that flags such as (?i) stay with their own."""
  return "|".join(f"(?:{_local_flags(pattern)})" for pattern in patterns)


def _local_flags(pattern: str) -> str:
  flags = re.match(r"\(\?([a-zA-Z]+)\)", pattern)
  return f"(?{flags[1]}:{pattern[flags.end() :]})" if flags else pattern


def last_layers(params: Any, count: int, layer: str = r"(?:^|/)block(\d+)/", behind: str = r"(^|/)last_norm/") -> str:
  """A pattern of the `count` layers that come last, and of what stands `behind` all of them.

  `layer` has a layer's number as its group (\\d+). Raises ValueError for more layers than there are, or none found.
  """
  numbers = {int(found[1]) for path in flatten(params) if (found := re.search(layer, path))}
  if not 1 <= count <= len(numbers):
    raise ValueError(f"count is {count}, expected 1 to {len(numbers)}: that many layers were found by {layer!r}")
  chosen = "|".join(str(number) for number in sorted(numbers)[-count:])
  return any_of(layer.replace(r"(\d+)", f"({chosen})"), behind)


def flatten(params: Any) -> dict[str, Array]:
  """Arrays by their paths."""
  return flatten_dict(params, sep="/")


def unflatten(flat: dict[str, Any]) -> Params:
  """The tree of nested dictionaries."""
  return unflatten_dict(flat, sep="/")


def find_paths(params: Any, pattern: str) -> list[str]:
  """The paths that a pattern finds, in the tree's order. Raises ValueError where there is none."""
  paths = list(flatten(params))
  found = [path for path in paths if re.search(pattern, path)]
  if not found:
    some = ", ".join(paths[:4]) + (", ..." if len(paths) > 4 else "")
    raise ValueError(f"the pattern {pattern!r} finds none of {len(paths)} parameters, expected some of {some}")
  return found


def partition(params: Any, pattern: str) -> tuple[Params, Params]:
  """(what the pattern finds, the rest), each a tree without the other's branches.

  Raises ValueError where it finds nothing.
  """
  chosen, flat = set(find_paths(params, pattern)), flatten(params)
  take = lambda inside: unflatten({path: x for path, x in flat.items() if (path in chosen) == inside})
  return take(True), take(False)


def paths_read(f: Callable[[Any], Any], params: Any) -> list[str]:
  """The paths of the parameters that a function of them computes with; it is traced, and nothing is computed.

  What a compiled part within it is given counts as read. A head that a network has and `f` does not call would get no
  gradient, and still decay.
  """
  jaxpr = jax.make_jaxpr(f)(params).jaxpr
  used = {id(x) for equation in jaxpr.eqns for x in equation.invars} | {id(x) for x in jaxpr.outvars}
  read = jax.tree.unflatten(jax.tree.structure(params), [id(x) in used for x in jaxpr.invars])
  return [path for path, is_read in flatten_dict(read, sep="/").items() if is_read]


def combine(trained: Any, frozen: Any) -> Params:
  """The whole tree of two parts. Raises ValueError where both have a parameter."""
  first, second = flatten(trained), flatten(frozen)
  both = sorted(first.keys() & second.keys())
  if both:
    raise ValueError(f"both parts have {both[0]}, expected each parameter in one of them")
  return unflatten({**first, **second})


def count_parameters(tree: Any) -> int:
  """How many numbers there are."""
  return sum(x.size for x in jax.tree.leaves(tree))


def count_bytes(tree: Any) -> int:
  """What the arrays take."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
