"""What sequences of labels are measured by."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int


def edit_distance(
  found: Int[Array, "B N"], found_lengths: Int[Array, " B"], wanted: Int[Array, "B M"], wanted_lengths: Int[Array, " B"]
) -> Int[Array, " B"]:
  """The least number of labels to put in, take out or replace that makes `found` `wanted` (Levenshtein 1966).

  What stands behind the lengths counts for nothing. Divided by the labels that are wanted, summed over all rows: the
  label error rate of Graves et al. 2006, eq. 1.
  """
  places = jnp.arange(wanted.shape[1] + 1, dtype=jnp.int32)[None]

  def of_one_more(row, label_and_there):
    label, there = label_and_there
    best = jnp.minimum(row[:, 1:] + 1, row[:, :-1] + (label[:, None] != wanted))
    best = jnp.concatenate([row[:, :1] + 1, best], 1)
    # To put labels in, from the left: the least of best[k] + (j - k).
    best = lax.cummin(best - places, axis=1) + places
    return jnp.where(there[:, None], best, row), None

  there = jnp.arange(found.shape[1])[:, None] < found_lengths[None]
  row, _ = lax.scan(of_one_more, jnp.repeat(places, len(found), 0), (found.T, there))
  return jnp.take_along_axis(row, wanted_lengths[:, None].astype(jnp.int32), 1)[:, 0]
