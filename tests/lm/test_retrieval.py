"""Retrieval: the search and BM25 against others, marginals against enumeration, the facts, what each stage trains."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lm import _retrieval_report as answers, retrieval
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key
from mlnotes.lm import (
  Retrieved,
  bm25_scores,
  bm25_weights,
  contrast_documents,
  marginalize_documents,
  recall_at,
  reciprocal_rank,
  search,
)
from mlnotes.lm.tasks import Facts, count_tokens, draw_facts, split_people, swap_values
from mlnotes.lm.tasks.facts import FACT_WORDS, FIRST_NAMES, LAST_NAMES, RELATIONS, VALUES

SMALL = dict(
  people=2, asked=3, test_people=2, depth=1, heads=2, width=8, k=2, batch_size=2, steps=8, encoder_steps=4,
  warmup_steps=0, log_every=2, eval_every=0,
)  # fmt: skip


# -- the store ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 3, 100])
def test_a_search_in_blocks_is_that_of_all_scores(block):
  query, index = jax.random.normal(root_key(0), (4, 3)), jax.random.normal(root_key(1), (10, 3))
  index = index.at[7].set(index[2])  # of equal scores the smaller number is first
  found = search(query, index, 6, block)
  scores = np.asarray(query @ index.T)
  order = np.argsort(-scores, axis=1, kind="stable")[:, :6]
  np.testing.assert_array_equal(found.number, order)
  np.testing.assert_allclose(found.score, np.take_along_axis(scores, order, 1), rtol=1e-5)
  hidden = search(query, index, 6, block, jnp.arange(10) != 2)
  assert not np.any(hidden.number == 2)
  with pytest.raises(ValueError, match=r"k=11.*10 documents"):
    search(query, index, 11)


def test_recall_and_rank():
  number = jnp.array([[3, 1], [0, 2], [4, 5]])
  np.testing.assert_array_equal(recall_at(number, jnp.array([1, 0, 3])), [1, 1, 0])
  scores = jnp.array([[0.5, 2.0, 1.0], [1.0, 1.0, 1.0]])
  np.testing.assert_allclose(reciprocal_rank(scores, jnp.array([2, 0])), [1 / 2, 1 / 3])


TEXTS = [[2, 3, 3, 4], [2, 5], [6, 4, 7], [5, 6, 6, 6, 8], [2, 9]]


def padded(rows, length=6):
  return jnp.array([row + [0] * (length - len(row)) for row in rows]), jnp.array([len(row) for row in rows])


def test_bm25_is_as_worked_by_hand():
  """Word 3 is in one of five texts, twice of four words; the mean length is 16 / 5; word 2 is in more than half."""
  weights = np.asarray(bm25_weights(*padded(TEXTS), 12, k1=2.0, b=0.5))
  rarity = np.log(4.5 / 1.5)
  np.testing.assert_allclose(weights[0, 3], rarity * 2 * 3 / (2 + 2 * (0.5 + 0.5 * 4 / 3.2)), rtol=1e-5)
  assert np.all(weights[:, 2] == 0) and np.count_nonzero(weights[:, 3]) == 1 and np.all(weights[:, 0] == 0)
  twice = bm25_scores(*padded([[3, 3], [3, 8]]), jnp.asarray(weights))
  np.testing.assert_allclose(twice[0, 0], 2 * weights[0, 3], rtol=1e-5)
  np.testing.assert_allclose(twice[1], weights[:, 3] + weights[:, 8], rtol=1e-5)


@pytest.mark.parity
def test_bm25_has_its_usual_constants():
  usual = bm25_weights(*padded(TEXTS), 12, k1=1.2, b=0.75)
  np.testing.assert_array_equal(bm25_weights(*padded(TEXTS), 12), usual)
  assert np.any(usual != bm25_weights(*padded(TEXTS), 12, k1=0.75, b=1.2))


def test_bm25_is_that_of_rank_bm25():
  rank_bm25 = pytest.importorskip("rank_bm25")
  theirs = rank_bm25.BM25Okapi(TEXTS, k1=1.2, b=0.75, epsilon=0.0)
  weights = bm25_weights(*padded(TEXTS), 12)
  for question in ([3, 4], [6, 2, 6], [9, 11], [5]):
    found = bm25_scores(*padded([question]), weights)[0]
    np.testing.assert_allclose(found, theirs.get_scores(question), rtol=1e-5, atol=1e-6)


# -- answers over documents --------------------------------------------------------------------------------------------


def test_marginals_are_sums_over_every_way_to_choose_documents():
  """sequence: one document; token: each of the tokens has a document of its own, K^T ways."""
  prior = jax.nn.log_softmax(jax.random.normal(root_key(0), (3,)))
  logs = -jax.random.uniform(root_key(1), (3, 4), minval=0.1, maxval=3.0)
  real = jnp.array([True, True, True, False])
  p, q = np.exp(np.asarray(prior, np.float64)), np.exp(np.asarray(logs, np.float64))
  whole = sum(p[z] * np.prod(q[z, :3]) for z in range(3))
  each = sum(np.prod([p[z] * q[z, i] for i, z in enumerate(ways)]) for ways in itertools.product(range(3), repeat=3))
  np.testing.assert_allclose(marginalize_documents(prior, logs, real), np.log(whole), rtol=1e-5)
  np.testing.assert_allclose(marginalize_documents(prior, logs, real, "token"), np.log(each), rtol=1e-5)
  changed = logs.at[:, 3].set(-99.0)
  for by in ("sequence", "token"):
    np.testing.assert_array_equal(*(marginalize_documents(prior, x, real, by) for x in (logs, changed)))


def test_a_question_is_held_against_all_documents():
  query, documents = jax.random.normal(root_key(0), (2, 3)), jax.random.normal(root_key(1), (4, 3))
  scores = np.exp(np.asarray(query @ documents.T, np.float64))
  expected = -np.log([scores[0, 3] / scores[0].sum(), scores[1, 1] / scores[1].sum()])
  np.testing.assert_allclose(contrast_documents(query, documents, jnp.array([3, 1])), expected, rtol=1e-5)
  np.testing.assert_allclose(contrast_documents(0 * query, documents, jnp.array([0, 1])), np.log(4), rtol=1e-6)


class Fixed(answers.Networks):
  """A reader that says, by a document's first token, word 5 or 6 with these chances, and END behind it."""

  def read(self, params, documents, questions, before):
    chance = jnp.array([0.0, 0.6, 0.1, 0.2])[documents[:, 0]]
    rows = jnp.full((len(documents), before.shape[1], 8), 1e-9).at[:, 1:, 1].set(1.0)
    return jnp.log(rows.at[:, 0, 5].set(chance).at[:, 0, 6].set(1 - chance))


def test_an_answer_is_the_likeliest_under_all_documents():
  """The first document says 5 (.5 * .6 + .3 * .1 + .2 * .2 = .37), yet 6 is likelier."""
  networks, prior = Fixed(None, None, None), jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
  documents, question = jnp.array([[[1], [2], [3]]]), jnp.array([[4]])
  for by in ("sequence", "token"):
    np.testing.assert_array_equal(networks.answer(None, documents, question, prior, by), [[6, 1, 1]])
  sure = jnp.log(jnp.array([[0.98, 0.01, 0.01]]))
  for by in ("sequence", "token"):
    np.testing.assert_array_equal(networks.answer(None, documents, question, sure, by), [[5, 1, 1]])


# -- facts -------------------------------------------------------------------------------------------------------------


@functools.cache
def drawn(count=40):
  train, _ = split_people()
  return jax.device_get(jax.jit(lambda key: draw_facts(key, jnp.asarray(train), count))(root_key(3)))


def words(tokens):
  return [FACT_WORDS[token] for token in tokens if token]


def test_nobody_is_in_both_splits_and_each_name_is():
  train, test = (set(map(tuple, people.tolist())) for people in split_people())
  assert not train & test and len(train) + len(test) == len(FIRST_NAMES) * len(LAST_NAMES) == 576
  for people in (train, test):
    assert {a for a, _ in people} == set(range(24)) and {b for _, b in people} == set(range(24))
  config = retrieval.Config(**SMALL)
  feeds = retrieval.make_feeds(config)
  batch = jax.jit(lambda: feeds.train.draw(feeds.train.arrays, root_key(0), 0))()
  assert set(map(tuple, batch["person"].reshape(-1, 2).tolist())) <= train
  assert set(map(tuple, retrieval.test_facts(config).person.tolist())) <= test


def test_documents_and_questions_are_of_their_fact():
  facts = drawn()
  people = set(map(tuple, facts.person.tolist()))
  assert len(people) == 40 and len(set(FACT_WORDS)) == len(FACT_WORDS)
  shared, named = [], 0
  for document, question, answer, (first, last), relation in zip(*facts):
    told, asked = words(document), words(question)
    assert [w for w in told if w in VALUES[0] + VALUES[1]] == words(answer)[:2] and words(answer)[2] == "<end>"
    for text in (told, asked):
      assert LAST_NAMES[last] in text and set(FIRST_NAMES[first]) & set(text) and set(RELATIONS[relation]) & set(text)
    own = told.index(LAST_NAMES[last])
    assert told[own - 1] in FIRST_NAMES[first] or told.count(LAST_NAMES[last]) > 1
    names = [w for w in told if w in LAST_NAMES]
    named += len(names) == 2
    if len(names) == 2:  # the other person is one of the store, and comes ahead
      other = told[told.index(names[0]) - 1]
      assert any(other in FIRST_NAMES[a] and names[0] == LAST_NAMES[b] for a, b in people)
    shared.append(bool(set(RELATIONS[relation]) & set(told) & set(asked)))
  assert 0.3 < named / len(facts.document) < 0.5 and 0.2 < np.mean(shared) < 0.47


def test_other_values_change_documents_there_alone():
  facts = drawn()
  other = jax.device_get(jax.jit(swap_values)(root_key(0), facts))
  assert np.all(other.answer[:, :2] != facts.answer[:, :2]) and np.all(other.answer[:, 2] == 1)
  np.testing.assert_array_equal(other.question, facts.question)
  for old, new, answer in zip(facts.document, other.document, other.answer):
    assert np.sum(old != new) == 2 and [w for w in words(new) if w in VALUES[0] + VALUES[1]] == words(answer)[:2]


# -- the experiment ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
  config = retrieval.Config(**SMALL)
  experiment, feeds = retrieval.make(config), retrieval.make_feeds(config)
  batch = jax.jit(lambda: feeds.train.draw(feeds.train.arrays, root_key(0), 0))()
  state = jax.jit(experiment.init)(root_key(0), batch)
  return config, experiment, feeds, jax.jit(experiment.step), state, batch


def moved(before, after):
  return {
    name: any(not np.array_equal(a, b) for a, b in zip(*(jax.tree.leaves(x.params[name]) for x in (before, after))))
    for name in before.params
  }


def test_encoders_learn_first_and_then_the_documents_stay(small, apart):
  config, _, _, step, state, batch = small
  last = state._replace(step=jnp.int32(config.encoder_steps - 1))
  early, metrics = step(last, batch)
  assert moved(last, early) == {"question": True, "document": True, "reader": False}
  assert metrics["contrast_loss"].count == 1 and metrics["answer_loss"].count == 0
  networks, (store, score_all, _) = retrieval.build_networks(config), apart
  found, _ = jax.jit(lambda params: retrieval.contrast(networks, params, store))(state.params)
  score = score_all(jnp.arange(len(store.question)))
  np.testing.assert_allclose(found, -np.diagonal(jax.nn.log_softmax(score)), rtol=1e-4, atol=1e-5)
  late, metrics = step(early, batch)
  assert moved(early, late) == {"question": True, "document": False, "reader": True}
  assert metrics["contrast_loss"].count == 0 and metrics["answer_loss"].count == 1


@pytest.fixture(scope="module")
def apart(small):
  """(a store, (of questions asked) the scores of all documents, (of one of each) what the reader says), compiled."""
  config, experiment, _, _, state, batch = small
  networks, model = retrieval.build_networks(config), experiment.model(state)
  facts = Facts(**jax.tree.map(lambda x: x[0], batch))
  score = jax.jit(lambda asked: model.scores(facts.question[asked], facts.document))
  read = jax.jit(lambda document, question, before: networks.read(state.params, document, question, before)[0])
  return facts, score, read


def test_what_learns_from_answers_begins_as_the_encoders_end():
  """With Lookahead at its slow weights, which the index is made of then as in an evaluation."""
  config = retrieval.Config(**{**SMALL, "lookahead": 3})
  experiment, feeds = retrieval.make(config), retrieval.make_feeds(config)
  batch = jax.jit(lambda: feeds.train.draw(feeds.train.arrays, root_key(0), 0))()
  state, step = jax.jit(experiment.init)(root_key(0), batch), jax.jit(experiment.step)
  for _ in range(config.encoder_steps):
    state, _ = step(state, batch)
  same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, (a, b)))
  ended = experiment.model(state).params
  later, _ = step(state, batch)
  same(later.params["document"], ended["document"])
  found = experiment.model(later).params  # one update later no slow weight has moved
  same({name: found[name] for name in ended}, ended)
  assert moved(state._replace(params=ended), later) == {"question": True, "document": False, "reader": True}


@pytest.mark.parametrize("by, k", [("sequence", 2), ("token", 2), ("sequence", 1)])
def test_an_answer_is_read_from_the_documents_that_are_found(small, apart, by, k):
  """Taken apart: scores by hand, the reader on one document at a time, the sum over documents in numpy."""
  config = retrieval.Config(**{**SMALL, "marginal": by, "k": k})
  networks, params, (facts, score_all, read) = retrieval.build_networks(config), small[4].params, apart
  asked = np.asarray(retrieval.draw_asked(root_key(5), 3, 1, 12)[0])
  assert len(set(asked.tolist())) == 3
  losses, found = jax.jit(lambda asked: retrieval.answer_loss(config, networks, params, asked, facts))(asked)
  for row, (number, score) in enumerate(zip(asked, np.asarray(score_all(asked), np.float64))):
    best = np.argsort(-score)[:k]
    before = jnp.concatenate([jnp.array([1]), facts.answer[number][:2]])[None]
    logs = [read(facts.document[z][None], facts.question[number][None], before) for z in best]
    chance = np.exp([[float(x[i, token]) for i, token in enumerate(facts.answer[number])] for x in logs])
    prior = np.exp(score[best]) / np.exp(score[best]).sum()
    total = np.log(prior @ chance.prod(1)) if by == "sequence" else np.log(prior @ chance).sum()
    np.testing.assert_allclose(losses[row], -total / 3, rtol=1e-4)
    assert found[row] == (number in best)


def test_padding_is_read_by_nobody(small):
  config, _, _, _, state, _ = small
  networks, facts = retrieval.build_networks(config), retrieval.test_facts(config)

  @jax.jit
  def read(params):
    before = jnp.ones((len(facts.answer), 3), jnp.int32)
    logs = networks.read(params, facts.document, facts.question, before)[..., 1:]
    return (
      logs - jax.nn.logsumexp(logs, -1, keepdims=True),
      networks.embed_documents(params, facts.document),
      networks.embed_questions(params, facts.question),
    )

  paths = {"question": ("body",), "document": ("body",), "reader": ()}
  params = jax.tree.map(lambda x: x, state.params)
  for name, path in paths.items():
    part = functools.reduce(lambda tree, key: tree[key], path, params[name])
    part["embed"]["embedding"] = part["embed"]["embedding"].at[0].add(5.0)
  assert np.any(np.asarray(count_tokens(facts.document)) < 12)
  for a, b in zip(read(state.params), read(params)):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_an_evaluation_searches_the_whole_store_and_nothing_that_fills_it_up(small):
  config, experiment, feeds, _, state, _ = small
  rows = feeds.reference.draw(feeds.reference.arrays, 0)
  assert rows["document"].shape[0] == 32 and rows["mask"].sum() == 12
  reference = jax.jit(experiment.embed)(state, rows)
  batch = feeds.evaluate.draw(feeds.evaluate.arrays, 0)
  found = jax.jit(experiment.evaluate)(state, batch, reference)
  model, facts = experiment.model(state), retrieval.test_facts(config)
  np.testing.assert_array_equal(batch["question"][:12], facts.question)
  scores = np.asarray(jax.jit(model.scores)(facts.question, facts.document))
  best = np.argsort(-scores, 1)
  for k in (1, 2):
    assert found[f"recall_{k}"].total == sum(i in best[i, :k] for i in range(12)) and found["loss"].count == 12
  chance = np.exp(np.take_along_axis(scores, best[:, :2], 1))
  logs = jax.jit(answers.read_log_probability, static_argnums=0)(
    model.networks, model.params, facts.document[best[:, :2]], facts.question, facts.answer
  )
  likelihood = np.sum(chance / chance.sum(1, keepdims=True) * np.exp(np.sum(logs, -1)), 1)
  np.testing.assert_allclose(found["loss"].total, -np.log(likelihood).sum() / 3, rtol=1e-4)
  _, said = model.look_up(facts.question, facts.document)
  assert found["accuracy"].total == sum(np.array_equal(a, b) for a, b in zip(said, facts.answer))


class Knowing(answers.Networks):
  """Finds a document by person and relation, and copies the value of the likeliest: what a perfect run would do."""

  def _vector(self, tokens):
    """What comes last is meant: the other person is ahead."""
    found = []
    for names in (FIRST_NAMES, [[word] for word in LAST_NAMES], RELATIONS):
      number = np.full(len(FACT_WORDS), -1)
      for i, words in enumerate(names):
        number[[FACT_WORDS.index(word) for word in words]] = i
      numbers = jnp.asarray(number)[tokens]
      place = jnp.max(jnp.where(numbers >= 0, jnp.arange(tokens.shape[1]), -1), 1)
      found.append(jax.nn.one_hot(jnp.take_along_axis(numbers, place[:, None], 1)[:, 0], len(names)))
    return jnp.concatenate(found, -1)

  def embed_questions(self, params, tokens):
    return 50 * self._vector(tokens)

  def embed_documents(self, params, tokens):
    return self._vector(tokens)

  def answer(self, params, documents, questions, prior, by):
    best = jnp.take_along_axis(documents, jnp.argmax(prior, 1)[:, None, None], 1)[:, 0]
    ids = [FACT_WORDS.index(part[0]) for part in VALUES]
    pick = lambda first: jnp.max(jnp.where((best >= first) & (best < first + 12), best, 0), 1)
    return jnp.stack([pick(ids[0]), pick(ids[1]), jnp.ones(len(best), jnp.int32)], 1)


def test_answers_come_from_the_store(tmp_path):
  """Of one that finds and copies: other values in the store are other answers, and none without a document."""
  facts = jax.tree.map(lambda x: jnp.asarray(x)[:60], Facts(*drawn(12)))
  model = answers.Model(Knowing(None, None, None), {}, 3, "sequence")
  store = ["unlike bob smith jim jones has the trade dark river", "the job of bob smith is red lamp"]
  figures = answers.report_answers(model, facts, (store, ["what is the job of bob smith"]), tmp_path)
  assert figures["accuracy_oracle"] == 1 and figures["accuracy_closed_book"] == figures["kept"] == 0
  assert figures["accuracy_first"] == figures["accuracy_swapped"] == 1 > 0.9 > figures["bm25_recall_3"]
  np.testing.assert_allclose(figures["chance"], 1 / 144)
  told = (tmp_path / "answers.txt").read_text()
  assert told.count("? ") == 24 and " *" in told and (tmp_path / "retrieval.png").stat().st_size > 5000
  assert "= red lamp" in (tmp_path / "own_answers.txt").read_text()
  assert model(["what is the trade of james jones"], store) == ["dark river"]


def test_bm25_is_in_the_report_as_another_would_count():
  facts = jax.tree.map(jnp.asarray, Facts(*drawn(4)))
  scores = np.asarray(answers.score_words(facts))
  rows = [words(row) for row in facts.document]
  size = np.mean([len(row) for row in rows])
  for i, j in ((0, 0), (3, 5), (7, 7)):
    total = 0
    for word in words(facts.question[i]):
      n, tf = sum(word in row for row in rows), rows[j].count(word)
      rarity = max(0, np.log((len(rows) - n + 0.5) / (n + 0.5)))
      total += rarity * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * len(rows[j]) / size))
    np.testing.assert_allclose(scores[i, j], total, rtol=1e-4, atol=1e-6)
  ranked = np.array([[3.0, 1.0, 2.0], [5.0, 5.0, 0.0], [2.0, 1.0, 0.0]])
  assert [answers.share_found(ranked, k) for k in (1, 2, 3)] == [pytest.approx(x) for x in (1 / 3, 2 / 3, 1)]


def test_stores_of_ones_own_are_read_before_anything_is_trained(tmp_path):
  store, asked = tmp_path / "store.txt", tmp_path / "asked.jsonl"
  store.write_text("the job of bob smith is red lamp\n\nbob smith has the auto old bird\n")
  asked.write_text('{"text": "What is the job of bob smith?"}\n')
  found = answers.read_store(str(store), str(asked))
  assert [len(x) for x in found] == [2, 1]
  for text, message in (
    ("\n", r"store.txt: found no text"),
    ("the job of rob smith is red lamp", "text 1 has the word 'rob'.*did you mean"),
    ("the " * 13, "13 words, expected 1 to 12"),
  ):
    store.write_text(text)
    with pytest.raises(InputError, match=message):
      retrieval.make(retrieval.Config(**SMALL, documents=str(store), questions=str(asked)))
  model = answers.Model(Knowing(None, None, None), {}, 3, "sequence")
  with pytest.raises(InputError, match="documents: found no text"):
    model(["what is the job of bob smith"], [])


@pytest.mark.parametrize("flags, message", [
  (dict(k=13), "--k"), (dict(encoder_steps=8), "--encoder_steps"), (dict(people=1), "--people"),
  (dict(test_people=500), "--test_people"), (dict(asked=13), "--asked"), (dict(heads=3), "--heads"),
  (dict(documents="x.txt"), "--questions"), (dict(questions="x.txt"), "--documents"),
])  # fmt: skip
def test_bad_flags_are_one_sentence(flags, message):
  with pytest.raises(InputError, match=message):
    retrieval.Config(**{**SMALL, **flags})


def test_what_is_found_is_the_prior():
  found = Retrieved(jnp.array([[4, 2]]), jnp.array([[2.0, 1.0]]))
  np.testing.assert_allclose(jnp.exp(answers.log_prior(found))[0], [1 / (1 + np.e**-1), 1 / (1 + np.e)], rtol=1e-6)
