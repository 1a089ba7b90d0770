"""CTC against all paths written out, and against torch: loss, gradient, what is not feasible, decoding, alignment."""

import collections
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlnotes import sequence

FRAMES, CLASSES = 6, 4  # three labels and the blank


def collapse(path, blank=0):
  return tuple(label for label, _ in itertools.groupby(path) if label != blank)


def probabilities(logits):
  logits = np.asarray(logits, np.float64)
  y = np.exp(logits - logits.max(-1, keepdims=True))
  return y / y.sum(-1, keepdims=True)


@functools.cache
def every_path(length):
  """{labels: all paths of `length` frames that give them}."""
  found = collections.defaultdict(list)
  for path in itertools.product(range(CLASSES), repeat=length):
    found[collapse(path)].append(path)
  return {labels: np.array(paths, int).reshape(len(paths), length) for labels, paths in found.items()}


def path_probabilities(y, paths):
  return np.prod(y[np.arange(paths.shape[1]), paths], 1)


# All labels of up to three, with all lengths from zero frames on; the frames of a length are the same in all rows.
LABELS = [labels for n in range(4) for labels in itertools.product((1, 2, 3), repeat=n)]
ROWS = [(length, labels) for length in range(FRAMES + 1) for labels in LABELS]
LOGITS = 2 * np.random.default_rng(0).normal(size=(FRAMES + 1, FRAMES, CLASSES)).astype(np.float32)


def batch_of(rows):
  """(logits, lengths, labels, label_lengths); what is behind the lengths is NaN, and labels that are none."""
  logits = np.array([LOGITS[length] for length, _ in rows])
  lengths = np.array([length for length, _ in rows], np.int32)
  logits[np.arange(FRAMES)[None] >= lengths[:, None]] = np.nan
  labels = np.array([(*labels, 0, -7, 99)[:3] for _, labels in rows], np.int32)
  counts = np.array([len(labels) for _, labels in rows], np.int32)
  return tuple(map(jnp.asarray, (logits, lengths, labels, counts)))


def summed(logits, *rest, blank=0):
  found = sequence.ctc_loss(logits, *rest, blank=blank)
  return jnp.sum(found.losses), found


loss = jax.jit(sequence.ctc_loss, static_argnames="blank")
loss_and_grad = jax.jit(jax.value_and_grad(summed, has_aux=True))
greedy = jax.jit(sequence.ctc_greedy, static_argnames="blank")
beam = jax.jit(sequence.ctc_prefix_beam, static_argnames=("width", "max_labels"))


@pytest.fixture(scope="module")
def rows():
  """(loss, feasible, gradient) of every row."""
  (_, found), grads = loss_and_grad(*batch_of(ROWS))
  return np.asarray(found.losses), np.asarray(found.feasible), np.asarray(grads)


def test_loss_is_that_of_all_paths(rows):
  losses, feasible, _ = rows
  counted = 0
  for (length, labels), value, fits in zip(ROWS, losses, feasible):
    paths = every_path(length).get(labels)
    assert fits == (paths is not None)
    expected = (
      0 if paths is None else -math.log(path_probabilities(probabilities(LOGITS[length][:length]), paths).sum())
    )
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-6)
    counted += bool(fits)
  assert 100 < counted < len(ROWS) - 50  # some of both


def test_gradient_is_what_a_class_has_too_much(rows):
  """y - (share of the paths through that class at that frame), summed over classes 0; 0 in rows without a path."""
  _, feasible, grads = rows
  np.testing.assert_allclose(grads.sum(-1), 0, atol=1e-5)
  assert not np.any(grads[~feasible])
  for (length, labels), grad in zip(ROWS, grads):
    assert not np.any(grad[length:])
    paths = every_path(length).get(labels)
    if paths is None or not length:
      continue
    y = probabilities(LOGITS[length][:length])
    weights = path_probabilities(y, paths)
    through = np.einsum("n,ntk->tk", weights / weights.sum(), np.eye(CLASSES)[paths])
    np.testing.assert_allclose(grad[:length], y - through, atol=1e-5)


def test_equal_neighbours_need_a_frame_between_them():
  """ "11" in two frames has no path, where a finite loss with a gradient would raise no alarm."""
  logits = jnp.zeros((3, 3, CLASSES))
  labels = jnp.array([[1, 1], [1, 2], [1, 1]])
  found = loss(logits, jnp.array([2, 2, 3]), labels, None)
  np.testing.assert_array_equal(found.feasible, [False, True, True])
  np.testing.assert_allclose(found.losses, [0, 2 * math.log(4), 3 * math.log(4)], rtol=1e-6)


def test_optax_has_a_number_and_a_gradient_for_them():
  none = jnp.zeros((1, 2))
  of_optax = lambda logits: optax.ctc_loss(logits, none, jnp.ones((1, 2), int), none)[0]
  loss, grad = jax.jit(jax.value_and_grad(of_optax))(jnp.zeros((1, 2, 3)))
  assert float(loss) == pytest.approx(100_000, rel=1e-4) and np.any(grad)


def test_labels_that_are_none_have_no_path():
  labels = jnp.array([[0, 1], [4, 1], [-1, 1], [1, 0], [1, 4]])
  feasible = sequence.ctc_feasible(jnp.full(5, 6), labels, jnp.array([2, 2, 2, 1, 1]), CLASSES)
  np.testing.assert_array_equal(feasible, [False, False, False, True, True])


def test_empty_arrays_have_a_loss():
  none = jnp.zeros((1, 0), jnp.int32)
  found = loss(jnp.zeros((1, 0, CLASSES)), None, none, None)
  assert found.losses[0] == 0 and found.feasible[0]
  found = loss(jnp.zeros((1, 2, CLASSES)), None, none, None)
  np.testing.assert_allclose(found.losses, 2 * math.log(4), rtol=1e-6)


def test_sure_alignments_are_not_below_zero():
  """Rounding in float32 brings optax's own below: of many the least is 0, and the gradient stays."""
  path = np.random.default_rng(1).integers(0, CLASSES, (64, 200))
  labels, counts = jax.jit(sequence.ctc_collapse)(path.astype(np.int32))
  sharp = np.linspace(8, 40, 64)[:, None, None]
  logits = jnp.asarray(sharp * np.eye(CLASSES)[path], jnp.float32)
  (_, found), grad = loss_and_grad(logits, None, labels, counts)
  assert float(jnp.min(found.losses)) >= 0 and float(jnp.max(found.losses)) < 1
  assert np.count_nonzero(np.any(grad, (1, 2))) > 20


def test_unlikely_labels_are_not_cut():
  """Labels whose every path is far below exp(-1e5), as with large logits, have their own loss and gradient."""
  logits = jnp.zeros((1, 200, CLASSES)).at[..., 0].set(5000.0)
  (value, _), grad = loss_and_grad(logits, None, jnp.full((1, 90), 1), None)
  # 90 labels and 89 blanks between them; 21 blanks are left, which cost nothing, for 91 places.
  np.testing.assert_allclose(value, 90 * 5000 - math.log(math.comb(111, 21)), rtol=3e-6)
  assert float(jnp.min(grad)) < -0.5


def test_classes_that_are_ruled_out():
  """Logits of -inf: where other labels are, nothing happens; where the label is, the loss is infinite as in theory."""
  logits = jnp.zeros((2, 3, CLASSES)).at[:, :, 2].set(-jnp.inf)
  (_, found), grad = loss_and_grad(logits, None, jnp.array([[1], [2]]), None)
  np.testing.assert_allclose(found.losses, [-math.log(6 / 27), np.inf], rtol=1e-6)
  assert bool(jnp.all(jnp.isfinite(grad[0])))


def test_the_blank_may_be_any_class():
  rows = [row for row in ROWS if row[0] == 5]
  logits, lengths, labels, counts = batch_of(rows)
  order = np.array([3, 1, 2, 0])  # blank and label 3 change places
  other = loss(logits[..., order], lengths, order[np.clip(labels, 0, 3)], counts, blank=3)
  same = loss(logits, lengths, labels, counts)
  np.testing.assert_allclose(other.losses, same.losses, rtol=1e-6)
  moved, usual = (greedy(x, np.full(7, 6), blank=b)[0] for x, b in ((LOGITS[..., order], 3), (LOGITS, 0)))
  np.testing.assert_array_equal(order[moved], usual)


def test_half_precision_is_summed_in_single():
  rows = [row for row in ROWS if row[0] == 5]
  logits, *rest = batch_of(rows)
  half = jnp.asarray(logits, jnp.bfloat16)
  losses = [loss(x, *rest).losses for x in (half, np.asarray(half, np.float32))]
  assert losses[0].dtype == jnp.float32
  np.testing.assert_array_equal(*losses)


# -- decoding ----------------------------------------------------------------------------------------------------------


def test_a_blank_between_repeats_keeps_both():
  paths = jnp.array([[1, 1, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 2, 2, 3]])
  labels, counts = sequence.ctc_collapse(paths)
  np.testing.assert_array_equal(labels, [[1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [0] * 5, [1, 2, 3, 0, 0]])
  np.testing.assert_array_equal(counts, [2, 1, 0, 3])


def test_greedy_is_the_likeliest_path():
  lengths = jnp.array([6, 4, 0, 1, 2, 5, 3])
  labels, counts = greedy(LOGITS, lengths)
  for logits, length, row, count in zip(LOGITS, lengths, np.asarray(labels), counts):
    expected = collapse(logits[:length].argmax(-1))
    assert tuple(row[:count]) == expected and not np.any(row[count:])


def test_a_wide_beam_finds_what_all_paths_say():
  """Of every length all prefixes and their probabilities, in order; distinct, the rest of the beam empty."""
  found = jax.tree.map(np.asarray, beam(LOGITS[:5, :4], np.arange(5), width=200))
  for length in range(5):
    y = probabilities(LOGITS[length][:length])
    expected = {k: path_probabilities(y, paths).sum() for k, paths in every_path(length).items()}
    count = len(expected)
    assert np.all(found.lengths[length, count:] == -1) and np.all(found.scores[length, count:] == -np.inf)
    prefixes = [tuple(row[:n]) for row, n in zip(found.labels[length, :count], found.lengths[length, :count])]
    assert set(prefixes) == set(expected)
    np.testing.assert_allclose(np.exp(found.scores[length, :count]), [expected[p] for p in prefixes], rtol=1e-4)
    assert np.all(np.diff(found.scores[length, :count]) <= 0)


def test_a_narrow_beam_merges_paths_that_greedy_keeps_apart():
  """Two frames, p(blank) = .6, p(1) = .4: the likeliest path is blank, the likeliest label 1 (.64 against .36)."""
  logits = np.log(np.float32([[[0.6, 0.4], [0.6, 0.4]]]))
  assert int(greedy(logits)[1][0]) == 0
  found = jax.tree.map(np.asarray, beam(logits, width=2))
  assert int(found.lengths[0, 0]) == 1 and int(found.labels[0, 0, 0]) == 1
  np.testing.assert_allclose(np.exp(found.scores[0]), [0.64, 0.36], rtol=1e-5)


def test_a_beam_of_one_follows_one_hot_frames():
  path = np.random.default_rng(2).integers(0, CLASSES, (20, 12))
  path[0, :5] = (1, 1, 0, 1, 1)
  logits, lengths = jnp.asarray(50.0 * np.eye(CLASSES)[path], jnp.float32), jnp.arange(20) % 13
  labels, counts = greedy(logits, lengths)
  for width in (1, 3):
    found = beam(logits, lengths, width=width)
    np.testing.assert_array_equal(found.labels[:, 0], labels)
    np.testing.assert_array_equal(found.lengths[:, 0], counts)


def test_scores_are_bounds_that_a_wide_beam_reaches():
  """The score of what is returned is at most its probability by the loss, which counts all paths."""
  logits, lengths = jnp.asarray(np.random.default_rng(3).normal(size=(20, 12, CLASSES)), jnp.float32), jnp.full(20, 12)
  for width in (3, 100):
    found = beam(logits, lengths, width=width)
    exact = -loss(logits, None, found.labels[:, 0], found.lengths[:, 0]).losses
    assert np.all(found.scores[:, 0] <= exact + 1e-4)
  np.testing.assert_allclose(found.scores[:, 0], exact, atol=0.2)


def test_no_prefix_is_longer_than_asked():
  logits = jnp.asarray(50.0 * np.eye(CLASSES)[[[1, 2, 3, 1]]], jnp.float32)
  found = beam(logits, width=4, max_labels=2)
  assert found.labels.shape == (1, 4, 2) and int(jnp.max(found.lengths)) == 2
  with pytest.raises(ValueError, match="width is 0"):
    beam(logits, width=0)


# -- alignment ---------------------------------------------------------------------------------------------------------


def test_the_alignment_is_the_likeliest_of_all_paths(rows):
  found = jax.jit(sequence.ctc_align)(*batch_of(ROWS))
  for (length, labels), path, score in zip(ROWS, np.asarray(found.path), found.log_probability):
    paths = every_path(length).get(labels)
    assert not np.any(path[length:])
    if paths is None:
      assert not np.any(path) and score == -np.inf
      continue
    best = path_probabilities(probabilities(LOGITS[length][:length]), paths)
    assert collapse(path[:length]) == labels
    np.testing.assert_allclose(np.exp(score), best.max(), rtol=1e-4)
    assert tuple(path[:length]) == tuple(paths[best.argmax()])
