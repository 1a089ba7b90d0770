"""That the learned optimizer's training, evaluation and report are connected as they should be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.meta import _comparison as comparison, learned_optimizer as experiment
from experiments.meta._comparison import Family, Outcome, Setting
from mlnotes.meta import Optimizee
from mlnotes.optim import eval_params

SIZES = dict(variables=2, horizon=8, unroll=2, hidden=3, layers=1, batch_size=5, eval_problems=6)


def config_of(**changes):
  outer = dict(optimizer="sgd", momentum=0.0, learning_rate=0.1, schedule="constant", clip_norm=0.0)
  return experiment.Config(**{**SIZES, **outer, **changes})


@pytest.fixture(scope="module")
def trained():
  """(state before, state after, metrics) of one update; the loss of a run is here the sum of the weights' squares.

  What the update hands to the unrolled loss is written down: (length, second order).
  """
  seen = []

  def loss(weights, network, optimizee, run, length, second_order):
    seen.append((length, second_order))
    total = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(weights))
    return total * (1.0 + run.step), run._replace(step=run.step + length)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(experiment, "unroll_loss", loss)
    made = experiment.make(config_of(second_order=True))
    state = jax.jit(made.init)(jax.random.key(0), ())
    after, metrics = jax.jit(made.step)(state, ())
    later, _ = jax.jit(made.step)(after._replace(step=jnp.int32(1)), ())
    return state, after, later, metrics, seen


def test_an_update_descends_the_mean_over_runs_of_the_unrolled_loss(trained):
  """Runs are 0, 2, 4, 6 and 0 updates old, so that their mean weight is 3.4."""
  state, after, _, metrics, seen = trained
  np.testing.assert_array_equal(state.runs.step, [0, 2, 4, 6, 0])
  assert set(seen) == {(2, True)}
  leaves = jax.tree.leaves(state.params)
  total = 3.4 * sum(np.sum(np.asarray(leaf) ** 2) for leaf in leaves)
  np.testing.assert_allclose(metrics["loss"], total / 2, rtol=1e-5)
  for before, now in zip(leaves, jax.tree.leaves(after.params)):
    np.testing.assert_allclose(now, before * (1 - 0.1 * 2 * 3.4), rtol=1e-4, atol=1e-6)
  norm = np.sqrt(sum(np.sum((6.8 * np.asarray(leaf)) ** 2) for leaf in leaves))
  np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)


def test_a_problem_is_replaced_at_the_horizon_and_not_before(trained):
  state, after, later, *_ = trained
  np.testing.assert_array_equal(after.runs.step, [2, 4, 6, 8, 2])
  np.testing.assert_array_equal(later.runs.step, [4, 6, 8, 2, 4])
  kept = (np.asarray(later.runs.problem.matrix) == np.asarray(state.runs.problem.matrix)).all((1, 2))
  np.testing.assert_array_equal(kept, [True, True, True, False, True])


def test_problems_of_training_validation_and_test_are_all_different(trained):
  state, _, later, *_ = trained
  optimizee = experiment.make_trained(config_of()).optimizee
  frozen = [comparison.frozen_problems(split, 6) for split in ("validation", "test")]
  held_out = jax.vmap(lambda key: optimizee.sample(jax.random.split(key)[0]).matrix)(jnp.concatenate(frozen))
  matrices = np.concatenate([held_out, state.runs.problem.matrix, later.runs.problem.matrix[3:4]])
  assert len(np.unique(matrices.reshape(len(matrices), -1), axis=0)) == len(matrices) == 12 + 5 + 1


def test_flags_reach_the_unrolled_loss(monkeypatch):
  seen = []

  def loss(weights, network, optimizee, run, length, second_order):
    seen.append((length, second_order, network.hidden, network.layers, network.scale, network.preprocess))
    return jnp.sum(jax.tree.leaves(weights)[0]), run

  monkeypatch.setattr(experiment, "unroll_loss", loss)
  for changes in (dict(unroll=4), dict(layers=2, hidden=4, output_scale=0.5, preprocess=False)):
    made = experiment.make(config_of(**changes))
    state = jax.eval_shape(made.init, jax.random.key(0), ())
    jax.eval_shape(made.step, state, ())
  assert seen[0] == (4, False, 3, 1, 0.1, experiment.preprocess_gradient)
  assert seen[-1] == (2, False, 4, 2, 0.5, experiment.raw_gradient)


LOSSES = np.random.default_rng(0).uniform(1, 2, (6, 8)).astype(np.float32)


@pytest.mark.parametrize("wrapped", [0, 5])
def test_evaluation_follows_validation_problems_to_the_horizon(monkeypatch, wrapped):
  """With what the outer optimizer returns: Lookahead's slow weights."""
  calls, weights = [], []
  monkeypatch.setattr(experiment.comparison, "follow", lambda *call: calls.append(call) or jnp.asarray(LOSSES))
  monkeypatch.setattr(experiment, "learned_optimizer", lambda network, params: weights.append(params) or "rule")
  made = experiment.make(config_of(lookahead=wrapped))
  params = {"w": jnp.ones(2)}
  outer = experiment.make_optimizer(config_of(lookahead=wrapped), 10)
  state = experiment.State(jnp.int32(1), jax.random.key(0), {"w": jnp.zeros(2)}, outer.init(params), None)
  found = made.evaluate(state, ())
  ((_, optimizer, keys, horizon),) = calls
  assert optimizer == "rule" and horizon == 8
  np.testing.assert_array_equal(weights[0]["w"], 1.0 if wrapped else 0.0)
  assert eval_params(state.opt_state, state.params)["w"][0] == (1.0 if wrapped else 0.0)
  expected = comparison.frozen_problems("validation", 6)
  np.testing.assert_array_equal(jax.random.key_data(keys), jax.random.key_data(expected))
  mean = {name: float(figure.total / figure.count) for name, figure in found.items()}
  np.testing.assert_allclose([mean["loss"], mean["final_loss"]], [LOSSES.mean(), LOSSES[:, -1].mean()], rtol=1e-5)


def test_the_report_tunes_every_rule_on_every_family(monkeypatch, tmp_path):
  """Those of the first family are carried to the others; figures are means of the final losses."""
  tuned = []

  def tune(family, name, carried=None):
    tuned.append((family.title, name, carried))
    size = 1 + len(tuned)
    return Outcome(size * LOSSES, 2 * size * LOSSES, LOSSES, (Setting(size, 0.0), Setting(-size, 0.0)))

  monkeypatch.setattr(comparison, "tune", tune)
  monkeypatch.setattr(comparison, "compare", lambda family, network, weights, found: {"learned": LEARNED, **found})
  monkeypatch.setattr(experiment, "make_others", lambda config, trained: {"far": trained._replace(title="far")})
  for name in ("draw_trained", "draw_families"):
    monkeypatch.setattr(comparison, name, lambda *_: None)
  made = experiment.make(config_of())
  state = experiment.State(jnp.int32(1), jax.random.key(0), {}, (), None)
  found = made.report(state, tmp_path)
  names = list(experiment.BASELINES)
  first = [Setting(2 + i, 0.0) for i in range(len(names))]
  assert tuned == [("quadratics in 2 variables", name, None) for name in names] + [
    ("far", name, setting) for name, setting in zip(names, first)
  ]
  last = LOSSES[:, -1].mean()
  np.testing.assert_allclose(found["learned/final_loss"], 0.5 * last, rtol=1e-5)
  np.testing.assert_allclose(found[f"{names[1]}/final_loss"], 3 * last, rtol=1e-5)
  np.testing.assert_allclose(found[f"{names[1]}/mean_loss"], 6 * LOSSES.mean(), rtol=1e-5)
  np.testing.assert_allclose(found[f"far/{names[0]}/final_loss"], (2 + len(names)) * last, rtol=1e-5)


LEARNED = Outcome(LOSSES / 2, LOSSES / 2, LOSSES / 2)


def test_rates_are_chosen_on_validation_and_judged_on_test_problems():
  """Validation problems have curvature 1, test problems 1/2: a rate of 1 is chosen, and leaves 1/4 of the loss."""

  def sample(key):
    split = jax.random.key_data(comparison.frozen_problems("validation", 3))
    own = jax.vmap(lambda k: jax.random.key_data(jax.random.split(jax.random.wrap_key_data(k))[0]))(split)
    return jnp.where((own == jax.random.key_data(key)[None]).all(1).any(), 1.0, 0.5)

  curve = Optimizee(sample, lambda key: jnp.ones(1), lambda x, curvature, step: jnp.sum(curvature * x**2) / 2)
  found = comparison.tune(Family("curves", curve, 1, 2, 3), "sgd")
  assert [setting.learning_rate for setting in found.settings] == pytest.approx([1.0, 1.0])
  np.testing.assert_allclose(found.final, np.full((2, 1), 0.5 * 0.25 / 2), rtol=1e-4)


def test_what_diverged_is_counted_and_loses(tmp_path):
  broken = LOSSES.copy()
  broken[:2, -1] = np.nan
  outcomes = {"learned": LEARNED, "sgd": Outcome(broken, broken, broken, (Setting(0.1, 0.0),) * 2)}
  comparison.write_table(outcomes, {}, tmp_path / "table.md")
  row = (tmp_path / "table.md").read_text().splitlines()[3]
  assert "diverged on 2 of 6" in row and "| 100% |" in row


def test_bands_are_whole_intervals_of_the_mean():
  """Also where their lower end is below 0, which a logarithmic axis cannot show."""
  from matplotlib.figure import Figure

  losses = np.array([[1.0, 2.0], [9.0, 2.0], [1.0, 8.0]])
  axis = Figure().add_subplot()
  comparison._panel(axis, {"learned": Outcome(losses, losses, losses)})
  band = axis.collections[0].get_paths()[0].vertices
  half = 1.96 * losses.std(0, ddof=1) / np.sqrt(3)
  for step in (0, 1):
    ends = band[band[:, 0] == step + 1, 1]
    np.testing.assert_allclose([ends.min(), ends.max()], losses.mean(0)[step] + half[step] * np.array([-1, 1]))
  assert axis.get_ylim()[0] == 0.5 * losses.mean(0).min()
