"""Lists the experiments, or runs one: `python -m experiments rl.ppo --env=CartPole-v1`."""

import runpy
import sys

from experiments import catalogue, no_experiment


def main(arguments: list[str], chapter: str = "") -> int:
  """`chapter`: lists those of one chapter alone."""
  if arguments and not arguments[0].startswith("-"):
    name = f"{chapter}.{arguments[0]}" if chapter else arguments[0]
    if name not in [known for known, _ in catalogue()]:
      print(f"error: {no_experiment(name)}", file=sys.stderr)
      return 2
    sys.argv[1:] = arguments[1:]
    runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
    return 0
  rows = [(name, summary) for name, summary in catalogue() if name.startswith(f"{chapter}." if chapter else "")]
  width = max(len(name) for name, _ in rows)
  for name, summary in rows:
    print(f"python -m experiments.{name:<{width}}  {summary}")
  print("\nThe flags of one, with defaults, choices and help: python -m experiments.<chapter>.<method> --helpshort")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
