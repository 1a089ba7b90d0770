"""A sentence through one vector and back: the sequence auto-encoder. Sutskever et al. 2014, Dai & Le 2015.

  python -m experiments.sequence.autoencoder                                   # sentences of a small grammar
  python -m experiments.sequence.autoencoder --dataset=names.txt               # a name in each line
  python -m experiments.sequence.autoencoder --word_dropout=0                  # the decoder may lean on its own words

The decoder sees the encoder's final state and nothing else. Writes codes.png, the states of test sentences by their two
main directions, beside how many are given back by length, reconstructions.txt, the worst first, and between.txt, what
is read from the states between two sentences.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from experiments.sequence import _seq2seq
from mlnotes.data import Feeds, Pairs
from mlnotes.data.flags import PairConfig, load_data, make_feeds as make_data_feeds
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import Experiment, Mean, masked_mean, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, OptimizerName, make_optimizer
from mlnotes.sequence import CELLS, Decoded, Decoder, RecurrentSeq2Seq, greedy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(PairConfig, OptimConfig, LoopConfig):
  """Defaults: sentences of at most 20 words through 256 numbers."""

  UNIT: ClassVar[str] = "sentences"
  fills_cores: ClassVar[bool] = False

  dataset: str = "sentences"
  tokenizer: str = "words"
  longest_source: int = 20
  longest_target: int = 20
  batch_size: int = 64
  steps: int = 1200
  learning_rate: float = 4e-3
  optimizer: OptimizerName = "adamw"
  schedule: ScheduleName = "warmup_cosine"
  warmup_steps: int = 100
  clip_norm: float = 1.0
  cell: Literal[tuple(CELLS)] = field("gru", "cell of encoder and decoder")
  width: int = field(256, "features of a cell's state, which a sentence passes through")
  depth: int = field(1, "layers of encoder and of decoder, with a state each")
  dropout: float = field(0.0, "of embeddings and between layers, in [0, 1)")
  word_dropout: float = field(0.25, "share of the tokens that the decoder does not see while it learns, in [0, 1]")
  report_examples: int = field(400, "test sentences that the report gives back, at most", free="report")

  def __post_init__(self):
    super().__post_init__()
    for name in ("width", "depth", "report_examples"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(0 <= self.dropout < 1, "dropout", self.dropout, "a number in [0, 1)")
    require(0 <= self.word_dropout <= 1, "word_dropout", self.word_dropout, "a number in [0, 1]")
    _seq2seq.check_cell(self.cell, self.width)

  def idle_flags(self):
    return super().idle_flags() | {"precision": "it computes in float32"}


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  opt_state: optax.OptState
  hparams: dict[str, Float[Array, ""]]


def read_sentences(config: Config) -> Pairs:
  """Pairs whose sides are the same, in both splits. Raises InputError for others."""
  pairs = load_data(config)
  if not (_same_sides(pairs.train.arrays) and _same_sides(pairs.test.arrays)):
    asked = f"--dataset={config.dataset}" + f" --test_dataset={config.test_dataset}" * bool(config.test_dataset)
    raise InputError(
      f"{asked} has other targets than sources: expected sentences, or a file.txt whose lines are "
      "given back; experiments.sequence.translation learns pairs."
    )
  return pairs


def _same_sides(arrays: Mapping[str, np.ndarray]) -> bool:
  """Whether each target is its source."""
  size = arrays["source"].shape[1]
  inside = np.arange(size)[None] < arrays["source_length"][:, None]
  same = arrays["target"].shape[1] == size + 2 and np.array_equal(arrays["source_length"], arrays["target_length"] - 2)
  return bool(same and np.all((arrays["source"] == arrays["target"][:, 1:-1])[inside]))


def make_feeds(config: Config) -> Feeds:
  return make_data_feeds(read_sentences(config), config)


class Autoencoder:
  """Texts to codes (B, features), and back: `decode(encode(texts))`, `encode` being all that `decode` sees."""

  def __init__(self, pairs: Pairs, task: _seq2seq.Task, model: RecurrentSeq2Seq, variables: Any):
    self.tokenizer, self.task = pairs.tokenizer, task
    encode = lambda source, lengths: code_of(model, variables, source, lengths)
    self._encode = jax.jit(encode)
    self._decode = jax.jit(lambda code: decode_code(task, model, variables, code))

  def encode(self, texts: Sequence[str]) -> Float[Array, "B F"]:
    """Raises ValueError for an empty text, or one longer than every text of the run."""
    return self._encode(*_seq2seq.to_ids(self.tokenizer, self.task, texts))

  def decode(self, codes: Float[Array, "B F"]) -> list[str]:
    found = self._decode(codes)
    return _seq2seq.to_texts(self.tokenizer, np.asarray(found.tokens), np.asarray(found.length))

  def __call__(self, texts: Sequence[str]) -> list[str]:
    return self.decode(self.encode(texts))


def code_of(
  model: RecurrentSeq2Seq, variables: Any, source: Int[Array, "B S"], lengths: Int[Array, " B"]
) -> Float[Array, "B F"]:
  """The states that the decoder starts from, side by side."""
  decoder = model.make_decoder(variables, source, lengths)
  leaves = jax.tree.leaves(decoder.state.carries)
  return jnp.concatenate([x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)], -1)


def decode_code(task: _seq2seq.Task, model: RecurrentSeq2Seq, variables: Any, code: Float[Array, "B F"]) -> Decoded:
  """Greedily, from a code alone: the source that the decoder is made with is none."""
  batch = code.shape[0]
  nothing = jnp.full((batch, 1), task.pad, jnp.int32)
  decoder: Decoder = model.make_decoder(variables, nothing, jnp.zeros(batch, jnp.int32))
  leaves, structure = jax.tree.flatten(decoder.state.carries)
  place = 0
  for i, leaf in enumerate(leaves):
    if jnp.issubdtype(leaf.dtype, jnp.floating):
      leaves[i] = code[:, place : place + leaf.shape[-1]]
      place += leaf.shape[-1]
  state = decoder.state._replace(carries=jax.tree.unflatten(structure, leaves))
  return greedy(decoder._replace(state=state), task.start, task.end, task.pad, task.room)


def drop_words(
  key: Key[Array, ""], inputs: Int[Array, "B T"], rate: Float[Array, ""] | float, pad: int
) -> Int[Array, "B T"]:
  """Inputs some of which are padding, each with probability `rate`; never the first, which is START."""
  hidden = jax.random.bernoulli(key, rate, inputs.shape) & (jnp.arange(inputs.shape[1]) > 0)[None]
  return jnp.where(hidden, pad, inputs)


def make(config: Config) -> Experiment:
  pairs = read_sentences(config)
  task = _seq2seq.describe(pairs)
  model = RecurrentSeq2Seq(
    task.vocabulary, config.width, config.cell, config.depth, "none", dropout=config.dropout, never=task.never
  )
  optimizer = make_optimizer(config, config.steps)

  def init(key, batch) -> State:
    params = _seq2seq.init_params(model, stream_key(key, "init"), batch)
    hparams = {"word_dropout": jnp.float32(config.word_dropout)}
    return State(jnp.zeros([], jnp.int32), key, params, optimizer.init(params), hparams)

  def step(state: State, batch):
    inputs = drop_words(
      stream_key(state.key, "words", state.step), batch["target"][:, :-1], state.hparams["word_dropout"], task.pad
    )
    rngs = {"dropout": stream_key(state.key, "dropout", state.step)}

    def objective(params):
      given = (batch["source"], batch["source_length"], inputs)
      scored = model.score({"params": params}, *given, train=True, rngs=rngs)
      total, right, count = _seq2seq.sum_losses(task, scored.log_probability, batch)
      return jnp.sum(total) / jnp.sum(count), jnp.sum(right) / jnp.sum(count)

    (loss, accuracy), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": loss, "accuracy": accuracy, "grad_norm": optax.global_norm(grads)}
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

  trained = lambda state: {"params": eval_params(state.opt_state, state.params)}

  def evaluate(state: State, batch) -> dict[str, Mean]:
    variables = trained(state)
    total, right, count = _seq2seq.judge(model, variables, batch)
    per_token = lambda x: Mean(jnp.sum(x * batch["mask"]), jnp.sum(count * batch["mask"]))
    found = decode_code(task, model, variables, code_of(model, variables, batch["source"], batch["source_length"]))
    exact = masked_mean(_seq2seq.is_exact(found, batch).astype(jnp.float32), batch["mask"])
    return {"loss": per_token(total), "accuracy": per_token(right), "exact": exact}

  def report(state: State, directory: Path) -> dict[str, float]:
    from experiments.sequence._autoencoder_report import write_report

    return write_report(pairs, Autoencoder(pairs, task, model, trained(state)), config.report_examples, directory)

  whole = lambda state: Autoencoder(pairs, task, model, trained(state))
  return Experiment(init, step, evaluate, report, model=whole)


def main(config: Config) -> int:
  return train(make(config), make_feeds(config), config)


if __name__ == "__main__":
  run(main, Config)
