"""Losses against torch, optax and closed forms: factors, smoothing, padding, labels that are none."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlnotes.nn import absolute_error, cross_entropy, smooth_l1, squared_error

E = np.array([-3, -1, -0.4, 0, 0.2, 0.5, 1, 7], np.float32)


def test_factors_of_the_losses_of_regression():
  zero = jnp.zeros(8)
  np.testing.assert_allclose(squared_error(jnp.asarray(E), zero), E**2, rtol=1e-6)
  np.testing.assert_allclose(squared_error(jnp.asarray(E), zero), 2 * optax.l2_loss(E), rtol=1e-6)
  np.testing.assert_array_equal(absolute_error(jnp.asarray(E), zero), np.abs(E))
  np.testing.assert_array_equal(jax.grad(lambda e: jnp.sum(absolute_error(e, zero)))(jnp.asarray(E)), np.sign(E))


@pytest.mark.parametrize("beta", [0.25, 1.0, 3.0])
def test_smooth_l1_is_hubers_loss_over_beta_with_slope_one_far_out(beta):
  run = lambda e: smooth_l1(e, jnp.zeros_like(e), beta)
  expected = [e**2 / (2 * beta) if abs(e) < beta else abs(e) - beta / 2 for e in E.tolist()]
  np.testing.assert_allclose(run(jnp.asarray(E)), expected, rtol=1e-6)
  np.testing.assert_allclose(run(jnp.asarray(E)), optax.huber_loss(E, delta=beta) / beta, rtol=1e-6)
  np.testing.assert_allclose(jax.grad(lambda e: jnp.sum(run(e)))(jnp.asarray(E)), np.clip(E / beta, -1, 1), rtol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("ours, theirs, options", [
  (squared_error, "mse_loss", {}), (absolute_error, "l1_loss", {}),
  (smooth_l1, "smooth_l1_loss", {"beta": 0.7}), (smooth_l1, "smooth_l1_loss", {"beta": 0.0}),
])  # fmt: skip
def test_torch_has_the_same_losses_of_regression(ours, theirs, options):
  torch = pytest.importorskip("torch")
  x = torch.tensor(E, requires_grad=True)
  expected = getattr(torch.nn.functional, theirs)(x, torch.zeros(8), reduction="none", **options)
  expected.sum().backward()
  run = lambda e: ours(e, jnp.zeros_like(e), **options)
  np.testing.assert_allclose(run(jnp.asarray(E)), expected.detach(), rtol=1e-6)
  np.testing.assert_allclose(jax.grad(lambda e: jnp.sum(run(e)))(jnp.asarray(E)), x.grad, rtol=1e-6)


@pytest.mark.parametrize("loss", [squared_error, absolute_error, smooth_l1])
def test_shapes_that_would_be_broadcast_are_refused(loss):
  with pytest.raises(ValueError, match=r"got shapes \(3,\) and \(3, 1\)"):
    loss(jnp.zeros(3), jnp.zeros((3, 1)))


def make(shape=(4, 5), num_classes=7):
  rng = np.random.default_rng(0)
  return 3 * rng.normal(size=(*shape, num_classes)), rng.integers(0, num_classes, shape)


@pytest.mark.parity
@pytest.mark.parametrize("x64, tolerance", [(False, 1e-5), (True, 1e-10)], ids=["float32", "float64"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_torch_has_the_same_cross_entropy_with_padding(smoothing, x64, tolerance):
  torch = pytest.importorskip("torch")
  logits, labels = make()
  where = np.arange(5)[None] < np.array([[5], [3], [1], [0]])
  labels = np.where(where, labels, -100)
  z = torch.tensor(logits, requires_grad=True)
  expected = torch.nn.functional.cross_entropy(
    z.movedim(-1, 1), torch.tensor(labels), reduction="none", label_smoothing=smoothing
  )
  (expected.sum() / where.sum()).backward()
  with jax.enable_x64(x64):
    z_ours = jnp.asarray(logits, jnp.float64 if x64 else jnp.float32)
    args = jnp.asarray(labels), smoothing, jnp.asarray(where)
    found = np.asarray(cross_entropy(z_ours, *args))
    gradient = np.asarray(jax.grad(lambda z: jnp.sum(cross_entropy(z, *args)) / where.sum())(z_ours))
  assert found.dtype == (np.float64 if x64 else np.float32)
  np.testing.assert_allclose(found, expected.detach(), rtol=tolerance, atol=tolerance)
  np.testing.assert_allclose(gradient, z.grad, rtol=tolerance, atol=tolerance)


def test_smoothing_gives_eps_over_k_to_every_class():
  logits, labels = map(jnp.asarray, make())
  logits = logits.astype(jnp.float32)
  soft = 0.7 * jax.nn.one_hot(labels, 7) + 0.3 / 7
  np.testing.assert_allclose(cross_entropy(logits, labels, 0.3), optax.softmax_cross_entropy(logits, soft), rtol=1e-5)
  np.testing.assert_allclose(cross_entropy(jnp.zeros((3, 7)), jnp.arange(3), 0.3), np.log(7), rtol=1e-6)
  # The least that can be reached is the entropy of the smoothed labels, where softmax gives them back.
  least = cross_entropy(jnp.log(soft), labels, 0.3)
  np.testing.assert_allclose(least, -jnp.sum(soft * jnp.log(soft), -1), rtol=1e-5)


def test_classes_that_cannot_be_take_no_share():
  """As if the columns were not there, and with a gradient of 0 for them."""
  logits, labels = map(jnp.asarray, make())
  logits, labels = logits.astype(jnp.float32), labels % 4 + 2
  classes = (jnp.arange(7) > 1) & (jnp.arange(7) < 6)
  found = cross_entropy(logits, labels, 0.2, classes=classes)
  np.testing.assert_allclose(found, cross_entropy(logits[..., 2:6], labels - 2, 0.2), rtol=1e-5)
  gradient = jax.grad(lambda z: jnp.sum(cross_entropy(z, labels, 0.2, classes=classes)))(logits)
  assert not np.any(np.asarray(gradient)[..., [0, 1, 6]])
  assert np.all(np.isnan(cross_entropy(logits, jnp.zeros_like(labels), 0.2, classes=classes)))


def test_padding_of_nan_reaches_no_value_and_no_gradient():
  logits, labels = make()
  where = np.arange(5)[None] < np.array([[5], [3], [1], [0]])
  clean = jnp.asarray(logits, jnp.float32)
  dirty = jnp.where(where[..., None], clean, jnp.nan)
  run = lambda z: jnp.sum(cross_entropy(z, jnp.asarray(labels), 0.1, jnp.asarray(where)))
  for f in (run, jax.grad(run)):
    np.testing.assert_array_equal(f(dirty), f(clean))
  assert not np.any(np.asarray(jax.grad(run)(dirty))[~where])


@pytest.mark.parametrize("label", [-1, -100, 7, 1000])
def test_labels_that_are_no_class_are_seen(label):
  found = cross_entropy(jnp.zeros((2, 7)), jnp.array([label, 0]))
  assert np.isnan(found[0]) and np.isfinite(found[1])


def test_half_precision_is_summed_in_float32_and_large_logits_stay_finite():
  logits = jnp.array([[200.0, -200.0, 0.0]], jnp.float16)
  found = cross_entropy(logits, jnp.array([1]))
  assert found.dtype == jnp.float32 and found == 400


@pytest.mark.parametrize("arguments, words", [
  (dict(labels=jnp.zeros((3, 1), int)), r"labels of shape \(3, 1\), expected \(3,\)"),
  (dict(where=jnp.ones((1,), bool)), r"where of shape \(1,\), expected \(3,\)"),
  (dict(classes=jnp.ones((3,), bool)), r"classes of shape \(3,\), expected \(5,\)"),
  (dict(label_smoothing=1.5), r"label_smoothing=1.5 is out of range"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(arguments, words):
  plain = cross_entropy
  while hasattr(plain, "__wrapped__"):  # what a user without the tests' checks of annotations meets
    plain = plain.__wrapped__
  with pytest.raises(ValueError, match=words):
    plain(**{"logits": jnp.zeros((3, 5)), "labels": jnp.zeros(3, int), **arguments})
