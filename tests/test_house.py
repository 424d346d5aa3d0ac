"""The map of the house in README.md and CONTRIBUTING.md, and the order of its rooms."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAMS = ("train", "predict", "evaluate", "export")
# From below to above: a file imports only from rooms of its own floor's past.
FLOORS = ("utils", "degradation", "scans", "modules", "dataset", "inference", "evaluation",
          "training", "programs")  # fmt: skip
FILES = [
    path
    for path in sorted([*ROOT.glob("*.py"), *ROOT.glob("*/*.py")])
    if path.parent.name in ("", ROOT.name, *FLOORS)
]


def room(name: str) -> str:
    return "programs" if name in PROGRAMS else name


def imported_by(path: Path) -> set[str]:
    """The rooms that a file imports from, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return {room(name) for name in found if room(name) in FLOORS}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way_and_functions_are_short(path):
    mine = room(path.stem if path.parent == ROOT else path.parent.name)
    for other in imported_by(path) - ({mine} if mine != "programs" else set()):
        assert FLOORS.index(other) < FLOORS.index(mine), f"{mine} imports {other}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= (100 if node.name == "train" else 60), f"{node.name}: {lines} lines"


def test_the_maps_name_every_room_and_no_other():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"```\n(train\.py.*?)```", readme, re.DOTALL)[1]
    house = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Tests")[0]
    there = {path.name for path in ROOT.glob("*.py")}
    there |= {f"{p.parent.name}/" for p in ROOT.glob("*/*") if p.suffix in (".py", ".md", ".html")}
    there -= {"readme_resources/"} | {f"{p.name}/" for p in ROOT.glob(".*")}
    for text in (tree, house):
        named = set(re.findall(r"(?<![\w/])[a-z_]+(?:/|\.py)(?![\w/])", text))
        beside = {"prepare.py", "pack.py"}  # said to be in data/
        assert there - {"runs/"} == named - beside
    rooms = re.findall(r"`([a-z]+/[a-z_]+\.py)`", house)
    assert len(rooms) >= 8 and all((ROOT / name).exists() for name in rooms)
