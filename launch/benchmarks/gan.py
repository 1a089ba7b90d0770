"""One round of DCGAN, an update of each player, beside the same networks in torch.

  python -m launch.benchmarks.gan
  python -m launch.benchmarks.gan --peer                # and torch's, in turns
  python -m launch.benchmarks.gan --peer --image=8,8,1 --width=16

Non-saturating loss, Adam at 2e-4 (.5, .999), real and generated batches apart in the discriminator's norms, on random
images. The experiment's own update, which also averages the generator, runs in a compiled loop as in training. The two
take turns, `--rounds` times; medians, and the ratio of torch's to ours: above 1 ours is faster. Torch's networks are in
its channels-last format, on as many threads (NPROC of them, all without it).
"""

import dataclasses
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mlnotes.engine.errors import InputError, require
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.sharding import count_cores
from mlnotes.generative import LOSSES, DcganDiscriminator, DcganGenerator
from mlnotes.generative.game import Game, init_player, update_discriminator, update_generator
from mlnotes.generative.gan_networks import halved

# A function that makes so many rounds and waits.
Rounds = Callable[[int], None]
_NAMES = ("ema_decay", "discriminator_rate", "balance")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  image: tuple[int, ...] = field((28, 28, 1), "height, width and channels of an image")
  width: int = field(32, "channels of the first level")
  latent: int = field(64, "numbers of noise")
  batch: int = field(64, "images per update")
  updates: int = field(10, "rounds of the game in a measurement")
  rounds: int = field(5, "measurements of each")
  peer: bool = field(False, "measure torch as well")
  out: str = field("", "file for the figures as JSON")

  def __post_init__(self):
    super().__post_init__()
    for name in ("width", "latent", "batch", "updates", "rounds"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    fits = len(self.image) == 3 and min(self.image) >= 1 and len(halved(*self.image[:2])) > 1
    require(fits, "image", self.image, "three numbers, the first two even")


def ours(config: Config) -> tuple[int, Rounds]:
  """(number of parameters, rounds of the game)."""
  adam = optax.adam(2e-4, b1=0.5)
  generator, discriminator = DcganGenerator(config.image, config.width), DcganDiscriminator(config.width)
  loss = LOSSES["non_saturating"]
  game = Game(generator, discriminator, adam, adam, lambda hparams: loss, "none", config.latent, threshold=0.0)
  real = jnp.asarray(np.random.default_rng(0).normal(size=(config.batch, *config.image)), jnp.float32)
  label = jnp.zeros(config.batch, jnp.int32)
  hparams = dict(zip(_NAMES, (jnp.float32(0.999), jnp.float32(1), jnp.float32(1))))
  noise = jnp.zeros((2, config.latent))
  players = jax.jit(
    lambda: (
      init_player(generator, adam, jax.random.key(0), noise, None, False),
      init_player(discriminator, adam, jax.random.key(1), real[:2], None, False),
    )
  )()

  def update(players, step):
    of_discriminator, of_generator = jax.random.split(jax.random.fold_in(jax.random.key(2), step))
    g, d = players
    d, _ = update_discriminator(game, d, g, real, label, of_discriminator, step, hparams)
    g, _, _ = update_generator(game, g, d, label, of_generator, step, hparams)
    return (g, d), None

  loop = jax.jit(lambda players, steps: jax.lax.scan(update, players, steps)[0], donate_argnums=0)
  parameters = sum(leaf.size for player in players for leaf in jax.tree.leaves(player.params))

  def rounds(count: int) -> None:
    nonlocal players
    players = jax.block_until_ready(loop(players, jnp.arange(count)))

  return parameters, rounds


def torch_networks(config: Config):
  """The same two networks, with as many parameters, in torch."""
  from torch import nn

  *larger, smallest = halved(*config.image[:2])
  levels, channels = len(larger), config.image[-1]
  wide = [config.width * 2**level for level in range(levels)]
  first = nn.Linear(config.latent, smallest[0] * smallest[1] * wide[-1], bias=False)
  layers = [first, nn.Unflatten(1, (wide[-1], *smallest)), nn.BatchNorm2d(wide[-1]), nn.ReLU()]
  for inputs, outputs in zip(wide[:0:-1], wide[-2::-1]):
    layers += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
  generator = nn.Sequential(*layers, nn.ConvTranspose2d(wide[0], channels, 4, 2, 1), nn.Tanh())
  layers = [nn.Conv2d(channels, wide[0], 4, 2, 1), nn.LeakyReLU(0.2)]
  for inputs, outputs in itertools.pairwise(wide):
    layers += [nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]
  return generator, nn.Sequential(*layers, nn.Flatten(), nn.Linear(smallest[0] * smallest[1] * wide[-1], 1))


def theirs(config: Config) -> tuple[int, Rounds]:
  import torch
  from torch.nn import functional

  torch.set_num_threads(count_cores())
  networks = [network.to(memory_format=torch.channels_last) for network in torch_networks(config)]
  generator, discriminator = networks
  of_generator, of_discriminator = (torch.optim.Adam(n.parameters(), 2e-4, betas=(0.5, 0.999)) for n in networks)
  height, width, channels = config.image
  real = torch.randn(config.batch, channels, height, width).to(memory_format=torch.channels_last)

  def rounds(count: int) -> None:
    for _ in range(count):
      of_discriminator.zero_grad()
      fake = generator(torch.randn(config.batch, config.latent)).detach()
      (functional.softplus(-discriminator(real)) + functional.softplus(discriminator(fake))).mean().backward()
      of_discriminator.step()
      of_generator.zero_grad()
      fake = generator(torch.randn(config.batch, config.latent))
      functional.softplus(-discriminator(fake)).mean().backward()
      of_generator.step()

  return sum(p.numel() for network in networks for p in network.parameters()), rounds


def main(config: Config) -> int:
  programs = {"mlnotes": ours(config)}
  if config.peer:
    try:
      programs["torch"] = theirs(config)
    except ImportError as error:
      raise InputError(f"--peer needs torch, which is not installed: {error}.") from error
  if len({parameters for parameters, _ in programs.values()}) > 1:
    raise AssertionError(f"the networks differ: { ({name: p for name, (p, _) in programs.items()}) }")
  found: dict[str, list[float]] = {name: [] for name in programs}
  for _, rounds in programs.values():
    rounds(config.updates)  # compiled, or warm
  for _ in range(config.rounds):
    for name, (_, rounds) in programs.items():
      start = time.perf_counter()
      rounds(config.updates)
      found[name].append((time.perf_counter() - start) / config.updates)
      print(f"{name}: {1e3 * found[name][-1]:.1f} ms", file=sys.stderr, flush=True)
  seconds = {name: statistics.median(values) for name, values in found.items()}
  ratio = f"{seconds['torch'] / seconds['mlnotes']:.2f}" if config.peer else ""
  told = f"{1e3 * seconds['torch']:.1f}" if config.peer else "not measured"
  image = " x ".join(map(str, config.image))
  print("| images | parameters | mlnotes, ms | torch, ms | ratio |\n|---|---|---|---|---|")
  print(f"| {image} | {programs['mlnotes'][0]:,} | {1e3 * seconds['mlnotes']:.1f} | {told} | {ratio} |")
  if config.out:
    with open(config.out, "w", encoding="utf-8") as file:
      json.dump({"config": dataclasses.asdict(config), "seconds": seconds, "rounds": found}, file, indent=1)
  return 0


if __name__ == "__main__":
  run(main, Config)
