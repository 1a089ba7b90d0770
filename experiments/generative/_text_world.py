"""What is to be written, sequences of a random oracle or windows of a text, and the generator that writes them."""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mlnotes import generative
from mlnotes.data import Corpus
from mlnotes.data.flags import load_data
from mlnotes.engine.experiment import root_key, stream_key

# Most sequences of each split that floors are made from.
_MOST_TRAINING, _MOST_TEST = 10_000, 1000


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["model", "codes", "length", "latent"]
)
@dataclasses.dataclass(frozen=True)
class TrainedWriter:
  """The generator, as `mlnotes.load_run` gives it."""

  model: generative.SequenceModel
  codes: generative.CodeNetwork | None
  params: chex.ArrayTree
  length: int
  latent: int

  def write(
    self, uniform: Float[Array, "B T"], z: Float[Array, "B Z"] | None = None, temperature: float = 1.0
  ) -> Int[Array, "B T"]:
    """Sequences by these numbers, uniform on [0, 1), and of arae this noise, standard normal."""
    return generative.sample_sequences(generative.at_temperature(self._policy(z), temperature), uniform)

  def sample(self, key: Key[Array, ""], count: int, temperature: float = 1.0) -> Int[Array, "B T"]:
    of_tokens, of_codes = jax.random.split(key)
    z = jax.random.normal(of_codes, (count, self.latent)) if self.codes else None
    return self.write(jax.random.uniform(of_tokens, (count, self.length)), z, temperature)

  def nats(
    self, tokens: Int[Array, "B T"], z: Float[Array, "K Z"] | None = None, temperature: float = 1.0
  ) -> Float[Array, " B"]:
    """-log p per token; of arae -log of the mean of p over the codes of the noise, at least that on average."""
    read = lambda z: jnp.sum(
      generative.token_log_probability(generative.at_temperature(self._policy(z), temperature), tokens), 1
    )
    if self.codes is None:
      return -read(None) / tokens.shape[1]
    of_codes = jax.lax.map(lambda one: read(jnp.broadcast_to(one, (len(tokens), self.latent))), z, batch_size=16)
    return -(jax.nn.logsumexp(of_codes, 0) - jnp.log(len(z))) / tokens.shape[1]

  def _policy(self, z: Float[Array, "B Z"] | None) -> generative.Policy:
    code = self.codes.apply({"params": self.params["codes"]}, z) if self.codes else None
    return generative.make_policy(self.model, self.params["model"], code)


class World(NamedTuple):
  """What is to be written. `judge` knows what sequences are worth: the oracle, or bigrams of the text."""

  vocabulary: int
  judge_name: Literal["oracle", "bigram"]
  judge: generative.Policy
  corpus: Corpus | None

  def nats(self, tokens: Int[Array, "B T"]) -> Float[Array, " B"]:
    """What the judge pays per token."""
    return -jnp.mean(generative.token_log_probability(self.judge, tokens), 1)

  def tokens(self, batch) -> Int[Array, "B T"]:
    """A window of a text has one more before it."""
    return batch["tokens"][:, 1:] if self.corpus else batch["tokens"]


@functools.lru_cache(maxsize=4)
def make_oracle_policy(vocabulary: int, width: int, seed: int) -> generative.Policy:
  return generative.make_policy(*generative.make_oracle(vocabulary, width, stream_key(root_key(seed), "oracle")))


def make_world(config: Any) -> World:
  if config.drawn:
    oracle = make_oracle_policy(config.vocabulary, config.oracle_width, config.oracle_seed)
    return World(config.vocabulary, "oracle", oracle, None)
  corpus = load_data(config)
  return World(corpus.vocab_size, "bigram", generative.make_table_policy(jnp.asarray(text_tables(corpus)[1])), corpus)


def text_tables(corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
  """Unigrams and bigrams of the training windows."""
  windows = corpus.train.read(np.arange(len(corpus.train)))["tokens"][:, 1:]
  return generative.fit_tables(windows, corpus.vocab_size)


def draw_sequence(config: Any, world: World, key: Key[Array, ""]) -> Int[Array, " T"]:
  return generative.sample_sequences(world.judge, jax.random.uniform(key, (1, config.length)))[0]


def training_sequence(config: Any, world: World, number: Int[Array, ""]) -> Int[Array, " T"]:
  """The oracle's training sequence of this number."""
  return draw_sequence(config, world, stream_key(root_key(config.oracle_seed), "train", number))


def held_sequences(config: Any, world: World) -> tuple[np.ndarray, np.ndarray]:
  """(training sequences, at most 10,000; others, at most 1,000), of a text at even distances."""
  if world.corpus:
    sets = []
    for split, most in ((world.corpus.train, _MOST_TRAINING), (world.corpus.test, _MOST_TEST)):
      count = min(len(split), most)
      sets.append(split.read(np.arange(count) * len(split) // count)["tokens"][:, 1:])
    return sets[0], sets[1]
  count = min(config.train_sequences or _MOST_TRAINING, _MOST_TRAINING)
  known = jax.jit(jax.vmap(lambda number: training_sequence(config, world, number)))(jnp.arange(count))
  key = stream_key(root_key(config.oracle_seed), "held")
  new = jax.jit(jax.vmap(lambda key: draw_sequence(config, world, key)))(jax.random.split(key, _MOST_TEST))
  return np.asarray(known), np.asarray(new)
