"""The command `mtfl-plot`: a figure of one or several results folders."""

from pathlib import Path

from mtfl_jax.analysis import figures, plots
from mtfl_jax.analysis.command import PICTURES, Parser, add_where, keep, read

HELP = (
    "Draw a figure of one or several results folders. What is not said is chosen from what varies; rows that differ in "
    "anything but their seed are never averaged. The caption is printed."
)


def main() -> None:
    """Entry point `mtfl-plot`."""
    parser = Parser("mtfl-plot", HELP)
    add = parser.add_argument
    add("tables", nargs="+", metavar="TABLE", help="a results folder, or a CSV or Parquet file; several are overlaid")
    add("--x", metavar="COLUMN", help="across; default: the numbers that take most values")
    add("--y", metavar="COLUMN", help="up; default: the main measurement; a setting makes it a map")
    add("--color", metavar="COLUMN", help="a line for each value; of a map what its colours are")
    add("--facet", metavar="COLUMN", help="a panel for each value")
    add("--kind", help=f"{', '.join(plots.KINDS)}")
    add(
        "--log",
        metavar="LETTERS",
        help="logarithmic: of x, y, c (colour); default: those that span a decade",
    )
    add("--agg", default="mean", help=f"over seeds: {', '.join(figures.AGGREGATES)}")
    add("--band", help="one standard error (se), a 95%% interval (ci), the quarters (quantile), or none")
    add("--fit", metavar="LAW", help="a law of mtfl-fit over each line, its exponents in the legend")
    add_where(parser, "only these rows; may be given again")
    add("--size", default="page", help=f"{', '.join(plots.SIZES)}")
    add("--out", default="plot.pdf", metavar="FILE", help=f"default plot.pdf; ends in {', '.join(PICTURES)}")
    given = vars(parser.parse_args())
    names, out = given.pop("tables"), Path(given.pop("out"))
    if out.suffix not in PICTURES:
        parser.error(f"--out={out}: allowed: a name that ends in {', '.join(PICTURES)}")
    try:
        rows = {name: read(name) for name in names}
        figure = plots.plot(next(iter(rows.values())) if len(rows) == 1 else rows, **given)
        keep("out", out, figures.drawn(figure, out.suffix[1:]))
    except ValueError as error:
        key, _, rest = str(error).partition("=")
        parser.error(f"--{key}={rest}" if key in (*given, "out") else str(error))
    print(figure.get_label())
    print(f"wrote {out}")
