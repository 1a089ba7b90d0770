"""GraphVAE: an encoder without an order, a symmetric decoder, places that are an order, graphs as their odds say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.graph.graph_vae import GraphVAE, choose_places, draw_graphs, placed_log_likelihood

SIZE = 6


def draw_graph(seed, size, padded=SIZE):
  edges = np.zeros((padded, padded), np.uint8)
  edges[:size, :size] = np.triu(np.random.default_rng(seed).random((size, size)) < 0.5, 1)
  return edges + edges.T


@functools.cache
def make_model():
  model = GraphVAE(SIZE, latents=3, width=4, hidden=(5,))
  graphs = jnp.asarray(draw_graph(0, 5))[None], jnp.array([5])
  return model, jax.jit(model.init)(jax.random.key(0), *graphs)


def test_the_encoder_sees_the_graph_and_no_order_of_nodes():
  model, variables = make_model()
  encode = jax.jit(functools.partial(model.apply, variables, method=GraphVAE.encode))
  graph, order = draw_graph(1, 5), np.array([3, 1, 4, 0, 2, 5])
  other = draw_graph(2, 5)
  q = encode(np.stack([graph, graph[np.ix_(order, order)], other, graph]), np.array([5, 5, 5, 6]))
  np.testing.assert_allclose(q.mean[0], q.mean[1], atol=1e-5)
  assert np.abs(q.mean[0] - q.mean[2]).max() > 1e-3
  assert np.abs(q.mean[0] - q.mean[3]).max() > 1e-3  # a node alone is one


def test_the_decoder_gives_an_undirected_graph_without_loops():
  model, variables = make_model()
  edges, nodes = jax.jit(functools.partial(model.apply, variables, method=GraphVAE.decode))(
    np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
  )
  assert edges.shape == (2, SIZE, SIZE) and nodes.shape == (2, SIZE)
  np.testing.assert_array_equal(edges, edges.swapaxes(1, 2))
  assert not np.asarray(edges)[:, np.arange(SIZE), np.arange(SIZE)].any()
  assert len(np.unique(edges[0])) == 1 + SIZE * (SIZE - 1) // 2


_choose = jax.jit(choose_places, static_argnums=0)
_likelihood = jax.jit(placed_log_likelihood)


def draw_logits(seed):
  rng = np.random.default_rng(seed)
  edges, nodes = 2 * rng.normal(size=(SIZE, SIZE)).astype(np.float32), 2 * rng.normal(size=SIZE).astype(np.float32)
  return edges + edges.T, nodes


def test_canonical_orders_are_by_degree_and_breadth_first():
  """A star around node 3 whose leaf 0 has a leaf of its own: 3 first; 0 before the others, or its leaf last."""
  adjacency = np.zeros((SIZE, SIZE), np.uint8)
  for i, j in ((3, 0), (3, 1), (3, 2), (0, 4)):
    adjacency[i, j] = adjacency[j, i] = 1
  for order in ("degree", "breadth_first"):
    place = np.asarray(_choose(order, adjacency, 5, *draw_logits(0)))
    assert place[3] == 0 and place[0] == 1 and place[4] == 4 and place[5] == 5
    np.testing.assert_array_equal(np.sort(place), np.arange(SIZE))


def test_matched_places_fit_better_than_those_of_an_order():
  gains = []
  for seed in range(10):
    graph, logits = draw_graph(seed, 5), draw_logits(seed)
    matched, by_degree = (
      _likelihood(graph, 5, _choose(order, graph, 5, *logits), *logits) for order in ("matching", "degree")
    )
    gains.append(float(matched - by_degree))
  assert np.mean(gains) > 2 and np.median(gains) > 0


def test_no_gradient_passes_through_places_and_one_through_the_likelihood():
  graph, logits = jnp.asarray(draw_graph(3, 5)), draw_logits(3)

  @jax.jit
  def gradient(edges, nodes):
    def likelihood(edges):
      place = choose_places("matching", graph, jnp.int32(5), edges, nodes)
      return placed_log_likelihood(graph, jnp.int32(5), place, edges, nodes)

    return jax.grad(likelihood)(edges)

  found = np.asarray(gradient(*logits))
  place = np.asarray(_choose("matching", graph, 5, *logits))
  target = np.zeros((SIZE, SIZE))
  at = np.ix_(place[:5], place[:5])
  target[at] = 0.5 * (np.asarray(graph)[:5, :5] - 1 / (1 + np.exp(-logits[0][at])))
  np.fill_diagonal(target, 0)
  np.testing.assert_allclose(found, target, atol=1e-5)


def test_graphs_are_drawn_by_the_odds_of_nodes_and_pairs():
  edges, nodes = draw_logits(4)
  count = 4000
  draw = jax.jit(draw_graphs)
  adjacency, sizes = draw(jax.random.key(0), np.tile(edges, (count, 1, 1)), np.tile(nodes, (count, 1)))
  adjacency, sizes = np.asarray(adjacency), np.asarray(sizes)
  odds = lambda x: 1 / (1 + np.exp(-x))
  assert abs(sizes.mean() - odds(nodes).sum()) < 0.1
  there = odds(nodes)[:, None] * odds(nodes)[None] * odds(edges) * (1 - np.eye(SIZE))
  assert abs(adjacency.sum((1, 2)).mean() - there.sum()) < 0.4
  np.testing.assert_array_equal(adjacency, adjacency.transpose(0, 2, 1))
  outside = np.arange(SIZE)[None] >= sizes[:, None]
  assert not adjacency[outside].any()  # nodes that are there come first


@pytest.mark.parametrize("order", ["matching", "breadth_first", "degree"])
def test_a_graph_can_be_learned_by_heart(order):
  """One graph, decoded anew until its odds are near certain: the likelihood nears 0 in every order."""
  graph, (edges, nodes) = draw_graph(5, 5), draw_logits(5)

  @jax.jit
  def climb(edges, nodes):
    def step(logits, _):
      loss = lambda logits: placed_log_likelihood(
        jnp.asarray(graph), jnp.int32(5), choose_places(order, jnp.asarray(graph), jnp.int32(5), *logits), *logits
      )
      value, gradient = jax.value_and_grad(loss)(logits)
      return jax.tree.map(lambda x, g: x + 3 * (g + g.T if g.ndim == 2 else g), logits, gradient), value

    return jax.lax.scan(step, (edges, nodes), length=60)[1]

  values = np.asarray(climb(edges, nodes))
  assert values[-1] > -0.5 > values[0]
