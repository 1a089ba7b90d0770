"""One update of generative models beside the same networks in torch: DCGAN's two players, and VAEs.

  python -m launch.benchmarks.generative
  python -m launch.benchmarks.generative --peer                # and torch's, in turns
  python -m launch.benchmarks.generative --peer --networks=dcgan --image=8,8,1 --width=16

dcgan: an update of each player, non-saturating loss, Adam at 2e-4 (.5, .999), real and generated batches apart in the
discriminator's norms; the experiment's own update, which also averages the generator. vae_mlp, vae_conv: the bound of
pixels in black and white that are drawn anew, 50 latents, two layers of 200 or convolutions of 32 and 64, Adam at 1e-3.
Random images; ours run in a compiled loop as in training. The two take turns, `--rounds` times; medians, and the ratio
of torch's to ours: above 1 ours is faster. Torch's images are in its channels-last format, on as many threads (NPROC of
them, all without it).
"""

import dataclasses
import itertools
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mlnotes.engine.errors import InputError, require
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.sharding import count_cores
from mlnotes.generative import LOSSES, VAE, DcganDiscriminator, DcganGenerator, TrainedVAE, binarize, compute_elbo
from mlnotes.generative.game import Game, init_player, update_discriminator, update_generator
from mlnotes.generative.gan_networks import halved

# A function that makes so many rounds and waits.
Rounds = Callable[[int], None]
_HIDDEN, _CHANNELS = (200, 200), (32, 64)  # of the VAEs
_NAMES = ("ema_decay", "discriminator_rate", "balance")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  networks: tuple[str, ...] = field(("dcgan", "vae_mlp", "vae_conv"), "which of these")
  image: tuple[int, ...] = field((28, 28, 1), "height, width and channels of an image")
  width: int = field(32, "channels of the first level of dcgan")
  latent: int = field(64, "numbers of noise, and latents")
  batch: int = field(64, "images per update")
  updates: int = field(10, "rounds of the game in a measurement")
  rounds: int = field(5, "measurements of each")
  peer: bool = field(False, "measure torch as well")
  out: str = field("", "file for the figures as JSON")

  def __post_init__(self):
    super().__post_init__()
    for name in self.networks:
      require(name in PROGRAMS, "networks", name, f"names among {', '.join(PROGRAMS)}")
    for name in ("width", "latent", "batch", "updates", "rounds"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    fits = len(self.image) == 3 and min(self.image) >= 1 and len(halved(*self.image[:2])) > 1
    require(fits, "image", self.image, "three numbers, the first two even")


def our_dcgan(config: Config) -> tuple[int, Rounds]:
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


def torch_dcgan(config: Config) -> tuple[int, Rounds]:
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


def our_vae(kind: str, config: Config) -> tuple[int, Rounds]:
  """(number of parameters, updates of the bound)."""
  adam = optax.adam(1e-3)
  module = VAE(config.image, config.latent, kind=kind, hidden=_HIDDEN, channels=_CHANNELS, activation=jax.nn.relu)
  grey = jnp.asarray(np.random.default_rng(0).uniform(size=(config.batch, *config.image)), jnp.float32)
  params = jax.jit(module.init)(jax.random.key(0), grey[:1], jnp.zeros((1, config.latent)))["params"]
  state = params, adam.init(params)

  def update(state, step):
    params, opt_state = state
    pixels, noise = jax.random.split(jax.random.fold_in(jax.random.key(1), step))
    x, noise = binarize(pixels, grey), jax.random.normal(noise, (1, config.batch, config.latent))

    def loss(params):
      model = TrainedVAE(module, params)
      return -jnp.mean(compute_elbo(noise, model.encode(x), partial(model.log_likelihood, x)).bound)

    updates, opt_state = adam.update(jax.grad(loss)(params), opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), None

  loop = jax.jit(lambda state, steps: jax.lax.scan(update, state, steps)[0], donate_argnums=0)

  def rounds(count: int) -> None:
    nonlocal state
    state = jax.block_until_ready(loop(state, jnp.arange(count)))

  return sum(leaf.size for leaf in jax.tree.leaves(params)), rounds


def torch_vae(kind: str, config: Config) -> tuple[int, Rounds]:
  import torch
  from torch import nn
  from torch.nn import functional

  torch.set_num_threads(count_cores())
  height, width, channels = config.image
  pixels = height * width * channels
  if kind == "mlp":
    dense = lambda sizes: [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())][:-1]
    encoder = nn.Sequential(nn.Flatten(), *dense((pixels, *_HIDDEN, 2 * config.latent)))
    decoder = nn.Sequential(*dense((config.latent, *_HIDDEN, pixels)), nn.Unflatten(1, (channels, height, width)))
  else:
    small, levels = (height // 4, width // 4), (channels, *_CHANNELS)
    inner, hidden = small[0] * small[1] * _CHANNELS[-1], _HIDDEN[-1]
    down = [layer for pair in itertools.pairwise(levels) for layer in (nn.Conv2d(*pair, 4, 2, 1), nn.ReLU())]
    last = [nn.Flatten(), nn.Linear(inner, hidden), nn.ReLU(), nn.Linear(hidden, 2 * config.latent)]
    encoder = nn.Sequential(*down, *last)
    up = [
      layer for pair in itertools.pairwise(levels[::-1]) for layer in (nn.ConvTranspose2d(*pair, 4, 2, 1), nn.ReLU())
    ]
    first = [nn.Linear(config.latent, hidden), nn.ReLU(), nn.Linear(hidden, inner), nn.ReLU()]
    decoder = nn.Sequential(*first, nn.Unflatten(1, (_CHANNELS[-1], *small)), *up[:-1])
  networks = [network.to(memory_format=torch.channels_last) for network in (encoder, decoder)]
  optimizer = torch.optim.Adam([p for network in networks for p in network.parameters()], 1e-3)
  grey = torch.rand(config.batch, channels, height, width).to(memory_format=torch.channels_last)

  def rounds(count: int) -> None:
    for _ in range(count):
      x = torch.bernoulli(grey)
      mean, log_var = networks[0](x).chunk(2, dim=1)
      z = mean + (log_var / 2).exp() * torch.randn_like(mean)
      likelihood = -functional.binary_cross_entropy_with_logits(networks[1](z), x, reduction="sum")
      kl = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum()
      optimizer.zero_grad()
      ((kl - likelihood) / len(x)).backward()
      optimizer.step()

  return sum(p.numel() for network in networks for p in network.parameters()), rounds


PROGRAMS = {
  "dcgan": (our_dcgan, torch_dcgan),
  "vae_mlp": (partial(our_vae, "mlp"), partial(torch_vae, "mlp")),
  "vae_conv": (partial(our_vae, "conv"), partial(torch_vae, "conv")),
}


def measure(config: Config, name: str) -> dict[str, Any]:
  """Parameters and seconds of an update of each, with all its rounds."""
  ours, theirs = PROGRAMS[name]
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
    for peer, (_, rounds) in programs.items():
      start = time.perf_counter()
      rounds(config.updates)
      found[peer].append((time.perf_counter() - start) / config.updates)
  seconds = {peer: statistics.median(values) for peer, values in found.items()}
  return {"network": name, "parameters": programs["mlnotes"][0], "seconds": seconds, "rounds": found}


def main(config: Config) -> int:
  rows = []
  print("| network | parameters | mlnotes, ms | torch, ms | torch / mlnotes |\n|---|---|---|---|---|")
  for name in config.networks:
    rows.append(measure(config, name))
    ours, theirs = rows[-1]["seconds"]["mlnotes"], rows[-1]["seconds"].get("torch")
    told = [f"{1e3 * theirs:.2f}", f"{theirs / ours:.2f}"] if theirs else ["not measured", ""]
    print(f"| {name} | {rows[-1]['parameters']:,} | {1e3 * ours:.2f} | {' | '.join(told)} |", flush=True)
  if config.out:
    with open(config.out, "w", encoding="utf-8") as file:
      json.dump({"config": dataclasses.asdict(config), "rows": rows}, file, indent=1)
  return 0


if __name__ == "__main__":
  run(main, Config)
