"""Tables modulo a prime against Python's integers, and frequencies against waves written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.lm.tasks import (
  frequency_energy,
  group_order,
  key_frequencies,
  modular_table,
  split_pairs,
  wave_logits,
)


@pytest.mark.parametrize("operation", ["add", "subtract", "multiply", "divide"])
def test_every_pair_is_there_once_with_its_answer(operation):
  table = modular_table(operation, 7)
  least = operation in ("multiply", "divide")
  pairs = list(zip(table.first.tolist(), table.second.tolist()))
  assert sorted(pairs) == [(a, b) for a in range(least, 7) for b in range(least, 7)]
  for (a, b), c in zip(pairs, table.answer.tolist()):
    assert 0 <= c < 7
    right = {"add": a + b - c, "subtract": a - b - c, "multiply": a * b - c, "divide": b * c - a}
    assert right[operation] % 7 == 0


@pytest.mark.parametrize("operation", ["add", "subtract", "multiply", "divide"])
@pytest.mark.parametrize("prime", [5, 11])
def test_in_its_order_an_operation_is_addition_of_places(operation, prime):
  order, table = group_order(operation, prime), modular_table(operation, prime)
  place = {int(number): i for i, number in enumerate(order)}
  assert len(place) == len(order) == prime - (operation in ("multiply", "divide"))
  sign = -1 if operation in ("subtract", "divide") else 1
  for a, b, c, found in zip(*map(np.ndarray.tolist, table)):
    assert (place[a] + sign * place[b]) % len(order) == place[c] == found


@pytest.mark.parametrize("prime", [4, 9, 3, 1, 0, -7])
def test_what_is_no_prime_is_refused(prime):
  with pytest.raises(ValueError, match=f"prime is {prime}"):
    modular_table("add", prime)


def test_pairs_are_learned_or_tested():
  learned, tested = split_pairs(jax.random.key(0), 50, 20)
  np.testing.assert_array_equal(np.sort(np.concatenate([learned, tested])), np.arange(50))
  assert len(learned) == 20 and np.any(learned != np.arange(20))
  assert np.any(split_pairs(jax.random.key(1), 50, 20)[0] != learned)
  for learned in (0, 50):
    with pytest.raises(ValueError, match=f"learned is {learned}"):
      split_pairs(jax.random.key(0), 50, learned)


@pytest.mark.parametrize("size", [7, 8])
def test_energy_is_the_square_of_the_projection_on_each_wave(size):
  rows = np.random.default_rng(size).normal(size=(size, 3))
  found = np.asarray(frequency_energy(jnp.asarray(rows, jnp.float32)))
  n, expected = np.arange(size), []
  for k in range(size // 2 + 1):
    waves = np.stack([np.cos(2 * np.pi * k * n / size), np.sin(2 * np.pi * k * n / size)])
    waves = waves[np.linalg.norm(waves, axis=1) > 1e-9]
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)
    expected.append(np.sum(np.square(waves @ rows)))
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  np.testing.assert_allclose(found.sum(), np.sum(rows**2), rtol=1e-5)


def test_key_frequencies_are_the_fewest():
  energy = jnp.array([100.0, 1, 5, 0, 3, 1])  # the constant does not count
  kept = lambda share: np.flatnonzero(key_frequencies(energy, share)).tolist()
  assert kept(0.5) == [2] and kept(0.51) == [2, 4] and kept(0.8) == [2, 4] and kept(0.89) in ([1, 2, 4], [2, 4, 5])
  assert kept(0.95) == [1, 2, 4, 5]


@pytest.mark.parametrize("operation", ["add", "divide"])
def test_logits_of_planted_waves_are_told_apart(operation):
  """cos w_2 (a + b - c) and cos w_1 (a + b - c), and what is no wave over the answer, by hand."""
  table, order = modular_table(operation, 7), group_order(operation, 7)
  size = len(order)
  angle = 2 * np.pi * (table.place[:, None] - np.arange(size)[None]) / size
  one, two = 3 * np.cos(angle), 5 * np.cos(2 * angle)
  rest = np.random.default_rng(0).normal(size=(size * size, size))
  for place in range(size):  # of nothing but pairs with the same answer
    rest[table.place == place] -= rest[table.place == place].mean(0)
  constant = np.linspace(-1, 1, size)[None]
  kept = jnp.arange(size // 2 + 1) == 2
  restricted, excluded = wave_logits(jnp.asarray(one + two + rest + constant), jnp.asarray(table.place), size, kept)
  np.testing.assert_allclose(restricted, two + constant, atol=2e-5)
  np.testing.assert_allclose(excluded, one + rest + constant, atol=2e-5)
