"""Scores of disentangling, on codes of which the score is known and against scikit-learn."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from mlnotes.generative import disentangling as d

FACTORS = np.array(list(itertools.product(range(3), range(4), range(5))) * 8)


def draw_from(codes):
  def draw(rng, factor, size):
    value = rng.choice(FACTORS[:, factor])
    return codes[rng.choice(np.flatnonzero(FACTORS[:, factor] == value), size)]

  return draw


def score(codes):
  return d.compute_factor_score(draw_from(codes), 3, codes.std(0), votes=200, size=32)


def test_mutual_information_is_scikit_learns():
  rng = np.random.default_rng(0)
  codes = FACTORS @ rng.normal(size=(3, 4)) + rng.normal(size=(len(FACTORS), 4))
  information = d.compute_mutual_information(codes, FACTORS)
  for i, code in enumerate(codes.T):
    cells = np.minimum(((code - code.min()) / (code.max() - code.min()) * 20).astype(int), 19)
    for k in range(3):
      np.testing.assert_allclose(information.table[i, k], mutual_info_score(cells, FACTORS[:, k]), atol=1e-9)
  np.testing.assert_allclose(information.entropy, np.log([3, 4, 5]), rtol=1e-9)


def test_codes_that_are_the_factors_have_full_scores():
  codes = FACTORS.astype(float) * [1.0, -3.0, 100.0]
  assert d.compute_mig(d.compute_mutual_information(codes, FACTORS)) == pytest.approx(1)
  assert score(codes) == 1
  dci = d.compute_dci(codes, FACTORS)
  assert min(dci) > 0.95


def test_each_factor_in_two_codes_has_no_gap_but_other_scores():
  codes = np.repeat(FACTORS.astype(float), 2, axis=1)
  assert d.compute_mig(d.compute_mutual_information(codes, FACTORS)) == pytest.approx(0)
  dci = d.compute_dci(codes, FACTORS)
  assert dci.disentanglement > 0.9 > 0.7 > dci.completeness


def test_a_turned_code_is_entangled():
  rng = np.random.default_rng(1)
  turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
  codes = (FACTORS / FACTORS.std(0)) @ turn
  assert d.compute_mig(d.compute_mutual_information(codes, FACTORS)) < 0.5
  assert d.compute_dci(codes, FACTORS).disentanglement < 0.6


def test_noise_has_scores_of_chance():
  codes = np.random.default_rng(2).normal(size=(len(FACTORS), 3))
  assert d.compute_mig(d.compute_mutual_information(codes, FACTORS)) < 0.1
  assert score(codes) < 0.55


def test_a_dead_latent_has_no_vote():
  codes = np.concatenate([FACTORS.astype(float), np.full((len(FACTORS), 1), 2.0)], axis=1)
  codes[:, 3] += 1e-6 * np.random.default_rng(3).normal(size=len(codes))
  assert score(codes) == 1


def test_a_factor_with_one_value_is_left_out():
  codes = FACTORS.astype(float)
  factors = np.concatenate([FACTORS, np.zeros((len(FACTORS), 1), int)], axis=1)
  assert d.compute_mig(d.compute_mutual_information(codes, factors)) == pytest.approx(1)


def test_bad_input_is_told():
  with pytest.raises(ValueError, match="must be finite, found 1 number"):
    d.compute_mutual_information(np.array([[np.nan], [0.0]]), np.zeros((2, 1), int))
