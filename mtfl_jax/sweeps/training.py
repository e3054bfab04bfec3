"""One training again, with what it was made of and what it made: the row of a table that one wants to look into."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pandas as pd

from mtfl_jax import compose, extend
from mtfl_jax.config import FIELDS, Config, require_field
from mtfl_jax.fields import ConfigError, integer
from mtfl_jax.learning import data, drawing, experiment, measuring, network, representation, tasks
from mtfl_jax.learning.algorithms import ALGORITHMS
from mtfl_jax.learning.arithmetic import Arithmetic
from mtfl_jax.learning.measures import MEASURES
from mtfl_jax.learning.program import Cell, Program
from mtfl_jax.learning.tasks import FAMILIES, MAX_TABLE_R, Tasks
from mtfl_jax.names import BOOKKEEPING
from mtfl_jax.sweeps import compiling, engine, identity, rows, tables
from mtfl_jax.sweeps.calibration import chunk_of
from mtfl_jax.sweeps.compiling import Chunk, Job
from mtfl_jax.sweeps.grid import SCHEMA, Grid, row_ids
from mtfl_jax.sweeps.machine import MATMUL_PRECISION, MEMORY_FRACTION
from mtfl_jax.sweeps.plan import Bucket


@dataclasses.dataclass(frozen=True)
class Training:
    """A training. Arrays are NumPy's, of true sizes.

    settings: those that bear on it. table: its rows, one a recorded step and n_down, as `run` has them. step: the
    number of updates after which W (width, d), b (width,) and A (num_tasks, width) are the network; `networks` has all
    recorded ones, by step, and `initial` is the network before any update. x: the samples of the last of these updates,
    (n, d), or (num_tasks, n, d) where tasks have inputs of their own; y (n, num_tasks): their labels, some flipped
    where there is label noise; None where the algorithm sees none. x_test: the samples that are measured on,
    (n_test, d), None where nothing is. M (d, r): the true directions.
    """

    settings: Mapping[str, Any]
    table: pd.DataFrame
    step: int
    networks: Mapping[int, Mapping[str, np.ndarray]]
    initial: Mapping[str, np.ndarray]
    x: np.ndarray | None
    y: np.ndarray | None
    x_test: np.ndarray | None
    tasks: Tasks
    arithmetic: Arithmetic

    @property
    def W(self) -> np.ndarray:
        """The first layer, (width, d)."""
        return self.networks[self.step]["W"]

    @property
    def b(self) -> np.ndarray:
        """The biases of the first layer, (width,)."""
        return self.networks[self.step]["b"]

    @property
    def A(self) -> np.ndarray:
        """The heads, (num_tasks, width)."""
        return self.networks[self.step]["A"]

    @property
    def M(self) -> np.ndarray:
        """The true directions, (d, r): the first r coordinates."""
        return np.eye(self.W.shape[1], self.settings["r"], dtype=self.W.dtype)

    @property
    def truth_table(self) -> np.ndarray:
        """The labels of all tasks in every orthant, (num_tasks, 2^r); bit k of a column's number is set where z_k = +1.
        Raises ValueError where r is above 16, and for tasks that vary within an orthant.
        """
        r = self.settings["r"]
        if r > MAX_TABLE_R:
            raise ValueError(f"r={r}: a truth table has 2^r columns; allowed: r <= {MAX_TABLE_R}")
        return np.asarray(tasks.truth_tables(self.tasks, r, r))

    def labels(self, x: np.ndarray) -> np.ndarray:
        """The labels without noise of inputs x (n, d), for all tasks: (n, num_tasks). Raises ValueError where labels
        read what x does not show.
        """
        r, law, u = self.settings["r"], self.settings["data"], self._array(x)
        if data.LAWS[law].hidden is not None and FAMILIES[self.tasks.family].signs:
            raise ValueError(f"data={law}: labels are of hidden coordinates, which x does not show; allowed: y")
        return np.asarray(tasks.of_inputs(self.tasks, data.Inputs(u, u), r, r))

    def features(self, x: np.ndarray) -> np.ndarray:
        """σ(W x + b) of inputs x (n, d): (n, width)."""
        return np.asarray(network.features(self._params, self._array(x), self.arithmetic))

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """F_t(x) of inputs x (n, d), for all tasks: (n, num_tasks)."""
        exact = Arithmetic(activation=self.arithmetic.activation)
        return np.asarray(network.outputs(self._params, self._array(x), exact))

    def tangent_kernel(self, x: np.ndarray, *, initial: bool = False) -> np.ndarray:
        """Θ = (1/T) Σ_t ⟨∂F_t, ∂F_t⟩ of inputs x (n, d), over W and A and a trained b: (n, n).

        initial: of the network before any update.
        """
        params, trained = _arrays(self.initial) if initial else self._params, self.settings["bias"] == "trained"
        found = representation.tangent_kernel(params, self._array(x), len(self.A), self.arithmetic, train_bias=trained)
        return np.asarray(found)

    def _array(self, x: np.ndarray) -> jax.Array:
        return jax.numpy.asarray(x, self.W.dtype)

    @property
    def _params(self) -> network.Params:
        return _arrays(self.networks[self.step])


def _arrays(params: Mapping[str, np.ndarray]) -> network.Params:
    return {name: jax.numpy.asarray(leaf) for name, leaf in params.items()}


def train(*, extensions: Any = (), **row_or_settings: Any) -> Training:
    """Train one network and keep it: W, b, A, its tasks, its data, and what is measured of it.

    Settings are those of `run`. A row of a table is them too, `mtfl_jax.train(**row)`, if it has all of its settings:
    its measurements are not read, its `step` (default: the last) says after how many updates W, b and A are wanted, and
    its `id`, where it has one, is required to be that of the training. Draws and labels are bit for bit the row's.
    `table` is bit for bit what `sweep(moments="never", …)` makes of this cell alone; where a sweep pads sizes to those
    of other cells, shares moments, or measures after other steps or of other n_down too, it is so to rounding. Raises
    ConfigError (a ValueError) for a bad key or value and for a row of other settings or extensions, TooLargeError where
    memory does not hold it.

        row = table.sort_values("subspace_distance").iloc[0]
        numpy.linalg.svd(mtfl_jax.train(**row).W)
    """
    _load(extensions)
    values = _settings(row_or_settings)
    config = compose.from_keywords(**values)
    _require_whole(row_or_settings, config)
    step = row_or_settings.get("step")
    step = config.record[-1] if _missing(step) else integer(0).parse("step", step)
    if step not in config.record:
        stepped = ALGORITHMS[config.algorithm].stepped
        if not stepped or not 1 <= step <= config.steps:
            allowed = f"from 1 to steps={config.steps}" if stepped else config.record[0]
            raise ConfigError("step", step, f"allowed: {allowed}")
        values["measure_at"] = [*config.record, step]
    grid = Grid({key: [value] for key, value in values.items()}, compose.composed)
    steps = np.arange(max(1, config.steps) + 1)
    identities = row_ids(np.repeat(grid.ids, len(steps)), np.tile(steps, len(grid)))
    if _identified(row_or_settings) and row_or_settings["id"] not in identities:
        allowed = "allowed: that of the settings beside it, with the extensions that are loaded here"
        raise ConfigError("id", row_or_settings["id"], allowed)
    return _trained(grid, step)


def _load(extensions: Any) -> None:
    """Load extensions; those that a row names, NAME:HASH, must be loaded. Raises ConfigError."""
    if not isinstance(extensions, str) or ":" not in extensions:
        if not _missing(extensions):
            extend.load(extensions)
        return
    for source in extensions.split():
        if source not in extend.loaded():
            given = "mtfl_jax.train(**{**row, 'extensions': [FILE]})"
            raise ConfigError("extensions", source, f"not loaded here, or edited since; allowed: {given}")


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings among the columns of a row, as a config has them; what is missing is null, or left to its default.
    Raises ConfigError for what is neither a setting nor a column.
    """
    values = {}
    for key, value in given.items():
        if key in MEASURES or key in BOOKKEEPING or key == "id":
            continue
        require_field(key, value)
        missing = _missing(value)
        found = identity.parsed(key, None if missing else value)
        if found is not identity.UNKNOWN:
            values[key] = found
        elif not missing:
            values[key] = value  # It will be said what is allowed.
    if _is_row(given):
        # Of a version that had no such settings yet.
        values |= {
            name: field.before for name, field in FIELDS.items() if name not in given and field.before is not None
        }
    return values


def _missing(value: Any) -> bool:
    """Whether a value is none: None, NaN or NA."""
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def _is_row(given: Mapping[str, Any]) -> bool:
    """Whether it is a row of a table, or a part of one."""
    return any(key in MEASURES or key in ("id", "status", "draws", "schema") for key in given)


def _require_whole(given: Mapping[str, Any], config: Config) -> None:
    """Raise ConfigError for a row that lacks settings: defaults would make it another one."""
    lacking = [
        name
        for name, field in FIELDS.items()
        if name in config.used and name not in given and field.type.column is not None and field.before is None
    ]
    if _is_row(given) and lacking:
        some = ", ".join(lacking[:5]) + ", …" * (len(lacking) > 5)
        allowed = "allowed: all settings of a row of mtfl_jax.load(FOLDER), not a tidy one, or settings alone"
        raise ConfigError("row", f"without {some}", allowed)


def _identified(given: Mapping[str, Any]) -> bool:
    """Whether a row has an identity of the present scheme, in numbers that hold it."""
    schema = given.get("schema")
    return isinstance(given.get("id"), int | np.integer) and not _missing(schema) and int(float(str(schema))) == SCHEMA


def _trained(grid: Grid, step: int) -> Training:
    (bucket,), _ = engine.planned(grid, "never", (1, 1))
    job = compiling.job_of(bucket)
    # The table is of the program that a sweep runs: another one, of a loop over one lane, may round in other places.
    outputs, chunk = _one_lane(grid, bucket, job, chunk_of(bucket))
    keeping = dataclasses.replace(job, program=job.program.replace(keep=True))
    kept = jax.tree.map(lambda leaf: leaf[0], _one_lane(grid, bucket, keeping, Chunk(1, 1))[0]["network"])
    measured = rows.rows_of(grid, rows.Costs(grid), bucket, np.zeros(1, int), outputs)
    table = tables.frame(identity.in_order(grid, measured))
    config, cell = grid.cell(0), jax.tree.map(lambda leaf: leaf[0], compiling.cells_of(grid, bucket, np.zeros(1, int)))
    true = {"W": (config.width, config.d), "b": (config.width,), "A": (config.num_tasks, config.width)}

    def cut(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: params[name][tuple(map(slice, shape))] for name, shape in true.items()}

    networks = {
        count: cut({name: leaf[i] for name, leaf in kept.items()}) for i, count in enumerate(bucket.program.record)
    }
    p = bucket.program.replace(arithmetic=compiling.settled(bucket.program, chunk))
    with jax.default_matmul_precision(MATMUL_PRECISION):
        sizes = {"r": config.r, "num_tasks": config.num_tasks}
        drawn = jax.device_get(jax.jit(functools.partial(_drawn, p, sizes))(cell, np.int32(step)))
    batch, x_test, of, initial = drawn
    x = y = None
    if batch is not None:
        x, y = batch.x[..., : batch.n, : config.d], batch.y[: batch.n, : config.num_tasks]
        x = x[: config.num_tasks] if x.ndim == 3 else x
    return Training(
        settings={name: config.values[name] for name in FIELDS if name in config.used},
        table=table,
        step=step,
        networks=networks,
        initial=cut(initial),
        x=x,
        y=y,
        x_test=None if x_test is None else x_test[: config.n_test, : config.d],
        tasks=Tasks(p.tasks, *map(jax.numpy.asarray, of)),
        arithmetic=p.arithmetic,
    )


def _one_lane(grid: Grid, bucket: Bucket, job: Job, chunk: Chunk) -> tuple[dict[str, Any], Chunk]:
    """What a program gives for the first of a bucket's lanes, leaves with an axis of one, and the chunk it took."""
    made = compiling.fitting(job, chunk, MEMORY_FRACTION)
    places = made.chunk.places
    cells = compiling.cells_of(grid, bucket, np.zeros(made.chunk.capacity * places, int))
    outputs = made.executable(cells, np.asarray([1] + [0] * (places - 1), np.int32))
    return jax.device_get(jax.tree.map(lambda leaf: leaf[:1], outputs)), made.chunk


def _drawn(p: Program, sizes: Mapping[str, int], cell: Cell, step: Any) -> tuple[Any, Any, Any, Any]:
    """The samples of a step, those measured on, the first network, of padded sizes; the tasks, of their true ones."""
    test = measuring.draw_fresh(p, cell).test
    of = drawing.draw_tasks(p.replace(**sizes), cell)
    return experiment.samples(p, cell, step), test, (of.params, of.scale), drawing.draw_network(p, cell)
