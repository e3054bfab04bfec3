"""What `mtfl` prints of a table."""

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mtfl_jax.analysis import describe, plain
from mtfl_jax.analysis.describe import number
from mtfl_jax.analysis.findings import VERDICTS, Findings, Listing
from mtfl_jax.sweeps.progress import duration, several

_PLAIN = r"[-−+]?[\d.]+(?:e[-+]?\d+)?%?"
_OF = r"(?: \(\d+ of \d+\))?"
_NUMBER = re.compile(rf"(?:{_PLAIN}(?: ± {_PLAIN}| \[{_PLAIN}, {_PLAIN}\])?(?: ?[a-zA-Z]{{1,3}})?|[-−]?inf|nan|—){_OF}")
COLOURS = {True: "green", False: "red", None: "yellow"}

FEW_ROWS = 10
"""So many rows are shown one by one; of more, where some differ in their seed only, the means."""
MOST_ROWS = 40
"""A table in the terminal has no more rows than this."""

_NEVER, _NAMES, _SPACES = "(?!)", r"(?<=[A-Za-z]_)(?=\w)|(?<=[a-z]\+)(?=[a-z])", r"(?<= )"
_WORDS = f"{_NAMES}|{_SPACES}"
_BREAKS = (
    (_NEVER, _NEVER, _NEVER),
    (_WORDS, _NEVER, _NEVER),
    (_WORDS, _NAMES, r"(?<= )(?=\()"),
    (_WORDS, _WORDS, r"(?<= )(?=[(±])"),
)
"""Where a column's name, the text of a setting and that of a measurement may go on in another line, the less room there
is: never within a number.
"""


def one_row(row: pd.Series) -> Group:
    """A row of results as name and value, the config before the measurements, without what does not apply."""
    out = _names_and_values()
    for name, value in row.items():
        if name == "step":
            out.add_section()
        if isinstance(value, np.ndarray) or not pd.isna(value):
            out.add_row(Text(str(name)), Text(number(value)))
    return Group(Text("One cell"), out)


def one_setting(table: pd.DataFrame) -> Group:
    """Rows that differ in their seed only as name and value: their setting, then the means of what was measured."""
    out = _names_and_values()
    for name in describe.settings(table):
        if name == "step":
            out.add_section()
        if table[name].notna().any():
            out.add_row(Text(name), Text(describe.values(table[name])))
    for name in describe.measurements(table):
        if describe.numeric(table[name]) and table[name].notna().any():
            out.add_row(Text(name), Text(str(describe.estimate(table[name]))))
    return Group(Text(f"One setting: means of {describe.seeds(table)} ± standard error"), out)


def _names_and_values() -> Table:
    out = Table()
    for name in ("name", "value"):
        out.add_column(name, overflow="fold")
    return out


def many_rows(table: pd.DataFrame, width: int) -> Group:
    """Several rows by what tells them apart and the main measurements, in a table that is not wider than `width`, and
    what it leaves out: of few, or of one seed each, the rows with their status where some are not ok, else the means
    over seeds at each setting.
    """
    measured, axes = plain.main(table), describe.axes(table)
    axes, lost, said = (
        describe.moving(axes, describe.sampled(table, axes)),
        int((~describe.ok(table)).sum()),
        list[str](),
    )
    settings = int(describe.groups(table, axes).max()) + 1
    if measured and len(table) > FEW_ROWS and settings < len(table):
        found, fixed = plain.means(table, axes, measured, MOST_ROWS), len(axes)
        said += [f"{lost} of {len(table)} rows diverged and count in no mean"] * bool(lost)
    else:
        told, status, head = describe.telling(table), ["status"] * bool(lost), table.head(MOST_ROWS)
        texts = {name: describe.texts(head[name], table[name]) for name in told}
        texts |= {name: list(map(number, head[name])) for name in [*status, *measured]}
        part = f"the first {MOST_ROWS} of {len(table)} rows" if len(table) > MOST_ROWS else ""
        found, fixed = Listing(part, pd.DataFrame(texts)), len(told) + len(status)
    out, left = narrow(found.table, fixed, width)
    said += describe.left_out(table, measured)
    said += [f"no room in {width} columns for {', '.join(left)}"] * bool(left)
    said += ["results.parquet has all of them"] * bool(left or "the first" in found.title)
    title = [Text(found.title)] * bool(found.title)
    return Group(*title, out, *(Text(text, style="yellow") for text in said))


def narrow(table: pd.DataFrame, fixed: int, width: int) -> tuple[Table, list[str]]:
    """Texts in a table that is not wider than `width`, and the names of the columns that it has no room for: of the
    last, never of the first `fixed`. Texts go on in another line where they may, and never within a number; the
    first columns become one, where not even they have room.
    """
    columns = {str(name): list(map(str, table[name])) for name in table}
    names = list(columns)
    for count in range(len(names), min(fixed, len(names) - 1), -1):
        for (head, setting, measured), gap in itertools.product(_BREAKS, (2, 1)):
            shown = [
                _Column(name, columns[name], head, setting if place < fixed else measured)
                for place, name in enumerate(names[:count])
            ]
            widths = [column.least() for column in shown]
            if sum(widths) + gap * (count - 1) <= width:
                return _laid_out(shown, widths, gap), names[count:]
    told = zip(*(columns[name] for name in names[:fixed]), strict=True)
    joined = [" ".join(f"{name}={text}" for name, text in zip(names, texts, strict=False)) for texts in told]
    shown = [_Column("setting", joined, _WORDS, _SPACES)]
    shown += [_Column(name, columns[name], _WORDS, _BREAKS[-1][-1]) for name in names[fixed:][:1]]
    widths = [column.least() for column in shown]
    widths[0] = max(1, width - sum(own + 1 for own in widths[1:]))
    return _laid_out(shown, widths, 1), names[fixed + 1 :]


class _Column(NamedTuple):
    """A column's name and texts, and where they may break."""

    name: str
    texts: Sequence[str]
    head: str
    breaks: str

    def least(self) -> int:
        """The least width that it can have."""
        pieces = [
            *re.split(self.head, self.name),
            *(part for text in self.texts for part in re.split(self.breaks, text)),
        ]
        return max(len(piece.strip()) for piece in pieces)


def _laid_out(columns: Sequence[_Column], widths: Sequence[int], gap: int) -> Table:
    """A table of columns, each of its width."""
    out = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, gap - 1, 0, 0), pad_edge=False)
    for column, room in zip(columns, widths, strict=True):
        justify: Any = "right" if all(map(_NUMBER.fullmatch, column.texts)) else "left"
        out.add_column(Text(_wrapped(column.name, column.head, room)), justify=justify, overflow="fold")
    for texts in zip(*(column.texts for column in columns), strict=True):
        cells = zip(texts, columns, widths, strict=True)
        out.add_row(*(Text(_wrapped(text, column.breaks, room)) for text, column, room in cells))
    return out


def _wrapped(text: str, breaks: str, width: int) -> str:
    """A text in lines that are not wider, where it can be broken so."""
    lines = [""]
    for piece in re.split(breaks, text):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def plan(found: Any) -> RenderableType:
    """What a grid would run (`Forecasts`): a line a program, what compiling has shown of each, and the totals."""
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
        lines += [f"{found.kept / 2**20:,.4g} MiB of weights to keep"] * bool(found.kept)
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
    """What compiling has shown of a program (`Forecast`): how many trainings a device takes at once, memory, lines,
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


def rows(table: pd.DataFrame, width: int) -> RenderableType:
    """The rows of a table that no study speaks for, in a table that is not wider than `width`."""
    whole = describe.measured(table, bounds=True)
    table = describe.exact(whole)
    if len(table) == 1:
        # Beside what says that it is censored.
        shown: RenderableType = one_row(whole.iloc[0])
    elif len(table) > FEW_ROWS and not describe.axes(table) and describe.ok(table).any():
        shown = one_setting(table)
    else:
        shown = many_rows(table, width)
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
