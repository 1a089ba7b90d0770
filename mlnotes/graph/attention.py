"""Layers whose edges have weights that are learned: graph attention (GAT, versions 1 and 2) and mixtures (MoNet)."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mlnotes.graph.convolution import Linear, Nodes, count_rows
from mlnotes.graph.edges import Edges, add_self_loops, count_edges, softmax_edges, sum_edges
from mlnotes.graph.sparse import Rate, draw_kept
from mlnotes.nn.initializers import glorot


class GraphAttention(nn.Module):
  """Weights of the neighbours by a softmax over them, in several heads: GAT, Velickovic et al. 2018, eq. 1-6.

    version 1  e_ij = leaky_relu(a_1 . W h_j + a_2 . W h_i)
    version 2  e_ij = a . leaky_relu(W_1 h_j + W_2 h_i)          Brody et al. 2022: no order of j for all i

  Every node is its own neighbour, once (`loops`; without it the edges are taken as they are). `dropout`, a rate, is of
  the weights behind the softmax, from the stream "dropout". Heads are concatenated, or averaged where
  `average` says so. The weights are sown as "attention" into intermediates, an edge a row, loops last.
  """

  features: int
  heads: int = 8
  average: bool = False
  version: Literal[1, 2] = 1
  slope: float = 0.2
  loops: bool = True

  @nn.compact
  def __call__(
    self, edges: Edges, x: Nodes, num_nodes: int | None = None, dropout: Rate | None = None
  ) -> Float[Array, "R F"]:
    size = count_rows(x) if num_nodes is None else num_nodes
    edges = add_self_loops(edges, size) if self.loops else edges
    sent = self._project(x, "linear")
    received = self._project(x, "receiver")[:size] if self.version == 2 else sent[:size]
    weights = softmax_edges(edges, self._score(edges, sent, received), size)
    self.sow("intermediates", "attention", weights)
    if dropout is not None:
      weights = weights * draw_kept(self.make_rng("dropout"), weights.shape, dropout)
    y = sum_edges(edges, weights[..., None] * sent[edges.senders], size)
    y = jnp.mean(y, axis=1) if self.average else y.reshape(size, -1)
    return y + self.param("bias", nn.initializers.zeros, (y.shape[1],))[None]

  def _project(self, x: Nodes, name: str) -> Float[Array, "N H F"]:
    return Linear(self.heads * self.features, use_bias=self.version == 2, name=name)(x).reshape(
      -1, self.heads, self.features
    )

  def _score(self, edges: Edges, sent: Float[Array, "N H F"], received: Float[Array, "R H F"]) -> Float[Array, "E H"]:
    vector = lambda name: self.param(name, glorot(), (self.heads, self.features))
    if self.version == 2:
      both = nn.leaky_relu(sent[edges.senders] + received[edges.receivers], self.slope)
      return jnp.einsum("ehf,hf->eh", both, vector("attention"))
    of_sender = jnp.einsum("nhf,hf->nh", sent, vector("attention_sender"))
    of_receiver = jnp.einsum("nhf,hf->nh", received, vector("attention_receiver"))
    return nn.leaky_relu(of_sender[edges.senders] + of_receiver[edges.receivers], self.slope)


def degree_coordinates(edges: Edges, num_nodes: int) -> Float[Array, "E 2"]:
  """Pseudo-coordinates (deg_sender^-1/2, deg_receiver^-1/2) of each edge: Monti et al. 2017, for graphs."""
  root = 1 / jnp.sqrt(jnp.maximum(count_edges(edges, num_nodes), 1))
  return jnp.stack([root[edges.senders], root[edges.receivers]], axis=1)


def gaussian_weights(
  coordinates: Float[Array, "E P"], mean: Float[Array, "K P"], deviation: Float[Array, "K P"]
) -> Float[Array, "E K"]:
  """exp(-1/2 (u - m)^T S^-1 (u - m)) with S diagonal, the squares of `deviation`: Monti et al. 2017, eq. 11.

  A square is positive whatever is learned, 1e-15 is added to it.
  """
  distance = (coordinates[:, None] - mean[None]) ** 2 / (deviation**2 + 1e-15)[None]
  return jnp.exp(-0.5 * jnp.sum(distance, axis=-1))


class MixtureConvolution(nn.Module):
  """sum_k W_k sum_j w_k(u_ij) x_j over K Gaussians w_k of pseudo-coordinates: MoNet, Monti et al. 2017, eq. 9-11.

  u is tanh of a linear map of the `coordinates`, which are `degree_coordinates` where there are none. Not normalised
  over neighbours. Loops are as in `edges`.
  """

  features: int
  kernels: int = 3
  dimensions: int = 2
  use_bias: bool = True

  @nn.compact
  def __call__(
    self, edges: Edges, x: Nodes, coordinates: Float[Array, "E P"] | None = None, num_nodes: int | None = None
  ) -> Float[Array, "R F"]:
    size = count_rows(x) if num_nodes is None else num_nodes
    coordinates = degree_coordinates(edges, count_rows(x)) if coordinates is None else coordinates
    u = jnp.tanh(Linear(self.dimensions, name="coordinates")(coordinates))
    shape = (self.kernels, self.dimensions)
    mean = self.param("mean", nn.initializers.uniform(1.0), shape)
    deviation = self.param("deviation", nn.initializers.ones, shape)
    weights = gaussian_weights(u, mean, deviation)
    h = Linear(self.kernels * self.features, use_bias=False, name="linear")(x).reshape(-1, self.kernels, self.features)
    y = sum_edges(edges, jnp.einsum("ek,ekf->ef", weights, h[edges.senders]), size)
    return y + self.param("bias", nn.initializers.zeros, (self.features,))[None] if self.use_bias else y
