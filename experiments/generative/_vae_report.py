"""What a trained variational auto-encoder is worth: figures, and pictures of what its latent variables do."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from experiments.generative._chunks import in_chunks
from experiments.generative._judging import MIN_SAMPLES, draw_pairs, judge_samples, make_reference, one_of_each
from experiments.generative._pixels import pixels_once
from mlnotes.data import DataSet, Split, fixed_subset
from mlnotes.data.sprites import FACTORS, load_sprite_factors
from mlnotes.engine.experiment import stream_key
from mlnotes.engine.plot import new_figure, save_figure, sheet_height, show_images
from mlnotes.engine.progress import report_step, warn
from mlnotes.generative import (
  TrainedVAE,
  compute_dci,
  compute_factor_score,
  compute_iwae,
  compute_mig,
  compute_mutual_information,
  count_active,
  from_unit,
  gaussian_kl,
)

# Images that go through the network at a time, and importance samples of each.
_CHUNK, _WEIGHTS = 250, 50
# Most images whose codes are looked at, and most samples that are judged where no number is asked for.
_ENCODED, _JUDGED = 10_000, 1000
_COLUMNS = 10


def write_report(
  model: TrainedVAE, key: Key[Array, ""], data: DataSet, config: Any, directory: Path
) -> dict[str, float]:
  """Writes the five pictures and returns the figures; says on standard error what it is doing.

  Bounds and likelihoods are of test pixels that are drawn once, beside `independent_pixels`: the same pixels under the
  training images' mean. Scores of disentangling are those of the sprites alone, whose causes are known.
  """
  encode = jax.jit(model.encode)
  codes, kl, label = encode_split(encode, data, data.test, config, _ENCODED)
  active = int(count_active(jnp.asarray(codes)))
  if active == 0:
    warn(f"collapsed: none of {codes.shape[1]} latents tells of the image; --free_bits or a smaller --beta keeps some.")
  figures = {
    f"negative_log_likelihood_k{config.nll_samples}": estimate_nll(model, stream_key(key, "nll"), data, config),
    "active_latents": float(active),
    "independent_pixels": compute_pixel_floor(data, config),
  }
  if config.likelihood == "gaussian":
    sigma = config.sigma or float(jnp.exp(model.params["log_sigma"]))
    figures["sigma"] = sigma
  decode = jax.jit(model.decode)
  figures |= judge(decode, stream_key(key, "judged"), codes.shape[1], data, config)
  if data.name == "sprites":
    figures |= score_disentangling(encode, data, config)
  report_step("pictures")
  order = np.argsort(-kl)
  _draw_reconstructions(encode, decode, data, config, directory / "reconstructions.png")
  _draw_samples(decode, stream_key(key, "samples"), codes.shape[1], directory / "samples.png")
  _draw_traversal(decode, codes, kl, order, data, directory / "traversal.png")
  _draw_latent_map(decode, codes, label, order, data, directory / "latent_map.png")
  _draw_interpolation(encode, decode, data, config, directory / "interpolation.png")
  return figures


def encode_split(encode: Any, data: DataSet, split: Split, config: Any, limit: int):
  """(means, mean KL of each latent, labels) of a fixed subset of at most `limit` images of `split`."""
  index = fixed_subset(len(split), limit)
  means, kls, labels = [], [], []
  for start in range(0, len(index), _CHUNK):
    part = np.resize(index[start : start + _CHUNK], _CHUNK)  # one shape, one compilation
    count = min(_CHUNK, len(index) - start)
    images = split.read(part)
    q = encode(pixels_once(config, data.levels, jnp.asarray(images["image"]), jnp.asarray(part)))
    means.append(np.asarray(q.mean)[:count])
    kls.append(np.asarray(gaussian_kl(q))[:count])
    labels.append(images["label"][:count])
  return np.concatenate(means), np.concatenate(kls).mean(0), np.concatenate(labels)


def estimate_nll(model: TrainedVAE, key: Key[Array, ""], data: DataSet, config: Any) -> float:
  """-log p(x) of test images, in nats, from `config.nll_samples` importance samples (Burda et al. 2016)."""
  index = fixed_subset(len(data.test), config.nll_examples)
  size = min(_CHUNK, len(index))

  @functools.partial(jax.jit, static_argnums=2)
  def log_mean_weight(key, x, count):
    noise = jax.random.normal(key, (count, len(x), model.module.num_latents))
    return compute_iwae(noise, model.encode(x), functools.partial(model.log_likelihood, x)).bound

  counts = [min(_WEIGHTS, config.nll_samples - done) for done in range(0, config.nll_samples, _WEIGHTS)]
  bounds = []
  for start in range(0, len(index), size):
    part = np.resize(index[start : start + size], size)
    x = pixels_once(config, data.levels, jnp.asarray(data.test.read(part)["image"]), jnp.asarray(part))
    keys = jax.random.split(jax.random.fold_in(key, start), len(counts))
    # Of each round the sum of its weights, as a logarithm.
    each = np.stack([np.asarray(log_mean_weight(key, x, n)) + np.log(n) for key, n in zip(keys, counts)])
    bounds.append((np.logaddexp.reduce(each, axis=0) - np.log(config.nll_samples))[: len(index) - start])
    report_step(f"likelihood of {len(index)} test images", start, len(index))
  return float(-np.mean(np.concatenate(bounds)))


def compute_pixel_floor(data: DataSet, config: Any) -> float:
  """-log p of the test pixels where each is on by itself as often as in training, in nats: what needs no latents.

  Of the continuous Bernoulli: with the natural parameter that gives each pixel its training mean. Of the Gaussian: with
  this mean and --sigma, or the one deviation for all pixels that suits the training images best.
  """
  from mlnotes.generative import bernoulli_log_prob, continuous_bernoulli_log_prob, gaussian_log_prob

  train = data.train.read(fixed_subset(len(data.train), 60_000))["image"]
  train = train.reshape(len(train), -1) / (data.levels - 1)
  mean = np.clip(train.mean(0), 1e-4, 1 - 1e-4)
  index = fixed_subset(len(data.test), _ENCODED)
  x = pixels_once(config, data.levels, jnp.asarray(data.test.read(index)["image"]), jnp.asarray(index))
  x = x.reshape(len(index), -1)
  if config.likelihood == "bernoulli":
    each = bernoulli_log_prob(x, jnp.broadcast_to(jnp.log(mean / (1 - mean)), x.shape))
  elif config.likelihood == "gaussian":
    deviation = config.sigma or max(float(np.sqrt(np.mean((train - mean) ** 2))), 1e-3)
    each = gaussian_log_prob(x, jnp.broadcast_to(jnp.asarray(mean, jnp.float32), x.shape), 2 * np.log(deviation))
  else:
    each = continuous_bernoulli_log_prob(x, jnp.broadcast_to(jnp.asarray(_natural_parameter(mean)), x.shape))
  return float(-jnp.mean(jnp.sum(each, axis=1)))


def _natural_parameter(mean: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
  """The logits at which a continuous Bernoulli has this mean: by bisection."""
  from mlnotes.generative.vae_model import continuous_bernoulli_mean

  low, high = np.full(mean.shape, -1e4, np.float32), np.full(mean.shape, 1e4, np.float32)
  for _ in range(60):
    middle = (low + high) / 2
    above = np.asarray(continuous_bernoulli_mean(jnp.asarray(middle))) > mean
    low, high = np.where(above, low, middle), np.where(above, middle, high)
  return (low + high) / 2


def judge(decode: Any, key: Key[Array, ""], latents: int, data: DataSet, config: Any) -> dict[str, float]:
  """Figures of mean images of latents from the prior beside real images."""
  count = config.quality_samples or max(min(len(data.test), _JUDGED), MIN_SAMPLES)
  reference = make_reference(data, count)
  z = jax.random.normal(key, (reference.num_samples, latents))
  images = np.asarray(from_unit(in_chunks(decode, z, size=_CHUNK), data.levels))
  return judge_samples(reference, images)


def score_disentangling(encode: Any, data: DataSet, config: Any) -> dict[str, float]:
  """MIG, FactorVAE's score and DCI of the means of the test sprites, and chance where a score has one."""
  report_step("scores of disentangling")
  factors = np.concatenate(load_sprite_factors())
  codes = np.concatenate([encode_split(encode, data, split, config, 10**6)[0] for split in (data.train, data.test)])
  codes = codes.astype(np.float64)
  test = np.random.default_rng(0).permutation(len(codes))[:_ENCODED]

  def draw(rng: np.random.Generator, factor: int, size: int) -> Float[np.ndarray, "M D"]:
    value = factors[rng.integers(len(factors)), factor]
    return codes[rng.choice(np.flatnonzero(factors[:, factor] == value), size)]

  dci = compute_dci(codes[test], factors[test])
  return {
    "mig_20_bins": compute_mig(compute_mutual_information(codes, factors)),
    "factor_score_800_votes": compute_factor_score(draw, len(FACTORS), codes.std(0)),
    "factor_score_chance": 1 / len(FACTORS),
    "disentanglement_dci": dci.disentanglement,
    "completeness_dci": dci.completeness,
    "informativeness_dci": dci.informativeness,
  }


def _first_of_each_class(data: DataSet, count: int) -> Int[np.ndarray, " N"]:
  """Test images, one of each class by turns."""
  index = fixed_subset(len(data.test), 1000)
  return index[one_of_each(data.test.read(index)["label"], count)]


def _test_pixels(data: DataSet, config: Any, index: np.ndarray) -> Array:
  return pixels_once(config, data.levels, jnp.asarray(data.test.read(index)["image"]), jnp.asarray(index))


def _draw_reconstructions(encode, decode, data: DataSet, config: Any, path: Path) -> None:
  x = _test_pixels(data, config, _first_of_each_class(data, 2 * _COLUMNS))
  title = f"{data.name}: test images above, what their latents give back below"
  draw_pairs(np.asarray(x), np.asarray(decode(encode(x).mean)), title, path, _COLUMNS)


def _draw_samples(decode, key, latents: int, path: Path) -> None:
  images = np.asarray(decode(jax.random.normal(key, (100, latents))))
  figure, axes = new_figure(width=5.0, height=sheet_height(4.5, images, _COLUMNS) + 0.5)
  show_images(axes[0, 0], images, columns=_COLUMNS)
  axes[0, 0].set_title("mean images of latents drawn from the prior", fontsize=9)
  save_figure(figure, path)


def _draw_traversal(decode, codes, kl, order, data: DataSet, path: Path) -> None:
  """A row for each of the latents that carry most: it moves from -2.5 to 2.5, the others stay at the first code."""
  shown, values = order[:8], np.linspace(-2.5, 2.5, _COLUMNS)
  z = np.repeat(codes[:1], len(shown) * len(values), axis=0)
  for row, latent in enumerate(shown):
    z[row * len(values) : (row + 1) * len(values), latent] = values
  images = np.asarray(decode(jnp.asarray(z)))
  figure, axes = new_figure(width=6.0, height=sheet_height(5.0, images, _COLUMNS) + 0.8)
  show_images(axes[0, 0], images, columns=len(values))
  height, width = (size + 1 for size in data.image_shape[:2])
  axes[0, 0].set_yticks([height * i + height / 2 - 1 for i in range(len(shown))], [f"{kl[d]:.2f} nats" for d in shown])
  axes[0, 0].set_xticks([width * i + width / 2 - 1 for i in range(len(values))], [f"{value:.1f}" for value in values])
  axes[0, 0].tick_params(length=0, labelsize=7)
  axes[0, 0].set_title("one latent at a time, those that carry most first (mean KL of each at the left)", fontsize=9)
  save_figure(figure, path)


def _draw_latent_map(decode, codes, label, order, data: DataSet, path: Path) -> None:
  """Where the classes lie in the two latents that carry most, and the images of a grid of these."""
  if codes.shape[1] < 2:
    path.unlink(missing_ok=True)
    return
  first, second = order[:2]
  figure, axes = new_figure(1, 2, width=10.0, height=4.8)
  for k in range(min(data.num_classes, 10)):
    chosen = np.flatnonzero(label == k)[:300]
    points = codes[chosen][:, [first, second]]
    axes[0, 0].scatter(*points.T, s=5, label=data.class_names[k], color=f"C{k}")
  axes[0, 0].legend(frameon=False, fontsize=7, markerscale=2, ncols=2)
  axes[0, 0].set_xlabel(f"latent {first}")
  axes[0, 0].set_ylabel(f"latent {second}")
  axes[0, 0].set_title("means of test images", fontsize=9)
  side = 12
  values = np.linspace(-2.2, 2.2, side)
  z = np.zeros((side * side, codes.shape[1]), np.float32)
  z[:, first], z[:, second] = np.tile(values, side), np.repeat(values[::-1], side)
  show_images(axes[0, 1], np.asarray(decode(jnp.asarray(z))), columns=side)
  others = "" if codes.shape[1] == 2 else ", the others 0"
  axes[0, 1].set_title(f"mean images of these two from -2.2 to 2.2{others}", fontsize=9)
  save_figure(figure, path)


def _draw_interpolation(encode, decode, data: DataSet, config: Any, path: Path) -> None:
  rows = 6
  index = _first_of_each_class(data, 2 * rows)
  rows = len(index) // 2
  if rows == 0:  # there is no other test image
    return path.unlink(missing_ok=True)
  mean = np.asarray(encode(_test_pixels(data, config, index)).mean)
  share = np.linspace(0, 1, _COLUMNS)[None, :, None]
  path_codes = (1 - share) * mean[:rows, None] + share * mean[rows : 2 * rows, None]
  images = np.asarray(decode(jnp.asarray(path_codes.reshape(-1, mean.shape[1]), jnp.float32)))
  figure, axes = new_figure(width=5.5, height=sheet_height(5.0, images, _COLUMNS) + 0.5)
  show_images(axes[0, 0], images, columns=_COLUMNS)
  axes[0, 0].set_title("from the code of one test image to that of another", fontsize=9)
  save_figure(figure, path)
