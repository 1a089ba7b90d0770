"""An optimizer that is itself learned: one small LSTM that turns the gradient of each coordinate into its update.

Andrychowicz et al. 2016, "Learning to learn by gradient descent by gradient descent" (arXiv:1606.04474).

    weights = network.init(key, network.initial_carry(1), jnp.zeros(1))
    optimizer = learned_optimizer(network, weights)       # an optax optimizer of any pytree
    run = start(optimizee, optimizer, key)
    run, losses = unroll(optimizee, optimizer, run, 100)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key

from mlnotes.meta.optimizee import Optimizee
from mlnotes.nn.initializers import orthogonal


def preprocess_gradient(gradient: Float[Array, "*N"], p: float = 10.0) -> Float[Array, "*N 2"]:
  """Two inputs of about unit size for gradients of any size: exponent and sign.

  (log|g| / p, sign g) where |g| >= e^-p, otherwise (-1, e^p g)                   Andrychowicz et al. 2016, appendix A
  """
  large = jnp.abs(gradient) >= jnp.exp(-p)
  exponent = (
    jnp.log(jnp.where(large, jnp.abs(gradient), 1.0)) / p
  )  # of 1 where it is not used: its derivative is finite
  first = jnp.where(large, exponent, -1.0)
  return jnp.stack([first, jnp.where(large, jnp.sign(gradient), jnp.exp(p) * gradient)], axis=-1)


def raw_gradient(gradient: Float[Array, "*N"]) -> Float[Array, "*N 1"]:
  """The gradient as it is, in place of `preprocess_gradient`."""
  return gradient[..., None]


class CoordinateLSTM(nn.Module):
  """(carry, gradient) -> (carry, update) of N coordinates: the same weights for each, a state of its own for each.

  Layers of `hidden` LSTM units, then a linear output times `scale`; an update is a step, to be added.
  """

  hidden: int = 20
  layers: int = 2
  scale: float = 0.1
  preprocess: Callable[[Array], Array] = preprocess_gradient

  @nn.compact
  def __call__(self, carry: Any, gradient: Float[Array, " N"]) -> tuple[Any, Float[Array, " N"]]:
    x = self.preprocess(gradient)
    after = []
    for layer_carry in carry:
      layer_carry, x = nn.OptimizedLSTMCell(self.hidden, recurrent_kernel_init=orthogonal())(layer_carry, x)
      after.append(layer_carry)
    return tuple(after), self.scale * nn.Dense(1)(x)[..., 0]

  @nn.nowrap
  def initial_carry(self, count: int) -> Any:
    """Zeros for `count` coordinates: (cell, hidden) of each layer."""
    zeros = jnp.zeros((count, self.hidden))
    return ((zeros, zeros),) * self.layers


def learned_optimizer(network: CoordinateLSTM, weights: Any) -> optax.GradientTransformation:
  """The optax optimizer with these weights: any pytree is one row of coordinates. Its state is the network's carry."""

  def init(params):
    return network.initial_carry(sum(leaf.size for leaf in jax.tree.leaves(params)))

  def update(updates, state, params=None):
    del params
    gradient, unravel = ravel_pytree(updates)
    state, step = network.apply(weights, state, gradient)
    return unravel(step), state

  return optax.GradientTransformation(init, update)


class Run(NamedTuple):
  """One optimizee on its way, or many with a leading axis: what is carried from one truncated unroll to the next."""

  problem: Any
  params: Any
  opt_state: Any
  step: Int[Array, "*B"]


def start(optimizee: Optimizee, optimizer: optax.GradientTransformation, key: Key[Array, ""]) -> Run:
  """A new problem, before its first update."""
  problem_key, params_key = jax.random.split(key)
  params = optimizee.init(params_key)
  return Run(optimizee.sample(problem_key), params, optimizer.init(params), jnp.zeros([], jnp.int32))


def unroll(
  optimizee: Optimizee,
  optimizer: optax.GradientTransformation,
  run: Run,
  length: int,
  second_order: bool = False,
) -> tuple[Run, Float[Array, " T"]]:
  """`length` updates of one optimizee with any optax optimizer: the run after them, and the loss after each.

  Differentiable in whatever `optimizer` closes over. Without `second_order` the gradients that the optimizer gets are
  constants (the dashed edges of figure 2 in Andrychowicz et al. 2016), which avoids second derivatives of the loss.
  """

  def update(carry, _):
    params, opt_state, step = carry
    loss, grads = jax.value_and_grad(optimizee.loss)(params, run.problem, step)
    grads = grads if second_order else jax.lax.stop_gradient(grads)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state, step + 1), loss

  (params, opt_state, step), before = jax.lax.scan(update, (run.params, run.opt_state, run.step), length=length)
  losses = jnp.append(before[1:], optimizee.loss(params, run.problem, step))
  return Run(run.problem, params, opt_state, step), losses


def unroll_loss(
  weights: Any,
  network: CoordinateLSTM,
  optimizee: Optimizee,
  run: Run,
  length: int,
  second_order: bool = False,
) -> tuple[Float[Array, ""], Run]:
  """What the weights are trained on: the sum of one optimizee's losses over an unroll, and the run after it.

    L(weights) = sum_t w_t f(params_t), params_{t+1} = params_t + update_t, w_t = 1      Andrychowicz et al. 2016, eq. 3

  From one unroll to the next the run is a constant: backpropagation through time, truncated at `length` updates.
  """
  run, losses = unroll(optimizee, learned_optimizer(network, weights), run, length, second_order)
  return jnp.sum(losses), run


def restart(runs: Run, fresh: Run, horizon: int) -> Run:
  """`fresh` in the place of each of the runs (leading axis B) that is `horizon` updates old."""
  finished = runs.step >= horizon
  choose = lambda new, old: jnp.where(finished.reshape(-1, *(1,) * (old.ndim - 1)), new, old)
  return jax.tree.map(choose, fresh, runs)
