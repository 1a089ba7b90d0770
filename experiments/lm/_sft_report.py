"""What a model answers before and after it was tuned to answer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlnotes.data import fixed_subset
from mlnotes.lm import answer_weights, generate, token_log_probability
from mlnotes.lm.model import LanguageModel

_WRITTEN = 256  # prompts that are answered
_SHOWN = 12  # of them in answers.txt
_PLACES = 24  # tokens of an answer in the picture


def report_answers(
  module: LanguageModel, before: Any, after: Any, rows: Any, end: int, decode: Callable[[Any], str], directory: Path
) -> dict[str, float]:
  """Writes answers.txt and sft.png.

  Of up to 256 test prompts, answered by the likeliest tokens: ended, the share of answers that stop; exact; word_f1, of
  the words shared with the true answer, beside word_f1_another, of the true answer to another prompt.
  """
  chosen = fixed_subset(len(rows.test), _WRITTEN)
  arrays = {name: jnp.asarray(x[chosen]) for name, x in rows.test.arrays.items()}
  texts = [rows.texts[i] for i in chosen]
  room = int(arrays["prompt"].max())
  count = int(np.max(rows.test.arrays["length"] - rows.test.arrays["prompt"])) + 4
  count = min(count, module.length + 1 - room) if module.position == "learned" else count
  write = jax.jit(lambda params: generate(
    module, {"params": params}, arrays["tokens"][:, :room], arrays["prompt"], None, count, end=end, pad=end
  ))  # fmt: skip
  networks, answers, ended = {"before": before, "after": after}, {}, {}
  for name, params in networks.items():
    found = write(params)
    answers[name] = [decode(row).strip() for row in np.asarray(found.tokens)]
    ended[name] = float(np.mean((np.asarray(found.tokens) == end).any(1)))
  lines = []
  for (prompt, answer), *said in list(zip(texts, answers["before"], answers["after"]))[:_SHOWN]:
    names = ("prompt", "its answer", "before", "after")
    lines += [f"{name:11}{text!r}" for name, text in zip(names, (prompt, answer, *said))] + [""]
  (directory / "answers.txt").write_text("\n".join(lines), encoding="utf-8")
  places = {name: nats_by_place(module, params, rows.test.arrays) for name, params in networks.items()}
  _draw(places, directory / "sft.png")
  true = [answer for _, answer in texts]
  shared = lambda said: float(np.mean([word_f1(a, b) for a, b in zip(said, true)]))
  return {
    "loss_before": float(places["before"][2]),
    "ended": ended["after"], "ended_before": ended["before"],
    "exact": float(np.mean([a == b for a, b in zip(answers["after"], true)])),
    "word_f1": shared(answers["after"]), "word_f1_before": shared(answers["before"]),
    "word_f1_another": shared(true[len(true) // 2 :] + true[: len(true) // 2]),
  }  # fmt: skip


def word_f1(said: str, true: str) -> float:
  """Twice the words that both have, each as often as both have it, over all words of both; 0 of two empty texts."""
  a, b = ([word.strip(".,;:()'\"`").lower() for word in text.split()] for text in (said, true))
  both = sum(min(a.count(word), b.count(word)) for word in set(a))
  return 2 * both / max(len(a) + len(b), 1)


def nats_by_place(module: LanguageModel, params: Any, arrays: Any) -> tuple[np.ndarray, float, float]:
  """(mean nats of the answers' token number 1, 2, ...; of their <end>; of all their tokens)."""

  @jax.jit
  def read(tokens, prompt, length):
    logits = module.apply({"params": params}, tokens[:, :-1])
    return -token_log_probability(logits, tokens[:, 1:]), answer_weights(prompt, length, tokens.shape[1] - 1)

  count = len(arrays["tokens"])
  size = min(64, count)
  chosen = np.minimum(np.arange(-(-count // size) * size), count - 1)
  tokens, prompt, length = (np.asarray(arrays[name])[chosen] for name in ("tokens", "prompt", "length"))
  parts = [read(*(x[i : i + size] for x in (tokens, prompt, length))) for i in range(0, len(chosen), size)]
  nats, weights = (np.concatenate(x)[:count] for x in zip(*parts))
  target = np.arange(nats.shape[1])[None] + 1
  mean = lambda chosen: float(np.sum(nats * weights * chosen) / max(np.sum(weights * chosen), 1))
  places = [mean(target - prompt[:count, None] == i) for i in range(_PLACES)]
  return np.array(places), mean(target == length[:count, None] - 1), mean(1)


def _draw(places: dict[str, Any], path: Path) -> None:
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(1, 2, width=8.4, height=3.6)
  left, right = axes[0]
  for (name, (each, end, _)), color in zip(places.items(), ("0.6", "C0")):
    left.plot(1 + np.arange(len(each)), each, "o-", markersize=3, color=color, label=f"{name} tuning")
    right.bar([name], [end], color=color)
    right.text(name, end, f"{end:.2f}", ha="center", va="bottom")
  left.set(
    xlabel="token of the answer", ylabel="nats, mean over test prompts", title="how surprising the true answer is"
  )
  left.legend(frameon=False)
  right.margins(y=0.12)
  right.set(ylabel="nats", title="how surprising its <end> is")
  save_figure(figure, path)
