"""How a sweep shows itself while it runs: a live display, or plain lines where there is no terminal."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from mtfl_jax import ends

PLAIN_SECONDS = 5.0
"""Seconds between lines where there is no terminal."""


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 8s, 3m05s, 2h10m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    return f"{whole // 60}m{whole % 60:02d}s" if whole < 3600 else f"{whole // 3600}h{whole // 60 % 60:02d}m"


def several(count: int, what: str) -> str:
    """A number of things, in words."""
    return f"{count:,} {what}{'s' * (count != 1)}"


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


def console(stream: IO[str], **options: Any) -> Console:
    """A console of a stream, which goes on where nobody reads any more, and prints what is between colons as it is."""
    return Console(file=cast(IO[str], ends.Steady(stream)), emoji=False, **options)


@contextmanager
def display(console: Console) -> Iterator[Callable[[Any], None]]:
    """Show every progress it hears of: live on a terminal or in a notebook, else a line at most every PLAIN_SECONDS."""
    if console.is_jupyter:
        from IPython.display import display as shown

        handle = shown({"text/plain": "planning"}, raw=True, display_id=True)

        def in_place(progress: Any) -> None:
            done, text = progress.skipped + progress.done, line(progress)
            bar = f'<progress value="{done}" max="{progress.cells}"></progress> {text}'
            handle.update({"text/plain": text, "text/html": bar}, raw=True)

        yield in_place
        return
    if console.is_terminal:
        with Progress(BarColumn(), TextColumn("{task.description}"), console=console) as bar:
            task = bar.add_task("planning")
            yield lambda progress: bar.update(
                task, total=progress.cells, completed=progress.skipped + progress.done, description=line(progress)
            )
        return
    last, said = 0.0, ""

    def plain(progress: Any) -> None:
        nonlocal last, said
        now, text = time.time(), line(progress)
        if text != said and (now - last >= PLAIN_SECONDS or not progress.left):
            last, said = now, text
            console.print(text, soft_wrap=True, highlight=False)

    yield plain


def facts(progress: Any, state: str) -> dict[str, Any]:
    """A progress as plain values for runs/."""
    return {"state": state, "updated": time.time(), **dataclasses.asdict(progress)}
