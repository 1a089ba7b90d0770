"""The queue against Python's own first-in first-out queue, and the bank against its definition."""

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.contrastive.bank import draw_noise, init_bank, update_bank
from mlnotes.contrastive.loss import info_nce
from mlnotes.contrastive.queue import enqueue, init_queue


@pytest.mark.parametrize("batches", [(4, 4, 4), (3, 3, 3, 3, 3), (10,), (4, 1, 7, 2, 10, 5)])
def test_is_a_fifo_with_wrap_around_and_ragged_batches(batches, key):
  queue = init_queue(key, 10, 3)
  model = deque(np.asarray(queue.keys), maxlen=10)
  rng = np.random.default_rng(0)
  for size in batches:
    keys = rng.normal(size=(size, 3)).astype(np.float32)
    queue = jax.jit(enqueue)(queue, keys)
    model.extend(keys)
    oldest_first = np.roll(queue.keys, -int(queue.pointer), axis=0)
    np.testing.assert_array_equal(oldest_first, np.array(model))


def test_starts_with_unit_vectors_and_refuses_more_than_it_holds(key):
  queue = init_queue(key, 10, 3)
  np.testing.assert_allclose(jnp.linalg.norm(queue.keys, axis=1), 1, rtol=1e-6)
  with pytest.raises(ValueError, match="a queue of 10 keys cannot take 11"):
    enqueue(queue, jnp.zeros((11, 3)))
  with pytest.raises(ValueError, match="keys have 4 features, expected 3"):
    enqueue(queue, jnp.zeros((2, 4)))
  with pytest.raises(ValueError, match="size=0 is out of range"):
    init_queue(jax.random.key(1), 0, 3)


def test_bank_updates_the_rows_of_the_batch_alone(key):
  bank = init_bank(key, 6, 3)
  index, feature = jnp.array([4, 1]), jnp.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
  updated = np.asarray(update_bank(bank, index, feature, 0.25))
  for i in range(6):
    expected = np.asarray(bank[i])
    if i in (4, 1):
      expected = 0.25 * expected + 0.75 * np.asarray(feature[0 if i == 4 else 1])
      expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(updated[i], expected, rtol=1e-6)


def test_noise_is_uniform_over_the_bank_and_each_examples_own(key):
  bank = jnp.eye(5)
  noise = draw_noise(jax.random.split(key, 40), bank, 500)
  drawn = np.argmax(noise, axis=-1)
  assert not np.array_equal(drawn[0], drawn[1])
  counts = np.bincount(drawn.reshape(-1), minlength=5)
  np.testing.assert_allclose(counts / counts.sum(), 0.2, atol=0.015)  # five standard deviations


def test_a_queue_in_a_loss_gets_no_gradient_where_it_is_stopped(key):
  queue = init_queue(key, 8, 3)
  query = jnp.eye(3)

  def loss(keys):
    return jnp.sum(info_nce(query, query, jax.lax.stop_gradient(keys), 0.1))

  np.testing.assert_array_equal(jax.grad(loss)(queue.keys), 0)
