"""Fully connected networks, of two layers or of fifty, plain or residual."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from mlnotes.engine.errors import nearest
from mlnotes.nn.initializers import glorot, he, lecun, torch_linear
from mlnotes.nn.norm_by_name import choose_norm

# All but torch's are normal, so that they differ in the variance alone.
INITIALIZERS: dict[str, Callable[..., Array]] = {
  "he": he(),
  "lecun": lecun("normal"),
  "glorot": glorot("normal"),
  "torch": torch_linear(),
}


def choose_initializer(kernel_init: str | Callable[..., Array]) -> Callable[..., Array]:
  """The initialiser of that name; one is given back. Raises ValueError where the name is none of `INITIALIZERS`."""
  if not isinstance(kernel_init, str):
    return kernel_init
  if kernel_init not in INITIALIZERS:
    raise ValueError(f"kernel_init is {kernel_init!r}: {nearest(kernel_init, INITIALIZERS)}")
  return INITIALIZERS[kernel_init]


class MLP(nn.Module):
  """A stack of `depth` matrix products, the last of which gives the logits, each other with a norm and ReLU.

    plain:      x = relu(norm(W x))
    residual:   x = relu(x + norm(V relu(norm(W x)))) for each pair between the first and the last

  Both have the same products and the same parameters, so that they differ in the addition alone: He et al. 2016,
  figure 3 (middle, right), without images. Of a residual stack `depth` is even. `zero_init_residual`: each pair starts
  as the identity (its last scale is zero). What has pixels is flattened first. Without `num_classes` the features
  before the last product. `dropout` follows each ReLU.

  `norm` is a name of `NORMS` or a factory, `kernel_init` a name of `INITIALIZERS` or an initialiser. Raises ValueError
  where a name is unknown, where `depth` is less than 2 or, of a residual stack, odd.
  """

  width: int = 128
  depth: int = 4
  num_classes: int | None = None
  residual: bool = False
  norm: str | Callable[..., nn.Module] = "batch"
  kernel_init: str | Callable[..., Array] = "he"
  zero_init_residual: bool = False
  dropout: float = 0.0
  dtype: Any = None

  def __post_init__(self):
    choose_norm(self.norm), choose_initializer(self.kernel_init)
    if self.depth < 2 or (self.residual and self.depth % 2):
      expected = "an even number of layers" if self.residual else "a number of layers"
      raise ValueError(f"depth is {self.depth}, expected {expected} from 2 on")
    super().__post_init__()

  @nn.compact
  def __call__(self, x: Float[Array, "B *shape"], train: bool) -> Float[Array, "B O"]:
    norm, kernel_init = choose_norm(self.norm), choose_initializer(self.kernel_init)

    def transform(x: Array, layer: int, **last: Any) -> Array:
      x = nn.Dense(self.width, use_bias=False, kernel_init=kernel_init, dtype=self.dtype, name=f"dense{layer}")(x)
      return norm(use_running_average=not train, dtype=self.dtype, name=f"norm{layer}", **last)(x)

    def activate(x: Array) -> Array:
      return nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))

    x = activate(transform(x.reshape(len(x), -1), 0))
    if self.residual:
      last = {"scale_init": nn.initializers.zeros} if self.zero_init_residual else {}
      for layer in range(1, self.depth - 1, 2):
        y = activate(transform(x, layer))
        x = activate(x + transform(y, layer + 1, **last))
    else:
      for layer in range(1, self.depth - 1):
        x = activate(transform(x, layer))
    if self.num_classes is None:
      return x
    return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x)
