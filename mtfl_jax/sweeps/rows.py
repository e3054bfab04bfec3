"""From what a call measured to rows of a results table, and what columns such a table has."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mtfl_jax import config
from mtfl_jax.config import FIELDS
from mtfl_jax.learning import experiment, keys
from mtfl_jax.learning.measures import MEASURES, Measure, of_probe, of_program
from mtfl_jax.names import BOOKKEEPING, COLUMN_LABELS, DIVERGED, OK
from mtfl_jax.sweeps import kept
from mtfl_jax.sweeps.grid import SCHEMA, Grid, row_ids
from mtfl_jax.sweeps.plan import Bucket

_TYPES: dict[type, pa.DataType] = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}


def settings() -> dict[str, pa.Field]:
    """The columns of the settings."""
    return {
        name: _column(name, _TYPES[field.type.column], field.label)
        for name, field in FIELDS.items()
        if field.type.column is not None
    }


def _column(name: str, kind: pa.DataType, label: str) -> pa.Field:
    label = label or COLUMN_LABELS.get(name, "")
    return pa.field(name, kind, metadata={"label": label} if label else None)


def schema() -> pa.Schema:
    """Columns of a results table: settings, the extensions that the row is from, the numbers of the schemes of draws
    and of columns, `step`, the status, the measurements, and the identity. Columns carry what figures call them.
    """
    columns = [*settings().values(), *(pa.field(name, _TYPES[kind]) for name, kind in BOOKKEEPING.items())]
    for name, measure in MEASURES.items():
        kind = _TYPES[measure.type]
        columns.append(_column(name, pa.list_(kind) if measure.shape else kind, measure.label))
    return pa.schema([*columns, pa.field("id", pa.uint64())])


def rows(grid: Grid, index: np.ndarray, steps: np.ndarray, measured: Mapping[str, Any]) -> pa.Table:
    """Rows of the grid's cells `index` (R,) at `steps` (R,), with their measurements (R, …), as the results' columns.

    A setting that does not bear on its row is missing there, as is what was not measured.
    """
    columns: dict[str, Any] = {}
    for name, column in settings().items():
        of = FIELDS[name].type
        # n_down is a list in a config, a single number in a cell.
        text = of.text if of.column is str else None
        values = grid.column(name, index, text)
        columns[name] = pa.array(values, column.type, mask=~grid.shown(name, index), from_pandas=True)
    sources, which = grid.outcome(config.derived().sources)
    columns |= {
        **measured,
        "extensions": pa.array([sources[k] or None for k in which[index]], pa.string()),
        "draws": np.full(len(index), keys.SCHEMA),
        "schema": np.full(len(index), SCHEMA),
        "step": steps,
        "id": row_ids(grid.ids[index], steps),
    }
    of_schema = schema()
    missing = (name for name in MEASURES if name not in columns)
    columns |= {name: pa.nulls(len(index), of_schema.field(name).type) for name in missing}
    return pa.table([pa.array(columns[field.name], field.type) for field in of_schema], schema=of_schema)


class Costs:
    """num_params, train_samples and train_flops of a grid's cells."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        shaped = [key for key in grid.at if FIELDS[key].kind != "knob"]
        self._stands_for, self._code = grid.alike(shaped, config.derived().planning)
        self._known: dict[tuple[int, int], dict[str, float]] = {}

    def at(self, index: np.ndarray, steps: np.ndarray) -> dict[str, np.ndarray]:
        """Of cells (R,) at steps (R,)."""
        pairs, inverse = np.unique(np.stack([self._code[index], steps]), axis=1, return_inverse=True)
        found = [self._of(*pair) for pair in pairs.T.tolist()]
        return {name: np.asarray([own[name] for own in found])[inverse.reshape(-1)] for name in found[0]}

    def _of(self, code: int, step: int) -> dict[str, float]:
        if (code, step) not in self._known:
            program = self._grid.cell(self._stands_for[code]).program()
            self._known[code, step] = experiment.costs(program, step)
        return self._known[code, step]


class _Places(NamedTuple):
    """The rows of some of a bucket's lanes, (R,) each: the bucket's cell that each is of, its lane and place in the
    measurements, its cell in the grid, and its step.
    """

    cell: np.ndarray
    lane: np.ndarray
    place: np.ndarray
    of_grid: np.ndarray
    steps: np.ndarray


def _places(bucket: Bucket, lanes: np.ndarray) -> _Places:
    program = bucket.program
    low, high = np.searchsorted(bucket.lane, [lanes[0], lanes[-1] + 1])
    places = [np.searchsorted(program.record, record) for record in bucket.records]
    length = np.asarray([len(place) for place in places])[bucket.record[low:high]]
    cell = np.repeat(np.arange(low, high), length)
    s = np.concatenate([places[record] for record in bucket.record[low:high]]) + bucket.row[cell]
    lane = bucket.lane[cell] - lanes[0]
    return _Places(cell, lane, s, bucket.cells[cell], np.asarray(program.record)[s - bucket.row[cell]])


def networks_of(
    grid: Grid, bucket: Bucket, lanes: np.ndarray, networks: Mapping[str, np.ndarray], keep: Sequence[str]
) -> pa.Table:
    """The networks of the rows that `rows_of` has, each once and of true sizes, as `kept` stores them; `networks` are
    W, b and A by name, (lanes, rows of a lane, …).
    """
    _, lane, s, index, steps = _places(bucket, lanes)
    ids = row_ids(grid.ids[index], steps)
    pairs, first, of = np.unique(np.stack([lane, s]), axis=1, return_index=True, return_inverse=True)
    rows = np.split(ids[np.argsort(of.reshape(-1), kind="stable")], np.cumsum(np.bincount(of.reshape(-1)))[:-1])
    sizes = {name: grid.column(name, index[first]).tolist() for name in ("width", "d", "num_tasks")}
    found = []
    for i, (own_lane, own_s) in enumerate(pairs.T.tolist()):
        true = _true_shapes(**{name: values[i] for name, values in sizes.items()})
        found.append({name: networks[name][own_lane, own_s][tuple(map(slice, true[name]))] for name in keep})
    return kept.table(rows, found, keep)


def _true_shapes(width: Any, d: Any, num_tasks: Any) -> dict[str, tuple[Any, ...]]:
    return {"W": (width, d), "b": (width,), "A": (num_tasks, width)}


def kept_bytes(grid: Grid, bucket: Bucket, keep: Sequence[str]) -> int:
    """Bytes of the weights of a bucket's rows, in float32."""
    _, lane, s, index, _ = _places(bucket, np.arange(len(bucket)))
    _, first = np.unique(np.stack([lane, s]), axis=1, return_index=True)
    shapes = _true_shapes(*(grid.column(name, index[first]).astype(float) for name in ("width", "d", "num_tasks")))
    return int(sum(4 * np.prod(np.stack(shapes[name]), axis=0).sum() for name in keep))


def rows_of(
    grid: Grid, costs: Costs, bucket: Bucket, lanes: np.ndarray, measured: Mapping[str, np.ndarray]
) -> pa.Table:
    """The result rows of some of a bucket's lanes (consecutive): one a cell and recorded step.

    A row whose network is not finite has no measurements of it.
    """
    program = bucket.program
    cell, lane, s, index, steps = _places(bucket, lanes)
    diverged = measured["diverged_step"][lane, s]
    finite, r = diverged == 0, grid.column("r", index)
    values = {
        record.name: _measured(record, measured[record.name][lane, s], r, finite) for record in of_program(program)
    }
    if program.probes:
        found = np.asarray([*(of_probe(family).name for _, family, _ in program.probes), ""])[bucket.probe[cell]]
        for name in set(found) - {""}:
            scores = measured[name][lane, s, bucket.probe[cell], bucket.slot[cell]]
            values[name] = pa.array(scores.astype(float), mask=~((found == name) & finite))
    values |= {
        "status": np.where(finite, OK, DIVERGED),
        "diverged_step": pa.array(diverged, pa.int64(), mask=finite),
    }
    # A training that stopped costs nothing after that.
    made = measured["taken"][lane, s] if "taken" in measured else steps
    return rows(grid, index, steps, {**values, **costs.at(index, made)})


def _measured(record: Measure, values: np.ndarray, r: np.ndarray, there: np.ndarray) -> pa.Array:
    """The column of a measurement (R, …), where the row has one; of a list, its true beginning."""
    kind = _TYPES[record.type]
    values = values.astype(record.type)
    if record.shape is None:
        return pa.array(values, kind, mask=~there)
    kept = np.repeat(there[:, None], values[0].size, axis=1).reshape(values.shape)
    shapes = np.asarray([record.shape(own) for own in range(int(r.max()) + 1)])[r]
    for axis, size in enumerate(values.shape[1:]):
        inside = np.arange(size) < shapes[:, axis, None]
        kept &= inside.reshape(len(r), *(size if k == axis else 1 for k in range(values.ndim - 1)))
    counts = kept.reshape(len(kept), -1).sum(axis=1)
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32(), mask=np.append(~there, False))
    return pa.ListArray.from_arrays(offsets, pa.array(values[kept], kind))
