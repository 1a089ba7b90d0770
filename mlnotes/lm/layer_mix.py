"""One vector for each token from all layers of a network that stays as it is: ELMo. Peters et al. 2018."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mlnotes.nn.norm import LayerNorm


class LayerMix(nn.Module):
  """gamma sum_j softmax(s)_j h_j over the layers, gamma and s learned for each task. Peters et al. 2018, eq. 1.

  At first the mean of the layers. The layers are inputs: no gradient flows into what they come from. With `norm` each
  is normalised at each token first, sec. 3.2, without parameters of its own.
  """

  norm: bool = False

  @nn.compact
  def __call__(
    self, layers: Sequence[Float[Array, "B T D"]], real: Bool[Array, "B T"] | None = None
  ) -> Float[Array, "B T D"]:
    """0 where `real` is False. Raises ValueError without layers."""
    if not len(layers):
      raise ValueError("layers is empty, expected one (B, T, D) or more")
    scores = self.param("scores", nn.initializers.zeros, (len(layers),))
    gamma = self.param("gamma", nn.initializers.ones, ())
    stacked = jax.lax.stop_gradient(jnp.stack(list(layers)))
    if self.norm:
      stacked = LayerNorm(use_scale=False, use_bias=False, name="norm")(stacked)
    mixed = gamma * jnp.einsum("l,lbtd->btd", jax.nn.softmax(scores), stacked)
    return mixed if real is None else jnp.where(real[..., None], mixed, 0)
