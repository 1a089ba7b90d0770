"""A mixture of experts in the feed-forward place of a small Transformer that predicts the next token of a text.

  python -m experiments.attention.experts                                # four experts, one for each token
  python -m experiments.attention.experts --balance=0                    # nothing holds their loads together
  python -m experiments.attention.experts --experts=8 --k=2 --form=mixtral --capacity_factor=1.25
  python -m experiments.attention.experts --experts=1                    # dense, as many active parameters

Shazeer et al. 2017, Fedus et al. 2022 (Switch), Zoph et al. 2022 (the z-loss). Places are told apart by rotary
positions. Writes experts.png: the load of each expert, and which characters it takes.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from mlnotes.attention import Mask, MixtureOfExperts, TokenModel, Transformer, route
from mlnotes.attention.experts import RouterForm
from mlnotes.data import Feeds, fixed_subset
from mlnotes.data.flags import TextConfig, load_data, make_feeds as make_data_feeds
from mlnotes.data.text_floors import ngram_floors
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import Experiment, masked_mean, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.nn.loss import cross_entropy
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, OptimizerName, make_optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TextConfig, OptimConfig, LoopConfig):
  """Defaults: Python's manual pages by characters, one seed in two minutes on two CPU cores."""

  UNIT: ClassVar[str] = "windows"
  fills_cores: ClassVar[bool] = False

  length: int = 64
  stride: int = 1
  batch_size: int = 16
  steps: int = 800
  learning_rate: float = 3e-3
  optimizer: OptimizerName = "adamw"
  schedule: ScheduleName = "warmup_cosine"
  warmup_steps: int = 100
  clip_norm: float = 1.0
  depth: int = field(2, "layers, each with experts of its own")
  width: int = field(64, "features of a token")
  heads: int = field(4, "heads, a divisor of --width into even numbers")
  experts: int = field(4, "experts of each layer")
  k: int = field(1, "experts that each token goes to")
  hidden: int = field(
    0, "hidden features of an expert; 0: 4 --width / --k, so that a token has as many as in a dense one"
  )
  form: RouterForm = field(
    "switch", "their weights: softmax of the k largest logits (mixtral), k largest of the softmax"
  )
  capacity_factor: float = field(
    0.0, "an expert takes this many times an even share, the rest is dropped; 0: all of it"
  )
  balance: float = field(0.1, "weight of the loss that is least where all loads are even, of each layer")
  z_loss: float = field(1e-3, "weight of the loss that keeps the router's logits small, of each layer")

  def __post_init__(self):
    super().__post_init__()
    for name in ("depth", "width", "heads", "experts"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("hidden", "capacity_factor", "balance", "z_loss"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
    even = self.width % self.heads == 0 and self.width // self.heads % 2 == 0
    require(even, "heads", self.heads, f"a divisor of --width={self.width} into even numbers of features")
    require(1 <= self.k <= self.experts, "k", self.k, f"1 to --experts={self.experts}")
    if self.k == 1 and self.experts > 1 and self.form == "mixtral":
      raise InputError("--k=1 with --form=mixtral gives weight 1 to any choice, from which no router learns: expected "
                       "--form=switch, or --k=2.")  # fmt: skip
    room = self.capacity_factor * self.k * self.length / self.experts
    fits = self.capacity_factor == 0 or room >= 1
    least = self.experts / (self.k * self.length)
    require(fits, "capacity_factor", self.capacity_factor, f"0, or {least:.3g} and more, a token of a window")

  def idle_flags(self):
    idle = super().idle_flags()
    if self.experts == 1:
      idle |= dict.fromkeys(("form", "balance", "z_loss"), "--experts=1 leaves nothing to route")
    return idle


# Of the training text a fixed subset of so many windows is judged.
_MOST_TRAIN = 2048


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  opt_state: optax.OptState
  hparams: dict[str, Float[Array, ""]]


class Model(NamedTuple):
  """Tokens (B, T) to the logits of what follows each, (B, T, V), and to those of the routers."""

  module: TokenModel
  params: Any

  def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
    return self.module.apply({"params": self.params}, tokens, Mask.of_self(causal=True))

  def routers(self, tokens: Int[Array, "B T"]) -> Float[Array, "N B T E"]:
    """The router's logits in each layer."""
    return _routers(self.module, self.params, tokens)

  def choices(self, tokens: Int[np.ndarray, "B T"], config: Config) -> Int[np.ndarray, "N S k"]:
    """The experts that all tokens, one after the other, go to in each layer, whether these have room or not."""
    found = []
    for start in range(0, len(tokens), config.batch_size):
      # The last batch is filled up with copies, so that there is one compilation.
      rows = np.minimum(np.arange(start, start + config.batch_size), len(tokens) - 1)
      logits = self.routers(jnp.asarray(tokens[rows]))
      flat = logits.reshape(-1, logits.shape[-1])
      found.append(route(flat, config.k, config.form).expert.reshape(len(logits), -1, config.k))
    return np.concatenate(found, 1)[:, : tokens.size]


@functools.partial(jax.jit, static_argnums=0)
def _routers(module, params, tokens):
  keep = {"capture_intermediates": lambda part, _: part.name == "router", "mutable": ["intermediates"]}
  _, found = module.apply({"params": params}, tokens, Mask.of_self(causal=True), **keep)
  logits = of_layers(found, "router")
  return logits.reshape(len(logits), *tokens.shape, -1)


def of_layers(found: Any, name: str) -> Float[Array, "N ..."]:
  """What the experts of each layer have sown under a name, in the order of the layers."""
  blocks = found["intermediates"]["transformer"]
  order = sorted(blocks, key=lambda block: int(block.removeprefix("block")))
  pick = lambda sown: sown["__call__"][0] if isinstance(sown, dict) else sown[0]
  return jnp.stack([pick(blocks[block]["feed_forward"][name]) for block in order])


def build_model(config: Config, vocab_size: int) -> TokenModel:
  dtype = jnp.dtype(config.precision)
  hidden = config.hidden or max(1, 4 * config.width // config.k)

  def make_experts(layer: int) -> MixtureOfExperts:
    factor = config.capacity_factor or None
    return MixtureOfExperts(config.experts, config.k, hidden, config.form, factor, dtype=dtype)

  transformer = Transformer(
    config.depth, config.heads, config.width, make_feed_forward=make_experts, rotary_base=10000.0, dtype=dtype
  )
  return TokenModel(vocab_size, config.length, transformer, "none", dtype)


def make_feeds(config: Config) -> Feeds:
  return make_data_feeds(load_data(config), config)


def make(config: Config) -> Experiment:
  corpus = load_data(config)
  module = build_model(config, corpus.vocab_size)
  optimizer = make_optimizer(config, config.steps)

  def init(key, batch) -> State:
    tokens = jnp.zeros((1, config.length), jnp.int32)
    params = module.init(stream_key(key, "init"), tokens, Mask.of_self(causal=True))["params"]
    hparams = {name: jnp.float32(getattr(config, name)) for name in ("balance", "z_loss")}
    return State(jnp.zeros([], jnp.int32), key, params, optimizer.init(params), hparams)

  def judge(params, tokens, mask):
    """(mean loss and accuracy of each window, what the experts have sown)."""
    logits, found = module.apply({"params": params}, tokens[:, :-1], mask, True, mutable=["intermediates"])
    right = jnp.argmax(logits, -1) == tokens[:, 1:]
    return jnp.mean(cross_entropy(logits, tokens[:, 1:]), 1), jnp.mean(right, 1), found

  def step(state: State, batch):
    def objective(params):
      losses, right, found = judge(params, batch["tokens"], Mask.of_self(causal=True))
      balance, z = (jnp.sum(of_layers(found, name)) for name in ("balance_loss", "z_loss"))
      loss = jnp.mean(losses)
      total = loss + state.hparams["balance"] * balance + state.hparams["z_loss"] * z
      metrics = {"balance_loss": balance / config.depth, "z_loss": z / config.depth}
      loads = of_layers(found, "loads")
      metrics["largest_load"] = config.experts * jnp.max(loads)
      if config.capacity_factor:
        choices = config.k * losses.size * config.length
        room = int(config.capacity_factor * choices / config.experts) / choices
        metrics["dropped"] = jnp.mean(jnp.sum(jnp.maximum(loads - room, 0), 1))
      return total, {"loss": loss, "accuracy": jnp.mean(right), **metrics}

    (_, metrics), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics |= {"grad_norm": optax.global_norm(grads)}
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

  trained = lambda state: Model(module, eval_params(state.opt_state, state.params))

  def evaluate(state: State, batch):
    # What fills up the last batch takes no room of the experts.
    lengths = jnp.where(batch["mask"] > 0, config.length, 0)
    losses, right, _ = judge(trained(state).params, batch["tokens"], Mask.of_self(causal=True, lengths=lengths))
    return {"loss": masked_mean(losses, batch["mask"]), "accuracy": masked_mean(right, batch["mask"])}

  def report(state: State, directory: Path) -> dict[str, float]:
    from experiments.attention._experts_report import draw_experts, measure_choices

    size = min(len(corpus.train), _MOST_TRAIN)
    splits = {"": np.arange(len(corpus.test)), "train_": fixed_subset(len(corpus.train), size)}
    figures = ngram_floors(corpus)
    for name, index in splits.items():
      tokens = (corpus.train if name else corpus.test).read(index)["tokens"][:, :-1]
      choices = trained(state).choices(tokens, config)
      figures |= {name + figure: value for figure, value in measure_choices(choices, config.experts).items()}
      if not name:
        words = [corpus.tokenizer.decode([i]) for i in range(corpus.vocab_size)]
        draw_experts(choices, [words[i] for i in tokens.reshape(-1)], config.experts, directory / "experts.png")
    return figures

  return Experiment(init, step, evaluate, report, model=trained)


def main(config: Config) -> int:
  return train(make(config), make_feeds(config), config)


if __name__ == "__main__":
  run(main, Config)
