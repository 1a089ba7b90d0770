"""From the common flags to an optax optimizer."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import optax

from mlnotes.engine.errors import require
from mlnotes.engine.flags import BaseConfig, field
from mlnotes.optim.adabound import scale_by_adabound
from mlnotes.optim.decay import is_decayed
from mlnotes.optim.gradient import add_gradient_noise, add_l1
from mlnotes.optim.lookahead import lookahead
from mlnotes.optim.precision import accumulate_in_float32
from mlnotes.optim.rules import scale_by_amsgrad, scale_by_centred_rms
from mlnotes.optim.schedules import (
  ScheduleName,
  make_schedule,
)
from mlnotes.optim.swats import scale_by_swats

OptimizerName: TypeAlias = Literal[
  "sgd", "nesterov", "adagrad", "adadelta", "rmsprop", "rmsprop_centred", "adam", "nadam", "amsgrad", "adamw", "sgdw",
  "radam", "adabound", "amsbound", "swats", "lars",
]  # fmt: skip
DECOUPLED = ("adamw", "sgdw")
BOUNDED = ("adabound", "amsbound")  # their learning rate is within the rule
_ADAMS = ("adam", "adamw", "nadam", "amsgrad", "radam", "adabound", "amsbound", "swats")
# The optimizers that each of the flags about a rule changes.
USERS = {
  "momentum": ("sgd", "nesterov", "sgdw", "lars", *_ADAMS),
  "beta2": _ADAMS,
  "adam_eps": ("adagrad", "rmsprop", "rmsprop_centred", *_ADAMS),
  "final_learning_rate": BOUNDED,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig(BaseConfig):
  """The flags of every experiment that trains with an optimizer."""

  learning_rate: float = field(1e-3, "peak learning rate, > 0")
  optimizer: OptimizerName = field("adam", "update rule; sgd is plain with --momentum=0")
  momentum: float = field(
    0.9, "momentum of sgd, nesterov, sgdw and lars, first-moment decay (beta 1) of adam and its kin, in [0, 1)"
  )
  beta2: float = field(0.999, "second-moment decay of adam and its kin, in [0, 1)")
  adam_eps: float = field(
    1e-8, "added to the root of the second moment, > 0; adadelta has 1e-6 under the root, adagrad this one's square"
  )
  final_learning_rate: float = field(0.1, "the rate at which the bounds of adabound and amsbound meet, > 0")
  weight_decay: float = field(
    0.0, "decay of matrices and kernels, >= 0: decoupled for adamw and sgdw, L2 in the gradient for the others"
  )
  l1: float = field(0.0, "L1 penalty of matrices and kernels, >= 0, in the gradient")
  clip_norm: float = field(0.0, "clip gradients to this global norm; 0 leaves them")
  clip_value: float = field(0.0, "clip each entry of the gradients to this absolute value; 0 leaves them")
  gradient_noise: float = field(0.0, "variance of the noise added to gradients, fading as (1 + t)^-0.55; 0: none")
  lookahead: int = field(0, "wrap the optimizer in Lookahead with this synchronisation period; 0 is off")
  schedule: ScheduleName = field(
    "constant",
    "learning rate over --steps: step: a tenth at 1/2 and again at 3/4; exponential: to 1 %; polynomial: quadratic to "
    "0; cosine (warmup_cosine is its other name) and linear: to 0; triangular: 4 periods from a tenth; one_cycle: up "
    "over 30 %, then to 0; warm_restarts: cosines of 1/7, 2/7 and 4/7; inverse_sqrt: from the warm-up's end",
  )
  warmup_steps: int = field(
    0, "updates of linear warm-up from 0 before the schedule, at most half of --steps; the default gives way to that"
  )

  def __post_init__(self):
    super().__post_init__()
    for name, known in (("optimizer", OptimizerName), ("schedule", ScheduleName)):
      require(getattr(self, name) in get_args(known), name, getattr(self, name), f"one of {', '.join(get_args(known))}")
    for name in ("learning_rate", "adam_eps", "final_learning_rate"):
      require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
    for name in ("momentum", "beta2"):
      require(0 <= getattr(self, name) < 1, name, getattr(self, name), "a number in [0, 1)")
    for name in ("weight_decay", "l1", "clip_norm", "clip_value", "gradient_noise", "lookahead", "warmup_steps"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
    if getattr(self, "steps", 0) > 0:
      count_warmup(self, self.steps)

  def idle_flags(self):
    idle = super().idle_flags()
    for name, users in USERS.items():
      if self.optimizer not in users:
        idle[name] = f"--optimizer={self.optimizer} has none"
    steps = getattr(self, "steps", 0)
    if 0 < steps < 2 * self.warmup_steps:
      idle["warmup_steps"] = f"the warm-up is half of --steps={steps}"
    return idle


def count_warmup(config: OptimConfig, total_steps: int) -> int:
  """Updates of warm-up in a run of `total_steps`. The config's default, which nobody asked for, is cut to half of them.

  Raises InputError for another number of more than half: the rate would not be what the flags say.
  """
  most = total_steps // 2
  fits = config.warmup_steps <= most or config.warmup_steps == type(config).warmup_steps
  require(fits, "warmup_steps", config.warmup_steps, f"at most {most}, half of --steps={total_steps}")
  return min(config.warmup_steps, most)


def _rules(config: OptimConfig, learning_rate: Any, momentum: Any, final_learning_rate: Any) -> dict[str, Callable]:
  adam = dict(b1=momentum, b2=config.beta2, eps=config.adam_eps)
  bounded = lambda amsbound: scale_by_adabound(learning_rate, final_learning_rate, **adam, amsbound=amsbound)
  trust = optax.masked(optax.scale_by_trust_ratio(trust_coefficient=1e-3), is_decayed)
  return {
    "sgd": lambda: optax.trace(momentum),
    "nesterov": lambda: optax.trace(momentum, nesterov=True),
    "sgdw": lambda: optax.trace(momentum),
    "lars": lambda: optax.chain(trust, optax.trace(momentum)),
    "adagrad": lambda: optax.scale_by_rss(0.0, config.adam_eps**2),
    "adadelta": lambda: optax.scale_by_adadelta(0.9, 1e-6),
    "rmsprop": lambda: optax.scale_by_rms(0.99, config.adam_eps, eps_in_sqrt=False),
    "rmsprop_centred": lambda: scale_by_centred_rms(0.99, config.adam_eps),
    "adam": lambda: optax.scale_by_adam(**adam),
    "adamw": lambda: optax.scale_by_adam(**adam),
    "nadam": lambda: optax.scale_by_adam(**adam, nesterov=True),
    "amsgrad": lambda: scale_by_amsgrad(**adam),
    "radam": lambda: optax.scale_by_radam(**adam),
    "adabound": lambda: bounded(False),
    "amsbound": lambda: bounded(True),
    "swats": lambda: scale_by_swats(**adam),
  }


def make_optimizer(config: OptimConfig, total_steps: int, per_step: int = 1) -> optax.GradientTransformation:
  """The optimizer that the flags describe; its state holds `learning_rate`, `weight_decay`, `momentum` and such.

  Where one update of the loop takes `per_step` gradient steps, the schedule advances once per update.

  Order: noise, clip by value, by norm, L1 and L2, the rule, decoupled decay (adamw, sgdw: times the learning rate),
  schedule, learning rate, Lookahead around it all; state in float32. Decayed, penalised and scaled by LARS is what
  `is_decayed` says. Raises InputError as `count_warmup` does. The rules' conventions:

    sgd, nesterov   v <- momentum v + g, p <- p - rate v (or rate (g + momentum v)), as torch; Sutskever et al. 2013
    adagrad         starts at 0; Duchi et al. 2011
    adadelta        decay 0.9, learning rate 1 is the paper's; Zeiler 2012
    rmsprop         decay 0.99, eps outside the root, as torch; no momentum; Hinton 2012
    nadam           constant momentum, as `optax.nadam`; torch's grows over time; Dozat 2016
    amsgrad         bias corrections as torch: `scale_by_amsgrad`
    radam           as torch: Adam's momentum alone for the first updates; Liu et al. 2020
    lars            the update of a matrix or kernel is 0.001 of the norm of its weights; You et al. 2017, eq. 6
  """
  over_updates = make_schedule(config.schedule, total_steps, count_warmup(config, total_steps))
  schedule = lambda count: over_updates(count // per_step)

  def chain(learning_rate, weight_decay, momentum, final_learning_rate=None, l1=None, gradient_noise=None):
    decay = [optax.add_decayed_weights(weight_decay, is_decayed)] if config.weight_decay else []
    decoupled = config.optimizer in DECOUPLED
    bounded = config.optimizer in BOUNDED
    return optax.chain(
      *([add_gradient_noise(gradient_noise)] if config.gradient_noise else []),
      *([optax.clip(config.clip_value)] if config.clip_value else []),
      *([optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []),
      *([optax.masked(add_l1(l1), is_decayed)] if config.l1 else []),
      *([] if decoupled else decay),
      _rules(config, learning_rate, momentum, final_learning_rate)[config.optimizer](),
      *(decay if decoupled else []),
      optax.scale_by_schedule(schedule),
      optax.scale_by_learning_rate(1.0 if bounded else learning_rate),
    )

  used = {
    "final_learning_rate": config.optimizer in BOUNDED, "l1": config.l1, "gradient_noise": config.gradient_noise
  }  # fmt: skip
  optimizer = optax.inject_hyperparams(chain)(
    learning_rate=config.learning_rate,
    weight_decay=config.weight_decay,
    momentum=config.momentum,
    **{name: getattr(config, name) for name, is_used in used.items() if is_used},
  )
  return accumulate_in_float32(lookahead(optimizer, config.lookahead) if config.lookahead else optimizer)
