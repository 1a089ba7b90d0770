"""Neighbours, hops, parts: what is left out changes nothing, what is drawn is there, what is joined is whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes import graph
from mlnotes.engine.errors import InputError

N, D = 24, 5
RNG = np.random.default_rng(3)
DENSE = np.triu(RNG.uniform(size=(N, N)) < 0.15, 1)
DENSE[-1] = DENSE[:, -1] = False  # the last one is lonely
DENSE = DENSE | DENSE.T
RECEIVERS, SENDERS = (ends.astype(np.int32) for ends in np.nonzero(DENSE))
EDGES = graph.make_edges(jnp.asarray(SENDERS), jnp.asarray(RECEIVERS))
DEGREE = DENSE.sum(1)
X = jax.random.normal(jax.random.key(1), (N, D))
TABLE = graph.make_neighbor_rows(RECEIVERS, SENDERS, N)


def network_of(layer, **given):
  return graph.NodeNetwork(layer, 3, hidden=4, heads=2, **given)


def logits(network, view, params=None):
  if params is None:
    params = jax.jit(network.init)(jax.random.key(0), view)
  return params, np.asarray(jax.jit(network.apply)(params, view))


@pytest.mark.parametrize("layer", ["gcn", "gat", "sage_max", "monet", "gin", "gcnii"])
def test_what_the_wanted_nodes_do_not_hang_on_changes_nothing(layer):
  network = network_of(layer)
  edges = graph.add_self_loops(EDGES, N) if graph.LAYERS[layer].loops else EDGES
  params, whole = logits(network, graph.View(X, graph.whole_hops(edges, N, 2).hops))
  wanted = np.array([5, 0, N - 1, 7])
  hops = graph.prune_hops(edges, N, 2, wanted)
  assert hops.inputs.shape[0] < N and hops.hops[0].edges.mask.shape[0] < edges.mask.shape[0]
  _, part = logits(network, graph.View(X[hops.inputs], hops.hops), params)
  np.testing.assert_allclose(part, whole[wanted], atol=1e-5)


@pytest.mark.parametrize(("layer", "residual"), [("gcn", "none"), ("gcn", "skip"), ("gcnii", "none")])
def test_many_layers_in_a_loop_are_those_layers_one_after_the_other(layer, residual):
  network = network_of(layer, layers=6, residual=residual)
  edges = graph.add_self_loops(EDGES, N)
  params, found = logits(network, graph.View(X, graph.whole_hops(edges, N, 6).hops))
  params = params["params"]
  plain = lambda kernel, h: graph.propagate_powers(EDGES, h @ kernel, 1)
  stacked = params["middle"]["layer"]["linear"]["kernel"]
  if layer == "gcn":
    h = jax.nn.relu(plain(params["layer_0"]["linear"]["kernel"], X))
    assert stacked.shape == (4, 4, 4)
    for kernel in stacked:
      h = jax.nn.relu(plain(kernel, h)) + (h if residual == "skip" else 0)
    expected = plain(params["layer_5"]["linear"]["kernel"], h)
  else:
    dense = lambda name, h: h @ params[name]["kernel"] + params[name]["bias"][None]
    first = h = jax.nn.relu(dense("input", X))
    for i, kernel in enumerate(stacked):
      h = graph.InitialResidual(i + 1).apply({"params": {"linear": {"kernel": kernel}}}, EDGES, h, first)
      h = jax.nn.relu(h)
    expected = dense("output", h)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  for kernel in stacked[1:]:
    assert np.abs(kernel - stacked[0]).max() > 0.1


@pytest.mark.parametrize("replace", [False, True])
def test_every_sampled_edge_is_an_edge(replace):
  nodes = jnp.array([0, 3, N - 1, 3])
  found = jax.vmap(lambda key: graph.sample_neighbors(key, TABLE, nodes, 3, replace)[0])(
    jax.random.split(jax.random.key(0), 50)
  )
  _, mask = graph.sample_neighbors(jax.random.key(0), TABLE, nodes, 3, replace)
  expected = np.array([3 if replace and DEGREE[n] else min(3, DEGREE[n]) for n in np.asarray(nodes)])
  np.testing.assert_array_equal(mask.sum(1), expected)
  for row, node in enumerate(np.asarray(nodes)):
    drawn = np.asarray(found)[:, row][:, np.asarray(mask)[row] > 0]
    assert DENSE[node][drawn].all()
    assert set(drawn.reshape(-1)) == set(np.flatnonzero(DENSE[node]))  # each has its turn
    if not replace:
      assert all(len(set(row)) == len(row) for row in drawn)


def test_samples_are_uniform():
  """Without replacement each neighbour is as likely, by its place among the drawn ones or not."""
  node = int(DEGREE.argmax())
  keys = jax.random.split(jax.random.key(4), 4000)
  found, _ = jax.vmap(lambda key: graph.sample_neighbors(key, TABLE, jnp.array([node]), 2))(keys)
  counts = np.bincount(np.asarray(found).reshape(-1), minlength=N)[DENSE[node]]
  expected = 8000 / DEGREE[node]
  assert ((counts - expected) ** 2 / expected).sum() < DEGREE[node] + 4 * np.sqrt(2 * DEGREE[node])


@pytest.mark.parametrize("layer", ["sage_mean", "sage_max", "gat"])
def test_drawing_all_neighbours_is_the_full_layer(layer):
  network, most = network_of(layer), int(DEGREE.max())
  loops = graph.LAYERS[layer].loops
  edges = graph.add_self_loops(EDGES, N) if loops else EDGES
  params, whole = logits(network, graph.View(X, graph.whole_hops(edges, N, 2).hops))
  wanted = jnp.array([5, 0, N - 1, 5])
  hops = graph.sample_hops(jax.random.key(0), TABLE, wanted, (most, most))
  if loops:
    hops = hops._replace(
      hops=tuple(hop._replace(edges=graph.add_self_loops(hop.edges, hop.num_nodes)) for hop in hops.hops)
    )
  _, found = logits(network, graph.View(X[hops.inputs], hops.hops), params)
  np.testing.assert_allclose(found, whole[wanted], atol=1e-5)


def test_hops_draw_anew_and_know_who_is_who():
  first, second = (graph.sample_hops(jax.random.key(i), TABLE, jnp.arange(4), (2, 3), True) for i in (0, 1))
  assert np.any(first.inputs != second.inputs)
  inputs = np.asarray(first.inputs)
  for hop in first.hops:
    mask = np.asarray(hop.edges.mask) > 0
    ends = inputs[np.asarray(hop.edges.senders)[mask]], np.asarray(hop.nodes)[np.asarray(hop.edges.receivers)[mask]]
    assert DENSE[ends].all()
    np.testing.assert_array_equal(hop.nodes, inputs[: hop.num_nodes])
    np.testing.assert_array_equal(hop.degree, DEGREE[inputs[: hop.degree.shape[0]]])
  assert [hop.num_nodes for hop in first.hops] == [16, 4]


def test_rows_of_sparse_features_are_taken_in_the_step():
  dense = np.where(np.asarray(X) > 0.3, np.asarray(X), 0)
  nodes = jnp.array([3, 3, 0, 11])
  found = graph.to_dense(graph.take_rows(graph.make_row_table(dense), nodes))
  np.testing.assert_allclose(found, dense[np.asarray(nodes)], atol=1e-6)
  np.testing.assert_array_equal(graph.take_rows(X, nodes), X[nodes])


def test_tables_hold_the_neighbours():
  table, count = graph.tabulate_edges(EDGES, N, int(DEGREE.max()))
  np.testing.assert_array_equal(count, DEGREE)
  for node in range(N):
    np.testing.assert_array_equal(table[node, : DEGREE[node]], np.flatnonzero(DENSE[node]))


# -- parts -------------------------------------------------------------------------------------------------------------

COMMUNITIES = np.kron(np.eye(4), np.ones((6, 6))).astype(bool) & ~np.eye(24, dtype=bool)
for a in range(4):  # a ring of cliques
  COMMUNITIES[6 * a, (6 * a + 7) % 24] = COMMUNITIES[(6 * a + 7) % 24, 6 * a] = True


@pytest.mark.parametrize("kind", ["built_in", "metis"])
def test_parts_follow_communities(kind):
  if kind == "metis":
    pytest.importorskip("pymetis")
  order = np.random.default_rng(1).permutation(24)
  receivers, senders = np.nonzero(COMMUNITIES[order][:, order])
  part = graph.partition_graph(senders, receivers, 24, 4, kind=kind)
  assert set(part) == {0, 1, 2, 3} and np.bincount(part).max() <= 8
  cut = graph.count_cut(senders, receivers, part)
  chance = graph.count_cut(senders, receivers, graph.partition_graph(senders, receivers, 24, 4, kind="random"))
  assert cut < chance / 2


@pytest.mark.parametrize("kind", ["auto", "built_in", "random"])
@pytest.mark.parametrize("count", [1, 3, 24])
def test_every_node_is_in_a_part(kind, count):
  part = graph.partition_graph(SENDERS, RECEIVERS, N, count, kind=kind)
  assert part.shape == (N,) and part.min() >= 0 and part.max() < count
  if kind != "auto":
    assert len(set(part)) == count


def test_more_parts_than_nodes_are_refused():
  with pytest.raises(InputError, match="25 parts of 24 nodes, expected 1 to 24"):
    graph.partition_graph(SENDERS, RECEIVERS, N, 25)


@pytest.mark.parametrize("chosen", [(0,), (2, 0), (3, 1, 0), (0, 1, 2, 3)])
def test_joined_parts_keep_exactly_their_induced_edges(chosen):
  part = RNG.integers(0, 4, N)
  part[:4] = range(4)
  nodes, mask, edges = graph.join_parts(graph.make_parts(SENDERS, RECEIVERS, part), jnp.array(chosen))
  nodes, real = np.asarray(nodes), np.asarray(edges.mask) > 0
  assert sorted(nodes[np.asarray(mask) > 0]) == sorted(np.flatnonzero(np.isin(part, chosen)))
  assert (np.asarray(mask)[np.asarray(edges.senders)[real]] > 0).all()
  found = sorted(zip(nodes[np.asarray(edges.senders)[real]], nodes[np.asarray(edges.receivers)[real]]))
  inside = np.isin(part[SENDERS], chosen) & np.isin(part[RECEIVERS], chosen)
  assert found == sorted(zip(SENDERS[inside], RECEIVERS[inside]))


def test_one_part_is_the_full_network_and_several_are_renormalised():
  network = network_of("gcn")
  params, whole = logits(network, graph.View(X, graph.whole_hops(graph.add_self_loops(EDGES, N), N, 2).hops))
  for part, chosen in ((np.zeros(N, int), (0,)), (np.arange(N) % 3, (1, 2))):
    nodes, mask, edges = graph.join_parts(graph.make_parts(SENDERS, RECEIVERS, part), jnp.array(chosen))
    size = len(nodes)
    hops = graph.whole_hops(graph.add_self_loops(edges, size), size, 2)
    found = logits(network, graph.View(X[nodes], hops.hops), params)[1][np.asarray(mask) > 0]
    kept = np.isin(part, chosen)
    induced = np.flatnonzero(kept[SENDERS] & kept[RECEIVERS])
    alone = graph.make_edges(EDGES.senders[induced], EDGES.receivers[induced])
    _, expected = logits(network, graph.View(X, graph.whole_hops(graph.add_self_loops(alone, N), N, 2).hops), params)
    real = np.asarray(nodes)[np.asarray(mask) > 0]
    np.testing.assert_allclose(found, expected[real], atol=1e-5)
    if len(chosen) == 1:
      np.testing.assert_allclose(found, whole[real], atol=1e-5)


def test_the_diagonal_is_enhanced():
  looped, weights = graph.renormalize(EDGES, N)
  found = graph.enhance_diagonal(looped, weights, 0.5)
  loops = np.asarray(looped.senders == looped.receivers)
  np.testing.assert_allclose(found / weights, np.where(loops, 1.5, 1))


def test_edges_to_nodes_that_are_not_there_are_refused():
  with pytest.raises(InputError, match="an edge has node 9 at an end, expected nodes 0 to 8"):
    graph.make_neighbor_rows(np.array([0, 9]), np.array([1, 2]), 9)
  with pytest.raises(InputError, match="one or more"):
    graph.make_neighbor_rows(np.array([], int), np.array([], int), 9)
