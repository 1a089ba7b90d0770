"""Instance discrimination: features from giving each training image a class of its own, remembered in a bank.

  python -m experiments.contrastive.instance --seeds=8                   # digits, non-parametric softmax
  python -m experiments.contrastive.instance --noise_samples=512 --proximal_weight=30    # NCE with its proximal term

Wu et al. 2018 (arXiv:1805.01978).
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
from mlnotes.contrastive.instance import make_instance_discrimination
from mlnotes.data.flags import load_data
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment
from mlnotes.engine.flags import field, run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TemperatureConfig, ContrastiveConfig):
  """Defaults: digits, eight seeds in under four minutes on two CPU cores."""

  bank_momentum: float = field(0.5, "how slowly the bank follows, in [0, 1]")
  noise_samples: int = field(0, "noise vectors of each example in NCE; 0: the softmax over the whole bank")
  proximal_weight: float = field(0.0, "lambda of the proximal term, >= 0")

  def __post_init__(self):
    super().__post_init__()
    require(0 <= self.bank_momentum <= 1, "bank_momentum", self.bank_momentum, "a number in [0, 1]")
    for name in ("noise_samples", "proximal_weight"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")


def make(config: Config) -> Experiment:
  data = load_data(config)
  encoder = make_encoder(config, data)
  method = make_instance_discrimination(
    Embedder(encoder, MLPHead((config.projection,), dtype=encoder.dtype)),
    len(data.train),
    temperature=config.temperature,
    bank_momentum=config.bank_momentum,
    noise_samples=config.noise_samples,
    proximal_weight=config.proximal_weight,
  )
  return make_pretraining(method, data, config)


def main(config: Config) -> int:
  return pretrain(make(config), config)


if __name__ == "__main__":
  run(main, Config)
