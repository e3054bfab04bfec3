"""The command `mtfl-fit`: a law fitted to a table of anyone's."""

import argparse
import shutil
import sys
import textwrap
from typing import Any

import pandas as pd

from mtfl_jax.analysis import crossings, describe, fits
from mtfl_jax.analysis.columns import chosen
from mtfl_jax.analysis.command import Parser, add_extensions, load_extensions, read
from mtfl_jax.analysis.models import MODELS

HELP = (
    "Fit a law to the columns of a table, with intervals by resampling seeds and a held-out extrapolation. Rows whose "
    "status says that they diverged are left out. The exit status is 0 where the data support the law, 1 where they do "
    "not (it says why), 2 for a bad argument or table."
)
_OPTIONS = {"TABLE": "TABLE", "at_most": "--at-most", "curve": "--y", "error": "--crossing", "by": "--x"}
"""Where arguments of the functions have other names than the command's."""


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
    add("--censored", metavar="COLUMN", help="true where the true y is at least y; a column censored is used unasked")
    add("--at-most", metavar="COLUMN", help="true where the true y is at most y; a column at_start is used unasked")
    add(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="only these rows (null: those without); may be given again",
    )
    add("--crossing", metavar="COLUMN=EPSILON", help="fit the y at which the mean of COLUMN falls to EPSILON")
    add("--bootstraps", type=int, default=400, metavar="N", help="resamples (default 400)")
    add("--level", type=float, default=0.95, metavar="P", help="of the intervals (default 0.95)")
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
    exponents = [name for name in MODELS[fit.model].exponents if name in fit.intervals]
    if exponents and all(fit.intervals[name][0] <= 0 <= fit.intervals[name][1] for name in exponents):
        return f"supported, and so is no dependence at all: the interval of {', '.join(exponents)} holds 0"
    return "supported"


def pooled(table: pd.DataFrame, options: argparse.Namespace) -> list[str]:
    """What else varies among the rows of a results table that are fitted as rows of one law, a line each."""
    if not {"seed", "step", "status", "diverged_step"} <= set(table.columns):
        return []
    table = table[describe.ok(table)]
    known = [name for name in (*options.x.split(","), *([options.y] if options.crossing else [])) if name in table]
    others = [name for name in describe.axes(table) if not describe.follows(table, name, known)]
    return [f"fitted as one: {name} = {describe.values(table[name])}; --where keeps one of them" for name in others]


def _fit(table: pd.DataFrame, options: argparse.Namespace) -> fits.Fit:
    names = tuple(options.x.split(","))
    shared: dict[str, Any] = {"model": options.model, "bootstraps": options.bootstraps, "level": options.level}
    if options.crossing is not None:
        if options.censored or options.at_most:
            raise ValueError(f"crossing={options.crossing}: allowed: without --censored and --at-most")
        error, _, text = options.crossing.partition("=")
        try:
            epsilon = float(text)
        except ValueError:
            raise ValueError(f"crossing={options.crossing}: allowed: COLUMN=NUMBER") from None
        return crossings.fit_crossings(
            table, options.x, curve=options.y, error=error, epsilon=epsilon, seed=options.seed, **shared
        )
    censored = options.censored or ("censored" if "censored" in table else None)
    at_most = options.at_most or ("at_start" if "at_start" in table else None)
    x = names if len(names) > 1 else options.x
    return fits.fit(table, x, options.y, seed=options.seed, censored=censored, at_most=at_most, **shared)


def main() -> None:
    """Entry point `mtfl-fit`."""
    parser = _parser()
    options = parser.parse_args()
    load_extensions(parser, options.extensions)
    try:
        table = chosen(read(options.table), options.where)
        fit = _fit(table, options)
    except ValueError as error:
        key, _, rest = str(error).partition("=")
        parser.error(f"{_OPTIONS.get(key, f'--{key}')}={rest}")
    width = min(100, max(20, shutil.get_terminal_size().columns))
    *found, verdict = lines(fit)
    for line in [*found, *pooled(table, options), verdict]:
        indent = len(line) - len(line.lstrip())
        print(textwrap.fill(line, width, subsequent_indent=" " * (indent + 2)))
    sys.exit(0 if fit.supported else 1)
