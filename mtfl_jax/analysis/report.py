"""What `mtfl` prints of a table."""

import re
from typing import Any

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mtfl_jax.analysis import describe
from mtfl_jax.analysis.describe import number
from mtfl_jax.analysis.findings import VERDICTS, Findings, Listing
from mtfl_jax.sweeps.progress import duration, several

_PLAIN = r"[-−+]?[\d.]+(?:e[-+]?\d+)?%?"
_OF = r"(?: \(\d+ of \d+\))?"
_NUMBER = re.compile(rf"(?:{_PLAIN}(?: ± {_PLAIN}| \[{_PLAIN}, {_PLAIN}\])?(?: ?[a-zA-Z]{{1,3}})?|[-−]?inf|nan|—){_OF}")
COLOURS = {True: "green", False: "red", None: "yellow"}


def one_row(row: pd.Series) -> Table:
    """A row of results as name and value, the config before the measurements, without what does not apply."""
    out = Table("name", "value", title="one cell", title_justify="left")
    for name, value in row.items():
        if name == "step":
            out.add_section()
        if isinstance(value, np.ndarray) or not pd.isna(value):
            out.add_row(Text(str(name)), Text(number(value)))
    return out


def many_rows(table: pd.DataFrame) -> Table:
    """Several rows as a table of what tells them apart and the main measurements, at most 40 rows; with their status
    where some are not ok.
    """
    settings = describe.telling(table)
    measured = [name for name in describe.main_measurements(table, describe.MAIN) if table[name].notna().any()]
    status = [] if describe.ok(table).all() else ["status"]
    out = Table(*settings, *status, *measured)
    cells = [describe.texts(table[name].head(40), table[name]) for name in settings]
    cells += [list(map(number, table[name].head(40))) for name in [*status, *measured]]
    for row in zip(*cells, strict=True):
        out.add_row(*map(Text, row))
    if len(table) > 40:
        out.caption = f"the first 40 of {len(table)} rows"
    return out


def plan(found: Any) -> RenderableType:
    """What a grid would run (`api.Forecasts`): a line a program, what compiling has shown of each, and the totals."""
    numbered = ["#"] * found.compiled
    out = _programs(*numbered, "program", "cells", "trainings", "padded sizes", "run")
    shown = _programs("#", "program", "at once", "memory", "HLO lines", "lower", "compile")
    for number_, item in enumerate(found.left, 1):
        program, bucket = item.bucket.program, item.bucket
        families = program.tasks or " ".join(program.families)
        what = f"{program.algorithm}{' by moments' if program.groups else ''} {program.data} {families}"
        sizes = " ".join(f"{name} {size}" for name, size in item.sizes.items())
        cells = [what, f"{len(bucket.cells):,}", f"{len(bucket):,}", sizes, duration(item.seconds)]
        out.add_row(*map(Text, [*[str(number_)] * found.compiled, *cells]))
        shown.add_row(*map(Text, [str(number_), what, *_compiled(item)]))
    left, seconds = found.cells - found.done, sum(item.seconds for item in found.left)
    trainings, flops = sum(len(item.bucket) for item in found.left), sum(item.flops for item in found.left)
    lines = [f"{found.done:,} of {several(found.cells, 'cell')} there before"] * bool(found.done)
    if left:
        lines += [
            f"{several(left, 'cell')} to run: {several(trainings, 'training')}, {flops / 1e12:.3g} TFLOP,"
            f" {several(len(found.left), 'program')}",
            f"{_seconds_to_compile(found)} {duration(seconds)} to run (the planner's model of two CPU cores)",
        ]
        lines += [f"a device may give {found.limit / 2**30:.3g} GiB"] * found.compiled
    parts: list[RenderableType] = [Text("what would run", style="bold"), out] if left else []
    if left and found.compiled:
        parts += [Text("what compiling shows", style="bold"), shown]
    for number_, item in enumerate(found.left, 1):
        lines += _measured(number_, item)
    failed = [Text(f"failed: {item.problem}", style="red") for item in found.left if item.problem]
    return Group(*parts, *map(Text, lines), *failed)


def _programs(*columns: str) -> Table:
    """An empty table of programs."""
    out = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        out.add_column(name, justify="left" if name in ("program", "padded sizes") else "right", overflow="fold")
    return out


def _compiled(item: Any) -> list[str]:
    """What compiling has shown of a program (`api.Forecast`): how many trainings a device takes at once, memory, lines,
    and seconds of lowering and compiling.
    """
    if item.memory is None:
        return ["—"] * 5
    return [
        _at_once(item.chunk),
        f"{item.memory / 2**20:.3g} MiB",
        f"{item.lines:,}",
        _tenths(item.lowering),
        _tenths(item.compiling),
    ]


def _at_once(chunk: Any) -> str:
    """How many trainings a device takes at once, by which kernel if not plainly, and on how many devices if several."""
    over = f" on {chunk.spread} devices" if chunk.spread > 1 else ""
    return f"{chunk.batch:,}{'' if chunk.kernel == 'plain' else f' {chunk.kernel}'}{over}"


def _measured(number_: int, item: Any) -> list[str]:
    """What was tried of a program, the fastest first, in a line."""
    rates = [f"{_at_once(one.chunk)} at once {one.rate:.3g}" for one in item.tried]
    return [f"program {number_}, trainings a second and device: {', '.join(rates)}"] if rates else []


def _seconds_to_compile(found: Any) -> str:
    if not found.compiled:
        return f"about {duration(found.compile_seconds)} to compile where nothing is cached and"
    lowering, compiling = (sum(getattr(item, name) or 0 for item in found.left) for name in ("lowering", "compiling"))
    return f"{_tenths(lowering)} to lower, {_tenths(compiling)} to compile or to find in the cache, about"


def _tenths(seconds: float) -> str:
    """Seconds with tenths, which matter while they are few."""
    return f"{seconds:.1f}s" if seconds < 9.95 else duration(seconds)


def rows(table: pd.DataFrame) -> RenderableType:
    """The rows of a table that no study speaks for."""
    table = describe.measured(table)
    shown = one_row(table.iloc[0]) if len(table) == 1 else many_rows(table)
    return Group(shown, *(Text(said, style="yellow") for said in describe.guessing(table)))


def findings(found: Findings) -> RenderableType:
    """What a study found: its listings, then its statements with their verdicts."""
    said = [
        Text.assemble((VERDICTS[statement.supported], COLOURS[statement.supported]), f": {statement.text}")
        for statement in found.statements
    ]
    return Group(Text(found.title, style="bold"), *map(listing, found.listings), *said)


def listing(listed: Listing) -> Table:
    """A listing for the terminal; columns of numbers are right-justified."""
    look: dict[str, Any] = {"box": SIMPLE_HEAD, "show_edge": False, "padding": 0}
    out = Table(title=Text(listed.title), title_justify="left", **look)
    for name in listed.table.columns:
        justify: Any = "right" if holds_numbers(listed.table[name]) else "left"
        out.add_column(Text(str(name)), justify=justify, overflow="fold")
    for cells in listed.table.itertuples(index=False):
        out.add_row(*(Text(number(cell)) for cell in cells))
    return out


def holds_numbers(column: pd.Series) -> bool:
    """Whether every cell shows a number, perhaps with its error or unit, or nothing."""
    return all(_NUMBER.fullmatch(number(cell)) for cell in column)
