"""GraphRNN: orders are breadth-first, rows say the graph, what is drawn has the probability that the loss says."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.graph.graph_rnn import (
  GraphRNN,
  Rows,
  decode_graph,
  draw_order,
  encode_graph,
  make_rows,
  measure_max_previous,
  order_breadth_first,
  sample_graphs,
  sequence_loss,
)


def draw_graph(seed, size, p, padded):
  edges = np.zeros((padded, padded), np.uint8)
  edges[:size, :size] = np.triu(np.random.default_rng(seed).random((size, size)) < p, 1)
  return edges + edges.T


_orders = jax.jit(jax.vmap(draw_order, (0, None, None)))
_encode, _decode, _rows = jax.jit(encode_graph, static_argnums=2), jax.jit(decode_graph), jax.jit(make_rows)


def distances(adjacency, start):
  found = np.where(np.arange(len(adjacency)) == start, 0, 99)
  for step in range(len(adjacency)):
    near = (adjacency[found == step] > 0).any(0) & (found == 99)
    found[near] = step + 1
  return found


def test_drawn_orders_are_breadth_first_and_differ():
  adjacency = draw_graph(0, 8, 0.3, 10)
  orders = np.asarray(_orders(jax.random.split(jax.random.key(0), 200), adjacency, 8))
  assert distances(adjacency, 0)[:8].max() < 99  # connected
  for order in orders:
    np.testing.assert_array_equal(np.sort(order), np.arange(10))
    assert set(order[8:]) == {8, 9}
    distance = distances(adjacency, order[0])[order[:8]]
    assert (np.diff(distance) >= 0).all()
    # Who is met first brings his neighbours first.
    parents = [min(j for j in range(i) if adjacency[order[i], order[j]]) for i in range(1, 8)]
    assert (np.diff(parents) >= 0).all()
  assert set(orders[:, 0]) == set(range(8)) and len({tuple(order) for order in orders}) > 50


def test_a_graph_of_two_parts_is_met_part_by_part():
  adjacency = np.zeros((6, 6), np.uint8)
  for i, j in ((0, 3), (1, 4), (4, 2)):
    adjacency[i, j] = adjacency[j, i] = 1
  np.testing.assert_array_equal(order_breadth_first(jnp.asarray(adjacency), jnp.int32(5), 1), [1, 4, 2, 0, 3, 5])


@pytest.mark.parity
def test_the_order_from_a_node_is_that_of_networkx():
  networkx = pytest.importorskip("networkx")
  search = jax.jit(order_breadth_first)
  for seed in range(5):
    adjacency = draw_graph(seed, 12, 0.4, 12)
    expected = list(networkx.bfs_tree(networkx.from_numpy_array(adjacency), 3))
    np.testing.assert_array_equal(search(adjacency, 12, 3)[: len(expected)], expected)


def test_rows_say_the_graph():
  """A path of four in its order: each node has an edge to the last one; in another order further back."""
  path = np.zeros((5, 5), np.uint8)
  for i in range(3):
    path[i, i + 1] = path[i + 1, i] = 1
  rows = _encode(path, np.arange(5), 2)
  np.testing.assert_array_equal(rows, [[0, 0], [1, 0], [1, 0], [1, 0], [0, 0]])
  rows = _encode(path, np.array([1, 0, 2, 3, 4]), 2)
  np.testing.assert_array_equal(rows, [[0, 0], [1, 0], [0, 1], [1, 0], [0, 0]])
  made = _rows(rows, 4)
  np.testing.assert_array_equal(made.inputs, [[1, 1], [1, 0], [0, 1], [1, 0], [0, 0]])
  np.testing.assert_array_equal(made.targets, [[1, 0], [0, 1], [1, 0], [0, 0], [0, 0]])
  np.testing.assert_array_equal(made.mask, [[1, 0], [1, 1], [1, 1], [1, 1], [0, 0]])


def test_decoding_takes_encoding_back():
  for seed, size in ((0, 7), (1, 4)):
    adjacency = draw_graph(seed, size, 0.5, 7)
    order = np.asarray(_orders(jax.random.split(jax.random.key(seed), 200), draw_graph(seed, size, 0.5, 10), size))[0]
    order = order[order < 7]
    expected = adjacency[np.ix_(order, order)]
    np.testing.assert_array_equal(_decode(_encode(adjacency, order, 6)), expected)
    near = np.abs(np.subtract.outer(np.arange(7), np.arange(7))) <= 2
    np.testing.assert_array_equal(_decode(_encode(adjacency, order, 2)), expected * near)


def test_the_reach_of_a_cycle_is_two_and_of_a_star_all():
  cycle = np.roll(np.eye(8, dtype=np.uint8), 1, 1) + np.roll(np.eye(8, dtype=np.uint8), -1, 1)
  star = np.zeros((8, 8), np.uint8)
  star[0, 1:6] = star[1:6, 0] = 1
  assert measure_max_previous(cycle[None], np.array([8]), 20) == 2
  # From the centre the last leaf reaches back to it over the other four.
  assert measure_max_previous(np.stack([cycle, star]), np.array([8, 6]), 20) == 5


@functools.cache
def make_model(edge_level):
  model = GraphRNN(2, edge_level, width=5, depth=2, embedding=4, edge_width=3, edge_depth=2, edge_embedding=3)
  variables = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 3, 2)), jnp.ones((1, 3, 2)))
  # Far from even odds.
  variables = jax.tree.map(lambda x: 2 * x + 0.1, variables)
  return model, variables


@functools.partial(jax.jit, static_argnums=0)
def compute_loss(model, variables, made):
  return sequence_loss(model.apply(variables, made.inputs[None], made.targets[None])[0], made)


def all_sequences():
  """Every graph of at most three nodes that hangs together, as rows."""
  yield np.zeros((3, 2), np.float32), 1
  yield np.array([[0, 0], [1, 0], [0, 0]], np.float32), 2
  for last in ((1, 0), (0, 1), (1, 1)):
    yield np.array([[0, 0], [1, 0], last], np.float32), 3


@pytest.mark.parametrize("edge_level", [False, True])
def test_graphs_are_drawn_as_often_as_their_probability_says(edge_level):
  """Both ways through the network: teacher forcing in the loss, its own draws in sampling."""
  model, variables = make_model(edge_level)
  adjacency, sizes = jax.jit(lambda key: sample_graphs(model, variables, key, 4000, 3))(jax.random.key(1))
  adjacency, sizes = np.asarray(adjacency), np.asarray(sizes)
  loss = functools.partial(compute_loss, model, variables)
  total = 0
  for rows, size in all_sequences():
    made = _rows(rows, size)
    if size == 3:  # it ends because no more are asked for: the row that says so counts for nothing
      made = made._replace(mask=made.mask.at[2].set(0))
    probability = float(np.exp(-loss(made)))
    same = (adjacency == np.asarray(_decode(rows))).all((1, 2)) & (sizes == size)
    assert abs(float(np.mean(same)) - probability) < 4 * (0.25 / 4000) ** 0.5
    assert probability > 0.005
    total += probability
  np.testing.assert_allclose(total, 1, atol=1e-5)  # what has a node without an edge is cut there


@pytest.mark.parametrize("edge_level", [False, True])
def test_a_logit_sees_what_stands_before_it_and_nothing_behind(edge_level):
  model, variables = make_model(edge_level)
  rng = np.random.default_rng(0)
  inputs, targets = (jnp.asarray(rng.integers(0, 2, (1, 4, 2)), jnp.float32) for _ in range(2))

  logits = lambda inputs, targets: model.apply(variables, inputs, targets)[0]
  jacobians = dict(zip(("inputs", "targets"), jax.jit(jax.jacrev(logits, (0, 1)))(inputs, targets)))

  def depends(of, step, edge):
    return np.asarray(jacobians[of][step, edge, 0]) != 0

  for step, edge in itertools.product((1, 2), (0, 1)):
    seen = depends("inputs", step, edge)
    assert seen[: step + 1].all() and not seen[step + 1 :].any()
  seen = depends("targets", 2, 1)
  expected = np.zeros((4, 2), bool)
  expected[2, 0] = edge_level  # the edge before it in its own row alone
  np.testing.assert_array_equal(seen, expected)


def test_padding_costs_nothing():
  model, variables = make_model(True)
  rows = np.array([[0.0, 0], [1, 0], [1, 1], [0, 0]], np.float32)
  short = compute_loss(model, variables, _rows(rows, 3))
  longer = compute_loss(model, variables, _rows(np.concatenate([rows, np.ones((2, 2), np.float32)]), 3))
  np.testing.assert_allclose(short, longer, rtol=1e-5)
  np.testing.assert_allclose(sequence_loss(jnp.zeros((4, 2)), Rows(*_rows(rows, 3))), 5 * np.log(2), rtol=1e-6)
