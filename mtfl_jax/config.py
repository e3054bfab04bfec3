"""One cell: the settings there are, which of them bear on it, what it may not be, and what it compiles to.

All of it is derived from the records (`mtfl_jax.records`) and from `mtfl_jax.settings`, and derived anew when an
extension registers more.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mtfl_jax import settings
from mtfl_jax.fields import NONE_NEUTRAL, ConfigError, Field, Rule, View, rule
from mtfl_jax.kinds import KINDS, PARTS, PROBED, Kind, names_of, probes_part, recorded, taken
from mtfl_jax.learning.algorithms import ALGORITHMS
from mtfl_jax.learning.algorithms.record import Shared
from mtfl_jax.learning.measures import MEASURES
from mtfl_jax.learning.probe import NONE, PROBES
from mtfl_jax.learning.program import Program
from mtfl_jax.learning.tasks import FAMILIES, MAX_TABLE_R
from mtfl_jax.names import BOOKKEEPING, OTHER_KEYS, SWEEP_KEYS
from mtfl_jax.records import REGISTRIES, guess


class Derived(NamedTuple):
    """What follows from the records there are.

    bears: of each field whether it bears on a cell's row. shown: whether its column has its value there, which one that
    is neutral has though it does not bear. sources: the extensions that a cell uses, in words. checks:
    rules that raise ConfigError. prefixes: whether a training of fewer steps is the beginning of a longer one. shared:
    whether a pass gives a cell's row among others'. rows: the settings in which the cells of such a pass may differ;
    row: what tells their rows apart, empty for other cells: family, r, width, num_tasks, the family's settings by name.
    probed: what tells downstream probes apart, empty where there is none: the program's entry for it (`Probed`), the
    settings of its family, and its own, by name. probing: the settings in which alike probes of a training may differ.
    """

    fields: dict[str, Field]
    bears: dict[str, Rule]
    shown: dict[str, Rule]
    sources: Rule
    checks: tuple[Rule, ...]
    prefixes: Rule
    shared: Rule
    rows: Rule
    row: Rule
    probed: Rule
    probing: frozenset[str]

    @property
    def planning(self) -> tuple[Rule, ...]:
        """The rules on which a plan depends, beside shapes and choices."""
        own = (self.prefixes, self.shared, self.rows, self.row, self.probed)
        return (*self.bears.values(), *own, *(part.rule for part in PARTS.values()))


FIELDS: dict[str, Field] = {}
"""Every setting of a cell by name; the same dict always, filled by `refresh`."""

_derived: list[Derived] = []


def derived() -> Derived:
    """What follows from the records there are now."""
    return _derived[-1]


def refresh() -> None:
    """Derive everything anew from the records. Raises ValueError where two of them claim one name."""
    fields: dict[str, Field] = {}
    for field in (*settings.ALWAYS[:4], *settings.USED[:5], *settings.ALWAYS[4:], *settings.USED[5:]):
        fields[field.name] = field
    for kind in KINDS:
        for record in kind.registry.values():
            for field in getattr(record, "settings", ()):
                if kind.registry is FAMILIES and field.kind != "knob":
                    raise ValueError(f"tasks {record.name}: {field.name} is a {field.kind}; allowed: knobs")
                found = _renamed(field, kind.prefix)
                if fields.setdefault(found.name, found) != found:
                    raise ValueError(f"{kind.registry.kind} {record.name}: there is a setting {found.name} already")
    _require_consistent(fields)
    FIELDS.clear()
    FIELDS.update(fields)
    PARTS["probes"] = probes_part()
    always = {field.name for field in settings.ALWAYS}
    shown = {name: _always(field) if name in always else _used(name) for name, field in fields.items()}
    bears = {name: _unless_neutral(fields[name], own) for name, own in shown.items()}
    holds = {name: record.shared.holds if record.shared else None for name, record in ALGORITHMS.items()}
    shared = _by_algorithm(holds, False)
    _derived[:] = [
        Derived(
            fields,
            bears,
            shown,
            _sources(fields, bears),
            tuple(_checks()),
            _by_algorithm({name: record.prefix for name, record in ALGORITHMS.items()}, False),
            shared,
            _by_algorithm(
                {name: record.shared.rows if record.shared else None for name, record in ALGORITHMS.items()},
                frozenset(),
            ),
            _row(shared),
            _probed(),
            _probing(),
        )
    ]


def _require_consistent(fields: Mapping[str, Field]) -> None:
    """Raise ValueError for a name that a table or a config has for something else, for a default that is not allowed,
    and for a record that speaks of a setting there is none of.
    """
    taken = {*OTHER_KEYS, *BOOKKEEPING, "id"}
    for name in [*fields, *MEASURES]:
        if name in taken or (name in fields and name in MEASURES):
            raise ValueError(f"{name} is the name of a key or a column already; allowed: another name")
    for kind in KINDS:
        for record in kind.registry.values():
            who = f"{kind.registry.kind} {record.name}"
            rules = (*getattr(record, "rules", ()), *getattr(record, "when", {}).values())
            for name in {*getattr(record, "uses", ()), *(name for own in rules for name in own.reads)}:
                if name not in fields:
                    raise ValueError(f"{who}: there is no setting {name}{guess(name, fields)}")
            for field in getattr(record, "settings", ()) if kind.registry.source(record.name) else ():
                try:
                    field.type.parse(field.name, field.default)
                except ConfigError as error:
                    raise ValueError(f"{who}: the default {error}") from None


def _renamed(field: Field, prefix: str) -> Field:
    if not prefix:
        return field
    return dataclasses.replace(field, name=prefix + field.name, doc=f"{field.doc}, of the downstream task")


def _sources(fields: Mapping[str, Field], bears: Mapping[str, Rule]) -> Rule:
    """The extensions that a cell's choices are from; empty where there are none."""
    if not any(registry.source(name) for registry in REGISTRIES for name in registry):
        return rule()(lambda c: "")
    chosen = {name: field for name, field in fields.items() if field.type.names is not None}

    def sources(c: View) -> str:
        found = (field.type.source(getattr(c, name)) for name, field in chosen.items() if bears[name].within(c))
        return " ".join(sorted({one for several in found for one in several.split()}))

    return Rule(frozenset(chosen).union(*(bears[name].reads for name in chosen)), sources)


def _always(field: Field) -> Rule:
    return field.when or rule()(lambda c: True)


def _unless_neutral(field: Field, own: Rule) -> Rule:
    if field.neutral is NONE_NEUTRAL:
        return own
    return Rule(own.reads | {field.name}, lambda c: getattr(c, field.name) != field.neutral and own.within(c))


def _used(name: str) -> Rule:
    """Whether a setting is used by something that the cell chooses."""
    users: list[tuple[Kind, dict[str, Rule | None]]] = []
    reads: set[str] = set()
    for kind in KINDS:
        own = name.removeprefix(kind.prefix) if name.startswith(kind.prefix) else None
        found: dict[str, Rule | None] = {
            record.name: getattr(record, "when", {}).get(own)
            for record in filter(kind.among, kind.registry.values())
            if own in names_of(record) and not (kind.prefix and own in getattr(record, "uses", ()))
        }
        if found:
            users.append((kind, found))
            reads |= kind.chosen.reads.union(*(when.reads for when in found.values() if when))
    reads_of = frozenset(reads)

    def bears(c: View) -> bool:
        for kind, found in users:
            for chosen in kind.chosen.within(c):
                if chosen in found and ((when := found[chosen]) is None or when.within(c)):
                    return True
        return False

    return Rule(reads_of, bears)


def _by_algorithm(rules: Mapping[str, Rule | None], otherwise: Any) -> Rule:
    """The outcome of the chosen algorithm's own rule."""
    reads = frozenset({"algorithm"}).union(*(own.reads for own in rules.values() if own))

    def outcome(c: View) -> Any:
        own = rules[c.algorithm]
        return otherwise if own is None else own.within(c)

    return Rule(reads, outcome)


def _own(record: Any, prefix: str = "") -> frozenset[str]:
    return frozenset(prefix + field.name for field in record.settings)


def _probing() -> frozenset[str]:
    """The settings of probes and, of their tasks, those of families. Raises ValueError where another record has one of
    the first.
    """
    own = {name: record.name for record in PROBES.values() for name in _own(record)}
    for kind in KINDS:
        for record in kind.registry.values() if kind.registry is not PROBES else ():
            for name in names_of(record):
                if (called := kind.prefix + name) in own:
                    who = f"{kind.registry.kind} {record.name}"
                    raise ValueError(f"probe {own[called]}: {called} is a setting of {who} too; allowed: another name")
    return frozenset(own).union(*(_own(family, PROBED) for family in FAMILIES.values()))


def _of_family(c: View, family: str, prefix: str = "") -> tuple[tuple[str, Any], ...]:
    """The settings of a family in a cell, by the family's names."""
    return tuple((field.name, getattr(c, prefix + field.name)) for field in FAMILIES[family].settings)


def _row(shared: Rule) -> Rule:
    own = frozenset(field.name for family in FAMILIES.values() if not family.real for field in family.settings)

    def row(c: View) -> tuple[Any, ...]:
        return (c.tasks, c.r, c.width, c.num_tasks, _of_family(c, c.tasks)) if shared.within(c) else ()

    return Rule(shared.reads | {"tasks", "r", "width", "num_tasks"} | own, row)


def _probed() -> Rule:
    part = PARTS["probes"].rule
    own = {name: tuple(field.name for field in record.settings) for name, record in PROBES.items()}

    def probed(c: View) -> tuple[Any, ...]:
        if c.probe == NONE:
            return ()
        (entry,) = part.within(c)
        mine = tuple((name, getattr(c, name)) for name in own[c.probe])
        return entry, _of_family(c, c.probe_tasks, PROBED), mine

    return Rule(part.reads | _probing(), probed)


def _checks() -> Iterable[Rule]:
    """The checks of every cell, and those of what it chooses."""
    yield from settings.CHECKS
    for kind in KINDS:
        for record in filter(kind.among, kind.registry.values()):
            own = tuple(getattr(record, "rules", ()))
            if getattr(record, "table", False):
                own = (*own, _table_fits(record.name))
            yield from (_check(kind, record, each) for each in own)


def _table_fits(name: str) -> Rule:
    @rule("r")
    def fits(c: View) -> None:
        if c.r > MAX_TABLE_R:
            free = ", ".join(family.name for family in FAMILIES.values() if not family.table)
            raise ConfigError(
                "r", c.r, f"tasks={name} holds tables of 2^r values; allowed: r <= {MAX_TABLE_R}, or {free}"
            )

    return fits


def _check(kind: Kind, record: Any, own: Rule) -> Rule:
    """A record's check, of the cells that choose it."""
    prefixed = {"tasks", *(field.name for field in getattr(record, "settings", ()))} if kind.prefix else set()
    names = {name: kind.prefix + name for name in prefixed}
    reads = frozenset(names.get(name, name) for name in own.reads)

    def check(c: View) -> None:
        if record.name in kind.chosen.within(c):
            try:
                own.within(c, names)
            except ConfigError as error:
                allowed = error.allowed
                for name, called in names.items():
                    allowed = allowed.replace(f"{name}=", f"{called}=")
                raise ConfigError(names.get(error.key, error.key), error.value, allowed) from None

    return Rule(reads | kind.chosen.reads, check)


class Config:
    """The settings of one cell, as attributes; immutable and hashable."""

    __slots__ = ("__dict__", "values")

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = dict(values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self.values[name]
        except KeyError:
            raise AttributeError(f"no setting {name}") from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.values == other.values

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.values.items())))

    def __repr__(self) -> str:
        return f"Config({self.values})"

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "Config":
        """Check every value and every rule between them. Raises ConfigError."""
        config = cls.parsed(values)
        config.check()
        return config

    @classmethod
    def parsed(cls, values: Mapping[str, Any]) -> "Config":
        """Check every value by itself. Raises ConfigError, also for an unknown or missing key."""
        for key, value in values.items():
            require_field(key, value)
        parsed = {}
        for name, field in FIELDS.items():
            if name not in values:
                raise ConfigError(name, "(missing)", "required")
            parsed[name] = field.type.parse(name, values[name])
        return cls(parsed)

    def replace(self, **values: Any) -> "Config":
        """The config with other values, as they are."""
        return Config({**self.values, **values})

    def check(self) -> None:
        """Check the rules between values. Raises ConfigError."""
        for check in derived().checks:
            check(self.values)

    @functools.cached_property
    def used(self) -> frozenset[str]:
        """The fields that bear on this cell's row; the others are missing in it."""
        return frozenset(name for name, bears in derived().bears.items() if bears(self.values))

    @functools.cached_property
    def bearing(self) -> dict[str, Any]:
        """The values that bear on the row, None for the others."""
        return {name: value if name in self.used else None for name, value in self.values.items()}

    @property
    def record(self) -> tuple[int, ...]:
        """Numbers of updates after which the cell is measured."""
        return tuple(recorded(self.values))

    @property
    def prefixes(self) -> bool:
        """Whether a training of fewer steps is the beginning of this one."""
        return bool(derived().prefixes(self.values))

    @property
    def shared(self) -> Shared | None:
        """The pass that gives this cell's row among others', where one does."""
        return ALGORITHMS[self.algorithm].shared if derived().shared(self.values) else None

    @property
    def rows(self) -> frozenset[str]:
        """The settings in which the cells of such a pass may differ."""
        return frozenset(derived().rows(self.values))

    @property
    def row(self) -> tuple[Any, ...]:
        """What tells this cell's row apart in such a pass: family, r, width, num_tasks, the family's settings."""
        return tuple(derived().row(self.values))

    @property
    def probe_key(self) -> tuple[Any, ...]:
        """What tells downstream probes apart: the program's entry, its family's settings by name, and its own."""
        return tuple(derived().probed(self.values))

    @property
    def exact(self) -> frozenset[str]:
        """The sizes that no program of this cell may pad."""
        chosen = ((kind.registry[name] for name in kind.chosen(self.values)) for kind in KINDS)
        return frozenset(size for records in chosen for record in records for size in getattr(record, "exact", ()))

    def program(self) -> Program:
        """What this cell compiles to, unpadded: only what bears on its row."""
        values = {
            name: self.values[name]
            for name, field in FIELDS.items()
            if field.kind != "knob" and name in self.used and name not in taken()
        }
        parts = {name: part.rule(self.bearing) for name, part in PARTS.items() if part.of[0] in self.used}
        n_down = () if self.probe == NONE else self.n_down
        return Program(**values, **parts, record=self.record, n_down=n_down)

    @property
    def traced(self) -> tuple[str, ...]:
        """The settings that its training has as traced numbers, the probe's aside."""
        return tuple(
            name
            for name, field in FIELDS.items()
            if name in self.used and (field.padded or field.kind == "knob") and name not in derived().probing
        )


def require_field(key: str, value: object) -> None:
    """Raise ConfigError unless `key` names a field."""
    if key not in FIELDS:
        meant = guess(key, [*FIELDS, *OTHER_KEYS, *(f"sweep.{name}" for name in SWEEP_KEYS)])
        raise ConfigError(key, value, f"unknown key{meant}; allowed: {', '.join(FIELDS)}")


refresh()
