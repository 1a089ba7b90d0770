"""Activations against torch's of the same name, SciPy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from mlnotes.nn import Maxout, activation, gelu_erf, gelu_tanh, softmax

X = np.concatenate([np.linspace(-6, 6, 97), [-30, -0.5, 0.5, 30]]).astype(np.float32)


def test_gelu_is_what_its_name_says():
  x = X.astype(np.float64)
  np.testing.assert_allclose(gelu_erf(X), x * (1 + scipy.special.erf(x / np.sqrt(2))) / 2, atol=1e-6)
  np.testing.assert_allclose(gelu_tanh(X), x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2, atol=1e-6)
  assert 4e-4 < np.abs(gelu_erf(X) - gelu_tanh(X)).max() < 5e-4
  np.testing.assert_allclose([gelu_erf(1.0), gelu_tanh(1.0)], [0.84134, 0.84119], atol=5e-6)


@pytest.mark.parity
@pytest.mark.parametrize("name, theirs, options", [
  ("gelu_erf", "gelu", {"approximate": "none"}), ("gelu_tanh", "gelu", {"approximate": "tanh"}), ("relu", "relu", {}),
  ("leaky_relu", "leaky_relu", {}), ("elu", "elu", {}), ("celu", "celu", {}), ("selu", "selu", {}),
  ("silu", "silu", {}), ("mish", "mish", {}), ("softplus", "softplus", {}), ("hard_sigmoid", "hardsigmoid", {}),
  ("hard_swish", "hardswish", {}), ("sigmoid", "sigmoid", {}),
])  # fmt: skip
def test_torch_has_the_same_value_and_slope(name, theirs, options):
  torch = pytest.importorskip("torch")
  x = torch.tensor(X, requires_grad=True)
  y = getattr(torch.nn.functional, theirs)(x, **options)
  y.sum().backward()
  ours = getattr(activation, name)
  value, slope = jax.jit(jax.vmap(jax.value_and_grad(ours)))(X)
  np.testing.assert_allclose(value, y.detach(), rtol=1e-6, atol=1e-6)
  # At the corners of piecewise linear functions each library takes one side or the other.
  corner = np.isin(X, {"leaky_relu": (0,), "hard_sigmoid": (-3, 3), "hard_swish": (-3, 3)}.get(name, ()))
  np.testing.assert_allclose(np.asarray(slope)[~corner], x.grad.numpy()[~corner], rtol=1e-5, atol=5e-6)


def test_maxout_takes_the_largest_of_its_pieces(key):
  x = jax.random.normal(key, (5, 3))
  module = Maxout(4, pieces=3)
  variables = module.init(jax.random.key(1), x)
  kernel, bias = np.asarray(variables["params"]["dense"]["kernel"]), jax.random.normal(jax.random.key(2), (12,))
  assert kernel.size + bias.size == 3 * (3 * 4 + 4)
  found = module.apply({"params": {"dense": {"kernel": kernel, "bias": bias}}}, x)
  for b, i in np.ndindex(5, 4):
    pieces = [x[b] @ kernel[:, 3 * i + j] + bias[3 * i + j] for j in range(3)]
    np.testing.assert_allclose(found[b, i], max(pieces), rtol=1e-5)


def test_maxout_with_a_piece_of_zeros_is_relu_and_with_its_opposite_the_absolute_value(key):
  x = jax.random.normal(key, (6, 2))
  apply = lambda *pieces: Maxout(1).apply(
    {"params": {"dense": {"kernel": jnp.array(pieces, jnp.float32).T, "bias": jnp.zeros(2)}}}, x
  )
  np.testing.assert_allclose(apply((1, 0), (0, 0)), jax.nn.relu(x[:, :1]), rtol=1e-6)
  np.testing.assert_allclose(apply((0, 1), (0, -1)), jnp.abs(x[:, 1:]), rtol=1e-6)
  with pytest.raises(ValueError, match="pieces=0"):
    Maxout(1, pieces=0).init(jax.random.key(1), x)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_softmax_at_a_temperature_and_its_derivative(temperature, key):
  z = 3 * jax.random.normal(key, (5,))
  p = scipy.special.softmax(np.asarray(z, np.float64) / temperature)
  np.testing.assert_allclose(softmax(z, temperature), p, rtol=1e-5)
  jacobian = jax.jacobian(lambda z: softmax(z, temperature))(z)
  np.testing.assert_allclose(jacobian, (np.diag(p) - np.outer(p, p)) / temperature, atol=1e-6)


def test_the_gradient_of_distillation_times_the_temperature_squared_stays(key):
  """At high temperature (z - v) / K for logits of mean 0: Hinton et al. 2015, eq. 4."""
  student, teacher = jax.random.normal(key, (2, 6))
  student, teacher = student - jnp.mean(student), teacher - jnp.mean(teacher)
  loss = lambda z, t: -jnp.sum(softmax(teacher, t) * jnp.log(softmax(z, t)))
  np.testing.assert_allclose(50.0**2 * jax.grad(loss)(student, 50.0), (student - teacher) / 6, atol=0.02)


def test_softmax_in_half_precision_axes_and_refusals(key):
  z = (100 * jax.random.normal(key, (4, 3))).astype(jnp.float16)
  assert softmax(z).dtype == jnp.float16
  np.testing.assert_allclose(jnp.sum(softmax(z, jnp.float32(2), axis=0).astype(jnp.float32), 0), 1, rtol=2e-3)
  for temperature in (0.0, -1.0, float("nan")):
    with pytest.raises(ValueError, match="expected a number above 0"):
      softmax(z, temperature)
