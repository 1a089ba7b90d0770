"""Work directories written by hand, as runs leave them."""

import json
from pathlib import Path

import numpy as np

from mlnotes.engine.record import to_json


def write_run(
  directory: Path,
  experiment="rl.ppo",
  config=None,
  final=None,
  curve=((10, 1.0), (20, 2.0)),
  metric="episode_return",
  best=("episode_return", "max"),
  finished=True,
  picture=False,
  **card,
) -> Path:
  """`final` {metric: values per seed} is in the result card, `curve` ((update, value or values per seed), ..)."""
  config = {"workdir": str(directory), "seed": 0, "seeds": 1, "learning_rate": 0.1, "steps": 20, **(config or {})}
  directory.mkdir(parents=True)
  (directory / "config.json").write_text(json.dumps({"experiment": experiment, "config": config}))
  lines = []
  for step, value in curve:
    line = {"step": step, f"eval/{metric}": float(np.mean(value)), "train/loss": 1 / step}
    if np.ndim(value):
      line[f"eval/{metric}/seeds"] = list(value)
    lines.append(json.dumps(to_json(line)) + "\n")
  (directory / "metrics.jsonl").write_text("".join(lines))
  if finished:
    final = final if final is not None else {metric: np.atleast_1d(curve[-1][1]).tolist()}
    summary = {name: {"mean": float(np.mean(v)), "std": 0.0, "seeds": list(v)} for name, v in final.items()}
    stated = {"best_metric": best[0], "best_mode": best[1]} if best else {}
    whole = {
      "experiment": experiment, "finished": True, "steps": config["steps"], "metrics": summary, **stated,
      "timing": {"wall_seconds": 12.0}, "device": "1 x cpu", "command": f"python -m experiments.{experiment}",
    }  # fmt: skip
    (directory / "result.json").write_text(json.dumps(to_json({**whole, **card}), allow_nan=False))
  if picture:
    from PIL import Image

    Image.new("RGB", (40, 30), (200, 30, 30)).save(directory / "samples.png")
  return directory
