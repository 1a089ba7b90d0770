import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from mlnotes.data import ArraySplit, DataError, RecordSplit, load
from mlnotes.data.decoded import decode_once
from mlnotes.data.tfds_source import load_tfds

SHAPE = (6, 5, 3)
CLASSES = ("cat", "dog", "eel")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("MLNOTES_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache" / "data"


def write_tfds(root, sizes, name="pets", version="1.0.0", image_shape=SHAPE, file_format="array_record", label="label"):
  """A TFDS directory as `tfds build` leaves it, made without TensorFlow. Returns {split: (images, labels)}."""
  from array_record.python.array_record_module import ArrayRecordWriter
  from tensorflow_datasets.proto import tf_example_pb2

  directory = root / name / version
  name = name.partition("/")[0]
  directory.mkdir(parents=True)
  rng = np.random.default_rng(0)
  written, splits = {}, []
  for split, size in sizes.items():
    images, labels = rng.integers(0, 256, (size, *SHAPE), dtype=np.uint8), rng.integers(0, 3, size)
    writer = ArrayRecordWriter(str(directory / f"{name}-{split}.{file_format}-00000-of-00001"), "group_size:1")
    for image, value in zip(images, labels):
      encoded = io.BytesIO()
      Image.fromarray(image).save(encoded, "PNG")
      example = tf_example_pb2.Example()
      example.features.feature["image"].bytes_list.value.append(encoded.getvalue())
      example.features.feature[label].int64_list.value.append(int(value))
      writer.write(example.SerializeToString())
    writer.close()
    written[split] = images, labels
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    splits.append({"name": split, "shardLengths": [str(size)], "numBytes": "1", "filepathTemplate": template})
  info = {"name": name, "version": version, "fileFormat": file_format, "splits": splits}
  (directory / "dataset_info.json").write_text(json.dumps(info))
  (directory / f"{label}.labels.txt").write_text("\n".join(CLASSES))
  features = "tensorflow_datasets.core.features."
  dimensions = {"dimensions": [str(n) for n in image_shape]}
  image_json = {"pythonClassName": f"{features}image_feature.Image", "image": {"dtype": "uint8", "shape": dimensions}}
  class_name = f"{features}class_label_feature.ClassLabel"
  label_json = {"pythonClassName": class_name, "classLabel": {"numClasses": "3"}}
  content = {"featuresDict": {"features": {"image": image_json, label: label_json}}}
  content["pythonClassName"] = f"{features}features_dict.FeaturesDict"
  (directory / "features.json").write_text(json.dumps(content))
  return written


def encode(pixels):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


def test_digits_are_split_once_for_all():
  digits, again = load("digits"), load("digits")
  assert (len(digits.train), len(digits.test)) == (1437, 360)
  assert digits.image_shape == (8, 8, 1) and digits.levels == 17 and digits.num_classes == 10
  np.testing.assert_array_equal(digits.train.image, again.train.image)
  # Together the splits are scikit-learn's images, each exactly once.
  both = np.concatenate([digits.train.image, digits.test.image]).reshape(1797, 64)
  original = load_digits().data.astype(np.uint8)
  np.testing.assert_array_equal(both[np.lexsort(both.T)], original[np.lexsort(original.T)])
  assert digits.train.image.max() == 16
  # Stratified: each class within one example of its share.
  share = np.bincount(load_digits().target) * 360 / 1797
  assert np.abs(np.bincount(digits.test.label) - share).max() < 1
  # Shuffled: the first hundred are not the first hundred of the file, which cycle through the classes.
  assert np.mean(digits.train.label[:100] == load_digits().target[:100]) < 0.4


def test_digits_in_halves_are_those_of_scikit_learn_in_their_order():
  """The floor that goes with them: 96.1 % by the nearest neighbour."""
  halves, original = load("digits_halves"), load_digits()
  assert (halves.name, len(halves.train), len(halves.test)) == ("digits_halves", 898, 899)
  both = np.concatenate([halves.train.image, halves.test.image]).reshape(1797, 64)
  np.testing.assert_array_equal(both, original.data)
  np.testing.assert_array_equal(np.concatenate([halves.train.label, halves.test.label]), original.target)


def write_npz(path, **arrays):
  rng = np.random.default_rng(0)
  defaults = {"image": rng.integers(0, 256, (20, 4, 3), dtype=np.uint8), "label": np.arange(20) % 4}
  np.savez(path, **{k: v for k, v in {**defaults, **arrays}.items() if v is not None})
  return str(path)


def test_npz_with_its_own_test_split(tmp_path):
  image = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
  path = write_npz(tmp_path / "mine.npz", image_test=image, label_test=np.array([4, 0, 1, 2, 3], np.uint8))
  data = load(path)
  assert data.name == "mine" and data.num_classes == 5 and data.levels == 256 and data.image_shape == (4, 3, 1)
  assert len(data.train) == 20
  np.testing.assert_array_equal(data.test.image[..., 0], image)
  assert data.test.label.dtype == np.int32


def test_npz_sets_a_tenth_aside(tmp_path):
  image = np.arange(60, dtype=np.uint8).reshape(60, 1, 1, 1)
  path = write_npz(tmp_path / "a.npz", image=image, label=np.arange(60))
  data, again = load(path), load(path)
  assert (len(data.train), len(data.test)) == (54, 6)
  np.testing.assert_array_equal(np.sort(np.concatenate([data.train.label, data.test.label])), np.arange(60))
  np.testing.assert_array_equal(data.train.image.reshape(-1), data.train.label)
  np.testing.assert_array_equal(data.test.label, again.test.label)
  assert not np.array_equal(np.sort(data.test.label), np.arange(6))


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({"image": np.zeros((20, 4, 3), np.float32)}, r"dtype float32, expected uint8 \(floats .*astype"),
    ({"image": np.zeros((20, 4), np.uint8)}, r"shape \(20, 4\), expected N H W or N H W C"),
    ({"image": np.zeros((0, 4, 4), np.uint8), "label": np.zeros(0, int)}, "empty"),
    ({"label": np.zeros(20)}, r"dtype float64, expected integers or words, .* \(label.astype\(int\) makes them\)"),
    ({"label": np.full(20, 0.5)}, "dtype float64, expected integers or words, one for each image.$"),
    ({"label": np.array([np.nan] * 3 + [1.0] * 17)}, "dtype float64, .* 3 of them are not finite"),
    ({"label": np.zeros((20, 1), int)}, r"label has shape \(20, 1\), expected integers or words, one for each image"),
    ({"label": np.full(20, 2**64 - 1, np.uint64)}, "value 18446744073709551615, expected classes from 0 to"),
    ({"image": np.zeros((20, 3, 8, 8), np.uint8)}, r"\(20, 3, 8, 8\), expected N H W C .*channels first .*moveaxis"),
    ({"image": np.zeros((20, 8, 8, 5), np.uint8)}, r"\(20, 8, 8, 5\), expected N H W C with C of 1, 3 or 4.$"),
    (
      {"image": np.zeros((4000, 1, 1), np.uint8), "label": 19_000_000 + np.arange(4000)},
      r"found 4000 distinct labels \(up to 19003999\) of 4000 images, expected classes",
    ),
    ({"label": np.zeros(19, int)}, r"shape \(19,\), expected \(20,\)"),
    ({"label": np.full(20, -1)}, "value -1, expected classes from 0"),
    ({"label": None}, "found the arrays image, expected image and label"),
    (
      {"image_tset": np.zeros((3, 4, 4))},
      "found an array 'image_tset', which nothing reads: did you mean 'image_test'?",
    ),
    ({"label_test": np.zeros(3, int)}, "only one of image_test and label_test"),
    ({"image_test": np.zeros((3, 5, 5), np.uint8), "label_test": np.zeros(3, int)}, r"shape \(5, 5, 1\), expected"),
    ({"image": np.zeros((1, 4, 4), np.uint8), "label": np.zeros(1, int)}, "found 1 example, expected at least 2"),
    ({"label": np.array([None] * 20)}, "not readable"),
  ],
)
def test_unusable_npz_is_one_sentence(tmp_path, arrays, message):
  path = write_npz(tmp_path / "bad.npz", **arrays)
  with pytest.raises(DataError, match=message) as error:
    load(path)
  assert str(error.value).startswith(f"--dataset={path}") and "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("label", "names"),
  [
    (np.repeat([1, 2, 3], 10), ("1", "2", "3")),
    (np.repeat([7, 19_000_000, 2**40], 10), ("7", "19000000", "1099511627776")),
    (np.repeat(np.array([5, 250], np.uint8), 15), ("5", "250")),
    (np.repeat(["eel", "cat", "dog"], 10), ("cat", "dog", "eel")),
    (np.repeat([0, 1, 2], 10), ("0", "1", "2")),
  ],
)
def test_classes_are_the_labels_that_are_there_under_their_names(tmp_path, label, names):
  image = np.arange(30, dtype=np.uint8).reshape(30, 1, 1)  # tells where each example has gone
  data = load(write_npz(tmp_path / "a.npz", image=image, label=label))
  assert data.num_classes == len(names) and data.class_names == names
  for split in (data.train, data.test):
    assert [names[i] for i in split.label] == [str(label[i]) for i in split.image.reshape(-1)]


def test_classes_of_both_splits_are_counted_together(tmp_path):
  image, label = np.zeros((4, 4, 3), np.uint8), np.array([9, 2, 2, 30], np.uint64)
  data = load(write_npz(tmp_path / "a.npz", label=np.arange(20) % 2 * 2 + 1, image_test=image, label_test=label))
  assert data.class_names == ("1", "2", "3", "9", "30")
  np.testing.assert_array_equal(data.train.label, np.arange(20) % 2 * 2)
  np.testing.assert_array_equal(data.test.label, [3, 1, 1, 4])


def test_arrays_are_resized(tmp_path):
  image = np.random.default_rng(0).integers(0, 256, (20, 8, 4, 3), dtype=np.uint8)
  data = load(write_npz(tmp_path / "a.npz", image=image), image_size=4)
  whole = load(write_npz(tmp_path / "a.npz", image=image))
  assert data.image_shape == data.train.image.shape[1:] == (4, 4, 3)
  expected = Image.fromarray(whole.train.image[3]).resize((4, 4), Image.Resampling.HAMMING)
  np.testing.assert_array_equal(data.train.image[3], expected)
  assert load("digits", image_size=16).image_shape == (16, 16, 1)


def test_npz_that_is_no_archive(tmp_path):
  whole = (tmp_path / "whole.npz", tmp_path / "cut.npz", tmp_path / "text.npz", tmp_path / "array.npz")
  write_npz(whole[0])
  content = whole[0].read_bytes()
  whole[1].write_bytes(content[: len(content) // 2])
  whole[2].write_text("hello")
  with open(whole[3], "wb") as file:
    np.save(file, np.zeros(3))
  for path in whole[1:]:
    with pytest.raises(DataError, match=r"not an .npz archive"):
      load(str(path))
  damaged = bytearray(content)
  damaged[100:140] = bytes(40)
  whole[1].write_bytes(damaged)
  with pytest.raises(DataError, match="not readable"):
    load(str(whole[1]))
  with pytest.raises(DataError, match="no such file"):
    load(str(tmp_path / "none.npz"))


def test_tfds_is_decoded_once_and_then_mapped(tmp_path, cache):
  written = write_tfds(tmp_path, {"train": 700, "test": 30})
  data = load("pets", str(tmp_path))
  assert data.class_names == CLASSES and data.num_classes == 3 and data.image_shape == SHAPE and data.levels == 256
  for split, (images, labels) in written.items():
    np.testing.assert_array_equal(getattr(data, split).image, images)
    np.testing.assert_array_equal(getattr(data, split).label, labels)
  entries = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
  assert len(entries) == 4 and not list(cache.glob(".*"))
  again = load("pets", str(tmp_path))
  np.testing.assert_array_equal(again.train.image, written["train"][0])
  assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")} == entries


def test_changed_files_are_decoded_again(tmp_path, cache):
  write_tfds(tmp_path, {"train": 5, "test": 5})
  load("pets", str(tmp_path))
  record = tmp_path / "pets/1.0.0/pets-train.array_record-00000-of-00001"
  os.utime(record, ns=(1, 1))
  load("pets", str(tmp_path))
  assert len(list(cache.iterdir())) == 3


def test_splits_can_be_named_and_sliced(tmp_path):
  images = write_tfds(tmp_path, {"small1": 20, "small2": 4})["small1"][0]
  data = load("pets", str(tmp_path), "small1[:75%]", "small1[75%:]")
  np.testing.assert_array_equal(data.train.image, images[:15])
  np.testing.assert_array_equal(data.test.image, images[15:])
  with pytest.raises(DataError, match=r"no split 'train'; found small1, small2"):
    load("pets", str(tmp_path))


def test_large_sets_are_read_by_index(tmp_path, cache):
  images, labels = write_tfds(tmp_path, {"train": 20, "test": 4})["train"]
  data = load_tfds("pets", str(tmp_path), decode_limit_bytes=10 * images[0].size)
  assert isinstance(data.train, RecordSplit) and isinstance(data.test, ArraySplit)
  batch = data.train.read(np.array([3, 19, 3]))
  np.testing.assert_array_equal(batch["image"], images[[3, 19, 3]])
  np.testing.assert_array_equal(batch["label"], labels[[3, 19, 3]])
  assert data.train.nbytes == images.nbytes + 4 * 20


def test_the_highest_version_is_read_unless_one_is_named(tmp_path):
  for size, version in [(4, "1.9.0"), (5, "1.10.0")]:
    write_tfds(tmp_path, {"train": size, "test": 2}, version=version)
  assert len(load("pets", str(tmp_path)).train) == 5
  assert len(load("pets:1.9.0", str(tmp_path)).train) == 4
  with pytest.raises(DataError, match=r"found 1.10.0, 1.9.0 .* expected a prepared version \(2.0.0\)"):
    load("pets:2.0.0", str(tmp_path))


def test_configurations_are_listed(tmp_path):
  write_tfds(tmp_path, {"train": 4, "test": 2}, name="pets/big")
  with pytest.raises(DataError, match="only the configurations pets/big"):
    load("pets", str(tmp_path))


def test_absent_data_set_names_the_ways_out(tmp_path):
  (tmp_path / "mnist").mkdir()
  for name, near in [("mnits", "'mnist'"), ("digist", "'digits'")]:
    with pytest.raises(DataError) as error:
      load(name, str(tmp_path))
    message = str(error.value)
    assert "\n" not in message and f"did you mean {near}" in message
    assert str(tmp_path / name) in message and "--data_dir=" in message and "--dataset=path.npz" in message
    assert "pip install -e '.[tf]'" in message and "--dataset=FOLDER" in message
  with pytest.raises(DataError, match="no such directory"):
    load("mnist", str(tmp_path / "nowhere"))
  with pytest.raises(DataError, match=r"found nothing in .*mnist"):
    load("mnist", str(tmp_path))


def test_data_dir_defaults_to_that_of_tfds(tmp_path, monkeypatch):
  write_tfds(tmp_path, {"train": 4, "test": 2})
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  assert len(load("pets").train) == 4


def test_sets_that_cannot_be_used(tmp_path):
  write_tfds(tmp_path / "a", {"train": 4, "test": 2}, file_format="tfrecord")
  with pytest.raises(DataError, match="format tfrecord, which has no random access; expected array_record"):
    load("pets", str(tmp_path / "a"))
  write_tfds(tmp_path / "b", {"train": 4, "test": 2}, image_shape=(-1, -1, 3))
  with pytest.raises(DataError, match="one fixed shape"):
    load("pets", str(tmp_path / "b"))
  write_tfds(tmp_path / "c", {"train": 4, "test": 2}, label="breed")
  with pytest.raises(DataError, match=r"found the features breed \(ClassLabel\), image \(Image\), expected image"):
    load("pets", str(tmp_path / "c"))
  assert load("pets", str(tmp_path / "b"), image_size=4).train.image.shape == (4, 4, 4, 3)
  write_tfds(tmp_path / "d", {"train": 4, "test": 2}, image_shape=(7, 5, 3))
  with pytest.raises(DataError, match=r"shape \(6, 5, 3\), expected \(7, 5, 3\)"):
    load("pets", str(tmp_path / "d"))
  write_tfds(tmp_path / "e", {"train": 4, "test": 2})
  (tmp_path / "e/pets/1.0.0/pets-test.array_record-00000-of-00001").unlink()
  with pytest.raises(DataError, match="expected the files of split 'test'"):
    load("pets", str(tmp_path / "e"))


class BrokenRecords:
  def __init__(self, image=b"", label=0):
    self.record = {"image": image, "label": label}

  def __len__(self):
    return 9

  def __getitems__(self, positions):
    if self.record["image"] is None:
      raise RuntimeError("checksum of block 3")
    return [self.record for _ in positions]


def test_a_damaged_record_is_named_and_the_cache_not_blamed(tmp_path):
  write_tfds(tmp_path, {"train": 4, "test": 2})
  whole = encode(np.zeros((6, 5, 3), np.uint8))
  for source, message in (
    (BrokenRecords(b"no image"), "record 7: found an image that cannot be decoded \\(no image file\\)"),
    (BrokenRecords(whole[: len(whole) // 2]), "record 7: found an image that cannot be decoded"),
    (BrokenRecords(None), "records 7 to 7: not readable \\(checksum of block 3\\)"),
    (BrokenRecords(whole, -1), "record 7: label has the value -1, expected 0 to 2"),
    (BrokenRecords(whole, 3), "record 7: label has the value 3, expected 0 to 2"),
  ):
    records = RecordSplit(source, SHAPE, "--dataset=pets: split 'train'", 3)
    with pytest.raises(DataError, match=f"--dataset=pets: split 'train', {message}") as error:
      records.read(np.array([7]))
    assert "CACHE" not in str(error.value)
    if source.record["label"] == 0:
      with pytest.raises(DataError, match="split 'train', record") as error:
        decode_once(records, "--dataset=pets", "pets", [])
      assert "CACHE" not in str(error.value)


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
  write_tfds(tmp_path, {"train": 4, "test": 2})
  (tmp_path / "file").touch()
  monkeypatch.setenv("MLNOTES_CACHE", str(tmp_path / "file"))
  with pytest.raises(DataError, match=r"expected a writable .* MLNOTES_CACHE"):
    load("pets", str(tmp_path))


LOADER = """
import sys
from mlnotes.data import load, make_stream_feed
data = load(*sys.argv[1:])
print(len(data.train))
"""


def load_apart(tmp_path, refused, *args):
  """Loads a data set in a new process in which importing any of the modules `refused` fails."""
  for name in refused:
    (tmp_path / "refused" / name).mkdir(parents=True)
    (tmp_path / "refused" / name / "__init__.py").write_text(f"raise AssertionError('imports {name}')")
  path = os.pathsep.join([str(tmp_path / "refused"), *sys.path])
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
  return subprocess.run([sys.executable, "-c", LOADER, *args], capture_output=True, text=True, env=environment)


def test_tfds_is_read_without_tensorflow(tmp_path):
  write_tfds(tmp_path, {"train": 9, "test": 2})
  result = load_apart(tmp_path, ["tensorflow", "torch"], "pets", str(tmp_path))
  assert result.returncode == 0 and result.stdout.strip() == "9", result.stderr
  # The guard itself works: the same run does import TFDS.
  assert "imports tensorflow_datasets" in load_apart(tmp_path, ["tensorflow_datasets"], "pets", str(tmp_path)).stderr


def test_npz_is_read_without_tfds(tmp_path):
  path = write_npz(tmp_path / "a.npz")
  result = load_apart(tmp_path, ["tensorflow", "tensorflow_datasets", "grain", "matplotlib", "sklearn"], path)
  assert result.returncode == 0 and result.stdout.strip() == "18", result.stderr
