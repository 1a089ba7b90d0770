"""A folder of images with a folder for each class."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mlnotes.data import ArraySplit, DataError, RecordSplit, load
from mlnotes.data.dataset import describe_classes
from mlnotes.data.flags import make_feeds
from mlnotes.data.folder_source import load_folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
  directory = tmp_path_factory.mktemp("cache")
  monkeypatch.setenv("MLNOTES_CACHE", str(directory))
  return directory / "data"


def write(root, classes, count, size=(6, 5), mode="RGB", suffix="png"):
  """`count` flat images for each class, each of its own shade, so that pixels tell which file they came from."""
  for i, name in enumerate(classes):
    (root / name).mkdir(parents=True, exist_ok=True)
    for j in range(count):
      image = Image.new("L", (size[1], size[0]), 40 * i + j).convert(mode)
      image.save(root / name / f"{j:02}.{suffix}")
  return root


def shades(split):
  return split.read(np.arange(len(split)))["image"][:, 0, 0, 0]


def test_a_tenth_of_one_folder_is_set_aside(tmp_path):
  root = write(tmp_path / "pets", ("eel", "cat", "dog"), 10)
  (root / "cat/notes.txt").write_text("no image")
  (root / ".hidden").mkdir()
  data, again = load(str(root)), load(str(root))
  assert data.name == "pets" and data.class_names == ("cat", "dog", "eel") and data.num_classes == 3
  assert data.image_shape == (6, 5, 3) and data.levels == 256 and (len(data.train), len(data.test)) == (27, 3)
  np.testing.assert_array_equal(shades(data.test), shades(again.test))
  both = np.concatenate([shades(data.train), shades(data.test)])
  np.testing.assert_array_equal(np.sort(both), [40 * i + j for i in range(3) for j in range(10)])
  written = ("eel", "cat", "dog")
  for split in (data.train, data.test):
    assert [data.class_names[k] for k in split.label] == [written[shade // 40] for shade in shades(split)]


def test_splits_have_folders_of_their_own(tmp_path):
  write(tmp_path / "train", ("cat", "dog"), 4)
  write(tmp_path / "test", ("dog", "eel"), 3)
  write(tmp_path / "val", ("dog",), 2)
  data = load(str(tmp_path / "."))
  assert data.class_names == ("cat", "dog", "eel") and (len(data.train), len(data.test)) == (8, 6)
  assert data.test.label.tolist() == [1, 1, 1, 2, 2, 2]
  assert len(load(str(tmp_path), test_split="val").test) == 2
  with pytest.raises(DataError, match="found the folders test, train, val, expected --test_split=valid with"):
    load(str(tmp_path), test_split="valid")
  with pytest.raises(DataError, match="expected --train_split=learn with"):
    load(str(tmp_path), train_split="learn")


def test_classes_of_one_split_alone_and_a_single_class_are_said_once(tmp_path, capsys):
  def said(root):
    data = load(str(root))
    config = SimpleNamespace(dataset=str(root), batch_size=2, data_placement="device", eval_examples=0)
    for _ in range(2):
      make_feeds(data, config)
    return capsys.readouterr().err.splitlines()

  write(tmp_path / "a/train", ("cat", "dog"), 4)
  write(tmp_path / "a/test", ("dog", "eel"), 3)
  notes = said(tmp_path / "a")
  assert [note.partition(": ")[2].partition(": ")[2] for note in notes] == [
    "no training image is of eel: their test images count as errors in any accuracy.",
    "no test image is of cat: no figure says how these are recognised.",
  ]
  assert all(note.startswith(f"note: --dataset={tmp_path}/a: ") for note in notes)
  assert len(describe_classes(load_folder(str(tmp_path / "a"), decode_limit_bytes=1))) == 2  # files, not arrays
  write(tmp_path / "one", ("cat",), 4)
  (note,) = said(tmp_path / "one")
  assert note.endswith("all images are of one class (cat), so that an accuracy is 1 whatever is learned.")
  write(tmp_path / "two", ("cat", "dog"), 20)
  assert said(tmp_path / "two") == []
  write(tmp_path / "apart/train", [f"c{i}" for i in range(7)], 1)
  write(tmp_path / "apart/test", ("x",), 1)
  with pytest.raises(DataError, match="found the classes c0, c1, c2, c3, c4 and 2 more to learn from and x to test on"):
    said(tmp_path / "apart")


def test_a_class_may_be_called_train(tmp_path):
  write(tmp_path, ("car", "train"), 5)
  assert load(str(tmp_path)).class_names == ("car", "train")


def test_grey_beside_colour_is_colour(tmp_path):
  write(tmp_path, ("cat",), 5, mode="L")
  assert load(str(tmp_path)).image_shape == (6, 5, 1)
  write(tmp_path, ("dog",), 5, mode="RGB", suffix="jpg")
  assert load(str(tmp_path)).image_shape == (6, 5, 3)


def test_sizes_that_differ_need_a_size(tmp_path):
  write(tmp_path, ("cat",), 3)
  write(tmp_path, ("dog",), 3, size=(9, 9))
  with pytest.raises(DataError, match=r"6 x 5 \(cat/00.png\) and 9 x 9 \(dog/00.png\), expected one size; --im"):
    load(str(tmp_path))
  data = load(str(tmp_path), image_size=4)
  assert data.train.image.shape[1:] == data.image_shape == (4, 4, 3)


def test_files_are_decoded_once_until_they_change(tmp_path, cache):
  root = write(tmp_path / "pets", ("cat", "dog"), 5)
  load(str(root))
  entries = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
  assert len(entries) == 4
  load(str(root))
  assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")} == entries
  Image.new("RGB", (5, 6), (255, 0, 0)).save(root / "cat/00.png")
  data = load(str(root))
  assert 255 in np.concatenate([shades(data.train), shades(data.test)])
  (root / "dog/04.png").rename(root / "cat/04b.png")
  data = load(str(root))
  assert np.bincount(np.concatenate([data.train.label, data.test.label])).tolist() == [6, 4]


def test_what_is_too_large_is_read_as_it_is_needed(tmp_path):
  write(tmp_path, ("cat", "dog"), 10)
  data, whole = load_folder(str(tmp_path), decode_limit_bytes=300), load_folder(str(tmp_path))
  assert isinstance(data.train, RecordSplit) and isinstance(data.test, ArraySplit)
  np.testing.assert_array_equal(shades(data.train), shades(whole.train))
  (tmp_path / data.train.source.names[3]).write_bytes(b"spoilt")
  with pytest.raises(DataError, match=r"\(train\), (cat|dog)/\d\d.png: found an image that cannot be decoded"):
    data.train.read(np.array([3]))


def test_folders_that_cannot_be_used_are_one_sentence(tmp_path):
  (tmp_path / "cats").mkdir()
  for name, words in (("none", "no such folder: expected one with a folder"), ("cat", r"did you mean cats\?")):
    with pytest.raises(DataError, match=words):
      load(str(tmp_path / name))
  (tmp_path / "cats").rmdir()
  with pytest.raises(DataError, match="found no folder in"):
    load(str(tmp_path))
  write(tmp_path, ("cat",), 4)
  (tmp_path / "empty").mkdir()
  with pytest.raises(DataError, match="found no image in empty, expected png, jpg, jpeg, gif, webp, bmp files"):
    load(str(tmp_path))
  (tmp_path / "empty/a.png").write_bytes(b"spoilt")
  with pytest.raises(DataError, match=r"empty/a.png is no image that can be read \(cannot identify image file\)"):
    load(str(tmp_path))


def test_a_prepared_set_goes_before_a_folder_of_its_name(tmp_path, monkeypatch):
  write(tmp_path / "pets", ("cat", "dog"), 2)
  monkeypatch.chdir(tmp_path)
  assert load("pets", str(tmp_path / "elsewhere")).name == "pets"
  (tmp_path / "sets/pets").mkdir(parents=True)
  with pytest.raises(DataError, match="prepared version"):
    load("pets", str(tmp_path / "sets"))
  assert load("./pets", str(tmp_path / "sets")).num_classes == 2
