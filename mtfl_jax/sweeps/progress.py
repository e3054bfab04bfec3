"""How a sweep shows itself while it runs: a live display, plain lines where there is no terminal, and `mtfl-status`."""

import dataclasses
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

SILENT_SECONDS = 120.0
"""A running process that has said nothing for so long may be dead."""
PLAIN_SECONDS = 5.0
"""Seconds between lines where there is no terminal."""


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 8s, 3m05s, 2h10m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    return f"{whole // 60}m{whole % 60:02d}s" if whole < 3600 else f"{whole // 3600}h{whole // 60 % 60:02d}m"


def line(progress: Any, now: float | None = None) -> str:
    """Cells done, cells a second, time to go, and compile and run seconds apart."""
    elapsed = max((time.time() if now is None else now) - progress.started, 1e-9)
    rate = progress.done / elapsed
    parts = [f"{progress.skipped + progress.done}/{progress.cells} cells"]
    parts += [f"{progress.skipped} there before"] * bool(progress.skipped)
    parts += [f"{rate:.3g}/s", f"{duration(progress.left / rate)} to go"] if progress.done and progress.left else []
    parts += [f"compile {duration(progress.compile_seconds)}", f"run {duration(progress.run_seconds)}"]
    parts += [f"{progress.diverged} rows diverged"] * bool(progress.diverged)
    parts += [f"{len(progress.failures)} buckets failed"] * bool(progress.failures)
    return ", ".join(parts)


@contextmanager
def display(console: Console) -> Iterator[Callable[[Any], None]]:
    """Show every progress it hears of: live on a terminal, else a line at most every PLAIN_SECONDS."""
    if console.is_terminal:
        with Progress(BarColumn(), TextColumn("{task.description}"), console=console) as bar:
            task = bar.add_task("planning")
            yield lambda progress: bar.update(
                task, total=progress.cells, completed=progress.skipped + progress.done, description=line(progress)
            )
        return
    last = [0.0]

    def plain(progress: Any) -> None:
        now = time.time()
        if now - last[0] >= PLAIN_SECONDS or not progress.left:
            last[0] = now
            console.print(line(progress), soft_wrap=True, highlight=False)

    yield plain


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], int]]:
    """Ctrl-C or SIGTERM asks the sweep to stop after its chunk: gives a function that says which signal came, else 0.

    A second signal ends the process as usual.
    """
    came = [0]
    before: dict[signal.Signals, Any] = {}

    def hear(number: int, frame: FrameType | None) -> None:
        came[0] = number
        for name, handler in before.items():
            signal.signal(name, handler)

    try:
        for name in (signal.SIGINT, signal.SIGTERM):
            before[name] = signal.signal(name, hear)
    except ValueError:
        pass  # Not the main thread, which alone may handle signals.
    try:
        yield lambda: came[0]
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def facts(progress: Any, state: str) -> dict[str, Any]:
    """A progress as plain values for runs/."""
    return {"state": state, "updated": time.time(), **dataclasses.asdict(progress)}


def status() -> None:
    """Entry point `mtfl-status FOLDER`: what the processes of a results folder are doing."""
    console = Console()
    plainly: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        console.print("usage: mtfl-status FOLDER   shows how far the sweeps in a results folder are", highlight=False)
        sys.exit(0 if sys.argv[1:] in (["-h"], ["--help"]) else 2)
    files = sorted((Path(sys.argv[1]) / "runs").glob("*.json"), key=lambda path: path.stat().st_mtime)
    if not files:
        print(f"mtfl-status: {sys.argv[1]}: no runs there; allowed: the folder of a sweep", file=sys.stderr)
        sys.exit(2)
    for path in files:
        run = json.loads(path.read_text())
        state, process = run["state"], f"process {run['pid']} on {run['host']}"
        silent = time.time() - run["updated"]
        if state == "running" and silent > SILENT_SECONDS:
            state = f"silent for {duration(silent)}"
        run["left"] = run["cells"] - run["skipped"] - run["done"] if state == "running" else 0
        console.print(f"{state}: {line(SimpleNamespace(**run), run['updated'])} ({process})", **plainly)
        for failure in run["failures"]:
            console.print(f"  failed: {failure}", style="red", **plainly)
