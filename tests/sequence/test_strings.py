"""Lines of images and strings of clips against plain loops; frames of sound; the network that reads them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes import sequence
from mlnotes.attention import Transformer
from mlnotes.data.clips import Clips
from mlnotes.sequence import strings
from mlnotes.sequence.frame_classifier import FrameClassifier


def draw_keys():
  return jax.random.split(jax.random.key(0), 40)


# -- lines -------------------------------------------------------------------------------------------------------------

WIDTH = 5
IMAGES = np.arange(1, 5)[:, None, None] * np.ones((4, 3, WIDTH)) + np.arange(3)[None, :, None] / 10
IMAGE_LABELS = np.array([0, 1, 2, 1])


def draw_lines(overlap, augment=None):
  draw = lambda key: strings.draw_line(key, jnp.asarray(IMAGES), jnp.asarray(IMAGE_LABELS), 2, 4, overlap, augment)
  return jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(draw_keys()))


@pytest.mark.parametrize("overlap", [-1, 0, 1])
def test_a_line_is_its_images_side_by_side(overlap):
  """Every image stands `WIDTH - overlap` columns after the last, the brighter pixel on top; labels count from 1."""
  drawn = draw_lines((overlap, overlap))
  step = WIDTH - overlap
  assert drawn["input"].shape == (40, WIDTH + 3 * step, 3)
  assert set(drawn["label_length"]) == {2, 3, 4}
  for line, length, labels, count in zip(*(drawn[n] for n in ("input", "length", "labels", "label_length"))):
    expected = np.zeros_like(line)
    for place in range(count):
      number = int(line[place * step + WIDTH // 2, 0]) - 1  # its middle is nobody else's
      part = expected[place * step : place * step + WIDTH]
      np.maximum(part, IMAGES[number].T, out=part)
      assert labels[place] == IMAGE_LABELS[number] + 1
    np.testing.assert_allclose(line, expected, rtol=1e-6)
    assert length == WIDTH + (count - 1) * step and not np.any(labels[count:])


def test_overlaps_differ_and_each_image_is_changed_by_itself():
  drawn = draw_lines((-1, 2), lambda key, image: image * jax.random.uniform(key))
  gaps = drawn["length"] - WIDTH - (drawn["label_length"] - 1) * WIDTH
  assert gaps.min() < -2 and gaps.max() > 0
  assert len(np.unique(drawn["input"][:, 2, 0])) == 40


# -- clips -------------------------------------------------------------------------------------------------------------

LENGTHS = np.array([5, 3, 4, 7])
CLIPS = Clips(  # of two speakers, two each
  np.concatenate([(10 * i + np.arange(n)) * 2**8 for i, n in enumerate(LENGTHS)]).astype(np.int16),
  np.array([0, 5, 8, 12]), LENGTHS, np.array([2, 0, 1, 1]), np.array([0, 0, 1, 1]), np.array([0, 2, 4]),
)  # fmt: skip


def draw_utterances(**more):
  clips = jax.tree.map(jnp.asarray, CLIPS)
  draw = lambda key: strings.draw_utterance(key, clips, 1, 3, longest_clip=7, **more)
  return jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(draw_keys()))


def test_an_utterance_is_clips_of_one_speaker():
  """Found again from the samples alone: each clip's first sample names it; pauses are zeros."""
  drawn = draw_utterances(pause=2)
  assert drawn["input"].shape == (40, strings.utterance_samples(3, 7, 2, 0.0))
  pauses, seen = [], set()
  for audio, length, labels, count in zip(*(drawn[n] for n in ("input", "length", "labels", "label_length"))):
    samples = np.rint(audio * 2**7).astype(int)
    place, found = 0, []
    for _ in range(count):
      gap = 0
      # Clip 0 alone begins with a 0: after a pause its first sample looks like one more of it.
      while found and samples[place + gap] == 0:
        gap += 1
      number = 0 if samples[place + gap] == 1 or (not found and samples[place] == 0) else samples[place + gap] // 10
      gap -= number == 0 and bool(found)
      place += gap
      np.testing.assert_array_equal(samples[place : place + LENGTHS[number]], 10 * number + np.arange(LENGTHS[number]))
      place += LENGTHS[number]
      pauses += [gap] * bool(found)
      found.append(number)
    assert length == place and not np.any(samples[place:])
    assert len({CLIPS.group[i] for i in found}) == 1
    np.testing.assert_array_equal(labels, [*(CLIPS.label[i] + 1 for i in found), *[0] * (3 - count)])
    seen |= set(found)
  assert set(pauses) == {0, 1, 2} and seen == {0, 1, 2, 3}


def test_a_stretched_utterance_is_played_faster_or_slower():
  """Each clip is a straight line of samples: its slope is the speed, which is one for the string."""
  drawn = draw_utterances(stretch=0.25)
  slopes = []
  for audio, length in zip(drawn["input"], drawn["length"]):
    steps = np.diff(audio[:length] * 2**7)
    rising = steps[(steps > 0.5) & (steps < 2)]
    slopes.append(np.median(rising))
    np.testing.assert_allclose(rising, slopes[-1], atol=1e-3)
  assert min(slopes) < 0.85 and max(slopes) > 1.15 and min(slopes) >= 0.75 and max(slopes) <= 1.25


# -- frames ------------------------------------------------------------------------------------------------------------


def test_a_tone_is_in_its_band():
  """Samples behind the length, and frames that are not whole, count for nothing."""
  rate, window, hop = 8000, 200, 80
  time = np.arange(1000) / rate
  audio = np.stack([np.sin(2 * np.pi * hertz * time) for hertz in (500.0, 2000.0)])
  log_mel = jax.jit(lambda audio: sequence.log_mel(audio, jnp.array([1000, 439]), rate, window, hop, 30))
  frames, counts = log_mel(audio.astype(np.float32))
  np.testing.assert_array_equal(counts, [11, 3])
  centres = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 4000 / 700), 32)[1:-1] / 2595) - 1)
  loudest = np.argmax(frames[:, 0], -1)
  np.testing.assert_array_equal(loudest, [np.argmin(np.abs(centres - hertz)) for hertz in (500, 2000)])
  assert not np.any(frames[1, 3:]) and np.all(np.any(frames[1, :3], -1))
  changed = np.array(audio)
  changed[1, 439:] = 1
  again = log_mel(changed.astype(np.float32))[0]
  np.testing.assert_array_equal(again, frames)


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    ((11, 40, 8000), "filter empty"),
    ((101, 20, 8000, 3000.0, 2000.0), "filters from"),
    ((101, 20, 8000, 0.0, 5000.0), "to 4000"),
  ],
)  # fmt: skip
def test_filters_that_hear_nothing_are_refused(arguments, said):
  with pytest.raises(ValueError, match=said):
    sequence.mel_filters(*arguments)


@pytest.mark.parametrize("features, widest", [(24, 4), (10, 2)])  # at most a quarter of the features
def test_masks_hide_bands_and_spans_within_the_length(features, widest):
  keys = jax.random.split(jax.random.key(1), 200)
  mask = lambda key: sequence.mask_features(key, jnp.ones((20, features)), jnp.int32(15), 1, 4, 1, 10, 0.2)
  hidden = np.asarray(jax.jit(jax.vmap(mask))(keys)) == 0
  bands, spans = hidden.all(1).sum(1), hidden.all(2).sum(1)
  assert set(bands) == set(range(widest + 1)) and set(spans) == {0, 1, 2, 3}  # a fifth of 15
  assert hidden.all(2)[:, :15].any(0).all() and not hidden.all(2)[:, 15:].any()
  np.testing.assert_array_equal(hidden, hidden.all(1)[:, None] | hidden.all(2)[:, :, None])


# -- network -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strides", [(2, 4), (3, 3)])
def test_every_frame_is_seen_whatever_the_stride(draw_variables, strides):
  network = FrameClassifier(4, 6, channels=(2, 3), time_strides=strides)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 24, 5)), jnp.float32)
  params = draw_variables(network, x)
  (logits, counts), back = jax.vjp(lambda x: network.apply(params, x), x)
  assert logits.shape[1] == counts[0] == -(-24 // (strides[0] * strides[1]))
  (grad,) = back((jnp.ones_like(logits).at[..., 0].set(2), np.zeros(1, jax.dtypes.float0)))
  assert np.all(np.abs(grad).sum(2) > 0)


@pytest.mark.parametrize("cell", ["lstm", "transformer", "none"])
def test_each_string_is_read_as_if_alone(draw_variables, cell):
  """Whatever stands beside it, however far it is padded (to an odd or an even length); NaN behind it too."""
  body = {
    "lstm": lambda: sequence.RecurrentStack(sequence.make_cell("lstm", 6), bidirectional=True),
    "transformer": lambda: Transformer(1, 1, 6, rotary_base=100.0),
    "none": lambda: None,
  }[cell]()
  network = FrameClassifier(4, 6, body, channels=(2, 3), time_strides=(2, 2))
  x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 13, 5)), jnp.float32)
  lengths = jnp.array([13, 6, 1])
  params, apply = draw_variables(network, x, lengths), jax.jit(network.apply)
  behind = np.arange(13)[None, :, None] >= np.asarray(lengths)[:, None, None]
  logits, counts = apply(params, np.where(behind, np.nan, x), lengths)
  np.testing.assert_array_equal(counts, [4, 2, 1])
  assert logits.shape == (3, 4, 4)
  alone, _ = apply(params, x[1:2, :6])
  np.testing.assert_allclose(logits[1, :2], alone[0], atol=1e-5)
  if cell == "none":  # what a convolution's padding may depend on
    even, _ = apply(params, np.pad(x[1:2], ((0, 0), (0, 1), (0, 0))), lengths[1:2])
    np.testing.assert_allclose(even[0, :2], alone[0], atol=1e-5)
