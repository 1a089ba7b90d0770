"""A variational auto-encoder as one Linen module: encoder, decoder, and the likelihood of pixels that joins them."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mlnotes.engine.errors import nearest
from mlnotes.generative.networks import Decoder, Encoder
from mlnotes.generative.vae import (
  GaussianPosterior,
  bernoulli_log_prob,
  continuous_bernoulli_log_prob,
  gaussian_log_prob,
  split_posterior,
)

# bernoulli: pixels 0 and 1. continuous_bernoulli, gaussian: pixels on [0, 1].
LIKELIHOODS = ("bernoulli", "continuous_bernoulli", "gaussian")


class VAE(nn.Module):
  """p(x|z) p(z) with a standard normal prior and an encoder q(z|x), for images of `image_shape` on [0, 1].

  likelihood: of a pixel, one of `LIKELIHOODS`
  sigma:      deviation of the gaussian one; 0: one number that is learned with the rest (Rybkin et al. 2021)

  `kind`, `hidden`, `channels` and `activation` are those of `Encoder` and `Decoder`. Raises ValueError where the
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
    sizes = dict(kind=self.kind, channels=self.channels, activation=self.activation, dtype=self.dtype)
    self.encoder = Encoder(2 * self.latents, hidden=self.hidden, **sizes)
    self.decoder = Decoder(self.image_shape, hidden=self.hidden[::-1], **sizes)
    if self.likelihood == "gaussian" and not self.sigma:
      self.log_sigma = self.param("log_sigma", nn.initializers.zeros, ())

  def __call__(self, x: Float[Array, "B H W C"], noise: Float[Array, "B D"]) -> Float[Array, " B"]:
    """log p(x|z) of z drawn from q(z|x): what initialises every parameter."""
    q = self.encode(x)
    return self.log_likelihood(x, q.mean + jnp.exp(q.log_var / 2) * noise)

  def encode(self, x: Float[Array, "B H W C"]) -> GaussianPosterior:
    """q(z|x)."""
    return GaussianPosterior(*(part.astype(jnp.float32) for part in split_posterior(self.encoder(x))))

  def decode(self, z: Float[Array, "B D"]) -> Float[Array, "B H W C"]:
    """The mean image of each latent vector, on [0, 1] (of gaussian ones about so)."""
    raw = self.decoder(z).astype(jnp.float32)
    if self.likelihood == "continuous_bernoulli":
      return _continuous_bernoulli_mean(raw)
    return raw if self.likelihood == "gaussian" else jax.nn.sigmoid(raw)

  def log_likelihood(self, x: Float[Array, "B H W C"], z: Float[Array, "B D"]) -> Float[Array, " B"]:
    """log p(x|z), summed over pixels, in nats. A density where pixels are not 0 and 1."""
    raw = self.decoder(z).astype(jnp.float32)
    if self.likelihood == "gaussian":
      log_sigma = jnp.log(self.sigma) if self.sigma else self.log_sigma
      each = gaussian_log_prob(x, raw, 2 * log_sigma)
    else:
      each = {"bernoulli": bernoulli_log_prob, "continuous_bernoulli": continuous_bernoulli_log_prob}[self.likelihood](
        x, raw
      )
    return jnp.sum(each, axis=(1, 2, 3))


def _continuous_bernoulli_mean(logits: Float[Array, "..."]) -> Float[Array, "..."]:
  """l / (2 l - 1) + 1 / (2 artanh(1 - 2 l)), 1/2 at l = 1/2: 1 / (1 - exp(-logits)) - 1 / logits (eq. 9 there)."""
  near = jnp.abs(logits) < 1e-1
  safe = jnp.where(near, 1.0, logits)
  return jnp.where(near, 0.5 + logits / 12, 1 / -jnp.expm1(-safe) - 1 / safe)
