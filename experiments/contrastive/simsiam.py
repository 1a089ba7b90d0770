"""SimSiam: features from two views alone, held from collapse by a predictor and a stopped gradient.

  python -m experiments.contrastive.simsiam --seeds=8                    # digits
  python -m experiments.contrastive.simsiam --nostop_gradient            # collapses, and says so

Chen & He 2021 (arXiv:2011.10566).
"""

import dataclasses

from experiments.contrastive._pretraining import (
  ContrastiveConfig,
  make_encoder,
  make_feeds as make_feeds,
  make_pretraining,
  pretrain,
)
from mlnotes.contrastive.heads import Embedder, MLPHead
from mlnotes.contrastive.simsiam import make_simsiam
from mlnotes.data.flags import load_data
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment
from mlnotes.engine.flags import field, run
from mlnotes.nn import BatchNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ContrastiveConfig):
  """Defaults: digits, eight seeds in under four minutes on two CPU cores."""

  projection_layers: int = field(
    2, "dense layers of the projection head: 2 for small images, 3 in the paper's ImageNet"
  )
  bottleneck: int = field(32, "hidden features of the predictor")
  stop_gradient: bool = field(True, "stop the gradient of the target; without it the embedding collapses")

  def __post_init__(self):
    super().__post_init__()
    for name in ("projection_layers", "bottleneck"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")


def make(config: Config) -> Experiment:
  data = load_data(config)
  encoder = make_encoder(config, data)
  norm = {"norm": BatchNorm, "dtype": encoder.dtype}
  head = MLPHead((config.projection,) * config.projection_layers, norm_last=True, **norm)
  predictor = MLPHead((config.bottleneck, config.projection), **norm)
  return make_pretraining(make_simsiam(Embedder(encoder, head, predictor), config.stop_gradient), data, config)


def main(config: Config) -> int:
  return pretrain(make(config), config)


if __name__ == "__main__":
  run(main, Config)
