"""Identities of stored rows, recomputed from their columns where an earlier version wrote them."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtfl_jax import compose
from mtfl_jax.config import FIELDS
from mtfl_jax.fields import ConfigError
from mtfl_jax.sweeps.grid import SCHEMA, Grid, row_ids
from mtfl_jax.sweeps.plan import ladder


def columns(schema: pa.Schema) -> list[str]:
    """The columns that say what a row is of."""
    return [name for name in schema.names if name in FIELDS or name in ("schema", "step", "id")]


def earlier(table: pa.Table) -> np.ndarray:
    """Which rows an earlier version wrote, (R,)."""
    if "schema" not in table.column_names:
        return np.ones(len(table), bool)
    return pc.less(pc.fill_null(table.column("schema"), 0), SCHEMA).to_numpy()


def current(table: pa.Table) -> np.ndarray:
    """The present identity of each row, (R,) uint64: the stored one where the present scheme wrote it, else recomputed
    from the columns, else the stored one.
    """
    ids = table.column("id").to_numpy().astype(np.uint64)
    old = earlier(table)
    if old.any():
        ids = ids.copy()
        found, known = _recomputed(table.filter(pa.array(old)))
        ids[np.flatnonzero(old)[known]] = found[known]
    return ids


def in_order(grid: Grid, table: pa.Table) -> pa.Table:
    """The rows of a grid's cells, in the grid's order, then by step."""
    steps = table.column("step").to_numpy()
    cells = current(table) - row_ids(np.zeros(len(steps), np.uint64), steps)
    order = np.argsort(grid.ids, kind="stable")
    place = np.minimum(np.searchsorted(grid.ids[order], cells), len(grid) - 1)
    known = grid.ids[order][place] == cells
    table, steps, place = table.filter(pa.array(known)), steps[known], place[known]
    return table.take(np.lexsort((steps, order[place])))


def _recomputed(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Identities of rows from their columns, and which of them are known to be those of the settings they state."""
    rest = compose.from_keywords()
    axes: dict[str, list[Any]] = {}
    at: dict[str, np.ndarray] = {}
    absent: dict[str, np.ndarray] = {}
    known = np.ones(len(table), bool)
    for name, field in FIELDS.items():
        if field.type.column is None:
            continue
        if name not in table.column_names:
            if field.before is not None:
                axes[name], at[name] = [field.before], np.zeros(len(table), np.int32)
            else:
                absent[name] = np.ones(len(table), bool)
            continue
        coded = table.column(name).combine_chunks().dictionary_encode()
        positions = pc.fill_null(coded.indices, len(coded.dictionary)).to_numpy(zero_copy_only=False)
        values, good = [], []
        for value in (*coded.dictionary.to_pylist(), None):
            own = parsed(name, value)
            good.append(own is not UNKNOWN)
            values.append(getattr(rest, name) if own is UNKNOWN else own)
        axes[name], at[name] = values, positions.astype(np.int32)
        absent[name] = ~np.asarray(good)[positions]
    grid = Grid.of_cells(axes, at, rest)
    for name, missing in absent.items():
        # A value that is not there matters only where it bears.
        known &= ~(missing & grid.bears(name, np.arange(len(grid))))
    known &= _trusted(grid)
    return row_ids(grid.identities(), table.column("step").to_numpy()), known


UNKNOWN = object()
"""What a column's value is that no config has."""


def parsed(name: str, value: Any) -> Any:
    """A column's value as a config has it; UNKNOWN where it is none."""
    field = FIELDS[name]
    if isinstance(value, str) and field.type.listed:
        value = value.split("+")
    elif isinstance(value, str) and field.type.column is str and value.isdigit():
        value = int(value)
    try:
        return field.type.parse(name, value)
    except ConfigError:
        return UNKNOWN


def _trusted(grid: Grid) -> np.ndarray:
    """Which cells an earlier version measured as they say: some rows it padded, or took for a neighbour's."""
    n_test, precision, kernel = (grid.column(name) for name in ("n_test", "precision", "kernel"))
    ladders = np.asarray([n == ladder(int(n)) for n in np.unique(n_test)])[np.unique(n_test, return_inverse=True)[1]]
    decayed = np.asarray([value is not None for value in grid.column("weight_decay").tolist()])
    ones = grid.column("algorithm") == "one_step"
    tested = grid.bears("n_test", np.arange(len(grid)))
    reduced = (precision != "float32") | (kernel != "plain")
    reduced &= grid.bears("precision", np.arange(len(grid)))
    return ~((tested & ~ladders) | reduced | (ones & decayed))
