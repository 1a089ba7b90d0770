"""Lists the experiments by chapter, finds one by its names, or runs one.

python -m experiments
python -m experiments --find=动量
python -m experiments rl.ppo --env=CartPole-v1
"""

import runpy
import sys

from experiments import _names, catalogue, no_experiment


def main(arguments: list[str], chapter: str = "") -> int:
  """`chapter`: those of one chapter alone."""
  if arguments and not arguments[0].startswith("-"):
    name = f"{chapter}.{arguments[0]}" if chapter else arguments[0]
    if name not in [known for known, _ in catalogue()]:
      return _fail(str(no_experiment(name)))
    sys.argv[1:] = arguments[1:]
    runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
    return 0
  if arguments and arguments[0] not in ("-h", "--help", "--helpshort", "--helpfull"):
    flag, _, term = " ".join(arguments).replace("=", " ", 1).partition(" ")
    if flag not in ("--find", "-find") or not term.strip():
      return _fail(f"{arguments[0]} cannot be read: expected --find=TERM, or an experiment and its flags.")
    return _find(term.strip(), chapter)
  rows = [(name, summary) for name, summary in catalogue() if name.startswith(f"{chapter}." if chapter else "")]
  width = max(len(name) for name, _ in rows)
  for shown in [chapter] if chapter else _names.chapters():
    print(f"{_names.title_of(shown)}: experiments/{shown}/README.md")
    for name, summary in rows:
      if name.startswith(f"{shown}."):
        print(f"  python -m experiments.{name:<{width}}  {summary}")
    print()
  print("The flags of one, with defaults, choices and help: python -m experiments.<chapter>.<method> --helpshort")
  print("By any of its names, in English or Chinese: python -m experiments --find=TERM")
  return 0


def _find(term: str, chapter: str) -> int:
  rows = _names.find(term, chapter)
  if not rows:
    said = f"--find={term} is the name of no method"
    if chapter and _names.find(term):
      return _fail(f"{said} of this chapter: `python -m experiments --find={term}` finds it in others.")
    if near := _names.near(term):
      return _fail(f"{said}: did you mean {', '.join(near)}?")
    return _fail(f"{said}: expected one of {', '.join(map(_names.title_of, _names.chapters()))}, or what these hold.")
  width = max(len(where) for where, _ in rows)
  for where, names in rows:
    print(f"{where:<{width}}  {names}")
  return 0


def _fail(sentence: str) -> int:
  print(f"error: {sentence}", file=sys.stderr)
  return 2


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
