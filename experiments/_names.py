"""Methods by the names that the pages give them, in English and Chinese, and what their docstrings say.

The tables of the chapters' pages under "## Methods", and those of mlnotes/README.md under "## Data of every kind" and
"## From the notes to the modules", are read as they stand: a name that is to be found is written there.
"""

import difflib
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from experiments import __path__ as _place, catalogue, docstring_of

HEADINGS = ("## Methods", "## Data of every kind", "## From the notes to the modules")


class Method(NamedTuple):
  chapter: str
  names: str
  where: str  # its command, or the modules of the library


def chapters() -> list[str]:
  return sorted({name.partition(".")[0] for name, _ in catalogue()})


def page_of(chapter: str) -> Path:
  return Path(_place[0]) / chapter / "README.md"


def title_of(chapter: str) -> str:
  """The heading of the chapter's page, its name in both languages."""
  return page_of(chapter).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def read_methods(page: Path, chapter: str = "") -> Iterator[Method]:
  """The rows of a page's tables of methods: what stands before the cell with the command or modules are names."""
  reading = False
  for line in page.read_text(encoding="utf-8").splitlines():
    if line.startswith("#"):
      reading = line in HEADINGS
    cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
    where = [i for i, cell in enumerate(cells) if re.match(r"`(python -m |mlnotes)", cell)]
    if reading and line.startswith("|") and where:
      yield Method(chapter, ", ".join(cells[: where[0]]), cells[where[0]].replace("`", ""))


def all_methods() -> list[Method]:
  library = Path(find_spec("mlnotes").origin).parent / "README.md"
  return [m for chapter in chapters() for m in read_methods(page_of(chapter), chapter)] + list(read_methods(library))


def find(term: str, chapter: str = "") -> list[tuple[str, str]]:
  """(command or module, names) of the methods that go by `term`, then the experiments whose docstrings have it.

  A word is found from its beginning: `contrast` finds contrastive, `nce` does not find difference. Capitals, hyphens
  and underscores count for nothing.
  """
  methods = [m for m in all_methods() if not chapter or m.chapter == chapter]
  # Names that begin with it come first: 卷积 is convolution before it is 图卷积, graph convolution.
  methods.sort(key=lambda m: not any(_fold(name).startswith(_fold(term)) for name in _split(m.names)))
  found = [(m.where, m.names if m.chapter else _those(m.names, term)) for m in methods if _has(m.names, term)]
  for name in [c for c in chapters() if _has(title_of(c), term) and chapter in ("", c)]:
    found.insert(0, (f"python -m experiments.{name}", title_of(name)))
  shown = {where.removeprefix("python -m experiments.").partition(" ")[0] for where, _ in found}
  for name, summary in catalogue():
    if name not in shown and name.startswith(f"{chapter}." if chapter else "") and _has(docstring_of(name), term):
      found.append((f"python -m experiments.{name}", summary))
  return found


def near(term: str) -> list[str]:
  """Names that are spelled like `term`, at most three."""
  names = [name for method in all_methods() for name in _split(method.names)]
  known = {_fold(name): name for name in [*names, *(word for name in names for word in name.split())]}
  close = difflib.get_close_matches(_fold(term), known, n=3, cutoff=0.4)
  return [known[name] for name in close]


def _split(names: str) -> list[str]:
  """Each name by itself: "momentum 动量, 冲量" is three."""
  parts = re.split(r"[,;:()]|\band\b|(?<=[a-z]) (?=[\u4e00-\u9fff])|(?<=[\u4e00-\u9fff]) (?=[A-Za-z])", names)
  return [part.strip() for part in parts if part.strip()]


def _those(names: str, term: str) -> str:
  """Of a whole chapter's names the first, the chapter's own, and those that `term` finds."""
  chapter, *others = [name.strip() for name in re.split("[,;()]", names)]
  return ", ".join([chapter, *(name for name in others if _has(name, term))])


def _fold(text: str) -> str:
  return re.sub(r"[-_\s]+", " ", text.casefold()).strip()


def _has(text: str, term: str) -> bool:
  start = r"(?<![a-z0-9])" if re.match("[a-z0-9]", _fold(term)) else ""
  return re.search(start + re.escape(_fold(term)), _fold(text)) is not None
