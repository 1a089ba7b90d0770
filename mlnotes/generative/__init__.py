"""Generative models and how to judge what they make."""

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
from mlnotes.generative.networks import Decoder as Decoder, Encoder as Encoder
