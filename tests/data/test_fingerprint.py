"""What tells one data set from another."""

import types

import numpy as np
import pytest

from mlnotes.data import fingerprint as module, make_array_feeds
from mlnotes.data.dataset import ArraySplit, DataSet, RecordSplit
from mlnotes.data.fingerprint import fingerprint


def make(seed=0, sizes=(40, 10), shape=(4, 4, 1)):
  random = np.random.default_rng(seed)
  splits = [
    ArraySplit(random.integers(0, 255, (n, *shape), np.uint8), random.integers(0, 3, n).astype(np.int32)) for n in sizes
  ]
  return DataSet("data", *splits, 3, ("a", "b", "c"), 256, shape)


def change(data, which, name, index):
  data[which].__dict__[name].reshape(-1)[index] ^= 1
  return data


def test_the_same_data_wherever_they_are(tmp_path):
  data = make()
  np.save(tmp_path / "image.npy", data.train.image)
  mapped = ArraySplit(np.load(tmp_path / "image.npy", mmap_mode="r"), data.train.label)
  assert fingerprint(data._replace(name="other", train=mapped)) == fingerprint(data)
  assert fingerprint(data).startswith("40x4x4x1+10-")


def test_any_change_shows():
  changed = [
    change(make(), 1, "image", 311), change(make(), 1, "label", 39), change(make(), 2, "image", 0),
    change(make(), 2, "label", 4), make(1), make(sizes=(41, 10)), make(shape=(2, 8, 1)),
    make()._replace(train=make().test, test=make().train),
    make()._replace(train=ArraySplit(make().train.image[::-1], make().train.label[::-1])),
  ]  # fmt: skip
  assert len({fingerprint(data) for data in [make(), *changed]}) == 1 + len(changed)


def test_named_arrays_have_one_too():
  def text(x, y):
    return make_array_feeds({"x": x, "y": y}, {"x": x[:2], "y": y[:2]}, types.SimpleNamespace(batch_size=2)).fingerprint

  x, y = np.arange(6.0), np.arange(6)
  assert text(x, y).startswith("6+2-") and text(x, y) == text(x.copy(), y.copy())
  assert len({text(x, y), text(x + 1, y), text(x, y + 1), text(x[:5], y[:5]), text(x.reshape(6, 1), y)}) == 5


def test_of_large_data_a_sample_from_end_to_end_is_looked_at(monkeypatch):
  monkeypatch.setattr(module, "_WHOLE_BYTES", 0)
  monkeypatch.setattr(module, "_ROWS", 3)
  whole = fingerprint(make())
  assert all(fingerprint(change(make(), 1, "label", i)) != whole for i in (0, 19, 39))
  assert fingerprint(change(make(), 1, "label", 5)) == whole


@pytest.mark.parametrize("label", [0, 1])
def test_encoded_images(label):
  import io

  from PIL import Image

  class Source(list):
    def __getitems__(self, positions):
      return [self[i] for i in positions]

  png = io.BytesIO()
  Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).save(png, "png")
  source = Source({"image": png.getvalue(), "label": i % 2} for i in range(20))
  data = make()._replace(train=RecordSplit(source, (4, 4, 1)))
  before = fingerprint(data)
  source[19] = {**source[19], "label": label}
  assert (fingerprint(data) == before) == (label == 1)
