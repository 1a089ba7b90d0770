"""Text that a trained language model writes behind a prompt.

  python -m experiments.lm.generate                                          # trains pretrain's defaults first
  python -m experiments.lm.generate --run=runs/lm --prompt="The " --texts=3
  python -m experiments.lm.generate --run=runs/lm --file=prompts.txt --temperature=0    # the likeliest, for each line
  python -m experiments.lm.generate --run=runs/sft --prompt="textwrap.dedent(text)"    # lm.sft, lm.rlhf, lm.dpo answer
  python -m experiments.lm.generate --weights=FOLDER --prompt="The "         # a GPT-2 or Llama of Hugging Face's form

A run of lm.sft, and a policy that goes on from one, has a separator behind the prompt. These, and any policy of lm.rlhf
or lm.dpo, stop where they have answered.
What a text is goes by --seed and its number among those asked for, not by what the others are.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

from experiments.lm import dpo, pretrain, rlhf, sft
from experiments.lm._policy import load_policy
from experiments.lm._text import Model, decode_text, write_tokens
from experiments.lm._weights import require_folder, tokenizer_of
from mlnotes.data import Corpus, Tokenizer
from mlnotes.data.flags import load_data
from mlnotes.data.lines import decode_file
from mlnotes.data.tokenizer import UNKNOWN, load_tokenizer
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.loop import enable_compilation_cache
from mlnotes.engine.stage import find_stage
from mlnotes.engine.trained import load_config, restore_states
from mlnotes.lm import LanguageModel, Sampling, load_hugging_face


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  run: str = field("", "work directory of a run of lm.pretrain, lm.sft, lm.rlhf or lm.dpo; empty: one is trained first")
  weights: str = field("", "folder of Hugging Face's form with a GPT-2 or Llama and its tokenizer.json, not --run")
  checkpoint: Literal["last", "best"] = field("last", "which of the two kept checkpoints; best: of the best evaluation")
  model_seed: int = field(-1, "which seed of a run with several; -1: its first")
  prompt: str = field("", "what the text begins with; empty: the beginning of a document")
  file: str = field("", "file with a prompt on each line, in the place of --prompt")
  texts: int = field(1, "texts behind each prompt")
  tokens: int = field(400, "tokens of each text, the prompt not counted")
  stop: bool = field(False, "end a text where its document ends")
  temperature: float = field(0.8, "logits are divided by it; 0: the likeliest token each time")
  top_k: int = field(0, "draw from the k likeliest tokens alone; 0: from all")
  top_p: float = field(1.0, "draw from the likeliest tokens that have this chance together, in (0, 1]")
  min_p: float = field(0.0, "leave out tokens with less than this part of the likeliest one's chance, in [0, 1]")
  repetition_penalty: float = field(1.0, "make tokens that were there less likely; 1: not, above 0")
  seed: int = field(0, "of what is drawn")
  data_dir: str = field("", "where the run's TFDS data set is now; empty: as in the run")
  out: str = field("", "file for the texts as well; empty: none")

  def __post_init__(self):
    super().__post_init__()
    for name in ("texts", "tokens"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("temperature", "top_k", "seed"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
    require(0 < self.top_p <= 1, "top_p", self.top_p, "a number in (0, 1]")
    require(0 <= self.min_p <= 1, "min_p", self.min_p, "a number in [0, 1]")
    require(self.repetition_penalty > 0, "repetition_penalty", self.repetition_penalty, "a number above 0")
    if self.prompt and self.file:
      raise InputError("--prompt and --file both say what texts begin with: expected one of them.")
    if self.run and self.weights:
      raise InputError("--run and --weights both say what writes: expected one of them.")

  def idle_flags(self):
    idle = super().idle_flags()
    if self.temperature == 0:
      idle |= dict.fromkeys(("top_k", "top_p", "min_p", "seed"), "--temperature=0 takes the likeliest token")
    if self.weights:
      idle |= dict.fromkeys(("checkpoint", "model_seed", "data_dir"), "they are of --run")
    return idle


def make_sampling(config: Config) -> Sampling:
  penalty = None if config.repetition_penalty == 1 else config.repetition_penalty
  if config.temperature == 0:
    return Sampling(repetition_penalty=penalty)
  return Sampling(
    config.temperature, config.top_k or None, None if config.top_p == 1 else config.top_p, config.min_p or None, penalty
  )


def read_prompts(config: Config) -> list[str]:
  if not config.file:
    return [config.prompt]
  found = [line for line in decode_file(config.file, f"--file={config.file}").splitlines() if line]
  if not found:
    raise InputError(f"--file={config.file} has no prompt: expected one on each line.")
  return found


class Writer(NamedTuple):
  """What writes, and its tokens: `start` begins a document and `end` is behind it, -1 where there is none.

  Attributes:
    separator: what it answers behind; None: it goes on with a text.
    stops: it has learned what stands up to the first `end` alone, as an answer does.
  """

  model: Model
  tokenizer: Tokenizer
  start: int
  end: int
  told: str
  separator: str | None = None
  stops: bool = False


WRITERS: dict[str, ModuleType] = {"lm.pretrain": pretrain, "lm.sft": sft, "lm.rlhf": rlhf, "lm.dpo": dpo}


def load_run(config: Config) -> Writer:
  """Of the run that the flags name, or of one that is trained first."""
  directory = find_stage("run", config.run, pretrain, Path("runs/lm.generate"))
  name, trained = load_config(directory, {name: module.Config for name, module in WRITERS.items()})
  here: dict[str, Any] = {"devices": 1, "fsdp": 1, "rows": ""}
  if config.data_dir:
    if not hasattr(trained, "data_dir"):
      raise InputError(f"--data_dir={config.data_dir}: a run of {name} reads the text of its --policy, expected none.")
    here["data_dir"] = config.data_dir
  trained = dataclasses.replace(trained, **here)
  corpus, separator = find_text(name, trained, directory)
  experiment = WRITERS[name].make(trained)
  seed = trained.seed if config.model_seed < 0 else config.model_seed
  feeds = WRITERS[name].make_feeds(trained)
  states, step = restore_states(directory, experiment, feeds, trained, config.checkpoint, seed)
  told = f"step {step}"
  model, stops = experiment.model(states[seed]), name != "lm.pretrain"
  return Writer(model, corpus.tokenizer, corpus.end, corpus.end, told, separator, stops)


def find_text(name: str, trained: Any, directory: Path) -> tuple[Corpus, str | None]:
  """(the text whose tokens the run writes, what it answers behind). Raises InputError for a run that writes no text."""
  if name == "lm.pretrain":
    if trained.objective not in pretrain.WRITERS:
      raise InputError(
        f"--run={directory} learned by --objective={trained.objective}: expected {' or '.join(pretrain.WRITERS)}, "
        "which foretell what follows."
      )
    return load_data(trained), None
  if name == "lm.sft":
    return sft.build(trained)[0].corpus, trained.separator
  if trained.lists_answers:
    raise InputError(f"--run={directory} writes listed answers of a few words: expected a run with --policy, of texts.")
  policy = load_policy(trained.policy)
  return policy.corpus, policy.separator if policy.answered else None


def load_weights(folder: str) -> Writer:
  """Of a folder of Hugging Face's form with a tokenizer.json, which documents begin and end with as its config says."""
  require_folder(folder)
  module, params = load_hugging_face(folder)
  if not isinstance(module, LanguageModel) or not module.causal:
    found = "reads from both sides" if isinstance(module, LanguageModel) else "has an encoder and a decoder"
    raise InputError(f"--weights={folder} {found}: expected a GPT-2 or a Llama, which foretell.")
  tokenizer = load_tokenizer(tokenizer_of(folder))
  if tokenizer.vocab_size > module.vocabulary:
    raise InputError(
      f"--weights={folder} has {module.vocabulary} embeddings for a tokenizer of {tokenizer.vocab_size} tokens: "
      "expected as many, or more."
    )
  saved = json.loads((Path(folder).expanduser() / "config.json").read_text(encoding="utf-8"))
  first = lambda found: found[0] if isinstance(found, list) and found else found  # some name several ends
  token = lambda name: found if isinstance(found := first(saved.get(name)), int) else -1
  return Writer(Model(module, params), tokenizer, token("bos_token_id"), token("eos_token_id"), folder)


def ask(prompt: str, separator: str | None) -> str:
  return prompt if separator is None else sft.ask(prompt, separator)


def encode_prompt(
  prompt: str, tokenizer: Tokenizer, start: int, length: int, said: str = "--prompt", separator: str | None = None
) -> list[int]:
  """Behind the token that begins a document, where there is one (not -1) and the prompt leaves room for it.

  Raises InputError, which begins with `said`, for an empty prompt without that, one that fills a window, and tokens
  that are unknown; a separator may be one, which the run has learned so.
  """
  ids = tokenizer.encode(ask(prompt, separator)).tolist()
  if not ids and start < 0:
    raise InputError(f"{said} is empty and the run's text has no <end> to begin with: expected a prompt.")
  if len(ids) >= max(2, length):
    raise InputError(f"{said} has {len(ids)} tokens: expected fewer than the {length} of the run's windows.")
  unknown = tokenizer.special.get(UNKNOWN, -1)
  if unknown in tokenizer.encode(prompt):
    pieces = list(prompt) if tokenizer.kind == "characters" else prompt.split()
    odd = [piece for piece in pieces if unknown in tokenizer.encode(piece)]
    raise InputError(f"{said} has {', '.join(map(repr, sorted(set(odd))))}: expected what the run's text had.")
  return [start, *ids] if start >= 0 and len(ids) < length - 1 else ids


def go_on(prompt: str, tokens: Sequence[int], writer: Writer) -> str:
  """The prompt and the text of the tokens, which are decoded behind its own: of some tokenizers spaces depend on it."""
  known = writer.tokenizer.encode(prompt).tolist()
  before = writer.tokenizer.decode(known)
  return prompt + decode_text(writer.tokenizer, [*known, *tokens], writer.end)[len(before) :]


def check_out(out: str) -> None:
  """Before anything is written by the model. Raises InputError where a file cannot be there."""
  path = Path(out).expanduser()
  if out and (path.is_dir() or not path.parent.is_dir()):
    found = "is a folder" if path.is_dir() else f"is in {path.parent}, which is no folder"
    raise InputError(f"--out={out} {found}: expected a file in one that is there.")


def main(config: Config) -> int:
  enable_compilation_cache()
  check_out(config.out)
  prompts = read_prompts(config)
  writer = load_weights(config.weights) if config.weights else load_run(config)
  given = writer.tokenizer, writer.start, writer.model.module.length
  said = [f"--file={config.file}: prompt {i + 1}" if config.file else "--prompt" for i in range(len(prompts))]
  asked = [ask(prompt, writer.separator) for prompt in prompts]
  each = [encode_prompt(prompt, *given, told, writer.separator) for prompt, told in zip(prompts, said)]
  ids = [tokens for tokens in each for _ in range(config.texts)]
  began = time.perf_counter()
  end = writer.end if config.stop or writer.stops else -1
  found = write_tokens(writer.model, ids, config.tokens, config.seed, make_sampling(config), end)
  seconds, count = time.perf_counter() - began, sum(map(len, found))
  texts = [go_on(asked[i // config.texts], row, writer) for i, row in enumerate(found)]
  told = f"\n{'-' * 40}\n".join(texts)
  print(told)
  print(f"{count} tokens of {writer.told} in {seconds:.1f} s, compilation included", file=sys.stderr)
  if config.out:
    try:
      Path(config.out).expanduser().write_text(told + "\n", encoding="utf-8")
    except OSError as error:
      raise InputError(f"--out={config.out} cannot be written: {error.strerror or error}.") from error
  return 0


if __name__ == "__main__":
  run(main, Config)
