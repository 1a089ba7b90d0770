"""MinAtar's games of gymnax beside those of MinAtar itself (Young & Tian 2019), from the same states.

MinAtar is no dependency: it is under the GPL, and it asks for pandas and seaborn, which only its drawing uses. To run
these: `pip install --no-deps MinAtar`.

What differs, by design of either:
- MinAtar repeats the last action with probability 0.1 (sticky actions); here every action is taken.
- Episodes of Breakout, Asterix and Space Invaders have no time limit there, and are truncated after 1,000 steps here.
  Freeway *terminates* after its 2,501st step there, and is *truncated* after its 2,500th here.
- In Asterix, where an entity is due and all eight lanes are taken, nothing happens there; here one entity vanishes, and
  so it may where one lane alone is free. Lanes fill up only late in an episode.
- Seaquest is not in gymnax.
"""

import importlib
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.rl.registry import make_env

pytestmark = pytest.mark.parity

logging.disable(logging.WARNING)  # that seaborn is absent, so that nothing can be drawn
pytest.importorskip("minatar")
logging.disable(logging.NOTSET)

STEPS = 2000
SAME = {
  "breakout": ("ball_y", "ball_x", "ball_dir", "pos", "brick_map", "strike", "last_x", "last_y"),
  "asterix": (
    "player_x", "player_y", "spawn_speed", "spawn_timer", "move_speed", "move_timer", "ramp_timer", "ramp_index",
  ),
  "space_invaders": (
    "pos", "f_bullet_map", "e_bullet_map", "alien_map", "alien_dir", "enemy_move_interval", "alien_move_timer",
    "alien_shot_timer", "ramp_index", "shot_timer",
  ),
  "freeway": ("pos", "cars", "move_timer"),
}  # fmt: skip
NAMES = {name: name.title().replace("_", "") + "-MinAtar" for name in SAME}


def read(name: str, game: Any) -> dict[str, np.ndarray]:
  """The state of MinAtar's game in the words of gymnax's."""
  state = {part: np.array(getattr(game, part)) for part in SAME[name]}
  if name == "asterix":
    rows = [(0,) * 5 if entity is None else (*map(int, entity), 1) for entity in game.entities]
    state["entities"] = np.array(rows)
  return state


def choose(rng: np.random.Generator, name: str, game: Any, actions: list[int]) -> int:
  """Random play; the ball is followed often enough, and the road crossed, that games last and are won."""
  if name == "breakout" and rng.random() < 0.9:
    ahead = game.ball_x + (1 if game.ball_dir in (1, 2) else -1)
    return 0 if ahead == game.pos else 1 if ahead < game.pos else 2
  if name == "freeway" and rng.random() < 0.8:
    return 1
  return int(rng.integers(len(actions)))


def play(name: str) -> tuple[dict, np.ndarray, dict, np.ndarray, np.ndarray, np.ndarray]:
  """(states, actions, states after, observations after, rewards, terminations) of MinAtar, first states left out."""
  game = importlib.import_module(f"minatar.environments.{name}").Env(ramping=True)
  game.random, rng = np.random.RandomState(0), np.random.default_rng(0)
  game.reset()
  actions, rows = game.minimal_action_set(), []
  for _ in range(STEPS):
    before, action = read(name, game), choose(rng, name, game, actions)
    reward, terminal = game.act(actions[action])
    rows.append((before, action, read(name, game), game.state(), reward, terminal))
    if terminal:
      game.reset()
  stack = lambda values: {part: np.stack([v[part] for v in values]) for part in values[0]}
  columns = list(zip(*rows))
  return stack(columns[0]), np.array(columns[1]), stack(columns[2]), *map(np.array, columns[3:])


def step_from(name: str, parts: dict[str, np.ndarray], action: np.ndarray) -> tuple[Any, Any]:
  """(states, time steps) of gymnax's game after one step from each state, all with keys of their own."""
  env = make_env(NAMES[name])
  first, _ = jax.jit(env.reset)(jax.random.key(0))
  like = {part: jnp.asarray(value, getattr(first, part).dtype) for part, value in parts.items()}
  step = jax.jit(jax.vmap(lambda key, parts, a: env.step(key, first.replace(**parts), a)))
  return jax.device_get(step(jax.random.split(jax.random.key(1), len(action)), like, jnp.asarray(action, jnp.int32)))


@pytest.mark.parametrize("name", SAME)
def test_every_step_is_minatars(name):
  """State, observation, reward and termination, but for the steps in which something is drawn at random."""
  before, action, after, observation, reward, terminal = play(name)
  state, found = step_from(name, before, action)
  settled = np.ones(STEPS, bool)
  if name == "asterix":
    settled = before["spawn_timer"] > 0
  elif name == "freeway":
    settled = reward == 0
    np.testing.assert_array_equal(found.reward, reward)
  assert settled.mean() > 0.85
  for part, value in after.items():
    rows = settled & ~terminal  # a game that is over is not looked at again
    mine = getattr(state, part)
    if part == "entities":
      mine = mine * mine[..., -1:]  # nor is a lane that nothing is in
    np.testing.assert_array_equal(mine[rows], value[rows], err_msg=part)
  np.testing.assert_array_equal(found.next_observation[settled], observation[settled])
  np.testing.assert_array_equal(found.reward[settled], reward[settled])
  np.testing.assert_array_equal(found.discount[settled] == 0, terminal[settled])
  np.testing.assert_array_equal(found.last[settled], terminal[settled])
  assert reward.sum() > 10 and (name == "freeway" or terminal.sum() > 3)


def assert_same_shares(mine: np.ndarray, theirs: np.ndarray) -> None:
  """Two samples of the same size from one distribution over a few numbers, within five standard errors."""
  for value in np.unique(np.concatenate([mine, theirs])):
    p, q = np.mean(mine == value), np.mean(theirs == value)
    assert p > 0 and abs(p - q) <= 5 * np.sqrt(2 * q * (1 - q) / len(mine)), (value, p, q)


def test_what_appears_in_asterix_is_drawn_as_minatar_draws_it():
  game = importlib.import_module("minatar.environments.asterix").Env()
  game.random = np.random.RandomState(0)
  drawn = []
  for _ in range(STEPS):
    game.reset()
    game._spawn_entity()
    drawn.append(next(entity for entity in game.entities if entity is not None))
  game.reset()
  game.spawn_timer = 0
  parts = {part: np.stack([value] * STEPS) for part, value in read("asterix", game).items()}
  state, _ = step_from("asterix", parts, np.zeros(STEPS))
  assert (state.entities[..., 4].sum(1) == 1).all()
  mine = state.entities[state.entities[..., 4] == 1]
  for column, theirs in enumerate(np.array(drawn).T):  # place, lane, direction, gold
    assert_same_shares(mine[:, column], theirs)
  assert_same_shares(mine[:, 2] * 2 + mine[:, 3], np.array(drawn)[:, 2] * 2 + np.array(drawn)[:, 3])
  # All lanes taken: nothing happens in MinAtar, one entity vanishes in gymnax.
  game.entities = [[3, lane + 1, True, False] for lane in range(8)]
  parts = {part: np.stack([value] * 2) for part, value in read("asterix", game).items()}
  assert (step_from("asterix", parts, np.zeros(2))[0].entities[..., 4].sum(1) == 7).all()
  game.act(0)
  assert None not in game.entities


def test_the_cars_of_freeway_are_drawn_as_minatar_draws_them():
  game = importlib.import_module("minatar.environments.freeway").Env()
  game.random = np.random.RandomState(0)
  drawn = []
  for _ in range(STEPS // 8):
    game._randomize_cars(initialize=True)
    drawn.append(np.array(game.cars))
  mine = jax.jit(jax.vmap(make_env("Freeway-MinAtar").reset))(jax.random.split(jax.random.key(0), STEPS // 8))[0].cars
  for column in range(4):
    assert_same_shares(np.asarray(mine)[..., column].ravel(), np.array(drawn)[..., column].ravel())


def test_where_episodes_end_by_the_clock():
  """Here after 1,000 steps, of Freeway 2,500, which MinAtar's ends one step later, as if nothing followed."""
  assert [make_env(NAMES[name]).time_limit for name in SAME] == [1000, 1000, 1000, 2500]
  game = importlib.import_module("minatar.environments.freeway").Env()
  assert [game.act(0)[1] for _ in range(2501)] == [False] * 2500 + [True]
