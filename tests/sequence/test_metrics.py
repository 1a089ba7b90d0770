"""Edit distance against a plain recursion."""

import functools

import jax
import numpy as np

from mlnotes.sequence import edit_distance


@functools.cache
def distance(a, b):
  if not a or not b:
    return len(a) + len(b)
  return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))


def test_distance_is_that_of_the_definition():
  draw = np.random.default_rng(0)
  found, wanted = draw.integers(0, 3, (40, 6)), draw.integers(0, 3, (40, 5))
  lengths = draw.integers(0, 7, 40), draw.integers(0, 6, 40)
  lengths[0][:3], lengths[1][:3] = (0, 0, 6), (0, 5, 0)
  result = jax.jit(edit_distance)(found, lengths[0], wanted, lengths[1])
  expected = [distance(tuple(a[:n]), tuple(b[:m])) for a, b, n, m in zip(found, wanted, *lengths)]
  np.testing.assert_array_equal(result, expected)
  assert len(set(expected)) > 4
