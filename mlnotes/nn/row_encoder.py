"""A Transformer over the rows of an image, with its norms before or after what they belong to."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mlnotes.nn.norm import LayerNorm
from mlnotes.nn.residual import PostNorm, PreNorm


class RowEncoder(nn.Module):
  """Each row of the image is a token; `depth` layers of self-attention and of a network of two matrices.

    pre:   x <- x + f(LN(x)), and one LN behind the last layer
    post:  x <- LN(x + f(x))                                                     Xiong et al. 2020, figure 1

  for f self-attention and f(x) = W relu(V x) in turn. Learned embeddings of places; tokens averaged before the last
  matrix, or returned so where `num_classes` is None. Glorot's uniform initialisation.

  Raises ValueError where `order` is neither, or `heads` does not divide `width`.
  """

  order: str = "pre"
  depth: int = 12
  width: int = 32
  heads: int = 4
  num_classes: int | None = None
  dtype: Any = None

  def __post_init__(self):
    if self.order not in ("pre", "post"):
      raise ValueError(f"order is {self.order!r}, expected 'pre' or 'post'")
    if self.width % self.heads:
      raise ValueError(f"heads is {self.heads}, expected a divisor of width={self.width}")
    super().__post_init__()

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B O"]:
    init = nn.initializers.glorot_uniform()
    dense = lambda features, name: nn.Dense(features, kernel_init=init, dtype=self.dtype, name=name)
    norm = partial(LayerNorm, epsilon=1e-5, dtype=self.dtype)
    step = partial(PreNorm if self.order == "pre" else PostNorm, norm=norm)

    place = self.param("place", nn.initializers.normal(0.02), (1, x.shape[1], self.width))
    x = dense(self.width, "embed")(x.reshape(*x.shape[:2], -1)) + place
    for layer in range(self.depth):
      attend = nn.MultiHeadDotProductAttention(self.heads, kernel_init=init, dtype=self.dtype, name=f"attention{layer}")
      x = step(attend, name=f"attention_step{layer}")(x)
      widen, narrow = dense(4 * self.width, f"widen{layer}"), dense(self.width, f"narrow{layer}")
      x = step(lambda x, widen=widen, narrow=narrow: narrow(nn.relu(widen(x))), name=f"step{layer}")(x)
    x = jnp.mean(norm(name="last_norm")(x) if self.order == "pre" else x, axis=1)
    return x if self.num_classes is None else dense(self.num_classes, "head")(x)
