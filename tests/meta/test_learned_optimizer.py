"""The learned optimizer against the paper's equations, torch's LSTM and unrolled loops; its comparison; training it."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.meta import learned_optimizer as experiment
from experiments.meta._comparison import Family, Outcome, compare, draw_families, tune
from mlnotes.engine.errors import InputError
from mlnotes.engine.program import Program, make_mesh
from mlnotes.meta import (
  CoordinateLSTM,
  Optimizee,
  learned_optimizer,
  make_quadratics,
  preprocess_gradient,
  raw_gradient,
  restart,
  start,
  unroll,
  unroll_loss,
)

NETWORK = CoordinateLSTM(hidden=4)
# Its updates depend on the gradient's size far more.
RAW = CoordinateLSTM(hidden=4, layers=1, scale=1.0, preprocess=raw_gradient)
QUADRATICS = make_quadratics(3)
# A gradient that does not depend on the parameters: the Hessian is zero.
LINEAR = Optimizee(
  sample=lambda key: jax.random.normal(key, (3,)),
  init=lambda key: jax.random.normal(key, (3,)),
  loss=lambda params, problem, step: jnp.vdot(params, problem),
)


def make_weights(network=NETWORK, seed=0):
  weights = network.init(jax.random.key(seed), network.initial_carry(1), jnp.zeros(1))
  # Biases are zero at the start: with these a mistake in one would show.
  return jax.tree.map(lambda w: w + 0.1 * jnp.cos(jnp.arange(w.size, dtype=jnp.float32)).reshape(w.shape), weights)


def assert_trees_close(a, b, **tolerance):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **{"rtol": 1e-5, "atol": 1e-7, **tolerance}), a, b)


@pytest.mark.parametrize("p", [10.0, 5.0])
def test_preprocessing_is_the_papers(p):
  gradients = [0.0, 1.0, -1.0, 1e-9, -3e-6, 0.7, -250.0, 1e20, math.exp(-p) * 1.001, -math.exp(-p) * 0.999]

  def appendix_a(g):
    if abs(g) >= math.exp(-p):
      return math.log(abs(g)) / p, math.copysign(1, g)
    return -1, math.exp(p) * g

  expected = np.array([appendix_a(g) for g in gradients])
  np.testing.assert_allclose(preprocess_gradient(jnp.array(gradients), p), expected, rtol=1e-5, atol=1e-7)
  slopes = jax.jit(jax.vmap(jax.jacfwd(lambda g: preprocess_gradient(g, p))))(jnp.array(gradients))
  assert np.all(np.isfinite(slopes))
  assert raw_gradient(jnp.array(gradients)).shape == (10, 1)


@pytest.mark.parity
def test_network_is_torchs_lstm():
  torch = pytest.importorskip("torch")
  network = CoordinateLSTM(hidden=5, scale=0.3)
  weights = make_weights(network)["params"]
  rng = np.random.default_rng(0)
  gradients = rng.normal(size=(6, 7)) * 10.0 ** rng.integers(-6, 3, (6, 7))
  tensor = lambda x: torch.tensor(np.asarray(x))
  cells = []
  for i, inputs in enumerate((2, 5)):
    cell, ours = torch.nn.LSTMCell(inputs, 5), weights[f"OptimizedLSTMCell_{i}"]
    gates = "ifgo"
    cell.weight_ih.data = tensor(np.concatenate([ours[f"i{gate}"]["kernel"].T for gate in gates]))
    cell.weight_hh.data = tensor(np.concatenate([ours[f"h{gate}"]["kernel"].T for gate in gates]))
    cell.bias_hh.data = tensor(np.concatenate([ours[f"h{gate}"]["bias"] for gate in gates]))
    cell.bias_ih.data.zero_()
    cells.append(cell)
  output = weights["Dense_0"]
  optimizer = learned_optimizer(network, {"params": weights})
  update_once = jax.jit(optimizer.update)
  state, torch_state = optimizer.init(jnp.zeros(7)), [None, None]
  for gradient in gradients.astype(np.float32):
    x = tensor(preprocess_gradient(jnp.asarray(gradient)))
    for i, cell in enumerate(cells):
      torch_state[i] = cell(x, torch_state[i])
      x = torch_state[i][0]
    expected = 0.3 * (x @ tensor(output["kernel"]) + tensor(output["bias"]))[:, 0]
    update, state = update_once(jnp.asarray(gradient), state)
    np.testing.assert_allclose(update, expected.detach().numpy(), rtol=1e-4, atol=1e-6)


def run_two_updates(optimizer, first, second):
  state = optimizer.init(first)
  _, state = optimizer.update(first, state)
  return optimizer.update(second, state)[0]


def test_each_coordinate_is_on_its_own(key):
  optimizer = learned_optimizer(NETWORK, make_weights())
  two_updates = jax.jit(functools.partial(run_two_updates, optimizer))
  first, second = jax.random.normal(key, (2, 6))
  order = jnp.array([3, 0, 5, 1, 4, 2])
  update = two_updates(first, second)
  np.testing.assert_allclose(two_updates(first[order], second[order]), update[order], rtol=1e-6)
  tree = lambda x: {"a": x[:2], "b": [x[2].reshape(()), x[3:].reshape(3, 1)]}
  assert_trees_close(two_updates(tree(first), tree(second)), tree(update))
  changed = two_updates({**tree(first), "a": jnp.ones(2)}, tree(second))
  assert_trees_close(changed["b"], tree(update)["b"])
  assert not np.allclose(changed["a"], tree(update)["a"])


def test_is_an_optax_optimizer_under_jit_vmap_and_chain(key):
  optimizer = optax.chain(optax.clip(1.0), learned_optimizer(NETWORK, make_weights()), optax.scale(2.0))
  params = {"w": jax.random.normal(key, (4, 2, 3)), "b": jnp.ones((4, 3))}
  grads = jax.tree.map(jnp.sin, params)
  jitted = jax.jit(optimizer.update)
  together, states = jax.jit(jax.vmap(optimizer.update))(grads, jax.vmap(optimizer.init)(params), params)
  for i in range(4):
    one = lambda tree: jax.tree.map(lambda x: x[i], tree)  # noqa: B023
    update, state = jitted(one(grads), optimizer.init(one(params)), one(params))
    assert_trees_close(update, one(together))
    assert_trees_close(state, one(states))


def test_unroll_of_gradient_descent_is_the_closed_form(key):
  """On |Wx - y|^2 the error shrinks by I - 2 rate W'W in each update."""
  run = start(QUADRATICS, optax.sgd(0.02), key)
  after, losses = unroll(QUADRATICS, optax.sgd(0.02), run, 7)
  matrix, target = map(np.asarray, run.problem)
  solution = np.linalg.solve(matrix, target)
  error = np.asarray(run.params) - solution
  expected = []
  for _ in range(7):
    error = error - 0.04 * matrix.T @ matrix @ error
    expected.append(np.sum((matrix @ error) ** 2))
  np.testing.assert_allclose(losses, expected, rtol=1e-4)
  np.testing.assert_allclose(after.params, solution + error, rtol=1e-4)
  assert after.step == 7


@functools.partial(jax.jit, static_argnums=(1, 3, 4))
def gradient_of_loop(weights, optimizee, run, length, freeze):
  """The whole trajectory written out, without `unroll`."""

  def loss(weights):
    optimizer = learned_optimizer(RAW, weights)
    params, state, total = run.params, run.opt_state, 0.0
    for step in range(length):
      at = jax.lax.stop_gradient(params) if freeze else params
      updates, state = optimizer.update(jax.grad(optimizee.loss)(at, run.problem, step), state)
      params = params + updates
      total += optimizee.loss(params, run.problem, step + 1)
    return total

  return jax.grad(loss)(weights)


@functools.partial(jax.jit, static_argnums=(1, 3, 4))
def unroll_gradients(weights, optimizee, run, lengths, second_order):
  """The gradients of one unroll after the other, added up."""
  total = jax.tree.map(jnp.zeros_like, weights)
  for length in lengths:
    grads, run = jax.grad(unroll_loss, has_aux=True)(weights, RAW, optimizee, run, length, second_order)
    total = jax.tree.map(jnp.add, total, grads)
  return total


def largest(tree):
  return max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(tree))


@pytest.mark.thorough
def test_truncation_and_order_of_the_gradient():
  weights = make_weights(RAW)
  first_run = lambda optimizee: start(optimizee, learned_optimizer(RAW, weights), jax.random.key(0))
  run = first_run(QUADRATICS)
  first = unroll_gradients(weights, QUADRATICS, run, (3,), False)
  second = unroll_gradients(weights, QUADRATICS, run, (3,), True)
  assert_trees_close(first, gradient_of_loop(weights, QUADRATICS, run, 3, True), rtol=1e-3, atol=1e-4)
  assert_trees_close(second, gradient_of_loop(weights, QUADRATICS, run, 3, False), rtol=1e-3, atol=1e-4)
  difference = lambda a, b: largest(jax.tree.map(jnp.subtract, a, b)) / largest(b)
  assert difference(first, second) > 1e-2
  # Cut, a later loss does not reach the weights through an earlier update.
  assert difference(unroll_gradients(weights, QUADRATICS, run, (1, 2), False), first) > 1e-2
  run = first_run(LINEAR)
  first, second = (unroll_gradients(weights, LINEAR, run, (3,), order) for order in (False, True))
  assert largest(second) > 1e-2 and difference(first, second) < 1e-6


def test_a_run_that_is_old_is_replaced(key):
  optimizer = learned_optimizer(NETWORK, make_weights())
  many = lambda key: jax.vmap(lambda k: start(QUADRATICS, optimizer, k))(jax.random.split(key, 3))
  old, fresh = map(many, jax.random.split(key))
  old = old._replace(step=jnp.array([5, 10, 12]))
  after = restart(old, fresh, 10)
  for i, source in enumerate((old, fresh, fresh)):
    assert_trees_close(jax.tree.map(lambda x: x[i], after), jax.tree.map(lambda x: x[i], source), rtol=0)  # noqa: B023


def test_condition_number_is_the_one_asked_for():
  given, plain = (np.asarray(make_quadratics(6, c).sample(jax.random.key(0)).matrix, np.float64) for c in (400.0, 0.0))
  np.testing.assert_allclose(np.linalg.cond(given.T @ given), 400, rtol=1e-3)
  np.testing.assert_allclose(np.linalg.norm(given, 2), np.linalg.norm(plain, 2), rtol=1e-4)


def parabola(loss):
  zeros = lambda key: jnp.zeros(2)
  return Family("parabola", Optimizee(zeros, lambda key: jnp.ones(2), lambda x, _, step: loss(x)), 5, 2, 2)


def test_tuning_finds_the_best_rate_and_says_when_it_is_at_the_edge():
  """On x^2 / 2 a rate of 1 is there in one update; a linear loss wants the largest rate that is tried."""
  found = tune(parabola(lambda x: jnp.sum(x**2) / 2), "sgd")
  np.testing.assert_allclose([setting.learning_rate for setting in found.settings], 1.0)
  np.testing.assert_allclose(found.final, 0, atol=1e-10)
  assert not found.at_edge and found.final.shape == (2, 5)
  found = tune(parabola(jnp.sum), "sgd", found.settings[0])
  assert found.at_edge and found.settings[0].learning_rate == 10
  np.testing.assert_allclose(found.carried[0], 2 - 2 * np.arange(1, 6))


def test_what_diverges_is_drawn_and_named(tmp_path):
  """Matplotlib and NumPy warn of what they cannot show, and a warning is an error here."""
  family = parabola(jnp.sum)
  losses = np.geomspace(1, 1e-3, 10).reshape(2, 5)
  broken = Outcome(*3 * [np.array([[1, 1e30, 3e38, np.inf, np.nan], [1, 1, 1, 1, 1]])], ((0.1, 0.0),) * 2)
  outcomes = {"learned": Outcome(losses, losses, losses), **dict.fromkeys(("sgd", "adam"), broken)}
  draw_families(family, {"a": (family._replace(horizon=9), outcomes), "b": (family, outcomes)}, tmp_path / "a.png")
  assert (tmp_path / "a.png").stat().st_size > 1000


def small(**changes):
  sizes = dict(variables=3, horizon=20, unroll=10, hidden=8, layers=1, batch_size=16, eval_problems=16, log_every=20)
  return experiment.Config(**{**sizes, "learning_rate": 0.02, "steps": 60, "families": False, **changes})


@pytest.mark.thorough
def test_training_makes_an_optimizer(tmp_path, monkeypatch):
  monkeypatch.setattr(experiment, "BASELINES", ("momentum",))
  config = small(workdir=str(tmp_path), tensorboard=False)
  untrained = Program(experiment.make(config), experiment.make_feeds(config), (0,), make_mesh(1))
  before = untrained.evaluate(untrained.init())
  assert experiment.main(config) == 0
  found = json.loads((tmp_path / "result.json").read_text())
  after = {name: value["mean"] for name, value in found["metrics"].items()}
  assert after["final_loss"] < 0.3 * before["final_loss"]
  assert after["learned/final_loss"] < 0.3 * before["final_loss"]
  assert after["momentum/final_loss"] < 0.3 * before["final_loss"]
  assert found["timing"]["problem_steps_per_second"] > 0
  assert (tmp_path / "optimizers.png").stat().st_size > 1000
  assert (tmp_path / "table.md").read_text().count("\n") == 4


def test_a_network_is_an_optimizee(key):
  family = experiment.make_trained(experiment.Config.tuned(optimizee="network", horizon=3, unroll=3, eval_problems=2))
  outcomes = compare(family, NETWORK, make_weights(), {})
  losses = outcomes["learned"].final
  assert losses.shape == (2, 3) and np.all(np.isfinite(losses))
  assert not np.allclose(losses[0], losses[1])  # another start, another order of minibatches


def test_flags_say_what_is_wrong():
  with pytest.raises(InputError, match=r"--unroll=30.*--horizon=100"):
    experiment.Config(unroll=30)
  with pytest.raises(InputError, match="--output_scale=0"):
    experiment.Config(output_scale=0.0)
  with pytest.raises(InputError, match="--hidden=0"):
    experiment.Config(hidden=0)
  assert experiment.Config.tuned(optimizee="network", steps=7).batch_size == 4
