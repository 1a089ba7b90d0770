"""Many short runs of one small decoder: one program for all that differ in length, text, rate and seed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from mlnotes.data import Corpus, fixed_subset
from mlnotes.data.order import order_bits, permute_index
from mlnotes.engine.experiment import root_key, stream_key
from mlnotes.lm import LanguageModel, causal_objective, count_parameters, make_llama, token_cross_entropy
from mlnotes.optim.decay import is_decayed

WARMUP = 0.1  # of a run's updates
_DECAY = 0.1
_AT_ONCE = 32  # windows


class Job(NamedTuple):
  """A run.

  Attributes:
    updates: how many; the rate's schedule ends with them.
    rate: the largest.
    unique: windows of the training text that it learns from, again and again; 0: all of them.
  """

  updates: int
  rate: float
  seed: int = 0
  unique: int = 0


def build(vocabulary: int, length: int, width: int, depth: int, heads: int) -> LanguageModel:
  return make_llama(vocabulary, length, depth, heads, width)


def count(module: LanguageModel) -> int:
  """Parameters, the embedding among them."""
  tokens = jnp.zeros((1, 2), jnp.int32)
  return count_parameters(jax.eval_shape(lambda: module.init(root_key(0), tokens)["params"]))


def visit_order(windows: int, job: Job, batch_size: int) -> Int[np.ndarray, "S B"]:
  """The windows of each update: whole passes over those that the job may see, each in an order of its own.

  Fewer unique ones are among more of them, whatever the seed.
  """
  unique, wanted = job.unique or windows, job.updates * batch_size
  seen = permute_index(np.arange(windows), windows, np.zeros(2, np.uint32))[:unique]
  key = root_key(job.seed)
  passes = -(-wanted // unique)
  bits = [np.asarray(order_bits(key, epoch)) for epoch in range(passes)]
  order = np.concatenate([seen[permute_index(np.arange(unique), unique, words)] for words in bits])
  return order[:wanted].reshape(job.updates, batch_size).astype(np.int32)


def rate_at(step: Array, updates: Array, rate: Array) -> Float[Array, ""]:
  """Up to `rate` over a tenth of the updates, and by a cosine to 0 at their end."""
  warmup = jnp.maximum(jnp.floor(WARMUP * updates), 1)
  along = jnp.clip((step + 1 - warmup) / jnp.maximum(updates - warmup, 1), 0, 1)
  return rate * jnp.minimum((step + 1) / warmup, 0.5 * (1 + jnp.cos(jnp.pi * along)))


def share_work(work: Sequence[float], devices: int) -> list[list[int]]:
  """Which pieces each device does: the largest first, to whoever has least to do."""
  shares: list[list[int]] = [[] for _ in range(devices)]
  for i in sorted(range(len(work)), key=lambda i: -work[i]):
    min(shares, key=lambda share: sum(work[j] for j in share)).append(i)
  return shares


def train_jobs(
  module: LanguageModel, corpus: Corpus, jobs: Sequence[Job], batch_size: int, test_windows: int = 0
) -> Float[np.ndarray, "J W T"]:
  """Trains each job and gives the nats of every token of the test text's windows (so many of them; 0: all).

  AdamW, decay of matrices, gradients cut to norm 1. The devices share the jobs; none waits for another.
  """
  windows, length = len(corpus.train), corpus.train.length
  chosen = fixed_subset(len(corpus.test), test_windows or len(corpus.test))
  test = np.asarray(corpus.test.read(chosen)["tokens"])
  padded = np.concatenate([test, np.repeat(test[-1:], -len(test) % min(_AT_ONCE, len(test)), 0)])
  test_batches = jnp.asarray(padded.reshape(-1, min(_AT_ONCE, len(test)), length + 1))
  tokens, stride = jnp.asarray(corpus.train.arrays["tokens"]), corpus.train.stride
  objective = causal_objective(module)
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99), optax.add_decayed_weights(_DECAY, is_decayed)
  )

  def one(key: Key[Array, ""], order: Int[Array, "S B"], updates: Int[Array, ""], rate: Float[Array, ""]):
    params = module.init(stream_key(key, "init"), test_batches[0, :1, :-1])["params"]

    def update(step, carry):
      params, state = carry
      places = order[step][:, None] * stride + jnp.arange(length + 1)[None]
      batch = {"tokens": tokens[places].astype(jnp.int32)}

      def loss(params):
        found = objective.terms(params, batch, None)["loss"]
        return jnp.sum(found.total) / jnp.sum(found.count)

      change, state = optimizer.update(jax.grad(loss)(params), state, params)
      by = rate_at(step, updates, rate)
      return optax.apply_updates(params, jax.tree.map(lambda x: -by * x, change)), state

    params, _ = jax.lax.fori_loop(0, updates, update, (params, optimizer.init(params)))
    judge = lambda batch: token_cross_entropy(module.apply({"params": params}, batch[:, :-1]), batch[:, 1:])[0]
    return jax.lax.map(judge, test_batches).reshape(-1, length)[: len(test)]

  return _on_devices(one, jobs, windows, batch_size)


def _on_devices(one: Any, jobs: Sequence[Job], windows: int, batch_size: int) -> Float[np.ndarray, "J W T"]:
  """`one` of each job: a device has its jobs one after the other, and does nothing in the place of those it lacks."""
  most = max(job.updates for job in jobs)
  shares = share_work([job.updates for job in jobs], min(jax.local_device_count(), len(jobs)))
  rows = max(map(len, shares))
  order = np.zeros((len(shares) * rows, most, batch_size), np.int32)
  updates, rates, seeds = (np.zeros(len(order), kind) for kind in (np.int32, np.float32, np.int32))
  where = {i: device * rows + row for device, share in enumerate(shares) for row, i in enumerate(share)}
  for i, place in where.items():
    order[place, : jobs[i].updates] = visit_order(windows, jobs[i], batch_size)
    updates[place], rates[place], seeds[place] = jobs[i].updates, jobs[i].rate, jobs[i].seed
  mesh = jax.sharding.Mesh(np.array(jax.local_devices()[: len(shares)]), ("jobs",))
  spec = jax.sharding.PartitionSpec("jobs")
  each = lambda *given: jax.lax.map(lambda row: one(*row), given)
  shared = jax.jit(jax.shard_map(each, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
  found = np.asarray(shared(jax.vmap(root_key)(jnp.asarray(seeds)), *map(jnp.asarray, (order, updates, rates))))
  return found[[where[i] for i in range(len(jobs))]]
