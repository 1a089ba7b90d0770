"""Audio: clips of sound with a class each, as samples in [-1, 1].

Tones need no file; a folder has a folder of .wav files for each class; an .npz file has `audio`, `label`, `rate`.
"""

import wave
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Float64, Int

from mlnotes.data.class_folders import ClassFiles, find_class_files
from mlnotes.data.dataset import name_classes
from mlnotes.data.decoded import DECODE_LIMIT_BYTES
from mlnotes.data.feed import on_cpu
from mlnotes.data.image import DataError
from mlnotes.data.npz import read_npz
from mlnotes.data.order import hold_out
from mlnotes.data.split import Expected, NamedArrays, Split, check_arrays
from mlnotes.engine.experiment import root_key


def expect_audio(num_classes: int) -> Mapping[str, Expected]:
  """What a split of clips is: samples, how many of a row are not padding, and classes."""
  return {
    "audio": Expected("NT", "f", np.float32),
    "length": Expected("N", "iu", np.int32, low=1),
    "label": Expected("N", "iu", np.int32, 0, num_classes - 1),
  }


class Audio(NamedTuple):
  """Two splits of clips {"audio": float32 (B, T), "length": int32 (B,), "label": int32 (B,)}.

  `audio` is in [-1, 1], `rate` samples a second, 0 behind the `length` samples of a clip. `notes` are sentences about
  what was cut.
  """

  name: str
  train: Split
  test: Split
  class_names: tuple[str, ...]
  rate: int
  notes: tuple[str, ...] = ()

  @property
  def num_classes(self) -> int:
    return len(self.class_names)


def audio_kind(dataset: str) -> Literal["tones", "npz", "folder"]:
  """What `--dataset` names, without reading it."""
  return "tones" if dataset == "tones" else "npz" if dataset.endswith(".npz") else "folder"


def load_audio(
  dataset: str,
  train_split: str = "train",
  test_split: str = "test",
  seconds: float = 1.0,
) -> Audio:
  """Reads the clips that `--dataset` names.

  "tones":     notes of a scale with phase, loudness, length and noise of their own; the note is the class.
  a folder:    .wav files (PCM of 8, 16, 24, 32 bits; of two channels the mean) in sub-folders called after their
               classes, these in `train_split` and `test_split` or not (then a tenth is set aside).
  "path.npz":  `audio` (N, T), real numbers in [-1, 1] or int16, `label` (N,), `rate`, optionally `length` (N,); and
               the same with _test, but for the rate (else a tenth is set aside).

  All have one rate. Clips are cut at `seconds` or filled up with zeros; 0: as long as the longest. Raises DataError,
  one sentence, if there are no such clips or they cannot be used.
  """
  kind = audio_kind(dataset)
  if kind == "folder":
    return load_wav_folder(dataset, train_split, test_split, seconds)
  return _load_tones(seconds) if kind == "tones" else _load_npz(dataset, seconds)


def _find_width(flag: str, seconds: float, rate: int, longest: int) -> int:
  """Samples of every clip."""
  width = round(seconds * rate) if seconds else longest
  if width < 1:
    raise DataError(f"{flag}: --seconds={seconds} is no sample at {rate} a second, expected {1 / rate:.3g} or more.")
  return width


def _note_cut(lengths: Sequence[int], width: int, seconds: float) -> tuple[str, ...]:
  cut = sum(length > width for length in lengths)
  return (f"{cut} of {len(lengths)} clips are longer than --seconds={seconds} and cut there.",) if cut else ()


# -- .wav files --------------------------------------------------------------------------------------------------------


class _Head(NamedTuple):
  rate: int
  channels: int
  bytes: int
  length: int


class WavSplit:
  """Clips that are read from their .wav files as they are needed."""

  arrays: ClassVar[None] = None

  def __init__(self, root: Path, files: ClassFiles, width: int, flag: str):
    self.root, self.source, self.width, self.flag = root, files, width, flag

  def __len__(self) -> int:
    return len(self.source.names)

  @property
  def nbytes(self) -> int:
    return len(self) * (4 * self.width + 8)

  def read(self, index: Int[np.ndarray, " B"]) -> Mapping[str, np.ndarray]:
    audio, length = np.zeros((len(index), self.width), np.float32), np.zeros(len(index), np.int32)
    for row, i in enumerate(index):
      clip = read_wav(self.root / self.source.names[i], f"{self.flag}: {self.source.names[i]}")[0][: self.width]
      audio[row, : len(clip)], length[row] = clip, len(clip)
    return {"audio": audio, "length": length, "label": np.array([self.source.labels[i] for i in index], np.int32)}


def read_wav(path: str | Path, where: str) -> tuple[Float32[np.ndarray, " T"], int]:
  """(samples in [-1, 1], samples a second) of a .wav file; of two channels their mean.

  PCM of 8 (unsigned), 16, 24 or 32 bits, divided by half of their range. Raises DataError that begins with `where`.
  """
  head, data = _open_wav(path, where, whole=True)
  if len(data) != head.length * head.bytes * head.channels:
    there = len(data) // (head.bytes * head.channels)
    raise DataError(f"{where} is cut short (found {there} samples), expected {head.length} as its head says.")
  return decode_pcm(data, head.bytes).reshape(-1, head.channels).mean(axis=1).astype(np.float32), head.rate


def decode_pcm(data: bytes, width: int) -> Float64[np.ndarray, " T"]:
  """Samples of `width` bytes, the least first, in [-1, 1); of a single byte 128 is 0."""
  raw = np.frombuffer(data, np.uint8)
  if width == 1:
    return (raw - 128.0) / 128
  wide = np.zeros((len(raw) // width, 4), np.uint8)
  wide[:, 4 - width :] = raw.reshape(-1, width)  # the high bytes of 32 bits, so that the sign is in its place
  return wide.view("<i4")[:, 0] / 2.0**31


def _open_wav(path: str | Path, where: str, whole: bool = False) -> tuple[_Head, bytes]:
  expected = "a .wav file of PCM samples"
  try:
    with wave.open(str(path), "rb") as file:
      head = _Head(file.getframerate(), file.getnchannels(), file.getsampwidth(), file.getnframes())
      data = file.readframes(head.length) if whole else b""
  except OSError as error:
    raise DataError(f"{where} cannot be read ({error.strerror}), expected {expected}.") from error
  except (wave.Error, EOFError, ValueError, ZeroDivisionError) as error:
    raise DataError(f"{where} is not readable ({error or 'it ends early'}), expected {expected}.") from error
  if head.bytes > 4 or head.channels > 2:
    found = f"{head.channels} channels of {8 * head.bytes} bits"
    raise DataError(f"{where} has {found}, expected 1 or 2 of 8, 16, 24 or 32.")
  if not head.length or not head.rate:
    raise DataError(f"{where} has no sample, expected one or more.")
  return head, data


def load_wav_folder(
  folder: str,
  train_split: str = "train",
  test_split: str = "test",
  seconds: float = 1.0,
  decode_limit_bytes: int = DECODE_LIMIT_BYTES,
) -> Audio:
  """The .wav files under `folder`, as `load_audio` says; read as they are needed where they take more than
  `decode_limit_bytes` as arrays.
  """
  flag = f"--dataset={folder}"
  root, parts, classes = find_class_files(folder, train_split, test_split, (".wav",), "clip")
  names = [name for part in parts for name in part.names]
  with ThreadPoolExecutor() as pool:
    heads = list(pool.map(lambda name: _open_wav(root / name, f"{flag}: {name}")[0], names))
  rate = heads[0].rate
  for name, head in zip(names, heads):
    if head.rate != rate:
      raise DataError(
        f"{flag}: found {rate} samples a second ({names[0]}) and {head.rate} ({name}), expected one rate."
      )
  lengths = [head.length for head in heads]
  width = _find_width(flag, seconds, rate, max(lengths))
  if len(parts) == 1:
    parts = [
      ClassFiles(*(tuple(values[i] for i in index) for values in parts[0])) for index in hold_out(len(names), flag)
    ]
  splits = [WavSplit(root, part, width, flag) for part in parts]
  if sum(split.nbytes for split in splits) <= decode_limit_bytes:
    splits = [
      NamedArrays(check_arrays(flag, split.read(np.arange(len(split))), expect_audio(len(classes)))) for split in splits
    ]
  return Audio(root.resolve().name, *splits, classes, rate, _note_cut(lengths, width, seconds))


# -- arrays ------------------------------------------------------------------------------------------------------------


def _load_npz(path: str, seconds: float) -> Audio:
  flag = f"--dataset={path}"
  names = ["rate", *(f"{name}{end}" for name in ("audio", "label", "length") for end in ("", "_test"))]
  arrays = read_npz(path, flag, "audio, label and rate", names)
  needed = ["audio", "label", "rate"] + ["audio_test", "label_test"] * bool({"audio_test", "label_test"} & set(arrays))
  if lacking := [name for name in needed if name not in arrays]:
    raise DataError(f"{flag}: found the arrays {arrays.listed}, expected {lacking[0]} too.")
  if arrays["rate"].size != 1 or arrays["rate"].dtype.kind not in "iu" or arrays["rate"].item() < 1:
    raise DataError(f"{flag}: rate is {arrays['rate'].tolist()}, expected one whole number of samples a second.")
  rate, ends = int(arrays["rate"].item()), ("", "_test")[: 1 + ("audio_test" in arrays)]
  labels, classes = name_classes(flag, *(arrays[f"label{end}"] for end in ends), of="clip")
  parts = [_check_clips(flag, arrays, end, label, len(classes)) for end, label in zip(ends, labels)]
  lengths = np.concatenate([part["length"] for part in parts])
  width = _find_width(flag, seconds, rate, int(lengths.max()))
  parts = [_fit(part, width) for part in parts]
  if len(parts) == 1:
    parts = [{name: value[i] for name, value in parts[0].items()} for i in hold_out(len(lengths), flag)]
  splits = [NamedArrays(part) for part in parts]
  return Audio(Path(path).stem, *splits, classes, rate, _note_cut(lengths.tolist(), width, seconds))


def _check_clips(
  flag: str, arrays: Mapping[str, np.ndarray], end: str, label: np.ndarray, num_classes: int
) -> dict[str, np.ndarray]:
  audio, where = arrays[f"audio{end}"], f"{flag}{' (test)' if end else ''}"
  if audio.dtype == np.int16:
    audio = audio.astype(np.float32) / 2**15
  if audio.dtype.kind != "f":
    raise DataError(f"{where}: audio has dtype {audio.dtype}, expected real numbers in [-1, 1] or int16.")
  if audio.ndim != 2 or not audio.size:
    raise DataError(f"{where}: audio has shape {audio.shape}, expected N T, a clip and a sample or more.")
  length = arrays.get(f"length{end}", np.full(len(audio), audio.shape[1], np.int32))
  expected = expect_audio(num_classes)
  expected["length"] = expected["length"]._replace(high=audio.shape[1])
  found = check_arrays(where, {"audio": audio, "length": length, "label": label}, expected)
  for place in np.argwhere(np.abs(audio) > 1)[:1]:
    raise DataError(f"{where}: audio{place.tolist()} is {audio[tuple(place)]}, expected -1 to 1.")
  return found


def _fit(arrays: Mapping[str, np.ndarray], width: int) -> dict[str, np.ndarray]:
  """The clips cut at `width` or filled up with zeros, which are behind `length` too."""
  audio, length = arrays["audio"][:, :width], np.minimum(arrays["length"], width).astype(np.int32)
  audio = np.pad(audio, ((0, 0), (0, width - audio.shape[1])))
  audio = np.where(np.arange(width) < length[:, np.newaxis], audio, np.float32(0))
  return {"audio": audio, "length": length, "label": arrays["label"]}


# -- tones -------------------------------------------------------------------------------------------------------------

_NOTES = {"C4": 261.63, "E4": 329.63, "G4": 392.0, "C5": 523.25}
_RATE, _NUM_TRAIN, _NUM_TEST = 8000, 400, 100


def _load_tones(seconds: float) -> Audio:
  """Sines a quarter to half a second long, within 2% of their note, with white noise; 16 bits, as a file has them."""
  size, longest = _NUM_TRAIN + _NUM_TEST, _RATE // 2
  with on_cpu():  # an accelerator rounds the noise in another way
    draws, noise = jax.random.split(root_key(0))
    tune, phase, gain, length = np.asarray(jax.random.uniform(draws, (4, size)), np.float64)
    noise = np.asarray(jax.random.normal(noise, (size, longest)), np.float64)
  label = np.arange(size) % len(_NOTES)
  frequency = np.array(list(_NOTES.values()))[label] * (0.98 + 0.04 * tune)
  angle = 2 * np.pi * (frequency[:, np.newaxis] * np.arange(longest) / _RATE + phase[:, np.newaxis])
  audio = (0.2 + 0.6 * gain[:, np.newaxis]) * np.sin(angle) + 0.02 * noise
  audio = (np.clip(np.round(audio * 2**15), -(2**15), 2**15 - 1) / 2**15).astype(np.float32)
  arrays = {"audio": audio, "length": (longest * (1 + length) / 2).astype(np.int32), "label": label.astype(np.int32)}
  width = _find_width("--dataset=tones", seconds, _RATE, int(arrays["length"].max()))
  arrays = _fit(arrays, width)
  splits = [NamedArrays({n: x[part] for n, x in arrays.items()}) for part in np.split(np.arange(size), [_NUM_TRAIN])]
  return Audio("tones", *splits, tuple(_NOTES), _RATE)
