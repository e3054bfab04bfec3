"""`mtfl-clean FOLDER`: take rows out of a results folder, that they are made again, or files that cannot be read.

Imports no jax, so that it answers in a moment.
"""

import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mtfl_jax.analysis.columns import chosen
from mtfl_jax.analysis.command import Parser, add_where, folder_of
from mtfl_jax.records import guess
from mtfl_jax.sweeps import kept, notes, places, tables
from mtfl_jax.sweeps.progress import several

HELP = (
    "Take rows out of a results folder; the command that made them then makes them again. Without --yes it only says "
    "how many they are."
)
SILENT_SECONDS = 3600.0
"""A process of another host that has said nothing for so long does not run."""


def main() -> None:
    """Entry point `mtfl-clean`."""
    parser = Parser("mtfl-clean", HELP)
    add = parser.add_argument
    add("folder", metavar="FOLDER", type=folder_of, help="the folder of a sweep")
    add_where(parser, "the rows that go (null: those without); given again, those that meet all")
    add("--yes", action="store_true", help="do it")
    add(
        "--damaged",
        action="store_true",
        help="move aside the files that cannot be read whole, and keep their other rows",
    )
    given = parser.parse_args()
    folder: Path = given.folder
    if given.damaged == bool(given.where):
        parser.error("--damaged or --where=COLUMN=VALUE: allowed: one of them")
    try:
        if not tables.files_of(folder):
            parser.error(f"{folder}: no results there; allowed: the folder of a sweep")
        if runs := running(folder):
            parser.error(
                f"{folder}: a sweep runs there, {runs}; allowed: when it has ended, see"
                f" mtfl-status {places.quoted(folder)}"
            )
        for line in mend(folder) if given.damaged else clean(folder, given.where, given.yes):
            print(line)
    except OSError as error:
        parser.error(f"{folder}: {error.strerror or error}; allowed: {places.hint(folder)}")
    except tables.IncompatibleError as error:
        parser.error(f"{error}; allowed: the folder of a sweep")
    except ValueError as error:
        key, _, rest = str(error).partition("=")
        parser.error(f"--{key}={rest}")


def clean(folder: Path, conditions: Sequence[str], yes: bool) -> Iterator[str]:
    """Take the rows out that meet every COLUMN=VALUE, or only say how many they are. Raises ValueError."""
    known = tables.stored(tables.files_of(folder)).schema.names
    for condition in conditions:
        if (name := condition.partition("=")[0]) not in known:
            raise ValueError(
                f"where={condition}: allowed: COLUMN=VALUE, columns {', '.join(known)}{guess(name, known)}"
            )
    names = dict.fromkeys(condition.partition("=")[0] for condition in conditions)
    table = tables.load(folder, columns=list(dict.fromkeys([*names, "id"])))
    gone = chosen(table, conditions)
    if not yes:
        yield f"{len(gone):,} of {several(len(table), 'row')} would go; --yes removes them"
        return
    ids = gone["id"].to_numpy(np.uint64)
    # Weights first: what is left of a row without them is a row, of weights without a row nothing is found.
    kept.remove(folder, ids)
    left = tables.remove(folder, ids)
    yield f"removed {len(gone):,} of {several(len(table), 'row')}; the command that made them makes them again"
    if left:
        how = f"mtfl-clean {places.quoted(folder)} --damaged moves such aside"
        yield f"{several(len(left), 'file')} cannot be read whole: {how}"
    if places.there(folder / "report" / "index.html"):
        yield f"the report is that of before; mtfl-report {places.quoted(folder)} makes it again"


def mend(folder: Path) -> Iterator[str]:
    """Move the files aside that cannot be read whole, each of which is named in a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*: left out, it cannot be read")
        found = [*tables.mend(folder), *kept.mend(folder)]
    lost = "the command that made their rows makes again what is lost"
    yield f"{several(len(found), 'file')} moved aside; {lost}" if found else "no file is damaged"


def running(folder: Path) -> str:
    """Which process writes into a folder, as far as its note and this host say; empty where none does."""
    for note in notes.read(folder):
        if notes.state(note) == notes.RUNS and time.time() - note["updated"] < SILENT_SECONDS:
            return f"process {note['pid']} on {note['host']}"
    return ""
