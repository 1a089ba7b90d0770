"""Every rule and schedule of the flags against torch, or against public torch packages for what torch lacks.

In float64, over 100 updates of a noisy, curved problem: the gradient at p is A p + sin(3 p) + noise of the update.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlnotes.optim import lookahead, make_schedule, swats
from mlnotes.optim.flags import OptimConfig, make_optimizer
from mlnotes.optim.swats import ScaleBySwatsState

torch = pytest.importorskip("torch")
pytorch_optimizer = pytest.importorskip("pytorch_optimizer")
torch_optimizer = pytest.importorskip("torch_optimizer")
pytestmark = pytest.mark.parity

# Not so small that it would not matter where eps stands.
STEPS, SHAPE, RATE, EPS = 100, (4, 3), 0.03, 1e-3
# Two rules of optax have it elsewhere than torch: AdaGrad under the root, RAdam beside the corrected root.
ELSEWHERE, SMALL_EPS = ("adagrad", "radam"), 1e-9
rng = np.random.default_rng(0)
START, NOISE = rng.normal(size=SHAPE), 0.3 * rng.normal(size=(STEPS, *SHAPE))
CURVATURE = np.geomspace(0.1, 3, 12).reshape(SHAPE)


def run_jax(optimizer):
  """The parameters after each update, and the final state."""

  def body(carry, noise):
    params, state = carry
    grads = jax.tree.map(lambda p: CURVATURE * p + jnp.sin(3 * p) + noise, params)
    updates, state = optimizer.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    return (params, state), params["w"]

  with jax.enable_x64(True):
    params = {"w": jnp.asarray(START)}
    (_, state), path = jax.jit(lambda carry: jax.lax.scan(body, carry, NOISE))((params, optimizer.init(params)))
    return np.asarray(path), state


def run_torch(make, schedule=None):
  param = torch.nn.Parameter(torch.tensor(START))
  optimizer = make([param])
  path = []
  for step, noise in enumerate(NOISE):
    if schedule:
      optimizer.param_groups[0]["lr"] = schedule(step)
    p = param.detach().numpy()
    param.grad = torch.tensor(CURVATURE * p + np.sin(3 * p) + noise)
    optimizer.step()
    path.append(param.detach().numpy().copy())
  return np.stack(path)


optim = torch.optim
REFERENCES = {
  "sgd": (dict(momentum=0.8), functools.partial(optim.SGD, momentum=0.8)),
  "sgd plain": (dict(momentum=0.0), optim.SGD),
  "sgd L2": (dict(weight_decay=0.2), functools.partial(optim.SGD, momentum=0.9, weight_decay=0.2)),
  "nesterov": ({}, functools.partial(optim.SGD, momentum=0.9, nesterov=True)),
  "sgdw": (
    dict(weight_decay=0.2),
    functools.partial(pytorch_optimizer.SGDW, momentum=0.9, weight_decay=0.2, weight_decouple=True),
  ),
  "adagrad": ({}, functools.partial(optim.Adagrad, eps=SMALL_EPS)),
  "adadelta": (dict(learning_rate=1.0), functools.partial(optim.Adadelta, lr=1.0, rho=0.9, eps=1e-6)),
  "rmsprop": ({}, functools.partial(optim.RMSprop, alpha=0.99, eps=EPS)),
  "rmsprop_centred": ({}, functools.partial(optim.RMSprop, alpha=0.99, eps=EPS, centered=True)),
  "adam": ({}, functools.partial(optim.Adam, eps=EPS)),
  "adam L2": (dict(weight_decay=0.2), functools.partial(optim.Adam, eps=EPS, weight_decay=0.2)),
  "adamw": (dict(weight_decay=0.2), functools.partial(optim.AdamW, eps=EPS, weight_decay=0.2)),
  # torch's momentum grows towards beta 1; with this decay it is there from the start.
  "nadam": ({}, functools.partial(optim.NAdam, eps=EPS, momentum_decay=1e6)),
  "amsgrad": (dict(beta2=0.9), functools.partial(optim.Adam, betas=(0.9, 0.9), eps=EPS, amsgrad=True)),
  "radam": ({}, functools.partial(optim.RAdam, eps=SMALL_EPS)),
  "adabound": ({}, functools.partial(torch_optimizer.AdaBound, eps=EPS, final_lr=0.1)),
  "amsbound": (
    dict(beta2=0.9),
    functools.partial(torch_optimizer.AdaBound, betas=(0.9, 0.9), eps=EPS, final_lr=0.1, amsbound=True),
  ),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_rules(name):
  flags, reference = REFERENCES[name]
  eps = SMALL_EPS if name in ELSEWHERE else EPS
  config = OptimConfig(**{"optimizer": name.split()[0], "learning_rate": RATE, "adam_eps": eps, **flags})
  path, _ = run_jax(make_optimizer(config, STEPS))
  keywords = getattr(reference, "keywords", {})
  expected = run_torch(reference if "lr" in keywords else functools.partial(reference, lr=RATE))
  np.testing.assert_allclose(path, expected, rtol=1e-6, atol=1e-7)
  assert np.abs(path[-1] - START).max() > 0.1


def test_adabound_under_a_schedule_scales_its_bounds_too():
  schedule = make_schedule("cosine", STEPS)
  path, _ = run_jax(make_optimizer(OptimConfig(optimizer="adabound", learning_rate=RATE, schedule="cosine"), STEPS))
  with jax.enable_x64(True):
    rates = RATE * np.array([schedule(step) for step in range(STEPS)], np.float64)
  expected = run_torch(functools.partial(torch_optimizer.AdaBound, lr=RATE, final_lr=0.1), lambda step: rates[step])
  np.testing.assert_allclose(path, expected, rtol=1e-6, atol=1e-7)


def test_swats_switches_at_the_same_update_to_the_same_rate():
  eps = 0.02  # the reference has one number for the tolerance and for what is added to the root
  optimizer = swats(RATE, eps=eps, tolerance=eps)
  path, state = run_jax(optimizer)
  made = []

  def make(params):
    made.append(pytorch_optimizer.SWATS(params, lr=RATE, eps=eps, adam_debias=False))
    return made[0]

  expected = run_torch(make)
  np.testing.assert_allclose(path, expected, rtol=1e-6, atol=1e-7)
  inner = next(s for s in jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, ScaleBySwatsState))
               if isinstance(s, ScaleBySwatsState))  # fmt: skip
  group = made[0].param_groups[0]
  assert bool(inner.switched) and group["phase"] == "sgd"
  np.testing.assert_allclose(RATE * float(inner.sgd_rate), group["lr"], rtol=1e-6)


@pytest.mark.parametrize("rule, reference", [(optax.adam(RATE), optim.Adam), (optax.sgd(RATE), optim.SGD)])
def test_lookahead(rule, reference):
  path, _ = run_jax(lookahead(rule, 5, 0.3))
  make = lambda params: pytorch_optimizer.Lookahead(reference(params, lr=RATE), k=5, alpha=0.3)
  np.testing.assert_allclose(path, run_torch(make), rtol=1e-6, atol=1e-7)


lr_scheduler = optim.lr_scheduler
SCHEDULES = {
  "constant": lambda o: lr_scheduler.ConstantLR(o, factor=1.0),
  "step": lambda o: lr_scheduler.MultiStepLR(o, [50, 75], gamma=0.1),
  "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.01 ** (1 / STEPS)),
  "polynomial": lambda o: lr_scheduler.PolynomialLR(o, STEPS, power=2.0),
  "linear": lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, STEPS),
  "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
  "triangular": lambda o: lr_scheduler.CyclicLR(o, 0.1, 1.0, step_size_up=STEPS // 8, cycle_momentum=False),
  # torch's phases end one update earlier: one more update, and the top where it is here.
  "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=STEPS + 1, pct_start=31 / 101),
  "warm_restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=15, T_mult=2),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.filterwarnings("ignore")
def test_schedules(name):
  optimizer = optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
  scheduler = SCHEDULES[name](optimizer)
  expected = []
  for _ in range(STEPS):
    expected.append(optimizer.param_groups[0]["lr"])
    optimizer.step()
    scheduler.step()
  schedule = make_schedule(name, STEPS)
  np.testing.assert_allclose([schedule(step) for step in range(STEPS)], expected, rtol=2e-5, atol=1e-6)
