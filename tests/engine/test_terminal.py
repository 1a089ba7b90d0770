"""An entrypoint says what it has to say, or is at least not stopped by whoever does not listen."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENTRYPOINT = """
import dataclasses, pathlib, sys
from mlnotes.engine.flags import BaseConfig, field, run

@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  out: str = field("", "file that is written at the end")

def main(config):
  for i in range(2000):
    print("0.5 ± 0.1 of λ", i)
  print("last ±", file=sys.stderr)
  pathlib.Path(config.out).write_text("done")
  return 3

if __name__ == "__main__":
  run(main, Config)
"""


@pytest.mark.parametrize(
  "command, variables, said",
  [
    ("{} | tail -n 1", {"PYTHONIOENCODING": "ascii"}, "0.5 +- 0.1 of lambda 1999"),
    ("{} | tail -n 1", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "0.5 +- 0.1 of lambda 1999"),
    ("{} 2>&- | tail -n 1", {"PYTHONUTF8": "1"}, "0.5 ± 0.1 of λ 1999"),
    ("{} >&-", {}, ""),
    ("{} | true", {}, ""),
    ("{} 2>&1 | head -n 1", {"PYTHONUTF8": "1"}, "0.5 ± 0.1 of λ 0"),
    ("{} > /dev/full", {}, ""),
  ],
)
def test_what_nobody_can_read_ends_no_run(command, variables, said, tmp_path):
  script, out = tmp_path / "entrypoint.py", tmp_path / "out"
  script.write_text(ENTRYPOINT, encoding="utf-8")
  shell = command.format(f"{sys.executable} {script} --out={out}") + "; exit ${PIPESTATUS[0]}"
  env = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
  done = subprocess.run(["bash", "-c", shell], env=env, capture_output=True, timeout=60)
  assert done.returncode == 3, done.stderr
  assert out.read_text() == "done"
  assert done.stdout.decode().strip() == said
  assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr


def test_without_a_home_one_sentence_says_what_to_do(monkeypatch):
  from mlnotes.engine.cache import cache_directory
  from mlnotes.engine.errors import InputError

  def no_home(self):
    raise RuntimeError("Could not determine home directory.")

  monkeypatch.delenv("MLNOTES_CACHE", raising=False)
  monkeypatch.setattr(Path, "expanduser", no_home)
  with pytest.raises(InputError, match="expected MLNOTES_CACHE=<directory>"):
    cache_directory()


def test_our_own_files_have_one_encoding_on_every_machine():
  without = []
  for folder in ("mlnotes", "experiments", "launch"):
    for path in (ROOT / folder).rglob("*.py"):
      for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and _is_text(node) and "encoding" not in {k.arg for k in node.keywords}:
          without.append(f"{path.relative_to(ROOT)}:{node.lineno}")
  assert not without


def _is_text(call):
  name = getattr(call.func, "attr", getattr(call.func, "id", ""))
  of = getattr(call.func, "value", None)
  owner = getattr(of, "id", getattr(of, "attr", ""))
  if name in ("read_text", "write_text"):
    return True
  modes = [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
  binary = any("b" in mode for mode in modes if len(mode) <= 3)
  return name == "open" and owner not in ("os", "Image", "webbrowser", "record", "self") and not binary
