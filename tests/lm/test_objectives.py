"""What --objective names: what is hidden and asked, what the loss is the mean of, and what the report shows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.lm import _objectives, pretrain
from experiments.lm._corruption import add_ids, find_ends, name_ids
from mlnotes.data import Corpus, Windows
from mlnotes.data.flags import load_data
from mlnotes.data.tokenizer import train_tokenizer
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key, stream_key
from mlnotes.lm import objective
from mlnotes.lm.encoder_objectives import UNILM_SHARES

SIZES = dict(depth=1, width=8, heads=2, length=12, batch_size=4, steps=250, warmup_steps=0, log_every=2, eval_every=0)
OBJECTIVES = [name for name in _objectives.OBJECTIVES if name != "causal"]


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
  path = tmp_path_factory.mktemp("text") / "lines.txt"
  path.write_text("\n".join(f"{i} and {i * i}" for i in range(90)))
  return str(path)


def start(**flags):
  config = pretrain.Config(**{**SIZES, "documents": "line", **flags})
  experiment, feeds = pretrain.make(config), pretrain.make_feeds(config)
  batch = feeds.train.draw(feeds.train.arrays, root_key(0), 0)
  return config, experiment, feeds, jax.jit(experiment.init)(root_key(0), batch), batch


def examples_of(config, batch):
  task = _objectives.OBJECTIVES[config.objective](config, load_data(config))
  keys = jax.random.split(jax.random.key(1), len(batch["tokens"]))
  return task.objective, jax.jit(jax.vmap(task.objective.prepare))(keys, batch["tokens"])


def nats_of(logits, targets, weights):
  nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  return jnp.sum(nats * weights, 1)


def check_learning(config, step, feeds, state, names):
  """A few updates later, at the state it gives, losses are lower, that of words below a guess by their frequencies."""
  draw, found = jax.jit(feeds.train.draw), []
  for i in range(config.steps):
    state, metrics = step(state, draw(feeds.train.arrays, root_key(0), i))
    found.append(np.array([metrics[name] for name in names]))
  before, after = (dict(zip(names, np.mean(part, 0))) for part in (found[:5], found[-50:]))
  counts = np.bincount(load_data(config).train.arrays["tokens"])
  share = counts[counts > 0] / counts.sum()
  assert after["loss"] < before["loss"] - 0.3 and after["loss"] < -np.sum(share * np.log(share)), (before, after)
  assert all(after[name] < before[name] - 0.05 for name in names), (before, after)
  return state


# Of each way to build a network one; the others are like it and take as long.
_FAST = ("masked", "replaced", "corrupted")
_BY_SPEED = [pytest.param(name, marks=[] if name in _FAST else pytest.mark.thorough) for name in OBJECTIVES]


@pytest.mark.parametrize("name", _BY_SPEED)
def test_updates_evaluation_and_report(name, lines, tmp_path):
  """Parts of a batch weigh by what they ask; an evaluation corrupts the same way whatever the state's key."""
  flags = dict(accumulate=2, learning_rate=0.02)
  config, experiment, feeds, state, batch = start(dataset=lines, objective=name, **flags)
  objective = _objectives.OBJECTIVES[name](config, load_data(config)).objective
  keys = jax.random.split(stream_key(state.key, "prepare", state.step), len(batch["tokens"]))
  terms = jax.jit(lambda params, keys, tokens: objective.terms(params, jax.vmap(objective.prepare)(keys, tokens), None))
  found = terms(state.params, keys, batch["tokens"])
  step = jax.jit(experiment.step)
  after, metrics = step(state, batch)
  for term in found:
    told, sums = metrics[term], [x.sum() for x in found[term]]
    expected = sums[0] / max(sums[1], 1) if term in objective.weights else sums  # not every update has those
    np.testing.assert_allclose(told, expected, rtol=1e-4)
  given = feeds.evaluate.draw(feeds.evaluate.arrays, 0)
  evaluate = jax.jit(experiment.evaluate)
  first, second = evaluate(after, given), evaluate(after._replace(key=root_key(5), step=state.step), given)
  jax.tree.map(np.testing.assert_array_equal, first, second)
  assert first["loss"].count > 0 and np.isfinite(first["loss"].total)
  learned = check_learning(config, step, feeds, state, tuple(objective.weights))
  reported = experiment.report(learned, tmp_path)
  assert reported["parameters"] > 0 and 0.5 < reported["unigram"] < np.log(load_data(config).vocab_size)
  corpus = load_data(config)
  shown = (tmp_path / "filled.txt").read_text(encoding="utf-8").split("\n")
  of = lambda kind: [line[6:] for line in shown if line.startswith(f"{kind:6}")]
  texts = [corpus.tokenizer.decode(row[:-1]) for row in corpus.test.read(np.arange(min(8, len(corpus.test))))["tokens"]]
  assert len(of("read")) == len(of("said")) == len(of("stood")) == len(texts)
  if name not in ("corrupted", "fragment"):
    assert of("stood") == [text.replace("\n", "¶") for text in texts]
  # Of a discriminator what is said is what was put in, which may be nothing.
  assert of("said") != of("stood") and (name == "replaced" or of("said") != of("read"))


def test_masked_words_are_said_from_both_sides(lines):
  config, experiment, _, state, batch = start(dataset=lines, objective="masked", mask_rate=0.5)
  objective, examples = examples_of(config, batch)
  ids, corpus = add_ids(load_data(config)), load_data(config)
  end = corpus.tokenizer.special["<end>"]
  assert not np.any((examples.targets == end) & (examples.weights > 0)) and np.any(examples.targets == end)
  assert np.all(examples.targets < corpus.vocab_size) and np.any(examples.inputs == ids.vocabulary.mask)
  model = experiment.model(state)
  found = objective.terms(state.params, examples, None)["loss"]
  np.testing.assert_allclose(found.total, nats_of(model(examples.inputs), *examples[1:]), rtol=1e-5)
  np.testing.assert_array_equal(found.count, examples.weights.sum(1))
  changed = examples.inputs.at[:, -1].set((examples.inputs[:, -1] + 1) % corpus.vocab_size)
  assert np.abs(model(changed) - model(examples.inputs))[:, 0].max() > 1e-7


def test_packed_masked_documents_do_not_see_each_other(lines):
  config, _, _, state, batch = start(dataset=lines, objective="masked", packed=True, mask_rate=0.5)
  objective, examples = examples_of(config, batch)
  end = load_data(config).tokenizer.special["<end>"]
  row = jnp.array([[3, 4, 5, end, 6, 7, 3, 4, 5, 6, 7, 8], [8, 9, 4, end, 6, 7, 3, 4, 5, 6, 7, 8]])
  weights = (jnp.arange(12) >= 3)[None] * jnp.ones((2, 1))
  totals = objective.terms(state.params, examples._replace(inputs=row, targets=row, weights=weights), None)[
    "loss"
  ].total
  np.testing.assert_allclose(*totals, rtol=1e-6)
  backward = 1 - weights
  totals = objective.terms(state.params, examples._replace(inputs=row, targets=row, weights=backward), None)
  assert abs(float(totals["loss"].total[0] - totals["loss"].total[1])) > 1e-4


def drawn(lines, name, **flags):
  """(config, objective, examples of a batch, its tokens), without an experiment around them."""
  config = pretrain.Config(**{**SIZES, "documents": "line", "dataset": lines, "objective": name, **flags})
  corpus = load_data(config)
  places = config.length + 1
  tokens = jnp.asarray(corpus.train.arrays["tokens"][: 4 * places]).astype(jnp.int32).reshape(4, places)
  objective, examples = examples_of(config, {"tokens": tokens})
  return config, objective, examples, tokens


def prepared(lines, name, **flags):
  """Likewise, with parameters in the place of the tokens."""
  config, objective, examples, _ = drawn(lines, name, **flags)
  return config, objective, examples, jax.jit(objective.init)(jax.random.key(0), examples)


def test_a_row_read_forward_or_backward_sees_one_side(lines):
  _, objective, (masked, reading), params = prepared(lines, "prefix", mask_rate=0.5)
  of_kind = lambda kind: jnp.full_like(reading.kind, kind)
  place = jnp.broadcast_to(jnp.arange(12), (4, 12))

  @jax.jit
  def totals(inputs, weights, order, kind):
    mask = reading.mask.replace(key_order=order, query_order=order)
    given = masked._replace(inputs=inputs, weights=weights), reading._replace(mask=mask, kind=kind)
    return objective.terms(params, given, None)

  ones = jnp.ones((4, 12))
  other = masked.inputs.at[:, 6].set((masked.inputs[:, 6] + 1) % 5)
  for order, same, kind in ((place, place < 6, "forward"), (11 - place, place > 6, "backward")):
    number = of_kind(list(UNILM_SHARES).index(kind))
    found = totals(masked.inputs, ones * same, order, number)
    again = totals(other, ones * same, order, number)["loss"].total
    np.testing.assert_allclose(found["loss"].total, again, rtol=1e-6)
    np.testing.assert_array_equal(found[f"{kind}_loss"].total, found["loss"].total)
    assert np.all(found["bidirectional_loss"].count == 0)
  free = totals(masked.inputs, ones * (place < 6), 0 * place, of_kind(0))["loss"].total
  assert np.all(free != totals(other, ones * (place < 6), 0 * place, of_kind(0))["loss"].total)


def shapes_of(lines, name, **flags):
  """(task, shapes of the examples and of the parameters of a batch), nothing computed."""
  config = pretrain.Config(**{**SIZES, "documents": "line", "dataset": lines, "objective": name, **flags})
  task = _objectives.OBJECTIVES[name](config, load_data(config))
  keys = jax.random.split(jax.random.key(0), 4)

  def start(keys, tokens):
    examples = jax.vmap(task.objective.prepare)(keys, tokens)
    params = task.objective.init(jax.random.key(0), examples)
    return examples._replace(mask=None) if hasattr(examples, "mask") else examples, params

  return config, task, *jax.eval_shape(start, keys, jnp.zeros((4, 13), jnp.int32))


def test_flags_reach_what_is_asked_and_the_networks(lines):
  config, _, examples, _ = shapes_of(lines, "corrupted", mask_rate=0.5, mean_span=2.0)
  # 6 of 12 tokens in 3 spans, 4 where the ring is cut within one, and the last sentinel.
  assert examples.targets.shape[1] == config.count_asked() == 11 and examples.source.shape[1] == 10
  config, _, examples, _ = shapes_of(lines, "fragment", fragment_share=0.25)
  assert examples.targets.shape[1] == config.count_asked() == 3
  assert pretrain.Config(**{**SIZES, "objective": "masked", "pairs": "next"}).count_asked() == 15
  config, task, examples, params = shapes_of(lines, "masked", pairs="order", model="gpt2")
  module = task.model(params).module
  assert examples.segments.shape[1] == config.count_asked() == module.length == 15 and module.types == 2
  assert "order" in params and module.vocabulary == load_data(config).vocab_size + 4
  config, task, examples, params = shapes_of(lines, "permutation", prediction_k=3)
  assert examples.targets.shape[1] == config.count_asked() == 4 and examples.inputs.shape[1] == 16
  config, _, examples, params = shapes_of(lines, "spans", span_longest=4)
  assert params["boundary"]["places"]["embedding"].shape == (4, 8)
  flags = dict(heads=4, generator_share=0.25, hidden=32, discriminator_weight=7.0)
  config, task, examples, params = shapes_of(lines, "replaced", **flags)
  assert params["heads"]["to_generator"]["kernel"].shape == (8, 2)
  for part, width in (("generator", 2), ("discriminator", 8)):
    block = params[part]["transformer"]["block0"]
    assert block["feed_forward"]["widen"]["kernel"].shape == (width, 4 * width)
    assert block["attention"]["query"]["kernel"].shape == (width, width)
  assert dict(task.objective.weights) == {"loss": 1.0, "discriminator_loss": 7.0}
  for name in ("corrupted", "infilling"):
    flags = dict(depth=2, hidden=24, dropout=0.25, attention_dropout=0.5, precision="bfloat16", remat=True, tied=False)
    config, task, examples, params = shapes_of(lines, name, **flags)
    module = task.model(None).module
    assert (module.encoder.depth, module.decoder.depth, module.decoder.cross) == (2, 2, True)
    assert params["decoder"]["block1"]["feed_forward"]["widen"]["kernel"].shape == (8, 24) and "head" in params
    assert module.dtype == module.encoder.dtype == jnp.bfloat16 and module.dropout == module.encoder.dropout == 0.25
    assert module.encoder.attention_dropout == module.decoder.attention_dropout == 0.5
    assert module.encoder.remat and module.decoder.remat and module.encoder.head_dim in (None, 4)


def test_flags_reach_what_is_hidden(lines):
  of_masks = dict(mask_share=1.0, random_share=0.0)
  config, _, examples, tokens = drawn(lines, "spans", mask_rate=0.3, span_p=1.0, **of_masks)
  ids, chosen = add_ids(load_data(config)).vocabulary, np.asarray(examples.weights) == 1
  np.testing.assert_array_equal(examples.inputs == ids.mask, chosen)
  words = np.asarray(ids.is_word(tokens[:, :-1])).sum(1)
  assert np.all(np.abs(chosen.sum(1) - 0.3 * words) < 1)
  assert np.all(np.asarray(examples.distance)[chosen] == 1)  # p = 1: spans of one word, which do not touch
  _, _, examples, tokens = drawn(lines, "replaced", mask_rate=0.9, **of_masks)
  chosen = np.asarray(examples.masked.weights) == 1
  assert chosen.sum() > 0.7 * np.asarray(ids.is_word(tokens[:, :-1])).sum()
  np.testing.assert_array_equal(examples.masked.inputs == ids.mask, chosen)
  _, _, (masked, _), tokens = drawn(lines, "prefix", mask_rate=0.9, **of_masks)
  np.testing.assert_array_equal(masked.inputs == ids.mask, masked.weights == 1)
  assert masked.weights.sum() > 0.7 * np.asarray(ids.is_word(tokens[:, :-1])).sum()
  _, _, examples, tokens = drawn(lines, "fragment", **of_masks)
  np.testing.assert_array_equal(np.sum(examples.source == ids.mask, 1), 6)
  for permuted, rate, mean_span in ((True, 0.05, 1.0), (False, 0.5, 20.0)):
    flags = dict(infill_rate=rate, mean_span=mean_span, length=40, permute_sentences=permuted)
    _, _, examples, tokens = drawn(lines, "infilling", **flags)
    assert np.all(examples.shown[:, 0] == ids.mask + 1)
    kept = [[token for token in row if token < ids.pad] for row in np.asarray(examples.source).tolist()]
    assert {len(row) for row in kept} == {round(40 * (1 - rate))}
    assert permuted or np.all(np.sum(examples.source == ids.mask, 1) <= 4)
    in_order = [all(token in stood for token in row) for row, stood in zip(kept, map(iter, tokens[:, :-1].tolist()))]
    assert any(in_order) != permuted


@pytest.mark.parametrize("name", ["causal", *OBJECTIVES])
def test_logits_are_made_in_as_many_parts_as_the_flag_says(name, lines, monkeypatch):
  """Of what is asked and no more, as `count_asked` knows."""
  asked = []
  usual = objective.head_cross_entropy
  record = lambda head, hidden, labels, chunks: (
    asked.append((labels.size, chunks)) or usual(head, hidden, labels, chunks)
  )
  monkeypatch.setattr(objective, "head_cross_entropy", record)
  config = pretrain.Config(**{**SIZES, "dataset": lines, "objective": name, "head_chunks": 2})
  task = _objectives.OBJECTIVES[name](config, load_data(config))

  def nats(tokens):
    examples = jax.vmap(task.objective.prepare)(jax.random.split(root_key(0), 4), tokens)
    return task.objective.terms(task.objective.init(root_key(0), examples), examples, None)["loss"].total

  jax.eval_shape(nats, jax.ShapeDtypeStruct((4, 13), jnp.int32))
  assert set(asked) == {(4 * config.count_asked(), 2)}


def count_draws(jaxpr):
  """How often random bits are drawn, within what it calls as well."""
  within = [getattr(x, "jaxpr", x) for equation in jaxpr.eqns for x in equation.params.values()]
  own = sum(equation.primitive.name == "random_bits" for equation in jaxpr.eqns)
  return own + sum(count_draws(x) for x in within if hasattr(x, "eqns"))


@pytest.mark.parametrize("name", ["causal", *OBJECTIVES, "order"])
def test_every_part_drops_in_training_alone(name, lines):
  """A layer of a stack drops its attention's weights and what its two steps add, behind the embeddings' dropout."""
  flags = dict(objective="masked", pairs="order") if name == "order" else dict(objective=name)
  config = pretrain.Config(**{**SIZES, "dataset": lines, "dropout": 0.5, "attention_dropout": 0.5, **flags})
  task = _objectives.OBJECTIVES[config.objective](config, load_data(config))

  def terms(windows, key):
    examples = jax.vmap(task.objective.prepare)(jax.random.split(root_key(0), 4), windows)
    return task.objective.terms(task.objective.init(root_key(0), examples), examples, key)

  of = lambda key: count_draws(jax.make_jaxpr(terms)(jnp.zeros((4, 13), jnp.int32), key).jaxpr)
  stack, sides = 4, 5 + 7  # a decoder attends twice; both sides drop what they give
  expected = sides if name in ("corrupted", "fragment", "infilling") else stack * (2 if name == "replaced" else 1)
  assert of(root_key(1)) - of(None) == expected


def test_sentences_end_where_a_token_of_an_end_stands():
  tokenizer = train_tokenizer("characters", ("ab,.!?。！？、\n",), 0, ("<end>",))
  windows = Windows(tokenizer.encode("ab.ba"), 3)
  found = find_ends(Corpus("x", windows, windows, tokenizer))
  assert sorted(tokenizer.decode([i]) for i in found) == ["", "\n", "!", ".", "?", "。", "！", "？"]
  assert tokenizer.special["<end>"] in found and tokenizer.special["<unknown>"] not in found


def test_what_was_hidden_is_named(lines):
  corpus = load_data(pretrain.Config(**SIZES, dataset=lines))
  ids = add_ids(corpus, 2)
  vocabulary, digits = ids.vocabulary, corpus.tokenizer.encode("12")
  top = vocabulary.size - 1
  assert name_ids(corpus, ids, [*digits, vocabulary.mask, top, digits[1], top - 1, vocabulary.pad]) == "12▁<1>2<2>"
  assert vocabulary.special[-4:] == (vocabulary.pad, vocabulary.mask, top - 1, top)


def test_what_a_run_gives(lines):
  """The stack alone, of ELECTRA what was put in, and a text as the part reads it that reads texts."""
  tokens, lengths = jnp.array([[3, 4, 5, 0, 0], [3, 4, 5, 6, 7]]), jnp.array([3, 5])
  for name in ("spans", "replaced", "fragment"):
    config, _, _, params = prepared(lines, name)
    params = jax.tree.map(lambda x: x * 10 if x.ndim > 1 else x, params)
    task = _objectives.OBJECTIVES[name](config, load_data(config))
    read = jax.jit(lambda tokens: task.read(params, tokens, lengths, None))  # noqa: B023
    found, other = read(tokens), read(tokens.at[0, 3:].set(8).at[1, 4].set(9))
    np.testing.assert_allclose(found[0, :3], other[0, :3], atol=1e-5)
    assert found.shape == (2, 5, 8) and np.abs(found - other)[1, 0].max() > 1e-6
    model = task.model(params)
    if name == "fragment":
      assert model(tokens, tokens, lengths).shape == (2, 5, add_ids(load_data(config)).vocabulary.size)
      continue
    given = model(tokens)
    assert given.shape == ((2, 5) if name == "replaced" else (2, 5, add_ids(load_data(config)).vocabulary.size))
    head = params["model"]["embed"]["embedding"] if name == "spans" else None
    if head is not None:
      np.testing.assert_allclose(given[1], found[1] @ head.T, atol=1e-4)


@pytest.mark.parametrize("flags, words", [
  (dict(objective="masked", mask_rate=0.0), "--mask_rate"),
  (dict(objective="corrupted", experts=2), "--experts=2 has no meaning for --objective=corrupted"),
  (dict(objective="spans", packed=True), "--packed"),
  (dict(objective="masked", pairs="order", packed=True), "--packed has no meaning for --pairs=order"),
  (dict(objective="fragment", fragment_share=0.0), "--fragment_share"),
  (dict(objective="infilling", infill_rate=1.0), "--infill_rate"),
  (dict(objective="corrupted", mean_span=0.5), "--mean_span"),
  (dict(objective="spans", span_p=0.0), "--span_p"),
  (dict(objective="spans", span_longest=0), "--span_longest"),
  (dict(objective="permutation", prediction_k=0), "--prediction_k"),
  (dict(objective="replaced", generator_share=1.5), "--generator_share"),
  (dict(objective="replaced", discriminator_weight=-1.0), "--discriminator_weight"),
  (dict(objective="fragment", head_chunks=5), "a divisor of the 24 asked tokens"),
  (dict(objective="masked", random_share=0.3), "--random_share"),
  (dict(objective="masked", length=1), "--length"),
  (dict(objective="prefix", packed=True), "--packed"),
])  # fmt: skip
def test_what_does_not_fit_is_one_sentence(flags, words):
  with pytest.raises(InputError, match=words):
    pretrain.Config(**{**SIZES, **flags})


def test_flags_that_do_nothing_say_so():
  idle = lambda **flags: set(pretrain.Config(**{**SIZES, **flags}).idle_flags())
  assert {"mask_rate", "mask_share", "random_share"} <= idle()
  assert not {"mask_rate", "mask_share", "random_share"} & idle(objective="masked")
  own = dict(
    masked="pairs mask_rate mask_share random_share",
    spans="span_p span_longest mask_rate mask_share random_share", permutation="prediction_k",
    replaced="generator_share discriminator_weight mask_rate mask_share random_share", corrupted="mean_span mask_rate",
    fragment="fragment_share mask_share random_share", infilling="infill_rate mean_span permute_sentences",
  )  # fmt: skip
  every = {flag for flags in own.values() for flag in flags.split()}
  for name, flags in own.items():
    assert every - idle(objective=name) == set(flags.split())
    assert ("model" in idle(objective=name)) == (name in ("corrupted", "fragment", "infilling"))
  assert every <= idle() and "tied" in idle(objective="replaced") and "tied" not in idle(objective="fragment")
