"""A residual step around any sublayer, with its norm before or after."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from mlnotes.nn.norm import LayerNorm


class PreNorm(nn.Module):
  """x + f(norm(x)): the norm stands inside the branch. Xiong et al. 2020, table 1 right.

  The way past the branches is the identity from the first layer to the last, so deep stacks train without warm-up;
  their output is the sum of all branches and needs one more norm at the end.

  `sublayer` is a module or a function of x; further arguments go to it as they are. So in cross attention,
  `PreNorm(attention)(x, context)`, the queries' side alone is normed: the context must come from a stack that ends with
  a norm. `norm` is a module factory; one with running statistics is given its `use_running_average` by `partial`.

  Raises ValueError where the sublayer changes the shape.
  """

  sublayer: Callable[..., Array]
  norm: Callable[..., nn.Module] = LayerNorm

  @nn.compact
  def __call__(self, x: Float[Array, "..."], *args: Any, **kwargs: Any) -> Float[Array, "..."]:
    return _add(x, self.sublayer(self.norm(name="norm")(x), *args, **kwargs))


class PostNorm(nn.Module):
  """norm(x + f(x)): the norm stands behind the sum. Vaswani et al. 2017, sec. 3.1; Xiong et al. 2020, table 1 left.

  Every output is normed, and so is the way past the branches: gradients are large near the output at initialisation,
  and a deep stack needs a warm-up of the learning rate. Arguments and errors as for `PreNorm`.
  """

  sublayer: Callable[..., Array]
  norm: Callable[..., nn.Module] = LayerNorm

  @nn.compact
  def __call__(self, x: Float[Array, "..."], *args: Any, **kwargs: Any) -> Float[Array, "..."]:
    return self.norm(name="norm")(_add(x, self.sublayer(x, *args, **kwargs)))


def _add(x: Array, y: Array) -> Array:
  if x.shape != y.shape:
    raise ValueError(f"the sublayer turned shape {x.shape} into {y.shape}: a residual step needs the same")
  return x + y
