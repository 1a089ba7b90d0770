"""The experiment on two languages: what is drawn, hidden and compared, what an update and a report hold."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.lm import languages
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key, stream_key
from mlnotes.lm.tasks import measure_alignment
from mlnotes.optim.flags import make_optimizer

SMALL = dict(
  words=8, length=6, depth=1, heads=2, width=8, batch_size=16, test_documents=24, steps=4, warmup_steps=0, log_every=2,
  eval_every=0,
)  # fmt: skip


def small(**more):
  return languages.Config(**{**SMALL, **more})


def start(config):
  experiment, feeds = languages.make(config), languages.make_feeds(config)
  batch = jax.jit(lambda arrays: feeds.train.draw(arrays, root_key(0), 0))(feeds.train.arrays)
  return config, experiment, feeds, jax.jit(experiment.init)(root_key(0), batch), batch


@pytest.fixture(scope="module")
def causal():
  return start(small(objective="causal", anchors=0.25))


def test_documents_are_of_one_language_but_for_what_both_have(causal):
  _, _, feeds, _, batch = causal
  tokens, second = np.asarray(batch["tokens"]), np.asarray(batch["language"]) == 1
  assert tokens.shape == (16, 7) and 0 < second.sum() < 16
  assert np.all(tokens[~second] < 8) and np.all((tokens[second] < 2) | (tokens[second] >= 10))
  assert np.any(tokens[second] < 2) and np.any(tokens[~second] < 2) and np.any(tokens[second] >= 10)
  draw = jax.jit(lambda i: feeds.evaluate.draw(feeds.evaluate.arrays, i))
  found = [draw(i) for i in range(feeds.evaluate.num_batches)]
  assert sum(float(x["mask"].sum()) for x in found) == 24
  again = languages.make_feeds(small(objective="causal", anchors=0.25, seed=5)).evaluate
  np.testing.assert_array_equal(again.draw(again.arrays, 0)["tokens"], found[0]["tokens"])


def test_an_update_is_along_the_gradient_of_the_mean_nats(causal):
  config, experiment, _, state, batch = causal
  module = experiment.model(state).module

  def nats(params):
    logits = module.apply({"params": params}, batch["tokens"][:, :-1])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["tokens"][:, 1:]))

  @jax.jit
  def update(params):
    loss, grads = jax.value_and_grad(nats)(params)
    optimizer = make_optimizer(config, config.steps)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return loss, optax.apply_updates(params, updates)

  loss, expected = update(state.params)
  after, metrics = jax.jit(experiment.step)(state, batch)
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), after.params, expected)


def test_the_loss_of_each_language_is_of_its_documents(causal):
  _, experiment, feeds, state, _ = causal
  batch = jax.jit(lambda: feeds.evaluate.draw(feeds.evaluate.arrays, 1))()  # 8 of the 16 fill it up
  logits = jax.jit(lambda tokens: experiment.model(state)(tokens))(batch["tokens"][:, :-1])
  nats = np.asarray(optax.softmax_cross_entropy_with_integer_labels(logits, batch["tokens"][:, 1:])).sum(1)[:8]
  found = jax.jit(experiment.evaluate)(state, batch)
  table = state.params["embed"]["embedding"]
  aligned = measure_alignment(table[2:8], table[10:16], centered=True)
  precision = found["embedding_precision_centered"]
  np.testing.assert_allclose(precision.total / precision.count, aligned.precision, rtol=1e-6)
  second = np.asarray(batch["language"])[:8] == 1
  for name, rows in (("loss", slice(None)), ("first_loss", ~second), ("second_loss", second)):
    np.testing.assert_allclose(found[name].total, nats[rows].sum(), rtol=1e-5)
    assert found[name].count == 6 * len(nats[rows])


def test_words_are_the_mean_of_their_places_in_documents_of_their_language():
  """What goes into the first layer is the embedding; of what it gives, place by place."""
  config = small(model="llama", anchors=0.25, test_documents=64)
  grammar, (module, objective) = languages.build_grammar(config), languages.build_objective(config)
  params = jax.jit(objective.init)(root_key(1), {"tokens": jnp.zeros((1, 7), jnp.int32)})
  params = jax.tree.map(lambda x: 10 * x if x.ndim > 1 else x, params)
  vectors = jax.jit(lambda params: languages.compare_words(config, module, params, grammar))(params)
  assert list(vectors) == ["embedding", "layer0", "layer1"]
  table = np.asarray(params["embed"]["embedding"])
  for side, language in enumerate(("first", "second")):
    np.testing.assert_array_equal(vectors["embedding"][side], table[2 + 8 * side : 8 + 8 * side])
    np.testing.assert_allclose(vectors["layer0"][side], vectors["embedding"][side], atol=1e-5)
    key = jax.random.split(stream_key(root_key(1), language), 1)[0]
    tokens = languages.draw_documents(key, grammar, 64, 6, share=float(side)).tokens
    seen = jnp.where(tokens == 8, 0, jnp.where(tokens == 9, 1, tokens))
    read = jax.jit(lambda seen: languages.layer_outputs(lambda: module.apply({"params": params}, seen))[1])
    features = np.asarray(read(seen))
    for word in range(2, 8):
      expected = features[np.asarray(tokens) == word + 8 * side].mean(0)
      np.testing.assert_allclose(vectors["layer1"][side][word - 2], expected, atol=1e-4)
  assert np.abs(vectors["layer1"][0] - vectors["layer0"][0]).max() > 1e-2


def test_the_report_has_the_alignment_chance_and_a_picture(causal, tmp_path):
  """Of embeddings that are translations but for a vector of the language."""
  config, experiment, _, state, _ = causal
  table = np.random.default_rng(0).normal(size=(17, 8)).astype(np.float32)
  table[8:16] = table[:8] + 9
  params = {**state.params, "embed": {"embedding": jnp.asarray(table)}}
  found = experiment.report(state._replace(params=params), tmp_path)
  assert found["embedding_precision_centered"] == 1 > found["embedding_precision"]
  assert found["chance"] == 1 / 6
  direct = measure_alignment(jnp.asarray(table[2:8]), jnp.asarray(table[10:16]))
  np.testing.assert_allclose(found["embedding_rank"], direct.reciprocal_rank, rtol=1e-6)
  grammar = languages.build_grammar(config)
  rate = -np.sum(np.asarray(grammar.stationary)[:, None] * grammar.transition * np.log(grammar.transition))
  np.testing.assert_allclose(found["entropy"], rate, rtol=1e-4)
  assert (tmp_path / "alignment.png").stat().st_size > 5000


def test_words_are_hidden_and_replaced_by_words_of_either_language():
  config = small(objective="masked", anchors=0.25, mask_rate=0.9, mask_share=0.0, random_share=1.0)
  _, objective = languages.build_objective(config)
  tokens = jnp.tile(jnp.arange(2, 8, dtype=jnp.int32), (300, 2))[:, :7]
  examples = jax.jit(jax.vmap(objective.prepare))(jax.random.split(jax.random.key(0), 300), tokens)
  drawn = np.unique(np.asarray(examples.inputs)[np.asarray(examples.weights) > 0])
  np.testing.assert_array_equal(drawn, [*range(8), *range(10, 16)])  # no mask, no unused id
  masks = languages.build_objective(dataclasses.replace(config, mask_share=1.0, random_share=0.0))[1]
  examples = jax.jit(jax.vmap(masks.prepare))(jax.random.split(jax.random.key(0), 300), tokens)
  np.testing.assert_array_equal(examples.inputs == 16, examples.weights > 0)
  assert abs(float(examples.weights.mean()) - 0.9) < 0.03


def test_flags_reach_the_model():
  module, _ = languages.build_objective(small(depth=3, heads=4, width=24, tied=False, objective="causal"))
  body = module.transformer
  assert (module.vocabulary, module.length, body.depth, body.heads, body.width) == (17, 6, 3, 4, 24)
  assert not body.rotary_base and module.causal and not module.tied
  assert languages.build_objective(small(model="llama"))[0].transformer.rotary_base
  assert not languages.build_objective(small(objective="masked"))[0].causal
  same = lambda **flags: np.asarray(languages.build_grammar(small(**flags)).transition)
  plain = same()
  assert np.any(plain != same(grammar_seed=1))
  assert plain.max(1).mean() > same(concentration=9.0).max(1).mean() + 0.2
  assert same(noise=1.0).std() < 1e-6


@pytest.mark.parametrize("flags, words", [
  (dict(heads=3), "--heads"),
  (dict(heads=8, model="llama"), "into even numbers"),
  (dict(anchors=0.9), "--anchors"),
  (dict(anchors=-0.1), "--anchors"),
  (dict(words=1), "--words"),
  (dict(noise=0.0), "--noise"),
  (dict(concentration=0.0), "--concentration"),
  (dict(mask_rate=1.0), "--mask_rate"),
  (dict(random_share=0.5), "--random_share"),
  (dict(depth=0), "--depth"),
])  # fmt: skip
def test_what_does_not_fit_is_one_sentence(flags, words):
  with pytest.raises(InputError, match=words):
    small(**flags)


def test_flags_that_do_nothing_say_so():
  names = {"mask_rate", "mask_share", "random_share"}
  assert names <= set(small(objective="causal").idle_flags()) and not names & set(
    small(objective="masked").idle_flags()
  )
