"""A small generator fills hidden words, a discriminator finds what is not the text's: ELECTRA. Clark et al. 2020."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from mlnotes.attention.mask import Mask
from mlnotes.engine.experiment import Mean, root_key
from mlnotes.lm.encoder_objectives import row_of
from mlnotes.lm.masking import Masked, mask_words
from mlnotes.lm.model import LanguageModel
from mlnotes.lm.objective import Objective, read_hidden, router_weights, score_words
from mlnotes.lm.replaced import Replaced, sample_replacements
from mlnotes.lm.vocabulary import Vocabulary
from mlnotes.nn.dense import Dense
from mlnotes.nn.norm import LayerNorm


class ElectraHeads(nn.Module):
  """What stands between the shared embeddings, the generator and the discriminator, as in the authors' code.

  Attributes:
    width: of the discriminator and of the embeddings.
    narrow: of the generator.
  """

  vocabulary: int
  width: int
  narrow: int
  dtype: DTypeLike | None = None

  def setup(self):
    dense = lambda features: Dense(features, dtype=self.dtype, kernel_init=nn.initializers.normal(0.02))
    self.to_generator, self.from_generator = dense(self.narrow), dense(self.width)
    self.norm = LayerNorm(dtype=self.dtype)
    self.bias = self.param("bias", nn.initializers.zeros, (self.vocabulary,))
    self.judge_dense, self.judge_out = dense(self.width), dense(1)

  def __call__(self, embedded: Float[Array, "B T D"]) -> tuple[Array, Array, Array]:
    """All of them, so that there are parameters of all."""
    return self.say(self.read(embedded)), self.add_bias(jnp.zeros((self.vocabulary,))), self.judge(embedded)

  def read(self, embedded: Float[Array, "B T D"]) -> Float[Array, "B T G"]:
    """The embeddings as the generator reads them."""
    return self.to_generator(embedded)

  def say(self, hidden: Float[Array, "B T G"]) -> Float[Array, "B T D"]:
    """The generator's features, to be compared with the embeddings."""
    return self.norm(nn.gelu(self.from_generator(hidden)))

  def add_bias(self, logits: Float[Array, "*B V"]) -> Float[Array, "*B V"]:
    return logits + jnp.expand_dims(self.bias, range(logits.ndim - 1)).astype(logits.dtype)

  def judge(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T"]:
    """Logits, float32, of each token being another one than the text's, from the discriminator's features."""
    return self.judge_out(nn.gelu(self.judge_dense(hidden)))[..., 0].astype(jnp.float32)


class Within(nn.Module):
  """A stack as a part of something larger: paths of its modules begin with "generator", its parameters' as well.

  The discriminator's stand where those of its parameters do, so that what is put behind some of them by their paths,
  as adapters are, is not put behind the generator's too.
  """

  generator: LanguageModel

  def __call__(self, tokens: Int[Array, "B T"], embedded: Float[Array, "B T G"], train: bool) -> Float[Array, "B T G"]:
    return self.generator.hidden(tokens, Mask(), train, embedded=embedded)


class Electra(NamedTuple):
  """The parts of ELECTRA; parameters are {"generator", "discriminator", "heads"}.

  Attributes:
    generator: of any width, without positions of its own but rotary ones.
    discriminator: whose embeddings of tokens and of places the generator reads, and says its words by.
  """

  generator: LanguageModel
  discriminator: LanguageModel
  heads: ElectraHeads

  def init(self, key: Key[Array, ""], tokens: Int[Array, "B T"]) -> dict[str, Any]:
    of_generator, of_discriminator, of_heads = jax.random.split(key, 3)
    discriminator = self.discriminator.init(of_discriminator, tokens)["params"]
    embedded = jnp.zeros((*tokens.shape, self.heads.width))
    heads = self.heads.init(of_heads, embedded)["params"]
    narrow = self.heads.apply({"params": heads}, embedded, method="read")
    generator = self.generator.init(of_generator, tokens, embedded=narrow, method="hidden")["params"]
    return {"generator": generator, "discriminator": discriminator, "heads": heads}

  def generate(
    self, params: Any, tokens: Int[Array, "B T"], key: Key[Array, ""] | None = None
  ) -> tuple[Float[Array, "B T D"], Callable[[Array], Array]]:
    """(the generator's features, what makes logits of them)."""
    of = lambda name: {"params": params[name]}
    embedded = self.discriminator.apply(of("discriminator"), tokens, method="embed_tokens")
    places = jnp.arange(tokens.shape[1])[None]
    embedded = self.discriminator.apply(of("discriminator"), embedded, places, method="add_places")
    narrow = self.heads.apply(of("heads"), embedded, method="read")
    own, rngs = {"params": {"generator": params["generator"]}}, None if key is None else {"dropout": key}
    hidden = Within(self.generator).apply(own, tokens, narrow, key is not None, rngs=rngs)
    dtype = (self.discriminator.dtype if key is not None else None) or jnp.float32

    def head(features):
      logits = self.discriminator.apply(of("discriminator"), features, dtype, method="logits")
      return self.heads.apply(of("heads"), logits, method="add_bias")

    return self.heads.apply(of("heads"), hidden, method="say"), head

  def judge(self, params: Any, tokens: Int[Array, "B T"], key: Key[Array, ""] | None = None) -> tuple[Array, Any]:
    """(logits (B, T) of each token being another one than the text's, the terms of the discriminator's experts)."""
    hidden, of_experts = read_hidden(self.discriminator, params["discriminator"], tokens, Mask(), key)
    return self.heads.apply({"params": params["heads"]}, hidden, method="judge"), of_experts

  def fill(self, params: Any, examples: "Hidden", chunks: int = 1, key: Key[Array, ""] | None = None):
    """(the generator's features, what makes logits of them, what it has put in the place of the hidden words)."""
    features, head = self.generate(params, examples.masked.inputs, key)

    def draw(seeds, features, masked) -> Replaced:
      each = lambda seed, *row: row_of(sample_replacements(root_key(seed), *jax.tree.map(lambda x: x[None], row)))
      return jax.vmap(each)(seeds, head(features), masked)

    given, rows = (examples.seed, features, examples.masked), len(features)
    if chunks == 1:
      return features, head, draw(*given)
    of_row = lambda row: row_of(draw(*jax.tree.map(lambda x: x[None], row)))
    return features, head, jax.lax.map(of_row, given, batch_size=max(1, rows // chunks))


class Hidden(NamedTuple):
  """Text with hidden words, and the seed of what fills them: an example is filled the same way as often as it is."""

  masked: Masked
  seed: Int[Array, " B"]


def electra_parts(generator: LanguageModel, discriminator: LanguageModel) -> Electra:
  """Of two stacks. The generator has no positions, embeddings or head of its own, and the head is the embeddings."""
  discriminator = discriminator.clone(tied=True)
  width, narrow = discriminator.transformer.width, generator.transformer.width
  heads = ElectraHeads(discriminator.vocabulary, width, narrow, discriminator.dtype)
  return Electra(generator.clone(position="none"), discriminator, heads)


def replaced_objective(
  electra: Electra, vocabulary: Vocabulary, chunks: int = 1, weight: float = 50.0, **rates: Any
) -> Objective:
  """Hidden words are filled by a generator, and each token is told to be the text's or not. Clark et al. 2020, sec. 2.

  Terms: "loss" of the generator, the mean over the hidden words, with weight 1; "discriminator_loss" over all tokens,
  with `weight`, the paper's lambda. A word that the generator got right is the text's. No gradient goes through what it
  draws; the embeddings have that of both. Told are also "replaced", the share of the tokens that are not the text's,
  and "detected", the share of these that are told to be so. `rates` are `mask_words`'.
  Difference from the paper: hidden words become masks, words drawn at random or stay, as BERT's.
  """

  def prepare(key, tokens):
    of_words, of_draw = jax.random.split(key)
    seed = jax.random.randint(of_draw, (), 0, 2**31 - 1)
    return Hidden(row_of(mask_words(of_words, tokens[None, :-1], vocabulary, **rates)), seed)

  def terms(params, examples, key):
    of_generator, of_discriminator = (None, None) if key is None else jax.random.split(key)
    masked = examples.masked
    features, head, replaced = electra.fill(params, examples, chunks, of_generator)
    found = score_words(head, features, masked.targets, masked.weights, chunks)
    logits, of_experts = electra.judge(params, replaced.inputs, of_discriminator)
    labels, flagged = replaced.labels.astype(jnp.float32), logits > 0
    every = jnp.full(labels.shape[:1], labels.shape[1], jnp.float32)
    nats = optax.sigmoid_binary_cross_entropy(logits, labels)
    right = (flagged == replaced.labels).astype(jnp.float32)
    number = jnp.sum(labels, 1)
    of_labels = {
      "discriminator_loss": Mean(jnp.sum(nats, 1), every),
      "discriminator_accuracy": Mean(jnp.sum(right, 1), every),
      "replaced": Mean(number, every),
      "detected": Mean(jnp.sum(labels * flagged, 1), number),
    }
    return found | of_labels | of_experts

  return Objective(
    init=lambda key, examples: electra.init(key, examples.masked.inputs),
    prepare=prepare,
    terms=terms,
    weights={"loss": 1.0, "discriminator_loss": weight, **router_weights(electra.discriminator)},
  )
