"""What is trained in `lm.retrieval`, as a function of texts; its figures, retrieval.png and answers.txt."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mlnotes.attention.mask import Mask
from mlnotes.data.image import DataError
from mlnotes.data.lines import decode_file, json_fields
from mlnotes.engine.errors import InputError, nearest
from mlnotes.engine.experiment import root_key, stream_key
from mlnotes.lm import (
  LanguageModel,
  Retrieved,
  TextEncoder,
  bm25_scores,
  bm25_weights,
  marginalize_documents,
  reciprocal_rank,
  search,
)
from mlnotes.lm.retrieval import Marginal
from mlnotes.lm.tasks import Facts, count_tokens, swap_values
from mlnotes.lm.tasks.facts import ANSWER_TOKENS, DOCUMENT_TOKENS, END, FACT_WORDS, PAD, QUESTION_TOKENS, VALUES

_SHOWN = 24  # questions of answers.txt
_AT_ONCE = 64  # questions
_KS = (1, 2, 3, 5, 10, 20, 50)  # of retrieval.png
_SUCH = "words of mlnotes.lm.tasks.facts.FACT_WORDS, as in 'the boat of sam hill is red stone'"
_IDS = {word: i for i, word in enumerate(FACT_WORDS)}


class Networks(NamedTuple):
  """Both encoders and the reader: functions of {"question", "document", "reader"}: parameters."""

  question: TextEncoder
  document: TextEncoder
  reader: LanguageModel

  def init(self, key: Key[Array, ""], facts: Facts) -> dict[str, Any]:
    of_question, of_document, of_reader = jax.random.split(key, 3)
    of = lambda network, key, tokens: network.init(key, tokens, count_tokens(tokens))["params"]
    read = jnp.zeros((1, DOCUMENT_TOKENS + QUESTION_TOKENS + ANSWER_TOKENS), jnp.int32)
    return {
      "question": of(self.question, of_question, facts.question),
      "document": of(self.document, of_document, facts.document),
      "reader": self.reader.init(of_reader, read)["params"],
    }

  def embed_questions(self, params: Any, tokens: Int[Array, "B S"]) -> Float[Array, "B D"]:
    return self.question.apply({"params": params["question"]}, tokens, count_tokens(tokens))

  def embed_documents(self, params: Any, tokens: Int[Array, "N T"]) -> Float[Array, "N D"]:
    return self.document.apply({"params": params["document"]}, tokens, count_tokens(tokens))

  def read(
    self, params: Any, documents: Int[Array, "B T"], questions: Int[Array, "B S"], before: Int[Array, "B A"]
  ) -> Float[Array, "B A V"]:
    """Log-probabilities of what stands at each place of the answer, of which `before` was said ahead: END, y_1, ..."""
    tokens = jnp.concatenate([documents, questions, before], 1)
    room = documents.shape[1] + questions.shape[1]
    seen = ((tokens != PAD) | (jnp.arange(tokens.shape[1]) >= room)[None]).astype(jnp.int32)
    mask = Mask(causal=True, key_segments=seen, query_segments=jnp.ones_like(seen))
    hidden = self.reader.apply({"params": params["reader"]}, tokens, mask, method="hidden")[:, room:]
    return jax.nn.log_softmax(self.reader.apply({"params": params["reader"]}, hidden, method="logits"))

  def answer(
    self,
    params: Any,
    documents: Int[Array, "B K T"],
    questions: Int[Array, "B S"],
    prior: Float[Array, "B K"],
    by: Marginal,
  ) -> Int[Array, "B A"]:
    """The likeliest answer over the documents, from greedy ones. Lewis et al. 2020, sec. 2.5.

    token: the likeliest token each time, of what all documents together foretell. sequence: of the answers that each
    document gives by itself the one that is likeliest under all of them ("thorough decoding", with a beam of one).
    """
    batch, k, _ = documents.shape
    flat, asked = documents.reshape(batch * k, -1), jnp.repeat(questions, k, 0)

    def say(i, said):
      logs = self.read(params, flat, asked, said[:, :-1])[:, i]
      if by == "token":
        together = jax.nn.logsumexp(logs.reshape(batch, k, -1) + prior[..., None], 1)
        logs = jnp.repeat(together, k, 0)
      return said.at[:, i + 1].set(jnp.argmax(logs, -1).astype(jnp.int32))

    begun = jnp.full((batch * k, ANSWER_TOKENS + 1), END, jnp.int32)
    said = jax.lax.fori_loop(0, ANSWER_TOKENS, say, begun)[:, 1:]
    if by == "token":
      return said.reshape(batch, k, -1)[:, 0]
    # Every answer under every document.
    logs = read_log_probability(self, params, jnp.repeat(documents, k, 0), asked, said)
    likelihood = marginalize_documents(jnp.repeat(prior, k, 0), logs, jnp.ones_like(said, bool))
    best = jnp.argmax(likelihood.reshape(batch, k), 1)
    return jnp.take_along_axis(said.reshape(batch, k, -1), best[:, None, None], 1)[:, 0]


def log_prior(found: Retrieved) -> Float[Array, "B K"]:
  """log p(z | x) of the documents that were found: the softmax of their inner products. Lewis et al. 2020, sec. 2.2."""
  return jax.nn.log_softmax(found.score)


def read_log_probability(
  networks: Networks,
  params: Any,
  documents: Int[Array, "B K T"],
  questions: Int[Array, "B S"],
  answers: Int[Array, "B A"],
) -> Float[Array, "B K A"]:
  """log p(y_i | x, z, y_1:i-1) of each token of the answers under each document."""
  batch, k, _ = documents.shape
  before = jnp.concatenate([jnp.full_like(answers[:, :1], END), answers[:, :-1]], 1)
  repeat = lambda x: jnp.repeat(x, k, 0)
  logs = networks.read(params, documents.reshape(batch * k, -1), repeat(questions), repeat(before))
  return jnp.take_along_axis(logs, repeat(answers)[..., None], -1)[..., 0].reshape(batch, k, -1)


class Model(NamedTuple):
  """(questions, documents), lists of texts, to an answer for each question."""

  networks: Networks
  params: Any
  k: int
  marginal: Marginal

  def __call__(self, questions: Sequence[str], documents: Sequence[str]) -> list[str]:
    asked = encode_texts(questions, QUESTION_TOKENS, "questions")
    store = encode_texts(documents, DOCUMENT_TOKENS, "documents")
    return [decode(row) for row in np.asarray(self.look_up(asked, store)[1])]

  def look_up(self, questions: Int[Array, "B S"], documents: Int[Array, "N T"]) -> tuple[Retrieved, Int[Array, "B A"]]:
    """(documents found, answers); of a store of fewer than `k` documents, all of them."""
    return _look_up(self.networks, min(self.k, len(documents)), self.marginal, self.params, questions, documents)

  def scores(self, questions: Int[Array, "B S"], documents: Int[Array, "N T"]) -> Float[Array, "B N"]:
    query = self.networks.embed_questions(self.params, questions)
    return query @ self.networks.embed_documents(self.params, documents).T


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _look_up(networks, k, marginal, params, questions, documents):
  index = networks.embed_documents(params, documents)

  def one(question):
    found = search(networks.embed_questions(params, question[None]), index, k)
    answer = networks.answer(params, documents[found.number], question[None], log_prior(found), marginal)
    return jax.tree.map(lambda x: x[0], (found, answer))

  return jax.lax.map(one, questions, batch_size=_AT_ONCE)


@functools.partial(jax.jit, static_argnums=0)
def _read_one(networks, params, questions, documents):
  """The answer to each question from the document beside it; of one document both marginals are the same."""
  one = lambda x: networks.answer(params, x[1][None, None], x[0][None], jnp.zeros((1, 1)), "token")[0]
  return jax.lax.map(one, (questions, documents), batch_size=_AT_ONCE)


def report_answers(
  model: Model, facts: Facts, own: tuple[list[str], list[str]] | None, directory: Path
) -> dict[str, float]:
  """Figures of the test questions; and of a store and questions by file what is said of these.

  accuracy_: how many answers are right with no document (closed_book), the document found first (first), BM25's first
  (bm25), the right one (oracle), and of the same store with other values (swapped); kept: how many answers to that are
  still the old ones.
  recall_N, rank (the mean of 1 / rank) of the index, bm25_ the same of BM25. chance: an answer that is guessed.
  """
  scores = np.asarray(jax.jit(model.scores)(facts.question, facts.document))
  words = np.asarray(jax.jit(score_words)(facts))
  right = jnp.arange(len(scores))
  found, said = model.look_up(facts.question, facts.document)
  swapped = jax.jit(swap_values)(stream_key(root_key(0), "swapped"), facts)
  said_then = model.look_up(swapped.question, swapped.document)[1]
  one = lambda questions, documents: _read_one(model.networks, model.params, questions, documents)
  empty, first = jnp.zeros_like(facts.document), facts.document[found.number[:, 0]]
  share = lambda said, answers: float(jnp.mean(jnp.all(said == answers, 1)))
  figures = {
    "accuracy_closed_book": share(one(facts.question, empty), facts.answer),
    "accuracy_first": share(one(facts.question, first), facts.answer),
    "accuracy_bm25": share(one(facts.question, facts.document[jnp.argmax(words, 1)]), facts.answer),
    "accuracy_oracle": share(one(facts.question, facts.document), facts.answer),
    "accuracy_swapped": share(said_then, swapped.answer),
    "kept": share(said_then, facts.answer),
    "chance": 1 / (len(VALUES[0]) * len(VALUES[1])),
  }
  for prefix, by in (("", scores), ("bm25_", words)):
    figures |= {f"{prefix}recall_{k}": share_found(by, k) for k in dict.fromkeys((1, 5, model.k)) if k <= len(by)}
    figures[f"{prefix}rank"] = float(jnp.mean(reciprocal_rank(jnp.asarray(by), right)))
  # With the others of the card it is among the evaluation's.
  for name in ("recall_1", f"recall_{model.k}"):
    figures.pop(name, None)
  accuracy = share(said, facts.answer)
  write_answers(model, facts.question, facts.document, facts.answer, directory / "answers.txt")
  draw_retrieval(model, scores, words, {**figures, "accuracy": accuracy}, directory / "retrieval.png")
  if own is not None:
    asked, store = (jnp.asarray(encode_texts(*x)) for x in (
      (own[1], QUESTION_TOKENS, "questions"), (own[0], DOCUMENT_TOKENS, "documents")
    ))  # fmt: skip
    write_answers(model, asked, store, None, directory / "own_answers.txt")
  return figures


def score_words(facts: Facts) -> Float[Array, "B N"]:
  """BM25 of each question and each document."""
  weights = bm25_weights(facts.document, count_tokens(facts.document), len(FACT_WORDS))
  return bm25_scores(facts.question, count_tokens(facts.question), weights)


def share_found(scores: Float[np.ndarray, "B N"], k: int) -> float:
  """How often document i is among the k best of question i; others with the same score stand before it."""
  own = np.diagonal(scores)[:, None]
  return float(np.mean(np.sum(scores >= own, 1) <= k))


def decode(tokens: Any) -> str:
  words = [FACT_WORDS[int(token)] for token in tokens if int(token) != PAD]
  return " ".join(words[: words.index("<end>")] if "<end>" in words else words)


def encode_texts(texts: Sequence[str], length: int, flag: str) -> Int[np.ndarray, "N T"]:
  """Raises InputError, one sentence that begins with the flag, for unknown words, too many, and no text at all."""
  if isinstance(texts, str) or not len(texts):
    found = "one text" if isinstance(texts, str) else "no text"
    raise InputError(f"--{flag}: found {found}, expected a list of one or more.")
  rows = np.full((len(texts), length), PAD, np.int32)
  for number, text in enumerate(texts, 1):
    words = text.lower().replace("?", " ").replace(",", " ").replace(".", " ").split()
    unknown = [word for word in words if word not in _IDS]
    if unknown:
      raise InputError(f"--{flag}: text {number} has the word {unknown[0]!r}, which the task lacks: "
                       f"{nearest(unknown[0], FACT_WORDS[2:], f'expected {_SUCH}.')}")  # fmt: skip
    if not 1 <= len(words) <= length:
      raise InputError(f"--{flag}: text {number} has {len(words)} words, expected 1 to {length}.")
    rows[number - 1, : len(words)] = [_IDS[word] for word in words]
  return rows


def read_store(documents: str, questions: str) -> tuple[list[str], list[str]] | None:
  """(documents, questions) of two files, in words that the task has; None where none is named."""
  if not documents:
    return None
  store, asked = (_read_lines(path, flag) for path, flag in ((documents, "documents"), (questions, "questions")))
  encode_texts(store, DOCUMENT_TOKENS, f"documents={documents}")
  encode_texts(asked, QUESTION_TOKENS, f"questions={questions}")
  return store, asked


def _read_lines(path: str, flag: str) -> list[str]:
  said = f"--{flag}={path}"
  content = decode_file(path, said)
  if path.endswith(".jsonl"):
    lines = [text for _, (text,) in json_fields(content, said, ("text",))]
  else:
    lines = [line for line in content.splitlines() if line.strip()]
  if not lines:
    raise DataError(f"{said}: found no text, expected one on each line.")
  return lines


def write_answers(model: Model, questions: Any, documents: Any, answers: Any, path: Path) -> None:
  """Questions, the documents found with their share of p(z | x), and what was said; of the test also what is right."""
  found, said = jax.device_get(model.look_up(questions, documents))
  documents, lines = np.asarray(documents), []
  some = range(len(questions)) if answers is None else np.linspace(0, len(questions) - 1, _SHOWN).astype(int)
  for i in some:
    lines.append(f"? {decode(questions[i])}")
    share = np.exp(found.score[i] - found.score[i].max())
    for number, score, part in zip(found.number[i], found.score[i], share / share.sum()):
      mark = " *" if answers is not None and number == i else ""
      lines.append(f"   {score:7.2f}  {100 * part:5.1f} %  {decode(documents[number])}{mark}")
    right = "" if answers is None or np.array_equal(said[i], answers[i]) else f"   (right: {decode(answers[i])})"
    lines += [f"= {decode(said[i])}{right}", ""]
  told = "inner product, share of p(z | x), document" + ("" if answers is None else "; * the one that has the answer")
  path.write_text("\n".join([told, "", *lines]), encoding="utf-8")


def draw_retrieval(model: Model, scores: Any, words: Any, figures: dict[str, float], path: Path) -> None:
  """Left, how often the right document is found; right, how many answers are right."""
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(1, 2, width=10.0, height=4.0)
  ks = [k for k in _KS if k <= len(scores)]
  for by, color, label in ((scores, "C0", "two encoders"), (words, "C1", "BM25: the words that both have")):
    axes[0, 0].plot(ks, [100 * share_found(by, k) for k in ks], "o-", color=color, label=label, markersize=4)
  axes[0, 0].plot(ks, [100 * k / len(scores) for k in ks], ":", color="0.5", label="chance")
  axes[0, 0].set(xscale="log", xlabel="documents looked at", ylabel="questions whose document is among them (%)")
  axes[0, 0].set(title=f"the right one of {len(scores)} documents", ylim=(0, 103))
  axes[0, 0].set_xticks(ks, [str(k) for k in ks])
  axes[0, 0].minorticks_off()
  axes[0, 0].legend(frameon=False, loc="lower right")
  bars = {
    "no\ndocument": ("accuracy_closed_book", "0.7"), "the first\nby BM25": ("accuracy_bm25", "C1"),
    "the first\nfound": ("accuracy_first", "C0"),
    f"{model.k} found,\nweighed": ("accuracy", "C0"), "other values\nin the store": ("accuracy_swapped", "C2"),
    "the right\ndocument": ("accuracy_oracle", "0.3"),
  }  # fmt: skip
  for i, (name, color) in enumerate(bars.values()):
    axes[0, 1].bar(i, 100 * figures[name], 0.65, color=color)
    axes[0, 1].text(i, 100 * figures[name] + 1.5, f"{100 * figures[name]:.0f}", ha="center")
  axes[0, 1].set_xticks(range(len(bars)), list(bars), fontsize=8)
  axes[0, 1].set(ylabel="answers that are right (%)", ylim=(0, 112), yticks=range(0, 101, 20))
  axes[0, 1].set_title("people and facts that no training store had")
  save_figure(figure, path)
