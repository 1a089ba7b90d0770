from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.nn.resnet import ResNet, ResNet18, ResNet34, ResNet50


@pytest.mark.parametrize(
  "make, size, features, expected",
  [
    (partial(ResNet18, stem="cifar"), 32, 512, 11_168_832),
    (partial(ResNet18, stem="imagenet", num_classes=1000), 64, 1000, 11_689_512),
    (partial(ResNet34, stem="imagenet", num_classes=1000), 64, 1000, 21_797_672),
    (partial(ResNet50, stem="imagenet", num_classes=1000), 64, 1000, 25_557_032),
  ],
  ids=["18 cifar", "18", "34", "50"],
)
def test_parameter_counts_are_the_published_ones(make, size, features, expected, key):
  images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
  out, variables = jax.eval_shape(partial(make().init_with_output, train=False), key, images)
  assert out.shape == (2, features)
  assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == expected


STAGE_ENDS = tuple(f"stage{stage}_block1" for stage in range(4))


@pytest.mark.parametrize("stem, sizes", [("cifar", [32, 32, 16, 8, 4]), ("imagenet", [32, 16, 8, 4, 2])])
def test_each_stage_halves_the_image_after_the_stem(stem, sizes, key):
  seen = []

  def record(next_call, args, kwargs, context):
    out = next_call(*args, **kwargs)
    if context.method_name == "__call__" and context.module.name in ("stem_conv", *STAGE_ENDS):
      seen.append(out.shape[1])
    return out

  size = 32 if stem == "cifar" else 64
  images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
  with nn.intercept_methods(record):
    jax.eval_shape(partial(ResNet18(stem=stem).init, train=False), key, images)
  assert seen == sizes


@pytest.fixture
def tiny():
  return partial(ResNet, stage_sizes=(1, 1), width=8)


def init(model, key, x):
  return jax.jit(partial(model.init, train=False))(key, x)


def test_blocks_start_as_the_identity_unless_told_otherwise(key):
  data_key, init_key = jax.random.split(key)
  x = jax.random.normal(data_key, (4, 8, 8, 3))
  one_stage = partial(ResNet, stage_sizes=(1,), width=8)
  variables = init(one_stage(), init_key, x)

  def stem(params):
    y = nn.Conv(8, (3, 3), use_bias=False).apply({"params": params["stem_conv"]}, x)
    # Running mean 0 and variance 1 at the start.
    return jnp.mean(nn.relu(y / np.sqrt(1 + 1e-5)), axis=(1, 2))

  expected = stem(variables["params"])
  np.testing.assert_allclose(one_stage().apply(variables, x, train=False), expected, rtol=1e-4, atol=1e-5)
  other = one_stage(zero_init_residual=False)
  variables = init(other, jax.random.clone(init_key), x)
  assert float(jnp.max(jnp.abs(other.apply(variables, x, train=False) - expected))) > 0.1


def test_training_moves_the_running_statistics_by_a_tenth(tiny, key):
  keys = jax.random.split(key, 2)
  x = jax.random.normal(keys[0], (16, 8, 8, 3))
  model = tiny(num_classes=5)
  variables = init(model, keys[1], x)
  train = partial(model.apply, train=True, mutable=["batch_stats"])
  logits, updated = jax.jit(train)(variables, x)
  assert logits.shape == (16, 5)
  stem = nn.Conv(8, (3, 3), use_bias=False).apply({"params": variables["params"]["stem_conv"]}, x)
  stats = updated["batch_stats"]["stem_norm"]
  np.testing.assert_allclose(stats["mean"], 0.1 * np.mean(stem, (0, 1, 2)), atol=1e-5)
  np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * np.var(stem, (0, 1, 2)), rtol=1e-4)


def test_convolutions_start_with_he_variance_of_the_fan_out(tiny, key):
  variables = init(tiny(width=64), key, jnp.zeros((1, 8, 8, 3)))
  kernel = variables["params"]["stage1_block0"]["Conv_1"]["kernel"]
  assert kernel.shape == (3, 3, 128, 128)
  np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / (9 * 128)), rtol=0.02)


def test_another_normalisation_and_dtype_can_be_passed_in(key):
  class Identity(nn.Module):
    use_running_average: bool
    dtype: jnp.dtype
    scale_init: object = None

    def __call__(self, x):
      return x

  model = ResNet(stage_sizes=(1,), width=8, norm=Identity, dtype=jnp.bfloat16)
  images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
  out, variables = jax.eval_shape(partial(model.init_with_output, train=True), key, images)
  assert out.dtype == jnp.bfloat16
  assert set(variables) == {"params"}
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


def test_an_unknown_stem_is_refused():
  with pytest.raises(ValueError, match="stem is 'mnist', expected 'cifar' or 'imagenet'"):
    ResNet18(stem="mnist")
