"""The wiring of node classification: which nodes, edges and parameters each number is of."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.graph import _node_views, _nodes_report, nodes
from experiments.graph._drawing import draw_graph
from mlnotes import graph
from mlnotes.data.graph import make_graph
from mlnotes.data.image import DataError
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import set_hparams, stream_key
from mlnotes.graph import attention, floors

N, D, K = 30, 6, 3
RNG = np.random.default_rng(0)
LABEL = np.arange(N) % K
ENDS = np.array([(a, b) for a in range(N) for b in range(a) if RNG.uniform() < (0.4 if LABEL[a] == LABEL[b] else 0.03)])
FEATURES = np.abs(RNG.normal(size=(N, D))) * (RNG.uniform(size=(N, D)) < 0.4) + np.eye(D)[LABEL] * 0.5
ORDER = RNG.permutation(N)
MASKS = {name: np.isin(np.arange(N), ORDER[part]) for name, part in
         (("train", slice(0, 9)), ("valid", slice(9, 15)), ("test", slice(15, 28)))}  # fmt: skip


def make_data(label=LABEL, **masks):
  both = np.concatenate([ENDS, ENDS[:, ::-1]]).T
  arrays = {"senders": both[0], "receivers": both[1], "features": FEATURES, "label": label, **MASKS, **masks}
  return make_graph("--dataset=small", "small", arrays, ("a", "b", "c"))


@pytest.fixture(autouse=True)
def small(monkeypatch):
  monkeypatch.setattr(nodes, "load_data", lambda config: make_data())


LEARNS = dict(hidden=8, optimizer="adam", learning_rate=0.05, momentum=0.9)


def configure(**flags):
  settings = dict(hidden=4, optimizer="sgd", momentum=0.0, learning_rate=0.5, steps=20, dropout=0.0, l2=0.0)
  return nodes.Config.tuned(**{**settings, **flags})


@functools.cache
def built(**flags):
  """(config, step, evaluate, the batches of both, first state)."""
  config = configure(**flags)
  experiment, feeds = nodes.make(config), nodes.make_feeds(config)
  batch = feeds.train.draw(feeds.train.arrays, None, 0)
  state = jax.jit(experiment.init)(jax.random.key(7), batch)
  return config, jax.jit(experiment.step), jax.jit(experiment.evaluate), batch, feeds.evaluate.arrays, state


def dense_logits(params, edges_mask=None):
  """Of the two-layer GCN, in NumPy, with the edges of `edges_mask`."""
  x = FEATURES / FEATURES.sum(1, keepdims=True)
  matrix = np.eye(N)
  for a, b in ENDS if edges_mask is None else ENDS[edges_mask]:
    matrix[a, b] = matrix[b, a] = 1
  root = np.diag(matrix.sum(1) ** -0.5)
  hat = root @ matrix @ root
  kernels = [np.asarray(params[f"layer_{i}"]["linear"]["kernel"]) for i in (0, 1)]
  return hat @ np.maximum(hat @ x @ kernels[0], 0) @ kernels[1]


def entropy(logits, mask, label=LABEL):
  log = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  return -log[np.arange(N), label][mask].mean()


def mean(value):
  return float(value.total) / float(value.count)


def test_first_loss_is_of_the_training_nodes_on_the_whole_graph():
  _, step, _, batch, _, state = built()
  _, metrics = step(state, batch)
  assert float(metrics["loss"]) == pytest.approx(entropy(dense_logits(state.params), MASKS["train"]), rel=1e-4)


def test_validation_is_of_the_parameters_after_the_update():
  _, step, _, batch, _, state = built()
  after, metrics = step(state, batch)
  logits = dense_logits(after.params)
  assert float(metrics["valid_loss"]) == pytest.approx(entropy(logits, MASKS["valid"]), rel=1e-4)
  assert float(metrics["valid_accuracy"]) == pytest.approx((logits.argmax(1) == LABEL)[MASKS["valid"]].mean())
  assert int(after.best["step"]) == 1


def test_gradient_has_the_penalty_of_the_first_layer_alone():
  _, plain, _, batch, _, state = built()
  _, punished, _, _, _, same = built(l2=0.1)
  (a, _), (b, _) = plain(state, batch), punished(same, batch)
  moved = lambda i: np.asarray(a.params[f"layer_{i}"]["linear"]["kernel"] - b.params[f"layer_{i}"]["linear"]["kernel"])
  np.testing.assert_allclose(moved(0), 0.5 * 0.1 * np.asarray(state.params["layer_0"]["linear"]["kernel"]), atol=1e-5)
  np.testing.assert_allclose(moved(1), 0, atol=1e-6)
  inner = nodes.count_penalty(
    {"input": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "layer_0": {"kernel": jnp.ones((3, 1))}}, "inner"
  )
  assert float(inner) == pytest.approx(0.05 * 2 + 1.5)
  both = nodes.count_penalty(state.params, "all")
  expected = sum(0.5 * float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(state.params))
  assert float(both) == pytest.approx(expected, rel=1e-5)


def test_evaluation_has_each_split_and_both_parameters():
  _, _, evaluate, _, batch, state = built()
  other = {**state.params, "layer_1": jax.tree.map(lambda x: jnp.roll(x, 1, 1), state.params["layer_1"])}
  found = evaluate(state._replace(best_params=other), batch)
  last, best = dense_logits(state.params), dense_logits(other)
  right = lambda logits, name: (logits.argmax(1) == LABEL)[MASKS[name]].mean()
  assert mean(found["loss"]) == pytest.approx(entropy(last, MASKS["valid"]), rel=1e-4)
  assert mean(found["accuracy"]) == pytest.approx(right(last, "valid"))
  assert mean(found["test_accuracy_last"]) == pytest.approx(right(last, "test"))
  assert mean(found["test_accuracy_best_valid"]) == pytest.approx(right(best, "test"))
  assert right(last, "test") != right(best, "test")


def test_slow_weights_of_lookahead_choose_and_are_judged():
  """They move with every third update; until then all figures are those of the first parameters."""
  _, step, evaluate, batch, whole, state = built(lookahead=3)
  after, metrics = step(state, batch)
  assert np.any(after.params["layer_0"]["linear"]["kernel"] != state.params["layer_0"]["linear"]["kernel"])
  logits = dense_logits(state.params)
  assert float(metrics["valid_loss"]) == pytest.approx(entropy(logits, MASKS["valid"]), rel=1e-4)
  jax.tree.map(np.testing.assert_array_equal, after.best_params, state.params)
  assert mean(evaluate(after, whole)["loss"]) == pytest.approx(entropy(logits, MASKS["valid"]), rel=1e-4)


def run_steps(step, state, batch, count=12):
  for _ in range(count):
    state, _ = step(state, batch)
  return state


def test_test_labels_choose_nothing(monkeypatch):
  """Permuted, they change neither the epoch that is kept nor any parameter."""
  _, step, _, batch, _, state = built()
  plain = run_steps(step, state, batch)
  label = LABEL.copy()
  label[MASKS["test"]] = np.random.default_rng(5).permutation(label[MASKS["test"]])
  monkeypatch.setattr(nodes, "load_data", lambda config: make_data(label))
  config = configure()
  other = nodes.make_feeds(config).train.arrays
  assert np.any(other["label"] != batch["label"])
  permuted = run_steps(step, state, other)
  assert int(plain.best["step"]) == int(permuted.best["step"])
  jax.tree.map(np.testing.assert_array_equal, plain.best_params, permuted.best_params)


@pytest.mark.parametrize(("by", "accuracy", "loss", "kept"), [
  ("accuracy", 0.6, 9.0, True), ("accuracy", 0.5, 0.9, True), ("accuracy", 0.5, 1.1, False),
  ("accuracy", 0.4, 0.1, False),
  ("loss", 0.1, 0.9, True), ("loss", 0.6, 1.0, True), ("loss", 0.5, 1.0, False), ("loss", 0.9, 1.1, False),
])  # fmt: skip
def test_the_best_epoch_is_named_by_the_rule(by, accuracy, loss, kept):
  _, _, _, _, _, state = built()
  state = state._replace(best={"step": jnp.int32(3), "accuracy": jnp.float32(0.5), "loss": jnp.float32(1.0)})
  new = jax.tree.map(lambda x: x + 1, state.params)
  found = nodes.keep_better(state, new, jnp.int32(4), jnp.float32(accuracy), jnp.float32(loss), by)
  assert int(found.best["step"]) == (4 if kept else 3)
  jax.tree.map(np.testing.assert_array_equal, found.best_params, new if kept else state.best_params)


def test_dropout_is_of_updates_alone_and_new_in_each():
  _, step, _, batch, _, state = built(dropout=0.5)
  losses = [float(step(state._replace(step=jnp.int32(i)), batch)[1]["loss"]) for i in range(3)]
  assert len(set(losses)) == 3
  _, _, evaluate, _, whole, _ = built(dropout=0.5)
  expected = entropy(dense_logits(state.params), MASKS["valid"])
  assert mean(evaluate(state, whole)["loss"]) == pytest.approx(expected, rel=1e-4)


def test_numbers_of_the_state_are_those_of_an_update():
  _, step, _, batch, _, state = built(dropout=0.5)
  _, metrics = step(set_hparams(state, {"dropout": 0.0}), batch)
  assert float(metrics["loss"]) == pytest.approx(entropy(dense_logits(state.params), MASKS["train"]), rel=1e-4)
  _, step, _, batch, _, same = built(l2=0.1)
  a, b = (step(set_hparams(same, {"l2": l2}), batch)[0].params["layer_0"]["linear"]["kernel"] for l2 in (0.0, 0.2))
  np.testing.assert_allclose(a - b, 0.5 * 0.2 * same.params["layer_0"]["linear"]["kernel"], atol=1e-5)


def test_the_model_has_the_best_parameters():
  config, _, _, _, whole, state = built()
  other = {**state.params, "layer_1": jax.tree.map(lambda x: jnp.roll(x, 1, 1), state.params["layer_1"])}
  found = nodes.make(config).model(state._replace(best_params=other))(_node_views.view_whole(config, whole))
  np.testing.assert_allclose(found, dense_logits(other), atol=1e-5)


def sent_by(senders, mask):
  return set(np.asarray(senders)[np.asarray(mask) > 0].ravel().tolist())


def test_no_sample_of_an_inductive_network_meets_a_test_node():
  tested = set(np.flatnonzero(MASKS["test"]).tolist())
  arrays = _node_views.make_arrays(configure(layer="sage_mean", sampling="neighbors", inductive=True), make_data())
  assert not tested & set(np.asarray(arrays["table"].neighbors).tolist())
  arrays = _node_views.make_arrays(configure(sampling="clusters", clusters=2, inductive=True), make_data())
  parts = arrays["parts"]
  assert not tested & sent_by(parts.senders, parts.mask)
  assert sent_by(parts.senders, parts.mask) == set(ENDS[~MASKS["test"][ENDS].any(1)].ravel().tolist())


def test_an_update_of_a_sample_draws_training_nodes_and_one_of_clusters_as_many_as_are_asked_for():
  config, _, _, batch, _, state = built(layer="sage_mean", hidden=4, sampling="neighbors", fanout=(2, 2), batch_nodes=4)
  drawn = set()
  for i in range(4):
    seen = _node_views.view_learning(config, batch, state.split, 9, jax.random.key(i), 0.0)
    nodes_ = np.asarray(seen.view.hops[-1].nodes)
    assert len(set(nodes_.tolist())) == 4 and MASKS["train"][nodes_].all()
    np.testing.assert_array_equal(seen.label, LABEL[nodes_])
    drawn |= set(nodes_.tolist())
  assert len(drawn) > 4
  config, _, _, batch, _, state = built(sampling="clusters", clusters=5, clusters_each=2)
  seen = _node_views.view_learning(config, batch, state.split, 9, jax.random.key(0), 0.0)
  assert len(seen.label) == 2 * batch["parts"].nodes.shape[1]


def test_features_are_prepared_as_the_flags_say():
  data, of = make_data(), lambda **flags: _node_views.prepare_features(configure(**flags), make_data(), edges)
  edges = graph.make_edges(jnp.asarray(data.senders), jnp.asarray(data.receivers))
  np.testing.assert_array_equal(of(normalize_features=False), data.features)
  x = _node_views.normalize_rows(data.features)
  matrix = np.zeros((N, N))
  matrix[data.receivers, data.senders] = 1
  looped = matrix + np.eye(N)
  hat = looped / np.sqrt(np.outer(looped.sum(1), looped.sum(1)))
  np.testing.assert_allclose(of(layer="sgc", hops=3), hat @ hat @ hat @ x, atol=1e-6)
  walk = matrix / matrix.sum(1, keepdims=True)
  np.testing.assert_allclose(of(layer="dcnn", hops=2), np.stack([x, walk @ x, walk @ walk @ x], 1), atol=1e-6)


def test_flags_shape_the_layers():
  def shapes(**flags):
    config = configure(**flags)
    view = _node_views.view_whole(config, _node_views.make_arrays(config, make_data()))
    found = jax.eval_shape(nodes.make_network(config, K).init, jax.random.key(0), view)["params"]
    return jax.tree.map(lambda x: x.shape, found)

  gat = shapes(layer="gat", hidden=5, heads=2, last_heads=7)
  assert [gat[f"layer_{i}"]["attention_sender"] for i in (0, 1)] == [(2, 5), (7, K)]
  assert shapes(layer="chebyshev", terms=4)["layer_1"]["linear"]["kernel"] == (4, 4 * K)
  assert shapes(layer="dgc", terms=4)["layer_0"]["forward"]["kernel"] == (D, 4 * 4)
  assert shapes(layer="monet", terms=5)["layer_0"]["mean"] == (5, 2)
  assert set(shapes(layers=3)) == {"layer_0", "layer_1", "layer_2"}


def test_a_pagerank_that_always_goes_back_sees_no_graph():
  config = configure(layer="appnp", teleport=1.0)
  arrays = _node_views.make_arrays(config, make_data())
  network, view = nodes.make_network(config, K), _node_views.view_whole(config, arrays)
  params = jax.jit(network.init)(jax.random.key(0), view)["params"]
  of = lambda h, name: h @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"])
  x = _node_views.normalize_rows(make_data().features)
  expected = of(np.maximum(of(x, "layer_0"), 0), "layer_1")
  np.testing.assert_allclose(jax.jit(network.apply)({"params": params}, view), expected, atol=1e-5)


def test_attention_is_followed_by_elu_and_its_weights_are_dropped(monkeypatch):
  config, _, _, _, whole, state = built(layer="gat", hidden=4, heads=2)
  network, view = nodes.make_network(config, K), _node_views.view_whole(config, whole)
  logits, sown = network.apply({"params": state.params}, view, mutable=["intermediates"])
  last = graph.GraphAttention(K, 1, average=True, loops=False)
  h = jax.nn.elu(sown["intermediates"]["hidden"][0])
  np.testing.assert_allclose(logits, last.apply({"params": state.params["layer_1"]}, view.hops[1].edges, h), atol=1e-5)
  monkeypatch.setattr(attention, "draw_kept", lambda key, shape, rate: jnp.zeros(shape))
  dropped = network.apply({"params": state.params}, view, 0.1, rngs={"dropout": jax.random.key(0)})
  np.testing.assert_array_equal(dropped, 0)


def test_an_lstm_reads_neighbours_in_another_order_in_every_update():
  _, step, _, batch, _, state = built(layer="sage_lstm", **LEARNS)
  losses = {float(step(state._replace(step=jnp.int32(i)), batch)[1]["loss"]) for i in range(3)}
  assert len(losses) == 3


def test_floors_choose_on_the_validation_nodes(monkeypatch):
  masks = []
  monkeypatch.setattr(floors, "choose", lambda options, label, valid: masks.append(valid) or options[0]())
  code = np.asarray(built()[5].split.code)
  _nodes_report.measure_floors(make_data(), code, configure())
  assert len(masks) == 3
  for mask in masks:
    np.testing.assert_array_equal(mask, MASKS["valid"])


@pytest.mark.parametrize(("floor", "said"), [(1.0, "below a floor"), (0.0, None)])
def test_a_network_below_a_floor_is_told(floor, said, monkeypatch, tmp_path):
  config, _, _, _, _, state = built()
  sentences, figures = [], {"test_accuracy_majority": 0.0, "test_accuracy_other": floor}
  monkeypatch.setattr(_nodes_report, "warn", sentences.append)
  monkeypatch.setattr(_nodes_report, "floors_once", lambda *given: figures)
  for name in ("_draw_map", "_draw_confusion", "_draw_nodes"):
    monkeypatch.setattr(_nodes_report, name, lambda *given: None)
  assert nodes.make(config).report(state, tmp_path) == figures
  assert [said in sentence for sentence in sentences] == ([True] if said else [])


def test_test_nodes_are_not_there_while_an_inductive_network_learns():
  _, step, evaluate, batch, whole, state = built(inductive=True)
  known = ~MASKS["test"][ENDS].any(1)
  after, metrics = step(state, batch)
  assert float(metrics["loss"]) == pytest.approx(entropy(dense_logits(state.params, known), MASKS["train"]), rel=1e-4)
  valid = entropy(dense_logits(after.params, known), MASKS["valid"])
  assert float(metrics["valid_loss"]) == pytest.approx(valid, rel=1e-4)
  met = entropy(dense_logits(state.params), MASKS["valid"])
  assert mean(evaluate(state, whole)["loss"]) == pytest.approx(met, rel=1e-4)


def test_dropped_edges_are_renormalised_and_come_back_in_evaluations():
  _, step, evaluate, batch, whole, state = built(drop_edge=0.5)
  key = stream_key(state.key, "view", 0)
  kept = graph.drop_edges(key, batch["edges"], 0.5, batch["pair"])
  real = {tuple(sorted(ends)) for ends in zip(*(np.asarray(e)[np.asarray(kept.mask) > 0].tolist() for e in kept[:2]))}
  mask = np.array([tuple(sorted(ends)) in real for ends in ENDS.tolist()])
  assert 0.2 < mask.mean() < 0.8
  _, metrics = step(state, batch)
  assert float(metrics["loss"]) == pytest.approx(entropy(dense_logits(state.params, mask), MASKS["train"]), rel=1e-4)
  assert mean(evaluate(state, whole)["loss"]) == pytest.approx(
    entropy(dense_logits(state.params), MASKS["valid"]), rel=1e-4
  )


def test_random_splits_differ_by_seed_and_count_per_class():
  config, step, evaluate, batch, whole, state = built(split="random", per_class=3, valid_per_class=2)
  code = np.asarray(state.split.code)
  for number, count in ((0, 3), (1, 2), (2, 5)):
    np.testing.assert_array_equal(np.bincount(LABEL[code == number]), count)
  other = nodes.make(config).init(jax.random.key(8), batch)
  assert np.any(code != np.asarray(other.split.code))
  _, metrics = step(state, batch)
  logits = dense_logits(state.params)
  assert float(metrics["loss"]) == pytest.approx(entropy(logits, code == 0), rel=1e-4)
  found = evaluate(state, whole)
  assert mean(found["loss"]) == pytest.approx(entropy(logits, code == 1), rel=1e-4)
  assert mean(found["test_accuracy_last"]) == pytest.approx((logits.argmax(1) == LABEL)[code == 2].mean())


def test_one_cluster_is_the_whole_graph():
  _, step, _, batch, _, state = built(sampling="clusters", clusters=1, clusters_each=1)
  _, metrics = step(state, batch)
  assert float(metrics["loss"]) == pytest.approx(entropy(dense_logits(state.params), MASKS["train"]), rel=1e-4)
  _, some, _, batch, _, state = built(sampling="clusters", clusters=5, clusters_each=2)
  losses = {float(some(state._replace(step=jnp.int32(i)), batch)[1]["loss"]) for i in range(6)}
  assert len(losses) > 2


def test_a_sample_of_all_neighbours_is_the_whole_graph():
  flags = dict(layer="sage_mean", hidden=4)
  _, full, _, batch, _, state = built(**flags)
  most = (N, N)
  _, sampled, _, drawn, _, _ = built(**flags, sampling="neighbors", fanout=most, replace=False, batch_nodes=9)
  a, b = full(state, batch)[1], sampled(state, drawn)[1]
  assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-4)
  _, some, _, drawn, _, _ = built(**flags, sampling="neighbors", fanout=(2, 2), batch_nodes=4)
  assert len({float(some(state._replace(step=jnp.int32(i)), drawn)[1]["loss"]) for i in range(4)}) == 4


@pytest.mark.parametrize("layer", [name for name in graph.LAYERS if name != "gcn"])
def test_every_layer_learns(layer):
  flags = dict(layer=layer, **LEARNS, **(dict(layers=3) if layer == "gcnii" else {}))
  _, step, evaluate, batch, whole, state = built(**flags)
  first = float(step(state, batch)[1]["loss"])
  after = run_steps(step, state, batch, 25)
  assert float(step(after, batch)[1]["loss"]) < 0.7 * first
  assert mean(evaluate(after, whole)["test_accuracy_last"]) > 0.4


def test_a_class_with_too_few_nodes_is_one_sentence():
  expected = "class a of small has 10 nodes, expected 24 or more: 20 to learn from, 3 to validate on, 1 to test"
  with pytest.raises(DataError, match=expected):
    nodes.make_feeds(configure(split="random", valid_per_class=3))


@pytest.mark.parametrize(("flags", "said"), [
  (dict(layer="sgc", inductive=True), "inductive"),
  (dict(layer="gcn", sampling="neighbors"), "sampling"),
  (dict(layer="sage_mean", sampling="neighbors", fanout=(3,)), "fanout"),
  (dict(sampling="clusters", drop_edge=0.2), "drop_edge"),
  (dict(sampling="clusters", clusters=2, clusters_each=3), "clusters_each"),
  (dict(dropout=1.0), "dropout"),
  (dict(layer="nn4g", layers=1), "layers"),
])  # fmt: skip
def test_flags_that_do_not_fit_are_refused(flags, said):
  with pytest.raises((InputError, ValueError), match=f"--{said}="):
    configure(**flags)


def test_one_class_and_more_clusters_than_nodes_are_refused(monkeypatch):
  with pytest.raises(InputError, match="--clusters=31 is out of range: expected at most 30, the nodes of small"):
    nodes.make_feeds(configure(sampling="clusters", clusters=31))
  monkeypatch.setattr(nodes, "load_data", lambda config: make_data(train=MASKS["train"] & (LABEL == 1)))
  with pytest.raises(DataError, match="the nodes to learn from are of 1 class, expected 2 or more"):
    nodes.make_feeds(configure())


def test_published_defaults_follow_the_layer():
  gat = nodes.Config.tuned(layer="gat")
  assert (gat.hidden, gat.heads, gat.dropout, gat.learning_rate, gat.l2_of) == (8, 8, 0.6, 5e-3, "all")
  gcn = nodes.Config.tuned()
  assert (gcn.hidden, gcn.dropout, gcn.l2, gcn.l2_of, gcn.learning_rate, gcn.steps) == (
    16,
    0.5,
    5e-4,
    "first",
    0.01,
    200,
  )
  assert nodes.Config.tuned(layer="gat", dropout=0.1).dropout == 0.1
  appnp = nodes.Config.tuned(layer="appnp")
  assert (appnp.hidden, appnp.l2, appnp.l2_of, appnp.teleport) == (64, 5e-3, "first", 0.1)
  sgc = nodes.Config.tuned(layer="sgc")
  assert (sgc.dropout, sgc.l2, sgc.learning_rate, sgc.hops) == (0.0, 5e-6, 0.2, 2)


def test_the_report_has_floors_and_pictures(tmp_path, monkeypatch):
  config, step, _, batch, _, state = built(layer="gat", hidden=4, heads=2)
  experiment = nodes.make(config)
  figures = experiment.report(run_steps(step, state, batch), tmp_path)
  assert set(figures) == {
    "attention_entropy_share",
    *(f"test_accuracy_{name}" for name in ("majority", "label_spreading", "logistic_regression", "sgc_logistic")),
  }
  assert 0.3 < figures["attention_entropy_share"] <= 1 + 1e-6
  assert {p.name for p in tmp_path.iterdir()} == {"map.png", "confusion.png", "graph.png", "attention.png"}
  majority = np.bincount(LABEL[MASKS["train"]]).argmax()
  assert figures["test_accuracy_majority"] == pytest.approx((LABEL[MASKS["test"]] == majority).mean())


def test_a_drawing_has_every_edge_once_whichever_directions_are_there():
  axis = Figure().subplots()
  senders, receivers = np.array([0, 1, 2]), np.array([1, 0, 0])
  draw_graph(axis, np.eye(3)[:, :2], senders, receivers, np.zeros((3, 3)))
  assert len(axis.collections[0].get_segments()) == 2


@pytest.mark.parametrize("layer", ["gcn", "spectral", "sgc"])
def test_the_model_tells_all_nodes_of_a_view(layer):
  config, step, _, batch, _, state = built(layer=layer)
  view = nodes.make_view(config, make_data())
  logits = nodes.make(config).model(step(state, batch)[0])(view)
  assert logits.shape == (N, K) and np.isfinite(logits).all()


@pytest.mark.filterwarnings("error")
def test_features_of_no_validation_node_are_no_mean_of_nothing():
  assert _node_views.compress(np.zeros((0, 3))).shape == (0, 3)


def test_rows_are_normalised_once():
  x = _node_views.normalize_rows(np.array([[1.0, 3.0], [0.0, 0.0]]))
  np.testing.assert_allclose(x, [[0.25, 0.75], [0, 0]])


def test_a_graph_without_edges_is_one_sentence(monkeypatch):
  lonely = make_data()._replace(senders=np.zeros(0, np.int32), receivers=np.zeros(0, np.int32))
  monkeypatch.setattr(nodes, "load_data", lambda config: lonely)
  with pytest.raises(DataError, match="the graph has no edge, expected one or more"):
    nodes.make_feeds(configure())


def test_entropy_of_equal_weights_is_all_there_is():
  from experiments.graph._nodes_report import measure_entropy

  edges = graph.Edges(np.array([0, 1, 2, 2, 0]), np.array([0, 0, 0, 2, 2]), np.array([1.0, 1, 1, 1, 0]))
  equal = np.array([[1 / 3], [1 / 3], [1 / 3], [1.0], [0.0]])
  assert measure_entropy(equal, edges, 4) == pytest.approx(1)
  one = np.array([[1.0], [0], [0], [1.0], [0.0]])
  assert measure_entropy(one, edges, 4) == pytest.approx(0)
