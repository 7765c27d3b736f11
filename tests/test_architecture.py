"""The drawing in docs/architecture.md holds: who imports whom, and where heavy libraries live."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "medsiam"
DRAWING = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

# What every room may take from the package itself without turning back.
FROM_THE_TOP = {"__version__"}


def layers_of(drawing):
    """The rooms of each layer, leftmost first, from the one line that orders them."""
    line = next(line for line in drawing.splitlines() if line.startswith("    errors < volume"))
    return [{room.strip() for room in layer.split(",")} for layer in line.split("<")]


def homes_of(drawing):
    """Library name to the rooms that may import it, from the table of dependencies."""
    table = drawing.split("| dependency | home |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| ([\w-]+) \| ([\w, ]+) \|$", table, re.MULTILINE)
    return {name: {room.strip() for room in rooms.split(",")} for name, rooms in rows}


LEVEL = {room: n for n, layer in enumerate(layers_of(DRAWING)) for room in layer}
HOMES = homes_of(DRAWING)


def room_of(path, package=PACKAGE):
    """The room a file stands in: the first name below the package."""
    return path.relative_to(package).parts[0].removesuffix(".py")


def imports_of(source, module):
    """(top name, dotted name) of everything imported, also inside functions.

    module  the dotted name of the importing module, to resolve relative imports
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            base = ".".join(parts[: len(parts) - node.level]) if node.level else ""
            name = ".".join(part for part in (base, node.module) if part)
            # `from medsiam import x` may mean the module medsiam.x.
            yield from (f"{name}.{alias.name}" for alias in node.names)


def violations(source, module, room):
    """What this file imports against the drawing, each as a sentence."""
    if room not in LEVEL:
        return [f"{module} stands in {room!r}, which has no place in docs/architecture.md"]
    found = []
    for name in imports_of(source, module):
        top, *below = name.split(".")
        if top == "medsiam":
            found += _against_direction(name, below, module, room)
        elif room not in HOMES.get(top, {room}):
            found.append(f"{module} imports {top}, whose home is {', '.join(sorted(HOMES[top]))}")
    return found


def _against_direction(name, below, module, room):
    target = below[0] if below else "__init__"
    if target in FROM_THE_TOP or target == room:
        return []
    if target not in LEVEL:
        return [f"{module} imports {name} from the top of the package; import it from its room"]
    if LEVEL[target] >= LEVEL[room]:
        return [f"{module} imports {name}: {target} is not left of {room}"]
    return []


def files():
    return sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def dotted(path):
    """Module name of a file; a package's __init__ keeps its own name for relative imports."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", files(), ids=dotted)
def test_a_module_imports_only_from_rooms_further_left(path):
    """A drawing that is not tested becomes a wish."""
    found = violations(path.read_text(encoding="utf-8"), dotted(path), room_of(path))
    assert found == []


def test_only_flows_import_prefect():
    """The science must run without a server."""
    for path in files():
        names = {name.split(".")[0] for name in imports_of(path.read_text(encoding="utf-8"), dotted(path))}
        assert "prefect" not in names, dotted(path)


@pytest.mark.parametrize(
    ("source", "module", "complaint"),
    [
        ("import medsiam.compare", "medsiam.change.verdict", "compare is not left of change"),
        ("from medsiam.pairing import values", "medsiam.reading.dicom", "pairing is not left of reading"),
        ("from ..change import head", "medsiam.pairing.intensity", "change is not left of pairing"),
        ("from medsiam import report", "medsiam.change.verdict", "report is not left of change"),
        ("def f():\n    import medsiam.cli", "medsiam.volume", "cli is not left of volume"),
        ("from medsiam import compare_series", "medsiam.demo", "from the top of the package"),
        ("import medsiam", "medsiam.demo", "not left of demo"),
        ("from pydicom import dcmread", "medsiam.pairing.intensity", "home is evidence, pacs, privacy"),
        ("import prefect", "medsiam.compare", "home is flows"),
        ("x = 1", "medsiam.utils", "has no place"),
    ],
)
def test_a_made_up_violation_is_caught(source, module, complaint):
    """The test of the test: each rule, broken once."""
    assert complaint in " ".join(violations(source, module, module.split(".")[1]))


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("from medsiam import __version__", "medsiam.report.html"),
        ("from medsiam.volume import Grid", "medsiam.pairing.motion"),
        ("from .values import Pair", "medsiam.pairing.motion"),
        ("import numpy as np", "medsiam.volume"),
        ("from pydicom import dcmread", "medsiam.reading.dicom"),
    ],
)
def test_an_import_that_obeys_is_left_alone(source, module):
    """A checker that always complains would be switched off."""
    assert violations(source, module, module.split(".")[1]) == []


def test_every_room_of_the_drawing_is_described():
    """The line of layers and the table of rooms speak of the same rooms."""
    described = DRAWING.split("## Direction")[0]
    told = {room for room in LEVEL if not room.startswith("__")}
    assert {room for room in told if not re.search(rf"`{room}(/|\.py)`", described)} == set()
