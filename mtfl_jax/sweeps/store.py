"""The results folder: a table that grows part by part.

parts/ holds the rows as Parquet files, each written under a temporary name and renamed, so a kill loses at most the
rows in flight and several processes may write side by side. results.parquet is the same rows in one file, made when
a sweep ends; runs/ says of every process what it ran, on what, and how far it got.
"""

import json
import os
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtfl_jax.fields import ConfigError
from mtfl_jax.sweeps import identity
from mtfl_jax.sweeps.rows import schema
from mtfl_jax.sweeps.tables import RESULTS, distinct, files_of, read, whole


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
        ids = [identity.current(part) for _, part in read(files_of(self.path), None, None)]
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
