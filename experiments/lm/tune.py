"""A pretrained language model tuned to a task: all of it, a part, or a little that is added.

  python -m experiments.lm.tune                                                # pretrains first; asks for capitals
  python -m experiments.lm.tune --pretrained=runs/lm --task=moved --method=lora --train_rows=8000 --steps=1000
  python -m experiments.lm.tune --pretrained=runs/lm --scratch                 # the same network that has read nothing
  python -m experiments.lm.tune --weights=FOLDER --task=file --labelled=reviews.tsv     # a BERT or GPT-2 of others
  python -m experiments.lm.tune --pretrained=runs/lm --task=file --labelled=reviews.tsv --method=adapters
  python -m experiments.lm.tune --pretrained=runs/lm --penalty=fisher --penalty_weight=100 --method=full

Tasks ask of the pretraining text what it answers itself: were two words exchanged (shift), does the second passage go
on where the first one ends (follows), which letters were capitals (case), what was put in from elsewhere (moved).
Writes tuning.png and mistakes.txt. The card has floors without a network, what trains, and the pretraining loss before
and after: what was forgotten. `load_run` gives a function of texts.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from experiments.lm._objectives import OBJECTIVES
from experiments.lm._tuning import Parts, build_tuning, check_tuning
from experiments.lm._tuning_flags import TuningConfig
from experiments.lm._tuning_model import Tuned
from experiments.lm._tuning_network import (
  Network,
  fresh_params,
  load_network,
  measure_importance,
  pretrain_first,
  pretraining_loss,
)
from experiments.lm._tuning_tasks import KINDS, Question, make_question
from experiments.lm._weights import objective_of
from mlnotes.data import Feeds, make_split_feeds
from mlnotes.data.flags import note
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import Experiment, Mean, root_key, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import train
from mlnotes.lm import count_bytes, count_parameters, l2_sp
from mlnotes.optim import eval_params
from mlnotes.optim.flags import make_optimizer

_MOVES_NETWORK = ("full", "last", "bias", "adapters")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TuningConfig):
  """Defaults: capitals from 200 passages on a small masked Llama, which is trained first."""

  UNIT: ClassVar[str] = "texts"
  fills_cores: ClassVar[bool] = False

  objective: Literal[tuple(OBJECTIVES)] = field(
    "masked", "of the network that is trained first, see lm.pretrain; the default with --weights is theirs"
  )
  task: Literal[tuple(KINDS)] = field(
    "case",
    "of a text, shift: were two neighbouring words exchanged; follows: does its second half follow the first; case: "
    "which letters were capitals; moved: which span is from elsewhere; file: the label that --labelled gives it",
  )
  labelled: str = field("", "of --task=file: a file.tsv or .jsonl of texts and labels, or a folder with pos.txt, ...")
  test_labelled: str = field("", "of --task=file: the texts to test on; empty: a tenth of each class")
  train_rows: int = field(200, "texts that a task makes to learn from, at most")
  test_rows: int = field(1000, "texts that a task makes to be tested on, at most")
  penalty: Literal["none", "l2_sp", "fisher"] = field(
    "none", "on the distance from the pretrained parameters: plain, or by how much each mattered in pretraining"
  )
  penalty_weight: float = field(0.1, "of --penalty: half of it times each square")
  head_penalty: float = field(0.01, "of --penalty: the same for what is new, towards 0")
  fisher_windows: int = field(200, "of --penalty=fisher: windows of the training text that it is estimated on")
  pooling: Literal["auto", "first", "last", "mean", "max"] = field(
    "auto", "tokens to one vector, where the text as a whole is asked of; auto: mean, last of a causal network"
  )
  head_layer: bool = field(False, "a layer with tanh in the head of a whole text, as BERT's")
  adapter_width: int = field(16, "of --method=adapters: features between an adapter's two matrices")
  mix_norm: bool = field(True, "of --method=mix: normalise each layer's output first")

  steps: int = 100
  learning_rate: float = 1e-3
  eval_every: int = 25
  checkpoint_every: int = 50

  def __post_init__(self):
    super().__post_init__()
    for name in ("fisher_windows", "adapter_width"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("train_rows", "test_rows"):
      require(getattr(self, name) >= 2, name, getattr(self, name), "2 or more")
    for name in ("penalty_weight", "head_penalty"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
    if self.task == "file" and not self.labelled:
      raise InputError("--task=file reads texts and labels: expected --labelled=FILE.tsv, FILE.jsonl or a folder.")
    if self.penalty != "none" and (self.method not in _MOVES_NETWORK or self.scratch):
      found = "--scratch has none" if self.scratch else f"--method={self.method} leaves them as they are"
      raise InputError(
        f"--penalty={self.penalty} is of the distance from pretrained parameters, and {found}: expected --penalty=none."
      )

  @classmethod
  def tuned(cls, **given: Any) -> "Config":
    """Others' weights read as they have learned to.

    A penalty holds the weights to where they began, in the place of a decay to 0 (Li et al. 2018).
    """
    defaults: dict[str, Any] = {}
    if given.get("penalty", "none") != "none":
      defaults["weight_decay"] = 0.0
    if given.get("weights"):
      defaults["objective"] = objective_of(given["weights"])
    return super().tuned(**{**defaults, **given})

  def idle_flags(self):
    idle = super().idle_flags()
    if self.penalty != "fisher":
      idle["fisher_windows"] = f"--penalty={self.penalty} estimates nothing"
    if self.penalty == "none":
      idle |= dict.fromkeys(("penalty_weight", "head_penalty"), "--penalty is none")
    if KINDS[self.task].name != "sentence":
      idle |= dict.fromkeys(("pooling", "head_layer"), f"--task={self.task} asks tokens")
    of_task = ("train_rows", "test_rows") if self.task == "file" else ("labelled", "test_labelled")
    return idle | dict.fromkeys(of_task, f"--task={self.task} has none")


class State(NamedTuple):
  """`params` is what trains, `frozen` the network's other parameters, `anchor` what a penalty draws the first to."""

  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  frozen: chex.ArrayTree
  anchor: "Anchor | tuple[()]"
  opt_state: optax.OptState
  hparams: Mapping[str, Float[Array, ""]]


class Anchor(NamedTuple):
  """Where the network's parameters that train began; their importance, () where all count alike."""

  start: chex.ArrayTree
  importance: chex.ArrayTree


def make_feeds(config: Config) -> Feeds:
  _, question = build(config)
  for sentence in question.notes:
    note(f"--labelled={config.labelled}: {sentence}")
  return make_split_feeds(question.train, question.test, config)


@functools.lru_cache(maxsize=2)
def build(config: Config) -> tuple[Network, Question]:
  network = load_network(config)
  return network, make_question(config, network.corpus, network.config)


def make(config: Config) -> Experiment:
  network, question = build(config)
  tuning, plain = build_tuning(config, network.task), build_tuning(config, network.task, "features")
  kind = question.kind
  start = lambda key: fresh_params(network, key) if network.params is None else network.params
  said = f"the network of {config.pretrained or config.weights or 'the flags'}"
  check_tuning(config, tuning, jax.eval_shape(start, root_key(0)), said)
  pooling = config.pooling
  if pooling == "auto":
    pooling = "last" if network.config.objective == "causal" else "mean"
  head = kind.head(config, len(question.classes), pooling)
  optimizer = make_optimizer(config, config.steps)
  importance = _importance(config, network, tuning)

  def answer(parts: Parts, numbers: Any, tokens: Array, lengths: Array, key: Any = None) -> Any:
    hidden = tuning.features(parts, numbers, tokens, lengths, key)
    rngs = None if key is None else {"dropout": stream_key(key, "head")}
    f = functools.partial(head.apply, {"params": parts.trained["head"]}, rngs=rngs)
    return kind.call(f, hidden, lengths, key is not None)

  def init(key, batch) -> State:
    params = start(key)
    parts = tuning.split(stream_key(key, "added"), params)
    width = jax.eval_shape(lambda: tuning.features(parts, {"lora_alpha": 1.0}, batch["tokens"], batch["length"]))
    f = functools.partial(head.init, stream_key(key, "head"))
    first = kind.call(f, jnp.zeros(width.shape, width.dtype), batch["length"], False)
    trained = jax.tree.map(jnp.array, {**parts.trained, "head": first["params"]})
    anchor = ()
    if config.penalty != "none":  # a copy: what trains is updated in place
      anchor = Anchor(jax.tree.map(jnp.copy, trained["network"]), jax.tree.map(jnp.array, importance))
    hparams = {name: jnp.float32(getattr(config, name)) for name in hparam_names(config)}
    frozen = jax.tree.map(jnp.array, parts.frozen)
    return State(jnp.zeros([], jnp.int32), key, trained, frozen, anchor, optimizer.init(trained), hparams)

  def step(state: State, batch):
    key = stream_key(state.key, "dropout", state.step)

    def objective(trained):
      outputs = answer(Parts(trained, state.frozen), state.hparams, batch["tokens"], batch["length"], key)
      found = jax.tree.map(jnp.sum, kind.judge(question, outputs, batch))
      metrics = {name: Mean(*mean) for name, mean in found.items()}
      loss = found["loss"].total / jnp.maximum(found["loss"].count, 1)
      if config.penalty == "none":
        return loss, metrics
      weights = {"network": state.anchor.importance} if config.penalty == "fisher" else None
      names = state.hparams["penalty_weight"], state.hparams["head_penalty"]
      penalty = l2_sp(trained, {"network": state.anchor.start}, *names, weights)
      return loss + penalty, metrics | {"penalty": penalty}

    (_, metrics), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics |= {"grad_norm": optax.global_norm(grads)}
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

  learned = lambda state: Parts(eval_params(state.opt_state, state.params), state.frozen)

  def evaluate(state: State, batch) -> dict[str, Mean]:
    outputs = answer(learned(state), state.hparams, batch["tokens"], batch["length"])
    over = lambda rows: jnp.sum(jnp.where(batch["mask"] > 0, rows, 0))
    return jax.tree.map(over, kind.judge(question, outputs, batch))

  def model(state: State) -> Tuned:
    parts, numbers = learned(state), state.hparams
    said = jax.jit(lambda tokens, lengths: answer(parts, numbers, tokens, lengths))
    return Tuned(network.corpus.tokenizer, network.config.length, question, said)

  def report(state: State, directory: Path) -> dict[str, float]:
    from experiments.lm._tuning_report import write_report

    title = f"{config.task}, {config.method}{', from scratch' if config.scratch else ''}"
    found = write_report(title, question, model(state), directory)
    parts, base = learned(state), start(state.key)
    if network.foretells:
      before, after = (plain, Parts({"network": {}}, base), {}), (tuning, parts, state.hparams)
      found["pretraining_loss_before"] = pretraining_loss(network, *before)
      found["pretraining_loss_after"] = pretraining_loss(network, *after)
    found |= {
      "parameters": count_parameters(base),
      "trained_parameters": count_parameters(state.params),
      "head_parameters": count_parameters(state.params["head"]),
      "optimizer_bytes": count_bytes(state.opt_state),
    }
    return found

  return Experiment(init, step, evaluate, report, model=model)


def hparam_names(config: Config) -> tuple[str, ...]:
  """Numbers that a sweep may vary, of what the flags have chosen."""
  names = ("lora_alpha",) if config.method == "lora" else ()
  return names + (("penalty_weight", "head_penalty") if config.penalty != "none" else ())


def _importance(config: Config, network: Network, tuning: Any) -> Any:
  if config.penalty != "fisher":
    return ()
  parts = tuning.split(root_key(0), network.params)
  return measure_importance(network, tuning, parts, {}, config.fisher_windows)


def main(config: Config) -> int:
  if not (config.pretrained or config.weights or config.scratch):
    make(dataclasses.replace(config, scratch=True, penalty="none"))  # what does not fit is said before anything trains
    config = pretrain_first("lm.tune", config)
  score = KINDS[config.task].score
  return train(make(config), make_feeds(config), config, best_metric=score, best_mode="max")


if __name__ == "__main__":
  run(main, Config)
