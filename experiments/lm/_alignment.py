"""What a policy is aligned to: prompts, a reference, a reward; where all answers can be listed also the optimum."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.lm import pretrain, reward
from experiments.lm._answers import Answered, Prompts, draw_answers
from experiments.lm._judges import JUDGES, Judge, load_judge
from experiments.lm._listed import LISTED_FLAGS, Listed, ListedConfig, list_answers
from experiments.lm._policy import Policy, find_prompts, load_policy
from experiments.lm._preferences import find_class
from mlnotes.data import NamedArrays, read_labelled
from mlnotes.data.flags import load_data, note
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.flags import field
from mlnotes.engine.loop import default_workdir
from mlnotes.engine.stage import find_stage
from mlnotes.engine.trained import load_config
from mlnotes.lm import LanguageModel

# Rows of the listed task's training prompts at least: each stands there often, so that a batch may hold more.
_LEAST = 1024
# Of the network that --labelled trains first.
_READER = dict(
  documents="line", tokenizer="bpe", vocab_size=2000, length=48, batch_size=32, learning_rate=1e-3, eval_every=0,
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignmentConfig(ListedConfig):
  """The flags of prompts, a reference and a reward."""

  policy: str = field(
    "",
    "work directory of a causal run of lm.pretrain, or of lm.sft, to align; empty: the task whose answers are listed",
  )
  reward: str = field(
    "", "a run of lm.reward, or on --policy's texts of lm.tune --task=file; empty: the listed task's own reward"
  )
  learned_reward: bool = field(False, "of the listed task: lm.reward learns the reward from pairs first")
  labelled: str = field(
    "", "texts and their labels, a folder with pos.txt, ...: what --policy and --reward lack is trained on them first"
  )
  pretrain_steps: int = field(2000, "of --labelled: updates of the policy that is trained first")
  reward_steps: int = field(0, "updates of the reward model that is trained first; 0: lm.reward's default")
  preferred: str = field("", "of --labelled, and of a run of lm.tune: the class to be said; empty: the last one")
  beta: float = field(1.0, "what a nat of KL from the reference costs, in units of the reward, above 0")
  prompt_tokens: int = field(8, "of a policy of lm.pretrain: tokens of a document that each answer goes on from")

  def __post_init__(self):
    super().__post_init__()
    require(self.beta > 0, "beta", self.beta, "a number above 0: at 0 nothing holds the policy to its reference")
    for name, least in (("prompt_tokens", 1), ("pretrain_steps", 1), ("reward_steps", 0)):
      require(getattr(self, name) >= least, name, getattr(self, name), f"{least} or more")
    preferences = getattr(self, "preferences", "")
    for name in ("reward", "labelled"):
      if preferences and getattr(self, name):
        raise InputError(f"--preferences={preferences} and --{name}={getattr(self, name)}: expected one of the two.")
    if preferences and not self.policy:
      raise InputError(f"--preferences={preferences} is of texts: expected --policy, a run of lm.pretrain or lm.sft.")
    if self.policy and not (self.reward or self.labelled or preferences):
      other = " or --preferences" if hasattr(self, "preferences") else ""
      raise InputError(
        f"--policy={self.policy} has nothing to be aligned to: expected --reward, --labelled{other} too."
      )
    if self.learned_reward and (not self.lists_answers or self.reward):
      found = f"--reward={self.reward}" if self.reward else "texts"
      raise InputError(f"--learned_reward is of the listed task, which has none yet: found {found} with it.")

  @property
  def lists_answers(self) -> bool:
    return not (self.policy or self.labelled)

  @classmethod
  def tuned(cls, **given: Any) -> Any:
    """Of texts longer answers, and small steps."""
    texts = {}
    if given.get("policy") or given.get("labelled"):
      texts = cls.OF_TEXTS
    return super().tuned(**{**texts, **given})

  def idle_flags(self):
    idle = super().idle_flags()
    if self.lists_answers:
      idle |= dict.fromkeys(("preferred", "prompt_tokens"), "answers are listed")
    if not self.labelled or self.policy:
      idle["pretrain_steps"] = "no policy is trained first"
    if not (self.labelled or self.learned_reward) or self.reward:
      idle["reward_steps"] = "no reward model is trained first"
    return idle


class Situation(NamedTuple):
  """What is aligned, to what.

  Attributes:
    reference: the parameters of `module` that the policy begins with and is held to.
    train, test: {"tokens": (N, P), "length": (N,)} prompts; the listed task has the same ones in both, often in train.
    judge: scores answers; None of --preferences, which have neither prompts nor a reward.
    answer_tokens: of an answer at most.
    decode: tokens to text.
    listed: the task, where answers are listed.
  """

  module: LanguageModel
  reference: Any
  train: NamedArrays | None
  test: NamedArrays | None
  judge: Judge | None
  answer_tokens: int
  end: int
  decode: Callable[[Any], str]
  listed: Listed | None = None

  def draw(self, params: Any, prompts: Prompts, keys: Array) -> Answered:
    return draw_answers(self.module, params, prompts, keys, self.answer_tokens, self.end)


@functools.lru_cache(maxsize=2)
def make_situation(config: Any) -> Situation:
  """Raises InputError where the runs that the flags name do not go together."""
  if config.lists_answers:
    return _of_listed(config)
  if not (config.policy and (config.reward or getattr(config, "preferences", ""))):
    raise InputError(f"--labelled={config.labelled}: expected --policy and --reward, runs on it, or `main`.")
  policy = load_policy(config.policy)
  if not config.reward:
    return Situation(policy.module, policy.params, None, None, None, 0, policy.end, policy.decode)
  if policy.answered and config.prompt_tokens != AlignmentConfig.prompt_tokens:
    note(
      f"--prompt_tokens={config.prompt_tokens} has no effect: prompts are those that {policy.said} has learned from."
    )
  judge = load_judge(config, policy)
  if config.penalize_unended:
    judge = _penalize(judge, policy.end, config.unended_reward)
  splits = find_prompts(policy, config.prompt_tokens, config.answer_tokens)
  return Situation(policy.module, policy.params, *splits, judge, config.answer_tokens, policy.end, policy.decode)


def _of_listed(config: Any) -> Situation:
  listed = list_answers(config)
  judge = Judge((), lambda params, prompts, answers, lengths: listed.score(prompts.tokens, answers))
  if config.reward:
    judge = load_judge(config, None)
    if config.penalize_unended:
      judge = _penalize(judge, listed.end, config.unended_reward)
  many = np.tile(listed.prompts, (-(-_LEAST // len(listed.prompts)), 1))
  whole = lambda rows: NamedArrays({"tokens": rows, "length": np.full(len(rows), rows.shape[1], np.int32)})
  splits = whole(many), whole(listed.prompts)
  return Situation(
    listed.module, listed.reference, *splits, judge, config.answer_tokens, listed.end, listed.decode, listed
  )


def _penalize(judge: Judge, end: int, score: float) -> Judge:
  """An answer that does not end scores what is said."""

  def of(params, prompts: Prompts, answers: Int[Array, "B L"], lengths: Int[Array, " B"]) -> Float[Array, " B"]:
    ended = jnp.take_along_axis(answers, lengths[:, None] - 1, 1)[:, 0] == end
    return jnp.where(ended, judge.score(params, prompts, answers, lengths), score)

  return judge._replace(score=of)


def batch_prompts(batch: Any) -> Prompts:
  return Prompts(batch["tokens"], batch["length"])


def check_labelled(config: Any) -> None:
  """Before anything trains on --labelled. Raises DataError as its readers, InputError for what does not fit."""
  find_class(config.preferred, read_labelled(config.labelled, "", "labelled").classes)
  if not config.policy and config.labelled.endswith(".tsv"):
    raise InputError(f"--labelled={config.labelled}: the policy reads it first, expected a folder, or --policy too.")
  room = config.prompt_tokens + config.answer_tokens
  if not config.policy and room > _READER["length"]:
    raise InputError(
      f"--prompt_tokens={config.prompt_tokens} and --answer_tokens={config.answer_tokens} pass the "
      f"{_READER['length']} tokens of the policy that --labelled={config.labelled} trains first: expected as many at "
      "most, together."
    )
  if config.reward:
    load_config(Path(config.reward).expanduser(), JUDGES, f"--reward={config.reward}")
  if config.policy:
    return _check_prompts(config, load_policy(config.policy))
  corpus = load_data(pretrain.Config(**{**_READER, "dataset": config.labelled}))
  reader = SimpleNamespace(length=_READER["length"])
  _check_prompts(config, Policy(reader, None, corpus, f"--labelled={config.labelled}", None))


def _check_prompts(config: Any, policy: Policy) -> None:
  """Raises InputError where there are too few of them, or none that has room for an answer."""
  _check_batch(config, find_prompts(policy, config.prompt_tokens, config.answer_tokens)[0], policy.said)


def _check_batch(config: Any, train: NamedArrays, said: str) -> None:
  most = getattr(config, "pairs", len(train))
  kind = "pairs that are drawn" if hasattr(config, "pairs") else f"prompts of {said}"
  require(config.batch_size <= most, "batch_size", config.batch_size, f"{most} or fewer, the {kind}")


def train_first(name: str, config: Any) -> Any:
  """The config of the experiment `name` with runs in the place of what --labelled or --learned_reward want first.

  What the flags have wrong is said before anything trains. Raises InputError, and as `find_stage`.
  """
  if config.labelled:
    check_labelled(config)
  if not (config.labelled or config.learned_reward) or (config.policy and config.reward):
    return config
  workdir = Path(config.workdir).expanduser() if config.workdir else default_workdir(name, config)
  shared = {item: getattr(config, item) for item in ("seed", "devices", "threads", "tensorboard")}
  if config.learned_reward:
    _check_batch(config, make_situation(dataclasses.replace(config, learned_reward=False)).train, "the listed task")
    own = {item: getattr(config, item) for item in (*LISTED_FLAGS, "penalize_unended", "unended_reward")}
    steps = {"steps": config.reward_steps} if config.reward_steps else {}
    judge = find_stage("reward", "", reward, workdir, eval_every=0, **shared, **own, **steps)
    return dataclasses.replace(config, reward=str(judge), learned_reward=False, workdir=str(workdir))
  first = {**_READER, "dataset": config.labelled, "steps": config.pretrain_steps}
  policy = find_stage("policy", config.policy, pretrain, workdir, **shared, **first)
  given = dict(policy=str(policy), labelled=config.labelled, preferred=config.preferred)
  tuned = reward.Config.tuned(**given)
  given |= {item: getattr(tuned, item) for item in ("learning_rate", "batch_size", "steps", "eval_every")}
  given |= {"steps": config.reward_steps} if config.reward_steps else {}
  judge = find_stage("reward", config.reward, reward, workdir, **shared, **given)
  return dataclasses.replace(config, policy=str(policy), reward=str(judge), workdir=str(workdir))
