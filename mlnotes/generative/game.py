"""One update of each of two players: what changes in the one, with the other held fixed.

An update of the discriminator leaves the generator as it is, running statistics included, and the reverse.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from mlnotes.generative.gan import AdversarialLoss, pulling_away
from mlnotes.generative.gan_networks import Labels, Verdict
from mlnotes.generative.gan_regularizers import (
  clip_weights,
  gradient_penalty,
  init_power_vectors,
  r1_penalty,
  spectral_normalize,
  update_power_vectors,
)
from mlnotes.nn.loss import cross_entropy
from mlnotes.optim import eval_params, update_ema

Regularizer = Literal["none", "clip", "gradient_penalty", "r1", "spectral"]
# penalty_weight, clip_bound, spectral_bound, auxiliary_weight, pull_away, ema_decay, discriminator_ema,
# discriminator_rate, balance, margin: numbers that may be traced.
Hparams = Mapping[str, Float[Array, ""]]


class Game(NamedTuple):
  """The two networks of `mlnotes.generative.gan_networks`, their optimizers and the rules.

  make_loss:   the loss, of the numbers in `hparams`.
  threshold:   the score above which an example counts as judged real; None where a score alone says nothing.
  conditional: whether labels are given to the networks. auxiliary: whether the discriminator also learns to say them.
  energy:      whether scores are energies, and the generator also pays for codes that resemble each other.
  averaged:    whether the generator learns from the average of the discriminator's parameters.
  """

  generator: nn.Module
  discriminator: nn.Module
  generator_optimizer: optax.GradientTransformation
  discriminator_optimizer: optax.GradientTransformation
  make_loss: Callable[[Hparams], AdversarialLoss]
  regularizer: Regularizer
  latent: int
  threshold: float | None = None
  conditional: bool = False
  auxiliary: bool = False
  energy: bool = False
  averaged: bool = False


class Player(NamedTuple):
  """All that is one player's: parameters, running statistics, optimizer, averages of the first two, power vectors."""

  params: chex.ArrayTree
  batch_stats: chex.ArrayTree
  opt_state: optax.OptState
  average: chex.ArrayTree
  power: chex.ArrayTree


def init_player(
  network: nn.Module, optimizer: optax.GradientTransformation, key: Key[Array, ""], x: Array, label: Labels, power: bool
) -> Player:
  of_params, of_power = jax.random.split(key)
  variables = network.init(of_params, x, label, train=True)
  params, stats = variables["params"], variables.get("batch_stats", {})
  # A copy: parameters and average are updated in place, each its own.
  average = jax.tree.map(jnp.copy, {"params": params, "batch_stats": stats})
  vectors = init_power_vectors(of_power, params) if power else {}
  return Player(params, stats, optimizer.init(params), average, vectors)


def draw_noise(key: Key[Array, ""], count: int, latent: int) -> Float[Array, "B Z"]:
  return jax.random.normal(key, (count, latent))


def apply_player(
  network: nn.Module, params: chex.ArrayTree, stats: chex.ArrayTree, x: Array, label: Labels, train: bool
) -> tuple[Any, chex.ArrayTree]:
  """(what the network says, its running statistics afterwards)."""
  variables = {"params": params, "batch_stats": stats}
  if not train:
    return network.apply(variables, x, label, train=False), stats
  out, updated = network.apply(variables, x, label, train=True, mutable=["batch_stats"])
  return out, updated.get("batch_stats", stats)


def judge(
  game: Game, player: Player, params: chex.ArrayTree, hparams: Hparams, x: Array, label: Labels, train: bool
) -> Verdict:
  """The discriminator's verdict with its power vectors as they are; nothing of it changes."""
  params = spectral_normalize(params, player.power, hparams["spectral_bound"]) if player.power else params
  return apply_player(game.discriminator, params, player.batch_stats, x, label, train)[0]


def update_discriminator(
  game: Game,
  player: Player,
  generator: Player,
  real: Float[Array, "B *shape"],
  label: Int[Array, " B"],
  key: Key[Array, ""],
  step: Int[Array, ""],
  hparams: Hparams,
) -> tuple[Player, dict[str, Float[Array, ""]]]:
  """(the discriminator after one update on these examples and as many generated ones of their classes, metrics)."""
  of_noise, of_share = jax.random.split(key)
  label = label if game.conditional else None
  context = () if label is None else (label,)
  noise = draw_noise(of_noise, len(real), game.latent)
  fake, _ = apply_player(game.generator, generator.params, generator.batch_stats, noise, label, train=True)
  fake = jax.lax.stop_gradient(fake)
  power = update_power_vectors(player.params, player.power) if player.power else player.power
  loss = game.make_loss(hparams)

  def mean_loss(params):
    used = spectral_normalize(params, power, hparams["spectral_bound"]) if power else params
    # Apart, or the norm of a batch would tell the two apart by itself.
    of_real, stats = apply_player(game.discriminator, used, player.batch_stats, real, label, train=True)
    of_fake, stats = apply_player(game.discriminator, used, stats, fake, label, train=True)
    adversarial = jnp.mean(loss.discriminator(of_real.score, of_fake.score))
    metrics = {
      "discriminator_loss": adversarial,
      "real_score": jnp.mean(of_real.score),
      "fake_score": jnp.mean(of_fake.score),
    }
    if game.threshold is not None:
      right = (of_real.score > game.threshold).astype(jnp.float32), (of_fake.score < game.threshold).astype(jnp.float32)
      metrics["told_apart"] = jnp.mean(jnp.stack(right))
    total = adversarial
    if game.regularizer in ("gradient_penalty", "r1"):

      def critic(example, *own):
        one = own[0][None] if own else None
        return apply_player(game.discriminator, used, player.batch_stats, example[None], one, train=True)[0].score[0]

      if game.regularizer == "r1":
        penalty = jnp.mean(r1_penalty(critic, real, *context))
      else:
        share = jax.random.uniform(of_share, (len(real),))
        penalty = jnp.mean(gradient_penalty(critic, real, fake, share, *context))
      metrics["penalty"] = penalty
      total += hparams["penalty_weight"] * penalty
    if game.auxiliary:
      said = [cross_entropy(verdict.class_logits, label) for verdict in (of_real, of_fake)]
      metrics["class_loss"] = jnp.mean(said[0])
      total += hparams["auxiliary_weight"] * jnp.mean(jnp.stack(said))
    return total, (stats, metrics)

  (_, (stats, metrics)), grads = jax.value_and_grad(mean_loss, has_aux=True)(player.params)
  metrics["discriminator_gradient"] = optax.global_norm(grads)
  updates, opt_state = game.discriminator_optimizer.update(grads, player.opt_state, player.params)
  updates = jax.tree.map(lambda update: hparams["discriminator_rate"] * update, updates)
  params = optax.apply_updates(player.params, updates)
  if game.regularizer == "clip":
    params = clip_weights(params, hparams["clip_bound"])
  average = {"params": eval_params(opt_state, params), "batch_stats": stats}
  if game.averaged:
    average = update_ema(player.average, average, step, hparams["discriminator_ema"])
  new = Player(params, stats, opt_state, average, power)
  if game.threshold is None:
    return new, metrics
  # A discriminator that tells more apart than the balance allows waits for the generator.
  waits = metrics["told_apart"] > hparams["balance"]
  metrics["waited"] = waits.astype(jnp.float32)
  return jax.tree.map(lambda old, new: jnp.where(waits, old, new), player, new), metrics


def update_generator(
  game: Game,
  player: Player,
  discriminator: Player,
  label: Int[Array, " B"],
  key: Key[Array, ""],
  step: Int[Array, ""],
  hparams: Hparams,
) -> tuple[Player, dict[str, Float[Array, ""]], Float[Array, "B *shape"]]:
  """(the generator after one update, metrics, what it generated in it), of the classes in `label`."""
  count, label = len(label), label if game.conditional else None
  noise = draw_noise(key, count, game.latent)
  opponent = discriminator.average["params"] if game.averaged else discriminator.params
  loss = game.make_loss(hparams)

  def mean_loss(params):
    fake, stats = apply_player(game.generator, params, player.batch_stats, noise, label, train=True)
    verdict = judge(game, discriminator, opponent, hparams, fake, label, train=True)
    adversarial = total = jnp.mean(loss.generator(verdict.score))
    if game.auxiliary:
      total += hparams["auxiliary_weight"] * jnp.mean(cross_entropy(verdict.class_logits, label))
    if game.energy:
      total += hparams["pull_away"] * pulling_away(verdict.features)
    return total, (stats, adversarial, fake)

  (_, (stats, adversarial, fake)), grads = jax.value_and_grad(mean_loss, has_aux=True)(player.params)
  updates, opt_state = game.generator_optimizer.update(grads, player.opt_state, player.params)
  params = optax.apply_updates(player.params, updates)
  learned = {"params": eval_params(opt_state, params), "batch_stats": stats}
  average = update_ema(player.average, learned, step, hparams["ema_decay"])
  metrics = {"generator_loss": adversarial, "generator_gradient": optax.global_norm(grads)}
  return Player(params, stats, opt_state, average, player.power), metrics, jax.lax.stop_gradient(fake)
