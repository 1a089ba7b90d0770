"""Experiments that stand on a trained run: it is given by a flag, or trained first.

directory = find_stage("teacher", config.teacher, resnet, workdir)
"""

from pathlib import Path
from typing import Any

from mlnotes.engine.progress import report_step


def find_stage(flag: str, given: str, module: Any, workdir: Path, **settings: Any) -> Path:
  """The work directory of the run that --`flag` names; where it is empty, of one trained here first.

  That is the experiment of `module` (its `Config` and `main`) with its defaults but for `settings`, in
  `workdir`/`flag`: the same command goes on where training was interrupted, and takes a finished run as it is. Raises
  SystemExit with the exit code of a run that did not finish, such as that of a signal, and InputError as the experiment
  does.
  """
  if given:
    return Path(given).expanduser()
  directory = workdir / flag
  config = module.Config(workdir=str(directory), **settings)
  report_step(f"--{flag} is empty: {module.__name__.removeprefix('experiments.')} is trained in {directory}")
  if code := module.main(config):
    raise SystemExit(code)
  return directory
