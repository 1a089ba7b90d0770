"""Losses and their gradients against the papers' pseudo-code, executed by torch and its autograd."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.contrastive.loss import (
  in_batch_info_nce,
  info_nce,
  nce,
  negative_cosine,
  nonparametric_softmax,
  normalize,
  nt_xent,
)

pytestmark = pytest.mark.parity


def moco(torch, q, k, queue):
  """Algorithm 1 of He et al. 2020."""
  q, k = (torch.nn.functional.normalize(x, dim=1) for x in (q, k))
  l_pos = torch.bmm(q.view(len(q), 1, -1), k.view(len(k), -1, 1)).squeeze(2)
  logits = torch.cat([l_pos, torch.mm(q, queue.T)], dim=1)
  return torch.nn.functional.cross_entropy(logits / 0.07, torch.zeros(len(q), dtype=torch.long))


def simclr(torch, z1, z2, _):
  """NT-Xent as a cross-entropy over the other 2N - 1 views, in Chen et al. 2020's own layout (their `objective.py`)."""
  z1, z2 = (torch.nn.functional.normalize(x, dim=1) for x in (z1, z2))
  n, large = len(z1), 1e9
  mask = torch.eye(n, dtype=z1.dtype) * large
  labels = torch.arange(n)
  aa, bb = z1 @ z1.T / 0.5 - mask, z2 @ z2.T / 0.5 - mask
  ab, ba = z1 @ z2.T / 0.5, z2 @ z1.T / 0.5
  entropy = torch.nn.functional.cross_entropy
  return (entropy(torch.cat([ab, aa], 1), labels) + entropy(torch.cat([ba, bb], 1), labels)) / 2


def simsiam(torch, p, z, _):
  """D(p, z) of algorithm 1 of Chen & He 2021."""
  z = torch.nn.functional.normalize(z.detach(), dim=1)
  return -(torch.nn.functional.normalize(p, dim=1) * z).sum(dim=1).mean()


def in_batch(torch, q, k, _):
  q, k = (torch.nn.functional.normalize(x, dim=1) for x in (q, k))
  return torch.nn.functional.cross_entropy(q @ k.T / 0.2, torch.arange(len(q)))


def softmax_over_the_bank(torch, v, _, bank):
  v = torch.nn.functional.normalize(v, dim=1)
  return torch.nn.functional.cross_entropy(v @ bank.T / 0.07, torch.arange(len(v)))


def nce_by_binary_cross_entropy(torch, v, p, bank):
  """Data against noise as a logistic regression on log P - log(m / n): the same loss by another road."""
  v, p = (torch.nn.functional.normalize(x, dim=1) for x in (v, p))
  offset = np.log(30.0) + np.log(len(bank) / 100)
  own = (v * p.detach()).sum(dim=1, keepdim=True) / 0.5 - offset
  logits = torch.cat([own, v @ bank.T / 0.5 - offset], dim=1)
  labels = torch.zeros_like(logits)
  labels[:, 0] = 1
  entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
  return entropy.sum(dim=1).mean()


stop = jax.lax.stop_gradient
CASES = {
  "info_nce": (moco, lambda a, b, n: info_nce(normalize(a), normalize(b), n, 0.07)),
  "nt_xent": (simclr, lambda a, b, n: nt_xent(normalize(a), normalize(b), 0.5)),
  "negative_cosine": (simsiam, lambda a, b, n: negative_cosine(a, stop(b))),
  "in_batch_info_nce": (in_batch, lambda a, b, n: in_batch_info_nce(normalize(a), normalize(b), 0.2)),
  "nonparametric_softmax": (
    softmax_over_the_bank,
    lambda a, b, n: nonparametric_softmax(normalize(a), jnp.arange(len(a)), n, 0.07),
  ),
  "nce": (
    nce_by_binary_cross_entropy,
    lambda a, b, n: nce(
      normalize(a), stop(normalize(b)), jnp.broadcast_to(n, (len(a), *n.shape)), 100, 30.0, 0.5
    ),
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients_agree_with_torch(name):
  torch = pytest.importorskip("torch")
  reference, loss = CASES[name]
  rng = np.random.default_rng(0)
  a, b, negatives = rng.normal(size=(6, 5)), rng.normal(size=(6, 5)), rng.normal(size=(9, 5))
  negatives /= np.linalg.norm(negatives, axis=1, keepdims=True)
  theirs = [torch.tensor(x, dtype=torch.float32, requires_grad=x is not negatives) for x in (a, b, negatives)]
  value = reference(torch, *theirs)
  value.backward()
  ours = [jnp.float32(x) for x in (a, b, negatives)]
  found, gradients = jax.value_and_grad(lambda a, b: jnp.mean(loss(a, b, ours[2])), (0, 1))(*ours[:2])
  np.testing.assert_allclose(found, value.item(), rtol=1e-5)
  for gradient, x in zip(gradients, theirs):
    expected = np.zeros((6, 5)) if x.grad is None else x.grad.numpy()
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)
