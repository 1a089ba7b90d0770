"""Documents one behind another in a row, each as if it stood alone."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from mlnotes.attention.mask import Mask


def document_mask(tokens: Int[Array, "B T"], end: int, causal: bool = True) -> Mask:
  """The mask under which documents do not see each other, and the places in each are counted from 0.

  `end` stands between documents and counts as the beginning of the one behind it: its features foretell the first
  token of that one, and it is foretold by the last of the other. So a row begins in the middle of a document, or with
  `end`, and the loss of a packed row is that of its documents in rows of their own.
  """
  begins = tokens == end
  segments = jnp.cumsum(begins.astype(jnp.int32), 1)
  places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  first = jax.lax.cummax(jnp.where(begins, places, 0), axis=1)
  return Mask.of_self(causal=causal, segments=segments, positions=places - first)
