"""Sequence GANs' wiring: who learns when and from what, which flags reach what, what a report leaves.

Players of a few weights; each test fails for one mistake that the experiment could make.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.generative import _text_gan_report, _text_players, text_gan
from experiments.generative._text_world import held_sequences, make_world, training_sequence
from mlnotes import generative
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key, set_hparams, stream_key

SMALL = dict(
  length=4, vocabulary=5, width=3, filters=2, oracle_width=3, batch_size=4, roll_outs=2, code=2, latent=2,
  likelihood_codes=3, steps=20, pretrain_steps=3, discriminator_steps=1, eval_examples=8, train_sequences=16,
)  # fmt: skip


def assert_equal(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def assert_close(found, expected):
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, expected)


def differ(a, b) -> bool:
  return any(bool(jnp.any(x != y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


class Run:
  """An experiment with its parts, a first state and a batch, each compiled once."""

  def __init__(self, **flags):
    self.config = text_gan.Config(**SMALL | flags)
    self.world = make_world(self.config)
    self.players = text_gan.make_players(self.config, self.world)
    self.experiment = text_gan.make(self.config)
    self.feeds = text_gan.make_feeds(self.config)
    self.batch = jax.jit(lambda: self.feeds.train.draw((), root_key(5), jnp.int32(0)))()
    self.state = jax.jit(self.experiment.init)(root_key(0), self.batch)
    self.step = jax.jit(self.experiment.step)
    self.parts = self.batch["tokens"].reshape(self.players.critic_steps, -1, self.config.length)

  def at(self, step, **hparams):
    """What an update makes of the first state as if it were number `step`."""
    return self.step(set_hparams(self.state, hparams)._replace(step=jnp.int32(step)), self.batch)


@functools.cache
def run(**flags):
  return Run(**flags)


@pytest.fixture(autouse=True, scope="module")
def forget():
  yield
  run.cache_clear()


@pytest.fixture
def seqgan():
  return run()


def test_the_first_updates_are_maximum_likelihood_and_the_last_of_them_teach_the_discriminator(seqgan):
  of = seqgan
  learned = jax.jit(functools.partial(_text_players.learn_text, of.players))(of.state.generator, of.parts[-1])[0]
  for step, taught in ((0, False), (1, False), (2, True)):
    found, metrics = of.at(step)
    assert_close(found.generator.params, learned.params)
    assert differ(found.discriminator, of.state.discriminator) == taught
    assert float(metrics["likelihood_loss"].count) == 1 and float(metrics["reward"].count) == 0
    assert float(metrics["told_apart"].count) == taught
  # The roll-out policy is the generator as long as it imitates.
  assert_close(found.roll_out, learned.params)


def test_the_game_is_updates_of_the_discriminator_on_parts_of_the_batch_then_one_by_its_rewards(seqgan):
  of, step = seqgan, jnp.int32(3)
  found, metrics = of.at(3)
  noise = _text_players.draw_noise(of.players, of.state.key, step, 4)
  assert of.batch["tokens"].shape == (8, 4) and noise["completed"].shape == (2, 3, 4, 4)

  @jax.jit
  def expect(state):
    discriminator, _ = _text_players.teach_on_sequences(
      of.players, state.discriminator, state.generator, of.parts, noise, None, state.hparams
    )
    generator, _ = _text_players.learn_reward(
      of.players, state.generator, state.roll_out, discriminator, noise, state.hparams
    )
    return discriminator, generator

  discriminator, generator = expect(of.state)
  assert_close(found.discriminator, discriminator)
  assert_close(found.generator, generator)
  lagging = jax.tree.map(lambda old, new: 0.8 * old + 0.2 * new, of.state.roll_out, generator.params)
  assert_close(found.roll_out, lagging)
  assert float(metrics["likelihood_loss"].count) == 0 and float(metrics["reward"].count) == 1
  assert differ(generator.params, of.state.generator.params) and float(metrics["policy_gradient"].total) > 0


@pytest.mark.parametrize("method", ["seqgan", "gumbel"])
def test_the_generator_moves_towards_what_the_discriminator_takes_for_text(method):
  """Sign: a discriminator that counts tokens 0 makes them more probable."""
  of = run(method=method) if method == "gumbel" else run()

  class Zeros:
    def apply(self, variables, tokens):
      weights = jax.nn.one_hot(tokens, 5) if tokens.ndim == 2 else tokens
      return 2 * jnp.sum(weights[..., 0], 1) - 2

  players, state = of.players._replace(discriminator=Zeros()), of.state
  noise = _text_players.draw_noise(players, root_key(1), jnp.int32(0), 64)
  hparams = {**state.hparams, "adversarial_rate": jnp.float32(4.0)}

  def learn(generator):
    if method == "seqgan":
      return _text_players.learn_reward(players, generator, state.roll_out, state.discriminator, noise, hparams)
    return _text_players.learn_relaxed(players, generator, state.discriminator, noise, 1.0, hparams)

  learned, _ = jax.jit(learn)(state.generator)
  zeros = jnp.zeros((1, 4), jnp.int32)
  chance = [
    float(jnp.sum(generative.token_log_probability(generative.make_policy(players.model, p["model"]), zeros)))
    for p in (state.generator.params, learned.params)
  ]
  assert chance[1] > chance[0] + 0.01


def test_a_constant_reward_moves_nothing_unless_there_is_no_baseline(seqgan):
  of = seqgan
  noise = _text_players.draw_noise(of.players, of.state.key, jnp.int32(3), 4)

  def learn(**rules):
    players, state = of.players._replace(**rules), of.state
    learned = lambda: _text_players.learn_reward(
      players, state.generator, state.roll_out, state.discriminator, noise, state.hparams
    )
    found, metrics = jax.jit(learned)()
    return found.params, float(metrics["advantage"].total)

  found, advantage = learn(reward="constant")
  assert_equal(found, of.state.generator.params)
  assert advantage == 0
  found, advantage = learn(reward="constant", baseline="none")
  assert advantage == 1 and differ(found, of.state.generator.params)
  found, advantage = learn(reward="maligan")
  assert advantage > 0 and differ(found, of.state.generator.params)
  # What completes nothing keeps no policy to complete with, and the flags say which reward it is.
  for flags in (dict(reward="constant"), dict(reward="maligan", baseline="none")):
    config = text_gan.Config(**SMALL | flags)
    state = jax.eval_shape(text_gan.make(config).init, root_key(0), of.batch)
    players = text_gan.make_players(config, of.world)
    assert state.roll_out == () and players.reward == flags["reward"] and players.baseline == config.baseline


def test_completions_are_the_lagging_policys(seqgan):
  of = seqgan
  noise = _text_players.draw_noise(of.players, of.state.key, jnp.int32(3), 4)
  learn = jax.jit(
    lambda roll_out: (
      _text_players.learn_reward(
        of.players, of.state.generator, roll_out, of.state.discriminator, noise, of.state.hparams
      )[0].params
    )
  )
  other = jax.tree.map(lambda p: p + 0.5 * jnp.sign(p), of.state.roll_out)
  assert differ(learn(of.state.roll_out), learn(other))


@pytest.mark.parametrize("method", ["arae", "seqgan"])
def test_an_update_of_the_discriminator_leaves_the_generator_and_no_gradient_in_it(method):
  of = run() if method == "seqgan" else run(method=method)
  noise = _text_players.draw_noise(of.players, of.state.key, jnp.int32(2), 4)

  def loss(params):
    generator = of.state.generator._replace(params=params)
    if method == "arae":
      teach = _text_players.teach_on_codes
      return teach(of.players, of.state.discriminator, generator, of.parts, noise, of.state.hparams)[1][
        "distance"
      ].total
    teach = functools.partial(_text_players.teach_on_sequences, of.players, of.state.discriminator, generator)
    return teach(of.parts, noise, 1.0, of.state.hparams)[1]["discriminator_loss"].total

  assert all(
    float(jnp.max(jnp.abs(g))) == 0 for g in jax.tree.leaves(jax.jit(jax.grad(loss))(of.state.generator.params))
  )


def test_the_auto_encoder_learns_alone_before_the_game():
  of = run(method="arae")
  before, metrics = of.at(0)
  assert_equal(before.generator.params["codes"], of.state.generator.params["codes"])
  assert float(metrics["reconstruction_loss"].count) == 1 and not differ(before.discriminator, of.state.discriminator)
  scale = [of.at(3, encoder_scale=value)[0].generator.params for value in (0.0, 1.0)]
  assert differ(scale[0]["encoder"], scale[1]["encoder"]) and not differ(scale[0]["codes"], scale[1]["codes"])
  assert differ(scale[0]["codes"], of.state.generator.params["codes"])
  # The noise on the codes reaches the decoder.
  noise = [of.at(3, code_noise=value)[0].generator.params["model"] for value in (0.0, 1.0)]
  assert differ(*noise)


@pytest.mark.parametrize(
  "flags, name, values",
  [
    (dict(), "adversarial_rate", (0.1, 0.2)),
    (dict(method="gumbel"), "gumbel_temperature", (0.5, 1.0)),
    (dict(method="gumbel"), "adversarial_rate", (0.1, 0.2)),
  ],
)
def test_numbers_of_the_flags_reach_the_generator(flags, name, values):
  found = [run(**flags).at(3, **{name: value})[0].generator.params for value in values]
  assert differ(*found)


@pytest.mark.parametrize(
  "flags, name, values",
  [(dict(), "discriminator_rate", (0.1, 0.2)), (dict(method="arae"), "penalty_weight", (0.0, 10.0))],
)
def test_numbers_of_the_flags_reach_the_discriminator(flags, name, values):
  found = [run(**flags).at(3, **{name: value})[0].discriminator.params for value in values]
  assert differ(*found)


def test_the_relaxation_cools_over_the_game_and_the_noise_of_codes_over_the_run(seqgan):
  state = lambda step: seqgan.state._replace(step=jnp.int32(step))
  temperatures, deviations = zip(*(text_gan.anneal(seqgan.config, state(step)) for step in (0, 3, 20)))
  np.testing.assert_allclose(temperatures, [1, 1, 0.2], rtol=1e-6)
  np.testing.assert_allclose(deviations, [0.2, 0.2 * 17 / 20, 0], atol=1e-7)
  middle, _ = text_gan.anneal(dataclasses.replace(seqgan.config, pretrain_steps=10), state(15))
  assert float(middle) == pytest.approx(0.2**0.5)


def test_maximum_likelihood_alone_has_no_second_player(seqgan):
  config = text_gan.Config(**SMALL | dict(method="mle"))
  experiment, batch = text_gan.make(config), jax.tree.map(lambda x: x[:4], seqgan.batch)
  assert config.units_per_update == 4 and seqgan.config.units_per_update == 8
  state = jax.eval_shape(experiment.init, root_key(0), batch)
  found, metrics = jax.eval_shape(experiment.step, state, batch)
  assert found.discriminator == () and found.roll_out == () and set(metrics) == {"likelihood_loss"}


def test_training_sequences_are_a_fixed_set_and_the_test_sequences_are_others(seqgan):
  of = seqgan
  known = jax.jit(jax.vmap(lambda i: training_sequence(of.config, of.world, i)))(jnp.arange(16))
  rows = {tuple(row) for row in np.asarray(known)}
  assert {tuple(row) for row in np.asarray(of.batch["tokens"])} <= rows
  test = np.asarray(of.feeds.evaluate.draw((), 0)["tokens"])
  assert not {tuple(row) for row in test} <= rows
  train, held = held_sequences(of.config, of.world)
  np.testing.assert_array_equal(train, known)
  assert held.shape == (1000, 4) and differ(held[:8], test)


def test_both_figures_are_of_the_same_temperature(seqgan):
  """By hand: what the oracle pays for the generator's, and the generator for the oracle's."""
  of, heat = seqgan, 0.5
  batch = {**seqgan.feeds.evaluate.draw((), 0), "mask": jnp.ones(8).at[5:].set(0)}  # five of them count
  found = text_gan.make(dataclasses.replace(of.config, eval_temperature=heat)).evaluate
  found = jax.jit(found)(of.state, batch)
  assert set(found) == {"oracle_nll_t0.5", "generator_nll_t0.5"}

  @jax.jit
  def expect(state):
    writer = of.experiment.model(state)
    logits = writer.model.apply({"params": state.generator.params["model"]}, batch["tokens"]) / heat
    read = -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), batch["tokens"][..., None], -1)[:5])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(stream_key(state.key, "evaluate"), batch["index"])
    written = writer.write(jax.vmap(lambda key: jax.random.uniform(key, (4,)))(keys), None, heat)
    return jnp.mean(of.world.nats(written)[:5]), read

  written, read = (float(x) for x in expect(of.state))
  assert float(found["oracle_nll_t0.5"].total) / 5 == pytest.approx(written, rel=1e-4)
  assert float(found["generator_nll_t0.5"].total) / 5 == pytest.approx(read, rel=1e-4)


def test_the_likelihood_of_an_auto_encoder_is_a_mean_over_codes():
  """Of all sequences of four tokens it sums to one."""
  of = run(method="arae")
  sequences = jnp.stack(jnp.meshgrid(*[jnp.arange(5)] * 4), -1).reshape(-1, 4).astype(jnp.int32)
  z = jax.random.normal(root_key(2), (3, 2)) * 3
  chance = jax.jit(lambda z: jnp.exp(-4 * of.experiment.model(of.state).nats(sequences, z)))
  together = chance(z)
  assert float(jnp.sum(together)) == pytest.approx(1, abs=1e-5)
  apart = [chance(jnp.broadcast_to(z[i : i + 1], (3, 2))) for i in range(3)]
  np.testing.assert_allclose(together, (apart[0] + apart[1] + apart[2]) / 3, rtol=1e-4)
  assert differ(*apart[:2])


def test_windows_of_a_text_are_written_after_their_first_token(tmp_path):
  path = tmp_path / "text.txt"
  path.write_text("abcd" * 60)
  of = text_gan.Config(**SMALL | dict(dataset=str(path)))
  world = make_world(of)
  tokens = world.tokens({"tokens": jnp.arange(10).reshape(2, 5) % 4})
  np.testing.assert_array_equal(tokens, [[1, 2, 3, 0], [2, 3, 0, 1]])
  read = lambda text: jnp.asarray(world.corpus.tokenizer.encode(text), jnp.int32)[None]
  assert world.judge_name == "bigram" and float(world.nats(read("abcd"))[0]) < float(world.nats(read("dcba"))[0]) - 1
  assert "vocabulary" in of.idle_flags() and "tokenizer" not in of.idle_flags()


@pytest.mark.parametrize(
  "flags, sentence",
  [
    (dict(pretrain_steps=20), "--pretrain_steps=20 is out of range: expected less than --steps=20, or --method=mle"),
    (dict(discriminator_steps=4), "--discriminator_steps=4 is out of range: expected at most --pretrain_steps=3"),
    (dict(batch_size=1), "--batch_size=1 is out of range: expected 2 or more for --baseline=others"),
    (dict(last_gumbel_temperature=0.0), "--last_gumbel_temperature=0.0 is out of range: expected 0.01 or more"),
    (dict(rollout_lag=1.0), "--rollout_lag=1.0 is out of range"),
    (dict(eval_temperature=0.0), "--eval_temperature=0.0 is out of range: expected a number above 0"),
    (dict(length=1), "--length=1 is out of range: expected 2 or more"),
  ],
)
def test_bad_flags_are_refused_in_a_sentence(flags, sentence):
  with pytest.raises(InputError, match=sentence):
    text_gan.Config(**SMALL | flags)


def test_flags_without_effect_say_so():
  idle = lambda **flags: set(text_gan.Config(**SMALL | flags).idle_flags())
  assert {"code", "gumbel_temperature", "tokenizer"} <= idle() and not {"roll_outs", "reward"} & idle()
  assert {"roll_outs", "rollout_lag"} <= idle(reward="maligan")
  assert {"pretrain_steps", "critic_steps", "filters", "reward"} <= idle(method="mle")
  assert "adversarial_rate" in idle(method="arae") and "code" not in idle(method="arae")


def test_the_parts_of_a_run_shrink_with_it_unless_they_are_asked_for():
  config = text_gan.Config(steps=250)
  assert (config.game_begins, config.taught) == (200, 200)
  assert (text_gan.Config(steps=250, pretrain_steps=100)).game_begins == 100


def test_a_report_leaves_its_figures_and_its_picture_and_says_what_has_collapsed(tmp_path, capsys):
  config = text_gan.Config(**SMALL | dict(train_sequences=4000))
  world = make_world(config)

  @jax.tree_util.register_static
  @dataclasses.dataclass(frozen=True)
  class Writer:
    """The oracle itself, or one that repeats a sequence."""

    collapsed: bool

    def sample(self, key, count, temperature):
      uniform = jax.random.uniform(key, (count, 4))
      tokens = generative.sample_sequences(world.judge, uniform)
      return jnp.broadcast_to(tokens[:1], tokens.shape) if self.collapsed else tokens

    def nats(self, tokens, z, temperature):
      return world.nats(tokens)

  names = ("eval/oracle_nll_t1", "eval/generator_nll_t1")
  lines = [{"step": step, **dict.fromkeys(names, 2.0 / step)} for step in (2, 4, 8)]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  for collapsed in (False, True):
    found = _text_gan_report.report_writer(Writer(collapsed), root_key(0), world, config, tmp_path)
    assert found["collapsed"] == collapsed
    said = capsys.readouterr().err
    assert ("collapsed: 0% of the generated sequences" in said) == collapsed
    assert (tmp_path / "learning.png").stat().st_size > 5000
    (tmp_path / "learning.png").unlink()
  # Fitted to the data, bigrams foretell it better than single tokens and worse than what drew it.
  floors = [found[name] for name in ("oracle_nll_t1_real", "generator_nll_t1_bigram", "generator_nll_t1_unigram")]
  assert floors == sorted(floors) and floors[0] < floors[2] - 0.02
  assert found["oracle_nll_t1_unigram"] > found["oracle_nll_t1_real"] + 0.01
  assert found["distinct_1000_t1"] == 0.001 < found["distinct_1000_real"]
  assert "data cost the generator 3.00" in _text_gan_report.describe_collapse(3.0, 2.0, 1, 1)
