"""A language model with experts on eight devices, its state in four parts: the losses of one device, a part of the
memory."""

import jax
import numpy as np
import pytest

from experiments.lm import pretrain
from mlnotes.engine.program import Program, window_means
from mlnotes.engine.sharding import make_mesh


@pytest.mark.thorough
@pytest.mark.parametrize("fsdp", [1, 4])
def test_experts_on_eight_devices_learn_as_on_one(fsdp):
  """All tokens come to their experts, the balance and z-losses are of the whole batch."""
  config = pretrain.Config(
    depth=1, width=32, heads=2, length=8, batch_size=16, steps=4, warmup_steps=0, log_every=2, eval_every=0, experts=4,
    accumulate=2,
  )  # fmt: skip
  found, held = [], []
  for count, parts in ((1, 1), (8, fsdp)):
    program = Program(pretrain.make(config), pretrain.make_feeds(config), (0,), make_mesh(count, parts))
    state, window = program.update(program.init(), program.empty_window(), 3)
    found.append(window_means(window))
    first = jax.devices()[0]
    shards = [s for x in jax.tree.leaves(state.params) for s in x.addressable_shards if s.device == first]
    held.append(sum(s.data.nbytes for s in shards))
  assert found[0].keys() >= {"loss", "balance_loss", "z_loss", "objective"}
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), *found)
  assert held[1] < (0.45 if fsdp > 1 else 1.01) * held[0]
