"""An animation of a policy: Gymnasium's own drawing, or the observation where that is a picture.

A policy is a function from a batch of observations (E, ...) to a batch of actions, jitted by the caller. Gymnasium and
Pillow are imported when they are used.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key
from mlnotes.rl.env import Box, Environment
from mlnotes.rl.gymnasium_bridge import (
  LONGEST_EPISODE,
  as_gymnasium_action,
  as_policy_input,
  has_gymnasium,
  make_gymnasium_env,
)

_FRAMES = 200
_WIDTH = 320
# Channels of a picture observation, as in MinAtar: one colour each.
_COLOURS = "000000 56b4e9 e69f00 009e73 f0e442 d55e00 cc79a7 0072b2 a0a0a0 ffffff 783c14"
_PALETTE = np.frombuffer(bytes.fromhex(_COLOURS), np.uint8).reshape(-1, 3)


def animate_policy(env: Environment, policy: Callable[[Any], Any], path: Path, seed: int = 0, who: str = "") -> bool:
  """Writes a GIF of one episode: Gymnasium's own drawing, or the observation where that is a picture.

  Below it stand the environment, `who` acts, the `seed` of the episode and its return. Returns False, and writes
  nothing, where the environment can be drawn neither way. Of a `module:function` the function decides: what it makes
  is drawn where its render_mode is "rgb_array".
  """
  if not can_draw(env):
    return False
  if not _why_no_drawing(env.name):
    frames, per_second, returned = _gymnasium_frames(env.name, policy, seed)
  else:
    frames, returned = _observation_frames(env, policy, seed)
    per_second = 10.0
  caption = ", ".join(part for part in (env.name, who, f"episode seed {seed}", f"return {returned:.6g}") if part)
  write_gif(frames, per_second, path, caption)
  return True


def can_draw(env: Environment) -> bool:
  """Whether `animate_policy` has a picture: Gymnasium's own, or an observation that is one."""
  return not why_not_drawn(env)


def why_not_drawn(env: Environment) -> str:
  """Why `animate_policy` has no picture; "" where it has."""
  if isinstance(env.observations, Box) and len(env.observations.shape) == 3:
    return ""
  return _why_no_drawing(env.name)


def _why_no_drawing(name: str) -> str:
  if not has_gymnasium(name):
    return f"Gymnasium has no {name}, and its observations are no pictures"
  env = make_gymnasium_env(name)
  env.close()
  if ":" in name and not name.startswith("gymnasium:"):  # a function without arguments makes what it makes
    mode = env.render_mode
    return "" if mode == "rgb_array" else f"what {name} makes has the render_mode {mode!r}, expected 'rgb_array'"
  return "" if "rgb_array" in env.metadata.get("render_modes", ()) else f"{name} has no render_mode 'rgb_array'"


def write_gif(frames: list[np.ndarray], per_second: float, path: Path, caption: str = "") -> None:
  """Writes pictures (H, W, 3) of uint8 as an animation; of more than 200, evenly chosen ones.

  The caption stands in a bar below them, and in the file as its comment.
  """
  from PIL import Image

  stride = max(1, -(-len(frames) // _FRAMES))
  chosen = frames[::stride]
  if (len(frames) - 1) % stride:
    chosen.append(frames[-1])
  images = [Image.fromarray(frame) for frame in chosen]
  scale = _WIDTH / images[0].width
  if scale < 1:
    size = (_WIDTH, round(images[0].height * scale))
    images = [image.resize(size, Image.Resampling.BILINEAR) for image in images]
  if caption:
    bar = _draw_caption(caption, images[0].width)
    images = [_stack(image, bar) for image in images]
  images = [image.quantize(64) for image in images]
  # Browsers draw no faster than 50 frames a second.
  duration = [max(20, round(1000 / per_second))] * (len(images) - 1) + [1000]
  path.parent.mkdir(parents=True, exist_ok=True)
  comment = {"comment": caption.encode()} if caption else {}
  images[0].save(path, save_all=True, append_images=images[1:], duration=duration, loop=0, **comment)


def _draw_caption(text: str, width: int) -> Any:
  """A white bar with the text, in as many lines as it takes."""
  from PIL import Image, ImageDraw

  draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
  lines = [""]
  for part in text.split(", "):
    longer = f"{lines[-1]}, {part}" if lines[-1] else part
    if lines[-1] and draw.textlength(longer) > width - 8:
      lines.append(part)
    else:
      lines[-1] = longer
  bar = Image.new("RGB", (width, 14 * len(lines) + 4), "white")
  ImageDraw.Draw(bar).multiline_text((4, 2), "\n".join(lines), fill="black", spacing=3)
  return bar


def _stack(image: Any, bar: Any) -> Any:
  from PIL import Image

  both = Image.new("RGB", (image.width, image.height + bar.height))
  both.paste(image, (0, 0))
  both.paste(bar, (0, image.height))
  return both


def _gymnasium_frames(name: str, policy, seed: int) -> tuple[list[np.ndarray], float, float]:
  """(frames, frames per second, return)."""
  env = make_gymnasium_env(name, render_mode="rgb_array")
  observation, _ = env.reset(seed=seed)
  frames, returned = [_render(name, env)], 0.0
  for _ in range((env.spec and env.spec.max_episode_steps) or LONGEST_EPISODE):
    action = np.asarray(policy(as_policy_input(np.asarray(observation)[None])))[0]
    observation, reward, terminated, truncated, _ = env.step(as_gymnasium_action(action))
    returned += float(reward)
    frames.append(_render(name, env))
    if terminated or truncated:
      break
  per_second = float(env.metadata.get("render_fps", 10))
  env.close()
  return frames, per_second, returned


def _render(name: str, env: Any) -> np.ndarray:
  """A picture (H, W, 3) of uint8. Raises InputError for anything else."""
  frame = env.render()
  if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
    found = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
    raise InputError(f"--env={name}: its render gives {found}, expected an array (height, width, 3) of uint8.")
  return frame


def _observation_frames(env: Environment, policy, seed: int) -> tuple[list[np.ndarray], float]:
  """(frames, return)."""
  reset_key, step_key = jax.random.split(root_key(seed))
  state, observation = jax.jit(env.reset)(reset_key)
  step = jax.jit(lambda t, state, action: env.step(jax.random.fold_in(step_key, t), state, action))
  draw = _draw_picture if (env.observations.low, env.observations.high) == (0.0, 255.0) else _draw_channels
  frames, returned = [draw(observation)], 0.0
  for t in range(min(env.time_limit or LONGEST_EPISODE, LONGEST_EPISODE)):
    action = policy(np.asarray(observation)[None])[0]
    state, timestep = step(t, state, action)
    observation = timestep.observation
    returned += float(timestep.reward)
    frames.append(draw(observation))
    if timestep.last:
      break
  return frames, returned


def _draw_picture(observation: Any) -> np.ndarray:
  """An RGB image with values up to 255 as it is; of other numbers of channels, as of grey frames in a row, the last."""
  picture = np.clip(np.round(np.asarray(observation)), 0, 255).astype(np.uint8)
  picture = picture if picture.shape[-1] == 3 else np.repeat(picture[..., -1:], 3, axis=-1)
  cell = max(1, _WIDTH // picture.shape[1])
  return picture.repeat(cell, axis=0).repeat(cell, axis=1)


def _draw_channels(observation: Any, cell: int = 24) -> np.ndarray:
  """A picture with one colour per channel, the last that is set on top."""
  seen = np.asarray(observation) > 0
  top = np.where(seen.any(-1), seen.shape[-1] - np.argmax(seen[..., ::-1], axis=-1), 0)
  picture = _PALETTE[top % len(_PALETTE)]
  return picture.repeat(cell, axis=0).repeat(cell, axis=1)
