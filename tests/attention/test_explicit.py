"""Every kind against its definition in loops over float64 NumPy arrays: values, and gradients by central differences.

The references know nothing of blocks or of masks as words: who sees whom is a matrix, filled in one entry after the
other.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes import attention as kinds
from mlnotes.attention import Mask

BATCH, LENGTH, HEADS, GROUPS, WIDTH = 2, 11, 4, 2, 4
LENGTHS = (LENGTH, 8)
NOISE = np.random.default_rng(0)
ARRAYS = tuple(NOISE.normal(size=(BATCH, LENGTH, n, WIDTH)) for n in (HEADS, GROUPS, GROUPS))
WEIGHT = NOISE.normal(size=(BATCH, LENGTH, HEADS, WIDTH))
SLOPES = 2.0 ** -np.array([2, 4, 6, 8])


def mask_of(causal):
  return Mask.of_self(causal=causal, lengths=jnp.array(LENGTHS))


def matrix(allowed, causal=False):
  """(B, N, T, S): allowed(head, i, j), padding and, where asked for, later tokens left out."""
  seen = np.zeros((BATCH, HEADS, LENGTH, LENGTH), bool)
  for b, h, i, j in np.ndindex(seen.shape):
    seen[b, h, i, j] = i < LENGTHS[b] and j < LENGTHS[b] and (j <= i or not causal) and allowed(h, i, j)
  return seen


def softmax(scores, seen):
  """Of one row."""
  weights = np.zeros(len(scores))
  if np.any(seen):
    powers = np.exp(scores[seen] - np.max(scores[seen]))
    weights[seen] = powers / np.sum(powers)
  return weights


def weigh(scores, seen, v):
  """Row by row; query head h sees head h // 2 of the values."""
  out = np.zeros((BATCH, seen.shape[2], HEADS, v.shape[-1]))
  for b, h, i in np.ndindex(seen.shape[:3]):
    out[b, i, h] = softmax(scores[b, h, i], seen[b, h, i]) @ v[b, :, h * v.shape[2] // HEADS]
  return out


def dot_scores(q, k):
  k = np.stack([k[:, :, h * k.shape[2] // HEADS] for h in range(HEADS)], 2)
  return np.einsum("bihc,bjhc->bhij", q, k) / np.sqrt(q.shape[-1])


def by_matrix(seen, slopes=0 * SLOPES):
  apart = np.abs(np.subtract.outer(np.arange(LENGTH), np.arange(LENGTH)))
  return lambda p, q, k, v: weigh(dot_scores(q, k) - slopes[None, :, None, None] * apart, seen, v)


def agree(attend, reference, mask, bias=None, arrays=ARRAYS, params=None, weight=WEIGHT):
  """Values, and the derivative of a random projection along a random direction of each array and each parameter."""
  variables = {}
  if isinstance(attend, nn.Module):
    module = attend
    as_jax = [jnp.asarray(x, jnp.float32) for x in arrays]
    variables = dict(jax.jit(lambda: module.init(jax.random.key(1), *as_jax, mask))())
    attend = lambda p, *a: module.apply({**variables, "params": p}, *a, mask, bias)
    params = params or jax.tree.map(np.asarray, variables.get("params", {}))
    rest = {name: jax.tree.map(np.asarray, value) for name, value in variables.items() if name != "params"}
    solve = (lambda p, *a: reference({**p, **rest}, *a)) if rest else reference
  else:
    function, params, solve = attend, {}, reference
    attend = lambda p, *a: function(*a, mask, bias) if bias else function(*a, mask)

  loss = lambda p, a: (lambda out: (jnp.sum(out * weight), out))(attend(p, *a))
  single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (params, tuple(arrays)))
  (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(*single)
  point = jax.tree.map(lambda x: np.asarray(x, np.float64), single)
  np.testing.assert_allclose(out, solve(point[0], *point[1]), atol=1e-5)

  leaves, tree = jax.tree.flatten(point)
  for n, grad in enumerate(jax.tree.leaves(grads)):
    direction = np.random.default_rng(n).normal(size=grad.shape)

    def moved(step, n=n, direction=direction):
      p, a = tree.unflatten([x + step * direction if i == n else x for i, x in enumerate(leaves)])
      return np.sum(solve(p, *a) * weight)

    slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
    scale = max(np.linalg.norm(grad) * np.linalg.norm(direction), 1)
    assert abs(np.sum(np.asarray(grad, np.float64) * direction) - slope) < 1e-5 * scale, n


def windowed(attend, window, **options):
  return lambda q, k, v, mask, bias=None: attend(q, k, v, mask.replace(window=window), bias, **options)


def near(window):
  return lambda h, i, j: abs(i - j) < window


PATTERNS = {
  "dense": (kinds.dot_product_attention, lambda h, i, j: True),
  "blockwise, window": (windowed(kinds.blockwise_attention, 5, block=3), near(5)),
  "local": (windowed(kinds.local_attention, 3), near(3)),
  "local, longer than the sequence": (windowed(kinds.local_attention, 10**9), lambda h, i, j: True),
  "strided": (
    lambda *a: kinds.strided_attention(*a, stride=3),
    lambda h, i, j: abs(i - j) < 3 if h % 2 == 0 else (i - j) % 3 == 0,
  ),
  "strided, longer than the sequence": (
    lambda *a: kinds.strided_attention(*a, stride=10**9), lambda h, i, j: h % 2 == 0 or i == j
  ),
  "global": (windowed(kinds.global_attention, 3, tokens=2), lambda h, i, j: abs(i - j) < 3 or min(i, j) < 2),
}  # fmt: skip


@pytest.mark.parametrize(
  "name, causal",
  [(name, causal) for name in PATTERNS for causal in (False, True) if "longer" not in name or not causal],
)
def test_patterns(name, causal):
  attend, allowed = PATTERNS[name]
  agree(attend, by_matrix(matrix(allowed, causal), SLOPES), mask_of(causal), kinds.make_alibi(HEADS))


def test_blocks_agree_with_the_matrix_at_4096_tokens():
  query, key, value, weight = jax.random.normal(jax.random.key(3), (4, 1, 4096, 1, 16))
  mask = Mask.of_self(causal=True, lengths=jnp.array([4001]))

  @partial(jax.jit, static_argnums=0)
  def values_and_gradients(attend, *arrays):
    out, pull = jax.vjp(lambda *x: attend(*x, mask), *arrays)
    return out, *pull(weight)

  found = [values_and_gradients(x, query, key, value) for x in (kinds.blockwise_attention, kinds.dot_product_attention)]
  for ours, dense in zip(*found):
    np.testing.assert_allclose(ours, dense, atol=1e-5)


def rounds_of(buckets, chunk, causal):
  """(R, B, N, T, T): which pairs a round of hashing shows."""
  shown = np.zeros((*buckets.shape, LENGTH), bool)
  for r, b, h in np.ndindex(buckets.shape[:3]):
    of = buckets[r, b, h]
    row = sorted(range(LENGTHS[b]), key=lambda i: (of[i], i))
    for i in row:
      for j in row:
        chunks_apart = row.index(i) // chunk - row.index(j) // chunk
        between = sum(of[m] == of[i] and j <= m < i for m in range(LENGTH))
        in_reach = j <= i and between <= chunk if causal else chunks_apart in (0, 1)
        shown[r, b, h, i, j] = of[i] == of[j] and in_reach
  return shown


@pytest.mark.parametrize("chunk, buckets, causal", [(3, 3, False), (3, 2, True), (LENGTH + 2, 1, False)])
def test_reformer(chunk, buckets, causal):
  """One bucket and one chunk: dense attention with shared keys of norm 1, but for oneself."""
  found = np.random.default_rng(1).integers(0, buckets, (2, BATCH, HEADS, LENGTH))
  seen = np.any(rounds_of(found, chunk, causal), 0)
  for b, h, i in np.ndindex(seen.shape[:3]):
    if np.sum(seen[b, h, i]) > 1:
      seen[b, h, i, i] = False
  assert buckets > 1 or np.sum(seen[0, 0]) == LENGTH * (LENGTH - 1)

  def reference(p, q, v):
    return weigh(dot_scores(q, q / np.linalg.norm(q, axis=-1, keepdims=True)) * np.sqrt(WIDTH), seen, v)

  value = np.repeat(ARRAYS[2], 2, axis=2)
  attend = lambda q, v, mask: kinds.lsh_attention(q, v, jnp.asarray(found), mask, chunk=chunk)
  agree(attend, reference, mask_of(causal), arrays=(ARRAYS[0], value))


def test_hashes_are_the_nearest_of_random_directions_and_their_opposites():
  x = jax.random.normal(jax.random.key(0), (1, 50, 1, 4))
  found = kinds.hash_tokens(jax.random.key(1), x, 6, 2)
  rotation = np.asarray(jax.random.normal(jax.random.key(1), (2, 4, 3)))
  for r, i in np.ndindex(2, 50):
    turned = np.asarray(x)[0, i, 0] @ rotation[r]
    assert found[r, 0, 0, i] == np.argmax([*turned, *-turned])
  np.testing.assert_array_equal(kinds.hash_tokens(jax.random.key(1), 3 * x, 6, 2), found)
  with pytest.raises(ValueError, match="1 or an even number"):
    kinds.hash_tokens(jax.random.key(1), x, 3, 1)


@pytest.mark.parametrize("clusters, size, causal", [(3, 4, False), (3, 4, True), (1, LENGTH, False)])
def test_routing(clusters, size, causal):
  """One cluster of all is dense attention of normalised queries and keys."""

  def unit(x):
    x = x - np.mean(x, -1, keepdims=True)
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-6)

  start = {}

  def reference(p, q, k, v):
    center = np.asarray(p["centroids"]["centroids"], np.float64)
    q, k, v = unit(q), np.repeat(unit(k), 2, axis=2), np.repeat(v, 2, axis=2)
    if not start:  # who belongs where has no derivative
      for b, h, c in np.ndindex(BATCH, HEADS, clusters):
        nearest = lambda x: sorted(range(LENGTHS[b]), key=lambda i: -x[b, i, h] @ center[h, c])[:size]  # noqa: B023
        start[b, h, c] = nearest(q), nearest(k)
    out, times = np.zeros(WEIGHT.shape), np.zeros(WEIGHT.shape[:3])
    for (b, h, _), (queries, keys) in start.items():
      for i in queries:
        seen = np.array([j in keys and (j <= i or not causal) for j in range(LENGTH)])
        out[b, i, h] += softmax(k[b, :, h] @ q[b, i, h] / np.sqrt(WIDTH), seen) @ v[b, :, h]
        times[b, i, h] += 1
    return out / np.maximum(times, 1)[..., None]

  agree(kinds.RoutingAttention(clusters, size), reference, mask_of(causal))


@pytest.mark.parametrize("causal", [False, True])
def test_sinkhorn(causal):
  block, iterations = 3, 4

  def reference(p, q, k, v):
    out = np.zeros(WEIGHT.shape)
    for b, h in np.ndindex(BATCH, HEADS):
      real = np.arange(12) < LENGTHS[b]
      count = -(-LENGTHS[b] // block)  # blocks with something in them
      keys, values = (np.pad(x[b, : LENGTHS[b], h // 2], [(0, 12 - LENGTHS[b]), (0, 0)]) for x in (k, v))
      keys, values = (x.reshape(4, block, -1)[:count] for x in (keys, values))
      sums = np.sum(keys, 1)
      if causal:
        sums = np.stack([np.sum(sums[:m], 0) for m in range(count)])
      order = np.exp((sums @ p["sort"]["kernel"] + p["sort"]["bias"])[:, :count] / 0.75)
      if causal:
        order = np.tril(order, -1)
        order = order / np.maximum(np.sum(order, 1, keepdims=True), 1e-300)
      for _ in range(0 if causal else iterations):
        order = order / np.sum(order, 1, keepdims=True)
        order = order / np.sum(order, 0, keepdims=True)
      for i in range(LENGTHS[b]):
        m = i // block
        near, far = np.arange(m * block, (m + 1) * block), np.einsum("n,nwc->wc", order[m], keys)
        own = real[near] & (near <= i if causal else True)
        brought = np.full(block, m > 0 or not causal)
        scores = np.concatenate([keys[m], far]) @ q[b, i, h] / np.sqrt(WIDTH)
        there = np.concatenate([values[m], np.einsum("n,nwc->wc", order[m], values)])
        out[b, i, h] = softmax(scores, np.concatenate([own, brought])) @ there
    return out

  agree(kinds.SinkhornAttention(4, block, iterations=iterations), reference, mask_of(causal))


@pytest.mark.parametrize("identity", [False, True])
def test_linformer(identity):
  """With the unit matrix for E and F it is dense attention; of padding the mixed keys and values are 0, but counted."""

  def reference(p, q, k, v):
    zero = lambda x: np.where(np.arange(LENGTH)[None, :, None, None] < np.array(LENGTHS)[:, None, None, None], x, 0)
    mix = lambda m, x: np.einsum("rs,bshc->brhc", m, zero(x))
    k, v = mix(p["E"], k), mix(p["F"], v)
    seen = np.zeros((BATCH, HEADS, LENGTH, k.shape[1]), bool)
    for b, h, i, r in np.ndindex(seen.shape):
      seen[b, h, i, r] = i < LENGTHS[b]
    return weigh(dot_scores(q, k), seen, v)

  params = {"E": np.eye(LENGTH), "F": np.eye(LENGTH)} if identity else None
  module = kinds.LinformerAttention(LENGTH, LENGTH if identity else 3)
  agree(module, reference, mask_of(False), params=params)
  if identity:
    arrays = [jnp.asarray(x, jnp.float32) for x in ARRAYS]
    out = module.apply({"params": jax.tree.map(jnp.asarray, params)}, *arrays)
    np.testing.assert_allclose(out, kinds.dot_product_attention(*arrays), atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_compressed(causal):
  def reference(p, q, k, v):
    zero = lambda x: np.where(np.arange(LENGTH)[None, :, None, None] < np.array(LENGTHS)[:, None, None, None], x, 0)

    def shrink(kernel, x):
      x, out = zero(x), np.zeros((BATCH, -(-LENGTH // 3), GROUPS, WIDTH))
      for m, s in np.ndindex(out.shape[1], 3):
        if 3 * m + s < LENGTH:
          out[:, m] += x[:, 3 * m + s] @ kernel[s]
      return out

    seen = np.zeros((BATCH, HEADS, LENGTH, -(-LENGTH // 3)), bool)
    for b, h, i, m in np.ndindex(seen.shape):
      seen[b, h, i, m] = i < LENGTHS[b] and (3 * m + 2 <= i if causal else 3 * m < LENGTHS[b])
    return weigh(dot_scores(q, shrink(p["key"], k)), seen, shrink(p["value"], v))

  agree(kinds.CompressedAttention(), reference, mask_of(causal))


def by_kernel(of_query, of_key, causal):
  """phi(q_i) . phi(k_j) over their sum."""

  def reference(p, q, k, v):
    weights = np.einsum("bihm,bjhm->bhij", of_query(q), np.repeat(of_key(k), 2, axis=2))
    weights = weights * matrix(lambda h, i, j: True, causal)
    weights = weights / np.maximum(np.sum(weights, -1, keepdims=True), 1e-300)
    return np.einsum("bhij,bjhc->bihc", weights, np.repeat(v, 2, axis=2))

  return reference


@pytest.mark.parametrize("causal", [False, True])
def test_linear(causal):
  phi = lambda x: np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))
  attend = lambda *a: kinds.linear_attention(*a, chunk=4)
  agree(attend, by_kernel(phi, phi, causal), mask_of(causal))


@pytest.mark.parametrize("causal", [False, True])
def test_performer(causal):
  """The stabilizers are constants: they move neither the values by more than epsilon does, nor the gradients."""
  projection = np.asarray(kinds.draw_projection(jax.random.key(0, impl="threefry2x32"), 6, WIDTH), np.float64)

  def exponents(x):
    x = x / WIDTH**0.25
    return x @ projection.T - np.sum(x * x, -1, keepdims=True) / 2

  arrays = [x.astype(np.float32).astype(np.float64) for x in ARRAYS]
  top_query = np.max(exponents(arrays[0]), -1, keepdims=True)
  of_keys, real = exponents(arrays[1]), np.arange(LENGTH)[None] < np.array(LENGTHS)[:, None]
  top_key = 0 if causal else np.max(np.where(real[..., None, None], of_keys, -1e9), (1, 3), keepdims=True)
  of_query = lambda x: np.exp(exponents(x) - top_query) / np.sqrt(6) + 1e-4
  of_key = lambda x: np.exp(exponents(x) - top_key) / np.sqrt(6) + 1e-4
  agree(kinds.PerformerAttention(6, chunk=4), by_kernel(of_query, of_key, causal), mask_of(causal))


@pytest.mark.parametrize("form, causal", [("dense", True), ("random", False)])
def test_synthesizer(form, causal):
  seen = matrix(lambda h, i, j: True, causal)

  def reference(p, q, k, v):
    if form == "random":
      scores = np.broadcast_to(p["matrix"][None], (BATCH, HEADS, LENGTH + 2, LENGTH + 2))
    else:
      hidden = np.maximum(q @ p["widen"]["kernel"] + p["widen"]["bias"], 0)
      scores = np.moveaxis(hidden @ p["scores"]["kernel"] + p["scores"]["bias"], 2, 1)
    return weigh(scores[:, :, :LENGTH, :LENGTH], seen, v)

  agree(kinds.SynthesizerAttention(LENGTH + 2, form), reference, mask_of(causal))


def test_additive():
  seen = matrix(lambda h, i, j: True, causal=True)

  def reference(p, q, k, v):
    scores = np.zeros(seen.shape)
    for h, i in np.ndindex(HEADS, LENGTH):
      hidden = np.tanh((q[:, i, h] @ p["query"]["kernel"])[:, None] + k[:, :, h // 2] @ p["key"]["kernel"])
      scores[:, h, i] = hidden @ p["v"]
    return weigh(scores, seen, v)

  agree(kinds.AdditiveAttention(5), reference, mask_of(True))


def test_hard_attention_takes_the_likeliest_place():
  seen = matrix(lambda h, i, j: True, True)

  def reference(p, q, k, v):
    scores, chosen = dot_scores(q, k), np.zeros(seen.shape, bool)
    for b, h, i in np.ndindex(seen.shape[:3]):
      if np.any(seen[b, h, i]):
        chosen[b, h, i, np.argmax(np.where(seen[b, h, i], scores[b, h, i], -1e9))] = True
    return weigh(0 * scores, chosen, v)

  agree(lambda *a: kinds.sample_hard_attention(None, *a)[0], reference, mask_of(True))


def test_the_gradient_of_reinforce_is_that_of_the_expected_reward():
  """Mean over draws of reward times the gradient of the log-probability, against the sum over all places."""
  query, key, value = (jnp.asarray(NOISE.normal(size=(1, n, 1, 2)), jnp.float32) for n in (1, 3, 3))

  def surrogate(query, rng):
    out, log_probability = kinds.sample_hard_attention(rng, query, key, value)
    reward = jax.lax.stop_gradient(jnp.sum(out**2))
    return jnp.sum(log_probability) * reward

  expected = lambda query: jnp.sum(
    jax.nn.softmax(jnp.einsum("bihc,bjhc->j", query, key) / jnp.sqrt(2.0)) * jnp.sum(value[0, :, 0] ** 2, -1)
  )
  draws = jax.jit(jax.vmap(jax.grad(surrogate), (None, 0)))(query, jax.random.split(jax.random.key(3), 20000))
  error = np.std(draws, 0) / np.sqrt(20000)
  np.testing.assert_array_less(np.abs(np.mean(draws, 0) - jax.grad(expected)(query)), 4 * error)
  # Exactly: the log-probability of each place that was drawn is that of the softmax.
  out, log_probability = jax.vmap(lambda rng: kinds.sample_hard_attention(rng, query, key, value))(
    jax.random.split(jax.random.key(4), 64)
  )
  logs = jax.nn.log_softmax(jnp.einsum("bihc,bjhc->j", query, key) / jnp.sqrt(2.0))
  place = np.argmin(np.sum((np.asarray(out)[:, 0, 0] - np.asarray(value)[:, :, 0]) ** 2, -1), 1)
  assert set(place) == {0, 1, 2}
  np.testing.assert_allclose(np.ravel(log_probability), logs[place], rtol=1e-5)


def test_sorting_converges_to_a_doubly_stochastic_matrix():
  logits = jax.random.normal(jax.random.key(0), (3, 5, 5))
  few, many = (kinds.sinkhorn(logits, n) for n in (2, 100))
  off = lambda x: np.max(np.abs(np.sum(x, -1) - 1))
  np.testing.assert_allclose(np.sum(many, -2), 1, atol=1e-5)
  assert off(many) < 1e-5 < off(few)


def test_performers_kernel_is_unbiased_with_the_variance_that_its_authors_derive():
  """Of exp(q . k / sqrt(H)) for q at right angles to k. Lemma 2: independent directions have the variance
  (exp(s) - 1) / m, s = |q|^2 + |k|^2 scaled. Theorem 2: orthogonal ones have less by at least
  2 (m - 1) / (m (H + 2)) (1 - exp(-s / 2))^2.
  """
  x = jnp.sqrt(0.35) * jnp.array([[1.0, 1, 0, 0], [0, 0, 1, 1]])

  def estimates(orthogonal, features):
    def draw(key):
      w = kinds.draw_projection(key, features, 4, orthogonal)
      of_q, of_k = kinds.softmax_features(x[None, :, None], w, epsilon=0.0)[0, :, 0]
      return of_q @ of_k

    return np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(features), 20000)), np.float64)

  independent, orthogonal, many = estimates(False, 4), estimates(True, 4), estimates(False, 64)
  for found in (independent, orthogonal, many):
    assert abs(np.mean(found) - 1) < 4 * np.std(found) / np.sqrt(20000)
  variance = (np.exp(0.7) - 1) / 4
  np.testing.assert_allclose([np.var(independent), 16 * np.var(many)], variance, rtol=0.08)
  assert np.var(orthogonal) < variance - 0.5 * 2 * 3 / (4 * 6) * (1 - np.exp(-0.35)) ** 2
