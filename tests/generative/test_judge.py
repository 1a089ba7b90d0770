import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from mlnotes.generative import judge as judge_lib
from mlnotes.generative.judge import JudgeConfig, load_or_train_judge, train_judge
from mlnotes.generative.metrics import class_agreement

TINY = JudgeConfig(width=8, features=5, steps=3, batch_size=16)


@pytest.fixture(scope="module")
def digits():
  images, labels = load_digits(return_X_y=True)
  images = images.reshape(-1, 8, 8, 1).astype(np.uint8)
  return train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)


@pytest.fixture(scope="module")
def judge(digits):
  train, _, label, _ = digits
  return train_judge(train, label, 10, 17, JudgeConfig(steps=100))


def test_reads_most_held_out_digits_soon(digits, judge):
  _, test, _, label = digits
  assert class_agreement(judge.predict(test), label) >= 0.9
  assert judge.features(test).shape == (len(test), 64)


@pytest.mark.thorough
def test_reads_held_out_digits(digits):
  train, test, label, held_out = digits
  assert class_agreement(train_judge(train, label, 10, levels=17).predict(test), held_out) >= 0.97


def test_chunks_do_not_matter(digits, judge):
  images = digits[0][:600]
  apart = np.concatenate([judge.features(images[:7]), judge.features(images[7:])])
  np.testing.assert_allclose(judge.features(images), apart, rtol=1e-5, atol=1e-5)


def test_cache_returns_the_same_judge(digits, tmp_path, monkeypatch):
  train, _, label, _ = digits
  trained = load_or_train_judge(train, label, 10, 17, TINY, tmp_path)
  assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]

  def refuse(*_):
    raise AssertionError("trained again")

  with monkeypatch.context() as patch:
    patch.setattr(judge_lib, "train_judge", refuse)
    loaded = load_or_train_judge(train, label, 10, 17, TINY, tmp_path)
  np.testing.assert_array_equal(loaded.features(train[:9]), trained.features(train[:9]))
  # Another run gives the same judge, so what the cache holds is not luck.
  again = train_judge(train, label, 10, 17, TINY)
  np.testing.assert_array_equal(again.features(train[:9]), trained.features(train[:9]))

  next(tmp_path.iterdir()).write_bytes(b"cut short")
  repaired = load_or_train_judge(train, label, 10, 17, TINY, tmp_path)
  np.testing.assert_array_equal(repaired.features(train[:9]), trained.features(train[:9]))


def test_cache_keeps_different_judges_apart(digits, tmp_path, monkeypatch):
  train, _, label, _ = digits
  monkeypatch.setenv("MLNOTES_CACHE", str(tmp_path))
  monkeypatch.setattr(judge_lib, "train_judge", lambda *_: judge_lib.Judge(None, 17, {"w": np.zeros(1)}))
  other_image = train.copy()
  other_image[0, 0, 0] += 1
  other_label = np.concatenate([label[:-1], (label[-1:] + 1) % 10])
  for arguments in (
    (train, label, 10, 17, TINY),
    (other_image, label, 10, 17, TINY),
    (train, other_label, 10, 17, TINY),
    (train, label, 11, 17, TINY),
    (train, label, 10, 18, TINY),
    (train, label, 10, 17, JudgeConfig(width=8, features=5, steps=4, batch_size=16)),
  ):
    load_or_train_judge(*arguments)
  assert len(list((tmp_path / "judge").iterdir())) == 6


def test_refuses_what_is_out_of_range(digits):
  train, _, label, _ = digits
  with pytest.raises(ValueError, match=r"images must be in 0 \.\. 15, found 0 \.\. 16"):
    train_judge(train, label, 10, levels=16)
  with pytest.raises(ValueError, match=r"labels must be in 0 \.\. 8, found 0 \.\. 9"):
    train_judge(train, label, 9, levels=17)
  with pytest.raises(ValueError, match="a judge needs images and a label for each, found 0 images"):
    train_judge(train[:0], label[:0], 10, levels=17)
  with pytest.raises(ValueError, match="steps must be 1 or more, found 0"):
    JudgeConfig(steps=0)


def test_fewer_images_than_a_batch_are_enough(digits):
  train, test, label, _ = digits
  judge = train_judge(train[:20], label[:20], 10, 17, JudgeConfig(width=8, features=16, steps=200))
  assert class_agreement(judge.predict(train[:20]), label[:20]) > 0.5
  assert np.isfinite(judge.features(test)).all()


def test_a_cache_that_cannot_be_written_is_named_and_the_judge_made(digits, tmp_path, monkeypatch):
  train, _, label, _ = digits
  (tmp_path / "file").touch()
  monkeypatch.setenv("MLNOTES_CACHE", str(tmp_path / "file"))
  with pytest.warns(UserWarning, match=r"judge is not kept: .*/file/judge cannot be written .*MLNOTES_CACHE"):
    judge = load_or_train_judge(train, label, 10, 17, TINY)
  assert judge.features(train[:3]).shape == (3, 5)
