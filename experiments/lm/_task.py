"""What an objective of a text is to the experiment, and what its report shows of what was hidden."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.lm._corruption import MASK, Ids, name_ids
from mlnotes.attention.mask import Mask
from mlnotes.data import Corpus
from mlnotes.data.text_floors import ngram_floors
from mlnotes.engine.experiment import example_keys, root_key
from mlnotes.lm import LanguageModel, Objective
from mlnotes.lm.objective import read_hidden

EVAL_SEED = 0  # of what an evaluation corrupts
_SHOWN = 8  # windows of filled.txt


class Task(NamedTuple):
  """An objective of a text.

  model:  (params) -> what `mlnotes.load_run` gives.
  report: (params, directory) -> {name: number}; writes what there is to see.
  read:   (params, tokens (B, T), lengths (B,), key) -> features (B, T, D) of a text of which nothing is hidden, as this
          model reads it: what tuning puts its heads on. With dropout where a key is given; padding is seen by nobody.
  part:   where in the parameters the network is that reads, whose modules' paths begin there; empty: they are its own.
  term:   the objective's term that tells how well the network that reads has learned.
  """

  objective: Objective
  model: Callable[[Any], Any]
  report: Callable[[Any, Path], Mapping[str, float]]
  read: Callable[[Any, Array, Array, Array | None], Array]
  part: str = ""
  term: str = "loss"


def reader(module: LanguageModel, part: str = ""):
  """`Task.read` of a stack, under the mask that is its own; its parameters are those at `part`."""

  def read(params, tokens, lengths, key):
    params = params[part] if part else params
    return read_hidden(module, params, tokens, Mask.of_self(causal=module.causal, lengths=lengths), key)[0]

  return read


class Applied(NamedTuple):
  """The module with its parameters: what it is given goes to the module."""

  module: Any
  params: Any

  def __call__(self, *args: Any, **options: Any) -> Any:
    return self.module.apply({"params": self.params}, *args, **options)


class Filled(NamedTuple):
  """Tokens (B, .): what was read, what was said of it, and what stood there."""

  read: Array
  said: Array
  stood: Array


def make_task(
  corpus: Corpus, ids: Ids, objective: Objective, model, fill: Callable[[Any, Any], Filled], read, **more: str
) -> Task:
  """With a report that writes filled.txt of the first test windows; `fill` is (params, examples) -> Filled.

  The report's floor, unigram, is nats of a token of the test text by how often each is in the training text.
  """

  def report(params, directory):
    rows = corpus.test.read(np.arange(min(_SHOWN, len(corpus.test))))
    tokens = jnp.asarray(rows["tokens"])
    keys = example_keys(root_key(EVAL_SEED), jnp.arange(len(tokens)))
    filled = jax.jit(lambda params: fill(params, jax.vmap(objective.prepare)(keys, tokens)))(params)
    lines = [
      f"{MASK} what was hidden or put in, ¶ a new line; read: what the model saw, said: by it, stood: in the text",
      "",
    ]
    for row in zip(*(np.asarray(x) for x in filled)):
      lines += [f"{name:6}{name_ids(corpus, ids, tokens)}" for name, tokens in zip(Filled._fields, row)]
      lines.append("")
    (directory / "filled.txt").write_text("\n".join(lines), encoding="utf-8")
    # Of any word of the text: what is hidden is drawn from them.
    return {"unigram": ngram_floors(corpus)["unigram"]}

  return Task(objective, model, report, read, **more)
