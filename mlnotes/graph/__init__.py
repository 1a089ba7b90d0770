"""Graph neural networks (notes: 图神经网络): layers, walks, sampling, generation, and how to judge them."""

from mlnotes.graph.attention import (
  GraphAttention as GraphAttention,
  MixtureConvolution as MixtureConvolution,
  degree_coordinates as degree_coordinates,
  gaussian_weights as gaussian_weights,
)
from mlnotes.graph.convolution import (
  GraphConvolution as GraphConvolution,
  GraphIsomorphism as GraphIsomorphism,
  GraphSage as GraphSage,
  InitialResidual as InitialResidual,
  Linear as Linear,
  Nodes as Nodes,
  personalized_pagerank as personalized_pagerank,
  propagate as propagate,
  propagate_powers as propagate_powers,
  renormalize as renormalize,
)
from mlnotes.graph.diffusion import (
  DiffusionConvolution as DiffusionConvolution,
  DualDiffusion as DualDiffusion,
  NeuralNetworkForGraphs as NeuralNetworkForGraphs,
  diffuse as diffuse,
  walk_sum as walk_sum,
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
from mlnotes.graph.hops import (
  Hop as Hop,
  Hops as Hops,
  prune_hops as prune_hops,
  sample_hops as sample_hops,
  symmetric_weights as symmetric_weights,
  whole_hops as whole_hops,
)
from mlnotes.graph.neighbors import (
  NeighborTable as NeighborTable,
  make_neighbor_table as make_neighbor_table,
  sample_neighbors as sample_neighbors,
  tabulate_edges as tabulate_edges,
)
from mlnotes.graph.node_network import (
  LAYERS as LAYERS,
  MOST_UNROLLED as MOST_UNROLLED,
  NodeNetwork as NodeNetwork,
  View as View,
)
from mlnotes.graph.partition import (
  Partition as Partition,
  Parts as Parts,
  count_cut as count_cut,
  enhance_diagonal as enhance_diagonal,
  join_parts as join_parts,
  make_parts as make_parts,
  partition_graph as partition_graph,
)
from mlnotes.graph.smoothing import (
  dirichlet_energy as dirichlet_energy,
  mean_cosine_distance as mean_cosine_distance,
  relative_energy as relative_energy,
)
from mlnotes.graph.sparse import (
  RowTable as RowTable,
  SparseMatrix as SparseMatrix,
  draw_kept as draw_kept,
  make_row_table as make_row_table,
  make_sparse as make_sparse,
  sparse_dot as sparse_dot,
  sparse_dropout as sparse_dropout,
  take_rows as take_rows,
  to_dense as to_dense,
)
from mlnotes.graph.spectral import (
  ChebyshevConvolution as ChebyshevConvolution,
  SpectralConvolution as SpectralConvolution,
  chebyshev_sum as chebyshev_sum,
  dense_laplacian as dense_laplacian,
  interpolate_response as interpolate_response,
  laplacian_basis as laplacian_basis,
  spectral_filter as spectral_filter,
)
