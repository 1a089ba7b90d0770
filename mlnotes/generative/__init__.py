"""Generative models (notes: 生成模型) and how to judge what they make."""

from mlnotes.generative.disentangling import (
  DCI as DCI,
  MutualInformation as MutualInformation,
  compute_dci as compute_dci,
  compute_factor_score as compute_factor_score,
  compute_mig as compute_mig,
  compute_mutual_information as compute_mutual_information,
)
from mlnotes.generative.judge import (
  Judge as Judge,
  JudgeConfig as JudgeConfig,
  load_or_train_judge as load_or_train_judge,
  train_judge as train_judge,
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
from mlnotes.generative.networks import (
  Decoder as Decoder,
  Encoder as Encoder,
  binarize as binarize,
  from_unit as from_unit,
  to_unit as to_unit,
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
  split_posterior as split_posterior,
)
from mlnotes.generative.vae_model import LIKELIHOODS as LIKELIHOODS, VAE as VAE
