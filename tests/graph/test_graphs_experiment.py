"""The wiring of graph classification: which fold learns, chooses and is judged, and what is kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.graph import _graphs_report, graphs
from mlnotes import graph
from mlnotes.data import DataError, make_graph_set
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key


def small_set(seed=0, classes=2, per_class=9):
  """Paths, and rings of the same sizes, with noise as features."""
  rng = np.random.default_rng(seed)
  sizes, ends, label = [], [], []
  for kind in range(classes):
    for _ in range(per_class):
      count, first = int(rng.integers(3, 6)), sum(sizes)
      ends += [(first + i, first + i + 1) for i in range(count - 1)] + ([(first + count - 1, first)] if kind else [])
      sizes.append(count)
      label.append(kind)
  features = rng.standard_normal((sum(sizes), 2))
  names = tuple(map(str, range(classes)))
  return make_graph_set("x", "x", np.array(sizes), *np.array(ends).T, features, np.array(label), names)


def without_edges(data):
  none = np.zeros(0, np.int32)
  return data._replace(senders=none, receivers=none, edge_start=0 * data.edge_start)


DATA = small_set()


@pytest.fixture(autouse=True)
def small(monkeypatch):
  monkeypatch.setattr(graphs, "load_data", lambda config: DATA)


def configure(**flags):
  settings = dict(folds=3, batch_size=4, width=4, depth=1, rates=(1.0, 1e-9), dropouts=(0.0, 0.5), steps=20,
                  learning_rate=0.05, schedule="constant")  # fmt: skip
  return graphs.Config(**{**settings, **flags})


@functools.cache
def built(**flags):
  experiment = graphs.make(configure(**flags))
  return experiment, jax.jit(experiment.step)


def batch_of(label=None):
  batch = dict(graphs.make_feeds(configure()).train.arrays)
  return batch if label is None else {**batch, "label": jnp.asarray(label)}


def run(passes=1, seed=0, label=None, **flags):
  experiment, step = built(**flags)
  batch = batch_of(label)
  state = experiment.init(root_key(seed), batch)
  states = [state]
  for _ in range(passes):
    state, metrics = step(state, batch)
    states.append(state)
  return states, metrics


def flat(tree, candidate=None):
  return np.concatenate([np.ravel(x if candidate is None else x[candidate]) for x in jax.tree.leaves(tree)])


def fold_of():
  return np.asarray(batch_of()["fold"])


def test_folds_are_stratified_and_a_seed_is_its_fold():
  fold = fold_of()
  for number in range(3):
    assert np.bincount(DATA.label[fold == number]).tolist() == [3, 3]
  experiment, _ = built()
  assert [int(experiment.init(root_key(seed), batch_of()).fold) for seed in (0, 1, 2, 4)] == [0, 1, 2, 1]


def test_every_graph_of_the_other_folds_is_learned_from_and_no_other():
  fold, (_, before) = fold_of(), run(seed=1)[0]
  for i in range(DATA.num_graphs):
    label = DATA.label.copy()
    label[i] = 1 - label[i]
    _, after = run(seed=1, label=label)[0]
    assert (flat(after.params) != flat(before.params)).any() == (fold[i] == 0)


def test_a_pass_has_its_own_order_and_a_seed_too():
  (start, one, _), _ = run(2, rates=(1.0,), dropouts=(0.0,))
  again = built(rates=(1.0,), dropouts=(0.0,))[1](start._replace(step=start.step + 1), batch_of())[0]
  assert (flat(again.params) != flat(one.params)).any()


def judge_by_hand(state, fold, candidate):
  """(accuracy, loss) of the graphs of a fold, each alone, by the kept statistics."""
  network = graph.GraphNetwork(2, width=4, depth=1)
  variables = jax.tree.map(lambda x: x[candidate], {"params": state.params, "batch_stats": state.stats})
  own = np.flatnonzero(fold_of() == fold)
  batch = batch_of()
  taken = graph.take_graphs(batch, jnp.asarray(own), graph.Budget(int(DATA.num_nodes.sum()), len(DATA.senders)))
  logits, label = network.apply(variables, taken), DATA.label[own]
  nats = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(label))
  return float(np.mean(np.argmax(logits, -1) == label)), float(nats.mean())


def test_the_next_fold_chooses_and_the_own_one_is_judged():
  (_, state), metrics = run(seed=2)
  for i, name in enumerate(configure().candidate_names):
    accuracy, loss = judge_by_hand(state, 0, i)
    np.testing.assert_allclose([state.kept.valid_accuracy[i], state.kept.valid_loss[i]], [accuracy, loss], rtol=1e-4)
    np.testing.assert_allclose(metrics[f"valid_accuracy_{name}"], accuracy, rtol=1e-6)
    judged, _ = judge_by_hand(state, 2, i)
    np.testing.assert_allclose([state.kept.test_accuracy[i], state.last_accuracy[i]], judged, rtol=1e-6)
  assert metrics["left_out"] == 0


def test_batches_have_room_for_all_that_chooses_and_is_judged(monkeypatch):
  asked, choose = [], graph.choose_budget
  monkeypatch.setattr(graph, "choose_budget", lambda *given: asked.extend(given[3]) or choose(*given))
  graphs.make(configure())
  own = [np.flatnonzero(fold_of() == number) for number in range(3)]
  expected = [part.tolist() for one in own for part in (one[:4], one[4:])]
  assert [batch.tolist() for batch in asked] == expected


def test_the_best_pass_is_kept_and_the_peak_is_of_any():
  states, _ = run(12)
  better = lambda s, i: (float(s.kept.valid_accuracy[i]), -float(s.kept.valid_loss[i]))
  last = states[-1]
  for i in range(4):
    found = [judge_by_hand(state, 1, i) for state in states[1:]]
    best = max(range(12), key=lambda n: (found[n][0], -found[n][1]))
    assert int(last.kept.step[i]) == best + 1 and better(last, i)[0] == pytest.approx(found[best][0])
    np.testing.assert_array_equal(flat(last.kept.params, i), flat(states[best + 1].params, i))
    np.testing.assert_array_equal(flat(last.kept.stats, i), flat(states[best + 1].stats, i))
    peak = max(float(state.last_accuracy[i]) for state in states[1:])
    assert float(last.peak_accuracy[i]) == pytest.approx(peak)
  assert len({int(step) for step in last.kept.step}) > 1


def test_labels_of_the_fold_that_is_judged_choose_nothing():
  label = np.where(fold_of() == 0, 1 - DATA.label, DATA.label)
  one, other = run(6)[0][-1], run(6, label=label)[0][-1]
  np.testing.assert_array_equal(flat(one.kept.params), flat(other.kept.params))
  assert (one.kept.step == other.kept.step).all() and (one.kept.test_accuracy != other.kept.test_accuracy).any()
  assert graphs.choose_candidate(one.kept) == graphs.choose_candidate(other.kept)


def test_a_schedule_lasts_for_all_passes_and_slow_weights_are_what_is_kept(monkeypatch):
  """Of two passes the second still moves; with one order for all passes only dropout tells them apart."""
  key = graphs.stream_key
  fixed = lambda of, name, *step: key(of, name, *(step if name != "order" else (0,)))
  monkeypatch.setattr(graphs, "stream_key", fixed)
  flags = dict(rates=(1.0,), steps=2, schedule="linear", lookahead=100)
  (start, one, two), _ = run(2, **flags)
  again = built(**flags)[1](start._replace(step=start.step + 1), batch_of())[0]
  assert np.abs(flat(two.params) - flat(one.params)).max() > 1e-3
  for i, dropped in enumerate((False, True)):
    assert (flat(one.params, i) != flat(again.params, i)).any() == dropped
    np.testing.assert_array_equal(flat(two.kept.params, i), flat(start.params, i))


def test_a_batch_without_graphs_is_no_update():
  """Of four folds of 18 graphs some leave more to learn from than one batch, and all have as many batches."""
  flags = dict(rates=(1.0,), dropouts=(0.0,), folds=4, batch_size=9)
  size = np.bincount(graphs.assign_folds(DATA.label, 4))
  learned = 18 - size - np.roll(size, -1)
  experiment, step = built(**flags)
  batch = dict(graphs.make_feeds(configure(**flags)).train.arrays)
  for seed in (int(learned.argmin()), int(learned.argmax())):
    state, _ = step(experiment.init(root_key(seed), batch), batch)
    counts = [int(x) for x in jax.tree.leaves(state.opt_state) if x.dtype == jnp.int32]
    assert counts and set(counts) == {-(-int(learned[seed]) // 9)}
  assert learned.min() <= 9 < learned.max()


def test_rates_and_dropouts_are_of_their_networks():
  (start, state), _ = run()
  assert (flat(start.params, 0) != flat(start.params, 1)).any()
  moved = [np.abs(flat(state.params, i) - flat(start.params, i)).max() for i in range(4)]
  assert min(moved[:2]) > 1e-3 and max(moved[2:]) < 1e-6
  (_, other), _ = run(dropouts=(0.0, 0.9))
  assert (flat(state.params, 0) == flat(other.params, 0)).all() and (
    flat(state.params, 1) != flat(other.params, 1)
  ).any()


@pytest.mark.parametrize(
  "flags", [dict(aggregate="mean"), dict(aggregate="none"), dict(pooling="mean"), dict(learn_epsilon=True)]
)
def test_flags_reach_the_network(flags):
  experiment, _ = built(**flags)
  network = experiment.model(experiment.init(root_key(0), batch_of())).network
  for name, value in flags.items():
    assert getattr(network, name) == value


def test_precision_reaches_the_network():
  experiment = graphs.make(configure(precision="bfloat16"))
  assert experiment.model(built()[0].init(root_key(0), batch_of())).network.dtype == jnp.bfloat16


def test_the_model_is_the_network_that_is_kept():
  states, _ = run(4)
  state = states[-1]
  chosen = int(graphs.choose_candidate(state.kept))
  model = built()[0].model(state)
  np.testing.assert_array_equal(flat(model.variables["params"]), flat(state.kept.params, chosen))
  np.testing.assert_array_equal(flat(model.variables["batch_stats"]), flat(state.kept.stats, chosen))
  taken = graph.take_graphs(batch_of(), jnp.array([0, 5]), graph.Budget(10, 20))
  assert model(taken).shape == (2, 2)


def test_the_choice_is_by_accuracy_then_loss():
  kept = graphs.Kept(None, None, None, jnp.array([0.5, 0.9, 0.9, 0.8]), jnp.array([0.1, 0.4, 0.3, 0.0]), None)
  assert graphs.choose_candidate(kept) == 2


def test_an_evaluation_is_of_the_network_that_would_be_chosen():
  experiment, state = built()[0], run(1)[0][-1]
  kept = state.kept._replace(valid_accuracy=jnp.array([0.2, 0.3, 0.8, 0.1]), valid_loss=jnp.array([1.0, 2.0, 3.0, 4.0]))
  found = experiment.evaluate(state._replace(kept=kept), batch_of())
  assert [float(found[name].total) for name in ("valid_accuracy", "valid_loss")] == pytest.approx([0.8, 3.0])


def test_the_report_tells_chosen_last_and_peak_apart(tmp_path):
  state = run(3)[0][-1]._replace(
    last_accuracy=jnp.array([0.1, 0.2, 0.3, 0.4]), peak_accuracy=jnp.array([0.7, 0.9, 0.6, 0.5])
  )
  state = state._replace(kept=state.kept._replace(
    valid_accuracy=jnp.array([0.2, 0.2, 0.8, 0.2]), test_accuracy=jnp.array([0.0, 0.1, 0.25, 0.3])
  ))  # fmt: skip
  found = built()[0].report(state, tmp_path)
  names = ("test_accuracy", "test_accuracy_last", "test_accuracy_peak", "valid_accuracy_chosen")
  np.testing.assert_allclose([found[name] for name in names], [0.25, 0.3, 0.9, 0.8], rtol=1e-6)
  assert (tmp_path / "choice.png").stat().st_size > 5000


def test_floors_are_fitted_without_the_folds_that_choose_and_judge():
  fold = fold_of()
  found = _graphs_report.measure_floors(DATA, fold == 0, fold == 1)
  assert found["test_accuracy_majority"] == 0.5 and found["test_accuracy_wl3_svm"] >= 5 / 6
  relabelled = DATA._replace(label=np.where(fold == 2, DATA.label, 1 - DATA.label))
  other = _graphs_report.measure_floors(relabelled, fold == 0, fold == 1)
  for name in ("test_accuracy_two_counts", "test_accuracy_feature_sums"):
    assert other[name] == pytest.approx(1 - found[name])


def test_the_cost_of_a_floor_is_chosen_on_the_fold_to_choose_on(monkeypatch):
  from sklearn import svm

  class Told(svm.SVC):
    def score(self, x, y):
      return float(self.C == 0.1) if (y == 0).all() else self.C

  monkeypatch.setattr(svm, "SVC", Told)
  fold = fold_of()
  data = DATA._replace(label=np.where(fold == 2, DATA.label, np.where(fold == 1, 0, 1)))
  assert _graphs_report.measure_floors(data, fold == 0, fold == 1)["test_accuracy_wl3_svm"] == 0.1


@pytest.mark.parametrize(
  "flags, words",
  [
    (dict(folds=10), "--folds=10 is out of range: expected at most 9, the graphs of the smallest class"),
    (dict(folds=2), "--folds=2 is out of range: expected 3 or more"),
    (dict(batch_size=7), "--batch_size=7 is out of range: expected at most 6, the graphs to learn from"),
    (dict(dropouts=(0.5, 1.0)), "--dropouts"),
    (dict(rates=(0.0,)), "--rates"),
    (dict(clip_norm=1.0), "--clip_norm=1.0 is out of range: expected 0"),
    (dict(lookahead=2), "--lookahead=2 is out of range: expected 0, or --rates=1"),
    (dict(optimizer="lamb"), "--optimizer=lamb is out of range: expected one of"),
  ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(flags, words):
  with pytest.raises(InputError, match=words):
    graphs.load_graphs(configure(**flags))


def test_a_set_without_edges_is_a_batch_of_nodes_alone():
  arrays = {name: jnp.asarray(value) for name, value in without_edges(DATA).arrays.items()}
  taken = graph.take_graphs(arrays, jnp.array([1, 0]), graph.Budget(12, 3))
  sizes = DATA.num_nodes[[1, 0]]
  assert taken.edges.mask.tolist() == [0, 0, 0] and taken.kept.tolist() == [1, 1]
  assert np.bincount(taken.graph, minlength=3)[:2].tolist() == sizes.tolist()


@pytest.mark.parametrize(
  "data, words",
  [
    (small_set(classes=1), "all graphs are of one class, 0, expected 2 or more"),
    (without_edges(DATA), "no graph has an edge, expected some, or --aggregate=none"),
    (small_set(per_class=2), "class 0 has 2 graphs, expected 3 or more"),
  ],
)
def test_graphs_that_no_folds_fit_are_refused(monkeypatch, data, words):
  monkeypatch.setattr(graphs, "load_data", lambda config: data)
  with pytest.raises(DataError, match=words):
    graphs.load_graphs(configure())
