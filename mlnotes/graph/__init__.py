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
from mlnotes.graph.graph_network import (
  Aggregate as Aggregate,
  GraphNetwork as GraphNetwork,
)
from mlnotes.graph.links import (
  PAIR_OPERATORS as PAIR_OPERATORS,
  LinkSplit as LinkSplit,
  compute_auc as compute_auc,
  split_links as split_links,
)
from mlnotes.graph.neighbors import (
  NeighborRows as NeighborRows,
  are_neighbors as are_neighbors,
  make_neighbor_rows as make_neighbor_rows,
)
from mlnotes.graph.similarity import (
  adamic_adar as adamic_adar,
  common_neighbors as common_neighbors,
  degree_product as degree_product,
  jaccard as jaccard,
)
from mlnotes.graph.skip_gram import (
  HuffmanTree as HuffmanTree,
  hierarchical_losses as hierarchical_losses,
  make_huffman_tree as make_huffman_tree,
  negative_sampling_loss as negative_sampling_loss,
  pair_window as pair_window,
  sample_negatives as sample_negatives,
  shared_negatives_losses as shared_negatives_losses,
)
from mlnotes.graph.sparse import (
  SparseMatrix as SparseMatrix,
  make_sparse as make_sparse,
  sparse_dot as sparse_dot,
  sparse_dropout as sparse_dropout,
)
from mlnotes.graph.walks import (
  Walks as Walks,
  sample_walks as sample_walks,
  transition_probabilities as transition_probabilities,
)
from mlnotes.graph.weisfeiler_lehman import (
  count_colors as count_colors,
  refine_colors as refine_colors,
)
