"""Graph neural networks (notes: 图神经网络): layers, walks, sampling, generation, and how to judge them."""

from mlnotes.graph.attention import (
  GraphAttention as GraphAttention,
  MixtureConvolution as MixtureConvolution,
  degree_coordinates as degree_coordinates,
  gaussian_weights as gaussian_weights,
)
from mlnotes.graph.batch import (
  Budget as Budget,
  GraphBatch as GraphBatch,
  Pooling as Pooling,
  choose_budget as choose_budget,
  pool_nodes as pool_nodes,
  take_graphs as take_graphs,
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
from mlnotes.graph.graph_network import (
  Aggregate as Aggregate,
  GraphNetwork as GraphNetwork,
)
from mlnotes.graph.graph_rnn import (
  GraphRNN as GraphRNN,
  Rows as Rows,
  decode_graph as decode_graph,
  draw_order as draw_order,
  encode_graph as encode_graph,
  make_rows as make_rows,
  measure_max_previous as measure_max_previous,
  order_breadth_first as order_breadth_first,
  sample_graphs as sample_graphs,
  sequence_loss as sequence_loss,
)
from mlnotes.graph.graph_vae import (
  GraphEncoder as GraphEncoder,
  GraphVAE as GraphVAE,
  Order as Order,
  choose_places as choose_places,
  draw_graphs as draw_graphs,
  placed_log_likelihood as placed_log_likelihood,
)
from mlnotes.graph.hops import (
  Hop as Hop,
  Hops as Hops,
  prune_hops as prune_hops,
  sample_hops as sample_hops,
  symmetric_weights as symmetric_weights,
  whole_hops as whole_hops,
)
from mlnotes.graph.isomorphism import (
  GraphIndex as GraphIndex,
  Novelty as Novelty,
  are_isomorphic as are_isomorphic,
  hash_graph as hash_graph,
  is_connected as is_connected,
  is_ego_graph as is_ego_graph,
  is_two_blocks as is_two_blocks,
  judge_novelty as judge_novelty,
  keeps_valences as keeps_valences,
  make_member_rule as make_member_rule,
  refine_colours as refine_colours,
  unpad_graph as unpad_graph,
)
from mlnotes.graph.links import (
  PAIR_OPERATORS as PAIR_OPERATORS,
  LinkSplit as LinkSplit,
  compute_auc as compute_auc,
  split_links as split_links,
)
from mlnotes.graph.matching import (
  assign_nodes as assign_nodes,
  graph_log_likelihood as graph_log_likelihood,
  improve_places as improve_places,
  max_pooling_matching as max_pooling_matching,
  place_nodes as place_nodes,
)
from mlnotes.graph.mol_gan import (
  MolCritic as MolCritic,
  MolGenerator as MolGenerator,
  RelationalConvolution as RelationalConvolution,
  TypedGraphs as TypedGraphs,
  critic_loss as critic_loss,
  draw_types as draw_types,
  generator_loss as generator_loss,
  make_typed as make_typed,
  read_types as read_types,
  straight_through_gumbel as straight_through_gumbel,
)
from mlnotes.graph.neighbors import (
  NeighborRows as NeighborRows,
  are_neighbors as are_neighbors,
  make_neighbor_rows as make_neighbor_rows,
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
from mlnotes.graph.statistics import (
  ErdosRenyi as ErdosRenyi,
  GraphStatistics as GraphStatistics,
  compare_graphs as compare_graphs,
  compute_clustering as compute_clustering,
  count_orbits as count_orbits,
  describe_graphs as describe_graphs,
  earth_movers_distances as earth_movers_distances,
  fit_erdos_renyi as fit_erdos_renyi,
  maximum_mean_discrepancy as maximum_mean_discrepancy,
  sample_erdos_renyi as sample_erdos_renyi,
  total_variations as total_variations,
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
