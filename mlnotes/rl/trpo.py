"""Trust region policy optimization: a natural-gradient step whose KL divergence is held (Schulman et al. 2015)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Vector = Float[Array, " P"]


def conjugate_gradient(
  product: Callable[[Any], Any], b: Vector, iterations: int, tolerance: float = 1e-10
) -> tuple[Vector, Float[Array, ""]]:
  """(x, |b - A x|^2) with A x close to b, for the symmetric positive definite A behind `product`.

  Starts at 0 and stops after `iterations`, or once the squared residual is below `tolerance`; the residual is the
  recursion's own. Hestenes & Stiefel 1952.
  """

  def one(_, carry):
    x, residual, direction, squared = carry
    image = product(direction)
    going = squared > tolerance
    rate = jnp.where(going, squared / jnp.where(going, jnp.vdot(direction, image), 1.0), 0.0)
    x = x + rate * direction
    residual = residual - rate * image
    new = jnp.vdot(residual, residual)
    turn = jnp.where(going, new / jnp.where(going, squared, 1.0), 0.0)
    return x, residual, residual + turn * direction, jnp.where(going, new, squared)

  start = (jnp.zeros_like(b), b, b, jnp.vdot(b, b))
  x, _, _, squared = jax.lax.fori_loop(0, iterations, one, start)
  return x, squared


class TrustRegionStep(NamedTuple):
  """The parameters after the step, and how it went.

  Attributes:
    params: a vector (P,); the old one where no step was accepted.
    kl: mean KL(old || new) of the accepted step, 0 where there is none; never above the bound.
    improvement: of the surrogate.
    accepted: whether the line search found a step.
    backtracks: how often the step was shortened.
  """

  params: Vector
  kl: Float[Array, ""]
  improvement: Float[Array, ""]
  accepted: Bool[Array, ""]
  backtracks: Int[Array, ""]


def trust_region_step(
  surrogate: Callable[[Any], Any],
  kl: Callable[[Any], Any],
  params: Vector,
  max_kl: Float[Array, ""] | float,
  *,
  curvature_kl: Callable[[Any], Any] | None = None,
  damping: Float[Array, ""] | float = 0.1,
  cg_iterations: int = 10,
  max_backtracks: int = 10,
  shrink: float = 0.8,
) -> TrustRegionStep:
  """Maximises `surrogate` within KL(old || new) <= `max_kl`.

    x = (F + damping I)^-1 g by conjugate gradients, F the Hessian of the KL at `params`
    step = sqrt(2 max_kl / x.(F + damping I) x) x, shortened by `shrink` until the KL holds and the surrogate improves

  Schulman et al. 2015, appendix C.

  Args:
    surrogate: vector -> scalar, the importance-weighted advantage, to be maximised.
    kl: vector -> scalar, mean KL(old || new); 0 with zero gradient at `params`.
    params: all parameters of the policy as one vector.
    curvature_kl: the KL whose Hessian is F, if not `kl`: on a share of the states it costs that share.
  """
  curvature_kl = curvature_kl or kl
  value, gradient = jax.value_and_grad(surrogate)(params)
  # The KL's gradient is 0 here, so that its Hessian is the Fisher information.
  fisher = lambda v: jax.jvp(jax.grad(curvature_kl), (params,), (v,))[1] + damping * v
  direction, _ = conjugate_gradient(fisher, gradient, cg_iterations)
  curvature = jnp.vdot(direction, fisher(direction))
  full = jnp.sqrt(2 * max_kl / jnp.maximum(curvature, 1e-20)) * direction

  def try_step(i):
    candidate = params + shrink**i * full
    divergence, improvement = kl(candidate), surrogate(candidate) - value
    return divergence, improvement, (divergence <= max_kl) & (improvement > 0)

  def searching(carry):
    i, _, _, accepted = carry
    return ~accepted & (i < max_backtracks)

  def shorten(carry):
    i, *_ = carry
    return i + 1, *try_step(i + 1.0)

  first = try_step(jnp.float32(0))
  i, divergence, improvement, accepted = jax.lax.while_loop(searching, shorten, (jnp.float32(0), *first))
  none = jnp.zeros([])
  return TrustRegionStep(
    params=jnp.where(accepted, params + shrink**i * full, params),
    kl=jnp.where(accepted, divergence, none),
    improvement=jnp.where(accepted, improvement, none),
    accepted=accepted,
    backtracks=i.astype(jnp.int32),
  )
