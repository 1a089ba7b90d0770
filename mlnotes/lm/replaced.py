"""Which tokens were replaced by a small generator? ELECTRA. Clark et al. 2020."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from mlnotes.lm.masking import Masked

Scalar = Float[Array, ""] | float | int


class Replaced(NamedTuple):
  """What the discriminator reads, and which tokens are not those of the text.

  Attributes:
    inputs: the text, with a token of the generator at each chosen place.
    labels: True where that is another token than the text's: one that the generator got right counts as original.
  """

  inputs: Int[Array, "B T"]
  labels: Bool[Array, "B T"]


def sample_replacements(
  key: Key[Array, ""], logits: Float[Array, "B T V"], masked: Masked, temperature: Scalar = 1.0
) -> Replaced:
  """A token from the generator's softmax at each chosen place. Clark et al. 2020, sec. 2.

  `logits` are of `masked.inputs`. There is no gradient through the draw.
  """
  drawn = jax.random.categorical(key, jax.lax.stop_gradient(logits).astype(jnp.float32) / temperature, -1)
  inputs = jnp.where(masked.weights > 0, drawn.astype(masked.targets.dtype), masked.targets)
  return Replaced(inputs, inputs != masked.targets)


class ElectraLosses(NamedTuple):
  """Nats at each place: of the generator, where a token was chosen, of the discriminator, where one is real; else 0."""

  generator: Float[Array, "B T"]
  discriminator: Float[Array, "B T"]


def electra_losses(
  generator: Float[Array, "B T V"],
  discriminator: Float[Array, "B T"],
  masked: Masked,
  replaced: Replaced,
  real: Bool[Array, "B T"],
) -> ElectraLosses:
  """-log p_G(x_t | masked) at chosen places, and the binary cross entropy of D at all real ones. Clark et al. 2020, 2.

  `discriminator` holds logits of "replaced": the paper's D is the sigmoid of their negative.
  """
  of_words = optax.softmax_cross_entropy_with_integer_labels(generator.astype(jnp.float32), masked.targets)
  labels = replaced.labels.astype(jnp.float32)
  of_labels = optax.sigmoid_binary_cross_entropy(discriminator.astype(jnp.float32), labels)
  return ElectraLosses(of_words * masked.weights, jnp.where(real, of_labels, 0))


def electra_objective(
  losses: ElectraLosses, weights: Float[Array, "B T"], real: Bool[Array, "B T"], lambda_: Scalar = 50.0
) -> Float[Array, ""]:
  """L_MLM + lambda L_Disc, each the mean over its own places of the whole batch. Clark et al. 2020, sec. 2.

  Means, as in the authors' code, for which lambda = 50 was found: the discriminator's loss is small, as it is binary.
  The gradient of the second does not reach the generator but through parameters that both share.
  """
  mean = lambda x, count: jnp.sum(x) / jnp.maximum(jnp.sum(count), 1)
  return mean(losses.generator, weights) + lambda_ * mean(losses.discriminator, real)
