"""What the tests of sequence models share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture(scope="session")
def draw_variables():
  """Random variables of the shapes that a module's `init` gives, biases too; nothing of it is compiled."""

  def draw(module, *inputs, size=0.4):
    numbers = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda x: jnp.asarray(size * numbers.normal(size=x.shape), x.dtype), shapes)

  return draw
