"""The wiring of vectors by walks: what is walked on, learned from, evaluated and reported, and which flags reach what.

Each test fails for one mistake that the experiment could make.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.graph import _embedding_report as reports, embedding
from mlnotes import graph
from mlnotes.data import DataError
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key, set_hparams, stream_key
from mlnotes.graph import floors

SMALL = dict(batch_size=6, length=5, window=2, dimensions=4, shared_negatives=8, negatives=3, steps=20)


class Run:
  """An experiment with its feeds, a first state and what its update gives, compiled once."""

  def __init__(self, **flags):
    self.config = embedding.Config(**SMALL | flags)
    self.world = embedding.make_world(self.config)
    self.feeds = embedding.make_feeds(self.config)
    self.experiment = embedding.make(self.config)
    self.batch, self.examples = self.feeds.train.arrays, self.feeds.evaluate.arrays
    self.state = jax.jit(self.experiment.init)(root_key(0), self.batch)
    self.step, self.evaluate = jax.jit(self.experiment.step), jax.jit(self.experiment.evaluate)

  @functools.cached_property
  def walks(self):
    """Those of the first update."""
    starts = embedding.choose_starts(self.state.key, self.state.step, 6, self.world.data.num_nodes)
    rows = self.batch["rows"]
    return graph.sample_walks(stream_key(self.state.key, "walks", 0), rows, starts, 5, **self.state.hparams)

  def with_vectors(self, vectors):
    return self.state._replace(params={**self.state.params, "centre": jnp.asarray(vectors, jnp.float32)})


@functools.cache
def run(**flags):
  return Run(**flags)


@pytest.fixture(autouse=True, scope="module")
def forget():
  yield
  run.cache_clear()


def codes(pairs):
  return {(int(a), int(b)) for a, b in pairs}


def write_graph(path, pairs, label, **more):
  senders, receivers = np.array(pairs, np.int32).reshape(-1, 2).T
  np.savez(path, senders=senders, receivers=receivers, labels=np.array(label), **more)
  return str(path)


def test_each_pass_starts_once_from_every_node_in_another_order_whatever_the_batch():
  for count, size in ((6, 34), (50, 9), (7, 7)):
    starts = jax.jit(embedding.choose_starts, static_argnums=(2, 3))
    found = np.concatenate([starts(root_key(1), jnp.int32(step), count, size) for step in range(2 * size)])
    passes = found.reshape(-1, size)
    assert len(passes) == 2 * count
    np.testing.assert_array_equal(np.sort(passes, axis=1), np.tile(np.arange(size), (len(passes), 1)))
    assert len({order.tobytes() for order in passes}) == len(passes)
  late = starts(root_key(1), jnp.int32(2**31 - 2), 7, 7)
  np.testing.assert_array_equal(np.sort(late), np.arange(7))


def test_an_update_learns_from_all_pairs_of_its_walks():
  """The first loss: contexts are zeros, so that a pair costs log 2, and each draw that is not its context as much."""
  of = run()
  state, metrics = of.step(of.state, of.batch)
  walks = of.walks
  counts = of.state.counts.at[walks.nodes.ravel()].add(1)
  negatives = graph.sample_negatives(stream_key(of.state.key, "negatives", 0), counts, (6, 8))
  total = pairs = 0
  for nodes, drawn in zip(np.asarray(walks.nodes), np.asarray(negatives)):
    for i in range(5):
      for j in range(max(0, i - 2), min(5, i + 3)):
        if i != j:
          pairs += 1
          total += np.log(2) * (1 + 3 / 8 * np.sum(drawn != nodes[j]))
  assert pairs == 6 * 14 and float(metrics["loss"]) == pytest.approx(total / pairs, rel=1e-5)
  # Frequencies go on from degrees.
  np.testing.assert_array_equal(of.state.counts, np.bincount(of.world.data.senders, minlength=34))
  np.testing.assert_array_equal(state.counts - of.state.counts, np.bincount(walks.nodes.ravel(), minlength=34))
  # Only what was met has moved: centres of walked nodes after the contexts have left 0.
  again, _ = of.step(state._replace(step=of.state.step), of.batch)
  moved = np.flatnonzero(np.any(again.params["centre"] != state.params["centre"], axis=1))
  assert set(moved) == set(np.asarray(walks.nodes).ravel().tolist())
  differ = np.any(state.params["context"] != 0, axis=1)
  assert set(np.flatnonzero(differ)) == set(np.concatenate([np.ravel(walks.nodes), np.ravel(negatives)]).tolist())


def test_walks_are_others_in_every_update():
  of = run()
  later, _ = of.step(of.state._replace(step=jnp.int32(1)), of.batch)
  starts = embedding.choose_starts(of.state.key, jnp.int32(1), 6, 34)
  visits = lambda step: np.bincount(
    np.ravel(graph.sample_walks(stream_key(of.state.key, "walks", step), of.batch["rows"], starts, 5).nodes),
    minlength=34,
  )
  np.testing.assert_array_equal(later.counts - of.state.counts, visits(1))
  assert np.any(visits(0) != visits(1))


def test_p_and_q_reach_the_walks_of_node2vec_and_deepwalk_has_none():
  of = run(method="node2vec", p=0.3, q=2.0)
  assert {name: float(value) for name, value in of.state.hparams.items()} == pytest.approx({"p": 0.3, "q": 2.0})
  counts = lambda **values: np.asarray(of.step(set_hparams(of.state, values), of.batch)[0].counts)
  base = counts()
  assert np.any(base != counts(p=50.0)) and np.any(base != counts(q=0.01))
  np.testing.assert_array_equal(base - of.state.counts, np.bincount(np.ravel(of.walks.nodes), minlength=34))
  assert run().state.hparams == {}


def test_the_tree_takes_the_place_of_negatives():
  """Its first loss is log 2 for each vertex of the way to a context."""
  of = run(objective="hierarchical")
  assert of.state.params["context"].shape == (33, 4) and set(of.batch) == {"rows", "tree"}
  degree = np.asarray(of.batch["rows"].degree)
  ways = np.sum(np.asarray(of.batch["tree"].side) != 0, axis=1)
  assert ways[degree.argmax()] < ways[degree.argmin()]
  _, metrics = of.step(of.state, of.batch)
  near = np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
  near = (near > 0) & (near <= 2)
  each = [np.sum(near * ways[nodes][None]) for nodes in np.asarray(of.walks.nodes)]
  assert float(metrics["loss"]) == pytest.approx(np.log(2) * np.sum(each) / (6 * near.sum()), rel=1e-5)


def test_held_out_edges_are_taken_out_of_the_graph_that_is_walked_on_and_compared_on():
  of = run(task="links", held_out=0.2, held_out_valid=0.1)
  links, data = of.world.links, of.world.data
  starts, neighbors = (np.asarray(x) for x in of.batch["rows"][:2])
  walked = codes(zip(np.repeat(np.arange(34), np.diff(starts)), neighbors))
  both = lambda pairs: codes(pairs) | codes(pairs[:, ::-1])
  held = both(links.test) | both(links.valid)
  assert walked == both(links.edges) and not walked & held
  assert walked | held == codes(zip(data.senders, data.receivers))
  scores = reports.score_floors(of.world, links.test)
  near = lambda node: {b for a, b in walked if a == node}
  np.testing.assert_array_equal(scores["common_neighbors"], [len(near(a) & near(b)) for a, b in links.test.tolist()])
  np.testing.assert_array_equal(scores["degree_product"], [len(near(a)) * len(near(b)) for a, b in links.test.tolist()])


def test_pairs_of_the_chosen_part_are_evaluated_the_edges_above_the_others():
  for eval_split, valid, part in (("valid", 0.1, "valid"), ("test", 0.1, "test"), ("valid", 0.0, "test")):
    of = run(task="links", held_out=0.2, held_out_valid=valid, eval_split=eval_split)
    assert of.feeds.split == part
    np.testing.assert_array_equal(of.examples["edges"], getattr(of.world.links, part))
    np.testing.assert_array_equal(of.examples["non_edges"], getattr(of.world.links, f"{part}_non_edges"))
  vectors = np.random.default_rng(0).normal(size=(34, 4))
  total, count = of.evaluate(of.with_vectors(vectors), of.examples)["auc_cosine"]
  unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
  cosine = lambda pairs: np.sum(unit[np.asarray(pairs)[:, 0]] * unit[np.asarray(pairs)[:, 1]], axis=1)
  edges, others = cosine(of.examples["edges"]), cosine(of.examples["non_edges"])
  assert float(total / count) == pytest.approx(np.mean(edges[:, None] > others[None]), rel=1e-5)
  assert count == len(edges)


def test_classes_are_evaluated_by_the_means_of_training_nodes_on_the_nodes_that_count():
  of = run(dataset="sbm", nodes=40, blocks=2, p_within=0.3, eval_split="test")
  label, train = (np.asarray(of.examples[name]) for name in ("label", "train"))
  np.testing.assert_array_equal(np.asarray(of.examples["mask"]) > 0, of.world.data.test)
  vectors = np.random.default_rng(1).normal(size=(40, 4))
  vectors[train, 0] = np.where(label[train] == 1, 30, -30)
  total, count = of.evaluate(of.with_vectors(vectors), of.examples)["accuracy_nearest_mean"]
  found = vectors[:, 0] > 0
  test = of.world.data.test
  # The means are almost (1, 0, 0, 0) and its opposite; all of length 1, so that long vectors count no more.
  assert count == test.sum() and float(total / count) == pytest.approx(np.mean(found[test] == label[test]), abs=0.11)
  other = {**of.examples, "label": jnp.where(jnp.asarray(train), of.examples["label"], 1 - of.examples["label"])}
  assert float(of.evaluate(of.with_vectors(vectors), other)["accuracy_nearest_mean"][0]) == count - total


def test_the_model_gives_a_nodes_vector_as_a_centre():
  of = run()
  found = of.experiment.model(of.state)(jnp.array([3, 1]))
  np.testing.assert_array_equal(found, np.asarray(of.state.params["centre"])[[3, 1]])


def test_the_classifier_sees_labels_of_training_nodes_alone():
  rng = np.random.default_rng(0)
  label, train = np.repeat([0, 1, 2], 10), np.arange(30) % 2 == 0
  vectors = rng.normal(size=(30, 5)) + 3 * np.eye(5)[label]
  found = reports.classify(vectors, label, train, 1.0)
  np.testing.assert_array_equal(found, reports.classify(vectors, np.where(train, label, 0), train, 1.0))
  assert np.mean(found[~train] == label[~train]) > 0.9


def test_label_spreading_is_the_solution_of_its_equation():
  of = run(dataset="sbm", nodes=40, blocks=2, p_within=0.3, eval_split="test")
  data = of.world.data
  adjacency = np.zeros((40, 40))
  adjacency[data.receivers, data.senders] = 1
  root = 1 / np.sqrt(np.maximum(adjacency.sum(1), 1))
  given = np.eye(2)[data.label] * data.train[:, None]
  solved = np.linalg.solve(np.eye(40) - 0.95 * root[:, None] * adjacency * root[None], given)
  edges = graph.make_edges(jnp.asarray(data.senders), jnp.asarray(data.receivers))
  found = floors.spread_labels(edges, data.label, data.train)
  sure = np.abs(solved[:, 0] - solved[:, 1]) > 1e-3
  np.testing.assert_array_equal(found[sure], solved.argmax(axis=1)[sure])
  assert sure.sum() > 30


def test_the_operator_is_chosen_on_validation_pairs():
  score = lambda valid, test: {"valid": np.repeat([valid, 0.5], 20), "test": np.array([test, 0.5])}
  scores = {"cosine": score(0.1, 0.9), "hadamard": score(0.1, 0.9), "l1": score(0.9, 0.1)}
  assert reports.choose_operator(scores) == "l1"
  few = lambda count: {name: {"valid": parts["valid"][20 - count : 20 + count]} for name, parts in scores.items()}
  assert reports.choose_operator(few(20)) == "l1" and reports.choose_operator(few(19)) == "hadamard"
  assert reports.choose_operator({name: {"test": parts["test"]} for name, parts in scores.items()}) == "hadamard"


def test_pair_classifiers_learn_from_the_edges_that_are_left():
  """Vectors that tell exactly which pairs are edges of the graph that is left, by one component of their product."""
  of = run(task="links", held_out=0.2, held_out_valid=0.1)
  rng = np.random.default_rng(0)
  side = rng.integers(0, 2, 34) * 2 - 1.0
  vectors = np.concatenate([side[:, None], rng.normal(size=(34, 2)) / 10], axis=1)
  pairs = np.stack(np.triu_indices(34, 1), axis=1)
  same = side[pairs[:, 0]] == side[pairs[:, 1]]
  part = lambda pairs, count: pairs[rng.permutation(len(pairs))[:count]].astype(np.int32)
  counts = [len(rows) for rows in of.world.links]
  links = graph.LinkSplit(*(part(pairs[same if i % 2 == 0 else ~same], count) for i, count in enumerate(counts)))
  scores = reports.score_links(vectors, links, 1.0)
  assert reports.rank(scores["hadamard"]["test"]) == 1 and reports.rank(scores["l1"]["valid"]) == 1
  assert reports.rank(scores["average"]["test"]) < 0.9


def test_pair_classifiers_have_their_penalty_and_no_pair_that_is_held_out(monkeypatch):
  from sklearn import linear_model

  seen = []

  class Recorded(linear_model.LogisticRegression):
    def fit(self, x, y):
      seen.append((self.C, len(x), int(y.sum())))
      return super().fit(x, y)

  monkeypatch.setattr(linear_model, "LogisticRegression", Recorded)
  for name in ("draw_curves", "draw_maps"):
    monkeypatch.setattr(reports, name, lambda *given: None)
  of = run(task="links", held_out=0.2, held_out_valid=0.1)
  vectors = np.random.default_rng(0).normal(size=(34, 4))
  reports.report_links(vectors, of.world, dataclasses.replace(of.config, inverse_l2=7.0), Path())
  count = len(of.world.links.edges)
  assert seen == [(7.0, 2 * count, count)] * len(graph.PAIR_OPERATORS)


def test_the_area_is_of_the_operator_that_valid_pairs_chose(monkeypatch, capsys):
  for name in ("draw_curves", "draw_maps"):
    monkeypatch.setattr(reports, name, lambda *given: None)
  of = run(task="links", held_out=0.2, held_out_valid=0.1)
  size = len(of.world.links.test)
  part = lambda right, size: np.repeat([1.0, 0.0] if right else [0.0, 1.0], size)
  scores = {name: {"valid": part(name == "l1", 20), "test": part(name != "l1", size)}
            for name in ("cosine", *graph.PAIR_OPERATORS)}  # fmt: skip
  monkeypatch.setattr(reports, "score_links", lambda *given: scores)
  figures = reports.report_links(np.random.default_rng(0).normal(size=(34, 4)), of.world, of.config, Path())
  assert (figures["auc"], figures["auc_l1"], figures["auc_l2"], figures["auc_cosine_test"]) == (0, 0, 1, 1)


def test_figures_of_classes_are_of_the_split_and_learn_from_its_training_nodes(monkeypatch, capsys):
  world = run(dataset="sbm", nodes=40, blocks=2, p_within=0.3, eval_split="test").world
  place = np.arange(40)
  label = (place % 4 > 0).astype(np.int32)  # mostly 1
  train, valid = np.isin(place, [0, 4, 8, 1]), (place > 8) & (place < 20)  # to learn from mostly 0
  data = world.data._replace(label=label, train=train, valid=valid, test=place >= 20)
  seen, answer = [], np.random.default_rng(0).integers(0, 2, 40)
  monkeypatch.setattr(reports, "classify", lambda vectors, label, train, c: seen.append((train, c)) or answer)
  monkeypatch.setattr(floors, "spread_labels", lambda edges, label, train: seen.append((train, 7.0)) or 1 - answer)
  for name in ("draw_clusters", "draw_maps"):
    monkeypatch.setattr(reports, name, lambda *given: None)
  config = embedding.Config(**SMALL, inverse_l2=7.0)
  vectors = np.random.default_rng(1).normal(size=(40, 4))
  found = reports.report_classes(vectors, world._replace(data=data), config, Path())
  for mask, c in seen:
    np.testing.assert_array_equal(mask, train)
    assert c == 7
  right = answer == label
  assert len(seen) == 2 and found["accuracy_majority"] == 0.25
  assert found["accuracy_logistic"] == right[20:].mean() == 1 - found["accuracy_label_spreading"]
  assert found["accuracy_logistic_valid"] == right[valid].mean() != found["accuracy_logistic"]


def test_other_seeds_hold_out_other_edges():
  tests = [make_links(seed).test for seed in (0, 0, 1)]
  np.testing.assert_array_equal(tests[0], tests[1])
  assert codes(tests[0]) != codes(tests[2])


def make_links(seed):
  return embedding.make_world(embedding.Config(**SMALL, task="links", held_out=0.2, split_seed=seed)).links


def test_slow_weights_of_lookahead_are_the_vectors():
  config = embedding.Config(**SMALL, lookahead=3)
  experiment, batch = embedding.make(config), run().batch
  state = jax.jit(experiment.init)(root_key(0), batch)
  moved = state._replace(params=jax.tree.map(lambda x: x + 1, state.params))
  np.testing.assert_array_equal(experiment.model(moved)(jnp.arange(34)), state.params["centre"])


def test_products_are_of_the_precision_that_is_asked_for(monkeypatch):
  seen, losses = [], graph.shared_negatives_losses
  monkeypatch.setattr(
    graph, "shared_negatives_losses", lambda centre, *given: seen.append(centre.dtype) or losses(centre, *given)
  )
  of = run()
  for precision in ("float32", "bfloat16"):
    loss = embedding.make_mean_loss(dataclasses.replace(of.config, precision=precision))
    jax.eval_shape(loss, of.state.params, of.walks, jnp.zeros((6, 8), jnp.int32), of.batch)
  assert seen == [jnp.float32, jnp.bfloat16]


def test_walks_of_each_node_set_the_updates():
  config = embedding.Config(**SMALL | dict(walks_per_node=3))
  assert embedding.count_steps(config) == 17 and "steps" in config.idle_flags()
  assert embedding.count_steps(embedding.Config(**SMALL)) == 20
  with pytest.raises(InputError, match="--steps=20 is out of range: expected 17, as --walks_per_node has it"):
    embedding.make(config)
  embedding.make(dataclasses.replace(config, steps=17))


def test_a_lonely_node_is_walked_from_and_changes_nothing(tmp_path):
  label = [0, 1, 0, 1, 0, 1, 0]
  path = write_graph(tmp_path / "g.npz", [(0, 1), (1, 2), (2, 3), (3, 0), (4, 5)], label)
  of = Run(dataset=path, batch_size=7, negatives=2)
  state, metrics = of.step(of.state, of.batch)
  state, metrics = of.step(state, of.batch)
  assert float(metrics["loss"]) > 0 and state.counts[6] == 2
  np.testing.assert_array_equal(state.params["centre"][6], of.state.params["centre"][6])


@pytest.mark.parametrize(
  "flags, sentence",
  [
    (dict(p=0), "--p=0 is out of range: expected a number above 0"),
    (dict(q=-1.0), "--q=-1.0 is out of range"),
    (dict(length=1), "--length=1 is out of range: expected 2 or more nodes"),
    (dict(window=0), "--window=0 is out of range"),
    (dict(held_out=1.0), r"--held_out=1.0 is out of range: expected a number in \(0, 1\)"),
    (dict(task="links", undirected=False), "--undirected=False is out of range: expected true with --task=links"),
    (dict(walks_per_node=-1), "--walks_per_node=-1 is out of range"),
  ],
)
def test_bad_flags_are_refused_in_a_sentence(flags, sentence):
  with pytest.raises(InputError, match=sentence):
    embedding.Config(**SMALL | flags)


def test_graphs_that_cannot_serve_are_refused_in_a_sentence(tmp_path):
  of = lambda path, **flags: embedding.make_world(embedding.Config(**SMALL | dict(dataset=path) | flags))
  train = np.array([0, 1])
  masks = dict(train_index=train, test_index=np.array([2, 3]))
  path = write_graph(tmp_path / "a.npz", np.zeros((0, 2)), [0, 1, 0, 1], **masks)
  with pytest.raises(DataError, match="the graph has no edges, expected some to walk along"):
    of(path)
  path = write_graph(tmp_path / "b.npz", [(0, 1), (2, 3)], [0, 0, 1, 1], **masks)
  with pytest.raises(DataError, match="the nodes to learn from are of 1 class, expected 2 or more, or --task=links"):
    of(path)
  with pytest.raises(InputError, match=r"--held_out=0\.9 --held_out_valid=0\.05: 2 of 2 edges are to be held out"):
    of(path, task="links", held_out=0.9)
  path = write_graph(tmp_path / "c.npz", [(0, 1), (2, 9)], [0, 1, 1, 1], **masks)
  with pytest.raises(DataError, match="receivers"):
    of(path)


def test_flags_without_effect_say_so():
  idle = lambda **flags: set(embedding.Config(**SMALL | flags).idle_flags())
  assert {"p", "q", "held_out", "held_out_valid", "split_seed"} <= idle()
  assert not {"p", "q"} & idle(method="node2vec")
  assert {"negatives", "shared_negatives"} <= idle(objective="hierarchical")
  assert "eval_split" in idle(task="links", held_out_valid=0.0) and "held_out" not in idle(task="links")
  assert "inverse_l2" in idle(report_seeds=0) and "inverse_l2" not in idle()


def test_collapse_is_said_of_vectors_of_one_direction():
  rng = np.random.default_rng(0)
  assert reports.describe_collapse(rng.normal(size=(30, 4))) == ""
  assert reports.describe_collapse(np.ones((30, 4)) * rng.uniform(1, 2, (30, 1))).startswith("collapsed: all vectors")
  assert "not finite" in reports.describe_collapse(np.full((3, 2), np.nan))


def test_clusters_take_the_colours_of_the_classes_they_share():
  np.testing.assert_array_equal(
    reports.match_colours(np.array([1, 1, 0, 0, 0]), np.array([0, 0, 1, 1, 0])), [0, 0, 1, 1, 1]
  )


def test_reports_leave_their_figures_and_pictures(tmp_path, capsys):
  of = run()
  vectors = np.random.default_rng(0).normal(size=(34, 4)) / 4 + np.eye(4)[of.world.data.label]
  found = reports.report_classes(vectors, of.world, of.config, tmp_path)
  assert found["accuracy_majority"] == pytest.approx(11 / 24) and found["accuracy_label_spreading"] == 1
  assert 0.9 < found["accuracy_logistic"] <= 1 and found["clusters_rand"] > 0.8
  of = run(task="links", held_out=0.2, held_out_valid=0.1)
  found = reports.report_links(vectors[:, ::-1], of.world, of.config, tmp_path)
  names = (*reports.FLOORS, *graph.PAIR_OPERATORS, "cosine_test")
  assert set(found) == {"auc", *(f"auc_{name}" for name in names)} and all(0 <= x <= 1 for x in found.values())
  assert len(found) == 10
  for name in ("graph.png", "vectors.png", "roc.png"):
    assert (tmp_path / name).stat().st_size > 1000
  capsys.readouterr()
  bad = reports.report_links(vectors * np.nan, of.world, of.config, tmp_path)
  assert np.isnan(bad["auc"]) and "not finite" in capsys.readouterr().err
