"""A language model that learns from the text of --dataset, by the objective that --objective names.

  python -m experiments.lm.pretrain                                        # a small Llama on Python's manual pages
  python -m experiments.lm.pretrain --model=gpt2 --learning_rate=1e-3      # the same size in GPT-2's form
  python -m experiments.lm.pretrain --experts=4                            # a mixture of experts
  python -m experiments.lm.pretrain --objective=masked                     # BERT's: hidden words, from both sides
  python -m experiments.lm.pretrain --objective=masked --pairs=next        # and whether two halves follow
  python -m experiments.lm.pretrain --objective=replaced                   # ELECTRA's: which tokens were put in
  python -m experiments.lm.pretrain --objective=corrupted                  # T5's: an encoder, and a decoder of spans
  python -m experiments.lm.pretrain --weights=FOLDER --dataset=my.txt      # goes on from a GPT-2 or Llama of others
  python -m experiments.lm.pretrain --dataset=FOLDER/names.txt --documents=line --packed
  python -m experiments.lm.pretrain --dataset=FOLDER/book.txt --depth=6 --heads=6 --width=384 --length=256 \\
    --batch_size=64 --dropout=0.2 --learning_rate=1e-3 --precision=bfloat16     # nanoGPT's form for one GPU

The loss is that of all tokens of the test text, in windows of --length side by side. Writes sample.txt and text.png:
how well each token of a test passage was foreseen. Of other objectives it is their own loss, of what is hidden of these
windows in the same way each time; they write filled.txt: what was read, what was said of it, and what stood there. Of
replaced the loss is the generator's, beside that of the discriminator, which says ▁ where a token was put in; of
corrupted, fragment and infilling each token is said beside those that stood before it.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from experiments.lm._corruption import CorruptionConfig
from experiments.lm._models import DecoderConfig
from experiments.lm._objectives import EVAL_SEED, OBJECTIVES, load_text, make_task
from mlnotes.data import Feeds
from mlnotes.data.flags import TextConfig, make_feeds as make_data_feeds
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import Experiment, Mean, example_keys, root_key, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.lm import compute_gradients, count_parameters
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, OptimizerName, make_optimizer

WRITERS = ("causal",)  # objectives whose models foretell what follows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(CorruptionConfig, DecoderConfig, TextConfig, OptimConfig, LoopConfig):
  """Defaults: Python's manual pages by characters, some minutes on two CPU cores."""

  UNIT: ClassVar[str] = "windows"
  fills_cores: ClassVar[bool] = False
  parts_batches: ClassVar[bool] = True

  objective: Literal[tuple(OBJECTIVES)] = field(
    "causal",
    "causal: each token from those before it; masked: BERT's hidden words, from both sides; prefix: UniLM's, from what "
    "one of four masks shows; spans: SpanBERT's, also from the two tokens around each; permutation: XLNet's, in a "
    "random order; replaced: ELECTRA's, which tokens were put in; and with a decoder behind an encoder corrupted: T5's "
    "spans, fragment: MASS's, infilling: BART's whole text",
  )
  packed: bool = field(False, "documents in a window do not see each other, and each counts its places from 0")
  accumulate: int = field(1, "parts of a batch whose gradients are computed one after the other: less memory")
  head_chunks: int = field(1, "parts of the tokens whose logits are made one after the other, and again backward")

  length: int = 64
  stride: int = 1
  batch_size: int = 12
  steps: int = 2000
  learning_rate: float = 3e-3
  optimizer: OptimizerName = "adamw"
  weight_decay: float = 0.1
  schedule: ScheduleName = "warmup_cosine"
  warmup_steps: int = 100
  clip_norm: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    divides = self.accumulate >= 1 and self.batch_size % self.accumulate == 0
    require(divides, "accumulate", self.accumulate, f"a divisor of --batch_size={self.batch_size}")
    tokens = self.batch_size // self.accumulate * self.count_asked()
    even = self.head_chunks >= 1 and tokens % self.head_chunks == 0
    asked = "tokens" if self.objective == "causal" else "asked tokens"
    require(even, "head_chunks", self.head_chunks, f"a divisor of the {tokens} {asked} of a batch's part")
    if self.packed and not self.end_token:
      raise InputError("--packed parts documents where <end> is: expected --end_token.")
    self.check_objective()

  @classmethod
  def tuned(cls, **given: Any) -> "Config":
    """What others have trained goes on at a rate that leaves it standing."""
    return super().tuned(**{**({"learning_rate": 1e-4} if given.get("weights") else {}), **given})


class State(NamedTuple):
  """`hparams` are the weights of the objective's terms where there are several."""

  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  opt_state: optax.OptState
  hparams: Mapping[str, Float[Array, ""]]


def make_feeds(config: Config) -> Feeds:
  return make_data_feeds(load_text(config), config)


def make(config: Config) -> Experiment:
  corpus = load_text(config)
  task = make_task(config, corpus)
  objective, optimizer = task.objective, make_optimizer(config, config.steps)
  several = len(objective.weights) > 1

  def prepare(keys: Key[Array, " B"], batch):
    return jax.vmap(objective.prepare)(keys, batch["tokens"])

  def init(key, batch) -> State:
    examples = prepare(jax.random.split(stream_key(key, "example"), len(batch["tokens"])), batch)
    params = objective.init(stream_key(key, "init"), examples)
    hparams = {f"{name}_weight": jnp.float32(weight) for name, weight in objective.weights.items()} if several else {}
    return State(jnp.zeros([], jnp.int32), key, params, optimizer.init(params), hparams)

  def step(state: State, batch):
    keys = jax.random.split(stream_key(state.key, "prepare", state.step), len(batch["tokens"]))
    weights = {name: state.hparams[f"{name}_weight"] for name in objective.weights} if several else objective.weights
    grads, metrics = compute_gradients(
      objective._replace(weights=weights), state.params, prepare(keys, batch),
      stream_key(state.key, "dropout", state.step), config.accumulate,
    )  # fmt: skip
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {**metrics, "grad_norm": optax.global_norm(grads)}
    return State(state.step + 1, state.key, params, opt_state, state.hparams), metrics

  def learned(state: State) -> chex.ArrayTree:
    return eval_params(state.opt_state, state.params)

  def evaluate(state: State, batch) -> dict[str, Mean]:
    examples = prepare(example_keys(root_key(EVAL_SEED), batch["index"]), batch)
    real = batch["mask"] > 0
    over = lambda rows: jnp.sum(jnp.where(real, rows, 0))
    return jax.tree.map(over, dict(objective.terms(learned(state), examples, None)))

  def report(state: State, directory: Path) -> dict[str, float]:
    return {**task.report(learned(state), directory), "parameters": count_parameters(state.params)}

  return Experiment(init, step, evaluate, report, model=lambda state: task.model(learned(state)))


def main(config: Config) -> int:
  return train(make(config), make_feeds(config), config)


if __name__ == "__main__":
  run(main, Config)
