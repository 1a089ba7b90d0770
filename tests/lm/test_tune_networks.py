"""Tuning networks of every objective: which part of them a method changes, and what tells what they have learned."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lm import _tuning_network, pretrain, tune
from experiments.lm._tuning import build_tuning
from experiments.lm._tuning_network import fresh_params, measure_importance, network_config, pretraining_loss
from mlnotes.engine.experiment import example_keys, root_key
from mlnotes.engine.record import config_dict
from mlnotes.lm.trainable import flatten

NETWORK = dict(scratch=True, model="gpt2", depth=1, width=8, heads=2, length=12, task="follows")
SMALL = dict(batch_size=4, steps=4, warmup_steps=0, eval_every=0, train_rows=8, test_rows=4, devices=1)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
  path = tmp_path_factory.mktemp("text") / "lines.txt"
  path.write_text("\n".join(f"Number {i} and Square {i * i}, Tom says it" for i in range(40)))
  return str(path)


PARTS = {"masked": "", "spans": "model/", "replaced": "discriminator/", "corrupted": "encoder/"}


@pytest.mark.parametrize("objective", PARTS)
def test_low_rank_updates_are_of_what_reads_with_dropout_as_well(objective, text):
  """Nothing is added to a generator or a decoder, whose updates would never learn and yet be kept."""
  config = tune.Config(
    **NETWORK, **SMALL, dataset=text, objective=objective, method="lora", lora_dropout=0.5, lora_alpha=64.0
  )
  network, _ = tune.build(config)
  tuning = build_tuning(config, network.task)
  tune.make(config)  # traces it
  tokens, lengths = jnp.array([[3, 4, 5, 6, 7, 8]]), jnp.array([6])

  def run(key):
    parts = tuning.split(root_key(1), fresh_params(network, root_key(0)))
    lora = jax.tree.map(lambda x: x + 0.3, parts.trained["lora"])
    read = lambda key: tuning.features(parts._replace(trained={"lora": lora, "network": {}}), {"lora_alpha": 64.0},
                                       tokens, lengths, key)  # fmt: skip
    return parts.trained, read(None), read(key), read(jax.random.fold_in(key, 1))

  trained, *_ = jax.eval_shape(run, root_key(2))
  leaves = jax.tree_util.tree_leaves_with_path(trained["lora"])
  paths = {"/".join(entry.key for entry in path[:-1]) for path, _ in leaves}
  block = f"{PARTS[objective]}{'' if objective == 'corrupted' else 'transformer/'}block0"
  assert paths == {f"{block}/attention/{name}/kernel" for name in ("query", "value")}
  if objective == "replaced":
    _, usual, first, second = jax.jit(run)(root_key(2))
    assert np.any(usual != first) and np.any(first != second)


def test_of_electra_it_is_the_discriminator_that_may_forget(text):
  """Its loss is told before and after tuning, and its parameters matter by it: the generator's says nothing of them."""
  config = tune.Config(**NETWORK, **SMALL, dataset=text, objective="replaced", method="adapters", adapter_width=3)
  network, _ = tune.build(config)
  large = lambda x: 10 * x if x.ndim > 1 else x
  network = network._replace(params=jax.jit(lambda: jax.tree.map(large, fresh_params(network, root_key(0))))())
  tuning = build_tuning(config, network.task)
  parts = tuning.split(root_key(1), network.params)
  strong = jax.tree.map(lambda x: 30 * x, parts.trained["adapters"])
  parts = parts._replace(trained={**parts.trained, "adapters": strong})
  corpus, objective = network.corpus, network.task.objective
  rows = jnp.arange(len(corpus.test))
  examples = jax.vmap(objective.prepare)(
    example_keys(root_key(0), rows), jnp.asarray(corpus.test.read(np.asarray(rows))["tokens"])
  )
  found = jax.jit(lambda params: objective.terms(params, examples, None)["discriminator_loss"])(network.params)
  plain = build_tuning(config, network.task, "features")
  before = pretraining_loss(network, plain, tune.Parts({"network": {}}, network.params), {})
  np.testing.assert_allclose(before, found.total.sum() / found.count.sum(), rtol=1e-5)
  assert abs(pretraining_loss(network, tuning, parts, {}) - before) > 1e-3
  importance = flatten(measure_importance(network, tuning, parts, {}, 2))
  assert importance and all(path.startswith("discriminator/") for path in importance)
  assert all(np.any(x > 0) for x in importance.values())


def test_a_run_in_parts_is_read_in_any_number_of_windows(text, tmp_path):
  config = pretrain.Config(
    dataset=text, depth=1, width=8, heads=2, length=12, batch_size=12, accumulate=2, head_chunks=3
  )
  (tmp_path / "config.json").write_text(json.dumps({"experiment": "lm.pretrain", "config": config_dict(config)}))
  found = network_config(tune.Config(**SMALL, pretrained=str(tmp_path)))
  assert (found.batch_size, found.accumulate, found.head_chunks) == (2, 1, 1)  # no more logits than the run had
  task = _tuning_network.make_task(found, _tuning_network.load_text(found))
  windows = jax.ShapeDtypeStruct((5, 13), jnp.int32)

  def nats(tokens):
    examples = jax.vmap(task.objective.prepare)(jax.random.split(root_key(0), 5), tokens)
    return task.objective.terms(task.objective.init(root_key(0), examples), examples, None)["loss"].total

  assert jax.eval_shape(nats, windows).shape == (5,)
