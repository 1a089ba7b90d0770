"""A variational auto-encoder as one Linen module: encoder, decoder, and the likelihood of pixels that joins them."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mlnotes.engine.errors import nearest
from mlnotes.generative.code_grid import GridDecoder, GridEncoder
from mlnotes.generative.networks import Decoder, Encoder, halvings
from mlnotes.generative.vae import (
  GaussianPosterior,
  bernoulli_log_prob,
  continuous_bernoulli_log_prob,
  gaussian_log_prob,
  reparameterize,
  split_posterior,
)

# bernoulli: pixels 0 and 1. continuous_bernoulli, gaussian: pixels on [0, 1].
LIKELIHOODS = ("bernoulli", "continuous_bernoulli", "gaussian")


class VAE(nn.Module):
  """p(x|z) p(z) with a standard normal prior and an encoder q(z|x), for images of `image_shape` on [0, 1].

  likelihood: of a pixel, one of `LIKELIHOODS`
  sigma:      deviation of the gaussian one; 0: one number that is learned with the rest (Rybkin et al. 2021)
  kind:       mlp or conv, those of `Encoder` and `Decoder` with `hidden` and `activation`; or grid, the networks of
              VQ-VAE, whose `latents` are those of each cell of the smallest image: what latent diffusion works in

  A latent vector has `num_latents` numbers; of a grid it is the grid, row by row. Raises ValueError where the
  likelihood is none of these.
  """

  image_shape: tuple[int, int, int]
  latents: int
  likelihood: str = "bernoulli"
  sigma: float = 0.0
  kind: str = "mlp"
  hidden: Sequence[int] = (200, 200)
  channels: Sequence[int] = (32, 64)
  activation: Callable[[Array], Array] = nn.tanh
  dtype: Any = None

  def setup(self):
    if self.likelihood not in LIKELIHOODS:
      raise ValueError(f"likelihood is {self.likelihood!r}: {nearest(self.likelihood, LIKELIHOODS)}")
    if self.kind == "grid":
      self.encoder = GridEncoder(2 * self.latents, self.channels, dtype=self.dtype)
      self.decoder = GridDecoder(self.image_shape, self.channels, dtype=self.dtype)
    else:
      sizes = dict(kind=self.kind, channels=self.channels, activation=self.activation, dtype=self.dtype)
      self.encoder = Encoder(2 * self.latents, hidden=self.hidden, **sizes)
      self.decoder = Decoder(self.image_shape, hidden=self.hidden[::-1], **sizes)
    if self.likelihood == "gaussian" and not self.sigma:
      self.log_sigma = self.param("log_sigma", nn.initializers.zeros, ())

  @property
  def grid(self) -> tuple[int, int, int]:
    """(h, w, latents) of a grid; (1, 1, latents) where there is none."""
    size = halvings(self.image_shape[:2], len(self.channels))[-1] if self.kind == "grid" else (1, 1)
    return (*size, self.latents)

  @property
  def num_latents(self) -> int:
    return math.prod(self.grid)

  def __call__(self, x: Float[Array, "B H W C"], noise: Float[Array, "B D"]) -> Float[Array, " B"]:
    """log p(x|z) of z drawn from q(z|x): what initialises every parameter."""
    return self.log_likelihood(x, reparameterize(self.encode(x), noise))

  def encode(self, x: Float[Array, "B H W C"]) -> GaussianPosterior:
    """q(z|x)."""
    q = split_posterior(self.encoder(x).astype(jnp.float32))
    return GaussianPosterior(*(part.reshape(len(x), -1) for part in q))

  def decode_raw(self, z: Float[Array, "B D"]) -> Float[Array, "B H W C"]:
    """What the decoder gives, before the likelihood makes pixels of it."""
    z = z.reshape(len(z), *self.grid) if self.kind == "grid" else z
    return self.decoder(z).astype(jnp.float32)

  def decode(self, z: Float[Array, "B D"]) -> Float[Array, "B H W C"]:
    """The mean image of each latent vector, on [0, 1] (of gaussian ones about so)."""
    raw = self.decode_raw(z)
    if self.likelihood == "continuous_bernoulli":
      return continuous_bernoulli_mean(raw)
    return raw if self.likelihood == "gaussian" else jax.nn.sigmoid(raw)

  def log_likelihood(self, x: Float[Array, "B H W C"], z: Float[Array, "B D"]) -> Float[Array, " B"]:
    """log p(x|z), summed over pixels, in nats. A density where pixels are not 0 and 1."""
    raw = self.decode_raw(z)
    if self.likelihood == "gaussian":
      log_sigma = jnp.log(self.sigma) if self.sigma else self.log_sigma
      each = gaussian_log_prob(x, raw, 2 * log_sigma)
    else:
      each = {"bernoulli": bernoulli_log_prob, "continuous_bernoulli": continuous_bernoulli_log_prob}[self.likelihood](
        x, raw
      )
    return jnp.sum(each, axis=(1, 2, 3))


class TrainedVAE(NamedTuple):
  """A `VAE` with its parameters, as functions of its inputs."""

  module: VAE
  params: chex.ArrayTree

  def encode(self, x: Float[Array, "B H W C"]) -> GaussianPosterior:
    """q(z|x)."""
    return self.module.apply({"params": self.params}, x, method="encode")

  def decode(self, z: Float[Array, "B D"]) -> Float[Array, "B H W C"]:
    """Mean images on [0, 1]."""
    return self.module.apply({"params": self.params}, z, method="decode")

  def log_likelihood(self, x: Float[Array, "B H W C"], z: Float[Array, "B D"]) -> Float[Array, " B"]:
    """log p(x|z), in nats."""
    return self.module.apply({"params": self.params}, x, z, method="log_likelihood")

  def sample(self, key: Key[Array, ""], count: int) -> Float[Array, "B H W C"]:
    """Mean images of latents drawn from the prior."""
    return self.decode(jax.random.normal(key, (count, self.module.num_latents)))


def continuous_bernoulli_mean(logits: Float[Array, "..."]) -> Float[Array, "..."]:
  """l / (2 l - 1) + 1 / (2 artanh(1 - 2 l)), 1/2 at l = 1/2: 1 / (1 - exp(-logits)) - 1 / logits."""
  near = jnp.abs(logits) < 1e-1
  safe = jnp.where(near, 1.0, logits)
  return jnp.where(near, 0.5 + logits / 12, 1 / -jnp.expm1(-safe) - 1 / safe)
