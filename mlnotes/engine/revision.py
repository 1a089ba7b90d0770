"""Which source a figure comes from: the commit of the code that is imported."""

import functools
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

SECONDS = 3.0
# What is written into the pages and claims changes no figure.
SOURCES = ("mlnotes", "experiments", ":(exclude)*.md", ":(exclude)*.toml")


class Revision(NamedTuple):
  """`revision` is the commit, "" where the code is in no repository of its own.

  clean: whether the packages are as in that commit, nothing changed or added; None where there is no commit.
  """

  revision: str
  clean: bool | None


@functools.cache
def find_revision(root: Path = Path(__file__).parents[2]) -> Revision:
  """The revision of the source tree at `root`, by one call of git of at most a few seconds.

  Packages that are installed, though it be below somebody else's repository, have none.
  """
  if not (root / ".git").exists():
    return Revision("", None)
  environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
  command = ["git", "--no-optional-locks", "status", "--porcelain=v2", "--branch", "--", *SOURCES]
  try:
    done = subprocess.run(
      command, cwd=root, env=environment, capture_output=True, text=True, timeout=SECONDS, check=True
    )
  except (OSError, subprocess.SubprocessError, ValueError):
    return Revision("", None)
  header = [line for line in done.stdout.splitlines() if line.startswith("# ")]
  commit = next((line.split()[-1] for line in header if line.startswith("# branch.oid ")), "")
  if not commit or commit == "(initial)":
    return Revision("", None)
  return Revision(commit, len(done.stdout.splitlines()) == len(header))
