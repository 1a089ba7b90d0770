"""What the chapter's experiments on tokens share: tasks, the model of the flags, its training."""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from mlnotes.attention import KINDS, Mask, Sizes, Task, TokenModel, Transformer
from mlnotes.attention.tasks import NOT_ASKED
from mlnotes.attention.transformer import Order
from mlnotes.data import Feeds, make_drawn_eval, make_drawn_feed
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import Experiment, Mean, root_key, stream_key
from mlnotes.engine.flags import field
from mlnotes.engine.loop import LoopConfig
from mlnotes.nn.loss import cross_entropy
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, OptimizerName, make_optimizer

# Of the test sequences: the same in every run. One sequence in four is for tests alone, by a hash of its tokens.
_TEST_SEED = 0
_PARTS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenConfig(OptimConfig, LoopConfig):
  """The flags of a Transformer over tokens, and of its training."""

  UNIT: ClassVar[str] = "sequences"
  fills_cores: ClassVar[bool] = False

  learning_rate: float = 2e-3
  optimizer: OptimizerName = "adamw"
  weight_decay: float = 0.01
  schedule: ScheduleName = "warmup_cosine"
  warmup_steps: int = 100
  clip_norm: float = 1.0
  steps: int = 2000
  log_every: int = 100

  batch_size: int = field(64, "sequences per update")
  test_sequences: int = field(1024, "sequences of the evaluation, none of them ever trained on")
  kind: Literal[tuple(KINDS)] = field("dense", "kind of attention")
  window: int = field(
    16,
    "keys that local and global attention see; block of blockwise and sinkhorn, chunk of reformer, cluster of routing",
  )
  rank: int = field(32, "mixed keys of linformer, features of performer")
  rounds: int = field(2, "hashes of reformer")
  depth: int = field(2, "layers")
  width: int = field(64, "features of a token")
  heads: int = field(2, "heads of queries")
  kv_heads: int = field(0, "heads of keys and values, a divisor of --heads; 0: as many")
  position: Literal["auto", "learned", "sinusoidal", "rotary", "alibi", "none"] = field(
    "auto", "how places are told apart; auto: alibi where no later token is seen and --kind takes a bias, else learned"
  )
  order: Order = field("pre", "where the norms stand, or weights of the residual steps in their place")
  dropout: float = field(0.0, "of what each step adds, in [0, 1)")

  def __post_init__(self):
    super().__post_init__()
    for name in ("batch_size", "test_sequences", "window", "rank", "rounds", "depth", "width", "heads"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.width % self.heads == 0, "heads", self.heads, f"a divisor of --width={self.width}")
    fits = self.kv_heads >= 0 and self.heads % (self.kv_heads or 1) == 0
    require(fits, "kv_heads", self.kv_heads, f"0 or a divisor of --heads={self.heads}")
    require(0 <= self.dropout < 1, "dropout", self.dropout, "a number in [0, 1)")
    if self.position == "rotary" and self.width // self.heads % 2:
      raise InputError(f"--position=rotary takes features in pairs: a head has {self.width // self.heads} of them.")
    if self.position == "sinusoidal" and self.width % 2:
      raise InputError(f"--position=sinusoidal takes features in pairs: --width is {self.width}.")
    kind = KINDS[self.kind]
    if self.position == "alibi" and not kind.biased:
      raise InputError(f"--position=alibi is a bias of scores, which --kind={self.kind} does not have.")
    if self.kind == "strided" and self.heads < 2:
      raise InputError("--kind=strided needs --heads of 2 or more, as these alternate between two patterns.")
    if kind.shared and self.kv_heads not in (0, self.heads):
      raise InputError(f"--kind={self.kind} has its queries as keys: --kv_heads={self.kv_heads} is not possible.")

  def idle_flags(self):
    idle = [name for name in ("window", "rank", "rounds") if name not in KINDS[self.kind].uses]
    return super().idle_flags() | dict.fromkeys(idle, f"--kind={self.kind} does not use it")


class State(NamedTuple):
  """`extra` are variables that are no parameters: the centroids of routing."""

  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  extra: chex.ArrayTree
  opt_state: optax.OptState


class Model(NamedTuple):
  """Tokens (B, T) to logits (B, T, V), and to the weights of each layer, (B, N, T, S)."""

  module: nn.Module
  variables: Any
  mask: Mask

  def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
    return self.module.apply(self.variables, tokens, self.mask)

  def weights(self, tokens: Int[Array, "B T"]) -> list[Float[Array, "B N T S"]]:
    found = self.module.apply(self.variables, tokens, self.mask, mutable=["weights"])[1]["weights"]
    blocks = found["transformer"]
    return [blocks[name]["attention"]["weights"][0] for name in sorted(blocks, key=lambda name: int(name[5:]))]


def build_model(config: TokenConfig, task: Task) -> TokenModel:
  """The model of the flags. Raises InputError for what does not fit the task."""
  kind = KINDS[config.kind]
  if task.causal and not kind.causal:
    raise InputError(f"--kind={config.kind} has no causal form, which --task={config.task} asks for.")
  sizes = Sizes(task.length, config.window, config.rank, config.rounds)
  transformer = Transformer(
    config.depth, config.heads, config.width, config.kv_heads or None, make_kind=lambda layer: kind.make(sizes),
    order=config.order, shared_query_key=kind.shared, dropout=config.dropout, dtype=jnp.dtype(config.precision),
    rotary_base=10000.0 if config.position == "rotary" else 0.0,
  )  # fmt: skip
  position = "none" if config.position == "rotary" else config.position
  if position == "auto":
    position = "alibi" if task.causal and kind.biased else "learned"
  return TokenModel(task.vocabulary, task.length, transformer, position, jnp.dtype(config.precision))


def in_test(tokens: Int[Array, " L"]) -> Array:
  """Whether a sequence is for tests: a fixed quarter of them, by a hash."""
  mixed = jnp.uint32(2166136261)
  for token in tokens:
    mixed = (mixed ^ token.astype(jnp.uint32)) * jnp.uint32(16777619)
  mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(2246822519)
  return (mixed >> 16) % _PARTS == 0


def draw_of_part(task: Task, test: bool, tries: int):
  """An example of the test part or of the other: the first of `tries` draws that is; weight 0 where none is."""

  def draw(key: Key[Array, ""], arrays: Any) -> dict[str, Array]:
    tokens, target = jax.vmap(task.draw)(jax.random.split(key, tries))
    fits = jax.vmap(in_test)(tokens) == test
    first = jnp.argmax(fits)
    return {"tokens": tokens[first], "target": target[first], "weight": jnp.any(fits).astype(jnp.float32)}

  return draw


def make_token_feeds(config: TokenConfig, task: Task) -> Feeds:
  train = make_drawn_feed(draw_of_part(task, False, 3), (), config.batch_size)
  test = make_drawn_eval(draw_of_part(task, True, 16), (), _TEST_SEED, config.test_sequences, config.batch_size)
  return Feeds(train, test, split="test")


def make_token_experiment(config: TokenConfig, task: Task, model: TokenModel, report: Any) -> Experiment:
  """Trains `model` on what the task asks. `report(model, directory)` gets the trained `Model`."""
  optimizer = make_optimizer(config, config.steps)
  mask = Mask.of_self(causal=task.causal)
  streams = ("dropout", "features", "hash", "sorting", "attention")
  hard = config.kind == "hard"

  def init(key, batch) -> State:
    tokens = jnp.zeros((1, task.length), jnp.int32)
    variables = dict(model.init(stream_key(key, "init"), tokens, mask))
    params = variables.pop("params")
    return State(jnp.zeros([], jnp.int32), key, params, {k: variables[k] for k in ("centroids",) if k in variables},
                 optimizer.init(params))  # fmt: skip

  def losses(logits, batch):
    """(mean loss of what a sequence asks, share of it that is right), both (B,)."""
    asked = batch["target"] != NOT_ASKED
    count = jnp.maximum(jnp.sum(asked, 1), 1)
    each = cross_entropy(logits, jnp.maximum(batch["target"], 0))
    right = (jnp.argmax(logits, -1) == batch["target"]) & asked
    return jnp.sum(jnp.where(asked, each, 0), 1) / count, jnp.sum(right, 1) / count

  def step(state: State, batch):
    rngs = {name: stream_key(state.key, name, state.step) for name in streams}
    total = jnp.maximum(jnp.sum(batch["weight"]), 1)

    def mean_loss(params):
      variables = {"params": params, **state.extra}
      logits, found = model.apply(
        variables, batch["tokens"], mask, True, rngs=rngs, mutable=["centroids", "intermediates"]
      )
      loss, right = losses(logits, batch)
      mean = jnp.sum(loss * batch["weight"]) / total
      surrogate = mean + (_reinforce(loss, batch["weight"], found) if hard else 0.0)
      return surrogate, (mean, jnp.sum(right * batch["weight"]) / total, {k: found[k] for k in state.extra})

    (_, (loss, accuracy, extra)), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": loss, "accuracy": accuracy, "grad_norm": optax.global_norm(grads)}
    return State(state.step + 1, state.key, params, extra, opt_state), metrics

  def trained(state: State) -> Model:
    return Model(model, {"params": eval_params(state.opt_state, state.params), **state.extra}, mask)

  def evaluate(state: State, batch) -> dict[str, Mean]:
    loss, right = losses(trained(state)(batch["tokens"]), batch)
    weight = batch["weight"] * batch["mask"]
    mean = lambda x: Mean(jnp.sum(x * weight), jnp.sum(weight))
    return {"loss": mean(loss), "accuracy": mean(right), "solved": mean((right > 1 - 1e-6).astype(jnp.float32))}

  write = lambda state, directory: report(trained(state), directory)
  return Experiment(init, step, evaluate, write, model=trained)


def _reinforce(loss: Float[Array, " B"], weight: Float[Array, " B"], found: Any) -> Float[Array, ""]:
  """What has REINFORCE's gradient of the mean loss by the places that were drawn; the baseline is the others' mean."""
  paths = jax.tree_util.tree_leaves_with_path(found["intermediates"])
  drawn = [x for path, x in paths if "log_probability" in jax.tree_util.keystr(path)]
  log_probability = sum(jnp.sum(x, (1, 2)) for x in drawn)
  count = jnp.sum(weight)
  others = (jnp.sum(loss * weight) - loss) / jnp.maximum(count - 1, 1)
  advantage = jax.lax.stop_gradient(loss - others)
  return jnp.sum(advantage * log_probability * weight) / jnp.maximum(count, 1)


def constant_floor(feeds: Feeds) -> float:
  """Accuracy on the test sequences of the best answer that looks at nothing but the place."""
  draw = jax.jit(lambda i: feeds.evaluate.draw(feeds.evaluate.arrays, i))
  batches = [draw(i) for i in range(feeds.evaluate.num_batches)]
  keep = jnp.concatenate([batch["weight"] * batch["mask"] for batch in batches]) > 0
  target = jnp.concatenate([batch["target"] for batch in batches])[keep]
  right = asked = 0
  for place in target.T:
    there = place[place != NOT_ASKED]
    asked += there.size
    right += int(jnp.max(jnp.bincount(there))) if there.size else 0
  return right / max(asked, 1)


def sample_tokens(task: Task, count: int, seed: int = 1) -> tuple[Array, Array]:
  """(tokens, targets) of some sequences of the test part, for pictures."""
  keys = jax.random.split(stream_key(root_key(seed), "pictures"), count)
  drawn = jax.vmap(lambda key: draw_of_part(task, True, 16)(key, ()))(keys)
  return drawn["tokens"], drawn["target"]
