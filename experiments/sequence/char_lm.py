"""A language model of characters by recurrent cells, their parallel forms, or a Transformer, on the text of --dataset.

  python -m experiments.sequence.char_lm                                   # minGRU on Python's manual pages
  python -m experiments.sequence.char_lm --cell=lstm --form=stack --carry  # truncated back-propagation through time
  python -m experiments.sequence.char_lm --model=transformer
  python -m experiments.sequence.char_lm --dataset=FOLDER/names.txt --documents=line --length=32

Windows are drawn at random and read from a state of zeros; with --carry they follow each other, and each begins where
the one before has left the state, without a gradient, and anew where a document begins. Writes sample.txt and text.png:
how well each character of a test passage was foreseen.
"""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from experiments.sequence._cells import CELL_FLAGS, CellConfig, build_cell, build_stack
from mlnotes.attention import Mask, TokenModel, Transformer
from mlnotes.data import Corpus, Feeds, ResidentFeed
from mlnotes.data.flags import TextConfig, load_data, make_feeds as make_data_feeds
from mlnotes.data.text_floors import ngram_floors, witten_bell_floors
from mlnotes.data.tokenizer import UNKNOWN, Tokenizer
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import Experiment, masked_mean, root_key, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.nn.dropout import Dropout
from mlnotes.nn.loss import cross_entropy
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, OptimizerName, make_optimizer
from mlnotes.sequence import CELLS, RecurrentBlocks

# Tokens of the test text that are read in one go by the report, and those of it that are drawn.
_AT_ONCE = 1024
_SHOWN = 480
_SAMPLED = 600
_SAMPLE_SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(CellConfig, TextConfig, OptimConfig, LoopConfig):
  """Defaults: Python's manual pages by characters, three minutes on two CPU cores."""

  UNIT: ClassVar[str] = "windows"
  fills_cores: ClassVar[bool] = False

  model: Literal["recurrent", "transformer"] = field("recurrent", "recurrent layers of --cell, or attention")
  cell: Literal[tuple(CELLS)] = "mingru"
  depth: int = 3
  width: int = 128
  form: Literal["blocks", "stack"] = field(
    "blocks", "layers in a Transformer's residual steps and pre-norms, or one on top of the other"
  )
  state: float = field(1.5, "of --form=blocks: units of a recurrent layer, as a multiple of --width")
  expansion: float = field(4.0, "of --form=blocks: hidden features behind each recurrent layer, likewise; 0: none")
  heads: int = field(4, "of --model=transformer: heads, a divisor of --width into even numbers")
  carry: bool = field(False, "windows follow each other and pass the state on; else each begins with zeros")

  length: int = 64
  stride: int = 1
  batch_size: int = 12
  steps: int = 2000
  learning_rate: float = 3e-3
  optimizer: OptimizerName = "adamw"
  weight_decay: float = 0.1
  schedule: ScheduleName = "warmup_cosine"
  warmup_steps: int = 100
  clip_norm: float = 1.0

  def __post_init__(self):
    require(0 < self.state < float("inf"), "state", self.state, "a number above 0")
    super().__post_init__()
    hidden = self.expansion == 0 or self.expansion * self.width >= 1
    require(hidden, "expansion", self.expansion, f"0, or a hidden feature and more of --width={self.width}")
    if self.bidirectional:
      raise InputError("--bidirectional sees what is to be foretold: expected --nobidirectional.")
    few = not self.carry or self.steps * self.length < 2**30
    require(few, "steps", self.steps, f"less than 2^30 / --length={self.length} with --carry")
    if self.model == "transformer":
      even = self.heads >= 1 and self.width % self.heads == 0 and self.width // self.heads % 2 == 0
      require(even, "heads", self.heads, f"a divisor of --width={self.width} into even numbers")
      if self.carry:
        raise InputError("--carry passes a state on, which --model=transformer does not have.")

  @property
  def units(self) -> int:
    return max(1, round(self.state * self.width)) if self.form == "blocks" else self.width

  @property
  def parts_batches(self) -> bool:
    return not self.carry  # a state that is carried is whole on each device

  def idle_flags(self):
    idle = super().idle_flags()
    if self.model == "transformer":
      names = ("cell", *CELL_FLAGS, "form", "state", "expansion", "residual", "shared_dropout")
      idle |= dict.fromkeys(names, "--model=transformer does not use it")
    else:
      idle["heads"] = "--model=recurrent has none"
      unused = ("residual", "shared_dropout") if self.form == "blocks" else ("state", "expansion")
      idle |= dict.fromkeys(unused, f"--form={self.form} does not use it")
    if self.carry:
      idle |= {"stride": "--carry has windows side by side", "data_placement": "--carry holds the text on the device"}
    return idle


class RecurrentLM(nn.Module):
  """Logits of what follows each token, and the state behind the last one."""

  vocabulary: int
  width: int
  body: nn.Module
  dropout: float = 0.0
  dtype: Any = None

  @nn.compact
  def __call__(
    self, tokens: Int[Array, "B T"], starts: Bool[Array, "B T"] | None = None, carry: Any = None, train: bool = False
  ) -> tuple[Float[Array, "B T V"], Any]:
    x = nn.Embed(self.vocabulary, self.width, dtype=self.dtype, name="embed")(tokens)
    y, carry = self.body(x, carry=carry, train=train, starts=starts)
    y = Dropout(self.dropout, name="dropout")(y, deterministic=not train)
    return nn.Dense(self.vocabulary, dtype=self.dtype, name="head")(y).astype(jnp.float32), carry


class CausalTransformer(nn.Module):
  """The Transformer with rotary positions under the same interface; its state is a cache, None where there is none."""

  model: TokenModel

  def __call__(self, tokens: Int[Array, "B T"], starts: Any = None, carry: Any = None, train: bool = False) -> Any:
    # Token by token, over no more of them than in training.
    mask = Mask.of_self(causal=True) if carry is None else Mask(causal=True, window=self.model.length)
    found = self.model(tokens, mask, train, carry)
    return (found, None) if carry is None else found


def build_model(config: Config, vocab_size: int) -> RecurrentLM | CausalTransformer:
  dtype = jnp.dtype(config.precision)
  if config.model == "transformer":
    body = Transformer(
      config.depth, config.heads, config.width, rotary_base=10000.0, dropout=config.dropout, dtype=dtype
    )
    return CausalTransformer(TokenModel(vocab_size, config.length, body, "none", dtype))
  if config.form == "stack":
    body = build_stack(config)
  else:
    body = RecurrentBlocks(build_cell(config), config.depth, config.expansion, config.dropout, dtype)
  return RecurrentLM(vocab_size, config.width, body, config.dropout if config.form == "stack" else 0.0, dtype)


def make_stream_feed(corpus: Corpus, length: int, batch_size: int) -> ResidentFeed:
  """Windows that follow each other: `batch_size` places in the text, evenly spread, each `length` further every update.

  The text is a ring, and a run's places are turned by its key. {"tokens": (B, length + 1), "starts": (B, length)},
  True where a document begins: behind `<end>`, and where the ring is closed.
  """
  tokens = corpus.train.arrays["tokens"]
  size = len(tokens)
  # A place is a sum of three numbers below `size`, in 32 bits.
  if size >= 2**29:
    raise InputError(f"--carry: found {size} tokens of training text, expected fewer than 2^29.")
  if batch_size * length > size:
    most = f"expected at most {size // length}: {size} tokens have no more windows of --length={length} side by side."
    raise InputError(f"--carry: found --batch_size={batch_size}, {most}")
  end = corpus.end

  def draw(arrays, key, step):
    turn = jax.random.randint(stream_key(key, "turn"), (), 0, size)
    spread = jnp.asarray(np.arange(batch_size) * size // batch_size, jnp.int32)
    begin = (spread + turn + step * length % size) % size
    place = (begin[:, None] + jnp.arange(length + 1)[None]) % size
    found = arrays["tokens"][place].astype(jnp.int32)
    before = arrays["tokens"][(begin - 1) % size].astype(jnp.int32)
    previous = jnp.concatenate([before[:, None], found[:, :-2]], 1)
    return {"tokens": found, "starts": (previous == end) | (place[:, :-1] == 0)}

  return ResidentFeed({"tokens": jnp.asarray(tokens)}, draw)


class State(NamedTuple):
  """`carry` is the state behind the last window of each place in the text, () without --carry.

  A run that starts from another reads elsewhere in the text, and begins with a state of its own.
  """

  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  opt_state: optax.OptState
  carry: Any


class Model(NamedTuple):
  """Tokens (B, T) to the logits of what follows each, (B, T, V)."""

  module: Any
  params: Any

  def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
    return self.module.apply({"params": self.params}, tokens)[0]

  def read(
    self, tokens: Int[Array, "B T"], starts: Bool[Array, "B T"] | None = None, carry: Any = None
  ) -> tuple[Float[Array, "B T V"], Any]:
    """Also takes and gives the state."""
    return self.module.apply({"params": self.params}, tokens, starts, carry)


def make_feeds(config: Config) -> Feeds:
  corpus = load_data(config)
  feeds = make_data_feeds(corpus, config)
  return feeds._replace(train=make_stream_feed(corpus, config.length, config.batch_size)) if config.carry else feeds


def make(config: Config) -> Experiment:
  corpus = load_data(config)
  module = build_model(config, corpus.vocab_size)
  optimizer = make_optimizer(config, config.steps)

  def init(key, batch) -> State:
    tokens = jnp.zeros((config.batch_size, 1), jnp.int32)
    (_, carry), variables = module.init_with_output(stream_key(key, "init"), tokens)
    carry = jax.tree.map(jnp.zeros_like, carry) if config.carry else ()
    params = variables["params"]
    return State(jnp.zeros([], jnp.int32), key, params, optimizer.init(params), carry)

  def step(state: State, batch):
    rngs = {"dropout": stream_key(state.key, "dropout", state.step)}

    def objective(params):
      given = (batch["starts"], jax.lax.stop_gradient(state.carry)) if config.carry else (None, None)
      logits, carry = module.apply({"params": params}, batch["tokens"][:, :-1], *given, True, rngs=rngs)
      right = jnp.argmax(logits, -1) == batch["tokens"][:, 1:]
      loss = jnp.mean(cross_entropy(logits, batch["tokens"][:, 1:]))
      return loss, (jnp.mean(right), carry if config.carry else ())

    (loss, (accuracy, carry)), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": loss, "accuracy": accuracy, "grad_norm": optax.global_norm(grads)}
    return State(state.step + 1, state.key, params, opt_state, carry), metrics

  def trained(state: State) -> Model:
    return Model(module, eval_params(state.opt_state, state.params))

  def evaluate(state: State, batch):
    logits = trained(state)(batch["tokens"][:, :-1])
    losses = cross_entropy(logits, batch["tokens"][:, 1:])
    right = jnp.argmax(logits, -1) == batch["tokens"][:, 1:]
    of_row = {"loss": jnp.mean(losses, 1), "accuracy": jnp.mean(right.astype(jnp.float32), 1)}
    return {name: masked_mean(value, batch["mask"]) for name, value in of_row.items()}

  def report(state: State, directory: Path) -> dict[str, float]:
    model = trained(state)
    sampled = sample(config, corpus, model)
    (directory / "sample.txt").write_text(sampled + "\n", encoding="utf-8")
    figures = ngram_floors(corpus) | witten_bell_floors(corpus)
    losses = stream_losses(config, corpus, model)
    if config.model != "transformer":
      figures["stream_loss"] = float(losses.mean())
    draw_text(
      corpus,
      losses,
      sampled,
      f"{config.cell if config.model == 'recurrent' else config.model}, {corpus.name}",
      directory / "text.png",
    )
    return figures

  return Experiment(init, step, evaluate, report, model=trained)


def stream_losses(config: Config, corpus: Corpus, model: Model) -> Float[np.ndarray, " T"]:
  """Nats of each token of the test text behind its first one, the state passed on from the start of each document.

  Of the Transformer, which has none, those of windows of --length side by side, the rest at the end left out.
  """
  tokens = np.asarray(corpus.test.arrays["tokens"], np.int32)
  if config.model == "transformer":
    windows = corpus.test.read(np.arange(len(corpus.test)))["tokens"]
    each = lambda window: cross_entropy(model(window[None, :-1]), window[None, 1:])[0]
    return np.array(jax.lax.map(each, jnp.asarray(windows), batch_size=min(len(windows), 64))).reshape(-1)
  starts = np.concatenate([[True], tokens[:-2] == corpus.end])

  @jax.jit
  def read(params, carry, tokens, target, starts):
    logits, carry = model._replace(params=params).read(tokens, starts, carry)
    return cross_entropy(logits, target)[0], carry

  found, carry = [], None
  for begin in range(0, len(tokens) - 1, _AT_ONCE):
    part = slice(begin, min(begin + _AT_ONCE, len(tokens) - 1))
    losses, carry = read(model.params, carry, tokens[None, :-1][:, part], tokens[None, 1:][:, part], starts[None, part])
    found.append(np.array(losses))
  return np.concatenate(found)


def sample(config: Config, corpus: Corpus, model: Model, count: int = _SAMPLED) -> str:
  """A text of `count` tokens drawn one after the other, from the start of a document; a new line for each <end>.

  As in training the state begins anew at the token behind <end>, whose own state foretells that one. What is <unknown>
  is in no training text and never drawn.
  """
  end, unknown = corpus.end, corpus.tokenizer.special.get(UNKNOWN)
  first = end if end >= 0 else int(corpus.test.arrays["tokens"][0])
  tokens = jnp.full((1, 1), first, jnp.int32)
  if config.model == "transformer":
    carry = model.module.model.transformer.make_cache(1, count)
  else:
    carry = jax.tree.map(jnp.zeros_like, jax.eval_shape(model.read, tokens)[1])

  def next_token(given, key):
    tokens, before, carry = given
    starts = None if config.model == "transformer" else before == end
    logits, carry = model.read(tokens, starts, carry)
    logits = logits[:, -1] if unknown is None else logits[:, -1].at[:, unknown].set(-jnp.inf)
    following = jax.random.categorical(key, logits)[:, None].astype(jnp.int32)
    return (following, tokens, carry), following[0, 0]

  keys = jax.random.split(stream_key(root_key(_SAMPLE_SEED), "sample"), count)
  found = np.array(jax.jit(lambda given: jax.lax.scan(next_token, given, keys)[1])((tokens, tokens, carry)))
  parts = np.split(found, np.flatnonzero(found == end))
  return "\n".join(corpus.tokenizer.decode(part[part != end]) for part in parts)


def draw_text(corpus: Corpus, losses: Float[np.ndarray, " T"], sampled: str, title: str, path: Path) -> None:
  """A test passage, each token the darker the less it was foreseen; below, what the model writes.

  A token is as wide as its text: one of several characters has so many cells of its colour.
  """
  from mlnotes.engine.plot import as_text, new_figure, save_figure

  figure, axes = new_figure(2, 1, width=9.0, height=6.0)
  columns = 80
  pieces = token_texts(corpus.tokenizer, np.asarray(corpus.test.arrays["tokens"][1 : _SHOWN + 1]))
  cells = [(letter, loss) for text, loss in zip(pieces, losses) for letter in text][:_SHOWN]
  sheet = np.full(-(-len(cells) // columns) * columns, np.nan)
  sheet[: len(cells)] = [loss for _, loss in cells]
  image = axes[0, 0].imshow(sheet.reshape(-1, columns), cmap="Reds", vmin=0, vmax=6, aspect="auto")
  for i, (letter, _) in enumerate(cells):
    row, column = divmod(i, columns)
    axes[0, 0].text(column, row, as_text(letter), fontsize=7, family="monospace", ha="center", va="center")
  figure.colorbar(image, ax=axes[0, 0], label="nats a token", fraction=0.03)
  axes[0, 0].set_title(f"{title}: a test passage, the redder the less foreseen; below, sampled", fontsize=10)
  written = "".join(letter if letter == "\n" else _visible(letter) for letter in sampled)
  lines = [line[i : i + 110] for line in written.split("\n") for i in range(0, max(len(line), 1), 110)][:12]
  axes[1, 0].text(0, 1, as_text("\n".join(lines)), fontsize=7, family="monospace", va="top", parse_math=False)
  for axis in axes[:, 0]:
    axis.axis("off")
  save_figure(figure, path)


def token_texts(tokenizer: Tokenizer, tokens: Int[np.ndarray, " T"]) -> list[str]:
  """What each token adds to the text of the one before it, also the space between words; ¶ for a new line or an end."""
  found, before = [], None
  for token in tokens:
    text = tokenizer.decode([token])
    if before is not None and text:
      first, both = tokenizer.decode([before]), tokenizer.decode([before, token])
      text = both[len(first) :] if both.startswith(first) and len(both) > len(first) else text
    found.append("".join(map(_visible, text)) or "¶")
    before = token
  return found


def _visible(letter: str) -> str:
  return {"\n": "¶", "\t": " "}.get(letter, letter if letter.isprintable() else "\ufffd")


def main(config: Config) -> int:
  return train(make(config), make_feeds(config), config)


if __name__ == "__main__":
  run(main, Config)
