"""The network that --pretrained names, or that is trained first, and what it has learned."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from experiments.lm import pretrain
from experiments.lm._models import DecoderConfig
from experiments.lm._objectives import EVAL_SEED, OBJECTIVES, Task, load_text, make_task
from experiments.lm._tuning import Parts, Tuning
from experiments.lm._weights import load_weights
from mlnotes.data import Corpus
from mlnotes.data.flags import TextConfig
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import example_keys, root_key, stream_key
from mlnotes.engine.loop import default_workdir
from mlnotes.engine.stage import find_stage
from mlnotes.engine.trained import load_config, restore_states, unplace
from mlnotes.lm import estimate_fisher
from mlnotes.optim import eval_params

_AT_ONCE = 64  # windows

# Flags that say what network is trained first, on which text.
_OWN = ("dropout", "attention_dropout", "batch_size", "data_placement", "eval_examples", "data_dir")
NETWORK_FLAGS = (
  *(item.name for part in (DecoderConfig, TextConfig) for item in dataclasses.fields(part) if item.name not in _OWN),
  "objective",
)


class Network(NamedTuple):
  """What is tuned.

  Attributes:
    params: what it has learned; None: nothing yet.
    config: of the run that it is of, as it is read here.
    foretells: False where it is of others, who kept no head for words: it has no pretraining loss.
  """

  config: pretrain.Config
  corpus: Corpus
  task: Task
  params: Any
  foretells: bool = True


def first_settings(config: Any) -> dict[str, Any]:
  """Flags of the run of lm.pretrain that comes first."""
  rate = {} if config.model == "llama" else {"learning_rate": 1e-3}
  return {name: getattr(config, name) for name in (*NETWORK_FLAGS, "data_dir")} | rate


def network_config(config: Any) -> pretrain.Config:
  """The settings of the network: those of the run that --pretrained names, else those of the flags.

  Raises InputError where it names no run of lm.pretrain.
  """
  if config.pretrained:
    directory = Path(config.pretrained).expanduser()
    _, found = load_config(directory, {"lm.pretrain": pretrain.Config}, f"--pretrained={config.pretrained}")
  else:
    found = pretrain.Config(**first_settings(config))
  own = {name: getattr(config, name) for name in ("dropout", "attention_dropout", "precision")}
  own |= {"devices": 1, "fsdp": 1, "rows": ""}
  # Outputs of layers that are computed again backward cannot be taken out of them; frozen ones need not be.
  own |= {"remat": found.remat and config.method != "mix"}
  # Any number of windows is read here: as many at once as the run had logits of, and these in one part.
  at_once = max(1, found.batch_size // (found.accumulate * found.head_chunks))
  own |= {"batch_size": at_once, "accumulate": 1, "head_chunks": 1}
  return dataclasses.replace(found, data_dir=config.data_dir or found.data_dir, **own)


def pretrain_first(name: str, config: Any) -> Any:
  """The config of the experiment `name` with a network of lm.pretrain, trained by its flags into `pretrained`."""
  workdir = Path(config.workdir).expanduser() if config.workdir else default_workdir(name, config)
  shared = {name: getattr(config, name) for name in ("seed", "devices", "threads", "tensorboard")}
  given = {**first_settings(config), **shared, "steps": config.pretrain_steps, "precision": config.precision}
  first = find_stage("pretrained", "", pretrain, workdir, eval_every=0, **given)
  return dataclasses.replace(config, pretrained=str(first), workdir=str(workdir))


@functools.lru_cache(maxsize=2)
def load_network(config: Any) -> Network:
  """Raises InputError where there is nothing to tune, and as `restore_states` does."""
  if not (config.pretrained or config.weights or config.scratch):
    raise InputError("--pretrained is empty: expected a run of lm.pretrain, --weights, --scratch, or `main`.")
  found = network_config(config)
  corpus = load_text(found)
  if config.scratch:  # of a run that went on from --weights too
    return Network(found, corpus, OBJECTIVES[found.objective](found, corpus), None)
  task = make_task(found, corpus)
  if not config.pretrained:  # the folder's, and no more
    module, params = load_weights(found)
    return Network(found, corpus, task, params, module.causal or module.transform is not None)
  seed, said = found.seed if config.model_seed < 0 else config.model_seed, f"--pretrained={config.pretrained}"
  given = (Path(config.pretrained).expanduser(), pretrain.make(found), pretrain.make_feeds(found), found)
  states, _ = restore_states(*given, config.checkpoint, seed, said)
  state = states[seed]
  return Network(found, corpus, task, unplace(eval_params(state.opt_state, state.params)))


def fresh_params(network: Network, key: Any) -> Any:
  """Parameters that have learned nothing."""
  window = network.corpus.train.read(np.zeros(1, np.int32))["tokens"]
  examples = jax.vmap(network.task.objective.prepare)(stream_key(key, "example")[None], jnp.asarray(window))
  return network.task.objective.init(stream_key(key, "network"), examples)


def prepare_windows(network: Network, which: str) -> Callable[[Int[np.ndarray, " B"]], Any]:
  """(rows) -> what the pretraining objective shows and asks of windows of the split `which`, the same each time."""
  prepare = jax.jit(jax.vmap(network.task.objective.prepare))

  def of_rows(rows):
    tokens = jnp.asarray(getattr(network.corpus, which).read(rows)["tokens"])
    return prepare(example_keys(root_key(EVAL_SEED), jnp.asarray(rows)), tokens)

  return of_rows


def measure_importance(network: Network, tuning: Tuning, parts: Parts, numbers: Any, windows: int) -> Any:
  """Of the network's parameters that train: the mean square of the gradient of a training window's nats."""
  rows = np.random.default_rng(0).permutation(len(network.corpus.train))[:windows]

  def log_probability(some, example):
    whole = Parts({**parts.trained, "network": some}, parts.frozen)
    with tuning.tuned(whole, numbers) as params:
      terms = network.task.objective.terms(params, jax.tree.map(lambda x: x[None], example), None)
    return -jnp.sum(terms[network.task.term].total)

  examples = prepare_windows(network, "train")(rows)
  return jax.jit(lambda some: estimate_fisher(log_probability, some, examples))(parts.trained["network"])


def pretraining_loss(network: Network, tuning: Tuning, parts: Parts, numbers: Any) -> float:
  """The objective's loss over the test text's windows, by the network as it is tuned."""

  @jax.jit
  def one(parts, examples, real):
    with tuning.tuned(parts, numbers) as params:
      loss = network.task.objective.terms(params, examples, None)[network.task.term]
    return [jnp.sum(jnp.where(real, x, 0)) for x in loss]

  count, total, prepare = len(network.corpus.test), np.zeros(2), prepare_windows(network, "test")
  size = min(count, _AT_ONCE, 4 * network.config.batch_size)  # without a gradient there is room for more
  for first in range(0, count, size):
    rows = np.arange(first, first + size)
    total += np.array(one(parts, prepare(np.minimum(rows, count - 1)), rows < count))
  return float(total[0] / total[1])
