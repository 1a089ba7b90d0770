"""Reinforcement learning: from tables to continuous control (notes: 强化学习)."""

from mlnotes.rl.distributions import (
  Categorical as Categorical,
  DiagonalGaussian as DiagonalGaussian,
  TanhGaussian as TanhGaussian,
)
from mlnotes.rl.dqn import (
  QNetwork as QNetwork,
  compute_dqn_loss as compute_dqn_loss,
  compute_q_target as compute_q_target,
)
from mlnotes.rl.dynamic_programming import (
  evaluate_policy as evaluate_policy,
  greedy_policy as greedy_policy,
  policy_iteration as policy_iteration,
  value_iteration as value_iteration,
)
from mlnotes.rl.env import (
  Actors as Actors,
  Box as Box,
  Discrete as Discrete,
  Environment as Environment,
  TimeStep as TimeStep,
  Trajectory as Trajectory,
  clip_actions as clip_actions,
  init_actors as init_actors,
  rollout as rollout,
  step_with_reset as step_with_reset,
)
from mlnotes.rl.gymnax_env import make_gymnax_env as make_gymnax_env
from mlnotes.rl.normalize import (
  Moments as Moments,
  init_moments as init_moments,
  normalize as normalize,
  update_moments as update_moments,
)
from mlnotes.rl.ppo import (
  approximate_kl as approximate_kl,
  clipped_surrogate_loss as clipped_surrogate_loss,
  clipped_value_loss as clipped_value_loss,
)
from mlnotes.rl.registry import make_env as make_env
from mlnotes.rl.replay import Replay as Replay, add as add, init_replay as init_replay, sample as sample
from mlnotes.rl.returns import (
  compute_gae as compute_gae,
  discounted_returns as discounted_returns,
  lambda_returns as lambda_returns,
  n_step_returns as n_step_returns,
  retrace as retrace,
  vtrace as vtrace,
)
from mlnotes.rl.table import Table as Table, make_table_env as make_table_env, read_table as read_table
from mlnotes.rl.tabular import RULES as RULES
from mlnotes.rl.tiles import (
  fourier_features as fourier_features,
  make_fourier_basis as make_fourier_basis,
  make_tiling as make_tiling,
  tile_indices as tile_indices,
)
from mlnotes.rl.trpo import conjugate_gradient as conjugate_gradient, trust_region_step as trust_region_step
