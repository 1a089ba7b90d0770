"""MAML and its kin as a `Method`: first order, ANIL, multi-step loss, learned rates."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from experiments.meta._meta_training import MetaConfig, MetaParams, Method, State, make_rule
from mlnotes.engine.flags import field, require
from mlnotes.meta.adapt import learned_rates, meta_loss, multi_step_weights, partition, select
from mlnotes.meta.learner import Learner, is_head
from mlnotes.meta.task import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class MAMLConfig(MetaConfig):
  """The flags of the methods that differentiate through the inner loop."""

  TUNED: ClassVar = {
    "images": dict(
      batch_size=16, shots=1, queries=5, inner_learning_rate=0.4, eval_inner_steps=3, width=32, steps=2000,
      eval_every=500, checkpoint_every=500, log_every=50, eval_examples=200, test_tasks=1000,
    )
  }  # fmt: skip

  order: Literal["second", "first"] = field(
    "second", "of the outer gradient; first leaves out the second derivatives: FOMAML"
  )
  adapted: Literal["all", "head"] = field("all", "layers that the inner loop changes; head, the last one: ANIL")
  multi_step_updates: int = field(
    0, "over so many first updates the query loss after every inner step counts, ever less against the last; 0: off"
  )

  def __post_init__(self):
    super().__post_init__()
    require(self.multi_step_updates >= 0, "multi_step_updates", self.multi_step_updates, "0 or more")

  def idle_flags(self):
    alone = {"multi_step_updates": "with --inner_steps=1 the last step is the only one"}
    return super().idle_flags() | (alone if self.inner_steps == 1 else {})


def make_maml(learner: Learner, config: MAMLConfig, learn: Literal["nothing", "step_rates", "rates"]) -> Method:
  """Gradient descent on the query loss after adaptation (Finn et al. 2017, algorithms 1 and 2), averaged over tasks.

  `learn` is what is learned of the inner loop beside its start: nothing; a rate for every leaf and step, of
  `config.inner_steps` (Antoniou et al. 2019); or one for every parameter (Meta-SGD, Li et al. 2017, algorithm 1). Rates
  start at `config.inner_learning_rate`.
  """
  head = config.adapted == "head"
  mask = lambda params: select(params, is_head) if head else None

  def rates(params):
    if learn == "nothing":
      return ()
    shape = (lambda p: p.shape) if learn == "rates" else (lambda p: (config.inner_steps,))
    adapted, _ = partition(params, mask(params))
    return jax.tree.map(lambda p: jnp.full(shape(p), config.inner_learning_rate, p.dtype), adapted)

  def inner(params: MetaParams, hparams):
    if learn == "nothing":
      return optax.chain(make_rule(config.inner_optimizer), optax.scale(-hparams["inner_learning_rate"]))
    return optax.chain(make_rule(config.inner_optimizer), learned_rates(params.rates, learn == "step_rates"))

  def gradient(params: MetaParams, tasks: Task, numbers: Int[Array, " B"], state: State):
    del numbers
    weights = None
    if config.multi_step_updates:
      weights = multi_step_weights(state.step, config.inner_steps, config.multi_step_updates)

    def mean_loss(params: MetaParams):
      one = lambda task: meta_loss(
        learner.support_loss, params.initial, task, inner(params, state.hparams), config.inner_steps,
        query_loss_fn=learner.query_loss, step_weights=weights, first_order=config.order == "first",
        remat=config.remat, mask=mask(params.initial),
      )  # fmt: skip
      return jax.tree.map(jnp.mean, jax.vmap(one)(tasks))

    (loss, figures), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
    # By the names of the evaluation's figures, whose curves they share.
    after = lambda name: f"{name}_after_{config.inner_steps}"
    weighted = "multi_step_loss" if config.multi_step_updates else after("loss")
    return grads, {weighted: loss, **{after(name): value for name, value in figures.items()}}

  return Method(rates, inner, gradient, mask)
