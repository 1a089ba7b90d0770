"""Distributions over actions: softmax (categorical), diagonal Gaussian, and the Gaussian squashed by tanh.

A distribution is a NamedTuple of its parameters; leading axes are batch axes. `sample` takes noise instead of a key
where the caller draws the noise of many steps at once. Log-probabilities and entropies are in nats.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_LOG_2PI = math.log(2 * math.pi)


class Categorical(NamedTuple):
  """Softmax policy over A actions. `logits` need not be normalised; -inf is an action that is never taken."""

  logits: Float[Array, "*B A"]

  def sample(self, gumbel: Float[Array, "*B A"]) -> Int[Array, "*B"]:
    """The Gumbel-max draw from standard Gumbel noise."""
    return jnp.argmax(self.logits + gumbel, axis=-1).astype(jnp.int32)

  def mode(self) -> Int[Array, "*B"]:
    """The most probable action."""
    return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

  def log_prob(self, action: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """log pi(action); -inf for a masked one."""
    # A selection by one-hot rows: its gradient is elementwise, where that of a gather is a scatter.
    chosen = jax.nn.one_hot(action, self.logits.shape[-1], dtype=bool)
    return jnp.sum(jnp.where(chosen, jax.nn.log_softmax(self.logits), 0.0), axis=-1)

  def entropy(self) -> Float[Array, "*B"]:
    """In nats, from 0 to log A."""
    log_p = jax.nn.log_softmax(self.logits)
    return -_mean_where_possible(log_p, log_p)

  def kl(self, other: "Categorical") -> Float[Array, "*B"]:
    """KL(self || other); infinite where `self` may do what `other` never does."""
    log_p, log_q = jax.nn.log_softmax(self.logits), jax.nn.log_softmax(other.logits)
    return _mean_where_possible(log_p, log_p - log_q)


def _mean_where_possible(log_p: Float[Array, "*B A"], values: Float[Array, "*B A"]) -> Float[Array, "*B"]:
  """sum of p `values` over what has a probability: 0 log 0 is 0, and so is its gradient."""
  p = jnp.exp(log_p)
  return jnp.sum(p * jnp.where(p > 0, values, 0.0), axis=-1)


class DiagonalGaussian(NamedTuple):
  """Independent normal components. Actions are not bounded: the environment clips them, the density does not."""

  mean: Float[Array, "*B A"]
  log_std: Float[Array, "*B A"]

  def sample(self, normal: Float[Array, "*B A"]) -> Float[Array, "*B A"]:
    """mean + std times standard normal noise."""
    return self.mean + jnp.exp(self.log_std) * normal

  def mode(self) -> Float[Array, "*B A"]:
    """The mean."""
    return self.mean

  def log_prob(self, action: Float[Array, "*B A"]) -> Float[Array, "*B"]:
    """log density, summed over the components."""
    z = (action - self.mean) * jnp.exp(-self.log_std)
    return -0.5 * jnp.sum(z**2 + 2 * self.log_std + _LOG_2PI, axis=-1)

  def entropy(self) -> Float[Array, "*B"]:
    """The differential entropy, summed over the components: negative for small spreads."""
    return jnp.sum(self.log_std + 0.5 * (1 + _LOG_2PI), axis=-1)

  def kl(self, other: "DiagonalGaussian") -> Float[Array, "*B"]:
    """KL(self || other)."""
    ratio = jnp.exp(2 * (self.log_std - other.log_std))
    distance = ((self.mean - other.mean) * jnp.exp(-other.log_std)) ** 2
    return 0.5 * jnp.sum(ratio + distance - 1, axis=-1) - jnp.sum(self.log_std - other.log_std, axis=-1)


class TanhGaussian(NamedTuple):
  """tanh of a diagonal Gaussian: actions in (-1, 1), to be scaled to the environment's bounds once.

  Haarnoja et al. 2018, appendix C. The density is evaluated at the value before the tanh, which a sample returns
  beside the action: its inverse would be infinite for actions that round to 1.
  """

  mean: Float[Array, "*B A"]
  log_std: Float[Array, "*B A"]

  def sample(self, normal: Float[Array, "*B A"]) -> tuple[Float[Array, "*B A"], Float[Array, "*B A"]]:
    """(action, value before the tanh)."""
    pre_tanh = self.mean + jnp.exp(self.log_std) * normal
    return jnp.tanh(pre_tanh), pre_tanh

  def mode(self) -> Float[Array, "*B A"]:
    """tanh of the mean: the usual deterministic action (not the density's maximum)."""
    return jnp.tanh(self.mean)

  def log_prob(self, pre_tanh: Float[Array, "*B A"]) -> Float[Array, "*B"]:
    """log density of the action tanh(pre_tanh).

    log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u)), which neither overflows nor cancels.
    """
    correction = 2 * (math.log(2) - pre_tanh - jax.nn.softplus(-2 * pre_tanh))
    return DiagonalGaussian(self.mean, self.log_std).log_prob(pre_tanh) - jnp.sum(correction, axis=-1)
