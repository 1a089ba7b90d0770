"""Sound as frames of log-mel energies, with the lengths of each row; masks of SpecAugment (notes: 语音特征).

A frame is `window` samples, the next begins `hop` samples later; only frames that lie within a row's samples count.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key


def _mel_of_hertz(hertz):
  """The scale of O'Shaughnessy 1987, as in HTK."""
  return 2595 * np.log10(1 + hertz / 700)


def _hertz_of_mel(mel):
  return 700 * (10 ** (mel / 2595) - 1)


def mel_filters(
  bins: int, mels: int, rate: int, low: float = 0.0, high: float | None = None
) -> Float[np.ndarray, "F M"]:
  """Triangles on the mel scale, of height 1, whose corners are the centres of their neighbours.

  bins: frequencies from 0 to rate / 2. low, high: hertz where the first begins and the last ends; None: rate / 2.
  Raises ValueError where these are no range below rate / 2, and for a triangle so narrow that no frequency is in it:
  a longer window, or fewer mels.
  """
  high = rate / 2 if high is None else high
  if not 0 <= low < high <= rate / 2:
    raise ValueError(f"filters from {low} to {high} hertz, expected a range within 0 to {rate / 2}")
  corners = _hertz_of_mel(np.linspace(_mel_of_hertz(low), _mel_of_hertz(high), mels + 2))
  frequency = np.linspace(0, rate / 2, bins)[:, None]
  rising = (frequency - corners[:-2]) / np.diff(corners)[:-1]
  falling = (corners[2:] - frequency) / np.diff(corners)[1:]
  filters = np.maximum(0, np.minimum(rising, falling))
  if not filters.any(0).all():
    raise ValueError(f"{mels} mels of {bins} frequencies leave a filter empty, expected fewer mels or a longer window")
  return filters


def count_frames(lengths: Int[Array, " B"], window: int, hop: int) -> Int[Array, " B"]:
  """How many whole frames lie within so many samples."""
  return jnp.maximum(0, 1 + (lengths - window) // hop)


def log_mel(
  audio: Float[Array, "B N"],
  lengths: Int[Array, " B"] | None,
  rate: int,
  window: int = 200,
  hop: int = 80,
  mels: int = 40,
  low: float = 0.0,
  high: float | None = None,
  floor: float = 1e-6,
) -> tuple[Float[Array, "B T M"], Int[Array, " B"]]:
  """log(floor + energy) of `mels` bands in each frame, and how many frames a row has; 0 behind these.

    energy[t, m] = sum_f filter[f, m] |sum_n hann[n] x[t hop + n] e^(-2 pi i f n / window)|^2

  audio in [-1, 1]; the window is Hann's, periodic. T = count_frames(N). Raises ValueError where N has no frame, and as
  `mel_filters` does.
  """
  batch, samples = audio.shape
  if samples < window or window < 2 or hop < 1:
    raise ValueError(f"{samples} samples, window {window}, hop {hop}: expected a hop of 1 or more and a whole window")
  lengths = jnp.full(batch, samples, jnp.int32) if lengths is None else lengths
  frames = 1 + (samples - window) // hop
  hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)).astype(np.float32)
  spectrum = jnp.fft.rfft(_cut(audio.astype(jnp.float32), frames, window, hop) * hann[None, None])
  filters = jnp.asarray(mel_filters(window // 2 + 1, mels, rate, low, high), jnp.float32)
  energy = jnp.matmul(jnp.square(spectrum.real) + jnp.square(spectrum.imag), filters, precision="highest")
  counts = count_frames(lengths, window, hop)
  there = jnp.arange(frames)[None] < counts[:, None]
  return jnp.where(there[..., None], jnp.log(floor + energy), 0), counts


def _cut(audio, frames: int, window: int, hop: int):
  """(B, frames, window). In pieces that windows share where these are few: single samples are slow to gather."""
  piece = math.gcd(window, hop)
  if window // piece > 16:
    return audio[:, hop * np.arange(frames)[:, None] + np.arange(window)]
  pieces = audio[:, : audio.shape[1] // piece * piece].reshape(len(audio), -1, piece)
  step = hop // piece
  return jnp.concatenate([pieces[:, k::step][:, :frames] for k in range(window // piece)], -1)


def mask_features(
  key: Key[Array, ""],
  features: Float[Array, "T M"],
  length: Int[Array, ""],
  bands: int = 1,
  widest_band: int = 8,
  spans: int = 1,
  longest_span: int = 10,
  share: float = 0.2,
) -> Float[Array, "T M"]:
  """SpecAugment without warping in time: `bands` ranges of features and `spans` of frames are set to 0.

  Each is 0 to `widest_band` features and at most a quarter of them, or 0 to `longest_span` frames and at most `share`
  of the length, at a uniform place; features should have mean 0. Park et al. 2019, section 2, frequency and time
  masking.
  """
  of_bands, of_spans = jax.random.split(key)
  time, feature = features.shape
  most = jnp.minimum(longest_span, jnp.floor(share * length)).astype(jnp.int32)
  masked = _ranges(of_bands, bands, jnp.int32(feature), jnp.int32(min(widest_band, feature // 4)), feature)[None]
  masked = masked | _ranges(of_spans, spans, length, most, time)[:, None]
  return jnp.where(masked, 0, features)


def _ranges(key, count: int, size, widest, places: int):
  """Which of the places are in any of `count` ranges of 0 to `widest` within the first `size`."""
  of_width, of_start = jax.random.split(key)
  width = jax.random.randint(of_width, (count, 1), 0, widest + 1)
  start = jax.random.randint(of_start, (count, 1), 0, size - width + 1)
  place = jnp.arange(places)[None]
  return jnp.any((place >= start) & (place < start + width), 0)
