"""Records of one kind by name: the only place where the program looks a name up, and the only way in for a new one.

A record is a frozen dataclass of pure functions and facts with a `name`; whatever the rest of the program must know of
a thing is a member of its record. Built-in records and those of `extensions` (`mtfl_jax.extend`) are registered alike.
"""

import dataclasses
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
NAMES = "letters, digits and underscores, no digit first"
"""What records and settings may be called: config keys, values of the command line and columns alike."""

_source: ContextVar[str] = ContextVar("source", default="")


class Named(Protocol):
    """Whatever has a name."""

    @property
    def name(self) -> str:
        """What it is called in configs and tables."""


R = TypeVar("R", bound=Named)

REGISTRIES: list["Registry[Any]"] = []
"""Every kind of record there is."""


class Registry(dict[str, R]):
    """Records of one kind by name. A look-up that misses raises LookupError and names what there is.

    reserved: names that mean something else in a config. check: raises ValueError for a record that contradicts itself.
    """

    def __init__(
        self, kind: str, check: Callable[[R], None] = lambda record: None, *, reserved: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.kind = kind
        self.reserved = reserved
        self._check = check
        self._sources: dict[str, str] = {}
        REGISTRIES.append(self)

    def register(self, record: R) -> R:
        """Add a record and return it. Raises ValueError where its name is taken or it cannot be, RuntimeError in a
        module that was not imported as an extension.
        """
        if not NAME.fullmatch(str(record.name)):
            raise ValueError(f"a {self.kind} called {record.name!r}; allowed: {NAMES}")
        if record.name in self or record.name in self.reserved:
            taken = "there is one already" if record.name in self else "the word means something else"
            raise ValueError(f"{self.kind} {record.name}: {taken}; allowed: another name")
        _require_whole(self.kind, record)
        self._check(record)
        if not _source.get() and not sys._getframe(1).f_globals["__name__"].startswith("mtfl_jax."):
            raise RuntimeError(f"{self.kind} {record.name}: records of your own come in by extensions=[MODULE]")
        self[record.name] = record
        # A module of ours may be imported first by an extension.
        self._sources[record.name] = "" if _registrant().startswith("mtfl_jax.") else _source.get()
        return record

    def __missing__(self, name: str) -> R:
        raise LookupError(f"{self.kind}={name}: allowed: {', '.join(self)}{guess(name, self)}")

    def source(self, name: str) -> str:
        """The extension that a record is from, NAME:HASH; empty for a built-in one."""
        return self._sources.get(name, "")

    def remove(self, source: str) -> None:
        """Take out the records of an extension."""
        for name in [name for name, of in self._sources.items() if of == source]:
            del self[name], self._sources[name]


def _require_whole(kind: str, record: Any) -> None:
    """Raise ValueError for a record without a doc, or with something else where a function belongs."""
    if not getattr(record, "doc", "").strip():
        raise ValueError(f"{kind} {record.name}: it says nothing of itself; allowed: a doc")
    for member in dataclasses.fields(record):
        value = getattr(record, member.name)
        function = str(member.type).startswith(("Callable", "collections.abc.Callable", "typing.Callable"))
        if function and not callable(value) and not (value is None and "None" in str(member.type)):
            raise ValueError(f"{kind} {record.name}: {member.name}={value!r}; allowed: a function")


def _registrant() -> str:
    """The module that registers a record."""
    return str(sys._getframe(2).f_globals["__name__"])


@contextmanager
def registering(source: str) -> Iterator[None]:
    """Whatever is registered meanwhile is from that extension."""
    token = _source.set(source)
    try:
        yield
    finally:
        _source.reset(token)


def guess(value: object, names: Iterable[str]) -> str:
    """What a misspelt name may have meant, in words; empty where nothing is near."""
    close = difflib.get_close_matches(str(value), list(names), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
