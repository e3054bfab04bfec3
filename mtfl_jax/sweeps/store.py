"""The results folder: a table that grows part by part.

parts/ holds the rows as Parquet files, each written under a temporary name and renamed, so a kill loses at most the
rows in flight and several processes may write side by side. results.parquet is every row in one file, made when a
sweep ends: those of the parts and those that the file had before. runs/ says of every process what it ran, on what, and
how far it got. `tables` reads and writes the files. weights/ has what is kept of networks, by `kept`.
"""

import contextlib
import json
import math
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mtfl_jax.fields import ConfigError
from mtfl_jax.sweeps import identity, kept, notes, places, tables
from mtfl_jax.sweeps.rows import schema

WRITE_SECONDS = 1.0
"""How long rows wait to be written."""
STORE_SECONDS = 10.0
"""How long they wait, and the notes of how far a process is, where they go to an object store, as requests cost."""


class Memory:
    """Parts kept in memory, for a sweep without a folder."""

    @property
    def waits(self) -> float:
        """Seconds that rows wait before they are added."""
        return WRITE_SECONDS

    def __init__(self) -> None:
        self.parts: list[pa.Table] = []

    keep: tuple[str, ...] = ()

    def append(self, part: pa.Table, networks: pa.Table | None = None) -> None:
        """Add rows."""
        self.parts.append(part)

    def finished(self) -> np.ndarray:
        """Identities of the rows here before the sweep: none."""
        return np.empty(0, np.uint64)

    def room(self) -> int | None:
        """Bytes that can still be added: not known."""
        return None

    def table(self) -> pa.Table:
        """All rows."""
        return pa.concat_tables([schema().empty_table(), *self.parts])


class Folder:
    """A results folder, which the user named by `key`; made where it is to be written. keep: the weights to be kept
    there of every row that is added. Raises ConfigError where it cannot be, or holds what cannot be one table with
    ours.
    """

    def __init__(
        self, path: str | os.PathLike[str], key: str = "folder", *, write: bool = True, keep: Sequence[str] = ()
    ) -> None:
        self.path, self.key, self.keep = places.place(path, key), key, tuple(keep)
        # Where weights are kept, the rows here before, and those whose weights were.
        self._before = self._kept = np.empty(0, np.uint64)
        self._name = uuid.uuid4().hex[:12]
        self._count, self._noted = 0, -math.inf
        try:
            self._stored()
            places.require(self.path)  # Where the store answers.
            if not write:
                return
            if not places.is_remote(self.path):
                for name in (tables.PARTS, "runs", *([kept.FOLDER] if self.keep else [])):
                    places.make(self.path / name)
                with tempfile.TemporaryFile(dir=self.path / tables.PARTS):
                    pass
        except OSError as error:
            raise unwritable(self.path, error, key) from None

    @property
    def waits(self) -> float:
        """Seconds that rows wait before they are written."""
        return STORE_SECONDS if places.is_remote(self.path) else WRITE_SECONDS

    def append(self, part: pa.Table, networks: pa.Table | None = None) -> None:
        """Write rows as one more part, after the networks that they are of, where these are kept."""
        # The process's number tells forks apart.
        name = f"{self._name}-{os.getpid()}-{self._count:06d}.parquet"
        self._count += 1
        with self._written():
            if networks is not None:
                # Of a training that runs again some rows may be there, or were only the networks written.
                networks = kept.lacking(networks, self._kept)
                part = part.filter(pa.array(~np.isin(part.column("id").to_numpy(), self._before)))
                if len(networks):
                    places.make(self.path / kept.FOLDER)
                    kept.write(self.path / kept.FOLDER / name, networks)
            if networks is None or len(part):
                places.make(self.path / tables.PARTS)
                tables.append(self.path / tables.PARTS / name, part)

    def finished(self) -> np.ndarray:
        """Identities of the rows here, sorted; those that an earlier version wrote by their columns. Where weights are
        to be kept, less the rows whose weights are not.
        """
        rows = self._rows()
        if not self.keep:
            return rows
        self._before, self._kept = rows, kept.ids(self.path, self.keep)
        return np.intersect1d(rows, self._kept)

    def room(self) -> int | None:
        """Bytes that can still be written, where that is known."""
        return None if places.is_remote(self.path) else shutil.disk_usage(self.path).free

    def _rows(self) -> np.ndarray:
        with self._one_table():
            found = self._stored()
            parts = tables.distinct(found, ["id", "schema"])
            if not any(identity.earlier(part).any() for part in parts):
                return tables.ids(found)
            ids = [identity.current(part) for part in tables.distinct(found, identity.columns(found.schema))]
            return np.unique(np.concatenate([np.empty(0, np.uint64), *ids]))

    def table(self) -> pa.Table:
        """All rows, each once. Columns of `schema()` first, then those that only files here have, then `id`."""
        with self._one_table():
            found = self._stored()
            return pa.concat_tables([found.schema.empty_table(), *tables.distinct(found)])

    def merge(self) -> Path:
        """Write every row once into results.parquet; its path."""
        with self._one_table(), self._written():
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
            raise ConfigError(self.key, self.path, f"{error}; {allowed}") from None

    def note(self, facts: Mapping[str, Any]) -> None:
        """Say in runs/ what this process runs and how far it is; in an object store not more often than rows."""
        now, ends = time.monotonic(), facts["state"] != notes.RUNS
        if places.is_remote(self.path) and not ends and now - self._noted < self.waits:
            return
        self._noted = now
        text = json.dumps(facts, indent=2) + "\n"
        with self._written():
            tables.whole(self.path / "runs" / f"{self._name}.json", lambda partial: partial.write_text(text))

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Raise ConfigError where a write fails: the disk is full, or a quota, or it has become read-only."""
        try:
            yield
        except OSError as error:
            reason = str(error) if error.errno is None else os.strerror(error.errno)
            what = places.hint(self.path) if places.is_remote(self.path) else "a folder with room that can be written"
            kept = "what was written is kept, and the same command goes on"
            raise ConfigError(self.key, self.path, f"{reason}; allowed: {what}; {kept}") from None


def unwritable(folder: str | os.PathLike[str], error: OSError, key: str = "folder") -> ConfigError:
    """The error of an output folder that cannot be written."""
    return ConfigError(key, folder, f"{error.strerror or error}; allowed: {places.hint(folder)}")
