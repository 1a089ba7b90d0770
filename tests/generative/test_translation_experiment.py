"""The wiring of `generative.translation`: who is trained by what, and what is measured beside what."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.generative import _translation_report, translation
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import stream_key
from mlnotes.engine.progress import take_warnings
from mlnotes.generative.translation import PatchDiscriminator

TINY = dict(width=4, blocks=1, batch_size=4, steps=4, pool_size=3, devices=1, quality_samples=20)


def build(**flags):
  config = translation.Config(**{**TINY, **flags})
  experiment = translation.make(config)
  rows = translation.load_domains(config).train.read(np.arange(4))
  batch = jax.tree.map(jnp.asarray, {**rows, "index": np.arange(4), "mask": np.ones(4)})
  return config, experiment, experiment.init(jax.random.key(0), batch), batch


@pytest.fixture(scope="module")
def unpaired():
  config, experiment, state, batch = build()
  return config, experiment._replace(step=jax.jit(experiment.step)), state, batch


@pytest.fixture(scope="module")
def paired():
  config, experiment, state, batch = build(task="paired")
  return config, experiment._replace(step=jax.jit(experiment.step)), state, batch


def moved(before, after):
  return any(np.any(a != b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after)))


def zero(state, *names):
  """`state` with these weights of the loss at 0."""
  return state._replace(
    hparams={name: 0.0 * value if name in names else value for name, value in state.hparams.items()}
  )


def test_every_weight_of_the_loss_has_its_part(unpaired, paired):
  """The loss is linear in each weight, and with all of them 0 the translators stay."""
  for _, experiment, state, batch in (unpaired, paired):
    names = tuple(state.hparams)
    whole = experiment.step(state, batch)[1]["loss"]
    without = [float(experiment.step(zero(state, name), batch)[1]["loss"]) for name in names]
    np.testing.assert_allclose(whole, sum(float(whole) - rest for rest in without), rtol=1e-4)
    assert all(rest < float(whole) for rest in without)
    still, metrics = experiment.step(zero(state, *names), batch)
    assert metrics["loss"] == 0 and not moved(state.translators, still.translators)
    assert moved(state.discriminators, still.discriminators)  # these learn all the same


def by_hand(experiment, state, batch):
  """(x, y, translators as functions, a discriminator's scores), each network by itself."""
  x, y = (batch[kind].astype(jnp.float32) / 8 - 1 for kind in ("source", "target"))
  network, critic = experiment.model(state).network, PatchDiscriminator(TINY["width"])
  keys = {"dropout": stream_key(state.key, "dropout", state.step)}
  run = lambda name: lambda x: network.apply({"params": state.translators[name]}, x, train=True, rngs=keys)
  score = lambda name, x: critic.apply({"params": state.discriminators[name]}, x)
  return x, y, {name: run(name) for name in state.translators}, score


def apart(a, b):
  return float(jnp.mean(jnp.abs(a - b)))


def test_cycle_and_identity_are_of_the_images_that_they_should_give_back(unpaired):
  """Forward and back again, and each translator on what it is to make: on its source it would learn to do nothing."""
  _, experiment, state, batch = unpaired
  x, y, run, score = by_hand(experiment, state, batch)
  forward, backward = run["forward"], run["backward"]
  loss = lambda *names: float(experiment.step(zero(state, *names), batch)[1]["loss"])
  unit_scale = (apart(backward(forward(x)), x) + apart(forward(backward(y)), y)) / 4
  assert float(experiment.step(state, batch)[1]["cycle"]) == pytest.approx(unit_scale, rel=1e-4)
  expected = 10 * (apart(backward(forward(x)), x) + apart(forward(backward(y)), y))
  assert loss("adversarial_weight", "identity_weight") == pytest.approx(expected, rel=1e-4)
  expected = 5 * (apart(forward(y), y) + apart(backward(x), x))
  assert loss("adversarial_weight", "cycle_weight") == pytest.approx(expected, rel=1e-4)
  made = {"target": forward(x), "source": backward(y)}
  fooled = sum(float(jnp.mean((score(name, image) - 1) ** 2)) / 2 for name, image in made.items())
  assert loss("cycle_weight", "identity_weight") == pytest.approx(fooled, rel=1e-4)


def test_a_pair_is_told_from_the_same_input_with_a_made_output(paired):
  _, experiment, state, batch = paired
  x, y, run, score = by_hand(experiment, state, batch)
  fake = run["forward"](x)
  of_real, of_fake = (score("target", jnp.concatenate([x, image], -1)) for image in (y, fake))
  loss = lambda *names: float(experiment.step(zero(state, *names), batch)[1]["loss"])
  assert loss("adversarial_weight") == pytest.approx(100 * apart(fake, y), rel=1e-4)
  assert float(experiment.step(state, batch)[1]["l1"]) == pytest.approx(apart(fake, y) / 2, rel=1e-4)
  assert loss("l1_weight") == pytest.approx(float(jnp.mean(jax.nn.softplus(-of_fake))), rel=1e-4)
  told = float(jnp.mean(jax.nn.softplus(-of_real)) + jnp.mean(jax.nn.softplus(of_fake)))
  assert float(experiment.step(state, batch)[1]["discriminator_loss"]) == pytest.approx(told, rel=1e-4)


def test_both_directions_and_both_discriminators_learn(unpaired):
  _, experiment, state, batch = unpaired
  after, _ = experiment.step(state, batch)
  for name in ("forward", "backward"):
    assert moved(state.translators[name], after.translators[name])
  for name in ("target", "source"):
    assert moved(state.discriminators[name], after.discriminators[name])


def test_without_their_weight_the_discriminators_move_no_translator(unpaired):
  _, experiment, state, batch = unpaired
  first, _ = experiment.step(zero(state, "adversarial_weight"), batch)
  other = state._replace(discriminators=jax.tree.map(lambda p: p + 0.3, state.discriminators))
  second, _ = experiment.step(zero(other, "adversarial_weight"), batch)
  jax.tree.map(np.testing.assert_array_equal, first.translators, second.translators)


def test_the_pool_holds_translations_of_its_own_kind(unpaired):
  _, experiment, state, batch = unpaired
  after, _ = experiment.step(state, batch)
  signed = lambda image: image.astype(jnp.float32) / 8 - 1
  network = experiment.model(state).network
  for name, direction, image in (("target", "forward", "source"), ("source", "backward", "target")):
    made = network.apply({"params": state.translators[direction]}, signed(batch[image]))
    pool = after.pools[name]
    assert pool.filled == 3
    near = lambda image, made=made: float(jnp.min(jnp.max(jnp.abs(made - image[None]), axis=(1, 2, 3))))
    assert max(near(image) for image in pool.images) < 1e-4


def test_discriminators_are_shown_what_the_pools_give_by_chances_of_each_update(unpaired):
  _, experiment, state, batch = unpaired
  full = lambda grey: state._replace(
    pools={
      name: pool._replace(images=jnp.full_like(pool.images, grey), filled=jnp.int32(3))
      for name, pool in state.pools.items()
    }
  )
  told = lambda state: float(experiment.step(state, batch)[1]["discriminator_loss"])
  assert told(full(0.9)) != told(full(-0.9))
  assert len({told(full(0.9)._replace(step=jnp.int32(step))) for step in range(5)}) > 1


def test_outputs_are_dropped_anew_in_each_update_and_as_often_as_the_flag_says(paired):
  _, experiment, state, batch = paired
  errors = {float(experiment.step(state._replace(step=jnp.int32(step)), batch)[1]["l1"]) for step in range(2)}
  assert len(errors) == 2
  network = (
    translation.make(translation.Config(**{**TINY, "width": 5}, task="paired", dropout=0.25)).model(state).network
  )
  assert (network.dropout, network.width) == (0.25, 5)


def test_what_is_evaluated_and_drawn_are_the_slow_weights(unpaired, monkeypatch, tmp_path):
  config, _, first, batch = unpaired
  experiment = translation.make(dataclasses.replace(config, lookahead=5))
  before = jax.jit(experiment.init)(jax.random.key(0), batch)
  after = before._replace(translators=jax.tree.map(lambda leaf: leaf + 1, before.translators))
  evaluate = jax.jit(experiment.evaluate)
  assert evaluate(after, batch)["cycle"].total == evaluate(before, batch)["cycle"].total
  made = []
  monkeypatch.setattr(_translation_report, "write_report", lambda found, *_: made.append(found) or {})
  experiment.report(after, tmp_path)
  for name in ("forward", "backward"):
    jax.tree.map(np.testing.assert_array_equal, made[0][name].params, before.translators[name])
  jax.tree.map(np.testing.assert_array_equal, experiment.model(after).params, before.translators["forward"])
  assert jax.tree.structure(before.translators) == jax.tree.structure(first.translators)


def test_each_kind_has_its_own_grey_levels(monkeypatch):
  levels, domains = [], translation.load_domains(translation.Config(**TINY))
  monkeypatch.setattr(translation, "load_domains", lambda config: domains._replace(source_levels=33))
  monkeypatch.setattr(translation, "to_signed", lambda image, of: levels.append(of) or image.astype(jnp.float32))
  experiment = translation.make(translation.Config(**TINY))
  batch = {name: jnp.asarray(value) for name, value in domains.train.read(np.arange(4)).items()}
  jax.eval_shape(experiment.step, jax.eval_shape(experiment.init, jax.random.key(0), batch), batch)
  assert levels == [33, 17]


def test_the_best_checkpoint_has_the_least_error(monkeypatch):
  for task, metric in (("unpaired", "cycle"), ("paired", "l1")):
    called = {}
    monkeypatch.setattr(translation, "train", lambda *_, called=called, **options: called.update(options) or 0)
    assert translation.main(translation.Config(**TINY, task=task)) == 0
    assert called["best_metric"] == metric and called.get("best_mode", "min") == "min"


def test_errors_are_of_the_images_on_the_unit_scale(unpaired, paired):
  """Against the translators, applied by hand."""
  for (_, experiment, state, batch), name in ((unpaired, "cycle"), (paired, "l1")):
    found = experiment.evaluate(state, {**batch, "mask": jnp.array([1.0, 1, 0, 0])})[name]
    x, y = (np.asarray(batch[kind], np.float32) / 8 - 1 for kind in ("source", "target"))
    network = experiment.model(state).network
    apply = lambda direction, x, state=state, network=network: network.apply(
      {"params": state.translators[direction]}, jnp.asarray(x)
    )
    made = apply("forward", x)
    error = np.abs(apply("backward", made) - x) if name == "cycle" else np.abs(made - y)
    np.testing.assert_allclose(found.total / found.count, error[:2].mean() / 2, rtol=1e-4)


def test_pairs_are_views_of_each_other_and_other_images_where_there_are_no_pairs():
  view = lambda x: np.concatenate([x[:, :4], np.zeros_like(x[:, 4:])], axis=1)
  pairs = translation.load_domains(translation.Config(**TINY, task="paired"))
  for split in (pairs.train, pairs.test):
    np.testing.assert_array_equal(split.arrays["source"], view(split.arrays["target"]))
  loose = translation.load_domains(translation.Config(**TINY))
  rows = lambda images: {row.tobytes() for row in images}
  positive = rows(16 - loose.train.arrays["source"])
  assert len(positive & rows(loose.train.arrays["target"])) < 0.02 * len(positive)
  np.testing.assert_array_equal(loose.test.arrays["source"], 16 - loose.test.arrays["target"])
  # A label is that of the source.
  known = {row.tobytes(): label for row, label in zip(pairs.train.arrays["target"], pairs.train.arrays["label"])}
  told = np.array([known[row.tobytes()] for row in 16 - loose.train.arrays["source"]])
  assert np.mean(told == loose.train.arrays["label"]) > 0.99  # a few digits stand there twice
  # Of two data sets each part is of the same part.
  both = translation.load_domains(translation.Config(**TINY, source="digits"))
  for name in ("train", "test"):
    np.testing.assert_array_equal(getattr(both, name).arrays["source"], getattr(both.target, name).image)


def test_without_a_pool_the_state_has_none_and_the_discriminators_learn():
  """An array without numbers could not be saved."""
  _, experiment, state, batch = build(pool_size=0)
  assert state.pools == {} and all(leaf.size for leaf in jax.tree.leaves(state))
  after, _ = jax.jit(experiment.step)(state, batch)
  assert after.pools == {} and moved(state.discriminators, after.discriminators)


def test_translators_begin_as_the_flags_say():
  begins = lambda **flags: translation.Config(**TINY, **flags).begins_as_identity
  assert begins(source="digits") and not begins() and begins(begin="identity")
  assert not begins(source="digits", begin="scratch")
  _, experiment, state, batch = build(begin="identity")
  x = batch["source"].astype(jnp.float32) / 8 - 1
  np.testing.assert_allclose(experiment.model(state)(x), 0.99 * x, atol=1e-5)


def test_without_a_discriminator_none_is_trained():
  _, experiment, state, batch = build(task="paired", adversarial_weight=0.0)
  after, metrics = experiment.step(state, batch)
  assert not moved(state.discriminators, after.discriminators) and "discriminator_loss" not in metrics
  assert moved(state.translators, after.translators)


def test_a_pair_is_judged_together():
  """The discriminator of pairs sees input and output: its first kernel has the channels of both."""
  _, _, state, _ = build(task="paired")
  assert state.discriminators["target"]["Conv_0"]["kernel"].shape[2] == 2


@pytest.mark.parametrize("task", ["unpaired", "paired"])
def test_a_report_of_a_perfect_translator(task, tmp_path):
  config = translation.Config(**TINY, task=task, view="negative")
  domains = translation.load_domains(config)
  take_warnings()
  negative = lambda x: -x
  domains = domains._replace(train=None)  # the test images alone are translated
  figures = _translation_report.write_report({"forward": negative, "backward": negative}, domains, config, tmp_path)
  assert figures["label_kept"] > 0.9 > 0.5 > figures["label_kept_untranslated"]
  assert figures["judge_distance_20"] < 0.5 * figures["judge_distance_20_untranslated"]
  assert (tmp_path / "translations.png").exists() and not take_warnings()
  assert ("l1_untranslated" in figures) == (task == "paired")


def test_a_translator_that_makes_one_image_of_all_has_collapsed(tmp_path):
  config = translation.Config(**TINY)
  take_warnings()
  flat = lambda x: jnp.zeros_like(x)
  _translation_report.write_report(
    {"forward": flat, "backward": flat}, translation.load_domains(config), config, tmp_path
  )
  assert any(text.startswith("collapsed") for text in take_warnings())


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (dict(task="paired", source="digits"), "--source=digits"),
    (dict(source="digits", view="edges"), "--view=edges"),
    (dict(dropout=1.0), "--dropout=1.0"),
    (dict(cycle_weight=-1.0), "--cycle_weight=-1.0"),
    (dict(image_size=10), "--dataset=digits: found images of 10 x 10, expected .* multiples of 4"),
    (dict(source="nosuch"), "--source=nosuch: looked for"),
    (dict(source="digits", source_margin=4), "--source_margin=4"),
    (dict(source="sprites"), "--source=sprites has 3 classes"),
  ],
)
def test_bad_input_is_one_sentence(flags, said):
  with pytest.raises(InputError, match=said):
    translation.load_domains(translation.Config(**{**TINY, **flags}))


def test_flags_without_effect_are_named():
  assert {"l1_weight", "dropout", "source_margin"} <= translation.Config(**TINY).idle_flags().keys()
  assert {"cycle_weight", "pool_size", "begin"} <= translation.Config(**TINY, task="paired").idle_flags().keys()


def test_two_collections_have_weights_that_leave_the_identity():
  weights = lambda config: (config.cycle_weight, config.identity_weight)
  tuned = translation.Config.tuned
  assert weights(tuned(source="mnist")) == (3, 0) and weights(tuned()) == (10, 5)
  assert weights(tuned(source="mnist", identity_weight=2.0)) == (3, 2)
