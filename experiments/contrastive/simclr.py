"""SimCLR: features from telling two views of an image from all others in the batch; measured by kNN and linear probes.

  python -m experiments.contrastive.simclr --seeds=8                     # digits
  python -m experiments.contrastive.simclr --dataset=cifar10 --data_dir=DIR --encoder=resnet18 --precision=bfloat16

Chen et al. 2020 (arXiv:2002.05709). Large batches: --optimizer=lars --learning_rate=1 --weight_decay=1e-6.
"""

import dataclasses

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
from mlnotes.contrastive.simclr import make_simclr
from mlnotes.data.flags import load_data
from mlnotes.engine.experiment import Experiment
from mlnotes.engine.flags import run
from mlnotes.nn import BatchNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TemperatureConfig, ContrastiveConfig):
  """Defaults: digits, eight seeds in under four minutes on two CPU cores."""

  temperature: float = 0.5


def make(config: Config) -> Experiment:
  data = load_data(config)
  encoder = make_encoder(config, data)
  hidden = count_features(encoder, data.image_shape)
  head = MLPHead((hidden, config.projection), norm=BatchNorm, dtype=encoder.dtype)
  return make_pretraining(make_simclr(Embedder(encoder, head), config.temperature), data, config)


def main(config: Config) -> int:
  return pretrain(make(config), config)


if __name__ == "__main__":
  run(main, Config)
