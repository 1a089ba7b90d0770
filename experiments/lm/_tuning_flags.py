"""The flags of what goes on from a pretrained network: which one, and what trains of it."""

import dataclasses
import re
from typing import Any, Literal

from experiments.lm._models import DecoderConfig
from experiments.lm._tuning import METHODS
from experiments.lm._tuning_network import NETWORK_FLAGS
from mlnotes.data.flags import TextConfig
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.flags import field
from mlnotes.engine.loop import LoopConfig
from mlnotes.optim import ScheduleName
from mlnotes.optim.flags import OptimConfig, OptimizerName

_RATES = {"full": 1e-3, "last": 1e-3, "bias": 1e-2, "adapters": 3e-3, "lora": 5e-3, "features": 1e-2, "mix": 1e-2}
_OF_METHOD = {
  "last": ("last_layers",), "adapters": ("adapter_width",), "mix": ("mix_norm",),
  "lora": ("lora_rank", "lora_alpha", "lora_targets", "lora_dropout"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningConfig(DecoderConfig, TextConfig, OptimConfig, LoopConfig):
  """Of a subclass that also has `objective`, which its network was or is trained by."""

  pretrained: str = field("", "work directory of a run of lm.pretrain; empty: one is trained first, by the flags here")
  model_seed: int = field(-1, "which seed of a run with several, for all seeds here; -1: its first")
  checkpoint: Literal["last", "best"] = field("last", "which of the two kept checkpoints; best: the least loss")
  scratch: bool = field(False, "the same network from fresh parameters: what pretraining gives is what this lacks")
  pretrain_steps: int = field(1000, "updates of the network that is trained first")
  method: Literal[tuple(METHODS)] = field(
    "full",
    "what trains beside the head, full: all; last: --last_layers; bias: biases (BitFit); adapters: these and norms; "
    "lora: low-rank updates; features: nothing; mix: the weights of all layers' outputs (ELMo)",
  )
  last_layers: int = field(1, "of --method=last: how many")
  lora_rank: int = field(4, "of --method=lora: r")
  lora_alpha: float = field(8.0, "of --method=lora: an update weighs alpha / r")
  lora_targets: str = field("query,value", "of --method=lora: layers, or a regular expression of parameters' paths")
  lora_dropout: float = field(0.0, "of --method=lora: of what goes into the updates, in [0, 1)")
  dropout: float = field(
    0.0, "of the embeddings and of what each layer adds where the network learns, and before the head, in [0, 1)",
    refines=True,
  )  # fmt: skip

  length: int = 64
  stride: int = 1
  batch_size: int = 32
  optimizer: OptimizerName = "adamw"
  weight_decay: float = 0.01
  schedule: ScheduleName = "warmup_cosine"
  warmup_steps: int = 40
  clip_norm: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    for name in ("pretrain_steps", "last_layers", "lora_rank"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.length >= 2, "length", self.length, "2 or more")
    require(self.lora_alpha > 0, "lora_alpha", self.lora_alpha, "a number above 0")
    require(0 <= self.lora_dropout < 1, "lora_dropout", self.lora_dropout, "a number in [0, 1)")
    if self.weights and self.scratch:
      raise InputError("--scratch is of a network that has learned nothing: expected no --weights with it.")
    try:
      re.compile(self.lora_targets)
    except re.error as error:
      raise InputError(
        f"--lora_targets={self.lora_targets} is no regular expression ({error}): expected one, or names of layers."
      ) from error

  @classmethod
  def tuned(cls, **given: Any) -> Any:
    """Each method its own rate; biases need a network that has some."""
    method = given.get("method", "full")
    defaults: dict[str, Any] = {"learning_rate": _RATES.get(method, 1e-3)}
    if method == "bias" and not (given.get("pretrained") or given.get("weights")):
      defaults["model"] = "gpt2"
    return super().tuned(**{**defaults, **given})

  def idle_flags(self):
    idle = super().idle_flags()
    if self.pretrained:
      idle |= dict.fromkeys((*NETWORK_FLAGS, "pretrain_steps"), f"--pretrained={self.pretrained} has its own")
      idle.pop("data_dir", None)  # where the run's data are now
    else:
      idle |= dict.fromkeys(("model_seed", "checkpoint"), "--pretrained is empty")
      if self.weights:
        idle["pretrain_steps"] = f"--weights={self.weights} has been trained"
    if self.scratch:
      idle |= dict.fromkeys(("model_seed", "checkpoint", "pretrain_steps", "stride"), "--scratch has learned nothing")
    for method, names in _OF_METHOD.items():
      if method != self.method:
        idle |= {name: f"--method={self.method} has none" for name in names if hasattr(self, name)}
    return idle
