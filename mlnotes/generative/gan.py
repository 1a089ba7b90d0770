"""The losses of two players: what a discriminator and a generator pay for the scores of real and of generated examples.

Scores are logits or a critic's values, never probabilities: each log-sigmoid is a softplus, finite at any score. A loss
gives one value per example, which the caller averages; the generator's is of its own examples alone.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Scores = Float[Array, " B"]


class AdversarialLoss(NamedTuple):
  """Both players' losses, to be minimised.

  discriminator: (scores of real examples, scores of as many generated ones) -> per pair. The generated ones must not
                 carry a gradient to the generator: `jax.lax.stop_gradient`.
  generator:     scores of generated examples -> per example.
  probabilities: whether sigmoid(score) is the discriminator's probability that an example is real.
  """

  discriminator: Callable[[Scores, Scores], Scores]
  generator: Callable[[Scores], Scores]
  probabilities: bool = False


def cross_entropy_discriminator(real: Scores, fake: Scores) -> Scores:
  """Twice the cross-entropy of real against generated, in nats; 2 log 2 where the two cannot be told apart.

  -log D(x) - log(1 - D(G(z))),   D = sigmoid(score)                      Goodfellow et al. 2014
  """
  return jax.nn.softplus(-real) + jax.nn.softplus(fake)


def minimax_generator(fake: Scores) -> Scores:
  """log(1 - D(G(z))): the game's own value, whose gradient -sigmoid(score) vanishes where D is sure. Ibid."""
  return -jax.nn.softplus(fake)


def non_saturating_generator(fake: Scores) -> Scores:
  """-log D(G(z)): the same fixed point with a gradient that is largest where D is sure. Ibid., section 3."""
  return jax.nn.softplus(-fake)


def wasserstein_discriminator(real: Scores, fake: Scores) -> Scores:
  """f(G(z)) - f(x): minus the estimate of the Wasserstein-1 distance, if f is 1-Lipschitz. Arjovsky et al. 2017."""
  return fake - real


def hinge_discriminator(real: Scores, fake: Scores) -> Scores:
  """max(0, 1 - f(x)) + max(0, 1 + f(G(z))); 2 where nothing is told apart. Lim & Ye 2017; Miyato et al. 2018."""
  return jax.nn.relu(1 - real) + jax.nn.relu(1 + fake)


def raise_score(fake: Scores) -> Scores:
  """-f(G(z)): the generator's loss beside a Wasserstein critic and a hinge."""
  return -fake


def make_least_squares(fake_target: float = 0.0, real_target: float = 1.0, wanted: float = 1.0) -> AdversarialLoss:
  """1/2 (f(x) - b)^2 + 1/2 (f(G(z)) - a)^2 and 1/2 (f(G(z)) - c)^2 with a, b, c in this order. Mao et al. 2017.

  a, b, c = 0, 1, 1 (the default) and -1, 1, 0 are the paper's two choices; b - c = 1 and b - a = 2 make the generator
  minimise Pearson's chi-squared divergence.
  """
  squared = lambda scores, target: 0.5 * jnp.square(scores - target)
  return AdversarialLoss(
    lambda real, fake: squared(real, real_target) + squared(fake, fake_target), lambda fake: squared(fake, wanted)
  )


def make_energy_based(margin: float | Float[Array, ""]) -> AdversarialLoss:
  """The scores are energies, low for real examples: E(x) + max(0, m - E(G(z))), and E(G(z)) for the generator.

  An energy is the distance between an example and its reconstruction by an auto-encoder. Zhao et al. 2017;
  the generator may also pay for examples that resemble each other: `pulling_away`.
  """
  return AdversarialLoss(lambda real, fake: real + jax.nn.relu(margin - fake), lambda fake: fake)


def pulling_away(codes: Float[Array, "B D"]) -> Float[Array, ""]:
  """Mean squared cosine between the codes of different examples, in [0, 1]; couples the whole batch.

    1 / (B (B - 1)) sum_i sum_{j != i} (s_i . s_j / |s_i| |s_j|)^2          Zhao et al. 2017

  A code of zeros has the cosine 0 with every other. Raises ValueError for fewer than two codes.
  """
  count = len(codes)
  if count < 2:
    raise ValueError(f"found {count} codes, expected two or more to compare.")
  unit = codes * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(codes), axis=1, keepdims=True), 1e-12))
  cosines = jnp.square(unit @ unit.T)
  return (jnp.sum(cosines) - jnp.trace(cosines)) / (count * (count - 1))


# All but the energy-based one, which needs a margin.
LOSSES: Mapping[str, AdversarialLoss] = {
  "minimax": AdversarialLoss(cross_entropy_discriminator, minimax_generator, probabilities=True),
  "non_saturating": AdversarialLoss(cross_entropy_discriminator, non_saturating_generator, probabilities=True),
  "wasserstein": AdversarialLoss(wasserstein_discriminator, raise_score),
  "hinge": AdversarialLoss(hinge_discriminator, raise_score),
  "least_squares": make_least_squares(),
}
