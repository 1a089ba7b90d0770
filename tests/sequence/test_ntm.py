"""The neural Turing machine against the paper's equations in NumPy loops, its addressing alone, its tasks by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.sequence import (
  HeadParameters,
  NeuralTuringMachine,
  NTMCell,
  address,
  content_weights,
  make_associative_recall,
  make_copy,
  make_repeat_copy,
  read,
  sharpen,
  shift_weights,
  write,
)

RNG = np.random.default_rng(0)
CELLS, WIDTH = 7, 4


def random_weights(*shape):
  weights = RNG.uniform(size=shape)
  return weights / weights.sum(-1, keepdims=True)


# -- addressing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("move", [-2, -1, 0, 1, 2])
def test_a_shift_moves_exactly_so_many_cells_and_wraps(move):
  shift = np.tile(np.eye(5, dtype=np.float32)[move + 2], (CELLS, 1))
  moved = jax.jit(shift_weights)(np.eye(CELLS, dtype=np.float32), shift)
  np.testing.assert_array_equal(moved, np.roll(np.eye(CELLS), move, 1))


def test_a_shift_is_the_circular_convolution_of_the_paper():
  weights, shift = random_weights(CELLS), random_weights(3)
  expected = [
    sum(weights[j] * shift[(i - j + 1) % CELLS] for j in range(CELLS) if (i - j + 1) % CELLS < 3) for i in range(CELLS)
  ]
  np.testing.assert_allclose(shift_weights(jnp.float32(weights), jnp.float32(shift)), expected, rtol=1e-5)


@pytest.mark.parametrize("size", [2, 9])
def test_shifts_without_a_middle_or_beyond_the_ring_are_refused(size):
  with pytest.raises(ValueError, match=f"a shift of {size} entries over {CELLS} cells"):
    shift_weights(jnp.ones(CELLS) / CELLS, jnp.ones(size) / size)


def random_head(heads=2):
  return HeadParameters(
    RNG.normal(size=(heads, WIDTH)), RNG.uniform(1, 5, heads), RNG.uniform(0.1, 0.9, heads), random_weights(heads, 3),
    RNG.uniform(1, 4, heads),
  )  # fmt: skip


def address_by_hand(memory, previous, key, strength, gate, shift, sharpness):
  """One head, cell by cell, from the equations 5 to 9; memory (N, M)."""
  cosine = np.array([m @ key / np.sqrt((m @ m) * (key @ key) + 1e-6) for m in memory])
  content = np.exp(strength * cosine) / np.exp(strength * cosine).sum()
  gated = gate * content + (1 - gate) * previous
  reach = len(shift) // 2
  moved = np.zeros_like(gated)
  for j, weight in enumerate(gated):
    for k, share in enumerate(shift):
      moved[(j + k - reach) % len(gated)] += weight * share
  return moved**sharpness / (moved**sharpness).sum()


def test_addressing_is_content_then_gate_then_shift_then_sharpening():
  memory, previous, head = RNG.normal(size=(CELLS, WIDTH)), random_weights(2, CELLS), random_head()
  expected = [address_by_hand(memory, previous[i], *(part[i] for part in head)) for i in range(2)]
  found = jax.jit(address)(jnp.float32(memory.T), jnp.float32(previous), jax.tree.map(jnp.float32, head))
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(np.sum(found, -1), 1, rtol=1e-5)


def test_content_goes_by_direction_not_by_size():
  memory = jnp.float32(RNG.normal(size=(WIDTH, CELLS)))
  key, strength = memory[:, 3][None], jnp.array([50.0])
  look = jax.jit(content_weights)
  weights = look(memory, key, strength)
  assert weights[0].argmax() == 3 and weights[0, 3] > 0.9
  np.testing.assert_allclose(look(memory * 3, key * 2, strength), weights, atol=1e-4)


def test_a_blank_memory_is_like_no_key_and_has_small_gradients():
  blank, key = jnp.full((WIDTH, CELLS), 1e-6), jnp.ones((1, WIDTH))
  look = lambda memory: content_weights(memory, key, jnp.array([9.0]))
  weights, slope = jax.jit(lambda memory: (look(memory), jax.grad(lambda memory: look(memory)[0, 0])(memory)))(blank)
  np.testing.assert_allclose(weights, 1 / CELLS, rtol=1e-3)
  assert np.all(np.isfinite(slope)) and np.abs(slope).max() < 1e4


def test_sharpening_keeps_one_hot_weights_and_has_finite_gradients():
  one_hot, run = np.eye(CELLS, dtype=np.float32)[2], jax.jit(sharpen)
  np.testing.assert_allclose(run(one_hot, 1.0), one_hot, atol=1e-6)
  slopes = jax.jit(jax.grad(lambda w, g: sharpen(w, g)[2], (0, 1)))(one_hot, 3.0)
  assert all(np.all(np.isfinite(slope)) for slope in slopes)
  weights = np.float32([0.2, 0.3, 0.5, 0, 0, 0, 0])
  np.testing.assert_allclose(run(weights, 2.0), np.array([4, 9, 25, 0, 0, 0, 0]) / 38, rtol=1e-5, atol=1e-9)


def test_reading_is_the_mean_by_the_weights():
  memory, weights = RNG.normal(size=(3, WIDTH, CELLS)), random_weights(3, 2, CELLS)
  found = read(jnp.float32(memory), jnp.float32(weights))
  np.testing.assert_allclose(found, np.einsum("bmn,bhn->bhm", memory, weights), rtol=1e-4, atol=1e-6)


def test_a_cell_is_erased_before_it_is_added_to():
  memory = jnp.float32(RNG.normal(size=(WIDTH, CELLS)))
  add = jnp.float32(RNG.normal(size=(1, WIDTH)))
  found = jax.jit(write)(memory, jnp.eye(CELLS)[2][None], jnp.ones((1, WIDTH)), add)
  np.testing.assert_array_equal(found[:, 2], add[0])
  np.testing.assert_array_equal(np.delete(found, 2, 1), np.delete(memory, 2, 1))


def test_all_heads_erase_before_any_adds():
  memory, weights = RNG.normal(size=(WIDTH, CELLS)), random_weights(2, CELLS)
  erase, add = RNG.uniform(size=(2, WIDTH)), RNG.normal(size=(2, WIDTH))
  expected = memory.copy()
  for w, e in zip(weights, erase):
    expected *= 1 - np.outer(e, w)
  for w, a in zip(weights, add):
    expected += np.outer(a, w)
  found = jax.jit(write)(*(jnp.float32(x) for x in (memory, weights, erase, add)))
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


# -- the machine ------------------------------------------------------------------------------------------------------


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def softplus(x):
  return np.log1p(np.exp(x))


def machine_by_hand(params, cell, x, lstm):
  """One sequence x (T, D), step by step with the paper's equations."""
  dense = lambda name, v: v @ params["cell"][name]["kernel"] + params["cell"][name]["bias"]
  places, reads = params["places"], np.tanh(params["reads"])
  moves = np.exp(places + np.array([0, 5, 0]))
  weights = np.zeros((len(places), cell.cells))
  weights[:, [-1, 0, 1]] = moves / moves.sum(-1, keepdims=True)
  memory = np.full((cell.cells, cell.width), 1e-6)
  c, h = np.zeros(cell.units), np.zeros(cell.units)
  each, heads, outputs, carries = cell.width + 2 * cell.reach + 4, cell.read_heads + cell.write_heads, [], []
  for step in x:
    seen = np.concatenate([step, reads.reshape(-1)])
    if lstm:
      gates = params["cell"]["controller"]
      i, f, g, o = (
        seen @ gates[f"i{n}"]["kernel"] + h @ gates[f"h{n}"]["kernel"] + gates[f"h{n}"]["bias"] for n in "ifgo"
      )
      c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
      h = sigmoid(o) * np.tanh(c)
    else:
      h = np.tanh(dense("controller", seen))
    raw, new = dense("heads", h), []
    for head in range(heads):
      part = raw[head * each : (head + 1) * each]
      key, rest = np.tanh(part[: cell.width]), part[cell.width :]
      shift = np.exp(rest[3:]) / np.exp(rest[3:]).sum()
      new.append(
        address_by_hand(memory, weights[head], key, softplus(rest[0]), sigmoid(rest[1]), shift, 1 + softplus(rest[2]))
      )
    weights = np.array(new)
    reads = weights[: cell.read_heads] @ memory
    what = raw[heads * each :].reshape(2, cell.write_heads, cell.width)
    for w, e in zip(weights[cell.read_heads :], sigmoid(what[0])):
      memory = memory * (1 - np.outer(w, e))
    for w, a in zip(weights[cell.read_heads :], np.tanh(what[1])):
      memory = memory + np.outer(w, a)
    outputs.append(dense("output", np.concatenate([h, reads.reshape(-1)])))
    carries.append((memory, weights, reads))
  return np.array(outputs), carries


@pytest.fixture(scope="module", params=["feedforward", "lstm"])
def machine(request, draw_variables):
  """(machine, its cell, parameters of which none is 0, inputs, what it computes, compiled)."""
  cell = NTMCell(3, cells=6, width=4, read_heads=2, write_heads=2, units=5, controller=request.param)
  module = NeuralTuringMachine(cell)
  x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, 3)), jnp.float32)
  return module, cell, draw_variables(module, x, size=0.6)["params"], x, jax.jit(module.apply)


def test_the_machine_is_that_of_the_equations(machine):
  _, cell, params, x, apply = machine
  y, carry = apply({"params": params}, x)
  host = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  for i in range(2):
    expected, carries = machine_by_hand(host, cell, np.asarray(x[i], np.float64), cell.controller == "lstm")
    np.testing.assert_allclose(y[i], expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(carry.memory[i].T, carries[-1][0], rtol=1e-3, atol=1e-5)


def test_the_trace_is_the_carry_of_every_step_heads_sum_to_one_and_it_goes_on_from_any(machine):
  module, _, params, x, apply = machine
  trace = jax.jit(lambda params, x: module.apply({"params": params}, x, method="trace"))(params, x)
  y, carry = apply({"params": params}, x)
  assert trace.weights.shape == (2, 6, 4, 6)
  np.testing.assert_allclose(trace.memory[:, -1], carry.memory, rtol=1e-5)
  np.testing.assert_allclose(np.sum(trace.weights, -1), 1, rtol=1e-5)
  half = jax.tree.map(lambda x: x[:, 2], trace)
  rest, end = apply({"params": params}, x[:, 3:], half)
  np.testing.assert_allclose(rest, y[:, 3:], rtol=1e-5, atol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), end, carry)


def test_the_start_is_learned_and_every_parameter_has_a_gradient(machine):
  module, _, params, x, _ = machine
  slope = jax.jit(jax.grad(lambda params: jnp.sum(module.apply({"params": params}, x)[0] ** 2)))(params)
  for path, leaf in jax.tree_util.tree_leaves_with_path(slope):
    assert np.all(np.isfinite(leaf)) and np.any(leaf != 0), jax.tree_util.keystr(path)


def test_the_machine_starts_blank_with_its_heads_near_the_first_cell():
  module = NeuralTuringMachine(NTMCell(2, units=4))
  x = jnp.zeros((3, 2, 5))
  start = jax.jit(lambda key: module.apply(module.init(key, x), x, method="start"))(jax.random.key(0))
  assert np.all(start.memory == np.float32(1e-6)) and start.memory.shape == (3, 20, 128)
  assert np.all(start.weights[..., 0] > 0.95)
  np.testing.assert_allclose(np.sum(start.weights, -1), 1, rtol=1e-5)


def test_what_was_trained_with_few_cells_runs_with_many(machine):
  _, cell, params, x, _ = machine
  many = NeuralTuringMachine(cell.clone(cells=50, parent=None))
  y, carry = jax.eval_shape(many.apply, {"params": params}, x)
  assert y.shape == (2, 6, 3) and carry.memory.shape == (2, 4, 50)
  again = jax.eval_shape(many.init, jax.random.key(1), x)["params"]
  assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, params)


# -- tasks ------------------------------------------------------------------------------------------------------------


def drawn(task, count=40):
  example = jax.jit(jax.vmap(task.draw))(jax.random.split(jax.random.key(3), count))
  assert example.inputs.shape == (count, task.length, task.inputs)
  assert example.targets.shape == (count, task.length, task.targets)
  example = jax.tree.map(np.asarray, example)
  return [jax.tree.map(lambda x, i=i: x[i], example) for i in range(count)]


def test_copy_asks_for_what_stood_before_the_mark():
  lengths = set()
  for inputs, targets, asked in drawn(make_copy(3, 2, 5)):
    (mark,) = np.flatnonzero(inputs[:, 3])
    lengths.add(mark)
    np.testing.assert_array_equal(np.flatnonzero(asked), np.arange(mark + 1, 2 * mark + 1))
    np.testing.assert_array_equal(targets[mark + 1 : 2 * mark + 1], inputs[:mark, :3])
    assert not inputs[mark, :3].any() and not inputs[mark + 1 :].any() and not targets[asked == 0].any()
  assert lengths == {2, 3, 4, 5}


def test_repeat_copy_says_it_so_often_and_then_a_mark():
  seen = set()
  for inputs, targets, asked in drawn(make_repeat_copy(3, 1, 3, 1, 4)):
    (mark,) = np.flatnonzero(inputs[:, 3])
    repeats = round(float(inputs[mark, 4]) * 1.25**0.5 + 2.5)  # of 1 to 4: mean 2.5, variance 1.25
    seen.add((mark, repeats))
    end = mark + 1 + mark * repeats
    np.testing.assert_array_equal(targets[mark + 1 : end, :3], np.tile(inputs[:mark, :3], (repeats, 1)))
    np.testing.assert_array_equal(np.flatnonzero(asked), np.arange(mark + 1, end + 1))
    assert targets[end, 3] == 1 and targets[:, 3].sum() == 1
  assert len(seen) > 8


def test_numbers_of_repeats_have_the_scale_that_is_given():
  (example,) = drawn(make_repeat_copy(3, 2, 2, 4, 4, scale=(1, 4)), 1)
  np.testing.assert_allclose(example.inputs[2, 4], 1.5 / 1.25**0.5, rtol=1e-6)


def test_associative_recall_asks_for_the_item_behind_the_one_shown_again():
  counts, places = set(), set()
  for inputs, targets, asked in drawn(make_associative_recall(12, 2, 4, 2)):
    starts = np.flatnonzero(inputs[:, 12])
    items = [inputs[start + 1 : start + 3, :12] for start in starts]
    before, behind = np.flatnonzero(inputs[:, 13])
    query = inputs[before + 1 : behind, :12]
    assert before == 3 * len(items) and behind == before + 3
    (place,) = [i for i, item in enumerate(items) if np.array_equal(item, query)]
    np.testing.assert_array_equal(np.flatnonzero(asked), [behind + 1, behind + 2])
    np.testing.assert_array_equal(targets[behind + 1 : behind + 3], items[place + 1])
    counts.add(len(items))
    places.add(place)
  assert counts == {2, 3, 4} and places == {0, 1, 2}


@pytest.mark.parametrize(
  ("make", "said"),
  [
    (lambda: make_copy(8, 3, 2), "copy of 3 to 2 vectors"),
    (lambda: make_repeat_copy(8, 1, 2, 0, 2), "repeat copy of 0 to 2 repeats"),
    (lambda: make_associative_recall(6, 1, 4), "associative recall of 1 to 4 items: expected 2 or more"),
  ],
)
def test_ranges_that_are_none_are_refused(make, said):
  with pytest.raises(ValueError, match=said):
    make()
