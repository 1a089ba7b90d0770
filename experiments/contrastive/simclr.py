"""SimCLR: features from telling two views of an image from all others in the batch; measured by kNN and linear probes.

  python -m experiments.contrastive.simclr --seeds=8                     # digits
  python -m experiments.contrastive.simclr --dataset=cifar10 --data_dir=DIR --encoder=resnet18 --precision=bfloat16

Chen et al. 2020 (arXiv:2002.05709). Large batches: --optimizer=lars --learning_rate=1 --weight_decay=1e-6.
"""

import dataclasses

from mlnotes.contrastive.experiment import (
  ContrastiveConfig,
  count_features,
  make_encoder,
  make_pretraining,
  pretrain,
)
from mlnotes.contrastive.experiment import make_feeds as make_contrastive_feeds
from mlnotes.contrastive.heads import Embedder, MLPHead
from mlnotes.contrastive.simclr import make_simclr
from mlnotes.data import Feeds, load_data
from mlnotes.experiment import Experiment
from mlnotes.flags import field, require, run
from mlnotes.nn import BatchNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ContrastiveConfig):
  """Defaults: digits, eight seeds in under four minutes on two CPU cores."""

  temperature: float = field(0.5, "of the cosine similarities, > 0")
  projection: int = field(128, "length of the embedding")

  def __post_init__(self):
    super().__post_init__()
    require(self.temperature > 0, "temperature", self.temperature, "a number above 0")
    require(self.projection >= 1, "projection", self.projection, "1 or more")


def make_feeds(config: Config) -> Feeds:
  return make_contrastive_feeds(load_data(config), config)


def make(config: Config) -> Experiment:
  data = load_data(config)
  encoder = make_encoder(config, data)
  hidden = count_features(encoder, data.image_shape)
  head = MLPHead((hidden, config.projection), norm=BatchNorm, dtype=encoder.dtype)
  return make_pretraining(make_simclr(Embedder(encoder, head), config.temperature), data, config)


def main(config: Config) -> int:
  return pretrain("contrastive.simclr", make(config), load_data(config), config)


if __name__ == "__main__":
  run(main, Config)
