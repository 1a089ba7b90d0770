"""Normalisation layers by the names that flags have, as factories that every network of this chapter takes.

A factory takes `use_running_average`, `dtype`, `scale_init` and `name`, and gives a module from (B, *space, C) to the
same shape. Convolutions and matrix products before one have no bias: all four end with a shift.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mlnotes.engine.errors import nearest
from mlnotes.nn.norm import BatchNorm, GroupNorm

NormName: TypeAlias = Literal["batch", "group", "layer", "none"]


class FittedGroupNorm(nn.Module):
  """GroupNorm with as many groups as the channels allow, with GroupNorm's parameters.

  The number of groups is the largest divisor of the channels up to `max_groups` that leaves each group at least
  `min_channels`: 32 of 128 channels or more, 16 of 64, 3 of 12, 1 of 7. Without that lower end 16 channels would be 16
  groups of one, which over a single pixel makes every output 0. `max_groups` = 1 is layer normalisation over all
  pixels and channels of an example, as Wu & He 2018 (fig. 2) compare with. `use_running_average` has no effect: there
  are no running statistics.

  Differences from the paper: it has 32 groups of 64 channels too.
  """

  use_running_average: bool = False
  max_groups: int = 32
  min_channels: int = 4
  epsilon: float = 1e-5
  dtype: DTypeLike | None = None
  scale_init: Callable[..., Array] = nn.initializers.ones

  @nn.compact
  def __call__(self, x: Float[Array, "B *space C"]) -> Float[Array, "B *space C"]:
    most = max(1, min(self.max_groups, x.shape[-1] // self.min_channels))
    groups = next(groups for groups in range(most, 0, -1) if x.shape[-1] % groups == 0)
    dtype = x.dtype if self.dtype is None else self.dtype
    norm = GroupNorm(groups, self.epsilon, dtype, self.scale_init)
    nn.share_scope(self, norm)
    return norm(x)


class NoNorm(nn.Module):
  """What is left of a norm without the normalisation: y = x scale + bias, `scale` only where `scale_init` is given.

  So a network without norms has the biases that its convolutions leave to them, and a residual branch whose last
  `scale_init` is zero starts as the identity (SkipInit with a scale per channel: De & Smith 2020, sec. 3.1).
  """

  use_running_average: bool = False
  dtype: DTypeLike | None = None
  scale_init: Callable[..., Array] | None = None

  @nn.compact
  def __call__(self, x: Float[Array, "B *space C"]) -> Float[Array, "B *space C"]:
    dtype = x.dtype if self.dtype is None else self.dtype
    x = x.astype(dtype)
    per_channel = lambda v: jnp.expand_dims(v.astype(dtype), range(x.ndim - 1))
    if self.scale_init is not None:
      x *= per_channel(self.param("scale", self.scale_init, (x.shape[-1],)))
    return x + per_channel(self.param("bias", nn.initializers.zeros, (x.shape[-1],)))


# "layer" is over all pixels and channels of an example, which for features without pixels is layer normalisation.
NORMS: dict[str, Callable[..., nn.Module]] = {
  "batch": BatchNorm,
  "group": FittedGroupNorm,
  "layer": partial(FittedGroupNorm, max_groups=1),
  "none": NoNorm,
}


def choose_norm(norm: str | Callable[..., nn.Module]) -> Callable[..., nn.Module]:
  """The factory of that name; a factory is given back. Raises ValueError for what is neither, or no name of `NORMS`."""
  if callable(norm):
    return norm
  if not isinstance(norm, str):
    raise ValueError(f"norm is {norm!r}, expected a factory or one of {', '.join(NORMS)}")
  if norm not in NORMS:
    raise ValueError(f"norm is {norm!r}: {nearest(norm, NORMS)}")
  return NORMS[norm]
