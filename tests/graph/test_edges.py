"""Sums, means, maxima, softmaxes and weights of edges against dense matrices; sparse products against dense ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes import graph
from mlnotes.engine.errors import InputError

# A path 0 - 1 - 2, a star around 3 with a loop at its centre, the lonely node 7, and padding from 5 to 0.
PAIRS = [(0, 1), (1, 2), (3, 4), (3, 5), (3, 6)]
N = 8


def edges_of(pairs=PAIRS, loops=(3,), padding=2):
  both = [*pairs, *((b, a) for a, b in pairs), *((a, a) for a in loops)]
  senders, receivers = (jnp.array([*ends, *[fill] * padding]) for ends, fill in zip(zip(*both), (5, 0)))
  mask = jnp.array([1.0] * len(both) + [0.0] * padding)
  return graph.make_edges(senders, receivers, mask)


def dense_of(edges, weights=None):
  """(N, N): row of the receiver, column of the sender."""
  matrix = np.zeros((N, N))
  np.add.at(
    matrix,
    (np.asarray(edges.receivers), np.asarray(edges.senders)),
    np.asarray(edges.mask if weights is None else weights),
  )
  return matrix


def values_of(*shape):
  return jax.random.normal(jax.random.key(3), shape)


def test_what_arrives_at_a_node_is_summed_and_padding_is_not_even_where_it_is_not_a_number():
  edges, x = edges_of(), values_of(N, 2)
  found = graph.sum_edges(edges, x[edges.senders].at[-1].set(jnp.nan), N)
  np.testing.assert_allclose(found, dense_of(edges) @ np.asarray(x), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(graph.count_edges(edges, N), dense_of(edges).sum(1))
  assert not found[7].any()


def test_means_and_maxima_are_of_neighbours_alone():
  edges, x = edges_of(), values_of(N, 2) - 5
  sent, dense = x[edges.senders], dense_of(edges)
  mean, most = graph.mean_edges(edges, sent, N), graph.max_edges(edges, sent, N, empty=-1.0)
  for node in range(7):
    own = np.asarray(x)[dense[node] > 0]
    np.testing.assert_allclose(mean[node], own.mean(0), rtol=1e-5)
    np.testing.assert_allclose(most[node], own.max(0), rtol=1e-6)
  assert not mean[7].any() and (most[7] == -1).all()


def test_a_mean_is_weighed_by_the_mask_whatever_it_adds_up_to():
  edges = graph.make_edges(jnp.array([0, 1]), jnp.array([2, 2]), jnp.array([0.1, 0.3]))
  np.testing.assert_allclose(graph.mean_edges(edges, jnp.array([4.0, 8.0]), 3), [0, 0, 7], rtol=1e-6)


def test_softmax_is_over_what_arrives_and_survives_great_logits():
  edges = edges_of()
  logits = values_of(len(edges.mask), 3) + 1000 * edges.receivers[:, None]
  weights = graph.softmax_edges(edges, logits, N)
  for node in range(7):
    own = np.asarray((edges.receivers == node) & (edges.mask > 0))
    np.testing.assert_allclose(weights[own], jax.nn.softmax(logits[own], axis=0), atol=1e-5)
  assert not weights[-2:].any()
  gradient = jax.grad(lambda x: jnp.sum(graph.softmax_edges(edges, x, N) ** 2))(logits)
  assert np.isfinite(gradient).all() and not gradient[-2:].any()


def test_symmetric_weights_are_the_renormalised_ones_of_a_path_and_a_star():
  edges = graph.add_self_loops(edges_of(), N)
  found = dense_of(edges, graph.normalize_edges(edges, N, "symmetric"))
  dense = dense_of(edges)
  assert (dense.diagonal() == 1).all()
  root = np.diag(dense.sum(1) ** -0.5)
  np.testing.assert_allclose(found, root @ dense @ root, rtol=1e-6)
  # The greatest eigenvalue is 1, for each component, with the roots of the degrees.
  np.testing.assert_allclose(found @ np.sqrt(dense.sum(1)), np.sqrt(dense.sum(1)), rtol=1e-6)
  np.testing.assert_allclose(np.linalg.eigvalsh(found)[-3:], 1, rtol=1e-6)


def test_rows_add_up_to_one_but_of_a_node_without_neighbours():
  edges = edges_of()
  found = dense_of(edges, graph.normalize_edges(edges, N, "row"))
  np.testing.assert_allclose(found.sum(1), [1] * 7 + [0], rtol=1e-6)
  np.testing.assert_allclose(dense_of(edges, graph.normalize_edges(edges, N, "none")), dense_of(edges))
  assert np.isfinite(graph.normalize_edges(edges, N, "symmetric")).all()


def test_loops_are_added_once():
  with_loop, without = edges_of(loops=(3, 7)), edges_of(loops=())
  np.testing.assert_array_equal(
    dense_of(graph.add_self_loops(with_loop, N)), dense_of(graph.add_self_loops(without, N))
  )
  twice = graph.add_self_loops(graph.add_self_loops(without, N), N)
  np.testing.assert_array_equal(dense_of(twice).diagonal(), 1)


def test_the_reverse_is_the_transpose():
  edges = graph.make_edges(jnp.array([0, 1, 1]), jnp.array([1, 2, 3]))
  np.testing.assert_array_equal(dense_of(graph.reverse_edges(edges)), dense_of(edges).T)


def test_both_directions_of_an_edge_are_dropped_together():
  edges = edges_of(pairs=[(a, b) for b in range(7) for a in range(b)], loops=())
  pair = graph.pair_edges(edges)
  real = np.asarray(edges.mask) > 0
  assert len(set(np.asarray(pair)[real])) == real.sum() // 2
  kept = graph.drop_edges(jax.random.key(0), edges, 0.5, pair)
  dense = dense_of(kept)
  np.testing.assert_array_equal(dense, dense.T)
  assert 8 < dense.sum() < 34 and not kept.mask[-2:].any()
  alone = dense_of(graph.drop_edges(jax.random.key(0), edges, 0.5))
  assert (alone != alone.T).any()
  shares = [graph.drop_edges(jax.random.key(i), edges, 0.25, pair).mask.sum() / edges.mask.sum() for i in range(60)]
  assert abs(np.mean(shares) - 0.75) < 0.04


def test_ends_are_as_many():
  with pytest.raises(InputError, match=r"senders have shape \(2,\) and receivers \(3,\)"):
    graph.make_edges(jnp.zeros(2, int), jnp.zeros(3, int))


def test_sparse_products_and_their_dropout_are_the_dense_ones():
  dense = np.asarray(values_of(5, 4)) * (np.arange(20).reshape(5, 4) % 3 == 0)
  matrix, kernel = graph.make_sparse(dense), values_of(4, 2)
  np.testing.assert_allclose(graph.sparse_dot(matrix, kernel), dense @ np.asarray(kernel), rtol=1e-5, atol=1e-6)
  assert len(matrix.values) == 7
  dropped = graph.sparse_dropout(jax.random.key(0), matrix, 0.25)
  ratio = np.asarray(dropped.values / matrix.values)
  assert set(np.round(ratio, 4)) == {0, np.float32(1.3333)}
  assert (matrix.height, matrix.width) == (5, 4)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.6])
def test_cheap_bits_keep_the_mean_and_the_rate(rate):
  kept = np.asarray(graph.draw_kept(jax.random.key(2), (101, 499), rate))
  assert abs((kept == 0).mean() - rate) < 0.006
  np.testing.assert_allclose(kept.mean(), 1, atol=0.01)
  assert len(np.unique(kept)) == (2 if rate else 1)
  # Neighbours share a word of the generator and nothing else.
  pairs = (kept.reshape(-1)[:-1] > 0) & (kept.reshape(-1)[1:] > 0)
  np.testing.assert_allclose(pairs.mean(), (kept > 0).mean() ** 2, atol=0.01)
