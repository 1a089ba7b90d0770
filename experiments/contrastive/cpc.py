"""CPC: features from predicting, at a patch of an image, the patches some rows below it.

  python -m experiments.contrastive.cpc --seeds=8                        # digits
  python -m experiments.contrastive.cpc --dataset=mnist --data_dir=DIR --patch_size=8 --patch_stride=4

van den Oord et al. 2018 (arXiv:1807.03748).
"""

import dataclasses

from experiments.contrastive._pretraining import (
  AugmentationName,
  ContrastiveConfig,
  make_encoder,
  make_feeds as make_feeds,
  make_pretraining,
  pretrain,
)
from mlnotes.contrastive.cpc import CPCNetwork, RowContext, group_norm, make_cpc
from mlnotes.data.flags import load_data
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment
from mlnotes.engine.flags import field, run
from mlnotes.nn import GroupNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ContrastiveConfig):
  """Defaults: digits, eight seeds in under four minutes on two CPU cores."""

  steps: int = 300
  batch_size: int = 64
  width: int = 16
  projection: int = 64  # of a patch and of its context
  augmentation: AugmentationName = "none"
  patch_size: int = field(3, "pixels a side of a patch")
  patch_stride: int = field(1, "pixels between neighbouring patches")
  first_offset: int = field(0, "rows from a context to the first patch it predicts; 0: the first that share no pixel")
  num_offsets: int = field(2, "how many rows from there on are predicted, or as many as there are")
  context_layers: int = field(3, "masked convolutions of the context")

  def __post_init__(self):
    super().__post_init__()
    for name in ("patch_size", "patch_stride", "num_offsets", "context_layers"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.first_offset >= 0, "first_offset", self.first_offset, "0 or more")
    groups = GroupNorm.groups
    require(self.width % groups == 0, "width", self.width, f"a multiple of {groups}, the groups of its GroupNorm, or 0")

  def offsets(self, height: int) -> tuple[int, ...]:
    """The rows ahead that an image of this height allows. Raises InputError where there are none."""
    rows = (height - self.patch_size) // self.patch_stride + 1
    first = self.first_offset or -(-self.patch_size // self.patch_stride)
    expected = f"patches of which one lies --first_offset={first} rows below another in {height} pixels"
    require(
      first < rows, *(("first_offset", first) if self.first_offset else ("patch_size", self.patch_size)), expected
    )
    return tuple(range(first, min(first + self.num_offsets, rows)))


def make(config: Config) -> Experiment:
  data = load_data(config)
  encoder = make_encoder(config, data, group_norm)
  network = CPCNetwork(
    encoder=encoder,
    context=RowContext(config.projection, config.context_layers, encoder.dtype),
    features=config.projection,
    offsets=config.offsets(data.image_shape[0]),
    patch_size=config.patch_size,
    patch_stride=config.patch_stride,
  )
  return make_pretraining(make_cpc(network), data, config)


def main(config: Config) -> int:
  return pretrain(make(config), config)


if __name__ == "__main__":
  run(main, Config)
