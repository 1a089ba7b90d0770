"""The flags of the methods that differentiate through the inner loop."""

import dataclasses
from typing import ClassVar, Literal

from experiments.meta._meta_training import MetaConfig
from mlnotes.engine.errors import require
from mlnotes.engine.flags import field
from mlnotes.meta.learner import Learner
from mlnotes.meta.maml import make_maml
from mlnotes.meta.method import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class MAMLConfig(MetaConfig):
  """The flags of the methods that differentiate through the inner loop."""

  TUNED: ClassVar = {
    "images": dict(
      batch_size=16, shots=1, queries=5, inner_learning_rate=0.4, eval_inner_steps=3, width=32, steps=2000,
      eval_every=500, checkpoint_every=500, log_every=50, eval_examples=200, test_tasks=1000,
    )
  }  # fmt: skip

  order: Literal["second", "first"] = field(
    "second", "of the outer gradient; first leaves out the second derivatives: FOMAML"
  )
  adapted: Literal["all", "head"] = field("all", "layers that the inner loop changes; head, the last one: ANIL")
  multi_step_updates: int = field(
    0, "over so many first updates the query loss after every inner step counts, ever less against the last; 0: off"
  )

  def __post_init__(self):
    super().__post_init__()
    require(self.multi_step_updates >= 0, "multi_step_updates", self.multi_step_updates, "0 or more")

  def idle_flags(self):
    alone = {"multi_step_updates": "with --inner_steps=1 the last step is the only one"}
    return super().idle_flags() | (alone if self.inner_steps == 1 else {})


def make_method(learner: Learner, config: MAMLConfig, learn: Literal["nothing", "step_rates", "rates"]) -> Method:
  """`make_maml` by the flags."""
  names = ("inner_optimizer", "inner_learning_rate", "inner_steps", "order", "adapted", "multi_step_updates", "remat")
  return make_maml(learner, learn=learn, **{name: getattr(config, name) for name in names})
