"""Dense attention of a sequence that lies in parts on many devices. Liu et al. 2023; Brandon et al. 2023."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from mlnotes.attention.blockwise import Softmax, merge
from mlnotes.attention.dot_product import NOT_SEEN, repeat_heads, require_heads
from mlnotes.attention.mask import EVERYTHING, Bias, Mask, Tokens


def zigzag_order(length: int, devices: int) -> Int[np.ndarray, " T"]:
  """Places in the order in which devices hold them: device i has the parts i and 2 n - 1 - i of 2 n.

  Under a causal mask all devices then have as much to do. Raises ValueError where 2 n does not divide the length.
  """
  if length % (2 * devices):
    raise ValueError(f"{length} tokens on {devices} devices in zigzag: expected a multiple of {2 * devices}")
  parts = np.arange(length).reshape(2 * devices, -1)
  return np.concatenate([np.concatenate([parts[i], parts[2 * devices - 1 - i]]) for i in range(devices)])


def ring_attention(
  query: Float[Array, "B T N H"],
  key: Float[Array, "B T K H"],
  value: Float[Array, "B T K D"],
  mask: Mask = EVERYTHING,
  bias: Bias | None = None,
  *,
  mesh: Mesh,
  axis: str,
) -> Float[Array, "B T N D"]:
  """Scaled dot-product attention with queries, keys and values split over `axis` of the mesh.

  Keys and values, with their positions, go around the ring; each device merges what it has seen by its log-sum-exp, in
  float32. Under a causal mask the parts lie in zigzag and halves that see nothing are skipped. Backward, what went
  around goes around again. A bias is a function of positions.

  Raises ValueError for another number of keys than queries, an array as bias, or a length that twice the devices do
  not divide.
  """
  batch, queries, keys = require_heads(query, key, value)
  devices = mesh.shape[axis]
  if queries != keys or (bias is not None and not callable(bias)):
    raise ValueError("ring attention is of a sequence to itself, and takes a bias as a function of positions")
  order = zigzag_order(queries, devices) if mask.causal else np.arange(queries)
  if queries % (2 * devices):
    raise ValueError(f"{queries} tokens on {devices} devices: expected a multiple of {2 * devices}")
  words = mask.replace(key_lengths=None, query_lengths=None, key_positions=None, query_positions=None)
  segments = mask.key_segments is not None
  words = words.replace(key_segments=None, query_segments=None)
  ask, offer = mask.tokens(batch, queries, keys)

  def attend(q: Array, k: Array, ask: Tokens, offer: Tokens, v: Array) -> Softmax:
    scores = jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
    scores = scores * q.shape[-1] ** -0.5
    if bias is not None:
      scores = scores + bias(ask.position, offer.position)
    seen = words.pairs(ask, offer)
    if segments:
      seen &= ask.segment[:, :, None] == offer.segment[:, None, :]
    scores = jnp.where(seen[:, None], scores, NOT_SEEN)
    top = jax.lax.stop_gradient(jnp.max(scores, -1))
    powers = jnp.where(seen[:, None], jnp.exp(scores - top[..., None]), 0)
    total = jnp.sum(powers, -1)
    safe = jnp.where(total == 0, 1, total)
    out = jnp.einsum("bnts,bsnd->bntd", powers / safe[..., None], v.astype(scores.dtype))
    return Softmax(out, jnp.where(total == 0, NOT_SEEN, top + jnp.log(safe)))

  def on_device(q, k, v, ask, offer):
    half = q.shape[1] // 2
    halves = lambda x: (x[:, :half], x[:, half:])

    def nothing(x: Array) -> Softmax:
      shape = (x.shape[0], x.shape[2], x.shape[1])
      dtype = jnp.promote_types(x.dtype, jnp.float32)
      empty = Softmax(jnp.zeros((*shape, v.shape[-1]), dtype), jnp.full(shape, NOT_SEEN, dtype))
      return jax.tree.map(lambda y: jax.lax.pcast(y, axis, to="varying"), empty)

    def meet(found, x):
      k, v, offer = x
      new = []
      for so_far, q_i, ask_i in zip(found, halves(q), zip(*map(halves, ask))):
        for k_j, v_j, offer_j in zip(halves(k), halves(v), zip(*map(halves, offer))):
          ask_i, offer_j = Tokens(*ask_i), Tokens(*offer_j)
          work = lambda q=q_i, k=k_j, a=ask_i, o=offer_j, v=v_j: attend(q, k, a, o, v)
          if mask.causal:  # a half whose first key is behind the last query
            part = jax.lax.cond(jnp.min(offer_j.position) <= jnp.max(ask_i.position), work, lambda q=q_i: nothing(q))
          else:
            part = work()
          so_far = merge(so_far, part)
        new.append(so_far)
      return tuple(new)

    def step(carry, _):
      found, x = carry
      found = jax.checkpoint(meet)(found, x)
      ring = [(i, (i + 1) % devices) for i in range(devices)]
      return (found, jax.tree.map(lambda y: jax.lax.ppermute(y, axis, ring), x)), None

    start = tuple(nothing(x) for x in halves(q))
    (found, _), _ = jax.lax.scan(step, (start, (k, v, offer)), None, length=devices)
    return jnp.moveaxis(jnp.concatenate([part.out for part in found], 2), 1, 2).astype(q.dtype)

  spec = PartitionSpec(None, axis)
  run = jax.shard_map(on_device, mesh=mesh, in_specs=spec, out_specs=spec)
  arrange = lambda x: jnp.take(x, order, axis=1)
  heads = query.shape[2]
  arrays = (query, repeat_heads(key, heads), repeat_heads(value, heads))
  out = run(*map(arrange, arrays), *(Tokens(*map(arrange, tokens)) for tokens in (ask, offer)))
  return jnp.take(out, np.argsort(order), axis=1)
