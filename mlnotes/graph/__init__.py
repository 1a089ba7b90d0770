"""Graph neural networks (notes: 图神经网络): layers, walks, sampling, generation, and how to judge them."""

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
from mlnotes.graph.sparse import (
  SparseMatrix as SparseMatrix,
  make_sparse as make_sparse,
  sparse_dot as sparse_dot,
  sparse_dropout as sparse_dropout,
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
