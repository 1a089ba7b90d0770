"""What a policy is aligned to: prompts, a reference, a reward; where all answers can be listed also the optimum."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.lm import pretrain, tune
from experiments.lm._text import decode_text
from mlnotes.data import Corpus, NamedArrays, pad_sequences
from mlnotes.data.flags import load_data
from mlnotes.data.lines import decode_file, json_fields
from mlnotes.data.order import hold_out
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import root_key, stream_key
from mlnotes.engine.flags import BaseConfig, field
from mlnotes.engine.trained import load_config, restore_states
from mlnotes.lm import LanguageModel, Sampling, generate, make_gpt2, token_log_probability
from mlnotes.lm.tasks import Answers, enumerate_answers, find_answers
from mlnotes.optim import eval_params
from mlnotes.sequence.losses import real_places

# Of the enumerable task: its rewards, and its reference.
_TABLE_SEED = 0
# Rows of its training prompts at least: each stands there often, that a batch may hold more than there are.
_LEAST = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignmentConfig(BaseConfig):
  """The flags of prompts, a reference and a reward."""

  policy: str = field(
    "", "work directory of a causal run of lm.pretrain to align; empty: the task whose answers are listed"
  )
  reward: str = field("", "of --policy: a run of lm.tune --task=file on it, whose classes are the reward")
  preferred: str = field("", "of --reward: the class whose log odds are the reward; empty: the last one")
  beta: float = field(0.5, "what a nat of KL from the reference costs, in units of the reward, above 0")
  penalize_unended: bool = field(False, "an answer without <end> scores --unended_reward in the place of its reward")
  unended_reward: float = field(-1.0, "what it scores then")
  prompt_tokens: int = field(8, "of --policy: tokens of the text that each answer goes on from")
  answer_tokens: int = field(3, "tokens of an answer, <end> among them")
  prompts: int = field(4, "of the listed task: prompts")
  words: int = field(3, "of the listed task: words that answers are made of")
  depth: int = field(2, "of the listed task: layers")
  width: int = field(32, "of the listed task: features")

  def __post_init__(self):
    super().__post_init__()
    require(self.beta > 0, "beta", self.beta, "a number above 0: at 0 nothing holds the policy to its reference")
    require(self.words >= 2, "words", self.words, "2 or more")
    for name in ("prompt_tokens", "answer_tokens", "prompts", "depth"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.width >= 4 and self.width % 4 == 0, "width", self.width, "a multiple of 4, the heads")
    preferences = getattr(self, "preferences", "")
    if preferences and self.reward:
      raise InputError(f"--preferences={preferences} and --reward={self.reward}: expected one of the two.")
    said = "--preferences" if preferences else "--reward"
    judged = preferences or self.reward
    if judged and not self.policy:
      raise InputError(f"{said}={judged} is of texts: expected --policy, a run of lm.pretrain, too.")
    if self.policy and not judged:
      other = " or --preferences" if hasattr(self, "preferences") else ""
      raise InputError(f"--policy={self.policy} has nothing to be aligned to: expected --reward{other} too.")
    if not self.policy:
      many = self.words**self.answer_tokens
      require(many <= 4096, "answer_tokens", self.answer_tokens, f"--words^--answer_tokens of 4096 at most, not {many}")

  def idle_flags(self):
    idle = super().idle_flags()
    if self.policy:
      idle |= dict.fromkeys(("prompts", "words", "depth", "width"), f"--policy={self.policy} has its own")
    else:
      idle |= dict.fromkeys(("preferred", "prompt_tokens"), "--policy is empty: the task is listed")
    if not self.penalize_unended:
      idle["unended_reward"] = "--penalize_unended is not set"
    return idle


class Listed(NamedTuple):
  """All answers, and the reward of each to each prompt, (prompts, A)."""

  answers: Answers
  reward: Float[Array, "N A"]


class Situation(NamedTuple):
  """What is aligned, to what.

  Attributes:
    reference: the parameters of `module` that the policy begins with and is held to.
    train, test: {"tokens": (N, P)} prompts of P tokens; the listed task has the same ones in both, often in train.
    score: ({"tokens", ...} a batch of prompts, answers (B, L) padded with `end`, lengths (B,)) -> rewards (B,).
    listed: all answers, where they can be listed.
    decode: tokens to text; `encode` back, of --preferences alone, which have neither prompts nor a reward.
  """

  module: LanguageModel
  reference: Any
  train: NamedArrays | None
  test: NamedArrays | None
  score: Callable[[Mapping[str, Array], Array, Array], Array] | None
  answer_tokens: int
  end: int
  decode: Callable[[Any], str]
  listed: Listed | None = None
  encode: Callable[[str], Any] | None = None


@functools.lru_cache(maxsize=2)
def make_situation(config: Any) -> Situation:
  """Raises InputError where the runs that the flags name do not go together."""
  return _from_runs(config) if config.policy else _listed(config)


def _listed(config: Any) -> Situation:
  """A small network with random parameters is the reference; rewards are drawn from a normal distribution.

  Prompts are numbers whose digits are the words, so that all that can be said behind one is an answer.
  """
  end, words = config.words, config.words
  answers = enumerate_answers(words, config.answer_tokens, end)
  digits = max(1, math.ceil(math.log(config.prompts, words) - 1e-9))
  powers = words ** np.arange(digits)[::-1]
  numbers = np.arange(config.prompts)[:, None]
  prompts = numbers // powers % words
  module = make_gpt2(words + 1, digits + config.answer_tokens, config.depth, 4, config.width)
  key = root_key(_TABLE_SEED)
  params = module.init(stream_key(key, "reference"), jnp.zeros((1, 2), jnp.int32))["params"]
  # Features behind the last norm have a length of sqrt(width): logits then have a deviation of 1 or so.
  params["embed"]["embedding"] *= 1 / (0.02 * config.width**0.5)
  reward = jax.random.normal(stream_key(key, "reward"), (config.prompts, len(answers.tokens)))
  if config.penalize_unended:
    reward = jnp.where(jnp.asarray(answers.ended)[None], reward, config.unended_reward)

  def score(batch, tokens, lengths):
    number = jnp.sum(batch["tokens"] * jnp.asarray(powers, jnp.int32)[None], 1)
    return reward[number, find_answers(answers, tokens)]

  times = -(-_LEAST // config.prompts)
  rows, many = (NamedArrays({"tokens": np.tile(prompts.astype(np.int32), (n, 1))}) for n in (1, times))
  names = [*(chr(97 + i) if i < 26 else f"w{i}" for i in range(words)), "."]
  decode = lambda tokens: " ".join(names[i] for i in np.asarray(tokens).tolist())
  return Situation(module, params, many, rows, score, config.answer_tokens, end, decode, Listed(answers, reward))


def _from_runs(config: Any) -> Situation:
  """Texts go on as the run of lm.pretrain does; the log odds of a class of the run of lm.tune are the reward."""
  said = f"--policy={config.policy}"
  directory = Path(config.policy).expanduser()
  _, trained = load_config(directory, {"lm.pretrain": pretrain.Config}, said)
  if trained.objective not in pretrain.WRITERS:
    raise InputError(
      f"{said} learned by --objective={trained.objective}: expected causal, which foretells what follows."
    )
  trained = dataclasses.replace(trained, devices=1, fsdp=1, rows="")
  corpus, experiment = load_data(trained), pretrain.make(trained)
  states, _ = restore_states(directory, experiment, pretrain.make_feeds(trained), trained, "last", trained.seed, said)
  state = states[trained.seed]
  reference = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), eval_params(state.opt_state, state.params))
  if config.reward and config.prompt_tokens + config.answer_tokens > trained.length:
    raise InputError(
      f"--prompt_tokens={config.prompt_tokens} and --answer_tokens={config.answer_tokens} pass the {trained.length} "
      f"tokens of {said}: expected as many at most, together."
    )
  if corpus.end < 0:
    raise InputError(f"{said} has a text without <end>, so that no answer would end: expected a run with --end_token.")
  module = experiment.model(state).module
  decode = lambda tokens: decode_text(corpus.tokenizer, tokens, corpus.end).strip("\n")
  if not config.reward:
    return Situation(module, reference, None, None, None, 0, corpus.end, decode, encode=corpus.tokenizer.encode)
  splits = [_first_tokens(windows, corpus.end, config.prompt_tokens, said) for windows in (corpus.train, corpus.test)]
  score = _class_reward(config, corpus)
  return Situation(module, reference, *splits, score, config.answer_tokens, corpus.end, decode)


def _first_tokens(windows: Any, end: int, count: int, said: str) -> NamedArrays:
  """<end> and the `count` - 1 tokens that a document begins with, of documents that have more."""
  tokens = windows.arrays["tokens"].astype(np.int32)
  starts = np.flatnonzero(tokens[:-count] == end)
  rows = tokens[starts[:, None] + np.arange(count)]
  rows = rows[(rows[:, 1:] != end).all(1)]
  if not len(rows):
    raise InputError(f"{said}: found no document of {count} tokens or more, expected some: a lower --prompt_tokens.")
  return NamedArrays({"tokens": rows})


def _class_reward(config: Any, corpus: Corpus) -> Callable[[Mapping[str, Array], Array, Array], Array]:
  said = f"--reward={config.reward}"
  directory = Path(config.reward).expanduser()
  _, tuned = load_config(directory, {"lm.tune": tune.Config}, said)
  if tuned.task != "file":
    raise InputError(f"{said} has learned --task={tuned.task}: expected one of --task=file, which judges whole texts.")
  tuned = dataclasses.replace(tuned, devices=1, fsdp=1, rows="")
  network, question = tune.build(tuned)
  if network.corpus.tokenizer != corpus.tokenizer:
    raise InputError(f"{said} reads with another tokenizer than --policy={config.policy}: expected the same.")
  classes = question.classes
  preferred = config.preferred or classes[-1]
  require(preferred in classes, "preferred", preferred, f"one of {', '.join(classes)}")
  experiment = tune.make(tuned)
  states, _ = restore_states(directory, experiment, tune.make_feeds(tuned), tuned, "best", tuned.seed, said)
  model = experiment.model(states[tuned.seed])
  wanted = classes.index(preferred)

  def score(batch, tokens, lengths):
    """<end> is no part of what is judged."""
    prompt = batch["tokens"][:, 1:]
    text = jnp.concatenate([prompt, tokens], 1)[:, : model.length]
    ended = jnp.take_along_axis(tokens, lengths[:, None] - 1, 1)[:, 0] == corpus.end
    size = jnp.minimum(prompt.shape[1] + lengths - ended, text.shape[1])
    logs = jax.nn.log_softmax(model.say(text, size).astype(jnp.float32), -1)
    other = jax.nn.logsumexp(jnp.where(jnp.arange(len(classes))[None] == wanted, -jnp.inf, logs), -1)
    found = logs[:, wanted] - other
    return jnp.where(ended, found, config.unended_reward) if config.penalize_unended else found

  return score


def read_preferences(config: Any, situation: Situation) -> tuple[NamedArrays, NamedArrays]:
  """(training, test) pairs of --preferences: of each line <end> and a prompt, and the two answers and their <end>.

  A fixed pseudo-random tenth of the prompts is for testing. Raises DataError for a file that is none, InputError for
  two answers that are equal, and rows that pass the policy's window.
  """
  flag, length = f"--preferences={config.preferences}", situation.module.length
  names = ("prompt", "chosen", "rejected")
  found = list(json_fields(decode_file(config.preferences, flag), flag, names))
  rows: dict[str, list[Any]] = {name: [] for name in ("chosen", "rejected", "prompt")}
  for number, (prompt, *answers) in found:
    if answers[0] == answers[1]:
      raise InputError(
        f"{flag}: line {number}: found two answers that are equal, expected a preferred and another one."
      )
    start = [situation.end, *situation.encode(prompt)]
    rows["prompt"].append(len(start))
    for name, answer in zip(names[1:], answers):
      rows[name].append([*start, *situation.encode(answer), situation.end])
      if len(rows[name][-1]) > length + 1:
        size = len(rows[name][-1])
        raise InputError(f"{flag}: line {number}: found {size} tokens with the prompt, expected {length + 1} at most.")
  arrays: dict[str, Any] = {"prompt": np.array(rows["prompt"], np.int32)}
  longest = max(len(row) for name in names[1:] for row in rows[name])
  for name in names[1:]:
    padded = pad_sequences(rows[name], longest, situation.end)
    arrays |= {name: padded["tokens"], f"{name}_length": padded["length"]}
  texts = [fields[0] for _, fields in found]
  distinct = list(dict.fromkeys(texts))
  tested = {distinct[i] for i in hold_out(len(distinct), flag)[1]}
  chosen = np.array([text in tested for text in texts])
  return tuple(NamedArrays({name: x[some] for name, x in arrays.items()}) for some in (~chosen, chosen))


# -- answers -----------------------------------------------------------------------------------------------------------


class Answered(NamedTuple):
  """Answers to a batch of prompts, their <end> with them, padded with it; log p of each token, 0 behind them."""

  tokens: Int[Array, "B L"]
  lengths: Int[Array, " B"]
  ended: Array
  log_probability: Float[Array, "B L"]


def draw_answers(situation: Situation, params: Any, prompts: Int[Array, "B P"], keys: Array) -> Answered:
  """Drawn from the policy at temperature 1, which it is trained at too."""
  found = generate(
    situation.module, {"params": params}, prompts, None, keys, situation.answer_tokens, Sampling(temperature=1.0),
    situation.end, situation.end,
  )  # fmt: skip
  last = jnp.take_along_axis(found.tokens, found.length[:, None] - 1, 1)[:, 0]
  return Answered(found.tokens, found.length, last == situation.end, found.log_probability)


def judge_tokens(
  situation: Situation, params: Any, prompts: Int[Array, "B P"], answers: Int[Array, "B L"], lengths: Int[Array, " B"]
) -> tuple[Float[Array, "B L"], Float[Array, "B L V"]]:
  """(log p of each token of the answers, 0 behind them; the log probabilities of all tokens there)."""
  hidden = read_answers(situation, params, prompts, answers)
  logits = situation.module.apply({"params": params}, hidden, method="logits")
  real = real_places(lengths, answers.shape[1])
  return jnp.where(real, token_log_probability(logits, answers), 0), jax.nn.log_softmax(logits, -1)


def read_answers(situation: Situation, params: Any, prompts: Any, answers: Any) -> Float[Array, "B L D"]:
  """Features in front of each token of the answers."""
  rows = jnp.concatenate([prompts, answers[:, :-1]], 1)
  hidden = situation.module.apply({"params": params}, rows, method="hidden")
  return hidden[:, prompts.shape[1] - 1 :]


def list_log_probabilities(situation: Situation, params: Any) -> Float[Array, "N A"]:
  """log p of every answer to every prompt."""
  answers, prompts = situation.listed.answers, jnp.asarray(situation.test.arrays["tokens"])
  count = len(answers.tokens)
  each = lambda x: jnp.repeat(x, count, 0)
  many = lambda x: jnp.tile(jnp.asarray(x), (len(prompts), *(1,) * (x.ndim - 1)))
  logs, _ = judge_tokens(situation, params, each(prompts), many(answers.tokens), many(answers.lengths))
  return jnp.sum(logs, 1).reshape(len(prompts), count)
