"""Graph neural networks (notes: 图神经网络): layers, walks, sampling, generation, and how to judge them."""

from mlnotes.graph.batch import (
  Budget as Budget,
  GraphBatch as GraphBatch,
  Pooling as Pooling,
  choose_budget as choose_budget,
  pool_nodes as pool_nodes,
  take_graphs as take_graphs,
)
from mlnotes.graph.edges import (
  Edges as Edges,
  Normalization as Normalization,
  add_self_loops as add_self_loops,
  count_edges as count_edges,
  drop_edges as drop_edges,
  make_edges as make_edges,
  max_edges as max_edges,
  mean_edges as mean_edges,
  normalize_edges as normalize_edges,
  pair_edges as pair_edges,
  reverse_edges as reverse_edges,
  softmax_edges as softmax_edges,
  sum_edges as sum_edges,
)
from mlnotes.graph.graph_network import Aggregate as Aggregate, GraphNetwork as GraphNetwork
from mlnotes.graph.sparse import (
  SparseMatrix as SparseMatrix,
  make_sparse as make_sparse,
  sparse_dot as sparse_dot,
  sparse_dropout as sparse_dropout,
)
from mlnotes.graph.weisfeiler_lehman import count_colors as count_colors, refine_colors as refine_colors
