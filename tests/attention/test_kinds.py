"""What every kind of attention promises: nothing of later tokens, 0 where nothing is seen, padding and cache exact."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.attention import KINDS, Mask, Sizes, compute_weights, make_alibi

LENGTH, HEADS, WIDTH = 13, 2, 8  # odd, and no multiple of the window
SIZES = Sizes(length=LENGTH, window=4, rank=6)
CAUSAL = [name for name, kind in KINDS.items() if kind.causal]
DECODING = [name for name, kind in KINDS.items() if kind.decodes]


def bind(name, arrays, mask, sizes=SIZES, train=False):
  """attend(query, key, value, mask, bias) of a kind, with parameters where it has some."""
  attend = KINDS[name].make(sizes)
  if not isinstance(attend, nn.Module):
    return attend
  variables = attend.init({"params": jax.random.key(7), "attention": jax.random.key(8)}, *arrays, mask)
  rngs = {stream: jax.random.key(i) for i, stream in enumerate(("attention", "features", "hash", "sorting"))}

  def run(query, key, value, mask=mask, bias=None):
    extra = ["intermediates", "centroids"] if train else ["intermediates"]
    return attend.apply(variables, query, key, value, mask, bias, train, rngs=rngs, mutable=extra)[0]

  return run


def draw(length=LENGTH, batch=2, heads=HEADS, kv_heads=HEADS, name="", seed=0):
  query, key, value = (
    jax.random.normal(k, (batch, length, n, WIDTH))
    for k, n in zip(jax.random.split(jax.random.key(seed), 3), (heads, kv_heads, kv_heads))
  )
  return query, query if name and KINDS[name].shared else key, value


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", CAUSAL)
def test_nothing_is_seen_of_later_tokens(name, train):
  """The Jacobian of output i by the inputs at j > i is exactly 0, with padding as well."""
  query, key, value = draw(name=name)
  mask = Mask.of_self(causal=True, lengths=jnp.array([LENGTH, LENGTH - 3]))
  attend = bind(name, (query, key, value), mask, train=train)

  def outputs(x):  # one number for each place, which hangs on all three
    q, k, v = query * x[:, :, None, None], key * x[:, :, None, None], value * x[:, :, None, None]
    return jnp.sum(attend(q, q if KINDS[name].shared else k, v, mask) * value, (2, 3))

  jacobian = np.asarray(jax.jit(jax.jacobian(outputs))(jnp.ones((2, LENGTH))))
  for b in range(2):
    of_example = jacobian[b][:, b]
    assert np.all(np.isfinite(of_example))
    assert np.all(np.triu(of_example, 1) == 0)
    assert np.any(np.tril(of_example, -1)[3:] != 0) or name == "hard"  # the test can fail
  assert np.all(jacobian[0][:, 1] == 0)


@pytest.mark.parametrize("name", KINDS)
def test_rows_that_see_nothing_are_zero_with_a_finite_gradient(name):
  arrays = draw(name=name)
  mask = Mask.of_self(lengths=jnp.array([LENGTH, 0]))
  attend = bind(name, arrays, mask)
  out, gradient = jax.jit(jax.value_and_grad(lambda a: jnp.sum(jnp.square(attend(*a, mask))), has_aux=False))(arrays)
  assert np.isfinite(out)
  assert np.all(np.asarray(jax.jit(lambda a: attend(*a, mask))(arrays))[1] == 0)
  for x in gradient:
    assert np.all(np.isfinite(x)) and np.all(np.asarray(x)[1] == 0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_what_stands_in_padding_does_not_matter(name, causal):
  if causal and not KINDS[name].causal:
    pytest.skip("no causal form")
  arrays = draw(name=name)
  real = LENGTH - 5
  mask = Mask.of_self(causal=causal, lengths=jnp.array([real, real]))
  attend = jax.jit(bind(name, arrays, mask), static_argnums=4)
  spoilt = tuple(x.at[:, real:].set(x[:, real:] * 30 + 7) for x in arrays)
  clean, dirty = attend(*arrays, mask, None), attend(*spoilt, mask, None)
  np.testing.assert_array_equal(clean[:, :real], dirty[:, :real])
  assert np.all(np.asarray(dirty)[:, real:] == 0)
  assert np.any(np.asarray(clean)[:, real - 1] != 0)


# Those whose sizes are those of the arrays choose by them: clusters take a share of all places.
@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("linformer", "routing")])
def test_more_padding_changes_nothing(name):
  short = draw(length=8, name=name)
  causal = KINDS[name].causal
  long = tuple(jnp.pad(x, [(0, 0), (0, LENGTH - 8), (0, 0), (0, 0)]) for x in short)
  masks = [Mask.of_self(causal=causal, lengths=jnp.array([6, 8])) for _ in range(2)]
  if name == "reformer":
    from mlnotes.attention import ReformerAttention

    make = lambda: ReformerAttention(4, 2, buckets=4)
    outs = [make().apply({}, *x, mask) for x, mask in zip((short, long), masks)]
  else:
    outs = [bind(name, long, masks[1])(*x, mask) for x, mask in zip((short, long), masks)]
  np.testing.assert_allclose(outs[0], outs[1][:, :8], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", DECODING)
def test_a_few_queries_behind_cached_keys_get_what_the_whole_sequence_gives(name):
  arrays = draw(name=name)
  mask = Mask(causal=KINDS[name].causal)
  attend = bind(name, arrays, mask)
  query, key, value = arrays
  whole = attend(query, key, value, mask)
  for start, stop in ((0, 5), (5, 6), (6, 13)):
    lengths = jnp.full(2, stop)
    mask = Mask(causal=True, key_lengths=lengths, query_positions=jnp.arange(start, stop))
    part = attend(query[:, start:stop], key, value, mask)
    np.testing.assert_allclose(part, whole[:, start:stop], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", KINDS)
def test_the_output_is_the_weights_times_the_values(name):
  arrays = draw(name=name)
  mask = Mask.of_self(lengths=jnp.array([LENGTH, 9]))
  attend = bind(name, arrays, mask)
  weights = compute_weights(attend, *arrays[:2], mask)
  assert weights.shape == (2, HEADS, LENGTH, LENGTH)
  if name == "compressed":  # mixes features
    return
  out = np.einsum("bnts,bsnd->btnd", np.asarray(weights, np.float64), np.asarray(arrays[2], np.float64))
  np.testing.assert_allclose(attend(*arrays, mask), out, rtol=1e-4, atol=1e-5)
  if name not in ("linformer", "routing", "sinkhorn"):
    np.testing.assert_allclose(np.sum(weights, -1)[0], 1, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if not kind.shared])
def test_groups_of_query_heads_share_a_head_of_keys(name):
  """Query head h uses key head h // 2, not h % 2."""
  query, key, value = draw(heads=4, kv_heads=2)
  mask = Mask()
  attend = bind(name, (query, key, value), mask)
  repeated = attend(query, jnp.repeat(key, 2, axis=2), jnp.repeat(value, 2, axis=2), mask)
  np.testing.assert_allclose(attend(query, key, value, mask), repeated, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", KINDS)
def test_half_precision_stays_half_and_near(name):
  arrays = draw(name=name)
  mask = Mask()
  attend = bind(name, arrays, mask)
  out = attend(*(x.astype(jnp.bfloat16) for x in arrays), mask)
  assert out.dtype == jnp.bfloat16
  if name not in ("hard", "reformer", "routing"):  # these choose
    np.testing.assert_allclose(out.astype(jnp.float32), attend(*arrays, mask), atol=0.12)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.biased])
def test_a_bias_counts(name):
  arrays = draw(name=name)
  mask = Mask.of_self(causal=True)
  attend = bind(name, arrays, mask)
  strong = lambda queries, keys: 40.0 * make_alibi(HEADS)(queries, keys)
  out = attend(*arrays, mask, strong)
  assert np.all(np.isfinite(out)) and not np.allclose(out, attend(*arrays, mask))


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_says_what_does_not_fit(name):
  query, key, value = draw(heads=3, kv_heads=2)
  attend = KINDS[name].make(SIZES)
  call = (lambda *a: attend.init_with_output(jax.random.key(0), *a)) if isinstance(attend, nn.Module) else attend
  with pytest.raises(ValueError, match=r"3 query heads share 2 key heads|are a multiple|two heads|not fit"):
    call(query, key, value, Mask())
