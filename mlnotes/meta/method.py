"""What tells one method of this chapter from another, and what they share: the inner rule, tasks in chunks, judging."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from mlnotes.meta.adapt import adapt
from mlnotes.meta.learner import Learner
from mlnotes.meta.task import Task


class MetaParams(NamedTuple):
  """What is meta-learned: the initialisation, and the rates of the inner loop where these are learned, else ()."""

  initial: chex.ArrayTree
  rates: chex.ArrayTree = ()


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  params: MetaParams
  opt_state: optax.OptState
  hparams: dict[str, Float[Array, ""]]


class Method(NamedTuple):
  """What tells one method of this chapter from another.

  rates:    (initial parameters) -> the rates that are learned, or ().
  inner:    (MetaParams, hparams) -> the optimizer of the inner loop.
  gradient: (MetaParams, tasks, their numbers, state) -> (gradient of MetaParams, {name: scalar}), means over tasks.
  mask:     (initial parameters) -> which of them adapt, or None for all.
  """

  rates: Callable[[chex.ArrayTree], chex.ArrayTree]
  inner: Callable[[MetaParams, Mapping[str, Array]], optax.GradientTransformation]
  gradient: Callable[[MetaParams, Task, Int[Array, " B"], State], tuple[MetaParams, Mapping[str, Array]]]
  mask: Callable[[chex.ArrayTree], Any] = lambda params: None


def make_rule(name: str) -> optax.GradientTransformation:
  """The inner rule without its learning rate.

  Adam has beta1 = 0, as in Nichol et al. 2018, and a root that stays differentiable where a gradient is 0.
  """
  rules = {
    "sgd": optax.identity,
    "momentum": lambda: optax.trace(0.9),
    "adam": lambda: optax.scale_by_adam(b1=0.0, eps_root=1e-12),
  }
  return rules[name]()


def mean_over_chunks(compute: Callable[[Any], Any], tasks: Any, chunk: int) -> Any:
  """The mean of `compute(some tasks)`, itself a mean, over chunks of `chunk` tasks, one chunk after the other."""
  count = jax.tree.leaves(tasks)[0].shape[0]
  chunks = count // (chunk or count)
  if chunks == 1:
    return compute(tasks)
  # A chunk is every `chunks`-th task, so that a batch that is sharded over devices stays sharded.
  split = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, chunks, *x.shape[1:]), 0, 1), tasks)
  add = lambda total, part: (jax.tree.map(jnp.add, total, compute(part)), None)
  shapes = jax.eval_shape(compute, jax.eval_shape(lambda split: jax.tree.map(lambda x: x[0], split), split))
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  return jax.tree.map(lambda x: x / chunks, jax.lax.scan(add, zeros, split)[0])


def make_judge(learner: Learner, method: Method, steps: int) -> Callable:
  """(MetaParams, task, hparams) -> {name: (steps + 1,)}: query loss and figures after 0, 1, .. `steps` updates."""

  def judge(params: MetaParams, task: Task, hparams) -> dict[str, Float[Array, " S"]]:
    inner, mask = method.inner(params, hparams), method.mask(params.initial)
    query = lambda params: learner.query_loss(params, task)
    loss_fn = learner.support_loss
    traced = adapt(loss_fn, params.initial, task.support, inner, steps, mask=mask, trace=query).trace
    return {"loss": traced[0], **traced[1]}

  return judge
