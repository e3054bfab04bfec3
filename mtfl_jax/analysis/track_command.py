"""`mtfl-track FOLDER`: what a results folder holds, to a tracker; also while sweeps write there.

It is a process of its own, of the lowest priority, so that no sweep waits for it.
"""

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mtfl_jax import ends
from mtfl_jax.analysis import describe, folders, status, trackers
from mtfl_jax.analysis.command import Parser, folder_of
from mtfl_jax.sweeps import notes, places, tables
from mtfl_jax.sweeps.progress import several

HELP = (
    "Send the rows of a results folder to a tracker: a run for each training, its settings as parameters, what was "
    "measured as metrics by step. Rows that were sent before are not sent again."
)
LOOK_SECONDS = 2.0
"""How often new rows are looked for."""
PIECE = 2048
"""Rows that are sent at a time."""
LEAST = 19
"""The lowest priority."""


def main() -> None:
    """Entry point `mtfl-track`."""
    parser = Parser("mtfl-track", HELP)
    add = parser.add_argument
    add("folder", metavar="FOLDER", type=folder_of, help="the folder of a sweep")
    add("--to", metavar="TRACKER", required=True, help=", ".join(trackers.TRACKERS))
    add(
        "--out",
        metavar="PLACE",
        help="tensorboard: a folder, default FOLDER/tensorboard; wandb: a folder; mlflow: a URI",
    )
    add("--project", metavar="NAME", help="of wandb, or the experiment of mlflow; default: the folder's name")
    add("--most", metavar="N", default=str(trackers.MOST), help=f"trainings to send at a time; default {trackers.MOST}")
    add("--follow", action="store_true", help="go on until no process runs there any more")
    add("--again", action="store_true", help="also what was sent before")
    given = parser.parse_args()
    os.nice(LEAST)
    if given.to not in trackers.TRACKERS:
        parser.error(f"--to={given.to}: allowed: {', '.join(trackers.TRACKERS)}")
    if not given.most.isdigit() or not int(given.most):
        parser.error(f"--most={given.most}: allowed: an integer from 1")
    folder: Path = given.folder
    try:
        if not tables.files_of(folder) and not notes.read(folder):
            parser.error(f"{folder}: no runs there; allowed: the folder of a sweep")
        tracker = _tracker(parser, given, folder)
        with ends.listening(
            "stopped at once; the same command goes on", "stops when what is being sent is sent", name="mtfl-track"
        ) as stop:
            rows = _send(folder, tracker, given, stop)
    except OSError as error:
        allowed = places.hint(folder) if places.is_remote(folder) else "a folder of a sweep, that can be written"
        parser.error(f"{error.filename or folder}: {error.strerror or error}; allowed: {allowed}")
    except tables.IncompatibleError as error:
        parser.error(f"{error}; allowed: the folder of a sweep")
    print(f"{several(rows, 'row')} sent to {tracker.where}" + " (--again sends those that were before)" * (not rows))
    if stop.came:
        sys.exit(128 + stop.came)


def _tracker(parser: Parser, given: Any, folder: Path) -> trackers.Tracker:
    """The tracker asked for."""
    most, project = int(given.most), given.project or folder.absolute().name
    try:
        if given.to == "tensorboard":
            if given.out is None and places.is_remote(folder):
                parser.error("--out: allowed: a folder of this machine")
            out = Path(given.out) if given.out else folder / "tensorboard"
            return trackers.tensorboard(out, most=most)
        if given.to == "mlflow":
            return trackers.mlflow(project, tracking_uri=given.out, most=most)
        where = {} if given.out is None else {"dir": given.out}
        return trackers.wandb(project, most=most, **where)
    except ImportError as error:
        parser.error(f"--to={given.to}: {error}")
    except OSError:
        raise
    except Exception as error:  # What a library raises where a server is not there.
        parser.error(f"--to={given.to}: {type(error).__name__}: {' '.join(str(error).split())}")


def _send(folder: Path, tracker: trackers.Tracker, given: Any, stop: ends.Stop) -> int:
    """Send what is new in a folder, and what comes, where that is to be followed: how many rows."""
    target = hashlib.blake2b(tracker.where.encode(), digest_size=6).hexdigest()
    memory = folder / "tracked" / f"{given.to}-{target}.parquet"
    sent = np.empty(0, np.uint64) if given.again or not places.there(memory) else _sent(memory)
    rows, looked = 0, set[Path]()
    with contextlib.closing(tracker):
        while True:
            # Asked before the files are listed: what a process wrote before it ended is among them.
            runs = given.follow and _goes_on(folder)
            new = [path for path in tables.files_of(folder) if path not in looked]
            looked.update(new)
            for piece in _pieces(new, sent, folders.axes_of(notes.read(folder, warn=False))):
                if stop.came:
                    return rows
                own = piece["id"].to_numpy(np.uint64)[tracker(piece)]
                rows, sent = rows + len(own), np.union1d(sent, own)
                _keep(memory, sent)
            until = time.monotonic() + LOOK_SECONDS
            while runs and not stop.came and time.monotonic() < until:
                time.sleep(0.1)
            if not runs or stop.came:
                return rows


def _keep(memory: Path, sent: np.ndarray) -> None:
    places.make(memory.parent)
    tables.whole(memory, lambda partial: pq.write_table(pa.table({"id": sent}), partial))


def _sent(memory: Path) -> np.ndarray:
    """Identities of the rows that were sent before."""
    with memory.open("rb") as file:
        return np.asarray(pq.read_table(file).column("id").to_numpy())


def _goes_on(folder: Path) -> bool:
    """Whether a process writes there, or a share of a sweep has not begun."""
    found = notes.read(folder, warn=False)
    return any(notes.state(note) == notes.RUNS for note in found) or bool(status.not_begun(found))


def _pieces(files: Sequence[Path], sent: np.ndarray, axes: Sequence[str]) -> Iterator[pd.DataFrame]:
    """The rows of files, less those that were sent."""
    for table in tables.distinct(tables.stored(files)) if files else ():
        rows = tables.frame(table.filter(pa.array(~np.isin(table.column("id").to_numpy(), sent))))
        rows.attrs["axes"] = axes or [name for name in describe.varying(rows) if name != "step"]
        for start in range(0, len(rows), PIECE):
            yield rows.iloc[start : start + PIECE]
