"""Generation: a cache changes nothing, rows are alone, how tokens are drawn, where rows end."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.lm import Sampling, adjust_logits, generate, make_gpt2, make_llama

VOCABULARY = 11
SIZES = dict(vocabulary=VOCABULARY, length=16, depth=1, heads=2, width=8)
MODELS = {
  "learned": make_gpt2(**{**SIZES, "depth": 2}),
  "rotary": make_llama(**SIZES, kv_heads=1, tied=False),
  "alibi": make_gpt2(**SIZES).clone(position="alibi"),
  "relative": make_gpt2(**SIZES).clone(position="relative", buckets=6),
}
PROMPTS = jax.random.randint(jax.random.key(0), (3, 5), 0, VOCABULARY)
LENGTHS = jnp.array([5, 2, 3])
COUNT = 4


@functools.cache
def start(name):
  """A model that is neither sure nor blind."""
  module = MODELS[name]
  variables = jax.jit(module.init)(jax.random.key(1), PROMPTS)
  return module, jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, variables)


@functools.cache
def reader(name):
  """Logits of whole rows of 9 tokens; of shorter ones, what is behind them changes nothing."""
  module, variables = start(name)
  return jax.jit(lambda tokens: module.apply(variables, tokens))


@functools.cache
def writer(name):
  module, variables = start(name)
  return jax.jit(lambda prompts, lengths: generate(module, variables, prompts, lengths, count=COUNT))


def rows_of(written):
  """(3, 9): each prompt, what follows it, zeros."""
  rows = np.zeros((3, 9), np.int32)
  for row, prompt, length, more in zip(rows, PROMPTS, LENGTHS.tolist(), written):
    row[:length], row[length : length + COUNT] = prompt[:length], more
  return jnp.asarray(rows)


@pytest.mark.parametrize("name", MODELS)
def test_a_cache_gives_the_logits_of_the_whole(name):
  """Prompt, then token for token."""
  module, variables = start(name)
  tokens = jax.random.randint(jax.random.key(2), (3, 9), 0, VOCABULARY)

  @jax.jit
  def read(tokens):
    logits, cache = module.apply(variables, tokens[:, :5], cache=module.make_cache(3, 9))

    def step(cache, token):
      logits, cache = module.apply(variables, token[:, None], cache=cache)
      return cache, logits[:, 0]

    return jnp.concatenate([logits, jnp.moveaxis(jax.lax.scan(step, cache, tokens[:, 5:].T)[1], 0, 1)], 1)

  np.testing.assert_allclose(read(tokens), reader(name)(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_unequal_prompts_are_each_alone_and_without_a_cache(name):
  """Greedily: the likeliest by the whole row, and its log-probability to 1e-5. Padding is never seen."""
  found = writer(name)(PROMPTS, LENGTHS)
  logits = jax.nn.log_softmax(reader(name)(rows_of(found.tokens)))
  for i, length in enumerate(LENGTHS.tolist()):
    row = logits[i, length - 1 : length - 1 + COUNT]
    np.testing.assert_array_equal(jnp.argmax(row, -1), found.tokens[i])
    np.testing.assert_allclose(jnp.max(row, -1), found.log_probability[i], atol=1e-5)
  garbage = PROMPTS.at[1, 2:].set(9)
  np.testing.assert_array_equal(writer(name)(garbage, LENGTHS).tokens, found.tokens)


def test_lengths_of_whole_prompts_need_not_be_said():
  module, variables = start("rotary")
  equal = jax.jit(lambda prompts: generate(module, variables, prompts, count=COUNT))(PROMPTS)
  said = writer("rotary")(PROMPTS, jnp.array([5, 5, 5]))
  np.testing.assert_array_equal(said.tokens, equal.tokens)
  np.testing.assert_allclose(said.log_probability, equal.log_probability, atol=1e-5)


def test_what_is_drawn_goes_by_the_rows_own_key():
  module, variables = start("rotary")
  sampling = Sampling(temperature=1.0)

  @jax.jit
  def write(prompts, seeds):
    return generate(module, variables, prompts, LENGTHS, jax.vmap(jax.random.key)(seeds), 3, sampling).tokens

  together = write(PROMPTS, jnp.array([1, 2, 3]))
  others = write(PROMPTS.at[:2].set(4), jnp.array([4, 5, 3]))
  np.testing.assert_array_equal(others[2], together[2])
  assert np.any(write(PROMPTS, jnp.array([3, 2, 1]))[::2] != together[::2])


def test_tokens_are_drawn_as_often_as_their_chances_say():
  """20,000 rows of one prompt, temperature and filters on: chi-square of the first token against the softmax."""
  module, variables = start("learned")
  sampling = Sampling(temperature=1.5, top_k=7, top_p=0.95)
  keys = jax.random.split(jax.random.key(4), 20_000)
  draw = jax.jit(lambda key: generate(module, variables, PROMPTS[:1], None, key[None], 1, sampling))
  found = jax.jit(jax.vmap(draw))(keys)
  logits = module.apply(variables, PROMPTS[:1])[0, -1]
  chances = np.asarray(jax.nn.softmax(adjust_logits(logits, sampling)))
  counts = np.bincount(np.asarray(found.tokens[:, 0, 0]), minlength=VOCABULARY)
  kept = chances > 0
  assert counts[~kept].sum() == 0 and 3 <= kept.sum() <= 7
  chi = np.sum((counts[kept] - 20_000 * chances[kept]) ** 2 / (20_000 * chances[kept]))
  assert chi < kept.sum() - 1 + 5 * np.sqrt(2 * (kept.sum() - 1))
  np.testing.assert_allclose(np.exp(found.log_probability[:, 0, 0]), chances[found.tokens[:, 0, 0]], atol=1e-5)


def test_rows_end_where_they_say_so():
  """Padding behind, nothing of it in the others, and the loop stops with the last of them."""
  module, variables = start("learned")
  plain = writer("learned")(PROMPTS, LENGTHS)
  end = int(plain.tokens[0, 2])
  found = jax.jit(lambda: generate(module, variables, PROMPTS, LENGTHS, count=COUNT, end=end, pad=10))()
  for row, whole, length, chances in zip(found.tokens, plain.tokens, found.length, found.log_probability):
    stops = np.flatnonzero(whole == end)
    expected = stops[0] + 1 if len(stops) else COUNT
    assert length == expected
    np.testing.assert_array_equal(row[:expected], whole[:expected])
    assert np.all(row[expected:] == 10) and np.all(chances[expected:] == 0) and np.all(chances[:expected] < 0)


# -- filters -----------------------------------------------------------------------------------------------------------


def brute_force(logits, temperature=None, top_k=None, top_p=None, min_p=None):
  """One row, token by token, by the definitions."""
  logits = np.asarray(logits, np.float64) / (temperature or 1)
  kept = np.argsort(-logits, kind="stable")
  if top_k:
    kept = kept[:top_k]
  chances = np.exp(logits[kept]) / np.sum(np.exp(logits[kept]))
  if top_p is not None:
    total, some = 0.0, []
    for token, chance in zip(kept, chances):
      some.append(token)
      total += chance
      if total >= top_p:
        break
    kept = np.array(some)
  if min_p is not None:
    kept = np.array([t for t in kept if np.exp(logits[t] - logits.max()) >= min_p])
  return set(kept.tolist()), logits


@pytest.mark.parametrize("sampling", [
  Sampling(temperature=0.7),
  Sampling(top_k=3),
  Sampling(temperature=2.0, top_k=100),
  Sampling(top_p=0.6),
  Sampling(top_p=0.0),
  Sampling(temperature=1.3, min_p=0.2),
  Sampling(temperature=1.3, top_k=6, top_p=0.8, min_p=0.1),
])  # fmt: skip
def test_filters_against_their_definitions(sampling):
  logits = 2 * jax.random.normal(jax.random.key(5), (20, VOCABULARY))
  found = np.asarray(jax.jit(adjust_logits)(logits, sampling))
  for row, ours in zip(logits, found):
    kept, expected = brute_force(row, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
    assert set(np.flatnonzero(np.isfinite(ours))) == kept
    np.testing.assert_allclose(ours[list(kept)], expected[list(kept)], rtol=1e-5)


def test_numbers_of_the_filters_compile_nothing_anew():
  logits, count = jnp.arange(12.0).reshape(2, 6), []

  @jax.jit
  def adjust(sampling):
    count.append(1)
    return adjust_logits(logits, sampling)

  kept = [int(jnp.sum(jnp.isfinite(adjust(Sampling(temperature=1.0, top_k=k))[0]))) for k in (1, 4)]
  assert kept == [1, 4] and len(count) == 1


def test_what_was_there_is_less_likely_to_come_again():
  """Keskar et al. 2019: above 0 divided, below multiplied; the prompt and what was written count, padding does not."""
  logits = jnp.array([[2.0, -2.0, 1.0, -1.0]])
  found = adjust_logits(logits, Sampling(repetition_penalty=2.0), jnp.array([[True, True, False, False]]))
  np.testing.assert_allclose(found, [[1.0, -4.0, 1.0, -1.0]])
  module, variables = start("learned")
  sampling = Sampling(repetition_penalty=1e9)
  write = jax.jit(lambda: generate(module, variables, PROMPTS, LENGTHS, count=COUNT, sampling=sampling).tokens)
  written = write()
  logits = np.asarray(reader("learned")(rows_of(written)))
  for i, length in enumerate(LENGTHS.tolist()):
    seen = PROMPTS[i, :length].tolist()
    for t, token in enumerate(written[i].tolist()):
      of_token = logits[i, length - 1 + t]
      new = [k for k in range(VOCABULARY) if k not in seen and of_token[k] > 0]
      assert not new or token == max(new, key=lambda k: of_token[k])
      seen.append(token)


@pytest.mark.parametrize("given, words", [
  (dict(prompts=PROMPTS[:, :0]), "found prompts of 0 tokens"),
  (dict(count=0), "count=0, expected 1 or more"),
  (dict(count=13), "5 \\+ 13 tokens pass the 16"),
  (dict(sampling=Sampling(temperature=1.0)), "keys draw at a temperature"),
  (dict(keys=jax.random.split(jax.random.key(0), 3)), "keys draw at a temperature"),
  (dict(count=2, sampling=Sampling(temperature=0), keys=jax.random.split(jax.random.key(0), 3)), "temperature is 0,"),
  (dict(count=2, sampling=Sampling(repetition_penalty=-1.5)), "repetition_penalty is -1.5, expected a number above 0"),
])  # fmt: skip
def test_what_does_not_fit_is_one_sentence(given, words):
  module, variables = start("learned")
  with pytest.raises(ValueError, match=words):
    generate(module, variables, **{"prompts": PROMPTS, **given})


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_filters_against_transformers():
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  logits = 2 * np.random.default_rng(0).standard_normal((50, 40)).astype(np.float32)
  tokens = np.random.default_rng(1).integers(0, 40, (50, 6))
  seen = np.zeros((50, 40), bool)
  np.put_along_axis(seen, tokens, True, 1)
  chain = [
    transformers.RepetitionPenaltyLogitsProcessor(1.3), transformers.TemperatureLogitsWarper(0.8),
    transformers.TopKLogitsWarper(20), transformers.TopPLogitsWarper(0.9), transformers.MinPLogitsWarper(0.05),
  ]  # fmt: skip
  scores = torch.tensor(logits)
  for i, processor in enumerate(chain):
    scores = processor(torch.tensor(tokens), scores)
    options = dict(zip(("repetition_penalty", "temperature", "top_k", "top_p", "min_p"), (1.3, 0.8, 20, 0.9, 0.05)))
    used = dict(list(options.items())[: i + 1])
    ours = adjust_logits(jnp.asarray(logits), Sampling(**used), jnp.asarray(seen))
    np.testing.assert_allclose(ours, scores.numpy(), rtol=1e-5, atol=1e-5)
