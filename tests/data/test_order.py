import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from mlnotes.data.order import epoch_positions, fixed_subset, order_bits, permute_index


def bits(seed):
  return np.random.default_rng(seed).integers(0, 2**32, 2, dtype=np.uint32)


def epoch_order(size, seed):
  return permute_index(np.arange(size), size, bits(seed))


def test_is_a_permutation():
  for size in [*range(1, 301), 1797, 50_000, 60_000, 65_536, 65_537, 1_281_167]:
    np.testing.assert_array_equal(np.sort(epoch_order(size, seed=size)), np.arange(size), err_msg=f"{size=}")


@pytest.mark.parametrize("size", [1, 2, 3, 10, 97, 1437, 60_000, 2**31 - 1])
def test_numpy_and_jax_agree_bit_for_bit(size):
  index = np.random.default_rng(0).integers(0, size, 1000)
  on_device = jax.jit(permute_index, static_argnums=1)(jnp.asarray(index), size, jnp.asarray(bits(5)))
  np.testing.assert_array_equal(on_device, permute_index(index, size, bits(5)))


def test_same_order_under_scan_and_vmap():
  size, index = 1000, np.arange(64)
  keys = np.stack([bits(seed) for seed in range(4)])
  expected = np.stack([permute_index(index, size, words) for words in keys])
  np.testing.assert_array_equal(jax.vmap(lambda words: permute_index(jnp.asarray(index), size, words))(keys), expected)
  _, scanned = jax.lax.scan(lambda _, words: (None, permute_index(jnp.asarray(index), size, words)), None, keys)
  np.testing.assert_array_equal(scanned, expected)


def test_first_positions_are_uniform():
  size, trials = 10, 3000
  firsts = np.stack([permute_index(np.arange(3), size, bits(seed)) for seed in range(trials)])
  for position in range(3):
    assert scipy.stats.chisquare(np.bincount(firsts[:, position], minlength=size)).pvalue > 1e-3
  pairs = firsts[:, 0] * size + firsts[:, 1]
  allowed = np.array([a * size + b for a in range(size) for b in range(size) if a != b])
  assert scipy.stats.chisquare(np.bincount(pairs, minlength=size**2)[allowed]).pvalue > 1e-3


def test_neighbours_and_epochs_are_uncorrelated():
  size = 60_000
  key = jax.random.key(3)
  orders = [permute_index(np.arange(size), size, np.asarray(order_bits(key, epoch))) for epoch in range(3)]
  bound = 4 / np.sqrt(size)  # four standard deviations of the correlation of independent draws
  for order in orders:
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < bound
    assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < bound
  for before, after in [(0, 1), (1, 2), (0, 2)]:
    assert abs(np.corrcoef(orders[before], orders[after])[0, 1]) < bound
    # Independent permutations agree in a Poisson(1) number of places.
    assert np.sum(orders[before] == orders[after]) < 10
  # Steps between neighbours of independent draws have the triangular distribution.
  steps = np.abs(np.diff(orders[0].astype(float))) / size
  assert scipy.stats.kstest(steps, lambda x: 2 * x - x**2).pvalue > 1e-3


def test_each_key_word_and_epoch_changes_the_order():
  size = 1000
  words = bits(0)
  for position in range(2):
    for bit in [0, 31]:
      other = words.copy()
      other[position] ^= np.uint32(1 << bit)
      same = permute_index(np.arange(size), size, other) == permute_index(np.arange(size), size, words)
      assert same.sum() < 10


def test_positions_cover_whole_batches_and_drop_the_remainder():
  seen = [epoch_positions(step, batch_size=4, size=11) for step in range(4)]
  assert [int(epoch) for epoch, _ in seen] == [0, 0, 1, 1]
  np.testing.assert_array_equal(seen[0][1], [0, 1, 2, 3])
  np.testing.assert_array_equal(seen[3][1], [4, 5, 6, 7])
  epoch, positions = jax.jit(lambda step: epoch_positions(step, 4, 11))(3)
  assert epoch == 1
  np.testing.assert_array_equal(positions, [4, 5, 6, 7])


def test_late_steps_do_not_overflow():
  step = jnp.int32(2**31 - 1)
  epoch, positions = epoch_positions(step, 128, 60_000)
  assert epoch == (2**31 - 1) // 468
  assert positions.min() >= 0 and positions.max() < 60_000


@pytest.mark.parametrize("batch_size", [0, -1, 12])
def test_a_batch_that_cannot_be_filled_is_refused(batch_size):
  with pytest.raises(ValueError, match=f"batch_size={batch_size} .* expected 1 to 11"):
    epoch_positions(0, batch_size, 11)


def test_sizes_beyond_the_index_type_are_refused():
  with pytest.raises(ValueError, match="size=0"):
    permute_index(np.arange(1), 0, bits(0))
  with pytest.raises(ValueError, match="size=2147483648"):
    permute_index(np.arange(1), 2**31, bits(0))


def test_a_fixed_subset_is_spread_over_the_split_whatever_its_order():
  subset = fixed_subset(60_000, 1000)
  np.testing.assert_array_equal(subset, fixed_subset(60_000, 1000))
  assert np.all(np.diff(subset) > 0) and subset.min() >= 0 and subset.max() < 60_000
  # As many from each tenth of the split as from independent draws, at three sizes and two shares.
  for size, count in ((60_000, 1000), (10_000, 500), (1_281_167, 10_000), (60_000, 30_000)):
    tenths = np.bincount(fixed_subset(size, count) * 10 // size, minlength=10)
    assert scipy.stats.chisquare(tenths).pvalue > 1e-3, (size, count, tenths)
  assert np.isin(fixed_subset(60_000, 100), subset).all()
  np.testing.assert_array_equal(fixed_subset(5, 5), np.arange(5))
  np.testing.assert_array_equal(fixed_subset(5, 500), np.arange(5))


def test_a_subset_of_nothing_is_refused():
  with pytest.raises(ValueError, match="count=0"):
    fixed_subset(10, 0)
  with pytest.raises(ValueError, match="size=0"):
    fixed_subset(0, 3)
