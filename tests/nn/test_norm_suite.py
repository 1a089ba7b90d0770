"""Every norm against NumPy loops in float64 and torch: shifts, constants, half precision, padding, devices."""

import functools
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.nn import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm

SHAPE = (6, 3, 5, 12)  # no powers of two: a division by one rounds nothing
NORMS = {
  "batch": partial(BatchNorm, use_running_average=False),
  "batch in 2 splits": partial(BatchNorm, use_running_average=False, num_splits=2),
  "group 4": partial(GroupNorm, groups=4, dtype=None),
  "group 1": partial(GroupNorm, groups=1, dtype=None),
  "instance": partial(InstanceNorm, dtype=None),
  "layer": LayerNorm,
  "rms": RMSNorm,
}
WITH_MASK = [name for name in NORMS if name not in ("layer", "rms")]
FLOATS = {jnp.float32: 2e-6, jnp.bfloat16: 2**-8, jnp.float16: 2**-11}


def cells(name, shape):
  """What shares its statistics."""
  B, *_, C = shape
  if name == "batch":
    return [np.s_[..., c] for c in range(C)]
  if name == "batch in 2 splits":
    return [np.s_[half, ..., c] for half in (slice(B // 2), slice(B // 2, B)) for c in range(C)]
  if name in ("layer", "rms"):
    return [(*position, slice(None)) for position in np.ndindex(*shape[:-1])]
  groups = {"group 4": 4, "group 1": 1, "instance": C}[name]
  bounds = np.arange(0, C + 1, C // groups)
  return [np.s_[b, ..., low:high] for b in range(B) for low, high in itertools.pairwise(bounds)]


def by_loops(name, params, x, mask=None):
  """The norm in float64, a cell at a time; zero where nothing counts."""
  x, epsilon = np.asarray(x, np.float64), NORMS[name]().epsilon
  counted = (
    np.ones(x.shape, bool)
    if mask is None
    else np.broadcast_to(mask.reshape(*mask.shape, *[1] * (4 - mask.ndim)), x.shape)
  )
  y = np.zeros_like(x)
  for cell in cells(name, x.shape):
    values = x[cell][counted[cell]]
    if values.size:
      mean = 0 if name == "rms" else sum(values) / len(values)
      root = np.sqrt(sum((values - mean) ** 2) / len(values) + epsilon)
      y[cell] = np.where(counted[cell], (np.where(counted[cell], x[cell], 0) - mean) / root, 0)
  scale, bias = (np.asarray(params.get(key, 0), np.float64) for key in ("scale", "bias"))
  return np.where(counted, y * scale + bias, 0)


def make_params(name):
  rng = np.random.default_rng(1)
  params = {"scale": rng.uniform(0.5, 1.5, SHAPE[-1]).astype(np.float32)}
  return params if name == "rms" else {**params, "bias": rng.normal(size=SHAPE[-1]).astype(np.float32)}


def weights():
  return np.random.default_rng(2).normal(size=SHAPE).astype(np.float32)


@functools.cache
def compiled(name, masked=False):
  """(params, x[, mask]) -> y, its gradients in params and x, and what was put into "batch_stats"."""
  module = NORMS[name]()

  def loss(params, x, *mask):
    y, updated = module.apply({"params": params, **stats(name)}, x, *mask, mutable=["batch_stats"])
    return jnp.sum(jnp.where(jnp.isfinite(x) | masked, y * weights().astype(y.dtype), 0).astype(jnp.float32)), (
      y,
      updated,
    )

  def run(params, x, *mask):
    (_, (y, updated)), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x, *mask)
    return y, gradients, updated

  return jax.jit(run)


def stats(name):
  if not name.startswith("batch"):
    return {}
  return {"batch_stats": {"mean": jnp.full(SHAPE[-1], 0.5), "var": jnp.full(SHAPE[-1], 2.0)}}


def exact_normal(seed=0):
  """Normal values that are multiples of 2^-8: float32 holds them exactly beside 1e4."""
  return np.round(np.random.default_rng(seed).normal(size=SHAPE) * 256).astype(np.float32) / 256


def finite(tree):
  return all(bool(jnp.all(jnp.isfinite(leaf.astype(jnp.float32)))) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: jnp.dtype(dtype).name)
@pytest.mark.parametrize("name", NORMS)
def test_loops_give_the_same_near_zero_at_large_means_and_where_epsilon_counts(name, dtype):
  params = make_params(name)
  for shift, deviation in ((0, 1), (1e3, 1), (1e4, 1), (1e4, 100), (0, 1e-3), (-50, 3)):
    x = jnp.asarray(deviation * exact_normal() + np.float32(shift), dtype)
    y = compiled(name)(params, x)[0]
    assert y.dtype == dtype
    expected = by_loops(name, params, x.astype(jnp.float32))
    np.testing.assert_allclose(
      y.astype(jnp.float32), expected, rtol=FLOATS[dtype], atol=4e-6, err_msg=f"{shift} {deviation}"
    )


@pytest.mark.parametrize("name", [name for name in NORMS if name != "rms"])
def test_a_shift_changes_neither_output_nor_gradient(name):
  params, x = make_params(name), exact_normal()
  expected = compiled(name)(params, x)[:2]
  for shift in (1e3, 1e4):
    found = compiled(name)(params, x + np.float32(shift))[:2]
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NORMS)
def test_one_far_value_in_the_middle_costs_no_digits(name):
  """Where the moments are taken about a value that is the worst of all."""
  params, x = make_params(name), exact_normal() + np.float32(1e4)
  x[:, 1, 2] -= 1e4
  np.testing.assert_allclose(compiled(name)(params, x)[0], by_loops(name, params, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: jnp.dtype(dtype).name)
@pytest.mark.parametrize("name", NORMS)
def test_a_constant_input_is_finite_and_comes_out_as_the_bias(name, dtype):
  params = make_params(name)
  for value in (0.0, 3.0, 1.1e4):
    y, gradients, updated = compiled(name)(params, jnp.full(SHAPE, value, dtype))
    assert finite((y, gradients, updated))
    if name != "rms":
      np.testing.assert_allclose(y, np.broadcast_to(params["bias"].astype(dtype), SHAPE))


PADDINGS = {
  "positions": np.array([[[r < 3 - b % 2 and c < 5 - b % 4 for c in range(5)] for r in range(3)] for b in range(6)]),
  "examples": np.array([True, True, False, True, True, False]),
  "a split of nothing": np.array([False, False, False, True, False, True]),
}


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", WITH_MASK)
def test_padding_changes_nothing_and_lets_nothing_through(name, padding):
  mask, params = PADDINGS[padding], make_params(name)
  full = np.broadcast_to(mask.reshape(*mask.shape, *[1] * (3 - mask.ndim)), SHAPE[:-1])
  x = exact_normal() + np.float32(1e3)
  x[~full] = np.nan
  y, gradients, updated = compiled(name, True)(params, x, mask)
  np.testing.assert_allclose(y, by_loops(name, params, x, mask), rtol=1e-5, atol=1e-5)
  assert not np.any(np.asarray(y)[~full]) and not np.any(np.asarray(gradients[1])[~full])
  assert finite((y, gradients, updated))
  other = np.where(full[..., None], x, 7)
  for a, b in zip(jax.tree.leaves(compiled(name, True)(params, other, mask)), jax.tree.leaves((y, gradients, updated))):
    np.testing.assert_array_equal(a, b)


def test_running_values_and_gradients_under_a_mask_are_those_of_the_batch_without_padding():
  params, x, mask = make_params("batch"), exact_normal(), PADDINGS["examples"]
  y, gradients, updated = compiled("batch", True)(params, x, mask)
  module, kept = NORMS["batch"](), np.flatnonzero(mask)

  def loss(params, x):
    y, updated = module.apply({"params": params, **stats("batch")}, x, mutable=["batch_stats"])
    return jnp.sum(y * weights()[kept]), (y, updated)

  (_, expected), expected_gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x[kept])
  found = (y[kept], updated), (gradients[0], gradients[1][kept])
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves((expected, expected_gradients)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["batch", "batch in 2 splits"])
def test_a_batch_of_nothing_leaves_the_running_values(name):
  y, gradients, updated = compiled(name, True)(make_params(name), exact_normal(), np.zeros(6, bool))
  assert not np.any(y) and finite(gradients)
  jax.tree.map(np.testing.assert_array_equal, updated, stats(name))


@pytest.mark.parametrize("norm", [NORMS["batch"](), NORMS["instance"]()])
def test_a_mask_that_does_not_fit_is_refused(norm, key):
  with pytest.raises(ValueError, match=r"mask has shape \(6, 3\), expected \(6,\) or \(6, 3, 5\)"):
    norm.init(key, jnp.zeros(SHAPE), jnp.ones((6, 3), bool))


@pytest.mark.parametrize("mean, splits", [(0, 1), (1e4, 1), (3, 2)])
def test_running_values_after_three_batches(mean, splits, key):
  """Biased variance; momentum is the part that is kept."""
  module = BatchNorm(use_running_average=False, num_splits=splits, momentum=0.8)
  batches = [exact_normal(seed) * (seed + 1) + np.float32(mean) for seed in range(3)]
  variables = module.init(key, jnp.asarray(batches[0]))
  step = jax.jit(lambda variables, x: module.apply(variables, x, mutable=["batch_stats"])[1])
  running = np.zeros((2, SHAPE[-1]))
  running[1] = 1
  for x in batches:
    variables = {**variables, **step(variables, x)}
    for c in range(SHAPE[-1]):
      parts = np.split(np.float64(x[..., c]), splits)
      for row, statistic in enumerate((np.mean, np.var)):
        running[row, c] = 0.8 * running[row, c] + 0.2 * np.mean([statistic(part) for part in parts])
  np.testing.assert_allclose(variables["batch_stats"]["mean"], running[0], rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(variables["batch_stats"]["var"], running[1], rtol=3e-6)


def test_running_statistics_with_a_large_mean_normalise_as_they_should():
  x = exact_normal() + np.float32(1e4)
  variables = {
    "params": make_params("batch"),
    "batch_stats": {"mean": np.full(SHAPE[-1], 1e4, np.float32), "var": np.full(SHAPE[-1], 4, np.float32)},
  }
  found = BatchNorm(use_running_average=True).apply(variables, jnp.asarray(x))
  expected = exact_normal() / np.sqrt(4 + 1e-5) * variables["params"]["scale"] + variables["params"]["bias"]
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name, masked", [("batch", False), ("batch", True), ("batch in 2 splits", False)])
def test_seeds_side_by_side_on_two_devices_give_what_each_gives_alone(name, masked):
  seeds = [make_params(name), jax.tree.map(lambda p: 2 * p, make_params(name))]
  xs = np.stack([exact_normal(seed) + np.float32(100 * seed) for seed in range(2)])
  masks = (np.stack([PADDINGS["examples"], ~PADDINGS["examples"]]),) if masked else ()
  mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
  split = lambda a: jax.device_put(a, jax.NamedSharding(mesh, jax.P(None, "data")))
  stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *seeds)
  run = jax.jit(jax.vmap(compiled(name, masked).__wrapped__))
  together = run(stacked, split(xs), *map(split, masks))
  assert len(together[0].sharding.device_set) == 2
  for seed in range(2):
    alone = compiled(name, masked)(seeds[seed], xs[seed], *(mask[seed] for mask in masks))
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
      np.testing.assert_allclose(a[seed], b, rtol=1e-5, atol=1e-5)


def test_a_scale_that_is_stored_less_one(key):
  x, scale = jnp.asarray(exact_normal()), make_params("rms")["scale"]
  module = RMSNorm(unit_offset=True)
  assert not np.any(module.init(key, x)["params"]["scale"])
  found = module.apply({"params": {"scale": scale - 1}}, x)
  np.testing.assert_allclose(found, by_loops("rms", {"scale": scale}, x), rtol=1e-6, atol=1e-6)


def by_torch(torch, name, params, x, epsilon):
  """The norm of torch on channels-last x."""
  functional, first = torch.nn.functional, lambda v: v.movedim(-1, 1)
  scale, bias = params["scale"], params.get("bias")
  if name == "layer":
    return functional.layer_norm(x, x.shape[-1:], scale, bias, epsilon)
  if name == "rms":
    return functional.rms_norm(x, x.shape[-1:], scale, epsilon)
  if name == "instance":
    y = functional.instance_norm(first(x), weight=scale, bias=bias, eps=epsilon)
  elif name.startswith("group"):
    # On channels-last memory torch's own variance is E[x^2] - E[x]^2.
    y = functional.group_norm(first(x).contiguous(), int(name[-1]), scale, bias, epsilon)
  else:
    parts = torch.chunk(first(x), 2 if "splits" in name else 1)
    y = torch.cat([functional.batch_norm(part, None, None, scale, bias, True, eps=epsilon) for part in parts])
  return y.movedim(1, -1)


@pytest.mark.parity
@pytest.mark.parametrize("x64, tolerance", [(False, 1e-5), (True, 1e-10)], ids=["float32", "float64"])
@pytest.mark.parametrize("name", NORMS)
def test_torch_gives_the_same_values_and_gradients(name, x64, tolerance):
  torch = pytest.importorskip("torch")
  for shift in (0, 1e4):
    x = exact_normal().astype(np.float64) + shift
    leaves = {
      key: torch.tensor(value, dtype=torch.float64, requires_grad=True) for key, value in make_params(name).items()
    }
    theirs = torch.tensor(x, requires_grad=True)
    y = by_torch(torch, name, leaves, theirs, NORMS[name]().epsilon)
    (y * torch.tensor(weights())).sum().backward()
    expected = (y.detach(), {key: leaf.grad for key, leaf in leaves.items()}, theirs.grad)

    module, dtype = NORMS[name](), np.float64 if x64 else np.float32
    with jax.enable_x64(x64):

      @jax.jit
      def run(params, x, module=module):
        apply = lambda params, x: module.apply({"params": params, **stats(name)}, x, mutable=["batch_stats"])[0]
        y, pullback = jax.vjp(apply, params, x)
        return y, *pullback(jnp.asarray(weights(), y.dtype))

      found = run({key: jnp.asarray(value, dtype) for key, value in make_params(name).items()}, jnp.asarray(x, dtype))
      found = jax.tree.map(np.asarray, found)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
      assert a.dtype == dtype
      np.testing.assert_allclose(a, b.numpy(), rtol=0, atol=tolerance * max(1, float(b.abs().max())))


@pytest.mark.parity
def test_torch_stores_the_unbiased_variance_and_the_new_part(key):
  torch = pytest.importorskip("torch")
  x = exact_normal() + np.float32(2)
  theirs, ours = torch.nn.BatchNorm2d(SHAPE[-1], momentum=0.1), BatchNorm(use_running_average=False, momentum=0.9)
  variables = ours.init(key, jnp.asarray(x))
  for _ in range(3):
    theirs(torch.tensor(x).movedim(-1, 1))
    variables = {**variables, **ours.apply(variables, jnp.asarray(x), mutable=["batch_stats"])[1]}
  stored, m, kept = variables["batch_stats"], x[..., 0].size, 0.9**3
  np.testing.assert_allclose(stored["mean"], theirs.running_mean, rtol=1e-5)
  np.testing.assert_allclose(kept + (stored["var"] - kept) * m / (m - 1), theirs.running_var, rtol=1e-5)
