"""Vectors of sentences: encoders, both objectives against loops, the experiment on texts whose neighbours are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lm import sentences as experiment
from experiments.lm._sentences_report import find_beside, nearest_in_part, reciprocal_rank
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key
from mlnotes.lm.sentences import (
  QuickThoughtModel,
  SentenceEncoder,
  SkipThoughtModel,
  flatten_passages,
  quick_thought_terms,
  skip_thought_terms,
)

VOCABULARY, END = 9, 8
LENGTHS = np.array([[3, 1, 4], [3, 4, 1], [1, 1, 3]])


@pytest.fixture(scope="module")
def batch():
  tokens = np.random.default_rng(0).integers(0, END, (3, 3, 4))
  return jnp.asarray(np.where(np.arange(4) < LENGTHS[..., None], tokens, 0)), jnp.asarray(LENGTHS)


@pytest.fixture(scope="module")
def skip(batch):
  module = SkipThoughtModel(VOCABULARY, 4, END)
  params = module.init(jax.random.key(0), batch[0][0], batch[1][0])["params"]
  return module, jax.tree.map(lambda x: 2.0 * x, params)


@pytest.fixture(scope="module")
def quick(batch):
  module = QuickThoughtModel(VOCABULARY, 4)
  return module, module.init(jax.random.key(0), batch[0][0], batch[1][0])["params"]


def test_a_vector_is_what_both_directions_end_with(batch):
  tokens, lengths = batch[0].reshape(-1, 4), batch[1].reshape(-1)
  one, both = (SentenceEncoder(VOCABULARY, 4, bidirectional=two) for two in (False, True))
  variables = both.init(jax.random.key(1), tokens, lengths)
  found = both.apply(variables, tokens, lengths)
  layer = variables["params"]["stack"]["layer0"]
  for half, name in ((slice(0, 4), "forward"), (slice(4, 8), "backward")):
    params = {**variables["params"], "stack": {"layer0": {"forward": layer[name]}}}
    for row, size, expected in zip(tokens, lengths, found[:, half]):
      alone = row[None, :size][:, :: 1 if name == "forward" else -1]
      vector = one.apply({"params": params}, alone, jnp.array([size]))[0]
      np.testing.assert_allclose(vector, expected, rtol=1e-5, atol=1e-6)


def test_skip_thought_says_both_neighbours_token_for_token(batch, skip):
  """Against a loop over sentences, each by itself and without padding."""
  (tokens, lengths), (module, params) = batch, skip
  nats, count = 0.0, 0
  encode = jax.jit(lambda *args: module.apply({"params": params}, *args, method="encode"))
  decode = jax.jit(lambda *args: module.apply({"params": params}, *args, method="decode"), static_argnums=0)
  call = lambda method, *args: (encode if method == "encode" else decode)(*args)
  for passage, sizes in zip(tokens, LENGTHS):
    for i in range(3):
      vector = call("encode", passage[i][None, : sizes[i]], jnp.array([sizes[i]]))
      for name, j in (("before", i - 1), ("after", i + 1)):
        if 0 <= j < 3:
          target = passage[j][None, : sizes[j]]
          logits = np.asarray(call("decode", name, vector, target))[0]
          asked = [*np.asarray(target)[0], END]
          logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
          nats -= sum(logs[t, token] for t, token in enumerate(asked))
          count += len(asked)
  flat = flatten_passages(tokens, lengths, jnp.ones(3, bool))
  found = skip_thought_terms(module, params, flat)["loss"]
  assert found.count == count
  np.testing.assert_allclose(found.total, nats, rtol=1e-5)
  # Each decoder learns, and no token is foretold from itself.
  grads = jax.grad(lambda p: skip_thought_terms(module, p, flat)["loss"].total)(params)
  assert all(np.any(np.asarray(x) != 0) for x in jax.tree.leaves(grads["decoders_before"], is_leaf=None))
  vector = call("encode", tokens[0], lengths[0])
  other = tokens[0].at[:, 2].add(1)
  a, b = (call("decode", "after", vector, x % END) for x in (tokens[0], other))
  np.testing.assert_array_equal(a[:, :3], b[:, :3])
  assert not np.allclose(a[:, 3], b[:, 3])


@pytest.mark.parametrize("objective", ["quick", "skip"])
def test_passages_that_are_none_change_nothing(objective, batch, request):
  (module, params), (tokens, lengths) = request.getfixturevalue(objective), batch
  terms = quick_thought_terms if objective == "quick" else skip_thought_terms
  two = terms(module, params, flatten_passages(tokens[:2], lengths[:2], jnp.ones(2, bool)))
  three = terms(module, params, flatten_passages(tokens, lengths, jnp.array([True, True, False])))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), two, three)
  whole = terms(module, params, flatten_passages(tokens, lengths, jnp.ones(3, bool)))
  assert whole["loss"].count > two["loss"].count


def test_quick_thought_has_two_encoders_and_dropout_in_training(batch, quick):
  (tokens, lengths), (module, _) = batch, quick
  module = module.clone(dropout=0.5)
  params = module.init(jax.random.key(0), tokens[0], lengths[0])["params"]
  f, g = module.apply({"params": params}, tokens[0], lengths[0])
  assert not np.allclose(f, g)
  both = module.apply({"params": params}, tokens[0], lengths[0], method="encode")
  np.testing.assert_array_equal(both, np.concatenate([f, g], -1))
  flat = flatten_passages(tokens, lengths, jnp.ones(3, bool))
  losses = [float(quick_thought_terms(module, params, flat, 1, key)["loss"].total) for key in
            (None, None, jax.random.key(0), jax.random.key(1))]  # fmt: skip
  assert losses[0] == losses[1] and len(set(losses)) == 3
  near, far = (quick_thought_terms(module, params, flat, context)["loss"] for context in (1, 2))
  assert near.count == far.count and near.total != far.total


def test_ranks_by_hand():
  document = np.array([0, 0, 0, 1])
  beside = find_beside(document)
  assert beside.tolist() == [[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
  scores = np.array([[9, 1, 2, 3], [5, 9, 4, 6], [1, 7, 9, 0], [1, 2, 3, 9]])
  # Third of three; second of its two others and the better neighbour; first. The last sentence has no neighbour.
  assert reciprocal_rank(scores, beside) == pytest.approx((1 / 3 + 1 / 2 + 1) / 3)
  assert reciprocal_rank(np.zeros((4, 4)), beside) == pytest.approx((1 / 3 + 1 / 2 + 1 / 3) / 3)
  assert nearest_in_part(scores, document) == 0.25


def words_of(topic):
  return [f"{chr(97 + topic)}{chr(97 + i)}" for i in range(8)]


@pytest.fixture(scope="module")
def topics(tmp_path_factory):
  """Forty documents of eight topics: a sentence's words are of its document's topic."""
  draw, lines = np.random.default_rng(0), []
  for i in range(40):
    sentences = {" ".join(draw.choice(words_of(i % 8), 5)) for _ in range(14)}
    lines.append("\\n".join(sorted(sentences)))
  path = tmp_path_factory.mktemp("topics") / "topics.jsonl"
  path.write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
  return str(path)


def settings(topics, **flags):
  sizes = dict(dataset=topics, sentence_end="line", width=8, length=5, batch_size=8, passage=3, dropout=0.0)
  return experiment.Config(**{**sizes, **flags})


def learn(config, steps):
  made = experiment.make(config)
  split = experiment.load_text(config).train
  draw = np.random.default_rng(1)
  read = lambda: {name: jnp.asarray(x) for name, x in split.read(draw.integers(0, len(split), 8)).items()}
  state = jax.jit(made.init)(root_key(0), read())
  step = jax.jit(made.step)
  for _ in range(steps):
    state, metrics = step(state, read())
  return made, state, metrics


def test_neighbours_of_one_topic_are_found(topics, tmp_path):
  (tmp_path / "labels").mkdir()
  for topic in range(2):
    rows = [" ".join(np.roll(words_of(topic), i)[:5]) for i in range(8)]
    (tmp_path / "labels" / f"{topic}.txt").write_text("\n".join(f"{row} {row}" for row in rows))
  config = settings(topics, learning_rate=1e-2, labelled=str(tmp_path / "labels"))
  made, state, metrics = learn(config, 60)
  # Of 24 sentences of eight topics, those of a topic are alike: a third or so are found, a tenth by chance.
  loss = float(metrics["loss"].total / metrics["loss"].count)
  assert loss < 0.75 * np.log(23)
  found = made.report(state, tmp_path)
  assert found["label_accuracy"] == found["label_floor_bag"] == 1 and found["label_floor_majority"] == 0.5
  assert found["same_part"] > 3 * found["chance_same_part"] or found["same_part"] > 0.6
  assert {"neighbour_rank", "floor_neighbour_rank", "floor_same_part"} <= set(found)
  assert (tmp_path / "sentences.png").stat().st_size > 5000 and (tmp_path / "neighbours.txt").read_text().strip()
  vectors = made.model(state)(["a text", ""])
  assert vectors.shape == (2, 4 * config.width) and np.isfinite(vectors).all()
  with pytest.raises(ValueError, match="list of texts"):
    made.model(state)("a text")


def test_what_a_vector_tells_of_its_neighbours(topics):
  config = settings(topics, objective="skip_thought", learning_rate=2e-2)
  made, state, _ = learn(config, 60)
  split = experiment.load_text(config).test
  batch = {name: jnp.asarray(x) for name, x in split.read(np.arange(len(split))).items()}
  found = made.evaluate(state, {**batch, "mask": jnp.ones(len(split)), "index": jnp.arange(len(split))})
  own, other = (float(found[name].total / found[name].count) for name in ("loss", "loss_from_another"))
  assert own < other - 0.3


@pytest.mark.parametrize(
  ("flags", "sentence"),
  [
    (dict(passage=1), "--passage"),
    (dict(passage=3, context=3), "--context=3 is out of range|--context"),
    (dict(width=0), "--width"),
    (dict(dropout=1.0), "--dropout"),
    (dict(tokenizer="mine.json"), "--tokenizer=mine.json"),
  ],
)
def test_bad_flags_are_one_sentence(flags, sentence):
  with pytest.raises(InputError, match=sentence):
    experiment.Config(**flags)


def test_flags_reach_the_module(topics):
  config = settings(topics, cell="elman", width=6, bidirectional=False, dropout=0.25)
  module = experiment.build_module(config, experiment.load_text(config))
  assert (module.cell, module.width, module.bidirectional, module.dropout) == ("elman", 6, False, 0.25)
  config = settings(topics, objective="skip_thought", cell="lstm")
  text = experiment.load_text(config)
  module = experiment.build_module(config, text)
  assert (module.start, module.cell) == (text.tokenizer.special["<end>"], "lstm")
  assert "context" in config.idle_flags()
