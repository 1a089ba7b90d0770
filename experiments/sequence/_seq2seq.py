"""What the chapter's experiments on pairs of sequences share: networks, what counts, text in and out."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from mlnotes.data import Pairs, Tokenizer, pad_sequences
from mlnotes.data.pairs import END, PAD, START
from mlnotes.engine.errors import InputError
from mlnotes.nn.loss import cross_entropy
from mlnotes.sequence import Decoded, MaskedSeq2Seq, RecurrentSeq2Seq, TransformerSeq2Seq, make_cell, sentence_bleu
from mlnotes.sequence.losses import real_places


class Task(NamedTuple):
  """What a model of pairs must know of them. `room`: most tokens of a target, END counted and START not."""

  vocabulary: int
  start: int
  end: int
  pad: int
  sources: int
  room: int

  @property
  def never(self) -> tuple[int, ...]:
    return self.pad, self.start


def describe(pairs: Pairs) -> Task:
  special = pairs.tokenizer.special
  widest = lambda side: max(split.arrays[side].shape[1] for split in (pairs.train, pairs.test))
  source, target = widest("source"), widest("target")
  return Task(pairs.vocab_size, special[START], special[END], special[PAD], source, target - 1)


def check_cell(cell: str, width: int) -> None:
  """Raises InputError where a cell cannot have that width."""
  try:
    make_cell(cell, width)
  except ValueError as error:
    raise InputError(f"--cell={cell} --width={width}: {error}.") from error


def build_model(config: Any, task: Task) -> Any:
  """The network of the flags `model`, `cell`, `attention`, `width`, `depth`, `heads` and so on."""
  shared = dict(width=config.width, depth=config.depth, dropout=config.dropout, never=task.never)
  if config.model == "rnn":
    return RecurrentSeq2Seq(
      task.vocabulary, cell=config.cell, attention=config.attention, copy=config.copy, coverage=config.coverage > 0,
      **shared,
    )  # fmt: skip
  shared |= dict(heads=config.heads, dtype=jnp.dtype(config.precision))
  if config.model == "transformer":
    return TransformerSeq2Seq(task.vocabulary, copy=config.copy, **shared)
  return MaskedSeq2Seq(task.vocabulary, task.room - 1, **{**shared, "never": (*task.never, task.end)})


def init_params(model: Any, key: Key[Array, ""], batch: Any) -> Any:
  given = jax.tree.map(lambda x: x[:1], batch)
  inputs = given["target"][:, :-1]
  if isinstance(model, MaskedSeq2Seq):
    return model.init(key, given["source"], given["source_length"], inputs[:, 1:], given["target_length"] - 2)["params"]
  return model.init(key, given["source"], given["source_length"], inputs)["params"]


# -- what counts -------------------------------------------------------------------------------------------------------


def token_losses(
  log_probability: Float[Array, "B T V"],
  tokens: Int[Array, "B T"],
  where: Bool[Array, "B T"],
  smoothing: Any,
  never: Sequence[int],
) -> Float[Array, "B T"]:
  """Cross entropy of each token that counts; smoothing gives nothing to the ids of `never`, which the model forbids."""
  possible = jnp.ones(log_probability.shape[-1], bool).at[jnp.array(never)].set(False)
  return cross_entropy(log_probability, tokens, smoothing, where, possible)


def sum_losses(
  task: Task, log_probability: Float[Array, "B T V"], batch: Any, smoothing: Any = 0.0
) -> tuple[Float[Array, " B"], Int[Array, " B"], Int[Array, " B"]]:
  """(loss, tokens that are right, tokens) of each target, END counted and padding not."""
  tokens, count = batch["target"][:, 1:], batch["target_length"] - 1
  real = real_places(count, tokens.shape[1])
  losses = token_losses(log_probability, tokens, real, smoothing, task.never)
  right = (jnp.argmax(log_probability, -1) == tokens) & real
  return jnp.sum(losses, 1), jnp.sum(right, 1), count


def judge(model: Any, variables: Any, batch: Any) -> tuple[Array, Array, Array]:
  """`sum_losses` of targets that are shown, without smoothing; of a masked model all are masked, END does not count."""
  source, lengths = batch["source"], batch["source_length"]
  if not isinstance(model, MaskedSeq2Seq):
    logs = model.score(variables, source, lengths, batch["target"][:, :-1]).log_probability
    tokens, count = batch["target"][:, 1:], batch["target_length"] - 1
  else:
    tokens, count = batch["target"][:, 1:-1], batch["target_length"] - 2
    logs = model.apply(variables, source, lengths, jnp.full_like(tokens, model.mask_id), count).log_probability
  real = real_places(count, tokens.shape[1])
  losses = cross_entropy(logs, tokens, where=real)
  right = (jnp.argmax(logs, -1) == tokens) & real
  return jnp.sum(losses, 1), jnp.sum(right, 1), count


def is_exact(found: Decoded, batch: Any) -> Bool[Array, " B"]:
  """Whether every token, END among them, is that of the target."""
  return jnp.all(found.tokens == batch["target"][:, 1:], 1)


def content_length(task: Task, found: Decoded) -> Int[Array, " B"]:
  """Tokens without END, where there is one."""
  last = jnp.take_along_axis(found.tokens, jnp.maximum(found.length - 1, 0)[:, None], 1)[:, 0]
  return found.length - (last == task.end)


def reward(metric: str, task: Task, found: Decoded, batch: Any) -> Float[Array, " B"]:
  """On [0, 1]: smoothed BLEU of the tokens, or whether all are right."""
  if metric == "exact":
    return is_exact(found, batch).astype(jnp.float32)
  reference, length = batch["target"][:, 1:], batch["target_length"] - 2
  return sentence_bleu(found.tokens, content_length(task, found), reference, length)


def token_log_probabilities(
  task: Task, model: Any, params: Any, batch: Any, tokens: Int[Array, "B T"]
) -> Float[Array, "B T"]:
  """Of each of the tokens, padding with some number."""
  start = jnp.full_like(tokens[:, :1], task.start)
  inputs = jnp.concatenate([start, tokens[:, :-1]], 1)
  scored = model.score({"params": params}, batch["source"], batch["source_length"], inputs)
  return jnp.take_along_axis(scored.log_probability, tokens[..., None], -1)[..., 0]


# -- text --------------------------------------------------------------------------------------------------------------


class Translator:
  """A trained model of texts: ["27 November 2026"] -> ["2026-11-27"]."""

  def __init__(self, tokenizer: Tokenizer, task: Task, decode: Callable[[Any], Decoded]):
    self.tokenizer, self.task, self._decode = tokenizer, task, jax.jit(decode)

  def __call__(self, texts: Sequence[str]) -> list[str]:
    """Raises ValueError for an empty text, or one longer than every source of the run."""
    source, lengths = to_ids(self.tokenizer, self.task, texts)
    found = self._decode({"source": source, "source_length": lengths})
    return to_texts(self.tokenizer, np.asarray(found.tokens), np.asarray(found.length))


def to_ids(tokenizer: Tokenizer, task: Task, texts: Sequence[str]) -> tuple[Int[Array, "B S"], Int[Array, " B"]]:
  """(ids, lengths) of sources. Raises ValueError for an empty text, or one longer than every source of the run;
  TypeError for a text by itself."""
  if isinstance(texts, str):
    raise TypeError(f"found the text {texts!r}, expected a list of texts")
  ids = [tokenizer.encode(text) for text in texts]
  for text, tokens in zip(texts, ids):
    if not 1 <= len(tokens) <= task.sources:
      raise ValueError(f"{text!r} has {len(tokens)} tokens: expected 1 to {task.sources}")
  padded = pad_sequences(ids, task.sources, task.pad)
  return jnp.asarray(padded["tokens"]), jnp.asarray(padded["length"])


def to_texts(tokenizer: Tokenizer, tokens: Int[np.ndarray, "B T"], lengths: Int[np.ndarray, " B"]) -> list[str]:
  return [tokenizer.decode(row[:length]) for row, length in zip(tokens, lengths)]
