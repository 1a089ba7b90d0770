"""Codes against SciPy and scikit-learn, and which term of the loss moves what."""

import warnings

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from scipy.cluster.vq import vq
from scipy.stats import entropy

from mlnotes.generative import vector_quantization as vectors

Z = np.random.default_rng(0).normal(size=(5, 8, 3)).astype(np.float32)
CODES = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
TARGET = np.random.default_rng(2).normal(size=(5, 8, 2)).astype(np.float32)
PARAMS = {
  "encoder": np.eye(3, dtype=np.float32) + 0.1,
  "codes": CODES,
  "decoder": np.random.default_rng(3).normal(size=(3, 2)).astype(np.float32),
}


def terms(params):
  """(reconstruction, codebook, commitment) of a linear encoder and decoder."""
  found = vectors.quantize(Z @ params["encoder"], params["codes"])
  error = jnp.sum((found.straight @ params["decoder"] - TARGET) ** 2)
  return jnp.stack([error, jnp.sum(found.codebook_loss), jnp.sum(found.commitment_loss)])


@pytest.fixture(scope="module")
def table():
  return jax.jit(jax.jacrev(terms))(PARAMS)


def test_the_nearest_code_is_scipys():
  index, distance = vq(Z.reshape(-1, 3), CODES)
  found = vectors.quantize(jnp.asarray(Z), jnp.asarray(CODES))
  np.testing.assert_array_equal(found.index, index.reshape(5, 8))
  np.testing.assert_array_equal(found.codes, CODES[index].reshape(5, 8, 3))
  np.testing.assert_allclose(found.straight, found.codes, atol=1e-6)
  for loss in (found.codebook_loss, found.commitment_loss):
    np.testing.assert_allclose(loss, distance.reshape(5, 8) ** 2, rtol=1e-4, atol=1e-6)
  # Far from the origin too, where squares are large.
  far = vectors.find_nearest_code(jnp.asarray(Z[0] + 30), jnp.asarray(CODES + 30))
  np.testing.assert_array_equal(far, index.reshape(5, 8)[0])


@pytest.mark.parametrize(
  ("term", "moved"),
  [(0, {"encoder", "decoder"}), (1, {"codes"}), (2, {"encoder"})],
  ids=["reconstruction", "codebook", "commitment"],
)
def test_each_term_moves_what_it_should_alone(table, term, moved):
  assert {name for name, gradient in table.items() if np.any(gradient[term])} == moved


def test_gradients_are_those_of_the_terms_before_the_patch(table):
  z = Z @ PARAMS["encoder"]
  index = vq(z.reshape(-1, 3), CODES)[0]
  chosen = CODES[index].reshape(z.shape)
  # Of the reconstruction: as if the codes were the encoder's outputs.
  error = 2 * (chosen @ PARAMS["decoder"] - TARGET) @ PARAMS["decoder"].T
  np.testing.assert_allclose(table["encoder"][0], np.einsum("bni,bno->io", Z, error), rtol=1e-4, atol=1e-4)
  # Each code is pulled to the sum of its vectors, each vector to its code.
  pull = np.zeros_like(CODES)
  np.add.at(pull, index, 2 * (chosen - z).reshape(-1, 3))
  np.testing.assert_allclose(table["codes"][1], pull, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(table["encoder"][2], np.einsum("bni,bno->io", Z, 2 * (z - chosen)), rtol=1e-4, atol=1e-4)


def test_without_decay_an_update_is_a_step_of_k_means():
  from sklearn.cluster import KMeans

  x = Z.reshape(-1, 3)
  start = x[:4]
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # one step does not converge
    exact = KMeans(4, init=start, n_init=1, max_iter=1, algorithm="lloyd").fit(x)
  codebook = vectors.make_codebook(jnp.asarray(start))
  index = vectors.find_nearest_code(jnp.asarray(x), codebook.codes)
  found = vectors.update_codebook(codebook, jnp.asarray(x), index, decay=0.0)
  means = np.stack([x[np.asarray(index) == k].mean(0) for k in range(4)])
  np.testing.assert_allclose(found.codes, means, rtol=1e-4)
  # scikit-learn assigns once more behind its step.
  np.testing.assert_array_equal(vectors.find_nearest_code(jnp.asarray(x), found.codes), exact.labels_)
  np.testing.assert_allclose(found.codes, exact.cluster_centers_, rtol=1e-4)


def test_averages_are_weighted_by_age_and_counts_are_smoothed():
  x = jnp.asarray(Z.reshape(-1, 3)[:20])
  codebook = vectors.make_codebook(jnp.asarray(CODES), count=2.0)
  counts, sums = np.full(6, 2.0), 2.0 * CODES.astype(np.float64)
  for _ in range(3):
    index = vectors.find_nearest_code(x, codebook.codes)
    codebook = vectors.update_codebook(codebook, x, index, decay=0.9)
    member = np.eye(6)[np.asarray(index)]
    counts, sums = 0.9 * counts + 0.1 * member.sum(0), 0.9 * sums + 0.1 * member.T @ np.asarray(x)
  np.testing.assert_allclose(codebook.counts, counts, rtol=1e-5)
  np.testing.assert_allclose(codebook.codes, sums / counts[:, None], rtol=1e-3, atol=1e-4)


def test_a_code_that_nothing_chooses_neither_decays_to_the_origin_nor_forgets_its_place():
  codes = jnp.array([[0.0, 0.0], [5.0, 5.0]])
  x = jnp.full((4, 2), 0.1)
  update = jax.jit(lambda book: vectors.update_codebook(book, x, vectors.find_nearest_code(x, book.codes), 0.5))
  codebook = vectors.make_codebook(codes)
  for _ in range(200):
    codebook = update(codebook)
  np.testing.assert_allclose(codebook.codes, [[0.1, 0.1], [5.0, 5.0]], rtol=1e-2)


def test_dead_codes_restart_at_different_vectors_of_the_batch(key):
  z = jnp.asarray(Z)
  counts = jnp.array([3.0, 0.5, 1.0, 0.0, 0.99, 7.0])
  codebook = vectors.Codebook(jnp.asarray(CODES), counts, jnp.asarray(CODES) * counts[:, None])
  found, restarted = vectors.restart_codes(key, codebook, z, threshold=1.0)
  dead = np.array([1, 3, 4])
  alive = np.array([0, 2, 5])
  assert restarted == 3
  np.testing.assert_array_equal(found.codes[alive], CODES[alive])
  np.testing.assert_array_equal(found.sums[alive], codebook.sums[alive])
  rows = [np.flatnonzero((Z.reshape(-1, 3) == code).all(1)) for code in np.asarray(found.codes)[dead]]
  assert all(len(row) == 1 for row in rows) and len({int(row[0]) for row in rows}) == 3
  np.testing.assert_array_equal(found.counts[dead], np.ones(3))
  np.testing.assert_allclose(found.sums, found.codes * found.counts[:, None], rtol=1e-6)
  _, none = vectors.restart_codes(jax.random.key(1), codebook, z, threshold=0.0)
  assert none == 0


def test_codes_begin_small_or_among_the_data(key):
  uniform = vectors.init_codes(key, 50, 3, "uniform")
  assert np.abs(uniform).max() <= 1 / 50 and np.abs(uniform).max() > 0.9 / 50
  drawn = np.asarray(vectors.init_codes(jax.random.key(1), 40, 3, "data", jnp.asarray(Z)))
  np.testing.assert_array_equal(np.sort(drawn, 0), np.sort(Z.reshape(-1, 3), 0))
  assert vectors.init_codes(jax.random.key(2), 45, 3, "data", jnp.asarray(Z)).shape == (45, 3)
  with pytest.raises(ValueError, match="init='data' takes codes from z: found vectors of 3 features"):
    vectors.init_codes(jax.random.key(3), 4, 2, "data", jnp.asarray(Z))


def test_widths_that_differ_are_a_sentence():
  jaxtyping.config.update("jaxtyping_disable", True)  # as users run the package
  try:
    with pytest.raises(ValueError, match="z has 3 features, expected 2, as many as the codes"):
      vectors.quantize(jnp.asarray(Z), jnp.zeros((4, 2)))
  finally:
    jaxtyping.config.update("jaxtyping_disable", False)


def test_perplexity_of_an_epoch_is_not_that_of_a_batch():
  index = jnp.array([[0, 0, 1], [2, 2, 2]])
  batches = [vectors.count_codes(row, 5) for row in index]
  np.testing.assert_array_equal(sum(batches), np.bincount(np.ravel(index), minlength=5))
  epoch = vectors.compute_perplexity(sum(batches))
  assert epoch == pytest.approx(np.exp(entropy([2, 1, 3])), rel=1e-5)
  assert vectors.compute_perplexity(batches[1]) == pytest.approx(1, rel=1e-6)
  assert vectors.compute_perplexity(jnp.ones(7)) == pytest.approx(7, rel=1e-5)
  weighed = vectors.count_codes(index, 5, jnp.array([[1, 1, 0], [0, 0, 0]]))
  np.testing.assert_array_equal(weighed, [2, 0, 0, 0, 0])


@pytest.mark.parity
def test_updates_are_those_of_vector_quantize_pytorch():
  torch = pytest.importorskip("torch")
  theirs = pytest.importorskip("vector_quantize_pytorch").VectorQuantize(
    dim=3, codebook_size=6, decay=0.8, commitment_weight=0.25, eps=1e-5, kmeans_init=False, threshold_ema_dead_code=0
  )
  book = theirs._codebook
  book.embed.data.copy_(torch.tensor(CODES)[None])
  book.embed_avg.data.copy_(torch.tensor(CODES)[None])
  book.cluster_size.data.fill_(1.0)
  codebook = vectors.make_codebook(jnp.asarray(CODES))
  theirs.train()
  for scale in (1.0, 1.5, 0.7):
    z = Z * np.float32(scale)
    found = vectors.quantize(jnp.asarray(z), codebook.codes)
    x = torch.tensor(z, requires_grad=True)
    out, index, loss = theirs(x)
    np.testing.assert_array_equal(found.index, index.numpy())
    np.testing.assert_allclose(found.straight, out.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(0.25 * jnp.mean(found.commitment_loss) / 3, loss.item(), rtol=1e-4)
    codebook = vectors.update_codebook(codebook, jnp.asarray(z), found.index, decay=0.8)
    np.testing.assert_allclose(codebook.codes, book.embed.numpy()[0], atol=1e-4)
    np.testing.assert_allclose(codebook.counts, book.cluster_size.numpy()[0], rtol=1e-4)
