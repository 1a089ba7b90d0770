"""What a decoder makes of a text: the nats of each token, and a text of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.sequence.char_lm import draw_text
from mlnotes.data import Corpus, Tokenizer
from mlnotes.data.text_floors import ngram_floors, witten_bell_floors
from mlnotes.engine.experiment import example_keys, root_key, stream_key
from mlnotes.lm import LanguageModel, Sampling, document_mask, generate, token_cross_entropy

PLAIN = Sampling(temperature=1.0)
_SAMPLED = 600
_AT_ONCE = 64  # windows
_LEAST_READ = 64  # tokens; shorter prompts are filled up to so many


class Model(NamedTuple):
  """Tokens (B, T) to the logits of what follows each, (B, T, V).

  Attributes:
    end: the token between documents that do not see each other; None: they do.
  """

  module: LanguageModel
  params: Any
  end: int | None = None

  def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
    mask = None if self.end is None else document_mask(tokens, self.end)
    return self.module.apply({"params": self.params}, tokens, mask)


def window_losses(corpus: Corpus, model: Model) -> Float[np.ndarray, " T"]:
  """Nats of each token of the test text's windows, which lie side by side; the rest at the end fills none."""
  windows = corpus.test.read(np.arange(len(corpus.test)))["tokens"]
  at_once = min(len(windows), _AT_ONCE)
  filled = windows[np.minimum(np.arange(-(-len(windows) // at_once) * at_once), len(windows) - 1)]
  each = lambda batch: token_cross_entropy(model(batch[:, :-1]), batch[:, 1:])[0]
  losses = jax.jit(lambda batches: jax.lax.map(each, batches))(filled.reshape(-1, at_once, windows.shape[1]))
  return np.array(losses).reshape(len(filled), -1)[: len(windows)].reshape(-1)


def write_tokens(
  model: Model,
  prompts: Sequence[Sequence[int]],
  count: int,
  seed: int = 0,
  sampling: Sampling = PLAIN,
  end: int = -1,
) -> list[list[int]]:
  """What the model writes behind each prompt of one token or more: `count` tokens, or those up to and with `end`.

  In stretches: the last half of a window is read and the other half written, so that no token stands where the model
  was not trained, and none has fewer before it than half a window once there are so many. A longer prompt is read whole
  at first, up to a window less one token. Of documents that do not see each other only the last is read. What a row
  gives does not depend on the others. A stretch costs what is read and asked for, however many tokens a window has.
  """
  length, stop = model.module.length, end if model.end is None else model.end
  half = _half(length)
  texts, going = [list(prompt) for prompt in prompts], [True] * len(prompts)

  @jax.jit
  def go_on(params, tokens, lengths, rows, turn):
    keys = example_keys(stream_key(root_key(seed), "write", turn), rows) if sampling.temperature is not None else None
    written = min(count, length - max(tokens.shape[1], half))
    return generate(model.module, {"params": params}, tokens, lengths, keys, max(1, written), sampling, stop).tokens

  def stretch(rows: Sequence[int], room: int, turn: int) -> None:
    read = [_last_document(texts[i], model.end)[-room:] for i in rows]
    tokens = np.zeros((len(rows), room), np.int32)
    for row, part in zip(tokens, read):
      row[: len(part)] = part
    lengths = np.array([len(part) for part in read], np.int32)
    for i, row in zip(rows, np.array(go_on(model.params, tokens, lengths, np.asarray(rows), turn))):
      if going[i]:
        stops = np.flatnonzero(row == stop)
        texts[i] += row[: stops[0] + 1 if len(stops) else len(row)].tolist()
        going[i] = texts[i][-1] != end and len(texts[i]) < len(prompts[i]) + count

  rooms = [_room(len(text), length) for text in texts]
  for room in sorted(set(rooms)):
    stretch([i for i, found in enumerate(rooms) if found == room], room, 0)
  turn = 1
  while any(going):
    stretch(range(len(texts)), _room(half, length), turn)
    turn += 1
  return [text[len(prompt) : len(prompt) + count] for text, prompt in zip(texts, prompts)]


def _room(tokens: int, length: int) -> int:
  """How many tokens a stretch reads: half a window, half of that where they fill no more, or so many more eighths."""
  wanted, eighth = _half(length), max(1, length // 8)
  while wanted // 2 >= max(tokens, _LEAST_READ):
    wanted //= 2
  wanted += -(-max(0, tokens - wanted) // eighth) * eighth
  return max(1, min(wanted, length - 1))


def _half(length: int) -> int:
  return max(1, length // 2)


def _last_document(text: list[int], end: int | None) -> list[int]:
  """From the last `end` on, which stands at a document's beginning."""
  if end is None or end not in text:
    return text
  return text[len(text) - 1 - text[::-1].index(end) :]


def decode_text(tokenizer: Tokenizer, tokens: Sequence[int], end: int) -> str:
  """The text of the tokens, a new line for each `end`."""
  ids = np.asarray(tokens, np.int64)
  parts = np.split(ids, np.flatnonzero(ids == end))
  return "\n".join(tokenizer.decode(part[part != end]) for part in parts)


def report_text(config: Any, corpus: Corpus, model: Model, directory: Path) -> dict[str, float]:
  """Writes sample.txt and text.png; the floors by n-grams."""
  end = corpus.end
  first = end if end >= 0 else int(corpus.test.arrays["tokens"][0])
  sampled = decode_text(corpus.tokenizer, write_tokens(model, [[first]], _SAMPLED)[0], end)
  (directory / "sample.txt").write_text(sampled + "\n", encoding="utf-8")
  title = f"{config.model}, {corpus.name}"
  draw_text(corpus, window_losses(corpus, model), sampled, title, directory / "text.png")
  return ngram_floors(corpus) | witten_bell_floors(corpus)
