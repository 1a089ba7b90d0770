"""What every experiment promises, checked on each one that `python -m experiments` lists.

A new experiment enters by being in the catalogue; this file then asks for a small configuration of it in `SMALL`.
"""

import functools
import importlib
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import catalogue
from mlnotes.engine.checkpoint import Checkpoints
from mlnotes.engine.experiment import hparam_paths, set_hparams
from mlnotes.engine.flags import experiment_name
from mlnotes.engine.program import Program, make_mesh, window_means

SMALL = {
  "attention.recall": dict(
    task="sorting", length=4, symbols=5, kind="routing", width=8, heads=2, depth=1, window=2, batch_size=16, steps=20,
    warmup_steps=2, test_sequences=24, dropout=0.1,
  ),
  "attention.experts": dict(
    batch_size=4, length=8, depth=1, width=8, heads=2, experts=3, k=2, steps=20, warmup_steps=2, eval_examples=8
  ),
  "attention.perceiver": dict(
    dataset="digits", batch_size=16, latents=3, width=8, heads=2, depth=1, repeats=1, bands=2, dropout=0.1, steps=20,
    warmup_steps=2, eval_examples=32,
  ),
  "diffusion.ddpm": dict(
    batch_size=16, timesteps=8, channels=8, multipliers=(1, 2), num_blocks=1, attention_resolutions=(), steps=20
  ),
  "diffusion.latent": dict(
    batch_size=16, timesteps=8, channels=8, num_blocks=1, attention_resolutions=(), first_channels=(4,),
    latent_channels=2, steps=20,
  ),
  "generative.autoencoder": dict(
    kind="sparse", codes=6, batch_size=16, steps=20, warmup_steps=2, eval_examples=32
  ),
  "generative.vqvae": dict(
    channels=(4,), blocks=1, num_codes=8, code_width=2, prior_depth=1, prior_width=8, prior_heads=2, batch_size=16,
    steps=20, warmup_steps=2, eval_examples=32, perplexity_examples=64,
  ),
  "generative.vae": dict(
    latents=2, hidden=(8,), bound="iwae", importance_samples=2, batch_size=16, steps=20, eval_every=0
  ),
  "graph.nodes": dict(hidden=4, drop_edge=0.2, steps=20),
  "generative.translation": dict(width=4, blocks=1, pool_size=6, batch_size=4, steps=20, eval_examples=16),
  "generative.text_gan": dict(
    length=3, vocabulary=5, width=3, filters=2, oracle_width=3, batch_size=8, roll_outs=2, steps=20, pretrain_steps=1,
    discriminator_steps=1, eval_examples=16,
  ),
  "graph.graphs": dict(
    folds=3, batch_size=100, width=4, depth=1, pooling="mean", rates=(1.0,), dropouts=(0.0, 0.5), optimizer="sgd",
    steps=20, eval_every=0,
  ),
  "generative.gan": dict(
    dataset="ring", width=4, latent=3, batch_size=8, critic_steps=2, loss="hinge", regularizer="spectral",
    conditional="projection", discriminator_ema=0.9, steps=20, eval_examples=16,
  ),
  **{
    f"contrastive.{name}": dict(
      batch_size=16, width=8, projection=8, steps=20, warmup_steps=2, knn_examples=64, eval_examples=32, **more
    )
    for name, more in {
      "barlow_twins": dict(augmentation="none"),
      "cpc": dict(patch_size=4, patch_stride=2, num_offsets=1),
      "instance": dict(noise_samples=8, augmentation="none"),
      "moco": dict(queue_size=40, symmetric=True, augmentation="crop"),
      "simclr": dict(augmentation="none"),
      "simsiam": dict(bottleneck=8, augmentation="none"),
    }.items()
  },
  "generative.flow": dict(
    flow="glow", couplings=1, width=4, levels=1, batch_size=16, steps=20, warmup_steps=2, eval_examples=32
  ),
  "graph.generation": dict(
    dataset="ladder", graphs=20, width=4, edge_width=3, depth=1, max_previous=3, batch_size=16, steps=20, eval_every=0
  ),
  "meta.maml": dict(
    batch_size=8, shots=3, queries=3, widths=(8,), inner_steps=2, eval_inner_steps=2, eval_examples=12, test_tasks=8,
    steps=20, step_rates=True, multi_step_updates=10, inner_optimizer="momentum", remat=True,
  ),
  "meta.meta_sgd": dict(
    batch_size=16, side_by_side=8, shots=3, queries=3, widths=(8,), eval_examples=12, test_tasks=8, steps=20,
    order="first", adapted="head",
  ),
  "meta.reptile": dict(
    tasks="images", network="fully_connected", batch_norm="support", batch_size=8, ways=2, shots=4, queries=4,
    eval_queries=3, inner_batch=16, inner_steps=2, eval_inner_steps=2, eval_examples=12,
    test_tasks=8, steps=20,
  ),
  "meta.learned_optimizer": dict(
    variables=3, batch_size=4, horizon=4, unroll=2, hidden=4, layers=1, eval_problems=4, steps=20
  ),
  "graph.embedding": dict(
    task="links", method="node2vec", batch_size=6, length=5, window=2, dimensions=4, negatives=2, shared_negatives=4,
    steps=20, eval_every=0,
  ),
  "lm.agent": dict(
    terms=2, depth=1, heads=2, width=8, batch_size=4, test_goals=6, steps=20, warmup_steps=2, eval_every=0,
  ),
  "lm.languages": dict(
    words=6, length=6, depth=1, width=8, heads=2, batch_size=16, test_documents=24, steps=20, warmup_steps=2,
  ),
  "lm.pretrain": dict(
    batch_size=4, length=8, depth=1, width=8, heads=2, kv_heads=1, experts=2, dropout=0.1, packed=True, accumulate=2,
    head_chunks=2, steps=20, warmup_steps=2, eval_examples=8,
  ),
  "lm.rlhf": dict(
    prompts=2, words=2, answer_tokens=2, width=8, depth=1, batch_size=4, answers=2, minibatches=2, eval_every=0,
    steps=20,
  ),
  "lm.dpo": dict(
    prompts=2, words=2, answer_tokens=2, width=8, depth=1, batch_size=8, test_pairs=8, eval_every=0, steps=20
  ),
  "lm.reward": dict(
    prompts=2, words=2, answer_tokens=2, width=8, depth=1, batch_size=8, test_pairs=8, eval_every=0, steps=20
  ),
  "lm.sft": dict(
    scratch=True, method="lora", lora_rank=2, lora_dropout=0.1, dropout=0.1, batch_size=4, length=40, depth=1, width=8,
    heads=2, steps=20, warmup_steps=2, eval_examples=8,
  ),
  "lm.in_context": dict(
    features=2, points=4, curriculum=1, curriculum_every=5, depth=1, heads=2, width=8, batch_size=4, test_prompts=8,
    steps=20, warmup_steps=2, eval_every=0, log_every=10,
  ),
  "lm.retrieval": dict(
    people=2, asked=3, test_people=2, depth=1, heads=2, width=8, k=2, batch_size=4, steps=20, encoder_steps=2,
    warmup_steps=0, eval_every=0, log_every=10,
  ),
  "lm.chain_of_thought": dict(
    task="addition", digits=2, second_digits=1, depth=1, heads=2, width=8, batch_size=4, test_problems=8,
    vote_problems=4, samples=2, steps=20, warmup_steps=2, eval_every=0,
  ),
  "lm.grokking": dict(prime=7, width=8, heads=2, steps=20, warmup_steps=2, eval_every=0, log_every=10),
  "lm.sentences": dict(
    dataset="pydoc", objective="skip_thought", width=8, length=6, vocab_size=64, batch_size=4, passage=2, dropout=0.1,
    steps=20, eval_examples=8,
  ),
  "lm.tune": dict(
    scratch=True, task="moved", method="lora", lora_rank=2, lora_dropout=0.1, dropout=0.1, batch_size=4, length=8,
    depth=1, width=8, heads=2, train_rows=64, test_rows=8, steps=20, warmup_steps=2,
  ),
  "nn.classifier": dict(
    dataset="digits", network="mlp", width=8, batch_size=16, steps=20, warmup_steps=2, augmentation="none",
    distort="rts", ema_decay=0.9, label_smoothing=0.1, dropout=0.1, eval_examples=32,
  ),
  "sequence.char_lm": dict(
    cell="lstm", form="stack", carry=True, batch_size=4, length=8, depth=1, width=8, dropout=0.1, steps=20,
    warmup_steps=2, eval_examples=8,
  ),
  "sequence.tagging_and_memory": dict(
    task="slots", bidirectional=True, width=8, recurrent_dropout=0.1, batch_size=16, steps=20, warmup_steps=2,
    test_sequences=24,
  ),
  **{
    f"rl.{name}": dict(steps=20, steps_per_update=60, initial_value=1.0)  # without reward there is something to learn
    for name in ("dyna_q", "expected_sarsa", "monte_carlo", "q_learning", "sarsa", "sarsa_lambda", "watkins_q")
  },
  **{
    f"rl.{name}": dict(
      steps=20, num_envs=2, train_every=2, gradient_steps=2, batch_size=8, replay_capacity=64, learning_starts=0,
      hidden=(8,), eval_episodes=2,
    )
    for name in ("ddpg", "dqn", "sac")
  },
  **{
    f"rl.{name}": dict(steps=20, num_envs=4, rollout_length=16, hidden=(8,), eval_episodes=2)
    for name in ("a2c", "ppo", "trpo")
  },
  "sequence.ntm": dict(
    bits=2, most=3, lengths=(2, 4), test_sequences=24, batch_size=16, units=6, cells=6, test_cells=7, width=3, steps=20
  ),
  "sequence.pointer": dict(
    task="tsp", sizes=(3, 4), test_sizes=(4,), test_sets=24, batch_size=16, width=8, heads=2, depth=1, steps=20,
    warmup_steps=2,
  ),
  "rl.actor_critic": dict(num_envs=4, steps_per_update=40, eval_episodes=4, steps=20),
  "rl.linear_sarsa": dict(steps_per_update=210, num_tilings=4, tiles_per_dim=4, eval_episodes=4, steps=20),
  "rl.reinforce": dict(num_envs=2, hidden=(8,), eval_episodes=2, steps=20),
  "sequence.ctc": dict(
    batch_size=16, width=4, cell="mingru", shortest=1, longest=2, test_strings=24, dropout=0.1, steps=20, warmup_steps=2
  ),
  "sequence.autoencoder": dict(
    longest_source=24, longest_target=24, width=8, batch_size=8, steps=20, warmup_steps=2, dropout=0.1, eval_examples=16
  ),
  "sequence.translation": dict(
    width=8, batch_size=8, steps=20, warmup_steps=2, copy=True, coverage=0.5, guided="antidiagonal", dropout=0.1,
    scheduled_sampling=5.0, label_smoothing=0.1, eval_examples=16,
  ),
}  # fmt: skip


def trains(name):
  """Read, not imported: a worker imports the experiments that it tests."""
  return "\ndef make(" in Path(find_spec(f"experiments.{name}").origin).read_text()


NAMES = [name for name, _ in catalogue() if trains(name)]
# Of the module: one experiment after the other, so that its programs are kept for as long as it is tested.
each_experiment = pytest.mark.parametrize("name", NAMES, scope="module")


def test_every_experiment_is_here():
  assert set(SMALL) == set(NAMES)


@functools.lru_cache(maxsize=6)
def build(name, **changes):
  module = importlib.import_module(f"experiments.{name}")
  config = module.Config(**{**SMALL[name], **changes})
  return module.make(config), module.make_feeds(config), config


# LAPACK's kernels for many matrices wait for threads in the very threads they need: devices of a CPU wait for ever.
LAPACK = {"cholesky", "eig", "eigh", "geqrf", "householder_product", "lu", "qr", "schur", "svd"}


def all_equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
      if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
        yield from all_equations(getattr(inner, "jaxpr", inner))


def program(name, seeds=(0,), devices=1):
  if seeds != (0,) and len(seeds) == devices == 1:
    return program(name).with_seeds(seeds)
  return compiled(name, seeds, devices)


@functools.lru_cache(maxsize=6)
def compiled(name, seeds, devices):
  experiment, feeds, _ = build(name)
  # Vmapped, as on accelerators; the other orders of seeds are in tests/engine/test_layout.py.
  return Program(experiment, feeds, seeds, make_mesh(devices), seeds_in_turn=False)


def first_state(name, seeds=(0,), devices=1):
  return made_state(name, seeds, devices)


@functools.lru_cache(maxsize=6)
def made_state(name, seeds, devices):
  run = program(name, seeds, devices)
  if devices == 1:
    return run.init()
  # That of one device: `init` on several is in tests/engine/test_sharding.py.
  return jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), made_state(name, seeds, 1), run.abstract_state)


def start(name, seeds=(0,), devices=1):
  """The first state anew: `update` takes it away."""
  return jax.tree.map(lambda x: jax.device_put(x, x.sharding, may_alias=False), first_state(name, seeds, devices))


def trained(name, seeds=(0,), devices=1):
  """(metrics of each of 3 updates, final state on the host)."""
  return trained_once(name, seeds, devices)


@functools.lru_cache(maxsize=6)
def trained_once(name, seeds, devices):
  run = program(name, seeds, devices)
  state, metrics = start(name, seeds, devices), []
  for _ in range(3):
    state, window = run.update(state, run.empty_window(), 1)
    metrics.append(window_means(window))
  return metrics, host(state)


def host(state):
  as_data = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
  return jax.tree.map(lambda x: np.array(as_data(x), copy=True), state)


def assert_trees_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_trees_close(a, b, **tolerance):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@each_experiment
def test_state_is_a_namedtuple_of_arrays_with_step_and_root_key(name):
  run = program(name)
  state = first_state(name)
  assert run.experiment.model is not None  # for mlnotes.load_run
  assert hasattr(state, "_fields") and state.step.dtype == jnp.int32
  assert jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key)
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
  _, after = trained(name)
  assert after.step == 3
  np.testing.assert_array_equal(after.key, jax.random.key_data(state.key))


@functools.lru_cache(maxsize=2)
def traced_step(name, **changes):
  """(`step` traced on the state that `init` gives, that state's shapes)."""
  experiment, feeds, _ = build(name, **changes)
  key = jax.random.key(0)
  batch = jax.eval_shape(feeds.train.draw, feeds.train.arrays, key, jnp.int32(0))
  state = jax.eval_shape(experiment.init, key, batch)
  return jax.jit(experiment.step).trace(state, batch), state


@each_experiment
def test_step_is_pure_and_gives_what_it_takes(name):
  """No effects beside its results, and a state of the same types (weak ones too): a second update compiles nothing."""
  traced, state = traced_step(name)
  assert not traced.jaxpr.effects
  assert jax.tree.structure(traced.out_info[0]) == jax.tree.structure(state)
  types = [(aval.shape, aval.dtype, aval.weak_type) for aval in traced.jaxpr.in_avals]
  after = [(aval.shape, aval.dtype, aval.weak_type) for aval in traced.jaxpr.out_avals]
  count = len(jax.tree.leaves(state))
  assert after[:count] == types[:count]


@each_experiment
def test_no_seed_waits_for_the_matrices_of_another(name):
  run = program(name, (0, 1))
  jaxpr = jax.make_jaxpr(run._first_state)(run._root_keys(), run._example_input())
  found = [x for x in all_equations(jaxpr.jaxpr) if x.primitive.name in LAPACK]
  assert all(x.invars[0].aval.ndim == 2 for x in found), found


@each_experiment
def test_learning_rate_is_read_from_the_state(name):
  """Another one in the state changes what the compiled update learns."""
  if not hasattr(build(name)[2], "learning_rate"):
    pytest.skip("no learning rate")
  run, state = program(name), start(name)
  # One of each optimizer: an agent may have several.
  rates = [path for path, last in hparam_paths(state).items() if last == "learning_rate"]
  changed, _ = run.update(set_hparams(state, dict.fromkeys(rates, 1e-5)), run.empty_window(), 3)
  learned = lambda state: {
    jax.tree_util.keystr(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    if jax.tree_util.keystr(path) not in hparam_paths(state)
  }
  found, expected = learned(host(changed)), learned(trained(name)[1])
  assert any(not np.array_equal(found[path], expected[path]) for path in expected)


@each_experiment
def test_learning_rate_is_not_compiled_in(name):
  """Two configs that differ in the learning rate lower to the same program, so the compilation cache serves both."""
  config = build(name)[2]
  if not hasattr(config, "learning_rate"):
    pytest.skip("no learning rate")
  other, _ = traced_step(name, learning_rate=config.learning_rate / 2)
  assert other.lower().as_text() == traced_step(name)[0].lower().as_text()


@each_experiment
def test_metrics_are_finite_and_seeds_differ(name):
  metrics, state = trained(name)
  other, other_state = trained(name, seeds=(1,))
  for values in metrics:
    assert all(np.isfinite(v) for v in values.values()), values
  assert any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(other_state)))
  assert metrics != other
  evaluation = program(name).evaluate(first_state(name))
  assert all(np.isfinite(v) for v in evaluation.values()), evaluation


@each_experiment
def test_vmapped_seeds_equal_single_seeds(name):
  together, _ = trained(name, seeds=(0, 1))
  for i, seed in enumerate((0, 1)):
    alone, _ = trained(name, seeds=(seed,))
    for a, b in zip(alone, together):
      # What this seed has nothing of yet, such as a finished episode, is NaN beside what another has.
      assert a
      assert_trees_close({k: b[k][i] for k in a}, a, rtol=2e-4, atol=1e-6)
      assert all(np.isnan(b[k][i]) for k in b.keys() - a.keys())


@each_experiment
def test_one_device_equals_two(name):
  one, _ = trained(name)
  two, _ = trained(name, devices=2)
  for a, b in zip(one, two):
    assert_trees_close(a, b, rtol=1e-5, atol=1e-6)


@each_experiment
def test_grouping_of_updates_and_a_checkpoint_change_no_bit(name, tmp_path):
  """3 updates = 1 update, a checkpoint restored on another program, 2 more; also read on two devices."""
  metrics, straight = trained(name)
  run = program(name)
  state, window = run.update(start(name), run.empty_window(), 1)
  assert window_means(window) == metrics[0]
  saved = host(state)
  checkpoints = Checkpoints(tmp_path / "checkpoints")
  checkpoints.save(1, {"state": state, "window": window}, {}, None)
  state, window = run.update(state, window, 2)  # donates what is being written
  assert_trees_equal(host(state), straight)
  checkpoints.wait()
  like = {"state": run.abstract_state, "window": run.abstract_window}
  restored, _ = checkpoints.restore(1, like)
  assert_trees_equal(host(restored["state"]), saved)
  state, window = run.update(restored["state"], restored["window"], 2)
  assert_trees_equal(host(state), straight)
  two = program(name, devices=2)
  restored, _ = checkpoints.restore(1, {"state": two.abstract_state, "window": two.abstract_window})
  assert_trees_equal(host(restored["state"]), saved)
  assert len(jax.tree.leaves(restored["state"])[0].sharding.device_set) == 2
  checkpoints.close()


@each_experiment
def test_an_experiment_is_called_after_its_module(name):
  assert experiment_name(importlib.import_module(f"experiments.{name}").Config) == name
