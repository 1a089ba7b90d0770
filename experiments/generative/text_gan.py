"""Adversarial training of models of sequences, after and beside maximum likelihood. Data: a random oracle's, or text.

  python -m experiments.generative.text_gan                                  # SeqGAN on the sequences of an oracle
  python -m experiments.generative.text_gan --method=mle                     # as many updates of maximum likelihood
  python -m experiments.generative.text_gan --reward=constant                # the ablation: nothing to be learned from
  python -m experiments.generative.text_gan --method=gumbel
  python -m experiments.generative.text_gan --method=arae
  python -m experiments.generative.text_gan --dataset=pydoc --length=24      # characters of Python's manual pages

Yu et al. 2017 (SeqGAN), Jang et al. 2017 and Kusner et al. 2016 (Gumbel-softmax), Che et al. 2017 (MaliGAN), Zhao et
al. 2018 (ARAE). Two figures, nats per token at one temperature: what the oracle pays for the generator's sequences
(quality), and what the generator pays for the oracle's (diversity). A perfect generator has the oracle's entropy in
both. Of a text, bigrams stand in the oracle's place.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from experiments.generative._text_players import (
  Learner,
  Players,
  choose,
  draw_noise,
  follow,
  init_discriminator,
  init_generator,
  learn_codes,
  learn_relaxed,
  learn_reward,
  learn_text,
  teach_on_codes,
  teach_on_sequences,
)
from experiments.generative._text_world import TrainedWriter, World, draw_sequence, make_world, training_sequence
from mlnotes import generative
from mlnotes.data import Feeds, make_drawn_eval, make_drawn_feed
from mlnotes.data.flags import TextConfig, load_data, make_feeds as make_data_feeds
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, Mean, example_keys, masked_mean, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.generative.text_gan import MIN_TEMPERATURE
from mlnotes.optim import eval_params
from mlnotes.optim.flags import OptimConfig, OptimizerName, make_optimizer

_TEST_SEQUENCES, _EVAL_BATCH = 1024, 256
_HPARAMS = (
  "adversarial_rate", "discriminator_rate", "rollout_lag", "gumbel_temperature", "last_gumbel_temperature",
  "code_noise", "encoder_scale", "penalty_weight",
)  # fmt: skip
# The flags that a method alone uses.
_OF_METHOD = {
  "seqgan": ("reward", "baseline", "roll_outs", "rollout_lag"),
  "gumbel": ("gumbel_temperature", "last_gumbel_temperature", "straight_through"),
  "arae": ("code", "code_noise", "encoder_scale", "penalty_weight", "latent", "likelihood_codes"),
}
_OF_ORACLE = ("vocabulary", "oracle_width", "oracle_seed", "train_sequences")
_OF_TEXT = (
  "test_dataset", "documents", "tokenizer", "vocab_size", "end_token", "stride", "data_dir", "train_split",
  "test_split", "data_placement",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TextConfig, OptimConfig, LoopConfig):
  """Defaults: three minutes on two CPU cores."""

  dataset: str = field(
    "oracle",
    "oracle (drawn from a recurrent model of random weights), or a text: pydoc (built in: the manual pages of Python), "
    "docstrings (of its library), a file.txt, a file.jsonl, a folder of .txt files, or the name of a TFDS set",
    refines=True,
  )
  length: int = field(12, "tokens of a sequence", refines=True)
  batch_size: int = field(64, "sequences per update of each player, over all devices", refines=True)
  eval_examples: int = 1024
  steps: int = 2500
  learning_rate: float = 5e-3
  optimizer: OptimizerName = "adam"
  clip_norm: float = 5.0
  log_every: int = 25
  eval_every: int = 100
  checkpoint_every: int = 500

  method: Literal["seqgan", "gumbel", "mle", "arae"] = field(
    "seqgan", "policy gradient, relaxed choices, maximum likelihood alone, or an auto-encoder with a critic of codes"
  )
  reward: Literal["discriminator", "maligan", "constant"] = field(
    "discriminator", "of --method=seqgan: its probability of text by roll-outs, MaliGAN's weights, or 1 (an ablation)"
  )
  baseline: Literal["others", "none"] = field("others", "of --method=seqgan: the mean reward of the other sequences")
  roll_outs: int = field(16, "of --reward=discriminator: completions of each beginning of a sequence")
  rollout_lag: float = field(0.8, "of --reward=discriminator: how much the roll-out policy keeps of itself, in [0, 1)")
  gumbel_temperature: float = field(1.0, "of --method=gumbel: of the relaxed choices where the game begins")
  last_gumbel_temperature: float = field(0.2, "of --method=gumbel: and where it ends, by a geometric course")
  straight_through: bool = field(True, "of --method=gumbel: choose one token, with the gradient of the relaxed choice")
  code: int = field(16, "of --method=arae: numbers of a code, which is a unit vector")
  code_noise: float = field(0.2, "of --method=arae: deviation of the noise that is added to it, falling to 0, >= 0")
  encoder_scale: float = field(0.05, "of --method=arae: of the critic's gradient for the encoder, >= 0")
  penalty_weight: float = field(10.0, "of --method=arae: weight of the critic's gradient penalty, > 0")
  latent: int = field(16, "of --method=arae: numbers of noise that a code is made of")
  likelihood_codes: int = field(64, "of --method=arae: codes over which the likelihood of a sequence is averaged")

  pretrain_steps: int = field(2000, "updates by maximum likelihood (arae: of the auto-encoder alone) before the game")
  discriminator_steps: int = field(300, "so many of them, the last ones, teach the discriminator as well")
  critic_steps: int = field(2, "updates of the discriminator, each on texts of its own, to each of the generator")
  adversarial_rate: float = field(0.2, "times --learning_rate for the generator in the game, > 0")
  discriminator_rate: float = field(0.2, "times --learning_rate for the discriminator, > 0")
  eval_temperature: float = field(1.0, "of the generator where it is judged, in writing as in reading, > 0")

  width: int = field(32, "units of the generator's LSTM and features of its tokens, also of the discriminator's")
  filters: int = field(32, "of the discriminator: of each span of 1 to 4 tokens; arae: half the units of a layer")
  vocabulary: int = field(64, "of the oracle: how many tokens there are")
  oracle_width: int = field(32, "of the oracle: units of its LSTM")
  oracle_seed: int = field(0, "of the oracle: its weights and sequences come from it")
  train_sequences: int = field(10000, "of the oracle: how many sequences there are to learn from; 0: always new ones")

  def __post_init__(self):
    super().__post_init__()
    for name in (
      "roll_outs", "code", "latent", "likelihood_codes", "critic_steps", "width", "filters", "oracle_width"
    ):  # fmt: skip
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("code_noise", "encoder_scale", "train_sequences", "discriminator_steps", "pretrain_steps"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
    for name in ("adversarial_rate", "discriminator_rate", "eval_temperature", "penalty_weight"):
      require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
    for name in ("gumbel_temperature", "last_gumbel_temperature"):
      require(getattr(self, name) >= MIN_TEMPERATURE, name, getattr(self, name), f"{MIN_TEMPERATURE} or more")
    require(0 <= self.rollout_lag < 1, "rollout_lag", self.rollout_lag, "a number in [0, 1)")
    require(self.length >= 2, "length", self.length, "2 or more")
    require(self.vocabulary >= 2, "vocabulary", self.vocabulary, "2 or more")
    require(0 <= self.oracle_seed < 2**32, "oracle_seed", self.oracle_seed, "0 to 2^32 - 1")
    if self.method == "seqgan":
      others = self.baseline == "none" or self.batch_size >= 2
      require(others, "batch_size", self.batch_size, "2 or more for --baseline=others")
    if self.plays:
      least = f"less than --steps={self.steps}, or --method=mle"
      require(self.game_begins < self.steps, "pretrain_steps", self.pretrain_steps, least)
      within = f"at most --pretrain_steps={self.game_begins}"
      require(self.taught <= self.game_begins, "discriminator_steps", self.discriminator_steps, within)

  @property
  def drawn(self) -> bool:
    """Whether the sequences are an oracle's."""
    return self.dataset == "oracle"

  @property
  def plays(self) -> bool:
    """Whether there is a second player."""
    return self.method != "mle"

  @property
  def game_begins(self) -> int:
    """The update with which the game begins. Shorter runs than the default's have the same parts of it."""
    cls = type(self)
    if self.pretrain_steps == cls.pretrain_steps and self.steps < cls.steps:
      return self.steps * cls.pretrain_steps // cls.steps
    return self.pretrain_steps

  @property
  def taught(self) -> int:
    """Updates before the game in which the discriminator learns."""
    if self.discriminator_steps == type(self).discriminator_steps:
      return min(self.discriminator_steps, self.game_begins)
    return self.discriminator_steps

  @property
  def fills_cores(self) -> bool:
    return self.plays

  @property
  def units_per_update(self) -> int:
    return self.batch_size * (self.critic_steps if self.plays else 1)

  @property
  def protocol(self) -> str:
    """What the names of figures say: the temperature of the generator."""
    return f"t{self.eval_temperature:g}"

  def idle_flags(self):
    idle = OptimConfig.idle_flags(self) if self.drawn else super().idle_flags()
    names = _OF_TEXT if self.drawn else _OF_ORACLE
    idle |= dict.fromkeys(names, f"--dataset={self.dataset} is {'drawn' if self.drawn else 'a text'}")
    for method, flags in _OF_METHOD.items():
      if method != self.method:
        idle |= dict.fromkeys(flags, f"--method={self.method} does not use it")
    if self.method == "seqgan" and self.reward != "discriminator":
      idle |= dict.fromkeys(("roll_outs", "rollout_lag"), f"--reward={self.reward} needs no completions")
    if self.method == "arae":
      idle["adversarial_rate"] = "--method=arae learns all of it at once"
    if not self.plays:
      names = ("pretrain_steps", "discriminator_steps", "critic_steps", "adversarial_rate", "discriminator_rate")
      idle |= dict.fromkeys((*names, "filters"), "--method=mle has no discriminator")
    return idle


class State(NamedTuple):
  """`roll_out`: the parameters of the policy that completes, () where nothing is completed.

  `discriminator`: () of --method=mle.
  """

  step: Int[Array, ""]
  key: Key[Array, ""]
  generator: Learner
  roll_out: Any
  discriminator: Any
  hparams: dict[str, Float[Array, ""]]


def make_feeds(config: Config) -> Feeds:
  """Training sequences for all the discriminator's updates of a step; others to be evaluated on."""
  of_step = dataclasses.replace(config, batch_size=config.units_per_update)
  if not config.drawn:
    return make_data_feeds(load_data(config), of_step)
  world = make_world(config)

  def draw_one(key, arrays):
    if not config.train_sequences:
      return {"tokens": draw_sequence(config, world, key)}
    return {"tokens": training_sequence(config, world, jax.random.randint(key, (), 0, config.train_sequences))}

  draw_test = lambda key, arrays: {"tokens": draw_sequence(config, world, key)}
  count = config.eval_examples or _TEST_SEQUENCES
  evaluate = make_drawn_eval(draw_test, (), config.oracle_seed, count, min(count, _EVAL_BATCH))
  return Feeds(make_drawn_feed(draw_one, (), of_step.batch_size), evaluate)


def make_players(config: Config, world: World) -> Players:
  dtype = jnp.dtype(config.precision)
  vocabulary, arae = world.vocabulary, config.method == "arae"
  discriminator = None
  if arae:
    discriminator = generative.CodeNetwork(1, 2 * config.filters, dtype=dtype)
  elif config.plays:
    discriminator = generative.SequenceDiscriminator(vocabulary, config.width, config.filters, dtype=dtype)
  return Players(
    method=config.method,
    reward=config.reward,
    baseline=config.baseline,
    model=generative.SequenceModel(vocabulary, config.width, dtype=dtype),
    discriminator=discriminator,
    encoder=generative.SequenceEncoder(vocabulary, config.width, config.code, dtype=dtype) if arae else None,
    codes=generative.CodeNetwork(config.code, 2 * config.filters, sphere=True, dtype=dtype) if arae else None,
    optimizer=make_optimizer(config, config.steps),
    discriminator_optimizer=make_optimizer(config, config.steps, per_step=config.critic_steps),
    vocabulary=vocabulary,
    length=config.length,
    roll_outs=config.roll_outs,
    critic_steps=config.critic_steps if config.plays else 1,
    latent=config.latent,
    straight_through=config.straight_through,
  )


def anneal(config: Config, state: State) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """(the temperature of relaxed choices, the deviation of the noise on codes) at this update."""
  begins, hparams = config.game_begins, state.hparams
  played = jnp.clip((state.step - begins) / max(1, config.steps - begins), 0, 1)
  first, last = hparams["gumbel_temperature"], hparams["last_gumbel_temperature"]
  return first * (last / first) ** played, hparams["code_noise"] * (1 - state.step / config.steps)


def make(config: Config) -> Experiment:
  world = make_world(config)
  players = make_players(config, world)
  begins, completes = config.game_begins, config.method == "seqgan" and config.reward == "discriminator"

  def init(key, batch) -> State:
    generator = init_generator(players, key)
    discriminator = init_discriminator(players, key) if config.plays else ()
    roll_out = jax.tree.map(jnp.copy, generator.params) if completes else ()
    hparams = {name: jnp.float32(getattr(config, name)) for name in _HPARAMS}
    return State(jnp.zeros([], jnp.int32), key, generator, roll_out, discriminator, hparams)

  def step(state: State, batch):
    tokens = world.tokens(batch).reshape(players.critic_steps, -1, config.length)
    own, hparams = tokens[-1], state.hparams
    noise = draw_noise(players, state.key, state.step, len(own))
    temperature, deviation = anneal(config, state)
    if not config.plays:
      generator, metrics = learn_text(players, state.generator, own)
      return state._replace(step=state.step + 1, generator=generator), metrics
    game = state.step >= begins

    def teach(discriminator):
      if config.method == "arae":
        return teach_on_codes(players, discriminator, state.generator, tokens, noise, hparams)
      return teach_on_sequences(players, discriminator, state.generator, tokens, noise, temperature, hparams)

    taught = state.step >= begins - config.taught
    discriminator, metrics = choose(taught, teach, lambda held: (held, {}), state.discriminator)

    def play(generator):
      if config.method == "gumbel":
        return learn_relaxed(players, generator, discriminator, noise, temperature, hparams)
      return learn_reward(players, generator, state.roll_out, discriminator, noise, hparams)

    if config.method == "arae":
      playing = game.astype(jnp.float32)
      generator, more = learn_codes(players, state.generator, discriminator, own, noise, deviation, playing, hparams)
    else:
      generator, more = choose(game, play, lambda held: learn_text(players, held, own), state.generator)
    roll_out = state.roll_out
    if completes:
      # Before the game it is the generator itself.
      roll_out = follow(roll_out, generator.params, jnp.where(game, hparams["rollout_lag"], 0.0))
    return State(state.step + 1, state.key, generator, roll_out, discriminator, hparams), metrics | more

  def trained(state: State) -> TrainedWriter:
    params = eval_params(state.generator.opt_state, state.generator.params)
    return TrainedWriter(players.model, players.codes, params, config.length, config.latent)

  def evaluate(state: State, batch) -> dict[str, Mean]:
    writer, heat = trained(state), config.eval_temperature
    keys = lambda name: example_keys(stream_key(state.key, name), batch["index"])
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (config.length,)))(keys("evaluate"))
    z = codes = None
    if players.codes:
      z = jax.vmap(lambda key: jax.random.normal(key, (config.latent,)))(keys("evaluate_codes"))
      codes = jax.random.normal(stream_key(state.key, "likelihood"), (config.likelihood_codes, config.latent))
    written = world.nats(writer.write(uniform, z, heat))
    read = writer.nats(world.tokens(batch), codes, heat)
    return {
      f"{world.judge_name}_nll_{config.protocol}": masked_mean(written, batch["mask"]),
      f"generator_nll_{config.protocol}": masked_mean(read, batch["mask"]),
    }

  def report(state: State, directory: Path) -> dict[str, float]:
    from experiments.generative._text_gan_report import report_writer

    return report_writer(trained(state), stream_key(state.key, "report"), world, config, directory)

  return Experiment(init, step, evaluate, report, model=trained)


def main(config: Config) -> int:
  return train(make(config), make_feeds(config), config, best_metric=f"generator_nll_{config.protocol}")


if __name__ == "__main__":
  run(main, Config)
