"""The dictionary of photographs in small: what is learned from, how, and what stands beside it."""

import functools
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import sparse_encode

from experiments.generative import dictionary
from mlnotes import generative
from mlnotes.engine.errors import InputError
from mlnotes.engine.progress import take_warnings

SMALL = dict(patch=4, patches=600, atoms=20, steps=40, batch_size=50, code_steps=20)


def make_config(**given):
  return dictionary.Config(**{**SMALL, **given})


@functools.cache
def patches(config):
  return dictionary.load_patches(config)


def learned(**given):
  config = make_config(**given)
  found, resampled = dictionary.learn(config, jnp.asarray(patches(make_config())[0]))
  return np.asarray(found), np.asarray(resampled)


def test_patches_are_white_and_the_held_out_ones_are_others():
  train, test = patches(make_config())
  assert train.shape == (600, 16) and test.shape == (1000, 16)
  covariance = np.cov(train, rowvar=False)
  values = np.linalg.eigvalsh(covariance)
  assert values.max() <= 1 + 1e-4 and values.max() > 0.9
  assert not (test[:, None] == train[None, :50]).all(-1).any()
  np.testing.assert_allclose(train.mean(0), 0, atol=1e-5)
  # With a mean variance added to each they are less so.
  dull = np.linalg.eigvalsh(np.cov(patches(make_config(epsilon=1.0))[0], rowvar=False))
  assert dull.max() < 0.95 * values.max() and dull.min() < values.min()


def test_held_out_patches_are_of_another_part_of_the_photographs(monkeypatch):
  """Here of a noisier one."""
  noise = np.random.default_rng(0).normal(size=(60, 100, 1)) * np.where(np.arange(100) < 80, 1, 9)[None, :, None]
  photographs = SimpleNamespace(images=[np.repeat(noise, 3, axis=-1)] * 2)
  monkeypatch.setattr("sklearn.datasets.load_sample_images", lambda: photographs)
  train, test = dictionary.load_patches(make_config())
  assert test.var() > 50 * train.var()


def test_a_report_leaves_its_figures_and_pictures(tmp_path):
  config = make_config(penalty=0.8, resample_every=10)
  figures = dictionary.study(config, tmp_path)
  assert {path.stem for path in tmp_path.glob("*.png")} == {"atoms", "convergence"}
  # Of held-out patches at this penalty, and of no code at all.
  train, test = (jnp.asarray(part) for part in patches(make_config()))
  atoms, resampled = dictionary.learn(config, train)
  assert dictionary.judge(test, atoms, 0.8)["objective"] == pytest.approx(figures["objective"], rel=1e-5)
  others = {"random_patches": dictionary.random_patches(config, train), "pixels": jnp.eye(16)}
  for name, other in others.items():
    assert dictionary.judge(test, other, 0.8)["objective"] == pytest.approx(figures[f"objective_{name}"], rel=1e-5)
  assert figures["objective_zero_code"] == pytest.approx((np.asarray(test) ** 2).sum(1).mean() / 2, rel=1e-5)
  assert figures["resampled_atoms"] == int(resampled.sum())
  others = ("random_patches", "random_directions", "pixels", "zero_code")
  assert all(figures["objective"] < figures[f"objective_{name}"] for name in others)
  assert 0 < figures["active_share"] < 0.5 < figures["explained_variance"] < 1


def test_a_dictionary_that_no_code_uses_is_said(monkeypatch, tmp_path):
  monkeypatch.setattr(dictionary, "learn", lambda config, x: (jnp.eye(16)[:, :4], jnp.zeros(1)))
  for name in ("draw_atoms", "draw_convergence"):
    monkeypatch.setattr(dictionary, name, lambda *_: None)
  for penalty, said in ((1e3, ["collapsed: every code is 0 with --penalty=1000, no atom is in use."]), (0.1, [])):
    take_warnings()
    dictionary.study(make_config(penalty=penalty), tmp_path)
    assert take_warnings() == said


def test_figures_are_those_of_scikit_learns_codes():
  test = patches(make_config())[1][:50].astype(np.float64)
  atoms = np.asarray(dictionary.random_patches(make_config(), jnp.asarray(patches(make_config())[0])), np.float64)
  code = sparse_encode(test, atoms.T, algorithm="lasso_cd", alpha=0.7, max_iter=10_000)
  found = dictionary.judge(jnp.asarray(test, jnp.float32), jnp.asarray(atoms, jnp.float32), 0.7)
  left = ((test - code @ atoms.T) ** 2).sum(1)
  assert found["objective"] == pytest.approx((left / 2 + 0.7 * np.abs(code).sum(1)).mean(), rel=1e-3)
  assert found["active_share"] == pytest.approx((code != 0).mean(), abs=0.01)
  assert found["explained_variance"] == pytest.approx(1 - left.sum() / (test**2).sum(), abs=1e-3)


def test_flags_change_what_is_learned():
  base, none = learned()
  np.testing.assert_allclose(np.linalg.norm(base, axis=0), 1, rtol=1e-5)
  for given in (dict(seed=1), dict(penalty=2.0), dict(method="ista"), dict(decay=0.5), dict(code_steps=3),
                dict(batch_size=10)):  # fmt: skip
    assert np.abs(learned(**given)[0] - base).max() > 1e-4, given
  # At a penalty that no code pays for every atom starts anew, at every look.
  _, resampled = learned(penalty=1e3, resample_every=20)
  np.testing.assert_array_equal(np.flatnonzero(resampled), [19, 39])
  assert resampled.max() == 20 and learned(penalty=1e3, resample_every=0)[1].sum() == none.sum() == 0


def test_every_update_draws_patches_of_its_own(monkeypatch):
  """With sums of the patches in the place of what is learned: two of them are no patch twice."""
  monkeypatch.setattr(generative, "update_moments", lambda moments, x, code, decay: moments + jnp.sum(x, 0))
  monkeypatch.setattr(generative, "init_moments", lambda dictionary: jnp.zeros(16))
  monkeypatch.setattr(generative, "update_dictionary", lambda found, moments: jnp.tile(moments[:, None], (1, 20)))
  train = patches(make_config())[0]
  found, _ = dictionary.learn(make_config(steps=2, batch_size=1, resample_every=0), jnp.asarray(train))
  assert np.abs(np.asarray(found)[:, 0] / 2 - train).max(1).min() > 1e-3


@pytest.mark.parametrize(
  ("given", "message"),
  [(dict(patch=1), "--patch=1"), (dict(patches=1), "--patches=1"),
   (dict(penalty=0.0), "--penalty=0.0"), (dict(method="omp"), "--method=omp"),
   (dict(decay=1.0), "--decay=1.0"), (dict(epsilon=0.0), "--epsilon=0.0")],
)  # fmt: skip
def test_bad_values_are_a_sentence(given, message):
  with pytest.raises(InputError, match=message):
    make_config(**given)
