"""The results folder: a table that grows part by part.

parts/ holds the rows as Parquet files, each written under a temporary name and renamed, so a kill loses at most the
rows in flight and several processes may write side by side. results.parquet is the same rows in one file, made when
a sweep ends; runs/ says of every process what it ran, on what, and how far it got.
"""

import importlib.metadata
import json
import os
import platform
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtfl_jax.config import FIELDS, ConfigError
from mtfl_jax.learning import keys
from mtfl_jax.sweeps import grid
from mtfl_jax.sweeps.tables import LISTS, MEASUREMENTS, RESULTS, distinct, files_of, read, whole

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
    """A results folder. Raises ConfigError where it cannot be written."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            for name in ("parts", "runs"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path / "parts"):
                pass
        except OSError as error:
            raise unwritable(path, error) from None
        self._name = uuid.uuid4().hex[:12]
        self._count = 0

    def append(self, part: pa.Table) -> None:
        """Write rows as one more part."""
        path = self.path / "parts" / f"{self._name}-{self._count:06d}.parquet"
        whole(path, lambda partial: pq.write_table(part, partial))
        self._count += 1

    def finished(self) -> np.ndarray:
        """Identities of the rows here, sorted."""
        ids = [part.column("id").to_numpy() for _, part in read(files_of(self.path), ["id"], None)]
        return np.unique(np.concatenate(ids)) if ids else np.empty(0, np.uint64)

    def table(self) -> pa.Table:
        """All rows, each once."""
        return pa.concat_tables([schema().empty_table(), *distinct(files_of(self.path), None, None)])

    def merge(self) -> Path:
        """Write every row once into results.parquet, part by part; its path."""

        def write(partial: Path) -> None:
            with pq.ParquetWriter(partial, schema()) as writer:
                for part in distinct(files_of(self.path), None, None):
                    writer.write_table(part)

        whole(self.path / RESULTS, write)
        return self.path / RESULTS

    def note(self, facts: Mapping[str, Any]) -> None:
        """Say in runs/ what this process runs and how far it is."""
        text = json.dumps(facts, indent=2) + "\n"
        whole(self.path / "runs" / f"{self._name}.json", lambda partial: partial.write_text(text))


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
