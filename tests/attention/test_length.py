"""The study of longer texts: what is trained and judged, against a loop; its figures, its picture, its flags."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.attention import length
from mlnotes.attention import Mask
from mlnotes.data import Corpus, Windows, make_resident_feed
from mlnotes.data.text_floors import ngram_floors
from mlnotes.data.tokenizer import train_tokenizer
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key, stream_key

TRAIN = np.random.default_rng(0).integers(0, 5, 40)
TEST = np.random.default_rng(1).integers(0, 5, 23)
CORPUS = Corpus("noise", Windows(TRAIN, 4, 1), Windows(TEST, 4, 4), train_tokenizer("characters", ("abcd",), 0, ()))
SIZES = dict(length=4, stride=1, batch_size=3, steps=3, depth=1, width=4, heads=2, lengths=(4, 6), learning_rate=0.1)


def configure(**flags):
  return length.Config(**{**SIZES, **flags})


# -- training and judging ----------------------------------------------------------------------------------------------


def test_windows_end_a_training_window_apart_and_with_the_text():
  found = length.cut_ends(np.arange(20), 6, 4)
  np.testing.assert_array_equal(found[:, -1], [7, 11, 15, 19])
  np.testing.assert_array_equal(found[0], np.arange(1, 8))
  np.testing.assert_array_equal(length.cut_ends(np.arange(7), 6, 4), [np.arange(7)])


def test_each_seed_is_trained_at_one_length_and_judged_at_all():
  """Against a Python loop over updates and windows."""
  config = configure(seeds=2, seed=3)
  found = length.compare(config, CORPUS, "sinusoidal")
  model, feed = length.build_model(config, "sinusoidal", CORPUS.vocab_size), make_resident_feed(CORPUS.train, 3)
  rate = optax.warmup_cosine_decay_schedule(0.0, 0.1, 1, 3)
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

  @jax.jit
  def nats(params, tokens):
    logits = model.apply({"params": params}, tokens[:, :-1], Mask(causal=True))
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])

  @jax.jit
  def update(params, state, key, step):
    tokens = feed.draw(feed.arrays, key, step)["tokens"]
    grads = jax.grad(lambda params: nats(params, tokens).mean())(params)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state

  start = jax.jit(lambda key: model.init(stream_key(key, "init"), jnp.zeros((1, 4), int))["params"])
  for row, seed in enumerate((3, 4)):
    params = start(root_key(seed))
    state = optimizer.init(params)
    for step in range(3):
      params, state = update(params, state, root_key(seed), step)
    for column, tokens in enumerate((4, 6)):
      # The text has 23 tokens: windows end at its last one, and every 4 before.
      windows = np.stack([TEST[end - tokens - 1 : end] for end in (7, 11, 15, 19, 23)])
      each = nats(params, jnp.asarray(windows))
      np.testing.assert_allclose(found.whole[row, column], np.mean(each), rtol=1e-4)
      np.testing.assert_allclose(found.last[row, column], np.mean(each[:, -4:]), rtol=1e-4)
  np.testing.assert_allclose(found.whole[:, 0], found.last[:, 0], rtol=1e-6)
  assert found.last[0, 0] != found.last[1, 0] and found.last[0, 0] != found.last[0, 1]


def test_the_kinds_are_what_they_are_called():
  """One layer without positions answers the last token alike whatever the order of those before it; no other does."""
  config = configure(lengths=(4, 9))
  tokens = jnp.array([[0, 1, 2, 3, 4], [2, 0, 3, 1, 4]])
  last, alone, names = {}, {}, {}
  for name in length.TITLES:
    model = length.build_model(config, name, 5)

    @jax.jit
    def answers(key):
      variables = model.init(key, tokens)  # noqa: B023
      whole, first = (model.apply(variables, x, Mask(causal=True)) for x in (tokens, tokens[:1, :1]))  # noqa: B023
      return variables, whole[:, -1], first

    variables, last[name], alone[name] = answers(jax.random.key(0))
    names[name] = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables)}
    if name == "learned":
      assert variables["params"]["places"].shape == (9, 4)
  np.testing.assert_allclose(*last["none"], rtol=1e-5)
  for name in set(last) - {"none"}:
    assert np.max(np.abs(np.subtract(*last[name]))) > 1e-4, name
  assert names["learned"] - names["none"] == {"['params']['places']"}
  assert all(names[name] == names["none"] for name in ("sinusoidal", "rotary", "alibi"))
  # Rotary and ALiBi turn and bias, they add nothing: a single token gets what it gets without.
  for name in ("rotary", "alibi"):
    np.testing.assert_allclose(alone[name], alone["none"], rtol=1e-5)
  assert not np.allclose(alone["sinusoidal"], alone["none"], rtol=1e-3)


# -- floors and figures ------------------------------------------------------------------------------------------------


def test_floors_are_frequencies_counted_by_hand():
  train, test = np.array([0, 1, 0, 1, 1]), np.array([0, 1, 2])
  corpus = CORPUS._replace(train=Windows(train, 2), test=Windows(test, 2))
  size = corpus.vocab_size
  single = {1: 4 / (5 + size), 2: 1 / (5 + size)}
  found = ngram_floors(corpus)
  assert found["unigram"] == pytest.approx(-(np.log(single[1]) + np.log(single[2])) / 2)
  double = [(2 + single[1]) / (2 + 1), (0 + single[2]) / (2 + 1)]  # 0 is followed by 1 twice, 1 by 0 and by 1
  assert found["bigram"] == pytest.approx(-np.mean(np.log(double)))


def make_losses(first=1.0):
  whole = np.array([[first, 2.0], [first + 1, 2.5]])
  return length.Losses(whole, whole + np.array([[0.25, 0.5]]))


def test_figures_and_table_have_every_length():
  floors = {"unigram": 3.0, "bigram": 2.5}
  figures, rows = length.gather(configure(seeds=2), {"alibi": make_losses(), "none": make_losses(1.5)}, floors)
  np.testing.assert_allclose(figures["alibi_6/loss"], [2, 2.5])
  np.testing.assert_allclose(figures["alibi_6/last"], [2.5, 3])
  np.testing.assert_allclose(figures["alibi/growth"], [1.25, 0.75])
  np.testing.assert_allclose(figures["none_4/loss"], [1.5, 2.5])
  assert figures["bigram"] == 2.5 and len(figures) == 2 + 2 * 5
  assert rows[2].startswith("| ALiBi | 1.75 ± 0.71 | 2.75 ± 0.35 | 1 ") and "| bigram frequencies | 2.5 |" in rows[-1]
  assert len({row.count("|") for row in rows}) == 1


@pytest.mark.parametrize("value", [1.0, np.nan, np.inf])
def test_the_picture_is_drawn_whatever_came_out(value, tmp_path):
  length.draw(configure(), {"none": make_losses(value)}, {"unigram": 3.0, "bigram": 2.5}, tmp_path / "length.png")
  assert (tmp_path / "length.png").stat().st_size > 1000


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_study_compares_the_kinds_that_are_asked_for(tmp_path, monkeypatch, capsys):
  asked = []
  monkeypatch.setattr(length, "load_data", lambda config: CORPUS)
  monkeypatch.setattr(length, "compare", lambda config, corpus, name: asked.append(name) or make_losses())
  config = configure(positions=("rotary", "none"), seeds=2, workdir=str(tmp_path / "run"))
  assert length.main(config) == 0 and asked == ["rotary", "none"]
  card = json.loads((tmp_path / "run" / "result.json").read_text())
  assert card["metrics"]["rotary_6/last"]["seeds"] == [2.5, 3.0]
  assert (tmp_path / "run" / "table.md").read_text().count("\n") == 6 and (tmp_path / "run" / "length.png").exists()


@pytest.mark.parametrize("flags, words", [
  ({"positions": ("rotory",)}, "--positions=rotory is no kind of position: did you mean rotary"),
  ({"positions": ("none", "none")}, "--positions=none,none"),
  ({"positions": ()}, "--positions="),
  ({"lengths": (6, 4)}, "--lengths=6,4"),
  ({"lengths": (3, 6)}, "--lengths=3,6.*--length=4"),
  ({"heads": 3}, "--heads=3.*divisor"),
  ({"width": 6, "heads": 2}, "--positions=rotary takes features in pairs: a head has 3"),
  ({"width": 3, "heads": 1, "positions": ("sinusoidal",)}, "--positions=sinusoidal.*--width is 3"),
  ({"seeds": 0}, "--seeds=0"),
  ({"learning_rate": 0.0}, "--learning_rate=0.0"),
])  # fmt: skip
def test_a_bad_flag_is_one_sentence_that_names_it(flags, words):
  with pytest.raises(InputError, match=words):
    configure(**flags)


def test_a_text_that_is_too_short_is_refused_before_anything_runs(monkeypatch):
  monkeypatch.setattr(length, "load_data", lambda config: CORPUS)
  with pytest.raises(InputError, match=r"--lengths=23.*fewer than the 23 tokens"):
    length.main(configure(lengths=(4, 23)))
  with pytest.raises(InputError, match=r"--batch_size=37.*at most 36"):
    length.main(configure(batch_size=37))
