"""Weights kept beside a table: weights/*.parquet of a results folder. Imports no jax.

A file has a row for each network: `ids`, the identities of the rows of the table that are of it (of every n_down and
probe), and of each kind of weights that is kept its entries, row by row, and its shape. Files are written whole, before
the rows of the table that they are of, and are named like these rows' part.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtfl_jax.names import WEIGHTS
from mtfl_jax.sweeps import places, tables

FOLDER = "weights"
"""Where they are in a results folder."""
GROUP_NETWORKS = 16
"""Networks that a reader decodes at a time."""

_UNREADABLE = (pa.ArrowException, OSError)


def table(ids: Sequence[np.ndarray], networks: Sequence[Mapping[str, np.ndarray]], names: Sequence[str]) -> pa.Table:
    """Networks as a file has them; ids[i] are the rows that networks[i] is of."""

    def lists(values: Sequence[np.ndarray]) -> pa.Array:
        offsets = np.concatenate([[0], np.cumsum([len(own) for own in values])])
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(np.concatenate(values)))

    columns = {"ids": lists(ids)}
    for name in names:
        own = [np.asarray(network[name]) for network in networks]
        columns[name] = lists([leaf.reshape(-1) for leaf in own])
        columns[_shape(name)] = lists([np.asarray(leaf.shape, np.int32) for leaf in own])
    return pa.table(columns)


def _shape(name: str) -> str:
    return f"{name}_shape"


def _ids(networks: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The identities in a table of networks, and which network each is of."""
    found = networks.column("ids").combine_chunks()
    of = np.repeat(np.arange(len(found)), np.diff(found.offsets.to_numpy()))
    return found.flatten().to_numpy(), of


def lacking(networks: pa.Table, there: np.ndarray) -> pa.Table:
    """The networks some of whose rows are not among the identities `there` (sorted)."""
    ids, of = _ids(networks)
    wanted = np.zeros(len(networks), bool)
    wanted[of[~np.isin(ids, there)]] = True
    return networks.filter(pa.array(wanted))


def write(path: Path, networks: pa.Table) -> None:
    """Write networks as a file, whole or not at all."""
    tables.whole(path, lambda to: pq.write_table(networks, to, row_group_size=GROUP_NETWORKS, write_page_checksum=True))


def files_of(folder: Path) -> list[Path]:
    """The files of a results folder that have networks; hidden names are being written."""
    return [path for path in places.listed(folder / FOLDER, ".parquet") if not path.name.startswith(".")]


def ids(folder: Path, names: Sequence[str]) -> np.ndarray:
    """Identities of the rows all of whose weights of these names are kept, sorted."""
    found = []
    for _, file in _opened(folder):
        if set(names) <= set(file.schema_arrow.names):
            found.append(_ids(file.read(columns=["ids"]))[0])
    return np.unique(np.concatenate([np.empty(0, np.uint64), *found]))


def find(folder: Path, identity: int) -> dict[str, np.ndarray]:
    """What is kept of a row's network, by name; empty where nothing is."""
    weights: dict[str, np.ndarray] = {}
    for _, file in _opened(folder):
        own, of = _ids(file.read(columns=["ids"]))
        at = of[own == np.uint64(identity)]
        names = [name for name in WEIGHTS if name in file.schema_arrow.names]
        # All of one training where one file has most: two that ran apart are the same to rounding only.
        if not len(at) or len(names) <= len(weights):
            continue
        group, place = divmod(int(at[0]), GROUP_NETWORKS)
        row = file.read_row_group(group, columns=[column for name in names for column in (name, _shape(name))])
        for name in names:
            shape = row.column(_shape(name))[place].as_py()
            weights[name] = row.column(name)[place].values.to_numpy().reshape(shape)
    return weights


def remove(folder: Path, rows: np.ndarray) -> None:
    """Take the networks out that are of no rows but those of these identities; a file is replaced in one step."""
    gone = np.unique(rows)
    for path, file in _opened(folder):
        networks = file.read()
        kept = _of_others(networks, gone)
        if not len(kept):
            places.remove(path)
        elif len(kept) < len(networks) or not kept.column("ids").equals(networks.column("ids")):
            write(path, kept)


def _of_others(networks: pa.Table, gone: np.ndarray) -> pa.Table:
    """The networks without those identities, less those that are of no other rows."""
    own, of = _ids(networks)
    left = ~np.isin(own, gone)
    counts = np.bincount(of[left], minlength=len(networks))
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int64())
    fewer = pa.LargeListArray.from_arrays(offsets, pa.array(own[left]))
    return networks.set_column(0, "ids", fewer).filter(pa.array(counts > 0))


def mend(folder: Path) -> list[Path]:
    """Move aside the files that cannot be read whole; those."""
    damaged = []
    for path in files_of(folder):
        try:
            with pq.ParquetFile(_source(path), page_checksum_verification=True) as file:
                for i in range(file.num_row_groups):
                    file.read_row_group(i)
        except _UNREADABLE:
            tables.move_aside(path)
            damaged.append(path)
    return damaged


def _opened(folder: Path) -> Iterator[tuple[Path, pq.ParquetFile]]:
    """The files that can be opened; another is named in a warning."""
    for path in files_of(folder):
        try:
            with pq.ParquetFile(_source(path), page_checksum_verification=True) as file:
                yield path, file
        except FileNotFoundError:
            continue  # Another process has just taken it away.
        except _UNREADABLE as error:
            reason = (str(error).splitlines() or ["no reason given"])[0]
            warnings.warn(
                f"{path}: left out, it cannot be read ({reason});"
                f" mtfl-clean {places.quoted(folder)} --damaged moves it aside",
                stacklevel=2,
            )


def _source(path: Path) -> Any:
    """What a file is read from; of an object only the parts that are asked for."""
    if not places.is_remote(path):
        return path
    with places.reached(path):
        return path.open("rb")
