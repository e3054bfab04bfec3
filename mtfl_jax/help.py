"""What `mtfl --help` says of groups and keys, from the records: `${mtfl_help:groups}` and so on in conf/hydra/help."""

from collections.abc import Iterable

from omegaconf import OmegaConf

from mtfl_jax.compose import conf_dir
from mtfl_jax.config import FIELDS
from mtfl_jax.kinds import KINDS
from mtfl_jax.learning.activations import PREFIX
from mtfl_jax.learning.losses import MIXTURE
from mtfl_jax.learning.probe import NONE
from mtfl_jax.names import GROUPS

WORDS = {MIXTURE: "differing losses over tasks, those of losses in turn", NONE: "no downstream classifier"}
"""Choices of a group that are no record."""


def _columns(pairs: Iterable[tuple[str, str]], indent: int) -> str:
    pairs = list(pairs)
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{'':{indent}}{name:{width}}  {doc}" for name, doc in pairs)


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


def keys() -> str:
    """Every key of a cell that is no group, what it is, and the names it takes."""
    docs = {name: field.doc for name, field in FIELDS.items() if name not in GROUPS}
    for name in docs:
        if (names := FIELDS[name].type.names) is not None:
            docs[name] += f": {' | '.join(names())}"
    return _columns(docs.items(), 4)


def register() -> None:
    """Let conf/hydra/help ask for these."""
    said = {"groups": groups, "studies": studies, "keys": keys}
    OmegaConf.register_new_resolver("mtfl_help", lambda name: said[name](), replace=True)
