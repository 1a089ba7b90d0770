"""Vectors replaced by the nearest of K codes: what VQ-VAE learns of images. Van den Oord et al. 2017.

    quantized = quantize(z, codebook.codes)
    loss = reconstruct(decode(quantized.straight)) + quantized.codebook_loss + 0.25 * quantized.commitment_loss
    codebook = update_codebook(codebook, z, quantized.index, decay=0.99)      # in the place of codebook_loss

Which term moves what:

                      encoder    codes    decoder
    reconstruction      yes        -        yes        by the straight-through patch
    codebook_loss        -        yes        -
    commitment_loss     yes        -         -
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num

Scalar = Float[Array, ""] | float

# A code with fewer vectors than this in its average keeps its place: smoothing would pull it to the origin.
_FEWEST = 1e-2
_SMOOTHING = 1e-5


class Codebook(NamedTuple):
  """K codes and the moving averages that they follow: all three are state.

  codes:  the codes.
  counts: moving average of how many vectors of a batch chose each.
  sums:   moving average of the sum of these vectors.
  """

  codes: Float[Array, "K D"]
  counts: Float[Array, " K"]
  sums: Float[Array, "K D"]


class Quantized(NamedTuple):
  """What the codes make of vectors.

  index:           the nearest code of each.
  codes:           that code, with its gradient.
  straight:        the same value, with the gradient of the vector: what the decoder gets.
  codebook_loss:   |sg(z) - e|^2 of each vector, which moves codes alone.
  commitment_loss: |z - sg(e)|^2 of each vector, which moves vectors alone; not yet times beta.
  """

  index: Int[Array, "*B"]
  codes: Float[Array, "*B D"]
  straight: Float[Array, "*B D"]
  codebook_loss: Float[Array, "*B"]
  commitment_loss: Float[Array, "*B"]


def find_nearest_code(z: Float[Array, "*B D"], codes: Float[Array, "K D"]) -> Int[Array, "*B"]:
  """argmin_k |z - e_k|^2, the first of equals. Van den Oord et al. 2017, eq. 1."""
  products = jnp.matmul(z, codes.T, precision=jax.lax.Precision.HIGHEST)
  halves = jnp.sum(codes**2, -1) / 2
  return jnp.argmax(products - jnp.expand_dims(halves, range(z.ndim - 1)), -1)


def straight_through(z: Float[Array, "*B D"], codes: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
  """The value of `codes` with the gradient of `z`: z + sg(codes - z). Bengio et al. 2013."""
  return z + jax.lax.stop_gradient(codes - z)


def quantize(z: Float[Array, "*B D"], codes: Float[Array, "K D"]) -> Quantized:
  """Each vector's nearest code, and the two terms of the loss, from what stands before the straight-through patch.

    L = reconstruction + |sg(z) - e|^2 + beta |z - sg(e)|^2              van den Oord et al. 2017, eq. 3

  beta is .25 there, on the encoder's term. Where codes follow moving averages (`update_codebook`) the second term is
  left out. Squares are summed over D, in the square of the vectors' unit. Raises ValueError where the widths differ.
  """
  if z.shape[-1] != codes.shape[-1]:
    raise ValueError(f"z has {z.shape[-1]} features, expected {codes.shape[-1]}, as many as the codes")
  index = find_nearest_code(jax.lax.stop_gradient(z), jax.lax.stop_gradient(codes))
  chosen = jnp.take(codes, index, axis=0)
  fixed = jax.lax.stop_gradient
  return Quantized(
    index=index,
    codes=chosen,
    straight=straight_through(z, chosen),
    codebook_loss=jnp.sum((fixed(z) - chosen) ** 2, -1),
    commitment_loss=jnp.sum((z - fixed(chosen)) ** 2, -1),
  )


def make_codebook(codes: Float[Array, "K D"], count: Scalar = 1.0) -> Codebook:
  """A codebook whose averages stand at `codes`, as if `count` vectors of each batch had chosen each."""
  return Codebook(codes, jnp.full(codes.shape[:1], count, codes.dtype), count * codes)


def init_codes(
  key: Key[Array, ""],
  num_codes: int,
  width: int,
  init: Literal["uniform", "data"],
  z: Float[Array, "*B D"] | None = None,
) -> Float[Array, "K D"]:
  """Codes to begin with: "uniform" in [-1 / K, 1 / K], as the authors' code; "data": vectors among `z`.

  Those are different ones where there are as many. Raises ValueError for another `init`, "data" without `z`, or
  vectors of another width.
  """
  if init == "uniform":
    return jax.random.uniform(key, (num_codes, width), jnp.float32, -1 / num_codes, 1 / num_codes)
  if init != "data":
    raise ValueError(f"init is {init!r}, expected 'uniform' or 'data'")
  if z is None or z.shape[-1] != width:
    found = "none" if z is None else f"vectors of {z.shape[-1]} features"
    raise ValueError(f"init='data' takes codes from z: found {found}, expected vectors of {width} features")
  return _draw_vectors(key, z, num_codes)


def _draw_vectors(key: Key[Array, ""], z: Float[Array, "*B D"], count: int) -> Float[Array, "K D"]:
  flat = z.reshape(-1, z.shape[-1])
  order = jax.random.permutation(key, len(flat))
  return jnp.take(flat, jnp.take(order, jnp.arange(count) % len(flat)), axis=0)


def count_codes(index: Int[Array, "*B"], num_codes: int, weight: Num[Array, "*B"] | None = None) -> Float[Array, " K"]:
  """How often each of the codes occurs; with `weight`, the sum of the weights of its occurrences (0 for padding)."""
  one_each = jnp.ones(index.shape, jnp.float32) if weight is None else weight.astype(jnp.float32)
  return jnp.zeros(num_codes, jnp.float32).at[index.reshape(-1)].add(one_each.reshape(-1))


def update_codebook(
  codebook: Codebook, z: Float[Array, "*B D"], index: Int[Array, "*B"], decay: Scalar = 0.99
) -> Codebook:
  """Moves the averages towards a batch, and each code to the mean of its vectors. Van den Oord et al. 2017, app. A.1.

    n <- decay n + (1 - decay) n_batch,    s <- decay s + (1 - decay) s_batch,    e = s / n~
    n~ = (n + 1e-5) / (N + K 1e-5) N,      N = sum n

  With decay 0 this is one step of k-means. No gradient passes.

  Differences from the paper: the counts are smoothed, as in the authors' code; a code that fewer than 0.01 vectors
  choose on average stays where it is, for the smoothing would move it to the origin.
  """
  vectors = jax.lax.stop_gradient(z).reshape(-1, z.shape[-1])
  chosen = jax.nn.one_hot(index.reshape(-1), len(codebook.counts), dtype=vectors.dtype)
  sums = jnp.matmul(chosen.T, vectors, precision=jax.lax.Precision.HIGHEST)
  counts = decay * codebook.counts + (1 - decay) * jnp.sum(chosen, 0)
  sums = decay * codebook.sums + (1 - decay) * sums
  total = jnp.sum(counts)
  smoothed = (counts + _SMOOTHING) / (total + len(counts) * _SMOOTHING) * total
  codes = jnp.where((counts >= _FEWEST)[:, None], sums / jnp.maximum(smoothed, _SMOOTHING)[:, None], codebook.codes)
  return Codebook(codes, counts, sums)


def restart_codes(
  key: Key[Array, ""], codebook: Codebook, z: Float[Array, "*B D"], threshold: Scalar = 1.0
) -> tuple[Codebook, Int[Array, ""]]:
  """Puts codes that fewer than `threshold` vectors choose on average at vectors of the batch; and how many these were.

  Their averages begin anew there, with a count of `threshold`. Dhariwal et al. 2020 (Jukebox), random restarts. A
  threshold of 0 restarts none.
  """
  dead = codebook.counts < threshold
  drawn = _draw_vectors(key, jax.lax.stop_gradient(z), len(codebook.counts))
  codes = jnp.where(dead[:, None], drawn, codebook.codes)
  counts = jnp.where(dead, threshold, codebook.counts)
  sums = jnp.where(dead[:, None], threshold * drawn, codebook.sums)
  return Codebook(codes, counts, sums), jnp.sum(dead)


def compute_perplexity(counts: Num[Array, " K"]) -> Float[Array, ""]:
  """exp of the entropy of how often the codes occur: 1 where one takes all, K where all are used alike.

  Of one batch it is at most the number of its vectors, and below that of an epoch, whose counts are the sum of its
  batches' (`count_codes`). NaN where all counts are 0.
  """
  share = counts / jnp.sum(counts)
  return jnp.exp(jnp.sum(jax.scipy.special.entr(share)))
