"""A sequence in parts on eight devices against the whole of it on one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mlnotes.attention import Mask, dot_product_attention, make_alibi, ring_attention

LENGTH = 32
LENGTHS = jnp.array([LENGTH, LENGTH - 11])  # the padding of the second begins within a device's part
SEGMENTS = jnp.broadcast_to(jnp.arange(LENGTH) // 19, (2, LENGTH))
MASKS = {
  "causal": (Mask.of_self(causal=True, lengths=LENGTHS), None),
  "everything": (Mask.of_self(lengths=LENGTHS), None),
  "packed, with a window and a bias": (Mask.of_self(causal=True, window=9, segments=SEGMENTS), make_alibi(4)),
}


@pytest.mark.parametrize("name", MASKS)
def test_eight_devices_compute_what_one_does(name):
  mask, bias = MASKS[name]
  mesh = Mesh(np.array(jax.devices()), ("ring",))
  keys = jax.random.split(jax.random.key(0), 4)
  arrays = tuple(jax.random.normal(k, (2, LENGTH, n, 4)) for k, n in zip(keys, (4, 2, 2)))
  weight = jax.random.normal(keys[3], (2, LENGTH, 4, 4))

  def run(attend, arrays):
    loss = lambda a: (lambda out: (jnp.sum(out * weight), out))(attend(*a, mask, bias))
    program = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(arrays).compile()
    return program, program(arrays)

  parts = tuple(jax.device_put(x, NamedSharding(mesh, PartitionSpec(None, "ring"))) for x in arrays)
  program, ((_, out), grads) = run(lambda *a: ring_attention(*a, mesh=mesh, axis="ring"), parts)
  _, ((_, expected), grads_expected) = run(dot_product_attention, arrays)
  np.testing.assert_allclose(out, expected, atol=1e-5)
  for x, y in zip(grads, grads_expected):
    np.testing.assert_allclose(x, y, atol=1e-5)
  assert "all-gather" not in program.as_text()  # no device ever has the whole


def test_a_ring_says_what_it_cannot():
  mesh = Mesh(np.array(jax.devices()), ("ring",))
  x = jnp.zeros((1, 24, 1, 4))
  with pytest.raises(ValueError, match="24 tokens on 8 devices: expected a multiple of 16"):
    ring_attention(x, x, x, mesh=mesh, axis="ring")
  with pytest.raises(ValueError, match="to itself"):
    ring_attention(x[:, :16], x, x, mesh=mesh, axis="ring")
