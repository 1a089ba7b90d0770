"""Attention over the positions of an image."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from mlnotes.nn.norm import GroupNorm


class SpatialAttention(nn.Module):
  """Lets the positions of an image attend to each other, then to a sequence: two residual steps.

    y = x + SelfAttention(GroupNorm(x));    y + CrossAttention(GroupNorm(y), context)

  The second step exists where `context` is given (also at init). `context_mask` is True at the positions that count;
  an example without any such position skips the step. Both output projections start at zero, so the block starts as the
  identity. The softmax is float32 whatever `dtype`. Vaswani et al. 2017, eq. 1; Rombach et al. 2022, sec. 3.3.

  Raises ValueError where `heads` does not divide the channels.
  """

  heads: int = 4
  groups: int = 8
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B H W C"],
    context: Float[Array, "B L D"] | None = None,
    context_mask: Bool[Array, "B L"] | None = None,
  ) -> Float[Array, "B H W C"]:
    if x.shape[-1] % self.heads:
      raise ValueError(f"heads={self.heads} must divide the number of channels, found {x.shape[-1]}")

    def attend(name: str, x: Array, context: Array | None, mask: Array | None) -> Array:
      queries = GroupNorm(self.groups, dtype=self.dtype, name=f"{name}_norm")(x)
      attention = nn.MultiHeadDotProductAttention(
        self.heads,
        qkv_features=x.shape[-1],
        out_kernel_init=nn.initializers.zeros,
        force_fp32_for_softmax=True,
        dtype=self.dtype,
        name=name,
      )
      return attention(queries.reshape(x.shape[0], -1, x.shape[-1]), context, mask=mask).reshape(x.shape)

    x = x + attend("self_attention", x, None, None)
    if context is None:
      return x
    if context_mask is None:
      return x + attend("cross_attention", x, context, None)
    y = attend("cross_attention", x, context, context_mask[:, None, None, :])
    return x + jnp.where(jnp.any(context_mask, axis=1)[:, None, None, None], y, 0)
