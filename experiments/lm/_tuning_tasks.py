"""What --task asks of a text: rows to learn from and to be tested on, a head, its loss and its figures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from mlnotes.data import Corpus, NamedArrays, Windows, pad_sequences, read_labelled
from mlnotes.data.text import END
from mlnotes.data.tokenizer import UNKNOWN, Tokenizer
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import Mean
from mlnotes.lm import SentenceHead, SpanHead, TokenHead, best_span, span_loss
from mlnotes.lm.tasks import cut_words, draw_starts, follow_passages, lower_case, move_spans, shift_words
from mlnotes.nn.loss import cross_entropy

# Of the rows that a probe makes: the same for every seed, method and network.
ROWS_SEED = {"train": 0, "test": 1}
_LETTERS = ("characters", "bytes")


Marks = tuple[tuple[int, ...], tuple[int, ...]]


class Question(NamedTuple):
  """What is asked, of rows of tokens.

    {"tokens": (B, T), "length": (B,), "label": (B,)}                       a class of the whole row
    {"tokens": (B, T), "length": (B,), "label": (B, T), "weight": (B, T)}   of each token, where its weight is 1
    {"tokens": (B, T), "length": (B,), "start": (B,), "end": (B,)}          the first and the last token of a span

  Attributes:
    classes: what each is called; () of a span.
    longest: tokens of the longest span; 0 where none is asked for.
    notes: sentences about what was cut or is unknown.
    marks: tokens in front of each text and behind it.
    place: of each test row of `shift` the number of the first word that was exchanged, -1 where none was.
    half: tokens of the first of two passages; 0 where there is one.
  """

  kind: "Kind"
  train: NamedArrays
  test: NamedArrays
  classes: tuple[str, ...] = ()
  longest: int = 0
  notes: tuple[str, ...] = ()
  marks: "Marks" = ((), ())
  place: Any = None
  half: int = 0


class Kind(NamedTuple):
  """A form of answer.

  Attributes:
    head: (config, classes, pooling) -> module.
    call: (f, hidden, lengths, train) -> outputs; f is the head's `apply` or `init` with what comes before its inputs.
    judge: (question, outputs, batch) -> {name: Mean of sums and counts, (B,) each}; "loss" is what is minimised.
    score: the figure that chooses the best checkpoint.
  """

  name: str
  head: Callable[[Any, int, Any], nn.Module]
  call: Callable[..., Any]
  judge: Callable[[Any, Any, Mapping[str, Array]], dict[str, Mean]]
  score: str = "accuracy"


def _judge_sentence(question: Question, logits: Array, batch: Mapping[str, Array]) -> dict[str, Mean]:
  right = (jnp.argmax(logits, -1) == batch["label"]).astype(jnp.float32)
  figures = {"loss": cross_entropy(logits, batch["label"]), "accuracy": right, "error": 1 - right}
  return {name: Mean(value, jnp.ones_like(right)) for name, value in figures.items()}


def _judge_tokens(question: Question, logits: Array, batch: Mapping[str, Array]) -> dict[str, Mean]:
  """With the F1 of the last of two classes: twice the true ones over all that are said and all that are."""
  label, weight, said = batch["label"], batch["weight"], jnp.argmax(logits, -1)
  over = lambda x: jnp.sum(jnp.where(weight > 0, x, 0).astype(jnp.float32), 1)
  count, right = jnp.sum(weight, 1), over(said == label)
  true = over((said == 1) & (label == 1))
  return {
    "loss": Mean(over(cross_entropy(logits, label)), count),
    "accuracy": Mean(right, count),
    "error": Mean(count - right, count),
    "f1": Mean(2 * true, over(said == 1) + over(label == 1)),
  }


def _judge_span(question: Question, logits: Any, batch: Mapping[str, Array]) -> dict[str, Mean]:
  """F1 of the tokens of each row's span, and their mean: Rajpurkar et al. 2016, sec. 6.1."""
  start, end, _ = best_span(logits, question.longest)
  shared = jnp.maximum(jnp.minimum(end, batch["end"]) - jnp.maximum(start, batch["start"]) + 1, 0)
  sizes = (end - start + 1) + (batch["end"] - batch["start"] + 1)
  exact = ((start == batch["start"]) & (end == batch["end"])).astype(jnp.float32)
  one = jnp.ones_like(exact)
  figures = {
    "loss": span_loss(logits, batch["start"], batch["end"]), "exact": exact, "f1": 2 * shared / sizes,
    "start_accuracy": (jnp.argmax(logits.start, -1) == batch["start"]).astype(jnp.float32),
    "end_accuracy": (jnp.argmax(logits.end, -1) == batch["end"]).astype(jnp.float32),
  }  # fmt: skip
  return {name: Mean(value, one) for name, value in figures.items()}


SENTENCE = Kind(
  "sentence",
  lambda config, classes, pooling: SentenceHead(
    classes, pooling, config.head_layer, config.dropout, jnp.dtype(config.precision)
  ),
  lambda f, hidden, lengths, train: f(hidden, lengths, train),
  _judge_sentence,
)
TOKEN = Kind(
  "token",
  lambda config, classes, pooling: TokenHead(classes, config.dropout, jnp.dtype(config.precision)),
  lambda f, hidden, lengths, train: f(hidden, train),
  _judge_tokens,
)
SPAN = Kind(
  "span",
  lambda config, classes, pooling: SpanHead(jnp.dtype(config.precision)),
  lambda f, hidden, lengths, train: f(hidden, lengths),
  _judge_span,
  "exact",
)
KINDS = {"shift": SENTENCE, "follows": SENTENCE, "case": TOKEN, "moved": SPAN, "file": SENTENCE}


def encode_texts(
  tokenizer: Tokenizer, texts: Sequence[str], length: int, marks: Marks = ((), ())
) -> dict[str, np.ndarray]:
  """Rows of `length` tokens at most, marks and all; a text without a token is one that is unknown, or the first."""
  nothing = np.array([tokenizer.special.get(UNKNOWN, 0)], np.int32)
  rows, room = [ids if len(ids) else nothing for ids in map(tokenizer.encode, texts)], length - sum(map(len, marks))
  return pad_sequences([np.concatenate([marks[0], ids[:room], marks[1]]).astype(np.int32) for ids in rows], length)


def mark_rows(tokens: Int[Array, "B T"], lengths: Int[Array, " B"], marks: Marks) -> tuple[Array, Array]:
  """(rows, their lengths) with the marks around each text: `encode_texts`' rows, of tokens that are there already."""
  front, behind = marks
  row = jnp.array([*front, *(0,) * (tokens.shape[1] + len(behind))], tokens.dtype)
  rows = jnp.tile(row, (len(tokens), 1)).at[:, len(front) : len(front) + tokens.shape[1]].set(tokens)
  place = jnp.arange(len(row))[None] - len(front) - lengths[:, None]
  for i, mark in enumerate(behind):
    rows = jnp.where(place == i, mark, rows)
  return rows, lengths + len(front) + len(behind)


def find_marks(network: Any, tokenizer: Tokenizer, length: int) -> Marks:
  """BERT's [CLS] and [SEP], as an encoder of others (--weights) has read its texts; none where there are none."""
  names = ("[CLS]", "[SEP]")
  marked = network.weights and network.objective != "causal" and length > 2
  if not marked or any(name not in tokenizer.special for name in names):
    return (), ()
  return tuple((int(tokenizer.special[name]),) for name in names)


def make_question(config: Any, corpus: Corpus, network: Any) -> Question:
  """The rows of --task: probes are made of the corpus' own two texts, each split of its own.

  `network` is the config of its network. Raises InputError where the text or the tokenizer does not allow it, DataError
  as `read_labelled` does.
  """
  length = network.length
  if config.task == "file":
    return _from_file(config, corpus, length, find_marks(network, corpus.tokenizer, length))
  make = {"shift": _shift, "follows": _follows, "case": _case, "moved": _moved}[config.task]
  counts, found = {"train": config.train_rows, "test": config.test_rows}, {}
  # Test rows share three quarters of their tokens at most: with more of them the figures would only seem surer.
  steps = {"train": 1, "test": max(1, length // 4)}
  for name, windows in (("train", corpus.train), ("test", corpus.test)):
    rng = np.random.default_rng(ROWS_SEED[name])
    try:
      found[name] = make(rng, _Text(windows, corpus, length, counts[name], steps[name]))
    except ValueError as error:
      if isinstance(error, InputError):
        raise
      raise InputError(f"--task={config.task}: the {name} text does not allow it: {error}.") from error
  place = found["test"].pop("place", None)
  found["train"].pop("place", None)
  splits = {name: NamedArrays(arrays) for name, arrays in found.items()}
  longest = _span_sizes(length)[1] if config.task == "moved" else 0
  classes = {"shift": ("as it was", "exchanged"), "follows": ("elsewhere", "follows"), "case": ("small", "capital")}
  half = length // 2 if config.task == "follows" else 0
  answers = classes.get(config.task, ())
  return Question(KINDS[config.task], **splits, classes=answers, longest=longest, place=place, half=half)


class _Text(NamedTuple):
  windows: Windows
  corpus: Corpus
  length: int
  count: int
  step: int

  @property
  def tokens(self) -> np.ndarray:
    return self.windows.arrays["tokens"]

  def starts(self, rng: np.random.Generator, length: int, count: int = 0) -> np.ndarray:
    end = self.corpus.tokenizer.special.get(END, -1)
    return draw_starts(rng, self.tokens, length, count or self.count, end, self.step)


def _whole(rows: np.ndarray) -> dict[str, np.ndarray]:
  return {"tokens": rows.astype(np.int32), "length": np.full(len(rows), rows.shape[1], np.int32)}


def _passage(tokenizer: Tokenizer, length: int) -> int:
  """Tokens of a passage whose words are exchanged: where they have pieces, these may then be more than they were."""
  return max(2, 3 * length // 4) if tokenizer.kind in ("bpe", "hugging_face") else length


def _shift(rng: np.random.Generator, text: _Text) -> dict[str, np.ndarray]:
  tokenizer = text.corpus.tokenizer
  room = _passage(tokenizer, text.length)
  starts = text.starts(rng, room, 2 * text.count)
  passages = (cut_words(tokenizer.decode(text.tokens[start : start + room])) for start in starts)
  made = shift_words(rng, [passage for passage in passages if len(set(passage.split())) > 1][: text.count])
  return {**encode_texts(tokenizer, made.texts, text.length), "label": made.label, "place": made.place}


def _follows(rng: np.random.Generator, text: _Text) -> dict[str, np.ndarray]:
  half = text.length // 2
  made = follow_passages(rng, text.tokens, text.starts(rng, 2 * half), half)
  return {**_whole(made.tokens), "label": made.label}


def _case(rng: np.random.Generator, text: _Text) -> dict[str, np.ndarray]:
  tokenizer = text.corpus.tokenizer
  if tokenizer.kind not in _LETTERS:
    raise InputError(f"--task=case asks each letter: expected a network that reads {' or '.join(_LETTERS)}, found "
                     f"--tokenizer={tokenizer.kind}.")  # fmt: skip
  letters = [tokenizer.decode([i]) if i < tokenizer.num_pieces else "" for i in range(tokenizer.vocab_size)]
  letters = [letter if len(letter) == 1 else "\ufffd" for letter in letters]
  ids = {letter: i for i, letter in reversed(list(enumerate(letters)))}
  rows = text.tokens[text.starts(rng, text.length)[:, None] + np.arange(text.length)].astype(np.int32)
  made = [lower_case("".join(letters[i] for i in row), ids.keys()) for row in rows]
  label, weight = np.stack([row.label for row in made]), np.stack([row.weight for row in made])
  if not label.any():
    raise ValueError("it has no capitals, expected some")
  small = np.array([[ids[letter] for letter in row.text] for row in made], np.int32)
  return {**_whole(np.where(label > 0, small, rows)), "label": label, "weight": weight}


def _span_sizes(length: int) -> tuple[int, int]:
  return max(1, length // 8), max(1, 3 * length // 8)


def _moved(rng: np.random.Generator, text: _Text) -> dict[str, np.ndarray]:
  starts = text.starts(rng, text.length)
  made = move_spans(rng, text.tokens, starts, text.length, *_span_sizes(text.length))
  return {**_whole(made.tokens), "start": made.start, "end": made.end}


def _from_file(config: Any, corpus: Corpus, length: int, marks: Marks) -> Question:
  found = read_labelled(config.labelled, config.test_labelled, "labelled")
  splits, cut, unknown = [], 0, 0
  for texts, label in ((found.train, found.train_label), (found.test, found.test_label)):
    rows, room = encode_texts(corpus.tokenizer, texts, length, marks), length - sum(map(len, marks))
    cut += sum(len(corpus.tokenizer.encode(text)) > room for text in texts)
    unknown += int(np.sum(rows["tokens"] == corpus.tokenizer.special.get(UNKNOWN, -1)))
    splits.append(NamedArrays({**rows, "label": label}))
  total = len(found.train) + len(found.test)
  notes = [f"{cut} of {total} texts have more than {room} tokens and are cut there."] if cut else []
  notes += [f"{unknown} of their tokens are <unknown>: the network's text did not have them."] if unknown else []
  return Question(SENTENCE, *splits, classes=found.classes, notes=tuple(notes), marks=marks)
