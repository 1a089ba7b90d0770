"""Seeds of one computation side by side as one program: for studies that train many small networks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlnotes.engine.experiment import root_key


def each_seed(f: Callable[..., Any], seeds: range) -> Any:
  """`f(root key)` of each seed, results stacked on the host; devices share the seeds where their numbers allow it."""
  count = max(n for n in range(1, min(len(seeds), jax.local_device_count()) + 1) if len(seeds) % n == 0)
  mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:count]), ("seeds",))
  spec = jax.sharding.PartitionSpec("seeds")
  # Each device has a program of its own: nothing is shared, so nothing is waited for.
  each = jax.shard_map(jax.vmap(f), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
  keys = jax.vmap(root_key)(jnp.asarray(seeds))
  return jax.tree.map(lambda x: np.asarray(x, np.float64), jax.jit(each)(keys))
