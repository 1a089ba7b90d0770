"""Tiny environments whose values are known in closed form: what an agent learns there is right or wrong."""

import jax.numpy as jnp

from mlnotes.rl.env import Box, Discrete, Environment, TimeStep

TWO_ACTIONS = Discrete(2)


def constant_reward_env(
  time_limit: int, terminates: bool, actions: Discrete | Box = TWO_ACTIONS, clock: bool = True
) -> Environment:
  """Reward 1 per step for `time_limit` steps, whatever one does; then the episode terminates or is truncated.

  With termination the value of the state at t is the sum of gamma^k for k < time_limit - t. With truncation no state
  knows of an end, and all values are 1 / (1 - gamma), if every bootstrap is right. The observation is t, as a vector;
  without `clock` it is 0: then the state in which an episode is cut looks like those that values are learned in.
  """

  def observe(time):
    return clock * time.astype(jnp.float32)[None]

  def reset(key):
    time = jnp.zeros([], jnp.int32)
    return time, observe(time)

  def step(key, time, action):
    time = time + 1
    ended = time >= time_limit
    discount = jnp.where(ended & terminates, 0.0, 1.0)
    observation = observe(time)
    return time, TimeStep(observation, jnp.ones([]), discount, ended, observation)

  observations = Box((1,), 0.0, float(time_limit))
  return Environment("ConstantReward", reset, step, observations, actions, time_limit)
