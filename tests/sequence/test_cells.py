"""Cells against loops in NumPy, the minimal ones against their own steps; lengths, states and dropout of layers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


@pytest.fixture(scope="module")
def run(draw_variables):
  """cell -> (outputs (T, F) of one sequence in float32, parameters in float64)."""

  def run(cell):
    layer, inputs = Recurrent(cell), jnp.asarray(X, jnp.float32)[None]
    variables = draw_variables(layer, inputs)
    outputs, _ = jax.jit(layer.apply)(variables, inputs)
    return np.array(outputs[0]), jax.tree.map(lambda p: np.array(p, np.float64), variables["params"]["forward"])

  return run


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def test_elman(run):
  found, p = run(ElmanCell(F))
  h = np.zeros(F)
  for x, y in zip(X, found):
    h = np.tanh(x @ p["i"]["kernel"] + p["i"]["bias"] + h @ p["h"]["kernel"])
    np.testing.assert_allclose(y, h, atol=1e-5)


def test_jordan_hears_its_outputs_which_fade(run):
  found, p = run(JordanCell(F, hidden=5, decay=0.7))
  context = np.zeros(F)
  for x, y in zip(X, found):
    h = np.tanh(x @ p["i"]["kernel"] + p["i"]["bias"] + context @ p["h"]["kernel"])
    out = np.tanh(h @ p["out"]["kernel"] + p["out"]["bias"])
    np.testing.assert_allclose(y, out, atol=1e-5)
    context = 0.7 * context + out


def test_gru_that_resets_before_the_matrix(run):
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


def test_clockwork_ticks_at_its_periods_and_hears_slower_ones_alone(run):
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
def test_scrn(run, learned):
  found, p = run(SCRNCell(F, slow_features=3, alpha=0.9, learn_alpha=learned))
  alpha = sigmoid(p["alpha"]) if learned else 0.9
  h, s = np.zeros(F - 3), np.zeros(3)
  for x, y in zip(X, found):
    s = (1 - alpha) * (x @ p["B"]["kernel"]) + alpha * s
    h = sigmoid(s @ p["P"]["kernel"] + x @ p["A"]["kernel"] + h @ p["R"]["kernel"])
    np.testing.assert_allclose(y, np.concatenate([h, s]), atol=1e-5)


def test_what_a_cell_starts_at():
  """The forget gate's bias alone is 1, alpha is .95, recurrent blocks are orthogonal, minLSTM's gates share evenly."""
  cells = dict(
    lstm=LSTMCell(F),
    forgets=LSTMCell(F, forget_bias=3.0),
    long=LSTMCell(400, longest=50, recurrent_kernel_init=nn.initializers.zeros),
    elman=ElmanCell(F),
    scrn=SCRNCell(F, learn_alpha=True),
    minimal=MinLSTMCell(F, forget_bias=2.0),
  )
  init = lambda cell: Recurrent(cell).init(jax.random.key(0), jnp.ones((1, 2, D)))["params"]["forward"]
  found = jax.jit(lambda: jax.tree.map(init, cells, is_leaf=lambda x: isinstance(x, nn.Module)))()
  np.testing.assert_array_equal(found["lstm"]["h"]["bias"], np.repeat([0.0, 1, 0, 0], F))
  for block in np.split(np.array(found["lstm"]["h"]["kernel"]), 4, 1):
    np.testing.assert_allclose(block @ block.T, np.eye(F), atol=1e-5)
  assert found["forgets"]["h"]["bias"][F] == 3
  i, f, g, o = np.split(np.array(found["long"]["h"]["bias"]), 4)
  np.testing.assert_array_equal(i, -f)
  assert not g.any() and not o.any()
  assert 1 <= np.exp(f).min() < 3 and 47 < np.exp(f).max() <= 49.001 and abs(np.exp(f).mean() - 25) < 3
  np.testing.assert_allclose(sigmoid(np.asarray(found["scrn"]["alpha"])), 0.95, atol=1e-6)
  np.testing.assert_array_equal(found["minimal"]["i"]["bias"], np.repeat([2.0, 0, 0], F))
  elman = np.array(found["elman"]["h"]["kernel"])
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


@pytest.mark.parametrize(("kind", "lengths"), [(MinGRUCell, (1, 2, 3, 1000)), (MinLSTMCell, (3,))])
def test_scan_is_the_loop_for_any_initial_state(draw_variables, kind, lengths):
  """Negative states too, which no g would give; values and gradients of what went in."""
  cell = kind(4)
  draw = np.random.default_rng(0)
  x = jnp.asarray(draw.normal(size=(2, max(lengths), 3)), jnp.float32)
  start = jnp.asarray(3 * draw.normal(size=(2, 4)), jnp.float32)
  params = draw_variables(cell, start, x[:, 0])

  def scanned(start, x):
    return cell.apply(params, start, x, method=cell.scan)

  def looped(start, x):
    last, outputs = jax.lax.scan(lambda h, each: cell.apply(params, h, each), start, x.swapaxes(0, 1))
    return last, outputs.swapaxes(0, 1)

  @jax.jit
  def both_ways(start, x):
    found = []
    for way in (scanned, looped):
      for length in lengths:
        values, pull = jax.vjp(way, start, x[:, :length])
        found.append((values, pull(values)))
    return found[: len(lengths)], found[len(lengths) :]

  for a, b in zip(*map(jax.tree.leaves, both_ways(start, x))):
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


def test_gates_at_their_ends_give_no_nan():
  """Gates of exactly 0 and 1."""

  def ends(kind, gates, size):
    x = jnp.array([[[-1.0], [1], [-1], [1]]]) * size
    params = {"params": {"i": {"kernel": jnp.ones((1, 4 * gates)), "bias": jnp.zeros(4 * gates)}}}
    cell = kind(4)
    return jax.value_and_grad(lambda x: jnp.sum(cell.apply(params, jnp.ones((1, 4)), x, method=cell.scan)[1]))(x)

  both = lambda size: (ends(MinGRUCell, 2, size), ends(MinLSTMCell, 3, size))
  found = jax.jit(jax.vmap(both))(jnp.array([0.0, 50, 1e4]))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


def test_a_linear_scan_is_a_sum_over_products():
  draw = np.random.default_rng(1)
  decay, added, start = draw.uniform(size=(1, 5, 2)), draw.normal(size=(1, 5, 2)), draw.normal(size=(1, 2))
  found = jax.jit(scan_linear)(*(jnp.asarray(x, jnp.float32) for x in (decay, added, start)))
  for t in range(5):
    expected = start[0] * decay[0, : t + 1].prod(0)
    expected = expected + sum(added[0, s] * decay[0, s + 1 : t + 1].prod(0) for s in range(t + 1))
    np.testing.assert_allclose(found[0, t], expected, atol=1e-6)


# -- lengths, directions, states ---------------------------------------------------------------------------------------

# Their states are an array, a pair, a pair with a number of steps; all steps go at once, or one after the other.
KINDS_OF_STATE = ("lstm", "clockwork", "mingru")


@pytest.mark.parametrize("name", KINDS_OF_STATE)
def test_a_padded_batch_is_each_sequence_alone(draw_variables, name):
  """In both directions, values and gradients, with NaN for padding."""
  stack = RecurrentStack(make_cell(name, F), bidirectional=True)
  x = jax.random.normal(jax.random.key(1), (3, 4, D))
  weight = jax.random.normal(jax.random.key(4), (3, 4, 2 * F))
  variables = draw_variables(stack, x)
  lengths = jnp.array([6, 2, 0])  # more than there are count as all

  def all_of(x, weight, lengths=None):
    def objective(x):
      y, carry = stack.apply(variables, x, lengths)
      return jnp.sum(y * weight), (y, carry)

    (_, found), grad = jax.value_and_grad(objective, has_aux=True)(x)
    return found, grad

  @jax.jit
  def padded_and_alone(x):
    behind = jnp.arange(4)[None, :, None] >= lengths[:, None, None]
    padded = all_of(jnp.where(behind, jnp.nan, x), weight, lengths)
    return padded, [all_of(x[i : i + 1, :n], weight[i : i + 1, :n]) for i, n in enumerate((4, 2))]

  ((y, carry), grad), alone = padded_and_alone(x)
  for i, (length, ((other_y, other_carry), other_grad)) in enumerate(zip((4, 2), alone)):
    assert not np.any(np.array(y[i, length:])) and not np.any(np.array(grad[i, length:]))
    np.testing.assert_allclose(y[i, :length], other_y[0], atol=1e-5)
    np.testing.assert_allclose(grad[i, :length], other_grad[0], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[i], b[0], atol=1e-5), carry, other_carry)  # noqa: B023
  assert not any(np.any(np.array(leaf[2])) for leaf in jax.tree.leaves((y, grad, carry)))


@pytest.mark.parametrize("name", CELLS)
def test_a_sequence_in_two_parts_is_the_whole(draw_variables, name):
  """The state that comes out goes in again; one of length 0 keeps it."""
  stack = RecurrentStack(make_cell(name, F))
  x = jax.random.normal(jax.random.key(1), (2, 4, D))
  variables, apply = draw_variables(stack, x), jax.jit(stack.apply)
  start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(stack.apply, variables, x)[1])
  # One program for all: a part is the first steps of a row.
  whole, last = apply(variables, x, jnp.array([4, 4]), start)
  first, carry = apply(variables, x, jnp.array([2, 2]), start)
  kept = apply(variables, x, jnp.array([0, 2]), carry)[1]
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), kept, carry)
  second, end = apply(variables, np.roll(x, -2, 1), jnp.array([2, 2]), carry)
  np.testing.assert_allclose(np.concatenate([first[:, :2], second[:, :2]], 1), whole, atol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), end, last)


@pytest.mark.parametrize("name", CELLS)
def test_gradients_are_finite_differences(draw_variables, name):
  """In float64, of the parameters, the inputs and the initial state, along a random direction."""
  with jax.enable_x64(True):
    layer = Recurrent(make_cell(name, 4, **({"periods": (1, 2)} if name == "clockwork" else {})))
    numbers = np.random.default_rng(0)
    x, lengths = numbers.normal(size=(2, 3, 2)), jnp.array([3, 2])
    params = draw_variables(layer, x)
    state = jax.eval_shape(layer.apply, params, x)[1]
    real = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    carry = jax.tree.map(lambda s: numbers.normal(size=s.shape) if real(s) else np.zeros(s.shape, np.int32), state)
    point = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, x, carry))
    direction = jax.tree.map(lambda leaf: numbers.normal(size=leaf.shape), point)
    weight = numbers.normal(size=(2, 3, 4))

    def function(point):
      params, x, given = point
      given = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), given, carry)
      outputs, _ = layer.apply(params, x, lengths, given)
      assert outputs.dtype == jnp.float64
      return jnp.sum(weight * outputs)

    moved = lambda by: jax.tree.map(lambda leaf, along: leaf + by * along, point, direction)
    values, gradient = jax.jit(jax.vmap(jax.value_and_grad(function)))(
      jax.tree.map(lambda *each: np.stack(each), moved(0.0), moved(1e-5), moved(-1e-5))
    )
    slope = sum(np.sum(g[0] * d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose((values[1] - values[2]) / 2e-5, slope, rtol=1e-6, atol=1e-7)


def test_bfloat16_keeps_the_state_in_float32(draw_variables):
  """The types by tracing of a layer; the values of one step, of all cells in one program."""
  x = jnp.ones((2, D))
  cells = {name: (make_cell(name, F, dtype=jnp.bfloat16), make_cell(name, F)) for name in CELLS}
  starts = {name: half.initialize_carry(jax.random.key(0), x.shape) for name, (half, _) in cells.items()}
  variables = {name: draw_variables(half, starts[name], x) for name, (half, _) in cells.items()}
  for name, (half, _) in cells.items():
    stack = RecurrentStack(half)
    _, carry = jax.eval_shape(lambda s=stack: s.init_with_output(jax.random.key(0), jnp.ones((1, 3, D)))[0])
    assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in jax.tree.leaves(carry)), name

  @jax.jit
  def step():
    return {
      name: [cell.apply(variables[name], starts[name], x)[1] for cell in pair] for name, pair in cells.items()
    }  # fmt: skip

  for name, (half, full) in step().items():
    np.testing.assert_allclose(half, full, atol=0.05, err_msg=name)
    assert np.any(half != full), name


# -- dropout -----------------------------------------------------------------------------------------------------------


def test_recurrent_dropout_has_one_mask_for_all_steps():
  """A cell that only remembers what it sees of its state: what is dropped stays dropped, the rest grows alike."""
  cell = ElmanCell(64, activation_fn=lambda x: x, recurrent_dropout=0.5)
  layer = Recurrent(cell)
  x = jnp.zeros((2, 4, 1))
  eye = {"forward": {"i": {"kernel": jnp.zeros((1, 64)), "bias": jnp.zeros(64)}, "h": {"kernel": jnp.eye(64)}}}
  run = jax.jit(lambda train: layer.apply({"params": eye}, x, carry=jnp.ones((2, 64)), train=train,
                                          rngs={"dropout": jax.random.key(0)})[0], static_argnums=0)  # fmt: skip
  y = np.array(run(True))
  kept = y[:, 0] == 2
  assert 0.3 < kept.mean() < 0.7 and not np.array_equal(kept[0], kept[1])
  for t in range(4):
    np.testing.assert_array_equal(y[:, t], np.where(kept, 2.0 ** (t + 1), 0))
  np.testing.assert_array_equal(run(False), 1)


def test_recurrent_dropout_acts_in_training_alone(draw_variables):
  """One step of each cell, all in one program: from a state of 0 there is nothing to drop."""
  names = [name for name in CELLS if not name.startswith("min")]
  x = jax.random.normal(jax.random.key(1), (2, D))
  zeros = {name: make_cell(name, F).initialize_carry(jax.random.key(0), x.shape) for name in names}
  variables = {name: draw_variables(make_cell(name, F), zeros[name], x) for name in names}

  @jax.jit
  def steps(key):
    found = {}
    for name in names:
      some = jax.tree.map(lambda leaf: leaf + 1, zeros[name])
      plain, tested = make_cell(name, F), make_cell(name, F, recurrent_dropout=0.5)
      step = lambda cell, carry, name=name, **more: cell.apply(variables[name], carry, x, **more)[1]
      dropped = lambda carry, cell=tested, step=step: step(
        cell.clone(deterministic=False), carry, rngs={"dropout": key}
      )
      found[name] = step(plain, some), step(tested, some), dropped(some), step(plain, zeros[name]), dropped(zeros[name])
    return found

  for name, (plain, tested, dropped, first, first_dropped) in steps(jax.random.key(2)).items():
    np.testing.assert_array_equal(tested, plain, err_msg=name)
    np.testing.assert_allclose(first_dropped, first, atol=1e-6, err_msg=name)
    assert not np.allclose(dropped, plain), name


def test_gru_keeps_what_it_drops_for_the_gates(draw_variables):
  """z h_{t-1} is of the state as it is: with z = 1 nothing is lost."""
  cell, x, state = GRUCell(16, recurrent_dropout=0.5, deterministic=False), jnp.zeros((1, 1)), jnp.ones((1, 16))
  params = jax.tree.map(jnp.zeros_like, draw_variables(cell.clone(deterministic=True), state, x)["params"])
  params["i"]["bias"] = jnp.repeat(jnp.float32([0, 100, 0]), 16)
  out = jax.jit(lambda key: cell.apply({"params": params}, state, x, rngs={"dropout": key})[1])(jax.random.key(0))
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
  out = lambda depth: RecurrentStack(Passes(), depth, dropout=0.5, shared_dropout=shared).apply(
    {}, x, train=True, rngs={"dropout": jax.random.key(0)})[0]  # fmt: skip
  one, two = map(np.array, jax.jit(lambda: (out(1), out(2)))())
  assert set(np.unique(one)) == ({0.0, 2.0} if shared else {1.0})
  assert set(np.unique(two)) == ({0.0, 4.0} if shared else {0.0, 2.0})
  assert (two == two[:, :1]).all() == shared


def test_residual_adds_what_went_in_where_it_fits(draw_variables):
  stack = lambda depth, residual: RecurrentStack(ElmanCell(F), depth, residual=residual)
  x = jax.random.normal(jax.random.key(0), (1, 4, D))
  variables = draw_variables(stack(2, True), x)
  run = lambda *given: stack(*given).apply(variables, x)[0]
  with_it, without, first = jax.jit(lambda: (run(2, True), run(2, False), run(1, False)))()
  np.testing.assert_allclose(with_it, without + first, atol=1e-6)  # D is not F: none in the first layer
