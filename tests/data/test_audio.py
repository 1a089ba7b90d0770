import struct

import numpy as np
import pytest
from scipy.io import wavfile

from mlnotes.data import DataError, load_audio, read_wav
from mlnotes.data.audio import WavSplit, load_wav_folder
from mlnotes.data.flags import AudioConfig, load_data, make_feeds
from mlnotes.data.split import NamedArrays


def write_folder(root, lengths, rate=100, splits=("",)):
  """{name: samples} of the 16-bit clips written, two classes in each of `splits`."""
  random, written = np.random.default_rng(0), {}
  for split in splits:
    for name in ("no", "yes"):
      (root / split / name).mkdir(parents=True)
      for i, length in enumerate(lengths):
        clip = random.integers(-(2**15), 2**15, length).astype(np.int16)
        wavfile.write(root / split / name / f"{i}.wav", rate, clip)
        written[f"{split}/{name}/{i}"] = clip
  return written


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("dtype", "half"), [(np.uint8, 2**7), (np.int16, 2**15), (np.int32, 2**31)])
def test_files_that_scipy_wrote(dtype, half, channels, tmp_path):
  low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
  clip = np.random.default_rng(0).integers(low, high, (50, channels), dtype, endpoint=True)
  clip[:3] = np.array([low, high, (low + high + 1) // 2])[:, np.newaxis]
  wavfile.write(tmp_path / "a.wav", 8000, clip)
  audio, rate = read_wav(tmp_path / "a.wav", "a.wav")
  expected = (clip.astype(np.float64) - (128 if dtype == np.uint8 else 0)) / half
  np.testing.assert_allclose(audio, expected.mean(axis=1), rtol=1e-6, atol=1e-7)
  assert rate == 8000 and audio.dtype == np.float32 and audio[0] == -1 and audio[2] == 0 and np.abs(audio).max() <= 1


def write_24_bits(path, samples, format=1, channels=1):
  body = b"".join(struct.pack("<i", sample)[:3] for sample in samples)
  head = struct.pack("<HHIIHH", format, channels, 16000, 16000 * 3 * channels, 3 * channels, 24)
  chunks = b"fmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", len(body)) + body
  path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)


def test_24_bits_byte_by_byte(tmp_path):
  samples = [0, 1, -1, 2**23 - 1, -(2**23), 0x123456, -0x123456, 256]
  write_24_bits(tmp_path / "a.wav", samples)
  audio, rate = read_wav(tmp_path / "a.wav", "a.wav")
  np.testing.assert_array_equal(audio, np.array(samples) / 2**23)
  assert rate == 16000
  write_24_bits(tmp_path / "b.wav", samples, channels=2)
  np.testing.assert_array_equal(read_wav(tmp_path / "b.wav", "")[0], np.array(samples).reshape(4, 2).sum(1) / 2**24)


def test_a_folder_is_its_files(tmp_path, capsys):
  written = write_folder(tmp_path, (5, 20, 30), splits=("train", "test"))
  audio = load_audio(str(tmp_path), seconds=0.2)
  assert audio.class_names == ("no", "yes") and audio.rate == 100 and audio.num_classes == 2
  assert audio.notes == ("4 of 12 clips are longer than --seconds=0.2 and cut there.",)
  for split, name in ((audio.train, "train"), (audio.test, "test")):
    clips = [written[f"{name}/{label}/{i}"][:20] for label in ("no", "yes") for i in range(3)]
    expected = np.array([np.pad(clip / 2**15, (0, 20 - len(clip))) for clip in clips])
    np.testing.assert_array_equal(split.arrays["audio"], expected)
    np.testing.assert_array_equal(split.arrays["length"], [5, 20, 20] * 2)
    np.testing.assert_array_equal(split.arrays["label"], [0, 0, 0, 1, 1, 1])
  read = load_wav_folder(str(tmp_path), seconds=0.2, decode_limit_bytes=1)
  assert isinstance(read.train, WavSplit) and isinstance(audio.train, NamedArrays)
  index = np.array([4, 0, 4])
  for name, value in read.train.read(index).items():
    np.testing.assert_array_equal(value, audio.train.arrays[name][index])
  assert read.train.nbytes == audio.train.nbytes
  assert load_audio(str(tmp_path), seconds=0.0).train.arrays["audio"].shape == (6, 30)
  config = AudioConfig(dataset=str(tmp_path), seconds=0.2, batch_size=4)
  make_feeds(load_data(config), config)
  assert "4 of 12 clips are longer" in capsys.readouterr().err


def test_what_is_too_large_is_streamed_from_its_files(tmp_path):
  write_folder(tmp_path, range(1, 11))
  feeds = []
  for limit in (1, 2**20):
    audio = load_wav_folder(str(tmp_path), seconds=0.05, decode_limit_bytes=limit)
    placement = "auto" if limit == 1 else "stream"
    feeds.append(make_feeds(audio, AudioConfig(dataset=str(tmp_path), batch_size=4, data_placement=placement)))
  assert feeds[0].fingerprint == feeds[1].fingerprint
  for _ in range(5):
    first, second = (feed.train.next() for feed in feeds)
    for name in ("audio", "length", "label", "index"):
      np.testing.assert_array_equal(first[name], second[name])
  for feed in feeds:
    feed.train.close()


def test_classes_of_one_split_alone_are_said(tmp_path, capsys):
  write_folder(tmp_path, (3, 4), splits=("train", "test"))
  for file in (tmp_path / "train" / "yes").iterdir():
    file.unlink()
  (tmp_path / "train" / "yes").rmdir()
  for limit in (1, 2**20):
    config = AudioConfig(dataset=f"{tmp_path} {limit}", batch_size=1)  # a note is said once for each data set
    feed = make_feeds(load_wav_folder(str(tmp_path), decode_limit_bytes=limit), config).train
    if limit == 1:
      feed.close()
    assert "no training clip is of yes: their test clips count as errors" in capsys.readouterr().err


def test_a_tenth_of_one_folder_is_set_aside(tmp_path):
  written = write_folder(tmp_path, range(1, 11))
  audio = load_audio(str(tmp_path), seconds=0.1)
  found = np.concatenate([split.arrays["audio"] for split in audio[1:3]])
  expected = np.array([np.pad(clip / 2**15, (0, 10 - len(clip))) for clip in written.values()])
  assert len(audio.test) == 2
  np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(expected, axis=0))


@pytest.mark.parametrize("dtype", [np.float64, np.int16])
def test_arrays_of_a_file(dtype, tmp_path):
  clips = np.random.default_rng(0).integers(-(2**15), 2**15, (6, 8)).astype(np.int16)
  given = clips if dtype == np.int16 else clips / 2**15
  label, length = np.array(["b", "a", "b", "a", "a", "b"]), np.array([8, 3, 8, 1, 8, 2])
  np.savez(tmp_path / "a.npz", audio=given[:4], label=label[:4], rate=8, length=length[:4], audio_test=given[4:],
           label_test=label[4:], length_test=length[4:])  # fmt: skip
  audio = load_audio(str(tmp_path / "a.npz"), seconds=0.75)
  assert audio.class_names == ("a", "b") and audio.rate == 8 and "3 of 6 clips" in audio.notes[0]
  for split, part in ((audio.train, slice(4)), (audio.test, slice(4, 6))):
    expected = np.where(np.arange(6) < length[part, np.newaxis], clips[part, :6] / 2**15, 0)
    np.testing.assert_array_equal(split.arrays["audio"], expected.astype(np.float32))
    np.testing.assert_array_equal(split.arrays["length"], np.minimum(length[part], 6))
    np.testing.assert_array_equal(split.arrays["label"], label[part] == "b")
  np.savez(tmp_path / "a.npz", audio=given, label=label, rate=np.array([8]))
  audio = load_audio(str(tmp_path / "a.npz"), seconds=2.0)
  assert (len(audio.train), len(audio.test)) == (5, 1) and audio.train.arrays["audio"].shape == (5, 16)
  assert not audio.train.arrays["audio"][:, 8:].any() and set(audio.train.arrays["length"]) == {8}


def test_the_tones_have_the_pitch_of_their_class():
  audio = load_audio("tones", seconds=0.0)
  scale = 261.63 * 2 ** (np.array([0, 4, 7, 12]) / 12)  # equal temperament
  for split in (audio.train, audio.test):
    arrays = split.arrays
    loudest = np.abs(np.fft.rfft(arrays["audio"], 8 * audio.rate)).argmax(axis=1) / 8
    np.testing.assert_allclose(loudest, scale[arrays["label"]], rtol=0.025)
    assert arrays["length"].min() >= audio.rate // 4 and arrays["length"].max() <= audio.rate // 2
    past = np.arange(arrays["audio"].shape[1]) >= arrays["length"][:, np.newaxis]
    assert not arrays["audio"][past].any() and np.abs(arrays["audio"]).max() <= 1
    assert len(set(np.bincount(arrays["label"]))) == 1
  both = np.concatenate([split.arrays["audio"] for split in audio[1:3]])
  assert len(np.unique(both, axis=0)) == 500
  assert load_audio("tones").train.arrays["audio"].shape == (400, 8000)


def test_files_that_cannot_be_used_are_refused(tmp_path):
  write_folder(tmp_path, (5, 5))
  path = tmp_path / "yes" / "0.wav"
  whole = path.read_bytes()

  def refused(sentence):
    with pytest.raises(DataError, match=sentence) as error:
      load_audio(str(tmp_path))
    assert str(error.value).startswith(f"--dataset={tmp_path}: ")

  path.write_bytes(whole[:-3])
  refused(r"yes/0.wav is cut short \(found 3 samples\), expected 5 as its head says")
  path.write_bytes(whole[:20])
  refused("yes/0.wav is not readable .*, expected a .wav file of PCM samples")
  path.write_bytes(b"hello, world")
  refused("yes/0.wav is not readable .*, expected a .wav file of PCM samples")
  for clip, rate, sentence in (
    (np.zeros(4, np.int16), 200, r"found 100 samples a second \(no/0.wav\) and 200 \(yes/0.wav\), expected one rate"),
    (np.zeros(4, np.float32), 100, "yes/0.wav is not readable .*, expected a .wav file of PCM samples"),
    (np.zeros((4, 3), np.int16), 100, "has 3 channels of 16 bits, expected 1 or 2 of 8, 16, 24 or 32"),
    (np.zeros(0, np.int16), 100, "yes/0.wav has no sample, expected one or more"),
  ):
    wavfile.write(path, rate, clip)
    refused(sentence)
  for file in (tmp_path / "yes").iterdir():
    file.unlink()
  refused("found no clip in yes, expected wav files in the folder of each class")
  with pytest.raises(DataError, match="no such folder: expected one with a folder of clips for each class"):
    load_audio("speech")
  with pytest.raises(DataError, match=r"--seconds=5e-05 is no sample at 8000 a second, expected 0.000125 or more"):
    load_audio("tones", seconds=5e-5)


CLIPS = np.zeros((3, 4), np.float32)


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    ({"rate": None}, "found the arrays audio, label, expected rate too"),
    ({"audio_test": CLIPS}, "expected label_test too"),
    ({"rate": 0}, "rate is 0, expected one whole number"),
    ({"rate": [8, 16]}, r"rate is \[8, 16\], expected one whole number"),
    ({"audio": CLIPS.astype(np.int64)}, r"audio has dtype int64, expected real numbers in \[-1, 1\] or int16"),
    ({"audio": CLIPS[0]}, r"audio has shape \(4,\), expected N T"),
    ({"audio": CLIPS + np.nan}, r"audio\[0, 0\] is nan, expected finite numbers"),
    ({"audio": CLIPS + np.eye(3, 4, 1) * 1.5}, r"audio\[0, 1\] is 1.5, expected -1 to 1"),
    ({"label": np.zeros(2, int)}, r"label has shape \(2,\), expected N = 3 as in audio"),
    ({"label": np.zeros(3)}, "label has dtype float64, expected integers or words, one for each clip"),
    ({"length": [1, 5, 2]}, r"length\[1\] is 5, expected 1 to 4"),
  ],
)
def test_arrays_that_cannot_be_used_are_refused(change, sentence, tmp_path):
  arrays = {"audio": CLIPS, "label": np.zeros(3, int), "rate": 8, **change}
  np.savez(tmp_path / "a.npz", **{name: value for name, value in arrays.items() if value is not None})
  with pytest.raises(DataError, match=sentence) as refused:
    load_audio(str(tmp_path / "a.npz"))
  assert str(refused.value).startswith(f"--dataset={tmp_path / 'a.npz'}: ")


def test_flags_without_effect():
  assert set(AudioConfig().idle_flags()) == {"train_split", "test_split"}
  assert not AudioConfig(dataset="clips").idle_flags()
