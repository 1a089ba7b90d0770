"""The generator's graphs are graphs, the critic sees no order of nodes, its penalty and its batch are what is said."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.generative import gradient_penalty
from mlnotes.graph.mol_gan import (
  MolCritic,
  MolGenerator,
  RelationalConvolution,
  TypedGraphs,
  critic_loss,
  draw_types,
  generator_loss,
  make_typed,
  read_types,
  straight_through_gumbel,
)

SIZE, EDGES, NODES = 4, 3, 3


def draw_real(seed, count):
  rng = np.random.default_rng(seed)
  node_type = rng.integers(0, NODES, (count, SIZE))
  edges = np.triu(rng.integers(0, EDGES, (count, SIZE, SIZE)), 1)
  edges *= (node_type > 0)[:, :, None] & (node_type > 0)[:, None]
  return edges + edges.transpose(0, 2, 1), node_type


def typed(seed, count):
  return _make(*draw_real(seed, count))


_make = jax.jit(lambda adjacency, node_type: make_typed(adjacency, node_type, EDGES, NODES))
_draw = jax.jit(draw_types)


def test_types_are_read_as_they_were_made():
  adjacency, node_type = draw_real(0, 3)
  found = read_types(_make(adjacency, node_type))
  np.testing.assert_array_equal(found[0], adjacency)
  np.testing.assert_array_equal(found[1], node_type)


def test_drawn_types_are_one_hot_symmetric_and_as_often_as_their_odds():
  model = MolGenerator(SIZE, EDGES, NODES, hidden=(5,))
  z = np.random.default_rng(0).normal(size=(1, 3)).astype(np.float32)
  variables = jax.jit(model.init)(jax.random.key(0), z)
  edge_logits, node_logits = jax.jit(model.apply)(variables, z)
  np.testing.assert_allclose(edge_logits, edge_logits.swapaxes(1, 2), rtol=1e-6)
  count = 4000
  many = lambda x: jnp.repeat(x, count, axis=0)
  graphs = _draw(jax.random.key(1), many(edge_logits), many(node_logits))
  edges, nodes = (np.asarray(x) for x in graphs)
  np.testing.assert_allclose(np.sort(nodes, -1)[..., -2:], np.broadcast_to([0.0, 1], (count, SIZE, 2)), atol=1e-6)
  np.testing.assert_allclose(edges, edges.transpose(0, 2, 1, 3), atol=1e-6)
  np.testing.assert_allclose(edges.sum(-1), 1, atol=1e-6)
  assert not edges[:, np.arange(SIZE), np.arange(SIZE), 1:].any()
  np.testing.assert_allclose(nodes.mean(0), np.asarray(jax.nn.softmax(node_logits))[0], atol=0.04)
  # Of pairs whose nodes are both there; elsewhere there is no edge.
  there = nodes[..., 0] < 0.5
  both = there[:, 0] & there[:, 1]
  np.testing.assert_allclose(edges[both, 0, 1].mean(0), np.asarray(jax.nn.softmax(edge_logits))[0, 0, 1], atol=0.06)
  np.testing.assert_allclose(edges[~both, 0, 1, 1:], 0, atol=1e-6)


def test_the_straight_through_gradient_is_that_of_the_softmax():
  logits, noise, weight = (jnp.asarray(np.random.default_rng(i).normal(size=5), jnp.float32) for i in range(3))
  found = jax.grad(lambda x: jnp.sum(weight * straight_through_gumbel(x, noise, 0.5)))(logits)
  soft = np.exp((logits + noise) / 0.5)
  soft /= soft.sum()
  np.testing.assert_allclose(found, soft * (weight - (soft * weight).sum()) / 0.5, rtol=1e-4, atol=1e-6)


@pytest.mark.parity
def test_the_relational_convolution_is_torch_geometrics():
  """RGCNConv: mean by relation there, so a graph with one neighbour of each type per node at most, weights by hand."""
  torch = pytest.importorskip("torch")
  geometric = pytest.importorskip("torch_geometric.nn")
  adjacency = np.zeros((SIZE, SIZE), int)
  adjacency[0, 1] = adjacency[1, 0] = 1
  adjacency[1, 2] = adjacency[2, 1] = 2
  h = np.random.default_rng(0).normal(size=(SIZE, 3)).astype(np.float32)
  layer = RelationalConvolution(2)
  edges = np.eye(EDGES, dtype=np.float32)[adjacency][None]
  variables = jax.jit(layer.init)(jax.random.key(0), edges, h[None])
  found = jax.jit(layer.apply)(variables, edges, h[None])[0]
  other = geometric.RGCNConv(3, 2, 2)
  params = variables["params"]
  sent = np.asarray(params["Dense_0"]["kernel"]).reshape(3, 2, 2).transpose(1, 0, 2)
  ends = np.argwhere(adjacency)
  with torch.no_grad():
    other.weight.copy_(torch.tensor(sent))
    other.root.copy_(torch.tensor(np.asarray(params["Dense_1"]["kernel"])))
    other.bias.zero_()
    heard = other(torch.tensor(h), torch.tensor(ends.T), torch.tensor(adjacency[tuple(ends.T)] - 1)).numpy()
  own = h @ np.asarray(params["Dense_1"]["kernel"])
  # Theirs divides by the neighbours of each type, ours by all of them: node 1 has one of each.
  expected = np.tanh(own + (heard - own) / np.array([1, 2, 1, 1])[:, None])
  np.testing.assert_allclose(found, expected, atol=1e-5)


@functools.cache
def make_critic(batch_features=4):
  critic = MolCritic((4,), 5, batch_features)
  return critic, jax.jit(critic.init)(jax.random.key(0), typed(0, 2))["params"]


def test_the_critic_sees_no_order_of_nodes_and_every_type():
  critic, params = make_critic(0)
  score = jax.jit(lambda graphs: critic.apply({"params": params}, graphs))
  adjacency, node_type = draw_real(3, 1)
  node_type[:] = [[1, 2, 2, 1]]
  adjacency[0, 0, 1] = adjacency[0, 1, 0] = 1
  order = np.array([2, 0, 3, 1])
  first = score(_make(adjacency, node_type))[0]
  np.testing.assert_allclose(score(_make(adjacency[:, order][:, :, order], node_type[:, order]))[0], first, rtol=1e-5)
  changed = adjacency.copy()
  changed[0, 0, 1] = changed[0, 1, 0] = 2
  assert abs(float(score(_make(changed, node_type))[0] - first)) > 1e-4
  assert abs(float(score(_make(adjacency, np.array([[2, 2, 2, 1]])))[0] - first)) > 1e-4


def test_a_score_depends_on_the_batch_by_its_summary_alone():
  graphs, others = typed(1, 3), typed(2, 3)
  mixed = jax.tree.map(lambda x, y: jnp.concatenate([x[:1], y[1:]]), graphs, others)
  for features, depends in ((4, True), (0, False)):
    critic, params = make_critic(features)
    score = jax.jit(lambda graphs, critic=critic, params=params: critic.apply({"params": params}, graphs))
    assert (abs(float(score(graphs)[0] - score(mixed)[0])) > 1e-5) == depends


@functools.partial(jax.jit, static_argnums=0)
def _losses(critic, params, real, fake, share, weight):
  return critic_loss(critic, params, real, fake, share, weight)


def test_the_penalty_is_of_the_gradient_between_real_and_generated_graphs():
  """Of the sum of the scores, by differences along each number of each graph, whose batch moves too."""
  critic, params = make_critic()
  real, fake, share = typed(1, 2), typed(2, 2), np.array([0.3, 0.8], np.float32)
  loss, metrics = _losses(critic, params, real, fake, share, 10.0)
  spread = lambda x: share.reshape(-1, *(1,) * (x.ndim - 1))
  between = jax.tree.map(lambda x, y: np.asarray(spread(x) * x + (1 - spread(x)) * y), real, fake)
  apply = jax.jit(lambda graphs: jnp.sum(critic.apply({"params": params}, graphs)))
  squares = np.zeros(2)
  for part in range(2):
    for place in np.ndindex(between[part].shape):
      moved = [[x.copy() for x in between] for _ in range(2)]
      for sign in range(2):
        moved[sign][part][place] += (2 * sign - 1) * 0.05
      low, high = (float(apply(TypedGraphs(*x))) for x in moved)
      squares[place[0]] += ((high - low) / 0.1) ** 2
  np.testing.assert_allclose(metrics["penalty"], np.mean((np.sqrt(squares) - 1) ** 2), rtol=2e-2)
  np.testing.assert_allclose(loss, metrics["critic_loss"] + 10 * metrics["penalty"], rtol=1e-5)
  np.testing.assert_allclose(
    metrics["critic_loss"], metrics["fake_score"] - metrics["real_score"], rtol=1e-4, atol=1e-6
  )


def test_without_a_summary_the_penalty_is_that_of_each_graph_alone():
  critic, params = make_critic(0)
  real, fake, share = typed(1, 2), typed(2, 2), np.array([0.3, 0.8], np.float32)
  _, metrics = _losses(critic, params, real, fake, share, 10.0)

  @jax.jit
  def penalty(real, fake, share):
    flat = lambda graphs: jnp.concatenate([graphs.edges.reshape(2, -1), graphs.nodes.reshape(2, -1)], 1)
    cut = SIZE * SIZE * EDGES

    def score(one):
      graphs = TypedGraphs(one[:cut].reshape(1, SIZE, SIZE, EDGES), one[cut:].reshape(1, SIZE, NODES))
      return critic.apply({"params": params}, graphs)[0]

    return jnp.mean(gradient_penalty(score, flat(real), flat(fake), share))

  np.testing.assert_allclose(metrics["penalty"], penalty(real, fake, share), rtol=1e-4)


def test_each_player_pulls_its_own_way():
  critic, params = make_critic()
  real, fake, share = typed(1, 6), typed(2, 6), jnp.full(6, 0.5)
  gap = lambda params: float(_losses(critic, params, real, fake, share, 0.0)[1]["critic_loss"])
  gradient = jax.jit(jax.grad(lambda p: critic_loss(critic, p, real, fake, share, 0.0)[0]))(params)
  assert gap(jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)) < gap(params)
  logits = jnp.zeros((6, SIZE, SIZE, EDGES)), jnp.zeros((6, SIZE, NODES))
  pay = lambda logits: generator_loss(critic, params, draw_types(jax.random.key(0), *logits))
  slopes = jax.jit(jax.grad(pay))(logits)
  assert all(np.abs(slope).max() > 0 for slope in slopes)
  score = jax.jit(lambda graphs: jnp.mean(critic.apply({"params": params}, graphs)))
  np.testing.assert_allclose(jax.jit(pay)(logits), -score(_draw(jax.random.key(0), *logits)), rtol=1e-4, atol=1e-6)
