"""A language model aligned to a reward by reinforcement learning, held to its reference by their KL divergence.

  python -m experiments.lm.rlhf                                            # all answers listed: the optimum is known
  python -m experiments.lm.rlhf --method=rloo --beta=0.5
  python -m experiments.lm.rlhf --method=grpo
  python -m experiments.lm.rlhf --learned_reward                           # from pairs, not the true one
  python -m experiments.lm.rlhf --labelled=FOLDER                          # the whole road: texts with pos.txt, neg.txt
  python -m experiments.lm.rlhf --policy=runs/reviews --reward=runs/judge

Texts go on from a causal run of lm.pretrain, or answer the prompts of one of lm.sft; their reward is that of a run of
lm.reward, or the log odds of a class of a run of lm.tune --task=file. Each update draws answers, then learns from them
in minibatches. Writes frontier.png, where the policy is beside the most reward there can be at its KL; of texts
answers.txt and rewards.png.
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

from experiments.lm._alignment import AlignmentConfig, Situation, batch_prompts, make_situation, train_first
from experiments.lm._alignment_report import exact_figures, report_alignment, sample_figures
from experiments.lm._answers import Answered, Prompts, judge_tokens, read_answers
from experiments.lm._text import Model
from mlnotes.data import Feeds, make_split_feeds
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, Mean, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.lm import LanguageModel, TokenHead, answer_advantages, answer_rewards, group_advantages, grpo_loss, whiten
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, OptimizerName, make_optimizer
from mlnotes.rl.on_policy import minibatch_rows
from mlnotes.rl.ppo import clip_fraction, clipped_surrogate_loss, clipped_value_loss
from mlnotes.sequence.losses import real_places


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(AlignmentConfig, OptimConfig, LoopConfig):
  """Defaults: four prompts whose answers are listed, a minute on two CPU cores."""

  UNIT: ClassVar[str] = "answers"
  fills_cores: ClassVar[bool] = False
  OF_TEXTS: ClassVar[dict[str, Any]] = dict(
    answer_tokens=24,
    beta=0.5,
    penalize_unended=True,
    batch_size=16,
    answers=4,
    steps=100,
    learning_rate=1e-4,
    eval_every=20,
  )

  method: Literal["ppo", "rloo", "grpo"] = field(
    "ppo",
    "ppo: advantages from a value function (InstructGPT's); rloo: a reward less the mean of the prompt's other ones; "
    "grpo: less the mean of all, over their deviation, and the KL in the loss",
  )
  answers: int = field(8, "answers to each prompt of an update; rloo and grpo compare them")
  epochs: int = field(2, "passes over the answers of an update")
  minibatches: int = field(2, "gradient steps of a pass; divides --batch_size * --answers")
  clip: float = field(0.2, "how far a token's ratio may leave 1 before it is cut, above 0")
  gae_lambda: float = field(0.95, "of ppo: 1 trusts the rewards, 0 the values, in [0, 1]")
  value_weight: float = field(0.1, "of ppo: the value loss beside the policy's")

  batch_size: int = field(32, "prompts of an update, each with --answers")
  steps: int = 600
  learning_rate: float = 1e-3
  optimizer: OptimizerName = "adam"
  schedule: ScheduleName = "linear"
  clip_norm: float = 1.0
  eval_every: int = 25

  def __post_init__(self):
    super().__post_init__()
    for name in ("batch_size", "answers", "epochs", "minibatches"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    rows = self.batch_size * self.answers
    require(rows % self.minibatches == 0, "minibatches", self.minibatches, f"a divisor of an update's {rows} answers")
    require(self.clip > 0, "clip", self.clip, "a number above 0")
    require(0 <= self.gae_lambda <= 1, "gae_lambda", self.gae_lambda, "0 to 1")
    compared = self.method == "ppo" or self.answers > 1
    require(compared, "answers", self.answers, f"2 or more, which --method={self.method} compares")

  @property
  def units_per_update(self) -> int:
    return self.batch_size * self.answers

  def idle_flags(self):
    idle = super().idle_flags()
    if self.method != "ppo":
      idle |= dict.fromkeys(("gae_lambda", "value_weight"), f"--method={self.method} has no values")
    return idle


class State(NamedTuple):
  """`params` are those of the policy and, of PPO, of the value function; `reference` those of what it is held to.

  `judge` is what the score is given, () where it needs nothing.
  """

  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  reference: chex.ArrayTree
  judge: chex.ArrayTree
  opt_state: optax.OptState
  hparams: Mapping[str, Float[Array, ""]]


class Rollout(NamedTuple):
  """Answers and what is learned from each of their tokens; `advantage` is 0 behind an answer."""

  prompts: Prompts
  answers: Int[Array, "R L"]
  lengths: Int[Array, " R"]
  old: Float[Array, "R L"]
  reference: Float[Array, "R L"]
  advantage: Float[Array, "R L"]
  value: Float[Array, "R L"]
  target: Float[Array, "R L"]


HEAD = TokenHead(1)


def read_values(module: LanguageModel, params: Any, prompts: Prompts, answers: Array) -> Float[Array, "R L"]:
  """In front of each token of an answer, by a network of its own."""
  hidden = read_answers(module, params["network"], prompts, answers)
  return HEAD.apply({"params": params["head"]}, hidden)[..., 0]


def make_feeds(config: Config) -> Feeds:
  situation = make_situation(config)
  return make_split_feeds(situation.train, situation.test, config)


def make(config: Config, situation: Situation | None = None) -> Experiment:
  situation = situation or make_situation(config)
  module, optimizer = situation.module, make_optimizer(config, config.steps * config.epochs * config.minibatches)

  def init(key, batch) -> State:
    reference = jax.tree.map(jnp.array, situation.reference)
    params = {"policy": jax.tree.map(jnp.array, reference)}
    if config.method == "ppo":
      params["value"] = start_value(situation, stream_key(key, "value"))
    hparams = {name: jnp.float32(getattr(config, name)) for name in hparam_names(config)}
    judge = jax.tree.map(jnp.array, situation.judge.params)
    return State(jnp.zeros([], jnp.int32), key, params, reference, judge, optimizer.init(params), hparams)

  def collect(state: State, batch, key) -> tuple[Rollout, Answered, Float[Array, " R"]]:
    prompts = batch_prompts(batch).repeat(config.answers)
    keys = jax.random.split(key, len(prompts.tokens))
    answered = situation.draw(state.params["policy"], prompts, keys)
    rows = prompts, answered.tokens, answered.lengths
    old, reference = (judge_tokens(module, each, *rows)[0] for each in (state.params["policy"], state.reference))
    score = situation.judge.score(state.judge, *rows)
    value = jnp.zeros_like(old)
    if config.method == "ppo":
      value = read_values(module, state.params["value"], *rows[:2])
    advantage = find_advantages(config, state.hparams["beta"], score, old, reference, value, answered)
    target = advantage + value
    real = real_places(answered.lengths, old.shape[1]).astype(jnp.float32)
    if config.method == "ppo":
      advantage = whiten(advantage, real)
    return Rollout(*rows, old, reference, advantage, value, target), answered, score

  def loss(params, rows: Rollout, hparams):
    logs, every = judge_tokens(module, params["policy"], rows.prompts, rows.answers, rows.lengths)
    real = real_places(rows.lengths, logs.shape[1]).astype(jnp.float32)
    mean = lambda x: jnp.sum(x * real) / jnp.sum(real)
    metrics = {
      "entropy": mean(-jnp.sum(jnp.exp(every) * every, -1)),
      "clip_fraction": mean(clip_fraction(logs, rows.old, hparams["clip"])),
    }
    if config.method == "grpo":
      each = grpo_loss(logs, rows.old, rows.reference, rows.advantage[:, 0], hparams["clip"], hparams["beta"])
      metrics["policy_loss"] = jnp.mean(jnp.sum(each * real, 1) / rows.lengths)
      return metrics["policy_loss"], metrics
    each = clipped_surrogate_loss(logs, rows.old, rows.advantage, hparams["clip"])
    if config.method == "rloo":
      metrics["policy_loss"] = jnp.mean(jnp.sum(each * real, 1))
      return metrics["policy_loss"], metrics
    metrics["policy_loss"] = mean(each)
    value = read_values(module, params["value"], rows.prompts, rows.answers)
    metrics["value_loss"] = mean(clipped_value_loss(value, rows.value, rows.target, hparams["clip"]))
    return metrics["policy_loss"] + hparams["value_weight"] * metrics["value_loss"], metrics

  def step(state: State, batch):
    rollout, answered, score = collect(state, batch, stream_key(state.key, "answers", state.step))
    rows = minibatch_rows(stream_key(state.key, "order", state.step), config.epochs, config.minibatches, len(score))

    def gradient_step(carry, some):
      params, opt_state = carry
      grads, metrics = jax.grad(loss, has_aux=True)(params, some, state.hparams)
      updates, opt_state = optimizer.update(grads, opt_state, params)
      return (optax.apply_updates(params, updates), opt_state), metrics | {"grad_norm": optax.global_norm(grads)}

    given = state.params, state.opt_state
    (params, opt_state), metrics = jax.lax.scan(gradient_step, given, jax.tree.map(lambda x: x[rows], rollout))
    metrics = jax.tree.map(jnp.mean, metrics) | {
      "reward": jnp.mean(score),
      "kl": jnp.mean(jnp.sum(rollout.old - rollout.reference, 1)),
      "tokens": jnp.mean(answered.lengths.astype(jnp.float32)),
      "ended": jnp.mean(answered.ended.astype(jnp.float32)),
    }
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

  policy = lambda state: eval_params(state.opt_state, state.params)["policy"]

  def evaluate(state: State, batch) -> dict[str, Mean]:
    """Of listed answers exact, by sums over all of them; otherwise of one answer to each prompt."""
    if situation.listed:
      found, count = exact_figures(situation, policy(state), state.hparams["beta"]), jnp.sum(batch["mask"])
      return {name: Mean(value * count, count) for name, value in found.items()}
    found = sample_figures(situation, policy(state), state.judge, batch)
    over = lambda x: Mean(jnp.sum(jnp.where(batch["mask"] > 0, x, 0)), jnp.sum(batch["mask"]))
    means = {name: over(value) for name, value in found.items()}
    return means | {"objective": over(found["reward"] - state.hparams["beta"] * found["kl"])}

  def report(state: State, directory: Path) -> dict[str, float]:
    beta = float(state.hparams["beta"])
    return report_alignment(config, situation, policy(state), state.judge, beta, config.method, directory)

  return Experiment(init, step, evaluate, report, model=lambda state: Model(module, policy(state)))


def start_value(situation: Situation, key: Key[Array, ""]) -> dict[str, Any]:
  """A network of its own: the reward model's, where the policy's has learned the reward (Ouyang et al. 2022, app. C.4);
  otherwise the reference's with a new head.
  """
  if situation.judge.value is not None:
    return jax.tree.map(jnp.array, situation.judge.value)
  head = HEAD.init(key, jnp.zeros((1, 1, situation.module.transformer.width)))["params"]
  return {"network": jax.tree.map(jnp.array, situation.reference), "head": head}


def find_advantages(
  config: Config, beta: Any, score: Array, old: Array, reference: Array, value: Array, answered: Answered
) -> Float[Array, "R L"]:
  """Of each token, 0 behind an answer. Of rloo and grpo an answer's tokens all have that of the answer.

  rloo: Ahmadian et al. 2024, sec. 3: r - beta sum log pi / ref, less its mean over the prompt's other answers.
  """
  if config.method == "ppo":
    rewards = answer_rewards(score, old, reference, answered.lengths, answered.ended, beta, None)
    return answer_advantages(rewards, value, answered.lengths, 1.0, config.gae_lambda)
  if config.method == "grpo":
    each = group_advantages(score.reshape(-1, config.answers))
  else:
    whole = (score - beta * jnp.sum(old - reference, 1)).reshape(-1, config.answers)
    each = (whole - jnp.mean(whole, 1, keepdims=True)) * (config.answers / (config.answers - 1))
  return jnp.where(real_places(answered.lengths, old.shape[1]), each.reshape(-1, 1), 0)


def hparam_names(config: Config) -> tuple[str, ...]:
  """Numbers that a sweep may vary."""
  return ("beta", "clip") + (("value_weight",) if config.method == "ppo" else ())


def main(config: Config) -> int:
  config = train_first("lm.rlhf", config)
  return train(make(config), make_feeds(config), config, best_metric="objective", best_mode="max")


if __name__ == "__main__":
  run(main, Config)
