"""What is decayed: by what a leaf is, whatever axes are stacked in front of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.meta import meta_sgd
from experiments.rl import sac
from mlnotes.optim import is_decayed, normalize_filters
from mlnotes.optim.flags import OptimConfig, make_optimizer

STACKED = {
  "layer": {"kernel": jnp.ones((2, 3, 4)), "bias": jnp.ones((2, 4))},
  "norm": {"scale": jnp.ones((2, 4)), "bias": jnp.ones((2, 4))},
  "embed": {"embedding": jnp.ones((5, 3))},
  "rates": {"layer": {"kernel": jnp.ones((3, 4))}},
}


def test_names_decide_then_axes():
  assert is_decayed(STACKED) == {
    "layer": {"kernel": True, "bias": False},
    "norm": {"scale": False, "bias": False},
    "embed": {"embedding": True},
    "rates": {"layer": {"kernel": False}},
  }
  assert is_decayed({"w": jnp.ones((2, 3)), "v": jnp.ones(3)}) == {"w": True, "v": False}
  assert is_decayed([jnp.ones((2, 3)), jnp.ones(3)]) == [True, False]
  assert is_decayed(jnp.ones((2, 3))) is True and is_decayed(jnp.ones(3)) is False


@pytest.mark.parametrize(
  "flags, expected",
  [
    (dict(optimizer="adamw", weight_decay=0.5), -0.05),
    (dict(optimizer="sgdw", weight_decay=0.5), -0.05),
    (dict(optimizer="sgd", momentum=0.0, weight_decay=0.5), -0.05),
    (dict(optimizer="sgd", momentum=0.0, l1=0.3), -0.03),
  ],
)
def test_every_penalty_takes_these(flags, expected):
  """Without a gradient only the penalty moves a parameter of 1: by -rate times its strength."""
  optimizer = make_optimizer(OptimConfig(learning_rate=0.1, **flags), 10)
  updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, STACKED), optimizer.init(STACKED), STACKED)
  want = jax.tree.map(lambda p, decayed: np.full(p.shape, expected if decayed else 0.0), STACKED, is_decayed(STACKED))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, want)


def test_lars_leaves_stacked_biases_alone():
  """A trust ratio would make the update 0.001 of the parameters' norm."""
  optimizer = make_optimizer(OptimConfig(optimizer="lars", momentum=0.0, learning_rate=1.0), 10)
  grads = jax.tree.map(lambda p: jnp.full_like(p, 7.0), STACKED)
  updates, _ = optimizer.update(grads, optimizer.init(STACKED), STACKED)
  np.testing.assert_allclose(updates["layer"]["bias"], -7.0)
  np.testing.assert_allclose(updates["rates"]["layer"]["kernel"], -7.0)
  np.testing.assert_allclose(updates["layer"]["kernel"], -1e-3, rtol=1e-5)


def decided(experiment, batch=()):
  """{path: whether it is decayed} of an experiment's parameters, without computing them."""
  state = jax.eval_shape(experiment.init, jax.random.key(0), batch)
  mask = is_decayed(state.params)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): bool(x) for path, x in jax.tree.leaves_with_path(mask)
  }


def test_stacked_critics_keep_their_biases():
  found = decided(sac.make(sac.Config()))
  assert any(path.endswith("bias") for path in found)
  for path, decayed in found.items():
    assert decayed == path.endswith("kernel"), path


def test_learned_rates_are_never_pulled_to_0():
  config = meta_sgd.Config()
  feed = meta_sgd.make_feeds(config).train
  found = decided(meta_sgd.make(config), jax.eval_shape(feed.draw, feed.arrays, jax.random.key(0), 0))
  assert sum(found.values()) == 3
  for path, decayed in found.items():
    assert decayed == (path.startswith("initial/") and path.endswith("kernel")), path


def test_slices_leave_stacked_biases_where_they_are():
  direction = normalize_filters(jax.tree.map(lambda p: 3 * p, STACKED), STACKED)
  np.testing.assert_array_equal(direction["layer"]["bias"], 0)
  np.testing.assert_allclose(direction["layer"]["kernel"], 1.0, rtol=1e-6)
