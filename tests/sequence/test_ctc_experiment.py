"""Reading by CTC: what is learned from, what is counted, what the flags do, what the report holds."""

import functools
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.sequence import _ctc_network, _ctc_pictures, _strings, ctc
from experiments.sequence._ctc_network import Model, build_network, decode
from mlnotes.data import DataError, load
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key, stream_key
from mlnotes.engine.progress import take_warnings
from mlnotes.sequence import ctc_greedy, ctc_loss

# With eight columns a frame one of the strings of the evaluation, number 13, has no path.
SMALL = dict(
  batch_size=6, steps=10, warmup_steps=0, width=4, cell="mingru", shortest=1, longest=3, test_strings=15, dropout=0.5,
  optimizer="sgd", momentum=0.0, weight_decay=0.0, schedule="constant", clip_norm=0.0, learning_rate=0.1, mels=8,
  stride=8,
)  # fmt: skip


def small(**more):
  return ctc.Config(**{**SMALL, **more})


@functools.cache
def first(**more):
  """(experiment, feeds, state, batch, batches of the evaluation, jitted step)."""
  config = small(**more)
  experiment, feeds = ctc.make(config), ctc.make_feeds(config)

  @jax.jit
  def begin(arrays):
    batch = feeds.train.draw(arrays, root_key(0), 0)
    return experiment.init(root_key(0), batch), batch

  test = jax.jit(feeds.evaluate.draw)
  tests = [test(feeds.evaluate.arrays, i) for i in range(feeds.evaluate.num_batches)]
  return experiment, feeds, *begin(feeds.train.arrays), tests, jax.jit(experiment.step)


def spell(labels, count):
  return tuple(int(x) for x in labels[:count])


def distance(a, b):
  if not a or not b:
    return len(a) + len(b)
  return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))


def same_params(a, b):
  return all(map(np.array_equal, jax.tree.leaves(a.params), jax.tree.leaves(b.params)))


def test_figures_are_those_of_what_is_read(averaged):
  """Of the strings that are no padding."""
  experiment, _, state, _, (*_, batch), _ = first()  # of which 3 of 6 are padding
  logits, lengths = experiment.model(averaged(state))(batch["input"], batch["length"])
  labels, counts = (np.asarray(x) for x in jax.jit(ctc_greedy)(logits, lengths))
  losses = jax.jit(ctc_loss)(logits, lengths, batch["labels"], batch["label_length"]).losses
  wanted = [spell(*row) for row in zip(batch["labels"], batch["label_length"])][:3]
  assert [_has_path(batch, i) for i in range(3)] == [True, False, True]
  wrong = [distance(spell(*row), label) for row, label in zip(zip(labels, counts), wanted)]
  figures = jax.jit(experiment.evaluate)(averaged(state), batch)
  assert tuple(map(float, figures["label_error"])) == (sum(wrong), sum(map(len, wanted)))
  assert tuple(map(float, figures["exact"])) == (sum(x == 0 for x in wrong), 3)
  assert tuple(map(float, figures["infeasible"])) == (1, 3)
  np.testing.assert_allclose(figures["loss"], (losses[0] + losses[2], 2), rtol=1e-5)


def test_a_beam_reads_what_the_prefix_search_finds(monkeypatch):
  """In the evaluation, in the report and by the model."""
  logits = np.log(np.float32([[[0.6, 0.4], [0.6, 0.4]]]))  # whose likeliest path is empty, and its likeliest label is 1
  read = jax.jit(lambda logits, lengths: [decode(logits, lengths, beam) for beam in (0, 2)])
  (_, none), (labels, one) = read(logits, np.array([2]))
  assert (none[0], one[0], labels[0, 0]) == (0, 1, 1)
  asked = []
  for module in (ctc, _ctc_pictures, _ctc_network):
    monkeypatch.setattr(module, "decode", lambda logits, counts, beam: asked.append(beam) or decode(logits, counts, 0))
  experiment, feeds = ctc.make(small(beam=3)), first()[1]
  _, _, state, _, (test, *_), _ = first()
  jax.eval_shape(experiment.evaluate, state, test)
  jax.eval_shape(lambda: experiment.model(state).read(test["input"], test["length"]))
  no_batch = feeds._replace(evaluate=feeds.evaluate._replace(num_batches=1))
  _ctc_pictures.read_all(experiment.model(state), no_batch)
  assert asked == [3, 3, 3]


def test_lines_are_made_of_other_writers_for_the_test():
  arrays = _strings.load_source("digit_lines", "", 1.0, 1, 3, 8).arrays
  data = load("digits_halves")
  for part, split in zip(arrays, (data.train, data.test)):
    np.testing.assert_array_equal(np.rint(part["images"] * 16), split.image[..., 0])
    np.testing.assert_array_equal(part["labels"], split.label)
  _, feeds, _, batch, (test, *_), _ = first()
  assert feeds.evaluate.arrays is arrays[1] and feeds.train.arrays is arrays[0]
  columns = np.asarray(batch["input"]) * 16
  assert not np.allclose(np.rint(columns), columns, atol=1e-3)  # turned and shifted
  columns = np.asarray(test["input"]) * 16
  np.testing.assert_allclose(np.rint(columns), columns, atol=1e-4)


def test_strings_without_a_path_are_counted_and_teach_nothing():
  """In four frames equal neighbours have none: whatever such rows hold, the update is the same."""
  experiment, _, state, batch, (test, *_), step = first()
  labels = np.tile(np.int32([1, 1, 1]), (6, 1))
  labels[0] = 1, 2, 3
  batch = {**batch, "labels": labels, "label_length": np.full(6, 3), "length": np.full(6, batch["input"].shape[1])}
  after, metrics = step(state, batch)
  assert float(metrics["infeasible"]) == pytest.approx(5 / 6) and float(metrics["loss"]) > 0
  other, _ = step(state, {**batch, "input": batch["input"].at[1:].set(1 - batch["input"][1:])})
  assert same_params(after, other) and not same_params(after, state)
  # The mean is over the rows that have a path: alone, the first has the same loss.
  alone, of_one = step(state, {**batch, "labels": np.where(np.arange(6)[:, None] > 0, 9, labels)})
  assert same_params(after, alone) and float(of_one["loss"]) == float(metrics["loss"])
  test = {**test, "labels": np.full((6, 3), 1), "label_length": np.full(6, 3), "length": np.full(6, 9)}
  found = {name: float(x.total / x.count) for name, x in jax.jit(experiment.evaluate)(state, test).items()}
  assert (found["loss"], found["infeasible"]) == (0, 1)


def _has_path(batch, i):
  labels = spell(batch["labels"][i], batch["label_length"][i])
  return -(-batch["length"][i] // 8) >= len(labels) + sum(a == b for a, b in pairwise(labels))


def test_only_frames_of_sound_are_masked(monkeypatch):
  """In training, where the flag says so."""
  masked = []
  monkeypatch.setattr(ctc, "mask_features", lambda key, frames, length: masked.append(key) or frames)
  for more, expected in (
    (dict(dataset="tones"), True),
    (dict(dataset="tones", masks=False), False),
    (dict(), False),
  ):
    masked.clear()
    experiment, feeds = ctc.make(small(**more)), ctc.make_feeds(small(**more))
    batch = jax.eval_shape(feeds.train.draw, feeds.train.arrays, root_key(0), 0)
    state = jax.eval_shape(experiment.init, root_key(0), batch)
    jax.eval_shape(experiment.step, state, batch)
    assert bool(masked) == expected


def test_errors_of_an_update_are_shares_of_labels():
  """Of a network that says one label and nothing else: 5 of 5 is right, of 1, 2, 3 nothing."""
  _, _, state, batch, _, step = first()
  bias = np.zeros(11, np.float32)
  bias[5] = 1000
  params = {**state.params, "logits": {**state.params["logits"], "bias": bias}}
  labels = np.tile(np.int32([5, 0, 0]), (6, 1))
  labels[:2] = 1, 2, 3
  given = {**batch, "labels": labels, "label_length": np.int32([3, 3, 1, 1, 1, 1])}
  _, metrics = step(state._replace(params=params), given)
  np.testing.assert_allclose(metrics["label_error"], 6 / 10, rtol=1e-6)
  np.testing.assert_allclose(metrics["exact"], 4 / 6, rtol=1e-6)


def test_dropout_is_drawn_anew_at_each_update():
  _, _, state, batch, _, step = first()
  losses = [float(step(state._replace(step=jnp.int32(i)), batch)[1]["loss"]) for i in (0, 0, 1)]
  assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
  "more", [dict(), dict(bidirectional=False), dict(cell="none"), dict(cell="transformer", heads=1)]
)
def test_what_is_read_at_the_beginning_may_hang_on_the_end(draw_variables, more):
  """With both directions, or attention; not with one direction, or convolutions alone."""
  network = build_network(small(**more), 3)
  x, whole = np.random.default_rng(0).normal(size=(2, 26, 8)).astype(np.float32), np.array([26, 26])
  variables, apply = draw_variables(network, x, whole), jax.jit(lambda *given: network.apply(*given)[0][:, 0])
  changed = x.copy()
  changed[:, -1] = 1
  one, two = (apply(variables, each, whole) for each in (x, changed))
  assert np.allclose(one, two) == (more in (dict(bidirectional=False), dict(cell="none")))


def test_frames_of_sound_have_mean_0_and_deviation_1_within_their_length():
  x = np.random.default_rng(0).normal(5, 3, (2, 9, 4)).astype(np.float32)
  standardize = jax.jit(lambda lengths: _strings.standardize(jnp.asarray(x), lengths)[0])
  found = np.asarray(standardize(np.array([9, 5])))
  np.testing.assert_allclose(found[1, :5].mean(0), 0, atol=1e-5)
  assert found[1, :5].std() == pytest.approx(1, rel=1e-4) and not np.any(found[1, 5:])
  assert np.isfinite(standardize(np.array([0, 1]))).all()


def test_clips_of_a_file_are_learned_from_and_tested_on_the_speaker_asked_for(draw_like, tmp_path, capsys):
  draw = np.random.default_rng(0)
  lengths = draw.integers(300, 500, 24)
  path = str(tmp_path / "clips.npz")
  arrays = dict(
    start=np.concatenate([[0], np.cumsum(lengths)]), label=np.arange(24) % 3, speaker=np.repeat([0, 1, 2], 8)
  )
  np.savez(path, audio=draw.integers(-(2**14), 2**14, lengths.sum()).astype(np.int16), rate=np.int32(8000), **arrays)
  more = dict(dataset=path, split="speaker:1", clip_seconds=0.05, dropout=0.0, stride=4)
  experiment, feeds = ctc.make(small(**more)), ctc.make_feeds(small(**more))
  assert "clips are longer than --clip_seconds=0.05" in capsys.readouterr().err
  assert len(feeds.evaluate.arrays) == 8 and len(feeds.train.arrays) == 16
  batch = jax.jit(feeds.train.draw)(feeds.train.arrays, root_key(0), 0)
  shapes = jax.eval_shape(experiment.init, root_key(0), batch)
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes.opt_state)
  state = ctc.State(jnp.int32(0), root_key(0), draw_like(shapes.params), zeros)
  # Nothing but the masks goes by the number of the update.
  step = jax.jit(experiment.step)
  losses = [float(step(state._replace(step=jnp.int32(i)), batch)[1]["loss"]) for i in (0, 0, 1)]
  assert losses[0] == losses[1] != losses[2] and np.isfinite(losses).all() and int(batch["labels"].max()) <= 3
  other = ctc.make_feeds(small(**{**more, "split": "speaker:2"}))
  assert other.fingerprint != feeds.fingerprint
  with pytest.raises(DataError, match="--split=speaker:7: no such speaker"):
    ctc.make_feeds(small(**{**more, "split": "speaker:7"}))


def test_the_report_draws_spikes_and_mistakes_and_says_the_floor(averaged, tmp_path):
  experiment, _, state, _, tests, _ = first()
  take_warnings()
  figures = experiment.report(averaged(state), tmp_path)
  assert figures["nearest_neighbour"] == pytest.approx(0.961, abs=1e-3)
  counts = np.concatenate([test["label_length"] for test in tests])[:15]
  best = max(figures["nearest_neighbour"], figures["linear_classifier"])
  np.testing.assert_allclose(figures["exact_floor"], np.mean(best**counts), rtol=1e-6)
  assert [i for i in range(15) if not _has_path(tests[i // 6], i % 6)] == [13]
  assert figures["infeasible_rows"] == 1 and "numbers 13." in " ".join(take_warnings())
  for name in ("spikes.png", "mistakes.png"):
    assert (tmp_path / name).stat().st_size > 10_000


def test_pictures_are_of_what_is_read_right_and_of_the_worst(monkeypatch):
  drawn = {}
  draw = lambda model, read, names, path, rows, title: drawn.update({path: list(rows)})
  monkeypatch.setattr(_ctc_pictures, "_draw", draw)
  labels = np.array([[1, 2, 3], [2, 0, 0], [1, 1, 0], [3, 1, 2], [2, 2, 0]])
  counts, wrong = np.array([3, 1, 2, 3, 2]), np.array([0, 1, 1, 0, 0])
  read = _ctc_pictures.Read(labels, counts, labels, counts, labels, np.array([2, 1, 2, 3, 2]), wrong, np.zeros(0, int))
  assert (read.wanted(0, ("a", "b", "c")), read.said(0, ("a", "b", "c"))) == ("abc", "ab")
  assert read.wanted(3, ("one", "two", "three")) == "three one two"
  _ctc_pictures.draw_spikes(None, read, "abc", "spikes", 2)
  _ctc_pictures.draw_mistakes(None, read, "abc", "mistakes")
  assert drawn == {"spikes": [0, 3], "mistakes": [1, 2]}


@pytest.mark.parametrize("sound", [False, True])
def test_a_string_without_a_frame_is_drawn(sound, tmp_path):
  class Model:
    frames = staticmethod(lambda x, lengths: (jnp.zeros((1, 4, 8)), lengths))
    __call__ = lambda self, x, lengths: (jnp.zeros((1, 2, 3)), lengths)

  none, labels = np.zeros(1, int), np.ones((1, 1), int)
  x = np.zeros((1, 30) if sound else (1, 4, 8))
  read = _ctc_pictures.Read(x, none, labels, none + 1, labels, none, none + 1, none)
  _ctc_pictures.draw_mistakes(Model(), read, ("a", "b"), tmp_path / "mistakes.png")
  assert (tmp_path / "mistakes.png").stat().st_size > 1000


def test_what_is_read_has_names():
  class Labels(Model):
    read = lambda self, x, lengths: (x, lengths)

  model = Labels(None, None, None, class_names=("no", "yes"))
  assert model.read_names(np.array([[2, 1, 0], [1, 2, 2]]), np.array([2, 1])) == [["yes", "no"], ["no"]]
  experiment, _, state, *_ = first()
  assert experiment.model(state).class_names == ctc.load_source(small()).class_names


@pytest.mark.parametrize("cell", ["lstm", "mingru", "scrn"])
def test_cells_have_the_precision_of_the_flags(cell):
  network = build_network(small(cell=cell, precision="bfloat16"), 3)
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


def test_floors_of_clips_learn_from_the_training_part(tmp_path):
  """Tones of three heights; of the speaker that is tested there is one, and of the others all."""
  hertz, label, speaker = (
    np.array([500.0, 1000, 2000]),
    np.array([0, 0, 0, 0, 0, 1, 2, 0, 1, 2]),
    np.repeat([1, 0], (4, 6)),
  )
  audio = np.concatenate([2**13 * np.sin(2 * np.pi * hertz[k] * np.arange(400) / 8000) for k in label]).astype(np.int16)
  more = dict(start=np.arange(11) * 400, label=label, speaker=speaker, rate=np.int32(8000))
  np.savez(tmp_path / "tones.npz", audio=audio, **more)
  source = _strings.load_source(str(tmp_path / "tones.npz"), "speaker:1", 1.0, 1, 3, 8)
  assert source.floors() == {"nearest_neighbour": 1.0, "linear_classifier": 1.0}


def test_tests_are_the_same_in_every_run_and_the_best_reads_most(monkeypatch):
  given = {}
  monkeypatch.setattr(ctc, "make_drawn_eval", lambda draw, arrays, seed, *sizes: (seed, sizes))
  tests = [ctc.make_feeds(small(seed=seed)).evaluate for seed in (0, 5)]
  assert tests[0] == tests[1] and tests[0][1] == (15, 6)
  monkeypatch.setattr(ctc, "train", lambda *parts, **more: given.update(more) or 0)
  assert ctc.main(small()) == 0 and given == {"best_metric": "exact", "best_mode": "max"}


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
