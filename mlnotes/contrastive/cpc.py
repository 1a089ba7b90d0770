"""Contrastive predictive coding (CPC): the past of a grid of patches, or of a sequence, predicts its future."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from mlnotes.contrastive.loss import in_batch_info_nce, mutual_information_bound
from mlnotes.contrastive.method import Method, Outcome
from mlnotes.nn import Conv, GroupNorm, orthogonal


def extract_patches(image: Float[Array, "B H W C"], size: int, stride: int) -> Float[Array, "B R S {size} {size} C"]:
  """Square patches row by row, R x S of them, as many as fit. Raises ValueError where not even one does."""
  height, width = image.shape[1:3]
  if size > min(height, width):
    raise ValueError(f"a patch of {size} pixels does not fit into an image of {height} x {width}")
  rows, columns = ((extent - size) // stride + 1 for extent in (height, width))
  cut = lambda top, left: image[:, top : top + size, left : left + size]
  grid = [[cut(r * stride, c * stride) for c in range(columns)] for r in range(rows)]
  return jnp.stack([jnp.stack(row, axis=1) for row in grid], axis=1)


class SequenceContext(nn.Module):
  """c_t = GRU(z_1, ..., z_t): the autoregressive summary of a sequence. van den Oord et al. 2018, section 2.2."""

  features: int

  @nn.compact
  def __call__(self, z: Float[Array, "B T D"]) -> Float[Array, "B T E"]:
    return nn.RNN(nn.GRUCell(self.features, recurrent_kernel_init=orthogonal()))(z)


class RowContext(nn.Module):
  """Residual masked convolutions: the context of a patch sees its own row and the rows above, nothing below.

  The vertical stack of a PixelCNN, as in van den Oord et al. 2018, section 3.3. Each of `layers` reaches one row up
  and one column to each side.
  """

  features: int
  layers: int = 3
  dtype: Any = None

  @nn.compact
  def __call__(self, z: Float[Array, "B R S D"]) -> Float[Array, "B R S E"]:
    x = nn.Dense(self.features, dtype=self.dtype)(z)
    for _ in range(self.layers):
      # All padding is on top, so that row r of the result ends at row r of the input.
      y = Conv(self.features, (2, 3), padding=((1, 0), (1, 1)), dtype=self.dtype)(nn.relu(x))
      x = x + Conv(self.features, (1, 1), dtype=self.dtype)(nn.relu(y))
    return x


class CPCNetwork(nn.Module):
  """Encoder of patches, context, and one linear predictor W_k for each of the `offsets` (rows or steps ahead).

  Returns (patches' encodings z, contexts c, predictions W_k c by offset). `encoder` maps (B, h, w, C) to (B, D).
  """

  encoder: nn.Module
  context: nn.Module
  features: int
  offsets: Sequence[int]
  patch_size: int
  patch_stride: int

  @nn.compact
  def __call__(self, image: Float[Array, "B H W C"], train: bool) -> tuple[Array, Array, list[Array]]:
    patches = extract_patches(image, self.patch_size, self.patch_stride)
    z = self.encoder(patches.reshape(-1, *patches.shape[3:]), train)
    z = nn.Dense(self.features, name="projection")(z).reshape(*patches.shape[:3], -1)
    context = self.context(z)
    # float32 from here on: the loss takes exponentials of these.
    predict = lambda k: nn.Dense(self.features, use_bias=False, name=f"predict{k}")(context.astype(jnp.float32))
    return z.astype(jnp.float32), context, [predict(k) for k in self.offsets]


def future_losses(
  z: Float[Array, "B T *S D"],
  predictions: Sequence[Float[Array, "B T *S D"]],
  offsets: Sequence[int],
  mask: Num[Array, " B"] | None = None,
) -> list[Float[Array, "B t *S"]]:
  """InfoNCE of each prediction, by offset k: what stands k steps later is told from all encodings of the batch there.

    -log( exp(z_{t+k}.W_k c_t) / sum_j exp(z_j.W_k c_t) )                van den Oord et al. 2018, eq. 3, 4

  The candidates of offset k are the B (T - k) S encodings from step k on, of this sequence and of all others: log of
  that number at chance. Couples the examples. Axis 1 is time (rows of a grid); other axes between it and D are places.
  Examples where `mask` is 0 give no candidates; their own losses mean nothing.
  """
  losses = []
  for k, prediction in zip(offsets, predictions):
    past, future = prediction[:, :-k], z[:, k:]
    counts = None if mask is None else jnp.repeat(mask, future[0, ..., 0].size)
    flat = in_batch_info_nce(*(x.reshape(-1, x.shape[-1]) for x in (past, future)), 1.0, counts)
    losses.append(flat.reshape(past.shape[:-1]))
  return losses


def pool_quarters(grid: Float[Array, "B R S D"]) -> Float[Array, "B 4*D"]:
  """The mean over each quarter of the grid, joined; a middle row or column counts in both halves."""
  rows, columns = ((slice((n + 1) // 2), slice(n // 2, n)) for n in grid.shape[1:3])
  return jnp.concatenate([jnp.mean(grid[:, r, c], axis=(1, 2)) for r in rows for c in columns], axis=-1)


def make_cpc(network: CPCNetwork) -> Method:
  """CPC on images: van den Oord et al. 2018, section 3.3. Test features are z and c, averaged over quarters.

  Differences from the paper: quarters instead of one mean over all patches, which forgets where in a digit a stroke
  is.

  Reports the lower bound on the mutual information of context and future, in nats, for the nearest offset
  (`information`, in training and on test images; below 0 it says nothing) and the candidates' log
  (`information_limit`), which no bound can exceed. Both are per batch, and fewer candidates bound less: the last batch
  of test images counts by its images.
  """

  def information(losses, mask):
    first = losses[0].reshape(len(mask), -1)
    candidates = jnp.sum(mask) * first.shape[1]
    mean = jnp.mean(first, where=mask[:, None] > 0)
    return {
      "information": mutual_information_bound(mean, candidates),
      "information_limit": jnp.log(candidates),
    }

  def init(key, images):
    return network.init(key, images, train=False), ()

  def loss(params, state, views, batch, key):
    z, _, predictions = network.apply({"params": params}, views[:, 0], train=True)
    losses = future_losses(z, predictions, network.offsets)
    embedding = jnp.mean(z, axis=(1, 2))
    everyone = jnp.ones(len(z))
    mean = jnp.mean(jnp.stack([jnp.mean(x) for x in losses]))
    return mean, Outcome({}, (), (embedding,), information(losses, everyone))

  def embed(variables, images):
    z, context, _ = network.apply(variables, images, train=False)
    return jnp.concatenate([pool_quarters(z), pool_quarters(context)], axis=-1), jnp.mean(z, axis=(1, 2))

  def judge(variables, images, mask):
    z, _, predictions = network.apply(variables, images, train=False)
    return information(future_losses(z, predictions, network.offsets, mask), mask)

  return Method(init, loss, embed, num_views=1, judge=judge)


def group_norm(use_running_average: bool, dtype: Any = None, scale_init: Any = None, **kwargs: Any) -> nn.Module:
  """GroupNorm where an encoder asks for BatchNorm: over a batch of patches, statistics would give neighbours away."""
  del use_running_average, scale_init
  return GroupNorm(dtype=dtype or jnp.float32, **kwargs)
