"""Squeeze and excitation: channels weighed by what the whole image holds."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class SqueezeExcitation(nn.Module):
  """Scales each channel by a number in (0, 1) that a small network finds in the channels' means.

    z_c = mean over pixels of x_c;   s = sigmoid(W2 relu(W1 z));   y_c = s_c x_c        Hu et al. 2018, eq. 2-4

  W1 has C / `reduction` rows (rounded up), so 2 C^2 / reduction parameters; biases, which many implementations add,
  with `use_bias`. In a residual block it stands on the branch, before the addition: `BasicBlock(attention=...)`.

  Raises ValueError where `reduction` is below 1.
  """

  reduction: int = 16
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "B *space C"]) -> Float[Array, "B *space C"]:
    if self.reduction < 1:
      raise ValueError(f"reduction is {self.reduction}, expected a positive integer")
    channels = x.shape[-1]
    z = jnp.mean(x, axis=tuple(range(1, x.ndim - 1)), keepdims=True)
    z = nn.Dense(-(-channels // self.reduction), self.use_bias, x.dtype, name="squeeze")(z)
    return x * nn.sigmoid(nn.Dense(channels, self.use_bias, x.dtype, name="excite")(nn.relu(z)))
