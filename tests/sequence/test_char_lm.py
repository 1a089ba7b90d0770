"""The language model: its windows and state, its losses on the whole text, samples, floors, flags."""

import collections
import dataclasses
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.sequence import char_lm
from mlnotes.data import Corpus, Windows
from mlnotes.data.flags import load_data
from mlnotes.data.text import load_documents
from mlnotes.data.text_floors import ngram_floors, witten_bell_floors
from mlnotes.data.tokenizer import train_tokenizer
from mlnotes.engine.checkpoint import Checkpoints, keys_to_data
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key, stream_key
from mlnotes.engine.start_from import find_learned
from mlnotes.optim.flags import make_optimizer
from mlnotes.sequence import MinGRUCell, Recurrent, RecurrentBlocks, RecurrentStack, make_cell

SIZES = dict(depth=1, width=8, length=5, batch_size=3, steps=4, warmup_steps=0, heads=2, log_every=2, eval_every=0)


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
  path = tmp_path_factory.mktemp("text") / "lines.txt"
  path.write_text("\n".join(f"{i} and {i * i}" for i in range(30)))
  return str(path)


@pytest.fixture(scope="module")
def carried(lines):
  """(config, experiment, feeds, state, step) with a state that is carried."""
  config = char_lm.Config(dataset=lines, documents="line", cell="lstm", carry=True, expansion=0.0, **SIZES)
  experiment, feeds = char_lm.make(config), char_lm.make_feeds(config)
  init = jax.jit(lambda arrays: experiment.init(root_key(0), feeds.train.draw(arrays, root_key(0), 0)))
  return config, experiment, feeds, init(feeds.train.arrays), jax.jit(experiment.step)


@pytest.fixture(scope="module")
def windowed(lines):
  """(config, experiment, feeds, state, batch, step, evaluate) with windows by themselves, and dropout."""
  config = char_lm.Config(dataset=lines, documents="line", form="stack", dropout=0.5, **SIZES)
  experiment, feeds = char_lm.make(config), char_lm.make_feeds(config)
  batch = jax.jit(lambda arrays: feeds.train.draw(arrays, root_key(0), 0))(feeds.train.arrays)
  state = jax.jit(experiment.init)(root_key(0), batch)
  return config, experiment, feeds, state, batch, jax.jit(experiment.step), jax.jit(experiment.evaluate)


# -- documents and their states ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, kind", [("clockwork", "layer"), ("lstm", "stack"), ("mingru", "blocks")])
def test_the_state_begins_anew_with_a_document(draw_variables, name, kind):
  """Documents one behind another are each of them alone; a carried state enters the first one alone."""
  cell = make_cell(name, 8)
  model = {"layer": Recurrent, "stack": RecurrentStack, "blocks": RecurrentBlocks}[kind](cell)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 8)), jnp.float32)
  variables = draw_variables(model, x)
  carry = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), jax.eval_shape(model.apply, variables, x)[1])

  @jax.jit
  def together_and_alone(carry, starts):
    parts = [model.apply(variables, x[:, :2], carry=carry)]
    parts += [model.apply(variables, x[:, i : i + size]) for i, size in ((2, 3), (5, 1))]
    outputs = jnp.concatenate([outputs for outputs, _ in parts], 1)
    return model.apply(variables, x, carry=carry, starts=starts), (outputs, parts[-1][1])

  found, expected = together_and_alone(carry, jnp.array([[False, False, True, False, False, True]]))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_starts_are_not_for_what_reads_backward():
  with pytest.raises(ValueError, match="forward"):
    Recurrent(MinGRUCell(4), bidirectional=True).init(
      jax.random.key(0), jnp.ones((1, 2, 3)), starts=jnp.ones((1, 2), bool)
    )


def test_windows_follow_each_other_around_the_text(carried):
  """Every place goes on where it stopped, over the text's end too; starts stand behind each <end>."""
  config, _, feeds, _, _ = carried
  corpus = load_data(config)
  tokens, end = np.asarray(corpus.train.arrays["tokens"]), corpus.end
  size, rounds = len(tokens), len(tokens) // config.length + 2
  draw = jax.jit(lambda step: feeds.train.draw(feeds.train.arrays, root_key(0), step))
  batches = [jax.tree.map(np.asarray, draw(i)) for i in range(rounds)]
  rows = np.concatenate([batch["tokens"][:, :-1] for batch in batches], 1)
  starts = np.concatenate([batch["starts"] for batch in batches], 1)
  begins = []
  for row, start in zip(rows, starts):
    places = [p for p in range(size) if np.array_equal(np.resize(np.roll(tokens, -p), len(row)), row)]
    assert len(places) == 1
    begins.append(places[0])
    around = np.resize(np.roll(tokens, -places[0]), len(row))
    before = np.concatenate([[tokens[places[0] - 1]], around[:-1]])
    closed = (places[0] + np.arange(len(row))) % size == 0
    np.testing.assert_array_equal(start, (before == end) | closed)
  gaps = np.diff(sorted([*begins, min(begins) + size]))
  assert gaps.max() - gaps.min() <= 1
  other = jax.jit(lambda: feeds.train.draw(feeds.train.arrays, root_key(1), 0)["tokens"])()
  assert not np.array_equal(other, batches[0]["tokens"])
  for batch, later in itertools.pairwise(batches):
    np.testing.assert_array_equal(batch["tokens"][:, -1], later["tokens"][:, 0])


def test_where_a_text_without_end_is_closed_something_begins():
  feed = char_lm.make_stream_feed(corpus_of(np.arange(7) % 3, np.arange(4)), 3, 2)
  draw = jax.jit(lambda i: feed.draw(feed.arrays, root_key(0), i))
  starts = np.concatenate([np.asarray(draw(i)["starts"]) for i in range(7)], 1)  # three times around
  for row in starts:
    (places,) = np.nonzero(row)
    assert len(places) == 3 and np.all(np.diff(places) == 7)


def test_an_update_takes_the_state_of_the_last_and_gives_its_own(carried):
  """The loss by hand from the carried state, with starts; the state that comes out is that of this window."""
  _, experiment, feeds, state, step = carried
  draw = jax.jit(lambda i: feeds.train.draw(feeds.train.arrays, root_key(0), i))
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.carry))  # at first there is none
  state, _ = step(state, draw(0))
  assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(state.carry))
  batch = draw(1)
  after, metrics = step(state, batch)
  model = experiment.model(state)
  read = jax.jit(lambda *given: model.read(*given))
  logits, carry = read(batch["tokens"][:, :-1], batch["starts"], state.carry)
  nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch["tokens"][:, 1:])
  np.testing.assert_allclose(metrics["loss"], nats.mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics["accuracy"], np.mean(logits.argmax(-1) == batch["tokens"][:, 1:]), atol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after.carry, carry)


def test_what_starts_from_another_run_reads_from_a_state_of_its_own(carried, tmp_path):
  """Its places in the text are others, and may be more."""
  _, _, _, state, _ = carried
  learned = state._replace(carry=jax.tree.map(lambda x: x + 1, state.carry))
  (tmp_path / "config.json").write_text('{"config": {"seeds": 1}}')
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    checkpoints.save(7, {"state": keys_to_data(learned)}, {}, None)
  like = state._replace(
    params=jax.tree.map(jnp.zeros_like, state.params), carry=jax.tree.map(lambda x: jnp.tile(x, (2, 1)), state.carry)
  )
  found = find_learned(str(tmp_path), like, 1).put_into(like)
  jax.tree.map(np.testing.assert_array_equal, (found.params, found.carry), (learned.params, like.carry))


def test_an_update_is_along_the_gradient_of_the_mean_loss(windowed):
  config, experiment, _, state, batch, step, _ = windowed
  after, metrics = step(state, batch)
  module = experiment.model(state).module

  def mean_loss(params):
    rngs = {"dropout": stream_key(root_key(0), "dropout", 0)}
    logits = module.apply({"params": params}, batch["tokens"][:, :-1], train=True, rngs=rngs)[0]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["tokens"][:, 1:]).mean()

  @jax.jit
  def update(params):
    loss, grads = jax.value_and_grad(mean_loss)(params)
    optimizer = make_optimizer(config, config.steps)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return loss, optax.apply_updates(params, updates)

  loss, expected = update(state.params)
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), after.params, expected)
  assert after.carry == ()


def test_dropout_is_of_updates_alone(windowed):
  _, _, feeds, state, batch, step, evaluate = windowed
  losses = [float(step(state._replace(step=jnp.int32(i)), batch)[1]["loss"]) for i in (0, 1)]
  test = feeds.evaluate.draw(feeds.evaluate.arrays, 0)
  tested = [float(evaluate(state._replace(step=jnp.int32(i)), test)["loss"].total) for i in (0, 1)]
  assert losses[0] != losses[1] and tested[0] == tested[1]


def test_evaluation_leaves_out_what_fills_the_last_batch(windowed, averaged):
  _, experiment, feeds, state, _, _, evaluate = windowed
  batch = feeds.evaluate.draw(feeds.evaluate.arrays, feeds.evaluate.num_batches - 1)
  batch = {**batch, "mask": jnp.array([1.0, 0, 0])}
  found = evaluate(averaged(state), batch)
  model = experiment.model(state)
  logits = jax.jit(lambda tokens: model(tokens))(batch["tokens"][:1, :-1])
  nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch["tokens"][:1, 1:])
  np.testing.assert_allclose(found["loss"].total, nats.mean(), rtol=1e-5)
  np.testing.assert_allclose(found["accuracy"].total, np.mean(logits.argmax(-1) == batch["tokens"][:1, 1:]), atol=1e-6)
  assert float(found["loss"].count) == 1


# -- the report --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [7, 10_000])
def test_the_whole_test_text_is_read_with_one_state(carried, monkeypatch, at_once):
  """Each document alone, from its first token on, whatever is read in one go."""
  monkeypatch.setattr(char_lm, "_AT_ONCE", at_once)
  config, experiment, _, state, _ = carried
  corpus, model = load_data(config), experiment.model(state)
  found = char_lm.stream_losses(config, corpus, model)
  tokens = np.asarray(corpus.test.arrays["tokens"], np.int32)
  assert len(found) == len(tokens) - 1
  begin, end = 0, corpus.end
  ends = np.flatnonzero(tokens == end)
  room = 2 + np.diff(ends, prepend=-1).max()

  @jax.jit
  def read(document):
    return optax.softmax_cross_entropy_with_integer_labels(model(document[:, :-1]), document[:, 1:])[0]

  for last in ends:
    document = tokens[begin : last + 2]
    nats = read(np.pad(document, (0, room - len(document)))[None])[: len(document) - 1]
    np.testing.assert_allclose(found[begin : begin + len(nats)], nats, atol=1e-5)
    begin = last + 1


def test_a_sample_is_drawn_token_by_token(windowed):
  """Of a model that is sure of what follows: each token feeds the next; the state begins anew at that behind <end>."""
  config = windowed[0]
  corpus = load_data(config)
  end, size = corpus.end, corpus.vocab_size
  seen = []

  class Sure(char_lm.Model):
    def read(self, tokens, starts=None, carry=None):
      seen.append(starts is not None)
      count = jnp.zeros(1) if carry is None else jnp.where(starts[:, 0], 0, carry) + 1
      # Three tokens of a document, each the one behind the last, then <end>, at which the count goes on.
      following = jnp.where((count >= 3) & (tokens[:, -1] != end), end, (tokens[:, -1] + 1) % size)
      return 100.0 * jax.nn.one_hot(following, size)[:, None], count

  text = char_lm.sample(config, corpus, Sure(None, {}), count=12)
  expected = [(end + i) % size for i in (1, 2, 3)]
  decode = lambda ids: corpus.tokenizer.decode([i for i in ids if i != end])
  assert text.split("\n") == [decode(expected)] * 3 + [""] and all(seen[1:])


def test_the_transformers_cache_gives_what_the_whole_does(lines, draw_variables):
  config = char_lm.Config(dataset=lines, documents="line", model="transformer", **SIZES)
  model = char_lm.build_model(dataclasses.replace(config, length=6), 11)
  tokens = jax.random.randint(jax.random.key(0), (1, 6), 0, 11)
  variables = draw_variables(model, tokens)
  carry, read = model.model.transformer.make_cache(1, 7), jax.jit(model.apply)
  whole, nothing = read(variables, tokens)
  for t in range(6):
    logits, carry = read(variables, tokens[:, t : t + 1], None, carry)
    np.testing.assert_allclose(logits[:, 0], whole[:, t], atol=1e-5)
  # Of more tokens than a window has, the last ones: places are told apart by how far they are.
  logits, _ = read(variables, tokens[:, :1], None, carry)
  window = jnp.concatenate([tokens[:, 1:], tokens[:, :1]], 1)
  np.testing.assert_allclose(logits[:, 0], read(variables, window)[0][:, -1], atol=1e-5)
  changed = read(variables, tokens.at[0, 5].add(1) % 11)[0]
  np.testing.assert_allclose(changed[:, :5], whole[:, :5], atol=1e-6)
  assert nothing is None


@pytest.mark.parametrize("flags", [dict(), dict(model="transformer")])
def test_the_report_has_floors_a_sample_and_a_picture(windowed, averaged, draw_like, flags, tmp_path):
  config, experiment, _, state, batch, _, _ = windowed
  if flags:
    experiment = char_lm.make(dataclasses.replace(config, **flags))
    state = state._replace(params=draw_like(jax.eval_shape(experiment.init, root_key(0), batch).params))
  found = experiment.report(averaged(state), tmp_path)
  corpus = load_data(config)
  floors = ngram_floors(corpus) | witten_bell_floors(corpus, (4,))
  assert {"unigram", "bigram", "4_gram"} <= set(floors) and floors.items() <= found.items() and "5_gram" in found
  assert ("stream_loss" in found) == (not flags)
  assert (tmp_path / "text.png").stat().st_size > 5000 and (tmp_path / "sample.txt").stat().st_size > 300
  if not flags:
    np.testing.assert_allclose(
      found["stream_loss"], char_lm.stream_losses(config, corpus, experiment.model(state)).mean(), rtol=1e-6
    )


@pytest.mark.parametrize(
  "kind,pieces",
  [
    ("characters", ["a", " ", "é", "t", "¶", "¶"]),
    ("bytes", ["a", " ", "\ufffd", "\ufffd", "t", "¶", "¶"]),
    ("words", ["a", " ét", "¶"]),
  ],
)
def test_a_picture_has_what_each_token_adds_to_the_text(kind, pieces):
  tokenizer = train_tokenizer(kind, ["a ét\n"], special=("<end>",))
  tokens = [*tokenizer.encode("a ét\n"), tokenizer.special["<end>"]]
  assert char_lm.token_texts(tokenizer, tokens) == pieces


def test_a_text_without_end_has_none(lines):
  """Though the tokenizer knows one."""
  tokens = np.array([1, 2, 1, 2])
  corpus = corpus_of(tokens, tokens)
  end = corpus.tokenizer.special["<end>"]
  assert end not in tokens and corpus.end == -1
  assert corpus_of(np.append(tokens, end), tokens).end == end


def test_a_text_too_long_to_be_a_ring_is_refused():
  long = types.SimpleNamespace(arrays={"tokens": np.broadcast_to(np.uint8(0), 2**29)})
  with pytest.raises(InputError, match=r"found 536870912 tokens of training text, expected fewer than 2\^29"):
    char_lm.make_stream_feed(corpus_of(np.arange(4), np.arange(4))._replace(train=long), 4, 2)
  with pytest.raises(InputError, match="found --batch_size=3, expected at most 2"):
    char_lm.make_stream_feed(corpus_of(np.arange(7) % 3, np.arange(4)), 3, 3)


# -- floors and data ---------------------------------------------------------------------------------------------------


def corpus_of(train, test, vocab="abc", special=("<end>",)):
  return Corpus("x", Windows(train, 2), Windows(test, 2), train_tokenizer("characters", (vocab,), 0, special))


@pytest.mark.parametrize("special", [("<end>",), ()])
def test_witten_bell_against_dictionaries(special):
  """Token by token by the definition; the chances of what may follow sum to 1."""
  numbers = np.random.default_rng(0)
  train, test = numbers.integers(0, 5, 60), numbers.integers(0, 5, 30)
  corpus = corpus_of(train, test, special=special)
  size, end = corpus.vocab_size, corpus.tokenizer.special.get("<end>")
  train, test = train % size, test % size
  corpus = corpus_of(train, test, special=special)

  def context(tokens, i, n):
    """The n - 1 tokens before place i, the nearest first."""
    found = []
    for back in range(1, n):
      stop = i - back < 0 or (found and found[-1] == end)
      found.append((end or 0) if stop else int(tokens[i - back]))
    return tuple(found)

  counts = [collections.defaultdict(collections.Counter) for _ in range(6)]
  for n in range(1, 6):
    for i, token in enumerate(train):
      counts[n][context(train, i, n)][int(token)] += 1

  def chance(token, full, n):
    if n == 0:
      return 1 / size
    seen = counts[n][full[: n - 1]]
    lower = chance(token, full, n - 1)
    return (seen[token] + len(seen) * lower) / (sum(seen.values()) + len(seen)) if sum(seen.values()) else lower

  found = witten_bell_floors(corpus, (1, 2, 3, 5))
  for n in (1, 2, 3, 5):
    nats = [-np.log(chance(int(test[i]), context(test, i, n), n)) for i in range(1, len(test))]
    np.testing.assert_allclose(found[f"{n}_gram"], np.mean(nats), rtol=1e-9)
    np.testing.assert_allclose(sum(chance(token, context(test, 7, n), n) for token in range(size)), 1)


def test_equal_lines_are_on_one_side(tmp_path):
  path = tmp_path / "names.txt"
  path.write_text("\n".join(f"name{i % 20}" for i in range(60)))
  found = load_documents(str(path), documents="line")
  assert not set(found.train) & set(found.test)
  assert len(found.train) + len(found.test) == 60 and len(set(found.test)) == 2


# -- flags -------------------------------------------------------------------------------------------------------------


def test_flags_reach_the_model(lines):
  def build(**flags):
    model = char_lm.build_model(char_lm.Config(dataset=lines, **{**SIZES, **flags}), 11)
    return model, jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 3), jnp.int32))["params"]

  model, params = build(depth=2, state=1.5, expansion=2.0, dropout=0.25)
  body = params["body"]
  assert {"layer0", "layer1", "widen1"} <= set(body) and model.body.dropout == 0.25 and model.dropout == 0.0
  assert body["layer0"]["forward"]["i"]["kernel"].shape == (8, 24) and body["widen0"]["kernel"].shape == (8, 16)
  assert "widen0" not in build(expansion=0.0)[1]["body"]
  model, params = build(form="stack", cell="gru", depth=2, dropout=0.25, residual=True)
  assert params["body"]["layer1"]["forward"]["i"]["kernel"].shape == (8, 24)
  assert model.dropout == model.body.dropout == 0.25 and model.body.residual
  model, params = build(model="transformer", depth=2, heads=4, dropout=0.25)
  transformer = model.model.transformer
  assert (transformer.depth, transformer.heads, transformer.dropout, transformer.rotary_base) == (2, 4, 0.25, 10000.0)


@pytest.mark.parametrize("flags, words", [
  (dict(bidirectional=True), "--bidirectional"),
  (dict(model="transformer", carry=True), "--carry"),
  (dict(model="transformer", heads=3), "--heads"),
  (dict(model="transformer", width=4, heads=4), "--heads"),
  (dict(state=0.0), "--state"),
  (dict(cell="clockwork", state=0.6), "8 periods must divide 5 features"),
  (dict(expansion=-1.0), "--expansion"),
  (dict(expansion=0.1), "--expansion=0.1 is out of range: expected 0, or a hidden feature and more of --width=8"),
  (dict(carry=True, steps=2**30), "--steps"),
])  # fmt: skip
def test_what_does_not_fit_is_one_sentence(flags, words):
  with pytest.raises(InputError, match=words):
    char_lm.Config(**{**SIZES, **flags})


def test_a_cell_is_of_the_units_that_it_has():
  """A layer's, not the width around it."""
  config = char_lm.Config(**{**SIZES, "width": 10}, cell="clockwork", state=0.8)
  assert char_lm.build_model(config, 11).body.cell.features == 8


def test_flags_that_do_nothing_say_so():
  idle = lambda **flags: set(char_lm.Config(**{**SIZES, **flags}).idle_flags())
  assert {"heads", "residual", "shared_dropout", "periods"} <= idle() and not {"state", "expansion", "stride"} & idle()
  assert {"state", "expansion"} <= idle(form="stack") and "residual" not in idle(form="stack")
  transformer = idle(model="transformer")
  assert {"cell", "form", "state", "forget_bias"} <= transformer and "heads" not in transformer
  assert "stride" in idle(carry=True)
