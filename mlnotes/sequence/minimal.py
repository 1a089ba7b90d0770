"""minGRU and minLSTM: gates that look at the input alone, so that all steps are one parallel scan (Feng et al. 2024).

Both are h_t = a_t h_{t-1} + b_t with a_t, b_t from x_t. They are cells like any other, one step at a time, and have
`scan` for a whole sequence at once, in log2(T) rounds.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

Hidden = Float[Array, "*B F"]


def scan_linear(
  decay: Float[Array, "B T F"], added: Float[Array, "B T F"], start: Float[Array, "B F"]
) -> Float[Array, "B T F"]:
  """h_t = decay_t h_{t-1} + added_t from h_0 = start, all t by `lax.associative_scan`."""

  def join(first, second):
    return first[0] * second[0], second[0] * first[1] + second[1]

  decay, added = jax.lax.associative_scan(join, (decay, added), axis=1)
  return decay * start[:, None] + added


def make_positive(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """g(x) = x + .5 where x >= 0, else sigmoid(x). Feng et al. 2024, listing 6."""
  return jnp.where(x >= 0, jnp.maximum(x, 0) + 0.5, jax.nn.sigmoid(x))


class _Minimal(nn.RNNCellBase):
  """What both share; `_gates` gives (a, b)."""

  features: int
  positive: bool = True
  dtype: Any = None

  def _gates(self, x: Float[Array, "*B D"]) -> tuple[Hidden, Hidden]:
    raise NotImplementedError

  def _candidate(self, x: Hidden) -> Hidden:
    return make_positive(x) if self.positive else x

  def __call__(self, carry: Hidden, inputs: Float[Array, "*B D"]) -> tuple[Hidden, Hidden]:
    """One step."""
    decay, added = self._gates(inputs)
    new = decay * carry + added
    return new, new

  def scan(
    self,
    carry: Float[Array, "B F"],
    inputs: Float[Array, "B T D"],
    real: Bool[Array, "B T"] | None = None,
    starts: Bool[Array, "B T"] | None = None,
    unroll: int = 1,
  ) -> tuple[Float[Array, "B F"], Float[Array, "B T F"]]:
    """All steps at once: what as many calls give, to rounding.

    The state stands still where `real` is False, and is 0 before the steps where `starts` is True. `unroll` is of loops
    and does nothing here.
    """
    decay, added = self._gates(inputs)
    if starts is not None:
      decay = jnp.where(starts[..., None], 0, decay)
    if real is not None:
      decay, added = jnp.where(real[..., None], decay, 1), jnp.where(real[..., None], added, 0)
    states = scan_linear(decay, added, carry)
    return states[:, -1], states

  @nn.nowrap
  def initialize_carry(self, rng: Key[Array, ""], input_shape: tuple[int, ...]) -> Hidden:
    return jnp.zeros((*input_shape[:-1], self.features))

  @property
  def num_feature_axes(self) -> int:
    return 1


class MinGRUCell(_Minimal):
  """The GRU without h_{t-1} in its gates.

    z = sigmoid(W_z x_t),   h_t = (1 - z) h_{t-1} + z g(W_h x_t)         Feng et al. 2024, sec. 3.1

  g keeps h positive where `positive`, as the paper's log-space scan needs; the scan here is of numbers as they are,
  which z on (0, 1) allows. The initial state enters as it is. Gates are float32 whatever `dtype` the matrices are in.
  """

  @nn.compact
  def _gates(self, x: Float[Array, "*B D"]) -> tuple[Hidden, Hidden]:
    both = nn.Dense(2 * self.features, dtype=self.dtype, name="i")(x)
    update, candidate = jnp.split(_at_least_float32(both), 2, axis=-1)
    return jax.nn.sigmoid(-update), jax.nn.sigmoid(update) * self._candidate(candidate)


class MinLSTMCell(_Minimal):
  """The LSTM without h_{t-1} in its gates, which share the state between what was and what comes.

    f, i = sigmoid(W x_t),   h_t = f / (f + i) h_{t-1} + i / (f + i) g(W_h x_t)         Feng et al. 2024, sec. 3.2

  `positive` as of `MinGRUCell`; the forget gate's bias starts at `forget_bias`.
  """

  forget_bias: float = 0.0

  @nn.compact
  def _gates(self, x: Float[Array, "*B D"]) -> tuple[Hidden, Hidden]:
    def bias_init(key, shape, dtype=jnp.float32):
      return jnp.zeros(shape, dtype).at[: self.features].set(self.forget_bias)

    of_all = nn.Dense(3 * self.features, dtype=self.dtype, bias_init=bias_init, name="i")(x)
    forget, add, candidate = jnp.split(_at_least_float32(of_all), 3, axis=-1)
    # log(i / f): both shares from one difference, none of which is 0 / 0.
    odds = jax.nn.log_sigmoid(add) - jax.nn.log_sigmoid(forget)
    return jax.nn.sigmoid(-odds), jax.nn.sigmoid(odds) * self._candidate(candidate)


def _at_least_float32(x: Array) -> Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
