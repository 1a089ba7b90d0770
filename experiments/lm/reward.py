"""A reward model: of two answers to a prompt it learns which one is preferred.

  python -m experiments.lm.reward                                          # all answers listed: the reward is known
  python -m experiments.lm.reward --policy=runs/lm --preferences=FILE.jsonl    # of fields prompt, chosen, rejected
  python -m experiments.lm.reward --policy=runs/lm --labelled=FOLDER           # pos.txt is preferred to neg.txt

It begins with the network of --policy, a run of lm.pretrain or lm.sft, and a number that is read at an answer's last
token. The loss is -log sigmoid(r_w - r_l) of each pair. Rewards are shifted so that their mean over answers such as it
has learned from is 0. `lm.rlhf --reward=` and `lm.dpo --reward=` go on from such a run. Writes reward.png.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from experiments.lm._listed import Listed, list_answers
from experiments.lm._policy import Policy, load_policy
from experiments.lm._preferences import Pairs, PairsConfig, listed_feeds, pair_labelled, read_preferences, weigh_labels
from mlnotes.data import Feeds, NamedArrays, make_split_feeds
from mlnotes.data.flags import FeedConfig
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import Experiment, Mean, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.lm import LanguageModel, SentenceHead, bradley_terry_loss
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, OptimizerName, make_optimizer

HEAD = SentenceHead(1, "last")
_KEPT = 0.98  # of the running mean that rewards are shifted by, each update


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(PairsConfig, FeedConfig, OptimConfig, LoopConfig):
  """Defaults: rewards of listed answers from pairs of them, a minute on two CPU cores."""

  UNIT: ClassVar[str] = "pairs"
  fills_cores: ClassVar[bool] = False

  policy: str = field(
    "", "work directory of a causal run of lm.pretrain, or of lm.sft, to begin with; empty: the listed task"
  )
  labelled: str = field("", "of --policy: texts and labels, a file.tsv, .jsonl or a folder with pos.txt, ...")
  test_labelled: str = field("", "of --labelled: the texts to test on; empty: a tenth of each class")
  preferred: str = field("", "of --labelled: the class that is preferred to the others; empty: the last one")
  pairs: int = field(20000, "of --labelled: pairs to learn from")

  batch_size: int = 128
  steps: int = 2000
  learning_rate: float = 1e-3
  optimizer: OptimizerName = "adam"
  schedule: ScheduleName = "linear"
  clip_norm: float = 1.0
  eval_every: int = 100

  def __post_init__(self):
    super().__post_init__()
    require(self.pairs >= 1, "pairs", self.pairs, "1 or more")
    given = [f"--{name}={getattr(self, name)}" for name in ("preferences", "labelled") if getattr(self, name)]
    if len(given) == 2:
      raise InputError(f"{given[0]} and {given[1]}: expected one of the two.")
    if given and not self.policy:
      raise InputError(f"{given[0]} is of texts: expected --policy, a run of lm.pretrain or lm.sft, too.")
    if self.policy and not given:
      raise InputError(f"--policy={self.policy}: expected --preferences or --labelled, pairs to learn from, too.")

  @classmethod
  def tuned(cls, **given: Any) -> Any:
    """A network that has read goes on at a rate that leaves it standing, and not for long: it learns pairs by heart."""
    texts = dict(learning_rate=3e-4, batch_size=32, steps=300, eval_every=50) if given.get("policy") else {}
    return super().tuned(**{**texts, **given})

  def idle_flags(self):
    idle = super().idle_flags()
    if not self.lists_answers:
      names = ("answer_tokens", "penalize_unended", "unended_reward")
      idle |= dict.fromkeys(names, "pairs have answers of their own")
    if not self.labelled:
      idle |= dict.fromkeys(("test_labelled", "preferred", "pairs"), "--labelled is empty")
    if self.lists_answers:
      idle |= dict.fromkeys(("data_placement", "eval_examples"), "new pairs are drawn")
    return idle


class State(NamedTuple):
  """`mean` is the running mean of the rewards of the pairs' answers, which rewards are shifted by."""

  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  mean: Float[Array, ""]
  opt_state: optax.OptState


class RewardModel(NamedTuple):
  """Rows of a prompt and an answer, and how many tokens of each are real, to rewards (B,).

  model = mlnotes.load_run("runs/reward").model
  model.texts([("", "a fine film"), ("", "a dull one")])     # of a run with --policy
  """

  module: LanguageModel
  params: Any
  mean: Float[Array, ""]
  policy: Policy | None

  def __call__(self, tokens: Int[Array, "B T"], lengths: Int[Array, " B"]) -> Float[Array, " B"]:
    return read_reward(self.module, self.params, tokens, lengths) - self.mean

  def texts(self, pairs: Sequence[tuple[str, str]]) -> Float[np.ndarray, " N"]:
    """The reward of each (prompt, answer). Raises ValueError for a run that is not of texts."""
    if self.policy is None:
      raise ValueError("a reward of listed answers, expected a run with --policy")
    encode, end = self.policy.corpus.tokenizer.encode, self.policy.end
    asked = self.policy.encode_prompt
    most = self.module.length - 1  # <end> stands behind what is cut too, as where it has learned
    rows = [[*[*asked(prompt), *encode(answer)][:most], end] for prompt, answer in pairs]
    tokens = np.full((len(rows), max(map(len, rows))), end, np.int32)
    for row, ids in zip(tokens, rows):
      row[: len(ids)] = ids
    return np.asarray(self(jnp.asarray(tokens), jnp.array(list(map(len, rows)))))


def read_reward(module: LanguageModel, params: Any, tokens: Any, lengths: Any) -> Float[Array, " B"]:
  """At the last real token of each row; what stands behind it is seen by nothing."""
  hidden = module.apply({"params": params["network"]}, tokens, method="hidden")
  return HEAD.apply({"params": params["head"]}, hidden, lengths)[:, 0]


def make_feeds(config: Config) -> Feeds:
  if config.lists_answers:
    return listed_feeds(list_answers(config), config.batch_size, config.test_pairs, config.expected_labels)
  return make_split_feeds(*read_pairs(config), config)


@functools.lru_cache(maxsize=2)
def read_pairs(config: Config) -> tuple[NamedArrays, NamedArrays]:
  """(training, test) pairs of texts."""
  policy = load_policy(config.policy)
  if config.preferences:
    return read_preferences(config.preferences, policy, policy.module.length)  # all of a row is read
  given = config.labelled, config.test_labelled, config.preferred, config.pairs, config.test_pairs
  return pair_labelled(*given, policy)


def make(config: Config) -> Experiment:
  listed, policy = (list_answers(config), None) if config.lists_answers else (None, load_policy(config.policy))
  module, start = (listed.module, listed.reference) if listed else (policy.module, policy.params)
  optimizer = make_optimizer(config, config.steps)

  def init(key, batch) -> State:
    head = HEAD.init(stream_key(key, "head"), jnp.zeros((1, 1, module.transformer.width)), jnp.ones(1, jnp.int32))
    params = {"network": jax.tree.map(jnp.array, start), "head": head["params"]}
    zero = jnp.zeros([], jnp.int32)
    return State(zero, key, params, jnp.float32(0), optimizer.init(params))

  def judge(params, batch: Pairs) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Both answers' rewards; they stand in one batch, so that a prompt is read by the same network."""
    rows = jnp.concatenate([batch["chosen"], batch["rejected"]])
    lengths = jnp.concatenate([batch["chosen_length"], batch["rejected_length"]])
    return tuple(jnp.split(read_reward(module, params, rows, lengths), 2))

  def lose(chosen, rejected, batch: Pairs) -> Float[Array, " B"]:
    if "certainty" in batch:
      return weigh_labels(chosen - rejected, batch["certainty"])
    return bradley_terry_loss(chosen, rejected)

  def step(state: State, batch: Pairs):
    def objective(params):
      rewards = judge(params, batch)
      return jnp.mean(lose(*rewards, batch)), rewards

    (loss, (chosen, rejected)), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    now = jnp.mean(chosen + rejected) / 2
    mean = jnp.where(state.step == 0, now, _KEPT * state.mean + (1 - _KEPT) * now)
    metrics = {"loss": loss, "accuracy": jnp.mean(prefers(chosen, rejected)), "grad_norm": optax.global_norm(grads)}
    return State(state.step + 1, state.key, params, mean, opt_state), metrics

  learned = lambda state: eval_params(state.opt_state, state.params)

  def evaluate(state: State, batch) -> dict[str, Mean]:
    chosen, rejected = judge(learned(state), batch)
    mask, count = batch["mask"], jnp.sum(batch["mask"])
    figures = {
      "loss": lose(chosen, rejected, batch), "accuracy": prefers(chosen, rejected), "margin": chosen - rejected,
    }  # fmt: skip
    means = {name: Mean(jnp.sum(jnp.where(mask > 0, x, 0)), count) for name, x in figures.items()}
    if listed:
      found = exact_figures(listed, list_rewards(listed, learned(state)))
      means |= {name: Mean(value * count, count) for name, value in found.items()}
    return means

  def report(state: State, directory: Path) -> dict[str, float]:
    from experiments.lm._reward_report import report_listed, report_pairs

    if listed:
      return report_listed(listed, list_rewards(listed, learned(state)), directory)
    return report_pairs(jax.jit(judge), learned(state), read_pairs(config)[1].arrays, directory)

  model = lambda state: RewardModel(module, learned(state), state.mean, policy)
  return Experiment(init, step, evaluate, report, model=model)


def prefers(chosen: Float[Array, " B"], rejected: Float[Array, " B"]) -> Float[Array, " B"]:
  """1 where the first has more reward, 1/2 where both have as much."""
  return jnp.where(chosen == rejected, 0.5, (chosen > rejected).astype(jnp.float32))


def list_rewards(listed: Listed, params: Any) -> Float[Array, "N A"]:
  """Of every answer to every prompt."""
  prompts, answers, lengths = listed.every_row()
  rows = jnp.concatenate([prompts, answers], 1)
  return read_reward(listed.module, params, rows, prompts.shape[1] + lengths).reshape(listed.reward.shape)


def exact_figures(listed: Listed, rewards: Float[Array, "N A"]) -> dict[str, Array]:
  """Over all pairs of answers to a prompt, any two alike.

  excess: mean KL divergence of what is said of a pair from what Bradley and Terry's model of the true reward says, in
  nats; the loss less what no reward model can save. error: root mean square of the differences of rewards, each
  prompt's mean taken out, which nothing tells.
  """
  center = lambda x: x - jnp.mean(x, 1, keepdims=True)
  pairs = lambda x: x[:, :, None] - x[:, None, :]
  true, said = pairs(listed.reward), pairs(rewards)
  p = jax.nn.sigmoid(true)
  each = p * (jax.nn.log_sigmoid(true) - jax.nn.log_sigmoid(said))
  each += (1 - p) * (jax.nn.log_sigmoid(-true) - jax.nn.log_sigmoid(-said))
  count = true.shape[0] * true.shape[1] * (true.shape[1] - 1)
  return {
    "excess": jnp.sum(each) / count,
    "error": jnp.sqrt(jnp.mean(jnp.square(center(rewards) - center(listed.reward)))),
  }


def main(config: Config) -> int:
  return train(make(config), make_feeds(config), config)


if __name__ == "__main__":
  run(main, Config)
