"""Speculative decoding with caches: against enumeration and plain generation, whatever was refused before."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mlnotes.lm import generate, make_bert, make_gpt2, make_llama, next_distribution, speculative_decode

VOCABULARY, ROWS, NEW, DRAFTED, TOP_K = 4, 8000, 9, 2, 3
# Learned places, as many as are asked about: 3 + 9 + 2 - 1; and turned keys.
DRAFT = make_gpt2(VOCABULARY, 13, 1, 1, 8)
TARGET = make_llama(VOCABULARY, 16, 1, 2, 8, tied=False)


def drawn(model, seed):
  """Weights that make distributions of each context its own."""
  params = model.init(jax.random.key(seed), jnp.zeros((1, 2), int))
  return jax.tree.map(lambda x: 25 * x if x.ndim == 2 else x, params)


OF_DRAFT, OF_TARGET = drawn(DRAFT, 0), drawn(TARGET, 1)
# Of three tokens and of two; what stands behind the second is padding.
PROMPTS, LENGTHS = np.array([[1, 2, 3], [3, 0, 2]]), np.array([3, 2])
WHICH = np.arange(ROWS) % 2


@partial(jax.jit, static_argnames=("draft", "drafted"))
def decode(keys, prompts, lengths, temperature, end, draft=DRAFT, drafted=DRAFTED):
  of_draft = OF_DRAFT if draft is DRAFT else OF_TARGET
  run = lambda key, prompt, length: speculative_decode(
    key, draft, of_draft, TARGET, OF_TARGET, prompt, length, NEW, drafted, temperature, TOP_K, end
  )
  return jax.vmap(run)(keys, prompts, lengths)


def rows(temperature=1.0, end=-1, prompts=PROMPTS, lengths=LENGTHS, count=ROWS, **more):
  """Texts behind the first prompt and the second, by turns."""
  which, keys = WHICH[:count], jax.random.split(jax.random.key(5), count)
  found = decode(keys, prompts[which], lengths[which], jnp.float32(temperature), jnp.int32(end), **more)
  return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_what_is_drawn_is_what_the_large_model_draws(temperature):
  """Three tokens of 4,000 texts behind each prompt against the chances of all 64, read without a cache; top-k on."""
  found = rows(temperature)
  words = np.array(list(itertools.product(range(VOCABULARY), repeat=3)))
  for i, length in enumerate(LENGTHS):
    prompt = np.broadcast_to(PROMPTS[i, :length], (len(words), length))
    logits = TARGET.apply(OF_TARGET, jnp.asarray(np.concatenate([prompt, words], 1)))[:, length - 1 : -1]
    table = np.asarray(next_distribution(logits, temperature, TOP_K), np.float64)
    chance = np.prod(np.take_along_axis(table, words[..., None], -1)[..., 0], 1)
    tokens = found.tokens[i == WHICH]
    assert np.all(tokens[:, :length] == PROMPTS[i, :length])
    new = tokens[:, length : length + 3] @ VOCABULARY ** np.arange(3)[::-1]
    counts, expected = np.bincount(new, minlength=len(words)), chance / chance.sum() * len(new)
    assert np.all(counts[expected == 0] == 0) and np.any(expected == 0)
    some = expected > 5
    counts, expected = (np.append(x[some], x[~some].sum()) for x in (counts, expected))
    real = expected > 0
    assert stats.chisquare(counts[real], expected[real]).pvalue > 1e-3
  assert 0.2 < found.accepted.sum() / found.drafted.sum() < 0.9  # both kinds of rounds were met


@pytest.mark.parametrize("lengths", [LENGTHS, np.ones(2, int)])
def test_a_draft_of_the_large_model_itself_is_accepted_whole(lengths):
  """It has a token less in its cache where all were kept: that one is read too. Also behind one token alone."""
  found = rows(0.8, draft=TARGET, lengths=lengths, count=400)
  assert np.all(found.accepted == found.drafted) and np.all(found.rounds == 3) and not found.refused.any()
  for i, length in enumerate(lengths):
    own = found.of_draft[i::2]
    assert not own[:, :length].any()
    np.testing.assert_array_equal(own[:, length : length + NEW], np.tile(np.arange(NEW) % 3 < 2, (200, 1)))


@pytest.mark.parametrize("drafted, end", [(DRAFTED, -1), (DRAFTED, 3), (1, -1)])
def test_greedy_output_is_that_of_generate(drafted, end):
  """With refusals, for prompts of unequal lengths, up to END."""
  wanted = generate(TARGET, OF_TARGET, jnp.asarray(PROMPTS), jnp.asarray(LENGTHS), count=NEW, end=end)
  found = rows(0.0, end, drafted=drafted, count=2 if drafted == 1 else ROWS)
  for i, length in enumerate(LENGTHS):
    np.testing.assert_array_equal(found.tokens[i, length : length + NEW], wanted.tokens[i])
    assert found.length[i] == length + wanted.length[i] and not found.tokens[i, found.length[i] :].any()
  assert (wanted.length.min() < NEW) == (end >= 0) and len(set(np.ravel(wanted.tokens))) > 2
  assert found.refused[:2].sum() > 0


def test_padding_changes_nothing():
  other = PROMPTS.copy()
  other[1, 2] = 1
  found, again = rows(), rows(prompts=other)
  at = lambda tokens: tokens[1::2, : LENGTHS[1] + NEW].tolist()
  assert at(found.tokens)[0][:2] == [3, 0] and at(found.tokens) == at(again.tokens)


def test_what_is_told_of_a_draft_adds_up():
  found = rows()
  new = found.length - LENGTHS[WHICH]
  assert np.all(new == NEW) and np.all(found.drafted == DRAFTED * found.rounds)
  # Of every round the draft's tokens and one more, but for what passes the end of the text.
  beyond = found.accepted + found.rounds - new
  assert np.all((beyond >= 0) & (beyond <= DRAFTED)) and np.any(beyond > 0)
  own = found.of_draft.sum(1)
  assert np.all((own <= found.accepted) & (own >= found.accepted - beyond))
  # A round is whole or has a refusal behind fewer than all.
  whole = found.rounds - found.refused
  assert np.all((whole * DRAFTED <= found.accepted) & (found.accepted <= found.drafted - found.refused))
  assert 0 < found.refused.sum() < found.rounds.sum()


@pytest.mark.parametrize("change, words", [
  (dict(draft=make_gpt2(5, 13, 1, 1, 8)), "draft has 5 tokens, the target 4"),
  (dict(draft=make_bert(4, 16, 1, 1, 8)), "draft reads from both sides"),
  (dict(target=make_bert(4, 16, 1, 1, 8)), "target reads from both sides"),
  (dict(new=10), "3 [+] 10 tokens and 2 drafted pass the 13 that the draft has positions for"),
  (dict(new=0), "new is 0, drafted 2"),
  (dict(drafted=0), "new is 3, drafted 0"),
  (dict(prompt=jnp.zeros(0, int)), "prompt is empty"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(change, words):
  given = dict(draft=DRAFT, target=TARGET, prompt=jnp.asarray(PROMPTS[0]), new=3, drafted=2) | change
  model = given.pop("draft"), OF_DRAFT, given.pop("target"), OF_TARGET, given.pop("prompt")
  with pytest.raises(ValueError, match=words):
    speculative_decode(jax.random.key(0), *model, **given)
