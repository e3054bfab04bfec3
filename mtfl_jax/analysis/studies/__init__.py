"""The studies: what `study=NAME` says of its table.

A `Study` is registered under its name. Those here are modules NAME.py, each imported, and so registered, when its name
is asked for. A user's own is registered by a module of the user's, or is a file NAME.py beside the study's YAML
(`from_file`).
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from mtfl_jax.analysis import describe
from mtfl_jax.analysis.findings import Findings
from mtfl_jax.names import NO_STUDY
from mtfl_jax.records import Registry, registering


@dataclasses.dataclass(frozen=True)
class Study:
    """What is said of a study's table.

    findings: of a folder's rows in any order, without the measurements of rows that are not ok, and with those that
    are censored: a fit counts them as such, figures leave them out, a mean takes `describe.exact`. It must take a table
    that is smaller than the study's own or lacks measurements, says of how many rows its means are, and raises
    ValueError that says why where it can say nothing.
    """

    name: str
    doc: str
    findings: Callable[[pd.DataFrame], Findings]


def built_in() -> tuple[str, ...]:
    """The names of the studies that have a module here."""
    return tuple(module.name for module in pkgutil.iter_modules(__path__))


def _check(study: Study) -> None:
    own = f"{__name__}.{study.name}"
    if study.name in built_in() and study.findings.__module__ != own:
        raise ValueError(f"study {study.name}: there is one already; allowed: another name")


STUDIES: Registry[Study] = Registry("study", _check, reserved=(NO_STUDY,))
"""The studies registered so far, by name; `named` imports those that are built in."""


def known(name: str) -> bool:
    """Whether a study is registered or built in."""
    return name in _every()


def named(name: str) -> Study:
    """The study of a name. Raises ValueError for one that is neither registered nor built in."""
    if not known(name):
        raise ValueError(f"study={name}: allowed: {', '.join(_every())}")
    if name not in STUDIES:
        importlib.import_module(f"{__name__}.{name}")
    return STUDIES[name]


def of(name: str, table: pd.DataFrame) -> Findings:
    """What a study says of a table. Raises ValueError for an unknown study, and where the study can say nothing."""
    return named(name).findings(describe.measured(table, bounds=True))


def from_file(name: str, path: Path) -> Study:
    """The study `name` of a Python file, which is run, once in a process: it registers the study, or has a function
    `findings(table)`, which the first line of the file's docstring describes. Raises ValueError where it does neither,
    or the name is taken.
    """
    path = path.resolve()
    module_name = f"mtfl_jax_study_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if module_name in sys.modules and name in STUDIES:
        return STUDIES[name]
    if known(name):
        raise ValueError(f"study={name}: this name is taken; allowed: a name other than {', '.join(_every())}")
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"study={name}: {path} is not a Python file; allowed: a file NAME.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        with registering(f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"):
            spec.loader.exec_module(module)
        if name not in STUDIES and not hasattr(module, "findings"):
            allowed = f"allowed: one that registers a study {name} or has a function findings(table)"
            raise ValueError(f"study={name}: {path} does not say what it finds; {allowed}")
    except BaseException:
        del sys.modules[module_name]
        raise
    if name in STUDIES:
        return STUDIES[name]
    doc = (module.__doc__ or name).strip().splitlines()[0].rstrip(".")
    return STUDIES.register(Study(name, doc, module.findings))


def _every() -> list[str]:
    return sorted({*STUDIES, *built_in()})
