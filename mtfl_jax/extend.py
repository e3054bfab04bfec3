"""The door for the user's own: `extensions=[MODULE_OR_FILE]` imports modules that register records.

A module is named as in an import, or is a path to a .py file; importing it runs its code. Each record knows the module
it is from and the hash of that module's files and of those that they import, installed packages aside, which is part
of the identity of every cell that uses the record: rows of edited science are other rows.
"""

import ast
import hashlib
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.config_store import ConfigStore

from mtfl_jax import config
from mtfl_jax.fields import ConfigError
from mtfl_jax.kinds import KINDS
from mtfl_jax.learning.activations import PREFIX
from mtfl_jax.records import REGISTRIES, registering

LOCK = threading.RLock()
"""Held while modules are imported or configs composed: both change what the whole process sees."""

_loaded: dict[str, str] = {}
_near: dict[str, tuple[str, ...]] = {}


def loaded() -> tuple[str, ...]:
    """The extensions of this process, NAME:HASH each."""
    return tuple(_loaded.values())


Extensions = Sequence[str | os.PathLike[str]] | str | os.PathLike[str] | None
"""Modules and paths of .py files, or a single one."""


def load(extensions: Extensions) -> tuple[str, ...]:
    """Import extensions, those that are here already only if their files have changed; NAME:HASH of each. They stay
    until the process ends.

    Raises ConfigError where one cannot be found or imported, has another's name, or claims a name that is taken.
    """
    given = [extensions] if isinstance(extensions, str | os.PathLike) else list(extensions or ())
    with LOCK:
        found: dict[str, _Found] = {}
        for own in map(_found, map(str, given)):
            if found.setdefault(own.name, own).place != own.place:
                raise ConfigError("extensions", own.given, f"allowed: one of those that are called {own.name}")
        return tuple(_load(own) for own in found.values())


def unload() -> None:
    """Take every extension out again: its records, its modules and what Hydra was told of it."""
    with LOCK:
        for name in tuple(_loaded):
            _forget(name)
        _drop_nodes()


class _Found(NamedTuple):
    """An extension as it was given, its name, files and place, and the modules that it imports from beside it."""

    given: str
    name: str
    files: list[Path]
    place: Path
    near: dict[str, Path]


def _load(found: _Found) -> str:
    name, given = found.name, found.given
    source = f"{name}:{_hash(found)}"
    if _loaded.get(name) == source:
        return source
    _forget(name)
    _near[name] = tuple(found.near)
    try:
        with registering(source):
            _import(found)
        config.refresh()
    # A module that exits must not take the process with it.
    except (Exception, SystemExit) as error:
        _forget(name, source)
        raise _unimportable(given, error) from error
    _loaded[name] = source
    return source


def _unimportable(given: str, error: BaseException) -> ConfigError:
    reason = " ".join(str(error).split())
    return ConfigError("extensions", given, f"it cannot be imported ({type(error).__name__}: {reason})")


def _found(given: str) -> _Found:
    """Find an extension. Raises ConfigError."""
    if given.lower().endswith(".py"):
        path = Path(given).resolve()
        if not path.is_file():
            raise ConfigError("extensions", given, "there is no such file; allowed: a module, or a path to a .py file")
        _require_free(given, path.stem)
        _reach(path.parent)
        return _Found(given, path.stem, [path], path, _imported(path.stem, [path]))
    _require_free(given, given)
    _reach(Path.cwd())
    try:
        spec = importlib.util.find_spec(given)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{given}.".startswith(f"{error.name}."):
            raise _unimportable(given, error) from error
        spec = None
    except (ImportError, ValueError):
        spec = None
    except (Exception, SystemExit) as error:  # Of a package that it is in, which is imported to find it.
        raise _unimportable(given, error) from error
    if spec is None or spec.origin is None or not spec.has_location:
        raise ConfigError("extensions", given, "there is no such module; allowed: a module, or a path to a .py file")
    origin, package = Path(spec.origin), bool(spec.submodule_search_locations)
    files = sorted(origin.parent.rglob("*.py")) if package else [origin]
    return _Found(given, given, files, origin.parent if package else origin, _imported(given, files))


def _require_free(given: str, name: str) -> None:
    """Raise ConfigError where a module that is no extension has the name."""
    if name not in _loaded and name in sys.modules:
        taken = "a module of this name is there already; allowed: another name, or before the extension that needs it"
        raise ConfigError("extensions", given, taken)


def _reach(folder: Path) -> None:
    """Let modules of a folder be imported, after all others."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _imported(name: str, files: Sequence[Path]) -> dict[str, Path]:
    """The modules that files of a module import, and those that these import, by name: all but the installed ones and
    those of the module itself.
    """
    found: dict[str, Path] = {}
    seen, todo = set(files), list(files)
    while todo:
        for imported in _imports(todo.pop()):
            for parent in _parents(imported):
                path = _source(parent)
                if path is None or path in seen or parent == name or parent.startswith(f"{name}."):
                    continue
                package = path.name == "__init__.py"
                for file in sorted(path.parent.rglob("*.py")) if package else [path]:
                    inside = file.relative_to(path.parent).with_suffix("").parts if package else ()
                    found[".".join([parent, *inside])] = file
                    seen.add(file)
                    todo.append(file)
    return found


def _imports(path: Path) -> Iterator[str]:
    """The names of modules that a file imports, or may: of `from a import b` a and a.b."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # The import will say so.
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _parents(name: str) -> list[str]:
    """a, a.b and a.b.c of a.b.c."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _source(name: str) -> Path | None:
    """The file of a module that is neither installed nor ours; None where there is none. Imports nothing."""
    path: Sequence[str] | None = None
    origin = None
    for parent in _parents(name):
        spec = importlib.machinery.PathFinder.find_spec(parent, path)
        if spec is None:
            return None
        path, origin = spec.submodule_search_locations, Path(spec.origin) if spec.has_location and spec.origin else None
        if origin is not None and _installed(origin):
            return None
    return origin if origin is not None and origin.suffix == ".py" else None


def _installed(file: Path) -> bool:
    """Whether a file is of an installed package, of Python itself or of ours."""
    roots = [Path(__file__).parent, *(Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib"))]
    return bool({"site-packages", "dist-packages"} & set(file.parts)) or any(root in file.parents for root in roots)


def _hash(found: _Found) -> str:
    digest = hashlib.sha256()
    for path in found.files:
        digest.update(f"{path.relative_to(found.place)}\n".encode())
        digest.update(path.read_bytes())
    for name, path in sorted(found.near.items()):
        digest.update(f"{name}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _import(found: _Found) -> None:
    # Compiled code is kept under a file's length and the second it was written in, which an edit may leave as they are.
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        if not found.given.lower().endswith(".py"):
            importlib.import_module(found.name)
            return
        loader = importlib.machinery.SourceFileLoader(found.name, str(found.place))
        spec = importlib.util.spec_from_loader(found.name, loader)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[found.name] = module
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before


def _forget(name: str, source: str = "") -> None:
    """Take an extension's records and modules out."""
    for gone in {source, _loaded.pop(name, "")} - {""}:
        for registry in REGISTRIES:
            registry.remove(gone)
    near = {module.removesuffix(".__init__") for module in _near.pop(name, ())} - set(_loaded)
    for module in [key for key in sys.modules if key == name or key.startswith(f"{name}.") or key in near]:
        del sys.modules[module]
    importlib.invalidate_caches()
    config.refresh()


def defaults() -> dict[str, Any]:
    """The defaults of the settings that records of extensions bring along, by name."""
    return {
        kind.prefix + field.name: field.default
        for kind in KINDS
        for name, record in kind.registry.items()
        if kind.registry.source(name)
        for field in getattr(record, "settings", ())
    }


_nodes: list[tuple[str, str]] = []


def _drop_nodes() -> None:
    for group, name in _nodes:
        ConfigStore.instance().repo.get(group, {}).pop(f"{name}.yaml", None)
    _nodes.clear()


def store_nodes(conf: Path) -> None:
    """Give Hydra what it needs to know of the extensions: their settings as keys, and a choice of a config group for
    each record that has no file in conf/. What it was told before is forgotten.
    """
    _drop_nodes()

    def store(group: str, name: str, node: dict[str, Any]) -> None:
        ConfigStore.instance().store(group=group, name=name, node=node, package="_global_", provider="mtfl_jax")
        _nodes.append((group, name))

    store("extension", "settings", defaults())
    for kind in KINDS:
        group = kind.group
        for name, record in kind.registry.items():
            choice = PREFIX + name if group == "network" else name
            if not group or not kind.registry.source(name) or (conf / group / f"{choice}.yaml").exists():
                continue
            node: dict[str, Any] = {group: choice}
            if hasattr(record, "base"):
                node = {"defaults": [record.base], **node}
            store(group, choice, node)
