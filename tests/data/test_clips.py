"""Clips one after the other: what is read, splits, what is refused."""

import numpy as np
import pytest

from mlnotes.data import DataError, load_audio
from mlnotes.data.clips import load_clips

LENGTHS = np.array([3, 5, 2, 4, 6, 3, 4, 2])
AUDIO = np.concatenate([(1000 * i + np.arange(n)) for i, n in enumerate(LENGTHS)]).astype(np.int16)
ARRAYS = dict(
  audio=AUDIO, start=np.concatenate([[0], np.cumsum(LENGTHS)]), label=np.array([7, 9] * 4), rate=np.int32(100),
  speaker=np.array([1, 0, 1, 0, 1, 0, 2, 2]), speaker_names=np.array(["ann", "bob", "eve"]),
  index=np.array([0, 1, 5, 6, 4, 7, 8, 9]),
)  # fmt: skip


@pytest.fixture
def write(tmp_path):
  def save(**changes):
    arrays = {name: value for name, value in {**ARRAYS, **changes}.items() if value is not None}
    np.savez(tmp_path / "clips.npz", **arrays)
    return str(tmp_path / "clips.npz")

  return save


def numbers(clips):
  """Which clips these are, each checked to be whole."""
  found = []
  for i in range(len(clips)):
    samples = np.rint(clips.clip(i) * 2**15).astype(int)
    found.append(samples[0] // 1000)
    np.testing.assert_array_equal(samples, 1000 * found[-1] + np.arange(LENGTHS[found[-1]]))
    assert clips.label[i] == found[-1] % 2
  for group, (begin, end) in enumerate(zip(clips.first, clips.first[1:])):
    assert np.all(clips.group[begin:end] == group) and end > begin
    assert len(set(ARRAYS["speaker"][found[begin:end]])) == 1
  assert clips.first[0] == 0 and clips.first[-1] == len(clips)
  return found


def test_official_is_the_first_recordings(write):
  data = load_clips(write(), "official")
  assert numbers(data.test) == [1, 0, 4] and numbers(data.train) == [3, 5, 2, 6, 7]
  assert data.class_names == ("7", "9") and data.rate == 100 and not data.notes and data.num_classes == 2
  assert numbers(load_clips(write()).test) == [1, 0, 4]


def test_one_speaker_is_in_the_test_alone(write):
  data = load_clips(write(), "speaker:bob")
  assert numbers(data.test) == [0, 2, 4] and numbers(data.train) == [1, 3, 5, 6, 7]
  data = load_clips(write(speaker_names=None), "speaker:2")
  assert numbers(data.test) == [6, 7]
  data = load_clips(write(speaker_names=None, speaker=np.array(list("abcabcab"))), "speaker:c")
  assert numbers_without_groups(data.test) == [2, 5]


def numbers_without_groups(clips):
  return [int(np.rint(clips.clip(i)[0] * 2**15)) // 1000 for i in range(len(clips))]


def test_without_numbers_of_recordings_a_part_is_set_aside(write):
  data = load_clips(write(index=None))
  assert len(data.test) == 1 and sorted([*numbers(data.test), *numbers(data.train)]) == list(range(8))


def test_long_clips_are_cut(write):
  data = load_clips(write(), "official", seconds=0.03)
  assert data.notes == ("4 of 8 clips are longer than --clip_seconds=0.03 and cut there.",)
  assert data.train.length.max() == 3 and len(data.train.audio) == data.train.length.sum()
  assert load_clips(write(), "official", seconds=0.0).test.length.max() == 6


def test_real_numbers_and_the_other_name_of_the_rate(write):
  data = load_clips(write(audio=(AUDIO / 2**15).astype(np.float64), rate=None, sample_rate=np.int64(100)), "official")
  assert data.train.audio.dtype == np.float32 and numbers(data.train) == [3, 5, 2, 6, 7]


def test_what_load_audio_reads_becomes_clips():
  audio, data = load_audio("tones"), load_clips("tones")
  assert data.class_names == audio.class_names and data.rate == audio.rate
  for split, clips in ((audio.train, data.train), (audio.test, data.test)):
    np.testing.assert_array_equal(clips.length, split.arrays["length"])
    np.testing.assert_array_equal(clips.label, split.arrays["label"])
    for i in (0, len(clips) - 1):
      np.testing.assert_array_equal(clips.clip(i), split.arrays["audio"][i, : clips.length[i]])
    np.testing.assert_array_equal(clips.first, [0, len(clips)])


@pytest.mark.parametrize(("changes", "split", "said"), [
  (dict(rate=None), "", "expected rate too"),
  (dict(label=None), "", "expected label too"),
  (dict(label=np.array(3)), "", r"label has shape \(\), expected integers or words"),
  (dict(rate=np.array([8000, 16000])), "", "rate is .8000, 16000., expected one whole number"),
  (dict(rate=np.array(0)), "", "rate is 0"),
  (dict(audio=AUDIO.astype(np.int32)), "", "audio has dtype int32"),
  (dict(audio=AUDIO.reshape(1, -1)), "", "audio has shape"),
  (dict(audio=np.where(np.arange(29) == 4, 1.5, 0.0)), "", r"audio\[4\] is 1.5, expected -1 to 1"),
  (dict(audio=np.where(np.arange(29) == 4, np.nan, 0.0)), "", r"audio\[4\] is nan"),
  (dict(start=ARRAYS["start"][:-1]), "", "expected 9 whole numbers"),
  (dict(start=ARRAYS["start"] + 1), "", "start goes from 1 to 30, expected 0 to the 29"),
  (dict(start=np.array([0, 3, 3, 10, 14, 20, 23, 27, 29])), "", "clip 1 is from 3 to 3"),
  (dict(speaker=ARRAYS["speaker"][:-1]), "", "speaker has shape"),
  (dict(speaker_names=np.array(["ann"])), "", "those of 1 speaker_names"),
  (dict(speaker_names=np.array(["ann", "bob", "ann"])), "speaker:ann", "speaker_names has a name twice"),
  (dict(index=ARRAYS["index"][:-1]), "", "index has shape"),
  (dict(index=None), "official", "no array index"),
  (dict(speaker=None, speaker_names=None), "speaker:ann", "no array speaker"),
  ({}, "speaker:anne", "did you mean ann"),
  ({}, "offical", "expected official or speaker:NAME"),
  (dict(index=np.full(8, 9)), "official", "0 of 8 clips to test on"),
])  # fmt: skip
def test_what_is_refused_is_one_sentence(write, changes, split, said):
  with pytest.raises(DataError, match=said) as error:
    load_clips(write(**changes), split)
  assert "\n" not in str(error.value)


def test_other_clips_have_their_own_splits():
  with pytest.raises(DataError, match="--dataset=tones has its own two splits"):
    load_clips("tones", "official")
  with pytest.raises(DataError, match="--clip_seconds=1e-05 is no sample"):
    load_clips("tones", seconds=0.00001)
