"""The networks of the few-shot literature."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mlnotes.nn import BatchNorm, Conv


def uniform_by_fan_in(fan_in: int) -> nn.initializers.Initializer:
  """Uniform on +-1/sqrt(fan_in), for kernels and biases alike."""
  bound = 1 / math.sqrt(fan_in)
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Regressor(nn.Module):
  """A multilayer perceptron with ReLU, by default the two layers of 40 of Finn et al. 2017, section 5.1.

  Biases start at random as well: with one input and all biases 0 every unit of the first layer would bend at 0.
  """

  widths: Sequence[int] = (40, 40)
  outputs: int = 1
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B {self.outputs}"]:
    for width in self.widths:
      x = nn.relu(self._dense(width, x)(x))
    return self._dense(self.outputs, x, name="head")(x).astype(jnp.float32)

  def _dense(self, width: int, x: Array, name: str | None = None) -> nn.Dense:
    init = uniform_by_fan_in(x.shape[-1])
    return nn.Dense(width, dtype=self.dtype, kernel_init=init, bias_init=init, name=name)


def max_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
  """The maximum of each 2 x 2 pixels; an odd row or column at the end is dropped, a single one is kept.

  Slices instead of a reduction window, whose second derivative XLA computes slowly on the CPU.
  """
  height, width = (max(n // 2 * 2, 1) for n in x.shape[1:3])
  x = x[:, :height, :width]
  if height > 1:
    x = jnp.maximum(x[:, ::2], x[:, 1::2])
  if width > 1:
    x = jnp.maximum(x[:, :, ::2], x[:, :, 1::2])
  return x


class Conv4(nn.Module):
  """Four blocks of 3x3 convolution, BatchNorm, ReLU and 2x2 max-pooling, then a linear layer.

  Vinyals et al. 2016, section 4.1.1, with the linear layer of Finn et al. 2017: 112,261 parameters at 28x28x1 and 5
  outputs. `train` normalises by the batch itself, and otherwise the statistics in "batch_stats" do: those of the last
  batch seen in training, without an average over batches.
  """

  outputs: int = 5
  width: int = 64
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B {self.outputs}"]:
    for i in range(4):
      x = Conv(self.width, (3, 3), padding=((1, 1), (1, 1)), dtype=self.dtype, name=f"conv{i}")(x)
      # ReLU after pooling instead of before: the same numbers from a quarter of the work.
      x = nn.relu(max_pool(BatchNorm(not train, momentum=0.0, dtype=self.dtype, name=f"norm{i}")(x)))
    x = x.reshape(x.shape[0], -1)
    return nn.Dense(self.outputs, dtype=self.dtype, name="head")(x).astype(jnp.float32)


class FullyConnected(nn.Module):
  """Linear layers with BatchNorm and ReLU, then one without (Finn et al. 2017, section 5.2). `train` as in `Conv4`."""

  outputs: int = 5
  widths: Sequence[int] = (256, 128, 64, 64)
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B {self.outputs}"]:
    x = x.reshape(x.shape[0], -1)
    for i, width in enumerate(self.widths):
      x = nn.Dense(width, dtype=self.dtype, name=f"dense{i}")(x)
      x = nn.relu(BatchNorm(not train, momentum=0.0, dtype=self.dtype, name=f"norm{i}")(x))
    return nn.Dense(self.outputs, dtype=self.dtype, name="head")(x).astype(jnp.float32)
