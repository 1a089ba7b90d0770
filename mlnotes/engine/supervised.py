"""An experiment from two functions: parameters to start from, and a loss per example."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from mlnotes.engine.experiment import Batch, Experiment, masked_mean, require_per_example, stream_key
from mlnotes.optim import eval_params
from mlnotes.optim.flags import make_optimizer


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  opt_state: optax.OptState


def make_supervised(
  init: Callable[[Key[Array, ""], Batch], chex.ArrayTree],
  losses: Callable[[chex.ArrayTree, Batch], Float[Array, " B"]],
  config: Any,
  predict: Callable[[chex.ArrayTree, Any], Any] | None = None,
) -> Experiment:
  """Minimises the mean of `losses(params, batch)` over a batch by the optimizer of the flags, from `init(key, batch)`.

  `losses` gives an array (B,), a loss for each example and not their mean: in evaluations padding does not count, nor
  where a training batch has a `mask`, such as a whole graph, what that leaves out.
  `config` has the fields of `OptimConfig` and `LoopConfig`. It is evaluated by the same losses.
  `predict(params, inputs)` is the model that `mlnotes.load_run` gives. Both take the parameters of `eval_params`.
  """
  optimizer = make_optimizer(config, config.steps)

  def examples_losses(params, batch):
    values = losses(params, batch)
    like = batch["mask"] if "mask" in batch else jax.tree.leaves(batch)[0]
    require_per_example("losses(params, batch)", values, like.shape[:1])
    return values

  def start(key, batch) -> State:
    params = init(stream_key(key, "init"), batch)
    return State(jnp.zeros([], jnp.int32), key, params, optimizer.init(params))

  def mean_loss(params, batch):
    each = examples_losses(params, batch)
    if "mask" not in batch:
      return jnp.mean(each)
    total, count = masked_mean(each, batch["mask"])
    return total / count

  def step(state: State, batch):
    loss, grads = jax.value_and_grad(mean_loss)(state.params, batch)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), {"loss": loss}

  learned = lambda state: eval_params(state.opt_state, state.params)
  evaluate = lambda state, batch: {"loss": masked_mean(examples_losses(learned(state), batch), batch["mask"])}
  model = predict and (lambda state: jax.jit(partial(predict, learned(state))))
  return Experiment(start, step, evaluate, lambda state, directory: None, model=model)
