"""A network, its noise process and its data, put together: what training, sampling and measuring share."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8

from mlnotes.diffusion import guidance
from mlnotes.diffusion.loss import (
  compute_denoising_loss,
  compute_hybrid_loss,
  compute_vlb,
  constant_weight,
  estimate_vlb,
  make_min_snr_weight,
  to_bits_per_dim,
)
from mlnotes.diffusion.process import (
  Denoiser,
  Network,
  Parameterization,
  Variance,
  clip_to_unit,
  learned,
  make_denoiser,
  to_signed,
)
from mlnotes.diffusion.sample import ddim_step, ddpm_step, sample, sample_trajectory
from mlnotes.diffusion.schedule import Schedule, make_timesteps
from mlnotes.engine.errors import InputError

# (network, x0, noise, t, vlb_weight) -> loss of each example.
Loss: TypeAlias = Callable[[Network, Array, Array, Array, Array], Array]

# The network sees times on one scale, 0 to 1000, whatever the number of noise levels.
_TIME_SCALE = 1000.0


class DiffusionModel(NamedTuple):
  """`network` is a `UNet` or any Linen module called alike; `num_classes` is None for an unconditional one.

  `clip` keeps the clean image that is expected where images can be: within [-1, 1]; None for what has no such bounds,
  as latents. Bits per dimension are of images alone.
  """

  network: Any
  schedule: Schedule
  parameterization: Parameterization
  variance: Variance
  num_classes: int | None
  num_levels: int
  image_shape: tuple[int, int, int]
  clip: Callable[[Array], Array] | None = clip_to_unit

  @property
  def num_dims(self) -> int:
    height, width, channels = self.image_shape
    return height * width * channels

  def init(self, key: Key[Array, ""]) -> chex.ArrayTree:
    x = jnp.zeros((1, *self.image_shape))
    label = jnp.zeros(1, jnp.int32) if self.num_classes else None
    return self.network.init(key, x, jnp.zeros(1), label)["params"]

  def to_input(self, image: UInt8[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """Stored levels on [-1, 1]."""
    return to_signed(image, self.num_levels)

  def as_condition(self, label: Int[Array, " B"]) -> Int[Array, " B"] | None:
    """The label as the network takes it: None where it is unconditional."""
    return label if self.num_classes else None

  def drop_label(
    self, key: Key[Array, ""], label: Int[Array, " B"], rate: Float[Array, ""] | float
  ) -> Int[Array, " B"] | None:
    """The label with a share `rate` of it hidden, None where the network is unconditional."""
    return guidance.drop_label(key, label, self.num_classes, rate) if self.num_classes else None

  def make_network(
    self,
    params: chex.ArrayTree,
    label: Int[Array, " B"] | None,
    weight: float = 1.0,
    dropout_key: Key[Array, ""] | None = None,
  ) -> Network:
    """(x_t, t) -> output with these parameters and labels; guided where `weight` is not 1, training with a key."""

    def apply(x, t, label):
      rngs = {} if dropout_key is None else {"dropout": dropout_key}
      t = (t + 1).astype(jnp.float32) * (_TIME_SCALE / self.schedule.num_steps)
      return self.network.apply({"params": params}, x, t, label, train=dropout_key is not None, rngs=rngs)

    if label is not None and weight != 1.0:
      return guidance.guide(apply, label, jnp.asarray(self.num_classes, label.dtype), weight)
    return lambda x, t: apply(x, t, label)

  def make_denoiser(self, network: Network) -> Denoiser:
    """The denoiser of `network`, its clean image kept within `clip`."""
    return make_denoiser(network, self.schedule, self.parameterization, self.clip)

  def make_loss(self, weight: str) -> Loss:
    """The training loss: `simple`, `min_snr`, or `vlb`, the bound in bits per dimension from one of its terms.

    The first two come with `vlb_weight` times the bound where the variance is learned. Raises ValueError for another.
    """
    common = {"schedule": self.schedule, "parameterization": self.parameterization}
    if weight == "vlb":
      return lambda network, x0, noise, t, _: self.estimate_bits_per_dim(network, x0, noise, t, clip=False)
    weights = {"simple": constant_weight, "min_snr": make_min_snr_weight(self.parameterization)}
    if weight not in weights:
      raise ValueError(f"weight must be 'simple', 'min_snr' or 'vlb', found {weight!r}.")
    if self.variance is learned:
      return lambda network, x0, noise, t, vlb_weight: compute_hybrid_loss(
        network, x0=x0, noise=noise, t=t, num_levels=self.num_levels, weight=weights[weight], vlb_weight=vlb_weight,
        **common,
      )  # fmt: skip
    return lambda network, x0, noise, t, _: compute_denoising_loss(
      network, x0=x0, noise=noise, t=t, weight=weights[weight], **common
    )

  def estimate_bits_per_dim(
    self,
    network: Network,
    x0: Float[Array, "B H W C"],
    noise: Float[Array, "B H W C"],
    t: Int[Array, " B"],
    clip: bool = True,
  ) -> Float[Array, " B"]:
    """The variational bound in bits per dimension from one term per image; unbiased for uniform `t`."""
    denoise = make_denoiser(network, self.schedule, self.parameterization, clip_to_unit if clip else None)
    nats = estimate_vlb(denoise, self.schedule, x0, noise, t, self.num_levels, self.variance)
    return to_bits_per_dim(nats, self.num_dims)

  def compute_bits_per_dim(
    self, keys: Key[Array, " B"], network: Network, x0: Float[Array, "B H W C"]
  ) -> Float[Array, " B"]:
    """The variational bound with all T terms, in bits per dimension of each image."""
    bound = compute_vlb(keys, self.make_denoiser(network), self.schedule, x0, self.num_levels, self.variance)
    return to_bits_per_dim(bound.total, self.num_dims)

  def sample(
    self,
    params: chex.ArrayTree,
    key: Key[Array, ""],
    label: Int[Array, " B"],
    *,
    sampler: str = "ddim",
    num_steps: int | None = None,
    eta: float = 0.0,
    weight: float = 1.0,
    trajectory: bool = False,
  ):
    """Images on [-1, 1], (B, H, W, C), of the classes `label` (ignored where unconditional); or a `Trajectory`.

    `sampler` is ddpm (ancestral) or ddim (with `eta`), over `num_steps` of the T times, all for None; `weight` is that
    of classifier-free guidance. For use under `jit`.
    """
    steps = {
      "ddpm": functools.partial(ddpm_step, variance=self.variance),
      "ddim": functools.partial(ddim_step, eta=eta),
    }
    if sampler not in steps:
      raise ValueError(f"sampler must be 'ddpm' or 'ddim', found {sampler!r}.")
    times = make_timesteps(self.schedule.num_steps, num_steps or self.schedule.num_steps)
    denoise = self.make_denoiser(self.make_network(params, self.as_condition(label), weight))
    run = sample_trajectory if trajectory else sample
    return run(key, denoise, self.schedule, (*label.shape, *self.image_shape), steps[sampler], times)


class TrainedModel:
  """A model with its parameters: `trained(x_t, t, label)` is the noise in x_t, `trained.sample(key, label)` images."""

  def __init__(self, model: DiffusionModel, params: chex.ArrayTree):
    self.model, self.params = model, params
    self._predict = jax.jit(self._predict_noise)
    self._sample = jax.jit(model.sample, static_argnames=("sampler", "num_steps", "eta", "weight"))

  def _check_label(self, label: Int[Array, " B"] | None) -> None:
    classes = self.model.num_classes
    if classes and label is not None and not isinstance(label, jax.core.Tracer):
      wrong = (label < 0) | (label >= classes)  # the network would take the nearest row of its table, or none
      if wrong.any():
        found = int(label[jnp.argmax(wrong)])
        raise InputError(f"label: found the class {found}, expected 0 to {classes - 1}.")

  def _predict_noise(self, params, x_t, t, label):
    network = self.model.make_network(params, None if label is None else self.model.as_condition(label))
    return make_denoiser(network, self.model.schedule, self.model.parameterization)(x_t, t).noise

  def __call__(
    self, x_t: Float[Array, "B H W C"], t: Int[Array, " B"], label: Int[Array, " B"] | None = None
  ) -> Float[Array, "B H W C"]:
    """The noise in `x_t` at the times `t`, 0 .. T - 1. A conditional model needs the classes `label`.

    Raises InputError for a label that is none of its classes, where its value is known (outside of `jit`).
    """
    self._check_label(label)
    return self._predict(self.params, x_t, t, label)

  def sample(self, key: Key[Array, ""], label: Int[Array, " B"], **options: Any) -> Float[Array, "B H W C"]:
    """Images on [-1, 1] of the classes `label` (an unconditional model takes their number alone from it).

    `options` are those of `DiffusionModel.sample`: sampler, num_steps, eta, weight. Raises InputError for labels as a
    call does.
    """
    self._check_label(label)
    return self._sample(self.params, key, label, **options)
