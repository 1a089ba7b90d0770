"""Curvature and slices against the exact Hessian of a small network and against quadratics with known spectra."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from mlnotes.optim import (
  classify_critical_point,
  compute_extreme_eigenvalues,
  compute_hessian,
  compute_minimum_ratio,
  compute_sharpness,
  escape_saddle,
  estimate_spectrum,
  fit_plane,
  hessian_vector_product,
  lanczos,
  normalize_filters,
  project,
  sample_direction,
  slice_line,
  slice_plane,
)
from mlnotes.optim.surfaces import SURFACES, saddle


def network_loss(params):
  """Cross-entropy of a tanh network with 131 parameters on 64 fixed examples."""
  x = jax.random.normal(jax.random.key(1), (64, 6))
  label = jax.random.randint(jax.random.key(2), (64,), 0, 5)
  hidden = jnp.tanh(x @ params["in"] + params["bias"][None])
  return optax.softmax_cross_entropy_with_integer_labels(hidden @ params["out"], label).mean()


@pytest.fixture(scope="module")
def network():
  """(parameters, exact eigenvalues in ascending order, eigenvectors as columns)."""
  keys = jax.random.split(jax.random.key(0), 3)
  shapes = {"in": (6, 11), "bias": (11,), "out": (11, 5)}
  params = {name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items())}
  hessian = np.asarray(jax.jit(lambda params: compute_hessian(network_loss, params))(params), np.float64)
  return params, *np.linalg.eigh((hessian + hessian.T) / 2)


def test_product_is_the_hessians(network):
  params, values, vectors = network
  v = sample_direction(jax.random.key(3), params)
  product = ravel_pytree(jax.jit(lambda v: hessian_vector_product(network_loss, params, v))(v))[0]
  expected = vectors @ (values * (vectors.T @ np.asarray(ravel_pytree(v)[0])))
  np.testing.assert_allclose(product, expected, atol=1e-5)


def test_extreme_eigenvalues_are_exact(network):
  params, values, vectors = network
  extremes = jax.jit(lambda key: compute_extreme_eigenvalues(network_loss, params, key, 60))(jax.random.key(4))
  np.testing.assert_allclose([extremes.smallest, extremes.largest], values[[0, -1]], rtol=1e-4)
  for direction, column in ((extremes.lowest_direction, 0), (extremes.highest_direction, -1)):
    np.testing.assert_allclose(abs(ravel_pytree(direction)[0] @ vectors[:, column]), 1, atol=1e-4)


def test_lanczos_finds_the_whole_spectrum_and_stays_orthogonal(network):
  _, values, vectors = network
  product = lambda v: jnp.asarray(vectors @ np.diag(values) @ vectors.T, jnp.float32) @ v
  tridiagonal = jax.jit(lambda v: lanczos(product, v, len(values)))(jnp.ones(len(values)))
  np.testing.assert_allclose(tridiagonal.basis @ tridiagonal.basis.T, np.eye(len(values)), atol=1e-5)
  dense = np.diag(tridiagonal.diagonal) + np.diag(tridiagonal.off_diagonal, 1) + np.diag(tridiagonal.off_diagonal, -1)
  np.testing.assert_allclose(np.linalg.eigvalsh(dense), values, atol=2e-5)


def test_lanczos_goes_on_where_the_krylov_space_is_exhausted():
  scale = jnp.repeat(jnp.array([1.0, 3.0]), 5)
  tridiagonal = jax.jit(lambda v: lanczos(lambda v: scale * v, v, 10))(jnp.arange(1.0, 11.0))
  dense = np.diag(tridiagonal.diagonal) + np.diag(tridiagonal.off_diagonal, 1) + np.diag(tridiagonal.off_diagonal, -1)
  np.testing.assert_allclose(np.linalg.eigvalsh(dense), scale, atol=1e-5)
  with pytest.raises(ValueError, match="num_steps=11"):
    lanczos(lambda v: v, jnp.ones(10), 11)


def test_spectrum_and_minimum_ratio_against_exact_eigenvalues(network):
  params, values, _ = network
  spectrum = jax.jit(lambda key: estimate_spectrum(network_loss, params, key, 50, 60))(jax.random.key(5))
  np.testing.assert_allclose(spectrum.weights.sum(1), 1, rtol=1e-4)
  # The eigenvalues of the many flat directions are 0 to rounding: the share is taken above a tenth of the mean size.
  threshold = 0.1 * np.abs(values).mean()
  exact = compute_minimum_ratio(jnp.asarray(values, jnp.float32), threshold)
  np.testing.assert_allclose(spectrum.fraction_above(threshold), exact, atol=0.03)
  assert exact == np.mean(values > threshold) and 0.2 < exact < 0.9
  width = 0.05 * values[-1]
  grid = jnp.linspace(values[0] - 4 * width, values[-1] + 4 * width, 400)
  kernel = np.exp(-0.5 * ((np.asarray(grid)[:, None] - values) / width) ** 2) / (width * np.sqrt(2 * np.pi))
  distance = np.trapezoid(np.abs(spectrum.density(grid, width) - kernel.mean(1)), grid)
  assert distance < 0.1  # total variation of two densities is at most 2
  for k in (1, 2):
    moment = np.mean(np.sum(spectrum.weights * spectrum.nodes**k, 1))
    standard_error = np.sqrt(2 * np.mean(values ** (2 * k)) / (60 * len(values)))
    assert abs(moment - np.mean(values**k)) < 4 * standard_error


def test_a_saddle_is_told_from_a_minimum_and_left(key):
  at_saddle, at_minimum = jnp.zeros(2), jnp.array([0.0, 1.0])
  for point, kind in ((at_saddle, "saddle"), (at_minimum, "minimum")):
    extremes = jax.jit(lambda p, key: compute_extreme_eigenvalues(saddle, p, key))(point, jax.random.clone(key))
    gradient = np.linalg.norm(jax.grad(saddle)(point))
    assert classify_critical_point(gradient, extremes.smallest, extremes.largest) == kind
  assert classify_critical_point(1.0, -1, 1) == "not critical"
  assert classify_critical_point(0, -2, -1) == "maximum" and classify_critical_point(0, 0, 0) == "flat"
  escape = jax.jit(lambda p, key: escape_saddle(saddle, p, key))
  left = escape(at_saddle, jax.random.clone(key))
  # -1/2 y^2 + 1/4 y^4 at the largest step, y = 1, is -1/4.
  np.testing.assert_allclose([left.decrease, left.eigenvalue], [0.25, -1], rtol=1e-4)
  np.testing.assert_allclose(np.abs(left.params), [0, 1], atol=1e-3)
  stays = escape(at_minimum, key)
  assert stays.decrease == 0
  np.testing.assert_array_equal(stays.params, at_minimum)


def test_surfaces_have_their_minima_where_they_say():
  derivatives = lambda surface, p: (jax.grad(surface.value)(p), compute_hessian(surface.value, p))
  points = [jnp.array(surface.minimum) for surface in SURFACES]
  found = jax.jit(lambda points: [derivatives(surface, p) for surface, p in zip(SURFACES, points)])(points)
  for surface, (gradient, hessian) in zip(SURFACES, found):
    np.testing.assert_allclose(gradient, 0, atol=1e-5)
    assert np.linalg.eigvalsh(hessian)[0] > 0
    x0, x1, y0, y1 = surface.box
    assert all(x0 < x < x1 and y0 < y < y1 for x, y in (surface.start, surface.minimum))


def test_sharpness_of_a_quadratic_is_half_its_largest_eigenvalue(key):
  scale = jnp.array([0.5, 1.0, 8.0])
  loss = lambda params: 0.5 * jnp.sum(scale * params["w"] ** 2)
  found = jax.jit(lambda key: compute_sharpness(loss, {"w": jnp.zeros(3)}, 0.1, key))(key)
  np.testing.assert_allclose(found, 0.5 * 8 * 0.1**2, rtol=1e-3)


def test_filter_normalisation_is_blind_to_rescaled_layers(network):
  """ReLU units scaled up in one layer and down in the next compute the same, and look the same."""
  params = {"in": network[0]["in"], "out": network[0]["out"]}
  scale = jnp.exp(jax.random.normal(jax.random.key(6), (11,)))
  rescaled = {"in": params["in"] * scale[None], "out": params["out"] / scale[:, None]}
  direction = normalize_filters(sample_direction(jax.random.key(7), params), params)
  norms = jax.tree.map(lambda d: jnp.linalg.norm(d, axis=0), direction)
  jax.tree.map(
    lambda n, p: np.testing.assert_allclose(n, jnp.linalg.norm(p, axis=0), rtol=1e-5), norms, params
  )  # fmt: skip
  x = jax.random.normal(jax.random.key(8), (32, 6))
  loss = lambda p: jnp.mean((jax.nn.relu(x @ p["in"]) @ p["out"]) ** 2)
  other = normalize_filters({**direction, "in": direction["in"] * scale[None]}, rescaled)
  only_in = lambda d: {**d, "out": jnp.zeros_like(d["out"])}
  steps = jnp.linspace(-1, 1, 5)
  np.testing.assert_allclose(
    slice_line(loss, params, only_in(direction), steps), slice_line(loss, rescaled, only_in(other), steps), rtol=1e-4
  )
  assert (normalize_filters(network[0], network[0])["bias"] == 0).all()


def test_the_plane_of_a_trajectory_contains_it(network):
  """Points of a plane: two components explain all, and the slice passes through the loss of each point."""
  params = network[0]
  first, second = (sample_direction(jax.random.key(i), params) for i in (9, 10))
  at = lambda a, b: jax.tree.map(lambda p, u, v: p + a * u + b * v, params, first, second)
  trajectory = [at(1.0, 1.0), at(0.7, 0.2), at(0.1, 0.3), at(0.0, 0.0)]
  plane = fit_plane(trajectory)
  np.testing.assert_allclose(plane.explained.sum(), 1, rtol=1e-5)
  np.testing.assert_allclose(project(plane, trajectory[-1]), 0, atol=1e-5)
  for point in trajectory[:2]:
    x, y = project(plane, point)
    values = slice_plane(network_loss, plane.origin, plane.first, plane.second, jnp.stack([0 * x, x]), y[None])
    np.testing.assert_allclose(values[0, 1], network_loss(point), rtol=1e-4)


@pytest.mark.thorough
def test_bfloat16_parameters_are_computed_with_in_float32(network, key):
  narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), network[0])
  wide = jax.tree.map(lambda p: p.astype(jnp.float32), narrow)
  found = [
    jax.jit(lambda p, k: compute_extreme_eigenvalues(network_loss, p, k, 20))(p, jax.random.clone(key))
    for p in (narrow, wide)
  ]
  jax.tree.map(np.testing.assert_array_equal, *found)
  diagonal = jnp.array([1.0, 2.0, 4.0], jnp.bfloat16)
  values = lanczos(lambda v: diagonal * v, jnp.ones(3, jnp.bfloat16), 3)
  assert values.diagonal.dtype == jnp.float32
  np.testing.assert_allclose(values.diagonal.sum(), 7, rtol=2e-2)  # the trace


@pytest.mark.parametrize("found", [(np.nan, 1.0, 2.0), (0.0, np.nan, 2.0), (0.0, 1.0, np.nan)])
def test_nan_is_no_critical_point(found):
  with pytest.raises(ValueError, match="NaN"):
    classify_critical_point(*found)


def test_no_plane_through_points_on_a_line():
  line = [{"w": step * jnp.array([1.0, 2.0, 3.0])} for step in range(4)]
  with pytest.raises(ValueError, match="2 points"):
    fit_plane(line[:2])
  for points in (line, [line[1]] * 3, [*line[:2], {"w": jnp.full(3, jnp.nan)}]):
    with pytest.raises(ValueError, match="one line"):
      fit_plane(points)
