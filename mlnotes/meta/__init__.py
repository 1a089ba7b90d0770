"""Meta-learning (notes: 元学习): learning the initialisation, the learning rate, the optimizer, from many small tasks.

`adapt` is the inner loop as a pure function of any loss and any parameters; `meta_loss` is what the outer loop
differentiates. Tasks are drawn on the device: sinusoids, quadratics, N-way K-shot image episodes.
"""

from mlnotes.meta.adapt import Adapted as Adapted
from mlnotes.meta.adapt import adapt as adapt
from mlnotes.meta.adapt import combine as combine
from mlnotes.meta.adapt import learned_rates as learned_rates
from mlnotes.meta.adapt import meta_loss as meta_loss
from mlnotes.meta.adapt import multi_step_weights as multi_step_weights
from mlnotes.meta.adapt import partition as partition
from mlnotes.meta.adapt import reptile_gradient as reptile_gradient
from mlnotes.meta.adapt import select as select
from mlnotes.meta.classes import ClassPool as ClassPool
from mlnotes.meta.classes import EpisodeSets as EpisodeSets
from mlnotes.meta.classes import make_class_pool as make_class_pool
from mlnotes.meta.classes import make_episode_sets as make_episode_sets
from mlnotes.meta.episodes import check_episode as check_episode
from mlnotes.meta.episodes import frozen_episodes as frozen_episodes
from mlnotes.meta.episodes import interval95 as interval95
from mlnotes.meta.episodes import predict_by_prototype as predict_by_prototype
from mlnotes.meta.episodes import prototype_accuracy as prototype_accuracy
from mlnotes.meta.episodes import sample_distinct as sample_distinct
from mlnotes.meta.episodes import sample_episode as sample_episode
from mlnotes.meta.learned_optimizer import CoordinateLSTM as CoordinateLSTM
from mlnotes.meta.learned_optimizer import Run as Run
from mlnotes.meta.learned_optimizer import learned_optimizer as learned_optimizer
from mlnotes.meta.learned_optimizer import preprocess_gradient as preprocess_gradient
from mlnotes.meta.learned_optimizer import raw_gradient as raw_gradient
from mlnotes.meta.learned_optimizer import restart as restart
from mlnotes.meta.learned_optimizer import start as start
from mlnotes.meta.learned_optimizer import unroll as unroll
from mlnotes.meta.learned_optimizer import unroll_loss as unroll_loss
from mlnotes.meta.learner import Learner as Learner
from mlnotes.meta.learner import is_head as is_head
from mlnotes.meta.learner import make_classifier as make_classifier
from mlnotes.meta.learner import make_regressor as make_regressor
from mlnotes.meta.networks import Conv4 as Conv4
from mlnotes.meta.networks import FullyConnected as FullyConnected
from mlnotes.meta.networks import Regressor as Regressor
from mlnotes.meta.optimizee import Optimizee as Optimizee
from mlnotes.meta.optimizee import make_network_training as make_network_training
from mlnotes.meta.optimizee import make_quadratics as make_quadratics
from mlnotes.meta.quadratic import Quadratic as Quadratic
from mlnotes.meta.quadratic import quadratic_loss as quadratic_loss
from mlnotes.meta.quadratic import sample_quadratic as sample_quadratic
from mlnotes.meta.sinusoid import Sinusoid as Sinusoid
from mlnotes.meta.sinusoid import sample_sinusoid as sample_sinusoid
from mlnotes.meta.sinusoid import sample_sinusoid_task as sample_sinusoid_task
from mlnotes.meta.task import Task as Task
