"""Generative models and how to judge what they make."""

from mlnotes.generative.judge import Judge as Judge
from mlnotes.generative.judge import JudgeConfig as JudgeConfig
from mlnotes.generative.judge import load_or_train_judge as load_or_train_judge
from mlnotes.generative.judge import train_judge as train_judge
from mlnotes.generative.metrics import Nearest as Nearest
from mlnotes.generative.metrics import Novelty as Novelty
from mlnotes.generative.metrics import class_agreement as class_agreement
from mlnotes.generative.metrics import compute_novelty as compute_novelty
from mlnotes.generative.metrics import compute_real_distance as compute_real_distance
from mlnotes.generative.metrics import feature_frechet_distance as feature_frechet_distance
from mlnotes.generative.metrics import find_nearest as find_nearest
from mlnotes.generative.metrics import frechet_distance as frechet_distance
from mlnotes.generative.metrics import nearest_training_distance as nearest_training_distance
from mlnotes.generative.metrics import precision_recall as precision_recall
