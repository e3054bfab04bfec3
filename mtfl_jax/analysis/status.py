"""`mtfl-status`: how far the sweeps of a results folder are, from what their processes noted there."""

import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from mtfl_jax.analysis.command import Parser
from mtfl_jax.sweeps import notes, tables
from mtfl_jax.sweeps.progress import duration, line

SILENT_SECONDS = 120.0
"""A process of another host that has noted nothing for so long may be dead."""


def state(note: Mapping[str, Any], now: float) -> str:
    """What a process does, as far as its note and this host tell."""
    if notes.dead(note):
        return "ended without a word"
    silent = now - note["updated"]
    if note["state"] == "running" and not notes.here(note) and silent > SILENT_SECONDS:
        return f"silent for {duration(silent)}"
    return str(note["state"])


def main() -> None:
    """Entry point `mtfl-status FOLDER`: how far the sweeps in a results folder are."""
    parser = Parser("mtfl-status", "Show how far the sweeps in a results folder are, and what runs there.")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the folder of a sweep")
    folder: Path = parser.parse_args().folder
    found, now = notes.read(folder), time.time()
    if not found:
        parser.error(f"{folder}: no runs there; allowed: the folder of a sweep")
    plainly: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
    console = Console()
    shown = notes.latest(found)
    states = [state(note, now) for note in shown]
    rows, left, running = tables.count(tables.files_of(folder)), sum(map(notes.left, shown)), states.count("running")
    parts = [f"{rows:,} rows", f"{left:,} cells left" if left else "nothing left"]
    parts += [f"{running} {'process runs' if running == 1 else 'processes run'}"] * bool(running)
    console.print(f"{folder}: {', '.join(parts)}", **plainly)
    for note, doing in zip(shown, states, strict=True):
        at = SimpleNamespace(**note, left=notes.left(note) if doing == "running" else 0)
        console.print(f"{doing}: {line(at, note['updated'])} (process {note['pid']} on {note['host']})", **plainly)
        console.print(f"  {' '.join(note['command'])}", style="dim", **plainly)
        for failure in note["failures"]:
            console.print(f"  failed: {failure}", style="red", **plainly)
    if len(found) > len(shown):
        console.print(f"and {len(found) - len(shown)} earlier", **plainly)
