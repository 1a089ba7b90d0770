"""Dropout, with a mask for each value or one for a whole sequence.

All scale what is kept by 1 / (1 - rate) in training (Srivastava et al. 2014, sec. 10: "inverted" dropout), so nothing
changes at test time. `rate` is the part that is dropped, in [0, 1).

Inside `flax.linen.scan` the mask is the same at every step exactly where `split_rngs={"dropout": False}`, and another
one where it is True; `jax.lax.scan` over a closure that was given one key repeats it unawares. Say which is meant: draw
the mask before the scan with `draw_dropout_mask`, or fold the step into the key inside.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

# Needs rngs={"dropout": key} where it is not deterministic; each layer folds its own path into that key.
Dropout = nn.Dropout


def draw_dropout_mask(
  key: Key[Array, ""], shape: tuple[int, ...], rate: float | Float[Array, ""], dtype: DTypeLike = jnp.float32
) -> Float[Array, "..."]:
  """Factors that are 0 with probability `rate` and 1 / (1 - rate) otherwise: x * mask is x after dropout.

  For a mask that is to stay over the steps of a scan: Gal & Ghahramani 2016, sec. 4. In a recurrent layer, one
  mask for the inputs and one for h_{t-1} before the recurrent matrix; the LSTM's cell state takes none.

  Raises ValueError where `rate` is a number outside [0, 1); a traced one is taken as it is.
  """
  _require_rate(rate)
  keep = 1 - rate
  return jnp.where(jax.random.bernoulli(key, keep, shape), 1 / jnp.asarray(keep, dtype), 0).astype(dtype)


class SharedDropout(nn.Module):
  """Dropout with one mask for all steps of a sequence ("variational"): Gal & Ghahramani 2016, sec. 4.

  The mask differs between examples, features and layers, and is the same along `time_axis`.

  Raises ValueError where `rate` is outside [0, 1).
  """

  rate: float
  time_axis: int = -2

  @nn.compact
  def __call__(self, x: Float[Array, "..."], deterministic: bool) -> Float[Array, "..."]:
    _require_rate(self.rate)
    return nn.Dropout(self.rate, broadcast_dims=(self.time_axis,), name="dropout")(x, deterministic=deterministic)


def _require_rate(rate: float | Array) -> None:
  if isinstance(rate, (int, float)) and not 0 <= rate < 1:
    raise ValueError(f"dropout rate={rate} is out of range: expected a number in [0, 1)")
