"""The auto-encoder: a code is all that the decoder has, words are hidden from it, figures count test sentences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.sequence import _autoencoder_report, _seq2seq, autoencoder
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key
from mlnotes.sequence import RecurrentSeq2Seq, greedy

WORDS = ("ab", "ba", "aab", "bba", "abab", "b", "a", "bbb", "aba", "bab", "aaaa", "bb", "baa", "abb", "baab", "abba")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  path = tmp_path_factory.mktemp("lines") / "words.txt"
  path.write_text("\n".join(WORDS) + "\n")
  return autoencoder.Config(
    dataset=str(path), test_dataset=str(path), width=8, batch_size=4, steps=4, warmup_steps=0, word_dropout=0.5
  )


@pytest.fixture(scope="module")
def made(config):
  experiment, feeds = autoencoder.make(config), autoencoder.make_feeds(config)
  batch = jax.jit(lambda: feeds.train.draw(feeds.train.arrays, root_key(0), 0))()
  return experiment, jax.jit(experiment.init)(root_key(0), batch), batch


@pytest.fixture(scope="module")
def whole(made):
  return made[0].model(made[1])


def test_a_code_is_the_final_state_and_decodes_by_itself(whole):
  codes = whole.encode(list(WORDS))
  assert codes.shape == (16, 8) and np.ptp(np.asarray(codes), 0).min() > 0
  texts = whole.decode(codes)
  assert texts == whole(WORDS)
  np.testing.assert_allclose(whole.encode(["abab"])[0], codes[4], rtol=1e-5, atol=1e-6)  # padding changes nothing


def test_a_code_is_read_as_the_decoder_reads_the_source_itself(config, made):
  """With two layers, whose states a code holds side by side."""
  pairs, (_, _, batch) = autoencoder.read_sentences(config), made
  task = _seq2seq.describe(pairs)
  model = RecurrentSeq2Seq(task.vocabulary, 8, "lstm", 2, "none", never=task.never)

  @jax.jit
  def both_ways(batch):
    params = _seq2seq.init_params(model, root_key(1), batch)
    uneven = lambda x: 2 * x + 0.5 * jnp.sin(5.0 * jnp.arange(x.size).reshape(x.shape))
    given = ({"params": jax.tree.map(uneven, params)}, batch["source"], batch["source_length"])
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


def test_hidden_words_raise_the_loss_of_an_update_and_not_that_of_an_evaluation(made):
  experiment, state, batch = made
  # A model that goes by its last word: both words' logits hang on the input alone.
  step = jax.jit(experiment.step)
  losses = [float(step(state._replace(hparams={"word_dropout": jnp.float32(p)}), batch)[1]["loss"]) for p in (0, 1)]
  assert losses[0] != losses[1]
  evaluate = jax.jit(experiment.evaluate)
  full = {**batch, "mask": jnp.ones(4), "index": jnp.arange(4)}
  found = [evaluate(state._replace(hparams={"word_dropout": jnp.float32(p)}), full)["loss"].total for p in (0, 1)]
  assert found[0] == found[1]
  fewer = evaluate(state, {**full, "mask": jnp.array([1.0, 1, 0, 0])})
  assert fewer["exact"].count == 2 and fewer["loss"].count == jnp.sum(batch["target_length"][:2] - 1)


def test_it_learns(made):
  experiment, state, batch = made
  step = jax.jit(experiment.step)
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
  assert len(lines) == 7 and lines[0].startswith("0.00") and lines[-1].startswith("1.00")
  assert (tmp_path / "codes.png").stat().st_size > 10_000
  assert (tmp_path / "reconstructions.txt").read_text().startswith(f"{len(sorted_ones)} of 16 are right")


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
