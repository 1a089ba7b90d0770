"""CPC: patches, what a context may see, and the candidates of its loss."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.contrastive.cpc import (
  CPCNetwork,
  RowContext,
  SequenceContext,
  extract_patches,
  future_losses,
  group_norm,
  make_cpc,
)
from mlnotes.contrastive.loss import mutual_information_bound
from mlnotes.nn import ConvNet


def test_patches_are_the_windows_of_numpy(key):
  image = jax.random.normal(key, (2, 9, 7, 3))
  expected = np.lib.stride_tricks.sliding_window_view(np.asarray(image), (3, 3), axis=(1, 2))[:, ::2, ::2]
  np.testing.assert_array_equal(extract_patches(image, 3, 2), np.moveaxis(expected, 3, -1))
  with pytest.raises(ValueError, match="a patch of 8 pixels does not fit into an image of 9 x 7"):
    extract_patches(image, 8, 1)


@pytest.mark.parametrize("context", [RowContext(4, layers=3), SequenceContext(4)], ids=["rows", "sequence"])
def test_a_context_sees_the_past_and_all_of_it_but_no_future(context, key):
  shape = (1, 4, 3, 2) if isinstance(context, RowContext) else (1, 4, 2)
  z = jax.random.normal(key, shape)
  params = context.init(jax.random.key(1), z)

  squares = lambda z: jnp.sum(context.apply(params, z) ** 2, axis=(0, *range(2, z.ndim)))  # one number for each step
  jacobian = jax.jit(jax.jacrev(squares))(z)
  depends = np.max(np.abs(np.asarray(jacobian)).reshape(4, 4, -1), axis=-1) > 0  # target, source
  np.testing.assert_array_equal(depends, np.tri(4, dtype=bool))


def test_losses_tell_the_future_from_all_of_the_batch(key):
  """Equation 4 in loops over images, rows and columns."""
  z, prediction = np.asarray(jax.random.normal(key, (2, 3, 4, 2, 5)))
  (found,) = future_losses(jnp.asarray(z), [jnp.asarray(prediction)], [2])
  candidates = [z[b, r, s] for b in range(3) for r in (2, 3) for s in range(2)]
  for b in range(3):
    for r in (0, 1):
      for s in range(2):
        scores = np.array([prediction[b, r, s] @ c for c in candidates])
        expected = np.log(np.sum(np.exp(scores))) - prediction[b, r, s] @ z[b, r + 2, s]
        np.testing.assert_allclose(found[b, r, s], expected, rtol=1e-4)


def test_the_bound_reaches_the_mutual_information_of_a_deterministic_code():
  """Four equally likely codes that the future repeats: log 4 nats, and the bound cannot claim more."""
  codes = 30 * jnp.eye(4)[jnp.arange(64) % 4][:, None]
  z = jnp.concatenate([codes, codes], axis=1)
  (losses,) = future_losses(z, [z], [1])
  np.testing.assert_allclose(mutual_information_bound(jnp.mean(losses), 64), np.log(4), rtol=1e-5)


def test_the_network_predicts_every_offset_with_weights_of_its_own(key):
  network = CPCNetwork(
    encoder=ConvNet(width=8, norm=group_norm), context=RowContext(6), features=6, offsets=(3, 4), patch_size=3,
    patch_stride=1,
  )  # fmt: skip
  init = lambda key, x: network.init_with_output(key, x, train=True)
  (z, context, predictions), variables = jax.eval_shape(init, key, jnp.zeros((2, 8, 8, 1)))
  assert z.shape == context.shape == predictions[0].shape == (2, 6, 6, 6) and len(predictions) == 2
  assert {"predict3", "predict4"} < set(variables["params"]) and "batch_stats" not in variables


def test_padding_gives_no_candidates_and_a_batch_that_is_not_full_counts(key):
  z, prediction = (jax.random.normal(k, (3, 4, 2, 5)) for k in jax.random.split(key))
  padded = [jnp.concatenate([x, jnp.repeat(x[-1:], 2, axis=0)]) for x in (z, prediction)]
  mask = jnp.arange(5) < 3
  (expected,) = future_losses(z, [prediction], [1])
  (found,) = future_losses(padded[0], [padded[1]], [1], mask.astype(jnp.float32))
  np.testing.assert_allclose(found[:3], expected, rtol=1e-5)

  network = CPCNetwork(
    encoder=Flat(), context=RowContext(4, layers=1), features=4, offsets=(1,), patch_size=2, patch_stride=2
  )
  method, images = make_cpc(network), jax.random.normal(jax.random.key(3), (5, 4, 4, 1))
  variables, _ = method.init(jax.random.key(1), images)
  few = method.judge(variables, images[:3], jnp.ones(3))
  found = method.judge(variables, images.at[3:].set(images[2]), mask.astype(jnp.float32))
  np.testing.assert_allclose(found["information_limit"], np.log(3 * 2), rtol=1e-5)  # one row of two patches each
  np.testing.assert_allclose(found["information"], few["information"], rtol=1e-4)


class Flat(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    return x.reshape(len(x), -1)
