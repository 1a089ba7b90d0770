"""--pairs=next in an experiment: the same each time, however a batch is divided; learned where there is something to
tell, and read again by what tunes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lm import _tuning_network, pretrain, tune
from experiments.lm._objectives import load_text, make_task
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key
from mlnotes.engine.program import Program, window_means
from mlnotes.engine.sharding import make_mesh

SIZES = dict(
  objective="masked", pairs="next", documents="line", depth=1, width=16, heads=2, length=8, batch_size=32, steps=250,
  warmup_steps=10, log_every=2, eval_every=0, learning_rate=1e-2, stride=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
  """Lines of one letter each, and of letters that tell nothing of each other."""
  rng, found = np.random.default_rng(0), {}
  for name, draw in (
    ("alike", lambda: "abcd"[rng.integers(4)] * 40),
    ("apart", lambda: "".join(rng.choice(list("abcd"), 40))),
  ):
    found[name] = tmp_path_factory.mktemp("text") / f"{name}.txt"
    found[name].write_text("\n".join(f"{draw()}{i}" for i in range(300)))
  return {name: str(path) for name, path in found.items()}


def start(dataset, **flags):
  config = pretrain.Config(**{**SIZES, "dataset": dataset, **flags})
  experiment, feeds = pretrain.make(config), pretrain.make_feeds(config)
  batch = jax.jit(feeds.train.draw)(feeds.train.arrays, root_key(0), 0)
  return config, experiment, feeds, jax.jit(experiment.init)(root_key(0), batch), batch


@pytest.fixture(scope="module")
def alike(texts):
  return start(texts["alike"])


def test_what_can_be_told_is_learned_and_what_cannot_is_not(alike, texts):
  """A line of one letter: what is elsewhere is the same one in a quarter of the cases, which leaves 7/8 at most."""
  config, experiment, feeds, state, _ = alike
  draw = feeds.train.draw

  @jax.jit
  def learn(state, arrays):
    update = lambda state, i: (experiment.step(state, draw(arrays, root_key(0), i))[0], None)
    return jax.lax.scan(update, state, jnp.arange(config.steps))[0]

  evaluate, found = jax.jit(experiment.evaluate), {}
  for name, path in texts.items():
    feeds = pretrain.make_feeds(dataclasses.replace(config, dataset=path))
    after, told = learn(state, feeds.train.arrays), []
    for i in range(feeds.evaluate.num_batches):
      told.append(evaluate(after, feeds.evaluate.draw(feeds.evaluate.arrays, i))["next_accuracy"])
    found[name] = sum(float(x.total) for x in told), sum(float(x.count) for x in told)
  right, count = found["alike"]
  assert count > 100 and 0.78 < right / count < 0.93, found
  right, count = found["apart"]
  assert abs(right / count - 0.5) < 4 * 0.5 / count**0.5, found


def test_an_evaluation_is_the_same_each_time(alike):
  _, experiment, feeds, state, _ = alike
  given = feeds.evaluate.draw(feeds.evaluate.arrays, 0)
  evaluate = jax.jit(experiment.evaluate)
  first, second = evaluate(state, given), evaluate(state._replace(key=root_key(5), step=state.step + 7), given)
  jax.tree.map(np.testing.assert_array_equal, first, second)
  # In batches of another size too: what a window is beside is of the window alone.
  other = pretrain.make_feeds(dataclasses.replace(alike[0], batch_size=16)).evaluate
  halves = [evaluate(state, other.draw(other.arrays, i)) for i in range(2)]
  for name in ("next_loss", "loss", "next_accuracy"):
    np.testing.assert_allclose(first[name].total, sum(half[name].total for half in halves), rtol=1e-5)


def test_parts_of_a_batch_change_nothing(alike, texts):
  _, experiment, _, state, batch = alike
  parts = pretrain.make(dataclasses.replace(alike[0], accumulate=2))
  found = [jax.jit(each.step)(state, batch) for each in (experiment, parts)]
  for a, b in zip(*(jax.tree.leaves((state.params, metrics)) for state, metrics in found), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.thorough
def test_how_a_batch_is_divided_changes_nothing(texts):
  """Parts one after the other on two devices: the losses and the parameters of one."""
  found = []
  for devices, accumulate in ((1, 1), (2, 2)):
    config = pretrain.Config(**{**SIZES, "dataset": texts["alike"], "accumulate": accumulate})
    program = Program(pretrain.make(config), pretrain.make_feeds(config), (0,), make_mesh(devices, 1))
    state, window = program.update(program.init(), program.empty_window(), 2)
    found.append((window_means(window), jax.tree.map(np.asarray, state.params)))
  assert found[0][0].keys() >= {"loss", "next_loss", "next_accuracy", "objective", "grad_norm"}
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), *found)


def test_streamed_batches_are_those_of_the_device(alike):
  config, *_, batch = alike
  streamed = pretrain.make_feeds(dataclasses.replace(config, data_placement="stream")).train.next()
  for name in ("tokens", "index"):
    np.testing.assert_array_equal(streamed[name], batch[name])


def test_the_report_and_tuning_read_the_same_rows(alike, tmp_path):
  """filled.txt shows both halves; the tuned network's loss before tuning is the evaluation's."""
  config, experiment, feeds, state, _ = alike
  assert experiment.report(state, tmp_path)["parameters"] > 0
  shown = (tmp_path / "filled.txt").read_text().splitlines()
  assert [line[:5] for line in shown[2:5]] == ["read ", "said ", "stood"]
  corpus = load_text(config)
  network = _tuning_network.Network(config, corpus, make_task(config, corpus), state.params)
  fresh = jax.eval_shape(lambda: _tuning_network.fresh_params(network, root_key(0)))
  assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, state.params)
  tuning = tune.build_tuning(tune.Config(method="features", length=8), network.task)
  found = _tuning_network.pretraining_loss(network, tuning, tune.Parts({"network": {}}, state.params), {})
  totals = np.zeros(2)
  for i in range(feeds.evaluate.num_batches):
    totals += np.array(jax.jit(experiment.evaluate)(state, feeds.evaluate.draw(feeds.evaluate.arrays, i))["loss"])
  np.testing.assert_allclose(found, totals[0] / totals[1], rtol=1e-5)


@pytest.mark.parametrize("flags, words", [
  (dict(packed=True), "--packed has no meaning for --pairs=next"),
  (dict(head_chunks=5), "head_chunks=5"),
])  # fmt: skip
def test_what_does_not_fit_is_one_sentence(flags, words):
  with pytest.raises(InputError, match=words):
    pretrain.Config(**{**SIZES, **flags})


def test_a_text_that_is_too_short_is_refused(tmp_path):
  path = tmp_path / "short.txt"
  path.write_text("a short text in all\n" * 8)
  config = pretrain.Config(**{**SIZES, "dataset": str(path), "documents": "file", "length": 16})
  with pytest.raises(InputError, match="--pairs=next: length=16 is out of range"):
    pretrain.make(config)
