"""Vectors of sentences, learned from the sentences beside them in a text.

  python -m experiments.lm.sentences                               # quick-thought: which one is the neighbour?
  python -m experiments.lm.sentences --objective=skip_thought        # says the one before and the one behind
  python -m experiments.lm.sentences --dataset=FOLDER/plays.txt --sentence_end=line
  python -m experiments.lm.sentences --dataset=my.txt --labelled=FOLDER    # also: do the vectors tell these labels?

The loss of quick-thought is that of finding the neighbours among a batch's sentences, log(sentences - 1) at chance;
that of skip-thought is of each token of the neighbours. Writes neighbours.txt, test sentences beside the nearest other
one, and sentences.png: how near each sentence of some passages is to the others. `load_run` gives a function of texts.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from experiments.lm._sentences_report import Embedder, report_sentences
from mlnotes.data import Feeds, make_split_feeds
from mlnotes.data.flags import TextConfig, note
from mlnotes.data.sentences import SentenceText, load_sentences
from mlnotes.data.tokenizer import END
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import Experiment, Mean, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.lm.sentences import (
  QuickThoughtModel,
  SkipThoughtModel,
  flatten_passages,
  quick_thought_terms,
  skip_thought_terms,
)
from mlnotes.optim import eval_params
from mlnotes.optim.flags import OptimConfig, OptimizerName, make_optimizer
from mlnotes.sequence import CELLS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TextConfig, OptimConfig, LoopConfig):
  """Defaults: the documentation strings of Python's library, two minutes on two CPU cores."""

  UNIT: ClassVar[str] = "passages"

  objective: Literal["quick_thought", "skip_thought"] = field(
    "quick_thought", "quick_thought: find the neighbours among others; skip_thought: say them, token for token"
  )
  sentence_end: Literal["marks", "line"] = field(
    "marks", "a sentence ends at . ! ? and blank lines, or at each line's end"
  )
  passage: int = field(4, "sentences in a row that are read together")
  context: int = field(1, "of quick_thought: how far away a neighbour may be, below --passage")
  cell: Literal[tuple(CELLS)] = field("gru", "recurrent cell of encoders and decoders")
  width: int = field(128, "units of a layer, in each direction; features of a token")
  bidirectional: bool = field(True, "sentences are read from both ends")
  dropout: float = field(0.3, "of the embedded tokens, in [0, 1)")
  labelled: str = field(
    "", "a file.tsv, .jsonl or a folder with pos.txt, ...: labels to be told from the vectors; empty: none"
  )

  dataset: str = "docstrings"
  tokenizer: str = "words"
  vocab_size: int = 4096
  length: int = 32
  batch_size: int = 32
  steps: int = 1000
  learning_rate: float = 1e-3
  optimizer: OptimizerName = "adam"
  clip_norm: float = 5.0
  eval_every: int = 250

  def __post_init__(self):
    super().__post_init__()
    require(self.passage >= 2, "passage", self.passage, "2 or more")
    require(1 <= self.context < self.passage, "context", self.context, f"1 to {self.passage - 1}, below --passage")
    require(self.width >= 1, "width", self.width, "1 or more")
    require(0 <= self.dropout < 1, "dropout", self.dropout, "a number in [0, 1)")
    if self.tokenizer.endswith(".json"):
      raise InputError(
        f"--tokenizer={self.tokenizer}: expected characters, bytes, words or bpe, trained on the sentences."
      )

  def idle_flags(self):
    idle = super().idle_flags() | {
      "stride": "a passage begins at each sentence", "end_token": "sentences are told apart without it"
    }  # fmt: skip
    if self.objective == "skip_thought":
      idle["context"] = "--objective=skip_thought says the sentences right before and behind"
    return idle


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  opt_state: optax.OptState


@functools.lru_cache(maxsize=1)
def load_text(config: Config) -> SentenceText:
  return load_sentences(
    config.dataset, config.test_dataset, config.documents, config.tokenizer, config.vocab_size, config.length,
    config.sentence_end, config.passage, config.data_dir, config.train_split, config.test_split,
  )  # fmt: skip


def make_feeds(config: Config) -> Feeds:
  text = load_text(config)
  if text.cut:
    note(
      f"--dataset={config.dataset}: {text.cut} sentences have more than --length={config.length} tokens and are cut."
    )
  return make_split_feeds(text.train, text.test, config)


def build_module(config: Config, text: SentenceText) -> QuickThoughtModel | SkipThoughtModel:
  tokenizer, kind = text.tokenizer, dict(cell=config.cell, bidirectional=config.bidirectional, dropout=config.dropout)
  if config.objective == "quick_thought":
    return QuickThoughtModel(tokenizer.vocab_size, config.width, **kind)
  return SkipThoughtModel(tokenizer.vocab_size, config.width, tokenizer.special[END], **kind)


def make(config: Config) -> Experiment:
  text = load_text(config)
  module = build_module(config, text)
  optimizer = make_optimizer(config, config.steps)

  def terms(params, batch, key=None) -> dict[str, Mean]:
    real = batch["mask"] > 0 if "mask" in batch else jnp.ones(len(batch["tokens"]), bool)
    flat = flatten_passages(batch["tokens"], batch["length"], real)
    if config.objective == "quick_thought":
      return quick_thought_terms(module, params, flat, config.context, key)
    return skip_thought_terms(module, params, flat, key)

  def init(key, batch) -> State:
    params = module.init(stream_key(key, "init"), batch["tokens"][0], batch["length"][0])["params"]
    return State(jnp.zeros([], jnp.int32), key, params, optimizer.init(params))

  def step(state: State, batch):
    def objective(params):
      found = terms(params, batch, stream_key(state.key, "dropout", state.step))
      return found["loss"].total / jnp.maximum(found["loss"].count, 1), found

    (_, found), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = {**found, "grad_norm": optax.global_norm(grads)}
    return State(state.step + 1, state.key, optax.apply_updates(state.params, updates), opt_state), metrics

  learned = lambda state: eval_params(state.opt_state, state.params)

  def evaluate(state: State, batch) -> dict[str, Mean]:
    found = terms(learned(state), batch)
    if config.objective == "skip_thought":
      found["loss_from_another"] = _from_another(module, learned(state), batch)
    return found

  def model(state: State) -> Embedder:
    return Embedder(module, learned(state), text.tokenizer, config.length)

  def report(state: State, directory: Path) -> dict[str, float]:
    return report_sentences(config, text, model(state), directory)

  return Experiment(init, step, evaluate, report, model=model)


def _from_another(module: SkipThoughtModel, params: Any, batch: Any) -> Mean:
  """The loss where each sentence's vector is that of the passage before it in the batch: what the vectors tell."""
  flat = flatten_passages(batch["tokens"], batch["length"], batch["mask"] > 0)
  vectors = module.apply({"params": params}, *flat.sentences[:2], method="encode")
  return skip_thought_terms(module, params, flat, None, jnp.roll(vectors, batch["tokens"].shape[1], 0))["loss"]


def main(config: Config) -> int:
  return train(make(config), make_feeds(config), config, best_metric="loss")


if __name__ == "__main__":
  run(main, Config)
