"""A class for a whole graph: rounds of messages, then all nodes of each round pooled (notes: GIN 图同构网络)."""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mlnotes.graph.batch import GraphBatch, Pooling, pool_nodes
from mlnotes.graph.edges import max_edges, mean_edges, sum_edges
from mlnotes.nn.dense import Dense
from mlnotes.nn.dropout import draw_dropout_mask
from mlnotes.nn.norm import BatchNorm

Aggregate = Literal["sum", "mean", "max", "none"]
_AGGREGATES = {"sum": sum_edges, "mean": mean_edges, "max": max_edges}


class GraphNetwork(nn.Module):
  """Logits of each graph's class.

    h_k = MLP_k((1 + epsilon_k) h_{k-1} + aggregate of the neighbours' h_{k-1}),  logits = sum_k W_k pool(h_k)

  Xu et al. 2019, eq. 4.1 and 4.2: with `aggregate="sum"` this is GIN, GIN-0 where epsilon is not learned; each MLP has
  two layers with batch norm, all rounds are pooled, the features themselves too. With "mean" and "max" it tells less
  apart than the Weisfeiler-Lehman test, with "none" it sees a set of nodes and no edges. `dropout` is that of the
  logits of each round. Statistics are over the nodes that are there; of a graph that has no room nothing counts.
  """

  num_classes: int
  width: int = 32
  depth: int = 4
  aggregate: Aggregate = "sum"
  pooling: Pooling = "sum"
  learn_epsilon: bool = False
  dtype: Any = None

  @nn.compact
  def __call__(
    self, batch: GraphBatch, train: bool = False, dropout: Float[Array, ""] | float = 0.0
  ) -> Float[Array, "B K"]:
    real, x = batch.real, batch.features
    norm = lambda x: BatchNorm(use_running_average=not train, dtype=self.dtype)(x, real)
    logits = self._read(batch, x, train, dropout, "read_0")
    for k in range(self.depth):
      y = x
      if self.learn_epsilon:
        y = (1 + self.param(f"epsilon_{k}", nn.initializers.zeros, ())) * x
      if self.aggregate != "none":
        y = y + _AGGREGATES[self.aggregate](batch.edges, x[batch.edges.senders], len(x))
      y = nn.relu(norm(Dense(self.width, dtype=self.dtype)(y)))
      x = nn.relu(norm(Dense(self.width, dtype=self.dtype)(y)))
      logits = logits + self._read(batch, x, train, dropout, f"read_{k + 1}")
    return logits

  def _read(self, batch: GraphBatch, x: Array, train: bool, dropout: Any, name: str) -> Array:
    logits = Dense(self.num_classes, name=name)(pool_nodes(batch, x, self.pooling).astype(jnp.float32))
    if not train:
      return logits
    return logits * draw_dropout_mask(self.make_rng("dropout"), logits.shape, dropout)
