"""A memory bank: the last known feature of every training example."""

import jax.random
from jaxtyping import Array, Float, Int, Key

from mlnotes.contrastive.loss import Scalar, normalize


def init_bank(key: Key[Array, ""], num_examples: int, features: int) -> Float[Array, "N D"]:
  """Random unit vectors, as Wu et al. 2018 start."""
  return normalize(jax.random.normal(key, (num_examples, features)))


def update_bank(
  bank: Float[Array, "N D"], index: Int[Array, " B"], feature: Float[Array, "B D"], momentum: Scalar
) -> Float[Array, "N D"]:
  """The rows at `index`, each at most once, moved to the new features and back to length 1.

  v_i <- normalize(m v_i + (1 - m) f_i)                                Wu et al. 2018, section 3.1 (m = 0), code (0.5)
  """
  rows = normalize(momentum * bank[index] + (1 - momentum) * feature)
  return bank.at[index].set(rows, unique_indices=True)


def draw_noise(key: Key[Array, " B"], bank: Float[Array, "N D"], count: int) -> Float[Array, "B {count} D"]:
  """`count` rows of the bank for each example, uniform with replacement."""
  draw = lambda k: jax.random.randint(k, (count,), 0, len(bank))
  return bank[jax.vmap(draw)(key)]
