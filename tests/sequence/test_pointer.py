"""The pointer network: its equation by hand, who may be pointed at, decoding as in training, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.sequence import PointerNetwork

POINTS = jax.random.normal(jax.random.key(0), (3, 5, 2))
COUNTS = jnp.array([5, 3, 4])
TARGETS = jnp.array([[2, 0, 4, 5, -1, -1], [1, 2, 0, 5, -1, -1], [0, 3, 1, 2, 5, -1]])


@pytest.fixture(scope="module")
def build(draw_variables):
  """(network, its variables, what it computes, compiled)."""

  def build(encoder, **flags):
    module = PointerNetwork(8, encoder, depth=1, heads=2, **flags)
    return module, draw_variables(module, POINTS, COUNTS, TARGETS), jax.jit(module.apply)

  return build


@pytest.fixture(scope="module", params=["transformer", "lstm", "bilstm"])
def network(request, build):
  return build(request.param, glimpse=request.param == "lstm")


def allowed(logits):
  return np.asarray(logits) > -1e8


def test_no_input_is_pointed_at_twice_and_no_padding(network):
  _, params, apply = network
  may = allowed(apply(params, POINTS, COUNTS, TARGETS))
  assert may.shape == (3, 6, 6)
  for row, (targets, count) in enumerate(zip(np.asarray(TARGETS), COUNTS)):
    visited = set()
    for step in range(6):
      expected = [j < count and j not in visited for j in range(5)]
      assert list(may[row, step, :5]) == expected
      assert may[row, step, 5] == bool(visited)  # the end, not before there is an answer
      visited |= {int(targets[step])} - {-1, 5}


def test_a_tour_ends_where_all_was_visited_and_not_before(build):
  module, params, apply = build("lstm", visits_all=True)
  may = allowed(apply(params, POINTS, COUNTS, TARGETS))
  np.testing.assert_array_equal(may[1, :, 5], [False, False, False, True, True, True])
  np.testing.assert_array_equal(may[2, :, 5], [False, False, False, False, True, True])
  decoded = np.asarray(jax.jit(lambda p: module.apply(p, POINTS, COUNTS, method="decode"))(params))
  for said, count in zip(decoded, COUNTS):
    assert sorted(said[:count]) == list(range(count)) and said[count] == 5 and np.all(said[count + 1 :] == -1)


def test_decoding_takes_the_likeliest_of_what_training_computes(network):
  """Step by step from its own answers, and all at once with these as targets."""
  module, params, apply = network
  decoded = jax.jit(lambda params: module.apply(params, POINTS, COUNTS, method="decode"))(params)
  logits = apply(params, POINTS, COUNTS, decoded)
  said = np.asarray(decoded)
  np.testing.assert_array_equal(np.where(said < 0, -1, np.asarray(logits).argmax(-1)), said)
  for row in said:
    inputs = [i for i in row if i not in (-1, 5)]
    assert len(set(inputs)) == len(inputs) >= 1
    assert list(row[len(inputs) : len(inputs) + 1]) in ([5], []) and np.all(row[len(inputs) + 1 :] == -1)


def test_answers_go_by_the_targets_before_and_not_by_later_ones(network):
  _, params, apply = network
  logits, other = (apply(params, POINTS, COUNTS, t) for t in (TARGETS, TARGETS.at[0, 2].set(1)))
  np.testing.assert_array_equal(logits[0, :3], other[0, :3])
  assert not np.allclose(logits[0, 3], other[0, 3])
  np.testing.assert_array_equal(logits[1:], other[1:])


def test_padding_changes_nothing(network):
  _, params, apply = network
  logits = apply(params, POINTS, COUNTS, TARGETS)
  np.testing.assert_allclose(apply(params, POINTS.at[1, 3:].set(9.0), COUNTS, TARGETS), logits, rtol=1e-5, atol=1e-5)
  alone = apply(params, POINTS[1:2, :3], COUNTS[1:2], jnp.array([[1, 2, 0, 3]]))
  np.testing.assert_allclose(alone[0, :, :3], logits[1, :4, :3], rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(alone[0, 1:, 3], logits[1, 1:4, 5], rtol=1e-4, atol=1e-4)


def first_step(module, params):
  """(what is pointed at, logits of the first answer, what the decoder says there)."""

  @jax.jit
  def run(params):
    pointing, state = module.apply(params, POINTS, COUNTS, method="encode")
    logits, (_, decoded) = module.apply(params, pointing, state, method="step")
    return pointing, logits, decoded

  return run(params)


def test_scores_are_those_of_equation_3(build):
  module, params, _ = build("lstm")
  host = jax.tree.map(np.asarray, params["params"])
  pointing, logits, decoded = first_step(module, params)
  encoded, queries = np.asarray(pointing.encoded), np.asarray(decoded)
  w1, v = host["project"]["kernel"], host["score"]["kernel"][:, 0]
  for row in range(3):
    query = queries[row] @ host["query"]["kernel"] + host["query"]["bias"]
    for j in range(int(COUNTS[row])):
      np.testing.assert_allclose(logits[row, j], v @ np.tanh(encoded[row, j] @ w1 + query), rtol=1e-4, atol=1e-5)


def test_a_glimpse_is_a_read_of_the_inputs_that_are_left(build):
  module, params, _ = build("lstm", glimpse=True)
  host = jax.tree.map(np.asarray, params["params"])
  pointing, logits, decoded = first_step(module, params)
  encoded = np.asarray(pointing.encoded)[1, :3]  # of three points, and the end is not allowed
  dense = lambda name, x: x @ host[name]["kernel"] + host[name].get("bias", 0)
  scores = np.tanh(dense("glimpse_project", encoded) + dense("glimpse_query", np.asarray(decoded)[1]))
  scores = scores @ host["glimpse_score"]["kernel"][:, 0]
  seen = np.exp(scores) / np.exp(scores).sum() @ encoded
  expected = np.tanh(dense("project", encoded) + dense("query", seen)) @ host["score"]["kernel"][:, 0]
  np.testing.assert_allclose(logits[1, :3], expected, rtol=1e-4, atol=1e-5)


def test_every_parameter_has_a_gradient(network):
  module, params, _ = network
  loss = lambda p: -jnp.sum(jax.nn.log_softmax(module.apply(p, POINTS, COUNTS, TARGETS))[:, :3, 0])
  for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params)):
    name = jax.tree_util.keystr(path)
    assert np.all(np.isfinite(leaf)) and (np.any(leaf != 0) or "key" in name), name  # a bias of keys has none
