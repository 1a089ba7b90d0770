"""Every convolution against sums written out in NumPy, and against torch: values and both gradients.

Over rank, window, stride, dilation, groups, padding, odd and even sizes. Errors are relative to the largest entry.
"""

import functools
import itertools
import random
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mlnotes.nn.grouped as grouped_module
from mlnotes.nn import Conv, contains_slow_convolution, convolve
from mlnotes.nn.geometry import pad_widths

TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


class Case(NamedTuple):
  rank: int
  window: int
  stride: int
  dilation: int
  groups: tuple[int, int, int]  # how many, and channels of each in and out
  padding: str
  size: int
  dtype: str

  @property
  def sizes(self):
    """Axes of different lengths, of either parity where there are several."""
    return tuple(self.size + axis for axis in range(self.rank))

  @property
  def pads(self):
    extent = (self.window - 1) * self.dilation + 1
    uneven = {"uneven": ((2, 0), (0, 1), (1, 1))[: self.rank]}
    padding = uneven.get(self.padding, self.padding)
    return pad_widths(padding, self.sizes, (extent,) * self.rank, (self.stride,) * self.rank)


VALUES = {
  "rank": (1, 2, 3),
  "window": (1, 2, 3),
  "stride": (1, 2, 3),
  "dilation": (1, 2),
  # One group, wide and narrow groups, depthwise, depthwise with two features of each channel, more than stand in a row.
  "groups": ((1, 3, 4), (2, 3, 2), (4, 2, 2), (5, 1, 1), (3, 1, 2), (11, 4, 3)),
  "padding": ("SAME", "VALID", "TORCH", "uneven"),
  "size": (6, 7),
  "dtype": ("float32", "float64"),
}


def covering_cases(seed: int) -> list[Case]:
  """Cases in which each pair of values of two settings meets: greedily, the best of some random ones each time."""
  rng = random.Random(seed)
  missing = {
    ((a, x), (b, y)) for a, b in itertools.combinations(VALUES, 2) for x, y in itertools.product(VALUES[a], VALUES[b])
  }
  cases = []
  while missing:
    drawn = [{name: rng.choice(values) for name, values in VALUES.items()} for _ in range(60)]
    best = max(drawn, key=lambda case: len(missing & set(itertools.combinations(case.items(), 2))))
    missing -= set(itertools.combinations(best.items(), 2))
    cases.append(Case(**best))
  return list(dict.fromkeys(cases))


ALL = covering_cases(0)
name_of = lambda case: "-".join(str(value).replace(" ", "") for value in case)


def arrays(case, seed=0):
  """x, kernel and the output's cotangent, in NumPy."""
  rng = np.random.default_rng(seed)
  groups, inputs, outputs = case.groups
  extent = (case.window - 1) * case.dilation + 1
  positions = [(n + sum(pair) - extent) // case.stride + 1 for n, pair in zip(case.sizes, case.pads)]
  shapes = (
    (2, *case.sizes, groups * inputs),
    (*(case.window,) * case.rank, inputs, groups * outputs),
    (2, *positions, groups * outputs),
  )
  return [rng.normal(size=shape).astype(case.dtype) for shape in shapes]


def written_out(case, x, kernel, cotangent):
  """The convolution and its two gradients by their definition, position by position, in float64."""
  x, kernel, cotangent = (array.astype(np.float64) for array in (x, kernel, cotangent))
  groups, inputs, outputs = case.groups
  padded = np.pad(x, ((0, 0), *case.pads, (0, 0)))
  y, d_padded, d_kernel = np.zeros(cotangent.shape), np.zeros(padded.shape), np.zeros(kernel.shape)
  for at in np.ndindex(cotangent.shape[1:-1]):
    for tap in np.ndindex(kernel.shape[:-2]):
      where = (slice(None), *(p * case.stride + q * case.dilation for p, q in zip(at, tap)))
      here = (slice(None), *at)
      for group in range(groups):
        i, o = slice(group * inputs, (group + 1) * inputs), slice(group * outputs, (group + 1) * outputs)
        y[(*here, o)] += padded[(*where, i)] @ kernel[(*tap, slice(None), o)]
        d_padded[(*where, i)] += cotangent[(*here, o)] @ kernel[(*tap, slice(None), o)].T
        d_kernel[(*tap, slice(None), o)] += padded[(*where, i)].T @ cotangent[(*here, o)]
  inside = tuple(slice(low, low + size) for (low, _), size in zip(case.pads, case.sizes))
  return y, d_padded[(slice(None), *inside)], d_kernel


@functools.cache  # of the operands of `arrays`
def ours(case):
  x, kernel, cotangent = arrays(case)
  padding = case.padding if case.padding != "uneven" else case.pads

  @jax.jit
  def compute(x, kernel, cotangent):
    call = lambda x, kernel: convolve(x, kernel, case.stride, padding, case.dilation, case.groups[0])
    y, pullback = jax.vjp(call, x, kernel)
    return (y, *pullback(cotangent))

  with jax.enable_x64(case.dtype == "float64"):
    return [np.asarray(array) for array in compute(*map(jnp.asarray, (x, kernel, cotangent)))]


def assert_close(found, expected, dtype):
  for name, a, b in zip(("value", "gradient by x", "gradient by kernel"), found, expected, strict=True):
    assert a.shape == b.shape and a.dtype == dtype, name
    assert np.max(np.abs(a - b)) <= TOLERANCE[dtype] * np.max(np.abs(b)), name


@pytest.mark.parametrize("case", random.Random(1).sample(ALL, 14), ids=name_of)
def test_equals_the_sums_written_out(case):
  operands = arrays(case)
  assert_close(ours(case), written_out(case, *operands), case.dtype)


@pytest.mark.parity
@pytest.mark.parametrize("case", ALL, ids=name_of)
def test_equals_torch(case):
  torch = pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[parity]'")
  operands = arrays(case)
  x, kernel, cotangent = (torch.from_numpy(array) for array in operands)
  x, cotangent = (torch.movedim(array, -1, 1) for array in (x, cotangent))
  kernel = kernel.permute(-1, -2, *range(case.rank)).contiguous().requires_grad_()
  x = x.contiguous().requires_grad_()
  convolution = getattr(torch.nn.functional, f"conv{case.rank}d")
  settings = dict(stride=case.stride, dilation=case.dilation, groups=case.groups[0])
  if case.padding == "TORCH" and (case.window % 2 or case.dilation == 2):
    y = convolution(x, kernel, padding=(case.window - 1) * case.dilation // 2, **settings)
  else:
    widths = [width for pair in reversed(case.pads) for width in pair]
    y = convolution(torch.nn.functional.pad(x, widths), kernel, **settings)
  d_x, d_kernel = torch.autograd.grad(y, (x, kernel), cotangent)
  expected = [torch.movedim(array, 1, -1).detach().numpy() for array in (y, d_x)]
  expected.append(d_kernel.permute(*range(2, case.rank + 2), 1, 0).numpy())
  assert_close(ours(case), expected, case.dtype)


def native(x, kernel, groups, strides=(1, 1)):
  dimensions = ("NHWC", "HWIO", "NHWC")
  return lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=dimensions, feature_group_count=groups)


# Depthwise, depthwise with two features each, groups in one convolution, in several, in a loop.
GROUPS = [(6, 1, 1), (3, 1, 2), (4, 2, 3), (6, 16, 1), (10, 17, 1)]


@pytest.mark.parametrize("groups, inputs, outputs", GROUPS)
def test_groups_have_second_derivatives_of_the_native_convolution_also_vmapped_and_in_a_loop(
  groups, inputs, outputs, key, monkeypatch
):
  monkeypatch.setattr(grouped_module, "_TERMS", 1)  # several turns of the kernel gradient's loop
  if outputs == 2:
    monkeypatch.setattr(grouped_module, "_TAPS_TOGETHER", 1)  # each row of taps by itself
  keys = jax.random.split(key, 2)
  x = jax.random.normal(keys[0], (2, 2, 5, 4, groups * inputs))
  kernel = jax.random.normal(keys[1], (2, 3, 3, inputs, groups * outputs)) / 3

  def derivatives(form, x, kernel):
    gradient = jax.grad(lambda x, kernel: jnp.sum(jnp.sin(form(x, kernel))), (0, 1))
    norm = lambda x, kernel: sum(jnp.sum(part**2) for part in gradient(x, kernel))
    return gradient(x, kernel), jax.grad(norm, (0, 1))(x, kernel)

  def run(form):
    call = jax.vmap(jax.vmap(lambda *pair: derivatives(form, *pair), (0, None)), (None, 0))
    return lax.map(lambda scale: call(scale * x, kernel), jnp.array([1.0, 0.5]))

  traced = jax.jit(lambda: run(lambda x, kernel: convolve(x, kernel, 2, "SAME", 1, groups))).trace()
  assert not contains_slow_convolution(traced.jaxpr)
  text = traced.lower().as_text()
  assert text.count("feature_group_count = 1 ") == text.count("stablehlo.convolution")
  found = traced.lower().compile()()
  expected = jax.jit(lambda: run(lambda x, kernel: native(x, kernel, groups, (2, 2))))()
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.max(jnp.abs(b))))


# (images, rows, terms of a turn): blocks of rows of which the last is not full, blocks of images likewise.
@pytest.mark.parametrize("batch, rows, terms", [(3, 5, 2), (10, 1, 2), (5, 3, 6)])
def test_a_depthwise_kernel_gradient_goes_over_every_image_and_row_once(batch, rows, terms, key, monkeypatch):
  monkeypatch.setattr(grouped_module, "_TERMS", terms)
  keys = jax.random.split(key, 2)
  x, y = jax.random.normal(keys[0], (batch, rows, 4, 3)), jax.random.normal(keys[1], (batch, rows, 4, 3))
  pullback = lambda form: jax.jit(lambda x, y: jax.linear_transpose(lambda kernel: form(x, kernel), kernel)(y)[0])(x, y)
  kernel = jax.ShapeDtypeStruct((3, 3, 1, 3), x.dtype)
  found = pullback(lambda x, kernel: convolve(x, kernel, feature_group_count=3))
  np.testing.assert_allclose(found, pullback(lambda x, kernel: native(x, kernel, 3)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mapped", ["x", "kernel", "y"])
@pytest.mark.parametrize("groups, inputs, outputs", GROUPS[1:3])
def test_one_batched_operand_of_a_gradient(mapped, groups, inputs, outputs, key):
  keys = jax.random.split(key, 3)
  shapes = {
    "x": (2, 4, 3, groups * inputs),
    "kernel": (3, 3, inputs, groups * outputs),
    "y": (2, 4, 3, groups * outputs),
  }
  operands = {name: jax.random.normal(k, (2, *shape)) for k, (name, shape) in zip(keys, shapes.items())}
  axes = [0 if name == mapped else None for name in shapes]
  args = [array if name == mapped else array[0] for name, array in operands.items()]

  def pullback(form, x, kernel, y):
    value, pull = jax.vjp(form, x, kernel)
    return value, pull(y)

  ours = lambda *a: pullback(lambda x, k: convolve(x, k, 1, "SAME", 1, groups), *a)
  theirs = jax.jit(lambda *a: pullback(lambda x, k: native(x, k, groups), *a))
  batched = jax.jit(jax.vmap(ours, axes))(*args)
  for index in range(2):
    single = [array[index] if axis == 0 else array for array, axis in zip(args, axes)]
    expected = theirs(*single)
    for a, b in zip(jax.tree.leaves(batched), jax.tree.leaves(expected), strict=True):
      np.testing.assert_allclose(a[index], b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("groups, inputs, outputs", GROUPS[:3:2])
def test_other_platforms_keep_the_native_grouped_convolution(groups, inputs, outputs, platform):
  x, kernel = jnp.zeros((2, 5, 5, groups * inputs)), jnp.zeros((3, 3, inputs, groups * outputs))

  def lowered(form):
    gradient = jax.value_and_grad(lambda x, kernel: jnp.sum(form(x, kernel) ** 2), (0, 1))
    text = jax.jit(gradient).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
    return sorted(line.partition("dim_numbers")[2] for line in text.splitlines() if "stablehlo.convolution" in line)

  found = lowered(lambda x, kernel: convolve(x, kernel, 1, "SAME", 1, groups))
  assert len(found) == 3 and found == lowered(lambda x, kernel: native(x, kernel, groups))


def test_a_batch_over_eight_devices_gives_the_gradient_of_one_and_moves_sums_only(key):
  keys = jax.random.split(key, 2)
  x, kernel = jax.random.normal(keys[0], (16, 5, 5, 6)), jax.random.normal(keys[1], (3, 3, 1, 6))
  loss = lambda x, kernel: jnp.sum(jnp.sin(convolve(x, kernel, 2, "TORCH", 1, 6)))
  gradient = jax.jit(jax.grad(loss, (0, 1)))
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  placed = (
    jax.device_put(x, jax.NamedSharding(mesh, jax.P("data"))),
    jax.device_put(kernel, jax.NamedSharding(mesh, jax.P())),
  )
  expected = gradient(x, kernel)
  specs = (jax.P("data"), jax.P())
  for found in (
    gradient(*placed),
    jax.jit(jax.shard_map(gradient.__wrapped__, mesh=mesh, in_specs=specs, out_specs=specs))(x, kernel),
  ):
    for a, b in zip(found, expected):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
  text = gradient.lower(*placed).compile().as_text()
  assert " all-reduce(" in text and " all-gather(" not in text and " all-to-all(" not in text


def test_depthwise_sums_of_bfloat16_are_float32(key):
  """Sums of 81 and of 225 terms are exact within bfloat16's rounding; added up in bfloat16 they would not be."""
  x = jnp.ones((1, 15, 15, 2), jnp.bfloat16)
  kernel = jnp.full((9, 9, 1, 2), 1 / 81, jnp.bfloat16)
  found = jax.jit(lambda x, k: convolve(x, k, 1, "VALID", 1, 2))(x, kernel)
  assert found.dtype == jnp.bfloat16
  np.testing.assert_allclose(found.astype(jnp.float32), 81 * float(kernel[0, 0, 0, 0]), rtol=2**-8)
  gradient = jax.jit(jax.grad(lambda k: jnp.sum(convolve(x, k, 1, "SAME", 1, 2).astype(jnp.float32))))(kernel)
  np.testing.assert_array_equal(gradient[4, 4].astype(jnp.float32), 225 if float(jnp.bfloat16(225)) == 225 else 224)


@pytest.mark.parametrize("size", [7, 8])
def test_same_pads_other_than_torch_with_stride_two_on_even_sizes(size, key):
  keys = jax.random.split(key, 2)
  x, kernel = jax.random.normal(keys[0], (1, size, size, 2)), jax.random.normal(keys[1], (3, 3, 2, 2))
  same, torch, explicit = (convolve(x, kernel, 2, padding) for padding in ("SAME", "TORCH", ((1, 1), (1, 1))))
  np.testing.assert_array_equal(torch, explicit)
  assert same.shape == torch.shape
  assert bool(jnp.all(same == torch)) == (size == 7)
  # What "SAME" is on even sizes: nothing before, one after.
  if size == 8:
    np.testing.assert_array_equal(same, convolve(x, kernel, 2, ((0, 1), (0, 1))))


@pytest.mark.parametrize("window, dilation, width", [(1, 1, 0), (2, 1, 0), (3, 1, 1), (3, 2, 2), (5, 1, 2), (2, 2, 1)])
def test_torch_padding_is_half_the_extent_on_both_sides(window, dilation, width):
  for stride in (1, 2, 3):
    assert pad_widths("TORCH", (8,), ((window - 1) * dilation + 1,), (stride,)) == ((width, width),)


def test_a_convolution_of_one_tap_is_a_dense_layer_exactly(key):
  x = jax.random.normal(key, (2, 5, 4, 7))
  variables = Conv(6, (1, 1)).init(jax.random.key(1), x)
  dense = {"params": {**variables["params"], "kernel": variables["params"]["kernel"][0, 0]}}
  np.testing.assert_array_equal(Conv(6, (1, 1)).apply(variables, x), nn.Dense(6).apply(dense, x))


@pytest.mark.parametrize(
  "features, groups, message",
  [
    (6, 4, "features is 6, expected a multiple of feature_group_count=4"),
    (6, 0, "feature_group_count is 0, expected a positive"),
    (6, 3, "x has 4 channels, expected a multiple of feature_group_count=3"),
  ],
)
def test_groups_that_do_not_fit_are_refused_by_name(features, groups, message, key):
  with pytest.raises(ValueError, match=message):
    Conv(features, (3, 3), feature_group_count=groups).init(key, jnp.zeros((1, 4, 4, 4)))


def test_the_function_refuses_groups_too_and_windows_larger_than_the_image():
  x = jnp.zeros((1, 4, 4, 4))
  with pytest.raises(ValueError, match="kernel has 6 features, expected a multiple of feature_group_count=4"):
    convolve(x, jnp.zeros((3, 3, 1, 6)), feature_group_count=4)
  with pytest.raises(ValueError, match="feature_group_count is 0"):
    convolve(x, jnp.zeros((3, 3, 4, 6)), feature_group_count=0)
  with pytest.raises(
    ValueError, match=r"x has spatial size \(4, 4\) after padding, expected at least the kernel's \(5, 5\)"
  ):
    convolve(x, jnp.zeros((5, 5, 4, 6)), padding="VALID")
