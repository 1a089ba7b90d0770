"""A recurrent encoder, and a recurrent decoder that looks at its outputs: attention, input feeding, copying, coverage.

model = RecurrentSeq2Seq(vocabulary, width=64, attention="additive", never=(PAD, START))
scored = model.score(variables, source, source_length, inputs)        # log-probabilities of what follows each input
decoder = model.make_decoder(variables, source, source_length)        # for greedy, sample, beam_search
"""

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mlnotes.attention import masked_softmax
from mlnotes.engine.experiment import root_key
from mlnotes.sequence.decoding import Decoder
from mlnotes.sequence.losses import draw_coins, real_places
from mlnotes.sequence.recurrent import RecurrentStack
from mlnotes.sequence.registry import make_cell

Attention = Literal["additive", "dot", "none"]
# The logit of a token that is never predicted: exp of it is 0, and a difference of two such is no NaN.
_NEVER = -1e9


class Scored(NamedTuple):
  """What a model says of targets that it is shown.

  Attributes:
    log_probability: (B, T, V) of what follows each input.
    attention: (B, T, S) what it looked at, 0 at padding; None of one that looks at nothing.
    inputs: (B, T) the tokens that it read: with scheduled sampling not all the true ones.
  """

  log_probability: Float[Array, "B T V"]
  attention: Float[Array, "B T S"] | None
  inputs: Int[Array, "B T"]


class Encoded(NamedTuple):
  """A source as the decoder sees it: outputs of the encoder, what attention compares with, ids, which are real."""

  memory: Float[Array, "B S E"]
  keys: Float[Array, "B S F"]
  tokens: Int[Array, "B S"]
  real: Bool[Array, "B S"]


class RecurrentState(NamedTuple):
  """The decoder between two tokens: its cells' carries, the last output of the top one, what is fed back, coverage."""

  carries: tuple[Any, ...]
  output: Float[Array, "B F"]
  feed: Float[Array, "B F"]
  coverage: Float[Array, "B S"]


class RecurrentSeq2Seq(nn.Module):
  """Sequence to sequence with any cell of `CELLS`. Sutskever et al. 2014, Bahdanau et al. 2015, Luong et al. 2015.

  The encoder is bidirectional; its top layer's final outputs give the decoder's first state, and the first query of
  attention, through one matrix. Attention:

    additive   a_t = softmax(v . tanh(W s_{t-1} + U h)), s_t = cell([y_{t-1}; sum_i a_ti h_i], s_{t-1})  Bahdanau, A.1.2
    dot        s_t = cell([y_{t-1}; o_{t-1}], s_{t-1}), a_t = softmax(s_t . W h), input feeding    Luong, eq. 8 and 3.3
    none       s_t = cell(y_{t-1}, s_{t-1}): the final state is the only path

  and o_t = tanh(W [s_t; context; y_{t-1}]) gives the logits. With `copy` the probability of a token is

    p_gen P_vocab(w) + (1 - p_gen) sum_{i: x_i = w} a_ti                                    See et al. 2017, eq. 8 and 9

  the sum over all places of the source with that id. With `coverage` additive scores also see the sum of the weights
  so far, eq. 10 and 11; `coverage_loss` is its other half.

  Differences from the papers: one vocabulary of both sides, so that there are no ids of one example alone; the source
  is not reversed without attention, as the encoder reads it in both directions; dropout is of embeddings, between the
  encoder's layers, and of o_t before the logits, not between the decoder's cells.

  `never` are ids that are no target, such as padding and START: they have no probability.
  Raises ValueError for copying without attention, coverage without additive attention.
  """

  vocabulary: int
  width: int = 64
  cell: str = "gru"
  depth: int = 1
  attention: Attention = "additive"
  copy: bool = False
  coverage: bool = False
  dropout: float = 0.0
  never: tuple[int, ...] = ()

  def __post_init__(self):
    if self.copy and self.attention == "none":
      raise ValueError("attention is none: there is nothing to copy by, expected additive or dot")
    if self.coverage and self.attention != "additive":
      raise ValueError(f"attention is {self.attention}: coverage is of additive scores")
    super().__post_init__()

  def setup(self):
    self.embed = nn.Embed(self.vocabulary, self.width, embedding_init=nn.initializers.normal(self.width**-0.5))
    self.encoder = RecurrentStack(make_cell(self.cell, self.width), self.depth, True, self.dropout)
    self.cells = [make_cell(self.cell, self.width) for _ in range(self.depth)]
    self.bridge = nn.Dense(sum(self._carry_sizes()) + self.width)
    self.combine = nn.Dense(self.width)
    self.head = nn.Dense(self.vocabulary)
    self.drop = nn.Dropout(self.dropout)
    if self.attention != "none":
      self.key = nn.Dense(self.width, use_bias=self.attention == "additive")
    if self.attention == "additive":
      self.query = nn.Dense(self.width, use_bias=False)
      self.v = self.param("v", nn.initializers.normal(self.width**-0.5), (self.width,))
    if self.coverage:
      self.cover = self.param("cover", nn.initializers.normal(self.width**-0.5), (self.width,))
    if self.copy:
      self.gate = nn.Dense(1)

  # -- one token -----------------------------------------------------------------------------------------------------

  def encode(
    self, source: Int[Array, "B S"], lengths: Int[Array, " B"], train: bool = False
  ) -> tuple[Encoded, RecurrentState]:
    """The source and the state before the first token."""
    x = self.drop(self.embed(source), deterministic=not train)
    memory, _ = self.encoder(x, lengths, None, train)
    last = jnp.take_along_axis(memory, jnp.maximum(lengths - 1, 0)[:, None, None], 1)[:, 0, : self.width]
    final = jnp.concatenate([last, memory[:, 0, self.width :]], -1)
    started = jnp.tanh(self.bridge(final))
    carries, output = self._first_carries(started)
    keys = self.key(memory) if self.attention != "none" else memory[..., :0]
    encoded = Encoded(memory if self.attention != "none" else memory[..., :0], keys, source,
                      real_places(lengths, source.shape[1]))  # fmt: skip
    return encoded, RecurrentState(carries, output, jnp.zeros_like(output), jnp.zeros(source.shape, jnp.float32))

  def step(
    self, encoded: Encoded, state: RecurrentState, token: Int[Array, " B"]
  ) -> tuple[Float[Array, "B V"], RecurrentState, Float[Array, "B S"] | None]:
    """(log-probabilities of the next token, state, attention)."""
    features, gate, attention, state = self._advance(encoded, state, self.embed(token))
    spread = None if attention is None else attention[:, None]
    found = self._log_probability(features[:, None], None if gate is None else gate[:, None], spread, encoded.tokens)
    return found[:, 0], state, attention

  def _advance(self, encoded: Encoded, state: RecurrentState, x: Float[Array, "B F"]):
    """(features, gate of copying, attention, state) after the embedded token x."""
    attention = None
    if self.attention == "additive":
      context, attention = self._attend(encoded, state.output, state.coverage)
      y = jnp.concatenate([x, context], -1)
    else:
      y = x if self.attention == "none" else jnp.concatenate([x, state.feed], -1)
    carries = []
    for cell, carry in zip(self.cells, state.carries):
      carry, y = cell(carry, y)
      carries.append(carry)
    if self.attention == "dot":
      context, attention = self._attend(encoded, y, state.coverage)
    seen = [y, x] if self.attention == "none" else [y, context, x]
    features = jnp.tanh(self.combine(jnp.concatenate(seen, -1)))
    gate = self.gate(jnp.concatenate(seen, -1))[:, 0] if self.copy else None
    coverage = state.coverage if attention is None else state.coverage + attention
    return features, gate, attention, RecurrentState(tuple(carries), y, features, coverage)

  def _attend(self, encoded: Encoded, query: Float[Array, "B F"], coverage: Float[Array, "B S"]):
    if self.attention == "dot":
      scores = jnp.einsum("bf,bsf->bs", query, encoded.keys)
    else:
      hidden = encoded.keys + self.query(query)[:, None]
      if self.coverage:
        hidden = hidden + coverage[..., None] * self.cover[None, None]
      scores = jnp.einsum("bsf,f->bs", jnp.tanh(hidden), self.v)
    weights = masked_softmax(scores, encoded.real)
    return jnp.einsum("bs,bse->be", weights, encoded.memory), weights

  def _log_probability(self, features, gate, attention, tokens) -> Float[Array, "B T V"]:
    found = forbid(self.head(features), self.never)
    return found if gate is None else mix_copied(found, gate, attention, tokens)

  # -- whole targets -------------------------------------------------------------------------------------------------

  def __call__(
    self,
    source: Int[Array, "B S"],
    lengths: Int[Array, " B"],
    inputs: Int[Array, "B T"],
    train: bool = False,
    sampling: Float[Array, ""] | float | None = None,
  ) -> Scored:
    """The log-probabilities of what follows each of `inputs`, START and the target.

    With `sampling` each input but the first is, with that probability, a token drawn from what the model said one step
    before: Bengio et al. 2015. Draws take rngs={"sampling": key} and have no gradient.
    """
    encoded, state = self.encode(source, lengths, train)
    masks = self.drop(jnp.ones((*inputs.shape, self.width)), deterministic=not train)
    rows = dict(variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
    if sampling is None:
      x = self.embed(inputs) * masks

      def read(model, state, x):
        features, gate, attention, state = model._advance(encoded, state, x)
        return state, (features, gate, attention)

      _, (features, gate, attention) = nn.scan(read, **rows)(self, state, x)
      features = self.drop(features, deterministic=not train)
      return Scored(self._log_probability(features, gate, attention, source), attention, inputs)

    of_coins, of_tokens = jax.random.split(self.make_rng("sampling"))
    coins = draw_coins(of_coins, inputs.shape, sampling)
    more_masks = self.drop(jnp.ones((*inputs.shape, self.width)), deterministic=not train)

    def read_own(model, carry, given):
      state, said, i = carry
      token, coin, mask, feature_mask = given
      token = jnp.where(coin, said, token)
      features, gate, attention, state = model._advance(encoded, state, model.embed(token) * mask)
      spread = None if attention is None else attention[:, None]
      gate = None if gate is None else gate[:, None]
      found = model._log_probability((features * feature_mask)[:, None], gate, spread, source)[:, 0]
      said = jax.random.categorical(jax.random.fold_in(of_tokens, i), jax.lax.stop_gradient(found), -1)
      return (state, said.astype(token.dtype), i + 1), (found, attention, token)

    first = (state, inputs[:, 0], jnp.int32(0))
    _, outputs = nn.scan(read_own, **rows)(self, first, (inputs, coins, masks, more_masks))
    return Scored(*outputs)

  @nn.nowrap
  def score(self, variables: Any, source: Array, lengths: Array, inputs: Array, **more: Any) -> Scored:
    """`__call__` from variables: what every model of this chapter has."""
    rngs = more.pop("rngs", None)
    more.pop("attention", None)
    return self.apply(variables, source, lengths, inputs, rngs=rngs, **more)

  @nn.nowrap
  def make_decoder(
    self, variables: Any, source: Int[Array, "B S"], lengths: Int[Array, " B"], room: int = 0, attention: bool = True
  ) -> Decoder:
    """For `mlnotes.sequence.decoding`; `room` is of decoders with a cache."""
    encoded, state = self.apply(variables, source, lengths, method="encode")
    step = lambda encoded, state, token: self.apply(variables, encoded, state, token, method="step")
    return Decoder(step, state, encoded, lengths)

  # -- the first state -----------------------------------------------------------------------------------------------

  @nn.nowrap
  def _zero_carry(self, batch: int) -> Any:
    return make_cell(self.cell, self.width, parent=None).initialize_carry(root_key(0), (batch, self.width))

  @nn.nowrap
  def _carry_sizes(self) -> list[int]:
    """Features of each array of numbers in the carries of all layers."""
    leaves = jax.tree.leaves(jax.eval_shape(lambda: self._zero_carry(1)))
    return self.depth * [x.shape[-1] for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]

  @nn.nowrap
  def _first_carries(self, started: Float[Array, "B E"]) -> tuple[tuple[Any, ...], Float[Array, "B F"]]:
    sizes, place = iter(self._carry_sizes()), 0
    carries = []
    for _ in range(self.depth):
      leaves, structure = jax.tree.flatten(self._zero_carry(started.shape[0]))
      for i, leaf in enumerate(leaves):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
          size = next(sizes)
          leaves[i] = started[:, place : place + size]
          place += size
      carries.append(jax.tree.unflatten(structure, leaves))
    return tuple(carries), started[:, place:]


def forbid(logits: Float[Array, "B T V"], never: tuple[int, ...]) -> Float[Array, "B T V"]:
  """Log-probabilities in float32, none of them for the ids in `never`."""
  logits = logits.astype(jnp.float32)
  if never:
    logits = logits.at[..., jnp.array(never)].set(_NEVER)
  return jax.nn.log_softmax(logits)


def mix_copied(
  log_probability: Float[Array, "B T V"],
  gate: Float[Array, "B T"],
  attention: Float[Array, "B T S"],
  tokens: Int[Array, "B S"],
) -> Float[Array, "B T V"]:
  """log(p_gen P_vocab + (1 - p_gen) sum of the weights at equal ids), p_gen = sigmoid(gate). See et al. 2017, eq. 9.

  Weights at repeated ids add up. Computed from logarithms, so that neither part's underflow is log 0.
  """
  batch, steps, size = log_probability.shape
  rows, columns = jnp.arange(batch)[:, None, None], jnp.arange(steps)[None, :, None]
  copied = jnp.zeros((batch, steps, size), attention.dtype).at[rows, columns, tokens[:, None, :]].add(attention)
  some = copied > 0
  log_copied = jnp.where(some, jnp.log(jnp.where(some, copied, 1)), _NEVER)
  gate = gate[..., None].astype(jnp.float32)
  return jnp.logaddexp(jax.nn.log_sigmoid(gate) + log_probability, jax.nn.log_sigmoid(-gate) + log_copied)
