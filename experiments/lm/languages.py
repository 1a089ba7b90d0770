"""Two languages of one grammar: which of their words does one model of both put side by side?

  python -m experiments.lm.languages                                    # a quarter of the words are in both
  python -m experiments.lm.languages --anchors=0                        # no word is
  python -m experiments.lm.languages --objective=masked

Documents are of one language each, drawn on the device from a Markov chain that both have. Word i of the second has an
id of its own, but for --anchors of them, and no text says that the two belong together. Words are compared by their
embeddings and by the mean of their features at each layer, over documents that are drawn for each language by itself;
words that both languages have are left out. Writes alignment.png: the cosines of all pairs where most words find their
own, and how many do by layer. Anchors are those of Conneau et al. 2020, "Emerging cross-lingual structure in pretrained
language models"; small models of such languages those of Dufter & Schütze 2020.
"""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from experiments.lm._task import EVAL_SEED, Applied
from experiments.lm._tuning import layer_outputs
from mlnotes.data import Feeds, make_drawn_eval, make_drawn_feed
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, Mean, example_keys, root_key, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.lm import LanguageModel, Objective, Vocabulary, causal_objective, compute_gradients, make_gpt2, make_llama
from mlnotes.lm.encoder_objectives import masked_objective
from mlnotes.lm.objective import read_hidden
from mlnotes.lm.tasks import (
  Alignment,
  Grammar,
  bridge_entropy,
  draw_documents,
  entropy_rate,
  make_grammar,
  measure_alignment,
  share_words,
)
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, OptimizerName, make_optimizer

# Of the test documents, and of those that words are compared on: the same in every run.
_TEST_SEED, _COMPARED_SEED = 0, 1
_AT_ONCE = 64  # documents
_NAMES = ("first", "second")  # languages


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(OptimConfig, LoopConfig):
  """Defaults: a GPT-2 that reads two languages of 32 words, of which they share eight: a minute on two CPU cores."""

  UNIT: ClassVar[str] = "documents"
  fills_cores: ClassVar[bool] = False

  objective: Literal["causal", "masked"] = field("causal", "each word from those before it, or BERT's hidden words")
  model: Literal["gpt2", "llama"] = field("gpt2", "learned positions, layer norms and GELU; or rotary ones and SwiGLU")
  words: int = field(32, "words of each language")
  concentration: float = field(0.2, "of the Dirichlet that says what follows a word: the lower, the fewer words may")
  noise: float = field(0.01, "share of every word mixed into that, in (0, 1]")
  grammar_seed: int = field(0, "seed that the grammar is drawn from")
  anchors: float = field(0.25, "share of the words that both languages have, in [0, 1)")
  mask_rate: float = field(0.3, "of --objective=masked: share of the words that are hidden, in (0, 1)")
  mask_share: float = field(0.8, "of the hidden words: become the mask")
  random_share: float = field(0.1, "of the hidden words: become words of any language, drawn at random; the rest stay")
  length: int = field(16, "words that are read")
  depth: int = field(2, "layers")
  heads: int = field(2, "heads, a divisor of --width, into even numbers for --model=llama")
  width: int = field(16, "features of a word")
  tied: bool = field(True, "the head's matrix is the embedding's")
  batch_size: int = field(32, "documents per update, half of them of each language")
  test_documents: int = field(1024, "documents of the evaluation, and of each language to compare words on")

  steps: int = 2000
  learning_rate: float = 5e-3
  optimizer: OptimizerName = "adamw"
  weight_decay: float = 0.1
  schedule: ScheduleName = "warmup_cosine"
  warmup_steps: int = 100
  clip_norm: float = 1.0
  log_every: int = 100
  eval_every: int = 500

  def __post_init__(self):
    super().__post_init__()
    for name in ("depth", "heads", "width", "batch_size", "test_documents"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("words", "length"):
      require(getattr(self, name) >= 2, name, getattr(self, name), "2 or more")
    into = " into even numbers" if self.model == "llama" else ""
    even = self.width % self.heads == 0 and (not into or self.width // self.heads % 2 == 0)
    require(even, "heads", self.heads, f"a divisor of --width={self.width}{into}")
    require(0 < self.mask_rate < 1, "mask_rate", self.mask_rate, "a number in (0, 1)")
    for name in ("mask_share", "random_share"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
    require(self.random_share <= 1 - self.mask_share + 1e-9, "random_share", self.random_share, "1 - --mask_share")
    require(self.concentration > 0, "concentration", self.concentration, "a number above 0")
    require(0 < self.noise <= 1, "noise", self.noise, "a number in (0, 1]")
    require(0 <= self.grammar_seed < 2**32, "grammar_seed", self.grammar_seed, "0 to 2^32 - 1")
    apart = 0 <= self.anchors < 1 and self.words - self.count_anchors() >= 2
    require(apart, "anchors", self.anchors, f"0 or more, so that 2 or more of --words={self.words} are left")

  @classmethod
  def tuned(cls, **given: Any) -> "Config":
    """Of hidden words fewer are asked of a document, and both neighbours are to be found."""
    defaults = {"model": "llama", "steps": 4000, "learning_rate": 1e-2} if given.get("objective") == "masked" else {}
    return super().tuned(**{**defaults, **given})

  def count_anchors(self) -> int:
    return round(self.anchors * self.words)

  def idle_flags(self):
    idle = super().idle_flags()
    if self.objective == "causal":
      idle |= dict.fromkeys(("mask_rate", "mask_share", "random_share"), "--objective=causal hides nothing")
    return idle


def build_grammar(config: Config) -> Grammar:
  key = root_key(config.grammar_seed)
  return jax.jit(lambda: make_grammar(key, config.words, config.concentration, config.noise))()


def build_objective(config: Config) -> tuple[LanguageModel, Objective]:
  """A small model over the words of both languages, and the mask."""
  mask = 2 * config.words
  size = mask + 1
  sizes = (size, config.length, config.depth, config.heads, config.width)
  form = {"gpt2": make_gpt2, "llama": make_llama}[config.model]
  module = form(*sizes, tied=config.tied, dtype=jnp.dtype(config.precision))
  if config.objective == "causal":
    return module, causal_objective(module)
  module = module.clone(causal=False)
  rates = dict(rate=config.mask_rate, mask_share=config.mask_share, random_share=config.random_share)
  # Of anchors the second language's ids are in no text: they are neither drawn.
  unused = range(config.words, config.words + config.count_anchors())
  return module, masked_objective(module, Vocabulary(size, (*unused, mask), mask=mask, pad=mask), **rates)


def draw_document(config: Config):
  """(key, grammar) -> one document of a language, a word more than is read."""

  def draw(key: Key[Array, ""], grammar: Grammar) -> dict[str, Array]:
    drawn = jax.tree.map(lambda x: x[0], draw_documents(key, grammar, 1, config.length + 1))
    return {"tokens": share_words(drawn.tokens, config.words, config.count_anchors()), "language": drawn.language}

  return draw


def make_feeds(config: Config) -> Feeds:
  draw, grammar = draw_document(config), build_grammar(config)
  test = make_drawn_eval(draw, grammar, _TEST_SEED, config.test_documents, config.batch_size)
  return Feeds(make_drawn_feed(draw, grammar, config.batch_size, "documents"), test, split="test")


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  opt_state: optax.OptState


def make(config: Config) -> Experiment:
  module, objective = build_objective(config)
  optimizer, grammar = make_optimizer(config, config.steps), build_grammar(config)
  learned = lambda state: eval_params(state.opt_state, state.params)

  def prepare(keys: Key[Array, " B"], batch):
    return jax.vmap(objective.prepare)(keys, batch["tokens"])

  def init(key, batch) -> State:
    examples = prepare(jax.random.split(stream_key(key, "example"), len(batch["tokens"])), batch)
    params = objective.init(stream_key(key, "init"), examples)
    return State(jnp.zeros([], jnp.int32), key, params, optimizer.init(params))

  def step(state: State, batch):
    keys = jax.random.split(stream_key(state.key, "prepare", state.step), len(batch["tokens"]))
    key = stream_key(state.key, "dropout", state.step)
    grads, metrics = compute_gradients(objective, state.params, prepare(keys, batch), key)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = {**metrics, "grad_norm": optax.global_norm(grads)}
    return State(state.step + 1, state.key, optax.apply_updates(state.params, updates), opt_state), metrics

  def evaluate(state: State, batch) -> dict[str, Mean]:
    """Of both languages and of each, and how many words' embeddings find their own."""
    params = learned(state)
    terms = objective.terms(params, prepare(example_keys(root_key(EVAL_SEED), batch["index"]), batch), None)
    over = lambda mean, rows: Mean(*(jnp.sum(jnp.where(rows, x, 0)) for x in mean))
    found = {name: over(mean, batch["mask"] > 0) for name, mean in terms.items()}
    for i, name in enumerate(_NAMES):
      found[f"{name}_loss"] = over(terms["loss"], (batch["mask"] > 0) & (batch["language"] == i))
    aligned = measure_alignment(*pair_words(config, params["embed"]["embedding"]), centered=True)
    count = jnp.sum(batch["mask"])
    return found | {"embedding_precision_centered": Mean(aligned.precision * count, count)}

  def report(state: State, directory: Path) -> dict[str, float]:
    vectors = jax.jit(lambda params: compare_words(config, module, params, grammar))(learned(state))
    found = {name: float(value) for name, value in jax.jit(tabulate)(vectors).items()}
    vectors = jax.device_get(vectors)
    draw_alignment(config, vectors, found, directory / "alignment.png")
    floor = entropy_rate if config.objective == "causal" else bridge_entropy
    return found | {"entropy": float(jax.jit(floor)(grammar)), "chance": 1 / len(vectors["embedding"][0])}

  return Experiment(init, step, evaluate, report, model=lambda state: Applied(module, learned(state)))


def pair_words(config: Config, table: Float[Array, "S D"]) -> tuple[Array, Array]:
  """Of rows of both languages' ids those of the words that are not shared, each beside its translation."""
  words, anchors = config.words, config.count_anchors()
  return table[anchors:words], table[words + anchors : 2 * words]


def compare_words(
  config: Config, module: LanguageModel, params: Any, grammar: Grammar
) -> dict[str, tuple[Float[Array, "V D"], Float[Array, "V D"]]]:
  """{what: vectors of the words of both languages, translations in the same row}.

  "embedding" is the matrix that is looked up, "layer0" what goes into the first layer, "layerN" what layer N gives: the
  mean of a word's features over all its places, none of which is hidden.
  """
  found = {"embedding": pair_words(config, params["embed"]["embedding"])}
  sides = [_mean_features(config, module, params, grammar, language) for language in range(2)]
  return found | {f"layer{i}": pair for i, pair in enumerate(zip(*sides))}


def _mean_features(config, module, params, grammar, language: int) -> list[Float[Array, "V D"]]:
  words, anchors = config.words, config.count_anchors()
  key = stream_key(root_key(_COMPARED_SEED), _NAMES[language])

  def add(sums, key):
    tokens = draw_documents(key, grammar, _AT_ONCE, config.length, share=float(language)).tokens
    read = lambda: read_hidden(module, params, share_words(tokens, words, anchors))
    one = jax.nn.one_hot(tokens - language * words, words)
    layers = [jnp.einsum("btv,btd->vd", one, x.astype(jnp.float32)) for x in layer_outputs(read)]
    return jax.tree.map(jnp.add, sums, (layers, jnp.sum(one, (0, 1)))), None

  batches = -(-config.test_documents // _AT_ONCE)
  like = [jnp.zeros((words, config.width))] * (config.depth + 1), jnp.zeros(words)
  (layers, count), _ = jax.lax.scan(add, like, jax.random.split(key, batches))
  return [x[anchors:] / jnp.maximum(count, 1)[anchors:, None] for x in layers]


def tabulate(vectors: dict[str, tuple[Array, Array]]) -> dict[str, Array]:
  """Precision and reciprocal rank of each, as they are and with each language's mean taken away."""
  found = {}
  for name, pair in vectors.items():
    for suffix, centered in (("", False), ("_centered", True)):
      aligned: Alignment = measure_alignment(*pair, centered=centered)
      found |= {f"{name}_precision{suffix}": aligned.precision, f"{name}_rank{suffix}": aligned.reciprocal_rank}
  return found


def draw_alignment(config: Config, vectors: Any, found: dict[str, float], path: Path) -> None:
  """Left, cosines of all pairs: bright on the diagonal where translations are found. Right, how many are, by layer."""
  from mlnotes.engine.plot import new_figure, save_figure

  best = max(vectors, key=lambda name: found[f"{name}_precision_centered"])
  unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (x - x.mean(0) for x in vectors[best])]
  figure, axes = new_figure(1, 2, width=10.0, height=4.4)
  shown = axes[0, 0].imshow(unit[0] @ unit[1].T, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="none")
  figure.colorbar(shown, ax=axes[0, 0], label="cosine")
  title = f"{best}: on the diagonal each word and its translation"
  axes[0, 0].set(xlabel="word of the second language", ylabel="word of the first", title=title)
  place, width = np.arange(len(vectors)), 0.38
  for shift, suffix, label in ((-0.5, "", "as they are"), (0.5, "_centered", "less each language's mean")):
    height = [100 * found[f"{name}_precision{suffix}"] for name in vectors]
    axes[0, 1].bar(place + shift * width, height, width, label=label)
  chance = 100 / len(unit[0])
  axes[0, 1].axhline(chance, color="C3", linestyle="--", linewidth=1, label=f"chance: {chance:.1f} %")
  axes[0, 1].set_xticks(place, list(vectors))
  shared = f", {config.count_anchors()} words shared" if config.count_anchors() else ""
  axes[0, 1].set(ylabel="words whose nearest is their translation (%)", ylim=(0, 132), yticks=range(0, 101, 20))
  axes[0, 1].set_title(f"{config.objective}, {config.words} words, width {config.width}{shared}")
  axes[0, 1].legend(frameon=False)
  save_figure(figure, path)


def main(config: Config) -> int:
  return train(make(config), make_feeds(config), config, best_metric="loss")


if __name__ == "__main__":
  run(main, Config)
