"""A grid of cells, held as positions on axes: a million cells are a few columns of integers.

A cell is one `Config` with a single n_down. Axes come as lists, ranges or Hydra sweep grammar ("1,2,4",
"range(0,64)", "tag(log,range(1e-3,10,5))" for 5 log-spaced values); a grid is their product, less what
`where` excludes, with the axes of a `zip` advancing together.
"""

import ast
import dataclasses
import functools
import hashlib
import itertools
import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtfl_jax.config import FIELDS, GROUPS, LISTS, Config, ConfigError, require_field
from mtfl_jax.learning import keys

NUMERICS = "float32-highest"
"""Precision of arrays and matrix products, part of every identity."""

# Rules between fields (Config.check) and the set of fields that bear on a row (Config.used) look at these only.
_RULED = (
    *("d", "r", "tasks", "probe", "probe_tasks", "parity_size", "probe_parity_size", "algorithm", "weight_decay"),
    *("loss", "losses", "measure_at", "steps", "data", "shared_inputs", "bias", "split_batch", "optimizer", "schedule"),
    *("measure", "label_noise", "nuisance_scale"),
)


def axis_values(key: str, spec: Any) -> list[Any]:
    """The values of an axis: of a list, a range or an array its items, of text in Hydra's grammar what it sweeps
    over, else the one value. For a field that is itself a list (losses, measure_at), a flat list is one value.
    """
    if isinstance(spec, str):
        return _parse_sweep(key, spec)
    if not isinstance(spec, Sequence | np.ndarray | range):
        return [spec]
    items = list(spec)
    if key in LISTS and not any(isinstance(item, Sequence) and not isinstance(item, str) for item in items):
        return [items]
    return items


def _parse_sweep(key: str, text: str) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(f"{key}={text}")
        sweep = override._value
        if isinstance(sweep, RangeSweep) and "log" in sweep.tags:
            return _log_spaced(key, text, sweep)
        if isinstance(sweep, IntervalSweep):
            raise HydraException("an interval has no points")
        return list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
    except HydraException as error:
        allowed = "allowed: a list, or a sweep such as 1,2,4 or range(0,8) or tag(log,range(1e-3,10,5))"
        raise ConfigError(key, text, allowed) from error


def _log_spaced(key: str, text: str, sweep: Any) -> list[Any]:
    """The points of tag(log,range(low,high,count)), both ends included; of integers, the distinct nearest ones."""
    low, high, count = float(sweep.start or 0), float(sweep.stop), sweep.step
    if not (0 < low < high and isinstance(count, int) and count >= 2):
        raise ConfigError(key, text, "allowed: tag(log,range(LOW,HIGH,COUNT)) with 0 < LOW < HIGH and COUNT from 2")
    points = np.geomspace(low, high, count).tolist()
    return list(dict.fromkeys(round(point) for point in points)) if FIELDS[key].type is int else points


class Grid:
    """Cells in order, the last axis fastest.

    The cells are those of the product of `axes`, or, where there are `grids`, of each in turn: of its own axes and of
    `axes`, which go before. blocks: the configs of the combinations of group choices; axes: the values of each other
    axis; block (n,) and at[key] (n,): each cell's block and its position on every axis; ids (n,): each cell's identity.
    Cells that differ only in what does not bear on them are one cell. Raises ConfigError for a bad axis, value or cell.
    """

    def __init__(
        self,
        axes: Mapping[str, Any],
        compose: Callable[[Mapping[str, str]], Mapping[str, Any]],
        *,
        grids: Sequence[Mapping[str, Any]] = (),
        zipped: Sequence[Sequence[str]] = (),
        where: Sequence[str] = (),
    ) -> None:
        self._distinct: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]] = {}
        each = [{**own, **axes} for own in grids or [{}]]
        for group in zipped:
            if not any(own.keys() >= set(group) for own in each):
                raise _bad_zip(group, {key: 0 for key in group if not any(key in own for own in each)})
        # A zip is of the grids that have all of its axes.
        products = [_product(own, compose, [z for z in zipped if own.keys() >= set(z)]) for own in each]
        self.blocks, self.block, self.axes, self.at = _joined(products)
        self._expand_n_down()
        for text in where:
            self._keep(_where(text, self.column, len(self)))
        if not len(self):
            raise ConfigError("sweep.where", list(where), "leaves no cell; allowed: conditions that some cell meets")
        self._check()
        self.ids = self._identities(lambda config: config.used() - {"measure_at"})
        self._keep(np.sort(np.unique(self.ids, return_index=True)[1]))
        stands_for, self._structure = self.distinct(_RULED)
        self._used = [self.cell(i).used() for i in stands_for]

    def __len__(self) -> int:
        return len(self.block)

    def _keep(self, cells: np.ndarray) -> None:
        self._distinct.clear()
        self.block = self.block[cells]
        self.at = {key: positions[cells] for key, positions in self.at.items()}
        if hasattr(self, "ids"):
            self.ids = self.ids[cells]

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
        for i in self.distinct(_RULED)[0]:
            try:
                self.cell(i).check()
            except ConfigError as error:
                hint = "" if len(self) == 1 else " (sweep.where can exclude such cells)"
                raise ConfigError(error.key, error.value, error.allowed + hint) from None

    def cell(self, i: int) -> Config:
        """The config of cell i."""
        at = {key: self.axes[key][positions[i]] for key, positions in self.at.items()}
        return dataclasses.replace(self.blocks[self.block[i]], **at)

    def distinct(self, fields: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Cells that stand for the distinct combinations of these fields, and each cell's position among them."""
        axes = tuple(key for key in fields if key in self.at and len(self.axes[key]) > 1)
        if axes not in self._distinct:
            # Folded one by one: the product of all sizes may pass 2^63.
            code = self.block.astype(np.int64)
            for key in axes:
                code = np.unique(code * len(self.axes[key]) + self.at[key], return_inverse=True)[1]
            _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
            self._distinct[axes] = first, inverse
        return self._distinct[axes]

    def column(
        self, key: str, cells: np.ndarray | slice = slice(None), shown: Callable[[Any], Any] | None = None
    ) -> np.ndarray:
        """A field's value in each cell, as an array of numbers or of objects; `shown` maps each value first."""
        if key in self.at:
            values, positions = self.axes[key], self.at[key][cells]
        else:
            values, positions = [getattr(block, key) for block in self.blocks], self.block[cells]
        return _array(key, [shown(value) for value in values] if shown else values)[positions]

    def bears(self, key: str, cells: np.ndarray) -> np.ndarray:
        """Whether a field bears on each cell's row: a mask."""
        return np.asarray([key in used for used in self._used])[self._structure[cells]]

    def records(self) -> tuple[list[tuple[int, ...]], np.ndarray]:
        """The distinct tuples of recorded steps, and which of them each cell has, (n,)."""
        first, code = self.distinct(("algorithm", "steps", "measure_at"))
        return [self.cell(i).record for i in first], code

    def _identities(self, bearing: Callable[[Config], frozenset[str]]) -> np.ndarray:
        """A 64-bit identity of the fields that bear on each cell: the sum of the hashes of those not at their default,
        of the scheme of draws and of the numerics.
        """
        first, structure = self.distinct(_RULED)
        stands_for = [self.cell(i) for i in first]
        bears = [bearing(config) for config in stands_for]
        fixed = [
            sum(_hash(key, getattr(config, key)) for key in fields if key not in self.at) % 2**64
            for config, fields in zip(stands_for, bears, strict=True)
        ]
        total = np.asarray(fixed, np.uint64)[structure] + np.uint64(
            _hash_text(f"schema={keys.SCHEMA};numerics={NUMERICS}")
        )
        for key, positions in self.at.items():
            hashes = np.asarray([_hash(key, value) for value in self.axes[key]], np.uint64)
            counts = np.asarray([key in fields for fields in bears], np.uint64)
            total += hashes[positions] * counts[structure]
        return total

    def lanes(self, moments: bool) -> np.ndarray:
        """An identity of the training of each cell, (n,): cells of one lane differ in n_down, in the probe, and, where
        a shorter training is a prefix of a longer one, in steps. On the moment path they differ in whatever the samples
        do not depend on.
        """
        probed = {"n_down", "probe", "probe_tasks", "probe_parity_size", "measure_at"}

        def bearing(config: Config) -> frozenset[str]:
            own = config.used() - probed - ({"steps"} if config.prefixes else set())
            if not (moments and config.by_moments):
                return own
            # The scale of what is orthogonal to the directions tells their number apart, unless it is 1.
            return own - {"tasks", "width", "num_tasks"} - ({"r"} if config.nuisance_scale == 1 else set())

        return self._identities(bearing)


class _Product(NamedTuple):
    """Cells of a product of axes; fields as those of `Grid`."""

    blocks: list[Config]
    block: np.ndarray
    axes: dict[str, list[Any]]
    at: dict[str, np.ndarray]


def _product(
    axes: Mapping[str, Any],
    compose: Callable[[Mapping[str, str]], Mapping[str, Any]],
    zipped: Sequence[Sequence[str]],
) -> _Product:
    """The product of axes, those of a zip advancing together. Raises ConfigError."""
    for key in axes:
        require_field(key, axes[key])
    values = {key: axis_values(key, spec) for key, spec in axes.items()}
    for key in values:
        if not values[key]:
            raise ConfigError(key, "[]", "allowed: at least one value")
    at = _positions(values, zipped)
    groups = [key for key in values if key in GROUPS]
    for key in groups:
        values[key] = [FIELDS[key].metadata["parse"](key, name) for name in values[key]]
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
        axes={key: [FIELDS[key].metadata["parse"](key, value) for value in values[key]] for key in at},
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


def _hash_text(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@functools.cache
def default_values() -> dict[str, str]:
    """The default of every field in conf/, as JSON: what an identity leaves out."""
    from mtfl_jax.config import from_keywords

    default = from_keywords()
    return {key: json.dumps(getattr(default, key)) for key in FIELDS}


def _hash(key: str, value: Any) -> int:
    """Hash of a field's value, 0 at the default."""
    text = json.dumps(value)
    return 0 if text == default_values()[key] else _hash_text(f"{key}={text}")


def row_ids(cells: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Identities of rows: of their cell and recorded step, uint64."""
    distinct, inverse = np.unique(steps, return_inverse=True)
    hashes = np.asarray([_hash_text(f"step={step}") for step in distinct.tolist()], np.uint64)
    return cells + hashes[inverse]


_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.USub: operator.neg,
    ast.Not: np.logical_not,
}


def _where(text: str, column: Callable[[str], np.ndarray], count: int) -> np.ndarray:
    """Which of `count` cells meet a condition such as "width >= 2*d and tasks != 'parity'": a mask.

    Names are fields; only numbers, strings, comparisons, arithmetic, and, or, not are understood.
    """

    def refuse(what: str) -> ConfigError:
        return ConfigError(
            "sweep.where", text, f"{what}; allowed: fields, numbers, 'text', comparisons, + - * / // % **, and, or, not"
        )

    def value(node: ast.AST) -> Any:
        match node:
            case ast.Expression(body=body):
                return value(body)
            case ast.Constant(value=int() | float() | str() as constant):
                return constant
            case ast.Name(id=name):
                if name not in FIELDS:
                    raise refuse(f"{name} is no field")
                return column(name)
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value(operand))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value(left), value(right))
            case ast.BoolOp(op=op, values=parts):
                join = np.logical_and if isinstance(op, ast.And) else np.logical_or
                return functools.reduce(join, [value(part) for part in parts])
            case ast.Compare(left=left, ops=ops, comparators=rights) if all(type(op) in _OPERATORS for op in ops):
                sides = [value(left), *(value(right) for right in rights)]
                pairs = zip(ops, itertools.pairwise(sides), strict=True)
                return functools.reduce(np.logical_and, [_OPERATORS[type(op)](*pair) for op, pair in pairs])
        raise refuse("not understood")

    try:
        mask = np.asarray(value(ast.parse(text, mode="eval")))
    except ConfigError:
        raise
    except (SyntaxError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise refuse(str(error).splitlines()[0]) from None
    if mask.dtype == object and all(isinstance(item, bool | np.bool_) for item in mask.flat):
        mask = mask.astype(bool)
    if mask.shape not in ((), (count,)) or mask.dtype != bool:
        raise refuse("not a condition")
    return np.broadcast_to(mask, (count,))
