import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.data import (
  EMPTY_FEED,
  ArraySplit,
  RecordSplit,
  choose_placement,
  make_eval_batches,
  make_resident_feed,
  make_stream_feed,
)
from mlnotes.data.flags import DataConfig
from mlnotes.engine.errors import InputError

SIZE, BATCH = 50, 8


@pytest.fixture
def split():
  image = np.random.default_rng(0).integers(0, 256, (SIZE, 3, 4, 1), dtype=np.uint8)
  return ArraySplit(image, np.arange(SIZE, dtype=np.int32) % 7)


@pytest.fixture
def stream(split):
  """Makes stream feeds of `split` and closes them."""
  feeds = []

  def make(*args, **kwargs):
    feeds.append(make_stream_feed(split, *args, **kwargs))
    return feeds[-1]

  yield make
  for feed in feeds:
    feed.close()


def assert_batches_equal(found, expected):
  assert set(found) == set(expected) == {"image", "label", "index"}
  for name in expected:
    assert found[name].dtype == expected[name].dtype
    np.testing.assert_array_equal(found[name], expected[name])


def draw_steps(feed, key, steps):
  """`steps` draws as the training loop makes them: inside one compiled scan, the arrays an argument."""

  @jax.jit
  def run(arrays, key):
    return jax.lax.scan(lambda step, _: (step + 1, feed.draw(arrays, key, step)), 0, None, length=steps)[1]

  return run(feed.arrays, key)


def test_an_epoch_visits_examples_at_most_once_and_batches_hold_them(split, key):
  steps = SIZE // BATCH
  batches = draw_steps(make_resident_feed(split, BATCH), key, 3 * steps)
  epochs = np.asarray(batches["index"]).reshape(3, steps * BATCH)
  for order in epochs:
    assert len(np.unique(order)) == steps * BATCH
  assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])
  np.testing.assert_array_equal(batches["image"], split.image[batches["index"]])
  np.testing.assert_array_equal(batches["label"], split.label[batches["index"]])
  assert batches["image"].dtype == jnp.uint8 and batches["label"].dtype == batches["index"].dtype == jnp.int32


def test_every_example_is_seen_in_the_long_run(split, key):
  batches = draw_steps(make_resident_feed(split, BATCH), key, 40 * (SIZE // BATCH))
  counts = np.bincount(np.asarray(batches["index"]).ravel(), minlength=SIZE)
  # 48 of 50 in each of 40 epochs.
  assert counts.min() >= 32 and counts.max() <= 40


def test_other_seeds_give_other_orders(split):
  feed = make_resident_feed(split, BATCH)
  indices = [feed.draw(feed.arrays, jax.random.key(seed), 0)["index"] for seed in range(3)]
  assert not np.array_equal(indices[0], indices[1]) and not np.array_equal(indices[1], indices[2])


def test_stream_gives_the_resident_batches(split, stream):
  resident, streamed = make_resident_feed(split, BATCH), stream(BATCH, 3)
  expected = draw_steps(resident, jax.random.key(3), 15)
  for step in range(15):
    assert streamed.step == step
    assert_batches_equal(streamed.next(), jax.tree.map(lambda x: x[step], expected))  # noqa: B023


def test_streamed_seeds_are_the_vmapped_resident_draws(split, stream):
  resident, streamed = make_resident_feed(split, BATCH), stream(BATCH, [0, 5, 2], start_step=4)
  keys = jax.vmap(jax.random.key)(jnp.array([0, 5, 2]))
  draw = jax.jit(jax.vmap(resident.draw, (None, 0, 0)))
  for step in range(4, 8):
    assert_batches_equal(streamed.next(), draw(resident.arrays, keys, jnp.full(3, step)))


def test_processes_read_disjoint_rows_of_the_global_batch(stream):
  whole = stream(BATCH, [1, 2])
  parts = [stream(BATCH, [1, 2], process_index=i, process_count=4) for i in range(4)]
  for _ in range(8):
    batches = [part.next() for part in parts]
    joined = {name: np.concatenate([batch[name] for batch in batches], axis=1) for name in batches[0]}
    assert_batches_equal(joined, whole.next())


def test_stream_resumes_where_it_was(stream):
  feed = stream(BATCH, 0)
  for _ in range(7):
    feed.next()
  state = feed.get_state()
  following = [feed.next() for _ in range(3)]
  feed.seek(7)
  other = stream(BATCH, 0)
  other.next()
  other.set_state(state)
  assert other.step == 7
  third = stream(BATCH, 0, start_step=7)
  for expected in following:
    for resumed in (feed, other, third):
      assert_batches_equal(resumed.next(), expected)


class SlowRecords:
  """Records that take a while to read, as `RecordSplit` expects them; or fail."""

  def __init__(self, seconds=0.0, error=None):
    self.seconds, self.error = seconds, error

  def __len__(self):
    return SIZE

  def __getitems__(self, positions):
    import io

    from PIL import Image

    time.sleep(self.seconds)
    if self.error:
      raise self.error
    records = []
    for position in positions:
      encoded = io.BytesIO()
      Image.fromarray(np.full((2, 3), position, np.uint8)).save(encoded, "PNG")
      records.append({"image": encoded.getvalue(), "label": position})
    return records


def test_records_are_decoded_while_streaming_and_waiting_is_measured():
  feed = make_stream_feed(RecordSplit(SlowRecords(0.05), (2, 3, 1)), BATCH, 0, num_threads=1)
  start = time.perf_counter()
  batches = [feed.next() for _ in range(4)]
  elapsed = time.perf_counter() - start
  feed.close()
  assert 0.15 < feed.wait_seconds <= elapsed
  for batch in batches:
    np.testing.assert_array_equal(batch["label"], batch["index"])
    np.testing.assert_array_equal(batch["image"], np.tile(batch["index"][:, None, None, None], (1, 2, 3, 1)))


def test_reading_ahead_hides_the_wait():
  feed = make_stream_feed(RecordSplit(SlowRecords(0.2), (2, 3, 1)), BATCH, 0, num_threads=2)
  feed.next()
  waited = feed.wait_seconds
  time.sleep(0.8)
  feed.next()
  feed.close()
  assert feed.wait_seconds - waited < 0.1


def test_an_error_while_reading_reaches_the_caller():
  feed = make_stream_feed(RecordSplit(SlowRecords(error=OSError("disk gone")), (2, 3, 1)), BATCH, 0)
  with pytest.raises(InputError, match=r"records 4 to 44: not readable \(disk gone\)"):
    feed.next()
  feed.close()


@pytest.mark.parametrize("size", [1, 7, 8, 16, 50])
def test_evaluation_sees_every_example_once(split, size):
  part = ArraySplit(**split.read(np.arange(size)))
  batches = make_eval_batches(part, BATCH)
  assert batches.num_batches == -(-size // BATCH)
  draw = jax.jit(batches.draw)
  drawn = [draw(batches.arrays, i) for i in range(batches.num_batches)]
  assert all(batch["image"].shape == (BATCH, 3, 4, 1) for batch in drawn)
  real = [np.asarray(batch["index"])[np.asarray(batch["mask"]) == 1] for batch in drawn]
  np.testing.assert_array_equal(np.concatenate(real), np.arange(size))
  total = sum(float(jnp.sum(batch["mask"] * batch["label"])) for batch in drawn)
  assert total == part.label.sum()
  for batch in drawn:
    np.testing.assert_array_equal(batch["image"], part.image[batch["index"]])
    np.testing.assert_array_equal(batch["label"], part.label[batch["index"]])
    assert batch["mask"].dtype == jnp.float32


def test_a_limited_evaluation_is_a_fixed_sample_of_the_whole_split():
  split = ArraySplit(np.zeros((1000, 1, 1, 1), np.uint8), np.repeat(np.arange(10, dtype=np.int32), 100))
  first, second = make_eval_batches(split, 64, limit=200), make_eval_batches(split, 50, limit=200)
  assert float(first.arrays["mask"].sum()) == 200 and second.num_batches == 4
  np.testing.assert_array_equal(first.arrays["index"][:200], second.arrays["index"])
  assert len(np.unique(second.arrays["index"])) == 200
  assert len(np.unique(second.arrays["label"])) == 10
  assert make_eval_batches(split, 64, limit=5000).arrays["mask"].sum() == 1000


def test_placement():
  split = ArraySplit(np.zeros((10, 4, 4, 1), np.uint8), np.zeros(10, np.int32))
  assert split.nbytes == 10 * (16 + 4)
  assert choose_placement(split, "auto", 200) == "device"
  assert choose_placement(split, "auto", 199) == "stream"
  assert choose_placement(split, "auto") == "device"
  assert choose_placement(split, "device", 0) == "device"
  assert choose_placement(split, "stream") == "stream"
  records = RecordSplit(SlowRecords(), (2, 3, 1))
  assert choose_placement(records, "auto") == "stream"
  with pytest.raises(InputError, match="--data_placement=device"):
    choose_placement(records, "device")


def test_copies_on_the_devices_of_a_cpu_share_its_memory(monkeypatch):
  """Eight devices of a machine of 6400 bytes: 200 on each."""
  monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 64, "SC_PAGE_SIZE": 100}.get)
  split = ArraySplit(np.zeros((10, 4, 4, 1), np.uint8), np.zeros(10, np.int32))
  assert choose_placement(split, "auto") == "device"
  monkeypatch.setattr("jax.local_device_count", lambda: 9)
  assert choose_placement(split, "auto") == "stream"


def test_the_empty_feed_draws_nothing(key):
  assert jax.jit(EMPTY_FEED.draw)(EMPTY_FEED.arrays, key, 0) == ()


def test_arguments_out_of_range(split, stream):
  for make in (make_resident_feed, lambda split, batch_size: make_stream_feed(split, batch_size, 0)):
    with pytest.raises(ValueError, match="batch_size=51 is out of range: expected 1 to 50"):
      make(split, 51)
  with pytest.raises(ValueError, match="batch_size=8 is not divisible: expected a multiple of 3"):
    stream(8, 0, process_count=3)
  with pytest.raises(ValueError, match="process_index=2 is out of range: expected 0 to 1"):
    stream(8, 0, process_index=2, process_count=2)
  with pytest.raises(ValueError, match="seeds is empty"):
    stream(8, [])
  with pytest.raises(ValueError, match="step=-1"):
    stream(8, 0).seek(-1)
  with pytest.raises(ValueError, match="limit=0"):
    make_eval_batches(split, 8, limit=0)
  with pytest.raises(ValueError, match="batch_size=0"):
    make_eval_batches(split, 0)


def test_flags_without_effect_are_told(tmp_path):
  idle = lambda **given: set(DataConfig(**given).idle_flags())
  assert idle() == idle(dataset="some.npz") == {"data_dir", "train_split", "test_split"}
  assert idle(dataset=str(tmp_path)) == {"data_dir"}
  assert idle(dataset="mnist") == set()


def test_config_refuses_an_empty_batch():
  assert DataConfig().dataset == "digits"
  assert all(item.metadata["help"] for item in dataclasses.fields(DataConfig))
  with pytest.raises(InputError, match="--batch_size=0 "):
    DataConfig(batch_size=0)
  with pytest.raises(InputError, match="--image_size=-1 "):
    DataConfig(image_size=-1)
