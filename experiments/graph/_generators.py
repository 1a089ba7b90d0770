"""The methods of `experiments.graph.generation`, each as the same few functions of what it has learned."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from mlnotes import graph
from mlnotes.data.drawn_graphs import SmallGraphs
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import stream_key
from mlnotes.generative import compute_elbo
from mlnotes.optim import update_ema
from mlnotes.optim.flags import make_optimizer

Metrics = dict[str, Float[Array, ""]]
# (adjacency (B, N, N), type of each node (B, N)); 0 where there is nothing.
Drawn = tuple[Array, Array]


class Generator(NamedTuple):
  """A method of generation.

  init:     (key, batch) -> (parameters, optimizer state).
  update:   (state, batch) -> (parameters, optimizer state, metrics).
  evaluate: (parameters, batch, key of each graph) -> {name: number of each graph}.
  sample:   (parameters, key, count) -> graphs.
  judged_by: the number of `evaluate` by which the best checkpoint is kept, the least.
  """

  init: Callable[..., Any]
  update: Callable[..., Any]
  evaluate: Callable[..., dict[str, Float[Array, " B"]]]
  sample: Callable[[Any, Key[Array, ""], int], Drawn]
  judged_by: str


def _types_of(num_nodes: Int[Array, " B"], most_nodes: int) -> Int[Array, "B N"]:
  return (jnp.arange(most_nodes)[None] < num_nodes[:, None]).astype(jnp.int32)


def _descend(optimizer: optax.GradientTransformation, loss_fn: Callable[..., Any], state: Any):
  (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  metrics = {"loss": loss, **metrics, "grad_norm": optax.global_norm(grads)}
  return optax.apply_updates(state.params, updates), opt_state, metrics


# -- GraphRNN ----------------------------------------------------------------------------------------------------------


def find_max_previous(config: Any, data: SmallGraphs) -> int:
  """M: the flag, or how far back edges go in breadth-first orders of the training graphs."""
  if config.max_previous:
    most = max(data.most_nodes - 1, 1)
    said = f"0 to {most} for graphs of {data.most_nodes} nodes"
    require(config.max_previous <= most, "max_previous", config.max_previous, said)
    return config.max_previous
  return _measure(data.name, *(data.train.arrays[name].tobytes() for name in ("adjacency", "num_nodes")))


@functools.lru_cache(maxsize=2)
def _measure(name: str, adjacency: bytes, num_nodes: bytes) -> int:
  """Once for the arrays of a set, however often the experiment is made."""
  sizes = np.frombuffer(num_nodes, np.int32)
  side = math.isqrt(len(adjacency) // len(sizes))
  return graph.measure_max_previous(np.frombuffer(adjacency, np.uint8).reshape(-1, side, side), sizes)


def make_graph_rnn(config: Any, data: SmallGraphs) -> Generator:
  """GraphRNN, or its simple form: the negative log-likelihood of a breadth-first order drawn anew for each update."""
  size, reach = data.most_nodes, find_max_previous(config, data)
  model = graph.GraphRNN(
    reach,
    edge_level=config.method == "graph_rnn",
    width=config.width,
    depth=config.depth,
    embedding=max(config.width // 2, 1),
    edge_width=config.edge_width,
    edge_depth=config.depth,
    edge_embedding=max(config.edge_width // 2, 1),
  )
  optimizer = make_optimizer(config, config.steps)

  def make_batch(batch, keys):
    def of_one(key, adjacency, num_nodes):
      order = graph.draw_order(key, adjacency, num_nodes)
      return graph.make_rows(graph.encode_graph(adjacency, order, reach), num_nodes)

    return jax.vmap(of_one)(keys, batch["adjacency"], batch["num_nodes"])

  def compute_losses(params, rows):
    logits = model.apply({"params": params}, rows.inputs, rows.targets)
    return jax.vmap(graph.sequence_loss)(logits, rows)

  def init(key, batch):
    rows = jnp.ones((1, size, reach))
    params = model.init(stream_key(key, "init"), rows, rows)["params"]
    return params, optimizer.init(params)

  def update(state, batch):
    rows = make_batch(batch, jax.random.split(stream_key(state.key, "order", state.step), len(batch["num_nodes"])))

    def loss_fn(params):
      losses = compute_losses(params, rows)
      # Of an edge that can be there, as the authors have it; the figure is of a graph.
      return jnp.sum(losses) / jnp.sum(rows.mask), {"nll": jnp.mean(losses)}

    return _descend(optimizer, loss_fn, state)

  def evaluate(params, batch, keys):
    return {"nll": compute_losses(params, make_batch(batch, keys))}

  def sample(params, key, count):
    adjacency, num_nodes = graph.sample_graphs(model, {"params": params}, key, count, size)
    return adjacency, _types_of(num_nodes, size)

  return Generator(init, update, evaluate, sample, "nll")


# -- GraphVAE ----------------------------------------------------------------------------------------------------------


def make_graph_vae(config: Any, data: SmallGraphs) -> Generator:
  """GraphVAE with its nodes put where they fit, or in an order of their own."""
  model = graph.GraphVAE(data.most_nodes, config.latents, config.width, (2 * config.width, 4 * config.width))
  optimizer = make_optimizer(config, config.steps)
  apply = lambda params, *inputs, method: model.apply({"params": params}, *inputs, method=method)

  def compute_bound(params, batch, noise):
    def log_likelihood(z):
      def of_one(adjacency, num_nodes, *logits):
        options = dict(iterations=config.matching_iterations, rounds=config.matching_rounds)
        place = graph.choose_places(config.order, adjacency, num_nodes, *logits, **options)
        return graph.placed_log_likelihood(adjacency, num_nodes, place, *logits)

      return jax.vmap(of_one)(batch["adjacency"], batch["num_nodes"], *apply(params, z, method="decode"))

    q = apply(params, batch["adjacency"], batch["num_nodes"], method="encode")
    return compute_elbo(noise[None], q, log_likelihood)

  def init(key, batch):
    params = model.init(stream_key(key, "init"), batch["adjacency"][:1], batch["num_nodes"][:1])["params"]
    return params, optimizer.init(params)

  def update(state, batch):
    noise = jax.random.normal(stream_key(state.key, "noise", state.step), (len(batch["num_nodes"]), config.latents))

    def loss_fn(params):
      bound = compute_bound(params, batch, noise)
      kl = jnp.mean(jnp.sum(bound.kl, -1))
      grown = jnp.minimum(1.0, (state.step + 1) / max(config.anneal_steps, 1))
      loss = grown * state.hparams["beta"] * kl - jnp.mean(bound.log_likelihood)
      return loss, {"negative_elbo": -jnp.mean(bound.bound), "kl": kl}

    return _descend(optimizer, loss_fn, state)

  def evaluate(params, batch, keys):
    noise = jax.vmap(lambda key: jax.random.normal(key, (config.latents,)))(keys)
    bound = compute_bound(params, batch, noise)
    return {"negative_elbo": -bound.bound, "kl": jnp.sum(bound.kl, -1)}

  def sample(params, key, count):
    of_latents, of_graphs = jax.random.split(key)
    z = jax.random.normal(of_latents, (count, config.latents))
    adjacency, num_nodes = graph.draw_graphs(of_graphs, *apply(params, z, method="decode"))
    return adjacency, _types_of(num_nodes, data.most_nodes)

  return Generator(init, update, evaluate, sample, "negative_elbo")


# -- MolGAN ------------------------------------------------------------------------------------------------------------


def make_mol_gan(config: Any, data: SmallGraphs) -> Generator:
  """Several updates of the critic, each on graphs of its own, then one of the generator, whose average is sampled."""
  kinds = len(data.edge_types) + 1, len(data.node_types) + 1
  generator = graph.MolGenerator(data.most_nodes, *kinds, (2 * config.width, 4 * config.width))
  critic = graph.MolCritic((config.width, config.width), 2 * config.width, config.batch_features)
  optimizers = make_optimizer(config, config.steps), make_optimizer(config, config.steps, config.critic_steps)

  def generate(params, key, count, temperature):
    of_noise, of_types = jax.random.split(key)
    logits = generator.apply({"params": params}, jax.random.normal(of_noise, (count, config.latents)))
    return graph.draw_types(of_types, *logits, temperature)

  def init(key, batch):
    of = lambda name: stream_key(key, name)
    one = graph.make_typed(batch["adjacency"][:1], batch["node_type"][:1], *kinds)
    own = generator.init(of("generator"), jnp.zeros((1, config.latents)))["params"]
    other = critic.init(of("critic"), one)["params"]
    params = {"generator": own, "critic": other, "average": jax.tree.map(jnp.copy, own)}
    return params, (optimizers[0].init(own), optimizers[1].init(other))

  def update(state, batch):
    hparams, own, other, (own_state, other_state) = state.hparams, *_players(state.params), state.opt_state
    parts = lambda x: x.reshape(config.critic_steps, -1, *x.shape[1:])
    key = stream_key(state.key, "critic", state.step)

    def update_critic(carry, inputs):
      params, opt_state = carry
      number, adjacency, node_type = inputs
      of_fake, of_share = jax.random.split(jax.random.fold_in(key, number))
      real = graph.make_typed(adjacency, node_type, *kinds)
      fake = jax.lax.stop_gradient(generate(own, of_fake, len(adjacency), hparams["temperature"]))
      # One for all where a batch is seen as a whole: else its mean is half real always, and nothing holds the rest.
      share = jax.random.uniform(of_share, (1,) if config.batch_features else (len(adjacency),))
      share = jnp.broadcast_to(share, (len(adjacency),))
      loss_fn = lambda params: graph.critic_loss(critic, params, real, fake, share, hparams["penalty_weight"])
      grads, metrics = jax.grad(loss_fn, has_aux=True)(params)
      updates, opt_state = optimizers[1].update(grads, opt_state, params)
      return (optax.apply_updates(params, updates), opt_state), metrics

    rounds = jnp.arange(config.critic_steps), parts(batch["adjacency"]), parts(batch["node_type"])
    (other, other_state), metrics = jax.lax.scan(update_critic, (other, other_state), rounds)
    key = stream_key(state.key, "generator", state.step)
    count = len(batch["adjacency"]) // config.critic_steps
    pay = lambda params: graph.generator_loss(critic, other, generate(params, key, count, hparams["temperature"]))
    loss, grads = jax.value_and_grad(pay)(own)
    updates, own_state = optimizers[0].update(grads, own_state, own)
    own = optax.apply_updates(own, updates)
    average = update_ema(state.params["average"], own, state.step, hparams["ema_decay"])
    metrics = {
      **jax.tree.map(jnp.mean, metrics),
      "generator_loss": loss,
      "generator_gradient": optax.global_norm(grads),
    }
    return {"generator": own, "critic": other, "average": average}, (own_state, other_state), metrics

  def evaluate(params, batch, keys):
    real = graph.make_typed(batch["adjacency"], batch["node_type"], *kinds)
    fake = jax.vmap(lambda key: jax.tree.map(lambda x: x[0], generate(params["average"], key, 1, 1.0)))(keys)
    # Each alone, or a score would hang on how the split is cut into batches.
    score = jax.vmap(lambda one: critic.apply({"params": params["critic"]}, jax.tree.map(lambda x: x[None], one))[0])
    real, fake = score(real), score(fake)
    return {"score_gap": real - fake, "real_score": real, "fake_score": fake}

  def sample(params, key, count):
    return graph.read_types(generate(params["average"], key, count, 1.0))

  return Generator(init, update, evaluate, sample, "score_gap")


def _players(params: chex.ArrayTree) -> tuple[chex.ArrayTree, chex.ArrayTree]:
  return params["generator"], params["critic"]


GENERATORS: dict[str, Callable[[Any, SmallGraphs], Generator]] = {
  "graph_rnn": make_graph_rnn,
  "graph_rnn_simple": make_graph_rnn,
  "graph_vae": make_graph_vae,
  "mol_gan": make_mol_gan,
}
