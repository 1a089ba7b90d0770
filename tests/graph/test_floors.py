"""Floors against closed forms and scikit-learn; energies against dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.semi_supervised import LabelPropagation

from mlnotes import graph
from mlnotes.graph import floors

# Two triangles that an edge joins, and a lonely node.
PAIRS = [(0, 1), (1, 2), (0, 2), (2, 3), (3, 4), (4, 5), (3, 5)]
N = 7
EDGES = graph.make_edges(*(jnp.array(ends) for ends in zip(*PAIRS, *((b, a) for a, b in PAIRS))))
DENSE = np.zeros((N, N))
DENSE[np.asarray(EDGES.receivers), np.asarray(EDGES.senders)] = 1
LABEL = np.array([0, 0, 0, 1, 1, 1, 1])
TRAIN = np.isin(np.arange(N), [0, 5])


def test_labels_spread_to_their_side():
  found = floors.spread_labels(EDGES, LABEL, TRAIN)
  np.testing.assert_array_equal(found[:6], LABEL[:6])
  # The limit is (1 - a) (I - a S)^-1 Y.
  root = np.diag(np.where(DENSE.sum(1) > 0, np.maximum(DENSE.sum(1), 1) ** -0.5, 0))
  known = np.eye(2)[LABEL] * TRAIN[:, None]
  limit = np.linalg.solve(np.eye(N) - 0.5 * root @ DENSE @ root, known)
  np.testing.assert_array_equal(floors.spread_labels(EDGES, LABEL, TRAIN, 0.5), limit.argmax(1))


def test_clamped_labels_are_those_of_scikit_learn():
  found = floors.propagate_labels(EDGES, LABEL, TRAIN)
  connected = slice(0, 6)
  model = LabelPropagation(kernel=lambda *_: DENSE[connected, connected].copy(), max_iter=300)
  model.fit(np.zeros((6, 1)), np.where(TRAIN, LABEL, -1)[connected])
  np.testing.assert_array_equal(found[connected], model.transduction_)
  assert np.isfinite(found).all()


def test_choices_are_the_validation_nodes():
  right, wrong = (lambda: LABEL), (lambda: 1 - LABEL)
  valid = np.arange(N) == 1
  assert floors.choose([wrong, right], LABEL, valid) is not None
  np.testing.assert_array_equal(floors.choose([wrong, right], LABEL, valid), LABEL)
  np.testing.assert_array_equal(floors.choose([wrong, right], LABEL, np.zeros(N, bool)), 1 - LABEL)


def test_logistic_regression_behind_powers_of_the_graph():
  x = np.eye(N, dtype=np.float32)
  found = floors.fit_logistic(floors.simplified(EDGES, x, 3), LABEL, TRAIN)
  np.testing.assert_array_equal(found[:6], LABEL[:6])
  one_class = floors.fit_logistic(x, np.zeros(N, int), TRAIN)
  np.testing.assert_array_equal(one_class, 0)
  assert (floors.majority(LABEL, np.arange(N) > 2) == 1).all()


def test_energy_is_the_quadratic_form_of_the_laplacian():
  x = jax.random.normal(jax.random.key(0), (N, 3))
  degree = DENSE.sum(1) + 1
  laplacian = np.eye(N) - np.diag(degree**-0.5) @ (DENSE + np.eye(N)) @ np.diag(degree**-0.5)
  expected = np.trace(np.asarray(x).T @ laplacian @ np.asarray(x))
  np.testing.assert_allclose(graph.dirichlet_energy(EDGES, x), expected, rtol=1e-5)
  np.testing.assert_allclose(graph.relative_energy(EDGES, x), expected / (np.asarray(x) ** 2).sum(), rtol=1e-5)
  # Loops add nothing to it but one to each degree, which is counted already.
  flat = jnp.sqrt(jnp.asarray(degree))[:, None]
  np.testing.assert_allclose(graph.dirichlet_energy(EDGES, flat), 0, atol=1e-5)


def test_averaging_smooths():
  x = jax.random.normal(jax.random.key(1), (N, 3))
  energies = [float(graph.relative_energy(EDGES, graph.propagate_powers(EDGES, x, k))) for k in (0, 2, 20)]
  assert energies[0] > energies[1] > energies[2] >= 0
  distances = [float(graph.mean_cosine_distance(EDGES, graph.propagate_powers(EDGES, x, k))) for k in (0, 60)]
  assert distances[1] < 0.1 < distances[0]


def test_cosine_distance_is_between_neighbours():
  x = jnp.array([[1.0, 0], [1, 0], [1, 0], [0, 2], [0, 1], [0, 1], [5, 5]])
  np.testing.assert_allclose(graph.mean_cosine_distance(EDGES, x), 1 / 7, rtol=1e-5)
