"""From the common flags to an optax optimizer."""

import dataclasses
from typing import Literal

import jax
import optax

from mlnotes.flags import BaseConfig, field, require
from mlnotes.optim.lookahead import lookahead


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig(BaseConfig):
  """The flags of every experiment that trains with an optimizer."""

  learning_rate: float = field(1e-3, "peak learning rate, > 0")
  optimizer: Literal["adam", "adamw", "sgd", "lars"] = field("adam", "update rule; sgd and lars use --momentum")
  momentum: float = field(0.9, "momentum of sgd and lars, first-moment decay (beta 1) of adam and adamw, in [0, 1)")
  weight_decay: float = field(
    0.0, "decay of matrices and kernels, >= 0: decoupled for adamw, L2 in the gradient for adam, sgd and lars"
  )
  adam_eps: float = field(1e-8, "added to the root of the second moment by adam and adamw, > 0")
  clip_norm: float = field(0.0, "clip gradients to this global norm; 0 leaves them")
  lookahead: int = field(0, "wrap the optimizer in Lookahead with this synchronisation period; 0 is off")
  schedule: Literal["constant", "warmup_cosine", "linear", "step"] = field(
    "constant",
    "learning rate over time: constant, cosine or line to 0, or a tenth at 1/2 and again at 3/4 of --steps",
  )
  warmup_steps: int = field(0, "updates of linear warm-up from 0 before the schedule, at most half of --steps")

  def __post_init__(self):
    super().__post_init__()
    for name in ("learning_rate", "adam_eps"):
      require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
    require(0 <= self.momentum < 1, "momentum", self.momentum, "a number in [0, 1)")
    for name in ("weight_decay", "clip_norm", "lookahead", "warmup_steps"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")


def make_schedule(name: str, total_steps: int, warmup_steps: int = 0) -> optax.Schedule:
  """A schedule with peak 1 over `total_steps` updates, to be multiplied by the learning rate.

  The learning rate itself stays a traced value of the optimizer's state, so that changing it recompiles nothing.
  Raises ValueError where the warm-up leaves no update for the schedule.
  """
  rest = total_steps - warmup_steps
  if rest <= 0:
    raise ValueError(f"warmup_steps={warmup_steps} leaves nothing of total_steps={total_steps}: expected fewer.")
  decays = {
    "constant": optax.constant_schedule(1.0),
    "warmup_cosine": optax.cosine_decay_schedule(1.0, rest),
    "linear": optax.linear_schedule(1.0, 0.0, rest),
    "step": optax.piecewise_constant_schedule(1.0, {rest // 2: 0.1, 3 * rest // 4: 0.1}),
  }
  warmup = optax.linear_schedule(0.0, 1.0, warmup_steps)
  return optax.join_schedules([warmup, decays[name]], [warmup_steps]) if warmup_steps else decays[name]


def _decays(params):
  # Biases and the scales of normalisation layers are vectors and are not decayed.
  return jax.tree.map(lambda p: p.ndim > 1, params)


def make_optimizer(config: OptimConfig, total_steps: int, per_step: int = 1) -> optax.GradientTransformation:
  """The optimizer that the flags describe; `learning_rate`, `weight_decay` and `momentum` are in its state.

  Where one update of the loop takes `per_step` gradient steps, the schedule advances once per update.

  Order: clip, L2 (adam, sgd, lars), the rule, decoupled decay (adamw), schedule, learning rate, Lookahead around it
  all. LARS scales the update of each matrix or kernel to 0.001 of the norm of its weights (You et al. 2017, eq. 6).
  """
  over_updates = make_schedule(config.schedule, total_steps, min(config.warmup_steps, total_steps // 2))
  schedule = lambda count: over_updates(count // per_step)

  def chain(learning_rate, weight_decay, momentum):
    decay = [optax.add_decayed_weights(weight_decay, _decays)] if config.weight_decay else []
    coupled = config.optimizer != "adamw"
    trust = optax.masked(optax.scale_by_trust_ratio(trust_coefficient=1e-3), _decays)
    rules = {
      "sgd": [optax.trace(momentum)],
      "lars": [trust, optax.trace(momentum)],
      "adam": [optax.scale_by_adam(b1=momentum, eps=config.adam_eps)],
    }
    return optax.chain(
      *([optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []),
      *(decay if coupled else []),
      *rules["adam" if config.optimizer == "adamw" else config.optimizer],
      *([] if coupled else decay),
      optax.scale_by_schedule(schedule),
      optax.scale_by_learning_rate(learning_rate),
    )

  optimizer = optax.inject_hyperparams(chain)(
    learning_rate=config.learning_rate, weight_decay=config.weight_decay, momentum=config.momentum
  )
  return lookahead(optimizer, config.lookahead) if config.lookahead else optimizer
