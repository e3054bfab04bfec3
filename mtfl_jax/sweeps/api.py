"""Sweeps from Python: `run`, `sweep`, and what they would take."""

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from mtfl_jax import compose, extend
from mtfl_jax.sweeps import calibration, identity, store, tables
from mtfl_jax.sweeps.compiling import Chunk, fitting, job_of, lines_of, memory_of
from mtfl_jax.sweeps.cost import COMPILE_SECONDS, lane_flops, size_names
from mtfl_jax.sweeps.engine import describe, execute, planned, remaining
from mtfl_jax.sweeps.grid import Grid, row_ids
from mtfl_jax.sweeps.listeners import Listener, listeners_of, told
from mtfl_jax.sweeps.machine import MEMORY_FRACTION, memory_limit
from mtfl_jax.sweeps.plan import Bucket
from mtfl_jax.sweeps.sampling import Sampling


class Forecast(NamedTuple):
    """What running the rest of a bucket would take.

    sizes: the padded sizes by name; flops and seconds: of matrix products and by the planner's model. Where it was
    compiled, memory: bytes of a device by the compiler's account; lines: of its optimised HLO; lowering and compiling:
    seconds; chunk: trainings of a call. tried: what was measured, the fastest first. problem: why it cannot run.
    """

    bucket: Bucket
    sizes: dict[str, int]
    flops: float
    seconds: float
    memory: int | None = None
    lines: int | None = None
    lowering: float | None = None
    compiling: float | None = None
    chunk: Chunk | None = None
    tried: Sequence[calibration.Tried] = ()
    problem: str = ""


class Forecasts(NamedTuple):
    """What is left of a grid: `done` of its `cells` are there before; `limit` are the bytes that a device may give;
    whether it was `compiled`.
    """

    cells: int
    done: int
    left: list[Forecast]
    limit: int
    compiled: bool

    @property
    def compile_seconds(self) -> float:
        """Of lowering and compiling what is left, by the planner's model."""
        return COMPILE_SECONDS * len(self.left)


def forecast(
    grid: Grid,
    finished: np.ndarray,
    *,
    memory_fraction: float = MEMORY_FRACTION,
    part: tuple[int, int] = (1, 1),
    moments: str = "auto",
    compiled: bool = False,
    calibrated: bool = False,
) -> Forecasts:
    """What running a grid would take, less the rows `finished` (their identities). It keeps no row, compiles only where
    `compiled` says so, and measures chunks (`calibration`) only where `calibrated` says so.
    """
    whole, mine = planned(grid, moments, part)
    buckets = remaining(grid, whole, finished, mine)
    left = []
    for bucket in buckets:
        p = bucket.program
        sizes = {name: getattr(p, name) for name in size_names(p)}
        item = Forecast(bucket, sizes, len(bucket) * lane_flops(p), len(bucket) * bucket.seconds)
        if compiled:
            try:
                if calibrated:
                    item = item._replace(tried=calibration.calibrate(grid, bucket, memory_fraction))
                made = fitting(job_of(bucket), calibration.chunk_of(bucket), memory_fraction)
                item = item._replace(memory=memory_of(made.executable), lines=lines_of(made.executable))
                item = item._replace(lowering=made.lowering, compiling=made.compiling, chunk=made.chunk)
            except Exception as error:  # What a record's code raises, or a program that does not fit.
                item = item._replace(problem=describe(grid, bucket, error))
        left.append(item)
    cells = sum(len(bucket.cells) for bucket in buckets)
    every = int(mine.sum())
    return Forecasts(every, every - cells, left, int(memory_fraction * memory_limit()), compiled)


def sweep(
    *,
    folder: str | os.PathLike[str] | None = None,
    grids: Sequence[Mapping[str, Any]] = (),
    zip: Sequence[Sequence[str]] | Sequence[str] = (),
    where: Sequence[str] | str = (),
    sample: int | None = None,
    sampler: str = "sobol",
    sample_seed: int = 0,
    memory_fraction: float = MEMORY_FRACTION,
    moments: str = "auto",
    extensions: extend.Extensions = (),
    on_rows: Listener | Sequence[Listener] = (),
    **axes: Any,
) -> pd.DataFrame:
    """Run the grid of the axes given as keywords and return its rows, in the order of the grid.

    Any key of `mtfl --help` may be an axis: a value, a list, a range, or text in Hydra's grammar. `grids` are
    more axes, of which each in turn makes a grid with those; `zip` names axes that advance together (["d", "n1"], or
    a list of such lists), `where` a condition that cells must meet, such as "width >= 2*d", or several. Axes that are
    intervals, "interval(0,1)" or "tag(log,interval(1e-3,1))", have `sample` points together, by `sampler` (sobol,
    random) and `sample_seed`; those of a smaller `sample` come first. With a `folder` the rows are kept there, and what
    is there already is not run again. `moments` is that of `plan`; `extensions` are modules or .py files that register
    records of your own, which are imported. `on_rows` is a function, or several, of a DataFrame of new rows, called
    about once a second in a thread of its own, such as those of `mtfl_jax.analysis.trackers`. Raises ConfigError (a
    ValueError) for a bad key, value or cell, and RuntimeError that lists the cells that failed.

        mtfl_jax.sweep(d=[32, 64], r=[2, 4], num_tasks=[1, 16, 64], seed=range(64))
    """
    memory_fraction, moments = compose.memory_share(memory_fraction), compose.moments_of(moments)
    extend.load(extensions)
    sampling = Sampling.of(sample, sampler, sample_seed)
    grid = Grid(axes, compose.composed, grids=grids, zipped=zip, where=where, sampling=sampling)
    if said := grid.without_effect(axes):
        warnings.warn(said, stacklevel=2)
    sink = store.Memory() if folder is None else store.Folder(folder)
    with told(sink, listeners_of(on_rows), grid.moving()) as heard:
        progress = execute(grid, heard, memory_fraction=memory_fraction, moments=moments)
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


def run(*, extensions: extend.Extensions = (), **values: Any) -> pd.DataFrame:
    """Run one cell and return its rows: one a value of n_down and recorded step.

    Keywords are the keys of `mtfl --help`; config groups take the name of their choice. Columns are the settings,
    `step`, the status and the measurements. Raises ConfigError (a ValueError) that names the key and what is allowed.

        mtfl_jax.run(d=64, r=4, data="gaussian", tasks="balanced", algorithm="one_step", seed=0)
    """
    extend.load(extensions)
    compose.from_keywords(**values)
    axes: dict[str, Any] = {key: [value] for key, value in values.items()}
    return sweep(**axes)
