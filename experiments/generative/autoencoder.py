"""Auto-encoders: plain, denoising, sparse, k-sparse and masked, beside PCA. Data: digits, MNIST, ...

  python -m experiments.generative.autoencoder                                        # digits through 8 numbers
  python -m experiments.generative.autoencoder --codes=2                              # ... and a map of them
  python -m experiments.generative.autoencoder --activation=linear                    # is PCA
  python -m experiments.generative.autoencoder --kind=denoising --corruption=masking  # or sparse, k_sparse, masked

Sources: Hinton & Salakhutdinov 2006; Vincent et al. 2008; Ng 2011 (CS294A notes); Makhzani & Frey 2013; He et al. 2022.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, UInt8

from mlnotes import generative
from mlnotes.data import Feeds
from mlnotes.data.flags import DataConfig, load_data, make_feeds as make_data_feeds
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import Experiment, Mean, example_keys, masked_mean, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.generative.masked_autoencoder import count_visible
from mlnotes.generative.networks import Decoder, Encoder, to_unit
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, make_optimizer

SPARSE = ("sparse", "k_sparse")
_ACTIVATIONS = {"relu": jax.nn.relu, "elu": jax.nn.elu, "gelu": jax.nn.gelu, "tanh": jnp.tanh, "linear": lambda x: x}
# What evaluations look at to choose the best checkpoint.
BEST = {"denoising": "denoising_mse", "masked": "masked_error"}
_LARGEST_SMALL_IMAGE = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataConfig, OptimConfig, LoopConfig):
  """Defaults: digits in less than a minute on two CPU cores."""

  steps: int = 2000
  batch_size: int = 128
  learning_rate: float = 2e-3
  schedule: ScheduleName = "warmup_cosine"
  warmup_steps: int = 100

  kind: Literal["plain", "denoising", "sparse", "k_sparse", "masked"] = field("plain", "of auto-encoder")
  codes: int = field(8, "numbers that an image goes through; a map of them is drawn where these are 2")
  network: Literal["auto", "single", "mlp", "conv"] = field(
    "auto", "single: one layer on each side; auto: single for sparse kinds and --activation=linear, otherwise mlp"
  )
  hidden: tuple[int, ...] = field((256, 128), "features of the encoder's hidden layers; the decoder mirrors them")
  channels: tuple[int, ...] = field((32, 64), "of --network=conv, each halving height and width")
  activation: Literal["relu", "elu", "gelu", "tanh", "linear"] = field("relu", "linear: no squashed output either")

  corruption: Literal["gaussian", "masking"] = field("gaussian", "of the input of --kind=denoising")
  corruption_level: float = field(0.25, "deviation of the noise, of pixels on [0, 1], or share of pixels set to 0")
  target_activation: float = field(0.05, "rho of --kind=sparse: the mean that each unit should have, in (0, 1)")
  sparsity_weight: float = field(0.1, "of that penalty beside half the squared error of an image, >= 0")
  k: int = field(10, "units of --kind=k_sparse that stay, 1 to --codes")

  mask_share: float = field(0.75, "share of patches that --kind=masked hides, in (0, 1)")
  patch: int = field(0, "pixels of a patch's side; 0: 2 for images up to 16 pixels, 4 for larger ones")
  width: int = field(64, "of the masked auto-encoder's encoder, a multiple of 4 and of --heads")
  depth: int = field(3, "blocks of that encoder")
  heads: int = field(4, "of its attention, and of the decoder's")
  decoder_width: int = field(32, "of its decoder, a multiple of 4 and of --heads")
  decoder_depth: int = field(1, "blocks of that decoder")

  probe_examples: int = field(10_000, "training images that the linear probe learns from, at most", free="report")

  def __post_init__(self):
    super().__post_init__()
    names = ("codes", "k", "width", "depth", "heads", "decoder_width", "decoder_depth", "probe_examples")
    for name in names:
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("hidden", "channels"):
      require(min(getattr(self, name), default=1) >= 1, name, getattr(self, name), "1 or more each")
    some = self.network != "conv" or len(self.channels) > 0
    require(some, "channels", self.channels, "one or more with --network=conv")
    require(self.corruption_level >= 0, "corruption_level", self.corruption_level, "0 or more")
    if self.kind == "denoising" and self.corruption == "masking":
      require(self.corruption_level < 1, "corruption_level", self.corruption_level, "a share below 1")
    require(0 < self.target_activation < 1, "target_activation", self.target_activation, "a number in (0, 1)")
    require(self.sparsity_weight >= 0, "sparsity_weight", self.sparsity_weight, "0 or more")
    if self.kind == "k_sparse":
      require(self.k <= self.codes, "k", self.k, f"at most --codes={self.codes}")
    require(0 < self.mask_share < 1, "mask_share", self.mask_share, "a number in (0, 1)")
    require(self.patch >= 0, "patch", self.patch, "0 or more")
    if self.kind == "masked":
      for name in ("width", "decoder_width"):
        value = getattr(self, name)
        require(value % 4 == value % self.heads == 0, name, value, f"a multiple of 4 and of --heads={self.heads}")

  @classmethod
  def tuned(cls, **given: Any) -> "Config":
    """Sparse codes are long; a linear one takes larger steps; the masked one is optimised as its paper has it."""
    kind = given.get("kind", "plain")
    defaults: dict[str, Any] = {"codes": 64} if kind in SPARSE else {}
    if given.get("activation") == "linear":
      defaults |= dict(learning_rate=1e-2, steps=4000)
    if kind == "masked":
      defaults = dict(optimizer="adamw", beta2=0.95, weight_decay=0.05)
    return super().tuned(**{**defaults, **given})

  def idle_flags(self):
    idle = super().idle_flags()
    why = f"--kind={self.kind} has none"
    own = {
      "denoising": ("corruption", "corruption_level"),
      "sparse": ("target_activation", "sparsity_weight"),
      "k_sparse": ("k",),
      "masked": ("mask_share", "patch", "width", "depth", "heads", "decoder_width", "decoder_depth"),
    }
    for kind, names in own.items():
      idle |= {} if kind == self.kind else dict.fromkeys(names, why)
    if self.kind == "masked":
      return idle | dict.fromkeys(("codes", "network", "hidden", "channels", "activation"), why)
    idle["precision"] = "these networks compute in float32"
    if choose_network(self) == "single":
      idle["hidden"] = "a single layer has no hidden ones"
      if self.activation != "linear":
        idle["activation"] = "a single layer has nothing between layers"
    if choose_network(self) != "conv":
      idle["channels"] = "there is no convolution"
    return idle


def choose_network(config: Config) -> str:
  """What --network names, or auto stands for."""
  single = config.kind in SPARSE or config.activation == "linear"
  return ("single" if single else "mlp") if config.network == "auto" else config.network


def choose_patch(config: Config, image_shape: tuple[int, int, int]) -> int:
  """What --patch names, or 0 stands for."""
  return config.patch or (2 if max(image_shape[:2]) <= _LARGEST_SMALL_IMAGE else 4)


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  opt_state: optax.OptState
  hparams: dict[str, Float[Array, ""]]


class Outcome(NamedTuple):
  """What becomes of images, on [0, 1].

  seen:   the input of the network, with what is hidden or added.
  output: the images that it gives back, not yet cut to [0, 1].
  error:  the squared error of each image that training minimises, a mean over its pixels or patches.
  code:   of each image, or of its patches.
  """

  seen: Float[Array, "B H W C"]
  output: Float[Array, "B H W C"]
  error: Float[Array, " B"]
  code: Float[Array, "B *D"]


class Model(NamedTuple):
  """A kind of auto-encoder as functions of its parameters.

  init:      (key, x) -> params
  apply:     (params, keys, x, hparams) -> Outcome; None for keys: nothing is corrupted
  penalty:   (Outcome, hparams) -> scalar, beside half the squared error summed over an image
  encode:    (params, x) -> (B, D), the code of whole images
  decode:    (params, code) -> images; None where a code is not enough
  """

  init: Callable[..., Any]
  apply: Callable[..., Outcome]
  penalty: Callable[..., Float[Array, ""]]
  encode: Callable[..., Float[Array, "B D"]]
  decode: Callable[..., Float[Array, "B H W C"]] | None


def make_feeds(config: Config) -> Feeds:
  return make_data_feeds(load_data(config), config)


def make_model(config: Config, image_shape: tuple[int, int, int]) -> Model:
  """The auto-encoder that the flags describe, for images of this shape. Raises InputError where they do not fit."""
  return make_masked_model(config, image_shape) if config.kind == "masked" else make_code_model(config, image_shape)


def make_code_model(config: Config, image_shape: tuple[int, int, int]) -> Model:
  """Encoder, code and decoder."""
  network = choose_network(config)
  layers = {"kind": "conv" if network == "conv" else "mlp", "activation": _ACTIVATIONS[config.activation]}
  hidden = () if network == "single" else config.hidden
  encoder = Encoder(config.codes, hidden=hidden, channels=config.channels, **layers)
  decoder = Decoder(image_shape, hidden=hidden[::-1], channels=config.channels, **layers)
  # Of units that are left out the sum is linear (Makhzani & Frey 2013), and so is PCA.
  squash = (lambda x: x) if config.activation == "linear" or config.kind == "k_sparse" else jax.nn.sigmoid
  to_code = {"sparse": jax.nn.sigmoid, "k_sparse": partial(generative.keep_largest, k=config.k)}
  to_code = to_code.get(config.kind, lambda x: x)
  corrupt = {"gaussian": generative.add_gaussian_noise, "masking": generative.mask_entries}[config.corruption]

  def init(key, x):
    code = jnp.zeros((1, config.codes))
    encoder_key, decoder_key = jax.random.split(key)
    return {"encoder": encoder.init(encoder_key, x[:1])["params"], "decoder": decoder.init(decoder_key, code)["params"]}

  encode = lambda params, x: to_code(encoder.apply({"params": params["encoder"]}, x))
  decode = lambda params, code: squash(decoder.apply({"params": params["decoder"]}, code))

  def apply(params, keys, x, hparams) -> Outcome:
    seen = x
    if config.kind == "denoising" and keys is not None:
      seen = jax.vmap(corrupt, (0, 0, None))(keys, x, hparams["corruption_level"])
    code = encode(params, seen)
    output = decode(params, code)
    return Outcome(seen, output, jnp.mean((output - x) ** 2, (1, 2, 3)), code)

  def penalty(outcome: Outcome, hparams) -> Float[Array, ""]:
    if config.kind != "sparse":
      return jnp.zeros([])
    mean = jnp.mean(outcome.code, 0)
    return hparams["sparsity_weight"] * jnp.sum(generative.bernoulli_kl(mean, hparams["target_activation"]))

  return Model(init, apply, penalty, encode, decode)


def make_masked_model(config: Config, image_shape: tuple[int, int, int]) -> Model:
  """A masked auto-encoder; its error is that of hidden patches, each with mean 0 and variance 1 of its own."""
  patch = choose_patch(config, image_shape)
  if image_shape[0] % patch or image_shape[1] % patch:
    raise InputError(
      f"--patch={config.patch}: found images of {image_shape[0]} x {image_shape[1]}, expected what divides both, not "
      f"{patch}."
    )
  network = generative.MaskedAutoencoder(
    image_shape, patch, config.depth, config.heads, config.width, config.decoder_depth, config.heads,
    config.decoder_width, dtype=jnp.dtype(config.precision),
  )  # fmt: skip
  try:
    count_visible(network.num_patches, config.mask_share)
  except InputError as error:
    raise InputError(f"--mask_share={config.mask_share}: {error}") from error
  draw = partial(generative.draw_masking, num_patches=network.num_patches, share=config.mask_share)

  def init(key, x):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(1))
    return network.init(key, x[:1], draw(keys))["params"]

  def apply(params, keys, x, hparams) -> Outcome:
    masking = draw(keys)
    patches = generative.patchify(x, patch)
    predicted = network.apply({"params": params}, x, masking)
    error = generative.masked_patch_loss(predicted, generative.normalize_patches(patches), masking)
    # As the paper's pictures: what is hidden is drawn with its own mean and deviation, what is seen as it is.
    mean, deviation = jnp.mean(patches, -1, keepdims=True), jnp.std(patches, -1, keepdims=True, ddof=1)
    hidden = jnp.any(jax.nn.one_hot(masking.hidden, network.num_patches, dtype=bool), 1)[..., None]
    image = lambda patches: generative.unpatchify(patches, image_shape)
    seen = image(jnp.where(hidden, 0.5, patches))
    return Outcome(seen, image(jnp.where(hidden, predicted * deviation + mean, patches)), error, predicted)

  encode = lambda params, x: network.apply({"params": params}, x, method="features")
  return Model(init, apply, lambda outcome, hparams: jnp.zeros([]), encode, None)


class TrainedAutoencoder:
  """A trained auto-encoder: `trained(images)` are the codes of images as stored, `trained.decode(codes)` images."""

  def __init__(self, model: Model, params: chex.ArrayTree, levels: int):
    self._encode = jax.jit(lambda images: model.encode(params, to_unit(images, levels)))
    self._decode = None if model.decode is None else jax.jit(partial(model.decode, params))

  def __call__(self, images: UInt8[Array, "B H W C"]) -> Float[Array, "B D"]:
    return self._encode(images)

  def decode(self, codes: Float[Array, "B D"]) -> Float[Array, "B H W C"]:
    """On [0, 1], or a little beyond where the output is linear. Raises InputError for a masked auto-encoder."""
    if self._decode is None:
      raise InputError("decode: a masked auto-encoder gives images back from patches, not from a code.")
    return self._decode(codes)


def make(config: Config) -> Experiment:
  data = load_data(config)
  model = make_model(config, data.image_shape)
  optimizer = make_optimizer(config, config.steps)
  pixels = data.image_shape[0] * data.image_shape[1] * data.image_shape[2]
  names = {"denoising": ("corruption_level",), "sparse": ("target_activation", "sparsity_weight")}.get(config.kind, ())

  def init(key, batch) -> State:
    params = model.init(stream_key(key, "init"), to_unit(batch["image"], data.levels))
    hparams = {name: jnp.float32(getattr(config, name)) for name in names}
    return State(jnp.zeros([], jnp.int32), key, params, optimizer.init(params), hparams)

  def step(state: State, batch):
    x = to_unit(batch["image"], data.levels)
    keys = example_keys(stream_key(state.key, "corruption", state.step), batch["index"])

    def mean_loss(params):
      outcome = model.apply(params, keys, x, state.hparams)
      return pixels * jnp.mean(outcome.error) / 2 + model.penalty(outcome, state.hparams), outcome

    (loss, outcome), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    name = BEST.get(config.kind, "mse")
    metrics = {"loss": loss, name: jnp.mean(outcome.error), "grad_norm": optax.global_norm(grads)}
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

  def learned(state: State) -> State:
    return state._replace(params=eval_params(state.opt_state, state.params))

  def evaluate(state: State, batch) -> dict[str, Mean]:
    state = learned(state)
    # The same corruption of a test image in every evaluation.
    keys = example_keys(stream_key(state.key, "evaluate"), batch["index"])
    x, mask = to_unit(batch["image"], data.levels), batch["mask"]
    outcome = model.apply(state.params, keys, x, state.hparams)
    figures = {BEST.get(config.kind, "mse"): masked_mean(outcome.error, mask)}
    if config.kind == "denoising":
      figures["mse"] = masked_mean(model.apply(state.params, None, x, state.hparams).error, mask)
    if config.kind == "sparse":
      figures["mean_activation"] = masked_mean(jnp.mean(outcome.code, 1), mask)
    return figures

  compiled = model._replace(
    **{
      name: function and jax.jit(function)
      for name, function in model._asdict().items()
      if name in ("apply", "encode", "decode")
    }
  )

  def report(state: State, directory: Path) -> dict[str, float]:
    from experiments.generative._autoencoding import write_report

    patch = choose_patch(config, data.image_shape)
    return write_report(compiled, learned(state), data, config, patch, directory)

  trained = lambda state: TrainedAutoencoder(model, learned(state).params, data.levels)
  return Experiment(init, step, evaluate, report, model=trained)


def main(config: Config) -> int:
  return train(make(config), make_feeds(config), config, best_metric=BEST.get(config.kind, "mse"))


if __name__ == "__main__":
  run(main, Config)
