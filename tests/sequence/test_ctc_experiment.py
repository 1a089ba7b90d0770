"""Reading by CTC: what is learned from, what is counted, what the flags do, what the report holds."""

import functools
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.sequence import _strings, ctc
from mlnotes.data import DataError, load
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key, stream_key
from mlnotes.engine.progress import take_warnings
from mlnotes.sequence import ctc_greedy, ctc_prefix_beam

SMALL = dict(
  batch_size=6, steps=10, warmup_steps=0, width=4, cell="mingru", shortest=1, longest=3, test_strings=9, dropout=0.0,
  optimizer="sgd", momentum=0.0, weight_decay=0.0, schedule="constant", clip_norm=0.0, learning_rate=0.1, mels=8,
)  # fmt: skip


def small(**more):
  return ctc.Config(**{**SMALL, **more})


@functools.cache
def first(**more):
  """(experiment, feeds, state, batch, jitted step)."""
  config = small(**more)
  experiment, feeds = ctc.make(config), ctc.make_feeds(config)
  batch = jax.jit(feeds.train.draw)(feeds.train.arrays, root_key(0), 0)
  return experiment, feeds, jax.jit(experiment.init)(root_key(0), batch), batch, jax.jit(experiment.step)


def spell(labels, count):
  return tuple(int(x) for x in labels[:count])


def distance(a, b):
  if not a or not b:
    return len(a) + len(b)
  return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))


def same_params(a, b):
  return all(map(np.array_equal, jax.tree.leaves(a.params), jax.tree.leaves(b.params)))


def test_figures_are_those_of_what_is_read():
  """Of the strings that are no padding; a beam reads what the prefix search finds."""
  for beam in (0, 3):
    _, feeds, state, *_ = first()
    experiment = ctc.make(small(beam=beam))
    batch = jax.jit(feeds.evaluate.draw)(feeds.evaluate.arrays, 1)  # 3 of 6 are padding
    logits, lengths = experiment.model(state)(batch["input"], batch["length"])
    if beam:
      found = ctc_prefix_beam(logits, lengths, beam)
      labels, counts = found.labels[:, 0], found.lengths[:, 0]
    else:
      labels, counts = ctc_greedy(logits, lengths)
    read, wanted = (
      [spell(*row) for row in zip(x, n)][:3] for x, n in ((labels, counts), (batch["labels"], batch["label_length"]))
    )
    wrong = [distance(a, b) for a, b in zip(read, wanted)]
    figures = jax.jit(experiment.evaluate)(state, batch)
    assert tuple(map(float, figures["label_error"])) == (sum(wrong), sum(map(len, wanted)))
    assert tuple(map(float, figures["exact"])) == (sum(x == 0 for x in wrong), 3)
    assert tuple(map(float, figures["infeasible"])) == (0, 3)


def test_lines_are_made_of_other_writers_for_the_test():
  arrays = _strings.load_source("digit_lines", "", 1.0, 1, 3, 8).arrays
  data = load("digits_halves")
  for part, split in zip(arrays, (data.train, data.test)):
    np.testing.assert_array_equal(np.rint(part["images"] * 16), split.image[..., 0])
    np.testing.assert_array_equal(part["labels"], split.label)
  _, feeds, _, batch, _ = first()
  assert not np.allclose(np.rint(batch["input"] * 16), batch["input"] * 16, atol=1e-3)  # turned and shifted
  shown = jax.jit(feeds.evaluate.draw)(feeds.evaluate.arrays, 0)["input"]
  np.testing.assert_allclose(np.rint(shown * 16), shown * 16, atol=1e-4)


def test_strings_without_a_path_are_counted_and_teach_nothing(tmp_path):
  """With eight columns a frame equal neighbours have none: whatever such rows hold, the update is the same."""
  experiment, feeds, state, batch, step = first(stride=8, shortest=3)
  batch = {**batch, "labels": jnp.full((6, 3), 1).at[0].set(jnp.array([1, 2, 3])), "label_length": jnp.full(6, 3)}
  after, metrics = step(state, batch)
  assert float(metrics["infeasible"]) == pytest.approx(5 / 6) and float(metrics["loss"]) > 0
  other, _ = step(state, {**batch, "input": batch["input"].at[1:].set(1 - batch["input"][1:])})
  assert same_params(after, other) and not same_params(after, state)
  # The mean is over the rows that have a path: alone, the first has the same loss.
  alone, of_one = step(state, {**batch, "labels": batch["labels"].at[1:].set(9)})
  assert same_params(after, alone) and float(of_one["loss"]) == float(metrics["loss"])
  take_warnings()
  figures = experiment.report(state, tmp_path)
  rows = [
    i
    for i in range(9)
    for batch in [jax.tree.map(np.asarray, jax.jit(feeds.evaluate.draw)(feeds.evaluate.arrays, i // 6))]
    if not _has_path(batch, i % 6)
  ]
  assert figures["infeasible_rows"] == len(rows) > 0
  assert f"numbers {', '.join(map(str, rows))}." in " ".join(take_warnings())
  test = jax.jit(feeds.evaluate.draw)(feeds.evaluate.arrays, 0)
  evaluate = jax.jit(experiment.evaluate)
  test = {**test, "labels": jnp.full((6, 3), 1), "label_length": jnp.full(6, 3), "length": jnp.full(6, 9)}
  found = {name: float(x.total / x.count) for name, x in evaluate(state, test).items()}
  assert (found["loss"], found["infeasible"]) == (0, 1)


def _has_path(batch, i):
  labels = spell(batch["labels"][i], batch["label_length"][i])
  return -(-batch["length"][i] // 8) >= len(labels) + sum(a == b for a, b in pairwise(labels))


def traced_step(**more):
  """The update as a program; nothing is compiled."""
  config = small(**more)
  experiment, feeds = ctc.make(config), ctc.make_feeds(config)
  batch = jax.eval_shape(feeds.train.draw, feeds.train.arrays, root_key(0), 0)
  state = jax.eval_shape(experiment.init, root_key(0), batch)
  return jax.jit(experiment.step).lower(state, batch).as_text()


def test_only_frames_of_sound_are_masked():
  """In training, where the flag says so."""
  assert traced_step(dataset="tones") != traced_step(dataset="tones", masks=False)
  assert traced_step() == traced_step(masks=False)


def test_dropout_is_drawn_anew_at_each_update():
  _, _, state, batch, _ = first()
  step = jax.jit(ctc.make(small(dropout=0.5)).step)
  losses = [float(step(state._replace(step=jnp.int32(i)), batch)[1]["loss"]) for i in (0, 0, 1)]
  assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
  "more", [dict(), dict(bidirectional=False), dict(cell="none"), dict(cell="transformer", heads=1)]
)
def test_what_is_read_at_the_beginning_may_hang_on_the_end(more):
  """With both directions, or attention; not with one direction, or convolutions alone."""
  batch = first()[3]
  experiment = ctc.make(small(**more))
  state = jax.jit(experiment.init)(root_key(0), batch)
  changed = batch["input"].at[:, -1].set(1)
  whole = jnp.full(6, changed.shape[1])
  one, two = (experiment.model(state)(x, whole)[0][:, 0] for x in (batch["input"], changed))
  assert np.allclose(one, two) == (more in (dict(bidirectional=False), dict(cell="none")))


def test_frames_of_sound_have_mean_0_and_deviation_1_within_their_length():
  x = 5 + 3 * jax.random.normal(jax.random.key(0), (2, 9, 4))
  found, _ = _strings.standardize(x, jnp.array([9, 5]))
  np.testing.assert_allclose(jnp.mean(found[1, :5], 0), 0, atol=1e-5)
  assert float(jnp.std(found[1, :5])) == pytest.approx(1, rel=1e-4) and not np.any(found[1, 5:])
  assert bool(jnp.all(jnp.isfinite(_strings.standardize(x, jnp.array([0, 1]))[0])))


def test_clips_of_a_file_are_learned_from_and_tested_on_the_speaker_asked_for(tmp_path, capsys):
  draw = np.random.default_rng(0)
  lengths = draw.integers(300, 500, 24)
  path = str(tmp_path / "clips.npz")
  arrays = dict(
    start=np.concatenate([[0], np.cumsum(lengths)]), label=np.arange(24) % 3, speaker=np.repeat([0, 1, 2], 8)
  )
  np.savez(path, audio=draw.integers(-(2**14), 2**14, lengths.sum()).astype(np.int16), rate=np.int32(8000), **arrays)
  more = dict(dataset=path, split="speaker:1", clip_seconds=0.05)
  experiment, feeds, state, batch, step = first(**more)
  assert "clips are longer than --clip_seconds=0.05" in capsys.readouterr().err
  assert len(feeds.evaluate.arrays) == 8 and len(feeds.train.arrays) == 16
  assert np.isfinite(step(state, batch)[1]["loss"]) and int(batch["labels"].max()) <= 3
  figures = experiment.report(state, tmp_path)
  assert 0 <= figures["exact_floor"] <= max(figures["nearest_neighbour"], figures["linear_classifier"])
  assert (tmp_path / "spikes.png").stat().st_size > 10_000
  other = ctc.make_feeds(small(**{**more, "split": "speaker:2"}))
  assert other.fingerprint != feeds.fingerprint
  with pytest.raises(DataError, match="--split=speaker:7: no such speaker"):
    ctc.make_feeds(small(**{**more, "split": "speaker:7"}))


def test_the_report_draws_spikes_and_mistakes_and_says_the_floor(tmp_path):
  experiment, feeds, state, *_ = first()
  figures = experiment.report(state, tmp_path)
  assert figures["nearest_neighbour"] == pytest.approx(0.961, abs=1e-3)
  draw = jax.jit(feeds.evaluate.draw)
  counts = np.concatenate([draw(feeds.evaluate.arrays, i)["label_length"] for i in range(2)])[:9]
  np.testing.assert_allclose(figures["exact_floor"], np.mean(figures["nearest_neighbour"] ** counts), rtol=1e-6)
  assert figures["infeasible_rows"] == 0
  for name in ("spikes.png", "mistakes.png"):
    assert (tmp_path / name).stat().st_size > 10_000


@pytest.mark.parametrize("sound", [False, True])
def test_a_string_without_a_frame_is_drawn(sound, tmp_path):
  from experiments.sequence import _ctc_pictures

  class Model:
    frames = staticmethod(lambda x, lengths: (jnp.zeros((1, 4, 8)), lengths))
    __call__ = lambda self, x, lengths: (jnp.zeros((1, 2, 3)), lengths)

  none, labels = np.zeros(1, int), np.ones((1, 1), int)
  x = np.zeros((1, 30) if sound else (1, 4, 8))
  read = _ctc_pictures.Read(x, none, labels, none + 1, labels, none, none + 1, none)
  _ctc_pictures.draw_mistakes(Model(), read, ("a", "b"), tmp_path / "mistakes.png")
  assert (tmp_path / "mistakes.png").stat().st_size > 1000


@pytest.mark.parametrize("cell", ["lstm", "mingru", "scrn"])
def test_cells_have_the_precision_of_the_flags(cell):
  network = ctc.build_network(small(cell=cell, precision="bfloat16"), 3)
  assert network.body.cell.dtype == network.dtype == jnp.bfloat16


@pytest.mark.parametrize(
  ("more", "said"),
  [
    (dict(cell="clockwork", width=66), "--cell=clockwork with --width=66: 4 periods must divide"),
    (dict(cell="scrn", width=1), "--cell=scrn with --width=1: 0 slow units"),
    (dict(shortest=4), "--shortest=4"),
    (dict(stride=3), "--stride=3"),
    (dict(beam=-1), "--beam=-1"),
    (dict(dropout=1.0), "--dropout=1.0"),
    (dict(clip_seconds=-1.0), "--clip_seconds=-1.0"),
    (dict(test_strings=0), "--test_strings=0"),
    (dict(cell="transformer", width=6, heads=2), "--heads=2"),
  ],
)
def test_flags_that_do_not_fit_are_refused_in_one_sentence(more, said):
  with pytest.raises(InputError, match=said) as error:
    small(**more)
  assert "\n" not in str(error.value)


def test_more_bands_than_a_window_has_are_refused():
  with pytest.raises(InputError, match="--mels=90 at 8000 samples a second: 90 mels of 101 frequencies"):
    ctc.make(small(dataset="tones", mels=90))


@pytest.fixture
def write(tmp_path):
  """Twelve clips of 300 samples in a file."""
  audio = np.random.default_rng(0).integers(-(2**14), 2**14, 3600).astype(np.int16)
  usual = dict(audio=audio, start=np.arange(13) * 300, label=np.arange(12) % 3, rate=8000, speaker=np.arange(12) // 6)

  def save(**changes):
    np.savez(tmp_path / "clips.npz", **{**usual, **changes})
    _strings.load_source.cache_clear()
    return str(tmp_path / "clips.npz")

  return save


@pytest.mark.parametrize(
  ("changes", "said"), [(dict(rate=20), "hop 0"), (dict(start=np.arange(13) * 60), "61 samples, window 200")]
)
def test_strings_without_a_frame_are_refused_before_training(write, changes, said):
  """Too few samples a second, or the longest string is shorter than a window; without pauses too."""
  with pytest.raises(InputError, match=said) as error:
    ctc.make(small(dataset=write(**changes), clip_seconds=0.0, longest=1))
  assert "\n" not in str(error.value)


def test_who_speaks_and_how_fast_is_in_the_fingerprint(write):
  load = lambda **changes: _strings.load_source(write(**changes), "", 1.0, 1, 3, 8).fingerprint
  assert load() == load()
  assert len({load(), load(rate=9000), load(speaker=np.arange(12) // 4)}) == 3


def test_floors_of_clips_are_counted_once_and_of_one_class_without_a_classifier(write):
  source = _strings.load_source(write(), "", 1.0, 1, 3, 8)
  assert source.floors() is source.floors() and set(source.floors()) == {"nearest_neighbour", "linear_classifier"}
  alone = _strings.load_source(write(label=np.full(12, 4)), "", 1.0, 1, 3, 8)
  assert alone.floors() == {"nearest_neighbour": 1.0}


def test_flags_without_effect_say_so():
  assert {"split", "clip_seconds", "mels", "masks", "heads"} <= set(small().idle_flags())
  assert {"bidirectional", "depth", "heads"} <= set(small(dataset="tones", cell="none").idle_flags())
  assert not {"mels", "masks", "bidirectional"} & set(small(dataset="tones").idle_flags())


def test_lengths_of_strings_hang_on_the_data():
  assert ctc.Config().counts == (5, 10) and ctc.Config(dataset="tones").counts == (1, 5)
  assert ctc.Config(longest=3).counts == (3, 3) and ctc.Config(shortest=12).counts == (12, 12)
  assert ctc.Config().time_strides == (1, 2) and ctc.Config(dataset="tones").time_strides == (2, 2)


@pytest.mark.thorough
def test_lines_are_read():
  """After 300 updates nine digits of ten, of writers that were never seen."""
  config = ctc.Config(steps=300, warmup_steps=30, test_strings=128, dropout=0.0)
  experiment, feeds = ctc.make(config), ctc.make_feeds(config)
  draw = jax.jit(feeds.train.draw)
  state = jax.jit(experiment.init)(root_key(0), draw(feeds.train.arrays, root_key(0), 0))
  step = jax.jit(
    lambda state, arrays: experiment.step(state, draw(arrays, stream_key(root_key(0), "data"), state.step))[0]
  )
  for _ in range(300):
    state = step(state, feeds.train.arrays)
  figures = jax.jit(experiment.evaluate)(state, jax.jit(feeds.evaluate.draw)(feeds.evaluate.arrays, 0))
  assert float(figures["label_error"].total / figures["label_error"].count) < 0.2
