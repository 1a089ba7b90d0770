"""Sparse codes over a dictionary of unit vectors, and the dictionary that suits them.

    min_a  |x - D a|^2 / 2 + penalty |a|_1                               Olshausen & Field 1996, with |.|_1

    code = encode_fista(x, dictionary, penalty=0.1, steps=50)
    moments = update_moments(moments, x, code, decay=0.99)
    dictionary = update_dictionary(dictionary, moments)
    dictionary, moments = resample_atoms(key, dictionary, moments, x)[:2]

A vector has P entries, a dictionary K columns (atoms). Codes are those of scikit-learn's `sparse_encode` with
algorithm="lasso_cd" and alpha=penalty, its dictionaries the transpose of these.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num

Scalar = Float[Array, ""] | float

_SQUARINGS = 6


def soft_threshold(x: Float[Array, "*shape"], threshold: Scalar) -> Float[Array, "*shape"]:
  """sign(x) max(|x| - threshold, 0): the proximal map of threshold |.|_1."""
  return jnp.sign(x) * jnp.maximum(jnp.abs(x) - threshold, 0)


def compute_objective(
  x: Float[Array, " P"], dictionary: Float[Array, "P K"], code: Float[Array, " K"], penalty: Scalar
) -> Float[Array, ""]:
  """|x - D a|^2 / 2 + penalty |a|_1 of one vector and its code."""
  return jnp.sum((x - dictionary @ code) ** 2) / 2 + penalty * jnp.sum(jnp.abs(code))


def bound_curvature(dictionary: Float[Array, "P K"]) -> Float[Array, ""]:
  """A number at least the largest eigenvalue of D^T D, and less than min(P, K)^(1/128) times it.

    |G^(2^m)|_F^(1 / 2^m),    G = D^T D or D D^T,    m = 6

  An upper bound, unlike what power iteration gives, so that steps of one over it never diverge.
  """
  matrix = dictionary if dictionary.shape[0] <= dictionary.shape[1] else dictionary.T
  gram = matrix @ matrix.T
  log_norm = jnp.float32(0)
  for level in range(_SQUARINGS + 1):
    norm = jnp.maximum(jnp.linalg.norm(gram), 1e-30)
    log_norm = log_norm + jnp.log(norm) / 2**level
    gram = gram / norm
    gram = gram @ gram
  return jnp.exp(log_norm)


def encode_ista(
  x: Float[Array, " P"],
  dictionary: Float[Array, "P K"],
  penalty: Scalar,
  steps: int,
  start: Float[Array, " K"] | None = None,
) -> Float[Array, " K"]:
  """`steps` proximal gradient steps of length 1 / L from `start` (None: 0). The objective never rises.

    a <- S(a + D^T (x - D a) / L, penalty / L)        Daubechies et al. 2004; Beck & Teboulle 2009, sec. 3 (ISTA)

  L is `bound_curvature`. The gap to the optimum falls as 1 / steps.
  """
  descend = _make_descent(x, dictionary, penalty)
  start = jnp.zeros(dictionary.shape[1], x.dtype) if start is None else start
  return jax.lax.fori_loop(0, steps, lambda _, code: descend(code), start)


def encode_fista(
  x: Float[Array, " P"],
  dictionary: Float[Array, "P K"],
  penalty: Scalar,
  steps: int,
  start: Float[Array, " K"] | None = None,
) -> Float[Array, " K"]:
  """As `encode_ista`, each step from a point beyond the last: the gap falls as 1 / steps^2.

  t' = (1 + sqrt(1 + 4 t^2)) / 2,    y = a + (t - 1) / t' (a - a_before)      Beck & Teboulle 2009, sec. 4 (FISTA)
  """
  descend = _make_descent(x, dictionary, penalty)
  start = jnp.zeros(dictionary.shape[1], x.dtype) if start is None else start

  def step(_, carry):
    code, ahead, t = carry
    new = descend(ahead)
    new_t = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
    return new, new + (t - 1) / new_t * (new - code), new_t

  return jax.lax.fori_loop(0, steps, step, (start, start, jnp.ones([], x.dtype)))[0]


def _make_descent(x, dictionary, penalty):
  step = 1 / bound_curvature(dictionary)
  return lambda code: soft_threshold(code + step * ((x - dictionary @ code) @ dictionary), step * penalty)


class Moments(NamedTuple):
  """What a dictionary is fitted to: moving averages of code code^T and of x code^T."""

  codes: Float[Array, "K K"]
  cross: Float[Array, "P K"]


def init_moments(dictionary: Float[Array, "P K"]) -> Moments:
  return Moments(jnp.zeros((dictionary.shape[1],) * 2, dictionary.dtype), jnp.zeros_like(dictionary))


def update_moments(
  moments: Moments, x: Float[Array, "B P"], code: Float[Array, "B K"], decay: Scalar = 0.99
) -> Moments:
  """decay times the old plus the mean over the batch. Mairal et al. 2009 (online dictionary learning), algorithm 1.

  Differences from the paper: old batches fade by a constant factor.
  """
  mean = Moments(code.T @ code / len(code), x.T @ code / len(code))
  return jax.tree.map(lambda old, new: decay * old + new, moments, mean)


def update_dictionary(dictionary: Float[Array, "P K"], moments: Moments, sweeps: int = 1) -> Float[Array, "P K"]:
  """Each atom in turn to the unit vector that fits best beside the others. Mairal et al. 2009, algorithm 2.

    d_j <- u / |u|,    u = b_j - D a_j + d_j A_jj          A = moments.codes, B = moments.cross

  Without the unit norm the penalty would be cheated: large atoms, small codes. An atom that no code uses stays.

  Differences from the paper: on the sphere in the place of the ball, where each of these steps is exact too.
  """

  def one(j, dictionary):
    j = j % dictionary.shape[1]
    column = dictionary[:, j]
    moved = moments.cross[:, j] - dictionary @ moments.codes[:, j] + column * moments.codes[j, j]
    length = jnp.linalg.norm(moved)
    return dictionary.at[:, j].set(jnp.where(length > 1e-8, moved / jnp.maximum(length, 1e-8), column))

  return jax.lax.fori_loop(0, sweeps * dictionary.shape[1], one, dictionary)


def resample_atoms(
  key: Key[Array, ""], dictionary: Float[Array, "P K"], moments: Moments, x: Float[Array, "B P"], least: Scalar = 1e-6
) -> tuple[Float[Array, "P K"], Moments, Int[Array, ""]]:
  """Puts atoms whose mean squared code is below `least` at vectors of the batch, scaled to length 1.

  Returns the dictionary, the moments with those of these atoms at 0, and how many they were.
  """
  dead = jnp.diagonal(moments.codes) < least
  drawn = jnp.take(x, jax.random.randint(key, dead.shape, 0, len(x)), axis=0)
  dictionary = jnp.where(dead[None], normalize_columns(drawn.T), dictionary)
  codes = jnp.where(dead[None] | dead[:, None], 0.0, moments.codes)
  return dictionary, Moments(codes, jnp.where(dead[None], 0.0, moments.cross)), jnp.sum(dead)


def normalize_columns(dictionary: Float[Array, "P K"]) -> Float[Array, "P K"]:
  """Columns of length 1; one that is 0 stays."""
  return dictionary / jnp.maximum(jnp.linalg.norm(dictionary, axis=0, keepdims=True), 1e-8)


def sample_patches(
  images: list[Num[np.ndarray, "..."]], size: int, count: int, seed: int = 0
) -> Float[np.ndarray, "N P"]:
  """`count` square patches of `size` pixels from grey images (H, W), as many from each, flattened.

  Raises ValueError where a patch does not fit into an image.
  """
  rng = np.random.default_rng(seed)
  rows = []
  for i, image in enumerate(images):
    if image.ndim != 2 or min(image.shape) < size:
      raise ValueError(f"image {i} has shape {image.shape}, expected (H, W) of {size} pixels a side or more")
    number = count // len(images) + (i < count % len(images))
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size))
    top, left = (rng.integers(0, n, number) for n in windows.shape[:2])
    rows.append(windows[top, left].reshape(number, -1).astype(np.float64))
  return np.concatenate(rows)


class Whitening(NamedTuple):
  """`x -> (x - mean) matrix`, symmetric, that makes the covariance of what it was fitted to the identity; and back."""

  mean: Float[np.ndarray, " P"]
  matrix: Float[np.ndarray, "P P"]
  inverse: Float[np.ndarray, "P P"]

  def apply(self, x: Float[np.ndarray, "N P"]) -> Float[np.ndarray, "N P"]:
    return (x - self.mean) @ self.matrix

  def revert(self, x: Float[np.ndarray, "N P"]) -> Float[np.ndarray, "N P"]:
    return x @ self.inverse + self.mean


def fit_whitening(x: Float[np.ndarray, "N P"], epsilon: float = 0.0) -> Whitening:
  """Zero-phase whitening, U (S + epsilon)^(-1/2) U^T of the covariance U S U^T. Bell & Sejnowski 1997.

  `epsilon`, a variance, keeps directions quiet in which x hardly varies; with 0 these must not exist. Raises
  ValueError for a covariance that has no inverse then.
  """
  mean = x.mean(0)
  values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(x, rowvar=False)))
  spread = np.maximum(values, 0) + epsilon
  if spread.min() <= 1e-12 * spread.max():
    raise ValueError("x does not vary in every direction: expected epsilon above 0")
  root = np.sqrt(spread)
  return Whitening(mean, vectors / root @ vectors.T, vectors * root @ vectors.T)
