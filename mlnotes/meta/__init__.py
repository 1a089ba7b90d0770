"""Meta-learning (notes: 元学习): learning the initialisation, the learning rate, the optimizer, from many small tasks.

`adapt` is the inner loop as a pure function of any loss and any parameters; `meta_loss` is what the outer loop
differentiates. Tasks are drawn on the device: sinusoids, quadratics, N-way K-shot image episodes.
"""

from mlnotes.meta.quadratic import Quadratic as Quadratic
from mlnotes.meta.quadratic import quadratic_loss as quadratic_loss
from mlnotes.meta.quadratic import sample_quadratic as sample_quadratic
from mlnotes.meta.task import Task as Task
