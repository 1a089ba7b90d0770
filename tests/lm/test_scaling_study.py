"""The study of scaling: runs against a loop, fits of planted laws, cards of a sweep, what else is compared."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.lm import _scaling_studies as studies, _small_runs as small, scaling
from experiments.lm._small_runs import Job
from mlnotes.data import Corpus, Windows, fixed_subset
from mlnotes.data.tokenizer import train_tokenizer
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key, stream_key
from mlnotes.lm.scaling import ScalingLaw
from mlnotes.optim.decay import is_decayed

LENGTH, BATCH = 4, 3
TOKENIZER = train_tokenizer("characters", ("abcdefg",), 0, ())
TOKENS = np.random.default_rng(0).integers(0, TOKENIZER.vocab_size, 300)
CORPUS = Corpus("noise", Windows(TOKENS[:201], LENGTH), Windows(TOKENS[200:], LENGTH), TOKENIZER)
HOFFMANN = ScalingLaw(1.69, 406.4, 410.7, 0.34, 0.28)
BESIROGLU = ScalingLaw(1.82, 482.0, 2085.0, 0.348, 0.366)


def configure(**flags):
  sizes = dict(
    length=LENGTH, batch_size=BATCH, widths=(4, 8), budgets=(24, 48, 96), width=8, tokens=48, depth=1, heads=1,
    eval_examples=7, draws=4, learning_rate=0.1,
  )  # fmt: skip
  return scaling.Config(**{**sizes, **flags})


@pytest.fixture
def trained(monkeypatch):
  """What was asked to be trained; the loss is a law of what it is asked with."""
  asked = []

  def train_jobs(module, corpus, jobs, batch_size, test_windows):
    asked.append((module.transformer.width, tuple(jobs), batch_size, test_windows))
    tokens = np.array([job.updates * batch_size * corpus.train.length for job in jobs], float)
    noise = np.array([job.seed for job in jobs]) * 0.01 + np.array([abs(np.log(job.rate / 0.1)) for job in jobs])
    losses = 2 + 10 / np.sqrt(module.transformer.width) / tokens**0.3 + noise
    return np.broadcast_to(losses[:, None, None], (len(jobs), 7, LENGTH))

  monkeypatch.setattr(studies, "train_jobs", train_jobs)
  return asked


# -- runs --------------------------------------------------------------------------------------------------------------


def test_each_job_is_trained_and_judged_by_itself():
  """Against a loop with optax's own AdamW, schedule and all; jobs of unequal length side by side on several devices."""
  module = small.build(CORPUS.vocab_size, LENGTH, 8, 1, 1)
  jobs = [Job(12, 0.05), Job(5, 0.02, seed=4), Job(11, 0.05, seed=1, unique=6)]
  found = small.train_jobs(module, CORPUS, jobs, BATCH, 7)
  assert found.shape == (3, 7, LENGTH)
  chosen = fixed_subset(len(CORPUS.test), 7)
  test = jnp.asarray(CORPUS.test.read(chosen)["tokens"])
  nats = lambda params, tokens: optax.softmax_cross_entropy_with_integer_labels(
    module.apply({"params": params}, tokens[:, :-1]), tokens[:, 1:]
  )
  for job, losses in zip(jobs, found):
    warmup = max(1, job.updates // 10)
    rate = lambda i, job=job, warmup=warmup: (
      job.rate
      * min((i + 1) / warmup, 0.5 * (1 + np.cos(np.pi * max(0, i + 1 - warmup) / max(1, job.updates - warmup))))
    )
    optimizer = optax.inject_hyperparams(
      lambda learning_rate: optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(learning_rate, b2=0.99, weight_decay=0.1, mask=is_decayed)
      )
    )(learning_rate=0.0)

    @jax.jit
    def update(params, state, tokens, optimizer=optimizer):
      grads = jax.grad(lambda params: nats(params, tokens).mean())(params)
      change, state = optimizer.update(grads, state, params)
      return optax.apply_updates(params, change), state

    params = module.init(stream_key(root_key(job.seed), "init"), test[:1, :-1])["params"]
    state = optimizer.init(params)
    for i, rows in enumerate(small.visit_order(len(CORPUS.train), job, BATCH)):
      state.hyperparams["learning_rate"] = jnp.float32(rate(i))
      params, state = update(params, state, jnp.asarray(CORPUS.train.read(rows)["tokens"]))
    np.testing.assert_allclose(losses, nats(params, test), rtol=2e-3, atol=2e-3)


def test_a_pass_sees_every_window_once_and_fewer_are_among_more():
  order = small.visit_order(50, Job(40, 1.0), 3).ravel()
  assert sorted(order[:50]) == sorted(order[50:100]) == list(range(50))
  assert order[:50].tolist() != order[50:100].tolist()
  few, more = (small.visit_order(50, Job(20, 1.0, seed, unique), 3) for seed, unique in ((0, 6), (1, 12)))
  assert len(set(few.ravel())) == 6 and len(set(more.ravel())) == 12 and set(few.ravel()) < set(more.ravel())
  assert np.bincount(few.ravel(), minlength=50)[list(set(few.ravel()))].tolist() == [10] * 6
  again = small.visit_order(50, Job(20, 1.0, 1, 6), 3)
  assert set(again.ravel()) == set(few.ravel()) and again.tolist() != few.tolist()


def test_work_is_shared_evenly():
  shares = small.share_work([1, 2, 4, 8], 2)
  assert sorted(map(sorted, shares)) == [[0, 1, 2], [3]]


def test_the_rate_ends_with_the_run():
  rates = np.array([small.rate_at(i, 40, 2.0) for i in range(40)])
  assert rates.argmax() == 3 and rates[3] == 2 and rates[0] == 0.5 and rates[-1] == pytest.approx(0, abs=1e-6)


# -- the law -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", [HOFFMANN, BESIROGLU])
def test_published_constants_are_found_in_their_own_points(law):
  """Hoffmann et al. 2022 and Besiroglu et al. 2024, over their range of sizes, and the best size that follows."""
  n, d = (x.ravel() for x in np.meshgrid(np.geomspace(7e7, 1.6e10, 6), np.geomspace(5e9, 5e11, 5)))
  noise = np.exp(0.001 * np.random.default_rng(0).normal(size=n.size))
  fitted, figures = studies.fit(studies.Runs(n, d, law(n, d) * noise), 8, 0)
  for name in ("alpha", "beta", "e", "optimal_exponent"):
    wanted = law.beta / (law.alpha + law.beta) if name == "optimal_exponent" else getattr(law, name)
    assert figures[name] == pytest.approx(wanted, rel=0.06)
    assert figures[f"{name}/low"] < figures[name] < figures[f"{name}/high"]
    assert figures[f"{name}/high"] - figures[f"{name}/low"] < 0.2 * wanted
  assert figures["flops"] == pytest.approx(6 * 1.6e10 * 5e11) and figures["runs"] == 30
  size, data = figures["optimal_parameters"], figures["optimal_tokens"]
  sizes = np.geomspace(size / 30, size * 30, 4001)
  assert 6 * size * data == pytest.approx(figures["flops"])
  assert sizes[np.argmin(fitted.law(sizes, figures["flops"] / 6 / sizes))] == pytest.approx(size, rel=0.01)
  assert 0.0005 < figures["fit_error"] < 0.0015


def test_a_grid_is_every_width_by_every_budget(trained):
  runs = studies.train_grid(configure(seeds=2, seed=3), CORPUS)
  (narrow, jobs, batch, judged), (wide, *_) = trained
  assert (narrow, wide, batch, judged) == (4, 8, BATCH, 7) and len(trained) == 2
  assert [(job.updates, job.seed) for job in jobs] == [(n, seed) for n in (2, 4, 8) for seed in (3, 4)]
  assert jobs[0].rate == pytest.approx(0.1 * 4) and all(job.unique == 0 for job in jobs)  # 64 / 4 = 4^2
  assert runs.tokens.tolist() == [24, 24, 48, 48, 96, 96] * 2
  sizes = [8 * w + 4 * w * w + 3 * w * (8 * w // 3) + 3 * w for w in (4, 8)]
  assert runs.parameters.tolist() == [sizes[0]] * 6 + [sizes[1]] * 6
  assert runs.flops[-1] == 6 * sizes[1] * 96


def card(folder, name, width, steps, **more):
  config = dict(objective="causal", dataset="x", length=8, batch_size=4, tokenizer="characters", width=width)
  metrics = {"parameters": {"mean": 10.0 * width}, "loss": {"seeds": more.pop("losses", [width / steps])}}
  saved = dict(
    experiment="lm.pretrain", finished=True, steps=steps, config=config | more.pop("config", {}), metrics=metrics
  )
  (folder / name).mkdir(parents=True)
  (folder / name / "result.json").write_text(json.dumps(saved | more))


def grid(folder):
  for width in (8, 16):
    for steps in (10, 20, 40):
      card(folder / "lm.pretrain", f"width={width},steps={steps}", width, steps)


def test_runs_of_a_sweep_are_read(tmp_path):
  grid(tmp_path)
  card(tmp_path, "two seeds", 32, 80, losses=[0.25, None, 0.5])
  card(tmp_path, "unfinished", 64, 80, finished=False)
  card(tmp_path, "another", 64, 80, experiment="lm.tune")
  runs = studies.read_runs(str(tmp_path))
  assert sorted(zip(*runs)) == sorted(
    [(10 * w, s * 32, w / s) for w in (8, 16) for s in (10, 20, 40)] + [(320, 2560, x) for x in (0.25, 0.5)]
  )


@pytest.mark.parametrize("config, words", [
  (dict(dataset="y"), "has --dataset=y, .* x: their losses do not compare"),
  (dict(length=16), "--length=16"),
  (dict(objective="masked"), "--objective=masked, expected causal"),
])  # fmt: skip
def test_runs_that_do_not_compare(config, words, tmp_path):
  grid(tmp_path)
  card(tmp_path, "other", 64, 80, config=config)
  with pytest.raises(InputError, match=words):
    studies.read_runs(str(tmp_path))


def test_runs_that_are_too_few_or_alike(tmp_path):
  with pytest.raises(InputError, match=r"has 0 finished runs of lm.pretrain: expected 6 or more"):
    studies.read_runs(str(tmp_path))
  for steps in range(1, 8):
    card(tmp_path, str(steps), 8, steps)
  with pytest.raises(InputError, match="all runs have one size, 80"):
    studies.read_runs(str(tmp_path))
  unsized = json.loads((tmp_path / "1" / "result.json").read_text())
  del unsized["metrics"]["parameters"]
  (tmp_path / "1" / "result.json").write_text(json.dumps(unsized))
  with pytest.raises(InputError, match="does not say its size, expected a run with a report"):
    studies.read_runs(str(tmp_path))
  (tmp_path / "1" / "result.json").write_text('{"experiment": "lm.pretrain", "finished": true}')
  with pytest.raises(InputError, match=r"is no result card of lm.pretrain"):
    studies.read_runs(str(tmp_path))


# -- the other studies -------------------------------------------------------------------------------------------------


def test_batches_read_as_many_tokens_at_three_rates(trained):
  found = studies.train_batches(configure(study="batch", batch_sizes=(3, 6), seeds=2), CORPUS)
  assert found.updates == (4, 2) and [x[2] for x in trained] == [3, 6]
  middle = 0.1 * 8**0.5
  np.testing.assert_allclose(found.rates, [[middle * f * root for f in (0.5, 1, 2)] for root in (1, 2**0.5)])
  assert found.losses.shape == (2, 3, 2) and found.best.tolist() == [0, 0]  # the law's best rate is 0.1
  assert [(job.rate, job.seed) for job in trained[0][1][:2]] == [
    (pytest.approx(middle / 2), 0),
    (pytest.approx(middle / 2), 1),
  ]


def test_epochs_are_of_fewer_windows_and_end_alike(trained):
  found = studies.train_epochs(configure(study="epochs", epochs=(1, 2, 4)), CORPUS)
  ((_, jobs, _, _),) = trained
  assert [(job.updates, job.unique) for job in jobs] == [(4, 12), (4, 6), (4, 3), (2, 6), (1, 3)]
  assert found.repeated.shape == (3, 1) and found.once[0] == found.repeated[0]
  assert np.all(np.diff(found.once[:, 0]) > 0) and np.all(np.diff(found.repeated[:, 0]) == 0)


def test_an_ensemble_has_as_many_parameters_and_averages_probabilities(trained, monkeypatch):
  config = configure(study="ensemble", width=64, members=(1, 2, 4), tokens=48)
  found = studies.train_ensembles(config, CORPUS)
  assert found.widths[0] == 64 and found.widths[1] in (44, 46) and found.widths[2] in (30, 32)
  for parameters in found.parameters:
    assert abs(parameters / found.parameters[0] - 1) < 0.06
  assert [len(jobs) for _, jobs, _, _ in trained] == [1, 2, 4] and [job.seed for job in trained[2][1]] == [0, 1, 2, 3]
  chances = np.random.default_rng(0).uniform(0.01, 1, (3, 5, 2))
  np.testing.assert_allclose(studies.mix_losses(-np.log(chances)), -np.log(chances.mean(0)))
  monkeypatch.setattr(studies, "train_jobs", lambda *given: -np.log(chances[: len(given[2])]))
  found = studies.train_ensembles(configure(study="ensemble", members=(3,)), CORPUS)
  assert found.together[0] == pytest.approx(-np.log(chances.mean(0)).mean())
  np.testing.assert_allclose(found.alone[0], -np.log(chances).mean((1, 2)))


# -- flags and what is left --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags, words", [
  (dict(widths=(8, 4)), "--widths=8,4"),
  (dict(widths=(4, 7), heads=2), "--widths=4,7"),
  (dict(study="batch", width=7), "--width=7"),
  (dict(budgets=(24, 48)), "--budgets=24,48"),
  (dict(budgets=()), "--budgets="),
  (dict(epochs=(0, 1)), "--epochs=0,1"),
  (dict(members=(2, 2)), "--members=2,2"),
  (dict(draws=1), "--draws=1"),
  (dict(learning_rate=0.0), "--learning_rate=0"),
])  # fmt: skip
def test_what_is_out_of_range_is_one_sentence(flags, words):
  with pytest.raises(InputError, match=words):
    configure(**flags)


def test_flags_of_other_studies_are_said_to_be_idle():
  assert {"width", "tokens", "members"} <= set(configure().idle_flags()) and "budgets" not in configure().idle_flags()
  assert {"widths", "budgets", "runs", "draws"} <= set(configure(study="batch").idle_flags())
  told = set(configure(runs="x").idle_flags())
  assert {"dataset", "widths", "learning_rate"} <= told
  assert told <= {item.name for item in dataclasses.fields(scaling.Config)}  # each is a flag


def test_a_text_that_holds_no_batch_is_refused(capsys):
  with pytest.raises(InputError, match=r"--batch_size=51 is out of range: .*50 windows"):
    scaling.check_text(configure(batch_size=51, budgets=(999, 9999, 99999)), CORPUS)
  with pytest.raises(InputError, match=r"--tokens=48 is out of range: .*an update's 96"):
    scaling.check_text(configure(study="batch", batch_sizes=(3, 24)), CORPUS)
  of_epochs = dict(study="epochs", batch_size=2)
  with pytest.raises(InputError, match=r"--tokens=208 is out of range: .*the 200 of the training text, read once"):
    scaling.check_text(configure(**of_epochs, tokens=208, epochs=(1,)), CORPUS)
  with pytest.raises(InputError, match=r"--epochs=26 is out of range: .*at most 25"):
    scaling.check_text(configure(**of_epochs, tokens=200, epochs=(1, 26)), CORPUS)
  scaling.check_text(configure(**of_epochs, tokens=200, epochs=(1, 25)), CORPUS)
  scaling.check_text(configure(budgets=(24, 48, 400)), CORPUS)
  assert "read up to 2.0 times" in capsys.readouterr().out


@pytest.mark.parametrize("study, figure, picture", [
  ("size", "optimal_exponent/high", "scaling.png"),
  ("batch", "batch_6/loss", "batch.png"),
  ("epochs", "epochs_2/repeated", "epochs.png"),
  ("ensemble", "members_2/loss", "ensemble.png"),
])  # fmt: skip
def test_figures_and_a_picture_are_left(study, figure, picture, trained, monkeypatch, tmp_path):
  monkeypatch.setattr(scaling, "load_data", lambda config: CORPUS)
  flags = dict(batch_sizes=(3, 6), epochs=(1, 2), members=(1, 2), seeds=1 if study == "ensemble" else 2)
  assert scaling.main(configure(study=study, workdir=str(tmp_path), **flags)) == 0
  found = json.loads((tmp_path / "result.json").read_text())["metrics"]
  assert np.isfinite(found[figure]["mean"]) and (tmp_path / picture).stat().st_size > 9000
  assert len(found.get("batch_6/loss", found.get("epochs_2/once", {"seeds": [0, 0]}))["seeds"]) == 2


def test_a_law_is_fitted_to_runs_that_are_there(tmp_path, monkeypatch):
  monkeypatch.setattr(scaling, "load_data", None)  # no text is read
  grid(tmp_path / "runs")
  assert scaling.main(configure(runs=str(tmp_path / "runs"), workdir=str(tmp_path / "out"))) == 0
  found = json.loads((tmp_path / "out" / "result.json").read_text())["metrics"]
  assert (
    found["runs"]["mean"] == 6 and found["least_loss"]["mean"] == 0.2 and found["least_loss_parameters"]["mean"] == 80
  )
