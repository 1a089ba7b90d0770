"""Flows beside normflows, with the same weights: outputs and log-determinants of each layer and of a whole step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.benchmarks import flows as benchmark
from mlnotes.generative import flow_layers
from mlnotes.generative.flow import checkerboard_mask, squeeze
from mlnotes.generative.flow_networks import ConvConditioner, DenseConditioner

torch = pytest.importorskip("torch")
normflows = pytest.importorskip("normflows")
pytestmark = pytest.mark.parity


def as_torch(array):
  array = np.array(array)
  return torch.from_numpy(array if array.ndim < 4 else np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def as_numpy(tensor):
  array = tensor.detach().numpy()
  return array if array.ndim < 4 else array.transpose(0, 2, 3, 1)


def prepare(layer, shape):
  """(variables moved away from where they start, a batch, z, log-determinant)."""
  x = jnp.asarray(np.random.default_rng(0).normal(size=(4, *shape)), jnp.float32)

  def run(x):
    variables = layer.init(jax.random.key(0), x, method="forward")
    leaves, tree = jax.tree.flatten(variables["params"])
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.2 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys)]
    variables = {**variables, "params": tree.unflatten(moved)}
    return variables, *layer.apply(variables, x, method="forward")

  variables, z, log_det = jax.tree.map(np.asarray, jax.jit(run)(x))
  return variables, np.asarray(x), z, log_det


def assert_same(found, z, log_det):
  np.testing.assert_allclose(as_numpy(found[0]), z, rtol=2e-4, atol=2e-5)
  np.testing.assert_allclose(np.broadcast_to(as_numpy(found[1]), log_det.shape), log_det, rtol=2e-4, atol=2e-5)


def copy_conditioner(params, bound, inputs, outputs, width, image):
  """normflows' network with the weights of ours."""
  network = benchmark.torch_conditioner(inputs, outputs, width, image, bound is not None)
  modules = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
  names = ["first", "wide0", "narrow0", "last"] if image else ["dense0", "dense1", "last"]
  with torch.no_grad():
    for module, name in zip(modules, names, strict=True):
      kernel = params[name]["kernel"]
      module.weight.copy_(torch.from_numpy(np.array(kernel.transpose(3, 2, 0, 1) if image else kernel.T)))
      module.bias.copy_(torch.from_numpy(np.array(params[name]["bias"])))
    if bound is not None:
      network.bound.copy_(torch.tensor(float(bound)))
  return network


def test_actnorm():
  variables, x, z, log_det = prepare(flow_layers.ActNorm(), (4, 6, 3))
  params = variables["params"]
  theirs = normflows.flows.ActNorm((3, 1, 1))
  theirs.data_dep_init_done = torch.tensor(1.0)
  with torch.no_grad():
    theirs.s.copy_(torch.from_numpy(params["log_scale"].copy()).view(1, 3, 1, 1))
    theirs.t.copy_(torch.from_numpy(params["bias"] * np.exp(params["log_scale"])).view(1, 3, 1, 1))
  assert_same(theirs(as_torch(x)), z, log_det)


def test_actnorm_starts_where_theirs_does():
  x = np.random.default_rng(0).normal(2, 3, (50, 6, 6, 3)).astype(np.float32)
  z, log_det = flow_layers.ActNorm().init_with_output(jax.random.key(0), jnp.asarray(x), method="forward")[0]
  found = normflows.flows.ActNorm((3, 1, 1))(as_torch(x))
  np.testing.assert_allclose(as_numpy(found[0]), z, atol=2e-3)  # torch's deviation is the unbiased one
  np.testing.assert_allclose(float(found[1].detach()), log_det[0], rtol=1e-3)


@pytest.mark.filterwarnings("ignore:torch.lu is deprecated")
def test_linear_by_lu():
  variables, x, z, log_det = prepare(flow_layers.InvertibleLinear(), (2, 3, 5))
  params, fixed = variables["params"], variables["fixed"]
  theirs = normflows.flows.Invertible1x1Conv(5, use_lu=True)
  with torch.no_grad():
    theirs.P.copy_(torch.from_numpy(np.eye(5, dtype=np.float32)[fixed["order"]].T.copy()))
    theirs.sign_S.copy_(torch.from_numpy(fixed["sign"].copy()))
    for name, value in (("L", params["lower"]), ("U", params["upper"]), ("log_S", params["log_scale"])):
      getattr(theirs, name).copy_(torch.from_numpy(value.copy()))
  assert_same(theirs.inverse(as_torch(x)), z, log_det)


def test_squeeze():
  x = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
  np.testing.assert_array_equal(as_numpy(normflows.flows.Squeeze().inverse(as_torch(x))[0]), squeeze(jnp.asarray(x)))


@pytest.mark.parametrize(("scale", "flip"), [("tanh", False), ("tanh", True), ("sigmoid", False)])
def test_coupling_of_channels(scale, flip):
  layer = flow_layers.ChannelCoupling(ConvConditioner(4, 5, 1), scale, flip=flip)
  variables, x, z, log_det = prepare(layer, (4, 4, 4))
  params = variables["params"]
  network = copy_conditioner(params["conditioner"], params.get("bound"), 2, 4, 5, True)
  theirs = normflows.flows.AffineCouplingBlock(
    network, scale_map="exp" if scale == "tanh" else "sigmoid_inv", split_mode="channel_inv" if flip else "channel"
  )
  assert_same(theirs(as_torch(x)), z, log_det)


def test_coupling_of_a_mask():
  layer = flow_layers.MaskedCoupling(DenseConditioner(10, 6, 2), "tanh", parity=1)
  variables, x, z, log_det = prepare(layer, (5,))
  params = variables["params"]
  network = copy_conditioner(params["conditioner"], params["bound"], 5, 10, 6, False)
  part = lambda i: type("Part", (torch.nn.Module,), {"forward": lambda self, x: network(x)[:, i::2]})()
  mask = torch.from_numpy(checkerboard_mask((5,), 1).astype(np.float32))
  assert_same(normflows.flows.MaskedAffineFlow(mask, t=part(0), s=part(1))(as_torch(x)), z, log_det)
