"""Variances and ranges of initial weights in closed form, against torch's, and what they do to a deep network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.nn import compute_fans, glorot, he, lecun
from mlnotes.nn.initializers import _scaled, torch_bias, torch_linear

KERNEL = (3, 3, 16, 64)
FAN_IN, FAN_OUT = 144, 576


def draw(init, shape=KERNEL, seed=0):
  return np.asarray(init(jax.random.key(seed), shape, jnp.float32), np.float64)


@pytest.mark.parametrize("distribution", ["normal", "uniform", "truncated_normal"])
@pytest.mark.parametrize("make, variance", [
  (he, 2 / FAN_IN),
  (lambda d: he(d, slope=0.2), 2 / 1.04 / FAN_IN),
  (lambda d: he(d, mode="fan_out"), 2 / FAN_OUT),
  (lambda d: he(d, mode="fan_out", groups=4), 8 / FAN_OUT),
  (lambda d: he(d, groups=4), 2 / FAN_IN),
  (glorot, 2 / (FAN_IN + FAN_OUT)),
  (lambda d: glorot(d, groups=4), 2 / (FAN_IN + FAN_OUT / 4)),
  (lecun, 1 / FAN_IN),
])  # fmt: skip
def test_variance_and_range(make, variance, distribution):
  w = draw(make(distribution))
  # The deviation of a sample variance is at most sqrt(2 / n) of it, of a mean one over sqrt(n): five of each.
  np.testing.assert_allclose(w.var(), variance, rtol=5 * np.sqrt(2 / w.size))
  np.testing.assert_allclose(w.mean(), 0, atol=5 * np.sqrt(variance / w.size))
  largest = np.abs(w).max() / np.sqrt(variance)
  if distribution == "uniform":
    assert 0.999 * np.sqrt(3) < largest <= np.sqrt(3) * (1 + 1e-6)
  elif distribution == "truncated_normal":
    assert 0.98 * 2 / 0.87962566 < largest <= 2 / 0.87962566 * (1 + 1e-6)
  else:
    assert largest > 3.5


def test_defaults_are_those_that_the_docstrings_name():
  key = jax.random.key(0)
  np.testing.assert_array_equal(draw(lecun()), np.asarray(jax.nn.initializers.lecun_normal()(key, KERNEL), np.float64))
  assert np.abs(draw(he())).max() > 3.5 * np.sqrt(2 / FAN_IN)
  assert np.abs(draw(glorot())).max() <= np.sqrt(6 / (FAN_IN + FAN_OUT)) * (1 + 1e-6)


def test_fans_of_grouped_kernels_count_what_is_summed():
  """By the convolution's Jacobian: how many inputs an output sees, and how many outputs an input reaches."""
  x, groups = jnp.ones((1, 7, 7, 6)), 3
  kernel = jnp.ones((3, 3, 2, 12))
  convolution = lambda x: jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
  )
  seen = jax.grad(lambda x: convolution(x)[0, 3, 3, 5])(x)
  reached = jax.jvp(convolution, (x,), (jnp.zeros_like(x).at[0, 3, 3, 4].set(1),))[1]
  assert compute_fans(kernel.shape, groups) == (jnp.count_nonzero(seen), jnp.count_nonzero(reached)) == (18, 36)
  assert compute_fans((3, 3, 1, 16), 16) == (9, 9)
  assert compute_fans((20, 30)) == (20, 30)


@pytest.mark.parametrize("init, power", [(he(), 0), (lecun(), -50)], ids=["he", "lecun"])
def test_fifty_relu_layers_keep_the_variance_or_halve_it_each_time(init, power):
  """Within a factor 2, as a geometric mean over networks: the logarithm of one has a deviation of 1 bit by itself."""
  width, depth, networks = 512, 50, 12

  @jax.jit
  def forward(key):
    x = jax.random.normal(jax.random.fold_in(key, depth), (4, width))
    layer = lambda x, i: (jax.nn.relu(x) @ init(jax.random.fold_in(key, i), (width, width)), None)
    return jnp.mean(jnp.square(jax.lax.scan(layer, x, jnp.arange(depth))[0]))

  bits = [float(jnp.log2(forward(jax.random.key(seed)))) for seed in range(networks)]
  assert abs(np.mean(bits) - power) < 1, bits


@pytest.mark.parity
@pytest.mark.parametrize("shape", [(30, 50), (3, 3, 8, 24), (5, 40, 30)])
def test_torch_has_the_same_bounds(shape):
  torch = pytest.importorskip("torch")
  torch.manual_seed(0)
  theirs = torch.empty(*shape[::-1])
  uniform = lambda init: np.abs(draw(init, shape)).max()
  cases = (
    (he("uniform"), lambda w: torch.nn.init.kaiming_uniform_(w, nonlinearity="relu")),
    (he("uniform", slope=0.3), lambda w: torch.nn.init.kaiming_uniform_(w, a=0.3)),
    (he("uniform", mode="fan_out"), lambda w: torch.nn.init.kaiming_uniform_(w, mode="fan_out", nonlinearity="relu")),
    (glorot(), torch.nn.init.xavier_uniform_),
    (torch_linear(), lambda w: torch.nn.init.kaiming_uniform_(w, a=5**0.5)),
  )
  for ours, fill in cases:
    np.testing.assert_allclose(uniform(ours), fill(theirs).abs().max().item(), rtol=0.02)


@pytest.mark.parity
def test_torch_linear_has_this_default():
  torch = pytest.importorskip("torch")
  layer = torch.nn.Linear(100, 400)
  bound = 0.1
  kernel, bias = draw(torch_linear(), (100, 400)), draw(torch_bias(100), (400,))
  for ours, theirs in ((kernel, layer.weight), (bias, layer.bias)):
    for values in (ours, theirs.detach().numpy()):
      assert 0.98 * bound < np.abs(values).max() <= bound * (1 + 1e-6)


def test_what_is_no_kernel_or_no_name_is_refused(key):
  with pytest.raises(ValueError, match=r"kernel of shape \(5,\), groups=1"):
    he()(key, (5,))
  with pytest.raises(ValueError, match="groups=4"):
    compute_fans((3, 3, 1, 6), 4)
  with pytest.raises(ValueError, match="mode is 'fan'"):
    _scaled(1.0, "fan", "normal", 1)
  with pytest.raises(ValueError, match="distribution is 'gauss'"):
    _scaled(1.0, "fan_in", "gauss", 1)
