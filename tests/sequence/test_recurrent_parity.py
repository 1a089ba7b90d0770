"""Cells, directions, layers and lengths against torch's nn.RNN, nn.LSTM and nn.GRU, weights copied."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.sequence import RecurrentStack, make_cell

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

BATCH, LENGTH, WIDTH, FEATURES = 4, 7, 3, 5
LENGTHS = np.array([7, 4, 1, 6])
TORCH = {"elman": "RNN", "lstm": "LSTM", "gru": "GRU"}


def params_of(kind, layer, suffix):
  """Parameters of one direction of one layer of torch in this library's layout."""
  names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
  w_x, w_h, b_x, b_h = (getattr(layer, f"{name}_{suffix}").detach().numpy() for name in names)
  if kind == "elman":
    return {"i": {"kernel": w_x.T, "bias": b_x + b_h}, "h": {"kernel": w_h.T}}
  if kind == "lstm":
    return {"i": {"kernel": w_x.T}, "h": {"kernel": w_h.T, "bias": b_x + b_h}}
  two = 2 * FEATURES
  return {
    "i": {"kernel": w_x.T, "bias": b_x + np.concatenate([b_h[:two], np.zeros(FEATURES)]).astype(np.float32)},
    "gates": {"kernel": w_h[:two].T},
    "candidate": {"kernel": w_h[two:].T, "bias": b_h[two:]},
  }


def stacked(kind, layer, depth, bidirectional):
  sides = {"forward": "", "backward": "_reverse"} if bidirectional else {"forward": ""}
  return {
    f"layer{i}": {side: params_of(kind, layer, f"l{i}{end}") for side, end in sides.items()} for i in range(depth)
  }


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", TORCH)
def test_two_layers_are_torchs(kind, bidirectional, padded):
  """Outputs, final states, and gradients of all weights and inputs; packed sequences where padded."""
  torch.manual_seed(0)
  layer = getattr(torch.nn, TORCH[kind])(WIDTH, FEATURES, 2, batch_first=True, bidirectional=bidirectional)
  draw = np.random.default_rng(0)
  x = draw.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
  sides = 1 + bidirectional
  weight = draw.normal(size=(BATCH, LENGTH, sides * FEATURES)).astype(np.float32)

  theirs = torch.tensor(x, requires_grad=True)
  given = theirs
  if padded:
    given = torch.nn.utils.rnn.pack_padded_sequence(theirs, LENGTHS, batch_first=True, enforce_sorted=False)
  out, last = layer(given)
  if padded:
    out, _ = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=LENGTH)
  last = last if kind == "lstm" else (last,)
  loss = (out * torch.tensor(weight)).sum() + last[0].square().sum()
  loss.backward()

  stack = RecurrentStack(make_cell(kind, FEATURES), depth=2, bidirectional=bidirectional)
  params = stacked(kind, layer, 2, bidirectional)
  lengths = jnp.array(LENGTHS) if padded else None

  def states(carry):
    """h (and c) of each layer and direction, in torch's order."""
    of_all = [side for each in carry for side in (each if bidirectional else [each])]
    return [jnp.stack(x) for x in (zip(*[each[::-1] for each in of_all]) if kind == "lstm" else [of_all])]

  def objective(params, x):
    out, carry = stack.apply({"params": params}, x, lengths)
    found = states(carry)
    return jnp.sum(out * weight) + jnp.sum(found[0] ** 2), (out, found)

  (_, (found, carry)), grads = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))(params, x)
  np.testing.assert_allclose(found, out.detach().numpy(), atol=1e-5)
  for ours, other in zip(carry, last):
    np.testing.assert_allclose(ours, other.detach().numpy(), atol=1e-5)
  np.testing.assert_allclose(grads[1], theirs.grad.numpy(), atol=1e-5)

  for parameter in layer.parameters():  # each bias of torch has the gradient of their sum
    parameter.data = parameter.grad
  as_ours = stacked(kind, layer, 2, bidirectional)
  for (path, ours), (_, other) in zip(*map(jax.tree_util.tree_leaves_with_path, (grads[0], as_ours))):
    last_name = jax.tree_util.keystr(path)
    twice = "bias" in last_name and "candidate" not in last_name
    other = np.array(other)
    if twice and kind == "gru":
      other[: 2 * FEATURES] /= 2
    elif twice:
      other = other / 2
    np.testing.assert_allclose(ours, other, atol=3e-5, err_msg=last_name)


@pytest.mark.parametrize("kind", ["minGRU", "minLSTM"])
def test_minimal_cells_are_those_of_minGRU_pytorch(kind):
  """Its scan in log space without an initial state, and its single steps from one."""
  package = pytest.importorskip(f"minGRU_pytorch.{kind}")
  torch.manual_seed(1)
  draw = np.random.default_rng(1)
  x, start = draw.normal(size=(2, 9, 4)).astype(np.float32), draw.uniform(0.1, 2, size=(2, 4)).astype(np.float32)
  theirs = getattr(package, kind)(4)
  (weight,) = (parameter.detach().numpy() for parameter in theirs.parameters())
  hidden, *gates = np.split(weight, 2 if kind == "minGRU" else 3)
  kernel = np.concatenate([*gates, hidden]).T
  params = {"layer0": {"forward": {"i": {"kernel": kernel, "bias": np.zeros(kernel.shape[1], np.float32)}}}}
  stack = RecurrentStack(make_cell(kind.lower(), 4))
  found, _ = stack.apply({"params": params}, jnp.asarray(x))
  np.testing.assert_allclose(found, theirs(torch.tensor(x)).detach().numpy(), atol=1e-5)
  found, _ = stack.apply({"params": params}, jnp.asarray(x), carry=(jnp.asarray(start),))
  state = torch.tensor(start)[:, None]
  for t in range(x.shape[1]):
    out, state = theirs(torch.tensor(x[:, t : t + 1]), state, return_next_prev_hidden=True)
    np.testing.assert_allclose(found[:, t : t + 1], out.detach().numpy(), atol=1e-5)
