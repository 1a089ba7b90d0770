"""A few latent vectors that ask a long input again and again. Jaegle et al. 2021."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mlnotes.attention.mask import EVERYTHING, Mask
from mlnotes.attention.multi_head import MultiHeadAttention
from mlnotes.attention.transformer import FeedForward, Transformer
from mlnotes.nn.norm import LayerNorm


def fourier_positions(shape: tuple[int, ...], bands: int) -> Float[np.ndarray, "L P"]:
  """sin and cos of pi f x for x in [-1, 1] along each axis, f from 1 to the Nyquist frequency, and x itself. Sec. 3.2.

  (prod(shape), axes * (2 bands + 1)). Raises ValueError for fewer than one band.
  """
  if bands < 1:
    raise ValueError(f"bands is {bands}, expected 1 or more")
  axes = np.meshgrid(*(np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape), indexing="ij")
  features = []
  for place, n in zip(axes, shape):
    angle = np.pi * place.reshape(-1, 1) * np.linspace(1, max(n / 2, 1), bands)[None]
    features += [np.sin(angle), np.cos(angle), place.reshape(-1, 1)]
  return np.concatenate(features, 1).astype(np.float32)


class Perceiver(nn.Module):
  """N latents attend to the input, then to each other, `repeats` times; their mean is read out. Sec. 3.1.

  Cost grows with N times the length of the input. The first cross attention has weights of its own, the others, and all
  stacks of self-attention, share theirs. What comes in has its positions in its features already.

  Raises ValueError where `heads` does not divide `width`.
  """

  num_classes: int | None
  latents: int = 32
  width: int = 64
  repeats: int = 2
  depth: int = 2
  heads: int = 4
  cross_heads: int = 1
  dropout: float = 0.0
  dtype: DTypeLike | None = None

  def __post_init__(self):
    if self.width % self.heads or self.width % self.cross_heads:
      raise ValueError(f"width is {self.width}, expected a multiple of heads={self.heads} and {self.cross_heads}")
    super().__post_init__()

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B S C"],
    mask: Mask = EVERYTHING,
    train: bool = False,
  ) -> Float[Array, "B K"]:
    start = self.param("latents", nn.initializers.truncated_normal(0.02), (self.latents, self.width))
    z = jnp.broadcast_to(start[None], (x.shape[0], *start.shape))
    stack = Transformer(self.depth, self.heads, self.width, dropout=self.dropout, dtype=self.dtype, name="latent_stack")
    crosses = [_Cross(self.cross_heads, self.dtype, name=f"cross{i}") for i in range(min(self.repeats, 2))]
    for i in range(self.repeats):
      z = crosses[min(i, 1)](z, x, mask, train)
      z = stack(z, train=train)
    z = jnp.mean(z, 1)
    return z if self.num_classes is None else nn.Dense(self.num_classes, dtype=self.dtype, name="head")(z)


class _Cross(nn.Module):
  """Latents ask the input, then a network at each latent; norms before, of the input as well."""

  heads: int
  dtype: DTypeLike | None = None
  norm: Callable[..., Any] = LayerNorm

  @nn.compact
  def __call__(self, z: Array, x: Array, mask: Mask, train: bool) -> Array:
    norm = lambda name: self.norm(dtype=self.dtype, name=name)
    attention = MultiHeadAttention(self.heads, dtype=self.dtype, name="attention")
    z = z + attention(norm("latent_norm")(z), norm("input_norm")(x), mask, None, train)
    feed_forward = FeedForward(dtype=self.dtype, name="feed_forward")
    return z + feed_forward(norm("feed_forward_norm")(z), train)
