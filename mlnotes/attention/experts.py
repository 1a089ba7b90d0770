"""A mixture of experts in the place of a Transformer's feed-forward network: each token goes to a few of many."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

RouterForm = Literal["mixtral", "switch"]


class Routing(NamedTuple):
  """Where each of T tokens goes.

  Attributes:
    expert: (T, k) the chosen experts, the likeliest first.
    weight: (T, k) what their outputs are multiplied by.
    probability: (T, E) of every expert.
  """

  expert: Int[Array, "T k"]
  weight: Float[Array, "T k"]
  probability: Float[Array, "T E"]


def route(logits: Float[Array, "T E"], k: int, form: RouterForm = "mixtral") -> Routing:
  """The k likeliest experts of each token, in float32.

    mixtral:  the softmax of the k largest logits, which sums to 1            Shazeer et al. 2017, eq. 3-5; Jiang et
    al. 2024
    switch:   the k largest of the softmax of all                             Fedus et al. 2022, eq. 1-2

  Raises ValueError where k is not 1 ... E, or for another form.
  """
  if form not in ("mixtral", "switch"):
    raise ValueError(f"form is {form!r}, expected mixtral or switch")
  if not 1 <= k <= logits.shape[-1]:
    raise ValueError(f"k is {k}, expected 1 to {logits.shape[-1]}, the number of experts")
  logits = logits.astype(jnp.float32)
  probability = jax.nn.softmax(logits)
  top, expert = jax.lax.top_k(logits, k)
  weight = jax.nn.softmax(top) if form == "mixtral" else jnp.take_along_axis(probability, expert, axis=-1)
  return Routing(expert, weight, probability)


def expert_loads(routing: Routing, real: Bool[Array, " T"] | None = None) -> Float[Array, " E"]:
  """The share of choices that each expert gets, over real tokens."""
  experts = routing.probability.shape[-1]
  chosen = jnp.sum(jax.nn.one_hot(routing.expert, experts), 1)
  return _mean(chosen, real) / routing.expert.shape[-1]


def balance_loss(routing: Routing, real: Bool[Array, " T"] | None = None) -> Float[Array, ""]:
  """E sum_i f_i P_i for the share f of choices and the mean probability P of each expert: 1 where all are even.

  Fedus et al. 2022, eq. 4-6. f has no gradient. Of one layer: means over layers before the product would let two
  layers cancel each other.
  """
  share = jax.lax.stop_gradient(expert_loads(routing, real))
  return routing.probability.shape[-1] * jnp.sum(share * _mean(routing.probability, real))


def router_z_loss(logits: Float[Array, "T E"], real: Bool[Array, " T"] | None = None) -> Float[Array, ""]:
  """Mean of the squared log-sum-exp of a router's logits, which keeps these small. Zoph et al. 2022 (ST-MoE), eq. 5."""
  return _mean(jnp.square(jax.nn.logsumexp(logits.astype(jnp.float32), -1))[:, None], real)[0]


def _mean(x: Float[Array, "T E"], real: Bool[Array, " T"] | None) -> Float[Array, " E"]:
  if real is None:
    return jnp.mean(x, 0)
  return jnp.sum(jnp.where(real[:, None], x, 0), 0) / jnp.maximum(jnp.sum(real), 1)


def apply_dropless(
  x: Float[Array, "T D"], routing: Routing, widen: Float[Array, "E D F"], narrow: Float[Array, "E F D"]
) -> Float[Array, "T D"]:
  """Every token to all of its k experts, gelu between two matrices of each, by `jax.lax.ragged_dot`."""
  experts, k = widen.shape[0], routing.expert.shape[-1]
  choice = routing.expert.reshape(-1)
  order = jnp.argsort(choice, stable=True)
  sizes = jnp.bincount(choice, length=experts).astype(jnp.int32)
  rows = jnp.take(x, order // k, axis=0)
  hidden = jax.nn.gelu(jax.lax.ragged_dot(rows, widen.astype(x.dtype), sizes))
  out = jax.lax.ragged_dot(hidden, narrow.astype(x.dtype), sizes)
  back = jnp.take(out, jnp.argsort(order), axis=0).reshape(x.shape[0], k, -1)
  return jnp.sum(back * routing.weight[..., None].astype(x.dtype), 1)


def apply_with_capacity(
  x: Float[Array, "T D"],
  routing: Routing,
  widen: Float[Array, "E D F"],
  narrow: Float[Array, "E F D"],
  capacity: int,
  real: Bool[Array, " T"] | None = None,
) -> Float[Array, "T D"]:
  """As `apply_dropless`, but an expert takes `capacity` tokens, first choices first, in order of arrival.

  What is dropped adds 0. Fedus et al. 2022, sec. 2.2. All sizes are fixed, so that experts can lie on devices of their
  own: shard the first axis of both matrices. Raises ValueError for a capacity below 1.
  """
  if capacity < 1:
    raise ValueError(f"capacity is {capacity}, expected room for 1 token or more in each expert")
  tokens, k = routing.expert.shape
  experts = widen.shape[0]
  chosen = jax.nn.one_hot(routing.expert.T.reshape(-1), experts, dtype=jnp.int32)  # first choices of all tokens first
  if real is not None:
    chosen = chosen * jnp.tile(real, k)[:, None]
  place = jnp.sum((jnp.cumsum(chosen, 0) - 1) * chosen, -1)
  kept = (place < capacity) & (jnp.sum(chosen, -1) > 0)
  slot = jax.nn.one_hot(jnp.where(kept, place, capacity), capacity, dtype=x.dtype)
  dispatch = (chosen.astype(x.dtype)[:, :, None] * slot[:, None, :]).reshape(k, tokens, experts, capacity)
  combine = jnp.einsum("ktec,tk->tec", dispatch, routing.weight.astype(x.dtype))
  rows = jnp.einsum("ktec,td->ecd", dispatch, x)
  hidden = jax.nn.gelu(jnp.einsum("ecd,edf->ecf", rows, widen.astype(x.dtype)))
  return jnp.einsum("tec,ecd->td", combine, jnp.einsum("ecf,efd->ecd", hidden, narrow.astype(x.dtype)))


class MixtureOfExperts(nn.Module):
  """A router and E networks of two matrices, of which each token takes k.

  Sows "balance_loss", "z_loss" and "loads", of the real tokens, into "intermediates": add the losses to one's own, a
  hundredth and a thousandth of them for a start. The router is float32 whatever `dtype`.

  Attributes:
    capacity_factor: an expert takes this many times k T / E tokens, the rest is dropped; None: all of them.

  Raises ValueError where k is not 1 ... `experts`, or the capacity would be 0.
  """

  experts: int
  k: int = 2
  hidden: int | None = None
  form: RouterForm = "mixtral"
  capacity_factor: float | None = None
  kernel_init: Callable[..., Any] = nn.initializers.lecun_normal(batch_axis=(0,))
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self, x: Float[Array, "*B D"], train: bool = False, real: Bool[Array, "*B"] | None = None
  ) -> Float[Array, "*B D"]:
    width = x.shape[-1]
    hidden = self.hidden or 4 * width
    flat = x.reshape(-1, width)
    real = None if real is None else real.reshape(-1)
    router = nn.Dense(self.experts, use_bias=False, dtype=jnp.float32, name="router")
    logits = router(flat.astype(jnp.float32))
    routing = route(logits, self.k, self.form)
    widen = self.param("widen", self.kernel_init, (self.experts, width, hidden))
    narrow = self.param("narrow", self.kernel_init, (self.experts, hidden, width))
    for name, value in (
      ("balance_loss", balance_loss(routing, real)),
      ("z_loss", router_z_loss(logits, real)),
      ("loads", expert_loads(routing, real)),
    ):
      self.sow("intermediates", name, value)
    flat = flat if self.dtype is None else flat.astype(self.dtype)
    if self.capacity_factor is None:
      return apply_dropless(flat, routing, widen, narrow).reshape(x.shape)
    capacity = int(self.capacity_factor * self.k * flat.shape[0] / self.experts)
    if capacity < 1:
      raise ValueError(f"capacity_factor={self.capacity_factor} leaves no room for {flat.shape[0]} tokens")
    return apply_with_capacity(flat, routing, widen, narrow, capacity, real).reshape(x.shape)
