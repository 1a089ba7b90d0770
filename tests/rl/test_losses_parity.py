"""Gradients of DQN, DDPG and SAC's density against stable-baselines3, on the same weights and transitions.

stable-baselines3 takes one step of plain gradient descent with rate 1, so that the change of its parameters is the
gradient.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.rl import ddpg, dqn
from mlnotes.rl.distributions import TanhGaussian
from mlnotes.rl.replay import Transition

pytestmark = pytest.mark.parity

sb3 = pytest.importorskip("stable_baselines3")
torch = pytest.importorskip("torch")

GAMMA, BATCH = 0.9, 16


def as_flax(module):
  """The parameters of a torch Sequential of linear layers as those of `MLP`."""
  layers = [m for m in module if isinstance(m, torch.nn.Linear)]
  copy = lambda m: {"kernel": jnp.array(m.weight.detach().numpy().T), "bias": jnp.array(m.bias.detach().numpy())}
  return {"params": {"MLP_0": {f"Dense_{i}": copy(m) for i, m in enumerate(layers)}}}


def perturb(module, seed):
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for p in module.parameters():
      p.add_(0.1 * torch.randn(p.shape, generator=generator))


def batch(observation_size, action, seed=0):
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  discount = np.float32(rng.random(BATCH) < 0.7)
  return Transition(
    normal(BATCH, observation_size), action(rng), 3 * normal(BATCH), discount, normal(BATCH, observation_size)
  )


def take_one_gradient_step(model, module, optimizers, t):
  """One step of `model.train` on the transitions `t`: the gradient that `module`'s parameters moved by."""
  from stable_baselines3.common.logger import Logger
  from stable_baselines3.common.type_aliases import ReplayBufferSamples

  column = lambda x: torch.as_tensor(x).reshape(BATCH, -1)
  samples = ReplayBufferSamples(
    torch.as_tensor(t.observation), column(t.action), torch.as_tensor(t.next_observation), column(1 - t.discount),
    column(t.reward), column(np.full(BATCH, GAMMA, np.float32)),
  )  # fmt: skip
  model.replay_buffer.sample = lambda *args, **kwargs: samples
  model.set_logger(Logger(None, []))
  for owner in optimizers:
    parameters = owner.optimizer.param_groups[0]["params"]
    owner.optimizer = torch.optim.SGD(parameters, lr=1.0)
  before = as_flax(module)
  model.lr_schedule = lambda _: 1.0
  model.train(gradient_steps=1, batch_size=BATCH)
  return before, jax.tree.map(lambda a, b: a - b, before, as_flax(module))


def assert_trees_close(a, b, **tolerance):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_dqn_gradient():
  model = sb3.DQN("MlpPolicy", "CartPole-v1", gamma=GAMMA, max_grad_norm=1e6, buffer_size=10, device="cpu",
                  policy_kwargs=dict(net_arch=[8, 8]))  # fmt: skip
  perturb(model.q_net_target, 1)
  target = as_flax(model.q_net_target.q_net)
  transitions = batch(4, lambda rng: rng.integers(0, 2, BATCH).astype(np.int64))
  params, expected = take_one_gradient_step(model, model.q_net.q_net, [model.policy], transitions)
  network = dqn.QNetwork((8, 8), 2)
  t = jax.tree.map(jnp.asarray, transitions._replace(action=transitions.action.astype(np.int32)))

  def loss(params):
    one = lambda t: dqn.compute_dqn_loss(network.apply, params, target, t, GAMMA, double=False)
    return jnp.mean(jax.vmap(one)(t))

  assert_trees_close(jax.jit(jax.grad(loss))(params), expected, rtol=1e-4, atol=2e-6)


def test_ddpg_critic_gradient():
  model = sb3.DDPG("MlpPolicy", "Pendulum-v1", gamma=GAMMA, buffer_size=10, device="cpu",
                   policy_kwargs=dict(net_arch=[8, 8]))  # fmt: skip
  perturb(model.critic_target, 2)
  perturb(model.actor_target, 3)
  target = {"critic": as_flax(model.critic_target.qf0), "actor": as_flax(model.actor_target.mu)}
  transitions = batch(3, lambda rng: rng.uniform(-1, 1, (BATCH, 1)).astype(np.float32))
  params, expected = take_one_gradient_step(model, model.critic.qf0, [model.critic, model.actor], transitions)
  actor, critic = ddpg.Actor((8, 8), 1), ddpg.Critic((8, 8))
  t = jax.tree.map(jnp.asarray, transitions)

  def loss(params):
    one = lambda t: ddpg.compute_critic_loss(actor.apply, critic.apply, {"critic": params}, target, t, GAMMA)
    return jnp.mean(jax.vmap(one)(t))

  # Their loss is the mean square, without the half.
  ours = jax.tree.map(lambda g: 2 * g, jax.jit(jax.grad(loss))(params))
  assert_trees_close(ours, expected, rtol=1e-4, atol=2e-6)


def test_sac_log_prob():
  from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution

  rng = np.random.default_rng(4)
  mean, log_std, normal = (rng.standard_normal((64, 3)).astype(np.float32) for _ in range(3))
  policy = TanhGaussian(jnp.asarray(mean), jnp.asarray(0.3 * log_std))
  action, pre_tanh = policy.sample(jnp.asarray(normal))
  theirs = SquashedDiagGaussianDistribution(3)
  theirs.proba_distribution(torch.as_tensor(mean), torch.as_tensor(0.3 * log_std))
  expected = theirs.log_prob(torch.tensor(np.asarray(action)), torch.tensor(np.asarray(pre_tanh)))
  # They add 1e-6 inside the logarithm, which shows where the action is close to 1.
  inner = np.all(np.abs(np.asarray(action)) < 0.99, axis=-1)
  assert inner.sum() > 30
  np.testing.assert_allclose(np.asarray(policy.log_prob(pre_tanh))[inner], expected.numpy()[inner], atol=5e-4)
