"""Reptile as a `Method`: move towards what plain training on a task gives."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from mlnotes.engine.experiment import example_keys, stream_key
from mlnotes.meta.adapt import adapt, reptile_gradient
from mlnotes.meta.learner import Learner
from mlnotes.meta.method import MetaParams, Method, State, make_rule
from mlnotes.meta.task import Task


def sample_minibatches(key: Key[Array, ""], task: Task, steps: int, size: int) -> dict[str, Array]:
  """`steps` mini-batches of `size` of the task's support and query examples together, with a leading axis of steps.

  Each example comes again only after all others of its pass; a pass that does not fill a mini-batch is cut off.
  """
  examples = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), task.support, task.query)
  count = jax.tree.leaves(examples)[0].shape[0]
  per_pass = count // size
  passes = jax.random.split(key, -(-steps // per_pass))
  order = jax.vmap(lambda key: jax.random.permutation(key, count)[: per_pass * size])(passes)
  index = order.reshape(-1, size)[:steps]
  return jax.tree.map(lambda x: x[index], examples)


def make_reptile(
  learner: Learner, *, inner_optimizer: str = "sgd", inner_steps: int = 10, inner_batch: int = 10
) -> Method:
  """The outer gradient is the start minus the end of `inner_steps` updates on mini-batches of `inner_batch` examples.

  Averaged over tasks.
  Nichol et al. 2018, algorithm 2 and section 6.1.

  Differences from the paper: the inner optimizer starts afresh on every task; its code carries Adam's second moments
  from one task to the next.
  """

  def inner(params: MetaParams, hparams):
    return optax.chain(make_rule(inner_optimizer), optax.scale(-hparams["inner_learning_rate"]))

  def gradient(params: MetaParams, tasks: Task, numbers: Int[Array, " B"], state: State):
    keys = example_keys(stream_key(state.key, "minibatches", state.step), numbers)
    optimizer = inner(params, state.hparams)

    def one(key, task: Task):
      batches = sample_minibatches(key, task, inner_steps, inner_batch)
      adapted = adapt(learner.support_loss, params.initial, batches, optimizer, inner_steps, stacked=True)
      return reptile_gradient(params.initial, adapted.params), adapted.losses

    moves, losses = jax.vmap(one)(keys, tasks)
    grads = MetaParams(jax.tree.map(lambda x: jnp.mean(x, axis=0), moves))
    return grads, {"inner_loss_first": jnp.mean(losses[:, 0]), "inner_loss_last": jnp.mean(losses[:, -1])}

  return Method(lambda params: (), inner, gradient)
