"""The door for the user's own: `extensions=[MODULE_OR_FILE]` imports modules that register records.

A module is named as in an import, or is a path to a .py file; importing it runs its code. Each record knows the module
it is from and the hash of that module's files, which is part of the identity of every cell that uses the record: rows
of edited science are other rows.
"""

import hashlib
import importlib
import importlib.util
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.config_store import ConfigStore

from mtfl_jax import config
from mtfl_jax.fields import ConfigError
from mtfl_jax.learning.activations import PREFIX
from mtfl_jax.records import REGISTRIES, registering

LOCK = threading.RLock()
"""Held while modules are imported or configs composed: both change what the whole process sees."""

_loaded: dict[str, str] = {}


def loaded() -> tuple[str, ...]:
    """The extensions of this process, NAME:HASH each."""
    return tuple(_loaded.values())


def load(extensions: Sequence[str] | str | None) -> tuple[str, ...]:
    """Import extensions, those that are here already only if their files have changed; NAME:HASH of each. They stay
    until the process ends.

    Raises ConfigError where one cannot be found or imported, has another's name, or claims a name that is taken.
    """
    given = [extensions] if isinstance(extensions, str) else list(extensions or ())
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
    """An extension as it was given, and its name, files and place."""

    given: str
    name: str
    files: list[Path]
    place: Path


def _load(found: _Found) -> str:
    name, given = found.name, found.given
    source = f"{name}:{_hash(found)}"
    if _loaded.get(name) == source:
        return source
    if name not in _loaded and name in sys.modules:
        taken = "a module of this name is there already; allowed: another name, or before the extension that needs it"
        raise ConfigError("extensions", given, taken)
    _forget(name)
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
    if given.endswith(".py"):
        path = Path(given).resolve()
        if not path.is_file():
            raise ConfigError("extensions", given, "there is no such file; allowed: a module, or a path to a .py file")
        return _Found(given, path.stem, [path], path)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
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
    origin = Path(spec.origin)
    if spec.submodule_search_locations:
        return _Found(given, given, sorted(origin.parent.rglob("*.py")), origin.parent)
    return _Found(given, given, [origin], origin)


def _hash(found: _Found) -> str:
    digest = hashlib.sha256()
    for path in found.files:
        digest.update(f"{path.relative_to(found.place)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _import(found: _Found) -> None:
    # Compiled code is kept under a file's length and the second it was written in, which an edit may leave as they are.
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        if not found.given.endswith(".py"):
            importlib.import_module(found.name)
            return
        spec = importlib.util.spec_from_file_location(found.name, found.place)
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
    for module in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
        del sys.modules[module]
    importlib.invalidate_caches()
    config.refresh()


def defaults() -> dict[str, Any]:
    """The defaults of the settings that records of extensions bring along, by name."""
    return {
        kind.prefix + field.name: field.default
        for kind in config.KINDS
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
    for kind in config.KINDS:
        group = kind.group
        for name, record in kind.registry.items():
            choice = PREFIX + name if group == "network" else name
            if not group or not kind.registry.source(name) or (conf / group / f"{choice}.yaml").exists():
                continue
            node: dict[str, Any] = {group: choice}
            if hasattr(record, "base"):
                node = {"defaults": [record.base], **node}
            store(group, choice, node)
