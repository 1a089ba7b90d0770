"""What each method does in one update: who is a negative, what gets a gradient, who shares statistics with whom."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlnotes.contrastive.barlow_twins import make_barlow_twins
from mlnotes.contrastive.heads import Embedder, MLPHead
from mlnotes.contrastive.instance import make_instance_discrimination
from mlnotes.contrastive.loss import info_nce, normalize
from mlnotes.contrastive.method import State, flatten_views
from mlnotes.contrastive.moco import invert_order, make_key_order, make_moco
from mlnotes.contrastive.simclr import make_simclr
from mlnotes.contrastive.simsiam import make_simsiam
from mlnotes.nn import BatchNorm

BATCH = 16


class Linear(nn.Module):
  """The smallest encoder with BatchNorm."""

  norm: object = BatchNorm

  @nn.compact
  def __call__(self, x, train):
    return self.norm(use_running_average=not train)(nn.Dense(8)(x.reshape(x.shape[0], -1)))


def make_views(key, batch=BATCH):
  return jax.random.normal(key, (batch, 2, 4, 4, 1))


def start(method, key):
  variables, memory = jax.jit(method.init)(key, make_views(jax.random.key(5))[:, 0])
  hparams = {name: jnp.float32(value) for name, value in method.hparams.items()}
  stats = variables.get("batch_stats", {})
  return State(jnp.int32(0), jax.random.key(9), variables["params"], stats, (), memory, hparams)


def moco(**changes):
  settings = dict(queue_size=48, momentum=0.9, temperature=0.2, num_splits=4)
  settings.update(changes)
  encoder = Linear(partial(BatchNorm, num_splits=settings["num_splits"]))
  return make_moco(Embedder(encoder, MLPHead((8, 4))), **settings)


def compute(method, state, views, key, sharding=None):
  """(loss, outcome, gradient) of one update."""
  batch = {"index": jnp.arange(len(views), dtype=jnp.int32)}
  if sharding is not None:
    views, batch = jax.device_put((views, batch), sharding)
  function = jax.jit(jax.value_and_grad(method.loss, has_aux=True))
  (loss, outcome), gradient = function(state.params, state, views, batch, key)
  return loss, outcome, gradient


METHODS = {
  "barlow_twins": lambda: make_barlow_twins(Embedder(Linear(), MLPHead((8, 4), norm=BatchNorm, norm_last=True)), 5e-3),
  "simclr": lambda: make_simclr(Embedder(Linear(), MLPHead((8, 4), norm=BatchNorm)), 0.5),
  "simsiam": lambda: make_simsiam(Embedder(Linear(), MLPHead((8,), BatchNorm, True), MLPHead((4, 8), BatchNorm))),
  "moco": moco,
  "moco, symmetric": partial(moco, symmetric=True),
  "moco, stride": partial(moco, shuffle="stride"),
  "instance": lambda: make_instance_discrimination(
    Embedder(Linear(), MLPHead((4,))), 40, temperature=0.1, bank_momentum=0.5, noise_samples=12, proximal_weight=1.0
  ),
}


@pytest.mark.parametrize("name", METHODS)
def test_loss_and_gradients_are_the_same_on_one_and_on_eight_devices(name, key):
  method = METHODS[name]()
  state, views = start(method, key), make_views(jax.random.key(1))
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  one = compute(method, state, views, jax.random.key(2))
  eight = compute(method, state, views, jax.random.key(2), jax.NamedSharding(mesh, jax.P("data")))
  assert float(optax.global_norm(one[2])) > 1e-3
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


# -- shared statistics -------------------------------------------------------------------------------------------------


def companions(num_splits, order):
  """(B, B) booleans: whether row i of a split batch norm, shown in `order` and put back, depends on row j."""
  norm = BatchNorm(use_running_average=False, num_splits=num_splits, use_scale=False, use_bias=False)

  def encode(x):
    return norm.apply({"batch_stats": stats}, x[order], mutable=["batch_stats"])[0][invert_order(order)]

  x = jax.random.normal(jax.random.key(3), (BATCH, 1))
  stats = {"mean": jnp.zeros(1), "var": jnp.ones(1)}
  return np.abs(jax.jacobian(encode)(x)[:, 0, :, 0]) > 1e-7


def shares_statistics(shuffle, num_splits, key):
  """Whether some query is normalised over just the images that its key is normalised over."""
  queries = companions(num_splits, jnp.arange(BATCH))
  keys = companions(num_splits, make_key_order(shuffle, key, BATCH, num_splits))
  return bool(np.any(np.all(queries == keys, axis=1)))


@pytest.mark.parametrize("shuffle", ["permutation", "stride"])
def test_a_query_and_its_key_never_share_statistics(shuffle, key):
  assert not shares_statistics(shuffle, 4, key)


@pytest.mark.parametrize("shuffle, num_splits", [("permutation", 1), ("stride", 1), ("none", 4)])
def test_a_single_group_and_an_order_that_is_kept_do_share_them(shuffle, num_splits, key):
  assert shares_statistics(shuffle, num_splits, key)


def test_stride_takes_one_member_from_each_split_of_the_queries(key):
  order = make_key_order("stride", key, 16, 4).reshape(4, 4)
  np.testing.assert_array_equal(np.sort(order // 4, axis=1), np.tile(np.arange(4), (4, 1)))


def test_order_is_inverted(key):
  order = jax.random.permutation(key, 11)
  np.testing.assert_array_equal(jnp.arange(11)[order][invert_order(order)], jnp.arange(11))


# -- momentum contrast -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [False, True])
def test_negatives_are_the_queue_before_this_batch_and_keys_enter_in_order(symmetric, key):
  """Recomputed without shuffling or splits: an own key among the negatives would raise the loss."""
  method = moco(symmetric=symmetric, num_splits=1, momentum=0.0)
  state, views = start(method, key), make_views(jax.random.key(1))
  loss, outcome, _ = compute(method, state, views, jax.random.key(2))
  network = Embedder(Linear(), MLPHead((8, 4)))
  variables = {"params": state.params, "batch_stats": state.batch_stats}
  encode = lambda x: normalize(network.apply(variables, x, train=True, mutable=["batch_stats"])[0][1])
  a, b = encode(views[:, 0]), encode(views[:, 1])
  before = state.memory.queue.keys
  losses = [info_nce(a, b, before, 0.2), info_nce(b, a, before, 0.2)][: 2 if symmetric else 1]
  np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-4)
  rows = np.concatenate([b, a] if symmetric else [b])
  after = outcome.memory.queue
  assert int(after.pointer) == len(rows)
  np.testing.assert_allclose(after.keys[: len(rows)], rows, rtol=1e-3, atol=1e-5)
  np.testing.assert_array_equal(after.keys[len(rows) :], before[len(rows) :])


def test_the_momentum_encoder_follows_and_gets_no_gradient(key):
  method = moco(momentum=0.75)
  state, views = start(method, key), make_views(jax.random.key(1))
  moved = jax.tree.map(lambda p: p + 1.0, state.params)
  _, outcome, _ = compute(method, state._replace(params=moved), views, jax.random.key(2))
  jax.tree.map(
    lambda old, new: np.testing.assert_allclose(new, old + 0.25, rtol=1e-5, atol=1e-6),
    state.memory.params,
    outcome.memory.params,
  )

  def by_key_encoder(key_params):
    memory = state.memory._replace(params=key_params)
    return method.loss(state.params, state._replace(memory=memory), views, {}, jax.random.key(2))[0]

  gradient = jax.jit(jax.grad(by_key_encoder))(state.memory.params)
  assert float(optax.global_norm(gradient)) == 0


# -- the others --------------------------------------------------------------------------------------------------------


def test_simclr_normalises_both_views_together(key):
  method = METHODS["simclr"]()
  state, views = start(method, key), make_views(jax.random.key(1))
  _, outcome, _ = compute(method, state, views, jax.random.key(2))
  dense = state.params["encoder"]["Dense_0"]
  flat = flatten_views(views).reshape(2 * BATCH, -1) @ dense["kernel"] + dense["bias"][None]
  np.testing.assert_allclose(
    outcome.batch_stats["encoder"]["BatchNorm_0"]["mean"], 0.1 * flat.mean(0), rtol=1e-3, atol=1e-6
  )


def test_simsiam_stops_the_gradient_of_its_target(key):
  """With a predictor of zeros the prediction is constant: only what flows through the target could move the encoder."""

  def encoder_gradient(stop_gradient):
    network = Embedder(Linear(), MLPHead((8,), BatchNorm, True), MLPHead((4, 8), BatchNorm))
    method = make_simsiam(network, stop_gradient)
    state = start(method, key)
    last = state.params["predictor"]["Dense_1"]
    fixed = {"kernel": jnp.zeros_like(last["kernel"]), "bias": jnp.ones_like(last["bias"])}
    params = {**state.params, "predictor": {**state.params["predictor"], "Dense_1": fixed}}
    views = make_views(jax.random.key(1))
    gradient = jax.jit(jax.grad(lambda p: method.loss(p, state, views, {}, jax.random.key(2))[0]))(params)
    return float(optax.global_norm(gradient["encoder"]))

  assert encoder_gradient(True) == 0
  key = jax.random.clone(key)
  assert encoder_gradient(False) > 1e-4


def test_instance_discrimination_fixes_its_constant_at_the_first_batch_and_moves_the_bank(key):
  method = METHODS["instance"]()
  state, views = start(method, key), make_views(jax.random.key(1))
  assert float(state.memory.normalizer) == 0
  _, first, _ = compute(method, state, views, jax.random.key(2))
  assert float(first.memory.normalizer) > 0
  _, second, _ = compute(method, state._replace(memory=first.memory), views[::-1], jax.random.key(3))
  assert float(second.memory.normalizer) == float(first.memory.normalizer)
  moved = np.any(first.memory.bank != state.memory.bank, axis=1)
  np.testing.assert_array_equal(moved, np.arange(40) < BATCH)
  np.testing.assert_allclose(jnp.linalg.norm(first.memory.bank, axis=1), 1, rtol=1e-5)
