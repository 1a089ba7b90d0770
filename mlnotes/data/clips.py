"""Clips of any lengths one after the other in one array, by their speakers: what strings of them are made from."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int16, Int32, Shaped

from mlnotes.data.audio import Audio, audio_kind, load_audio
from mlnotes.data.dataset import name_classes
from mlnotes.data.image import DataError
from mlnotes.data.npz import read_npz
from mlnotes.data.order import hold_out
from mlnotes.data.split import Split
from mlnotes.engine.errors import nearest

# Of the Free Spoken Digit Dataset: the first recordings of each speaker and digit are its test set.
_OFFICIAL_TEST = 5
_NAMES = ("audio", "start", "label", "speaker", "index", "speaker_names", "sample_rate", "rate")


class Clips(NamedTuple):
  """One split, in the order of its groups (speakers).

  audio:  samples of all clips, int16 or in [-1, 1].
  start, length, label: of each clip, the first sample, how many, its class.
  group:  of each clip the number of its group; first: of each group the first clip, and at the end how many there are.
  """

  audio: Int16[np.ndarray, " S"] | Float32[np.ndarray, " S"]
  start: Int32[np.ndarray, " N"]
  length: Int32[np.ndarray, " N"]
  label: Int32[np.ndarray, " N"]
  group: Int32[np.ndarray, " N"]
  first: Int32[np.ndarray, " G"]

  def __len__(self) -> int:
    return len(self.label)

  def clip(self, i: int) -> Float32[np.ndarray, " T"]:
    """The samples of clip i in [-1, 1]."""
    part = self.audio[self.start[i] : self.start[i] + self.length[i]]
    return part.astype(np.float32) / 2**15 if part.dtype == np.int16 else part


class SpokenClips(NamedTuple):
  """Two splits of clips, of `rate` samples a second. `notes` are sentences about what was cut."""

  name: str
  train: Clips
  test: Clips
  class_names: tuple[str, ...]
  rate: int
  notes: tuple[str, ...] = ()

  @property
  def num_classes(self) -> int:
    return len(self.class_names)


def load_clips(dataset: str, split: str = "", seconds: float = 1.0) -> SpokenClips:
  """Reads the clips that `--dataset` names: what `load_audio` reads, or clips in one array.

  "path.npz" with `start`: `audio` (S,), int16 or real numbers in [-1, 1], all clips one after the other; `start`
  (N + 1,), where each begins and the last ends; `label` (N,); `rate` or `sample_rate`; optionally `speaker` (N,) with
  `speaker_names`, and `index` (N,), the number of the recording. `split` is

    official       tests on the recordings with an index below 5, as the Free Spoken Digit Dataset has it;
    speaker:NAME   tests on one speaker, who is in no training clip;
    ""             official where there is an index, else a fixed tenth is set aside.

  Clips are cut at `seconds`; 0: not at all. Raises DataError, one sentence, where there are no such clips, where they
  cannot be used, or where `split` asks for what the file has not.
  """
  flag = f"--dataset={dataset}"
  arrays = read_npz(dataset, flag, "audio, start, label, rate", _NAMES) if audio_kind(dataset) == "npz" else {}
  if "start" not in arrays:
    if split:
      raise DataError(f"--split={split}: {flag} has its own two splits, expected no --split.")
    # What `AudioConfig` calls --seconds.
    renamed = lambda text: text.replace("--seconds", "--clip_seconds")
    try:
      found = _join(load_audio(dataset, seconds=seconds))
    except DataError as error:
      raise DataError(renamed(str(error))) from error
    return found._replace(notes=tuple(map(renamed, found.notes)))
  arrays["rate"] = arrays.get("rate", arrays.get("sample_rate"))
  if lacking := [name for name in ("audio", "label", "rate") if arrays.get(name) is None]:
    raise DataError(f"{flag}: found the arrays {arrays.listed}, expected {lacking[0]} too.")
  if arrays["rate"].size != 1 or arrays["rate"].dtype.kind not in "iu" or arrays["rate"].item() < 1:
    raise DataError(f"{flag}: rate is {arrays['rate'].tolist()}, expected one whole number of samples a second.")
  rate = int(arrays["rate"].item())
  (label,), classes = name_classes(flag, arrays["label"], of="clip")
  start = _check_start(flag, arrays)
  speaker, names = _check_speakers(flag, arrays, len(label))
  length = np.diff(start)
  most = round(seconds * rate) if seconds else int(length.max())
  if most < 1:
    raise DataError(
      f"{flag}: --clip_seconds={seconds} is no sample at {rate} a second, expected {1 / rate:.3g} or more."
    )
  cut = int(np.sum(length > most))
  notes = (f"{cut} of {len(label)} clips are longer than --clip_seconds={seconds} and cut there.",) if cut else ()
  parts = _split(flag, split, arrays, speaker, names, len(label))
  whole = arrays["audio"], start[:-1], np.minimum(length, most), label, speaker
  return SpokenClips(Path(dataset).stem, *(_pick(*whole, index) for index in parts), classes, rate, notes)


def _check_start(flag: str, arrays: Any) -> Shaped[np.ndarray, " N"]:
  """Where clips begin and the last ends, checked against the samples and the labels."""
  audio, start, label = arrays["audio"], arrays["start"], arrays["label"]
  if audio.dtype != np.int16 and audio.dtype.kind != "f":
    raise DataError(f"{flag}: audio has dtype {audio.dtype}, expected real numbers in [-1, 1] or int16.")
  if audio.ndim != 1 or not audio.size or audio.size >= 2**31:
    raise DataError(f"{flag}: audio has shape {audio.shape}, expected the samples of all clips, one axis.")
  if audio.dtype.kind == "f" and not (np.abs(audio) <= 1).all():
    place = int(np.argmin(np.abs(audio) <= 1))
    raise DataError(f"{flag}: audio[{place}] is {audio[place]}, expected -1 to 1.")
  if start.dtype.kind not in "iu" or start.shape != (len(label) + 1,):
    found = f"shape {start.shape} and dtype {start.dtype}"
    raise DataError(f"{flag}: start has {found}, expected {len(label) + 1} whole numbers, one more than labels.")
  start = start.astype(np.int64)
  if start[0] < 0 or start[-1] > audio.size:
    raise DataError(f"{flag}: start goes from {start[0]} to {start[-1]}, expected 0 to the {audio.size} samples.")
  if (np.diff(start) < 1).any():
    place = int(np.argmax(np.diff(start) < 1))
    raise DataError(f"{flag}: clip {place} is from {start[place]} to {start[place + 1]}, expected a sample or more.")
  return start


def _check_speakers(flag: str, arrays: Any, count: int) -> tuple[Shaped[np.ndarray, " N"], tuple[str, ...]]:
  """(number of the speaker of each clip, their names)."""
  speaker = arrays.get("speaker", np.zeros(count, np.int32))
  if speaker.shape != (count,):
    raise DataError(f"{flag}: speaker has shape {speaker.shape}, expected one for each of the {count} clips.")
  (speaker,), names = name_classes(f"{flag}: speaker", speaker, of="clip")
  if "speaker_names" in arrays:
    given = [str(name) for name in arrays["speaker_names"].reshape(-1)]
    if not all(name.isdigit() and int(name) < len(given) for name in names):
      raise DataError(f"{flag}: speaker has numbers up to {names[-1]}, expected those of {len(given)} speaker_names.")
    if len(set(given)) < len(given):
      raise DataError(f"{flag}: speaker_names has a name twice, expected another for each speaker.")
    names = tuple(given[int(name)] for name in names)
  return speaker, names


def _split(flag: str, split: str, arrays: Any, speaker: Any, names: tuple[str, ...], count: int) -> tuple[Any, Any]:
  """(clips to train on, clips to test on)."""
  if split.startswith("speaker:"):
    name = split.removeprefix("speaker:")
    if "speaker" not in arrays:
      raise DataError(f"--split={split}: {flag} has no array speaker, expected one for each clip.")
    if name not in names:
      raise DataError(f"--split={split}: no such speaker, {nearest(name, names)}")
    test = speaker == names.index(name)
  elif split == "official" or (not split and "index" in arrays):
    if "index" not in arrays:
      raise DataError(f"--split=official: {flag} has no array index, expected the number of each recording.")
    if arrays["index"].shape != (count,) or arrays["index"].dtype.kind not in "iu":
      raise DataError(f"{flag}: index has shape {arrays['index'].shape}, expected {count} whole numbers.")
    test = arrays["index"] < _OFFICIAL_TEST
  elif split:
    raise DataError(f"--split={split} is unknown: expected official or speaker:NAME.")
  else:
    train, test = hold_out(count, flag)
    return np.sort(train), np.sort(test)
  if test.all() or not test.any():
    raise DataError(
      f"--split={split or 'official'}: {flag} has {test.sum()} of {count} clips to test on, expected some."
    )
  return np.flatnonzero(~test), np.flatnonzero(test)


def _pick(audio, start, length, label, speaker, index) -> Clips:
  """The clips at `index`, by speaker, their samples alone."""
  index = index[np.argsort(speaker[index], kind="stable")]
  samples = np.concatenate([audio[start[i] : start[i] + length[i]] for i in index])
  ends = np.cumsum(length[index])
  _, group = np.unique(speaker[index], return_inverse=True)
  first = np.concatenate([np.flatnonzero(np.diff(group, prepend=-1)), [len(index)]])
  whole = lambda x: np.asarray(x, np.int32)
  samples = samples if samples.dtype == np.int16 else samples.astype(np.float32)
  return Clips(samples, whole(ends - length[index]), *map(whole, (length[index], label[index], group, first)))


def _join(audio: Audio) -> SpokenClips:
  """Clips that `load_audio` has read, all of one speaker."""
  parts = []
  for split in (audio.train, audio.test):
    clips = _read_all(split)
    length = clips["length"]
    if not length.all():
      raise DataError(f"--dataset={audio.name}: clip {int(np.argmin(length))} has no sample, expected one or more.")
    starts = np.arange(len(length)) * clips["audio"].shape[1]
    everyone = np.zeros(len(length), np.int32), np.arange(len(length))
    parts.append(_pick(clips["audio"].reshape(-1), starts, length, clips["label"], *everyone))
  return SpokenClips(audio.name, *parts, audio.class_names, audio.rate, audio.notes)


def _read_all(split: Split) -> Any:
  return split.read(np.arange(len(split)))
