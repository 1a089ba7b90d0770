"""The game's wiring: what an update changes and what it must not, which flags reach what, what a report leaves.

Players of a few weights on points of the ring; each test fails for one mistake that the experiment could make.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.generative import _gan_report, _judging, gan
from mlnotes import generative
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import example_keys, root_key, set_hparams, stream_key
from mlnotes.generative.game import apply_player, draw_noise, update_discriminator, update_generator
from mlnotes.generative.gan_regularizers import spectral_normalize

SMALL = dict(dataset="ring", width=4, latent=3, batch_size=6, deviation=0.05, steps=20, eval_examples=18)


def assert_equal(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def differ(a, b) -> bool:
  return any(bool(jnp.any(x != y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


class Run:
  """An experiment with its parts, a first state and a batch, each compiled once."""

  def __init__(self, **flags):
    self.config = gan.Config(**SMALL | flags)
    self.world = gan.make_world(self.config)
    self.game = gan.make_game(self.config, self.world)
    self.experiment = gan.make(self.config)
    self.feeds = gan.make_feeds(self.config)
    self.batch = jax.jit(lambda: self.feeds.train.draw(self.feeds.train.arrays, root_key(5), jnp.int32(0)))()
    self.state = jax.jit(self.experiment.init)(root_key(0), self.batch)
    self.step = jax.jit(self.experiment.step)
    self.embed, self.evaluate = jax.jit(self.experiment.embed), jax.jit(self.experiment.evaluate)
    self.discriminate = jax.jit(functools.partial(update_discriminator, self.game))
    self.generate = jax.jit(functools.partial(update_generator, self.game))

  def reference(self, state):
    arrays = [self.embed(state, self.feeds.evaluate.draw((), i)) for i in range(self.feeds.evaluate.num_batches)]
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), *arrays)


apply = jax.jit(apply_player, static_argnums=(0, 5))


@functools.cache
def run(**flags):
  return Run(**flags)


@pytest.fixture(autouse=True, scope="module")
def forget():
  yield
  run.cache_clear()


def test_a_step_is_updates_of_the_discriminator_on_parts_of_the_batch_then_one_of_the_generator():
  """Each player's new state is what its own update makes of it, bit for bit: no update touches the other's."""
  of = run(critic_steps=2, regularizer="spectral", loss="hinge", conditional="projection")
  state, batch = of.state, of.batch
  assert batch["x"].shape == (12, 2)
  found, _ = of.step(state, batch)
  keys = [jax.random.fold_in(stream_key(state.key, "discriminator", state.step), i) for i in range(2)]
  discriminator = state.discriminator
  for part, key in zip((slice(0, 6), slice(6, 12)), keys):
    discriminator, _ = of.discriminate(
      discriminator, state.generator, batch["x"][part], batch["label"][part], key, state.step, state.hparams
    )
  key = stream_key(state.key, "generator", state.step)
  generator, metrics, _ = of.generate(
    state.generator, discriminator, batch["label"][6:], key, state.step, state.hparams
  )
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, found.discriminator, discriminator)
  jax.tree.map(close, found.generator, generator)
  assert float(metrics["generator_gradient"]) > 0
  assert int(found.step) == 1 and differ(found.generator.params, state.generator.params)


def test_running_statistics_of_the_generator_are_its_own_updates_alone():
  """Of images: the discriminator's update generates in training mode and must forget the statistics."""
  of = run(dataset="digits", width=2, critic_steps=1)
  found, _ = of.step(of.state, of.batch)
  key = stream_key(of.state.key, "generator", of.state.step)
  noise = draw_noise(key, 6, 3)
  _, stats = apply(of.game.generator, of.state.generator.params, of.state.generator.batch_stats, noise, None, True)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, found.generator.batch_stats, stats)
  # Real and generated examples stand apart: two updates of the discriminator's statistics, neither from both at once.
  real = of.world.examples(of.batch)
  key = jax.random.split(jax.random.fold_in(stream_key(of.state.key, "discriminator", 0), 0))[0]
  player = of.state.generator
  fake, _ = apply(of.game.generator, player.params, player.batch_stats, draw_noise(key, 6, 3), None, True)
  stats = of.state.discriminator.batch_stats
  for x in (real, fake):
    _, stats = apply(of.game.discriminator, of.state.discriminator.params, stats, x, None, True)
  jax.tree.map(close, found.discriminator.batch_stats, stats)


def test_no_gradient_of_the_discriminators_loss_reaches_the_generator():
  of = run()

  def loss(params):
    generator = of.state.generator._replace(params=params)
    key = jax.random.key(1)
    x, label = of.batch["x"], of.batch["label"]
    return of.discriminate(of.state.discriminator, generator, x, label, key, of.state.step, of.state.hparams)[1][
      "discriminator_loss"
    ]

  assert all(float(jnp.max(jnp.abs(g))) == 0 for g in jax.tree.leaves(jax.grad(loss)(of.state.generator.params)))


@pytest.mark.parametrize("loss", ["minimax", "non_saturating", "wasserstein", "hinge", "least_squares", "energy"])
def test_each_player_pulls_the_scores_its_own_way(loss):
  """Signs: with a small step the discriminator parts the two scores, the generator brings its own towards real."""
  of = run(loss=loss, learning_rate=1e-3, optimizer="sgd", momentum=0.0)
  state, x, label = of.state, of.batch["x"], of.batch["label"]
  real_side = -1 if loss == "energy" else 1
  judge = lambda player: of.discriminate(
    player, state.generator, x, label, jax.random.key(3), state.step, state.hparams
  )
  player, before = judge(state.discriminator)
  _, after = judge(player)
  gap = lambda m: real_side * float(m["real_score"] - m["fake_score"])
  assert gap(after) > gap(before)
  move = lambda player: of.generate(player, state.discriminator, label, jax.random.key(3), state.step, state.hparams)
  player, _, fake = move(state.generator)
  moved = move(player)[2]
  score = lambda x: float(
    jnp.mean(apply(of.game.discriminator, state.discriminator.params, {}, x, None, False)[0].score)
  )
  assert real_side * score(moved) > real_side * score(fake)


def test_clipped_weights_are_clipped_after_the_update():
  of = run(loss="wasserstein", regularizer="clip", clip_bound=0.02)
  found, _ = of.step(of.state, of.batch)
  assert max(float(jnp.max(jnp.abs(p))) for p in jax.tree.leaves(found.discriminator.params)) <= np.float32(0.02)
  assert max(float(jnp.max(jnp.abs(p))) for p in jax.tree.leaves(found.generator.params)) > 0.02


@pytest.mark.parametrize(
  "flags, name, values",
  [
    (dict(regularizer="gradient_penalty", loss="wasserstein"), "penalty_weight", (0.0, 10.0)),
    (dict(regularizer="r1"), "penalty_weight", (0.0, 10.0)),
    (dict(conditional="auxiliary"), "auxiliary_weight", (0.0, 1.0)),
    (dict(loss="energy"), "margin", (0.01, 5.0)),
    (dict(), "discriminator_rate", (0.5, 1.0)),
  ],
)
def test_numbers_of_the_flags_reach_the_discriminator(flags, name, values):
  of = run(**flags)
  found = [of.step(set_hparams(of.state, {name: value}), of.batch)[0].discriminator.params for value in values]
  assert differ(*found)


@pytest.mark.parametrize(
  "flags, name", [(dict(loss="energy"), "pull_away"), (dict(conditional="auxiliary"), "auxiliary_weight")]
)
def test_numbers_of_the_flags_reach_the_generator(flags, name):
  of = run(**flags)
  update = lambda value: of.generate(
    of.state.generator, of.state.discriminator, of.batch["label"], jax.random.key(0), of.state.step,
    {**of.state.hparams, name: jnp.float32(value)},
  )[0].params  # fmt: skip
  assert differ(update(0.0), update(3.0))


def test_the_generator_learns_from_the_average_of_the_discriminator_where_one_is_kept():
  def update(of, player):
    label, key = of.batch["label"], jax.random.key(0)
    return of.generate(of.state.generator, player, label, key, of.state.step, of.state.hparams)[0].params

  for decay, matters in ((0.9, True), (0.0, False)):
    of = run(discriminator_ema=decay)
    moved = of.state.discriminator._replace(average=jax.tree.map(lambda p: p + 0.3, of.state.discriminator.average))
    found = [update(of, player) for player in (of.state.discriminator, moved)]
    assert differ(*found) == matters
  of = run(discriminator_ema=0.9)
  found, _ = of.step(of.state, of.batch)
  # The first update has the decay (1 + 0) / (10 + 0).
  expected = jax.tree.map(
    lambda a, p: 0.1 * a + 0.9 * p, of.state.discriminator.average["params"], found.discriminator.params
  )
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
  jax.tree.map(close, found.discriminator.average["params"], expected)


def test_a_discriminator_that_tells_too_much_apart_waits():
  of = run()
  waiting, metrics = of.step(set_hparams(of.state, balance=-1.0), of.batch)
  assert_equal(waiting.discriminator, of.state.discriminator)
  assert float(metrics["waited"]) == 1 and differ(waiting.generator.params, of.state.generator.params)
  _, metrics = of.step(of.state, of.batch)
  assert float(metrics["waited"]) == 0


def test_power_vectors_move_with_updates_of_the_discriminator_alone():
  of = run(critic_steps=2, regularizer="spectral", loss="hinge", conditional="projection")
  generator, _, _ = of.generate(
    of.state.generator, of.state.discriminator, of.batch["label"][:6], jax.random.key(0), of.state.step,
    of.state.hparams,
  )  # fmt: skip
  found, _ = of.step(of.state, of.batch)
  assert generator.power == {} and differ(found.discriminator.power, of.state.discriminator.power)
  normalised = spectral_normalize(found.discriminator.params, found.discriminator.power)
  for path in ("Dense_0", "Dense_1"):
    assert np.linalg.norm(normalised[path]["kernel"], 2) < 1.2


def test_a_label_is_drawn_like_the_datas_and_reaches_the_generator():
  of = run(conditional="concat")
  fakes = [
    of.generate(of.state.generator, of.state.discriminator, label, jax.random.key(0), of.state.step, of.state.hparams)[
      2
    ]
    for label in (jnp.zeros(6, jnp.int32), jnp.ones(6, jnp.int32))
  ]
  assert differ(*fakes)
  trained = of.experiment.model(of.state)
  z = jnp.ones((2, 3))
  sampled = trained(z, jnp.array([0, 1]))
  assert bool(jnp.any(sampled[0] != sampled[1]))


def test_what_is_evaluated_and_sampled_is_the_average():
  of = run()
  zero = of.state._replace(
    generator=of.state.generator._replace(params=jax.tree.map(jnp.zeros_like, of.state.generator.params))
  )
  key = jax.random.key(0)
  assert_equal(of.experiment.model(zero).sample(key, 4), of.experiment.model(of.state).sample(jax.random.clone(key), 4))
  batch = of.feeds.evaluate.draw((), 0)
  assert_equal(of.embed(zero, batch), of.embed(of.state, batch))


def test_lookaheads_slow_weights_are_averaged_and_evaluated():
  """These the first updates leave as they were, of both players."""
  of = run(lookahead=5)
  found, _ = of.step(of.state, of.batch)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-8)
  for player in ("generator", "discriminator"):
    before, after = getattr(of.state, player), getattr(found, player)
    jax.tree.map(close, after.average, before.average)
    assert differ(after.params, before.params)
  batch, reference = of.feeds.evaluate.draw((), 0), of.reference(of.state)
  scores = [of.evaluate(state, batch, reference) for state in (of.state, found)]
  for name in ("real_score", "fake_score"):
    np.testing.assert_allclose(*(score[name].total for score in scores), rtol=1e-5)


def test_evaluation_draws_by_the_examples_numbers_and_is_a_half_for_what_is_real():
  of = run()
  batch = of.feeds.evaluate.draw((), 0)
  embedded = of.embed(of.state, batch)
  keys = example_keys(stream_key(of.state.key, "evaluate"), batch["index"])
  noise = jnp.stack([draw_noise(key, 1, 3)[0] for key in keys])
  np.testing.assert_allclose(embedded["fake"], of.experiment.model(of.state)(noise), rtol=1e-4, atol=1e-5)
  reference = of.reference(of.state)
  found = of.evaluate(of.state, {**batch, "mask": jnp.array([1.0, 1, 1, 1, 0, 0])}, reference)
  assert set(found) == {"nearest_neighbor_accuracy", "on_mode", "real_score", "fake_score"}
  # By hand, over the four that count: is the nearest of the others, and of all of the other kind, of one's own?
  apart = lambda x, rows: np.linalg.norm(np.asarray(x)[:, None] - np.asarray(rows)[None], axis=-1)
  itself = np.asarray(batch["index"])[:, None] == np.asarray(reference["index"])[None]
  hits = [
    np.where(itself, np.inf, apart(embedded[own], reference[own])).min(1)
    < apart(embedded[own], reference[other]).min(1)
    for own, other in (("real", "fake"), ("fake", "real"))
  ]
  means = {name: float(value.total / value.count) for name, value in found.items()}
  assert means["nearest_neighbor_accuracy"] == pytest.approx(np.mean(hits, axis=0)[:4].mean())
  assert found["on_mode"].count == 4
  near = apart(embedded["fake"], of.world.mixture.centres).min(1) <= 3 * of.world.mixture.deviation
  assert means["on_mode"] == pytest.approx(near[:4].mean())
  player = of.state.discriminator
  for name in ("real", "fake"):
    score = apply(of.game.discriminator, player.params, player.batch_stats, embedded[name], None, False)[0].score
    assert means[f"{name}_score"] == pytest.approx(float(score[:4].mean()), rel=1e-4)
  index = jnp.arange(200)
  x, y = jax.random.normal(jax.random.key(1), (2, 200, 2))
  hits = lambda a, b: float(jnp.mean(generative.nearest_is_own(a, index, a, index, b, jnp.ones(200))))
  assert (hits(x, y) + hits(y, x)) / 2 == pytest.approx(0.5, abs=0.1)
  assert hits(x, y + 100) == 1 and hits(x, x + 1e-4) < 0.05


def test_the_test_split_of_images_is_evaluated_and_the_training_split_learned_from():
  of = run(dataset="digits", width=2, critic_steps=1)
  data = of.world.data
  batch = of.feeds.evaluate.draw(of.feeds.evaluate.arrays, 0)
  np.testing.assert_array_equal(batch["image"], data.test.image[np.asarray(batch["index"])])
  x = of.world.examples({"image": jnp.array([0, 16])})
  np.testing.assert_array_equal(x, [-1, 1])


@pytest.mark.parametrize(
  "flags, sentence",
  [
    (dict(regularizer="gradient_penalty", norm="batch", dataset="digits"), "--norm=batch is out of range"),
    (dict(loss="energy", conditional="concat"), "--conditional=concat is out of range: expected none"),
    (dict(network="dcgan"), "--network=dcgan is out of range: expected mlp"),
    (dict(loss="wasserstein", balance=0.8), "--balance=0.8 is out of range: expected 1 with"),
    (dict(critic_steps=0), "--critic_steps=0 is out of range"),
    (dict(quality_samples=2), "--quality_samples=2 is out of range"),
  ],
)  # fmt: skip
def test_bad_flags_are_refused_in_a_sentence(flags, sentence):
  with pytest.raises(InputError, match=sentence):
    gan.Config(**SMALL | flags)


def test_critic_steps_that_the_data_cannot_feed_are_named():
  with pytest.raises(InputError, match="--critic_steps=30 is out of range: expected at most 22"):
    gan.make_feeds(gan.Config(batch_size=64, critic_steps=30))


def test_flags_without_effect_say_so():
  assert "quality_samples" in gan.Config(**SMALL | dict(report_seeds=0)).idle_flags()
  idle = gan.Config(**SMALL).idle_flags()
  assert {"penalty_weight", "clip_bound", "auxiliary_weight", "margin", "pull_away", "data_dir"} <= set(idle)
  assert "deviation" in gan.Config(loss="energy").idle_flags() and "deviation" not in idle
  assert "penalty_weight" not in gan.Config(**SMALL | dict(regularizer="r1")).idle_flags()


def test_a_report_of_points_leaves_its_figures_and_pictures(tmp_path, capsys):
  of = run()
  config = dataclasses.replace(of.config, quality_samples=80)
  score = lambda x, label: jnp.sum(x, axis=1)
  mixture = of.world.mixture
  one = lambda count: jnp.tile(jnp.asarray(mixture.centres[:1], jnp.float32), (count, 1))

  @jax.tree_util.register_static
  @dataclasses.dataclass(frozen=True)
  class Generator:
    collapsed: bool
    num_classes = None
    latent = 3

    def __call__(self, z, label):
      return one(len(z))

    def sample(self, key, count, label):
      draw = lambda key: generative.draw_point(key, mixture)[0]
      return one(count) if self.collapsed else jax.vmap(draw)(jax.random.split(key, count))

  perfect, collapsed = Generator(False), Generator(True)
  line = '"train/told_apart": 0.7, "train/modes_in_batch": 4, "train/on_mode": 0.5'
  (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {step}, {line}}}\n' for step in (1, 2)))
  found = {}
  for generator in (perfect, collapsed):
    found = _gan_report.report_points(generator, score, jax.random.key(0), of.world, config, tmp_path)
    if generator is perfect:
      assert found["modes_caught_80"] == found["modes"] == 8 and found["high_quality_80"] > 0.9
      assert found["collapsed"] == 0 and found["mode_divergence_80_real"] < 0.3
  assert found["modes_caught_80"] == 1 and found["high_quality_80"] == 1 and found["collapsed"] == 1
  assert found["mode_divergence_80"] == pytest.approx(np.log(8))
  assert "collapsed: 7 of 8 modes are missing" in capsys.readouterr().err
  for name in ("points.png", "modes.png", "dynamics.png"):
    assert (tmp_path / name).stat().st_size > 1000


@pytest.mark.parametrize("count", [4, 40])
def test_figures_of_images_stand_beside_those_of_real_ones(count):
  """As few samples as the flag allows, too; of real images they are about what stands beside them."""
  rng = np.random.default_rng(0)
  data = {"image": rng.normal(size=(2 * count, 3)), "label": np.arange(2 * count) % 2}

  class Judge:
    features = staticmethod(lambda images: images)
    predict = staticmethod(lambda images: (images[:, 0] > 0).astype(int))
    probabilities = staticmethod(lambda images: np.eye(2)[(images[:, 0] > 0).astype(int)])

  half = {name: value[:count] for name, value in data.items()}
  reference = _judging.Reference(Judge, 1.0, half, half, data["image"], 0.1, count)
  samples = rng.normal(size=(count, 3))
  found = _gan_report._further_figures(reference, samples, 2) | _judging.judge_samples(reference, samples)
  assert all(np.isfinite(value) for value in found.values())
  beside = [name for name in found if f"{name}_real" in found]
  assert {f"{name}_{count}" for name in ("density", "coverage", "precision", "recall", "judge_score")} < set(beside)
  if count == 40:
    assert all(abs(found[name] - found[f"{name}_real"]) < 0.35 for name in beside if "distance" not in name)


def test_collapse_is_said_of_missing_modes_and_of_points_off_them():
  assert _gan_report.describe_collapse(np.full(4, 0.25), "modes") == ""
  assert _gan_report.describe_collapse(np.array([0.9, 0.01]), "modes").startswith("collapsed: 1 of 2 modes")
  assert _gan_report.describe_collapse(np.full(4, 0.05), "modes", 0.2).startswith("off the data: 20%")
