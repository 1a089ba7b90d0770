"""A language model aligned to preferences directly: no reward model, nothing is drawn while it learns.

  python -m experiments.lm.dpo                                             # all answers listed: the optimum is known
  python -m experiments.lm.dpo --beta=0.5 --noexpected_labels                # one preference of each pair is drawn
  python -m experiments.lm.dpo --policy=runs/lm --preferences=FILE.jsonl   # of fields prompt, chosen, rejected
  python -m experiments.lm.dpo --labelled=FOLDER                           # the whole road: texts with pos.txt, neg.txt
  python -m experiments.lm.dpo --policy=runs/reviews --reward=runs/judge

In the first form any two answers are compared by their rewards, as Bradley and Terry have it, new ones each time. With
a reward the pairs are drawn once, from the reference. Writes frontier.png, where the policy is beside the most reward
there can be at its KL; of texts answers.txt and rewards.png, of --preferences the rewards of the test pairs' answers
that the policy stands for, beta log pi / ref, and how sure of a pair it is beside how often it is right.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from experiments.lm._alignment import AlignmentConfig, Situation, batch_prompts, make_situation, train_first
from experiments.lm._alignment_report import exact_figures, report_alignment, report_preferences
from experiments.lm._policy import load_policy
from experiments.lm._preferences import PAIR_SEEDS, Pairs, PairsConfig, listed_feeds, read_preferences, weigh_labels
from experiments.lm._text import Model
from mlnotes.data import Feeds, NamedArrays, make_split_feeds
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import Experiment, Mean, root_key, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.lm import answer_log_probability, answer_weights, dpo_loss
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, OptimizerName, make_optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(AlignmentConfig, PairsConfig, OptimConfig, LoopConfig):
  """Defaults: four prompts whose answers are listed, a minute on two CPU cores."""

  UNIT: ClassVar[str] = "pairs"
  fills_cores: ClassVar[bool] = False
  OF_TEXTS: ClassVar[dict[str, Any]] = dict(
    answer_tokens=24, beta=0.5, penalize_unended=True, batch_size=32, steps=400, learning_rate=1e-4, eval_every=50
  )

  pairs: int = field(2000, "of --reward: pairs to learn from, drawn from the reference")
  label_smoothing: float = field(0.0, "share of the pairs that are taken to be the wrong way round, in [0, 0.5)")

  batch_size: int = field(256, "pairs of an update")
  steps: int = 2000
  learning_rate: float = 1e-2
  optimizer: OptimizerName = "adam"
  schedule: ScheduleName = "linear"
  clip_norm: float = 1.0
  eval_every: int = 100

  def __post_init__(self):
    super().__post_init__()
    for name in ("batch_size", "pairs"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(0 <= self.label_smoothing < 0.5, "label_smoothing", self.label_smoothing, "a number in [0, 0.5)")
    if self.expected_labels and self.asks_listed and self.label_smoothing:
      raise InputError(
        f"--label_smoothing={self.label_smoothing} is of labelled pairs: expected --noexpected_labels with it."
      )

  @property
  def asks_listed(self) -> bool:
    return self.lists_answers and not (self.reward or self.learned_reward)

  def idle_flags(self):
    idle = super().idle_flags()
    if self.preferences:
      idle["pairs"] = "they are those of --preferences"
    elif self.asks_listed:
      idle["pairs"] = "new ones are drawn for each update"
    if self.preferences:
      names = ("prompt_tokens", "answer_tokens", "preferred", "penalize_unended", "unended_reward")
      idle |= dict.fromkeys(names, f"--preferences={self.preferences} has its own pairs")
    return idle


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  reference: chex.ArrayTree
  opt_state: optax.OptState
  hparams: Mapping[str, Float[Array, ""]]


def make_feeds(config: Config) -> Feeds:
  situation = make_situation(config)
  if config.preferences:
    return make_split_feeds(*read_preferences(config.preferences, load_policy(config.policy)), config)
  if config.asks_listed:
    return listed_feeds(situation.listed, config.batch_size, config.test_pairs, config.expected_labels)
  return make_split_feeds(*(_draw_pairs(config, situation, name) for name in ("train", "test")), config)


def _draw_pairs(config: Config, situation: Situation, which: str) -> NamedArrays:
  """Two answers of the reference to each of some prompts, ordered by chance as their rewards have it.

  Which prompts is pseudo-random: a file may be sorted by class.
  """
  split, count = getattr(situation, which), config.pairs if which == "train" else config.test_pairs
  key = stream_key(root_key(PAIR_SEEDS[which]), "pairs")
  rows = np.random.default_rng(PAIR_SEEDS[which]).permutation(len(split))[np.arange(count) % len(split)]
  at_once = 64

  @jax.jit
  def draw(params, judge, prompts, keys, key):
    both = [situation.draw(params, prompts, jax.vmap(jax.random.fold_in, (0, None))(keys, i)) for i in (0, 1)]
    rewards = [situation.judge.score(judge, prompts, x.tokens, x.lengths) for x in both]
    first = jax.random.bernoulli(key, jax.nn.sigmoid(rewards[0] - rewards[1]))
    pick = lambda a, b: jnp.where(first.reshape(-1, *(1,) * (a.ndim - 1)), a, b)
    rows = [prompts.join(x.tokens, situation.end) for x in both]
    lengths = [prompts.lengths + x.lengths for x in both]
    return pick(*rows), pick(*rows[::-1]), pick(*lengths), pick(*lengths[::-1]), prompts.lengths

  found = []
  for start in range(0, count, at_once):
    some = rows[np.minimum(np.arange(start, start + at_once), count - 1)]
    keys = jax.random.split(jax.random.fold_in(key, start), at_once)
    prompts = batch_prompts({name: jnp.asarray(x[some]) for name, x in split.arrays.items()})
    given = situation.reference, situation.judge.params, prompts, keys, jax.random.fold_in(key, start + 1)
    found.append(jax.tree.map(np.array, draw(*given)))
  names = "chosen", "rejected", "chosen_length", "rejected_length", "prompt"
  arrays = {name: np.concatenate(x)[:count] for name, x in zip(names, zip(*found))}
  differ = np.any(arrays["chosen"] != arrays["rejected"], 1)
  if not differ.any():
    raise InputError(f"--policy={config.policy}: all pairs of its answers are equal: expected a policy that varies.")
  return NamedArrays({name: value[differ] for name, value in arrays.items()})


def make(config: Config, situation: Situation | None = None) -> Experiment:
  situation = situation or make_situation(config)
  module, optimizer = situation.module, make_optimizer(config, config.steps)

  def init(key, batch) -> State:
    reference = jax.tree.map(jnp.array, situation.reference)
    params = jax.tree.map(jnp.array, reference)
    hparams = {"beta": jnp.float32(config.beta)}
    return State(jnp.zeros([], jnp.int32), key, params, reference, optimizer.init(params), hparams)

  def answers(params, batch: Pairs, name: str) -> Float[Array, " B"]:
    rows = batch[name]
    logits = module.apply({"params": params}, rows[:, :-1])
    weights = answer_weights(batch["prompt"], batch[f"{name}_length"], rows.shape[1] - 1)
    return answer_log_probability(logits, rows[:, 1:], weights)

  def implicit_rewards(given, batch: Pairs) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Of the chosen answers and of the rejected ones; `given`: the policy, the reference and beta."""
    params, reference, beta = given
    found = judge(params, reference, batch, beta)
    return found["chosen_reward"], found["rejected_reward"]

  def judge(params, reference, batch: Pairs, beta) -> dict[str, Float[Array, " B"]]:
    sides = [answers(each, batch, name) for each in (params, reference) for name in ("chosen", "rejected")]
    found = dpo_loss(*sides, beta)
    certain = batch.get("certainty", 1 - config.label_smoothing)
    right = found.chosen_reward > found.rejected_reward
    even = found.chosen_reward == found.rejected_reward
    return {
      "loss": weigh_labels(found.chosen_reward - found.rejected_reward, certain),
      "accuracy": jnp.where(even, 0.5, right.astype(jnp.float32)),
      "chosen_reward": found.chosen_reward,
      "rejected_reward": found.rejected_reward,
    }

  def step(state: State, batch: Pairs):
    def objective(params):
      found = {name: jnp.mean(x) for name, x in judge(params, state.reference, batch, state.hparams["beta"]).items()}
      return found["loss"], found

    (_, found), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {**found, "grad_norm": optax.global_norm(grads)}
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

  learned = lambda state: eval_params(state.opt_state, state.params)

  def evaluate(state: State, batch) -> dict[str, Mean]:
    mask, count = batch["mask"], jnp.sum(batch["mask"])
    beta = state.hparams["beta"]
    found = judge(learned(state), state.reference, batch, beta)
    means = {name: Mean(jnp.sum(jnp.where(mask > 0, x, 0)), count) for name, x in found.items()}
    if situation.listed:
      exact = exact_figures(situation, learned(state), beta)
      means |= {name: Mean(value * count, count) for name, value in exact.items()}
    return means

  def report(state: State, directory: Path) -> dict[str, float]:
    beta, params = float(state.hparams["beta"]), learned(state)
    if config.preferences:
      test = read_preferences(config.preferences, load_policy(config.policy))[1].arrays
      given = params, state.reference, state.hparams["beta"]
      return report_preferences(situation, params, test, jax.jit(implicit_rewards), given, directory)
    return report_alignment(config, situation, params, situation.judge.params, beta, "DPO", directory)

  return Experiment(init, step, evaluate, report, model=lambda state: Model(module, learned(state)))


def hparam_names(config: Config) -> tuple[str, ...]:
  """Numbers that a sweep may vary."""
  return ("beta",)


def main(config: Config) -> int:
  config = train_first("lm.dpo", config)
  return train(make(config), make_feeds(config), config, best_metric="loss")


if __name__ == "__main__":
  run(main, Config)
