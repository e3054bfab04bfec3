"""The files of a results folder read as one table, and written whole. Imports no jax, so that a table can be read in a
moment.

The rows of a folder are those of parts/*.parquet and of results.parquet together, each once by its `id`; where both
have a row, the part's is taken. Every reader and writer sees them through `stored`, which finds columns by name and
fits parts of other schemas to one another, and `distinct`. No file is ever replaced by one that lacks rows that can be
read in it, but for those that `remove` is to take out.
"""

import contextlib
import dataclasses
import errno
import fcntl
import itertools
import os
import socket
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mtfl_jax import ends
from mtfl_jax.records import guess
from mtfl_jax.sweeps import places

RESULTS, PARTS = "results.parquet", "parts"
"""What a results folder has in it."""

GROUP_ROWS = 2**13
"""Rows that a row group of results.parquet has at least, and so the rows that a reader holds at a time."""

_UNREADABLE = (pa.ArrowException, OSError)
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class IncompatibleError(ValueError):
    """A file that cannot be combined with the others of its folder, said in one line."""


def frame(table: pa.Table) -> pd.DataFrame:
    """A table as pandas shows it best: missing integers and flags stay integers and flags. What columns are called in
    figures, their fields' metadata `label`, is in attrs["labels"].
    """
    nullable = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype(), pa.uint64(): pd.UInt64Dtype()}
    found = table.to_pandas(types_mapper=nullable.get)
    texts = {field.name: (field.metadata or {}).get(b"label") for field in table.schema}
    found.attrs["labels"] = {name: text.decode() for name, text in texts.items() if text is not None}
    return found


def load(
    folder: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    where: Sequence[tuple[str, str, Any]] | None = None,
) -> pd.DataFrame:
    """The table of a results folder (or of a results.parquet), every row once.

    columns: those to read, default all. where: conditions that rows must meet, as of `pandas.read_parquet`:
    [("d", "==", 64), ("num_tasks", "in", [1, 256])]. Only what is asked for is held, and the rows' identities. A file
    that cannot be read is named in a warning. A column that a row's file lacks is missing in it; attrs["labels"] has
    the columns' labels. Raises FileNotFoundError where there are no results, ValueError for an unknown column,
    IncompatibleError (a ValueError) for files that cannot be one table.
    """
    path = places.place(folder)
    with places.reached(path):
        alone = path.is_file()
    while True:
        files = [path] if alone else files_of(path)
        if not files:
            raise FileNotFoundError(f"{path}: no results there; give the folder that mtfl printed")
        found = stored(files)
        if not found.files and not _gone(found):
            others = "" if alone else ", nor can another part of its folder"
            raise FileNotFoundError(f"{files[0]}: it cannot be read{others}")
        if found.files:
            known = found.schema.names
            wanted = list(columns) if columns is not None else known
            for name in [*wanted, *(condition[0] for condition in where or ())]:
                if name not in known:
                    raise ValueError(f"column {name!r}: allowed: {', '.join(known)}{guess(name, known)}")
            rows = [_columns(found.schema, wanted).empty_table(), *distinct(found, wanted, where)]
            if not _gone(found):
                return frame(pa.concat_tables(rows))


def files_of(folder: Path) -> list[Path]:
    """The files that hold a folder's rows: its parts, then its results.parquet. Hidden names are files being written,
    or left by a process that died while it wrote.
    """
    parts = [path for path in places.listed(folder / PARTS, ".parquet") if not path.name.startswith(".")]
    return parts + [path for path in [folder / RESULTS] if places.there(path)]


@dataclasses.dataclass(frozen=True)
class Stored:
    """Files as one table: its columns, each file that can be read with what it is read from, and those found damaged
    so far.
    """

    schema: pa.Schema
    files: Mapping[Path, Any]
    damaged: set[Path]


def stored(files: Sequence[Path], current: pa.Schema | None = None) -> Stored:
    """The files as one table, from their ends; one that cannot be read is named in a warning and left out.

    Columns are those of `current` (default: of the file with most columns, in the types of a results table), then
    those that only files have, then `id`. A column of `current` keeps its type and its metadata, and files' columns
    are cast to it where no value changes: other widths, dictionaries, whole numbers kept as floats. Raises
    IncompatibleError for a column that cannot be cast, for a file without an `id` of ours, and for a results.parquet
    that is something else.
    """
    found: dict[Path, Any] = {}
    damaged: set[Path] = set()
    kinds: dict[bytes, tuple[pa.Schema, list[Path]]] = {}
    # Objects are read whole, and once: each request takes its time, and all are made together.
    remote = {path: pa.py_buffer(held) for path, held in places.contents(list(filter(places.is_remote, files))).items()}
    for path in files:
        try:
            if places.is_remote(path):
                if path not in remote:
                    raise FileNotFoundError(f"{path}: it is there no more")
                source: Any = remote[path]
            else:
                # Held open, as results.parquet may be replaced between the reading of its ids and of its rows.
                source = pa.OSFile(str(path)) if path.name == RESULTS else path
            with _open(source) as file:
                schema = file.schema_arrow.remove_metadata()
            # By its bytes, as two schemas are equal whatever their fields' metadata.
            kinds.setdefault(schema.serialize().to_pybytes(), (schema, []))[1].append(path)
            found[path] = source
        except _UNREADABLE as error:
            if path.name == RESULTS:
                _require_torn(path)
            _leave_out(damaged, path, error)
    for schema, paths in kinds.values():
        _require_ours(schema, paths[0])
    result = Stored(_combined(list(kinds.values()), current), found, damaged)
    for schema, paths in kinds.values():
        for field in schema:
            kind = result.schema.field(field.name).type
            if _wide(field.type) != _wide(kind) and not pa.types.is_null(field.type):
                for path in paths:
                    _require_same_values(result, path, field, kind)
    return result


def ids(found: Stored) -> np.ndarray:
    """Identities of the rows in files, sorted, each once."""
    return np.unique(np.concatenate([np.empty(0, np.uint64), *itertools.chain(*_ids(found).values())]))


def count(files: Sequence[Path]) -> int:
    """Rows in the files that can be read, each once, by reading their identities only."""
    return len(ids(stored(files)))


def distinct(found: Stored, columns: Sequence[str] | None = None, where: Any = None) -> Iterator[pa.Table]:
    """The rows of files by row groups, less those that an earlier file has; columns and conditions as of `load`."""
    names = found.schema.names if columns is None else list(columns)
    needed = dict.fromkeys([*names, *(condition[0] for condition in where or ()), "id"])
    fitted = _columns(found.schema, list(needed))
    rows = _ids(found)
    keep = _first(rows)
    for path, groups in rows.items():
        with _opened(found, path) if any(map(np.any, keep[path])) else contextlib.nullcontext() as file:
            for i in range(len(groups)):
                if not keep[path][i].any():
                    continue
                part = _group(found, path, file, i, list(needed))
                if part is None or not np.array_equal(part.column("id").to_numpy(), groups[i]):
                    # Its identities could be read and its rows cannot: another file may have them.
                    groups[i] = groups[i][:0]
                    keep = _first(rows)
                    continue
                part = _fitted(part, fitted)
                part = part if keep[path][i].all() else part.filter(pa.array(keep[path][i]))
                yield (part.filter(pq.filters_to_expression(where)) if where else part).select(names)


def scattered(folder: Path) -> bool:
    """Whether parts of a folder have rows that its results.parquet lacks."""
    rows = _ids(stored(files_of(folder)))
    merged = [own for path, own in rows.items() if path.name == RESULTS]
    every, there = (np.concatenate([np.empty(0, np.uint64), *itertools.chain(*of)]) for of in (rows.values(), merged))
    return not np.isin(every, there).all()


def merge(folder: Path, current: pa.Schema | None = None) -> Path:
    """Write every row of a folder once into its results.parquet, those of the present one too; its path.

    The present file is replaced in one step by one that has its rows; if it is damaged it is moved aside, with a
    warning. Processes take turns, by a lock that the kernel frees when its holder ends, however it ends. On a network
    file system without locks, and between hosts where a lock reaches one host only, the file still ends whole, but
    may lack rows that another process wrote meanwhile: they stay in parts/, and readers see them. In an object store,
    which has no locks, whoever wrote the file looks again, and writes again where parts have come meanwhile. Raises
    IncompatibleError, before anything is written.
    """
    path = folder / RESULTS
    with _turn(folder / f".{RESULTS}.lock"):
        while True:
            files, _ = _merged(folder, current)
            if not places.is_remote(folder) or set(files_of(folder)) <= {*files, path}:
                return path


def remove(folder: Path, rows: np.ndarray) -> list[Path]:
    """Take the rows of these identities out of a folder. Parts that cannot be read whole stay as they are: those.

    The others are written into results.parquet, which is replaced in one step, and only then do the parts go that they
    were in: a process that ends in between leaves rows that were to go, and loses none. Parts that others write
    meanwhile stay. Raises IncompatibleError, before anything is written.
    """
    with _turn(folder / f".{RESULTS}.lock"):
        files, found = _merged(folder, less=rows)
        places.settle(folder)  # Lest a power cut leaves neither.
        for part in files:
            if part.name != RESULTS and part not in found.damaged:
                places.remove(part)
        return sorted(part for part in found.damaged if part.name != RESULTS)


def mend(folder: Path) -> list[Path]:
    """Write every row of a folder that can be read into its results.parquet, as `merge` does, and move aside the parts
    that cannot be read whole; all that cannot. Raises IncompatibleError, before anything is written.
    """
    with _turn(folder / f".{RESULTS}.lock"):
        _, found = _merged(folder)
        places.settle(folder)
        for part in sorted(found.damaged):
            if part.name != RESULTS:  # It was, before another took its place.
                move_aside(part)
        return sorted(found.damaged)


def _merged(
    folder: Path, current: pa.Schema | None = None, less: np.ndarray | None = None
) -> tuple[Sequence[Path], Stored]:
    """Write the rows of a folder into its results.parquet; the files that they are from, as listed and as read."""
    while True:
        files = files_of(folder)
        found = stored(files, current)
        with contextlib.suppress(_GoneError):
            _write_merged(folder / RESULTS, found, less)
            return files, found


class _GoneError(Exception):
    """A file has gone since it was listed: its rows are in another now."""


def _gone(found: Stored) -> bool:
    """Whether a file of these has gone since it was listed, as `remove` takes parts away whose rows it has written."""
    return not all(map(places.there, found.damaged))


def _write_merged(path: Path, found: Stored, less: np.ndarray | None = None) -> None:
    """Write every row of files once into one, but for those of the identities `less`; what is there and cannot be read
    is moved aside.
    """

    def write(partial: Path) -> None:
        with pq.ParquetWriter(partial, found.schema, write_page_checksum=True) as writer:
            for rows in _gathered(distinct(found)):
                kept = rows if less is None else rows.filter(pa.array(~np.isin(rows.column("id").to_numpy(), less)))
                writer.write_table(kept)
        if _gone(found):
            raise _GoneError
        with partial.open("rb") as file:
            os.fsync(file.fileno())  # Before the rename, lest a power cut leaves a name without its rows.
        if path in found.damaged and places.there(path):
            move_aside(path)

    whole(path, write)


def append(path: Path, rows: pa.Table) -> None:
    """Write rows as one more part."""
    whole(path, lambda partial: pq.write_table(rows, partial, write_page_checksum=True))


def whole(path: Path, write_to: Callable[[Path], object]) -> None:
    """Write a file under a temporary name in its folder that no other writer has, then rename it; an object in a file
    of this host, then put it in its place.
    """
    writer = f"{socket.gethostname()[:64]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    folder = Path(tempfile.gettempdir()) if places.is_remote(path) else path.parent
    partial = folder / f".{path.name}.{writer}.partial"
    ends.UNFINISHED.add(str(partial))
    try:
        write_to(partial)
        if places.is_remote(path):
            places.put(partial, path)
        else:
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
        ends.UNFINISHED.discard(str(partial))


# Files


def _open(source: Any) -> pq.ParquetFile:
    source = pa.BufferReader(source) if isinstance(source, pa.Buffer) else source
    return pq.ParquetFile(source, page_checksum_verification=True)


@contextlib.contextmanager
def _opened(found: Stored, path: Path) -> Iterator[pq.ParquetFile | None]:
    """A file open, or None and a warning where it cannot be."""
    try:
        file = _open(found.files[path])
    except _UNREADABLE as error:
        _leave_out(found.damaged, path, error)
        yield None
    else:
        with file:
            yield file


def _group(found: Stored, path: Path, file: pq.ParquetFile | None, i: int, names: Sequence[str]) -> pa.Table | None:
    """Those of the columns that are in a file's i-th row group, or None and a warning where they cannot be read."""
    if file is None:
        return None
    try:
        there = set(file.schema_arrow.names)
        return file.read_row_group(i, columns=[name for name in names if name in there])
    except _UNREADABLE as error:
        _leave_out(found.damaged, path, error)
        return None


_SAID: dict[Path, str] = {}
"""What was said of files that cannot be read: the same from wherever they are read, so that Python says it once."""


def _leave_out(damaged: set[Path], path: Path, error: Exception) -> None:
    if path in damaged:
        return
    damaged.add(path)
    if isinstance(error, FileNotFoundError):
        return  # Another process has just moved it, or its rows.
    reason = (str(error).splitlines() or ["no reason given"])[0]
    folder = path.parent.parent if path.parent.name == PARTS else path.parent
    mend = f"mtfl-clean {places.quoted(folder)} --damaged moves it aside, and the same command makes its rows again"
    warnings.warn(_SAID.setdefault(path, f"{path}: left out, it cannot be read ({reason}); {mend}"), stacklevel=1)


def _require_torn(path: Path) -> None:
    """Raise IncompatibleError unless a file that cannot be read is one of ours that was cut short or lost its bytes."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except FileNotFoundError:
        return  # Another process has just moved it.
    except OSError as error:
        raise IncompatibleError(f"{path}: {error.strerror}") from None
    if not b"PAR1".startswith(start) and any(start):
        raise IncompatibleError(f"{path}: not a Parquet file; it is not overwritten")


def _ids(found: Stored) -> dict[Path, list[np.ndarray]]:
    """Identities by file and row group; none where they cannot be read."""
    rows: dict[Path, list[np.ndarray]] = {}
    for path in found.files:
        rows[path] = []
        with _opened(found, path) as file:
            for i in range(file.num_row_groups if file is not None else 0):
                part = _group(found, path, file, i, ["id"])
                if part is not None and part.column("id").null_count:
                    raise IncompatibleError(f"{path}: column id has missing values; they tell rows apart")
                rows[path].append(np.empty(0, np.uint64) if part is None else part.column("id").to_numpy())
    return rows


def _first(rows: Mapping[Path, Sequence[np.ndarray]]) -> dict[Path, list[np.ndarray]]:
    """Which rows no earlier file or row group has, by file and row group."""
    lengths = [len(own) for groups in rows.values() for own in groups]
    every = np.concatenate([np.empty(0, np.uint64), *itertools.chain(*rows.values())])
    first = np.zeros(len(every), bool)
    first[np.unique(every, return_index=True)[1]] = True
    masks = iter(np.split(first, np.cumsum(lengths)[:-1]) if lengths else [])
    return {path: [next(masks) for _ in groups] for path, groups in rows.items()}


def _gathered(parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Tables of at least GROUP_ROWS rows, but for the last."""
    held: list[pa.Table] = []
    for part in parts:
        held.append(part)
        if sum(map(len, held)) >= GROUP_ROWS:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def move_aside(path: Path) -> None:
    """Give a file that cannot be read whole another name, with a warning."""
    names = (path.with_name(f"{path.name}.unreadable-{number}") for number in itertools.count(1))
    with places.reached(path):
        aside = next(name for name in names if not name.exists())
        path.rename(aside)
    warnings.warn(f"{path}: it cannot be read whole and was moved to {aside.name}", stacklevel=2)


@contextlib.contextmanager
def _turn(lock: Path) -> Iterator[None]:
    """Held by one process at a time, and by one thread of it. Where the file system has no locks, by all."""
    if places.is_remote(lock):
        yield
        return
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield


# Columns


def _columns(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    return pa.schema([schema.field(name) for name in names])


def _fitted(part: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of a schema, from a table that may lack some or have them in other types."""
    there = set(part.column_names)

    def column(field: pa.Field) -> Any:
        if field.name not in there:
            return pa.nulls(len(part), field.type)
        found = part.column(field.name)
        return found if found.type == field.type else found.cast(field.type)

    return pa.table([column(field) for field in schema], schema=schema)


def _require_ours(schema: pa.Schema, path: Path) -> None:
    """Raise IncompatibleError unless a file has rows with identities, and each column once."""
    names = schema.names
    for name in ("id", "step", "status"):
        if name not in names:
            raise IncompatibleError(f"{path}: it has no column {name} and so is not a table of results")
    if schema.field(names.index("id")).type != pa.uint64():
        kind = schema.field(names.index("id")).type
        raise IncompatibleError(f"{path}: column id is {kind}, in a table of results uint64")
    for name in names:
        if names.count(name) > 1:
            raise IncompatibleError(f"{path}: column {name} is there {names.count(name)} times")


def _combined(kinds: Sequence[tuple[pa.Schema, Sequence[Path]]], current: pa.Schema | None) -> pa.Schema:
    """The columns of all: those of `current` as they are, then the others, then `id`. Raises IncompatibleError.

    `pyarrow.unify_schemas` does not serve: it would widen the current types, and has no rule for dictionaries.
    """
    fields: dict[str, pa.Field] = {} if current is None else {field.name: field for field in current}
    fixed = frozenset(fields)
    for schema, paths in sorted(kinds, key=lambda kind: len(kind[0]), reverse=True):
        for field in schema:
            name = field.name
            # Views as strings: pyarrow has no filter of them.
            kept = current is not None and not pa.types.is_string_view(field.type)
            own = field.type if kept else _wide(field.type)
            known = fields.setdefault(name, pa.field(name, own, metadata=field.metadata))
            kind = _common(known.type, field.type)
            if kind is None:
                raise IncompatibleError(f"{paths[0]}: column {name} is {field.type}, elsewhere {known.type}")
            metadata = known.metadata or (None if name in fixed else field.metadata)
            fields[name] = pa.field(name, known.type if name in fixed else kind, metadata=metadata)
    last = [fields.pop("id")] if "id" in fields else []
    return pa.schema([*fields.values(), *last], metadata=None if current is None else current.metadata)


def _wide(kind: pa.DataType) -> pa.DataType:
    """The type of a results table that holds every value of a type, if there is one."""
    if pa.types.is_dictionary(kind):
        return _wide(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return pa.int64()
    if pa.types.is_floating(kind):
        return pa.float64()
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if any(is_list(kind) for is_list in lists):
        return pa.list_(_wide(kind.value_type))
    return kind


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """A type for the values of both, None where there is none. Whether numbers keep their values is seen from them."""
    if one == other or pa.types.is_null(other):
        return one
    wide = {_wide(one), _wide(other)} - {pa.null()}
    if len(wide) == 1:
        return wide.pop()
    if wide <= {pa.int64(), pa.uint64(), pa.float64()}:
        return pa.float64() if pa.float64() in wide else pa.int64()
    return None


def _require_same_values(found: Stored, path: Path, field: pa.Field, kind: pa.DataType) -> None:
    """Raise IncompatibleError where a file's column cannot be cast without changing a value."""
    with _opened(found, path) as file:
        for i in range(file.num_row_groups if file is not None else 0):
            part = _group(found, path, file, i, [field.name])
            try:
                _ = None if part is None else part.column(field.name).cast(kind)
            except pa.ArrowInvalid as error:
                reason = str(error).splitlines()[0]
                where = f"{path}: column {field.name} is {field.type}, elsewhere {kind}"
                raise IncompatibleError(f"{where} ({reason})") from None
