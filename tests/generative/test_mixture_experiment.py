"""The study of mixtures: which points and images each figure is of, against closed forms and scikit-learn."""

import json

import jax
import numpy as np
import pytest
import scipy.stats
from sklearn.mixture import GaussianMixture as Reference

from experiments.generative import _mixture_parts as parts, mixture
from mlnotes.data import ArraySplit, DataSet
from mlnotes.engine.errors import InputError
from mlnotes.generative.density_floors import gaussian_bits, histogram_bits
from mlnotes.generative.plane import PLANES

SHAPE, LEVELS = (2, 2, 1), 17


def make_split(size, seed, most):
  rng = np.random.default_rng(seed)
  return ArraySplit(rng.integers(0, most, (size, *SHAPE), dtype=np.uint8), np.zeros(size, np.int32))


# Training images are dark, test images are not: whoever takes one for the other is found out.
DATA = DataSet("noise", make_split(60, 0, 9), make_split(30, 1, 17), 1, ("a",), LEVELS, SHAPE)


@pytest.fixture(autouse=True)
def small(monkeypatch):
  for module in (parts, mixture):
    monkeypatch.setattr(module, "load_data", lambda config: DATA)


def configure(**flags):
  settings = dict(
    point_examples=80,
    point_components=(1, 2, 6),
    restarts=3,
    steps=12,
    image_components=(1, 2),
    binary_components=(1, 3),
  )
  return mixture.Config(**{**settings, **flags})


@pytest.fixture(scope="module")
def points(tmp_path_factory):
  directory = tmp_path_factory.mktemp("points")
  return parts.measure_points(configure(), 0, directory), directory


def test_points_are_fitted_to_some_and_judged_by_others(points):
  figures, _ = points
  train, held = (parts.draw_points("moons", 0, part, 80).astype(np.float64) for part in ("train", "held out"))
  assert np.min(np.linalg.norm(train[:, None] - held[None], axis=-1)) > 1e-6
  normal = scipy.stats.multivariate_normal(train.mean(0), np.cov(train.T, bias=True))
  assert figures["nll_1"] == pytest.approx(-normal.logpdf(held).mean(), rel=1e-4)
  exact = PLANES["moons"]().log_density(jax.numpy.asarray(held, np.float32))
  assert figures["nll_exact"] == pytest.approx(-float(exact.mean()), rel=1e-4)
  assert figures["nll_by_bic"] == figures[f"nll_{figures['components_by_bic']}"]
  best = min((1, 2, 6), key=lambda count: figures[f"nll_{count}"])
  assert figures["components_by_held_out"] == best
  assert figures["nll_above_exact"] == pytest.approx(figures[f"nll_{best}"] - figures["nll_exact"], abs=1e-5)
  assert figures["largest_fall"] < 1e-4


def test_number_of_components_is_the_one_of_scikit_learns_criterion():
  """Of one, eight and forty normals for two moons."""
  config, counts = configure(point_examples=500, point_components=(1, 8, 40), restarts=2), (1, 8, 40)
  train = parts.draw_points("moons", 0, "train", 500)
  bic = [Reference(count, random_state=0).fit(train).bic(train) for count in counts]
  assert parts.measure_points(config, 0, None)["components_by_bic"] == counts[int(np.argmin(bic))] == 8


def test_the_best_of_the_restarts_counts(points, monkeypatch):
  worst = lambda fits: jax.tree.map(lambda leaf: leaf[np.argmin(fits.objective[:, -1])], fits)
  monkeypatch.setattr(parts.m, "best_restart", worst)
  found = parts.measure_points(configure(point_components=(6,)), 0, None)
  assert found["nll_6"] != points[0]["nll_6"]


def test_steps_seed_covariance_and_floor_reach_the_fit(points, monkeypatch):
  figures, _ = points
  counted, count = set(), parts.m.count_parameters
  monkeypatch.setattr(parts.m, "count_parameters", lambda *asked: counted.add(asked) or count(*asked))
  for flags in (dict(steps=2), dict(covariance="diagonal"), dict(floor=0.3)):
    other = parts.measure_points(configure(point_components=(6,), **flags), 0, None)
    assert other["nll_6"] != figures["nll_6"], flags
  assert parts.measure_points(configure(point_components=(6,)), 1, None)["nll_6"] != figures["nll_6"]
  assert counted == {(6, 2, "full"), (6, 2, "diagonal")}


class Asked(Exception):
  pass


@pytest.mark.parametrize(
  ("measure", "fit", "flags"),
  [
    ("measure_images", "fit_gaussian_mixture", ("tied", 0.3, 7)),
    ("measure_binary", "fit_bernoulli_mixture", (9.0, 7)),
  ],
)
def test_images_are_fitted_by_the_flags_and_the_seeds_own_key(measure, fit, flags, monkeypatch):
  asked = []

  def stop(*given):
    asked.append(given)
    raise Asked

  monkeypatch.setattr(parts.m, fit, stop)
  config = configure(covariance="tied", floor=0.3, pseudocount=9.0, steps=7)
  for seed in (0, 1):
    with pytest.raises(Asked):
      getattr(parts, measure)(config, seed, None)
  assert [given[2:] for given in asked] == [(1, *flags)] * 2 and len(asked[0][1]) == 60
  assert np.any(jax.random.key_data(asked[0][0]) != jax.random.key_data(asked[1][0]))


@pytest.mark.parametrize("alpha", [0.0, 0.05])
def test_one_normal_of_images_is_the_floor_computed_apart(alpha, tmp_path, monkeypatch):
  monkeypatch.setattr(parts, "largest_fall", len)
  figures = parts.measure_images(configure(alpha=alpha), 0, tmp_path)
  assert figures["largest_fall"] == 2  # of both fits
  train, test = DATA.train.image, DATA.test.image
  assert figures["bits_per_dim_1"] == pytest.approx(gaussian_bits(train, test, LEVELS, alpha).mean(), rel=1e-4)
  assert figures["bits_per_dim_histogram"] == pytest.approx(histogram_bits(train, test, LEVELS).mean())
  assert figures["bits_per_dim_chosen_on_test"] == min(figures["bits_per_dim_1"], figures["bits_per_dim_2"])
  assert (tmp_path / "image_means.png").exists()


def test_one_bernoulli_vector_is_independent_pixels(tmp_path, monkeypatch):
  monkeypatch.setattr(parts, "largest_fall", len)
  figures = parts.measure_binary(configure(), 0, tmp_path)
  train, test = (
    (np.random.default_rng(i).random((len(image), 4)) < image.reshape(-1, 4) / 16)
    for i, image in enumerate((DATA.train.image, DATA.test.image))
  )
  frequency = (train.sum(0) + 0.1) / (60 + 0.2)
  expected = -np.where(test, np.log(frequency), np.log(1 - frequency)).sum(1).mean()
  assert figures["nll_1"] == pytest.approx(expected, rel=1e-4)
  assert figures["largest_fall"] == 2  # of both fits
  other = parts.measure_binary(configure(pseudocount=9.0), 0, None)
  assert other["nll_1"] != figures["nll_1"] and "nll_3" in other
  assert (tmp_path / "binary_means.png").exists()


def test_brightness_is_the_probability_of_a_pixel():
  image = np.full((2000, 1, 3, 1), [[[0], [4], [16]]], np.uint8)
  np.testing.assert_allclose(parts.binarize(image, 17, 0).mean(0), [0, 0.25, 1], atol=0.03)


def test_examples_limits_the_training_images_alone():
  _, train, test = parts._images(configure(examples=7))
  assert len(train) == 7 and len(test) == 30
  assert len(parts._images(configure(eval_examples=4))[2]) == 4


def test_a_fall_is_said(capsys):
  assert parts.largest_fall([np.array([1.0, 2.0, 1.5])]) == 0.5
  assert "the objective of EM fell by 0.5 nats" in capsys.readouterr().err
  assert parts.largest_fall([np.array([1.0, 2.0])]) == 0
  assert capsys.readouterr().err == ""


def test_ellipse_has_the_covariance_that_it_shows():
  covariance = np.array([[2.0, 0.6], [0.6, 0.5]])
  corners = parts.ellipse(np.array([1.0, -1.0]), covariance, 2.0) - [1.0, -1.0]
  np.testing.assert_allclose(np.einsum("ni,ij,nj->n", corners, np.linalg.inv(covariance), corners), 4, rtol=1e-9)


def test_pictures_of_points(points):
  assert {path.name for path in points[1].glob("*.png")} == {"ellipses.png", "components.png", "likelihood.png"}


def test_the_study_runs_each_part_for_each_seed(tmp_path):
  config = configure(
    workdir=str(tmp_path / "run"), parts=("binary",), seed=3, seeds=2, binary_components=(1,), steps=2
  )  # fmt: skip
  assert mixture.main(config) == 0
  card = json.loads((tmp_path / "run" / "result.json").read_text())
  expected = [parts.measure_binary(config, seed, None)["nll_1"] for seed in (3, 4)]
  np.testing.assert_allclose(card["metrics"]["binary_nll_1"]["seeds"], expected, rtol=1e-6)
  assert expected[0] != expected[1]  # each draws its own pixels
  assert {name.partition("_")[0] for name in card["metrics"]} == {"binary"}


@pytest.mark.parametrize(
  ("flags", "sentence"),
  [
    (dict(parts=("pionts",)), "--parts=pionts is no part: did you mean points?"),
    (dict(parts=("binary", "binary")), "--parts=binary,binary .* each part once"),
    (dict(point_components=(4, 2)), "--point_components=4,2 is out of range"),
    (dict(floor=0.0), "--floor=0.0 is out of range"),
    (dict(alpha=0.6), "--alpha=0.6 is out of range"),
    (dict(point_examples=3), "--point_examples=3 is out of range: expected 6 or more"),
  ],
)
def test_bad_flags_are_refused_in_a_sentence(flags, sentence):
  with pytest.raises(InputError, match=sentence.replace("?", r"\?")):
    configure(**flags)


def test_more_components_than_images_are_refused_before_time_is_spent():
  with pytest.raises(InputError, match="--image_components=61 is out of range: expected at most 60"):
    mixture.main(configure(image_components=(61,)))
  with pytest.raises(InputError, match="--binary_components=6 is out of range: expected at most 5"):
    mixture.main(configure(examples=5, image_components=(1,), binary_components=(6,)))


def test_flags_without_effect_say_so():
  assert {"dataset", "alpha", "pseudocount"} <= set(mixture.Config(parts=("points",)).idle_flags())
  assert {"points", "restarts", "covariance"} <= set(mixture.Config(parts=("binary",)).idle_flags())
  assert not {"points", "alpha", "pseudocount"} & set(mixture.Config().idle_flags())


def test_means_are_drawn_from_the_heaviest(monkeypatch, tmp_path):
  drawn = []
  monkeypatch.setattr(parts, "show_images", lambda axis, images, columns: drawn.append(images))
  fitted = parts.m.BernoulliMixture(jax.numpy.log(jax.numpy.array([0.2, 0.8])), jax.numpy.zeros((2, 4)))
  parts._draw_means(fitted, np.array([[0.1] * 4, [0.9] * 4]), np.zeros((3, 4)), DATA, "means", tmp_path / "means.png")
  assert drawn[0][0, 0, 0, 0] == 0.9 and drawn[0][1, 0, 0, 0] == 0.1
