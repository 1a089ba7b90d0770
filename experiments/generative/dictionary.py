"""Sparse codes of photographs: a dictionary of patches learned by FISTA and unit-norm updates, beside other ones.

  python -m experiments.generative.dictionary

Olshausen & Field 1996: whitened patches of photographs (the two inside scikit-learn) are sums of few oriented edges.
Writes atoms.png, convergence.png and result.json. Each figure is a mean over held-out patches of
|x - D a|^2 / 2 + penalty |a|_1, for a dictionary that was learned, and for ones that need no learning.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mlnotes import generative
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import root_key, stream_key
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.progress import warn
from mlnotes.engine.study import run_study
from mlnotes.generative.sparse_coding import compute_objective

_HELD_OUT = 1000
# Steps of FISTA after which a code is taken for the optimum.
_EXACT_STEPS = 300
_CURVE = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  workdir: str = field("runs/generative.dictionary", "directory of the pictures and the numbers", free=True)
  seed: int = field(0, "of the patches and of what is drawn, >= 0")
  patch: int = field(8, "pixels of a patch's side, 2 to 32")
  patches: int = field(20_000, "training patches; 1000 more are held out")
  atoms: int = field(128, "columns of the dictionary")
  penalty: float = field(1.0, "of the absolute codes, of whitened patches, > 0")
  steps: int = field(400, "updates")
  batch_size: int = field(200, "patches per update")
  code_steps: int = field(40, "steps of FISTA, or of --method=ista, for the codes of an update")
  method: Literal["fista", "ista"] = field("fista", "how codes are found")
  decay: float = field(0.95, "of what the dictionary is fitted to, in [0, 1)")
  resample_every: int = field(20, "updates between two looks for atoms without use, which start anew; 0: never")
  epsilon: float = field(0.01, "added to the variances before whitening, in mean variances, > 0")

  def __post_init__(self):
    super().__post_init__()
    require(2 <= self.patch <= 32, "patch", self.patch, "2 to 32")
    require(self.patches >= 2, "patches", self.patches, "2 or more, which vary")
    for name in ("atoms", "steps", "batch_size", "code_steps"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("penalty", "epsilon"):
      require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
    require(self.method in ("fista", "ista"), "method", self.method, "fista or ista")
    require(0 <= self.decay < 1, "decay", self.decay, "a number in [0, 1)")
    require(self.resample_every >= 0, "resample_every", self.resample_every, "0 or more")
    require(self.seed >= 0, "seed", self.seed, "0 or more")


def load_patches(config: Config) -> tuple[np.ndarray, np.ndarray]:
  """Whitened patches (N, P) of grey photographs to learn from, and held-out ones, whitened likewise."""
  from sklearn.datasets import load_sample_images

  grey = [image.astype(np.float64) @ (0.299, 0.587, 0.114) / 255 for image in load_sample_images().images]
  # From two parts of each photograph, so that no held-out patch overlaps one that was learned from.
  cut = [int(0.8 * image.shape[1]) for image in grey]
  parts = [image[:, :at] for image, at in zip(grey, cut)], [image[:, at:] for image, at in zip(grey, cut)]
  train, test = (
    generative.sample_patches(part, config.patch, count, config.seed + i)
    for i, (part, count) in enumerate(zip(parts, (config.patches, _HELD_OUT)))
  )
  whitening = generative.fit_whitening(train, config.epsilon * train.var(0).mean())
  return whitening.apply(train).astype(np.float32), whitening.apply(test).astype(np.float32)


def learn(config: Config, patches: Float[Array, "N P"]) -> tuple[Float[Array, "P K"], Array]:
  """(the dictionary, how many atoms started anew at each update), from vectors of random patches."""
  root = root_key(config.seed)
  encode = {"fista": generative.encode_fista, "ista": generative.encode_ista}[config.method]

  def update(carry, step):
    dictionary, moments = carry
    index = jax.random.randint(stream_key(root, "batch", step), (config.batch_size,), 0, len(patches))
    x = jnp.take(patches, index, axis=0)
    code = jax.vmap(lambda row: encode(row, dictionary, config.penalty, config.code_steps))(x)
    moments = generative.update_moments(moments, x, code, config.decay)
    dictionary = generative.update_dictionary(dictionary, moments)
    if not config.resample_every:
      return (dictionary, moments), jnp.zeros([], jnp.int32)
    least = jnp.where((step + 1) % config.resample_every == 0, 1e-6, 0.0)
    dictionary, moments, count = generative.resample_atoms(
      stream_key(root, "resample", step), dictionary, moments, x, least
    )
    return (dictionary, moments), count

  dictionary = random_patches(config, patches)
  carry = dictionary, generative.init_moments(dictionary)
  (dictionary, _), resampled = jax.jit(lambda carry: jax.lax.scan(update, carry, jnp.arange(config.steps)))(carry)
  return dictionary, resampled


def random_patches(config: Config, patches: Float[Array, "N P"]) -> Float[Array, "P K"]:
  """Training patches scaled to length 1."""
  index = jax.random.randint(stream_key(root_key(config.seed), "atoms"), (config.atoms,), 0, len(patches))
  return generative.normalize_columns(jnp.take(patches, index, axis=0).T)


def judge(x: Float[Array, "N P"], dictionary: Float[Array, "P K"], penalty: float) -> dict[str, float]:
  """Means over vectors at (all but) the optimal codes: the objective, the share of codes that are used, and of the
  variance that is explained."""

  @jax.jit
  def measure(x, dictionary):
    code = jax.vmap(lambda row: generative.encode_fista(row, dictionary, penalty, _EXACT_STEPS))(x)
    objective = jax.vmap(lambda row, a: compute_objective(row, dictionary, a, penalty))(x, code)
    left = jnp.sum((x - code @ dictionary.T) ** 2) / jnp.sum(x**2)
    return jnp.mean(objective), jnp.mean(code != 0), 1 - left

  names = ("objective", "active_share", "explained_variance")
  return dict(zip(names, (float(value) for value in measure(x, dictionary))))


def study(config: Config, directory: Path) -> dict[str, Any]:
  """The pictures; the figures of the learned dictionary, and the objective of ones that need no learning."""
  train, test = (jnp.asarray(part) for part in load_patches(config))
  dictionary, resampled = learn(config, train)
  noise = jax.random.normal(stream_key(root_key(config.seed), "noise"), dictionary.shape)
  figures = judge(test, dictionary, config.penalty)
  if figures["active_share"] == 0:
    warn(f"collapsed: every code is 0 with --penalty={config.penalty:g}, no atom is in use.")
  figures |= {
    "objective_random_patches": judge(test, random_patches(config, train), config.penalty)["objective"],
    "objective_random_directions": judge(test, generative.normalize_columns(noise), config.penalty)["objective"],
    "objective_pixels": judge(test, jnp.eye(test.shape[1]), config.penalty)["objective"],
    "objective_zero_code": float(jnp.mean(jnp.sum(test**2, 1)) / 2),
    "resampled_atoms": int(jnp.sum(resampled)),
  }
  draw_atoms(np.asarray(dictionary), config, directory / "atoms.png")
  draw_convergence(test[:200], dictionary, config, directory / "convergence.png")
  return figures


def draw_atoms(dictionary: np.ndarray, config: Config, path: Path) -> None:
  from mlnotes.engine.plot import new_figure, save_figure, sheet_height, show_images

  atoms = dictionary.T.reshape(-1, config.patch, config.patch, 1)
  sheet = 0.5 + atoms / (2 * np.abs(atoms).max((1, 2, 3), keepdims=True))
  figure, axes = new_figure(width=7.0, height=sheet_height(6.6, sheet, 16) + 0.5)
  show_images(axes[0, 0], sheet, columns=16)
  axes[0, 0].set_title(f"{len(atoms)} atoms, each a vector of length 1 in the space of whitened patches", fontsize=9)
  save_figure(figure, path)


def draw_convergence(x: Float[Array, "N P"], dictionary: Float[Array, "P K"], config: Config, path: Path) -> None:
  """How far codes are from the optimum after so many steps of ISTA and of FISTA."""
  from mlnotes.engine.plot import new_figure, save_figure

  @jax.jit
  def objective(x, dictionary):
    one = lambda row, code: compute_objective(row, dictionary, code, config.penalty)
    mean = lambda encode, steps: jnp.mean(
      jax.vmap(lambda row: one(row, encode(row, dictionary, config.penalty, steps)))(x)
    )
    names = {"ISTA": generative.encode_ista, "FISTA": generative.encode_fista}
    return {name: [mean(encode, n) for n in _CURVE] for name, encode in names.items()}, mean(
      generative.encode_fista, 4 * _CURVE[-1]
    )

  curves, best = objective(x, dictionary)
  figure, axes = new_figure(width=5.5, height=3.8)
  for name, values in curves.items():
    axes[0, 0].loglog(_CURVE, np.maximum(np.asarray(values) - float(best), 1e-7), "o-", label=name)
  axes[0, 0].set_xlabel("steps")
  axes[0, 0].set_ylabel("objective above the optimum (1e-7: there)")
  axes[0, 0].legend(frameon=False)
  save_figure(figure, path)


def main(config: Config) -> int:
  return run_study("generative.dictionary", config, lambda directory: study(config, directory))


if __name__ == "__main__":
  run(main, Config)
