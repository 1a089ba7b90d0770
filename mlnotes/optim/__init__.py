"""Optimizers and learning-rate schedules, and one way to build them from flags (notes: 优化, optimization)."""

from mlnotes.optim.build import OptimConfig as OptimConfig
from mlnotes.optim.build import make_optimizer as make_optimizer
from mlnotes.optim.build import make_schedule as make_schedule
from mlnotes.optim.ema import update_average as update_average
from mlnotes.optim.ema import update_ema as update_ema
from mlnotes.optim.lookahead import LookaheadState as LookaheadState
from mlnotes.optim.lookahead import lookahead as lookahead
