"""Sparse codes, dictionaries and whitening against scikit-learn, and the rates that theory promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA, sparse_encode

from mlnotes.generative import sparse_coding as coding

RNG = np.random.default_rng(0)
ATOMS = np.asarray(coding.normalize_columns(jnp.asarray(RNG.normal(size=(8, 12)), jnp.float32)))
X = RNG.normal(size=(6, 8)).astype(np.float32)
PENALTY = 0.4


@pytest.fixture(scope="module")
def exact():
  found = sparse_encode(
    X.astype(np.float64), ATOMS.T.astype(np.float64), algorithm="lasso_cd", alpha=PENALTY, max_iter=10_000
  )
  return found


def encode(method, steps):
  return jax.jit(jax.vmap(lambda x: method(x, jnp.asarray(ATOMS), PENALTY, steps)))(jnp.asarray(X))


def objective(code):
  code = np.asarray(code, np.float64)
  return ((X - code @ ATOMS.T) ** 2).sum(1) / 2 + PENALTY * np.abs(code).sum(1)


def test_codes_are_scikit_learns(exact):
  found = np.asarray(encode(coding.encode_fista, 400))
  np.testing.assert_allclose(found, exact, atol=2e-3)
  np.testing.assert_array_equal(found != 0, exact != 0)
  ours = [
    coding.compute_objective(x, jnp.asarray(ATOMS), a, PENALTY) for x, a in zip(jnp.asarray(X), jnp.asarray(found))
  ]
  np.testing.assert_allclose(ours, objective(exact), rtol=1e-4)


def test_gaps_stay_below_what_theory_promises(exact):
  """L |a*|^2 / (2 n) of ISTA, 2 L |a*|^2 / (n + 1)^2 of FISTA: Beck & Teboulle 2009, theorems 3.1 and 4.4."""
  curvature = float(coding.bound_curvature(jnp.asarray(ATOMS)))
  size = (exact**2).sum(1)
  before = objective(np.zeros_like(exact))
  for steps in (1, 4, 16):
    slow, fast = (objective(encode(method, steps)) for method in (coding.encode_ista, coding.encode_fista))
    assert np.all(slow - objective(exact) <= curvature * size / (2 * steps) + 1e-5)
    assert np.all(fast - objective(exact) <= 2 * curvature * size / (steps + 1) ** 2 + 1e-5)
    assert np.all(slow <= before + 1e-6)
    before = slow
  assert np.all(fast <= slow + 1e-6)


@pytest.mark.parametrize("shape", [(3, 3), (8, 12), (12, 5), (6, 1)])
def test_the_bound_of_the_curvature_is_above_it_and_tight(shape):
  matrix = np.random.default_rng(1).normal(size=shape).astype(np.float32) * 3
  largest = np.linalg.norm(matrix.astype(np.float64), 2) ** 2
  assert (
    largest * (1 - 1e-5) <= coding.bound_curvature(jnp.asarray(matrix)) <= largest * min(shape) ** (1 / 128) * 1.001
  )


def test_an_atom_moves_to_the_best_unit_vector_beside_the_others():
  code = RNG.normal(size=(40, 3)) * (RNG.random((40, 3)) < 0.5)
  code[:, 2] = 0  # nothing uses the last
  x = RNG.normal(size=(40, 2))
  start = coding.normalize_columns(jnp.asarray(RNG.normal(size=(2, 3)), jnp.float32))
  moments = coding.update_moments(
    coding.init_moments(start), jnp.asarray(x, jnp.float32), jnp.asarray(code, jnp.float32)
  )
  found = np.asarray(coding.update_dictionary(start, moments))
  best = np.array(start, np.float64)
  around = np.linspace(0, 2 * np.pi, 20_001)
  circle = np.stack([np.cos(around), np.sin(around)])
  for j in (0, 1):
    rest = x - code @ best.T + np.outer(code[:, j], best[:, j])
    error = ((rest[..., None] - code[:, j, None, None] * circle) ** 2).sum((0, 1))
    best[:, j] = circle[:, error.argmin()]
  np.testing.assert_allclose(found, best, atol=1e-3)
  np.testing.assert_allclose(np.linalg.norm(found, axis=0), 1, rtol=1e-5)


def test_moments_fade():
  x, code = jnp.asarray(RNG.normal(size=(2, 5, 2)), jnp.float32), jnp.asarray(RNG.normal(size=(2, 5, 3)), jnp.float32)
  moments = coding.init_moments(jnp.zeros((2, 3)))
  for i in range(2):
    moments = coding.update_moments(moments, x[i], code[i], decay=0.5)
  outer = lambda a, b: np.einsum("np,nq->npq", a, b).mean(0)
  np.testing.assert_allclose(moments.codes, outer(code[0], code[0]) / 2 + outer(code[1], code[1]), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(moments.cross, outer(x[0], code[0]) / 2 + outer(x[1], code[1]), rtol=1e-5, atol=1e-6)


def test_dead_atoms_start_anew_among_the_data(key):
  moments = coding.Moments(jnp.diag(jnp.array([1.0, 0.0, 2.0])) + 0.1, jnp.ones((8, 3)))._replace()
  moments = moments._replace(codes=moments.codes.at[1].set(0).at[:, 1].set(0))
  start = jnp.asarray(ATOMS[:, :3])
  found, after, count = coding.resample_atoms(key, start, moments, jnp.asarray(X))
  assert count == 1
  np.testing.assert_array_equal(found[:, [0, 2]], start[:, [0, 2]])
  unit = X / np.linalg.norm(X, axis=1, keepdims=True)
  assert np.isclose(unit, found[:, 1], atol=1e-5).all(1).sum() == 1
  np.testing.assert_array_equal(after.cross[:, 1], np.zeros(8))
  np.testing.assert_array_equal(after.codes[0, 0], moments.codes[0, 0])


@pytest.mark.thorough
def test_a_dictionary_learned_in_batches_is_as_good_as_scikit_learns():
  from sklearn.decomposition import MiniBatchDictionaryLearning

  rng = np.random.default_rng(0)
  true = rng.normal(size=(10, 16))
  true /= np.linalg.norm(true, axis=0)
  code = rng.laplace(size=(2000, 16)) * (rng.random((2000, 16)) < 0.15)
  x = (code @ true.T + 0.02 * rng.normal(size=(2000, 10))).astype(np.float32)
  penalty = 0.1

  @jax.jit
  def update(dictionary, moments, batch):
    code = jax.vmap(lambda row: coding.encode_fista(row, dictionary, penalty, 60))(batch)
    moments = coding.update_moments(moments, batch, code, 0.95)
    return coding.update_dictionary(dictionary, moments), moments

  dictionary = coding.normalize_columns(jnp.asarray(rng.normal(size=(10, 16)), jnp.float32))
  moments = coding.init_moments(dictionary)
  for _ in range(500):
    dictionary, moments = update(dictionary, moments, x[rng.integers(0, 2000, 100)])

  def judge(dictionary):
    code = sparse_encode(
      x.astype(np.float64), dictionary.astype(np.float64), algorithm="lasso_cd", alpha=penalty, max_iter=10_000
    )
    return (((x - code @ dictionary) ** 2).sum(1) / 2 + penalty * np.abs(code).sum(1)).mean()

  theirs = MiniBatchDictionaryLearning(
    16, alpha=penalty, batch_size=100, max_iter=30, random_state=0, transform_alpha=penalty
  ).fit(x)
  found = np.asarray(dictionary.T, np.float64)
  assert judge(found) <= 1.02 * judge(theirs.components_)
  # Most of the true atoms are found.
  assert np.median(np.abs(found @ true).max(0)) > 0.97


def test_whitened_patches_are_scikit_learns_up_to_a_turn():
  x = RNG.normal(size=(500, 6)) @ RNG.normal(size=(6, 6)) + 3
  whitening = coding.fit_whitening(x)
  found = whitening.apply(x)
  np.testing.assert_allclose(np.cov(found, rowvar=False), np.eye(6), atol=1e-8)
  np.testing.assert_allclose(whitening.revert(found), x, atol=1e-8)
  theirs = PCA(whiten=True).fit_transform(x)
  np.testing.assert_allclose(found @ found.T, theirs @ theirs.T, atol=1e-6)
  np.testing.assert_allclose(whitening.matrix, whitening.matrix.T, atol=1e-10)  # among all: nearest to the data
  with pytest.raises(ValueError, match="expected epsilon above 0"):
    coding.fit_whitening(np.ones((9, 2)) * np.arange(9)[:, None])
  flat = coding.fit_whitening(np.ones((9, 2)) * np.arange(9)[:, None], epsilon=0.5)
  assert np.all(np.isfinite(flat.matrix))


def test_patches_are_cut_from_every_image():
  images = [np.arange(30.0).reshape(5, 6), 100 + np.arange(16.0).reshape(4, 4)]
  patches = coding.sample_patches(images, 3, 7, seed=1)
  assert patches.shape == (7, 9) and (patches[:, 0] >= 100).sum() == 3
  np.testing.assert_array_equal(patches[:4] - patches[:4, :1], np.tile([0, 1, 2, 6, 7, 8, 12, 13, 14], (4, 1)))
  with pytest.raises(ValueError, match=r"image 1 has shape \(4, 4\), expected \(H, W\) of 5 pixels"):
    coding.sample_patches([np.zeros((9, 9)), images[1]], 5, 7)
