"""A network that gives classes to the frames of a sequence: convolutions in front, any sequence layer behind."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from mlnotes.attention import Mask, Transformer
from mlnotes.nn.conv import Conv
from mlnotes.nn.dropout import Dropout
from mlnotes.nn.norm import LayerNorm
from mlnotes.sequence.recurrent import RecurrentStack


class FrameClassifier(nn.Module):
  """Frames of features to logits, with the length of each row.

  A convolution over time and features for each of `channels`, 3 x 3, longer in time where its stride would leave frames
  unseen: it halves the features and divides the time by its entry of `time_strides`. Then one vector of `width` a
  frame, `body`, and logits. T' = ceil(T / strides), for each row by itself: what stands behind its length changes
  nothing.
  """

  num_classes: int
  width: int
  body: RecurrentStack | Transformer | None = None
  channels: Sequence[int] = (16, 32)
  time_strides: Sequence[int] = (1, 2)
  dropout: float = 0.0
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self, x: Float[Array, "B T M"], lengths: Int[Array, " B"] | None = None, train: bool = False
  ) -> tuple[Float[Array, "B t K"], Int[Array, " B"]]:
    lengths = jnp.full(x.shape[0], x.shape[1], jnp.int32) if lengths is None else lengths
    cut = lambda x: jnp.where((jnp.arange(x.shape[1])[None] < lengths[:, None])[(..., *(None,) * (x.ndim - 2))], x, 0)
    x = cut(x.astype(self.dtype or x.dtype))[..., None]
    for layer, (channels, stride) in enumerate(zip(self.channels, self.time_strides)):
      # Padding on both sides: where XLA's "SAME" begins depends on whether the width is even, so on the batch.
      kernel = (max(3, 2 * stride - 1), 3)  # as far as the next frame that comes out, which the last one does not have
      x = Conv(channels, kernel, (stride, 2), "TORCH", dtype=self.dtype, name=f"conv{layer}")(x)
      lengths = -(-lengths // stride)
      x = cut(jax.nn.relu(x))
    x = nn.Dense(self.width, dtype=self.dtype, name="join")(x.reshape(*x.shape[:2], -1))
    x = LayerNorm(dtype=self.dtype, name="norm")(x)
    if isinstance(self.body, Transformer):
      x = self.body(cut(x), mask=Mask.of_self(lengths=lengths), train=train)
    elif self.body is not None:
      x = self.body(cut(x), lengths, train=train)[0]
    x = Dropout(self.dropout)(x, deterministic=not train)
    return nn.Dense(self.num_classes, name="logits")(x).astype(jnp.float32), lengths
