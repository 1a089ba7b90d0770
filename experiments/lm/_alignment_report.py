"""Where a policy has come to: on the frontier of reward and KL where it is known, or by texts before and after."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lm._alignment import Situation, batch_prompts
from experiments.lm._answers import judge_tokens, list_log_probabilities
from experiments.lm._preferences import find_class
from mlnotes.data import fixed_subset, pad_sequences, read_labelled
from mlnotes.data.flags import note
from mlnotes.engine.experiment import example_keys, root_key
from mlnotes.engine.record import read_metrics
from mlnotes.lm.tasks import measure_policy, reward_frontier

_EVAL_SEED = 0  # of the answers that are judged
_SHOWN = 12  # texts of answers.txt


def sample_figures(situation: Situation, params: Any, judge: Any, batch: Any) -> dict[str, jax.Array]:
  """Of one answer to each prompt of a batch: reward, KL(pi || ref) summed over its tokens, length, whether it ends.

  The KL of each token is over all that could stand there.
  """
  prompts = batch_prompts(batch)
  answered = situation.draw(params, prompts, example_keys(root_key(_EVAL_SEED), batch["index"]))
  given = prompts, answered.tokens, answered.lengths
  both = params, situation.reference
  (_, of_policy), (_, of_reference) = (judge_tokens(situation.module, each, *given) for each in both)
  real = jnp.arange(answered.tokens.shape[1])[None] < answered.lengths[:, None]
  each = jnp.sum(jnp.exp(of_policy) * (of_policy - of_reference), -1)
  return {
    "reward": situation.judge.score(judge, *given),
    "kl": jnp.sum(jnp.where(real, each, 0), 1),
    "tokens": answered.lengths.astype(jnp.float32),
    "ended": answered.ended.astype(jnp.float32),
  }


def exact_figures(situation: Situation, params: Any, beta: Any) -> dict[str, jax.Array]:
  """Means over the prompts, by sums over all answers."""
  policy, reference = (list_log_probabilities(situation.listed, each) for each in (params, situation.reference))
  found = measure_policy(policy, reference, situation.listed.reward, beta)
  return {name: jnp.mean(value) for name, value in found._asdict().items()}


def report_alignment(
  config: Any, situation: Situation, params: Any, judge: Any, beta: float, method: str, directory: Path
) -> dict[str, float]:
  """Figures, and the picture of `method`."""
  title = f"{method}, {describe(config)}"
  if situation.listed:
    return _report_listed(situation, params, beta, title, directory)
  return _report_texts(situation, params, judge, title, directory, config.labelled, config.preferred)


def _report_listed(situation: Situation, params: Any, beta: float, title: str, directory: Path) -> dict[str, float]:
  """Writes frontier.png. The optimum's figures, the reference's, and the share of the way between them."""
  policy, reference = (list_log_probabilities(situation.listed, each) for each in (params, situation.reference))
  reward = situation.listed.reward
  mean = lambda x: float(jnp.mean(x))
  start = measure_policy(reference, reference, reward, beta)
  found = measure_policy(policy, reference, reward, beta)
  betas = jnp.asarray(np.geomspace(0.02, 20, 60), jnp.float32)
  kl, best = (np.array(jnp.mean(x, 0)) for x in reward_frontier(reference, reward, betas))
  of_beta = [mean(x) for x in reward_frontier(reference, reward, jnp.float32([beta]))]
  top = of_beta[1] - beta * of_beta[0]
  draw_frontier(kl, best, of_beta, (mean(found.kl), mean(found.reward)), mean(start.reward), beta, title, directory)
  first = mean(start.objective)
  return {
    "optimum_reward": of_beta[1], "optimum_kl": of_beta[0], "optimum_objective": top,
    "reference_reward": mean(start.reward), "reached": (mean(found.objective) - first) / (top - first),
  }  # fmt: skip


def draw_frontier(kl, best, optimum, found, start, beta, title, directory: Path) -> None:
  """The most reward at each KL, and the policy's way to where it is."""
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(width=6.0, height=4.4)
  axis = axes[0, 0]
  right = max(3 * optimum[0], 1.3 * found[0], 0.1)
  top = float(np.interp(right, kl[::-1], best[::-1]))
  axis.fill_between(kl, best, top + 0.2 * (top - start), color="0.92", linewidth=0)
  axis.text(0.35 * right, top + 0.1 * (top - start), "no policy is here", color="0.45", fontsize=8)
  axis.set(xlim=(-0.02 * right, right), ylim=(start - 0.1 * (top - start), top + 0.2 * (top - start)))
  axis.plot(kl, best, color="0.3", label="the most reward at this KL (closed form)")
  lines = [line for line in read_metrics(directory / "metrics.jsonl") if "eval/kl" in line]
  way = [(0.0, start), *((line["eval/kl"], line["eval/reward"]) for line in lines), found]
  axis.plot(*zip(*way), "o-", color="C0", markersize=3, linewidth=1, label="the policy, from its reference on")
  axis.plot(*found, "o", color="C0", markersize=7)
  axis.plot(*optimum, "*", color="C3", markersize=13, label=f"the optimum for beta = {beta:g}")
  axis.set(xlabel="KL from the reference (nats)", ylabel="mean reward", title=title)
  axis.legend(frameon=False, fontsize=8, loc="lower right")
  save_figure(figure, directory / "frontier.png")


def _report_texts(
  situation: Situation, params: Any, judge: Any, title: str, directory: Path, labelled: str, preferred: str
) -> dict[str, float]:
  """Writes answers.txt and rewards.png: of some test prompts what the reference and the policy answer."""
  from mlnotes.engine.plot import new_figure, save_figure

  chosen = fixed_subset(len(situation.test), 256)
  prompts = batch_prompts({name: jnp.asarray(x[chosen]) for name, x in situation.test.arrays.items()})
  keys = example_keys(root_key(_EVAL_SEED), jnp.arange(len(chosen)))
  draw = jax.jit(lambda params: situation.draw(params, prompts, keys))
  score = jax.jit(lambda judge, answered: situation.judge.score(judge, prompts, answered.tokens, answered.lengths))
  both = [draw(each) for each in (situation.reference, params)]
  rewards = [np.array(score(judge, each)) for each in both]
  _write_answers(situation, prompts, both, rewards, directory)
  figure, axes = new_figure(width=6.0, height=3.6)
  bins = np.linspace(min(map(np.min, rewards)), max(map(np.max, rewards)) + 1e-6, 30)
  for name, reward, color in zip(("reference", "policy"), rewards, ("0.6", "C0")):
    axes[0, 0].hist(reward, bins, alpha=0.7, color=color, label=f"{name}, mean {reward.mean():.2f}")
  axes[0, 0].set(xlabel="reward", ylabel=f"of {len(chosen)} answers", title=title)
  axes[0, 0].legend(frameon=False)
  save_figure(figure, directory / "rewards.png")
  found = {"reference_reward": float(rewards[0].mean()), "policy_reward": float(rewards[1].mean())}
  if labelled:
    said = [[situation.decode(row[:size]) for row, size in zip(*map(np.asarray, each[:2]))] for each in both]
    told = count_words(labelled, preferred, *said)
    if not told:
      note(f"--labelled={labelled}: no word of it stands twice, so that none are counted for reference_words.")
    found |= dict(zip(("reference_words", "policy_words"), told))
  return found


def report_preferences(
  situation: Situation, params: Any, pairs: Any, judge: Any, given: Any, directory: Path
) -> dict[str, float]:
  """Writes rewards.png of the test pairs, and answers.txt of their prompts: what the reference and the policy answer.

  `judge`: (given, pairs) -> rewards of both answers. An answer may be as long as the longest of the pairs.
  """
  from experiments.lm._reward_report import report_pairs

  found = report_pairs(judge, given, pairs, directory, "rewards.png")
  whole = {tuple(row[:size].tolist()) for row, size in zip(pairs["chosen"], pairs["prompt"])}
  padded = pad_sequences([np.array(row, np.int32) for row in sorted(whole)[:_SHOWN]])
  prompts = batch_prompts({name: jnp.asarray(x) for name, x in padded.items()})
  room = max(int(np.max(pairs[f"{name}_length"] - pairs["prompt"])) for name in ("chosen", "rejected"))
  room = min(room, situation.module.length + 1 - padded["tokens"].shape[1])
  keys = example_keys(root_key(_EVAL_SEED), jnp.arange(len(prompts.tokens)))
  draw = jax.jit(lambda params: situation._replace(answer_tokens=room).draw(params, prompts, keys))
  _write_answers(situation, prompts, [draw(each) for each in (situation.reference, params)], (), directory)
  return found


def _write_answers(situation: Situation, prompts: Any, both: Any, rewards: Any, directory: Path) -> None:
  """answers.txt: to some prompts what the reference and the policy answer, and with `rewards` what it is worth."""
  lines = []
  for i in range(min(_SHOWN, len(prompts.tokens))):
    lines.append(
      f"prompt    {' ' * 6 if len(rewards) else ''}{situation.decode(prompts.tokens[i][: int(prompts.lengths[i])])}"
    )
    for j, (name, answered) in enumerate(zip(("reference", "policy"), both)):
      text = situation.decode(np.asarray(answered.tokens[i])[: int(answered.lengths[i])])
      lines.append(f"{name:9} {f'{rewards[j][i]:5.1f} ' if len(rewards) else ''}... {text}")
    lines.append("")
  (directory / "answers.txt").write_text("\n".join(lines), encoding="utf-8")


def count_words(labelled: str, preferred: str, *texts: list[str]) -> list[float]:
  """Of each list the share of texts that are of the class `preferred` to who has counted the words of labelled ones.

  By logistic regression with scikit-learn's own settings, on the counts of words and of pairs of them. It has seen no
  answer, so that nothing was tuned to please it. [] where no word stands twice.
  """
  from sklearn.feature_extraction.text import CountVectorizer
  from sklearn.linear_model import LogisticRegression
  from threadpoolctl import threadpool_limits

  given = read_labelled(labelled, flag="labelled")
  counts = CountVectorizer(ngram_range=(1, 2), min_df=2)
  try:
    table = counts.fit_transform(given.train)
  except ValueError:  # which scikit-learn raises where nothing is left to count
    return []
  with threadpool_limits(1):
    judge = LogisticRegression(max_iter=300).fit(table, given.train_label)
  wanted = given.classes.index(find_class(preferred, given.classes))
  return [float(np.mean(judge.predict(counts.transform(each)) == wanted)) for each in texts]


def describe(config: Any) -> str:
  return f"{config.prompts} prompts, all answers listed" if config.lists_answers else f"from {Path(config.policy).name}"
