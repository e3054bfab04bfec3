"""`mtfl-status FOLDER`: what a results folder holds, and what the processes are doing that write there.

Imports no jax, so that it answers in a moment.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console
from rich.text import Text

from mtfl_jax.analysis.command import Parser, folder_of
from mtfl_jax.sweeps import notes, places, tables
from mtfl_jax.sweeps.progress import duration, line, several

SILENT_SECONDS = 120.0
"""A running process that has said nothing for so long may be dead."""
SHOWN = 20
"""Processes listed at most, beside those that run; the others are counted."""


def main() -> None:
    """Entry point `mtfl-status`."""
    parser = Parser("mtfl-status", "Show how far the sweeps in a results folder are, and what runs there.")
    parser.add_argument("folder", metavar="FOLDER", type=folder_of, help="the folder of a sweep")
    folder: Path = parser.parse_args().folder
    try:
        found = notes.read(folder)
        rows = tables.count(tables.files_of(folder)) if found else 0
    except OSError as error:
        allowed = places.hint(folder) if places.is_remote(folder) else "the folder of a sweep"
        parser.error(f"{folder}: {error.strerror or error}; allowed: {allowed}")
    except tables.IncompatibleError as error:
        parser.error(f"{error}; allowed: the folder of a sweep")
    if not found:
        parser.error(f"{folder}: no runs there; allowed: the folder of a sweep")
    show(found, rows, Console(soft_wrap=True, highlight=False, markup=False, emoji=False))


def show(found: Sequence[Mapping[str, Any]], rows: int, console: Console) -> None:
    """Print the folder in one line, and then its processes, those that run the last."""
    states = [(notes.state(note), note) for note in found]
    running = [note for said, note in states if said == notes.RUNS]
    others = [(said, note) for said, note in states if said != notes.RUNS]
    if len(found) > 1:
        console.print(summary(found, rows, Counter(said for said, _ in states)))
    else:
        console.print(several(rows, "row"))
    if waiting := not_begun(found):
        console.print(waiting)
    if len(others) > SHOWN:
        console.print(f"… {len(others) - SHOWN} earlier processes")
    for said, note in [*others[-SHOWN:], *((notes.RUNS, note) for note in running)]:
        silent = time.time() - note["updated"]
        left = notes.left(note) if said == notes.RUNS else 0
        far = line(SimpleNamespace(**{**note, "left": left}), note["updated"])
        name = f"silent for {duration(silent)}" if said == notes.RUNS and silent > SILENT_SECONDS else said
        console.print(f"{name}: {far} (process {note['pid']} on {note['host']})")
        for failure in note["failures"]:
            console.print(Text(f"  failed: {failure}", style="red"))


def not_begun(found: Sequence[Mapping[str, Any]]) -> str:
    """How many of the shares of the last run of a grid no process has begun, in a line; empty where none are known."""
    parts = [str(note["config"]["sweep"].get("part") or "1/1").partition("/") for note in notes.latest(found)]
    totals = {of for _, _, of in parts}
    if len(totals) != 1 or not (total := totals.pop()).isdigit():
        return ""
    left = int(total) - len({k for k, _, _ in parts})
    return f"{left} of {total} shares have not begun" if left > 0 else ""


def summary(found: Sequence[Mapping[str, Any]], rows: int, states: Mapping[str, int]) -> str:
    """The whole folder: its rows, the cells of every grid as its last run counts them, of which grids may have some in
    common, and the processes by state.
    """
    last = notes.latest(found)
    cells = sum(note["cells"] for note in last)
    done = cells - sum(map(notes.left, last))
    grids = len(set(map(notes.grid, last)))
    of = f" of {grids} grids" * (grids > 1)
    counted = ", ".join(f"{count} {said}" for said, count in states.items())
    return (
        f"{several(rows, 'row')}, {done}/{cells} cells{of}, {len(found)} process{'es' * (len(found) != 1)}: {counted}"
    )
