"""What an optimizer is learned on, and judged by: families of problems with a loss to be made small."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mlnotes.engine.sharding import one_by_one_on_cpu
from mlnotes.meta.quadratic import Quadratic, quadratic_loss, sample_quadratic
from mlnotes.optim.testbed import Classifier


class Optimizee(NamedTuple):
  """A family of problems in three functions.

  sample: key -> problem, any pytree of arrays.
  init:   key -> the parameters that optimization starts from.
  loss:   (params, problem, step) -> scalar; `step` counts the updates so far, for losses of a minibatch.
  """

  sample: Callable[[Key[Array, ""]], Any]
  init: Callable[[Key[Array, ""]], Any]
  loss: Callable[[Any, Any, Int[Array, ""]], Float[Array, ""]]


def make_quadratics(size: int = 10, condition: float = 0.0) -> Optimizee:
  """Random quadratics from a start near 0 (standard deviation 0.01).

  With `condition` the singular values of each matrix are replaced by a geometric sequence from its largest down, so
  that the Hessian has this condition number.
  """

  def sample(key):
    problem = sample_quadratic(key, size)
    if not condition:
      return problem
    left, values, right = one_by_one_on_cpu(jnp.linalg.svd)(problem.matrix)
    spectrum = values[0] * condition ** (-0.5 * jnp.linspace(0, 1, size))
    return Quadratic((left * spectrum[None]) @ right, problem.target)

  return Optimizee(
    sample=sample,
    init=lambda key: 0.01 * jax.random.normal(key, (size,)),
    loss=lambda params, problem, step: quadratic_loss(params, problem),
  )


def make_network_training(classifier: Classifier) -> Optimizee:
  """Training a classifier from random weights: a problem is an order of minibatches, its loss that of one of them."""
  return Optimizee(
    sample=lambda key: key,
    init=classifier.init,
    loss=lambda params, problem, step: classifier.loss(params, classifier.draw(problem, step)),
  )
