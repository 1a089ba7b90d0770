"""Dense attention of a sequence that lies in parts on many devices. Liu et al. 2023; Brandon et al. 2023."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from mlnotes.attention.blockwise import Softmax, merge
from mlnotes.attention.dot_product import NOT_SEEN, repeat_heads, require_heads, softmax_part
from mlnotes.attention.mask import EVERYTHING, Bias, Mask, Tokens


def ring_attention(
  query: Float[Array, "B T N H"],
  key: Float[Array, "B S K H"],
  value: Float[Array, "B S K D"],
  mask: Mask = EVERYTHING,
  bias: Bias | None = None,
  *,
  mesh: Mesh,
  axis: str,
) -> Float[Array, "B T N D"]:
  """Scaled dot-product attention with queries, keys and values split over `axis` of the mesh.

  Keys and values, with their positions, go around the ring; each device merges what it has seen by its log-sum-exp, in
  float32. Under a causal mask device i of n computes the parts i and 2 n - 1 - i of 2 n ("zigzag"): skipping what sees
  nothing then leaves all as much to do. Backward, keys and values go around again, with their gradients, so that no
  device ever holds more than its part. A bias is a function of positions and gets no gradient.

  Raises ValueError for another number of keys than queries, an array as bias, or a length that twice the devices do
  not divide.
  """
  batch, queries, keys = require_heads(query, key, value)
  devices = mesh.shape[axis]
  if queries != keys or (bias is not None and not callable(bias)):
    raise ValueError("ring attention is of a sequence to itself, and takes a bias as a function of positions")
  if queries % (2 * devices):
    raise ValueError(f"{queries} tokens on {devices} devices: expected a multiple of {2 * devices}")
  ask, offer = mask.tokens(batch, queries, keys)

  def part_scores(q: Array, k: Array, ask: Tokens, offer: Tokens) -> tuple[Array, Array]:
    scores = jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
    scores = scores * q.shape[-1] ** -0.5
    if bias is not None:
      scores = scores + bias(ask.position, offer.position)
    seen = mask.words.pairs(ask, offer)[:, None]
    return jnp.where(seen, scores, NOT_SEEN), seen

  def attend(q: Array, ask: Tokens, k: Array, v: Array, offer: Tokens) -> Softmax:
    weights, log_sum = softmax_part(*part_scores(q, k, ask, offer))
    return Softmax(jnp.einsum("bnts,bsnd->bntd", weights, v.astype(weights.dtype)), log_sum)

  def gradients(q, ask, k, v, offer, log_sum, d_out, delta) -> tuple[Array, Array, Array]:
    """Of this part, by its queries, keys and values: Dao 2023, algorithm 2."""
    scores, seen = part_scores(q, k, ask, offer)
    p = jnp.where(seen, jnp.exp(scores - log_sum[..., None]), 0)
    d_p = jnp.einsum("bntd,bsnd->bnts", d_out, v.astype(p.dtype))
    d_s = p * (d_p - delta[..., None]) * q.shape[-1] ** -0.5
    return (
      jnp.einsum("bnts,bsnh->btnh", d_s, k.astype(p.dtype)),
      jnp.einsum("bnts,btnh->bsnh", d_s, q.astype(p.dtype)),
      jnp.einsum("bnts,bntd->bsnd", p, d_out),
    )

  def on_device(q, k, v, ask, offer):
    half = q.shape[1] // 2
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    halves = lambda x, axis=1: jnp.split(x, 2, axis)
    halves_of = lambda tokens: [Tokens(*x) for x in zip(*map(halves, tokens))]
    here = lambda x: jax.tree.map(lambda y: jax.lax.pcast(y, axis, to="varying"), x)
    pass_on = lambda x: jax.tree.map(
      lambda y: jax.lax.ppermute(y, axis, [(i, (i + 1) % devices) for i in range(devices)]), x
    )

    def where_needed(ask: Tokens, offer: Tokens, work, nothing):
      """Nothing of halves whose first key is behind the last query."""
      if not mask.causal:
        return work()
      return jax.lax.cond(jnp.min(offer.order) <= jnp.max(ask.order), work, lambda: here(nothing()))

    def no_softmax() -> Softmax:
      rows = (batch, q.shape[2], half)
      return Softmax(jnp.zeros((*rows, v.shape[-1]), dtype), jnp.full(rows, NOT_SEEN, dtype))

    @jax.custom_vjp
    def ring(q, k, v, ask, offer):
      def step(carry, _):
        found, (k, v, offer) = carry
        new = []
        for so_far, q_i, ask_i in zip(found, halves(q), halves_of(ask)):
          for k_j, v_j, offer_j in zip(halves(k), halves(v), halves_of(offer)):
            work = partial(attend, q_i, ask_i, k_j, v_j, offer_j)
            so_far = merge(so_far, where_needed(ask_i, offer_j, work, no_softmax))
          new.append(so_far)
        return (tuple(new), pass_on((k, v, offer))), None

      start = here((no_softmax(), no_softmax()))
      (found, _), _ = jax.lax.scan(step, (start, (k, v, offer)), None, length=devices)
      return Softmax(*(jnp.concatenate(x, 2) for x in zip(*found)))

    def forward(q, k, v, ask, offer):
      found = ring(q, k, v, ask, offer)
      return found, (q, k, v, ask, offer, found)

    def backward(saved, d_found):
      q, k, v, ask, offer, found = saved
      delta = jnp.sum(d_found.out * found.out, -1)
      of_queries = (halves(q), halves_of(ask), *(halves(x, 2) for x in (found.log_sum, d_found.out, delta)))

      def step(carry, _):
        d_q, (k, v, offer, d_k, d_v) = carry
        d_q, d_k, d_v = list(d_q), halves(d_k), halves(d_v)
        for i, (q_i, ask_i, log_sum, d_out, delta_i) in enumerate(zip(*of_queries)):
          for j, (k_j, v_j, offer_j) in enumerate(zip(halves(k), halves(v), halves_of(offer))):
            work = partial(gradients, q_i, ask_i, k_j, v_j, offer_j, log_sum, d_out, delta_i)
            nothing = lambda *like: tuple(jnp.zeros(x.shape, dtype) for x in like)
            more = where_needed(ask_i, offer_j, work, partial(nothing, q_i, k_j, v_j))
            d_q[i], d_k[j], d_v[j] = (x + y for x, y in zip((d_q[i], d_k[j], d_v[j]), more))
        return (tuple(d_q), pass_on((k, v, offer, jnp.concatenate(d_k, 1), jnp.concatenate(d_v, 1)))), None

      zeros = lambda x: here(jnp.zeros(x.shape, dtype))
      start = (tuple(zeros(x) for x in halves(q)), (k, v, offer, zeros(k), zeros(v)))
      (d_q, (*_, d_k, d_v)), _ = jax.lax.scan(step, start, None, length=devices)
      return jnp.concatenate(d_q, 1).astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None, None

    ring.defvjp(forward, backward)
    if not mask.causal:
      return jnp.moveaxis(ring(q, k, v, ask, offer).out, 1, 2).astype(q.dtype)
    # Part p of 2 n goes to device min(p, 2 n - 1 - p), the even ones, first halves here, to one device each, and so the
    # odd ones. Which of a device's halves is the earlier one does not matter: they know their positions.
    to = [[(i, min(p, 2 * devices - 1 - p)) for i, p in enumerate(range(odd, 2 * devices, 2))] for odd in (0, 1)]
    back = [[(j, i) for i, j in pairs] for pairs in to]
    move = lambda x, routes: jnp.concatenate([jax.lax.ppermute(y, axis, r) for y, r in zip(halves(x), routes)], 1)
    out = ring(*jax.tree.map(partial(move, routes=to), (q, k, v, ask, offer))).out
    return move(jnp.moveaxis(out, 1, 2).astype(q.dtype), back)

  spec = PartitionSpec(None, axis)
  run = jax.shard_map(on_device, mesh=mesh, in_specs=spec, out_specs=spec)
  heads = query.shape[2]
  return run(query, repeat_heads(key, heads), repeat_heads(value, heads), ask, offer)
