"""One sequence from another: attention, Transformer, Mask-Predict; copying, coverage, guided attention, beam search.

  python -m experiments.sequence.translation                                   # dates in words to numbers
  python -m experiments.sequence.translation --model=transformer
  python -m experiments.sequence.translation --model=mask_predict              # all tokens at once, four times
  python -m experiments.sequence.translation --dataset=brackets --copy         # sentences to their trees
  python -m experiments.sequence.translation --guided=antidiagonal             # dates turn around: year, month, day
  python -m experiments.sequence.translation --train_on=self_critical          # on BLEU, from a trained model
  python -m experiments.sequence.translation --dataset=train.en,train.de --test_dataset=val.en,val.de --tokenizer=bpe

Writes attention.png, what each token looks at, translations.txt, the worst first, and table.md, beam widths beside
length penalties.
"""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from experiments.sequence import _seq2seq
from mlnotes.data import Feeds, Pairs
from mlnotes.data.flags import PairConfig, load_data, make_feeds as make_data_feeds
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import Experiment, Mean, example_keys, masked_mean, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, default_workdir, train
from mlnotes.engine.stage import find_stage
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, OptimizerName, make_optimizer
from mlnotes.sequence import (
  CELLS,
  Decoded,
  beam_search,
  coverage_loss,
  draw_inputs,
  draw_masked,
  greedy,
  guided_attention_loss,
  inverse_sigmoid_decay,
  mask_predict,
  minimum_risk_loss,
  sample,
  self_critical_loss,
)
from mlnotes.sequence.losses import real_places
from mlnotes.sequence.seq2seq import Attention

METRIC_STAGES = ("self_critical", "minimum_risk")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(PairConfig, OptimConfig, LoopConfig):
  """Defaults: dates by a GRU with additive attention, every one of 400 right."""

  UNIT: ClassVar[str] = "pairs"
  fills_cores: ClassVar[bool] = False

  batch_size: int = 64
  steps: int = 400
  learning_rate: float = 5e-3
  optimizer: OptimizerName = "adamw"
  schedule: ScheduleName = "warmup_cosine"
  warmup_steps: int = 100
  clip_norm: float = 1.0
  eval_every: int = 100

  model: Literal["rnn", "transformer", "mask_predict"] = field("rnn", "network; mask_predict: all tokens at once")
  cell: Literal[tuple(CELLS)] = field("gru", "of --model=rnn")
  attention: Attention = field("additive", "of --model=rnn; dot: with input feeding; none: the final state alone")
  width: int = field(64, "features of a token and of a cell")
  depth: int = field(1, "layers of encoder and of decoder")
  heads: int = field(4, "heads of a Transformer, a divisor of --width")
  dropout: float = field(0.0, "of embeddings and between layers, in [0, 1)")
  label_smoothing: float = field(0.0, "share of all tokens in what is learned, in [0, 1]")
  copy: bool = field(False, "a gate between the vocabulary and tokens of the source by their attention")
  coverage: float = field(0.0, "weight of the loss for looking twice; additive scores then see where they looked")
  guided: Literal["none", "diagonal", "antidiagonal"] = field("none", "a loss for attention far from this line")
  guided_weight: float = field(1.0, "its weight")
  guided_width: float = field(0.2, "g: how far from the line is far, as a share of the sequence")
  scheduled_sampling: float = field(
    0.0, "k of k / (k + exp(update / k)), the chance of reading the true token in training; 0: always"
  )
  train_on: Literal["likelihood", "self_critical", "minimum_risk"] = field(
    "likelihood", "what is raised; the others are expectations of --metric, from a model trained on the likelihood"
  )
  metric: Literal["bleu", "exact"] = field("bleu", "reward of --train_on other than likelihood")
  samples: int = field(4, "sequences that minimum_risk draws for each source, the reference beside them")
  sharpness: float = field(0.5, "of minimum_risk's distribution over these, > 0")
  beams: tuple[int, ...] = field((1, 4), "widths of the report's beam search; the last one writes", free="report")
  length_penalties: tuple[float, ...] = field((0.6,), "alphas of the report's beam search", free="report")
  coverage_penalty: float = field(0.0, "beta of the report's beam search", free="report")
  iterations: int = field(4, "rounds of mask_predict", free="report")
  length_beam: int = field(3, "lengths that mask_predict tries", free="report")
  report_examples: int = field(1000, "test pairs that the report decodes, at most", free="report")

  def __post_init__(self):
    super().__post_init__()
    for name in ("width", "depth", "heads", "samples", "iterations", "length_beam", "report_examples"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("coverage", "guided_weight", "coverage_penalty"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
    require(0 <= self.dropout < 1, "dropout", self.dropout, "a number in [0, 1)")
    require(0 <= self.label_smoothing <= 1, "label_smoothing", self.label_smoothing, "a number in [0, 1]")
    require(self.guided_width > 0, "guided_width", self.guided_width, "a number above 0")
    require(self.sharpness > 0, "sharpness", self.sharpness, "a number above 0")
    k = self.scheduled_sampling
    require(k == 0 or k >= 1, "scheduled_sampling", k, "0, or 1 and more")
    require(len(self.beams) > 0 and min(self.beams, default=0) >= 1, "beams", self.beams, "numbers of 1 or more")
    require(len(self.length_penalties) > 0, "length_penalties", self.length_penalties, "one or more")
    if self.model == "rnn":
      _seq2seq.check_cell(self.cell, self.width)
    else:
      fits = self.width % self.heads == 0 and self.width % 2 == 0
      require(fits, "heads", self.heads, f"a divisor of --width={self.width}, which is even")
    blind = self.model == "mask_predict" or (self.model == "rnn" and self.attention == "none")
    said = f"--model={self.model}" + (" --attention=none" if self.model == "rnn" else "")
    for name, asked in (
      ("copy", self.copy),
      ("coverage", self.coverage > 0),
      ("guided", self.guided != "none"),
      ("coverage_penalty", self.coverage_penalty > 0),
    ):
      if asked and blind:
        raise InputError(f"--{name} is of attention to the source one token after the other: {said} has none.")
    if self.coverage and self.model == "rnn" and self.attention != "additive":
      raise InputError(f"--coverage is of additive scores: expected --attention=additive, not {self.attention}.")
    if self.model == "mask_predict":
      for name in ("train_on", "scheduled_sampling"):
        if getattr(self, name) not in ("likelihood", 0):
          raise InputError(f"--{name} is of decoders that go token by token: --model=mask_predict does not.")
    if self.train_on in METRIC_STAGES and self.scheduled_sampling:
      raise InputError(f"--scheduled_sampling is of --train_on=likelihood: {self.train_on} reads its own tokens.")

  @property
  def parts_batches(self) -> bool:
    return self.model != "rnn"  # whose steps are too small

  @classmethod
  def tuned(cls, **given: Any) -> "Config":
    """Trees are read by words; a Transformer takes two layers and more steps, a metric is raised in fewer and smaller
    ones."""
    defaults: dict[str, Any] = {"tokenizer": "words"} if given.get("dataset") == "brackets" else {}
    if given.get("model", "rnn") != "rnn":
      defaults |= dict(steps=1500, depth=2, learning_rate=2e-3)
    if given.get("train_on", "likelihood") in METRIC_STAGES:
      defaults |= dict(steps=200, learning_rate=2e-4, warmup_steps=20)
    return cls(**{**defaults, **given})

  def idle_flags(self):
    idle = super().idle_flags()
    of_model = {"rnn": ("cell", "attention"), "transformer": ("heads",), "mask_predict": ("heads",)}
    for name in {name for names in of_model.values() for name in names} - set(of_model[self.model]):
      idle[name] = f"--model={self.model} has none"
    if self.model == "rnn":
      idle["precision"] = "--model=rnn computes in float32"
    if self.model == "mask_predict":
      idle |= dict.fromkeys(("beams", "length_penalties"), "--model=mask_predict searches no beams")
    else:
      idle |= dict.fromkeys(("iterations", "length_beam"), f"--model={self.model} goes token by token")
    if self.guided == "none":
      idle |= dict.fromkeys(("guided_weight", "guided_width"), "--guided is none")
    if self.train_on == "likelihood":
      idle |= dict.fromkeys(("metric", "samples", "sharpness"), "--train_on=likelihood draws nothing")
    else:
      more = ("label_smoothing", "guided", "guided_weight", "guided_width")
      if self.start_from:  # else they are of the first stage
        more += ("dropout",) if self.model == "rnn" else ("dropout", "coverage")
      idle |= dict.fromkeys(more, f"--train_on={self.train_on} has its own loss")
      if self.train_on == "self_critical":
        idle |= dict.fromkeys(("samples", "sharpness"), "--train_on=self_critical draws one sequence")
    return idle


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  opt_state: optax.OptState
  hparams: dict[str, Float[Array, ""]]


def make_feeds(config: Config) -> Feeds:
  return make_data_feeds(load_data(config), config)


def make(config: Config) -> Experiment:
  pairs: Pairs = load_data(config)
  task = _seq2seq.describe(pairs)
  model = _seq2seq.build_model(config, task)
  optimizer = make_optimizer(config, config.steps)
  objective = make_objective(config, task, model)

  def init(key, batch) -> State:
    params = _seq2seq.init_params(model, stream_key(key, "init"), batch)
    hparams = {name: jnp.float32(getattr(config, name)) for name in ("label_smoothing", "coverage", "guided_weight")}
    return State(jnp.zeros([], jnp.int32), key, params, optimizer.init(params), hparams)

  def step(state: State, batch):
    (_, metrics), grads = jax.value_and_grad(objective, has_aux=True)(state.params, state, batch)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics |= {"grad_norm": optax.global_norm(grads)}
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

  trained = lambda state: {"params": eval_params(state.opt_state, state.params)}

  def evaluate(state: State, batch) -> dict[str, Mean]:
    variables = trained(state)
    losses, right, counts = _seq2seq.judge(model, variables, batch)
    per_token = lambda total: Mean(jnp.sum(total * batch["mask"]), jnp.sum(counts * batch["mask"]))
    found = decode(config, task, model, variables, batch)
    figures = {"loss": per_token(losses), "accuracy": per_token(right)}
    figures["exact"] = masked_mean(_seq2seq.is_exact(found, batch).astype(jnp.float32), batch["mask"])
    if config.model == "mask_predict":
      same = (found.length == batch["target_length"] - 1).astype(jnp.float32)
      figures["length_accuracy"] = masked_mean(same, batch["mask"])
    return figures

  def report(state: State, directory: Path) -> dict[str, float]:
    from experiments.sequence._translation_report import write_report

    settings = [(width, alpha) for alpha in config.length_penalties for width in config.beams]
    ways = {(0, 0.0): lambda variables, batch: decode(config, task, model, variables, batch)}
    if config.model != "mask_predict":
      ways |= {pair: _searcher(config, task, model, *pair) for pair in settings}
    return write_report(pairs, task, model, trained(state), ways, config, directory)

  return Experiment(init, step, evaluate, report, model=lambda state: _seq2seq.Translator(
    pairs.tokenizer, task, lambda batch: decode(config, task, model, trained(state), batch)))  # fmt: skip


def _searcher(config: Config, task: _seq2seq.Task, model: Any, width: int, alpha: float):
  def search(variables, batch) -> Decoded:
    decoder = model.make_decoder(
      variables, batch["source"], batch["source_length"], task.room, attention=config.coverage_penalty > 0
    )
    found = beam_search(
      decoder, task.start, task.end, task.pad, task.room, width, alpha, config.coverage_penalty
    )  # fmt: skip
    return jax.tree.map(lambda x: x[:, 0], found)

  return search


def decode(config: Config, task: _seq2seq.Task, model: Any, variables: Any, batch: Any) -> Decoded:
  """Greedily, or by as many rounds as the flags say."""
  source, lengths = batch["source"], batch["source_length"]
  if config.model == "mask_predict":
    lengths_tried = min(config.length_beam, model.longest)
    return mask_predict(model, variables, source, lengths, task.end, task.pad, config.iterations, lengths_tried)
  decoder = model.make_decoder(variables, source, lengths, task.room)
  return greedy(decoder, task.start, task.end, task.pad, task.room)


# -- what is learned ---------------------------------------------------------------------------------------------------


def make_objective(config: Config, task: _seq2seq.Task, model: Any):
  """(params, state, batch) -> (loss, metrics) of the flags."""
  if config.model == "mask_predict":
    return lambda params, state, batch: masked_objective(model, params, state, batch)
  if config.train_on == "self_critical":
    return lambda params, state, batch: self_critical_objective(config, task, model, params, state, batch)
  if config.train_on == "minimum_risk":
    return lambda params, state, batch: risk_objective(config, task, model, params, state, batch)
  return lambda params, state, batch: likelihood_objective(config, task, model, params, state, batch)


def _rngs(state: State, *names: str) -> dict[str, Key[Array, ""]]:
  return {name: stream_key(state.key, name, state.step) for name in ("dropout", *names)}


def likelihood_objective(config: Config, task: _seq2seq.Task, model: Any, params, state: State, batch):
  """Cross entropy by token, and the losses of attention that the flags ask for."""
  source, lengths = batch["source"], batch["source_length"]
  inputs, variables = batch["target"][:, :-1], {"params": params}
  looks = config.coverage > 0 or config.guided != "none"
  more: dict[str, Any] = dict(train=True, attention=looks, rngs=_rngs(state, "sampling"))
  metrics = {}
  if config.scheduled_sampling:
    own = 1 - inverse_sigmoid_decay(state.step, config.scheduled_sampling)
    metrics["own_tokens"] = own
    if config.model == "rnn":
      more["sampling"] = own
    else:
      first = model.score(jax.lax.stop_gradient(variables), source, lengths, inputs)
      inputs = draw_inputs(stream_key(state.key, "tokens", state.step), inputs, first.log_probability, own)
  scored = model.score(variables, source, lengths, inputs, **more)
  total, right, count = _seq2seq.sum_losses(task, scored.log_probability, batch, state.hparams["label_smoothing"])
  loss = jnp.sum(total) / jnp.sum(count)
  metrics |= {"loss": loss, "accuracy": jnp.sum(right) / jnp.sum(count)}
  if config.guided != "none":
    away = guided_attention_loss(
      scored.attention, lengths, batch["target_length"] - 1, config.guided_width, config.guided == "antidiagonal"
    )
    metrics["guided_loss"] = jnp.mean(away)
    loss = loss + state.hparams["guided_weight"] * metrics["guided_loss"]
  if config.coverage:
    twice = coverage_loss(scored.attention, lengths, batch["target_length"] - 1)
    metrics["coverage_loss"] = jnp.mean(twice)
    loss = loss + state.hparams["coverage"] * metrics["coverage_loss"]
  return loss, metrics


def masked_objective(model: Any, params, state: State, batch):
  """Cross entropy of what is masked, and of how many tokens there are. Ghazvininejad et al. 2019, sec. 3.1."""
  tokens, size = batch["target"][:, 1:-1], batch["target_length"] - 2
  masked = draw_masked(stream_key(state.key, "masks", state.step), size, tokens.shape[1])
  inputs = jnp.where(masked, model.mask_id, tokens)
  given = (batch["source"], batch["source_length"], inputs, size)
  scored = model.apply({"params": params}, *given, True, rngs=_rngs(state))
  smoothing = state.hparams["label_smoothing"]
  each = _seq2seq.token_losses(scored.log_probability, tokens, masked, smoothing, model.never)
  count = jnp.sum(masked)
  right = jnp.sum((jnp.argmax(scored.log_probability, -1) == tokens) & masked) / count
  loss = jnp.sum(each) / count
  of_length = -jnp.mean(jnp.take_along_axis(scored.length, size[:, None], 1))
  return loss + 0.1 * of_length, {"loss": loss, "length_loss": of_length, "accuracy": right}


def _room(batch) -> int:
  """Most tokens of a target of the batch, END counted: fewer than in the test where training pairs are shorter."""
  return batch["target"].shape[1] - 1


def _draw(task: _seq2seq.Task, model: Any, params, state: State, batch, copies: int = 1) -> Decoded:
  """`copies` sequences of each source, by the model as it is, none longer than the longest target of the batch."""
  widen = lambda x: jnp.repeat(x, copies, axis=0)
  source, lengths, room = widen(batch["source"]), widen(batch["source_length"]), _room(batch)
  decoder = model.make_decoder({"params": jax.lax.stop_gradient(params)}, source, lengths, room)
  keys = example_keys(stream_key(state.key, "draws", state.step), jnp.arange(len(source)))
  return sample(keys, decoder, task.start, task.end, task.pad, room)


def self_critical_objective(config: Config, task: _seq2seq.Task, model: Any, params, state: State, batch):
  drawn = _draw(task, model, params, state, batch)
  source, lengths, room = batch["source"], batch["source_length"], _room(batch)
  decoder = model.make_decoder({"params": jax.lax.stop_gradient(params)}, source, lengths, room)
  best = greedy(decoder, task.start, task.end, task.pad, room)
  reward, baseline = (_seq2seq.reward(config.metric, task, found, batch) for found in (drawn, best))
  each = _seq2seq.token_log_probabilities(task, model, params, batch, drawn.tokens)
  loss = jnp.mean(self_critical_loss(each, drawn.length, reward, baseline))
  return loss, {"loss": -jnp.mean(baseline), "reward": jnp.mean(baseline), "drawn_reward": jnp.mean(reward)}


def risk_objective(config: Config, task: _seq2seq.Task, model: Any, params, state: State, batch):
  """The expected cost over drawn sequences and the reference, each of them once."""
  count, copies = len(batch["source"]), config.samples
  drawn = _draw(task, model, params, state, batch, copies)
  tokens = drawn.tokens.reshape(count, copies, -1)
  tokens = jnp.concatenate([batch["target"][:, None, 1:], tokens], 1)
  length = jnp.concatenate([batch["target_length"][:, None] - 1, drawn.length.reshape(count, copies)], 1)
  flat = Decoded(tokens.reshape(-1, tokens.shape[-1]), length.reshape(-1), length.reshape(-1), length.reshape(-1))
  wide = jax.tree.map(lambda x: jnp.repeat(x, copies + 1, axis=0), batch)
  cost = 1 - _seq2seq.reward(config.metric, task, flat, wide).reshape(count, -1)
  each = _seq2seq.token_log_probabilities(task, model, params, wide, flat.tokens)
  total = jnp.sum(jnp.where(real_places(flat.length, each.shape[1]), each, 0), 1).reshape(count, -1)
  total = jnp.where(_again(tokens), -jnp.inf, total)
  risk = jnp.mean(minimum_risk_loss(total, cost, config.sharpness))
  return risk, {"loss": risk, "drawn_reward": 1 - jnp.mean(cost[:, 1:])}


def _again(tokens: Int[Array, "B N T"]) -> Bool[Array, "B N"]:
  """Which candidates stand before among their own."""
  same = jnp.all(tokens[:, :, None] == tokens[:, None], -1)
  count = tokens.shape[1]
  earlier = jnp.arange(count)[None, :] < jnp.arange(count)[:, None]
  return jnp.any(same & earlier[None], -1)


# -- stages ------------------------------------------------------------------------------------------------------------

# Flags of the first stage's data and network; its training has its own defaults.
_SHARED = (
  *(item.name for item in dataclasses.fields(PairConfig)), "model", "cell", "attention", "width", "depth", "heads",
  "dropout", "copy", "coverage", "seed", "seeds", "precision", "devices", "threads", "tensorboard",
)  # fmt: skip


def main(config: Config) -> int:
  if config.train_on in METRIC_STAGES and not config.start_from:
    from experiments.sequence import translation

    workdir = Path(config.workdir).expanduser() if config.workdir else default_workdir("sequence.translation", config)
    shared = {name: getattr(config, name) for name in _SHARED}
    own = translation.Config.tuned(model=config.model)
    first = find_stage(
      "start_from", "", translation, workdir, steps=own.steps, learning_rate=own.learning_rate, **shared
    )
    config = dataclasses.replace(config, start_from=str(first), workdir=str(workdir))
  return train(make(config), make_feeds(config), config)


if __name__ == "__main__":
  run(main, Config)
