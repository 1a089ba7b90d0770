"""MAML and its kin as a `Method`: first order, ANIL, multi-step loss, learned rates."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from mlnotes.meta.adapt import learned_rates, meta_loss, multi_step_weights, partition, select
from mlnotes.meta.learner import Learner, is_head
from mlnotes.meta.method import MetaParams, Method, State, make_rule
from mlnotes.meta.task import Task


def make_maml(
  learner: Learner,
  *,
  learn: Literal["nothing", "step_rates", "rates"] = "nothing",
  inner_optimizer: str = "sgd",
  inner_learning_rate: float = 0.01,
  inner_steps: int = 1,
  order: Literal["second", "first"] = "second",
  adapted: Literal["all", "head"] = "all",
  multi_step_updates: int = 0,
  remat: bool = False,
) -> Method:
  """Gradient descent on the query loss after adaptation (Finn et al. 2017, algorithms 1 and 2), averaged over tasks.

  Args:
    learn: what is learned of the inner loop beside its start: nothing; a rate for every leaf and step (Antoniou et al.
      2019); or one for every parameter (Meta-SGD, Li et al. 2017, algorithm 1). Rates start at `inner_learning_rate`.
    order: first leaves out the second derivatives (FOMAML).
    adapted: the layers that the inner loop changes; head, the last one alone (ANIL, Raghu et al. 2020).
    multi_step_updates: over so many first updates the query loss after every inner step counts, ever less against the
      last (Antoniou et al. 2019); 0: never.
    remat: compute the inner steps again in the backward pass instead of keeping them.
  """
  head = adapted == "head"
  mask = lambda params: select(params, is_head) if head else None

  def rates(params):
    if learn == "nothing":
      return ()
    shape = (lambda p: p.shape) if learn == "rates" else (lambda p: (inner_steps,))
    adapted, _ = partition(params, mask(params))
    return jax.tree.map(lambda p: jnp.full(shape(p), inner_learning_rate, p.dtype), adapted)

  def inner(params: MetaParams, hparams):
    if learn == "nothing":
      return optax.chain(make_rule(inner_optimizer), optax.scale(-hparams["inner_learning_rate"]))
    return optax.chain(make_rule(inner_optimizer), learned_rates(params.rates, learn == "step_rates"))

  def gradient(params: MetaParams, tasks: Task, numbers: Int[Array, " B"], state: State):
    del numbers
    weights = None
    if multi_step_updates:
      weights = multi_step_weights(state.step, inner_steps, multi_step_updates)

    def mean_loss(params: MetaParams):
      one = lambda task: meta_loss(
        learner.support_loss, params.initial, task, inner(params, state.hparams), inner_steps,
        query_loss_fn=learner.query_loss, step_weights=weights, first_order=order == "first",
        remat=remat, mask=mask(params.initial),
      )  # fmt: skip
      return jax.tree.map(jnp.mean, jax.vmap(one)(tasks))

    (loss, figures), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
    # By the names of the evaluation's figures, whose curves they share.
    after = lambda name: f"{name}_after_{inner_steps}"
    weighted = "multi_step_loss" if multi_step_updates else after("loss")
    return grads, {weighted: loss, **{after(name): value for name, value in figures.items()}}

  return Method(rates, inner, gradient, mask)
