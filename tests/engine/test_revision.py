"""The commit in the result card, against git itself."""

import inspect
import subprocess
from pathlib import Path

from mlnotes.engine.revision import Revision, find_revision


def git(directory, *arguments):
  names = ["-c", "user.name=a", "-c", "user.email=a@b"]
  return subprocess.run(
    ["git", *names, *arguments], cwd=directory, check=True, capture_output=True, text=True
  ).stdout.strip()


def test_the_commit_and_whether_the_packages_are_as_it_has_them(tmp_path):
  find = find_revision.__wrapped__
  (tmp_path / "mlnotes").mkdir()
  (tmp_path / "mlnotes" / "a.py").write_text("a")
  (tmp_path / "notes.txt").write_text("a")
  assert find(tmp_path) == Revision("", None)  # no repository
  git(tmp_path, "init", "-q")
  assert find(tmp_path) == Revision("", None)  # no commit
  git(tmp_path, "add", ".")
  git(tmp_path, "commit", "-qm", "first")
  commit = git(tmp_path, "rev-parse", "HEAD")
  assert find(tmp_path) == Revision(commit, True)
  (tmp_path / "notes.txt").write_text("b")  # what runs is the same
  assert find(tmp_path) == Revision(commit, True)
  (tmp_path / "mlnotes" / "b.py").write_text("b")
  assert find(tmp_path) == Revision(commit, False)
  (tmp_path / "mlnotes" / "b.py").unlink()
  (tmp_path / "mlnotes" / "a.py").write_text("b")
  assert find(tmp_path) == Revision(commit, False)


def test_a_package_in_somebody_elses_repository_has_no_revision(tmp_path, monkeypatch):
  git(tmp_path, "init", "-q")
  inside = tmp_path / ".venv" / "site-packages"
  (inside / "mlnotes").mkdir(parents=True)
  assert find_revision.__wrapped__(inside) == Revision("", None)
  monkeypatch.setenv("PATH", "")  # no git
  assert find_revision.__wrapped__(tmp_path) == Revision("", None)


def test_the_environment_of_a_hook_names_no_other_repository(tmp_path, monkeypatch):
  git(tmp_path, "init", "-q")
  (tmp_path / "mlnotes").mkdir()
  (tmp_path / "mlnotes" / "a.py").write_text("a")
  git(tmp_path, "add", ".")
  git(tmp_path, "commit", "-qm", "first")
  commit = git(tmp_path, "rev-parse", "HEAD")
  monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
  assert find_revision.__wrapped__(tmp_path).revision == commit


def test_the_tree_is_the_one_that_is_imported():
  root = inspect.signature(find_revision.__wrapped__).parameters["root"].default
  assert root == Path(__file__).parents[2] and (root / "pyproject.toml").exists()
