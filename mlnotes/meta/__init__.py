"""Meta-learning (notes: 元学习): learning the initialisation, the learning rate, the optimizer, from many small tasks.

`adapt` is the inner loop as a pure function of any loss and any parameters; `meta_loss` is what the outer loop
differentiates. Tasks are drawn on the device: sinusoids, quadratics, N-way K-shot image episodes.
"""

from mlnotes.meta.adapt import (
  Adapted as Adapted,
  adapt as adapt,
  combine as combine,
  learned_rates as learned_rates,
  meta_loss as meta_loss,
  multi_step_weights as multi_step_weights,
  partition as partition,
  reptile_gradient as reptile_gradient,
  select as select,
)
from mlnotes.meta.classes import (
  ClassPool as ClassPool,
  EpisodeSets as EpisodeSets,
  make_class_pool as make_class_pool,
  make_episode_sets as make_episode_sets,
)
from mlnotes.meta.episodes import (
  check_episode as check_episode,
  frozen_episodes as frozen_episodes,
  interval95 as interval95,
  predict_by_prototype as predict_by_prototype,
  prototype_accuracy as prototype_accuracy,
  sample_distinct as sample_distinct,
  sample_episode as sample_episode,
)
from mlnotes.meta.learned_optimizer import (
  CoordinateLSTM as CoordinateLSTM,
  Run as Run,
  learned_optimizer as learned_optimizer,
  preprocess_gradient as preprocess_gradient,
  raw_gradient as raw_gradient,
  restart as restart,
  start as start,
  unroll as unroll,
  unroll_loss as unroll_loss,
)
from mlnotes.meta.learner import (
  Learner as Learner,
  is_head as is_head,
  make_classifier as make_classifier,
  make_regressor as make_regressor,
)
from mlnotes.meta.networks import Conv4 as Conv4, FullyConnected as FullyConnected, Regressor as Regressor
from mlnotes.meta.optimizee import (
  Optimizee as Optimizee,
  make_network_training as make_network_training,
  make_quadratics as make_quadratics,
)
from mlnotes.meta.quadratic import (
  Quadratic as Quadratic,
  quadratic_loss as quadratic_loss,
  sample_quadratic as sample_quadratic,
)
from mlnotes.meta.sinusoid import (
  Sinusoid as Sinusoid,
  sample_sinusoid as sample_sinusoid,
  sample_sinusoid_task as sample_sinusoid_task,
)
from mlnotes.meta.task import Task as Task
