"""Heads read real places alone; pooling, spans and penalties against loops and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.lm.heads import PairHead, SentenceHead, SpanHead, SpanLogits, TokenHead, best_span, pool, span_loss
from mlnotes.lm.penalties import estimate_fisher, l2_sp

HIDDEN = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
LENGTHS = np.array([5, 2, 1])
OTHER = np.where((np.arange(5)[None] < LENGTHS[:, None])[..., None], HIDDEN, 99).astype(np.float32)


@pytest.mark.parametrize("how", ["first", "last", "mean", "max"])
def test_pooling_is_of_real_places(how):
  pick = {"first": lambda x: x[0], "last": lambda x: x[-1], "mean": lambda x: x.mean(0), "max": lambda x: x.max(0)}
  expected = [pick[how](row[:length]) for row, length in zip(HIDDEN, LENGTHS)]
  np.testing.assert_allclose(pool(jnp.asarray(OTHER), jnp.asarray(LENGTHS), how), expected, rtol=1e-5)
  empty = pool(jnp.asarray(HIDDEN), jnp.zeros(3, int), how)
  assert np.all(np.isfinite(empty)) and (how == "first" or not np.any(empty))
  grad = jax.grad(lambda x: jnp.sum(pool(x, jnp.zeros(3, int), how)))(jnp.asarray(HIDDEN))
  assert np.all(np.isfinite(grad))


@pytest.mark.parametrize("head, shape", [
  (SentenceHead(3, "mean", tanh=True), (3, 3)),
  (TokenHead(6), (3, 5, 6)),
  (SpanHead(), (3, 5)),
])  # fmt: skip
def test_padding_says_nothing(head, shape):
  lengths = () if isinstance(head, TokenHead) else (jnp.asarray(LENGTHS),)
  variables = head.init(jax.random.key(0), jnp.asarray(HIDDEN), *lengths)
  found, other = (head.apply(variables, jnp.asarray(x), *lengths) for x in (HIDDEN, OTHER))
  for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(other)):
    assert x.shape == shape and x.dtype == jnp.float32
    if isinstance(head, TokenHead):
      real = np.arange(5)[None] < LENGTHS[:, None]
      x, y = np.asarray(x)[real], np.asarray(y)[real]
    np.testing.assert_allclose(x, y, rtol=1e-5)


def test_pairs_know_their_order_unless_told_not_to():
  arrays = (jnp.asarray(HIDDEN), jnp.asarray(LENGTHS), jnp.asarray(HIDDEN[:, ::-1]), jnp.asarray(LENGTHS[::-1]))
  exchanged = (*arrays[2:], *arrays[:2])
  for ordered, features in ((True, 16), (False, 8)):
    head = PairHead(2, ordered=ordered)
    variables = head.init(jax.random.key(0), *arrays)
    assert variables["params"]["logits"]["kernel"].shape == (features, 2)
    assert np.allclose(head.apply(variables, *arrays), head.apply(variables, *exchanged), atol=1e-5) != ordered


def test_spans_against_all_pairs():
  start, end = np.random.default_rng(1).normal(size=(2, 4, 6)).astype(np.float32)
  end -= 5  # no place behind the text, of any logits, is better
  lengths = np.array([6, 4, 1, 6])
  hidden = ~(np.arange(6)[None] < lengths[:, None])
  start[hidden] = end[hidden] = -1e30
  logits = SpanLogits(jnp.asarray(start), jnp.asarray(end))
  for longest in (1, 3, 9):
    found = best_span(logits, longest)
    for b in range(4):
      pairs = {(i, j): start[b, i] + end[b, j] for i in range(6) for j in range(i, min(6, i + longest))}
      best = max(pairs, key=pairs.get)
      assert (int(found[0][b]), int(found[1][b])) == best and best[1] < lengths[b]
      np.testing.assert_allclose(found[2][b], pairs[best], rtol=1e-5)
  first, last = np.array([0, 1, 0, 2]), np.array([3, 2, 0, 5])
  total = lambda x, place: np.log(np.exp(x[~hidden[b]]).sum()) - x[place]
  loss = span_loss(logits, jnp.asarray(first), jnp.asarray(last))
  for b in range(4):
    np.testing.assert_allclose(loss[b], (total(start[b], first[b]) + total(end[b], last[b])) / 2, rtol=1e-4, atol=1e-6)
  with pytest.raises(ValueError, match="longest is 0"):
    best_span(logits, 0)


# -- penalties ---------------------------------------------------------------------------------------------------------


def test_the_penalty_is_the_distance_to_the_start_and_decay_of_what_is_new():
  start = {"body": {"kernel": jnp.array([[1.0, 2.0]]), "bias": jnp.array([0.5])}}
  params = {"body": {"kernel": jnp.array([[1.5, 0.0]]), "bias": jnp.array([0.5])}, "head": {"kernel": jnp.array([3.0])}}
  assert l2_sp(params, start, 0.4, 0.02) == pytest.approx(0.2 * (0.25 + 4) + 0.01 * 9)
  grad = jax.grad(lambda p: l2_sp(p, start, 0.4, 0.02))(params)
  np.testing.assert_allclose(grad["body"]["kernel"], [[0.2, -0.8]], rtol=1e-6)
  np.testing.assert_allclose(grad["head"]["kernel"], [0.06], rtol=1e-6)
  importance = {"body": {"kernel": jnp.array([[2.0, 0.5]]), "bias": jnp.array([7.0])}}
  assert l2_sp(params, start, 0.4, 0.0, importance) == pytest.approx(0.2 * (0.5 + 2))
  # Of the part that trains alone.
  assert l2_sp({"head": params["head"]}, start, 0.4, 0.02) == pytest.approx(0.09)
  with pytest.raises(ValueError, match=r"head/kernel has shape \(1,\), expected that of the start, \(2,\)"):
    l2_sp(params, {"head": {"kernel": jnp.ones(2)}})


def test_fisher_of_a_logistic_model_is_its_closed_form():
  """Labels drawn from the model: E[(dlog p / dw)^2] = sum_n x_n^2 p (1 - p) / N, in the mean over draws."""
  w = jnp.array([0.5, -1.0])
  x = np.repeat(np.random.default_rng(0).normal(size=(20, 2)), 400, 0).astype(np.float32)
  p = 1 / (1 + np.exp(-x @ np.asarray(w)))
  y = (np.random.default_rng(1).random(len(x)) < p).astype(np.float32)
  log_probability = lambda params, example: -jnp.logaddexp(0.0, (1 - 2 * example[1]) * (example[0] @ params["w"]))
  found = jax.jit(lambda: estimate_fisher(log_probability, {"w": w}, (jnp.asarray(x), jnp.asarray(y))))()
  np.testing.assert_allclose(found["w"], np.mean(x**2 * (p * (1 - p))[:, None], 0), rtol=0.05)
