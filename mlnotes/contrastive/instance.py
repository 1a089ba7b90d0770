"""Instance discrimination: every image a class of its own, told apart by a memory bank."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mlnotes.contrastive.bank import draw_noise, init_bank, update_bank
from mlnotes.contrastive.heads import Embedder
from mlnotes.contrastive.loss import estimate_normalizer, nce, nonparametric_softmax, normalize, proximal_penalty
from mlnotes.contrastive.method import Method, Outcome, apply_network, make_embed
from mlnotes.engine.experiment import example_keys


class BankMemory(NamedTuple):
  """The feature of each training example, and Z of `nce`: 0 until the first batch has estimated it."""

  bank: Float[Array, "N D"]
  normalizer: Float[Array, ""]


def make_instance_discrimination(
  network: Embedder,
  num_examples: int,
  *,
  temperature: float,
  bank_momentum: float,
  noise_samples: int = 0,
  proximal_weight: float = 0.0,
) -> Method:
  """Wu et al. 2018: the non-parametric softmax over all `num_examples`, or NCE with `noise_samples` of them.

  The bank takes up a batch's features after their loss. Z is the first batch's Monte-Carlo estimate and stays.
  """

  def init(key, images):
    network_key, bank_key = jax.random.split(key)
    variables = network.init(network_key, images, train=False)
    features = jax.eval_shape(lambda v: network.apply(v, images[:1], train=False), variables)[1].shape[-1]
    return variables, BankMemory(init_bank(bank_key, num_examples, features), jnp.zeros([]))

  def loss(params, state, views, batch, key):
    bank, normalizer = state.memory
    index, temperature = batch["index"], state.hparams["temperature"]
    (_, projection, _), batch_stats = apply_network(network, params, state.batch_stats, views[:, 0])
    feature = normalize(projection)
    if noise_samples:
      noise = draw_noise(example_keys(key, index), bank, noise_samples)
      estimate = estimate_normalizer(jax.lax.stop_gradient(feature), noise, num_examples, temperature)
      normalizer = jnp.where(normalizer > 0, normalizer, estimate)
      losses = nce(feature, bank[index], noise, num_examples, normalizer, temperature)
    else:
      losses = nonparametric_softmax(feature, index, bank, temperature)
    total = losses + state.hparams["proximal_weight"] * proximal_penalty(feature, bank[index])
    stored = update_bank(bank, index, jax.lax.stop_gradient(feature), state.hparams["bank_momentum"])
    metrics = {"discrimination_loss": jnp.mean(losses)}
    return jnp.mean(total), Outcome(batch_stats, BankMemory(stored, normalizer), (feature,), metrics)

  hparams = {"temperature": temperature, "bank_momentum": bank_momentum, "proximal_weight": proximal_weight}
  return Method(init, loss, make_embed(network), num_views=1, hparams=hparams)
