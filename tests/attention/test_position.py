"""Positions by their closed forms, masks by counting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.attention import (
  Mask,
  alibi_slopes,
  apply_rotary,
  compute_weights,
  dot_product_attention,
  make_alibi,
  make_relative,
  relative_buckets,
  sinusoidal_positions,
)


def at(x, place, form="halves"):
  return apply_rotary(x, jnp.array([[place]]), form=form)


@pytest.mark.parametrize("form", ["halves", "interleaved"])
def test_rotary_scores_hang_on_the_distance_alone(form):
  """In float32, up to position 100,000; a float32 product of position and frequency is a thousand times further off."""
  query, key = (jax.random.normal(k, (1, 1, 1, 64)) for k in jax.random.split(jax.random.key(0)))
  turn = jax.jit(lambda x, place: apply_rotary(x, place, form=form))
  score = lambda i, j: float(jnp.sum(turn(query, jnp.array([[i]])) * turn(key, jnp.array([[j]]))))
  for apart in (0, 1, 37):
    scores = [score(start + apart, start) for start in (0, 5, 1000, 77777, 100000)]
    assert np.ptp(scores) < 2e-5
  assert abs(score(40, 3) - score(41, 3)) > 0.1
  np.testing.assert_array_equal(turn(query, jnp.array([[0]])), query)


def test_rotary_angles_are_those_of_the_paper():
  x = jnp.zeros((1, 1, 1, 6)).at[..., ::2].set(1)  # (1, 0) in each interleaved pair
  for place in (1, 100, 31415):
    turned = np.asarray(at(x, place, "interleaved")).reshape(3, 2)
    angle = place * 10000.0 ** (-2 * np.arange(3) / 6)
    np.testing.assert_allclose(turned, np.stack([np.cos(angle), np.sin(angle)], 1), atol=3e-5)


def test_both_rotary_forms_are_the_same_up_to_a_permutation_of_the_features():
  x = jax.random.normal(jax.random.key(0), (1, 1, 1, 8))
  order = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # pairs side by side
  for place in (1, 9):
    np.testing.assert_allclose(at(x, place)[..., order], at(x[..., order], place, "interleaved"), rtol=1e-6)
  with pytest.raises(ValueError, match="an even number"):
    at(x[..., :7], 1)


def test_half_precision_turns_by_exact_angles():
  x = jax.random.normal(jax.random.key(0), (1, 1, 1, 64), jnp.bfloat16)
  out = at(x, 50001)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    out.astype(jnp.float32), at(x.astype(jnp.float32), 50001), atol=2e-2
  )  # the rounding of the result


def test_sinusoids():
  places, width = np.array([0, 1, 7, 5000]), 6
  expected = np.zeros((4, width))
  for t, i in np.ndindex(4, 3):
    angle = places[t] / 10000 ** (2 * i / width)
    expected[t, 2 * i], expected[t, 2 * i + 1] = np.sin(angle), np.cos(angle)
  found = sinusoidal_positions(jnp.array(places), width)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  found = sinusoidal_positions(jnp.array(places), width, interleaved=False)
  np.testing.assert_allclose(found, expected[:, [0, 2, 4, 1, 3, 5]], atol=1e-5)


def test_alibi_slopes_are_those_of_the_paper():
  np.testing.assert_allclose(alibi_slopes(8), [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256])
  np.testing.assert_allclose(alibi_slopes(16)[:3], [2**-0.5, 2**-1, 2**-1.5])
  between = [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]  # of 16 heads, every other one
  np.testing.assert_allclose(alibi_slopes(12), [*(2.0 ** -np.arange(1, 9)), *between])
  np.testing.assert_allclose(alibi_slopes(1), [2**-8])
  bias = make_alibi(8)(jnp.array([[5]]), jnp.array([[2, 5, 9]]))
  np.testing.assert_allclose(bias[0, 0, 0], [-1.5, 0, -2])


def see(mask, queries, keys=None, batch=1):
  return np.asarray(mask.matrix(batch, queries, keys or queries))


def test_buckets_of_distances():
  """Near ones have one each, far ones share, the furthest are one; each direction has its own where it counts."""
  distance = jnp.arange(-40, 41)
  both, back = (np.asarray(relative_buckets(distance, 8, 16, way)) for way in (True, False))
  before = {-40: 3, -16: 3, -6: 3, -5: 2, -2: 2, -1: 1, 0: 0, 1: 5, 2: 6, 5: 6, 6: 7, 40: 7}
  assert {d: int(both[d + 40]) for d in before} == before
  assert np.all(back[41:] == 0) and set(back) == set(range(8)) and np.all(np.diff(back[:41]) <= 0)
  assert list(back[36:41]) == [4, 3, 2, 1, 0]
  table = jax.random.normal(jax.random.key(0), (8, 3))
  bias = make_relative(table, 16, bidirectional=False)(jnp.array([[0, 1, 5]]), jnp.array([[0, 4]]))
  assert bias.shape == (1, 3, 3, 2)
  np.testing.assert_array_equal(bias[0, :, 2, 0], table[back[35]])
  with pytest.raises(ValueError, match="2 buckets up to 16: expected 4 or more"):
    relative_buckets(distance, 2, 16)


def test_a_window_counts_the_token_itself():
  query, key = jax.random.normal(jax.random.key(0), (2, 1, 9, 1, 4))
  count = lambda mask: np.sum(np.asarray(compute_weights(dot_product_attention, query, key, mask)) > 0, -1)[0, 0]
  np.testing.assert_array_equal(count(Mask(causal=True, window=3)), [1, 2, 3, 3, 3, 3, 3, 3, 3])
  np.testing.assert_array_equal(count(Mask(window=3)), [3, 4, 5, 5, 5, 5, 5, 4, 3])
  np.testing.assert_array_equal(count(Mask(window=1)), 1)


def test_a_causal_mask_of_fewer_queries_stands_at_the_bottom_right():
  np.testing.assert_array_equal(see(Mask(causal=True), 2, 5)[0], [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])


def test_packed_sequences_get_what_they_get_by_themselves():
  query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 8, 2, 4))
  segments, positions = jnp.array([[0, 0, 0, 1, 1, 1, 1, 1]]), jnp.array([[0, 1, 2, 0, 1, 2, 3, 4]])
  mask = Mask.of_self(causal=True, window=3, segments=segments, positions=positions)
  attend = jax.jit(dot_product_attention)
  packed = attend(query, key, value, mask)
  for part in (slice(0, 3), slice(3, 8)):
    alone = attend(query[:, part], key[:, part], value[:, part], Mask(causal=True, window=3))
    np.testing.assert_allclose(packed[:, part], alone, rtol=1e-5, atol=1e-6)
  assert not np.any(see(mask, 8)[0, 3:, :3]) and not np.any(see(mask, 8)[0, :3, 3:])


def test_words_of_a_mask_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match="expected 1 or more"):
    Mask(window=0)
  with pytest.raises(ValueError, match="both or none"):
    Mask(key_segments=jnp.zeros((1, 3), jnp.int32))
  with pytest.raises(ValueError, match=r"key_positions of the mask has shape \(4,\)"):
    see(Mask(key_positions=jnp.arange(4)), 3)
  with pytest.raises(ValueError, match=r"key_lengths of the mask has shape \(3,\)"):
    see(Mask(key_lengths=jnp.arange(3)), 3)


def test_cudnn_gets_no_mask_of_an_odd_length(monkeypatch):
  """It has no gradient of one."""
  taken = []
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(
    jax.nn, "dot_product_attention", lambda q, *a, implementation, **k: taken.append(implementation) or q
  )
  for length in (8, 7):
    x = jnp.zeros((1, length, 1, 8), jnp.bfloat16)
    for mask in (Mask(), Mask(causal=True), Mask(window=2)):
      dot_product_attention(x, x, x, mask)
  assert taken == ["cudnn", "cudnn", "cudnn", "cudnn", "cudnn", None]
