"""What a user can get wrong with the layers is one sentence, also where nothing checks the annotations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from mlnotes.nn import (
  CBAM,
  BatchNorm,
  Conv,
  GroupNorm,
  InstanceNorm,
  LayerNorm,
  RMSNorm,
  SeparableConv,
  SqueezeExcitation,
  affine_grid,
  avg_pool,
  choose_norm,
  convolve,
  max_pool,
  sample_bilinear,
  warp_affine,
)


@pytest.fixture(scope="module", autouse=True)
def as_users_have_it():
  """The annotations are not checked outside of the tests."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)


IMAGES = jnp.zeros((2, 5, 4, 6))
COUNTS = jnp.zeros((2, 5, 4, 6), jnp.int32)
KERNEL = jnp.zeros((3, 3, 6, 4))
KEY = jax.random.key(0)
NO_FLOATS = "x is int32, expected floating-point numbers"


def of(module: nn.Module, x=IMAGES, *args):
  return lambda: jax.eval_shape(module.init, KEY, x, *args)


@pytest.mark.parametrize("call, words", [
  (of(SqueezeExcitation(0)), "reduction is 0, expected a positive integer"),
  (of(CBAM(-1)), "reduction is -1, expected a positive integer"),
  (of(CBAM(), IMAGES[0]), r"x has shape \(5, 4, 6\), expected \(B, H, W, C\)"),
  (of(SeparableConv(4, (3, 3, 3))), r"kernel_size is \(3, 3, 3\), expected 2 numbers for x of shape \(2, 5, 4, 6\)"),
  (of(SeparableConv(0)), "features is 0"),
  (of(Conv(0, 3)), "features is 0, kernel_size 3: expected positive integers"),
  (of(Conv(4, (3, 0))), r"kernel_size \(3, 0\): expected positive integers"),
  (lambda: convolve(IMAGES, KERNEL, 1.5), "strides is 1.5, expected a positive integer or 2 of them"),
  (lambda: convolve(IMAGES, KERNEL, (1, 2.0)), r"strides is \(1, 2.0\), expected"),
  (lambda: convolve(IMAGES, KERNEL, padding=((1, 1), (1,))), r"padding is .* expected one number or \(low, high\)"),
  (lambda: max_pool(COUNTS, 2), NO_FLOATS),
  (lambda: avg_pool(COUNTS, 2), NO_FLOATS),
  *((of(norm, COUNTS), NO_FLOATS) for norm in (BatchNorm(False), GroupNorm(2), InstanceNorm(), LayerNorm(), RMSNorm())),
  (of(GroupNorm(0)), "groups=0 must divide the number of channels, found 6"),
  (of(GroupNorm(-3)), "groups=-3 must divide"),
  (of(BatchNorm(False, num_splits=0)), "num_splits=0 is out of range: expected 1 or more"),
  (of(BatchNorm(False), IMAGES, jnp.ones((2, 5, 4, 1))), r"mask has shape .* expected \(2,\) or \(2, 5, 4\)"),
  (lambda: choose_norm(None), "norm is None, expected a factory or one of batch, group, layer, none"),
  (lambda: affine_grid(jnp.eye(2, 3), (4, 4)), r"theta has shape \(2, 3\), expected \(B, 2, 3\)"),
  (lambda: warp_affine(IMAGES, jnp.zeros((2, 6))), r"theta has shape \(2, 6\), expected \(B, 2, 3\)"),
  (lambda: warp_affine(IMAGES, jnp.zeros((1, 2, 3))), r"images of shape .* theta of shape \(1, 2, 3\)"),
  (lambda: warp_affine(IMAGES[0], jnp.zeros((5, 2, 3))), r"images of shape \(5, 4, 6\)"),
  (lambda: sample_bilinear(IMAGES, jnp.zeros((2, 5, 4, 3))), r"grid of shape \(2, 5, 4, 3\), expected"),
  (lambda: sample_bilinear(IMAGES, jnp.zeros((3, 5, 4, 2))), r"grid of shape \(3, 5, 4, 2\), expected"),
])  # fmt: skip
def test_is_one_sentence(call, words):
  with pytest.raises(ValueError, match=words):
    call()


def test_masks_and_strides_may_be_lists_and_numbers_of_numpy():
  x = jax.random.normal(KEY, IMAGES.shape)
  y = jax.jit(lambda x: GroupNorm(2).init_with_output(KEY, x, [True, False])[0])(x)
  assert np.any(y[0]) and not np.any(y[1])
  assert jax.eval_shape(lambda x: convolve(x, KERNEL, np.int64(2)), IMAGES).shape == (2, 3, 2, 4)
