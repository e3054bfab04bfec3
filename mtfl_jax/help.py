"""What `mtfl --help` says of groups and keys, from the records: `${mtfl_help:groups}` and so on in conf/hydra/help."""

import json
import shutil
import textwrap
from collections.abc import Iterable
from typing import Any

from omegaconf import OmegaConf

from mtfl_jax import extend
from mtfl_jax.compose import conf_dir
from mtfl_jax.config import FIELDS
from mtfl_jax.kinds import KINDS
from mtfl_jax.learning.activations import PREFIX
from mtfl_jax.learning.losses import MIXTURE
from mtfl_jax.learning.probe import NONE
from mtfl_jax.names import GROUPS, OTHER_KEYS, SWEEP_KEYS

WORDS = {MIXTURE: "differing losses over tasks, those of losses in turn", NONE: "no downstream classifier"}
"""Choices of a group that are no record."""


def _columns(rows: Iterable[tuple[str, ...]], indent: int) -> str:
    """Rows of equal length, aligned; what the last column holds is wrapped inside the terminal."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    margin = indent + sum(widths) + 2 * len(widths)
    room = max(shutil.get_terminal_size((120, 24)).columns - margin, 24)
    lines = []
    for *names, doc in rows:
        head = " " * indent + "".join(f"{name:{width}}  " for name, width in zip(names, widths, strict=True))
        lines.append(head + f"\n{'':{margin}}".join(textwrap.wrap(doc, room, break_on_hyphens=False)))
    return "\n".join(lines)


def groups() -> str:
    """Every config group, what it is for, and its choices."""
    out = []
    for kind in KINDS:
        if kind.group:
            field = FIELDS[kind.group]
            names = list(field.type.names() if field.type.names else ())
            docs = {**WORDS, **{name: record.doc for name, record in kind.registry.items()}}
            choices = _columns(((name, docs[name.removeprefix(PREFIX)]) for name in names), 6)
            out.append(f"  {kind.group}: {field.doc}\n{choices}")
    return "\n".join(out)


def studies() -> str:
    """The studies that conf/ has."""
    return " | ".join(sorted(path.stem for path in conf_dir().glob("study/*.yaml")))


def clusters() -> str:
    """Where conf/ lets the shares of a sweep run."""
    return " | ".join(sorted(path.stem for path in conf_dir().glob("cluster/*.yaml")))


def keys(root: Any) -> str:
    """Every key that is no group: what it is here, what it says, and what it takes."""
    fields = [(name, field.doc, field.type.allowed()) for name, field in FIELDS.items() if name not in GROUPS]
    own = [(name, f"{doc} ({allowed})" if allowed else doc) for name, doc, allowed in fields]
    others = [(name, doc) for name, doc in OTHER_KEYS.items() if name not in ("study", "size", "sweep", "hydra")]
    sweep = [(f"sweep.{name}", doc) for name, doc in SWEEP_KEYS.items()]
    return _columns([(name, _value(root, name), doc) for name, doc in [*own, *others, *sweep]], 2)


def _value(root: Any, key: str) -> str:
    """A key's value in a config, as the command line takes it."""
    value = OmegaConf.select(root, key, default=extend.defaults().get(key))
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    text = "null" if value is None else json.dumps(value).replace('"', "").replace(", ", ",")
    return text if len(text) <= 16 else f"{text[:15]}…"


def register() -> None:
    """Let conf/hydra/help ask for these."""

    def said(name: str, *, _root_: Any) -> str:
        return {"groups": groups, "studies": studies, "clusters": clusters, "keys": lambda: keys(_root_)}[name]()

    OmegaConf.register_new_resolver("mtfl_help", said, replace=True)
