"""ELECTRA: labels from equality, no gradient through the draw, both losses move."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mlnotes.lm.masking import Masked, mask_words
from mlnotes.lm.replaced import electra_losses, electra_objective, sample_replacements
from mlnotes.lm.vocabulary import Vocabulary

WORDS = 6
VOCABULARY = Vocabulary(WORDS + 2, (0, 1), mask=1)
TOKENS = np.random.default_rng(0).integers(2, WORDS + 2, (400, 12))
LENGTHS = np.where(np.arange(400) % 2, 12, 9)
REAL = np.arange(12)[None] < LENGTHS[:, None]


def draw_masked():
  return mask_words(jax.random.key(0), jnp.asarray(TOKENS), VOCABULARY, jnp.asarray(LENGTHS), 0.3, 1.0, 0.0)


def test_labels_are_inequality_and_tokens_are_drawn_from_the_softmax():
  masked = draw_masked()
  probability = np.array([0, 0, 0.5, 0.25, 0.125, 0.125, 0, 0])
  logits = jnp.broadcast_to(jnp.log(jnp.asarray(probability)), (400, 12, 8))
  found = jax.tree.map(np.asarray, sample_replacements(jax.random.key(1), logits, masked))
  chosen = np.asarray(masked.weights) == 1
  np.testing.assert_array_equal(found.labels, found.inputs != TOKENS)
  np.testing.assert_array_equal(found.inputs[~chosen], TOKENS[~chosen])
  hit = chosen & (found.inputs == TOKENS)  # the generator was right: original, though the place was chosen
  assert hit.any() and not found.labels[hit].any() and found.labels[chosen].any()
  rates = np.bincount(found.inputs[chosen], minlength=8) / chosen.sum()
  assert np.all(np.abs(rates - probability) < 3.5 * np.sqrt(probability * (1 - probability) / chosen.sum()) + 1e-9)
  sharp = sample_replacements(jax.random.key(1), logits, masked, 1e-3)
  assert np.all(np.asarray(sharp.inputs)[chosen] == 2)


def test_losses_are_those_of_their_places():
  """Constant logits: log V of the generator at chosen places, the binary cross entropy at real ones."""
  masked = draw_masked()
  replaced = sample_replacements(jax.random.key(1), jnp.zeros((400, 12, 8)), masked)
  losses = electra_losses(jnp.zeros((400, 12, 8)), jnp.full((400, 12), 2.0), masked, replaced, jnp.asarray(REAL))
  np.testing.assert_allclose(losses.generator, np.log(8) * np.asarray(masked.weights), rtol=1e-5)
  expected = np.where(replaced.labels, np.log1p(np.exp(-2.0)), np.log1p(np.exp(2.0)))
  np.testing.assert_allclose(losses.discriminator, np.where(REAL, expected, 0), rtol=1e-5)
  total = electra_objective(losses, masked.weights, jnp.asarray(REAL))
  np.testing.assert_allclose(total, np.log(8) + 50 * expected[REAL].mean(), rtol=1e-5)


def test_both_losses_move_and_the_generator_hears_of_its_own_alone():
  """Rows of one repeated word. The generator is told nothing: it finds the words' frequencies; D finds what is odd."""
  odd = np.repeat(np.random.default_rng(1).choice([2, 2, 3], (64, 1)), 12, 1)
  tokens = jnp.asarray(odd)
  table = jax.random.normal(jax.random.key(3), (8, 4)) * 0.1
  params = {"generator": jnp.zeros(8), "embed": table, "weight": jnp.zeros((4, 4))}

  def run(params, key):
    of_mask, of_draw = jax.random.split(key)
    masked = mask_words(of_mask, tokens, VOCABULARY, None, 0.15, 1.0, 0.0)
    logits = jnp.broadcast_to(params["generator"], (64, 12, 8))
    replaced = sample_replacements(of_draw, logits, masked)
    x = params["embed"][replaced.inputs]
    others = jnp.mean(x, 1, keepdims=True)
    said = -jnp.einsum("btd,de,bte->bt", x, params["weight"], jnp.broadcast_to(others, x.shape))
    losses = electra_losses(logits, said, masked, replaced, jnp.ones(tokens.shape, bool))
    parts = (losses.generator.sum() / masked.weights.sum(), losses.discriminator.mean())
    return electra_objective(losses, masked.weights, jnp.ones(tokens.shape, bool)), parts

  # The discriminator's loss has no gradient of the generator: the draw has none.
  of_discriminator = jax.grad(lambda p, key: run(p, key)[1][1])(params, jax.random.key(0))
  assert np.all(of_discriminator["generator"] == 0)
  assert np.any(of_discriminator["embed"] != 0) or np.any(of_discriminator["weight"] != 0)

  optimizer = optax.adam(0.03)

  @jax.jit
  def learn(params):
    def step(carry, key):
      params, state = carry
      (_, parts), grads = jax.value_and_grad(run, has_aux=True)(params, key)
      updates, state = optimizer.update(grads, state)
      return (optax.apply_updates(params, updates), state), parts

    return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(jax.random.key(5), 400))[1]

  generator, discriminator = map(np.asarray, learn(params))
  share = np.mean(odd[:, 0] == 2)
  entropy = -share * np.log(share) - (1 - share) * np.log(1 - share)
  assert generator[0] > 2 and abs(generator[-50:].mean() - entropy) < 0.05
  assert discriminator[-50:].mean() < 0.5 * discriminator[:5].mean()


def test_half_precision_logits_give_float32_losses():
  masked = Masked(jnp.ones((1, 2), int), jnp.ones((1, 2), int), jnp.ones((1, 2)))
  replaced = sample_replacements(jax.random.key(0), jnp.zeros((1, 2, 8), jnp.bfloat16), masked)
  losses = electra_losses(
    jnp.zeros((1, 2, 8), jnp.bfloat16), jnp.zeros((1, 2), jnp.bfloat16), masked, replaced, jnp.ones((1, 2), bool)
  )
  assert losses.generator.dtype == losses.discriminator.dtype == jnp.float32
