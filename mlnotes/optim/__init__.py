"""Optimizers and learning-rate schedules, one way to build them from flags, and tools that look at a loss surface.

What optax has is optax's, under the field's name (notes: 优化, optimization).
"""

from optax import adadelta as adadelta
from optax import adagrad as adagrad
from optax import adam as adam
from optax import adamw as adamw
from optax import add_decayed_weights as add_decayed_weights
from optax import clip as clip
from optax import clip_by_global_norm as clip_by_global_norm
from optax import join_schedules as join_schedules
from optax import lars as lars
from optax import nadam as nadam
from optax import radam as radam
from optax import rmsprop as rmsprop
from optax import sgd as sgd

from mlnotes.optim.adabound import adabound as adabound
from mlnotes.optim.adabound import compute_rate_bounds as compute_rate_bounds
from mlnotes.optim.adabound import scale_by_adabound as scale_by_adabound
from mlnotes.optim.build import OptimConfig as OptimConfig
from mlnotes.optim.build import OptimizerName as OptimizerName
from mlnotes.optim.build import ScheduleName as ScheduleName
from mlnotes.optim.build import make_optimizer as make_optimizer
from mlnotes.optim.build import make_schedule as make_schedule
from mlnotes.optim.curvature import classify_critical_point as classify_critical_point
from mlnotes.optim.curvature import compute_extreme_eigenvalues as compute_extreme_eigenvalues
from mlnotes.optim.curvature import compute_hessian as compute_hessian
from mlnotes.optim.curvature import compute_minimum_ratio as compute_minimum_ratio
from mlnotes.optim.curvature import compute_sharpness as compute_sharpness
from mlnotes.optim.curvature import escape_saddle as escape_saddle
from mlnotes.optim.curvature import estimate_spectrum as estimate_spectrum
from mlnotes.optim.curvature import hessian_vector_product as hessian_vector_product
from mlnotes.optim.curvature import lanczos as lanczos
from mlnotes.optim.ema import update_average as update_average
from mlnotes.optim.ema import update_ema as update_ema
from mlnotes.optim.gradient import add_gradient_noise as add_gradient_noise
from mlnotes.optim.gradient import add_l1 as add_l1
from mlnotes.optim.landscape import fit_plane as fit_plane
from mlnotes.optim.landscape import normalize_filters as normalize_filters
from mlnotes.optim.landscape import project as project
from mlnotes.optim.landscape import sample_direction as sample_direction
from mlnotes.optim.landscape import slice_line as slice_line
from mlnotes.optim.landscape import slice_plane as slice_plane
from mlnotes.optim.lookahead import LookaheadState as LookaheadState
from mlnotes.optim.lookahead import lookahead as lookahead
from mlnotes.optim.newton import conjugate_gradients as conjugate_gradients
from mlnotes.optim.newton import gauss_newton as gauss_newton
from mlnotes.optim.newton import newton as newton
from mlnotes.optim.precision import accumulate_in_float32 as accumulate_in_float32
from mlnotes.optim.rules import scale_by_amsgrad as scale_by_amsgrad
from mlnotes.optim.rules import scale_by_centred_rms as scale_by_centred_rms
from mlnotes.optim.rules import sgdw as sgdw
from mlnotes.optim.schedules import inverse_square_root as inverse_square_root
from mlnotes.optim.schedules import triangular as triangular
from mlnotes.optim.schedules import warm_restarts as warm_restarts
from mlnotes.optim.schedules import warm_up as warm_up
from mlnotes.optim.swats import ScaleBySwatsState as ScaleBySwatsState
from mlnotes.optim.swats import scale_by_swats as scale_by_swats
from mlnotes.optim.swats import swats as swats
