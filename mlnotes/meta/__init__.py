"""Meta-learning (notes: 元学习): learning the initialisation, the learning rate, the optimizer, from many small tasks.

`adapt` is the inner loop as a pure function of any loss and any parameters; `meta_loss` is what the outer loop
differentiates. Tasks are drawn on the device: sinusoids, quadratics, N-way K-shot image episodes.
"""

from mlnotes.meta.learned_optimizer import CoordinateLSTM as CoordinateLSTM
from mlnotes.meta.learned_optimizer import Run as Run
from mlnotes.meta.learned_optimizer import learned_optimizer as learned_optimizer
from mlnotes.meta.learned_optimizer import preprocess_gradient as preprocess_gradient
from mlnotes.meta.learned_optimizer import raw_gradient as raw_gradient
from mlnotes.meta.learned_optimizer import restart as restart
from mlnotes.meta.learned_optimizer import start as start
from mlnotes.meta.learned_optimizer import unroll as unroll
from mlnotes.meta.learned_optimizer import unroll_loss as unroll_loss
from mlnotes.meta.optimizee import Optimizee as Optimizee
from mlnotes.meta.optimizee import make_network_training as make_network_training
from mlnotes.meta.optimizee import make_quadratics as make_quadratics
from mlnotes.meta.quadratic import Quadratic as Quadratic
from mlnotes.meta.quadratic import quadratic_loss as quadratic_loss
from mlnotes.meta.quadratic import sample_quadratic as sample_quadratic
from mlnotes.meta.task import Task as Task
