"""Results folders as their users name them: the table of one, the sweeps below another, and the newest of those."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mtfl_jax.analysis import describe
from mtfl_jax.fields import ConfigError
from mtfl_jax.names import LATEST, NO_STUDY
from mtfl_jax.sweeps import kept, notes, places, tables

OUTPUTS = "outputs"
"""Where `mtfl` makes folders that are not named."""
DEPTH = 3
"""So many folders below one are looked into for sweeps: a study, a sweep, and its jobs."""
_OWN = (tables.PARTS, "runs", "report", kept.FOLDER)
"""Folders within that of a sweep."""


def load(
    folder: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    where: Sequence[tuple[str, str, Any]] | None = None,
    tidy: bool = False,
) -> pd.DataFrame:
    """The table of a results folder (or of a results.parquet), every row once; of a folder with sweeps below it, what
    these are, the newest first.

    folder: `latest` is the newest sweep below outputs/. columns: those to read, default all. where: conditions that
    rows must meet, as of `pandas.read_parquet`: [("d", "==", 64), ("num_tasks", "in", [1, 256])]. tidy: of the settings
    only those that vary, with the seed, step and status, and of the measurements those that were made. Only what is
    asked for is held, and the rows' identities. A file that cannot be read is named in a warning. A column that a row's
    file lacks is missing in it; attrs["labels"] has the columns' labels, attrs["folder"] the folder's name. Raises
    FileNotFoundError where there are no results, ValueError for an unknown column, IncompatibleError (a ValueError) for
    files that cannot be one table.

    Sweeps have the columns folder, study, state (running, stopped, failed or finished; missing where there are no
    notes), rows, cells and left (asked for, and still to run, as the processes noted that ran them, summed over grids),
    axes (settings that vary) and updated.
    """
    if tidy and columns is not None:
        raise ValueError(f"tidy=True: columns={list(columns)} says which; allowed: one of the two")
    place = named(folder)
    try:
        table = tables.load(place, columns=columns, where=where)
    except FileNotFoundError:
        found = [] if tidy or columns is not None or where is not None else list(sweeps_below(place))
        if not found:
            raise
        return listed(found)
    table.attrs["folder"] = str(place)
    return tidied(table) if tidy else table


def weights(row: Mapping[str, Any] | pd.Series, folder: str | os.PathLike[str] | None = None) -> dict[str, np.ndarray]:
    """What was kept (`keep=[W,A,b]`) of the network of a row of a table: W (width, d), b (width,) and A (num_tasks,
    width), those of them that were, as they were measured.

    folder: where the table is from; default: as the row says, of a table that `load` or `sweep` gave. Raises
    ConfigError (a ValueError) where the row has no `id`, and where nothing was kept of it: `train(**row)` computes its
    weights anew.

        mtfl_jax.weights(mtfl_jax.load("latest").iloc[0])["W"]
    """
    identity = row.get("id")
    if not isinstance(identity, int | np.integer):
        raise ConfigError("row", f"without an id ({identity!r})", "allowed: a row of mtfl_jax.load(FOLDER), whole")
    place = folder if folder is not None else getattr(row, "attrs", {}).get("folder")
    if place is None:
        raise ConfigError("folder", None, "allowed: the folder that the row is from, which it does not say")
    if not (found := kept.find(named(place), int(identity))):
        said = f"nothing of it was kept in {place}; mtfl_jax.train(**row) computes its weights anew"
        raise ConfigError("id", identity, said)
    return found


def tidied(table: pd.DataFrame) -> pd.DataFrame:
    """A results table less the settings that are the same in all rows, measurements that no row has, and identities."""
    vary, always = describe.varying(table), ("seed", "step", "status")
    other = [name for name in describe.settings(table) if name not in vary and name not in always]
    empty = [name for name in describe.measurements(table) if not table[name].notna().any()]
    dropped = [*other, *empty, "id", *(["diverged_step"] if not table["diverged_step"].notna().any() else [])]
    return table.drop(columns=dropped)


def named(folder: str | os.PathLike[str], key: str = "folder") -> Path:
    """The folder that a name stands for: for `latest` the newest sweep below OUTPUTS, which is said on stderr, unless
    something is called so in the working folder. Raises ConfigError for a name that cannot be one, FileNotFoundError
    where there is no latest.
    """
    place = places.place(folder, key)
    if str(folder) != LATEST or places.there(place):
        return place
    found = list(sweeps_below(Path(OUTPUTS)))
    if not found:
        raise FileNotFoundError(f"{LATEST}: no sweeps below {OUTPUTS}/; give the folder that mtfl printed")
    newest = max(found, key=_updated)
    print(f"{LATEST}: {newest}", file=sys.stderr)
    return newest


def sweeps_below(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The folders below one that hold results or notes of runs."""
    for child in places.below(folder) if depth else ():
        if child.name in _OWN:
            continue
        own = {place.name for place in places.below(child)}
        begun = bool(own & {tables.PARTS, "runs"}) or places.there(child / tables.RESULTS)
        if begun and (tables.files_of(child) or notes.read(child, warn=False)):
            yield child
        yield from sweeps_below(child, depth - 1)


def _updated(folder: Path) -> float:
    """When a sweep was last written, in seconds."""
    found = notes.read(folder, warn=False)
    return max((note["updated"] for note in found), default=0.0) or max(map(places.changed, tables.files_of(folder)))


def listed(sweeps: Sequence[Path]) -> pd.DataFrame:
    """What sweeps are, as `load` has it, the newest first."""
    rows = [_row(sweep) for sweep in sweeps]
    table = pd.DataFrame(rows).astype(dict.fromkeys(("rows", "cells", "left"), "Int64"))
    table["updated"] = pd.to_datetime(table["updated"], unit="s", utc=True).dt.floor("s")
    return table.sort_values("updated", ascending=False, kind="stable", ignore_index=True)


def _row(sweep: Path) -> dict[str, Any]:
    found = notes.read(sweep, warn=False)
    last = notes.latest(found)
    try:
        rows = tables.count(tables.files_of(sweep))
    except tables.IncompatibleError:
        rows = None
    return {
        "folder": str(sweep),
        "study": str(found[-1]["config"]["study"]) if found else NO_STUDY,
        "state": state_of(found) if found else None,
        "rows": rows,
        "cells": sum(note["cells"] for note in last) if found else None,
        "left": sum(map(notes.left, last)) if found else None,
        "axes": ", ".join(axes_of(last) if found else describe.varying(tables.load(sweep))),
        "updated": _updated(sweep),
    }


def axes_of(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The axes of the grids of notes."""
    sweeps = [note["config"]["sweep"] for note in found]
    axes = [own for sweep in sweeps for own in (sweep["axes"], *(sweep.get("grids") or ()))]
    return list(dict.fromkeys(name for own in axes for name in own or ()))


def state_of(found: Sequence[Mapping[str, Any]]) -> str:
    """What the processes of a folder do, in a word: running where one does, else how those ended that ran last."""
    if any(notes.state(note) == notes.RUNS for note in found):
        return notes.RUNS
    ends = {notes.state(note) for note in notes.latest(found)}
    return "failed" if "failed" in ends else "stopped" if ends - {"finished"} else "finished"
