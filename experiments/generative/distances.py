"""Two parallel lines: why a generator far from its data needs another distance. Arjovsky et al. 2017, example 1.

  python -m experiments.generative.distances
  python -m experiments.generative.distances --steps=2000 --thetas=33

(0, U) are the data and (theta, U) the generator, U uniform on [0, 1]. Compares the Jensen-Shannon divergence and the
Wasserstein distance, and their slopes in theta, in three ways: the closed forms; computed from samples, by a histogram
and by sorting; and as two networks learn them, a classifier and a critic with a gradient penalty. Writes distances.png
and the card.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from mlnotes import generative
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import stream_key
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.layout import choose_layout
from mlnotes.engine.plot import new_figure, save_figure
from mlnotes.engine.study import each_seed, run_study

_PENALTY = 10.0
# Of the histogram: the lines stand in cells of their own from this distance on.
_CELL = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  """Defaults: less than a minute on two cores."""

  workdir: str = field("", "directory of picture and figures; empty: runs/generative.distances", free=True)
  seed: int = field(0, "first seed, >= 0")
  seeds: int = field(3, "runs of the two networks")
  thetas: int = field(17, "distances from -1 to 1 between the lines, an odd number of 3 or more")
  samples: int = field(256, "points of each line in an update, and of the histogram")
  steps: int = field(800, "updates of the classifier and of the critic at each distance")
  learning_rate: float = field(2e-3, "of both, by Adam with beta 1 = 0.5, > 0")
  width: int = field(32, "features of their two layers")

  def __post_init__(self):
    super().__post_init__()
    for name in ("seeds", "samples", "steps", "width"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.thetas >= 3 and self.thetas % 2 == 1, "thetas", self.thetas, "an odd number of 3 or more")
    require(self.seed >= 0, "seed", self.seed, "0 or more")
    require(self.learning_rate > 0, "learning_rate", self.learning_rate, "a number above 0")

  def cpu_layout(self, cores: int):
    return choose_layout(self.seeds, cores, fills_cores=False)


class Learned(NamedTuple):
  """What the networks say at each distance: the two estimates, and the slope that a generator would follow.

  `saturating` is the slope of the minimax loss, `non_saturating` of the other, `wasserstein` of the critic's.
  """

  jensen_shannon: Float[Array, " N"]
  wasserstein: Float[Array, " N"]
  saturating: Float[Array, " N"]
  non_saturating: Float[Array, " N"]
  wasserstein_slope: Float[Array, " N"]


def draw_line(key: Key[Array, ""], theta: Float[Array, ""], count: int) -> Float[Array, "N 2"]:
  height = jax.random.uniform(key, (count,))
  return jnp.stack([jnp.broadcast_to(theta, (count,)), height], axis=1)


def compute_from_samples(theta: Float[Array, ""], key: Key[Array, ""], count: int) -> tuple[Array, Array]:
  """(JS of two histograms, W by sorting) of the first coordinate; the second is alike in both."""
  keys = jax.random.split(key)
  real, fake = draw_line(keys[0], jnp.float32(0), count)[:, 0], draw_line(keys[1], theta, count)[:, 0]
  cells = round(2.2 / _CELL) + 1
  shares = [jnp.zeros(cells).at[jnp.round((x + 1.1) / _CELL).astype(jnp.int32)].add(1 / count) for x in (real, fake)]
  return generative.jensen_shannon(*shares), generative.wasserstein_1d(real, fake)


def learn(config: Config, key: Key[Array, ""], theta: Float[Array, ""]) -> Learned:
  """Trains a classifier and a critic on this pair of lines, one value each."""
  network = generative.MlpDiscriminator(config.width)
  optimizer = optax.adam(config.learning_rate, b1=0.5, b2=0.9)
  classify, criticise = generative.LOSSES["minimax"], generative.LOSSES["wasserstein"]
  score = lambda params, x: network.apply({"params": params}, x).score

  def losses(params, key):
    of_real, of_fake, of_share = jax.random.split(key, 3)
    real, fake = draw_line(of_real, jnp.float32(0), config.samples), draw_line(of_fake, theta, config.samples)
    classifier, critic = params
    judged = classify.discriminator(score(classifier, real), score(classifier, fake))
    distance = criticise.discriminator(score(critic, real), score(critic, fake))
    share = jax.random.uniform(of_share, (config.samples,))
    penalty = generative.gradient_penalty(lambda x: score(critic, x[None])[0], real, fake, share)
    return jnp.mean(judged), jnp.mean(distance), _PENALTY * jnp.mean(penalty)

  def update(carry, key):
    params, state = carry
    grads = jax.grad(lambda params: sum(losses(params, key)))(params)
    updates, state = optimizer.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), None

  of_init, of_steps, of_test = jax.random.split(key, 3)
  params = tuple(network.init(key, jnp.zeros((1, 2)))["params"] for key in jax.random.split(of_init))
  params = jax.lax.scan(update, (params, optimizer.init(params)), jax.random.split(of_steps, config.steps))[0][0]
  judged, distance, _ = losses(params, of_test)

  def slope(loss, params):
    height = (jnp.arange(config.samples) + 0.5) / config.samples
    at = lambda theta: jnp.stack([jnp.broadcast_to(theta, height.shape), height], axis=1)
    return jax.grad(lambda theta: jnp.mean(loss.generator(score(params, at(theta)))))(theta)

  classifier, critic = params
  return Learned(
    jensen_shannon=jnp.log(2.0) - judged / 2,  # a classifier at its best has the loss 2 log 2 - 2 JS
    wasserstein=-distance,
    saturating=slope(classify, classifier),
    non_saturating=slope(generative.LOSSES["non_saturating"], classifier),
    wasserstein_slope=slope(criticise, critic),
  )


def study(config: Config, directory: Path) -> Mapping[str, object]:
  theta = jnp.linspace(-1, 1, config.thetas)
  exact = jax.tree.map(np.asarray, generative.parallel_lines(theta))

  def once(key):
    keys = jax.random.split(stream_key(key, "lines"), config.thetas)
    sampled = jax.vmap(functools.partial(compute_from_samples, count=config.samples))(theta, keys)
    keys = jax.random.split(stream_key(key, "networks"), config.thetas)
    return sampled, jax.vmap(functools.partial(learn, config))(keys, theta)

  (histogram, sorted_), learned = each_seed(once, range(config.seed, config.seed + config.seeds))
  draw(np.asarray(theta), exact, (histogram[0], sorted_[0]), learned, directory / "distances.png")
  apart = exact.wasserstein > 0
  worst = lambda found, true: np.abs(found - true).max(axis=1)
  mean = lambda values: np.abs(values[:, apart]).mean(axis=1)
  return {
    "js_error": worst(histogram, exact.jensen_shannon),
    "wasserstein_error": worst(sorted_, exact.wasserstein),
    "learned_js_error": worst(learned.jensen_shannon[:, apart], exact.jensen_shannon[apart]),
    "learned_wasserstein_error": worst(learned.wasserstein, exact.wasserstein),
    "saturating_slope": mean(learned.saturating),
    "non_saturating_slope": mean(learned.non_saturating),
    "wasserstein_slope": mean(learned.wasserstein_slope),
    "wasserstein_slope_sign": (np.sign(learned.wasserstein_slope) == exact.wasserstein_gradient)[:, apart].mean(axis=1),
  }


def draw(theta: np.ndarray, exact: generative.ParallelLines, sampled, learned: Learned, path: Path) -> None:
  """The first seed's curves."""
  figure, axes = new_figure(1, 3, width=12.6, height=3.6)
  histogram, sorted_ = sampled
  distances, wasserstein, slopes = axes[0]
  for axis, name, found, network, how in (
    (distances, "Jensen-Shannon divergence", histogram, learned.jensen_shannon, "histogram"),
    (wasserstein, "Wasserstein distance", sorted_, learned.wasserstein, "sorted samples"),
  ):
    closed = exact.jensen_shannon if axis is distances else exact.wasserstein
    axis.plot(theta, closed, color="0.6", linewidth=3, label="closed form")
    axis.plot(theta, found, "x", color="tab:blue", label=how)
    axis.plot(theta, network[0], "o-", color="tab:red", markersize=3, linewidth=1, label="learned")
    axis.set_title(name)
  slopes.plot(theta, exact.wasserstein_gradient, color="0.6", linewidth=3, label="Wasserstein, closed form")
  slopes.plot(theta, learned.wasserstein_slope[0], "o-", markersize=3, linewidth=1, label="critic")
  slopes.plot(theta, learned.saturating[0], "s-", markersize=3, linewidth=1, label="classifier, minimax")
  slopes.plot(theta, learned.non_saturating[0], "^-", markersize=3, linewidth=1, label="classifier, non-saturating")
  slopes.set_yscale("symlog", linthresh=1)
  slopes.set_title("slope of the generator's loss")
  for axis in axes[0]:
    axis.set_xlabel(r"distance $\theta$ of the lines")
    axis.legend(frameon=False, fontsize=7)
  save_figure(figure, path)


def main(config: Config) -> int:
  return run_study("generative.distances", config, functools.partial(study, config))


if __name__ == "__main__":
  run(main, Config)
