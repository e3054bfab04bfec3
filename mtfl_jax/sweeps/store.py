"""The results folder: a table that grows part by part.

parts/ holds the rows as Parquet files, each written under a temporary name and renamed, so a kill loses at most the
rows in flight and several processes may write side by side. results.parquet is every row in one file, made when a
sweep ends: those of the parts and those that the file had before. runs/ says of every process what it ran, on what, and
how far it got. `tables` reads and writes the files.
"""

import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mtfl_jax.config import FIELDS, ConfigError
from mtfl_jax.learning import keys
from mtfl_jax.sweeps import grid, tables
from mtfl_jax.sweeps.tables import LISTS, MEASUREMENTS

_TYPES = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}
_STRINGS = ("parity_size", "probe_parity_size", "losses")


def _settings() -> dict[str, pa.DataType]:
    kinds: dict[str, Any] = {"n_down": int, "weight_decay": float} | dict.fromkeys(_STRINGS, str)
    return {name: _TYPES[kinds.get(name, spec.type)] for name, spec in FIELDS.items() if name != "measure_at"}


def schema() -> pa.Schema:
    """Columns of a results table: settings, the scheme of draws, `step`, the row's status, the measurements, and its
    identity.
    """
    columns = [pa.field(name, kind) for name, kind in _settings().items()]
    columns += [pa.field("draws", pa.int64()), pa.field("step", pa.int64())]
    columns += [pa.field("status", pa.string()), pa.field("diverged_step", pa.int64())]
    for name in MEASUREMENTS:
        whole = name in ("directions_recovered", "num_params", "train_samples")
        kind = pa.list_(pa.float64()) if name in LISTS else pa.int64() if whole else pa.float64()
        columns.append(pa.field(name, kind))
    return pa.schema([*columns, pa.field("id", pa.uint64())])


def rows(cells: "grid.Grid", index: np.ndarray, steps: np.ndarray, measured: Mapping[str, Any]) -> pa.Table:
    """Rows of the grid's cells `index` (R,) at `steps` (R,), with their measurements (R, …), as the results' columns.

    A setting that does not bear on its row is missing there.
    """
    columns: dict[str, Any] = {}
    for name, kind in _settings().items():
        values = cells.column(name, index, _text if name in _STRINGS else None)
        columns[name] = pa.array(values, kind, mask=~cells.bears(name, index), from_pandas=True)
    columns |= {
        **measured,
        "draws": np.full(len(index), keys.SCHEMA),
        "step": steps,
        "id": grid.row_ids(cells.ids[index], steps),
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in schema()], schema=schema())


def _text(value: Any) -> str:
    return "+".join(value) if isinstance(value, tuple) else str(value)


class Memory:
    """Parts kept in memory, for a sweep without a folder."""

    def __init__(self) -> None:
        self.parts: list[pa.Table] = []

    def append(self, part: pa.Table) -> None:
        """Add rows."""
        self.parts.append(part)

    def finished(self) -> np.ndarray:
        """Identities of the rows here before the sweep: none."""
        return np.empty(0, np.uint64)

    def table(self) -> pa.Table:
        """All rows."""
        return pa.concat_tables([schema().empty_table(), *self.parts])


class Folder:
    """A results folder. Raises ConfigError where it cannot be written, or holds what cannot be one table with ours."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._stored()
            for name in ("parts", "runs"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path / "parts"):
                pass
        except OSError as error:
            raise unwritable(path, error) from None
        self._name = uuid.uuid4().hex[:12]
        self._count = itertools.count()

    def append(self, part: pa.Table) -> None:
        """Write rows as one more part."""
        # The process's number tells forks apart.
        name = f"{self._name}-{os.getpid()}-{next(self._count):06d}.parquet"
        (self.path / "parts").mkdir(parents=True, exist_ok=True)
        tables.append(self.path / "parts" / name, part)

    def finished(self) -> np.ndarray:
        """Identities of the rows here, sorted."""
        with self._one_table():
            return tables.ids(self._stored())

    def table(self) -> pa.Table:
        """All rows, each once. Columns of `schema()` first, then those that only files here have, then `id`."""
        with self._one_table():
            found = self._stored()
            return pa.concat_tables([found.schema.empty_table(), *tables.distinct(found)])

    def merge(self) -> Path:
        """Write every row once into results.parquet; its path."""
        with self._one_table():
            return tables.merge(self.path, schema())

    def _stored(self) -> tables.Stored:
        with self._one_table():
            return tables.stored(tables.files_of(self.path), schema())

    @contextlib.contextmanager
    def _one_table(self) -> Iterator[None]:
        try:
            yield
        except tables.IncompatibleError as error:
            allowed = "allowed: a new folder, or one with results only"
            raise ConfigError("hydra.run.dir", self.path, f"{error}; {allowed}") from None

    def note(self, facts: Mapping[str, Any]) -> None:
        """Say in runs/ what this process runs and how far it is."""
        text = json.dumps(facts, indent=2) + "\n"
        tables.whole(self.path / "runs" / f"{self._name}.json", lambda partial: partial.write_text(text))


def unwritable(folder: str | os.PathLike[str], error: OSError) -> ConfigError:
    """The error of an output folder that cannot be written."""
    return ConfigError("hydra.run.dir", folder, f"{error.strerror}; allowed: a folder that can be written")


def environment() -> dict[str, Any]:
    """Versions, device and numerics of this process."""
    from mtfl_jax.sweeps import engine

    packages = ("mtfl_jax", "jax", "jaxlib", "flax", "optax", "numpy", "hydra-core", "pandas", "pyarrow")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "versions": {**versions, "python": platform.python_version()},
        "platform": platform.platform(),
        "devices": [f"{device.platform}: {device.device_kind}" for device in engine.devices()],
        "numerics": grid.NUMERICS,
        "matmul_precision": engine.MATMUL_PRECISION,
        "draws_schema": keys.SCHEMA,
    }
