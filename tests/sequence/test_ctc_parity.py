"""CTC against torch's, log-mel against torch's and transformers'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes import sequence

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


def test_loss_and_gradient():
  """Of rows of many lengths; where no path gives the labels torch's `zero_infinity` is what is done here."""
  draw = np.random.default_rng(0)
  logits = 3 * draw.normal(size=(40, 30, 7)).astype(np.float32)
  lengths, counts = draw.integers(1, 31, 40), draw.integers(0, 13, 40)
  lengths[0], counts[0] = 0, 0
  labels = draw.integers(1, 7, (40, 12))
  labels[:10] = labels[:10, :1]  # repeats

  def summed(logits):
    found = sequence.ctc_loss(logits, *map(jnp.asarray, (lengths, labels, counts)))
    return jnp.sum(found.losses), found

  (_, found), grad = jax.jit(jax.value_and_grad(summed, has_aux=True))(jnp.asarray(logits))
  theirs = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
  arguments = theirs.log_softmax(-1).transpose(0, 1), torch.tensor(labels), torch.tensor(lengths), torch.tensor(counts)
  losses = torch.nn.functional.ctc_loss(*arguments, reduction="none", zero_infinity=True)
  np.testing.assert_allclose(found.losses, losses.detach().numpy(), rtol=1e-5, atol=1e-5)
  (expected,) = torch.autograd.grad(losses.sum(), theirs)
  np.testing.assert_allclose(grad, expected.numpy(), atol=5e-5)
  infinite = torch.isinf(torch.nn.functional.ctc_loss(*arguments, reduction="none"))
  np.testing.assert_array_equal(found.feasible, ~infinite.numpy())
  assert 5 < infinite.sum() < 30


def test_log_mel():
  from transformers.audio_utils import mel_filter_bank

  rate, window, hop, mels = 8000, 200, 80, 20
  filters = mel_filter_bank(window // 2 + 1, mels, 50.0, 3800.0, rate, norm=None, mel_scale="htk")
  np.testing.assert_allclose(sequence.mel_filters(window // 2 + 1, mels, rate, 50.0, 3800.0), filters, atol=1e-6)
  audio = np.random.default_rng(0).uniform(-1, 1, (2, 1000)).astype(np.float32)
  lengths = np.array([1000, 470])
  found, counts = sequence.log_mel(jnp.asarray(audio), jnp.asarray(lengths), rate, window, hop, mels, 50.0, 3800.0)
  assert found.shape == (2, 11, mels)
  for row, length, frames, count in zip(audio, lengths, np.asarray(found), counts):
    spectrum = torch.stft(
      torch.tensor(row[:length]), window, hop, window=torch.hann_window(window), center=False, return_complex=True
    )
    expected = np.log(1e-6 + (spectrum.abs().numpy() ** 2).T @ filters)
    assert count == len(expected)
    np.testing.assert_allclose(frames[:count], expected, atol=1e-3)
    assert not np.any(frames[count:])
