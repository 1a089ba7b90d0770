"""MoCo: features from telling a view's key, made by a slowly moving encoder, from a queue of earlier keys.

  python -m experiments.contrastive.moco --seeds=8                       # digits
  python -m experiments.contrastive.moco --dataset=cifar10 --data_dir=DIR --encoder=resnet18 --precision=bfloat16

He et al. 2020 (arXiv:1911.05722) with --version=v1, Chen et al. 2020 (arXiv:2003.04297) with --version=v2.
"""

import dataclasses
from functools import partial
from typing import Literal

from experiments.contrastive._pretraining import (
  ContrastiveConfig,
  TemperatureConfig,
  make_encoder,
  make_feeds as make_feeds,
  make_pretraining,
  pretrain,
)
from mlnotes.contrastive.heads import Embedder, MLPHead
from mlnotes.contrastive.method import count_features
from mlnotes.contrastive.moco import make_moco
from mlnotes.data.flags import load_data
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment
from mlnotes.engine.flags import field, run
from mlnotes.nn import BatchNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TemperatureConfig, ContrastiveConfig):
  """Defaults: digits, eight seeds in under four minutes on two CPU cores."""

  version: Literal["v1", "v2"] = field("v2", "v1: linear head; v2: a hidden layer more")
  momentum_encoder: float = field(0.99, "m, how slowly the key encoder follows, in [0, 1)")
  queue_size: int = field(1024, "keys that are kept as negatives, at least a batch")
  bn_splits: int = field(8, "parts of the batch with BatchNorm statistics of their own, a divisor of --batch_size")
  bn_shuffle: Literal["permutation", "stride", "none"] = field(
    "permutation", "how keys are spread over the splits, so that a query does not know its key by its split"
  )
  symmetric: bool = field(False, "each view is the query once")

  def __post_init__(self):
    super().__post_init__()
    require(0 <= self.momentum_encoder < 1, "momentum_encoder", self.momentum_encoder, "a number in [0, 1)")
    low = self.batch_size * (2 if self.symmetric else 1)
    require(self.queue_size >= low, "queue_size", self.queue_size, f"{low} or more, the keys of one update")
    divides = self.bn_splits >= 1 and self.batch_size % self.bn_splits == 0
    require(divides, "bn_splits", self.bn_splits, f"a divisor of --batch_size={self.batch_size}")

  def idle_flags(self):
    idle = {}
    if self.bn_splits in (1, self.batch_size):
      whole = "the whole batch shares its statistics" if self.bn_splits == 1 else "each image has its own statistics"
      idle["bn_shuffle"] = f"with --bn_splits={self.bn_splits} {whole}, in whichever order"
    return super().idle_flags() | idle


def make(config: Config) -> Experiment:
  data = load_data(config)
  encoder = make_encoder(config, data, partial(BatchNorm, num_splits=config.bn_splits))
  hidden = (count_features(encoder, data.image_shape),) if config.version == "v2" else ()
  head = MLPHead((*hidden, config.projection), dtype=encoder.dtype)
  method = make_moco(
    Embedder(encoder, head),
    queue_size=config.queue_size,
    momentum=config.momentum_encoder,
    temperature=config.temperature,
    num_splits=config.bn_splits,
    shuffle=config.bn_shuffle,
    symmetric=config.symmetric,
  )
  return make_pretraining(method, data, config)


def main(config: Config) -> int:
  return pretrain(make(config), config)


if __name__ == "__main__":
  run(main, Config)
