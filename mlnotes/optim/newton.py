"""Second-order steps for small problems: Newton and Gauss-Newton by conjugate gradients, with Levenberg's damping."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from mlnotes.optim.checks import require_non_negative, require_positive
from mlnotes.optim.curvature import hessian_vector_product
from mlnotes.optim.precision import accumulate_in_float32

Vector = Float[Array, " N"]
Scalar = Float[Array, ""] | float


class _Search(NamedTuple):
  step: Int[Array, ""]
  x: Vector
  residual: Vector
  direction: Vector
  done: Array


def conjugate_gradients(
  product: Callable[[Vector], Vector], b: Vector, tolerance: Scalar = 1e-6, max_steps: int | None = None
) -> Vector:
  """Solves A x = b for a symmetric A given by its product with a vector; stops where |b - A x| <= tolerance |b|.

  In a direction of negative curvature it stops with what it has, or, in the first one, with b itself: minimising the
  quadratic model b descends and a saddle is left (Nocedal & Wright 2006, algorithm 7.1 without the trust region).
  `max_steps` is len(b) where it is not given: exact arithmetic needs no more.
  """
  target = tolerance * jnp.linalg.norm(b)

  def body(state: _Search) -> _Search:
    along = product(state.direction)
    curvature = state.direction @ along
    squared = state.residual @ state.residual
    alpha = squared / jnp.where(curvature > 0, curvature, 1)
    residual = state.residual - alpha * along
    direction = residual + (residual @ residual) / squared * state.direction
    moved = _Search(
      state.step + 1, state.x + alpha * state.direction, residual, direction, jnp.linalg.norm(residual) <= target
    )
    stopped = state._replace(x=jnp.where(state.step == 0, b, state.x), done=jnp.ones([], bool))
    return jax.tree.map(lambda a, c: jnp.where(curvature > 0, a, c), moved, stopped)

  limit = b.size if max_steps is None else max_steps
  start = _Search(jnp.zeros([], jnp.int32), jnp.zeros_like(b), b, b, jnp.linalg.norm(b) == 0)
  return jax.lax.while_loop(lambda state: (state.step < limit) & ~state.done, body, start).x


class NewtonState(NamedTuple):
  damping: Float[Array, ""]


def _second_order(
  argument: str,
  product: Callable[..., Any],
  value: Callable[..., Scalar],
  learning_rate: Scalar,
  damping: Scalar,
  adapt: bool,
  tolerance: Scalar,
  max_steps: int | None,
) -> optax.GradientTransformationExtraArgs:
  """-(B + damping I)^-1 g: `product(fn, params, v)` is B v, `value(fn, params)` the loss, `argument` fn's name."""
  (require_positive if adapt else require_non_negative)("damping", damping)

  def init(params):
    return NewtonState(jnp.asarray(damping, jnp.result_type(jnp.float32, *jax.tree.leaves(params))))

  def solve(updates, state, params, fn):
    gradient, unravel = ravel_pytree(updates)
    curved = lambda v: ravel_pytree(product(fn, params, unravel(v)))[0]
    damped = lambda v: curved(v) + state.damping * v
    step = -conjugate_gradients(damped, gradient, tolerance, max_steps)
    if not adapt:
      return unravel(learning_rate * step), state
    step = learning_rate * step
    change = value(fn, optax.apply_updates(params, unravel(step))) - value(fn, params)
    predicted = gradient @ step + 0.5 * step @ curved(step)
    gain = change / jnp.where(predicted == 0, 1, predicted)
    factor = jnp.where(gain > 0.75, 1 / 3, jnp.where(gain < 0.25, 2.0, 1.0))
    factor = jnp.where(predicted == 0, 1.0, jnp.where(jnp.isfinite(gain), factor, 2.0))
    step = jnp.where(change <= 0, step, 0)
    return unravel(step), NewtonState((state.damping * factor).astype(state.damping.dtype))

  def update(updates, state, params=None, **extra):
    if params is None or extra.get(argument) is None:
      raise ValueError(
        f"update() needs params and {argument}=, the function of the parameters whose curvature it uses."
      )
    return solve(updates, state, params, extra[argument])

  return accumulate_in_float32(optax.GradientTransformationExtraArgs(init, update))


def newton(
  learning_rate: Scalar = 1.0,
  damping: Scalar = 0.0,
  adapt: bool = False,
  tolerance: Scalar = 1e-6,
  max_steps: int | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Newton's step -(H + damping I)^-1 g by conjugate gradients on Hessian-vector products.

  Exact in one step on a convex quadratic. `update` takes `value_fn=`, the loss as a function of the parameters; at
  negative curvature it descends instead of being drawn to the saddle (see `conjugate_gradients`).

  Args:
    damping: of Levenberg 1944, >= 0: 0 is Newton, large is gradient descent with rate 1 / damping.
    adapt: after each step damping is divided by 3 where the loss fell by more than 3/4 of what the quadratic model
      promised, doubled where by less than 1/4; a step that raises the loss is not taken (Marquardt 1963; the
      thresholds of Nocedal & Wright 2006, algorithm 4.1). Needs damping > 0.
    tolerance, max_steps: of the conjugate gradients.
  """
  value = lambda fn, params: fn(params)
  return _second_order("value_fn", hessian_vector_product, value, learning_rate, damping, adapt, tolerance, max_steps)


def _gauss_newton_product(residual_fn: Callable[[Any], Array], params: Any, vector: Any) -> Any:
  """J^T J v for the Jacobian J of the residuals."""
  _, along = jax.jvp(residual_fn, (params,), (vector,))
  return jax.vjp(residual_fn, params)[1](along)[0]


def gauss_newton(
  learning_rate: Scalar = 1.0,
  damping: Scalar = 0.0,
  adapt: bool = False,
  tolerance: Scalar = 1e-6,
  max_steps: int | None = None,
) -> optax.GradientTransformationExtraArgs:
  """`newton` with J^T J in the Hessian's place, for the loss 1/2 |residuals|^2, whose gradient it is given.

  `update` takes `residual_fn=`, the residuals as a function of the parameters. J^T J has no negative curvature, so
  every step descends; with `adapt` this is Levenberg-Marquardt.
  """
  value = lambda fn, params: 0.5 * jnp.sum(fn(params) ** 2)
  return _second_order("residual_fn", _gauss_newton_product, value, learning_rate, damping, adapt, tolerance, max_steps)
