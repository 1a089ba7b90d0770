"""Two updates of each experiment, as its flags build it, against the papers' equations for a linear encoder.

What a flag must do, what a loss must see, and what the report and the monitor must compare are all in these values.
"""

import functools
import zlib
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int
from sklearn.neighbors import KNeighborsClassifier

from experiments.contrastive import _pretraining as chapter, barlow_twins, cpc, instance, moco, simclr, simsiam
from mlnotes.data import ArraySplit, DataSet
from mlnotes.nn import BatchNorm

BATCH, TRAIN, TEST, STEPS = 6, 30, 10, 4
RATE, DECAY, TEMPERATURE = 0.5, 0.05, 0.3


def make_split(size, seed):
  rng = np.random.default_rng(seed)
  return ArraySplit(rng.integers(0, 17, (size, 4, 4, 1), dtype=np.uint8), rng.integers(0, 3, size).astype(np.int32))


DATA = DataSet("noise", make_split(TRAIN, 0), make_split(TEST, 1), 3, ("a", "b", "c"), 17, (4, 4, 1))
INDEX = [np.array([3, 11, 0, 7, 29, 2], np.int32), np.array([5, 3, 1, 20, 8, 10], np.int32)]


class Linear(nn.Module):
  norm: object
  features: int = 8
  dtype: object = jnp.float32

  @nn.compact
  def __call__(self, x, train):
    return self.norm(use_running_average=not train)(nn.Dense(self.features)(x.reshape(x.shape[0], -1)))


@pytest.fixture(scope="module", autouse=True)
def small():
  """Noise for data, a linear encoder, and views that are the image times a random number."""
  with pytest.MonkeyPatch.context() as patch:
    for module in (barlow_twins, cpc, instance, moco, simclr, simsiam):
      features = 32 if module is cpc else 8  # four to a group of GroupNorm
      patch.setattr(
        module, "make_encoder", lambda config, data, norm=BatchNorm, features=features: Linear(norm, features)
      )
      patch.setattr(module, "load_data", lambda config: DATA)
    patch.setattr(chapter, "load_data", lambda config: DATA)
    patch.setattr(chapter, "make_augmentation", lambda config, data: lambda key, x: x * jax.random.uniform(key))
    yield


MOCO = dict(momentum_encoder=0.6, queue_size=16)
CASES = {
  "barlow_twins": (barlow_twins, dict(redundancy_weight=0.2)),
  "simclr": (simclr, {}),
  "moco v1, symmetric": (moco, dict(version="v1", symmetric=True, bn_splits=2, bn_shuffle="permutation", **MOCO)),
  "moco v2": (moco, dict(version="v2", bn_splits=2, bn_shuffle="stride", **MOCO)),
  "simsiam": (simsiam, dict(bottleneck=8)),
  "instance": (instance, dict(proximal_weight=0.7, bank_momentum=0.4)),
  "instance, noise": (instance, dict(noise_samples=5, bank_momentum=0.4)),
  "cpc": (cpc, dict(patch_size=2, patch_stride=1, first_offset=1, num_offsets=2, context_layers=1)),
}
each_case = pytest.mark.parametrize("case", CASES)


def configure(case):
  module, settings = CASES[case]
  settings = settings if module in (barlow_twins, cpc, simsiam) else {"temperature": TEMPERATURE, **settings}
  return module, module.Config(
    batch_size=BATCH, projection=4, optimizer="sgd", momentum=0.0, learning_rate=RATE, weight_decay=DECAY,
    schedule="linear", warmup_steps=0, steps=STEPS, seed=0, knn_k=2, knn_temperature=0.5, **settings,
  )  # fmt: skip


def batch_of(split, index):
  return {**split.read(index), "index": jnp.asarray(index), "mask": jnp.ones(len(index))}


@functools.cache
def trained(case):
  """(experiment, states before, between and after two updates, their metrics)."""
  module, config = configure(case)
  experiment = module.make(config)
  batches = [batch_of(DATA.train, index) for index in INDEX]
  states, metrics = [jax.jit(experiment.init)(jax.random.key(7), batches[0])], []
  step = jax.jit(experiment.step)
  for batch in batches:
    state, found = step(states[-1], batch)
    states.append(state)
    metrics.append(found)
  return experiment, states, metrics


# -- the equations, for an encoder that is one matrix and BatchNorm ----------------------------------------------------


class Draws(NamedTuple):
  """What is random in an update, as the names of its streams say: a compiled function draws it for both updates."""

  views: Float[Array, "2 B 16"]  # on [-1, 1]
  noise: Int[Array, "B 5"]  # rows of the bank
  orders: Int[Array, "2 B"]  # of the keys, for each direction


@jax.jit
def draw(step, image, index):
  named = lambda name: jax.random.fold_in(
    jax.random.fold_in(jax.random.key(7), zlib.crc32(name.encode()) & 0x7FFFFFFF), step
  )
  own = lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, index)
  factors = jnp.stack([jax.vmap(jax.random.uniform)(own(named(f"view{i}"))) for i in range(2)])
  return Draws(
    2 * factors[..., None] * (image.reshape(1, BATCH, -1) / 16) - 1,
    jax.vmap(lambda key: jax.random.randint(key, (5,), 0, TRAIN))(own(named("loss"))),
    jnp.stack([jax.random.permutation(jax.random.fold_in(named("loss"), i), BATCH) for i in range(2)]),
  )


def dense(p, x):
  return x @ p["kernel"] + (p["bias"][None] if "bias" in p else 0.0)


def batch_norm(x, p=None, splits=1):
  parts = x.reshape(splits, -1, x.shape[-1])
  parts = (parts - parts.mean(1, keepdims=True)) / jnp.sqrt(parts.var(1, keepdims=True) + 1e-5)
  y = parts.reshape(x.shape)
  return y if p is None else y * p["scale"][None] + p["bias"][None]


def encode(p, x, splits=1):
  return batch_norm(dense(p["Dense_0"], x), p["BatchNorm_0"], splits)


def unit(x):
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def cross_entropy(logits, right):
  return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(right)), jnp.asarray(right)])


def simclr_loss(p, memory, draws, step):
  h = encode(p["encoder"], draws.views.reshape(2 * BATCH, -1))
  h = nn.relu(batch_norm(dense(p["head"]["Dense_0"], h), p["head"]["BatchNorm_0"]))
  z = unit(dense(p["head"]["Dense_1"], h))
  logits = jnp.where(np.eye(2 * BATCH, dtype=bool), -1e9, z @ z.T / TEMPERATURE)
  return cross_entropy(logits, np.roll(np.arange(2 * BATCH), BATCH)), memory


def barlow_twins_loss(p, memory, draws, step):
  h, head = encode(p["encoder"], draws.views.reshape(2 * BATCH, -1)), p["head"]
  for i in range(2):
    h = nn.relu(batch_norm(h @ head[f"Dense_{i}"]["kernel"], head[f"BatchNorm_{i}"]))
  z = batch_norm(h @ head["Dense_2"]["kernel"]).reshape(2, BATCH, -1)
  c = batch_norm(z[0]).T @ batch_norm(z[1]) / BATCH
  wanted = np.eye(len(c))
  return jnp.sum(jnp.where(wanted == 1, 1.0, 0.2) * (c - wanted) ** 2), memory


def simsiam_loss(p, memory, draws, step):
  head, predictor = p["head"], p["predictor"]
  h = encode(p["encoder"], draws.views.reshape(2 * BATCH, -1))
  h = nn.relu(batch_norm(h @ head["Dense_0"]["kernel"], head["BatchNorm_0"]))
  z = batch_norm(h @ head["Dense_1"]["kernel"])
  q = nn.relu(batch_norm(z @ predictor["Dense_0"]["kernel"], predictor["BatchNorm_0"]))
  q = dense(predictor["Dense_1"], q)
  target = jax.lax.stop_gradient(jnp.roll(unit(z), BATCH, axis=0))
  return -jnp.mean(jnp.sum(unit(q) * target, axis=1)), memory


def moco_loss(p, memory, draws, step, version, splits, shuffle, symmetric):
  key_params, queue = memory
  key_params = jax.tree.map(lambda k, q: 0.6 * k + 0.4 * jax.lax.stop_gradient(q), key_params, p)

  def embed(p, x):
    h, head = encode(p["encoder"], x, splits), p["head"]
    return unit(
      dense(head["Dense_0"], h) if version == "v1" else dense(head["Dense_1"], nn.relu(dense(head["Dense_0"], h)))
    )

  total, after = 0.0, queue
  directions = [(0, 1), (1, 0)] if symmetric else [(0, 1)]
  for i, (query_view, key_view) in enumerate(directions):
    order = draws.orders[i] if shuffle == "permutation" else jnp.arange(BATCH).reshape(splits, -1).T.reshape(-1)
    query, keys = embed(p, draws.views[query_view]), embed(key_params, draws.views[key_view][order])
    keys = keys[jnp.argsort(order)]
    logits = jnp.concatenate([jnp.sum(query * keys, axis=1, keepdims=True), query @ queue.T], axis=1) / TEMPERATURE
    total += cross_entropy(logits, np.zeros(BATCH, int)) / len(directions)
    rows = (np.arange(BATCH) + BATCH * (step * len(directions) + i)) % len(queue)
    after = after.at[rows].set(keys)
  return total, (key_params, after)


def instance_loss(p, memory, draws, step, noise_samples, proximal_weight):
  bank, normalizer = memory
  index = jnp.stack(INDEX)[step]
  v = unit(dense(p["head"]["Dense_0"], encode(p["encoder"], draws.views[0])))
  if noise_samples:
    own = jnp.exp(jnp.sum(v * bank[index], axis=1) / TEMPERATURE)
    others = jnp.exp(jnp.sum(v[:, None] * bank[draws.noise], axis=2) / TEMPERATURE)
    normalizer = jnp.where(step == 0, jax.lax.stop_gradient(TRAIN * jnp.mean(others)), normalizer)
    chance = lambda weight: weight / normalizer / (weight / normalizer + noise_samples / TRAIN)
    total = -jnp.mean(jnp.log(chance(own)) + jnp.sum(jnp.log(1 - chance(others)), axis=1))
  else:
    total = cross_entropy(v @ bank.T / TEMPERATURE, index)
  total += proximal_weight * jnp.mean(jnp.sum((v - bank[index]) ** 2, axis=1))
  return total, (bank.at[index].set(unit(0.4 * bank[index] + 0.6 * v)), normalizer)


def cpc_loss(p, memory, draws, step):
  image = draws.views[0].reshape(BATCH, 4, 4)
  grid = jnp.stack([image[:, r : r + 3, s : s + 3] for r in range(2) for s in range(2)], axis=-1)
  h = (grid @ p["encoder"]["Dense_0"]["kernel"] + p["encoder"]["Dense_0"]["bias"][None, None, None]).reshape(-1, 8, 4)
  h = (h - h.mean(2, keepdims=True)) / jnp.sqrt(h.var(2, keepdims=True) + 1e-6)
  h = h.reshape(-1, 32) * p["encoder"]["GroupNorm_0"]["scale"][None] + p["encoder"]["GroupNorm_0"]["bias"][None]
  z = dense(p["projection"], h).reshape(BATCH, 3, 3, 4)
  c, context = dense(p["context"]["Dense_0"], z.reshape(-1, 4)).reshape(z.shape), p["context"]
  # A patch sees three patches of the row above and three of its own row.
  padded = jnp.pad(nn.relu(c), ((0, 0), (1, 0), (1, 1), (0, 0)))
  y = sum(padded[:, r : r + 3, s : s + 3] @ context["Conv_0"]["kernel"][r, s] for r in range(2) for s in range(3))
  y = nn.relu(y.reshape(-1, 4) + context["Conv_0"]["bias"][None])
  c += (y @ context["Conv_1"]["kernel"][0, 0] + context["Conv_1"]["bias"][None]).reshape(z.shape)
  losses = []
  for k in (1, 2):
    prediction = (c[:, : 3 - k] @ p[f"predict{k}"]["kernel"]).reshape(-1, 4)
    losses.append(cross_entropy(prediction @ z[:, k:].reshape(-1, 4).T, np.arange(len(prediction))))
  return sum(losses) / 2, memory


def reference_loss(case):
  module, settings = CASES[case]
  if module is moco:
    own = (settings["version"], settings["bn_splits"], settings["bn_shuffle"], settings.get("symmetric", False))
    return lambda *args: moco_loss(*args, *own)
  if module is instance:
    own = (settings.get("noise_samples", 0), settings.get("proximal_weight", 0.0))
    return lambda *args: instance_loss(*args, *own)
  return {barlow_twins: barlow_twins_loss, simclr: simclr_loss, simsiam: simsiam_loss, cpc: cpc_loss}[module]


def memory_of(case, state):
  if CASES[case][0] is moco:
    return state.memory.params, state.memory.queue.keys
  return tuple(state.memory)


def assert_close(found, expected):
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4, err_msg=jax.tree_util.keystr(path))


@each_case
def test_two_updates_are_those_of_the_equations(case):
  _, states, metrics = trained(case)
  params, memory = states[0].params, memory_of(case, states[0])
  gradient = jax.jit(jax.value_and_grad(reference_loss(case), has_aux=True))
  for step, (state, found) in enumerate(zip(states[1:], metrics)):
    (loss, memory), grads = gradient(params, memory, draw(step, DATA.train.image[INDEX[step]], INDEX[step]), step)
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-3)
    rate = RATE * (1 - step / STEPS)
    decayed = lambda path: DECAY if path[-1].key == "kernel" else 0.0
    params = jax.tree_util.tree_map_with_path(lambda path, p, g: p - rate * (g + decayed(path) * p), params, grads)  # noqa: B023
    assert_close(state.params, params)
    assert_close(memory_of(case, state), memory)
    assert int(state.step) == step + 1


def normalise_as_seen(p, stats, x):
  x = dense(p["Dense_0"], x)
  stats, p = stats["BatchNorm_0"], p["BatchNorm_0"]
  return (x - stats["mean"][None]) / np.sqrt(stats["var"][None] + 1e-5) * p["scale"][None] + p["bias"][None]


@pytest.mark.parametrize("case", ["barlow_twins", "simclr", "moco v2", "simsiam", "instance"])
def test_a_probe_sees_the_encoders_features_under_running_statistics_and_the_monitor_searches_them(case):
  experiment, states, _ = trained(case)
  state, (module, config) = states[-1], configure(case)
  features = {}
  for name, split in (("train", DATA.train), ("test", DATA.test)):
    pixels = 2 * split.image.reshape(len(split), -1) / np.float32(16) - 1
    features[name] = np.asarray(normalise_as_seen(state.params["encoder"], state.batch_stats["encoder"], pixels))
  embed = jax.jit(experiment.embed)
  test, reference = (embed(state, batch_of(split, np.arange(len(split)))) for split in (DATA.test, DATA.train))
  np.testing.assert_allclose(test["features"], features["test"], rtol=1e-3, atol=1e-4)
  assert test["embedding"].shape == (TEST, 4)
  monitor = KNeighborsClassifier(2, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.5))
  expected = monitor.fit(features["train"], DATA.train.label).score(features["test"], DATA.test.label)
  found = jax.jit(experiment.evaluate)(state, batch_of(DATA.test, np.arange(TEST)), reference)["knn_accuracy"]
  np.testing.assert_allclose(found.total / found.count, expected, atol=1e-6)
  feeds = module.make_feeds(config)
  np.testing.assert_array_equal(feeds.reference.arrays["label"][:TRAIN], DATA.train.label)
  np.testing.assert_array_equal(feeds.evaluate.arrays["label"][:TEST], DATA.test.label)


@each_case
def test_no_hyper_parameter_of_a_method_has_the_name_of_one_of_the_optimizer(case):
  state = trained(case)[1][0]
  injected = set(state.opt_state.hyperparams) if hasattr(state.opt_state, "hyperparams") else set()
  leaves = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)]
  assert injected or any("momentum" in leaf for leaf in leaves)
  for name in state.hparams:
    assert name not in injected and not any(f"hyperparams['{name}']" in leaf for leaf in leaves)
