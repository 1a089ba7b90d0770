"""Layers with copied weights against torch-geometric's, and against dense matrices where it has no such layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes import graph

N, D, F = 9, 5, 4
PAIRS = [(0, 1), (1, 2), (3, 4), (3, 5), (3, 6), (6, 7), (2, 3), (6, 5), (0, 7)]  # and the lonely node 8
ENDS = np.array([*PAIRS, *((b, a) for a, b in PAIRS)]).T
EDGES = graph.make_edges(*map(jnp.asarray, ENDS))
X = jax.random.normal(jax.random.key(1), (N, D))
ADJACENCY = np.zeros((N, N))
ADJACENCY[ENDS[1], ENDS[0]] = 1


# Warns of a graph without weights that it could make sparse.
quiet = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def peer():
  pytest.importorskip("torch_geometric")
  import torch
  from torch_geometric import nn

  torch.manual_seed(0)
  return torch, nn


def drawn(torch, module):
  """Every parameter, biases too, from a normal."""
  with torch.no_grad():
    for parameter in module.parameters():
      parameter.copy_(0.5 * torch.randn(parameter.shape))
  return module


def theirs(torch, module, *args):
  with torch.no_grad():
    tensors = [torch.as_tensor(np.array(a)) for a in (X, ENDS, *args)]
    return module(*tensors).numpy()


def to_numpy(tensor):
  return jnp.asarray(tensor.detach().numpy())


def ours(layer, params, *args, **kwargs):
  expected = jax.eval_shape(lambda: layer.init(jax.random.key(0), *args, **kwargs))["params"]
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda x: x.shape, expected)
  return jax.jit(layer.apply)({"params": params}, *args, **kwargs)


def same(a, b):
  np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parity
@quiet
def test_gcn(peer):
  torch, nn = peer
  layer = drawn(torch, nn.GCNConv(D, F))
  params = {"linear": {"kernel": to_numpy(layer.lin.weight.T)}, "bias": to_numpy(layer.bias)}
  same(ours(graph.GraphConvolution(F, use_bias=True), params, EDGES, X), theirs(torch, layer))


@pytest.mark.parity
@quiet
def test_powers_and_pagerank(peer):
  torch, nn = peer
  layer = drawn(torch, nn.SGConv(D, F, K=3, bias=False))
  powers = graph.propagate_powers(EDGES, X, 3)
  same(powers @ to_numpy(layer.lin.weight.T), theirs(torch, layer))
  same(graph.personalized_pagerank(EDGES, X, 4, 0.2), theirs(torch, nn.APPNP(4, 0.2)))


@pytest.mark.parity
@quiet
def test_initial_residual(peer):
  torch, nn = peer
  layer = drawn(torch, nn.GCN2Conv(D, alpha=0.2, theta=0.7, layer=3))
  first = jax.random.normal(jax.random.key(4), (N, D))
  with torch.no_grad():
    expected = layer(*(torch.as_tensor(np.array(a)) for a in (X, first, ENDS))).numpy()
  found = ours(graph.InitialResidual(3, 0.2, 0.7), {"linear": {"kernel": to_numpy(layer.weight1)}}, EDGES, X, first)
  same(found, expected)


@pytest.mark.parity
@quiet
def test_gin(peer):
  torch, nn = peer
  network = torch.nn.Sequential(torch.nn.Linear(D, F), torch.nn.ReLU(), torch.nn.Linear(F, F))
  layer = drawn(torch, nn.GINConv(network, eps=0.3, train_eps=True))
  params = {
    "linear_0": {"kernel": to_numpy(network[0].weight.T)},
    "bias": to_numpy(network[0].bias),
    "linear_1": {"kernel": to_numpy(network[2].weight.T), "bias": to_numpy(network[2].bias)},
    "eps": to_numpy(layer.eps).reshape(()),
  }
  same(ours(graph.GraphIsomorphism(F, learned=True), params, EDGES, X), theirs(torch, layer))
  import flax.linen as linen

  own = graph.GraphIsomorphism(F, learned=True, network=linen.Sequential([linen.Dense(F), linen.relu, linen.Dense(F)]))
  dense = lambda i: {"kernel": params[f"linear_{i}"]["kernel"], "bias": to_numpy(network[2 * i].bias)}
  params = {"eps": params["eps"], "network": {"layers_0": dense(0), "layers_2": dense(1)}}
  same(ours(own, params, EDGES, X), theirs(torch, layer))


@pytest.mark.parity
@quiet
@pytest.mark.parametrize("kind", ["mean", "max"])
def test_sage(peer, kind):
  torch, nn = peer
  layer = drawn(torch, nn.SAGEConv(D, F, aggr=kind, normalize=True, project=kind == "max"))
  params = {
    "self": {"kernel": to_numpy(layer.lin_r.weight.T), "bias": to_numpy(layer.lin_l.bias)},
    "neighbors": {"kernel": to_numpy(layer.lin_l.weight.T)},
  }
  if kind == "max":
    params["pool"] = {"kernel": to_numpy(layer.lin.weight.T), "bias": to_numpy(layer.lin.bias)}
    with torch.no_grad():  # theirs also feeds what was projected to the node itself
      pooled = torch.as_tensor(np.array(X)) @ layer.lin.weight.T + layer.lin.bias
      projected = torch.relu(pooled)
      layer.project = False
      expected = layer((projected, torch.as_tensor(np.array(X))), torch.as_tensor(ENDS)).numpy()
  else:
    expected = theirs(torch, layer)
  same(ours(graph.GraphSage(F, kind), params, EDGES, X), expected)


@pytest.mark.parity
@quiet
def test_lstm_of_neighbours(peer):
  """Where all have as many: theirs reads on through its padding."""
  torch, _ = peer
  from torch_geometric.nn.aggr import LSTMAggregation

  ends = np.array([(i, (i + step) % 6) for i in range(6) for step in (1, 2, 5)]).T
  ends = ends[:, np.argsort(ends[1], kind="stable")]
  lstm = drawn(torch, LSTMAggregation(D, D))
  with torch.no_grad():
    expected = lstm(torch.as_tensor(np.array(X[:6]))[ends[0]], torch.as_tensor(ends[1])).numpy()
  cell = lstm.lstm
  split = lambda tensor: jnp.split(to_numpy(tensor.T), 4, axis=-1)
  gates = dict(
    zip("ifgo", zip(split(cell.weight_ih_l0), split(cell.weight_hh_l0), split(cell.bias_ih_l0 + cell.bias_hh_l0)))
  )
  params = {f"i{g}": {"kernel": a} for g, (a, _, _) in gates.items()}
  params |= {f"h{g}": {"kernel": b, "bias": c} for g, (_, b, c) in gates.items()}
  eye = {"self": {"kernel": jnp.zeros((D, D)), "bias": jnp.zeros(D)}, "neighbors": {"kernel": jnp.eye(D)}}
  layer = graph.GraphSage(D, "lstm", normalize=False)
  found = ours(layer, eye | {"OptimizedLSTMCell_0": params}, graph.make_edges(*map(jnp.asarray, ends)), X[:6])
  same(found, expected)


@pytest.mark.parity
@quiet
@pytest.mark.parametrize("average", [False, True])
def test_attention(peer, average):
  torch, nn = peer
  layer = drawn(torch, nn.GATConv(D, F, heads=3, concat=not average))
  params = {
    "linear": {"kernel": to_numpy(layer.lin.weight.T)},
    "attention_sender": to_numpy(layer.att_src)[0],
    "attention_receiver": to_numpy(layer.att_dst)[0],
    "bias": to_numpy(layer.bias),
  }
  same(ours(graph.GraphAttention(F, 3, average), params, EDGES, X), theirs(torch, layer))


@pytest.mark.parity
@quiet
@pytest.mark.parametrize("average", [False, True])
def test_attention_of_the_second_kind(peer, average):
  torch, nn = peer
  layer = drawn(torch, nn.GATv2Conv(D, F, heads=3, concat=not average))
  linear = lambda module: {"kernel": to_numpy(module.weight.T), "bias": to_numpy(module.bias)}
  params = {"linear": linear(layer.lin_l), "receiver": linear(layer.lin_r)}
  params |= {"attention": to_numpy(layer.att)[0], "bias": to_numpy(layer.bias)}
  same(ours(graph.GraphAttention(F, 3, average, version=2), params, EDGES, X), theirs(torch, layer))


@pytest.mark.parity
@quiet
def test_mixture(peer):
  torch, nn = peer
  layer = drawn(torch, nn.GMMConv(D, F, dim=2, kernel_size=3, aggr="add"))
  layer.root.weight.data.zero_()
  mine = {"kernel": jnp.array([[0.5, -1.0], [0.3, 2.0]]), "bias": jnp.array([0.1, -0.2])}
  params = {
    "coordinates": mine,
    "linear": {"kernel": to_numpy(layer.g)},
    "mean": to_numpy(layer.mu),
    "deviation": to_numpy(layer.sigma),
    "bias": to_numpy(layer.bias),
  }
  u = np.tanh(ADJACENCY.sum(1)[ENDS].T ** -0.5 @ np.asarray(mine["kernel"]) + np.asarray(mine["bias"]))
  same(ours(graph.MixtureConvolution(F), params, EDGES, X), theirs(torch, layer, u.astype(np.float32)))


@pytest.mark.parity
@quiet
@pytest.mark.parametrize("terms", [1, 2, 3, 6])
def test_chebyshev(peer, terms):
  torch, nn = peer
  layer = drawn(torch, nn.ChebConv(D, F, K=terms))
  kernel = jnp.concatenate([to_numpy(lin.weight.T) for lin in layer.lins], axis=1)
  params = {"linear": {"kernel": kernel}, "bias": to_numpy(layer.bias)}
  same(ours(graph.ChebyshevConvolution(F, terms), params, EDGES, X), theirs(torch, layer))


# -- dense matrices ----------------------------------------------------------------------------------------------------


def random_params(layer, *args):
  shapes = jax.eval_shape(layer.init, jax.random.key(0), *args)["params"]
  leaves, tree = jax.tree.flatten(shapes)
  keys = jax.random.split(jax.random.key(9), len(leaves))
  return {"params": jax.tree.unflatten(tree, [jax.random.normal(key, x.shape) for key, x in zip(keys, leaves)])}


def test_diffusion_is_a_weight_for_each_power_and_feature():
  walk = ADJACENCY / np.maximum(ADJACENCY.sum(1, keepdims=True), 1)
  diffused = np.stack([np.linalg.matrix_power(walk, j) @ np.asarray(X) for j in range(3)], 1)
  same(graph.diffuse(EDGES, X, 2), diffused)
  layer = graph.DiffusionConvolution(3)
  diffused = jnp.asarray(diffused, jnp.float32)
  params = random_params(layer, diffused)
  same(
    layer.apply(params, diffused),
    np.tanh(np.asarray(params["params"]["weights"]) * np.asarray(diffused)).reshape(N, -1),
  )


def test_dual_diffusion_walks_both_ways():
  """Of a directed graph; a walker at i goes to where i's edges go."""
  ends = ENDS[:, : len(PAIRS)]
  directed = np.zeros((N, N))
  directed[ends[0], ends[1]] = 1  # the row of the sender
  layer, edges = graph.DualDiffusion(F, 2), graph.make_edges(*map(jnp.asarray, ends))
  params = random_params(layer, edges, X)
  expected = np.asarray(params["params"]["bias"])
  for name, matrix in (("forward", directed), ("backward", directed.T)):
    walk = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    kernels = np.split(np.asarray(params["params"][name]["kernel"]), 3, axis=1)
    expected = expected + sum(
      np.linalg.matrix_power(walk, k) @ np.asarray(X) @ kernel for k, kernel in enumerate(kernels)
    )
  same(jax.jit(layer.apply)(params, edges, X), expected)


def test_networks_for_graphs_hear_all_layers_before():
  layer = graph.NeuralNetworkForGraphs(F, 3)
  variables = random_params(layer, EDGES, X)
  params = jax.tree.map(np.asarray, variables)["params"]
  label = np.asarray(X) @ params["label"]["kernel"] + params["label"]["bias"]
  states = [np.tanh(label[:, :F])]
  for i in (1, 2):
    heard = np.concatenate([ADJACENCY @ h for h in states], axis=1)
    states.append(np.tanh(label[:, i * F : (i + 1) * F] + heard @ params[f"context_{i}"]["kernel"]))
  same(jax.jit(layer.apply)(variables, EDGES, X), np.concatenate(states, 1))
