"""The results folder: results.parquet, config.yaml (as composed) and run.json (what it ran on)."""

import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mtfl_jax.config import FIELDS, ConfigError

RESULTS = "results.parquet"

MEASUREMENTS = (
    "subspace_distance",
    "directions_recovered",
    "feature_energy",
    "spectral_ratio",
    "train_loss",
    "test_loss",
    "task_error",
    "downstream_error",
    "num_params",
    "train_samples",
    "train_flops",
    "feature_similarity",
)
_TYPES = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}
_STRINGS = ("parity_size", "probe_parity_size", "losses")


def schema() -> pa.Schema:
    """Columns of a results table: the config's fields, `step`, then the measurements."""
    columns = []
    for name, spec in FIELDS.items():
        kind: Any = {"n_down": int, "weight_decay": float}.get(name, str if name in _STRINGS else spec.type)
        if name != "measure_at":
            columns.append(pa.field(name, _TYPES[kind]))
    columns.append(pa.field("step", pa.int64()))
    for name in MEASUREMENTS:
        whole = name in ("directions_recovered", "num_params", "train_samples")
        kind = pa.list_(pa.float64()) if name == "feature_similarity" else pa.int64() if whole else pa.float64()
        columns.append(pa.field(name, kind))
    return pa.schema(columns)


def table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a DataFrame of the results' columns; what does not apply to a row is missing in it."""
    return _frame(pa.Table.from_pylist(list(rows), schema=schema()))


def _frame(arrow: pa.Table) -> pd.DataFrame:
    nullable = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    return arrow.to_pandas(types_mapper=nullable.get)


def unwritable(folder: str | Path, error: OSError) -> ConfigError:
    """The error of an output folder that cannot be written."""
    return ConfigError("hydra.run.dir", folder, f"{error.strerror}; allowed: a folder that can be written")


def claim(folder: Path) -> None:
    """Make the folder, and refuse one that cannot be written or that holds results already. Raises ConfigError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise unwritable(folder, error) from None
    if (folder / RESULTS).exists():
        raise ConfigError("hydra.run.dir", folder, f"holds {RESULTS} already; allowed: a new or empty folder")


def write(folder: Path, frame: pd.DataFrame, config_yaml: str, facts: Mapping[str, Any]) -> None:
    """Write the three files; each appears whole, the results last."""
    arrow = pa.Table.from_pandas(frame, schema=schema(), preserve_index=False)
    whole(folder / "config.yaml", lambda path: path.write_text(config_yaml))
    whole(folder / "run.json", lambda path: path.write_text(json.dumps(facts, indent=2) + "\n"))
    whole(folder / RESULTS, lambda path: pq.write_table(arrow, path))


def whole(path: Path, write_to: Callable[[Path], object]) -> None:
    """Write a file under a temporary name in its folder, then rename it."""
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write_to(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """The results table that `mtfl` wrote into a folder. Raises FileNotFoundError where there is none."""
    path = Path(folder) / RESULTS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give the folder that mtfl printed")
    return _frame(pq.read_table(path))


def environment() -> dict[str, Any]:
    """Versions, device and numerics of this process."""
    import jax

    from mtfl_jax.learning import keys
    from mtfl_jax.sweep import engine

    packages = ("mtfl_jax", "jax", "jaxlib", "flax", "optax", "numpy", "hydra-core", "pandas", "pyarrow")
    return {
        "versions": {name: importlib.metadata.version(name) for name in packages}
        | {"python": platform.python_version()},
        "platform": platform.platform(),
        "devices": [f"{device.platform}: {device.device_kind}" for device in engine.devices()],
        "matmul_precision": engine.MATMUL_PRECISION,
        "dtype": str(jax.numpy.result_type(float)),
        "draws_schema": keys.SCHEMA,
    }
