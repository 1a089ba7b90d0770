"""Optimizers and learning-rate schedules, one way to build them from flags, and tools that look at a loss surface.

What optax has is optax's, under the field's name (notes: 优化, optimization).
"""

from optax import (
  adadelta as adadelta,
  adagrad as adagrad,
  adam as adam,
  adamw as adamw,
  add_decayed_weights as add_decayed_weights,
  clip as clip,
  clip_by_global_norm as clip_by_global_norm,
  constant_schedule as constant_schedule,
  cosine_decay_schedule as cosine_decay_schedule,
  cosine_onecycle_schedule as cosine_onecycle_schedule,
  exponential_decay as exponential_decay,
  join_schedules as join_schedules,
  lars as lars,
  linear_schedule as linear_schedule,
  nadam as nadam,
  piecewise_constant_schedule as piecewise_constant_schedule,
  polynomial_schedule as polynomial_schedule,
  radam as radam,
  rmsprop as rmsprop,
  sgd as sgd,
  warmup_cosine_decay_schedule as warmup_cosine_decay_schedule,
)

from mlnotes.optim.adabound import (
  adabound as adabound,
  compute_rate_bounds as compute_rate_bounds,
  scale_by_adabound as scale_by_adabound,
)
from mlnotes.optim.curvature import (
  classify_critical_point as classify_critical_point,
  compute_extreme_eigenvalues as compute_extreme_eigenvalues,
  compute_hessian as compute_hessian,
  compute_minimum_ratio as compute_minimum_ratio,
  compute_sharpness as compute_sharpness,
  escape_saddle as escape_saddle,
  estimate_spectrum as estimate_spectrum,
  hessian_vector_product as hessian_vector_product,
  lanczos as lanczos,
)
from mlnotes.optim.decay import is_decayed as is_decayed
from mlnotes.optim.ema import update_average as update_average, update_ema as update_ema
from mlnotes.optim.gradient import add_gradient_noise as add_gradient_noise, add_l1 as add_l1
from mlnotes.optim.landscape import (
  fit_plane as fit_plane,
  normalize_filters as normalize_filters,
  project as project,
  sample_direction as sample_direction,
  slice_line as slice_line,
  slice_plane as slice_plane,
)
from mlnotes.optim.lookahead import LookaheadState as LookaheadState, eval_params as eval_params, lookahead as lookahead
from mlnotes.optim.newton import (
  conjugate_gradients as conjugate_gradients,
  gauss_newton as gauss_newton,
  newton as newton,
)
from mlnotes.optim.precision import accumulate_in_float32 as accumulate_in_float32
from mlnotes.optim.rules import (
  ScaleByAmsgradState as ScaleByAmsgradState,
  amsgrad as amsgrad,
  scale_by_amsgrad as scale_by_amsgrad,
  scale_by_centred_rms as scale_by_centred_rms,
  sgdw as sgdw,
)
from mlnotes.optim.schedules import (
  ScheduleName as ScheduleName,
  inverse_square_root as inverse_square_root,
  make_schedule as make_schedule,
  triangular as triangular,
  two_drops as two_drops,
  warm_restarts as warm_restarts,
  warm_up as warm_up,
)
from mlnotes.optim.swats import ScaleBySwatsState as ScaleBySwatsState, scale_by_swats as scale_by_swats, swats as swats
