"""Operations modulo a prime, of which all pairs are known, and the frequencies in what a network makes of them."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

Operation = Literal["add", "subtract", "multiply", "divide"]


class Table(NamedTuple):
  """All pairs of an operation.

  Attributes:
    first, second: the two numbers.
    answer: what the operation makes of them.
    place: where the answer stands in `group_order`.
  """

  first: Int[np.ndarray, " N"]
  second: Int[np.ndarray, " N"]
  answer: Int[np.ndarray, " N"]
  place: Int[np.ndarray, " N"]


def group_order(operation: Operation, prime: int) -> Int[np.ndarray, " G"]:
  """The numbers in an order in which the operation is addition or subtraction of their places, modulo G.

    add, subtract       0, 1, 2 ... p - 1
    multiply, divide    1, g, g^2 ... g^(p - 2) mod p, for the smallest g whose powers are all numbers but 0

  In this order what a network finds in either operation are the same waves. Raises ValueError where `prime` is not a
  prime above 4.
  """
  if prime < 5 or any(prime % divisor == 0 for divisor in range(2, int(prime**0.5) + 1)):
    raise ValueError(f"prime is {prime}, expected a prime number of 5 or more")
  if operation in ("add", "subtract"):
    return np.arange(prime)
  for generator in range(2, prime):
    powers = [pow(generator, n, prime) for n in range(prime - 1)]
    if len(set(powers)) == prime - 1:
      return np.array(powers)
  raise AssertionError("every prime has a generator")


def modular_table(operation: Operation, prime: int) -> Table:
  """All pairs (a, b) with a + b, a - b, a b or a / b modulo `prime`; of the last two a and b are not 0.

  a / b is the c with b c = a. Raises ValueError as `group_order`.
  """
  order = group_order(operation, prime)
  size = len(order)
  one, other = (x.ravel() for x in np.meshgrid(np.arange(size), np.arange(size), indexing="ij"))
  place = (one - other if operation in ("subtract", "divide") else one + other) % size
  return Table(*(order[x].astype(np.int32) for x in (one, other, place)), place.astype(np.int32))


def split_pairs(key: Key[Array, ""], count: int, learned: int) -> tuple[Int[Array, " L"], Int[Array, " R"]]:
  """(numbers of `learned` of `count` pairs drawn without replacement, those of the others).

  Raises ValueError unless 1 <= learned < count.
  """
  if not 1 <= learned < count:
    raise ValueError(f"learned is {learned}, expected 1 to {count - 1}: some of the {count} pairs are for testing")
  found = jax.random.permutation(key, count)
  return jnp.sort(found[:learned]), jnp.sort(found[learned:])


def frequency_energy(rows: Float[Array, "G D"]) -> Float[Array, " F"]:
  """Squared length of the part of `rows` that each wave of 0 ... G // 2 turns over its G rows has.

  The sum of all is the sum of the squares of all entries. Frequency k > 0 is of sine and cosine together.
  """
  size = rows.shape[0]
  energy = jnp.sum(jnp.square(jnp.abs(jnp.fft.rfft(rows, axis=0, norm="ortho"))), 1)
  twice = np.ones(size // 2 + 1)
  twice[1 : (size + 1) // 2] = 2  # the waves that stand for two of the complex ones
  return energy * jnp.asarray(twice, energy.dtype)


def key_frequencies(energy: Float[Array, " F"], share: float = 0.9) -> Bool[Array, " F"]:
  """The fewest of the frequencies 1 ... F - 1 that hold `share` of the energy of these."""
  energy = energy.at[0].set(0)
  falling = jnp.argsort(-energy)
  before = jnp.cumsum(energy[falling]) - energy[falling]
  return jnp.zeros(energy.shape, bool).at[falling].set(before < share * jnp.sum(energy)).at[0].set(False)


def wave_logits(
  logits: Float[Array, "N V"], place: Int[Array, " N"], size: int, kept: Bool[Array, " F"]
) -> tuple[Float[Array, "N V"], Float[Array, "N V"]]:
  """(restricted, excluded) logits of all pairs: the part that is waves of the kept frequencies, and what is left.

  The mean logits of the pairs with the same answer, taken as waves over the answer's `place` of 0 ... size - 1, are
  what cosines and sines of w (a + b) give. Restricted: the mean over all pairs and the waves of the `kept` frequencies
  alone. Excluded: everything but these waves. Nanda et al. 2023, sec. 5.
  """
  count = jnp.zeros(size).at[place].add(1.0)
  mean = jnp.zeros((size, logits.shape[1])).at[place].add(logits) / count[:, None]
  waves = jnp.fft.irfft(jnp.where(kept[:, None], jnp.fft.rfft(mean, axis=0), 0), size, axis=0)[place]
  return jnp.mean(logits, 0)[None] + waves, logits - waves
