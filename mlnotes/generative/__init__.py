"""Generative models (notes: 生成模型) and how to judge what they make."""

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
from mlnotes.generative.density_floors import (
  gaussian_bits as gaussian_bits,
  histogram_bits as histogram_bits,
)
from mlnotes.generative.disentangling import (
  DCI as DCI,
  MutualInformation as MutualInformation,
  compute_dci as compute_dci,
  compute_factor_score as compute_factor_score,
  compute_mig as compute_mig,
  compute_mutual_information as compute_mutual_information,
)
from mlnotes.generative.divergences import (
  ParallelLines as ParallelLines,
  jensen_shannon as jensen_shannon,
  nearest_is_own as nearest_is_own,
  parallel_lines as parallel_lines,
  wasserstein_1d as wasserstein_1d,
)
from mlnotes.generative.flow import (
  bits_per_dim as bits_per_dim,
  checkerboard_mask as checkerboard_mask,
  dequantize as dequantize,
  factorize_lu as factorize_lu,
  inverse_logit as inverse_logit,
  logistic_log_density as logistic_log_density,
  logit as logit,
  normal_log_density as normal_log_density,
  squeeze as squeeze,
  to_grey_levels as to_grey_levels,
  unsqueeze as unsqueeze,
)
from mlnotes.generative.flow_layers import (
  ActNorm as ActNorm,
  Bijection as Bijection,
  Chain as Chain,
  ChannelCoupling as ChannelCoupling,
  DiagonalScale as DiagonalScale,
  InvertibleLinear as InvertibleLinear,
  MaskedCoupling as MaskedCoupling,
  MultiScale as MultiScale,
  Squeeze as Squeeze,
)
from mlnotes.generative.flow_networks import (
  FlowModel as FlowModel,
  FlowSizes as FlowSizes,
  TrainedFlow as TrainedFlow,
  make_glow as make_glow,
  make_nice as make_nice,
  make_realnvp as make_realnvp,
)
from mlnotes.generative.game import (
  Game as Game,
  Player as Player,
  Regularizer as Regularizer,
)
from mlnotes.generative.gan import (
  LOSSES as LOSSES,
  AdversarialLoss as AdversarialLoss,
  cross_entropy_discriminator as cross_entropy_discriminator,
  hinge_discriminator as hinge_discriminator,
  make_energy_based as make_energy_based,
  make_least_squares as make_least_squares,
  minimax_generator as minimax_generator,
  non_saturating_generator as non_saturating_generator,
  pulling_away as pulling_away,
  raise_score as raise_score,
  wasserstein_discriminator as wasserstein_discriminator,
)
from mlnotes.generative.gan_networks import (
  AutoencoderDiscriminator as AutoencoderDiscriminator,
  Conditional as Conditional,
  DcganDiscriminator as DcganDiscriminator,
  DcganGenerator as DcganGenerator,
  MlpDiscriminator as MlpDiscriminator,
  MlpGenerator as MlpGenerator,
  Verdict as Verdict,
)
from mlnotes.generative.gan_regularizers import (
  PowerVectors as PowerVectors,
  clip_weights as clip_weights,
  gradient_norms as gradient_norms,
  gradient_penalty as gradient_penalty,
  init_power_vectors as init_power_vectors,
  interpolate as interpolate,
  r1_penalty as r1_penalty,
  spectral_normalize as spectral_normalize,
  spectral_norms as spectral_norms,
  update_power_vectors as update_power_vectors,
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
  density_coverage as density_coverage,
  feature_frechet_distance as feature_frechet_distance,
  find_nearest as find_nearest,
  frechet_distance as frechet_distance,
  inception_score as inception_score,
  kernel_distance as kernel_distance,
  nearest_training_distance as nearest_training_distance,
  precision_recall as precision_recall,
)
from mlnotes.generative.mixture import (
  BernoulliMixture as BernoulliMixture,
  GaussianMixture as GaussianMixture,
  best_restart as best_restart,
  fit_bernoulli_mixture as fit_bernoulli_mixture,
  fit_gaussian_mixture as fit_gaussian_mixture,
  mixture_log_density as mixture_log_density,
  responsibilities as responsibilities,
  sample_bernoulli_mixture as sample_bernoulli_mixture,
  sample_gaussian_mixture as sample_gaussian_mixture,
)
from mlnotes.generative.modes import (
  Birthday as Birthday,
  ModeCounts as ModeCounts,
  PointMixture as PointMixture,
  birthday_test as birthday_test,
  count_modes as count_modes,
  draw_point as draw_point,
  find_modes as find_modes,
  make_grid as make_grid,
  make_moons as make_moons,
  make_ring as make_ring,
  stack_modes as stack_modes,
)
from mlnotes.generative.networks import (
  Decoder as Decoder,
  Encoder as Encoder,
  binarize as binarize,
  from_unit as from_unit,
  to_unit as to_unit,
)
from mlnotes.generative.plane import (
  PLANES as PLANES,
  PlaneDensity as PlaneDensity,
)
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
from mlnotes.generative.text_gan import (
  Policy as Policy,
  at_temperature as at_temperature,
  fit_tables as fit_tables,
  gumbel_noise as gumbel_noise,
  leave_one_out as leave_one_out,
  make_table_policy as make_table_policy,
  maligan_values as maligan_values,
  pick_token as pick_token,
  policy_gradient_loss as policy_gradient_loss,
  relax_choice as relax_choice,
  relax_sequences as relax_sequences,
  roll_out as roll_out,
  roll_out_values as roll_out_values,
  sample_sequences as sample_sequences,
  token_log_probability as token_log_probability,
)
from mlnotes.generative.text_networks import (
  CodeNetwork as CodeNetwork,
  SequenceDiscriminator as SequenceDiscriminator,
  SequenceEncoder as SequenceEncoder,
  SequenceModel as SequenceModel,
  make_oracle as make_oracle,
  make_policy as make_policy,
  to_sphere as to_sphere,
)
from mlnotes.generative.vae import (
  Bound as Bound,
  GaussianPosterior as GaussianPosterior,
  KLParts as KLParts,
  bernoulli_log_prob as bernoulli_log_prob,
  clip_free_bits as clip_free_bits,
  compute_elbo as compute_elbo,
  compute_iwae as compute_iwae,
  continuous_bernoulli_log_prob as continuous_bernoulli_log_prob,
  count_active as count_active,
  decompose_kl as decompose_kl,
  gaussian_kl as gaussian_kl,
  gaussian_log_prob as gaussian_log_prob,
  log_mean_exp as log_mean_exp,
  reparameterize as reparameterize,
  scale_gradient as scale_gradient,
  split_posterior as split_posterior,
)
from mlnotes.generative.vae_model import (
  LIKELIHOODS as LIKELIHOODS,
  VAE as VAE,
  TrainedVAE as TrainedVAE,
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
