"""Bits per dimension that need no network: what each pixel does by itself, and one normal for all of them.

A model of images is worth something below these. Arithmetic in float64 on the host; images are in grey levels.
"""

import math

import numpy as np
from jaxtyping import Float, UInt8

from mlnotes.engine.errors import InputError

# Added to how often each level was seen in each pixel (Krichevsky & Trofimov's half): without it a level that was not
# has no probability at all.
_UNSEEN = 0.5
_CHUNK = 5000


def _flat(image: np.ndarray) -> np.ndarray:
  return image.reshape(len(image), -1)


def histogram_bits(
  train: UInt8[np.ndarray, "N *shape"], test: UInt8[np.ndarray, "M *shape"], num_levels: int
) -> Float[np.ndarray, " M"]:
  """Bits per dimension of each test image by a histogram of levels for each pixel, a half added to each count.

  This is a probability of levels, no density: there is no dequantisation in it.
  """
  train, test = _flat(train), _flat(test)
  pixels = np.arange(train.shape[1])
  cells = train.shape[1] * num_levels
  counts = np.full(cells, _UNSEEN)
  for start in range(0, len(train), _CHUNK):
    counts += np.bincount((pixels * num_levels + train[start : start + _CHUNK]).ravel(), minlength=cells)
  counts = counts.reshape(-1, num_levels)
  bits = -np.log2(counts / counts.sum(1, keepdims=True))
  return bits[pixels, test].mean(1)


def dequantize_with_seed(image: UInt8[np.ndarray, "N *shape"], num_levels: int, seed: int) -> Float[np.ndarray, "N D"]:
  """Points of [0, 1)^D, noise drawn from `seed`."""
  flat = _flat(image)
  return (flat + np.random.default_rng(seed).random(flat.shape)) / num_levels


def gaussian_bits(
  train: UInt8[np.ndarray, "N *shape"], test: UInt8[np.ndarray, "M *shape"], num_levels: int, alpha: float = 0.0
) -> Float[np.ndarray, " M"]:
  """Bits per dimension of each test image under one normal with a full covariance, fitted to dequantised images.

  alpha: of the logit that points go through first, with its log-determinant; 0: none, the normal is on [0, 1]^D.
  Raises InputError where there are not more training images than dimensions: their covariance has no inverse.
  """
  points = [dequantize_with_seed(image, num_levels, seed) for seed, image in enumerate((train, test))]
  log_det = np.zeros(len(test))
  dims = points[0].shape[1]
  if len(train) <= dims:
    raise InputError(f"gaussian_bits: found {len(train)} training images, expected more than {dims}, one for each dim.")
  if alpha:
    p = [alpha + (1 - 2 * alpha) * x for x in points]
    points = [np.log(q) - np.log1p(-q) for q in p]
    log_det = np.sum(math.log(1 - 2 * alpha) - np.log(p[1]) - np.log1p(-p[1]), 1)
  mean = points[0].mean(0)
  factor = np.linalg.cholesky(np.cov(points[0], rowvar=False, bias=True))
  rows = np.linalg.solve(factor, (points[1] - mean).T)
  log_density = -0.5 * np.sum(rows**2, 0) - np.sum(np.log(np.diag(factor))) - 0.5 * dims * math.log(2 * math.pi)
  return (math.log(num_levels) - (log_density + log_det) / dims) / math.log(2)
