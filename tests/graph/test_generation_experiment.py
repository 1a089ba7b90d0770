"""The wiring of graph generation: what an update reads and changes, which flags reach what, what a report compares."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.graph import _generation_report as reports, _generators, generation
from mlnotes import graph
from mlnotes.data import DataError
from mlnotes.data.drawn_graphs import DRAWN, load_small_graphs
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key, set_hparams
from mlnotes.engine.progress import take_warnings
from mlnotes.optim import update_ema

TINY = dict(
  dataset="ladder", graphs=20, width=4, edge_width=3, depth=1, latents=2, batch_size=8, steps=20, eval_examples=4,
  max_previous=3, matching_iterations=3, matching_rounds=1, batch_features=2, critic_steps=2, anneal_steps=4,
)  # fmt: skip


def differ(a, b) -> bool:
  return any(bool(jnp.any(x != y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


class Run:
  """An experiment with a first state and a batch, each compiled once."""

  def __init__(self, **flags):
    self.config = generation.Config(**TINY | flags)
    self.experiment = generation.make(self.config)
    self.feeds = generation.make_feeds(self.config)
    self.data = generation.load_graphs(self.config)
    self.generator = _generators.GENERATORS[self.config.method](self.config, self.data)
    self.batch = jax.jit(self.feeds.train.draw)(self.feeds.train.arrays, root_key(5), jnp.int32(0))
    self.state = jax.jit(self.experiment.init)(root_key(0), self.batch)
    self.step, self.evaluate = jax.jit(self.experiment.step), jax.jit(self.experiment.evaluate)


@functools.cache
def run(**flags):
  return Run(**flags)


@pytest.fixture(autouse=True, scope="module")
def forget():
  yield
  run.cache_clear()


METHODS = ["graph_rnn", "graph_rnn_simple", "graph_vae", "mol_gan"]


@pytest.mark.parametrize("method", METHODS)
def test_a_step_changes_what_it_learns_and_samples_are_graphs(method):
  of = run(method=method)
  found, metrics = of.step(of.state, of.batch)
  assert int(found.step) == 1 and differ(found.params, of.state.params)
  assert all(np.isfinite(float(value)) for value in metrics.values())
  adjacency, node_type = reports.sample_all(of.experiment.model(found), jax.random.key(0), 10)
  assert adjacency.shape == (10, 20, 20) and node_type.shape == (10, 20)
  np.testing.assert_array_equal(adjacency, adjacency.transpose(0, 2, 1))
  there = node_type > 0
  assert not (adjacency * ~(there[:, :, None] & there[:, None])).any()
  assert not adjacency[:, np.arange(20), np.arange(20)].any()


def test_orders_are_drawn_anew_in_each_update_and_by_the_graphs_number_in_evaluation():
  of = run(method="graph_rnn_simple")
  first, second = (of.step(of.state._replace(step=jnp.int32(i)), of.batch)[1]["nll"] for i in range(2))
  assert float(first) != float(second)
  batch = jax.jit(of.feeds.evaluate.draw)(of.feeds.evaluate.arrays, 0)
  turned = {name: value[::-1] for name, value in batch.items()}
  found, again = (of.evaluate(of.state, b)["nll"] for b in (batch, turned))
  np.testing.assert_allclose(found.total, again.total, rtol=1e-5)
  masked = of.evaluate(of.state, {**batch, "mask": batch["mask"] * (jnp.arange(8) < 2)})["nll"]
  assert float(masked.count) == 2 and float(masked.total) < float(found.total)


def test_the_loss_is_of_the_edges_that_can_be_there():
  """Of a network that says a half for each, log 2 an edge; of a graph, as often as there are such edges."""
  of = run(method="graph_rnn_simple")
  even = of.state._replace(params=jax.tree.map(jnp.zeros_like, of.state.params))
  _, metrics = of.step(even, of.batch)
  np.testing.assert_allclose(metrics["loss"], np.log(2), rtol=1e-5)
  # Of n nodes: 1, 2, 3, .. 3 edges of the next one, and as many of the row that ends the graph.
  entries = [sum(min(i, 3) for i in range(1, n + 1)) for n in np.asarray(of.batch["num_nodes"])]
  np.testing.assert_allclose(metrics["nll"], np.log(2) * np.mean(entries), rtol=1e-5)


def test_edges_have_a_network_of_their_own_in_the_full_form_alone():
  names = [set(run(method=method).state.params) for method in ("graph_rnn", "graph_rnn_simple")]
  assert names[0] - names[1] == {"edges", "embed_edge", "to_edges"} and names[1] <= names[0]


def test_how_far_back_edges_reach_is_the_flag_or_what_the_data_need():
  data = load_small_graphs("ladder", 20)
  assert run(method="graph_rnn").state.params["embed"]["kernel"].shape[0] == 3
  config = generation.Config(**TINY | dict(max_previous=0))
  found = _generators.find_max_previous(config, data)
  assert found == graph.measure_max_previous(data.train.arrays["adjacency"], data.train.arrays["num_nodes"]) > 3
  with pytest.raises(InputError, match="--max_previous=20 is out of range: expected 0 to 19 for graphs of 20 nodes"):
    generation.make(generation.Config(**TINY | dict(max_previous=20)))


def test_beta_weighs_the_divergence_and_the_order_reaches_the_likelihood():
  of = run(method="graph_vae")
  grown = of.state._replace(step=jnp.int32(3))
  metrics = {beta: of.step(set_hparams(grown, beta=beta), of.batch)[1] for beta in (0.0, 1.0, 3.0)}
  kl = float(metrics[1.0]["kl"])
  assert kl > 0
  first = of.step(of.state, of.batch)[1]  # a quarter of the weight, as it grows over four updates
  np.testing.assert_allclose(first["loss"], first["negative_elbo"] - 0.75 * kl, rtol=1e-5)
  for beta, found in metrics.items():
    np.testing.assert_allclose(found["loss"], metrics[1.0]["negative_elbo"] + (beta - 1) * kl, rtol=1e-5)
  by_degree = run(method="graph_vae", order="degree").step(grown, of.batch)[1]["negative_elbo"]
  assert float(metrics[1.0]["negative_elbo"]) < float(by_degree)


def test_the_critic_has_its_updates_on_parts_of_the_batch_then_the_generator_one():
  of = run(method="mol_gan")
  state, batch = of.state, of.batch
  assert batch["adjacency"].shape[0] == 16
  found, _ = of.step(state, batch)
  # Another second half: the first update of the critic is the same, so that both halves count.
  for half in (slice(0, 8), slice(8, 16)):
    other = {name: value.at[half].set(value[0]) for name, value in batch.items()}
    assert differ(of.step(state, other)[0].params["critic"], found.params["critic"])
  for players, moves in zip(("generator", "critic"), (1, 2)):
    counts = [leaf for leaf in jax.tree.leaves(found.opt_state[players == "critic"]) if leaf.dtype == jnp.int32]
    assert max(int(count) for count in counts) == moves


def test_the_average_of_the_generator_is_what_is_sampled_and_evaluated():
  of = run(method="mol_gan")
  found, _ = of.step(of.state, of.batch)
  expected = update_ema(of.state.params["average"], found.params["generator"], jnp.int32(0), jnp.float32(0.99))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found.params["average"], expected)
  zero = found._replace(params=found.params | {"generator": jax.tree.map(jnp.zeros_like, found.params["generator"])})
  batch = jax.jit(of.feeds.evaluate.draw)(of.feeds.evaluate.arrays, 0)
  assert not differ(of.evaluate(zero, batch), of.evaluate(found, batch))
  samples = [reports.sample_all(of.experiment.model(s), jax.random.key(1), 4) for s in (zero, found)]
  assert not differ(*samples)


@pytest.mark.parametrize("name, values", [("penalty_weight", (0.0, 10.0)), ("temperature", (0.3, 3.0))])
def test_numbers_of_the_flags_reach_the_players(name, values):
  of, player = run(method="mol_gan"), "critic" if name == "penalty_weight" else "generator"
  assert differ(*(of.step(set_hparams(of.state, {name: value}), of.batch)[0].params[player] for value in values))


RANDOM = {
  "graph_rnn": {"order"},
  "graph_rnn_simple": {"order"},
  "graph_vae": {"noise"},
  "mol_gan": {"critic", "generator"},
}


@pytest.mark.parametrize("method", METHODS)
def test_what_is_random_is_of_its_update_and_the_best_is_judged_by_what_is_evaluated(method, monkeypatch):
  of, seen = run(method=method), []
  key = _generators.stream_key

  def update(state):
    monkeypatch.setattr(
      _generators, "stream_key", lambda of, name, step: seen.append((name, step is state.step)) or key(of, name, step)
    )
    return of.generator.update(state, of.batch)

  jax.eval_shape(update, of.state)
  assert set(seen) == {(name, True) for name in RANDOM[method]}
  monkeypatch.undo()
  assert of.generator.judged_by in jax.eval_shape(
    of.generator.evaluate, of.state.params, of.batch, jax.random.split(root_key(0), len(of.batch["num_nodes"]))
  )


def test_slow_weights_of_lookahead_are_what_is_sampled():
  of = run(method="graph_rnn_simple")
  experiment = generation.make(generation.Config(**TINY, method="graph_rnn_simple", lookahead=3))
  state = jax.jit(experiment.init)(root_key(0), of.batch)
  moved = state._replace(params=jax.tree.map(lambda x: x + 1, state.params))
  assert not differ(experiment.model(moved).params, state.params)


def test_latents_are_drawn_in_evaluations_too():
  of = run(method="graph_vae")
  batch = jax.jit(of.feeds.evaluate.draw)(of.feeds.evaluate.arrays, 0)
  found = [of.evaluate(of.state._replace(key=root_key(seed)), batch) for seed in (0, 0, 1)]
  totals = [float(one["negative_elbo"].total) for one in found]
  assert totals[0] == totals[1] != totals[2]
  assert float(found[0]["kl"].total) == pytest.approx(float(found[2]["kl"].total))


def test_flags_reach_the_matching_the_networks_and_the_schedules(monkeypatch):
  seen, choose = [], graph.choose_places
  monkeypatch.setattr(
    graph, "choose_places", lambda *given, **options: seen.append(options) or choose(*given, **options)
  )
  of = run(method="graph_vae")
  jax.eval_shape(of.generator.update, of.state, of.batch)
  assert seen and all(options == dict(iterations=3, rounds=1) for options in seen)
  assert run(method="mol_gan").state.params["critic"]["of_one"]["kernel"].shape[1] == 2
  built, make = [], graph.GraphRNN
  monkeypatch.setattr(graph, "GraphRNN", lambda *given, **options: built.append(make(*given, **options)) or built[-1])
  config = generation.Config(**TINY | dict(depth=3, width=8, edge_width=6))
  generation.make(config)
  assert (built[0].depth, built[0].edge_depth, built[0].width, built[0].edge_width) == (3, 3, 8, 6)
  asked, optimizer = [], _generators.make_optimizer
  monkeypatch.setattr(
    _generators, "make_optimizer", lambda config, *given: asked.append(given) or optimizer(config, *given)
  )
  generation.make(generation.Config(**TINY, method="mol_gan"))
  assert asked == [(20,), (20, 2)]  # the critic's schedule ends with the generator's


def test_the_critic_meets_other_graphs_and_other_shares_in_each_of_its_updates(monkeypatch):
  seen, loss = [], graph.critic_loss

  def recorded(critic, params, real, fake, share, weight):
    jax.debug.callback(lambda *values: seen.append([np.asarray(x) for x in values]), fake.nodes, fake.edges, share)
    return loss(critic, params, real, fake, share, weight)

  monkeypatch.setattr(graph, "critic_loss", recorded)
  of = run(method="mol_gan")
  jax.block_until_ready(jax.jit(of.generator.update)(of.state, of.batch))
  jax.effects_barrier()
  assert len(seen) == 2 and differ(seen[0][1], seen[1][1])
  shares = np.concatenate([values[2] for values in seen])
  # A critic that sees the batch as a whole has one share for it; otherwise each graph has its own.
  own = 2 if of.config.batch_features else 16
  assert len(set(shares.tolist())) == own and shares.min() >= 0 and shares.max() < 1


# -- the report --------------------------------------------------------------------------------------------------------


@pytest.fixture
def write(monkeypatch, tmp_path):
  """(graphs, dataset) -> figures of a report in which these graphs were sampled; pictures are left out."""
  for name in ("draw_graphs", "draw_statistics"):
    monkeypatch.setattr(reports, name, lambda *inputs: None)

  def write(arrays, dataset="community", **flags):
    config = generation.Config(**TINY | dict(dataset=dataset, graphs=40) | flags)
    data = generation.load_graphs(config)
    found = arrays(data)
    monkeypatch.setattr(
      reports, "sample_all", lambda trained, key, count: [found[name] for name in ("adjacency", "node_type")]
    )
    take_warnings()
    return reports.write_report(None, root_key(0), data, config, tmp_path), take_warnings()

  return write


def test_test_graphs_are_at_no_distance_and_novel_training_graphs_at_the_floor_and_not(write):
  figures, said = write(lambda data: data.test.arrays, samples=8)
  for name in ("degree", "clustering", "orbit"):
    assert abs(figures[f"{name}_mmd_8"]) < 1e-6 < figures[f"{name}_mmd_8_train"] < figures[f"{name}_mmd_8_erdos_renyi"]
  assert figures["valid_8"] == figures["unique_8"] == figures["novel_8"] == figures["all_three_8"] == 1
  assert said == [] and figures["collapsed"] == 0
  figures, said = write(lambda data: data.train.arrays)
  for name in ("degree", "clustering", "orbit"):
    np.testing.assert_allclose(figures[f"{name}_mmd_32"], figures[f"{name}_mmd_32_train"], rtol=1e-6)
  assert figures["novel_32"] == figures["all_three_32"] == 0 and figures["valid_32"] == 1


def test_independent_edges_are_fitted_to_training_graphs_and_the_kernel_is_the_flags(write, monkeypatch):
  given, fit = [], graph.fit_erdos_renyi
  monkeypatch.setattr(graph, "fit_erdos_renyi", lambda *arrays: given.append(arrays) or fit(*arrays))
  asked, compare = [], graph.compare_graphs
  monkeypatch.setattr(graph, "compare_graphs", lambda *sets: asked.append(sets[2]) or compare(*sets))
  write(lambda data: data.train.arrays, kernel="total_variation")
  data = load_small_graphs("community", 40)
  for found, name in zip(given[0], ("adjacency", "num_nodes")):
    np.testing.assert_array_equal(found, data.train.arrays[name])
  assert asked == ["total_variation"] * 3


def test_one_graph_again_and_again_is_called_collapsed(write):
  same = lambda data: {name: np.repeat(value[:1], 32, 0) for name, value in data.train.arrays.items()}
  figures, said = write(same)
  assert said[0] == "collapsed: 1 of 32 samples are distinct, of as many training graphs 32."
  assert figures["collapsed"] == 1 and figures["unique_32"] == figures["distinct_32"] == 1 / 32


def test_empty_graphs_are_called_off_the_data_and_no_better_than_independent_edges(write):
  none = lambda data: {name: np.zeros_like(value) for name, value in data.train.arrays.items()}
  figures, said = write(none)
  assert "degree_mmd_32" not in figures and figures["valid_32"] == 0
  assert said[-1] == "no nearer to the test graphs than an Erdos-Renyi fit in degree, clustering, orbit."
  assert reports.describe_collapse(9, 10, 0.0, 10, "a rule") == "off the data: none of 10 samples is valid (a rule)."
  assert reports.describe_collapse(9, 10, 0.1, 10, "a rule") == ""


def test_nodes_that_are_not_there_are_taken_out_of_the_middle():
  """Of mol_gan any node may be missing: the graphs are those of the test split with places left free."""
  data = load_small_graphs("community", 40)
  size = data.most_nodes
  spread = {"adjacency": np.zeros((8, 2 * size, 2 * size), np.uint8), "node_type": np.zeros((8, 2 * size), np.uint8)}
  spread["adjacency"][:, ::2, ::2] = data.test.arrays["adjacency"]
  spread["node_type"][:, ::2] = data.test.arrays["node_type"]
  found, expected = (reports.judge(a["adjacency"], a["node_type"]).statistics for a in (spread, data.test.arrays))
  np.testing.assert_array_equal(found.degree[:, :size], expected.degree)
  np.testing.assert_allclose(found.orbit, expected.orbit, rtol=1e-6)


def test_types_count_where_they_are_generated_alone(write, tmp_path):
  """Paths of three whose ends differ by type in half of them: without types the training graphs are one."""
  ends = np.concatenate([np.array([[0, 1], [1, 2]]) + 3 * i for i in range(12)])
  label = np.array([[0, 0, i % 2] for i in range(12)]).ravel()
  path = str(tmp_path / "a.npz")
  np.savez(path, num_nodes=np.full(12, 3), senders=ends[:, 0], receivers=ends[:, 1], node_label=label)
  untyped = lambda data: {name: np.minimum(value, 1) for name, value in data.train.arrays.items()}
  typed = lambda data: {**data.train.arrays, "node_type": 3 - data.train.arrays["node_type"]}
  for method, arrays, novel, distinct in (("graph_rnn", untyped, 0, 1), ("mol_gan", typed, 1, 2)):
    figures, _ = write(arrays, path, method=method, graphs=0)
    assert figures["novel_11"] == novel and figures["distinct_11_train"] == distinct / 11


@pytest.mark.parametrize("name", DRAWN)
def test_graphs_of_a_set_keep_its_rule_and_those_of_another_do_not(name):
  data = load_small_graphs(name, 40)
  _, is_valid = reports.find_rule(data)
  graphs = lambda data: [
    graph.unpad_graph(*one) for one in zip(*(data.test.arrays[n] for n in ("adjacency", "node_type")))
  ]
  assert all(is_valid(one) for one in graphs(data))
  other = graphs(load_small_graphs("ego" if name == "community" else "community", 40))
  assert not any(is_valid(one) for one in other)


def test_a_layout_parts_what_is_far_apart():
  adjacency = np.eye(6, k=1) + np.eye(6, k=-1) > 0
  place = reports.lay_out(adjacency)
  apart = np.linalg.norm(place[:, None] - place[None], axis=-1)
  np.testing.assert_allclose(apart[0], np.arange(6), atol=0.2)
  assert reports.lay_out(np.zeros((1, 1), bool)).shape == (1, 2) and reports.lay_out(np.zeros((0, 0), bool)).shape == (
    0,
    2,
  )
  assert np.isfinite(reports.lay_out(np.zeros((3, 3), bool))).all()


def test_pictures_are_drawn(tmp_path):
  data = load_small_graphs("molecules", 40)
  judged = reports.judge(data.test.arrays["adjacency"], data.test.arrays["node_type"])
  reports.draw_graphs(judged.graphs, judged.graphs[:2], judged.graphs, data, tmp_path / "graphs.png")
  reports.draw_statistics({"test": judged, "generated": judged}, tmp_path / "statistics.png")
  assert (tmp_path / "graphs.png").stat().st_size > 5000 and (tmp_path / "statistics.png").stat().st_size > 5000


# -- flags -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "flags, said",
  [
    (dict(dataset="molecules"), "--method=graph_rnn is out of range: expected mol_gan with --dataset=molecules"),
    (dict(graphs=9), "--graphs=9 is out of range: expected 0, or 10 or more"),
    (dict(samples=3), "--samples=3 is out of range: expected 0, or 4 or more"),
    (dict(temperature=0.0), "--temperature=0.0 is out of range"),
    (dict(ema_decay=1.0), "--ema_decay=1.0 is out of range"),
    (dict(depth=0), "--depth=0 is out of range: expected 1 or more"),
  ],
)
def test_a_flag_out_of_range_is_told(flags, said):
  with pytest.raises(InputError, match=said):
    generation.Config(**flags)


def test_too_many_updates_of_the_critic_and_a_set_that_is_not_there_are_told():
  config = generation.Config(**TINY | dict(method="mol_gan", critic_steps=3))
  with pytest.raises(InputError, match="--critic_steps=3 is out of range: expected at most 2: each has --batch_size=8"):
    generation.make_feeds(config)
  config = generation.Config(**TINY | dict(method="mol_gan", critic_steps=3, batch_size=1000))
  with pytest.raises(InputError, match="--batch_size=1000 is out of range: expected 1 to"):
    generation.make_feeds(config)
  with pytest.raises(DataError, match="--dataset=comunity: no such set of graphs"):
    generation.make(generation.Config(dataset="comunity"))


def test_flags_without_effect_are_named():
  idle = lambda **flags: set(generation.Config(**flags).idle_flags())
  assert {"beta", "critic_steps", "latents", "most_nodes"} <= idle()
  assert not {"depth", "max_previous", "edge_width"} & idle() and "edge_width" in idle(method="graph_rnn_simple")
  vae = idle(method="graph_vae")
  assert {"depth", "max_previous", "temperature"} <= vae and not {"beta", "order", "latents", "matching_rounds"} & vae
  assert "matching_rounds" in idle(method="graph_vae", order="degree")
  assert not {"critic_steps", "temperature", "latents"} & idle(method="mol_gan")
  assert {"graphs", "graph_seed"} <= idle(dataset="a.npz") and "samples" in idle(report_seeds=0)


def test_two_players_have_settings_of_their_own():
  tuned = generation.Config.tuned(method="mol_gan", dataset="molecules", beta2=0.99)
  assert (tuned.momentum, tuned.beta2, tuned.clip_norm, tuned.steps) == (0.5, 0.99, 0.0, 2000)
  assert generation.Config.tuned().clip_norm == 1.0
