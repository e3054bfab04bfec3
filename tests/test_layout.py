"""The layout of the package: no circles of imports, rooms in order, and README's list is what the code shows."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "mtfl_jax"
ROOMS = {"learning": ("learning",), "sweeps": ("learning", "sweeps"), "analysis": ("analysis",)}
"""Rooms, and the rooms whose modules each may import, beside the modules at the top."""
READERS = {f"mtfl_jax.sweeps.{name}" for name in ("places", "tables", "kept", "progress", "notes")}
"""Modules of sweeps without jax, which analysis reads tables with."""
TOP_OF_LEARNING = {"mtfl_jax.fields", "mtfl_jax.records", "mtfl_jax.names"}
"""Modules at the top that learning may import."""


def modules():
    """Every module by name, and the modules of the package that it imports, wherever in it that stands."""
    names = {}
    for path in PACKAGE.rglob("*.py"):
        if "_hydra" not in path.parts:
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    imports = {}
    for name, path in names.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        # Of what is imported from a package, the module itself where it is one.
        found = {one for one in found if one in names}
        imports[name] = {one for one in found if not any(other.startswith(f"{one}.") for other in found)} - {name}
    return imports


def room(name):
    parts = name.split(".")
    return parts[1] if len(parts) > 2 or parts[-1] in ROOMS else ""


def test_no_circles():
    tuple(TopologicalSorter(modules()).static_order())


def test_rooms_import_in_one_direction():
    for name, imported in modules().items():
        for other in imported:
            if room(name) == "learning" and not room(other):
                assert other in TOP_OF_LEARNING, (name, other)
            elif room(name) and room(other):
                allowed = room(other) in ROOMS[room(name)] or (room(name) == "analysis" and other in READERS)
                pure = room(name) == "analysis" and other == "mtfl_jax.learning.kernel_limits"
                assert allowed or pure, (name, other)


def test_the_readme_lists_every_module_after_those_it_imports():
    """A line of the layout has modules and then words, indented under its folder."""
    text = (PACKAGE.parent / "README.md").read_text()
    block = re.search(r"```layout\n(.*?)```", text, re.DOTALL).group(1)
    order, folders = [], []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        folders = folders[:depth]
        if line.endswith("/"):
            folders.append(line.strip().rstrip("/"))
        else:
            order += [".".join([*folders, name.removesuffix(".py")]) for name in line.split() if name.endswith(".py")]
    known = modules()
    listed = {name.removesuffix(".__init__"): place for place, name in enumerate(order)}
    empty = {name for name in known if name not in listed and not known[name]}
    assert listed.keys() | empty == known.keys()
    for name, imported in known.items():
        late = {other for other in imported & listed.keys() if name in listed and listed[other] > listed[name]}
        assert not late, (name, late)


def test_a_line_to_paste_has_its_folder_quoted():
    """Any `mtfl… {…}` of a message: a name with a space would be two."""
    for path in PACKAGE.rglob("*.py"):
        for found in re.findall(r"mtfl(?:-[a-z]+)? \{([^}]*)\}", path.read_text()):
            assert found.startswith(("shlex.quote(", "places.quoted(")), (path.name, found)
