"""The inner loop: from shared parameters to a task's own, by any optax optimizer, differentiable all the way.

    one = lambda params, task: meta_loss(loss_fn, params, task, optax.sgd(0.01), steps=5)[0]
    grads = jax.grad(lambda params: jnp.mean(jax.vmap(one, (None, 0))(params, tasks)))(params)

Nothing here knows a network: `loss_fn(params, data) -> scalar` and any pytree of parameters will do. One task at a
time; the caller vmaps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Num, PyTree

from mlnotes.meta.task import Task

LossFn: TypeAlias = Callable[[chex.ArrayTree, Any], Float[Array, ""]]


class Adapted(NamedTuple):
  """What an inner loop of S steps leaves behind.

  losses: (S,) the loss on the support set before each step.
  trace:  what `trace(params)` gave after 0, 1, .. S steps, with a leading axis S + 1; None without `trace`.
  """

  params: chex.ArrayTree
  losses: Float[Array, " S"]
  trace: Any = None


def select(params: chex.ArrayTree, predicate: Callable[[str], bool]) -> PyTree[bool]:
  """A mask of `params`: the predicate of each leaf's path, such as "Dense_0/kernel"."""
  mask = lambda path, _: predicate(jax.tree_util.keystr(path, simple=True, separator="/"))
  return jax.tree_util.tree_map_with_path(mask, params)


def partition(params: chex.ArrayTree, mask: PyTree[bool] | None) -> tuple[chex.ArrayTree, chex.ArrayTree]:
  """(selected, rest): two trees like `params` with None where the other has the leaf. No mask selects everything."""
  if mask is None:
    mask = jax.tree.map(lambda _: True, params)
  pick = lambda wanted: jax.tree.map(lambda leaf, chosen: leaf if chosen == wanted else None, params, mask)
  return pick(True), pick(False)


def combine(selected: chex.ArrayTree, rest: chex.ArrayTree) -> chex.ArrayTree:
  """The inverse of `partition`."""
  return jax.tree.map(lambda a, b: b if a is None else a, selected, rest, is_leaf=lambda leaf: leaf is None)


def adapt(
  loss_fn: LossFn,
  params: chex.ArrayTree,
  support: Any,
  inner: optax.GradientTransformation,
  steps: int,
  *,
  first_order: bool = False,
  remat: bool = False,
  mask: PyTree[bool] | None = None,
  stacked: bool = False,
  trace: Callable[[chex.ArrayTree], Any] | None = None,
) -> Adapted:
  """`steps` updates of `inner` on `loss_fn(params, support)`, from `params`.

    theta_{i+1} = theta_i - inner(grad loss(theta_i, support))                      Finn et al. 2017, eq. 1

  Args:
    inner: the optimizer, from a fresh state; its settings may be traced, and differentiated through.
    steps: how many, 0 or more.
    first_order: takes the inner gradients as constants, so that a derivative of the result with respect to `params`
      has no second derivatives of `loss_fn` (Finn et al. 2017, section 5.2). The values stay the same.
    remat: keeps only the parameters of each step and computes the rest again in the outer backward pass: memory for
      one step instead of all, for about a third more arithmetic.
    mask: which leaves adapt (`select`); the others keep their values, as the body does in ANIL (Raghu et al. 2020).
    stacked: `support` has a leading axis of `steps`, a mini-batch for each.
    trace: evaluated on the parameters before the first and after each step.

  Raises ValueError for a negative number of steps.
  """
  if steps < 0:
    raise ValueError(f"steps={steps} is out of range: expected 0 or more.")
  selected, rest = partition(params, mask)
  grad = jax.value_and_grad(lambda selected, data: loss_fn(combine(selected, rest), data))

  def update(carry, data):
    selected, state = carry
    loss, grads = grad(selected, data if stacked else support)
    if first_order:
      grads = jax.lax.stop_gradient(grads)
    updates, state = inner.update(grads, state, selected)
    selected = optax.apply_updates(selected, updates)
    return (selected, state), (loss, trace(combine(selected, rest)) if trace else None)

  body = jax.checkpoint(update, prevent_cse=steps == 1) if remat else update
  data = support if stacked else None
  carry = (selected, inner.init(selected))
  (selected, _), (losses, after) = jax.lax.scan(body, carry, data, length=steps, unroll=steps == 1)
  adapted = combine(selected, rest)
  if trace is None:
    return Adapted(adapted, losses)
  first = trace(params)
  return Adapted(adapted, losses, jax.tree.map(lambda a, b: jnp.concatenate([jnp.asarray(a)[None], b]), first, after))


def meta_loss(
  loss_fn: LossFn,
  params: chex.ArrayTree,
  task: Task,
  inner: optax.GradientTransformation,
  steps: int,
  *,
  query_loss_fn: Callable[[chex.ArrayTree, Task], tuple[Float[Array, ""], Any]] | None = None,
  step_weights: Float[Array, " S"] | None = None,
  **options: Any,
) -> tuple[Float[Array, ""], Any]:
  """The loss on `task.query` after adapting to `task.support`: what the outer loop descends. Finn et al. 2017, eq. 2.

  Args:
    query_loss_fn: (params, task) -> (loss, auxiliary) on the query set, where that is not
      `(loss_fn(params, task.query), None)`: for figures beside the loss, or a network that looks at the support set.
    step_weights: (steps,) weights of the query losses after 1, 2, .. steps, whose weighted sum replaces the last
      one: the multi-step loss of Antoniou et al. 2019, eq. 3.
    options: of `adapt`.

  Returns:
    (loss, auxiliary of the parameters after the last step).
  """
  if query_loss_fn is None:
    query_loss_fn = lambda params, task: (loss_fn(params, task.query), None)
  query = lambda params: query_loss_fn(params, task)
  if step_weights is None:
    return query(adapt(loss_fn, params, task.support, inner, steps, **options).params)
  losses, auxiliary = adapt(loss_fn, params, task.support, inner, steps, trace=query, **options).trace
  return jnp.dot(step_weights, losses[1:]), jax.tree.map(lambda x: x[-1], auxiliary)


def multi_step_weights(step: Num[Array, ""], steps: int, decay_steps: int) -> Float[Array, " S"]:
  """Weights of the query losses after 1, 2, .. S steps at update `step` of the outer loop; their sum is 1.

  Equal at first; over `decay_steps` updates the last one's goes linearly to 1 and the others' to 0, from where on
  plain MAML is trained (Antoniou et al. 2019, section 4).

  Differences from the paper: a straight line to exactly 0; its code keeps a small remainder on the early steps.
  """
  early = jnp.maximum(1 - step / decay_steps, 0.0) / steps
  return jnp.full(steps, early).at[-1].set(1 - (steps - 1) * early)


def learned_rates(rates: chex.ArrayTree, per_step: bool = False) -> optax.GradientTransformation:
  """Gradient descent with a learning rate for every parameter, or every leaf and step: updates -rate * gradient.

  `rates` is a tree like the adapted parameters (`partition`) whose leaves are as large as the parameters or scalars
  (Meta-SGD, Li et al. 2017, eq. 2: any sign is allowed). With `per_step` each has a leading axis of steps, and later
  steps take its last entry (Antoniou et al. 2019, section 4, "per-layer per-step learning rates").
  """

  def update(updates, count, params=None):
    del params
    now = lambda rate: rate.at[count].get(mode="clip") if per_step else rate
    return jax.tree.map(lambda rate, g: -now(rate) * g, rates, updates), count + 1

  return optax.GradientTransformation(lambda _: jnp.zeros([], jnp.int32), update)


def reptile_gradient(params: chex.ArrayTree, adapted: chex.ArrayTree) -> chex.ArrayTree:
  """`params - adapted`: what an outer optimizer descends so that it moves towards the adapted parameters.

  With gradient descent at rate e this is theta + e (adapted - theta), Nichol et al. 2018, algorithm 1.
  """
  return jax.tree.map(jnp.subtract, params, adapted)
