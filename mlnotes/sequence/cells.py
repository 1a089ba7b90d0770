"""Recurrent cells: Elman, Jordan, LSTM, GRU, clockwork, SCRN, and how each is called.

Each is a `flax.linen.RNNCellBase`: `carry, y = cell(carry, x)` with x of shape (B, D) and y (B, features), and
`cell.initialize_carry(key, x.shape)`. A carry keeps its own dtype, float32, whatever `dtype` its sums are computed in.

`recurrent_dropout` drops entries of h_{t-1} before the recurrent matrices, with one mask for all steps of a sequence:
Gal & Ghahramani 2016, eq. 7. It acts where `deterministic` is False, needs rngs={"dropout": key}, and is the same at
every step in `flax.linen.scan` with `split_rngs={"dropout": False}`, as `mlnotes.sequence.Recurrent` has it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mlnotes.nn.initializers import orthogonal
from mlnotes.sequence.loop import LoopedCell, Multiply

Hidden = Float[Array, "*B F"]
Slow = Float[Array, "*B S"]


def _by_gate(init: Callable[..., Array], gates: int) -> Callable[..., Array]:
  """One matrix for several gates, each block of columns drawn as a matrix of its own."""

  def draw(key, shape, dtype=jnp.float32):
    block = (*shape[:-1], shape[-1] // gates)
    return jnp.concatenate([init(each, block, dtype) for each in jax.random.split(key, gates)], -1)

  return draw


class _Kernel(nn.Module):
  """The parameters of an `nn.Dense`, to be multiplied elsewhere: (kernel, bias or None)."""

  kernel_init: Callable[..., Array]
  shape: tuple[int, int]
  param_dtype: Any
  bias_init: Callable[..., Array] | None = None

  @nn.compact
  def __call__(self) -> tuple[Float[Array, "F G"], Float[Array, " G"] | None]:
    kernel = self.param("kernel", self.kernel_init, self.shape, self.param_dtype)
    return kernel, self.bias_init and self.param("bias", self.bias_init, self.shape[-1:], self.param_dtype)


class ElmanCell(LoopedCell, nn.SimpleCell):
  """The simple recurrent network, whose context is its previous hidden state.

    h_t = tanh(W x_t + U h_{t-1} + b)                                    Elman 1990

  U starts orthogonal (`recurrent_kernel_init`); an identity with `activation_fn` relu is Le et al. 2015 (IRNN).
  """

  recurrent_kernel_init: Callable[..., Array] = orthogonal()
  recurrent_dropout: float = 0.0
  deterministic: bool = True

  @nn.compact
  def _products(self, carry: Hidden, inputs: Float[Array, "*N D"]) -> Any:
    of_input = partial(nn.Dense, self.features, dtype=self.dtype, param_dtype=self.param_dtype)
    added = of_input(kernel_init=self.kernel_init, bias_init=self.bias_init, name="i")(inputs)
    kernel, _ = _Kernel(self.recurrent_kernel_init, (self.features, self.features), self.param_dtype, name="h")()
    return {"h": kernel}, {"h": added}, None, _draw_mask(self, carry)

  @nn.nowrap
  def _step(self, carry: Hidden, more: None, multiply: Multiply) -> Hidden:
    new = multiply("h", carry)
    return self.activation_fn(new + carry if self.residual else new).astype(carry.dtype)


class JordanCell(nn.RNNCellBase):
  """The network whose context is its previous output, which fades by itself.

    s_t = decay s_{t-1} + y_{t-1},   h_t = tanh(W x_t + U s_t + b),   y_t = tanh(V h_t + c)          Jordan 1986

  The carry is s_{t+1}, of the next step. `hidden` units of h, 0: as many as of y; `decay` on [0, 1).
  Differences from the paper: its units are logistic.
  """

  features: int
  hidden: int = 0
  decay: float = 0.5
  kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
  dtype: Any = None
  recurrent_dropout: float = 0.0
  deterministic: bool = True

  @nn.compact
  def __call__(self, carry: Hidden, inputs: Float[Array, "*B D"]) -> tuple[Hidden, Hidden]:
    dense = partial(nn.Dense, dtype=self.dtype, kernel_init=self.kernel_init)
    hidden = self.hidden or self.features
    from_context = dense(hidden, use_bias=False, name="h")(_drop(self, carry))
    h = jnp.tanh(dense(hidden, name="i")(inputs) + from_context)
    y = jnp.tanh(dense(self.features, name="out")(h)).astype(carry.dtype)
    return self.decay * carry + y, y

  @nn.nowrap
  def initialize_carry(self, rng: Key[Array, ""], input_shape: tuple[int, ...]) -> Hidden:
    return jnp.zeros((*input_shape[:-1], self.features))

  @property
  def num_feature_axes(self) -> int:
    return 1


class LSTMCell(LoopedCell, nn.OptimizedLSTMCell):
  """Long short-term memory with a forget gate.

    i, f, o = sigmoid(W x_t + U h_{t-1} + b),   g = tanh(...)            Hochreiter & Schmidhuber 1997;
    c_t = f c_{t-1} + i g,   h_t = o tanh(c_t)                           Gers et al. 2000, eq. 3.1-3.3

  The carry is (c, h). The forget gate's bias starts at `forget_bias` (Jozefowicz et al. 2015, sec. 2.2), the others at
  `bias_init`. With `longest` of 3 or more, the steps over which something is to be kept, it is drawn as log U(1,
  longest - 1) instead, and the input gate's starts at minus that (Tallec & Ollivier 2018, eq. 16). Kernels "i" and "h"
  have the gates' columns in torch's order, i, f, g, o.
  """

  forget_bias: float = 1.0
  longest: int = 0
  recurrent_kernel_init: Callable[..., Array] = orthogonal()
  recurrent_dropout: float = 0.0
  deterministic: bool = True

  def __post_init__(self):
    if self.longest and self.longest < 3:
      raise ValueError(f"longest is {self.longest}, expected 0, or 3 or more")
    super().__post_init__()

  @nn.compact
  def _products(self, carry: tuple[Hidden, Hidden], inputs: Float[Array, "*N D"]) -> Any:
    def bias_init(key, shape, dtype):
      bias = self.bias_init(key, shape, dtype).reshape(4, -1)
      if not self.longest:
        return bias.at[1].set(self.forget_bias).reshape(shape)
      of_forget = jax.random.fold_in(key, 1)  # `bias_init` has used the key itself
      forget = jnp.log(jax.random.uniform(of_forget, (self.features,), dtype, 1, self.longest - 1))
      return bias.at[1].set(forget).at[0].set(-forget).reshape(shape)

    of_input = partial(nn.Dense, 4 * self.features, use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype)
    gates = of_input(kernel_init=_by_gate(self.kernel_init, 4), name="i")(inputs)
    init = _by_gate(self.recurrent_kernel_init, 4)
    kernel, bias = _Kernel(init, (self.features, 4 * self.features), self.param_dtype, bias_init, name="h")()
    return {"h": kernel}, {"h": gates + _broadcast(bias, gates).astype(gates.dtype)}, None, _draw_mask(self, carry[1])

  @nn.nowrap
  def _step(self, carry: tuple[Hidden, Hidden], more: None, multiply: Multiply) -> tuple[Hidden, Hidden]:
    c, h = carry
    i, f, g, o = jnp.split(multiply("h", h), 4, axis=-1)
    new_c = (self.gate_fn(f) * c + self.gate_fn(i) * self.activation_fn(g)).astype(c.dtype)
    return new_c, (self.gate_fn(o) * self.activation_fn(new_c)).astype(h.dtype)


class GRUCell(LoopedCell, nn.GRUCell):
  """The gated recurrent unit, in both of its forms.

    r, z = sigmoid(W x_t + U h_{t-1} + b)
    after:   n = tanh(W_n x_t + b_n + r (U_n h_{t-1} + c_n))             cuDNN, torch, Keras' `reset_after`
    before:  n = tanh(W_n x_t + b_n + U_n (r h_{t-1}))                   Cho et al. 2014, eq. 5-8
    h_t = (1 - z) n + z h_{t-1}

  They are different functions. Kernels "i" and "gates" have columns in the order r, z (, n).
  Raises ValueError for another `reset`.
  """

  reset: Literal["after", "before"] = "after"
  recurrent_kernel_init: Callable[..., Array] = orthogonal()
  recurrent_dropout: float = 0.0
  deterministic: bool = True

  def __post_init__(self):
    if self.reset not in ("after", "before"):
      raise ValueError(f"reset is {self.reset!r}, expected after or before")
    super().__post_init__()

  @nn.compact
  def _products(self, carry: Hidden, inputs: Float[Array, "*N D"]) -> Any:
    width, after = self.features, self.reset == "after"
    of_input = partial(nn.Dense, 3 * width, dtype=self.dtype, param_dtype=self.param_dtype, bias_init=self.bias_init)
    from_input = of_input(kernel_init=_by_gate(self.kernel_init, 3), name="i")(inputs)
    gates, of_n = from_input[..., : 2 * width], from_input[..., 2 * width :]
    make = partial(_Kernel, param_dtype=self.param_dtype)
    init = self.recurrent_kernel_init
    of_gates, _ = make(_by_gate(init, 2), (width, 2 * width), name="gates")()
    candidate, bias = make(init, (width, width), bias_init=self.bias_init if after else None, name="candidate")()
    added = {"gates": gates, "candidate": _broadcast(bias, of_n).astype(of_n.dtype) if after else of_n}
    return {"gates": of_gates, "candidate": candidate}, added, of_n if after else None, _draw_mask(self, carry)

  @nn.nowrap
  def _step(self, carry: Hidden, more: Hidden | None, multiply: Multiply) -> Hidden:
    r, z = jnp.split(self.gate_fn(multiply("gates", carry)), 2, axis=-1)
    after = self.reset == "after"
    n = self.activation_fn(more + r * multiply("candidate", carry) if after else multiply("candidate", r * carry))
    return ((1 - z) * n + z * carry).astype(carry.dtype)


class ClockworkCell(nn.RNNCellBase):
  """Modules that each tick at a period of their own, and hear only from themselves and from slower ones.

    h_i(t) = tanh(W_i x_t + sum_{j >= i} U_ij h_j(t-1) + b_i)   where t mod T_i = 0, else h_i(t-1)
                                                                          Koutnik et al. 2014, eq. 1-3

  Periods ascend; modules have equal shares of the `features`, and at the first step, t = 0, all of them tick. Entries
  of U from faster modules to slower ones are 0 and stay so. The carry is (h, t), t (B,) steps done.
  Raises ValueError for periods that do not ascend from 1 or more, or do not divide the features.
  """

  features: int
  periods: Sequence[int] = (1, 2, 4, 8)
  kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
  recurrent_kernel_init: Callable[..., Array] = orthogonal()
  dtype: Any = None
  recurrent_dropout: float = 0.0
  deterministic: bool = True

  def __post_init__(self):
    periods = tuple(self.periods)
    if not periods or periods[0] < 1 or periods != tuple(sorted(set(periods))):
      raise ValueError(f"periods are {periods}, expected ascending numbers from 1 or more")
    if self.features % len(periods):
      raise ValueError(f"{len(periods)} periods must divide {self.features} features")
    super().__post_init__()

  @nn.compact
  def __call__(
    self, carry: tuple[Hidden, Int[Array, "*B"]], inputs: Float[Array, "*B D"]
  ) -> tuple[tuple[Hidden, Int[Array, "*B"]], Hidden]:
    h, t = carry
    share = self.features // len(self.periods)
    module = jnp.repeat(jnp.arange(len(self.periods)), share)
    period = jnp.repeat(jnp.array(self.periods), share)
    recurrent = self.param("recurrent", self.recurrent_kernel_init, (self.features, self.features))
    # Row: who speaks, column: who hears.
    recurrent = jnp.where(module[:, None] >= module[None, :], recurrent, 0)
    from_input = nn.Dense(self.features, dtype=self.dtype, kernel_init=self.kernel_init, name="i")(inputs)
    before = _drop(self, h).astype(from_input.dtype) @ recurrent.astype(from_input.dtype)
    ticks = t[..., None] % _broadcast(period, h) == 0
    new = jnp.where(ticks, jnp.tanh(from_input + before).astype(h.dtype), h)
    return (new, t + 1), new

  @nn.nowrap
  def initialize_carry(self, rng: Key[Array, ""], input_shape: tuple[int, ...]) -> tuple[Hidden, Int[Array, "*B"]]:
    return jnp.zeros((*input_shape[:-1], self.features)), jnp.zeros(input_shape[:-1], jnp.int32)

  @property
  def num_feature_axes(self) -> int:
    return 1


class SCRNCell(nn.RNNCellBase):
  """The structurally constrained recurrent network: an Elman network beside units that fade slowly and linearly.

    s_t = (1 - alpha) B x_t + alpha s_{t-1}
    h_t = sigmoid(P s_t + A x_t + R h_{t-1})                             Mikolov et al. 2015, eq. 4-6

  The output is (h_t, s_t) side by side, of `features` in all and `slow_features` of them s (0: a quarter), so that a
  linear layer on it is U h_t + V s_t. `alpha` on (0, 1) is fixed; with `learn_alpha` each slow unit has its own, the
  sigmoid of a parameter that starts there (sec. 3.3). The carry is (h, s).
  Raises ValueError where that leaves no unit of one kind.
  """

  features: int
  slow_features: int = 0
  alpha: float = 0.95
  learn_alpha: bool = False
  kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
  recurrent_kernel_init: Callable[..., Array] = orthogonal()
  dtype: Any = None
  recurrent_dropout: float = 0.0
  deterministic: bool = True

  def __post_init__(self):
    if not 0 < self._slow < self.features:
      raise ValueError(f"{self._slow} slow units of {self.features} features: expected one or more of each kind")
    super().__post_init__()

  @property
  def _slow(self) -> int:
    return self.slow_features or self.features // 4

  @nn.compact
  def __call__(self, carry: tuple[Hidden, Slow], inputs: Float[Array, "*B D"]) -> tuple[Any, Any]:
    h, s = carry
    dense = partial(nn.Dense, use_bias=False, dtype=self.dtype, kernel_init=self.kernel_init)
    alpha = self.alpha
    if self.learn_alpha:
      start = jax.scipy.special.logit(self.alpha)
      alpha = _broadcast(jax.nn.sigmoid(self.param("alpha", nn.initializers.constant(start), (self._slow,))), s)
    s = ((1 - alpha) * dense(self._slow, name="B")(inputs) + alpha * s).astype(s.dtype)
    recurrent = dense(h.shape[-1], kernel_init=self.recurrent_kernel_init, name="R")(_drop(self, h))
    sums = dense(h.shape[-1], name="P")(s) + dense(h.shape[-1], name="A")(inputs) + recurrent
    h = jax.nn.sigmoid(sums).astype(h.dtype)
    return (h, s), jnp.concatenate([h, s], -1)

  @nn.nowrap
  def initialize_carry(self, rng: Key[Array, ""], input_shape: tuple[int, ...]) -> tuple[Hidden, Slow]:
    batch = input_shape[:-1]
    return jnp.zeros((*batch, self.features - self._slow)), jnp.zeros((*batch, self._slow))

  @property
  def num_feature_axes(self) -> int:
    return 1


def _broadcast(x: Array, like: Array) -> Array:
  """A value for each feature, with an axis of 1 for each of those before."""
  return jnp.expand_dims(x, range(like.ndim - 1))


def _drop(cell: Any, h: Hidden) -> Hidden:
  """What of h_{t-1} the recurrent matrices of a cell see."""
  if not cell.recurrent_dropout or cell.deterministic:
    return h
  return nn.Dropout(cell.recurrent_dropout, deterministic=False, name="recurrent_dropout")(h)


def _draw_mask(cell: Any, h: Hidden) -> Hidden | None:
  """What `_drop` multiplies h_{t-1} with; None where it drops nothing."""
  return _drop(cell, jnp.ones_like(h)) if cell.recurrent_dropout and not cell.deterministic else None
