"""What every kind of attention promises: nothing of later tokens, 0 where nothing is seen, padding and cache exact.

Programs are what these tests cost: each kind has one of values and one of gradients, and all tests take these.
"""

import functools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.attention import (
  KINDS,
  Mask,
  ReformerAttention,
  Sizes,
  compute_weights,
  local_attention,
  lsh_attention,
  make_alibi,
  strided_attention,
)

LENGTH, HEADS = 13, 2  # odd, and no multiple of the window
WIDTH = LENGTH  # so that unit vectors are values of the same shape
SIZES = Sizes(length=LENGTH, window=4, rank=6)
DRAWING = ("hard", "reformer", "performer", "sinkhorn")  # those that draw in training


def draw(name, length=LENGTH, seed=0):
  keys = jax.random.split(jax.random.key(seed), 3)
  query, key, value = (jax.random.normal(k, (2, length, HEADS, WIDTH)) for k in keys)
  return query, query if KINDS[name].shared else key, value


@functools.cache
def bind(name, train=False):
  """attend(query, key, value, mask, bias) of a kind, with parameters where it has some."""
  attend = KINDS[name].make(SIZES)
  # Two buckets, whatever the length, so that not all of one is in reach.
  attend = ReformerAttention(2, SIZES.rounds, buckets=2) if name == "reformer" else attend
  if not isinstance(attend, nn.Module):
    return attend
  streams = {
    stream: jax.random.key(i) for i, stream in enumerate(("params", "attention", "features", "hash", "sorting"))
  }
  variables = jax.jit(lambda: attend.init(streams, *draw(name)))()

  def run(query, key, value, mask, bias=None):
    extra = ["intermediates", "centroids"] if train else ["intermediates"]
    return attend.apply(variables, query, key, value, mask, bias, train, rngs=streams, mutable=extra)[0]

  return run


@functools.cache
def program(name, train=False):
  return jax.jit(bind(name, train))


@functools.cache
def pull_back(name):
  """(output, gradients of its sum, weighted by (B, T)), compiled."""

  attend = bind(name)

  def loss(arrays, mask, weight):
    out = attend(*arrays, mask)
    # One number of each place, which hangs on every feature.
    return jnp.sum(weight * jnp.sum(out * jnp.cos(jnp.arange(WIDTH))[None, None, None], (2, 3))), out

  run = jax.jit(jax.grad(loss, has_aux=True))
  return lambda arrays, mask, weight: run(arrays, mask, weight)[::-1]


def weigh(name, query, key, mask):
  """(B, N, T, S): what unit vectors as values become, as of `compute_weights`, by a program that is there already."""
  units = jnp.broadcast_to(jnp.eye(LENGTH)[None, :, None], key.shape)
  return jnp.swapaxes(program(name)(query, key, units, mask), 1, 2)


def padded(name):
  return Mask.of_self(causal=KINDS[name].causal, lengths=jnp.array([LENGTH, LENGTH - 3]))


def change_behind(arrays, i, name):
  """Other tokens at j > i, the same ones up to i."""
  return tuple(x.at[:, i + 1 :].set(3 * y[:, i + 1 :]) for x, y in zip(arrays, draw(name, seed=1 + i)))


def rounding(name):
  """Reformer sorts: later tokens move a sum's terms about, which rounds it otherwise."""
  return dict(rtol=0, atol=1e-6 if name == "reformer" else 0)


@pytest.mark.parametrize("name", [name for name in KINDS if KINDS[name].causal])
def test_nothing_is_seen_of_later_tokens(name):
  """What stands at j > i neither moves output i nor has a gradient of it, not by the choice of what is seen either."""
  arrays, mask = draw(name), padded(name)
  run = pull_back(name)
  out, _ = run(arrays, mask, jnp.ones((2, LENGTH)))
  reached = False
  for i in range(LENGTH):
    other, gradients = run(change_behind(arrays, i, name), mask, jnp.zeros((2, LENGTH)).at[:, i].set(1))
    np.testing.assert_allclose(other[:, : i + 1], out[:, : i + 1], **rounding(name))
    for x in gradients:
      assert np.all(np.isfinite(x)) and np.all(np.asarray(x)[:, i + 1 :] == 0)
      reached |= i > 3 and bool(np.any(np.asarray(x)[:, :i] != 0))
  assert reached  # the test can fail


@pytest.mark.parametrize("name", DRAWING)
def test_nothing_is_seen_of_later_tokens_in_training(name):
  arrays, mask = draw(name), padded(name)
  out = program(name, True)(*arrays, mask)
  for i in range(LENGTH):
    other = program(name, True)(*change_behind(arrays, i, name), mask)
    np.testing.assert_allclose(other[:, : i + 1], out[:, : i + 1], **rounding(name))
  assert np.any(np.asarray(other) != 0)


@pytest.mark.parametrize("name", KINDS)
def test_rows_that_see_nothing_are_zero_with_a_finite_gradient(name):
  mask = Mask.of_self(causal=KINDS[name].causal, lengths=jnp.array([LENGTH, 0]))
  out, gradients = pull_back(name)(draw(name), mask, jnp.ones((2, LENGTH)))
  assert np.all(np.isfinite(out)) and np.all(np.asarray(out)[1] == 0)
  for x in gradients:
    assert np.all(np.isfinite(x)) and np.all(np.asarray(x)[1] == 0)
  assert np.any(gradients[2][0] != 0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_what_stands_in_padding_does_not_matter(name, causal):
  if causal and not KINDS[name].causal:
    pytest.skip("no causal form")
  arrays = draw(name)
  real = LENGTH - 5
  mask = Mask.of_self(causal=causal, lengths=jnp.array([real, real]))
  run = (
    (lambda *a: pull_back(name)(a, mask, jnp.ones((2, LENGTH)))[0]) if causal else lambda *a: program(name)(*a, mask)
  )
  spoilt = tuple(x.at[:, real:].set(x[:, real:] * 30 + 7) for x in arrays)
  clean, dirty = run(*arrays), run(*spoilt)
  np.testing.assert_array_equal(clean[:, :real], dirty[:, :real])
  assert np.all(np.asarray(dirty)[:, real:] == 0)
  assert np.any(np.asarray(clean)[:, real - 1] != 0)


# Those in parts, but for clusters, which take a share of all places; Linformer takes one length.
@pytest.mark.parametrize(
  "name",
  ["blockwise", "local", "strided", "global", "reformer", "sinkhorn", "compressed", "linear", "performer"],
)
def test_more_padding_changes_nothing(name):
  short = draw(name, length=8)
  long = tuple(jnp.pad(x, [(0, 0), (0, LENGTH - 8), (0, 0), (0, 0)]) for x in short)
  mask = Mask.of_self(lengths=jnp.array([6, 8]))
  outs = [program(name)(*x, mask) for x in (short, long)]
  np.testing.assert_allclose(outs[0], outs[1][:, :8], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.decodes])
def test_a_few_queries_behind_cached_keys_get_what_the_whole_sequence_gives(name):
  arrays = draw(name)
  query, key, value = arrays
  whole, _ = pull_back(name)(arrays, Mask.of_self(causal=True, lengths=jnp.full(2, LENGTH)), jnp.ones((2, LENGTH)))
  for start in (0, 3, 9, 10):
    positions, lengths = jnp.arange(start, start + 3), jnp.full(2, start + 3)
    mask = Mask(causal=True, key_lengths=lengths, query_positions=positions)
    part = program(name)(query[:, start : start + 3], key, value, mask)
    np.testing.assert_allclose(part, whole[:, start : start + 3], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "compressed"])  # which mixes features
def test_the_output_is_the_weights_times_the_values(name):
  query, key, value = draw(name)
  mask = Mask.of_self(lengths=jnp.array([LENGTH, 9]))
  weights = weigh(name, query, key, mask)
  out = np.einsum("bnts,bsnd->btnd", np.asarray(weights, np.float64), np.asarray(value, np.float64))
  np.testing.assert_allclose(program(name)(query, key, value, mask), out, rtol=1e-4, atol=1e-5)
  if name not in ("linformer", "routing", "sinkhorn"):
    np.testing.assert_allclose(np.sum(weights, -1)[0], 1, rtol=1e-5)


def test_half_precision_stays_half_and_near():
  mask = Mask.of_self(lengths=jnp.full(2, LENGTH))
  for name in KINDS:
    arrays = draw(name)
    half = tuple(x.astype(jnp.bfloat16) for x in arrays)
    assert jax.eval_shape(program(name), *half, mask).dtype == jnp.bfloat16
    if name in ("dense", "blockwise", "local", "performer", "sinkhorn"):
      out = program(name)(*half, mask)
      np.testing.assert_allclose(out.astype(jnp.float32), program(name)(*arrays, mask), atol=0.12)


def test_weights_of_compressed_keys_are_shares_also_where_values_would_be_as_wide_as_keys():
  query, key, _ = (x[:, :12, :, :12] for x in draw("compressed"))
  module = KINDS["compressed"].make(SIZES)
  variables = jax.jit(lambda: module.init(jax.random.key(0), query, key, key))()
  weights = jax.jit(lambda *a: compute_weights(partial(module.apply, variables), *a))(query, key)
  np.testing.assert_allclose(np.sum(weights, -1), 1, rtol=1e-5)
  np.testing.assert_allclose(weights[..., ::3], weights[..., 1::3])


def test_reformer_obeys_lengths_of_keys_alone():
  arrays = draw("reformer")
  lengths = jnp.array([LENGTH, LENGTH - 5])
  weights = weigh("reformer", *arrays[:2], Mask(key_lengths=lengths, query_lengths=jnp.full(2, LENGTH)))
  assert np.all(np.asarray(weights)[1, ..., LENGTH - 5 :] == 0) and np.any(np.asarray(weights)[0, ..., -1] != 0)


def test_reformer_has_a_finite_gradient_in_float16():
  query = jnp.zeros((1, 3, 1, 2), jnp.float16).at[0, 0].set(300)  # whose square is beyond float16
  buckets = jnp.zeros((1, 1, 1, 3), jnp.int32)
  loss = lambda q: jnp.sum(lsh_attention(q, query / 300, buckets, chunk=2).astype(jnp.float32))
  assert np.all(np.isfinite(jax.jit(jax.grad(loss))(query)))


# The others that take a bias are compared with one elsewhere.
@pytest.mark.parametrize("name", ["additive", "hard", "synthesizer", "random_synthesizer"])
def test_a_strong_bias_makes_every_token_look_at_itself(name):
  query, key, value = draw(name)
  strong = lambda queries, keys: 1e4 * make_alibi(HEADS)(queries, keys)
  attend = bind(name)
  out = jax.jit(lambda *a: attend(*a, Mask(), strong))(query, key, value)
  np.testing.assert_allclose(out, value, rtol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_says_what_does_not_fit(name):
  query, key, value = (jnp.zeros((1, LENGTH, n, 4)) for n in (3, 2, 2))
  attend = KINDS[name].make(SIZES)
  call = (lambda *a: attend.init_with_output(jax.random.key(0), *a)) if isinstance(attend, nn.Module) else attend
  with pytest.raises(ValueError, match="3 query heads share 2 key heads"):
    call(query, key, value, Mask())


def test_kinds_say_what_they_cannot():
  x = jnp.zeros((1, 4, 2, 4))
  segments = Mask.of_self(segments=jnp.zeros((1, 4), jnp.int32))
  bias = make_alibi(2)
  for name, kind in KINDS.items():
    attend = kind.make(Sizes(4, 4))
    call = (lambda *a: attend.init(jax.random.key(0), *a)) if isinstance(attend, nn.Module) else attend  # noqa: B023
    if not kind.biased:
      with pytest.raises(ValueError, match="bias"):
        call(x, x, x, Mask(), bias)
    if name in ("linformer", "sinkhorn", "compressed", "linear", "performer"):
      with pytest.raises(ValueError, match="segments"):
        call(x, x, x, segments)
    if name in ("local", "blockwise"):
      with pytest.raises(ValueError, match="a function of positions"):
        call(x, x, x, Mask(), jnp.zeros((1, 1, 4, 4)))
  with pytest.raises(ValueError, match="no causal form"):
    KINDS["linformer"].make(Sizes(4, 4)).init(jax.random.key(0), x, x, x, Mask(causal=True))
  with pytest.raises(ValueError, match="positions of its own"):
    positions = Mask.of_self(causal=True, positions=jnp.arange(4))
    KINDS["sinkhorn"].make(Sizes(4, 4)).init(jax.random.key(0), x, x, x, positions)
  with pytest.raises(ValueError, match="needs a window"):
    local_attention(x, x, x, Mask())
  with pytest.raises(ValueError, match="two heads or more"):
    strided_attention(x[:, :, :1], x[:, :, :1], x[:, :, :1], Mask(), stride=2)
