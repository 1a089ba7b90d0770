"""Figures, texts and the picture that a model of pairs leaves."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.sequence._seq2seq import Task, content_length, is_exact, to_texts
from mlnotes.data import Pairs, fixed_subset
from mlnotes.sequence import Decoded, MaskedSeq2Seq, bleu_of_counts, count_ngrams

_PICTURED = 3


def write_report(
  pairs: Pairs,
  task: Task,
  model: Any,
  variables: Any,
  ways: Mapping[tuple[int, float], Callable[[Any, Any], Decoded]],
  config: Any,
  directory: Path,
) -> dict[str, float]:
  """Decodes test pairs in each of the `ways`, (beam width, length penalty), 0 beams greedily or in rounds.

  Writes translations.txt of the last one, table.md of all, attention.png. The figures are of the last one.
  """
  index = fixed_subset(len(pairs.test), config.report_examples)
  examples = pairs.test.read(index)
  sources, references = ([pairs.test_texts[i][side] for i in index] for side in (0, 1))
  rows, figures, signature = [], {}, ""
  for (width, alpha), search in ways.items():
    found, seconds = decode_all(search, variables, examples, config.batch_size)
    exact = np.asarray(is_exact(found, examples))
    outputs = to_texts(pairs.tokenizer, found.tokens, found.length)
    figures = {"decoded_exact": float(exact.mean()), "token_bleu": corpus_bleu(task, found, examples)}
    figures["sequences_per_second"] = len(index) / seconds
    if (scored := sacrebleu_of(outputs, references)) is not None:
      figures["sacrebleu"], signature = scored
    name = f"{width} | {alpha:g}" if width else ("in rounds" if isinstance(model, MaskedSeq2Seq) else "greedy") + " |"
    rows.append(
      f"| {name} | {100 * figures['decoded_exact']:.1f} | {100 * figures['token_bleu']:.1f} | "
      f"{f'{scored[0]:.2f}' if scored else ''} | {figures['sequences_per_second']:.0f} |"
    )
  head = ["| beams | length penalty | exact (%) | BLEU of tokens | sacreBLEU | sequences/s |", "|" + "---|" * 6]
  missing = "not computed: it takes references of several words, and the package sacrebleu"
  tail = ["", f"sacreBLEU: {signature or missing}"]
  (directory / "table.md").write_text("\n".join([*head, *rows, *tail]) + "\n", encoding="utf-8")
  write_worst(sources, outputs, references, exact, directory / "translations.txt")
  if not isinstance(model, MaskedSeq2Seq) and getattr(model, "attention", "") != "none":
    draw_attention(pairs, task, model, variables, examples, found, directory / "attention.png")
  return figures


def decode_all(
  search: Callable[[Any, Any], Decoded], variables: Any, examples: Mapping[str, np.ndarray], batch_size: int
) -> tuple[Decoded, float]:
  """(what is found, seconds without compiling); the last batch is filled up with copies."""
  count = len(examples["source"])
  size = min(batch_size, count)
  run, parts, seconds = jax.jit(search), [], 0.0
  for start in range(0, count, size):
    rows = np.minimum(np.arange(start, start + size), count - 1)
    batch = {name: jnp.asarray(value[rows]) for name, value in examples.items()}
    if not parts:
      jax.block_until_ready(run(variables, batch))
    began = time.perf_counter()
    found = jax.block_until_ready(run(variables, batch))
    seconds += time.perf_counter() - began
    parts.append(jax.tree.map(np.asarray, found))
  return jax.tree.map(lambda *each: np.concatenate(each)[:count], *parts), seconds


def corpus_bleu(task: Task, found: Decoded, examples: Mapping[str, np.ndarray]) -> float:
  """BLEU of the tokens, whatever these are, over all sentences, on [0, 1]."""

  @jax.jit
  def of_all(found, reference, reference_length):
    length = content_length(task, found)
    matches, possible = (jnp.sum(x, 0) for x in count_ngrams(found.tokens, length, reference, reference_length))
    return bleu_of_counts(matches, possible, jnp.sum(length), jnp.sum(reference_length))

  return float(of_all(found, examples["target"][:, 1:], examples["target_length"] - 2))


def sacrebleu_of(outputs: Sequence[str], references: Sequence[str]) -> tuple[float, str] | None:
  """(corpus BLEU in sacrebleu's own settings, 0 to 100, their signature); None where it is not installed, or all
  references are single words."""
  try:
    from sacrebleu.metrics import BLEU
  except ImportError:
    return None
  if not any(" " in text for text in references):
    return None
  metric = BLEU()
  return float(metric.corpus_score(list(outputs), [list(references)]).score), str(metric.get_signature())


def write_worst(
  sources: Sequence[str], outputs: Sequence[str], references: Sequence[str], exact: Sequence[bool], path: Path
) -> None:
  """Source, output and reference of each pair; those that differ most first."""
  import difflib

  near = [1.0 if right else difflib.SequenceMatcher(None, a, b, False).ratio() - 1e-3
          for right, a, b in zip(exact, outputs, references)]  # fmt: skip
  lines = [f"{int(np.sum(exact))} of {len(exact)} are right; the worst first"]
  for i in np.argsort(near, kind="stable"):
    lines += ["", f"source     {sources[i]}", f"output     {outputs[i]}"]
    lines += [] if exact[i] else [f"reference  {references[i]}"]
  path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def draw_attention(
  pairs: Pairs, task: Task, model: Any, variables: Any, examples: Mapping[str, np.ndarray], found: Decoded, path: Path
) -> None:
  """What each token of an output looked at, in some test pairs: a row for each token of it, a column of the source."""
  from mlnotes.engine.plot import as_text, new_figure, save_figure

  count = min(_PICTURED, len(examples["source"]))
  start = np.full((count, 1), task.start, np.int32)
  inputs = np.concatenate([start, found.tokens[:count, :-1]], 1)
  source, lengths = examples["source"][:count], examples["source_length"][:count]
  look = jax.jit(lambda variables, *given: model.score(variables, *given, attention=True).attention)
  attention = np.asarray(look(variables, source, lengths, inputs))
  sizes = [(int(s), int(t)) for s, t in zip(lengths, found.length[:count])]
  high = max(t for _, t in sizes)
  figure, axes = new_figure(1, count, width=0.6 + sum(0.7 + 0.19 * s for s, _ in sizes), height=1.2 + 0.24 * high)
  for i, axis in enumerate(axes[0]):
    size, length = sizes[i]
    weights = attention[i, :length, :size]
    axis.imshow(weights, cmap="magma", vmin=0, vmax=1, aspect="auto")
    names = [_say(pairs, token) for token in source[i, :size]]
    axis.set_xticks(range(size), names, fontsize=8, rotation=90 if max(map(len, names)) > 2 else 0)
    axis.set_yticks(range(length), [_say(pairs, token) for token in found.tokens[i, :length]], fontsize=8)
    axis.set_xlabel("source", fontsize=9)
    if size > 30 or length > 30:  # more than can be read
      axis.set_title(as_text(f"{size} to {length} tokens"), fontsize=9)
  axes[0, 0].set_ylabel("output", fontsize=9)
  figure.suptitle("where each token of the output looks", fontsize=11)
  save_figure(figure, path)


def _say(pairs: Pairs, token: int) -> str:
  from mlnotes.engine.plot import as_text

  names = {number: name for name, number in pairs.tokenizer.special.items()}
  return as_text(names.get(int(token), pairs.tokenizer.decode([token])).replace(" ", "␣"))
