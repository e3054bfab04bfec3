"""A grid of cells, held as positions on axes: a million cells are a few columns of integers.

A cell is one `Config` with a single n_down. A grid is the product of its axes (`grammar`), less what `where` excludes,
with the axes of a `zip`, and those that are intervals (`sampling`), advancing together.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from mtfl_jax import config
from mtfl_jax.config import FIELDS, Config, require_field
from mtfl_jax.fields import ConfigError, Rule, View
from mtfl_jax.kinds import recorded
from mtfl_jax.learning import keys
from mtfl_jax.names import GROUPS
from mtfl_jax.sweeps import conditions
from mtfl_jax.sweeps.grammar import Interval, axis_values
from mtfl_jax.sweeps.sampling import PLAIN, Sampling, sampled

SCHEMA = 3
"""Number of the present columns and identities: an identity hashes every value that bears on a row, with its name."""


def numerics() -> str:
    """Precision of arrays and matrix products, part of every identity."""
    return f"{jnp.result_type(float)}-highest"


class Grid:
    """Cells in order, the last axis fastest.

    The cells are those of the product of `axes`, or, where there are `grids`, of each in turn: of its own axes and of
    `axes`, which go before. blocks: the configs of the combinations of group choices; axes: the values of each other
    axis; block (n,) and at[key] (n,): each cell's block and its position on every axis; ids (n,): each cell's identity.
    Cells that differ only in what does not bear on them are one cell, measured wherever one of them is:
    `asked` is how many there were before.
    Raises ConfigError for a bad axis, value or cell.
    """

    def __init__(
        self,
        axes: Mapping[str, Any],
        compose: Callable[[Mapping[str, str]], Mapping[str, Any]],
        *,
        grids: Sequence[Mapping[str, Any]] = (),
        zipped: Sequence[Sequence[str]] | Sequence[str] = (),
        where: Sequence[str] | str = (),
        sampling: Sampling = PLAIN,
    ) -> None:
        each = [_valued({**own, **axes}) for own in grids or [{}]]
        where = [where] if isinstance(where, str) else where
        zipped = zips(zipped)
        for group in zipped:
            if not any(own.keys() >= set(group) for own in each):
                raise _bad_zip(group, {key: 0 for key in group if not any(key in own for own in each)})
            if of := [key for key in group if any(isinstance(own.get(key), Interval) for own in each)]:
                allowed = f"allowed: axes of values; {of[0]} is an interval, and intervals advance together"
                raise ConfigError("sweep.zip", f"[{','.join(group)}]", allowed)
        drawn = [[key for key in own if isinstance(own[key], Interval)] for own in each]
        if sampling.size is not None and not any(drawn):
            raise ConfigError("sweep.sample", sampling.size, "allowed where an axis is an interval(LOW,HIGH)")
        products = []
        for own, intervals in zip(each, drawn, strict=True):
            # A zip is of the grids that have all of its axes.
            together = [*(group for group in zipped if own.keys() >= set(group)), *([intervals] if intervals else [])]
            products.append(_product(sampled(own, sampling), compose, together))
        self._fill(_joined(products))
        self._expand_n_down()
        for text in where:
            self._keep(conditions.met(text, self.column, len(self)))
        if not len(self):
            raise ConfigError("sweep.where", list(where), "leaves no cell; allowed: conditions that some cell meets")
        self._check()
        self.asked = len(self)
        self._identify()

    @classmethod
    def of_sweep(cls, sweep: Mapping[str, Any], compose: Callable[[Mapping[str, str]], Mapping[str, Any]]) -> "Grid":
        """The grid that `sweep` of a config says. Raises ConfigError."""
        sampling = Sampling.of(*(sweep[key] for key in ("sample", "sampler", "sample_seed")))
        parts = {"grids": sweep["grids"], "zipped": sweep["zip"], "where": sweep["where"]}
        return cls(sweep["axes"], compose, **parts, sampling=sampling)

    @classmethod
    def of_cells(cls, axes: Mapping[str, Sequence[Any]], at: Mapping[str, np.ndarray], rest: Config) -> "Grid":
        """Cells given by their positions on axes of parsed values, `rest` saying the other fields; neither checked nor
        merged, one a position.
        """
        grid = cls.__new__(cls)
        count = len(next(iter(at.values())))
        grid._fill(_Product([rest], np.zeros(count, np.int32), {key: list(axes[key]) for key in at}, dict(at)))
        return grid

    def _fill(self, product: "_Product") -> None:
        self.blocks, self.block, self.axes, self.at = product
        self._distinct: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]] = {}
        self._outcomes: dict[Rule, tuple[list[Any], np.ndarray]] = {}
        self._arrays: dict[tuple[str, Any], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.block)

    def _keep(self, cells: np.ndarray) -> None:
        self._distinct.clear()
        self._outcomes.clear()
        self.block = self.block[cells]
        self.at = {key: positions[cells] for key, positions in self.at.items()}

    def _expand_n_down(self) -> None:
        """One cell a value of n_down, which may be a list."""
        lists = self.axes.pop("n_down", None) or list(dict.fromkeys(block.n_down for block in self.blocks))
        if (positions := self.at.pop("n_down", None)) is None:
            positions = np.asarray([lists.index(block.n_down) for block in self.blocks], np.int32)[self.block]
        union = sorted({n for values in lists for n in values})
        length = np.asarray([len(values) for values in lists])
        own = np.concatenate([[union.index(n) for n in values] for values in lists]).astype(np.int32)
        start = np.cumsum(length) - length
        repeats = length[positions]
        self.block = np.repeat(self.block, repeats)
        self.at = {key: np.repeat(place, repeats) for key, place in self.at.items()}
        inside = np.arange(len(self.block)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        self.at["n_down"] = own[np.repeat(start[positions], repeats) + inside]
        self.axes["n_down"] = [(n,) for n in union]

    def _check(self) -> None:
        for check in config.derived().checks:
            for i in self.distinct(check.reads)[0]:
                try:
                    check(self.cell(i).values)
                except ConfigError as error:
                    hint = "" if len(self) == 1 else " (sweep.where can exclude such cells)"
                    raise ConfigError(error.key, error.value, error.allowed + hint) from None

    def _identify(self) -> None:
        """Set ids, and make cells of one identity one, with the recorded steps of all of them."""
        ids = self.identities()
        records, record = self.outcome(recorded)
        in_order = np.sort(ids)
        if (in_order[1:] != in_order[:-1]).all():
            self.ids, self._records = ids, (records, record)
            return
        kept, first, cell = np.unique(ids, return_index=True, return_inverse=True)
        records, record = _united(records, record, cell, len(kept))
        order = np.argsort(first, kind="stable")
        self._keep(first[order])
        self.ids, self._records = kept[order], (records, record[order])

    def cell(self, i: int) -> Config:
        """The config of cell i."""
        at = {key: self.axes[key][positions[i]] for key, positions in self.at.items()}
        return self.blocks[self.block[i]].replace(**at)

    def moving(self) -> list[str]:
        """The fields that have more than one value, those of config groups first."""
        groups = [key for key in GROUPS if len({getattr(block, key) for block in self.blocks}) > 1]
        return [*groups, *(key for key in self.at if key not in groups and len(self.axes[key]) > 1)]

    def distinct(self, fields: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Cells that stand for the distinct combinations of these fields, and each cell's position among them."""
        axes = tuple(sorted(key for key in fields if key in self.at and len(self.axes[key]) > 1))
        if axes not in self._distinct:
            code, count = self.block.astype(np.int64), len(self.blocks)
            for key in axes:
                # Folded one by one: the product of all sizes may pass 2^63.
                if count * len(self.axes[key]) > 2**40:
                    code = np.unique(code, return_inverse=True)[1]
                    count = int(code.max()) + 1
                code = code * len(self.axes[key]) + self.at[key]
                count *= len(self.axes[key])
            self._distinct[axes] = _first_and_place(code, count)
        return self._distinct[axes]

    def outcome(self, rule: Rule) -> tuple[list[Any], np.ndarray]:
        """The distinct outcomes of a rule, and which of them each cell has, (n,)."""
        if rule not in self._outcomes:
            first, code = self.distinct(rule.reads)
            place: dict[Any, int] = {}
            own = [place.setdefault(rule(self.cell(i).values), len(place)) for i in first]
            one = np.broadcast_to(np.int32(0), len(self))
            self._outcomes[rule] = list(place), one if len(place) == 1 else np.asarray(own, np.int32)[code]
        return self._outcomes[rule]

    def alike(self, fields: Iterable[str], rules: Iterable[Rule]) -> tuple[np.ndarray, np.ndarray]:
        """Cells that stand for the distinct combinations of fields and of outcomes of rules, and each cell's position
        among them.
        """
        first, code = self.distinct(fields)
        for rule in rules:
            outcomes, which = self.outcome(rule)
            if len(outcomes) > 1:
                first, code = _first_and_place(
                    code.astype(np.int64) * len(outcomes) + which, len(first) * len(outcomes)
                )
        return first, code

    def column(
        self, key: str, cells: np.ndarray | slice = slice(None), shown: Callable[[Any], Any] | None = None
    ) -> np.ndarray:
        """A field's value in each cell, as an array of numbers or of objects; `shown` maps each value first."""
        if (key, shown) not in self._arrays:
            values = self.axes[key] if key in self.at else [getattr(block, key) for block in self.blocks]
            self._arrays[key, shown] = _array(key, [shown(value) for value in values] if shown else values)
        return self._arrays[key, shown][self.at.get(key, self.block)[cells]]

    def bears(self, key: str, cells: np.ndarray) -> np.ndarray:
        """Whether a field bears on each cell's row: a mask."""
        outcomes, which = self.outcome(config.derived().bears[key])
        return np.asarray(outcomes, bool)[which[cells]]

    def shown(self, key: str, cells: np.ndarray) -> np.ndarray:
        """Whether each cell's row has a field's value in its column: a mask."""
        outcomes, which = self.outcome(config.derived().shown[key])
        return np.asarray(outcomes, bool)[which[cells]]

    def without_effect(self, given: Iterable[str]) -> str:
        """Which of the settings `given` do not bear on some cells, and which axes on none; because of what, and how
        many cells became one. A line, empty where there is nothing to say.
        """
        why: dict[str, list[str]] = {}
        given, shown = set(given), config.derived().shown
        for key in (name for name in FIELDS if name in given or len(self.axes.get(name, ())) > 1):
            off = np.flatnonzero(~self.shown(key, np.arange(len(self))))
            if len(off) == 0 or (key not in given and len(off) < len(self)):
                continue
            own = [name for name in FIELDS if name in shown[key].reads and self.shown(name, off).all()]
            chosen = [(name, dict.fromkeys(self.column(name, off, FIELDS[name].type.text).tolist())) for name in own]
            why.setdefault(" ".join(f"{name}={','.join(values)}" for name, values in chosen), []).append(key)
        said = [
            f"{', '.join(keys)} {'has' if len(keys) == 1 else 'have'} no effect with {of}" for of, keys in why.items()
        ]
        merged = f": {self.asked:,} cells became {len(self):,}" if said and self.asked > len(self) else ""
        return "; ".join(said) + merged

    def records(self) -> tuple[list[tuple[int, ...]], np.ndarray]:
        """The distinct tuples of recorded steps, and which of them each cell has, (n,)."""
        return self._records

    def identities(self) -> np.ndarray:
        """A 64-bit identity of each cell: the sum of the hashes of every value that bears on it, with its name and the
        content of the extension that it is from, and of the scheme of draws and the numerics.
        """
        bears = config.derived().bears
        identified = {name: rule for name, rule in bears.items() if FIELDS[name].identified}
        return self._hashed(identified) + np.uint64(_hash(f"draws={keys.SCHEMA};numerics={numerics()}"))

    def _hashed(self, counts: Mapping[str, Rule]) -> np.ndarray:
        """The sum of the hashes of each field's value where its rule holds, (n,)."""
        total = np.zeros(len(self), np.uint64)
        still: dict[tuple[str, ...], list[str]] = {}
        for name, rule in counts.items():
            if name in self.at and len(self.axes[name]) > 1:
                hashes = np.asarray([_hash(FIELDS[name].hashed(value)) for value in self.axes[name]], np.uint64)
                outcomes, which = self.outcome(rule)
                own = hashes[self.at[name]]
                total += own if all(outcomes) else np.where(np.asarray(outcomes, bool)[which], own, np.uint64(0))
            else:
                moving = (key for key in rule.reads if key in self.at and len(self.axes[key]) > 1)
                still.setdefault(tuple(sorted(moving)), []).append(name)
        for axes, names in still.items():
            first, code = self.distinct(axes)
            cells = [self.cell(i).values for i in first]
            own = [
                sum(_hash(FIELDS[name].hashed(values[name])) for name in names if counts[name](values)) % 2**64
                for values in cells
            ]
            total += np.asarray(own, np.uint64)[code]
        return total

    def lanes(self, moments: bool) -> np.ndarray:
        """An identity of the training of each cell, (n,): cells of one lane differ in n_down, in the probe, and, where
        a shorter training is a prefix of a longer one, in steps. In a shared pass they differ in whatever the pass
        allows.
        """
        derived = config.derived()

        def count(name: str, bears: Rule) -> Rule:
            def counts(c: View) -> bool:
                if not bears.within(c):
                    return False
                if name == "steps" and derived.prefixes.within(c):
                    return False
                return not (moments and derived.shared.within(c) and name in derived.rows.within(c))

            passes = derived.shared.reads | derived.rows.reads if moments else frozenset()
            return Rule(bears.reads | passes | derived.prefixes.reads, counts)

        probed = {"n_down", "probe", "probe_tasks"} | derived.probing
        return self._hashed(
            {
                name: count(name, bears)
                for name, bears in derived.bears.items()
                if FIELDS[name].identified and name not in probed
            }
        )


def _first_and_place(code: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each distinct code (n,) below `count` stands first, by code, and the place of every code among them."""
    if count > max(4 * len(code), 2**16):
        _, first, place = np.unique(code, return_index=True, return_inverse=True)
        return first, place.astype(np.int32)
    there = np.zeros(count, bool)
    there[code] = True
    place = (np.cumsum(there, dtype=np.int32) - 1)[code]
    first = np.empty(int(there.sum()), np.int64)
    first[place[::-1]] = np.arange(len(code) - 1, -1, -1)
    return first, place


def _united(
    records: Sequence[tuple[int, ...]], record: np.ndarray, cell: np.ndarray, cells: int
) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """The records of cells, each the union of those that are one cell: record (n,), cell (n,) in [0, cells)."""
    pairs = np.unique(cell * len(records) + record)
    start = np.searchsorted(pairs, np.arange(cells + 1) * len(records)).tolist()
    which = (pairs % len(records)).tolist()
    place: dict[tuple[int, ...], int] = {}
    union: dict[tuple[int, ...], int] = {}
    out = np.empty(cells, np.int64)
    for i, (low, high) in enumerate(itertools.pairwise(start)):
        own = tuple(which[low:high])
        if own not in union:
            steps = tuple(sorted({step for k in own for step in records[k]}))
            union[own] = place.setdefault(steps, len(place))
        out[i] = union[own]
    return list(place), out


def zips(given: Sequence[Sequence[str]] | Sequence[str]) -> list[list[str]]:
    """The groups of axes of a zip, which may be given as a single one."""
    groups = [given] if any(isinstance(key, str) for key in given) else given
    return [[str(key) for key in group] for group in groups]


class _Product(NamedTuple):
    """Cells of a product of axes; fields as those of `Grid`."""

    blocks: list[Config]
    block: np.ndarray
    axes: dict[str, list[Any]]
    at: dict[str, np.ndarray]


def _valued(axes: Mapping[str, Any]) -> dict[str, list[Any] | Interval]:
    """The values of axes. Raises ConfigError."""
    for key in axes:
        require_field(key, axes[key])
    values = {key: axis_values(key, spec) for key, spec in axes.items()}
    for key in values:
        if not values[key]:
            raise ConfigError(key, "[]", "allowed: at least one value")
    return values


def _product(
    axes: Mapping[str, list[Any]],
    compose: Callable[[Mapping[str, str]], Mapping[str, Any]],
    zipped: Sequence[Sequence[str]],
) -> _Product:
    """The product of axes, those of a zip advancing together. Raises ConfigError."""
    values = dict(axes)
    at = _positions(values, zipped)
    groups = [key for key in values if key in GROUPS]
    for key in groups:
        values[key] = [FIELDS[key].type.parse(key, name) for name in values[key]]
    choices = [at.pop(key) for key in groups]
    sizes = tuple(len(values[key]) for key in groups)
    count = len(next(iter([*choices, *at.values()]), [0]))
    first = {key: values[key][0] for key in at}
    return _Product(
        blocks=[
            Config.parsed({**compose(dict(zip(groups, choice, strict=True))), **first})
            for choice in itertools.product(*(values[key] for key in groups))
        ],
        block=np.ravel_multi_index(choices, sizes).astype(np.int32) if groups else np.zeros(count, np.int32),
        axes={key: [FIELDS[key].type.parse(key, value) for value in values[key]] for key in at},
        at=at,
    )


def _joined(products: Sequence[_Product]) -> _Product:
    """The cells of each product in turn; an axis that one lacks has the values of its blocks there."""
    if len(products) == 1:
        return products[0]
    axes: dict[str, list[Any]] = {}
    at: dict[str, np.ndarray] = {}
    for key in dict.fromkeys(key for product in products for key in product.axes):
        place: dict[Any, int] = {}
        parts = []
        for product in products:
            own = product.axes.get(key) or [getattr(block, key) for block in product.blocks]
            places = np.asarray([place.setdefault(value, len(place)) for value in own], np.int32)
            parts.append(places[product.at.get(key, product.block)])
        axes[key], at[key] = list(place), np.concatenate(parts)
    before = np.cumsum([0, *(len(product.blocks) for product in products)])
    return _Product(
        blocks=[block for product in products for block in product.blocks],
        block=np.concatenate([i + product.block for i, product in zip(before, products, strict=False)]).astype(
            np.int32
        ),
        axes=axes,
        at=at,
    )


def _bad_zip(group: Sequence[str], lengths: Mapping[str, int]) -> ConfigError:
    named = f"[{','.join(map(str, group))}]"
    return ConfigError("sweep.zip", named, f"allowed: axes of equal length, each in one zip; lengths: {lengths}")


def _positions(values: Mapping[str, Sequence[Any]], zipped: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """Positions on each axis of the cells of the product. Raises ConfigError for a bad zip."""
    together: dict[str, str] = {}
    for group in zipped:
        lengths = {key: len(values[key]) for key in group}
        if len(set(lengths.values())) > 1 or any(key in together for key in group):
            raise _bad_zip(group, lengths)
        together |= dict.fromkeys(group, group[0])
    units = {together.get(key, key): len(items) for key, items in values.items()}
    total = int(np.prod(list(units.values()), dtype=np.int64))
    positions, inner = {}, total
    for unit, size in units.items():
        inner //= size
        positions[unit] = (np.arange(total, dtype=np.int64) // inner % size).astype(np.int32)
    return {key: positions[together.get(key, key)] for key in values}


def _array(key: str, values: Sequence[Any]) -> np.ndarray:
    """Values of a field: numbers as they are, a single n_down as a number, anything else as objects."""
    if key == "n_down" and all(len(value) == 1 for value in values):
        return np.asarray([value[0] for value in values])
    if all(type(value) in (int, float, bool) for value in values):
        return np.asarray(values)
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def row_ids(cells: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Identities of rows: of their cell and recorded step, uint64."""
    distinct, inverse = np.unique(steps, return_inverse=True)
    hashes = np.asarray([_hash(f"step={step}") for step in distinct.tolist()], np.uint64)
    return cells + hashes[inverse]
