"""Generative models and how to judge what they make."""

from mlnotes.generative.autoencoder import (
  add_gaussian_noise as add_gaussian_noise,
  bernoulli_kl as bernoulli_kl,
  keep_largest as keep_largest,
  mask_entries as mask_entries,
)
from mlnotes.generative.code_grid import (
  CodePrior as CodePrior,
  GridDecoder as GridDecoder,
  GridEncoder as GridEncoder,
  code_nats as code_nats,
  make_code_prior as make_code_prior,
  sample_codes as sample_codes,
)
from mlnotes.generative.judge import (
  Judge as Judge,
  JudgeConfig as JudgeConfig,
  load_or_train_judge as load_or_train_judge,
  train_judge as train_judge,
)
from mlnotes.generative.masked_autoencoder import (
  MaskedAutoencoder as MaskedAutoencoder,
  Masking as Masking,
  draw_masking as draw_masking,
  make_grid_positions as make_grid_positions,
  masked_patch_loss as masked_patch_loss,
  normalize_patches as normalize_patches,
  patchify as patchify,
  unpatchify as unpatchify,
)
from mlnotes.generative.metrics import (
  Nearest as Nearest,
  Novelty as Novelty,
  class_agreement as class_agreement,
  compute_novelty as compute_novelty,
  compute_real_distance as compute_real_distance,
  feature_frechet_distance as feature_frechet_distance,
  find_nearest as find_nearest,
  frechet_distance as frechet_distance,
  nearest_training_distance as nearest_training_distance,
  precision_recall as precision_recall,
)
from mlnotes.generative.networks import Decoder as Decoder, Encoder as Encoder
from mlnotes.generative.sparse_coding import (
  Moments as Moments,
  Whitening as Whitening,
  encode_fista as encode_fista,
  encode_ista as encode_ista,
  fit_whitening as fit_whitening,
  init_moments as init_moments,
  normalize_columns as normalize_columns,
  resample_atoms as resample_atoms,
  sample_patches as sample_patches,
  soft_threshold as soft_threshold,
  update_dictionary as update_dictionary,
  update_moments as update_moments,
)
from mlnotes.generative.vector_quantization import (
  Codebook as Codebook,
  Quantized as Quantized,
  compute_perplexity as compute_perplexity,
  count_codes as count_codes,
  find_nearest_code as find_nearest_code,
  init_codes as init_codes,
  make_codebook as make_codebook,
  quantize as quantize,
  restart_codes as restart_codes,
  straight_through as straight_through,
  update_codebook as update_codebook,
)
