"""Generative models and how to judge what they make."""

from mlnotes.generative.divergences import (
  ParallelLines as ParallelLines,
  jensen_shannon as jensen_shannon,
  nearest_is_own as nearest_is_own,
  parallel_lines as parallel_lines,
  wasserstein_1d as wasserstein_1d,
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
from mlnotes.generative.networks import Decoder as Decoder, Encoder as Encoder
