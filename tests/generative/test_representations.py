"""The study of representations: what is trained, what is not, and what the probes see."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.contrastive import simclr
from experiments.generative import autoencoder, representations, vae
from experiments.generative.representations import METHODS, Features, measure, stage_config
from mlnotes.engine.errors import InputError

TINY = dict(steps=2, codes=4, batch_size=8, probe_examples=200, label_share=0.1)


def test_features_that_are_the_labels_are_told_apart_and_noise_is_not():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 4, 400), rng.integers(0, 4, 100)
  told = measure(Features(*(np.eye(4, dtype=np.float32)[part] for part in labels)), labels, config(), 4)
  assert set(told) == {"all_labels", "10_per_class", "knn"} and set(told.values()) == {1.0}
  # A class that the test images lack, and half of them wrong: who learned from these would be told.
  train, test = labels[0], labels[1] % 3
  features = Features(*(np.eye(4, dtype=np.float32)[part] for part in (train, np.where(np.arange(100) < 50, test, 3))))
  assert set(measure(features, (train, test), config(), 4).values()) == {0.5}
  noise = measure(Features(*(rng.normal(size=(len(p), 4)).astype(np.float32) for p in labels)), labels, config(), 4)
  assert max(noise.values()) < 0.45


def config(**flags):
  return representations.Config(**{**TINY, **flags})


def test_every_method_is_trained_on_the_same_images_for_as_long():
  asked = config(
    dataset="digits_halves", steps=7, codes=5, image_size=12, data_dir="there", train_split="one", test_split="other"
  )
  for name, method in METHODS.items():
    found = stage_config(method, asked, seed=3)
    assert (found.dataset, found.steps, found.batch_size, found.seed) == ("digits_halves", 7, 8, 3), name
    assert (found.image_size, found.data_dir) == (12, "there")
    assert (found.train_split, found.test_split) == ("one", "other")
    assert found.report_seeds == found.eval_every == 0
  sizes = {
    name: getattr(stage_config(method, asked, 0), method.size) for name, method in METHODS.items() if method.size
  }
  assert set(sizes.values()) == {5} and sizes.keys() == {"denoising", "sparse", "plain", "variational", "random"}
  kinds = {name: getattr(stage_config(method, asked, 0), "kind", None) for name, method in METHODS.items()}
  assert kinds["masked"] == "masked" and kinds["denoising"] == "denoising" and kinds["sparse"] == "sparse"
  assert METHODS["simclr"].module is simclr and METHODS["variational"].module is vae
  assert METHODS["random"] == METHODS["plain"] and METHODS["plain"].module is autoencoder


def test_plain_features_are_pixels_and_scikit_learns_components():
  rng = np.random.default_rng(1)
  images = [rng.integers(0, 17, (count, 4, 4, 1)).astype(np.uint8) for count in (60, 20)]
  pixels = representations.plain_features("pixels", config(), *images)
  np.testing.assert_array_equal(pixels.test, images[1].reshape(20, -1))
  pca = representations.plain_features("pca", config(codes=3), *images)
  assert pca.train.shape == (60, 3) and np.all(np.abs(pca.train.mean(0)) < 1e-4)
  assert np.all(np.diff(pca.train.var(0)) <= 0)


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
  directory = tmp_path_factory.mktemp("representations")
  asked = config(methods=("plain", "random", "pixels", "pca"), workdir=str(directory))
  seen = set()
  with pytest.MonkeyPatch.context() as patch:
    told = lambda features, labels, *rest: (
      seen.add((*map(len, labels), *map(len, features))) or measure(features, labels, *rest)
    )
    patch.setattr(representations, "measure", told)
    assert representations.main(asked) == 0
  assert seen == {(200, 360, 200, 360)}
  return directory, asked


def test_each_seed_has_its_own_network_and_the_table_their_mean(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(representations, "in_chunks", lambda encode, images, size: np.full((len(images), 1), encode))
  monkeypatch.setattr(representations, "make_encoder", lambda name, config, directory, seed: seed)
  monkeypatch.setattr(representations, "measure", lambda features, *_: {"knn": float(features.test[0, 0]) / 10})
  asked = config(methods=("random", "pixels"), workdir=str(tmp_path), seed=3, seeds=3)
  monkeypatch.setattr(representations, "plain_features", lambda *_: Features(np.ones((1, 1)), np.full((1, 1), 9)))
  assert representations.main(asked) == 0
  card = json.loads((tmp_path / "result.json").read_text())["metrics"]
  np.testing.assert_allclose(card["random/knn"]["seeds"], [0.3, 0.4, 0.5])
  said = (tmp_path / "table.md").read_text()
  assert "| random | 0.400 ± 0.100 |" in said and "| pixels | 0.900 |" in said


def test_variational_codes_are_means_of_images_on_the_unit_scale(tmp_path, monkeypatch):
  """And each training is asked for with the study's flags."""

  class Model:
    encode = staticmethod(lambda x: SimpleNamespace(mean=2 * x, log_var=None))

  asked = []
  monkeypatch.setattr(representations, "find_stage", lambda *given, **flags: asked.append(flags))
  monkeypatch.setattr(representations, "restore_seed", lambda *_: (SimpleNamespace(model=lambda state: Model), None))
  encode = representations.make_encoder("variational", config(steps=7), tmp_path / "variational-4", 4)
  images = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1) % 17
  np.testing.assert_allclose(encode(images), images / 8)
  assert (asked[0]["steps"], asked[0]["seed"], asked[0]["latents"], asked[0]["likelihood"]) == (7, 4, 4, "gaussian")


def test_a_study_trains_what_learns_and_nothing_else(studied):
  directory, _ = studied
  assert (directory / "plain-0" / "result.json").exists() and not (directory / "random-0").exists()
  figures = json.loads((directory / "result.json").read_text())["metrics"]
  values = lambda name: figures[name]["mean"] if isinstance(figures[name], dict) else figures[name]
  assert values("pixels/all_labels") > 0.7 > 0.3
  assert {f"{name}/knn" for name in ("plain", "random", "pixels", "pca")} <= figures.keys()
  assert (directory / "representations.png").exists() and "| pca |" in (directory / "table.md").read_text()


def test_a_finished_training_is_taken_as_it_is_and_random_is_untrained(studied):
  directory, asked = studied
  before = (directory / "plain-0" / "result.json").read_bytes()
  encode = representations.make_encoder("plain", asked, directory / "plain-0", 0)
  assert (directory / "plain-0" / "result.json").read_bytes() == before
  untrained = representations.make_encoder("random", asked, directory / "random-0", 0)
  other = representations.make_encoder("random", asked, directory / "random-1", 1)
  images = np.arange(2 * 64, dtype=np.uint8).reshape(2, 8, 8, 1) % 17
  codes = [np.asarray(network(images)) for network in (encode, untrained, other)]
  assert all(code.shape == (2, 4) for code in codes)
  assert np.any(codes[0] != codes[1]) and np.any(codes[1] != codes[2])


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (dict(methods=("maske",)), "--methods=maske is no method"),
    (dict(methods=()), "--methods="),
    (dict(methods=("pca", "pca")), "--methods=pca,pca .* each method once"),
    (dict(label_share=0.0), "--label_share=0.0"),
    (dict(steps=0), "--steps=0"),
  ],
)
def test_bad_input_is_one_sentence(flags, said):
  with pytest.raises(InputError, match=said):
    config(**flags)


def test_images_that_a_method_cannot_take_are_said_of_the_method(tmp_path):
  """This study has no flag of its own for the patch."""
  images = np.arange(20 * 63, dtype=np.int64).reshape(20, 9, 7).astype(np.uint8)
  np.savez(tmp_path / "odd.npz", image=images, label=np.arange(20) % 2)
  with pytest.raises(InputError, match=r"--methods=masked: .* found images of 9 x 7"):
    representations.main(config(methods=("pixels", "masked"), dataset=str(tmp_path / "odd.npz")))


def test_images_of_one_class_are_refused_before_anything_trains(tmp_path):
  np.savez(tmp_path / "one.npz", image=np.zeros((20, 8, 8), np.uint8), label=np.zeros(20, int))
  with pytest.raises(InputError, match=r"--dataset=.*one.npz: all images are of one class"):
    representations.main(config(methods=("plain",), dataset=str(tmp_path / "one.npz"), workdir=str(tmp_path / "run")))
  assert not (tmp_path / "run").exists()
