"""A network of four numbers in place of the U-Net, and a data set as small: what the experiments' tests train."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from experiments.diffusion import ddpm
from mlnotes.data import ArraySplit, DataSet

STEPS = 5  # T
SHAPE = (3, 4, 1)
NUM_CLASSES = 3


class Probe(nn.Module):
  """scale x + slope t / 1000 + offset[label] + variance, doubled in training: what it was given can be read off."""

  num_classes: int | None = None
  out_channels: int = 1
  channels: Any = None
  multipliers: Any = None
  num_blocks: Any = None
  attention_resolutions: Any = None
  dropout: Any = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x, t, label=None, train=False):
    number = lambda name, value: self.param(name, nn.initializers.constant(value), ())
    output = number("scale", 0.5) * x + (number("slope", -0.3) * t / 1000)[:, None, None, None]
    if self.num_classes:
      offset = self.param("offset", lambda key, shape: jnp.arange(1.0, shape[0] + 1) / 10, (self.num_classes + 1,))
      label = jnp.full(len(x), self.num_classes) if label is None else label
      output = output + offset[label][:, None, None, None]
    output = output * (2 if train else 1)
    spread = jnp.broadcast_to(number("spread", 0.2), x.shape)
    return jnp.concatenate([output, spread], axis=-1) if self.out_channels == 2 * x.shape[-1] else output


def run_probe(params, x, t, label, train):
  """The same in NumPy, of integer times 0 .. T - 1; its variance half left out."""
  params = {name: np.asarray(value, np.float64) for name, value in params.items()}
  t = (np.asarray(t) + 1) / STEPS
  output = params["scale"] * x + (params["slope"] * t)[:, None, None, None]
  if "offset" in params:
    output = output + params["offset"][label][:, None, None, None]
  return output * (2 if train else 1)


def make_data():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (40, *SHAPE), dtype=np.uint8)
  label = np.arange(40, dtype=np.int32) % NUM_CLASSES
  return DataSet(
    "toys",
    ArraySplit(image[:24], label[:24]),
    ArraySplit(image[24:], label[24:]),
    NUM_CLASSES,
    tuple("abc"),
    256,
    SHAPE,
  )


def make_config(**given):
  plain = dict(optimizer="sgd", momentum=0.0, schedule="constant", warmup_steps=0, learning_rate=0.1, clip_norm=0.0)
  defaults = dict(timesteps=STEPS, batch_size=16, variance="fixed_small", steps=10, sample_steps=3)
  return ddpm.Config(**{**plain, **defaults, **given})
