import jaxtyping
import numpy as np
import pytest
import scipy.linalg
import scipy.spatial

from mlnotes.generative import metrics


@pytest.fixture
def unchecked_shapes():
  """Without the annotations' checks, as users run the package."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def rng():
  return np.random.default_rng(0)


def test_frechet_distance_equals_matrix_square_root(rng):
  a, b = rng.normal(size=(2, 6, 9))
  cov1, cov2 = a @ a.T, b @ b.T
  mean1, mean2 = rng.normal(size=(2, 6))
  trace = np.trace(cov1 + cov2 - 2 * scipy.linalg.sqrtm(cov1 @ cov2).real)
  expected = np.sum((mean1 - mean2) ** 2) + trace
  assert metrics.frechet_distance(mean1, cov1, mean2, cov2) == pytest.approx(expected, rel=1e-9)
  assert metrics.frechet_distance(mean2, cov2, mean1, cov1) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_commuting_singular_covariances():
  # For diagonal covariances it is the distance between the vectors of standard deviations.
  std1, std2 = np.array([0.0, 1.0, 2.0]), np.array([3.0, 0.0, 2.5])
  found = metrics.frechet_distance(np.ones(3), np.diag(std1**2), np.zeros(3), np.diag(std2**2))
  assert found == pytest.approx(3 + np.sum((std1 - std2) ** 2), rel=1e-9)


def test_frechet_distance_to_itself_is_zero(rng):
  a = rng.normal(size=(5, 3))  # rank 3 of 5
  assert metrics.frechet_distance(np.ones(5), a @ a.T, np.ones(5), a @ a.T) == pytest.approx(0, abs=1e-6)


def test_feature_distance_of_shifted_features_is_the_shift(rng):
  features = rng.normal(size=(50, 4)).astype(np.float32)
  shift = np.array([1, 2, 0, 0], np.float32)
  assert metrics.feature_frechet_distance(features, features + shift) == pytest.approx(5, rel=1e-5)


def test_feature_distance_refuses_nan():
  with pytest.raises(ValueError, match="fake features must be finite, found 1"):
    metrics.feature_frechet_distance(np.zeros((4, 2)), np.array([[0, np.nan], [1, 1]]))


def test_real_distance_falls_with_size(rng):
  real = rng.normal(size=(4000, 8))
  small, large = metrics.compute_real_distance(real, 200), metrics.compute_real_distance(real, 2000)
  assert 5 < small / large < 20  # the bias falls as 1 / size
  assert metrics.compute_real_distance(real) == large


def test_real_distance_is_what_fresh_samples_get(rng):
  fresh = np.mean([metrics.feature_frechet_distance(*rng.normal(size=(2, 500, 8))) for _ in range(10)])
  assert metrics.compute_real_distance(rng.normal(size=(2000, 8)), 500) == pytest.approx(fresh, rel=0.2)


def test_real_distance_refuses_overlap():
  with pytest.raises(ValueError, match="size must be from 2 to 5, half of the real examples, found 6"):
    metrics.compute_real_distance(np.zeros((10, 2)), 6)


def test_precision_recall_on_a_line():
  # k = 1 on unit spacing: every ball reaches one to either side.
  real = np.arange(0.0, 10.0)[:, None]
  fake = np.concatenate([np.arange(0.0, 5.0), [20.0, 21.0, 22.0, 23.0, 24.0]])[:, None]
  assert metrics.precision_recall(real, fake, k=1) == (0.5, 0.6)  # of the real points 0 .. 5 are covered


def test_precision_recall_against_brute_force(rng):
  real, fake = rng.normal(size=(60, 3)), 1.3 * rng.normal(size=(70, 3))

  def share(points, centres):
    tree = scipy.spatial.KDTree(centres)
    radius = tree.query(centres, k=4)[0][:, -1]
    return np.mean([any(np.linalg.norm(p - c) <= r for c, r in zip(centres, radius)) for p in points])

  assert metrics.precision_recall(real, fake, k=3) == (share(fake, real), share(real, fake))


def test_precision_recall_tells_lost_modes_from_noise(rng):
  real = rng.normal(size=(400, 2)) + np.repeat([[0.0, 0.0], [50.0, 50.0]], 200, axis=0)
  one_mode = rng.normal(size=(400, 2))
  precision, recall = metrics.precision_recall(real, one_mode)
  assert precision > 0.9
  assert 0.4 < recall <= 0.5


def test_precision_recall_needs_more_than_k():
  with pytest.raises(ValueError, match="fake features need at least 4 rows, found 3"):
    metrics.precision_recall(np.zeros((9, 2)), np.zeros((3, 2)), k=3)


def test_nearest_training_distance(rng):
  training = rng.integers(0, 256, (40, 5, 5, 1)).astype(np.uint8)
  images = rng.integers(0, 256, (10, 5, 5, 1)).astype(np.uint8)
  expected = scipy.spatial.KDTree(training.reshape(40, -1)).query(images.reshape(10, -1))[0]
  np.testing.assert_allclose(metrics.nearest_training_distance(images, training), expected, rtol=1e-9)
  np.testing.assert_allclose(metrics.nearest_training_distance(training[3:5], training), 0, atol=1e-6)


def test_a_set_lies_inside_itself_however_often_its_rows_are_repeated(rng):
  for scale in (1.0, 1e3):
    rows = scale * (100 + rng.normal(size=(10, 64)))
    repeated = np.repeat(rows, 6, axis=0)
    assert metrics.precision_recall(repeated, repeated) == (1, 1)
    assert metrics.precision_recall(repeated, np.repeat(rows[:5], 6, axis=0)) == (1, 0.5)
  constant = np.full((8, 3), 0.1)
  assert metrics.precision_recall(constant, constant) == (1, 1)


def test_copies_are_seen_beside_held_out_images_that_are_copies_too(rng):
  training = rng.integers(0, 256, (200, 4, 4, 1)).astype(np.uint8)
  fresh = rng.integers(0, 256, (100, 4, 4, 1)).astype(np.uint8)
  held_out = np.concatenate([training[:20], fresh[:80]])  # a fifth, as in sets with duplicates
  copied = metrics.compute_novelty(training[100:], held_out, training)
  assert copied.closer == 1 and copied.copies == 1 and copied.copies_held_out == 0.2
  half = metrics.compute_novelty(np.concatenate([training[:50], fresh[50:]]), held_out, training)
  assert half.closer == 0.5 and half.copies == 0.5
  assert metrics.compute_novelty(fresh, held_out, training).closer == 0
  # Floating-point copies too: their distance is 0, not the root of a rounding error.
  real = 1e3 + rng.normal(size=(50, 300))
  assert metrics.compute_novelty(real[:10], real[10:], real)[2:] == (1, 1, 1)


def test_the_nearest_are_those_of_brute_force(rng):
  images, training = rng.integers(0, 256, (10, 3, 3, 1)), rng.integers(0, 256, (30, 3, 3, 1))
  found = metrics.find_nearest(images, training)
  distances = np.linalg.norm((images[:, None] - training[None]).reshape(10, 30, -1), axis=-1)
  np.testing.assert_array_equal(found.index, distances.argmin(1))
  np.testing.assert_allclose(found.distance, distances.min(1), rtol=1e-12)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda x: metrics.feature_frechet_distance(x, x[:, :3]), "must have one width, found 4 and 3"),
    (lambda x: metrics.precision_recall(x, x[:, :3]), "must have one width, found 4 and 3"),
    (lambda x: metrics.precision_recall(x, x, k=0), "k must be 1 or more, found 0"),
    (lambda x: metrics.precision_recall(x[:, 0], x[:, 0]), r"must have the shape \(N, D\), found \(6,\)"),
    (lambda x: metrics.frechet_distance(x[0], np.eye(4), x[0, :3], np.eye(3)), r"found \(4,\), \(4, 4\), \(3,\)"),
    (lambda x: metrics.frechet_distance(x[0], np.eye(3), x[0], np.eye(3)), r"covariances \(D, D\), found"),
    (lambda x: metrics.nearest_training_distance(x, x[:, :3]), r"one shape, found \(4,\) and \(3,\)"),
    (lambda x: metrics.nearest_training_distance(x, x[:0]), "found no training image"),
    (lambda x: metrics.compute_novelty(x[:0], x, x), "found 0 generated and 6 held-out images"),
    (lambda x: metrics.compute_novelty(x, x, x, quantile=5), r"quantile must lie in \[0, 1\], found 5"),
    (lambda x: metrics.class_agreement(np.ones(3, int), np.ones((3, 1), int)), r"found \(3,\) and \(3, 1\)"),
    (lambda x: metrics.class_agreement(np.ones(0, int), np.ones(0, int)), r"found \(0,\) and \(0,\)"),
  ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_arrays_that_do_not_fit_together_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call(np.arange(24.0).reshape(6, 4))


def test_novelty_shows_copies(rng):
  training, held_out, fresh = rng.normal(size=(3, 500, 6))
  copied = metrics.compute_novelty(training[:200], held_out, training)
  assert copied.generated == pytest.approx(0, abs=1e-6)
  assert copied.closer == 1
  novel = metrics.compute_novelty(fresh, held_out, training)
  assert novel.generated == pytest.approx(novel.held_out, rel=0.1)
  assert 0.01 < novel.closer < 0.1


def test_class_agreement():
  assert metrics.class_agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 3])) == 0.75
  with pytest.raises(ValueError, match=r"expected two arrays of one shape \(N,\), found \(3,\) and \(2,\)"):
    metrics.class_agreement.__wrapped__(np.arange(3), np.arange(2))
