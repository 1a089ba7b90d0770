"""What the tests of sequence models share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlnotes.optim.lookahead import LookaheadState


@pytest.fixture(scope="session")
def draw_like():
  """Random numbers of the shapes of a tree."""

  def draw(shapes, size=0.4):
    numbers = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(size * numbers.normal(size=x.shape), x.dtype), shapes)

  return draw


@pytest.fixture(scope="session")
def draw_variables(draw_like):
  """Random variables of the shapes that a module's `init` gives, biases too; nothing of it is compiled."""
  return lambda module, *inputs, size=0.4: draw_like(jax.eval_shape(module.init, jax.random.key(0), *inputs), size)


@pytest.fixture(scope="session")
def averaged():
  """A state whose optimizer returns other parameters than those that it trains, which are NaN here."""

  def hide(state):
    slow = LookaheadState(jnp.int32(0), state.params, optax.EmptyState())
    nothing = jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), state.params)
    return state._replace(params=nothing, opt_state=slow)

  return hide
