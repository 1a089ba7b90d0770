"""Losses of pairs in a window against loops over the pairs, shared negatives against their mean, trees by hand."""

import heapq
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import special, stats

from mlnotes import graph
from mlnotes.engine.errors import InputError

L, D, N = 6, 3, 7
NODES = jnp.array([0, 3, 3, 5, 0, 6])
log_sigmoid = special.log_expit
shared = jax.jit(graph.shared_negatives_losses, static_argnums=6)
hierarchical = jax.jit(graph.hierarchical_losses)


def vectors(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_pairs_are_those_within_the_window_where_the_walk_goes_on():
  mask = jnp.array([1, 1, 1, 1, 1, 0], bool)
  found = np.argwhere(graph.pair_window(mask, 2))
  expected = [(i, j) for i in range(5) for j in range(5) if i != j and abs(i - j) <= 2]
  np.testing.assert_array_equal(found, expected)
  assert len(np.argwhere(graph.pair_window(jnp.ones(40, bool), 10))) == 2 * sum(40 - o for o in range(1, 11))


def test_loss_of_a_pair_is_the_papers():
  z, c, n = vectors(D), vectors(D, seed=1), vectors(4, D, seed=2)
  expected = -log_sigmoid(z @ c) - sum(log_sigmoid(-z @ negative) for negative in n)
  assert graph.negative_sampling_loss(z, c, n) == pytest.approx(expected, rel=1e-6)
  nothing = jnp.zeros(D)
  assert graph.negative_sampling_loss(nothing, nothing, jnp.zeros((4, D))) == pytest.approx(5 * np.log(2))


def test_shared_negatives_pass_over_the_context_and_have_the_mean_of_negatives_drawn_for_each_pair():
  """Every node drawn once stands for its mean: of a pair it is K / M times the sum over all but the context."""
  emb, ctx = vectors(N, D), vectors(N, D, seed=1)
  pairs = graph.pair_window(jnp.ones(L, bool), 2)
  drawn = jnp.arange(N)
  found = shared(emb[NODES], ctx[NODES], ctx[drawn], NODES, drawn, pairs, 3)
  near = -log_sigmoid(np.asarray(emb @ ctx.T))
  far = -log_sigmoid(-np.asarray(emb @ ctx.T))
  nodes = np.asarray(NODES)
  for i, centre in enumerate(nodes):
    contexts = nodes[np.flatnonzero(pairs[i])]
    expected = [near[centre, c] + 3 / N * (far[centre].sum() - far[centre, c]) for c in contexts]
    assert found[i] == pytest.approx(sum(expected), rel=1e-5)
  # As many draws as negatives, none of them a context: the loss of the pairs, one by one.
  far = jnp.array([1, 2, 4])
  found = shared(emb[NODES], ctx[NODES], ctx[far], NODES, far, pairs, 3)
  one = jax.vmap(jax.vmap(graph.negative_sampling_loss, (None, 0, None)), (0, None, None))
  each = jnp.sum(one(emb[NODES], ctx[NODES], ctx[far]) * pairs, axis=1)
  np.testing.assert_allclose(found, each, rtol=1e-5)


def test_negatives_are_drawn_by_frequency_to_three_quarters():
  counts = np.array([0, 1, 16, 0, 81, 2, 0], float)
  drawn = np.asarray(graph.sample_negatives(jax.random.key(0), jnp.asarray(counts, jnp.float32), (100, 100)))
  found = np.bincount(drawn.ravel(), minlength=7)
  expected = counts**0.75 / np.sum(counts**0.75) * drawn.size
  assert np.all(found[counts == 0] == 0)
  assert stats.chisquare(found[counts > 0], expected[counts > 0]).pvalue > 1e-3
  assert stats.chisquare(found[counts > 0], (counts / counts.sum() * drawn.size)[counts > 0]).pvalue < 1e-6


def test_huffman_tree_by_hand_and_no_other_is_shorter():
  """Weights 1 1 2 4: ways of 3, 3, 2 and 1; and each node's way is its own."""
  tree = graph.make_huffman_tree(np.array([4, 1, 2, 1]))
  np.testing.assert_array_equal(np.sum(tree.side != 0, axis=1), [1, 3, 2, 3])
  assert len({tuple(way) for way in np.asarray(tree.side).tolist()}) == 4
  assert np.all(np.asarray(tree.path)[:, 0] == 2)  # the root, the last of three
  counts = np.random.default_rng(0).integers(1, 50, 30)
  lengths = np.sum(graph.make_huffman_tree(counts).side != 0, axis=1)
  # The cost of the best tree is the sum of all the sums that merging makes.
  heap, cost = list(counts), 0
  heapq.heapify(heap)
  while len(heap) > 1:
    heapq.heappush(heap, merged := heapq.heappop(heap) + heapq.heappop(heap))
    cost += merged
  assert counts @ lengths == cost and np.sum(0.5**lengths) == pytest.approx(1)


def test_hierarchical_probabilities_add_up_to_one_and_are_products_over_the_way():
  counts = np.array([5, 1, 1, 3, 2, 2, 9])
  tree, z, inner = graph.make_huffman_tree(counts), vectors(D), vectors(N - 1, D, seed=1)
  # A walk of the centre and every node: the loss of its first place with one context at a time.
  probabilities = []
  for node in range(N):
    nodes, pairs = jnp.array([0, node]), jnp.array([[False, True], [False, False]])
    loss = hierarchical(jnp.stack([z, z]), inner, tree, nodes, pairs)
    assert loss[1] == 0
    way = [(v, s) for v, s in zip(np.asarray(tree.path)[node], np.asarray(tree.side)[node]) if s]
    assert loss[0] == pytest.approx(-sum(log_sigmoid(s * z @ inner[v]) for v, s in way), rel=1e-5)
    probabilities.append(np.exp(-loss[0]))
  assert sum(probabilities) == pytest.approx(1, rel=1e-5)


def test_hierarchical_losses_of_a_walk_are_the_sum_over_its_pairs():
  tree, emb, inner = graph.make_huffman_tree(np.arange(1, N + 1)), vectors(N, D), vectors(N - 1, D, seed=1)
  pairs = graph.pair_window(jnp.ones(L, bool), 2)
  found = hierarchical(emb[NODES], inner, tree, NODES, pairs)
  single = lambda i, j: jnp.zeros((L, L), bool).at[i, j].set(True)
  one = lambda i, j: hierarchical(emb[NODES], inner, tree, NODES, single(i, j))[i]
  for i in range(2):
    assert found[i] == pytest.approx(sum(float(one(i, j)) for j in np.flatnonzero(pairs[i])), rel=1e-5)


def test_gradients_are_those_of_differences():
  emb, ctx = vectors(N, D), vectors(N, D, seed=1)
  pairs, tree = graph.pair_window(jnp.ones(L, bool), 2), graph.make_huffman_tree(np.arange(1, N + 1))
  drawn = jnp.array([1, 3, 3])
  losses = (
    lambda x: shared(x[NODES], ctx[NODES], ctx[drawn], NODES, drawn, pairs, 2),
    lambda x: hierarchical(x[NODES], ctx[: N - 1], tree, NODES, pairs),
  )
  for loss in losses:
    check_grads(lambda x: jnp.sum(loss(x)), (jnp.asarray(emb),), 1, ["rev"], rtol=2e-2)  # noqa: B023


def test_a_tree_of_one_node_is_refused():
  with pytest.raises(InputError, match="counts has 1 node"):
    graph.make_huffman_tree(np.array([1]))


def test_all_shapes_of_small_trees_reach_every_leaf():
  for counts in itertools.product((1, 2, 5), repeat=4):
    tree = graph.make_huffman_tree(np.array(counts))
    assert len({tuple(zip(p, s)) for p, s in zip(tree.path.tolist(), tree.side.tolist())}) == 4
