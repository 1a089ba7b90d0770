"""The promises of the README and the other pages that a machine can check."""

import ast
import itertools
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from experiments import catalogue, import_experiment
from launch import bench, claims
from launch.plan import make_runs, parse_grid
from mlnotes.engine.flags import parse, read

ROOT = Path(__file__).parents[1]
PAGES = sorted(
  path
  for pattern in ("README.md", ".github/*.md", "mlnotes/README.md", "launch/README.md", "experiments/**/README.md")
  for path in ROOT.glob(pattern)
)
NAME = lambda path: str(path.relative_to(ROOT))
README = (ROOT / "README.md").read_text()
LIBRARY = (ROOT / "mlnotes" / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", LIBRARY.partition("## Building blocks")[2].partition("\n## ")[0], re.DOTALL)
# What a test can wait for: less of the same.
SMALLER = {
  "schedule, (16, 32, 32, 3)": "schedule, (2, 8, 8, 3)",
  "make_timesteps(1000, 50)": "make_timesteps(1000, 2)",
  "length=500": "length=5",
}
CODE = lambda text: [line for line in text.splitlines() if line.strip()]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
EXPERIMENTS = {name for name, _ in catalogue()}
EXTERNAL = {"pytest", "pdoc", "venv"}


def test_ci_runs_the_readmes_test_command():
  command = re.search(r"^(pip install .* && python -m pytest)$", README, re.MULTILINE).group(1)
  assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_readme_is_read_at_one_sitting():
  assert len(README.splitlines()) <= 200


# -- snippets ----------------------------------------------------------------------------------------------------------


def test_the_examples_are_the_tested_files_and_short():
  own = LIBRARY.partition("## An experiment of your own")[2]
  softmax, diabetes = re.findall(r"```python\n(.*?)```", own, re.DOTALL)
  assert CODE(softmax) == CODE((ROOT / "tests" / "softmax_regression.py").read_text())
  # The imports apart: what one has to write.
  assert len([line for line in CODE(softmax) if not line.startswith(("import", "from", '"""'))]) <= 40
  table = (ROOT / "tests" / "diabetes_regression.py").read_text()
  assert diabetes.strip() in table and len(CODE(diabetes)) <= 16


def test_there_are_building_blocks_of_every_chapter():
  assert {name.partition(".")[0] for name, _ in catalogue()} <= set(re.findall(r"mlnotes\.(\w+)", "\n".join(BLOCKS)))


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_building_block_runs_when_pasted_alone(number):
  """In a namespace of its own, on smaller sizes."""
  text = BLOCKS[number]
  for size, smaller in SMALLER.items():
    text = text.replace(size, smaller)
  exec(compile(text, f"building block {number}", "exec"), {"__name__": "__main__"})


def test_every_other_python_block_is_python_whose_imports_exist():
  blocks = [body for page in PAGES for kind, body in FENCED.findall(page.read_text()) if kind == "python"]
  assert len(blocks) > len(BLOCKS)
  for block in blocks:
    for node in ast.walk(ast.parse(block)):
      if isinstance(node, ast.ImportFrom) and node.module.startswith("mlnotes"):
        assert all(hasattr(import_module(node.module), alias.name) for alias in node.names), ast.unparse(node)


# -- commands ----------------------------------------------------------------------------------------------------------


def code_lines(text: str) -> Iterator[str]:
  """The lines of the blocks that are no Python, and what stands between backticks."""
  for kind, body in FENCED.findall(text):
    if kind != "python":
      yield from body.replace("\\\n", " ").splitlines()
  for span in re.findall(r"`([^`]+)`", FENCED.sub("", text)):
    yield " ".join(span.split())


def docstrings() -> Iterator[tuple[Path, str]]:
  """The commands of each module's docstring; what stands behind three spaces are words about them."""
  for path in sorted([*ROOT.glob("experiments/**/*.py"), *ROOT.glob("launch/**/*.py")]):
    text = re.sub(r"\\\n\s*", " ", ast.get_docstring(ast.parse(path.read_text())) or "")
    lines = [re.split(" {3,}", line.strip())[0] for line in text.splitlines()]
    yield path, "\n".join(f"`{line}`" for line in lines if line.startswith("python -m"))


def commands(text: str) -> list[tuple[str, ...]]:
  """(module or file, arguments) of each `python -m` and `python FILE.py` that is written out."""
  found = []
  for line in code_lines(text):
    if re.search(r"python (-m |[\w/]+\.py)", line) and not re.search("python -m [a-z.]*<", line):
      words = shlex.split(line, comments=True)
      pairs = enumerate(itertools.pairwise(words))
      for start in [i + 1 + (w == "-m") for i, (v, w) in pairs if v == "python" and (w == "-m" or w.endswith(".py"))]:
        end = next((i for i in range(start, len(words)) if words[i] in ("&&", ";", "|", ">")), len(words))
        found.append(tuple(words[start:end]))
  return found


COMMANDS = sorted({
  (NAME(path), *command)
  for path, text in [*((page, page.read_text()) for page in PAGES), *docstrings()]
  for command in commands(text)
})  # fmt: skip


def check_command(module: str, *arguments: str) -> None:
  """Parsed as it stands, by the flags of what it would run. Raises InputError where it would end in one."""
  if "--" in arguments:  # launch.processes: a command of its own behind it
    end = arguments.index("--")
    assert arguments[end + 1 : end + 3] == ("python", "-m")
    check_command(*arguments[end + 3 :])
    arguments = arguments[:end]
  if module.partition(".")[0] in EXTERNAL:
    return
  if module.endswith(".py"):
    path = next(path for path in (ROOT / module, ROOT / "tests" / module) if path.exists())
    read(import_experiment(str(path)).Config, [word for word in arguments if word != "--helpshort"], module)
    return
  if module == "experiments" and arguments and not arguments[0].startswith("-"):
    return check_command(f"experiments.{arguments[0]}", *arguments[1:])
  flags = [word for word in arguments if word.startswith("-") and word != "--helpshort"]
  name = module.removeprefix("experiments.")
  if module == "launch.bench":
    for experiment in bench.named_experiments(flags):
      bench.parse_flags(experiment, flags)
  elif module != name and name in EXPERIMENTS:
    config_class = import_experiment(name).Config
    values = read(config_class, flags, module)
    if not re.search(r"=(runs/|DIR|FOLDER|mine|mypackage|gymnasium:)", " ".join(flags)):  # what this machine may lack
      parse(config_class, values)
  elif module.partition(".")[0] == "experiments":  # the list, or that of a chapter
    assert (ROOT.joinpath(*module.split(".")) / "__main__.py").exists(), module
    assert all(flag.startswith("--find=") for flag in flags), flags
  else:
    assert find_spec(module) is not None, module
    values = read(import_module(module).Config, flags, module)
    if module == "launch.claims" and "--check=ID" not in flags:  # raises where such a claim is not there
      claims.choose(claims.all_claims(), parse(claims.Config, values), "revision")
    if module == "launch.sweep" and flags:
      assert make_runs(
        values["experiment"].value, values["fixed"].value, parse_grid(values["grid"].value), Path("runs")
      )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2]))
def test_every_command_is_one(command, monkeypatch):
  monkeypatch.chdir(ROOT / "tests")  # where softmax_regression.py is
  check_command(*command[1:])


def test_the_commands_are_read():
  modules = {module for _, module, *_ in COMMANDS}
  assert {f"experiments.{name}" for name, _ in catalogue()} <= modules
  assert {"launch.sweep", "launch.bench", "launch.results", "launch.processes", "launch.claims"} <= modules
  text = "`OMP=1 python -m a.b --x='1; 2' \n --y` and\n```bash\npip install . && python -m c --z  # not this\n```"
  assert commands(text) == [("c", "--z"), ("a.b", "--x=1; 2", "--y")]
  with pytest.raises(Exception, match="no flag --stepps"):
    check_command("experiments.rl.ppo", "--stepps=1")


def test_the_commands_for_an_experiment_of_ones_own_are_commands(tmp_path, monkeypatch):
  """Parsed and planned as they stand; that such a file is swept and measured is tested in test_own_experiment."""
  from launch import sweep

  monkeypatch.chdir(ROOT / "tests")
  own = LIBRARY.partition("## An experiment of your own")[2]
  lines = re.search(r"```bash\n(.*?)```", own, re.DOTALL).group(1).splitlines()
  commands = {line.split()[2]: shlex.split(line)[3:] for line in lines}
  values = read(sweep.Config, commands["launch.sweep"], "launch.sweep")
  runs = make_runs(values["experiment"].value, "", parse_grid(values["grid"].value), tmp_path)
  assert len(runs) == 8 and runs[0].directory.parent == tmp_path / "softmax_regression"
  (name,) = bench.named_experiments(commands["launch.bench"])
  assert bench.parse_flags(name, commands["launch.bench"]).batch_size == 64


# -- links and names ---------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
  """Of its headings, as GitHub makes them."""
  heads = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=NAME)
def test_every_link_and_picture_is_there(page):
  for path in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", page.read_text())):
    if not re.match(r"\w+:", path):
      file, _, anchor = path.partition("#")
      target = (page.parent / file).resolve() if file else page
      assert target.exists(), path
      assert not anchor or anchor in anchors(target), path
      assert target.suffix != ".png" or target.stat().st_size > 1000, path


def test_every_picture_is_shown():
  shown = {Path(path).name for page in PAGES for path in re.findall(r"!\[.*?\]\((.*?)\)", page.read_text())}
  assert shown == {path.name for path in ROOT.glob(".github/*.png")}


@pytest.mark.parametrize("page", PAGES, ids=NAME)
def test_every_file_and_module_that_is_named_is_there(page):
  text = page.read_text()
  if page.name == "CHANGELOG.md":  # what was is named as well
    text = re.sub(r"^ *\|.*$", "", text, flags=re.MULTILINE)
  for span in re.findall(r"`([^`\n]+)`", FENCED.sub("", text)):
    for path in re.findall(r"\b(?:tests|launch|mlnotes|experiments)/[\w./]*\w", span):
      assert (ROOT / path).exists() or "<" in span, span
    if re.fullmatch(r"(mlnotes|launch|experiments)(\.\w+)+", span):
      module, _, name = span.rpartition(".")
      assert hasattr(import_module(module), name) or find_spec(span), span


def test_no_command_installs_a_strangers_package():
  for path in (*PAGES, *ROOT.glob("mlnotes/**/*.py")):
    assert not re.search(r"pip install[^`&\n]*['\" ]mlnotes(?!-jax)", path.read_text()), path
