"""Sweeps from Python: `run`, `sweep`, and what they would take."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from mtfl_jax import compose, extend
from mtfl_jax.sweeps import identity, store, tables
from mtfl_jax.sweeps.compiling import chunk_of, fitting, job_of, memory_of
from mtfl_jax.sweeps.cost import lane_flops
from mtfl_jax.sweeps.engine import execute
from mtfl_jax.sweeps.grid import Grid, row_ids
from mtfl_jax.sweeps.machine import MEMORY_FRACTION, memory_limit
from mtfl_jax.sweeps.plan import Bucket


class Forecast(NamedTuple):
    """What running a bucket would take, by the compiler's account (memory) and the planner's model (seconds)."""

    bucket: Bucket
    flops: float
    seconds: float
    memory: int


def forecast(grid: Grid, buckets: Sequence[Bucket], memory_fraction: float) -> tuple[Grid, list[Forecast], int]:
    """The grid, what each of its buckets would take, and the bytes a device may give. Compiles, runs nothing.

    Raises TooLargeError.
    """
    found = []
    for bucket in buckets:
        executable, _ = fitting(job_of(bucket), chunk_of(bucket), memory_fraction)
        lanes = len(bucket)
        flops = lanes * lane_flops(bucket.program)
        found.append(Forecast(bucket, flops, lanes * bucket.seconds, memory_of(executable)))
    return grid, found, int(memory_fraction * memory_limit())


def sweep(
    *,
    folder: str | os.PathLike[str] | None = None,
    grids: Sequence[Mapping[str, Any]] = (),
    zip: Sequence[Sequence[str]] = (),
    where: Sequence[str] = (),
    memory_fraction: float = MEMORY_FRACTION,
    moments: str = "auto",
    extensions: Sequence[str] | str = (),
    **axes: Any,
) -> pd.DataFrame:
    """Run the grid of the axes given as keywords and return its rows, in the order of the grid.

    Any key of `mtfl --help` may be an axis: a value, a list, a range, or text in Hydra's grammar. `grids` are
    more axes, of which each in turn makes a grid with those; `zip` names axes that advance together, `where` conditions
    that cells must meet, such as "width >= 2*d". With a `folder` the rows are kept there, and what is there already is
    not run again. `moments` is that of `plan`; `extensions` are modules or .py files that register records of your own,
    which are imported. Raises ConfigError (a ValueError) for a bad key, value or cell, and
    RuntimeError that lists the cells that failed.

        mtfl_jax.sweep(d=[32, 64], r=[2, 4], num_tasks=[1, 16, 64], seed=range(64))
    """
    memory_fraction, moments = compose.memory_share(memory_fraction), compose.moments_of(moments)
    extend.load(extensions)
    grid = Grid(axes, compose.composed, grids=grids, zipped=zip, where=where)
    sink = store.Memory() if folder is None else store.Folder(folder)
    progress = execute(grid, sink, memory_fraction=memory_fraction, moments=moments)
    if progress.failures:
        raise RuntimeError("\n".join(progress.failures))
    return tables.frame(in_order(grid, sink.table()))


def in_order(grid: Grid, table: pa.Table) -> pa.Table:
    """The rows of a grid's cells, in the grid's order, then by step."""
    steps = table.column("step").to_numpy()
    cells = identity.current(table) - row_ids(np.zeros(len(steps), np.uint64), steps)
    order = np.argsort(grid.ids, kind="stable")
    place = np.minimum(np.searchsorted(grid.ids[order], cells), len(grid) - 1)
    known = grid.ids[order][place] == cells
    table, steps, place = table.filter(pa.array(known)), steps[known], place[known]
    return table.take(np.lexsort((steps, order[place])))


def run(*, extensions: Sequence[str] | str = (), **values: Any) -> pd.DataFrame:
    """Run one cell and return its rows: one a value of n_down and recorded step.

    Keywords are the keys of `mtfl --help`; config groups take the name of their choice. Columns are the settings,
    `step`, the status and the measurements. Raises ConfigError (a ValueError) that names the key and what is allowed.

        mtfl_jax.run(d=64, r=4, data="gaussian", tasks="balanced", algorithm="one_step", seed=0)
    """
    extend.load(extensions)
    compose.from_keywords(**values)
    axes: dict[str, Any] = {key: [value] for key, value in values.items()}
    return sweep(**axes)
