"""What --reward names: a run whose judgement of an answer is its reward."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from experiments.lm import reward, tune
from experiments.lm._answers import Prompts
from experiments.lm._listed import LISTED_FLAGS, list_answers
from experiments.lm._policy import Policy
from experiments.lm._preferences import find_class
from experiments.lm._tuning_tasks import mark_rows
from mlnotes.data.flags import note
from mlnotes.engine.errors import InputError
from mlnotes.engine.trained import load_config, restore_seed, unplace
from mlnotes.optim import eval_params

# Runs that judge texts.
JUDGES = {"lm.reward": reward.Config, "lm.tune": tune.Config}


class Judge(NamedTuple):
  """What scores answers.

  Attributes:
    params: what `score` is given, so that nothing that compiles holds it.
    score: (params, prompts, answers (B, L), their lengths (B,)) -> rewards (B,).
    value: {"network", "head"} of the same module as the policy that a value function may begin with, what it says
      shifted as the rewards are; None: there is none.
  """

  params: Any
  score: Callable[[Any, Prompts, Int[Array, "B L"], Int[Array, " B"]], Float[Array, " B"]]
  value: Any = None


def load_judge(config: Any, policy: Policy | None) -> Judge:
  """Of a run of lm.reward, or of lm.tune --task=file on texts. Raises InputError where it and the policy do not fit."""
  said, directory = f"--reward={config.reward}", Path(config.reward).expanduser()
  name, trained = load_config(directory, JUDGES if policy else {"lm.reward": reward.Config}, said)
  trained = dataclasses.replace(trained, devices=1, fsdp=1, rows="")
  return (_reward_model if name == "lm.reward" else _class_odds)(config, trained, policy, said, directory)


def _restore(directory: Path, module: Any, config: Any, checkpoint: str, said: str) -> Any:
  """Of a run's first seed what judges: the state without its key and its optimizer's, on no device in particular."""
  _, state = restore_seed(module, directory, config, checkpoint, said=said)
  state = state._replace(params=eval_params(state.opt_state, state.params), key=(), opt_state=())
  return unplace(state)


def _reward_model(config: Any, trained: Any, policy: Policy | None, said: str, directory: Path) -> Judge:
  if (policy is None) != trained.lists_answers:
    found, wanted = ("listed answers", "texts")[:: 1 if policy else -1]
    raise InputError(f"{said} is of {found}: expected one of {wanted}, as --policy has it.")
  if policy is None:
    for name in LISTED_FLAGS:
      found, wanted = getattr(trained, name), getattr(config, name)
      if found != wanted:
        raise InputError(f"{said} has learned with --{name}={found}: expected {wanted}, as here.")
  if config.preferred and not config.labelled:
    note(f"--preferred={config.preferred} has no effect: {said} has learned what is preferred")
  state = _restore(directory, reward, trained, "best", said)
  module = list_answers(trained).module if policy is None else reward.load_policy(trained.policy).module
  if policy and reward.load_policy(trained.policy).corpus.tokenizer != policy.corpus.tokenizer:
    raise InputError(f"{said} reads with another tokenizer than {policy.said}: expected the same.")
  same = module == (list_answers(config).module if policy is None else policy.module)

  def score(judge, prompts, answers, lengths):
    rows = prompts.join(answers)[:, : module.length]
    size = jnp.minimum(prompts.lengths + lengths, rows.shape[1])
    return reward.read_reward(module, judge.params, rows, size) - judge.mean

  last = state.params["head"]["logits"]
  head = {"logits": {**last, "bias": last["bias"] - state.mean}}
  return Judge(state, score, {"network": state.params["network"], "head": head} if same else None)


def _class_odds(config: Any, tuned: Any, policy: Policy, said: str, directory: Path) -> Judge:
  """The log odds of a class."""
  if tuned.task != "file":
    raise InputError(f"{said} has learned --task={tuned.task}: expected one of --task=file, which judges whole texts.")
  network, question = tune.build(tuned)
  if network.corpus.tokenizer != policy.corpus.tokenizer:
    raise InputError(f"{said} reads with another tokenizer than {policy.said}: expected the same.")
  classes = question.classes
  wanted = classes.index(find_class(config.preferred, classes))
  experiment, marks = tune.make(tuned), question.marks
  room = network.config.length - sum(map(len, marks))

  def score(state, prompts, answers, lengths):
    """<end> is no part of what is judged, neither in front nor behind; the marks of the judge's own texts are."""
    ended = jnp.take_along_axis(answers, lengths[:, None] - 1, 1)[:, 0] == policy.end
    text = prompts.join(answers)[:, 1:][:, :room]
    size = jnp.minimum(prompts.lengths - 1 + lengths - ended, text.shape[1])
    text, size = mark_rows(text, size, marks)
    logs = jax.nn.log_softmax(experiment.model(state).say(text, size).astype(jnp.float32), -1)
    other = jax.nn.logsumexp(jnp.where(jnp.arange(len(classes))[None] == wanted, -jnp.inf, logs), -1)
    return logs[:, wanted] - other

  return Judge(_restore(directory, tune, tuned, "best", said), score)
