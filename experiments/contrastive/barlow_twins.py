"""Barlow Twins: features from two views whose embeddings correlate feature by feature; no negatives, no momentum.

  python -m experiments.contrastive.barlow_twins --seeds=8               # digits

Zbontar et al. 2021 (arXiv:2103.03230).
"""

import dataclasses

from experiments.contrastive._pretraining import (
  ContrastiveConfig,
  make_encoder,
  make_feeds as make_feeds,
  make_pretraining,
  pretrain,
)
from mlnotes.contrastive.barlow_twins import make_barlow_twins
from mlnotes.contrastive.heads import Embedder, MLPHead
from mlnotes.data.flags import load_data
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment
from mlnotes.engine.flags import field, run
from mlnotes.nn import BatchNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ContrastiveConfig):
  """Defaults: digits, three seeds in a minute and a half on two CPU cores."""

  redundancy_weight: float = field(5e-3, "lambda, of the correlations between different features, >= 0")

  def __post_init__(self):
    super().__post_init__()
    require(self.redundancy_weight >= 0, "redundancy_weight", self.redundancy_weight, "0 or more")


def make(config: Config) -> Experiment:
  data = load_data(config)
  encoder = make_encoder(config, data)
  head = MLPHead((config.projection,) * 3, norm=BatchNorm, norm_last=True, dtype=encoder.dtype)
  return make_pretraining(make_barlow_twins(Embedder(encoder, head), config.redundancy_weight), data, config)


def main(config: Config) -> int:
  return pretrain(make(config), config)


if __name__ == "__main__":
  run(main, Config)
