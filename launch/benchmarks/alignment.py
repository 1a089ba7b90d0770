"""Updates a second of DPO and PPO, next to trl's trainers on the same tiny network.

  python -m launch.benchmarks.alignment                  # ours, on whatever device there is
  python -m launch.benchmarks.alignment --peer           # and trl's: pip install trl==1.10.0, the last with PPO

The network is a GPT-2 form with random parameters, prompts are random tokens; no answer ends early, so that all have as
many. PPO has a reward model and a value function of the same form, as trl has them. Ours are the steps of
`experiments.lm.dpo` and `experiments.lm.rlhf`; trl's the time between two steps of its trainers, which log nothing.
Both take turns, `--rounds` times; the median of the rounds counts.
"""

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lm import dpo, rlhf
from experiments.lm._alignment import Situation
from experiments.lm._judges import Judge
from experiments.lm.reward import HEAD, read_reward
from mlnotes.data import NamedArrays
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import root_key
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.layout import Layout
from mlnotes.engine.loop import enable_compilation_cache
from mlnotes.lm import make_gpt2

# Something that updates `count` times, and the seconds of each update.
Update = Callable[[int], list[float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  methods: tuple[str, ...] = field(("dpo", "ppo"), "which to measure")
  depth: int = field(4, "layers")
  heads: int = field(4, "heads")
  width: int = field(128, "features")
  vocabulary: int = field(1000, "tokens that there are")
  prompt: int = field(8, "tokens of a prompt")
  answer: int = field(24, "tokens of an answer")
  batch: int = field(16, "pairs of an update of DPO, answers of one of PPO")
  epochs: int = field(2, "of PPO: passes over the answers")
  minibatches: int = field(2, "of PPO: gradient steps of a pass")
  peer: bool = field(False, "measure trl as well")
  rounds: int = field(3, "measurements of each")
  updates: int = field(6, "updates of a measurement, after two that do not count")
  out: str = field("", "file for the figures as JSON")

  def __post_init__(self):
    super().__post_init__()
    for name in (
      "depth",
      "heads",
      "width",
      "vocabulary",
      "prompt",
      "answer",
      "batch",
      "epochs",
      "minibatches",
      "rounds",
    ):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.updates >= 1, "updates", self.updates, "1 or more")
    known = all(name in METHODS for name in self.methods)
    require(known, "methods", self.methods, f"some of {', '.join(METHODS)}")

  def cpu_layout(self, cores: int) -> Layout:
    return Layout(1, cores)


def draw_rows(config: Config, seed: int, count: int) -> np.ndarray:
  size = config.prompt + config.answer
  return np.random.default_rng(seed).integers(2, config.vocabulary, (count, size)).astype(np.int32)


# -- ours --------------------------------------------------------------------------------------------------------------


def make_random_situation(config: Config) -> Situation:
  """No answer ends: <end> is a token that the network does not have."""
  length = config.prompt + config.answer
  module = make_gpt2(config.vocabulary, length, config.depth, config.heads, config.width)
  tokens = jnp.zeros((1, 2), jnp.int32)
  params, judging = (jax.jit(module.init)(root_key(i), tokens)["params"] for i in (0, 1))
  head = HEAD.init(root_key(2), jnp.zeros((1, 1, config.width)), jnp.ones(1, jnp.int32))["params"]

  def score(params, prompts, answers, lengths):
    return read_reward(module, params, prompts.join(answers), prompts.lengths + lengths)

  prompts = draw_rows(config, 0, 256)[:, : config.prompt]
  rows = NamedArrays({"tokens": prompts, "length": np.full(len(prompts), config.prompt, np.int32)})
  judge = Judge({"network": judging, "head": head}, score)
  return Situation(module, params, rows, rows, judge, config.answer, config.vocabulary, str)


def our_dpo(config: Config) -> Update:
  settings = dpo.Config(batch_size=config.batch, learning_rate=1e-5, schedule="constant", beta=0.1)
  experiment = dpo.make(settings, make_random_situation(config))
  size = np.full(config.batch, config.prompt + config.answer, np.int32)
  batches = [
    {
      "chosen": draw_rows(config, 2 * i, config.batch), "rejected": draw_rows(config, 2 * i + 1, config.batch),
      "chosen_length": size, "rejected_length": size, "prompt": np.full(config.batch, config.prompt, np.int32),
    } for i in range(4)
  ]  # fmt: skip
  return our_updates(experiment, batches)


def our_ppo(config: Config) -> Update:
  settings = rlhf.Config(
    batch_size=config.batch, answers=1, epochs=config.epochs, minibatches=config.minibatches, learning_rate=1e-5,
    schedule="constant",
  )  # fmt: skip
  situation = make_random_situation(config)
  arrays = situation.train.arrays
  batches = [{name: x[i * config.batch : (i + 1) * config.batch] for name, x in arrays.items()} for i in range(4)]
  return our_updates(rlhf.make(settings, situation), batches)


def our_updates(experiment: Any, batches: list[Any]) -> Update:
  state = jax.jit(experiment.init)(root_key(3), batches[0])
  step = jax.jit(experiment.step, donate_argnums=0)

  def update(count: int) -> list[float]:
    nonlocal state
    found = []
    for i in range(count):
      began = time.perf_counter()
      state, metrics = step(state, batches[i % len(batches)])
      jax.block_until_ready(metrics)
      found.append(time.perf_counter() - began)
    return found

  return update


# -- trl's -------------------------------------------------------------------------------------------------------------


def their_parts(config: Config) -> Any:
  """(a function that makes its network, its settings, a tokenizer of w0, w1, ...)."""
  from tokenizers import Tokenizer, models, pre_tokenizers
  from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

  words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(config.vocabulary)}, unk_token="w0"))
  words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0", pad_token="w1", padding_side="left")
  settings = GPT2Config(
    vocab_size=config.vocabulary, n_positions=config.prompt + config.answer + 1, n_embd=config.width,
    n_layer=config.depth, n_head=config.heads, bos_token_id=0, eos_token_id=0, pad_token_id=1,
    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, num_labels=1,
  )  # fmt: skip
  return lambda: GPT2LMHeadModel(settings), settings, tokenizer


def make_clock() -> tuple[Any, list[float]]:
  """A callback, and when each step ended."""
  from transformers import TrainerCallback

  ends: list[float] = []

  class Clock(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
      ends.append(time.perf_counter())

  return Clock(), ends


def write(rows: np.ndarray) -> list[str]:
  return [" ".join(f"w{i}" for i in row) for row in rows]


def their_dpo(config: Config) -> Update:
  from datasets import Dataset
  from trl import DPOConfig, DPOTrainer

  make_model, _, tokenizer = their_parts(config)

  def update(count: int) -> list[float]:
    size = config.batch * (count + 1)
    rows = {name: draw_rows(config, i, size) for i, name in enumerate(("chosen", "rejected"))}
    texts = {name: [f" {text}" for text in write(x[:, config.prompt :])] for name, x in rows.items()}
    data = Dataset.from_dict({"prompt": write(rows["chosen"][:, : config.prompt]), **texts})
    with tempfile.TemporaryDirectory() as folder:
      settings = DPOConfig(
        folder, per_device_train_batch_size=config.batch, max_steps=count + 1, learning_rate=1e-5, beta=0.1,
        logging_strategy="no", save_strategy="no", report_to=[], use_cpu=not has_gpu(), disable_tqdm=True,
        gradient_checkpointing=False, bf16=False, max_length=config.prompt + config.answer + 1,
      )  # fmt: skip
      clock, ends = make_clock()
      DPOTrainer(
        make_model(), make_model(), settings, train_dataset=data, processing_class=tokenizer, callbacks=[clock]
      ).train()
    return np.diff(ends).tolist()

  return update


def their_ppo(config: Config) -> Update:
  from datasets import Dataset
  from transformers import GPT2ForSequenceClassification
  from trl.experimental.ppo import PPOConfig, PPOTrainer

  make_model, shape, tokenizer = their_parts(config)

  def update(count: int) -> list[float]:
    prompts = draw_rows(config, 0, config.batch * (count + 1))[:, : config.prompt]
    data = Dataset.from_dict({"input_ids": prompts.tolist()})
    small = config.batch // config.minibatches
    with tempfile.TemporaryDirectory() as folder:
      settings = PPOConfig(
        folder, per_device_train_batch_size=small, gradient_accumulation_steps=config.minibatches,
        num_mini_batches=config.minibatches, num_ppo_epochs=config.epochs, response_length=config.answer,
        total_episodes=config.batch * (count + 1), local_rollout_forward_batch_size=config.batch, learning_rate=1e-5,
        num_sample_generations=0, logging_strategy="no", save_strategy="no", report_to=[], use_cpu=not has_gpu(),
        disable_tqdm=True, gradient_checkpointing=False, bf16=False, temperature=1.0,
      )  # fmt: skip
      clock, ends = make_clock()
      judges = [GPT2ForSequenceClassification(shape) for _ in range(2)]
      PPOTrainer(
        args=settings, processing_class=tokenizer, model=make_model(), ref_model=make_model(), reward_model=judges[0],
        value_model=judges[1], train_dataset=data, eval_dataset=data, callbacks=[clock],
      ).train()  # fmt: skip
    return np.diff(ends).tolist()

  return update


def has_gpu() -> bool:
  import torch

  return torch.cuda.is_available()


METHODS = {"dpo": (our_dpo, their_dpo), "ppo": (our_ppo, their_ppo)}


def measure(config: Config, method: str) -> dict[str, Any]:
  ours, theirs = METHODS[method]
  programs = {"mlnotes": ours(config)} | ({"trl": theirs(config)} if config.peer else {})
  programs["mlnotes"](2)
  found: dict[str, list[float]] = {name: [] for name in programs}
  for _ in range(config.rounds):
    for name, update in programs.items():
      found[name].append(statistics.median(update(config.updates + 2)[2:]))
      print(f"{method} {name}: {1e3 * found[name][-1]:.1f} ms", file=sys.stderr, flush=True)
  seconds = {name: statistics.median(x) for name, x in found.items()}
  return {"method": method, "seconds": seconds, "rounds": found}


def main(config: Config) -> int:
  enable_compilation_cache()
  rows = [measure(config, method) for method in config.methods]
  print("| method | mlnotes, updates/s | trl, updates/s | ratio |\n|---|---|---|---|")
  for row in rows:
    ours, theirs = row["seconds"]["mlnotes"], row["seconds"].get("trl")
    told = [f"{1 / theirs:.2f}", f"{theirs / ours:.2f}"] if theirs else ["not measured", ""]
    print(f"| {row['method']} | {1 / ours:.2f} | {' | '.join(told)} |")
  if config.out:
    with open(config.out, "w", encoding="utf-8") as file:
      json.dump({"config": dataclasses.asdict(config), "rows": rows}, file, indent=1)
  return 0


if __name__ == "__main__":
  run(main, Config)
