"""The auto-encoder: a code is all that the decoder has, words are hidden from it, figures count test sentences."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.sequence import _autoencoder_report, _seq2seq, autoencoder
from mlnotes.data import fixed_subset
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key
from mlnotes.optim.flags import make_optimizer
from mlnotes.sequence import Decoded, RecurrentSeq2Seq, greedy

WORDS = ("ab", "ba", "aab", "bba", "abab", "b", "a", "bbb", "aba", "bab", "aaaa", "bb", "baa", "abb", "baab", "abba")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  path = tmp_path_factory.mktemp("lines") / "words.txt"
  path.write_text("\n".join(WORDS) + "\n")
  return autoencoder.Config(
    tokenizer="characters",
    dataset=str(path),
    test_dataset=str(path),
    width=8,
    batch_size=4,
    steps=4,
    warmup_steps=0,
    word_dropout=0.5,
  )


@pytest.fixture(scope="module")
def made(config, draw_like):
  """(experiment, state, batch, jitted step)."""
  experiment, feeds = autoencoder.make(config), autoencoder.make_feeds(config)
  batch = jax.jit(lambda: feeds.train.draw(feeds.train.arrays, root_key(0), 0))()
  params = draw_like(jax.eval_shape(experiment.init, root_key(0), batch).params)
  optimizer = jax.jit(make_optimizer(config, config.steps).init)(params)
  hparams = {"word_dropout": jnp.float32(config.word_dropout)}
  state = autoencoder.State(jnp.int32(0), root_key(0), params, optimizer, hparams)
  return experiment, state, batch, jax.jit(experiment.step)


@pytest.fixture(scope="module")
def whole(made, averaged):
  return made[0].model(averaged(made[1]))


def test_a_code_is_the_final_state_and_decodes_by_itself(whole):
  codes = whole.encode(list(WORDS))
  assert codes.shape == (16, 8) and np.ptp(np.asarray(codes), 0).min() > 0
  texts = whole.decode(codes)
  assert texts == whole(WORDS)
  alone = whole.encode(["abab"] * 16)  # beside longer ones nothing changes
  np.testing.assert_allclose(alone[0], codes[4], rtol=1e-5, atol=1e-6)


def test_a_code_is_read_as_the_decoder_reads_the_source_itself(config, made, draw_like):
  """With two layers, whose states a code holds side by side."""
  pairs, batch = autoencoder.read_sentences(config), made[2]
  task = _seq2seq.describe(pairs)
  model = RecurrentSeq2Seq(task.vocabulary, 8, "lstm", 2, "none", never=task.never)

  params = draw_like(jax.eval_shape(lambda: _seq2seq.init_params(model, root_key(1), batch)), 1.0)

  @jax.jit
  def both_ways(batch):
    given = ({"params": params}, batch["source"], batch["source_length"])
    code = autoencoder.code_of(model, *given)
    found = autoencoder.decode_code(task, model, given[0], code)
    return found, greedy(model.make_decoder(*given), task.start, task.end, task.pad, task.room)

  found, expected = both_ways(batch)
  np.testing.assert_array_equal(found.tokens, expected.tokens)
  np.testing.assert_allclose(found.log_probability, expected.log_probability, rtol=1e-4)
  assert len(np.unique(expected.log_probability)) == 4


def test_hidden_words_are_of_the_decoder_and_never_the_start(key):
  inputs = jnp.tile(jnp.arange(1, 11)[None], (400, 1))
  found = np.asarray(autoencoder.drop_words(key, inputs, 0.3, 0))
  assert np.all(found[:, 0] == 1)
  np.testing.assert_allclose((found[:, 1:] == 0).mean(0), 0.3, atol=0.09)
  assert np.all((found == 0) | (found == inputs))


def test_hidden_words_raise_the_loss_of_an_update_and_not_that_of_an_evaluation(made, averaged):
  experiment, state, batch, step = made
  share = lambda p: state._replace(hparams={"word_dropout": jnp.float32(p)})
  losses = [float(step(share(p), batch)[1]["loss"]) for p in (0, 1)]
  assert losses[0] != losses[1]
  evaluate = jax.jit(experiment.evaluate)
  full = {**batch, "mask": jnp.ones(4), "index": jnp.arange(4)}
  found = [evaluate(averaged(share(p)), full)["loss"].total for p in (0, 1)]
  assert found[0] == found[1]
  fewer = evaluate(averaged(state), {**full, "mask": jnp.array([1.0, 1, 0, 0])})
  assert fewer["exact"].count == 2 and fewer["loss"].count == np.sum(batch["target_length"][:2] - 1)


def test_other_words_are_hidden_at_each_update(made):
  experiment, state, batch, step = made
  init = jax.jit(lambda: experiment.init(root_key(0), batch).hparams)  # all but that is dead code
  assert init()["word_dropout"] == 0.5
  losses = [float(step(state._replace(step=jnp.int32(i)), batch)[1]["loss"]) for i in (0, 0, 1)]
  assert losses[0] == losses[1] != losses[2]


def test_an_update_counts_tokens_and_not_sentences(config, made):
  """By a loop over the tokens of what the model says where no word is hidden."""
  _, state, batch, step = made
  task = _seq2seq.describe(autoencoder.read_sentences(config))
  model = RecurrentSeq2Seq(task.vocabulary, 8, "gru", 1, "none", never=task.never)
  inputs = batch["target"][:, :-1]
  said = jax.jit(lambda v: model.score(v, batch["source"], batch["source_length"], inputs))({"params": state.params})
  nats, right, lengths = [], [], np.asarray(batch["target_length"])
  assert len(set(lengths)) > 1
  for logs, target, length in zip(np.asarray(said.log_probability), np.asarray(batch["target"]), lengths):
    for t in range(length - 1):
      nats.append(-logs[t, target[t + 1]])
      right.append(logs[t].argmax() == target[t + 1])
  _, metrics = step(state._replace(hparams={"word_dropout": jnp.float32(0)}), batch)
  np.testing.assert_allclose(metrics["loss"], np.mean(nats), rtol=1e-5)
  np.testing.assert_allclose(metrics["accuracy"], np.mean(right), rtol=1e-5)


def test_an_evaluation_asks_each_code_for_its_own_sentence(made, monkeypatch):
  """With a code that is the sentence itself."""
  experiment, state, batch, _ = made
  monkeypatch.setattr(autoencoder, "code_of", lambda model, variables, source, lengths: (source, lengths))

  def decode(task, model, variables, code):
    source, lengths = code
    places = jnp.arange(task.room)[None]
    source = jnp.pad(source, ((0, 0), (0, task.room - source.shape[1])))
    ended = jnp.where(places == lengths[:, None], task.end, task.pad)
    nothing = jnp.zeros(len(source))
    return Decoded(jnp.where(places < lengths[:, None], source, ended), lengths + 1, nothing, nothing)

  monkeypatch.setattr(autoencoder, "decode_code", decode)
  found = jax.jit(experiment.evaluate)(state, {**batch, "mask": jnp.array([1.0, 1, 1, 0]), "index": jnp.arange(4)})
  assert (found["exact"].total, found["exact"].count) == (3, 3)


def test_flags_reach_the_network_and_what_is_learned(config, made):
  """As they are written, without compiling."""
  _, state, batch, _ = made

  def shapes(**more):
    init = autoencoder.make(dataclasses.replace(config, **more)).init
    return jax.tree.map(jnp.shape, jax.eval_shape(init, root_key(0), batch).params)

  plain = jax.tree.map(jnp.shape, state.params)
  for more in (dict(depth=2), dict(cell="lstm")):
    assert shapes(**more) != plain, more

  def written(**more):
    step = autoencoder.make(dataclasses.replace(config, **more)).step
    return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(step)(state, batch)))

  assert written() != written(dropout=0.5)


def test_it_learns(made):
  _, state, batch, step = made
  losses = []
  for _ in range(4):
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"]))
  assert losses[-1] < losses[0]


def test_pairs_of_different_sides_are_refused():
  with pytest.raises(InputError, match="--dataset=dates has other targets than sources"):
    autoencoder.read_sentences(autoencoder.Config(dataset="dates"))
  with pytest.raises(InputError, match=r"--word_dropout=1\.5"):
    autoencoder.Config(word_dropout=1.5)
  with pytest.raises(InputError, match="--cell=clockwork --width=30: "):
    autoencoder.Config(cell="clockwork", width=30)
  assert "precision" in autoencoder.Config().idle_flags()


@pytest.mark.parametrize("line", ["ab\tba", "ab\ta", "a\tab", "ab\tabb"])
def test_a_test_split_of_different_sides_is_refused(line, tmp_path):
  """Of other tokens, or of another length, that of the longest training pair or one beyond."""
  paths = [tmp_path / "train.tsv", tmp_path / "test.tsv"]
  for path, text in zip(paths, ("ab\tab\nb\tb\n", f"a\ta\n{line}\n")):
    path.write_text(text)
  config = autoencoder.Config(dataset=str(paths[0]), test_dataset=str(paths[1]))
  with pytest.raises(InputError, match="has other targets than sources") as error:
    autoencoder.read_sentences(config)
  assert f"--test_dataset={paths[1]}" in str(error.value)


class Reverser:
  """A code is a text's length and its number of a's; it is read as that many of each."""

  def encode(self, texts):
    return np.array([[len(text), text.count("a")] for text in texts], np.float32)

  def decode(self, codes):
    return ["a" * round(float(a)) + "b" * round(float(n - a)) for n, a in codes]


def test_the_report_counts_what_is_given_back_and_reads_between(config, tmp_path):
  pairs = autoencoder.read_sentences(config)
  figures = _autoencoder_report.write_report(pairs, Reverser(), 100, tmp_path)
  sorted_ones = [word for word in WORDS if list(word) == sorted(word)]
  assert figures["given_back"] == len(sorted_ones) / 16
  longest = [word for word in WORDS if len(word) >= np.median([len(word) for word in WORDS])]
  assert figures["given_back_longest_half"] == len([word for word in longest if word in sorted_ones]) / len(longest)
  lines = (tmp_path / "between.txt").read_text().splitlines()
  ends = [Reverser().decode(Reverser().encode([word]))[0] for word in (WORDS[0], WORDS[-1])]
  assert [lines[0].split()[1], lines[-1].split()[1]] == ends
  assert len(lines) == 7 and lines[0].startswith("0.00") and lines[-1].startswith("1.00")
  assert (tmp_path / "codes.png").stat().st_size > 10_000
  assert (tmp_path / "reconstructions.txt").read_text().startswith(f"{len(sorted_ones)} of 16 are right")


def test_the_report_is_of_a_fixed_subset(config, tmp_path):
  """Not of the first sentences of a file, which may be sorted."""
  pairs = autoencoder.read_sentences(config)
  figures = _autoencoder_report.write_report(pairs, Reverser(), 5, tmp_path)
  is_sorted = [list(word) == sorted(word) for word in WORDS]
  expected = np.mean([is_sorted[i] for i in fixed_subset(16, 5)])
  assert figures["given_back"] == expected != np.mean(is_sorted[:5])


def test_main_directions_are_those_of_the_covariance():
  codes = np.sin(np.arange(60.0)).reshape(12, 5) * np.array([5.0, 1, 3, 0.1, 0.2])
  places, share = _autoencoder_report.principal(codes)
  values = np.linalg.eigvalsh(np.cov(codes.T))[::-1]
  np.testing.assert_allclose(places.var(0, ddof=1), values[:2], rtol=1e-6)
  np.testing.assert_allclose(share, values[:2].sum() / values.sum(), rtol=1e-6)


def test_parts_by_length_hold_all_sentences():
  parts = _autoencoder_report.by_length(np.array([3, 1, 2, 9, 9, 9, 4]), [True, False] * 3 + [True])
  assert sum(count for *_, count in parts) == 7
  assert parts[0] == ("1-2", 0.5, 2)
