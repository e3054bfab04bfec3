"""What a compiled program depends on, and what it does not: the two halves of a cell.

Both hold only what bears on the cell's rows, so code that reads anything else fails at once, in every run.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

from mtfl_jax.fields import Field, UndeclaredError


class Probed(NamedTuple):
    """A probe of a program: its record's name, the family of its task, and those of its own settings that are compiled
    in, by name.
    """

    probe: str
    family: str
    own: tuple[tuple[str, Any], ...] = ()


class Program:
    """Names and sizes of arrays, hashable; sizes are at least the true ones of its cells.

    Settings of kind `shape` and `choice` by their names (`mtfl_jax.config`), and what follows from settings:
    losses (names, in turn over tasks), noisy and target_noisy (labels ±1 and real ones), rotated, arithmetic, record
    (update counts measured at), probes (`Probed`; each is fitted on every n_down).
    `groups`, where not empty, make it a program of a shared pass: a training gives a row for each of several (task
    family, r, width, num_tasks); a group (width, k) says that the next k of them have at most that width, and their
    families are among `families`. `accelerator`: it is for a device that wants what a batch can share, not for a core.
    `spread`: neurons are shared among devices, along the axis `network.NEURONS` of the mesh it is traced under. `keep`:
    it gives its networks beside what is measured of them.
    """

    __slots__ = ("_hash", "_values")

    def __init__(self, **values: Any) -> None:
        kinds = dict.fromkeys(("accelerator", "spread", "keep"), False)
        self._values = {"groups": (), "families": (), **kinds, **values}
        self._hash: int | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            raise UndeclaredError(f"a program reads {name}, which does not bear on its rows") from None

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __iter__(self) -> Iterable[str]:
        return iter(self._values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self._values == other._values

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(tuple(sorted(self._values.items())))
        return self._hash

    def __repr__(self) -> str:
        return f"Program({', '.join(f'{name}={value!r}' for name, value in self._values.items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _program, (self._values,)

    def replace(self, **values: Any) -> "Program":
        """The program with other values."""
        return Program(**{**self._values, **values})


def _program(values: dict[str, Any]) -> Program:
    return Program(**values)


@jax.tree_util.register_pytree_with_keys_class
class Cell:
    """True sizes and knobs of one training by name; every leaf may be traced.

    Scalars, but n_down (k,), the settings of probes and, as probe_…, of their families (probes,), and in a shared pass
    those of its rows (rows,): r, width, num_tasks, the settings of families, and `family`, a place among the program's
    families.
    """

    __slots__ = ("_values",)

    def __init__(self, **values: Any) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            raise UndeclaredError(f"a training reads {name}, which does not bear on its rows") from None

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __repr__(self) -> str:
        return f"Cell({', '.join(f'{name}={value!r}' for name, value in self._values.items())})"

    def replace(self, **values: Any) -> "Cell":
        """The cell with other values."""
        return Cell(**{**self._values, **values})

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], tuple[str, ...]]:
        """The values in the order of their names, and the names."""
        names = tuple(sorted(self._values))
        return [(jax.tree_util.GetAttrKey(name), self._values[name]) for name in names], names

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], leaves: Iterable[Any]) -> "Cell":
        """The inverse."""
        return cls(**dict(zip(names, leaves, strict=True)))


def own(p: Program, cell: Cell, settings: Iterable[Field]) -> dict[str, Any]:
    """A record's own settings: knobs from the cell, the others from the program."""
    return {field.name: getattr(cell if field.kind == "knob" else p, field.name) for field in settings}
