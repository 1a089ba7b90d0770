"""One update of the model of sequences by each of its teachers, and of the discriminator that teaches it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from mlnotes import generative
from mlnotes.engine.experiment import Mean, stream_key
from mlnotes.nn.loss import cross_entropy
from mlnotes.optim import update_average

Hparams = Mapping[str, Float[Array, ""]]
Noise = Mapping[str, Array]
Metrics = dict[str, Mean]


class Learner(NamedTuple):
  params: chex.ArrayTree
  opt_state: optax.OptState


class Players(NamedTuple):
  """The networks, their optimizers and the rules. `encoder` and `codes` are of method arae, else None.

  params of the generator: {"model"}, of method arae {"model", "encoder", "codes"}.
  """

  method: str
  reward: str
  baseline: str
  model: generative.SequenceModel
  discriminator: nn.Module | None
  encoder: generative.SequenceEncoder | None
  codes: generative.CodeNetwork | None
  optimizer: optax.GradientTransformation
  discriminator_optimizer: optax.GradientTransformation
  vocabulary: int
  length: int
  roll_outs: int
  critic_steps: int
  latent: int
  straight_through: bool


def init_generator(players: Players, key: Key[Array, ""]) -> Learner:
  tokens = jnp.zeros((1, players.length), jnp.int32)
  code, params = None, {}
  if players.method == "arae":
    params["encoder"] = players.encoder.init(stream_key(key, "encoder"), tokens)["params"]
    noise = jnp.zeros((1, players.latent))
    code, variables = players.codes.init_with_output(stream_key(key, "codes"), noise)
    params["codes"] = variables["params"]
  params["model"] = players.model.init(stream_key(key, "model"), tokens, code)["params"]
  return Learner(params, players.optimizer.init(params))


def init_discriminator(players: Players, key: Key[Array, ""]) -> Learner:
  code = (1, players.encoder.code) if players.method == "arae" else None
  example = jnp.zeros(code) if code else jnp.zeros((1, players.length), jnp.int32)
  params = players.discriminator.init(stream_key(key, "discriminator"), example)["params"]
  return Learner(params, players.discriminator_optimizer.init(params))


def draw_noise(players: Players, key: Key[Array, ""], step: Int[Array, ""], batch: int) -> dict[str, Array]:
  """All random numbers of an update, ahead of the choice of what it does."""
  own = lambda name: stream_key(key, name, step)
  updates, length = players.critic_steps, players.length
  if players.method == "arae":
    return {
      "told": jax.random.normal(own("told"), (updates, batch, players.latent)),
      "share": jax.random.uniform(own("share"), (updates, batch)),
      "written": jax.random.normal(own("written"), (batch, players.latent)),
      "added": jax.random.normal(own("added"), (batch, players.encoder.code)),
    }
  if players.method == "mle":
    return {}
  one = (length, players.vocabulary) if players.method == "gumbel" else (length,)
  noise = {
    "told": jax.random.uniform(own("told"), (updates, batch, *one)),
    "written": jax.random.uniform(own("written"), (batch, *one)),
  }
  if players.method == "seqgan" and players.reward == "discriminator":
    noise["completed"] = jax.random.uniform(own("completed"), (players.roll_outs, length - 1, batch, length))
  return noise


def write(players: Players, params: chex.ArrayTree, uniform: Array, temperature: Any) -> Array:
  """Sequences of the generator: integers, of method gumbel weights over the tokens."""
  policy = generative.make_policy(players.model, params["model"])
  if players.method == "gumbel":
    return generative.relax_sequences(policy, uniform, temperature, players.straight_through)
  return generative.sample_sequences(policy, uniform)


def _move(optimizer: optax.GradientTransformation, learner: Learner, grads: chex.ArrayTree, rate: Any = 1.0) -> Learner:
  updates, opt_state = optimizer.update(grads, learner.opt_state, learner.params)
  updates = jax.tree.map(lambda update: rate * update, updates)
  return Learner(optax.apply_updates(learner.params, updates), opt_state)


def _once(**values: Float[Array, ""]) -> Metrics:
  return {name: Mean(value, jnp.ones([])) for name, value in values.items()}


def learn_text(players: Players, learner: Learner, tokens: Int[Array, "B T"]) -> tuple[Learner, Metrics]:
  """One update by maximum likelihood."""

  def loss(params):
    logits = players.model.apply({"params": params["model"]}, tokens)
    return jnp.mean(cross_entropy(logits, tokens))

  value, grads = jax.value_and_grad(loss)(learner.params)
  return _move(players.optimizer, learner, grads), _once(likelihood_loss=value)


def learn_reward(
  players: Players, learner: Learner, roll_out: chex.ArrayTree, discriminator: Learner, noise: Noise, hparams: Hparams
) -> tuple[Learner, Metrics]:
  """One update by the policy gradient, the discriminator held fixed."""
  tokens = write(players, learner.params, noise["written"], None)
  score = lambda x: players.discriminator.apply({"params": discriminator.params}, x)
  if players.reward == "discriminator":
    policy = generative.make_policy(players.model, roll_out["model"])
    reward = lambda x: jax.nn.sigmoid(score(x))
    values = generative.roll_out_values(reward, policy, tokens, noise["completed"])
  else:
    of_whole = generative.maligan_values(score(tokens)) if players.reward == "maligan" else jnp.ones(len(tokens))
    values = jnp.broadcast_to(of_whole[:, None], tokens.shape)
  baseline = generative.leave_one_out(values) if players.baseline == "others" else jnp.zeros_like(values)

  def loss(params):
    policy = generative.make_policy(players.model, params["model"])
    log_probability = generative.token_log_probability(policy, tokens)
    return jnp.mean(generative.policy_gradient_loss(log_probability, values, baseline))

  grads = jax.grad(loss)(learner.params)
  metrics = _once(
    reward=jnp.mean(jax.nn.sigmoid(score(tokens))),
    advantage=jnp.mean(jnp.abs(values - baseline)),
    policy_gradient=optax.global_norm(grads),
  )
  return _move(players.optimizer, learner, grads, hparams["adversarial_rate"]), metrics


def learn_relaxed(
  players: Players, learner: Learner, discriminator: Learner, noise: Noise, temperature: Any, hparams: Hparams
) -> tuple[Learner, Metrics]:
  """One update by the discriminator's gradient through relaxed choices."""

  def loss(params):
    weights = write(players, params, noise["written"], temperature)
    score = players.discriminator.apply({"params": discriminator.params}, weights)
    return jnp.mean(generative.non_saturating_generator(score)), jnp.mean(jax.nn.sigmoid(score))

  (_, reward), grads = jax.value_and_grad(loss, has_aux=True)(learner.params)
  metrics = _once(reward=reward, policy_gradient=optax.global_norm(grads))
  return _move(players.optimizer, learner, grads, hparams["adversarial_rate"]), metrics


def learn_codes(
  players: Players,
  learner: Learner,
  discriminator: Learner,
  tokens: Int[Array, "B T"],
  noise: Noise,
  deviation: Float[Array, ""],
  playing: Float[Array, ""],
  hparams: Hparams,
) -> tuple[Learner, Metrics]:
  """One update of an adversarially regularised auto-encoder and of its generator of codes. Zhao et al. 2018.

    -log p(x | c + deviation noise) + playing (f(lambda c) - f(g(z))),   c = encoder(x), lambda scales the gradient

  The critic f is higher on codes of texts: the encoder brings them down, the generator its own up.
  """

  def loss(params):
    code = players.encoder.apply({"params": params["encoder"]}, tokens)
    logits = players.model.apply({"params": params["model"]}, tokens, code + deviation * noise["added"])
    read = jnp.mean(cross_entropy(logits, tokens))
    score = lambda x: players.discriminator.apply({"params": discriminator.params}, x)[:, 0]
    real = jnp.mean(score(generative.scale_gradient(code, hparams["encoder_scale"])))
    fake = jnp.mean(score(players.codes.apply({"params": params["codes"]}, noise["written"])))
    return read + playing * (real - fake), read

  (_, read), grads = jax.value_and_grad(loss, has_aux=True)(learner.params)
  return _move(players.optimizer, learner, grads), _once(reconstruction_loss=read)


def teach_discriminator(
  players: Players, discriminator: Learner, loss: Callable[..., Any], inputs: Any, rate: Float[Array, ""]
) -> tuple[Learner, Metrics]:
  """`critic_steps` updates, one for each row of `inputs`; loss(params, row) -> (loss, metrics)."""

  def update(learner, row):
    (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(learner.params, row)
    return _move(players.discriminator_optimizer, learner, grads, rate), metrics

  discriminator, metrics = jax.lax.scan(update, discriminator, inputs)
  return discriminator, _once(**jax.tree.map(jnp.mean, metrics))


def teach_on_sequences(
  players: Players,
  discriminator: Learner,
  generator: Learner,
  tokens: Int[Array, "S B T"],
  noise: Noise,
  temperature: Any,
  hparams: Hparams,
) -> tuple[Learner, Metrics]:
  """The discriminator's updates on texts and on as many sequences of the generator's, which is held fixed."""

  def loss(params, row):
    real, uniform = row
    fake = jax.lax.stop_gradient(write(players, generator.params, uniform, temperature))
    scores = [players.discriminator.apply({"params": params}, x) for x in (real, fake)]
    right = jnp.mean(jnp.stack([scores[0] > 0, scores[1] < 0]).astype(jnp.float32))
    value = jnp.mean(generative.cross_entropy_discriminator(*scores))
    return value, {"discriminator_loss": value, "told_apart": right}

  return teach_discriminator(players, discriminator, loss, (tokens, noise["told"]), hparams["discriminator_rate"])


def teach_on_codes(
  players: Players,
  discriminator: Learner,
  generator: Learner,
  tokens: Int[Array, "S B T"],
  noise: Noise,
  hparams: Hparams,
) -> tuple[Learner, Metrics]:
  """The critic's updates on codes of texts and of noise, with a gradient penalty; both networks are held fixed."""

  def loss(params, row):
    real, z, share = row
    codes = players.encoder.apply({"params": generator.params["encoder"]}, real)
    codes, fake = jax.lax.stop_gradient((codes, players.codes.apply({"params": generator.params["codes"]}, z)))
    critic = lambda x: players.discriminator.apply({"params": params}, x)[..., 0]
    apart = jnp.mean(generative.wasserstein_discriminator(critic(codes), critic(fake)))
    penalty = jnp.mean(generative.gradient_penalty(lambda x: critic(x[None])[0], codes, fake, share))
    return apart + hparams["penalty_weight"] * penalty, {"distance": -apart, "penalty": penalty}

  return teach_discriminator(
    players, discriminator, loss, (tokens, noise["told"], noise["share"]), hparams["discriminator_rate"]
  )


def follow(roll_out: chex.ArrayTree, params: chex.ArrayTree, lag: Float[Array, ""]) -> chex.ArrayTree:
  """lag times the roll-out policy's parameters, and the rest of the generator's. Yu et al. 2017."""
  return update_average(roll_out, params, lag)


def choose(condition: Any, one: Any, other: Any, operand: Any) -> tuple[Any, dict[str, Mean]]:
  """`lax.cond` of two functions with metrics of their own; of what was not done there is a mean of nothing."""
  names = {**jax.eval_shape(one, operand)[1], **jax.eval_shape(other, operand)[1]}
  nothing = {name: Mean(jnp.zeros([]), jnp.zeros([])) for name in names}

  def filled(function):
    def call(operand):
      result, metrics = function(operand)
      return result, nothing | metrics

    return call

  return jax.lax.cond(condition, filled(one), filled(other), operand)
