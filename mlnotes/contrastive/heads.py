"""What stands on an encoder while it learns and is thrown away afterwards."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float


class MLPHead(nn.Module):
  """Dense layers with ReLU between them.

  `norm` is a module factory as in `ResNet`, put before each ReLU and, with `norm_last`, after the last layer, there
  without scale and shift; None: no normalisation, and biases in its place. Chen et al. 2020: (D, 128) with BatchNorm;
  MoCo v1 (128,), v2 (D, 128), both without; SimSiam: three layers with `norm_last`, and a predictor (D / 4, D).
  """

  features: Sequence[int]
  norm: Callable[..., nn.Module] | None = None
  norm_last: bool = False
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "B D"], train: bool) -> Float[Array, "B E"]:
    for i, features in enumerate(self.features):
      last = i == len(self.features) - 1
      normalized = self.norm is not None and (self.norm_last or not last)
      x = nn.Dense(features, use_bias=not normalized, dtype=self.dtype)(x)
      if normalized:
        plain = {"use_scale": False, "use_bias": False} if last else {}
        x = self.norm(use_running_average=not train, dtype=self.dtype, **plain)(x)
      x = x if last else nn.relu(x)
    return x


class Embedder(nn.Module):
  """An encoder with a projection head, and a predictor where there is one.

  Returns (features, projection, prediction); without a predictor the prediction is the projection. The features are
  what the encoder is trained for; the losses see the rest.
  """

  encoder: nn.Module
  head: nn.Module
  predictor: nn.Module | None = None

  @nn.compact
  def __call__(
    self, x: Float[Array, "B H W C"], train: bool
  ) -> tuple[Float[Array, "B D"], Float[Array, "B E"], Float[Array, "B E"]]:
    features = self.encoder(x, train)
    projection = self.head(features, train)
    return features, projection, projection if self.predictor is None else self.predictor(projection, train)
