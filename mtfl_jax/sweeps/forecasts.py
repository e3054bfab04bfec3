"""What running a grid would take."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mtfl_jax.sweeps import calibration
from mtfl_jax.sweeps.compiling import Chunk, fitting, job_of, lines_of, memory_of
from mtfl_jax.sweeps.cost import COMPILE_SECONDS, lane_flops, size_names
from mtfl_jax.sweeps.engine import describe, keeping, planned, remaining
from mtfl_jax.sweeps.grid import Grid
from mtfl_jax.sweeps.machine import MEMORY_FRACTION, memory_limit
from mtfl_jax.sweeps.plan import Bucket
from mtfl_jax.sweeps.rows import kept_bytes


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
    whether it was `compiled`; `kept` are the bytes of weights that would be kept.
    """

    cells: int
    done: int
    left: list[Forecast]
    limit: int
    compiled: bool
    kept: int = 0

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
    keep: Sequence[str] = (),
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
                made = fitting(job_of(keeping(bucket, keep)), calibration.chunk_of(bucket), memory_fraction)
                item = item._replace(memory=memory_of(made.executable), lines=lines_of(made.executable))
                item = item._replace(lowering=made.lowering, compiling=made.compiling, chunk=made.chunk)
            except Exception as error:  # What a record's code raises, or a program that does not fit.
                item = item._replace(problem=describe(grid, bucket, error))
        left.append(item)
    cells = sum(len(bucket.cells) for bucket in buckets)
    every = int(mine.sum())
    kept = sum(kept_bytes(grid, bucket, keep) for bucket in buckets) if keep else 0
    return Forecasts(every, every - cells, left, int(memory_fraction * memory_limit()), compiled, kept)
