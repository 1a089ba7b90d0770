"""How alike the nodes of a layer have become: what depth does to a graph network."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from mlnotes.graph.edges import Edges, count_edges


def dirichlet_energy(edges: Edges, x: Float[Array, "N D"]) -> Float[Array, ""]:
  """1/2 sum over edges of |x_i / sqrt(1 + d_i) - x_j / sqrt(1 + d_j)|^2 = tr(x^T (I - A^) x), A^ that of GCN.

  0 where a layer's nodes are told apart by their degrees alone, which repeated averaging ends in: Oono & Suzuki 2020,
  Cai & Wang 2020. Both directions of an edge are there and each counts once; loops add nothing.
  """
  scaled = x / jnp.sqrt(1 + count_edges(edges, x.shape[0]))[:, None]
  each = jnp.sum((scaled[edges.senders] - scaled[edges.receivers]) ** 2, axis=1)
  return 0.5 * jnp.sum(jnp.where(edges.mask > 0, each * edges.mask, 0))


def relative_energy(edges: Edges, x: Float[Array, "N D"]) -> Float[Array, ""]:
  """The Dirichlet energy of x over its squared norm: the mean eigenvalue of I - A^ that x is made of, in [0, 2)."""
  return dirichlet_energy(edges, x) / jnp.maximum(jnp.sum(x**2), 1e-30)


def mean_cosine_distance(edges: Edges, x: Float[Array, "N D"]) -> Float[Array, ""]:
  """The mean over edges of 1 - cos(x_i, x_j), 0 where neighbours point the same way. Chen et al. 2020 (MAD)."""
  unit = x / jnp.sqrt(jnp.maximum(jnp.sum(x**2, axis=1, keepdims=True), 1e-24))
  each = 1 - jnp.sum(unit[edges.senders] * unit[edges.receivers], axis=1)
  total = jnp.sum(jnp.where(edges.mask > 0, each * edges.mask, 0))
  return total / jnp.maximum(jnp.sum(edges.mask), 1)
