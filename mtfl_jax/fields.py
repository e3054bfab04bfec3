"""What a setting is, and what a rule between settings may read.

A `Field` says of a setting once what it is; configs, programs, columns, identities and help follow from it. A `Rule` is
a function of those settings that it declares: it is given a view that has no others, so what agrees on the declared
ones agrees on the outcome.
"""

import dataclasses
import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from mtfl_jax.records import NAME, NAMES, Registry, guess


class ConfigError(ValueError):
    """A bad input, said in one line: the key, the value and what is allowed."""

    def __init__(self, key: str, value: object, allowed: str) -> None:
        super().__init__(f"{key}={value}: {allowed}")
        self.key, self.value, self.allowed = key, value, allowed

    def __reduce__(self) -> tuple[Any, ...]:
        return ConfigError, (self.key, self.value, self.allowed)


@dataclasses.dataclass(frozen=True)
class Type:
    """What values a setting takes.

    parse(key, value) gives the value as it is kept (hashable), or raises ConfigError. `column` is the type of its
    column in a table (None: it has none), `text` its words there where that is str. `number` is what a traced knob
    becomes, a `whole` one or not. `listed`: a flat list is one value, not several. `names` are the names that it
    chooses from, `source` the extension that a value is from. `examples` are some allowed values; `allowed` says in
    words which are.
    """

    parse: Callable[[str, Any], Any]
    column: type | None
    examples: Callable[[], Sequence[Any]]
    number: Callable[[Any], float] = float
    whole: bool = False
    text: Callable[[Any], str] = str
    listed: bool = False
    names: Callable[[], Iterable[str]] | None = None
    source: Callable[[Any], str] = lambda value: ""
    allowed: Callable[[], str] = lambda: ""


_SLICE = re.compile(r"(\d+)(:|\.\.+|-|…)(\d+)(?::(\d+))?")


def refused(key: str, value: Any, allowed: str) -> ConfigError:
    """The error of a value that is none of those allowed; it says how to ask for several, where that was meant."""
    several = isinstance(value, Sequence | np.ndarray | range) and not isinstance(value, str) and len(value) > 1
    if several:
        own = list(value)
        text = ",".join(str(one) for one in own[:2]) + ",…" * (len(own) > 2)
        meant = f"mtfl -m {key}={text}, or mtfl_jax.sweep({key}=[{text}])"
        return ConfigError(key, own, f"allowed: {allowed}; several are a sweep: {meant}")
    if isinstance(value, str) and (found := _SLICE.fullmatch(value.replace(" ", ""))):
        low, between, high, step = found.groups()
        stop = int(high) + (between != ":")
        meant = f"range({low},{stop}{f',{step}' if step else ''})"
        return ConfigError(key, value, f"allowed: {allowed}; {low} to {stop - 1} is a sweep: mtfl -m '{key}={meant}'")
    return ConfigError(key, value, f"allowed: {allowed}")


def integer(low: int, high: float = math.inf, examples: Sequence[int] = (1, 2, 3, 5, 8)) -> Type:
    """Integers from `low` to `high`. Raises ValueError where there are none."""
    if low > high:
        raise ValueError(f"integer({low}, {high}): there is none; allowed: low <= high")
    allowed = f"an integer from {low}" + (f" to {high}" if high < math.inf else "")

    def parse(key: str, value: Any) -> int:
        if isinstance(value, float | np.floating) and float(value).is_integer():
            value = int(value)  # 1e3 is 1000.
        try:
            found = operator.index(value)
        except TypeError:
            found = None
        if found is None or isinstance(value, bool) or not low <= found <= high:
            raise refused(key, value, allowed)
        return found

    return Type(parse, int, lambda: examples, number=int, whole=True, allowed=lambda: allowed)


def number(low: float, high: float = math.inf, examples: Sequence[float] = (0.0, 0.3, 1.0, 2.5)) -> Type:
    """Finite numbers from `low` to `high`. Raises ValueError where there are none."""
    if low > high:
        raise ValueError(f"number({low:g}, {high:g}): there is none; allowed: low <= high")
    allowed = "a finite number" + (f" from {low:g}" if low > -math.inf else "")
    allowed += f" to {high:g}" if high < math.inf else ""

    def parse(key: str, value: Any) -> float:
        good = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not good or not math.isfinite(value) or not low <= value <= high:
            raise refused(key, value, allowed)
        return float(value) + 0.0  # −0 is 0.

    return Type(parse, float, lambda: [value for value in examples if low <= value <= high], allowed=lambda: allowed)


def flag() -> Type:
    """true or false."""

    def parse(key: str, value: Any) -> bool:
        if not isinstance(value, bool | np.bool_):
            raise refused(key, value, "true, false")
        return bool(value)

    return Type(parse, bool, lambda: (False, True), allowed=lambda: "true, false")


def choice(names: Callable[[], Iterable[str]], source: Callable[[str], str] = lambda name: "") -> Type:
    """One of some names, asked for when a value is parsed."""

    def parse(key: str, value: Any) -> str:
        known = list(names())
        if not isinstance(value, str) or value not in known:
            raise refused(key, value, f"{', '.join(known)}{guess(value, known)}")
        return str(value)

    return Type(parse, str, lambda: list(names()), names=names, source=source, allowed=lambda: ", ".join(names()))


def of(registry: Registry[Any], *words: str) -> Type:
    """The name of a record, or one of some words."""
    return choice(lambda: (*registry, *words), registry.source)


def one_of(*names: str) -> Type:
    """One of some words."""
    return choice(lambda: names)


def optional(inner: Type) -> Type:
    """That, or null; which a traced knob has as NaN."""

    def parse(key: str, value: Any) -> Any:
        try:
            return None if value is None else inner.parse(key, value)
        except ConfigError as error:
            raise ConfigError(key, value, error.allowed.replace("allowed: ", "allowed: null, or ", 1)) from None

    return dataclasses.replace(
        inner,
        parse=parse,
        number=lambda value: math.nan if value is None else inner.number(value),
        examples=lambda: (None, *inner.examples()),
        allowed=lambda: f"null, or {inner.allowed()}",
    )


def word(numbers: Mapping[str, int]) -> Type:
    """One of some words, which a traced knob has as the integers given."""
    return dataclasses.replace(one_of(*numbers), names=None, number=lambda value: numbers[value], whole=True)


def integer_or(low: int, words: Mapping[str, int]) -> Type:
    """An integer from `low`, or one of some words, which a traced knob has as the integers given."""
    allowed = f"{', '.join(words)}, or an integer from {low}"

    def parse(key: str, value: Any) -> int | str:
        if isinstance(value, str) and value in words:
            return value
        try:
            return int(integer(low).parse(key, value))
        except ConfigError:
            raise refused(key, value, allowed) from None

    return Type(
        parse,
        str,
        lambda: (*words, 1, 2),
        number=lambda value: words.get(value, value),
        whole=True,
        allowed=lambda: allowed,
    )


def list_of(inner: Type, *, distinct: bool, examples: Sequence[Any], listed: bool = True, column: type = str) -> Type:
    """A list of those, or a single one for a list of one."""

    def parse(key: str, value: Any) -> tuple[Any, ...]:
        single = isinstance(value, str) or not isinstance(value, Sequence | np.ndarray | range)
        items = tuple(inner.parse(key, item) for item in ([value] if single else value))
        if not items or (distinct and len(set(items)) < len(items)):
            raise ConfigError(key, value, "allowed: a non-empty list" + (" of distinct values" if distinct else ""))
        return items

    def allowed() -> str:
        return f"one or a list{' of distinct ones' if distinct else ''}: {inner.allowed()}"

    return Type(
        parse,
        column,
        lambda: examples,
        text=lambda value: "+".join(map(str, value)),
        listed=listed,
        names=inner.names,
        source=lambda value: " ".join(sorted({inner.source(item) for item in value} - {""})),
        allowed=allowed,
    )


class UndeclaredError(AttributeError):
    """A setting that was read where it was not declared to bear: a fault of the program, not of its input."""


class View:
    """Some settings of a cell, as attributes. Reading another one raises UndeclaredError."""

    __slots__ = ("_reads", "_values", "_who")

    def __init__(self, values: Mapping[str, Any], reads: frozenset[str], who: str) -> None:
        self._values, self._reads, self._who = values, reads, who

    def __getattr__(self, name: str) -> Any:
        if name not in self._reads:
            raise UndeclaredError(f"{self._who} reads {name} without declaring it; declared: {sorted(self._reads)}")
        return self._values[name]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A function of the settings it declares to read; a check raises ConfigError."""

    reads: frozenset[str]
    of: Callable[[View], Any]

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """The outcome for a cell's values."""
        return self.of(View(values, self.reads, self.of.__qualname__))

    def within(self, view: View, names: Mapping[str, str] | None = None) -> Any:
        """The outcome inside another rule, which must have declared what this one reads; under the name in `names`
        where there is one.
        """
        called = names or {}
        return self({name: getattr(view, called.get(name, name)) for name in self.reads})


def rule(*reads: str) -> Callable[[Callable[[View], Any]], Rule]:
    """Make a rule of a function of a view: the settings it reads are named here."""
    return lambda function: Rule(frozenset(reads), function)


Kind = Literal["shape", "knob", "choice"]

NONE_NEUTRAL = object()
"""Of a setting that bears with all its values."""


@dataclasses.dataclass(frozen=True)
class Field:
    """A setting.

    kind: `shape` changes array shapes, `choice` names code, both are compiled in; a `knob` is a traced number, and
    another value compiles nothing. `padded`: a shape whose programs may be larger than it, its true size being traced.
    `when`: whether it bears on a row, beside being used by what the cell chooses (always, where nothing uses it by
    name). `identified`: whether rows that differ in it are different rows. `default`: only of a setting that a record
    brings along; the others' are in conf/. `before`: what rows had that were written before the setting was there.
    `neutral`: the value with which a row is what it is without the setting; it is then no part of the row's program and
    identity, and its column has it all the same (NONE_NEUTRAL: there is none; null is one).
    `label`: what figures call it, where that is not in `names.COLUMN_LABELS`. Raises ValueError for one that cannot be.
    """

    name: str
    kind: Kind
    type: Type
    doc: str
    padded: bool = False
    when: Rule | None = None
    identified: bool = True
    default: Any = None
    before: Any = None
    neutral: Any = NONE_NEUTRAL
    label: str = ""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"a setting called {self.name!r}; allowed: {NAMES}")
        if self.kind not in get_args(Kind):
            raise ValueError(f"setting {self.name}: kind={self.kind}; allowed: {', '.join(get_args(Kind))}")
        if not self.doc.strip():
            raise ValueError(f"setting {self.name}: it says nothing of itself; allowed: a doc")
        if self.kind == "knob":
            for value in self.type.examples():
                try:
                    self.type.number(value)
                except (TypeError, ValueError):
                    raise ValueError(
                        f"setting {self.name}: {value!r} is no number; allowed: numbers for a knob, or kind='choice'"
                    ) from None

    def hashed(self, value: Any) -> str:
        """The text that tells a value of this setting apart in identities."""
        source = self.type.source(value) if value is not None else ""
        return f"{self.name}={json.dumps(value)}" + (f"@{source}" if source else "")
