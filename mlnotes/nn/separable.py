"""Convolutions in two parts, space and channels, and the shuffle that lets groups of channels speak to each other."""

from collections.abc import Callable, Sequence

import flax.linen as nn
from jaxtyping import Array, Float, Shaped

from mlnotes.nn.conv import Conv
from mlnotes.nn.geometry import Padding


class SeparableConv(nn.Module):
  """A depthwise convolution, one filter per channel (or `multiplier` of them), then a 1x1 convolution.

    z[p, c m + j] = sum_q x[p * stride + q, c] w[q, c m + j]         y[p, o] = sum_i z[p, i] v[i, o]

  Multiplications are 1 / features + 1 / (taps of the window) of those of the full convolution, for multiplier 1:
  Howard et al. 2017 (MobileNets, arXiv:1704.04861), eq. 5.

  form "mobilenet": each part is followed by `norm` and a ReLU (their figure 3). "xception": nothing stands between the
  parts, and `norm`, no ReLU, follows both (Chollet 2017, Xception, arXiv:1610.02357, figures 5 and 10).

  `conv` is a module factory with the arguments of `Conv`, `norm` one without arguments, None for no normalisation.
  `depthwise_init` is apart from what `conv` has: of a depthwise kernel (k, k, 1, C) the fan-in is k k, which Flax's
  initializers see, but the fan-out too, which they take to be k k C.

  Raises ValueError for another form, where `kernel_size` is no number for each spatial axis, and as `Conv` does.
  """

  features: int
  kernel_size: int | Sequence[int] = (3, 3)
  strides: int | Sequence[int] = 1
  padding: Padding = "SAME"
  form: str = "mobilenet"
  multiplier: int = 1
  conv: Callable[..., nn.Module] = Conv
  norm: Callable[..., nn.Module] | None = None
  depthwise_init: Callable[..., Array] = nn.linear.default_kernel_init

  def __post_init__(self):
    if self.form not in ("mobilenet", "xception"):
      raise ValueError(f"form is {self.form!r}, expected 'mobilenet' or 'xception'")
    if self.multiplier < 1:
      raise ValueError(f"multiplier is {self.multiplier}, expected a positive integer")
    super().__post_init__()

  @nn.compact
  def __call__(self, x: Float[Array, "B *spatial C"]) -> Float[Array, "B *out D"]:
    channels, rank = x.shape[-1], x.ndim - 2
    window = (self.kernel_size,) * rank if isinstance(self.kernel_size, int) else tuple(self.kernel_size)
    if len(window) != rank:
      raise ValueError(
        f"kernel_size is {self.kernel_size}, expected {rank} numbers for x of shape {x.shape}: a batch, channels last"
      )
    x = self.conv(
      channels * self.multiplier,
      window,
      self.strides,
      padding=self.padding,
      feature_group_count=channels,
      kernel_init=self.depthwise_init,
      name="depthwise",
    )(x)
    if self.form == "mobilenet":
      x = nn.relu(self._normalize(x, "depthwise_norm"))
    x = self.conv(self.features, (1,) * rank, name="pointwise")(x)
    x = self._normalize(x, "pointwise_norm")
    return nn.relu(x) if self.form == "mobilenet" else x

  def _normalize(self, x, name):
    return x if self.norm is None else self.norm(name=name)(x)


def channel_shuffle(x: Shaped[Array, "*rest C"], groups: int) -> Shaped[Array, "*rest C"]:
  """Channel j of group i becomes channel i of group j: Zhang et al. 2018 (ShuffleNet, arXiv:1707.01083), figure 1c.

  Its inverse is the shuffle with C / groups groups. Without it, what comes of a stack of convolutions in `groups`
  groups depends on the inputs of its own group only.

  Raises ValueError where `groups` does not divide the channels.
  """
  channels = x.shape[-1]
  if groups < 1 or channels % groups:
    raise ValueError(f"groups is {groups}, expected a divisor of the {channels} channels")
  return x.reshape(*x.shape[:-1], groups, channels // groups).swapaxes(-1, -2).reshape(x.shape)
