"""Flows: determinants against Jacobians, inverses, densities that integrate to 1, constants by hand, floors."""

import dataclasses
import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from mlnotes.data import load
from mlnotes.engine.errors import InputError
from mlnotes.generative import density_floors, flow, flow_layers
from mlnotes.generative.flow_networks import (
  ARCHITECTURES,
  ConvConditioner,
  DenseConditioner,
  FlowModel,
  FlowSizes,
  count_levels,
)
from mlnotes.generative.plane import PLANES

IMAGE, LEVELS = (4, 4, 1), 17


def perturb(variables, size=0.3):
  """Parameters moved away from where they start: couplings begin as the identity, which every mistake passes."""
  rng = np.random.default_rng(0)
  moved = jax.tree.map(
    lambda leaf: leaf + size * rng.normal(size=leaf.shape).astype(leaf.dtype), variables.get("params", {})
  )
  return {**variables, "params": moved}


def dense(features):
  return DenseConditioner(features, 8, 1)


def conv(features):
  return ConvConditioner(features, 4, 1)


LAYERS = {
  "actnorm": (lambda: flow_layers.ActNorm(), (2, 2, 3)),
  "scale": (lambda: flow_layers.DiagonalScale(True), (5,)),
  "linear": (lambda: flow_layers.InvertibleLinear(), (2, 2, 3)),
  "squeeze": (lambda: flow_layers.Squeeze(), (2, 4, 3)),
  "masked, additive": (lambda: flow_layers.MaskedCoupling(conv(2), "none", parity=1), (2, 3, 2)),
  "masked, tanh": (lambda: flow_layers.MaskedCoupling(dense(10), "tanh"), (5,)),
  "halves, sigmoid": (lambda: flow_layers.ChannelCoupling(conv(4), "sigmoid"), (2, 2, 3)),
  "halves, flipped": (lambda: flow_layers.ChannelCoupling(conv(2), "tanh", flip=True), (2, 2, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_log_determinant_is_that_of_the_jacobian_in_float64(name):
  make, shape = LAYERS[name]
  layer = make()
  with jax.enable_x64(True):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, *shape)) * 2 + 1)

    @jax.jit
    def measure(x):
      variables = perturb(layer.init(jax.random.key(0), x, method="forward"))
      forward = lambda x: layer.apply(variables, x, method="forward")
      z, log_det = forward(x)
      flat = lambda row: forward(row.reshape(1, *shape))[0].reshape(-1)
      jacobian = jax.vmap(jax.jacrev(flat))(x.reshape(3, -1))
      return z, log_det, jacobian, layer.apply(variables, z, method="inverse")

    z, log_det, jacobian, back = jax.tree.map(np.asarray, measure(x))
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(back, x, atol=1e-9)
    assert z.shape == (3, *layer.output_shape(shape))
    assert name == "squeeze" or not np.allclose(z, x)


@cache
def image_model(name):
  model = FlowModel(ARCHITECTURES[name](IMAGE, FlowSizes(2, 4, 0)), IMAGE, LEVELS, "normal", 0.05)
  x = jnp.asarray(np.random.default_rng(0).random((6, *IMAGE)), jnp.float32)
  return model, perturb(jax.jit(model.init)(jax.random.key(0), x), 0.1), x


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_whole_flows_of_images_have_the_jacobians_determinant_and_an_inverse(name):
  model, variables, x = image_model(name)

  @jax.jit
  def measure(variables, x):
    z, log_det = model.encode(variables, x)
    jacobian = jax.jacrev(lambda row: model.encode(variables, row[None])[0][0])(x[0]).reshape(16, 16)
    return log_det, model.decode(variables, z), jacobian

  log_det, back, jacobian = jax.tree.map(np.asarray, measure(variables, x))
  np.testing.assert_allclose(log_det[0], np.linalg.slogdet(jacobian.astype(np.float64))[1], rtol=1e-4)
  np.testing.assert_allclose(back, x, atol=1e-5)
  assert log_det.shape == (6,) and np.ptp(log_det) > 1e-3


@pytest.mark.parametrize("base", ["normal", "logistic"])
def test_density_of_an_example_hangs_on_no_other_one(base):
  model, variables, x = image_model("nice")
  model = dataclasses.replace(model, base=base)
  z, log_det = jax.jit(model.encode)(variables, x)
  reference = {"normal": scipy.stats.norm, "logistic": scipy.stats.logistic}[base]
  expected = reference.logpdf(np.asarray(z, np.float64)).sum(1) + np.asarray(log_det)
  density = jax.jit(model.log_density)
  np.testing.assert_allclose(density(variables, x[:2]), expected[:2], rtol=1e-5)
  np.testing.assert_allclose(density(variables, x), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_density_of_the_plane_integrates_to_1(name):
  model = FlowModel(
    ARCHITECTURES[name]((2,), FlowSizes(2, 8, 1)), (2,), base="logistic" if name == "nice" else "normal"
  )
  ticks = np.linspace(-16, 16, 641, dtype=np.float32)
  cells = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)

  @jax.jit
  def density(cells):
    first = jax.random.normal(jax.random.key(2), (50, 2))
    variables = perturb(model.init(jax.random.key(1), first))
    return jnp.exp(model.log_density(variables, cells))

  mass = np.sum(np.asarray(density(cells), np.float64)) * (ticks[1] - ticks[0]) ** 2
  assert mass == pytest.approx(1, abs=2e-3)


# -- constants ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nice", "realnvp"])
def test_untrained_identity_has_the_bits_computed_by_hand(name):
  """All pixels at level 8 of 17 with noise .5 are x = .5: (log 17 + log(2 pi) / 2 + .125) / log 2 bits."""
  model = FlowModel(ARCHITECTURES[name](IMAGE, FlowSizes(1, 4, 0), from_data=False), IMAGE, LEVELS, "normal", 0.0)
  image, noise = jnp.full((2, *IMAGE), 8, jnp.uint8), jnp.full((2, *IMAGE), 0.5)
  variables = jax.jit(model.init)(jax.random.key(0), flow.dequantize(image, noise, LEVELS))
  bits = jax.jit(model.bits_per_dim)(variables, image, noise)
  np.testing.assert_allclose(bits, [5.593552] * 2, rtol=1e-6)
  assert pytest.approx(5.593552, rel=1e-6) == (math.log(17) + 0.125 + math.log(2 * math.pi) / 2) / math.log(2)


def test_bits_of_a_uniform_density_are_the_levels():
  assert flow.bits_per_dim(jnp.zeros(3), 256, 784).tolist() == [8.0] * 3
  # A density of 2^D on half of each side costs one bit less.
  assert float(flow.bits_per_dim(jnp.array(784 * math.log(2)), 256, 784)) == pytest.approx(7, rel=1e-6)


def test_dequantisation_fills_the_unit_interval_without_gaps_or_overlap():
  image = jnp.arange(256, dtype=jnp.uint8)[:, None]
  low, high = (np.asarray(flow.dequantize(image, jnp.full((256, 1), u), 256))[:, 0] for u in (0.0, 0.99999))
  np.testing.assert_array_equal(low, np.arange(256, dtype=np.float32) / 256)
  np.testing.assert_allclose(high[:-1], low[1:], atol=1e-6)
  assert low[0] == 0 and 0.999 < high[-1] < 1
  for u in (0.0, 0.5, 0.999):
    points = flow.dequantize(image, jnp.full((256, 1), u), 256)
    np.testing.assert_array_equal(flow.to_grey_levels(points, 256), image)


def test_logit_and_its_jacobian():
  x = jnp.asarray(np.linspace(0, 1, 7), jnp.float32)[:, None]
  y, log_det = flow.logit(x, 0.05)
  np.testing.assert_allclose(y[[0, 3, 6], 0], [math.log(0.05 / 0.95), 0, math.log(0.95 / 0.05)], atol=1e-5)
  slope = jax.vmap(jax.grad(lambda v: flow.logit(v[None, None], 0.05)[0][0, 0]))(x[:, 0])
  np.testing.assert_allclose(log_det, np.log(slope), rtol=1e-4)
  np.testing.assert_allclose(flow.inverse_logit(y, 0.05), x, atol=1e-6)


def test_base_densities_are_scipys():
  z = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32) * 3
  np.testing.assert_allclose(flow.normal_log_density(jnp.asarray(z)), scipy.stats.norm.logpdf(z).sum(1), rtol=1e-5)
  np.testing.assert_allclose(
    flow.logistic_log_density(jnp.asarray(z)), scipy.stats.logistic.logpdf(z).sum(1), rtol=1e-5
  )


def test_floors_without_a_network_are_those_that_were_measured_elsewhere():
  """One normal of dequantised digits: 2.94 bits raw and 2.46 through the logit, as another program had them."""
  data = load("digits")
  train, test = (split.arrays["image"] for split in (data.train, data.test))
  assert density_floors.gaussian_bits(train, test, 17).mean() == pytest.approx(2.94, abs=0.01)
  assert density_floors.gaussian_bits(train, test, 17, 0.05).mean() == pytest.approx(2.46, abs=0.01)
  assert density_floors.histogram_bits(train, test, 17).mean() == pytest.approx(2.42, abs=0.02)


def test_floors_of_few_pixels_are_scipys_and_brute_force():
  rng = np.random.default_rng(0)
  train, test = (rng.integers(0, 4, (40, 3, 1, 1)).astype(np.uint8) for _ in range(2))
  points, held = (density_floors.dequantize_with_seed(image, 4, seed) for seed, image in enumerate((train, test)))
  normal = scipy.stats.multivariate_normal(points.mean(0), np.cov(points.T, bias=True))
  np.testing.assert_allclose(
    density_floors.gaussian_bits(train, test, 4), (np.log(4) - normal.logpdf(held) / 3) / np.log(2), rtol=1e-9
  )
  counts = [[np.sum(train[:, d, 0, 0] == level) + 0.5 for level in range(4)] for d in range(3)]
  expected = [np.mean([-np.log2(counts[d][row[d, 0, 0]] / 42) for d in range(3)]) for row in test]
  np.testing.assert_allclose(density_floors.histogram_bits(train, test, 4), expected, rtol=1e-12)


# -- parts -------------------------------------------------------------------------------------------------------------


def test_actnorm_starts_from_the_first_batch_and_has_no_statistics_of_another():
  layer = flow_layers.ActNorm()
  first, second = (jnp.asarray(np.random.default_rng(i).normal(3, 2 + i, (20, 3, 3, 2)), jnp.float32) for i in (0, 1))
  variables = layer.init(jax.random.key(0), first, method="forward")
  z, log_det = layer.apply(variables, first, method="forward")
  np.testing.assert_allclose(np.mean(z, (0, 1, 2)), 0, atol=1e-4)
  np.testing.assert_allclose(np.std(z, (0, 1, 2)), 1, atol=1e-4)
  np.testing.assert_allclose(log_det, -9 * np.sum(np.log(np.std(first, (0, 1, 2)))), rtol=1e-4)
  assert list(variables) == ["params"]
  alone = layer.apply(variables, second[:1], method="forward")[0]
  np.testing.assert_allclose(layer.apply(variables, second, method="forward")[0][:1], alone, rtol=1e-6)
  assert abs(float(np.std(layer.apply(variables, second, method="forward")[0])) - 1) > 0.2


@pytest.mark.parametrize("size", [1, 2, 5])
def test_lu_is_scipys(size):
  matrix = np.random.default_rng(size).normal(size=(size, size)).astype(np.float32)
  order, lower, upper = jax.tree.map(np.asarray, flow.factorize_lu(jnp.asarray(matrix)))
  expected_p, expected_l, expected_u = scipy.linalg.lu(matrix)
  np.testing.assert_allclose(lower, expected_l, atol=1e-5)
  np.testing.assert_allclose(upper, expected_u, atol=1e-5)
  np.testing.assert_array_equal(np.eye(size)[order].T, expected_p)


def test_linear_starts_as_a_rotation():
  layer = flow_layers.InvertibleLinear()
  z, log_det = jax.jit(lambda x: layer.init_with_output(jax.random.key(3), x, method="forward")[0])(jnp.eye(4))
  np.testing.assert_allclose(z @ z.T, np.eye(4), atol=1e-5)
  np.testing.assert_allclose(log_det, 0, atol=1e-5)


def test_squeeze_puts_each_square_into_the_channels_of_its_own_channel():
  x = np.arange(2 * 4 * 4 * 2).reshape(2, 4, 4, 2)
  y = flow.squeeze(jnp.asarray(x))
  for channel in range(2):
    expected = [x[1, 2, 0, channel], x[1, 2, 1, channel], x[1, 3, 0, channel], x[1, 3, 1, channel]]
    assert y[1, 1, 0, 4 * channel : 4 * channel + 4].tolist() == expected
  np.testing.assert_array_equal(flow.unsqueeze(y), x)


def test_checkerboards_are_complements():
  even, odd = (flow.checkerboard_mask((3, 2, 2), parity) for parity in (0, 1))
  np.testing.assert_array_equal(even, ~odd)
  assert even[:, :, 0].tolist() == [[True, False], [False, True], [True, False]]
  assert flow.checkerboard_mask((3,), 1).tolist() == [False, True, False]


def test_a_coupling_leaves_what_its_network_sees():
  layer = flow_layers.MaskedCoupling(dense(10), "tanh", parity=1)
  x = jax.random.normal(jax.random.key(0), (4, 5))
  variables = perturb(layer.init(jax.random.key(1), x, method="forward"))
  z, _ = layer.apply(variables, x, method="forward")
  np.testing.assert_array_equal(z[:, 1::2], x[:, 1::2])
  assert np.all(np.abs(z[:, ::2] - x[:, ::2]) > 1e-4)


@pytest.mark.parametrize("name", PLANES)
def test_known_densities_integrate_to_1_and_are_those_of_their_points(name):
  density = PLANES[name]()
  ticks = np.linspace(-3, 3, 501, dtype=np.float32)
  cells = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
  logs = np.asarray(jax.jit(density.log_density)(jnp.asarray(cells)), np.float64)
  area = (ticks[1] - ticks[0]) ** 2
  inside = np.isfinite(logs)  # rings at 0
  assert np.exp(logs[inside]).sum() * area == pytest.approx(1, abs=2e-3)
  entropy = -np.sum(np.exp(logs[inside]) * logs[inside]) * area
  x = jax.jit(jax.vmap(density.draw))(jax.random.split(jax.random.key(0), 4000))
  assert -float(jnp.mean(jax.jit(density.log_density)(x))) == pytest.approx(entropy, abs=0.06)


def test_levels_are_counted():
  assert [count_levels((side, side, 1)) for side in (4, 8, 28, 32)] == [1, 2, 2, 4]
  with pytest.raises(InputError, match="can be squeezed 2 times"):
    count_levels((28, 28, 1), 3)
  with pytest.raises(InputError, match="can be squeezed 0 times"):
    count_levels((7, 7, 1))


@pytest.mark.parametrize(
  ("call", "sentence"),
  [
    (lambda: flow.dequantize(jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 2)), 1), "num_levels is 1, expected 2"),
    (lambda: flow.logit(jnp.zeros((1, 2)), 0.5), "alpha is 0.5, expected a number between 0 and 0.5"),
    (lambda: flow.bits_per_dim(jnp.zeros(2), 17, 0), "num_dims 0"),
    (lambda: flow.squeeze(jnp.zeros((1, 3, 4, 1))), "3 x 4 cannot be squeezed"),
    (lambda: flow.unsqueeze(jnp.zeros((1, 2, 2, 3))), "3 channels cannot be unsqueezed"),
    (
      lambda: flow_layers.MaskedCoupling(dense(5), "tanh").init(jax.random.key(0), jnp.zeros((2, 5)), method="forward"),
      r"gives \(2, 5\), expected \(2, 10\) with scale=tanh",
    ),
    (
      lambda: flow_layers.ChannelCoupling(dense(2)).init(jax.random.key(0), jnp.zeros((2, 1)), method="forward"),
      "found 1 channel",
    ),
    (
      lambda: density_floors.gaussian_bits(np.zeros((3, 4), np.uint8), np.zeros((3, 4), np.uint8), 17),
      "found 3 training images, expected more than 4",
    ),
  ],
)  # fmt: skip
def test_bad_input_is_refused_in_a_sentence(call, sentence):
  with pytest.raises(InputError, match=sentence):
    call()
