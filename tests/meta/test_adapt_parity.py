"""MAML on the convolutional network against torch.func with the same numbers: adapted parameters and meta-gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlnotes.meta import Conv4, Task, adapt, make_classifier, meta_loss

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

WAYS, WIDTH, RATE, STEPS = 3, 8, 0.1, 2


def torch_network():
  block = lambda i, o: torch.nn.Sequential(
    torch.nn.Conv2d(i, o, 3, padding=1), torch.nn.BatchNorm2d(o, track_running_stats=False), torch.nn.ReLU(),
    torch.nn.MaxPool2d(2),
  )  # fmt: skip
  layers = [block(1 if i == 0 else WIDTH, WIDTH) for i in range(4)]
  return torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(WIDTH, WAYS)).double()


def from_torch(named):
  """torch's parameters, or their gradients, as those of `Conv4`."""
  named = {name: value.detach().numpy() for name, value in named.items()}
  params = {"head": {"kernel": named["5.weight"].T, "bias": named["5.bias"]}}
  for i in range(4):
    params[f"conv{i}"] = {"kernel": named[f"{i}.0.weight"].transpose(2, 3, 1, 0), "bias": named[f"{i}.0.bias"]}
    params[f"norm{i}"] = {"scale": named[f"{i}.1.weight"], "bias": named[f"{i}.1.bias"]}
  return params


@pytest.mark.parametrize("first_order", [False, True])
def test_adapted_parameters_and_meta_gradient_equal_torch(first_order):
  torch.manual_seed(0)
  network = torch_network()
  rng = np.random.default_rng(0)
  images, labels = rng.random((2, 6, 16, 16, 1)), np.repeat(np.arange(WAYS), 2)
  x, xq = (torch.tensor(part.transpose(0, 3, 1, 2)) for part in images)
  y = torch.tensor(labels)
  loss = lambda params, x: torch.nn.functional.cross_entropy(torch.func.functional_call(network, params, (x,)), y)

  def adapted(params):
    for _ in range(STEPS):
      grads = torch.func.grad(loss)(params, x)
      params = {name: p - RATE * (grads[name].detach() if first_order else grads[name]) for name, p in params.items()}
    return params

  named = dict(network.named_parameters())
  fast = adapted(named)
  value = loss(fast, xq)
  grads = dict(zip(named, torch.autograd.grad(value, list(named.values()))))

  with jax.enable_x64(True):
    learner = make_classifier(Conv4(WAYS, WIDTH), "transductive")
    side = lambda image: {"image": jnp.asarray(image), "label": jnp.asarray(labels)}
    task, params, inner = Task(*map(side, images)), jax.tree.map(jnp.asarray, from_torch(named)), optax.sgd(RATE)
    run = lambda params: meta_loss(
      learner.support_loss, params, task, inner, STEPS, query_loss_fn=learner.query_loss, first_order=first_order
    )[0]
    ours, gradient = jax.jit(jax.value_and_grad(run))(params)
    result = jax.jit(lambda p: adapt(learner.support_loss, p, task.support, inner, STEPS).params)(params)
  np.testing.assert_allclose(ours, value.item(), rtol=1e-5)
  # BatchNorm sums in float32, whatever the parameters are.
  close = lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-5)
  jax.tree.map(close, result, from_torch(fast))
  jax.tree.map(close, gradient, from_torch(grads))
