"""What `mtfl` prints of a table."""

import re
from collections.abc import Sequence
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
from mtfl_jax.analysis.plain import MAIN

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
    settings, measured = describe.telling(table), describe.main_measurements(table, MAIN)
    status = [] if describe.ok(table).all() else ["status"]
    out = Table(*settings, *status, *measured)
    cells = [describe.texts(table[name].head(40), table[name]) for name in settings]
    cells += [list(map(number, table[name].head(40))) for name in [*status, *measured]]
    for row in zip(*cells, strict=True):
        out.add_row(*map(Text, row))
    if len(table) > 40:
        out.caption = f"the first 40 of {len(table)} rows"
    return out


def plan(grid: Any, forecasts: Sequence[Any], limit: int) -> Table:
    """What a grid would run: a line a program, and the totals."""
    out = Table(title="what would run", title_justify="left")
    for name in ("algorithm", "cells", "trainings", "padded sizes", "memory", "arithmetic", "time"):
        out.add_column(name, justify="left" if name in ("algorithm", "padded sizes") else "right")
    for item in forecasts:
        program, bucket = item.bucket.program, item.bucket
        sizes = f"d {program.d} r {program.r} width {program.width} T {program.num_tasks} n {program.n1},{program.n2}"
        flops, seconds = f"{item.flops / 1e12:.3g} TFLOP", f"{item.seconds:.3g} s"
        families = program.tasks or " ".join(program.families)
        named = f"{program.algorithm}{' by moments' if program.groups else ''} {program.data} {families}"
        memory = f"{item.memory / 2**20:.3g} MiB"
        out.add_row(named, str(len(bucket.cells)), str(len(bucket)), sizes, memory, flops, seconds)
    flops, seconds = sum(item.flops for item in forecasts), sum(item.seconds for item in forecasts)
    trainings = sum(len(item.bucket) for item in forecasts)
    out.caption = (
        f"{len(grid)} cells, {trainings} trainings, {len(forecasts)} programs to compile, {flops / 1e12:.3g} TFLOP,"
        f" about {seconds:.3g} s on the planner's model machine; a device may give {limit / 2**30:.3g} GiB"
    )
    return out


def rows(table: pd.DataFrame) -> RenderableType:
    """The rows of a table that no study speaks for."""
    table = describe.measured(table)
    return one_row(table.iloc[0]) if len(table) == 1 else many_rows(table)


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
