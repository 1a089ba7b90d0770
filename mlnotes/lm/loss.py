"""The cross entropy of tokens of a large vocabulary, in one pass and with few arrays of its size."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Losses = tuple[Float[Array, "*B"], Bool[Array, "*B"]]


def token_cross_entropy(logits: Float[Array, "*B V"], labels: Int[Array, "*B"]) -> Losses:
  """(-log softmax(logits)[label] in nats, whether no other logit is larger), both from one reading of the logits.

  Sums are float32 whatever the logits are. What is kept for the gradient are the logits themselves, in their own dtype,
  and a number for each token: of bfloat16 logits a quarter of what `jax.nn.logsumexp` in float32 keeps. Labels outside
  0 ... V - 1 give NaN. No derivative in forward mode.
  Raises ValueError where the labels have another shape than the logits' leading axes.
  """
  if labels.shape != logits.shape[:-1]:
    raise ValueError(f"labels have shape {labels.shape}, expected {logits.shape[:-1]}")
  return _cross_entropy(logits, labels)


def head_cross_entropy(
  head: Callable[[Array], Array], hidden: Float[Array, "*B D"], labels: Int[Array, "*B"], chunks: int = 1
) -> Losses:
  """`token_cross_entropy` of `head(hidden)`. With `chunks` no more than a part of the logits is there at any time.

  The logits of each of that many parts of the tokens are made, used and dropped, and made again backward: a third more
  arithmetic for the head. Raises ValueError where `chunks` does not divide the tokens.
  """
  count = labels.size
  if chunks < 1 or count % chunks:
    raise ValueError(f"chunks is {chunks}, expected a divisor of the {count} tokens")
  if chunks == 1:
    return token_cross_entropy(head(hidden), labels)
  part = jax.checkpoint(lambda given: token_cross_entropy(head(given[0]), given[1]))
  given = hidden.reshape(chunks, count // chunks, -1), labels.reshape(chunks, -1)
  losses, right = jax.lax.map(part, given)
  return losses.reshape(labels.shape), right.reshape(labels.shape)


@jax.custom_vjp
def _cross_entropy(logits: Float[Array, "*B V"], labels: Int[Array, "*B"]) -> Losses:
  return _forward(logits, labels)[0]


def _forward(logits, labels):
  wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  known = (labels >= 0) & (labels < logits.shape[-1])
  chosen = jnp.take_along_axis(logits, jnp.where(known, labels, 0)[..., None], axis=-1)[..., 0].astype(wide.dtype)
  top = jnp.max(wide, -1)
  normalizer = top + jnp.log(jnp.sum(jnp.exp(wide - top[..., None]), -1))
  found = jnp.where(known, normalizer - chosen, jnp.nan), known & (chosen >= top)
  return found, (logits, normalizer, labels)


def _backward(kept, cotangents):
  logits, normalizer, labels = kept
  weight = cotangents[0][..., None]
  wide = logits.astype(normalizer.dtype)
  place = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)
  chance = jnp.exp(wide - normalizer[..., None]) - (place == labels[..., None])
  return (chance * weight).astype(logits.dtype), None


_cross_entropy.defvjp(_forward, _backward)
