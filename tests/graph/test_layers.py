"""What every layer keeps: the order of nodes and edges means nothing, padding nothing, and lonely nodes are finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes import graph

# A path, a star, a triangle and the lonely node 9.
PAIRS = [(0, 1), (1, 2), (3, 4), (3, 5), (3, 6), (6, 7), (7, 8), (6, 8), (2, 3)]
N, D, F = 10, 5, 4


def edges_of(pairs=PAIRS):
  both = [*pairs, *((b, a) for a, b in pairs)]
  return graph.make_edges(*(jnp.array(ends) for ends in zip(*both)))


EDGES = edges_of()
X = jax.random.normal(jax.random.key(1), (N, D))


class Pagerank:
  """A function as a layer."""

  init = staticmethod(lambda key, edges, x: {})
  apply = staticmethod(lambda params, edges, x: graph.personalized_pagerank(edges, x, 3))


class Powers(Pagerank):
  apply = staticmethod(lambda params, edges, x: graph.propagate_powers(edges, x, 3))


class Diffused:
  layer = graph.DiffusionConvolution(3)
  init = classmethod(lambda cls, key, edges, x: cls.layer.init(key, graph.diffuse(edges, x, 2)))
  apply = classmethod(lambda cls, params, edges, x: cls.layer.apply(params, graph.diffuse(edges, x, 2)))


class Initial:
  layer = graph.InitialResidual(2)
  init = classmethod(lambda cls, key, edges, x: cls.layer.init(key, edges, x, 2 * x))
  apply = classmethod(lambda cls, params, edges, x: cls.layer.apply(params, edges, x, 2 * x))


LAYERS = {
  "gcn": graph.GraphConvolution(F),
  "gcnii": Initial,
  "sgc": Powers,
  "appnp": Pagerank,
  "gin": graph.GraphIsomorphism(F, learned=True),
  "sage_mean": graph.GraphSage(F),
  "sage_max": graph.GraphSage(F, "max", pool_features=6),
  "gat": graph.GraphAttention(F, heads=2),
  "gat2": graph.GraphAttention(F, heads=3, version=2, average=True),
  "monet": graph.MixtureConvolution(F),
  "chebyshev": graph.ChebyshevConvolution(F, terms=4),
  "dcnn": Diffused,
  "dgc": graph.DualDiffusion(F),
  "nn4g": graph.NeuralNetworkForGraphs(F),
  "sage_lstm": graph.GraphSage(F, "lstm"),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


@functools.cache
def started(name):
  """Parameters that are none of them 0."""
  params = jax.jit(LAYERS[name].init)(jax.random.key(0), EDGES, X)
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(5), max(len(leaves), 1))
  return jax.tree.unflatten(tree, [x + 0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])


@functools.cache
def compiled(name, num_nodes=None):
  return jax.jit(functools.partial(LAYERS[name].apply, **({"num_nodes": num_nodes} if num_nodes else {})))


def applied(name, edges=EDGES, x=X, num_nodes=None, **given):
  return np.asarray(compiled(name, num_nodes)(started(name), edges, x, **given))


@each_layer
def test_nodes_and_edges_have_no_order(name):
  if name == "sage_lstm":
    pytest.skip("its aggregator reads an order")
  order, rng = np.random.default_rng(0).permutation(N), np.random.default_rng(1)
  place = np.argsort(order)
  shuffled = rng.permutation(len(EDGES.mask))
  turned = graph.make_edges(*(jnp.asarray(place)[ends][shuffled] for ends in EDGES[:2]))
  np.testing.assert_allclose(applied(name, turned, X[order]), applied(name)[order], atol=2e-6)


@each_layer
def test_padding_changes_nothing(name):
  """Neither edges that do not count, nor nodes that nobody knows, whatever stands in them."""
  junk = jnp.array([N, 3, N + 1])
  mask = jnp.append(EDGES.mask, jnp.zeros(3))
  padded = graph.make_edges(jnp.append(EDGES.senders, junk), jnp.append(EDGES.receivers, junk[::-1]), mask)
  more = jnp.concatenate([X, jnp.full((2, D), 7.0)])
  np.testing.assert_allclose(applied(name, padded, more)[:N], applied(name), atol=2e-6)


@each_layer
def test_lonely_nodes_are_finite_and_so_are_gradients(name):
  params = started(name)
  value, slope = jax.jit(jax.value_and_grad(lambda x: jnp.sum(LAYERS[name].apply(params, EDGES, x) ** 2)))(X)
  assert np.isfinite(value) and np.isfinite(slope).all()
  assert np.any(slope[9]) or name == "monet"  # which knows itself by loops alone
  nothing = EDGES._replace(mask=jnp.zeros_like(EDGES.mask))
  assert np.isfinite(applied(name, nothing)).all()


@each_layer
def test_nodes_hear_their_neighbours(name):
  """At node 0 what its neighbour 1 says counts, and what the other component says does not."""
  moves = [applied(name, x=X.at[1].add(sign * jnp.linspace(-3.0, 4.0, D))) for sign in (1, -1)]
  assert max(np.abs(moved - applied(name))[0].max() for moved in moves) > 1e-3
  apart = applied(name, x=X.at[9].add(1.0))
  np.testing.assert_array_equal(apart[:9], applied(name)[:9])


@pytest.mark.parametrize("name", ["gcn", "gin", "sage_mean", "sage_max", "gat", "gat2", "monet", "sage_lstm"])
def test_a_part_of_the_nodes_is_what_the_whole_gives_them(name):
  """Nodes 0 to 3 of all, from the edges that arrive at them."""
  kept = np.flatnonzero(np.asarray(EDGES.receivers) < 4)
  part = graph.make_edges(EDGES.senders[kept], EDGES.receivers[kept])
  given = {}
  if name == "gcn":
    looped, weights = graph.renormalize(EDGES, N)
    kept = np.flatnonzero(np.asarray(looped.receivers) < 4)
    part, given = graph.Edges(*(leaf[kept] for leaf in looped)), {"weights": weights[kept]}
  if name == "monet":
    given = {"coordinates": graph.degree_coordinates(EDGES, N)[kept]}
  np.testing.assert_allclose(applied(name, part, num_nodes=4, **given), applied(name)[:4], atol=1e-6)


@pytest.mark.parametrize(
  "name", ["gcn", "gin", "sage_mean", "sage_max", "gat", "gat2", "monet", "chebyshev", "dgc", "nn4g"]
)
def test_sparse_features_are_the_dense_ones(name):
  dense = np.where(np.asarray(X) > 0, np.asarray(X), 0)
  found = applied(name, x=graph.make_sparse(dense))
  np.testing.assert_allclose(found, applied(name, x=jnp.asarray(dense)), atol=2e-6)


def test_sums_tell_graphs_apart_that_means_and_maxima_do_not():
  """Xu et al. 2019, figure 3: a node between two neighbours that are alike, and the same node among four."""
  star = lambda leaves: edges_of([(0, i + 1) for i in range(leaves)])
  x = lambda leaves: jnp.ones((leaves + 1, 3))
  centre = lambda layer, leaves: jax.jit(layer.init_with_output)(jax.random.key(3), star(leaves), x(leaves))[0][0]
  for blind in (graph.GraphSage(F), graph.GraphSage(F, "max"), graph.GraphAttention(F)):
    np.testing.assert_allclose(centre(blind, 2), centre(blind, 4), atol=1e-6)
  assert np.abs(centre(graph.GraphIsomorphism(F), 2) - centre(graph.GraphIsomorphism(F), 4)).max() > 0.1


@pytest.mark.parametrize("name", list(LAYERS))
def test_no_layer_tells_two_triangles_from_a_hexagon(name):
  """All nodes look alike to one-dimensional colour refinement, whatever is learned."""
  triangles = edges_of([(0, 1), (1, 2), (0, 2), (3, 4), (4, 5), (3, 5)])
  hexagon = edges_of([(i, (i + 1) % 6) for i in range(6)])
  x = jnp.broadcast_to(X[0], (6, D))
  first, second = applied(name, triangles, x), applied(name, hexagon, x)
  np.testing.assert_allclose(first, second, atol=2e-6)


def test_lstm_reads_another_order_each_time():
  layer, params = LAYERS["sage_lstm"], started("sage_lstm")
  read = jax.jit(lambda seed: layer.apply(params, EDGES, X, rngs={"order": jax.random.key(seed)}))
  assert np.abs(read(0) - read(1))[3].max() > 1e-3
  np.testing.assert_allclose(read(0)[0], read(1)[0], atol=1e-6)  # of one neighbour there is one order
  few = graph.GraphSage(F, "lstm", most_neighbors=1)
  assert np.abs(few.apply(params, EDGES, X) - layer.apply(params, EDGES, X))[3].max() > 1e-3


def test_attention_drops_weights_while_it_learns():
  layer = graph.GraphAttention(F, heads=2)
  params = layer.init(jax.random.key(0), EDGES, X)
  learning = lambda seed: layer.apply(params, EDGES, X, dropout=0.5, rngs={"dropout": jax.random.key(seed)})
  learning = jax.jit(learning)
  still = layer.apply(params, EDGES, X)
  assert np.abs(learning(0) - learning(1)).max() > 0.1
  np.testing.assert_allclose(np.mean([learning(i) for i in range(400)], axis=0), still, atol=0.25)
  _, sown = layer.apply(params, EDGES, X, mutable="intermediates")
  (weights,) = sown["intermediates"]["attention"]
  looped = graph.add_self_loops(EDGES, N)
  np.testing.assert_allclose(graph.sum_edges(looped, weights, N), 1, atol=1e-6)


def test_loops_are_neighbours_once():
  loops = graph.add_self_loops(EDGES, N)
  for name in ("gcn", "gat", "gat2", "appnp", "sgc", "gcnii", "chebyshev"):
    np.testing.assert_allclose(applied(name, loops), applied(name), atol=1e-6)
