"""Pooling against windows written out in NumPy, and against torch."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.nn import avg_pool, max_pool
from mlnotes.nn.geometry import pad_widths

CASES = [
  # rank, window, strides, padding, dilation, size
  (1, 3, 2, "TORCH", 1, 7),
  (1, 2, None, "VALID", 2, 6),
  (2, 2, None, "VALID", 1, 7),
  (2, 3, 2, "TORCH", 1, 8),
  (2, 3, 1, "TORCH", 1, 5),
  (2, (3, 2), (1, 3), ((1, 1), (1, 1)), (2, 1), 7),
  (2, 3, 2, "SAME", 1, 6),
  (3, 3, 2, "TORCH", 1, 5),
  (3, (1, 2, 2), (1, 2, 1), "VALID", 1, 4),
]


def settle(rank, window, strides, padding, dilation, size):
  """Everything per axis: sizes, window, strides, pads, dilation."""
  window, dilation = ((value,) * rank if isinstance(value, int) else value for value in (window, dilation))
  strides = window if strides is None else (strides,) * rank if isinstance(strides, int) else strides
  sizes = tuple(size + axis for axis in range(rank))
  extents = tuple((taps - 1) * step + 1 for taps, step in zip(window, dilation))
  return sizes, window, strides, pad_widths(padding, sizes, extents, strides), dilation


def written_out(x, reduce, sizes, window, strides, pads, dilation):
  """`reduce(values inside of the window, how many taps)` of each window and channel."""
  positions = [
    (n + sum(pair) - (k - 1) * d - 1) // s + 1 for n, k, s, pair, d in zip(sizes, window, strides, pads, dilation)
  ]
  y = np.zeros((len(x), *positions, x.shape[-1]))
  for at in np.ndindex(*positions):
    taps = [
      [p * s + q * d - pair[0] for q in range(k) if 0 <= p * s + q * d - pair[0] < n]
      for p, n, k, s, pair, d in zip(at, sizes, window, strides, pads, dilation)
    ]
    values = np.stack([x[(slice(None), *place)] for place in itertools.product(*taps)])
    y[(slice(None), *at)] = reduce(values, np.prod(window))
  return y


def pools(window, strides, padding, dilation):
  """Of x: its maxima, and where the window is not dilated its means without and with the padding counted."""

  def compute(x):
    means = [avg_pool(x, window, strides, padding, include) for include in (False, True) if dilation == 1]
    return max_pool(x, window, strides, padding, dilation), *means

  return compute


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_windows_written_out(case, key):
  plan = settle(*case)
  x = -np.abs(np.asarray(jax.random.normal(key, (2, *plan[0], 3)))) - 1  # a maximum with zeros around it would be 0
  largest, *means = jax.jit(pools(*case[1:5]))(x)
  np.testing.assert_array_equal(largest, written_out(x, lambda values, taps: np.max(values, axis=0), *plan))
  for found, include in zip(means, (False, True)):
    reduce = lambda values, taps, include=include: np.sum(values, axis=0) / (taps if include else len(values))
    np.testing.assert_allclose(found, written_out(x, reduce, *plan), rtol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize(
  "case, dtype", [(CASES[3], "float32"), *((case, "float64") for case in CASES if case[3] != "SAME")], ids=str
)
def test_equals_torch_in_values_and_gradients(case, dtype):
  torch = pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[parity]'")
  rank, window, strides, _, dilation, _ = case
  sizes, *_, pads, _ = settle(*case)
  pads = [low for low, _ in pads]
  # Few different values, so that windows have several maxima.
  x = np.random.default_rng(0).integers(0, 4, (2, *sizes, 3)).astype(dtype)
  largest, mean = (getattr(torch.nn.functional, f"{name}_pool{rank}d") for name in ("max", "avg"))
  peers = [lambda x: largest(x, window, strides, pads, dilation)]
  if dilation == 1:
    for include in (False, True):
      peers.append(lambda x, include=include: mean(x, window, strides, pads, count_include_pad=include))

  @jax.jit
  def compute(x):
    found, pullback = jax.vjp(pools(*case[1:5]), x)
    cotangents = [jnp.sin(y) + y * jnp.cos(y) for y in found]
    zeros = [jnp.zeros_like(y) for y in found]
    return found, [pullback((*zeros[:i], c, *zeros[i + 1 :]))[0] for i, c in enumerate(cotangents)]

  with jax.enable_x64(dtype == "float64"):
    found, gradients = jax.tree.map(np.asarray, compute(x))
  tolerance = dict(rtol=1e-5, atol=1e-5) if dtype == "float32" else dict(rtol=1e-10, atol=1e-10)
  for peer, value, gradient in zip(peers, found, gradients, strict=True):
    leaf = torch.movedim(torch.from_numpy(x), -1, 1).contiguous().requires_grad_()
    y = peer(leaf)
    expected = torch.autograd.grad(torch.sum(torch.sin(y) * y), leaf)[0]
    np.testing.assert_allclose(value, torch.movedim(y, 1, -1).detach().numpy(), **tolerance)
    np.testing.assert_allclose(gradient, torch.movedim(expected, 1, -1).numpy(), **tolerance)


def test_an_image_of_ones_pools_to_ones_at_its_borders_too():
  ones = jnp.ones((1, 5, 6, 2))
  for padding in ("SAME", "TORCH", ((1, 0), (2, 1))):
    means, largest = jax.jit(lambda x, p=padding: (avg_pool(x, 3, 1, p), max_pool(-x, 3, 1, p)))(ones)
    np.testing.assert_allclose(means, 1, rtol=1e-6)
    np.testing.assert_array_equal(largest, -1)
  assert float(avg_pool(ones, 3, 1, "TORCH", count_include_pad=True)[0, 0, 0, 0]) == pytest.approx(4 / 9)


def test_the_gradient_of_equal_values_goes_to_the_first():
  x = jnp.array([[0.0, 1, 1], [1, 1, 0], [0, 0, 0]])[None, :, :, None]
  gradient = jax.jit(jax.grad(lambda x: jnp.sum(max_pool(x, 3))))(x)
  np.testing.assert_array_equal(gradient[0, :, :, 0], [[0, 1, 0], [0, 0, 0], [0, 0, 0]])


def test_nan_is_not_lost():
  """An image for each place of the NaN within the window."""
  x = np.where(np.eye(4) == 1, np.nan, 0).astype(np.float32).reshape(4, 2, 2, 1)
  largest, mean = jax.jit(lambda x: (max_pool(x, 2), avg_pool(x, 2)))(x)
  assert np.isnan(largest).all() and np.isnan(mean).all()


def test_sums_of_bfloat16_are_float32():
  x = jnp.ones((1, 40, 40, 1), jnp.bfloat16)
  found = jax.jit(lambda x: avg_pool(x, 40))(x)
  assert found.dtype == jnp.bfloat16 and float(found[0, 0, 0, 0]) == 1


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
@pytest.mark.parametrize(
  "arguments, message",
  [
    (dict(window=5), "x has spatial size"),
    (dict(window=0), "window is 0"),
    (dict(window=(2, 2, 2)), "window is"),
    (dict(window=2, strides=0), "strides is 0"),
    (dict(window=2, padding=2), "padding is .* outside of the image"),
    (dict(window=2, padding="same"), "padding is 'same'"),
  ],
)
def test_bad_input_is_refused_in_one_sentence(pool, arguments, message):
  with pytest.raises(ValueError, match=message):
    pool(jnp.zeros((1, 4, 4, 1)), **arguments)
