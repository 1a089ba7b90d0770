"""Supervised tuning: a causal language model learns to answer prompts, and to stop.

  python -m experiments.lm.sft                                             # pretrains first; what functions do
  python -m experiments.lm.sft --pretrained=runs/lm --method=lora
  python -m experiments.lm.sft --pretrained=runs/lm --instructions=FILE.jsonl    # of fields prompt, answer
  python -m experiments.lm.sft --pretrained=runs/lm --instructions=gsm8k/train.jsonl --prompt_field=question
  python -m experiments.lm.sft --weights=FOLDER --instructions=FILE.jsonl        # a GPT-2 or Llama of others

A row is <end>, a prompt, --separator, an answer and <end>; the loss is of the answer's tokens and its <end> alone,
their mean over the whole batch. The built-in prompts are functions of Python's library, the answers what their
docstrings begin with; modules that are tested were read by nobody. Writes answers.txt and sft.png: nats by the place in
the answer, before and after. `lm.generate` answers with such a run, `lm.reward`, `lm.rlhf` and `lm.dpo` go on from it.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from experiments.lm._text import Model, decode_text
from experiments.lm._tuning import Parts, build_tuning, check_tuning
from experiments.lm._tuning_flags import TuningConfig
from experiments.lm._tuning_network import Network, fresh_params, load_network, pretrain_first
from mlnotes.data import Feeds, NamedArrays, make_split_feeds, pad_sequences, read_instructions
from mlnotes.data.flags import note
from mlnotes.data.instructions import BUILT_IN
from mlnotes.data.tokenizer import UNKNOWN
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import Experiment, Mean, root_key, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import train
from mlnotes.lm import answer_weights, count_bytes, count_parameters, token_log_probability
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import make_optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TuningConfig):
  """Defaults: a small Llama that has read the documentation of Python's library says what a function does."""

  UNIT: ClassVar[str] = "answers"
  fills_cores: ClassVar[bool] = False

  objective: Literal["causal"] = field("causal", "of the network: it foretells what follows")
  instructions: str = field(
    BUILT_IN, f"{BUILT_IN} (built in: functions of Python's library and what they do), or a file.jsonl"
  )
  test_instructions: str = field("", "the prompts to be tested on; empty: a tenth of them")
  prompt_field: str = field("prompt", "of a file.jsonl")
  answer_field: str = field("answer", "of a file.jsonl")
  separator: str = field("\n", "what stands between a prompt and its answer")
  answer_only: bool = field(True, "the loss is of the answers; otherwise of the prompts too")
  method: Literal["full", "last", "bias", "lora"] = field(
    "full",
    "what trains of the network, full: all; last: --last_layers; bias: biases (BitFit); lora: low-rank updates",
    refines=True,
  )

  dataset: str = "docstrings"
  tokenizer: str = "bpe"
  length: int = 64
  pretrain_steps: int = 1000
  batch_size: int = 32
  steps: int = 400
  schedule: ScheduleName = "warmup_cosine"
  eval_every: int = 100

  def idle_flags(self):
    idle = super().idle_flags()
    if self.instructions == BUILT_IN:
      idle |= dict.fromkeys(("prompt_field", "answer_field"), f"--instructions={BUILT_IN} is no file")
    return idle


class State(NamedTuple):
  """`params` is what trains, `frozen` the network's other parameters."""

  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  frozen: chex.ArrayTree
  opt_state: optax.OptState
  hparams: Mapping[str, Float[Array, ""]]


class Answered(NamedTuple):
  """Rows of a prompt and its answer.

    {"tokens": (B, T), "prompt": tokens of the prompt, <end> and separator with them, "length": of both, <end> too}

  Attributes:
    texts: (prompt, answer) of each test row.
    notes: sentences about what was left out or is unknown.
  """

  train: NamedArrays
  test: NamedArrays
  texts: tuple[tuple[str, str], ...]
  notes: tuple[str, ...]


def ask(prompt: str, separator: str) -> str:
  """A prompt as the rows have it; nothing where it is empty."""
  return prompt.strip() + separator if prompt.strip() else ""


@functools.lru_cache(maxsize=2)
def build(config: Config) -> tuple[Network, Answered]:
  network = load_network(config)
  said = f"--pretrained={config.pretrained}" if config.pretrained else f"--dataset={config.dataset}"
  if network.config.objective != "causal":
    learned = f"learned by --objective={network.config.objective}"
    raise InputError(f"{said} {learned}: expected causal, which foretells what follows.")
  if network.corpus.end < 0:
    raise InputError(f"{said} has a text without <end>, so that no answer would end: expected --end_token.")
  return network, encode_instructions(config, network)


def encode_instructions(config: Config, network: Network) -> Answered:
  """Rows that fit the network's window; others are left out, and it is said. Raises DataError as the reader does."""
  found = read_instructions(config.instructions, config.test_instructions, (config.prompt_field, config.answer_field))
  tokenizer, end, length = network.corpus.tokenizer, network.corpus.end, network.config.length + 1
  unknown, splits, kept = 0, [], ()
  for rows in found:
    ids = [(tokenizer.encode(ask(prompt, config.separator)), tokenizer.encode(answer)) for prompt, answer in rows]
    fits = [1 + len(prompt) + len(answer) + 1 <= length for prompt, answer in ids]
    if not any(fits):
      raise InputError(
        f"--instructions={config.instructions}: no prompt with its answer fits the {length} tokens of the network: "
        "expected shorter ones, or a greater --length."
      )
    ids, kept = ([x for x, fit in zip(many, fits) if fit] for many in (ids, rows))
    unknown += sum(int(np.sum(x == tokenizer.special.get(UNKNOWN, -1))) for pair in ids for x in pair)
    padded = pad_sequences([np.array([end, *a, *b, end], np.int32) for a, b in ids], length)
    splits.append(NamedArrays({**padded, "prompt": np.array([1 + len(a) for a, _ in ids], np.int32)}))
  left = sum(map(len, found)) - sum(map(len, splits))
  notes = [f"{left} of {sum(map(len, found))} have more than {length} tokens and are left out."] if left else []
  notes += [f"{unknown} of their tokens are <unknown>: the network's text did not have them."] if unknown else []
  learned = {prompt for prompt, _ in found.train}
  shared = sum(prompt in learned for prompt, _ in found.test)
  notes += [f"{shared} of {len(found.test)} test prompts are learned from too."] if shared else []
  return Answered(*splits, tuple(kept), tuple(notes))


def make_feeds(config: Config) -> Feeds:
  _, rows = build(config)
  for sentence in rows.notes:
    note(f"--instructions={config.instructions}: {sentence}")
  return make_split_feeds(rows.train, rows.test, config)


def make(config: Config) -> Experiment:
  network, rows = build(config)
  many = len(rows.train)
  require(1 <= config.batch_size <= many, "batch_size", config.batch_size, f"1 to {many} examples, the training split")
  tuning, optimizer = build_tuning(config, network.task), make_optimizer(config, config.steps)
  start = lambda key: fresh_params(network, key) if network.params is None else network.params
  check_tuning(config, tuning, jax.eval_shape(start, root_key(0)), "the network")
  module = network.task.model({}).module

  def init(key, batch) -> State:
    parts = tuning.split(stream_key(key, "added"), start(key))
    trained, frozen = (jax.tree.map(jnp.array, part) for part in parts)
    hparams = {name: jnp.float32(getattr(config, name)) for name in hparam_names(config)}
    return State(jnp.zeros([], jnp.int32), key, trained, frozen, optimizer.init(trained), hparams)

  def judge(params, batch, key: Key[Array, ""] | None = None) -> dict[str, Mean]:
    """Sums over each row's answer, and how many tokens it has."""
    tokens = batch["tokens"]
    rngs = None if key is None else {"dropout": key}
    logits = module.apply({"params": params}, tokens[:, :-1], None, key is not None, rngs=rngs)
    prompt = batch["prompt"] if config.answer_only else jnp.ones_like(batch["prompt"])
    weights = answer_weights(prompt, batch["length"], tokens.shape[1] - 1)
    loss = -token_log_probability(logits, tokens[:, 1:])
    right = (jnp.argmax(logits, -1) == tokens[:, 1:]).astype(jnp.float32)
    return {
      name: Mean(jnp.sum(x * weights, 1), jnp.sum(weights, 1)) for name, x in (("loss", loss), ("accuracy", right))
    }

  def step(state: State, batch):
    key = stream_key(state.key, "dropout", state.step)

    def objective(trained):
      with tuning.tuned(Parts(trained, state.frozen), state.hparams, key) as params:
        found = jax.tree.map(jnp.sum, judge(params, batch, key))
      return found["loss"].total / jnp.maximum(found["loss"].count, 1), found

    (_, metrics), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics |= {"grad_norm": optax.global_norm(grads)}
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

  def learned(state: State) -> chex.ArrayTree:
    with tuning.tuned(Parts(eval_params(state.opt_state, state.params), state.frozen), state.hparams) as params:
      return params

  def evaluate(state: State, batch) -> dict[str, Mean]:
    over = lambda x: jnp.sum(jnp.where(batch["mask"] > 0, x, 0))
    return jax.tree.map(over, judge(learned(state), batch))

  def report(state: State, directory: Path) -> dict[str, float]:
    from experiments.lm._sft_report import report_answers

    decode = lambda tokens: decode_text(network.corpus.tokenizer, tokens, network.corpus.end).strip("\n")
    found = report_answers(module, start(state.key), learned(state), rows, network.corpus.end, decode, directory)
    return found | {
      "parameters": count_parameters(start(state.key)),
      "trained_parameters": count_parameters(state.params),
      "optimizer_bytes": count_bytes(state.opt_state),
    }

  return Experiment(init, step, evaluate, report, model=lambda state: Model(module, learned(state)))


def hparam_names(config: Config) -> tuple[str, ...]:
  """Numbers that a sweep may vary, of what the flags have chosen."""
  return ("lora_alpha",) if config.method == "lora" else ()


def main(config: Config) -> int:
  if not (config.pretrained or config.weights or config.scratch):
    make(dataclasses.replace(config, scratch=True))  # what does not fit is said before anything trains
    config = pretrain_first("lm.sft", config)
  return train(make(config), make_feeds(config), config)


if __name__ == "__main__":
  run(main, Config)
