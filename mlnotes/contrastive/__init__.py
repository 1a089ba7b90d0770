"""Contrastive learning: losses, queue and memory bank, heads, and how good the features are (notes: 对比学习)."""

from mlnotes.contrastive.bank import draw_noise as draw_noise, init_bank as init_bank, update_bank as update_bank
from mlnotes.contrastive.barlow_twins import (
  cross_correlation as cross_correlation,
  make_barlow_twins as make_barlow_twins,
  redundancy_reduction as redundancy_reduction,
)
from mlnotes.contrastive.cpc import (
  CPCNetwork as CPCNetwork,
  RowContext as RowContext,
  SequenceContext as SequenceContext,
  extract_patches as extract_patches,
  future_losses as future_losses,
  make_cpc as make_cpc,
)
from mlnotes.contrastive.heads import Embedder as Embedder, MLPHead as MLPHead
from mlnotes.contrastive.instance import make_instance_discrimination as make_instance_discrimination
from mlnotes.contrastive.knn import compute_knn_accuracy as compute_knn_accuracy, knn_votes as knn_votes
from mlnotes.contrastive.loss import (
  estimate_normalizer as estimate_normalizer,
  in_batch_info_nce as in_batch_info_nce,
  info_nce as info_nce,
  mutual_information_bound as mutual_information_bound,
  nce as nce,
  negative_cosine as negative_cosine,
  nonparametric_softmax as nonparametric_softmax,
  normalize as normalize,
  nt_xent as nt_xent,
  proximal_penalty as proximal_penalty,
)
from mlnotes.contrastive.method import Method as Method, Outcome as Outcome
from mlnotes.contrastive.metrics import (
  alignment as alignment,
  effective_rank as effective_rank,
  embedding_spread as embedding_spread,
  participation_ratio as participation_ratio,
  uniformity as uniformity,
)
from mlnotes.contrastive.moco import make_moco as make_moco
from mlnotes.contrastive.probe import (
  compute_probe_accuracy as compute_probe_accuracy,
  fit_linear_probe as fit_linear_probe,
)
from mlnotes.contrastive.queue import Queue as Queue, enqueue as enqueue, init_queue as init_queue
from mlnotes.contrastive.simclr import make_simclr as make_simclr
from mlnotes.contrastive.simsiam import make_simsiam as make_simsiam
