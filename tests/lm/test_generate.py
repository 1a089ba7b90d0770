"""Generation: a cache changes nothing, rows are alone, how tokens are drawn, where rows end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.attention import Mask
from mlnotes.lm import Sampling, adjust_logits, generate, make_gpt2, make_llama

VOCABULARY = 11
SIZES = dict(vocabulary=VOCABULARY, length=16, depth=2, heads=2, width=8)
MODELS = {
  "learned": make_gpt2(**SIZES),
  "rotary": make_llama(**SIZES, kv_heads=1, tied=False),
  "alibi": make_gpt2(**SIZES).clone(position="alibi"),
  "relative": make_gpt2(**SIZES).clone(position="relative", buckets=6),
}
PROMPTS = jax.random.randint(jax.random.key(0), (3, 5), 0, VOCABULARY)
LENGTHS = jnp.array([5, 2, 3])
COUNT = 7


def start(name):
  """A model that is neither sure nor blind."""
  module = MODELS[name]
  variables = jax.jit(module.init)(jax.random.key(1), PROMPTS)
  return module, jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, variables)


@pytest.mark.parametrize("name", MODELS)
def test_a_cache_gives_the_logits_of_the_whole(name):
  """Prompt, then token for token; with padding in front, as `generate` has it, the rows are those without."""
  module, variables = start(name)
  read = jax.jit(module.apply)
  tokens = jax.random.randint(jax.random.key(2), (3, 9), 0, VOCABULARY)
  whole = read(variables, tokens)
  logits, cache = read(variables, tokens[:, :5], cache=module.make_cache(3, 9))
  found = [logits]
  for t in range(5, 9):
    logits, cache = read(variables, tokens[:, t : t + 1], cache=cache)
    found.append(logits)
  np.testing.assert_allclose(jnp.concatenate(found, 1), whole, atol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_unequal_prompts_are_each_alone_and_without_a_cache(name):
  """Greedily, and the logits of what was chosen to 1e-5."""
  module, variables = start(name)
  write = jax.jit(lambda prompts, lengths: generate(module, variables, prompts, lengths, count=COUNT))
  found = write(PROMPTS, LENGTHS)
  for i, length in enumerate(LENGTHS.tolist()):
    row = jnp.concatenate([PROMPTS[i, :length], found.tokens[i]])[None]
    logits = jax.nn.log_softmax(module.apply(variables, row)[0, length - 1 : -1])
    np.testing.assert_array_equal(jnp.argmax(logits, -1), found.tokens[i])
    np.testing.assert_allclose(jnp.max(logits, -1), found.log_probability[i], atol=2e-5)
  garbage = PROMPTS.at[1, 2:].set(9)
  np.testing.assert_array_equal(write(garbage, LENGTHS).tokens, found.tokens)
  full = jnp.array([5, 5, 5])
  equal = jax.jit(lambda prompts: generate(module, variables, prompts, count=COUNT))(PROMPTS)
  np.testing.assert_array_equal(write(PROMPTS, full).tokens, equal.tokens)
  np.testing.assert_allclose(write(PROMPTS, full).log_probability, equal.log_probability, atol=1e-5)


def test_what_is_drawn_goes_by_the_rows_own_key():
  module, variables = start("rotary")
  keys = jax.random.split(jax.random.key(3), 3)
  sampling = Sampling(temperature=1.0)
  write = lambda prompts, lengths, keys: generate(module, variables, prompts, lengths, keys, COUNT, sampling).tokens
  together = jax.jit(write)(PROMPTS, LENGTHS, keys)
  for i, length in enumerate(LENGTHS.tolist()):
    alone = jax.jit(write)(PROMPTS[i : i + 1, :length], LENGTHS[i : i + 1], keys[i : i + 1])
    np.testing.assert_array_equal(alone[0], together[i])
  assert np.any(jax.jit(write)(PROMPTS, LENGTHS, keys[::-1]) != together)


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
  np.testing.assert_allclose(found.log_probability[:, 0, 0], np.log(chances)[found.tokens[:, 0, 0]], atol=1e-4)


def test_rows_end_where_they_say_so():
  """Padding behind, nothing of it in the others, and the loop stops with the last of them."""
  module, variables = start("learned")
  plain = generate(module, variables, PROMPTS, LENGTHS, count=COUNT)
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
  written = generate(module, variables, PROMPTS, LENGTHS, count=COUNT, sampling=sampling).tokens
  for prompt, length, row in zip(PROMPTS, LENGTHS.tolist(), written):
    seen, logits_of = prompt[:length].tolist(), []
    for token in row.tolist():
      logits = module.apply(variables, jnp.array([prompt[:length].tolist() + logits_of]))[0, -1]
      new = [t for t in range(VOCABULARY) if t not in seen and logits[t] > 0]
      if new:  # a token that was not there and whose logit is above 0 wins
        assert token == max(new, key=lambda t: logits[t])
      seen.append(token)
      logits_of.append(token)


@pytest.mark.parametrize("given, words", [
  (dict(prompts=PROMPTS[:, :0]), "found prompts of 0 tokens"),
  (dict(count=0), "count=0, expected 1 or more"),
  (dict(count=13), "5 \\+ 13 tokens pass the 16"),
  (dict(sampling=Sampling(temperature=1.0)), "keys draw at a temperature"),
  (dict(keys=jax.random.split(jax.random.key(0), 3)), "keys draw at a temperature"),
])  # fmt: skip
def test_what_does_not_fit_is_one_sentence(given, words):
  module, variables = start("learned")
  with pytest.raises(ValueError, match=words):
    generate(module, variables, **{"prompts": PROMPTS, **given})


def test_a_window_goes_through_a_cache():
  """`Mask(window=...)` beside a cache, for models that go on beyond what they were trained on."""
  module, variables = start("rotary")
  mask, tokens = Mask(causal=True, window=3), jnp.concatenate([PROMPTS, PROMPTS], 1)
  whole, cache, found = module.apply(variables, tokens, mask), module.make_cache(3, 10), []
  for t in range(10):
    logits, cache = module.apply(variables, tokens[:, t : t + 1], mask, cache=cache)
    found.append(logits)
  np.testing.assert_allclose(jnp.concatenate(found, 1), whole, atol=2e-5)


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
