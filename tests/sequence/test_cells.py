"""Cells against loops in NumPy, the minimal ones against their own steps; lengths, states and dropout of layers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mlnotes.sequence import (
  CELLS,
  ClockworkCell,
  ElmanCell,
  GRUCell,
  JordanCell,
  LSTMCell,
  MinGRUCell,
  MinLSTMCell,
  Recurrent,
  RecurrentStack,
  SCRNCell,
  make_cell,
  scan_linear,
)

T, D, F = 6, 3, 8
X = np.random.default_rng(0).normal(size=(T, D))


def run(cell, x=X):
  """(outputs (T, F) of one sequence in float32, parameters in float64)."""
  layer = Recurrent(cell)
  inputs = jnp.asarray(x, jnp.float32)[None]
  params = jax.jit(layer.init)(jax.random.key(3), inputs)["params"]["forward"]
  # Biases that are not 0, or a mistake in them is not seen.
  flat, tree = jax.tree.flatten(params)
  noise = np.random.default_rng(5)
  params = jax.tree.unflatten(tree, [p + jnp.asarray(0.3 * noise.normal(size=p.shape), jnp.float32) for p in flat])
  outputs, _ = jax.jit(layer.apply)({"params": {"forward": params}}, inputs)
  return np.array(outputs[0]), jax.tree.map(lambda p: np.array(p, np.float64), params)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def test_elman():
  found, p = run(ElmanCell(F))
  h = np.zeros(F)
  for x, y in zip(X, found):
    h = np.tanh(x @ p["i"]["kernel"] + p["i"]["bias"] + h @ p["h"]["kernel"])
    np.testing.assert_allclose(y, h, atol=1e-5)


def test_jordan_hears_its_outputs_which_fade():
  found, p = run(JordanCell(F, hidden=5, decay=0.7))
  context = np.zeros(F)
  for x, y in zip(X, found):
    h = np.tanh(x @ p["i"]["kernel"] + p["i"]["bias"] + context @ p["h"]["kernel"])
    out = np.tanh(h @ p["out"]["kernel"] + p["out"]["bias"])
    np.testing.assert_allclose(y, out, atol=1e-5)
    context = 0.7 * context + out


def test_gru_that_resets_before_the_matrix():
  found, p = run(GRUCell(F, reset="before"))
  h = np.zeros(F)
  for x, y in zip(X, found):
    of_r, of_z, of_n = np.split(x @ p["i"]["kernel"] + p["i"]["bias"], 3)
    from_r, from_z = np.split(h @ p["gates"]["kernel"], 2)
    r, z = sigmoid(of_r + from_r), sigmoid(of_z + from_z)
    n = np.tanh(of_n + (r * h) @ p["candidate"]["kernel"])
    h = (1 - z) * n + z * h
    np.testing.assert_allclose(y, h, atol=1e-5)
  assert "bias" not in p["candidate"]


def test_clockwork_ticks_at_its_periods_and_hears_slower_ones_alone():
  """Module by module: the sums of the paper, not a masked matrix."""
  periods, share = (1, 2, 4, 5), 2
  found, p = run(ClockworkCell(F, periods))
  h = [np.zeros(share) for _ in periods]
  block = lambda i: slice(i * share, (i + 1) * share)
  for t, (x, y) in enumerate(zip(X, found)):
    before = [part.copy() for part in h]
    for i, period in enumerate(periods):
      if t % period == 0:
        heard = sum(before[j] @ p["recurrent"][block(j), block(i)] for j in range(i, len(periods)))
        h[i] = np.tanh(x @ p["i"]["kernel"][:, block(i)] + p["i"]["bias"][block(i)] + heard)
    np.testing.assert_allclose(y, np.concatenate(h), atol=1e-5)


@pytest.mark.parametrize("learned", [False, True])
def test_scrn(learned):
  found, p = run(SCRNCell(F, slow_features=3, alpha=0.9, learn_alpha=learned))
  alpha = sigmoid(p["alpha"]) if learned else 0.9
  h, s = np.zeros(F - 3), np.zeros(3)
  for x, y in zip(X, found):
    s = (1 - alpha) * (x @ p["B"]["kernel"]) + alpha * s
    h = sigmoid(s @ p["P"]["kernel"] + x @ p["A"]["kernel"] + h @ p["R"]["kernel"])
    np.testing.assert_allclose(y, np.concatenate([h, s]), atol=1e-5)


def test_what_a_cell_starts_at():
  """The forget gate's bias alone is 1, alpha is .95, recurrent blocks are orthogonal, minLSTM's gates share evenly."""
  x = jnp.ones((1, 2, D))
  init = lambda cell: Recurrent(cell).init(jax.random.key(0), x)["params"]["forward"]
  lstm = init(LSTMCell(F))
  np.testing.assert_array_equal(lstm["h"]["bias"], np.repeat([0.0, 1, 0, 0], F))
  for block in np.split(np.array(lstm["h"]["kernel"]), 4, 1):
    np.testing.assert_allclose(block @ block.T, np.eye(F), atol=1e-5)
  assert init(LSTMCell(F, forget_bias=3.0))["h"]["bias"][F] == 3
  i, f, g, o = np.split(np.array(init(LSTMCell(400, longest=50))["h"]["bias"]), 4)
  np.testing.assert_array_equal(i, -f)
  assert not g.any() and not o.any()
  assert 1 <= np.exp(f).min() < 3 and 47 < np.exp(f).max() <= 49.001 and abs(np.exp(f).mean() - 25) < 3
  np.testing.assert_allclose(sigmoid(init(SCRNCell(F, learn_alpha=True))["alpha"]), 0.95, atol=1e-6)
  minimal = init(MinLSTMCell(F, forget_bias=2.0))["i"]
  np.testing.assert_array_equal(minimal["bias"], np.repeat([2.0, 0, 0], F))
  elman = np.array(init(ElmanCell(F))["h"]["kernel"])
  np.testing.assert_allclose(elman @ elman.T, np.eye(F), atol=1e-5)


@pytest.mark.parametrize("cell, wrong", [
  (lambda: make_cell("lstmm", 4), "lstmm"),
  (lambda: LSTMCell(4, longest=2), "longest"),
  (lambda: GRUCell(4, reset="both"), "reset"),
  (lambda: ClockworkCell(4, (2, 1)), "periods"),
  (lambda: ClockworkCell(4, (0, 1)), "periods"),
  (lambda: ClockworkCell(5, (1, 2)), "divide"),
  (lambda: SCRNCell(4, slow_features=4), "slow"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(cell, wrong):
  with pytest.raises((ValueError, TypeError), match=wrong):  # of types, where the tests check them
    cell()


# -- all steps at once -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3, 1000])
@pytest.mark.parametrize("kind", [MinGRUCell, MinLSTMCell])
def test_scan_is_the_loop_for_any_initial_state(kind, length):
  """Negative states too, which no g would give; values and gradients of what went in."""
  cell = kind(4)
  draw = np.random.default_rng(length)
  x = jnp.asarray(draw.normal(size=(2, length, 3)), jnp.float32)
  start = jnp.asarray(3 * draw.normal(size=(2, 4)), jnp.float32)
  params = cell.init(jax.random.key(0), start, x[:, 0])

  def scanned(start, x):
    return cell.apply(params, start, x, method=cell.scan)

  def looped(start, x):
    last, outputs = jax.lax.scan(lambda h, each: cell.apply(params, h, each), start, x.swapaxes(0, 1))
    return last, outputs.swapaxes(0, 1)

  (found, pull), (expected, other) = (jax.jit(functools.partial(jax.vjp, f))(start, x) for f in (scanned, looped))
  for a, b in zip(jax.tree.leaves((found, pull(found))), jax.tree.leaves((expected, other(expected)))):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("make", [LSTMCell, functools.partial(GRUCell, reset="before")])
def test_products_outside_the_loop_change_nothing(make):
  """Values, first derivatives in both modes and second ones, of all that goes in, for two seeds at once, in float64;
  with documents, lengths (0 among them) and recurrent dropout."""
  with jax.enable_x64(True):
    cell = make(3, recurrent_dropout=0.4, deterministic=False, param_dtype=jnp.float64)
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(size=(3, 4, 2)))
    real = jnp.arange(4)[None] < jnp.array([4, 2, 0])[:, None]
    starts = jnp.zeros((3, 4), bool).at[0, 2].set(True).at[1, 3].set(True)  # the latter behind the row's end
    rngs = {"dropout": jax.random.key(4)}
    carry = jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape)),
                         cell.initialize_carry(jax.random.key(0), (3, 2)))  # fmt: skip
    keys = jax.random.split(jax.random.key(1), 2)
    params = jax.vmap(lambda key: cell.init({"params": key, **rngs}, carry, x[:, 0]))(keys)

    def scanned(params, carry, x):
      return cell.apply(params, carry, x, real, starts, method=cell.scan, rngs=rngs)

    def looped(params, carry, x):
      choose = lambda rows, new, old: jax.tree.map(lambda a, b: jnp.where(rows[:, None], a, b), new, old)

      def step(carry, each):
        x, real, start = each
        before = choose(start, jax.tree.map(jnp.zeros_like, carry), carry)
        new = choose(real, cell.apply(params, before, x, rngs=rngs)[0], carry)
        return new, jax.tree.leaves(new)[-1]

      last, outputs = jax.lax.scan(step, carry, (x.swapaxes(0, 1), real.T, starts.T))
      return last, outputs.swapaxes(0, 1)

    def all_of(run, params):
      inputs = (params, carry, x)
      to = jax.tree.map(lambda leaf: jnp.cos(7 * leaf), inputs)
      of_all = lambda *inputs: sum(jnp.sum(jnp.sin(3 * leaf)) for leaf in jax.tree.leaves(run(*inputs)))
      return jax.jvp(run, inputs, to), jax.jvp(jax.grad(of_all, (0, 1, 2)), inputs, to)

    found, expected = (jax.jit(jax.vmap(functools.partial(all_of, run)))(params) for run in (scanned, looped))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), found, expected)
    assert all(np.any(np.array(leaf)) for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("kind", [MinGRUCell, MinLSTMCell])
@pytest.mark.parametrize("size", [0.0, 50.0, 1e4])
def test_gates_at_their_ends_give_no_nan(kind, size):
  """Gates of exactly 0 and 1."""
  cell = kind(4)
  x = jnp.array([[[-size], [size], [-size], [size]]])
  params = {"params": {"i": {"kernel": jnp.ones((1, 12 if kind is MinLSTMCell else 8)), "bias": jnp.zeros(())}}}
  params["params"]["i"]["bias"] = jnp.zeros(params["params"]["i"]["kernel"].shape[1])
  value, grads = jax.value_and_grad(lambda x: jnp.sum(cell.apply(params, jnp.ones((1, 4)), x, method=cell.scan)[1]))(x)
  assert np.isfinite(value) and np.isfinite(grads).all()


def test_a_linear_scan_is_a_sum_over_products():
  draw = np.random.default_rng(1)
  decay, added, start = draw.uniform(size=(1, 5, 2)), draw.normal(size=(1, 5, 2)), draw.normal(size=(1, 2))
  found = scan_linear(*(jnp.asarray(x, jnp.float32) for x in (decay, added, start)))
  for t in range(5):
    expected = start[0] * decay[0, : t + 1].prod(0)
    expected = expected + sum(added[0, s] * decay[0, s + 1 : t + 1].prod(0) for s in range(t + 1))
    np.testing.assert_allclose(found[0, t], expected, atol=1e-6)


# -- lengths, directions, states ---------------------------------------------------------------------------------------

LENGTHS = (4, 2, 0)


@functools.cache
def padded_and_alone(name):
  """Outputs, carry and input gradient of a padded batch, and a function that gives those of row i by itself."""
  stack = RecurrentStack(make_cell(name, F), bidirectional=True)
  x = jax.random.normal(jax.random.key(1), (3, 4, D))
  variables = jax.jit(stack.init)(jax.random.key(2), x)
  weight = jax.random.normal(jax.random.key(4), (3, 4, 2 * F))

  def all_of(x, weight, lengths=None):
    def objective(x):
      y, carry = stack.apply(variables, x, lengths)
      return jnp.sum(y * weight), (y, carry)

    (_, found), grad = jax.value_and_grad(objective, has_aux=True)(x)
    return found, grad

  lengths = jnp.array(LENGTHS)
  behind = jnp.arange(4)[None, :, None] >= lengths[:, None, None]
  padded = jax.jit(all_of)(jnp.where(behind, jnp.nan, x), weight, lengths)
  return padded, lambda i: jax.jit(all_of)(x[i : i + 1, : LENGTHS[i]], weight[i : i + 1, : LENGTHS[i]])


@pytest.mark.parametrize("name", CELLS)
def test_a_padded_batch_is_each_sequence_alone(name):
  """In both directions, values and gradients, with NaN for padding."""
  ((y, carry), grad), alone = padded_and_alone(name)
  for i, length in enumerate(LENGTHS):
    assert not np.any(np.array(y[i, length:])) and not np.any(np.array(grad[i, length:]))
    if length:
      (other_y, other_carry), other_grad = alone(i)
      np.testing.assert_allclose(y[i, :length], other_y[0], atol=1e-5)
      np.testing.assert_allclose(grad[i, :length], other_grad[0], atol=1e-5)
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a[i], b[0], atol=1e-5), carry, other_carry)  # noqa: B023
    else:
      assert not any(np.any(np.array(leaf[i])) for leaf in jax.tree.leaves(carry))


@pytest.mark.parametrize("name", CELLS)
def test_a_sequence_in_two_parts_is_the_whole(name):
  """The state that comes out goes in again; one of length 0 keeps it."""
  stack = RecurrentStack(make_cell(name, F))
  x = jax.random.normal(jax.random.key(1), (2, 4, D))
  variables = jax.jit(stack.init)(jax.random.key(2), x)
  apply = jax.jit(stack.apply)
  whole, last = apply(variables, x)
  first, carry = apply(variables, x[:, :2])
  kept = apply(variables, x[:, :2], jnp.array([0, 2]), carry)[1]
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), kept, carry)
  second, end = apply(variables, x[:, 2:], None, carry)
  np.testing.assert_allclose(jnp.concatenate([first, second], 1), whole, atol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), end, last)


@pytest.mark.parametrize("name", CELLS)
def test_gradients_are_finite_differences(name):
  """In float64, of the parameters and the inputs."""
  with jax.enable_x64(True):
    cell = make_cell(name, 4, **({"periods": (1, 2)} if name == "clockwork" else {}))
    layer = Recurrent(cell)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 2)))
    variables = layer.init(jax.random.key(0), x)
    as64 = lambda tree: jax.tree.map(lambda p: p.astype(jnp.float64) if p.dtype == jnp.float32 else p, tree)
    carry = as64(cell.initialize_carry(jax.random.key(0), (2, 2)))
    lengths = jnp.array([3, 2])
    function = jax.jit(lambda params, x: layer.apply({"params": params}, x, lengths, carry)[0])
    params = as64(variables["params"])
    assert function(params, x).dtype == jnp.float64
    check_grads(function, (params, x), order=1, modes=["rev"], atol=1e-6, rtol=1e-6, eps=1e-5)


@pytest.mark.parametrize("name", CELLS)
def test_bfloat16_keeps_the_state_in_float32(name):
  stack = RecurrentStack(make_cell(name, F, dtype=jnp.bfloat16))
  x = jnp.ones((1, 3, D))
  variables = stack.init(jax.random.key(0), x)
  half, carry = stack.apply(variables, x)
  full, _ = RecurrentStack(make_cell(name, F)).apply(variables, x)
  np.testing.assert_allclose(half, full, atol=0.05)
  assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in jax.tree.leaves(carry))


# -- dropout -----------------------------------------------------------------------------------------------------------


def test_recurrent_dropout_has_one_mask_for_all_steps():
  """A cell that only remembers what it sees of its state: what is dropped stays dropped, the rest grows alike."""
  cell = ElmanCell(64, activation_fn=lambda x: x, recurrent_dropout=0.5)
  layer = Recurrent(cell)
  x = jnp.zeros((2, 4, 1))
  eye = {"forward": {"i": {"kernel": jnp.zeros((1, 64)), "bias": jnp.zeros(64)}, "h": {"kernel": jnp.eye(64)}}}
  run = lambda train: layer.apply({"params": eye}, x, carry=jnp.ones((2, 64)), train=train,
                                  rngs={"dropout": jax.random.key(0)})[0]  # fmt: skip
  y = np.array(run(True))
  kept = y[:, 0] == 2
  assert 0.3 < kept.mean() < 0.7 and not np.array_equal(kept[0], kept[1])
  for t in range(4):
    np.testing.assert_array_equal(y[:, t], np.where(kept, 2.0 ** (t + 1), 0))
  np.testing.assert_array_equal(run(False), 1)


@pytest.mark.parametrize("name", [name for name in CELLS if not name.startswith("min")])
def test_recurrent_dropout_acts_in_training_alone(name):
  layer = Recurrent(make_cell(name, F, recurrent_dropout=0.5))
  x = jax.random.normal(jax.random.key(1), (1, 3, D))
  variables = layer.init(jax.random.key(0), x)
  plain = Recurrent(make_cell(name, F)).apply(variables, x)[0]
  dropped = layer.apply(variables, x, train=True, rngs={"dropout": jax.random.key(2)})[0]
  np.testing.assert_array_equal(layer.apply(variables, x)[0], plain)
  np.testing.assert_allclose(dropped[:, 0], plain[:, 0], atol=1e-6)  # the first state is 0
  assert not np.allclose(dropped[:, 1:], plain[:, 1:])


def test_gru_keeps_what_it_drops_for_the_gates():
  """z h_{t-1} is of the state as it is: with z = 1 nothing is lost."""
  layer = Recurrent(GRUCell(16, recurrent_dropout=0.5))
  x = jnp.zeros((1, 3, 1))
  params = jax.tree.map(jnp.zeros_like, layer.init(jax.random.key(0), x)["params"])
  params["forward"]["i"]["bias"] = jnp.zeros(48).at[16:32].set(100.0)
  out = layer.apply({"params": params}, x, carry=jnp.ones((1, 16)), train=True, rngs={"dropout": jax.random.key(0)})[0]
  np.testing.assert_array_equal(out, 1)


@pytest.mark.parametrize("shared", [False, True])
def test_dropout_between_layers(shared):
  """Of what the second layer sees, another mask each step; one for all steps, of the first layer's inputs too."""

  class Passes(nn.RNNCellBase):
    @nn.compact
    def __call__(self, carry, inputs):
      return carry, inputs

    def initialize_carry(self, rng, input_shape):
      return jnp.zeros(input_shape)

    num_feature_axes = 1

  x = jnp.ones((2, 50, 20))
  out = lambda depth: np.array(RecurrentStack(Passes(), depth, dropout=0.5, shared_dropout=shared).apply(
    {}, x, train=True, rngs={"dropout": jax.random.key(0)})[0])  # fmt: skip
  one, two = out(1), out(2)
  assert set(np.unique(one)) == ({0.0, 2.0} if shared else {1.0})
  assert set(np.unique(two)) == ({0.0, 4.0} if shared else {0.0, 2.0})
  assert (two == two[:, :1]).all() == shared


def test_residual_adds_what_went_in_where_it_fits():
  stack = lambda residual: RecurrentStack(ElmanCell(F), depth=2, residual=residual)
  x = jax.random.normal(jax.random.key(0), (1, 4, D))
  variables = stack(True).init(jax.random.key(1), x)
  first = RecurrentStack(ElmanCell(F), depth=1).apply(variables, x)[0]  # D is not F: no residual there
  np.testing.assert_allclose(stack(True).apply(variables, x)[0], stack(False).apply(variables, x)[0] + first, atol=1e-6)
