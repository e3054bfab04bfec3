"""The files of a results folder: reading every row once, and writing a file whole. Imports no jax, so that a table
can be read in a moment.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

RESULTS = "results.parquet"


def frame(table: pa.Table) -> pd.DataFrame:
    """A table as pandas shows it best: missing integers and flags stay integers and flags."""
    nullable = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype(), pa.uint64(): pd.UInt64Dtype()}
    return table.to_pandas(types_mapper=nullable.get)


def load(
    folder: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    where: Sequence[tuple[str, str, Any]] | None = None,
) -> pd.DataFrame:
    """The table of a results folder (or of a results.parquet), every row once.

    columns: those to read, default all. where: conditions that rows must meet, as of `pandas.read_parquet`:
    [("d", "==", 64), ("num_tasks", "in", [1, 256])]. Only what is asked for is held. A part that cannot be read is
    named in a warning. Raises FileNotFoundError where there are no results, ValueError for an unknown column.
    """
    path = Path(folder)
    files = [path] if path.is_file() else files_of(path)
    if not files:
        raise FileNotFoundError(f"{path}: no results there; give the folder that mtfl printed")
    schema = _schema(files)
    known = schema.names
    wanted = list(columns) if columns is not None else known
    for name in [*wanted, *(condition[0] for condition in where or ())]:
        if name not in known:
            raise ValueError(f"column {name!r}: allowed: {', '.join(known)}")
    parts = distinct(files, wanted, where)
    return frame(pa.concat_tables([schema.empty_table().select(wanted), *parts]))


def _schema(files: Sequence[Path]) -> pa.Schema:
    """Columns of the first file that can be read."""
    for path in files:
        with contextlib.suppress(pa.ArrowException, OSError):
            return pq.read_schema(path)
    raise FileNotFoundError(f"{files[0]}: it cannot be read, nor can another part of its folder")


def files_of(folder: Path) -> list[Path]:
    """The parts of a folder, or its results.parquet where only that was kept."""
    parts = sorted(path for path in (folder / "parts").glob("*.parquet") if not path.name.startswith("."))
    return parts or [path for path in [folder / RESULTS] if path.is_file()]


def count(files: Sequence[Path]) -> int:
    """Rows in the files that can be read, read from their ends; some may be in two files."""
    rows = 0
    for path in files:
        with contextlib.suppress(pa.ArrowException, OSError):
            rows += pq.read_metadata(path).num_rows
    return rows


def read(files: Sequence[Path], columns: Sequence[str] | None, where: Any) -> Iterator[tuple[Path, pa.Table]]:
    """Each file with its rows; one that cannot be read is named in a warning."""
    for path in files:
        try:
            part = pq.read_table(path, columns=columns, filters=where, partitioning=None)
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            warnings.warn(f"{path}: left out, it cannot be read ({reason})", stacklevel=4)
        else:
            yield path, part


def distinct(files: Sequence[Path], columns: Sequence[str] | None, where: Any) -> Iterator[pa.Table]:
    """The parts one by one, less the rows that an earlier one has."""
    ids = [(path, part.column("id").to_numpy()) for path, part in read(files, ["id"], where)]
    if not ids:
        return
    every = np.concatenate([own for _, own in ids])
    first = np.zeros(len(every), bool)
    first[np.unique(every, return_index=True)[1]] = True
    keep = np.split(first, np.cumsum([len(own) for _, own in ids])[:-1])
    for (_, part), kept in zip(read([path for path, _ in ids], columns, where), keep, strict=True):
        yield part if kept.all() else part.filter(pa.array(kept))


def whole(path: Path, write_to: Callable[[Path], object]) -> None:
    """Write a file under a temporary name in its folder, then rename it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write_to(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
