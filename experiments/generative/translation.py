"""Image translation: from pairs (pix2pix), or without any (CycleGAN). Data: views of digits, MNIST against digits, ...

  python -m experiments.generative.translation                                       # negatives and digits, unpaired
  python -m experiments.generative.translation --source=mnist --source_margin=4 --data_dir=DIR   # two hands
  python -m experiments.generative.translation --task=paired --view=coarse
  python -m experiments.generative.translation --task=paired --adversarial_weight=0  # the L1 distance alone

Isola et al. 2017, Zhu et al. 2017. Writes translations.png; measures distances, and how often the class survives.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from experiments.generative._judging import MIN_SAMPLES, check_images
from mlnotes.data import DataSet, Feeds, fixed_subset, load, make_split_feeds
from mlnotes.data.flags import DataConfig, load_data
from mlnotes.data.image import resize_images
from mlnotes.data.split import Rows
from mlnotes.diffusion.process import to_signed
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import Experiment, Mean, masked_mean, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.generative import LOSSES
from mlnotes.generative.translation import (
  VIEWS,
  ImagePool,
  PatchDiscriminator,
  ResidualTranslator,
  UNetTranslator,
  exchange,
  init_pool,
)
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, make_optimizer

# Most images of a split that are held.
_MOST = 60_000


_FROM_IDENTITY = dict(cycle_weight=3.0, identity_weight=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataConfig, OptimConfig, LoopConfig):
  """Defaults: three minutes on two CPU cores."""

  task: Literal["unpaired", "paired"] = field("unpaired", "CycleGAN, or pix2pix")
  source: str = field(
    "", "data set to translate from, like --dataset; empty: images of --dataset seen through --view (unpaired: others)"
  )
  source_margin: int = field(0, "pixels cut off each side of --source's images before they are resized; MNIST has 4")
  view: Literal["auto", "negative", "turned", "upper", "coarse", "edges"] = field(
    "auto", "how the images to be translated are seen; auto: negative, of pairs upper"
  )
  loss: Literal["auto", "least_squares", "non_saturating", "hinge"] = field(
    "auto", "of the players; auto: least_squares, of pairs non_saturating"
  )
  adversarial_weight: float = field(1.0, "weight of the generator's part of it, 0 or more; 0: no discriminator")
  l1_weight: float = field(100.0, "paired: weight of the absolute error")
  cycle_weight: float = field(
    10.0, "unpaired: weight of the absolute error there and back, of each direction; with --source 3"
  )
  identity_weight: float = field(
    5.0, "unpaired: weight of the change that a translator makes to what it is to make; with --source 0"
  )
  pool_size: int = field(50, "unpaired: older translations that the discriminators are shown; 0: none")
  dropout: float = field(0.5, "paired: in the generator, in [0, 1)")
  begin: Literal["auto", "identity", "scratch"] = field(
    "auto", "unpaired: translators begin as the identity, or from anything; auto: identity with --source"
  )
  width: int = field(16, "channels of the first convolutions")
  blocks: int = field(3, "unpaired: residual blocks of a translator")
  quality_samples: int = field(
    0, "test images that are translated and judged, 4 or more; 0: all, at most 1000", free="report"
  )

  steps: int = 2000
  batch_size: int = 16
  learning_rate: float = 1e-3
  momentum: float = 0.5
  schedule: ScheduleName = "linear"
  log_every: int = 50
  eval_every: int = 500
  checkpoint_every: int = 1000

  @classmethod
  def tuned(cls, **given):
    """What begins as the identity stays there under CycleGAN's own weights."""
    return cls(**{**(_FROM_IDENTITY if given.get("source") else {}), **given})

  def __post_init__(self):
    super().__post_init__()
    for name in ("width", "blocks"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("adversarial_weight", "l1_weight", "cycle_weight", "identity_weight", "pool_size", "source_margin"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
    require(0 <= self.dropout < 1, "dropout", self.dropout, "a number in [0, 1)")
    require(
      not (self.source and self.task == "paired"),
      "source",
      self.source,
      "empty with --task=paired, whose pairs are views",
    )
    require(
      not (self.source and self.view != "auto"),
      "view",
      self.view,
      f"auto with --source={self.source}, which is seen as it is",
    )
    count = self.quality_samples
    require(count == 0 or count >= MIN_SAMPLES, "quality_samples", count, f"0, or {MIN_SAMPLES} or more")

  @property
  def seen(self) -> str:
    return self.view if self.view != "auto" else "negative" if self.task == "unpaired" else "upper"

  @property
  def begins_as_identity(self) -> bool:
    return self.begin == "identity" or (self.begin == "auto" and bool(self.source))

  @property
  def played(self) -> str:
    return self.loss if self.loss != "auto" else "least_squares" if self.task == "unpaired" else "non_saturating"

  def idle_flags(self):
    idle = super().idle_flags()
    unused = {
      "unpaired": ("l1_weight", "dropout"),
      "paired": ("cycle_weight", "identity_weight", "pool_size", "begin", "blocks"),
    }
    idle |= dict.fromkeys(unused[self.task], f"--task={self.task} has none")
    if not self.source:
      idle["source_margin"] = "--source is empty"
    if self.adversarial_weight == 0:
      idle |= dict.fromkeys(("loss", "pool_size"), "--adversarial_weight=0 has no discriminator")
    if self.report_seeds == 0:
      idle["quality_samples"] = "--report_seeds=0 judges nothing"
    return idle


@dataclasses.dataclass(frozen=True, eq=False)
class TwoKinds(Rows):
  """{"source", "target": uint8 (B, H, W, C), "label": of the source}; of pairs row by row, else in no relation."""

  arrays: dict[str, np.ndarray]


class Domains(NamedTuple):
  """Both kinds of images. `target` is their data set whole: what translations are judged beside."""

  train: TwoKinds
  test: TwoKinds
  target: DataSet
  source_levels: int
  num_classes: int


@functools.lru_cache(maxsize=1)
def _load_source(source: str, data_dir: str) -> DataSet:
  try:
    return load(source, data_dir or None)
  except InputError as error:  # which names the flag of the other images
    raise InputError(str(error).replace("--dataset=", "--source=", 1)) from error


def _read_source(split: Any, margin: int, size: int) -> dict[str, np.ndarray]:
  """Without `margin` pixels at each side, in `size` x `size` pixels."""
  images = _read(split)
  inner = slice(margin, split.image_shape[0] - margin), slice(margin, split.image_shape[1] - margin)
  return {**images, "image": resize_images(images["image"][:, *inner], size)}


def load_domains(config: Config) -> Domains:
  """Raises InputError for kinds with other classes or channels, and for sizes that do not halve."""
  target = load_data(config)
  height, width, _ = target.image_shape
  _check_size(config, target, height % 4 == 0 == width % 4, "a height and width that are multiples of 4")
  if not config.source:
    splits = [_view_split(config, split, target.levels, i) for i, split in enumerate((target.train, target.test))]
    return Domains(*splits, target, target.levels, target.num_classes)
  _check_size(config, target, height == width, "squares with --source")
  source = _load_source(config.source, config.data_dir)
  found = (source.num_classes, source.image_shape[-1])
  if found != (target.num_classes, target.image_shape[-1]):
    raise InputError(
      f"--source={config.source} has {found[0]} classes and {found[1]} channels, expected {target.num_classes} and "
      f"{target.image_shape[-1]}, as --dataset={config.dataset} has."
    )
  margin, most = config.source_margin, (min(source.image_shape[:2]) - 1) // 2
  require(margin <= most, "source_margin", margin, f"0 to {most}: images of {source.image_shape} are left")
  pairs = ((source.train, target.train), (source.test, target.test))
  splits = [_join(_read_source(a, margin, height), _read(b)) for a, b in pairs]
  return Domains(*splits, target, source.levels, target.num_classes)


def _check_size(config: Config, data: DataSet, fits: bool, expected: str) -> None:
  if not fits:
    height, width, _ = data.image_shape
    size = max(4, round(max(height, width) / 4) * 4)
    found = f"--dataset={config.dataset}: found images of {height} x {width}"
    raise InputError(f"{found}, expected {expected}, such as --image_size={size} makes.")


def _read(split: Any) -> dict[str, np.ndarray]:
  return split.read(fixed_subset(len(split), _MOST))


def _join(source: dict[str, np.ndarray], target: dict[str, np.ndarray]) -> TwoKinds:
  """As many rows as the longer one has; the shorter begins again."""
  count = max(len(source["label"]), len(target["label"]))
  again = lambda kind: np.arange(count) % len(kind["label"])
  return TwoKinds(
    {
      "source": source["image"][again(source)],
      "target": target["image"][again(target)],
      "label": source["label"][again(source)],
    }
  )


def _view_split(config: Config, split: Any, levels: int, which: int) -> TwoKinds:
  """Views of a split's images: beside these images (pairs, and all tests), or of one half beside the other half."""
  images = _read(split)
  try:
    seen = VIEWS[config.seen](jnp.asarray(images["image"], jnp.float32) / (levels - 1))
  except ValueError as error:
    raise InputError(f"--view={config.seen}: {error}") from error
  seen = np.asarray(jnp.round(seen * (levels - 1))).astype(np.uint8)
  source, whole = {"image": seen, "label": images["label"]}, which == 1 or config.task == "paired"
  if whole:
    return TwoKinds({"source": seen, "target": images["image"], "label": images["label"]})
  order = np.random.default_rng(0).permutation(len(seen))
  first, second = np.array_split(order, 2)
  return _join(
    *({name: value[part] for name, value in kind.items()} for kind, part in ((source, first), (images, second)))
  )


class State(NamedTuple):
  """`translators`: forward and, unpaired, backward; `discriminators`: of targets and, unpaired, of sources."""

  step: Int[Array, ""]
  key: Key[Array, ""]
  translators: dict[str, chex.ArrayTree]
  discriminators: dict[str, chex.ArrayTree]
  opt_state: optax.OptState
  discriminator_opt_state: optax.OptState
  pools: dict[str, ImagePool]
  hparams: dict[str, Float[Array, ""]]


class TrainedTranslator(NamedTuple):
  """Images of the source on [-1, 1] to images of the target."""

  network: Any
  params: chex.ArrayTree

  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W O"]:
    return self.network.apply({"params": self.params}, x)


def make_feeds(config: Config) -> Feeds:
  domains = load_domains(config)
  return make_split_feeds(domains.train, domains.test, config)


def make(config: Config) -> Experiment:
  domains = load_domains(config)
  shape, dtype = domains.target.image_shape, jnp.dtype(config.precision)
  paired = config.task == "paired"
  pooled = not paired and config.pool_size > 0
  if paired:
    network = UNetTranslator(shape[-1], config.width, dropout=config.dropout, dtype=dtype)
  else:
    network = ResidualTranslator(shape[-1], config.width, config.blocks, config.begins_as_identity, dtype)
  critic = PatchDiscriminator(config.width, dtype=dtype)
  optimizer, critic_optimizer = make_optimizer(config, config.steps), make_optimizer(config, config.steps)
  loss = LOSSES[config.played]
  names = ("target",) if paired else ("target", "source")

  def scores(params, x: Array) -> Array:
    """One number for each patch of each image."""
    return critic.apply({"params": params}, x).reshape(-1)

  def translate(params, x: Array, key: Key[Array, ""] | None = None) -> Array:
    keys = {} if key is None else {"dropout": key}
    return network.apply({"params": params}, x, train=key is not None, rngs=keys)

  def kinds(batch) -> tuple[Array, Array]:
    return to_signed(batch["source"], domains.source_levels), to_signed(batch["target"], domains.target.levels)

  def init(key, batch) -> State:
    x, judged = jnp.zeros((1, *shape)), jnp.zeros((1, *shape[:2], shape[2] * (1 + paired)))
    directions = ("forward",) if paired else ("forward", "backward")
    translators = {name: network.init(stream_key(key, name), x)["params"] for name in directions}
    discriminators = {name: critic.init(stream_key(key, f"critic_{name}"), judged)["params"] for name in names}
    weights = (
      ("adversarial_weight", "l1_weight") if paired else ("adversarial_weight", "cycle_weight", "identity_weight")
    )
    return State(
      step=jnp.zeros([], jnp.int32),
      key=key,
      translators=translators,
      discriminators=discriminators,
      opt_state=optimizer.init(translators),
      discriminator_opt_state=critic_optimizer.init(discriminators),
      pools={name: init_pool(config.pool_size, shape) for name in names} if pooled else {},
      hparams={name: jnp.float32(getattr(config, name)) for name in weights},
    )

  def translator_loss(translators, state: State, x: Array, y: Array):
    """The loss of the translators, what they made (for the discriminators), and its parts."""
    weigh = state.hparams
    if paired:
      fake = translate(translators["forward"], x, stream_key(state.key, "dropout", state.step))
      error = jnp.mean(jnp.abs(fake - y))
      fooled = jnp.mean(loss.generator(scores(state.discriminators["target"], jnp.concatenate([x, fake], -1))))
      total = weigh["l1_weight"] * error + weigh["adversarial_weight"] * fooled
      return total, ({"target": fake}, {"l1": error / 2, "fooled": fooled})
    fakes = {"target": translate(translators["forward"], x), "source": translate(translators["backward"], y)}
    back = (translate(translators["backward"], fakes["target"]), translate(translators["forward"], fakes["source"]))
    cycle = jnp.mean(jnp.abs(back[0] - x)) + jnp.mean(jnp.abs(back[1] - y))
    same = (translate(translators["forward"], y), translate(translators["backward"], x))
    identity = jnp.mean(jnp.abs(same[0] - y)) + jnp.mean(jnp.abs(same[1] - x))
    fooled = sum(jnp.mean(loss.generator(scores(state.discriminators[name], fakes[name]))) for name in names)
    total = weigh["cycle_weight"] * cycle + weigh["identity_weight"] * identity + weigh["adversarial_weight"] * fooled
    return total, (fakes, {"cycle": cycle / 4, "fooled": fooled})

  def discriminator_loss(discriminators, real: dict[str, Array], fake: dict[str, Array]) -> Array:
    return sum(
      jnp.mean(loss.discriminator(scores(discriminators[n], real[n]), scores(discriminators[n], fake[n])))
      for n in names
    )

  def step(state: State, batch):
    x, y = kinds(batch)
    gradient = jax.value_and_grad(translator_loss, has_aux=True)
    (total, (fakes, parts)), grads = gradient(state.translators, state, x, y)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.translators)
    translators = optax.apply_updates(state.translators, updates)
    state = state._replace(translators=translators, opt_state=opt_state)
    metrics = {"loss": total, **parts, "grad_norm": optax.global_norm(grads)}
    if config.adversarial_weight > 0:
      if paired:
        real, fake, pools = (
          {"target": jnp.concatenate([x, y], -1)},
          {"target": jnp.concatenate([x, fakes["target"]], -1)},
          {},
        )
      else:
        real = {"target": y, "source": x}
        key = lambda name: stream_key(state.key, f"pool_{name}", state.step)
        drawn = {name: exchange(key(name), pool, fakes[name]) for name, pool in state.pools.items()}
        pools, shown = ({name: pair[i] for name, pair in drawn.items()} for i in (0, 1))
        fake = fakes | shown
      told, grads = jax.value_and_grad(discriminator_loss)(state.discriminators, real, fake)
      updates, opt_state = critic_optimizer.update(grads, state.discriminator_opt_state, state.discriminators)
      discriminators = optax.apply_updates(state.discriminators, updates)
      state = state._replace(discriminators=discriminators, discriminator_opt_state=opt_state, pools=pools)
      metrics["discriminator_loss"] = told / len(names)
    return state._replace(step=state.step + 1), metrics

  def learned(state: State) -> dict[str, chex.ArrayTree]:
    return eval_params(state.opt_state, state.translators)

  def evaluate(state: State, batch) -> dict[str, Mean]:
    """Mean absolute errors of test images, per pixel on [0, 1]."""
    params, (x, y) = learned(state), kinds(batch)
    made = translate(params["forward"], x)
    of_each = lambda a, b: jnp.mean(jnp.abs(a - b), axis=(1, 2, 3)) / 2
    errors = {"l1": of_each(made, y)} if paired else {"cycle": of_each(translate(params["backward"], made), x)}
    return {name: masked_mean(value, batch["mask"]) for name, value in errors.items()}

  def report(state: State, directory: Path) -> dict[str, float]:
    from experiments.generative._translation_report import write_report

    params = learned(state)
    made = {name: TrainedTranslator(network, value) for name, value in params.items()}
    return write_report(made, domains, config, directory)

  def trained(state: State) -> TrainedTranslator:
    return TrainedTranslator(network, learned(state)["forward"])

  return Experiment(init, step, evaluate, report, model=trained)


def main(config: Config) -> int:
  if config.report_seeds:
    check_images(load_data(config))
  return train(make(config), make_feeds(config), config, best_metric="l1" if config.task == "paired" else "cycle")


if __name__ == "__main__":
  run(main, Config)
