"""Warping: identities that hold to the bit, torch's grid and sampling, SciPy's transform; the module."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from mlnotes.nn import ConvNet, SpatialTransformer, affine_grid, sample_bilinear, warp_affine
from mlnotes.nn.spatial_transformer import Localizer, TransformedConvNet


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def theta_of(*numbers):
  return jnp.array([[numbers[:3], numbers[3:]]], jnp.float32)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [7, 8, 28])
def test_identity_turns_and_reflections_move_pixels_exactly(size, align_corners):
  image = draw(1, size, size, 2)
  warp = jax.jit(lambda theta: warp_affine(image, theta, align_corners=align_corners))
  for theta, expected in (
    (theta_of(1, 0, 0, 0, 1, 0), image),
    (theta_of(0, -1, 0, 1, 0, 0), jnp.rot90(image, 1, axes=(1, 2))),
    (theta_of(-1, 0, 0, 0, -1, 0), jnp.rot90(image, 2, axes=(1, 2))),
    (theta_of(-1, 0, 0, 0, 1, 0), image[:, :, ::-1]),
  ):
    np.testing.assert_array_equal(warp(theta), expected)


@pytest.mark.parametrize("align_corners", [False, True])
def test_an_image_that_is_no_square_is_returned_too(align_corners):
  image = draw(2, 5, 11, 1)
  theta = jnp.repeat(theta_of(1, 0, 0, 0, 1, 0), 2, axis=0)
  np.testing.assert_array_equal(warp_affine(image, theta, align_corners=align_corners), image)


def test_a_shift_by_a_pixel_is_a_roll_with_zeros_behind_it():
  """theta says where to look: x + 2 / width looks one pixel to the right, so the image moves to the left."""
  image = draw(1, 8, 8, 1)
  left = warp_affine(image, theta_of(1, 0, 2 / 8, 0, 1, 0))
  np.testing.assert_array_equal(left[:, :, :-1], jnp.roll(image, -1, axis=2)[:, :, :-1])
  np.testing.assert_array_equal(left[:, :, -1], 0)
  up = warp_affine(image, theta_of(1, 0, 0, 0, 1, 2 / 7), align_corners=True)
  np.testing.assert_allclose(up[:, :-1], jnp.roll(image, -1, axis=1)[:, :-1], atol=1e-6)


def test_doubling_the_resolution_commutes_with_the_transform():
  """Between pixels a slope is exact, so that four pixels of the doubled output have the mean of the single one.

  With the corners of the other convention the two grids do not have the same middle of each pixel.
  """
  rows, columns = jnp.meshgrid(jnp.arange(12.0), jnp.arange(12.0), indexing="ij")
  slope = (0.3 * rows - columns)[None, ..., None]
  theta = theta_of(0.4, -0.3, 0.1, 0.2, 0.5, -0.1)
  quarters = lambda x: x.reshape(1, 12, 2, 12, 2, 1).mean((2, 4))
  single, double = (warp_affine(slope, theta, shape) for shape in ((12, 12), (24, 24)))
  np.testing.assert_allclose(quarters(double), single, atol=1e-5)
  corners = [warp_affine(slope, theta, shape, align_corners=True) for shape in ((12, 12), (24, 24))]
  assert float(jnp.max(jnp.abs(quarters(corners[1]) - corners[0]))) > 0.05


def test_agrees_with_scipy_in_pixels():
  image = draw(1, 9, 6, 1)
  theta = np.array([[0.8, -0.5, 0.1], [0.4, 1.2, -0.2]])
  # SciPy has rows first and counts pixels from the first one's centre.
  size, middle = np.array([9, 6]), np.array([4.0, 2.5])
  matrix = theta[::-1, 1::-1] * size[:, None] / size[None]
  offset = theta[::-1, 2] * size / 2 + middle - matrix @ middle
  expected = ndimage.affine_transform(np.pad(image[0, ..., 0], 1), matrix, offset + 1, output_shape=(9, 6), order=1)
  np.testing.assert_allclose(warp_affine(image, jnp.asarray(theta[None], jnp.float32))[0, ..., 0], expected, atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("align_corners", [False, True])
def test_equals_torch_in_values_and_gradients(align_corners):
  torch = pytest.importorskip("torch")
  F = torch.nn.functional
  generator = np.random.default_rng(1)
  images, weights = generator.normal(size=(2, 5, 7, 3)), generator.normal(size=(2, 4, 6, 3))
  theta = generator.normal(size=(2, 2, 3))
  with jax.enable_x64(True):

    def loss(images, theta):
      grid = affine_grid(theta, (4, 6), align_corners)
      y = sample_bilinear(images, grid, align_corners)
      return (y * weights).sum(), (grid, y, warp_affine(images, theta, (4, 6), align_corners))

    (_, (grid, found, warped)), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(images, theta)
    grid, found, warped, grads = jax.device_get((grid, found, warped, grads))
  theirs, affine = (torch.tensor(a, requires_grad=True) for a in (images, theta))
  expected_grid = F.affine_grid(affine, (2, 3, 4, 6), align_corners=align_corners)
  expected = F.grid_sample(theirs.permute(0, 3, 1, 2), expected_grid, align_corners=align_corners).permute(0, 2, 3, 1)
  (expected * torch.tensor(weights)).sum().backward()
  np.testing.assert_allclose(grid, expected_grid.detach(), atol=1e-12)
  np.testing.assert_allclose(found, expected.detach(), atol=1e-12)
  np.testing.assert_allclose(warped, expected.detach(), atol=1e-12)
  np.testing.assert_allclose(grads[0], theirs.grad, atol=1e-12)
  np.testing.assert_allclose(grads[1], affine.grad, atol=1e-11)


def test_the_module_starts_as_the_identity_and_learns_to_turn(key):
  """theta = identity + scale (W f + b), with W and b at 0 and gradients that are not."""
  image = draw(2, 8, 8, 1)
  target = jnp.rot90(image, 1, axes=(1, 2))
  model = SpatialTransformer(Localizer(features=4, hidden=6), scale=0.1)

  @jax.jit
  def loss(params):
    y, kept = model.apply({"params": params}, image, train=True, mutable=["intermediates"])
    return jnp.mean((y - target) ** 2), (y, kept["intermediates"]["theta"][0])

  params = jax.jit(partial(model.init, train=True))(key, image)["params"]
  (_, (y, theta)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  identity = jnp.repeat(theta_of(1, 0, 0, 0, 1, 0), 2, axis=0)
  np.testing.assert_array_equal(y, image)
  np.testing.assert_array_equal(theta, identity)
  assert float(jnp.max(jnp.abs(grads["affine"]["kernel"]))) > 1e-4
  params["affine"]["bias"] = jnp.arange(6.0)
  np.testing.assert_allclose(loss(params)[1][1], identity + 0.1 * jnp.arange(6.0).reshape(1, 2, 3), rtol=1e-6)


def test_the_network_is_its_convnet_at_the_start(key):
  image = draw(2, 8, 8, 1)
  model = TransformedConvNet(width=4, num_classes=3)
  found, variables = jax.jit(partial(model.init_with_output, train=False))(key, image)
  inner = {kind: variables[kind]["convnet"] for kind in ("params", "batch_stats")}
  expected = jax.jit(partial(ConvNet(4, num_classes=3).apply, train=False))(inner, image)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
