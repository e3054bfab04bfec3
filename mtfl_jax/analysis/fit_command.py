"""The command `mtfl-fit`: a law fitted to a table of anyone's."""

import argparse
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import RenderableType
from rich.text import Text

from mtfl_jax.analysis import fits, laws, report
from mtfl_jax.analysis.columns import chosen
from mtfl_jax.analysis.command import PICTURES, Parser, add_extensions, add_where, keep, load_extensions, read
from mtfl_jax.analysis.models import FREE, MODELS
from mtfl_jax.sweeps import progress

HELP = (
    "Fit a law to the columns of a table, with intervals by resampling seeds and a held-out extrapolation. Rows whose "
    "status says that they diverged are left out, and rows of a results table that differ in more than seed and x are "
    "fitted as one only where that is said. The exit status is 0 where the data support every law, 1 where they do not "
    "(it says why), 2 for a bad argument or table."
)
_OPTIONS = {"TABLE": "TABLE", "at_most": "--at-most", "curve": "--y", "error": "--crossing"}
"""Where arguments of the functions have other names than the command's."""
OUT = (".csv", ".tex")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="mtfl-fit", description=HELP)
    add = parser.add_argument
    add("table", metavar="TABLE", help="a CSV or Parquet file, or a results folder of mtfl")
    add(
        "--x",
        required=True,
        metavar="COLUMN[,COLUMN]",
        help="what the law is of; as many columns as the model has variables",
    )
    add("--y", required=True, metavar="COLUMN", help="what it predicts; positive")
    add("--model", default="power", help=f"{', '.join(MODELS)}, or auto, the one that extrapolates best")
    add("--seed", default="seed", metavar="COLUMN", help="resampled; rows are where there is no column seed")
    add(
        "--censored",
        metavar="COLUMN",
        help="true where the true y is at least y; unasked a column Y_censored, or censored",
    )
    add("--at-most", metavar="COLUMN", help="true where the true y is at most y; a column at_start is used unasked")
    add_where(parser, "only these rows (null: those without); may be given again")
    add("--by", metavar="COLUMN[,COLUMN]", help="a fit for each of their values, in one table")
    add(
        "--pool",
        metavar="COLUMN[,COLUMN]",
        help="settings that vary and are fitted as one; where another varies, nothing is fitted",
    )
    add("--crossing", metavar="COLUMN=EPSILON", help="fit the y at which the mean of COLUMN falls to EPSILON")
    add(
        "--delta",
        type=float,
        metavar="D",
        help="where the loss turns linear in log y (default 1.345 residual scales)",
    )
    add("--breaks", metavar="N", help="of broken_power (default 1), or auto, as many as extrapolate best")
    add("--free", metavar="NAME[,NAME]", help=f"parameters of broken_power beside: {', '.join(FREE)}")
    add("--bootstraps", type=int, default=400, metavar="N", help="resamples (default 400)")
    add("--level", type=float, default=0.95, metavar="P", help="of the intervals (default 0.95)")
    add("--out", metavar="FILE", help="keep the fits: .csv has every number, .tex is a tabular with booktabs' rules")
    add("--plot", metavar="FILE", help=f"draw the points, the fits, what was held out; ends in {', '.join(PICTURES)}")
    add_extensions(parser)
    return parser


def lines(fit: fits.Fit) -> list[str]:
    """What the command prints of a fit."""
    names = fit.x if isinstance(fit.x, str) else " or ".join(fit.x)
    width = max(map(len, fit.parameters))
    errors = ", ".join(f"{name} {fits.factor(error)}" for name, error in fit.held_out.items())
    return [
        fit.formula(),
        *(f"  {name:{width}}  {fit.value(name)}" for name, value in fit.parameters.items() if value == value),
        f"in brackets: {fit.level:.0%} intervals, by resampling {fit.resampled()}",
        f"points: {fit.points}; at least: {fit.censored}, at most: {fit.at_most}",
        *([fit.left_out()] if fit.diverged else []),
        f"held-out error, of the largest {names}: {errors}",
        _verdict(fit),
    ]


def _verdict(fit: fits.Fit) -> str:
    if not fit.supported:
        return f"not supported: {fit.why}"
    exponents = [name for name in fit.law.exponents if name in fit.intervals]
    if exponents and all(fit.intervals[name][0] <= 0 <= fit.intervals[name][1] for name in exponents):
        return f"supported, and so is no dependence at all: the interval of {', '.join(exponents)} holds 0"
    return "supported"


def of_groups(groups: Sequence[laws.Group], by: Sequence[str], width: int) -> Iterator[RenderableType]:
    """What the command prints of several fits."""
    about, intervals = laws.said_of(groups, by)
    cells = laws.texts_of(groups, by)
    table, left = report.narrow(cells, len(by), width)
    yield from [Text(about)] * bool(about)
    yield table
    yield from [Text(f"in brackets: {intervals}")] * bool(intervals)
    if left:
        yield Text(f"no room in {width} columns for {', '.join(left)}; --out table.csv has them", style="yellow")
    for group, values in zip(groups, cells[list(by)].to_numpy(), strict=True):
        named = ", ".join(f"{name} = {value}" for name, value in zip(by, values, strict=True))
        if group.fit is not None and group.fit.diverged:
            yield Text(f"{named}: {group.fit.left_out()}")
        if not group.supported:
            yield Text(f"{named}: not supported: {group.why}", style="yellow")


def _crossing(options: argparse.Namespace) -> tuple[str, float] | None:
    if options.crossing is None:
        return None
    if options.censored or options.at_most:
        raise ValueError(f"crossing={options.crossing}: allowed: without --censored and --at-most")
    error, _, text = options.crossing.partition("=")
    try:
        return error, float(text)
    except ValueError:
        raise ValueError(f"crossing={options.crossing}: allowed: COLUMN=NUMBER") from None


def _pooled(table: pd.DataFrame, options: argparse.Namespace, **named: Sequence[str]) -> dict[str, str]:
    return laws.pooled(table, options.x.split(","), options.y, crossing=options.crossing is not None, **named)


def _groups(table: pd.DataFrame, options: argparse.Namespace, by: Sequence[str]) -> list[laws.Group]:
    """The fits that are asked for. Raises ValueError, also where one would be of rows of several settings."""
    if differ := _pooled(table, options, by=by, pool=_listed(options.pool)):
        found, first = " and ".join(f"{name} = {values}" for name, values in differ.items()), next(iter(differ))
        each = ",".join([*by, *(name for name in differ if name not in options.x.split(","))])
        ways = f"--where {first}=VALUE keeps one, --by {each} fits each, --pool {','.join(differ)} takes all for one"
        raise ValueError(f"x={options.x}: rows of one fit differ in {found}; allowed: {ways}")
    names = tuple(options.x.split(","))
    given: dict[str, Any] = {"bootstraps": options.bootstraps, "level": options.level, "seed": options.seed}
    given |= {"delta": options.delta, "breaks": _breaks(options.breaks), "free": _listed(options.free)}
    crossing = _crossing(options)
    if crossing is None:
        given |= {"censored": options.censored, "at_most": options.at_most}
    x = names if len(names) > 1 else options.x
    return laws.fit_each(table, x, options.y, options.model, by=by, crossing=crossing, **given)


def _breaks(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isdecimal() else text


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def _write(out: Path, groups: Sequence[laws.Group], by: Sequence[str]) -> None:
    """The fits as a file. Raises ValueError where it cannot be written."""
    text = laws.tex_of(groups, by) if out.suffix == ".tex" else laws.numbers_of(groups, by).to_csv(index=False)
    keep("out", out, text.encode())


def _draw(plot: Path, groups: Sequence[laws.Group], by: Sequence[str]) -> str:
    """The fits as a figure, and its caption; none where there is no law. Raises ValueError where it cannot be."""
    from mtfl_jax.analysis import figures, fit_figure

    if all(group.fit is None for group in groups):
        return ""
    figure = fit_figure.draw(groups, by)
    keep("plot", plot, figures.drawn(figure, plot.suffix[1:]))
    return str(figure.get_label())


def main() -> None:
    """Entry point `mtfl-fit`."""
    parser = _parser()
    options = parser.parse_args()
    by, out = _listed(options.by), None if options.out is None else Path(options.out)
    if out is not None and out.suffix not in OUT:
        parser.error(f"--out={out}: allowed: a name that ends in {', '.join(OUT)}")
    plot = None if options.plot is None else Path(options.plot)
    if plot is not None and plot.suffix not in PICTURES:
        parser.error(f"--plot={plot}: allowed: a name that ends in {', '.join(PICTURES)}")
    load_extensions(parser, options.extensions)
    try:
        table = chosen(read(options.table), options.where)
        groups = _groups(table, options, by)
        if out is not None:
            _write(out, groups, by)
        caption = None if plot is None else _draw(plot, groups, by)
    except ValueError as error:
        key, _, rest = str(error).partition("=")
        parser.error(f"{_OPTIONS.get(key, f'--{key}')}={rest}")
    columns = shutil.get_terminal_size().columns
    if by:
        console = progress.console(sys.stdout, highlight=False, markup=False, width=columns)
        for part in of_groups(groups, by, columns):
            console.print(part)
    elif groups[0].fit is not None:
        *found, verdict = lines(groups[0].fit)
        together = [f"fitted as one: {name} = {values}" for name, values in _pooled(table, options).items()]
        width = min(100, max(20, columns))
        for line in [*found, *together, verdict]:
            indent = len(line) - len(line.lstrip())
            print(textwrap.fill(line, width, subsequent_indent=" " * (indent + 2)))
    if out is not None:
        print(f"wrote {out}")
    if plot is not None:
        print(textwrap.fill(caption or "no figure: there is no law to draw", min(100, max(20, columns))))
        if caption:
            print(f"wrote {plot}")
    sys.exit(0 if all(group.supported for group in groups) else 1)
