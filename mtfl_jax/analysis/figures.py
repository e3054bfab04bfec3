"""What the figures of all studies share: how a line looks, curves over seeds, labels, and the files they become.

Colours are Okabe and Ito's; markers and line styles differ too, so that lines can be told apart in grey.
"""

import functools
import io
import weakref
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, NullLocator

from mtfl_jax.analysis import describe
from mtfl_jax.names import GUESSING, LABELS
from mtfl_jax.sweeps import tables

STYLES: Mapping[str, Mapping[str, Any]] = {
    "one_step": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "random_features": {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    "oracle": {"color": "#555555", "marker": "^", "linestyle": ":"},
    "alternating": {"color": "#009E73", "marker": "D", "linestyle": "-"},
    "joint": {"color": "#CC79A7", "marker": "v", "linestyle": "-."},
    "population": {"color": "#E69F00", "marker": "P", "linestyle": (0, (6, 2))},
    "single": {"color": "#56B4E9", "marker": "X", "linestyle": (0, (3, 1))},
}
"""The look of each algorithm, and of one_step on a single task, the same in every figure."""

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555", "#000000")
_MARKERS = "os^DvPX*"
_LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 2)), (0, (6, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (1, 1)))
MOST_LINES = len(_COLOURS)
"""How many lines can be told apart."""

MOST_POINTS = 1000
"""A line of more points, or a map of more cells, is kept as an image, where a file of shapes would grow with it."""
MOST_NUMBERS = 64
"""A map of at most so many cells may have its numbers written in them."""


class Shown(NamedTuple):
    """What an artist shows at each of its places, in the order in which it draws them: of which series, x, the value
    and the ends of its band. `name` is what the values are called, by default as the y axis is.
    """

    series: Sequence[str]
    x: Sequence[object]
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    name: str = ""


SHOWN: MutableMapping[Artist, Shown] = weakref.WeakKeyDictionary()
"""What artists show, of those that do not say it by where they are; a page says it to who points at them."""


def label(name: str) -> str:
    """What an axis or a legend calls a column: its label in `names.LABELS`, else its name in words."""
    return LABELS.get(name, name.replace("_", " "))


def short(text: str) -> str:
    """A value as it stands beside an axis, where a long one would leave no room for the figure."""
    return text if len(text) <= 24 else f"{text[:12]}…{text[-11:]}"


def style(value: object, index: int) -> dict[str, Any]:
    """The look of the line of a value: an algorithm's own, else the index-th; keywords of `Axes.plot`."""
    if isinstance(value, str) and value in STYLES:
        return dict(STYLES[value])
    index %= MOST_LINES
    return {"color": _COLOURS[index], "marker": _MARKERS[index], "linestyle": _LINES[index]}


class Picture(Figure):
    """A figure that a notebook shows, also where it has not been told how."""

    def _repr_png_(self) -> bytes:
        return drawn(self, "png")


def panels(count: int, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure of `count` equal panels, at most `columns` in a row, and its axes in reading order."""
    columns = min(count, columns)
    rows = -(-count // columns)
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Picture(figsize=(3.2 * columns + 0.8 * (columns == 1), 2.9 * rows), layout="constrained")
        found = [figure.add_subplot(rows, columns, place + 1) for place in range(count)]
    return figure, found


def mean_and_error(table: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """Mean of y at each x, and its standard error over the rows there: columns mean, error; index x in order.

    Rows whose y is missing or not finite are left out. A missing x is one more value, the last. The error of a single
    row is 0.
    """
    grouped = _by(table, x, y)
    error = grouped.std() / np.sqrt(grouped.count())
    return pd.DataFrame({"mean": grouped.mean(), "error": error.fillna(0.0)})


def _by(table: pd.DataFrame, x: str, y: str) -> Any:
    """The finite y at each x, none of which is censored."""
    found = pd.DataFrame({x: table[x], "y": describe.exact(table)[y].to_numpy(float, na_value=np.nan)})
    return found[np.isfinite(found["y"])].groupby(x, dropna=False)["y"]


AGGREGATES = ("mean", "median")
"""What seeds are brought to."""
BANDS = ("se", "ci", "quantile", "none")
"""One standard error of the mean, a 95% interval, the quarters, or nothing."""
INTERVAL = 0.95
RESAMPLES = 1000


def summary(table: pd.DataFrame, x: str, y: str, agg: str = "mean", band: str = "se") -> pd.DataFrame:
    """The mean or median of y at each x, and the ends of a band of `BANDS`: columns centre, low, high; index x.

    Rows are left out, and a missing x counts, as in `mean_and_error`. An interval is Student's for a mean, by
    resampling for a median.
    """
    if band == "se":
        found = mean_and_error(table, x, y)
        mean, error = found["mean"], found["error"]
        return pd.DataFrame({"centre": mean, "low": mean - error, "high": mean + error})
    grouped = _by(table, x, y)
    centre = grouped.agg(agg)
    if band == "none":
        return pd.DataFrame({"centre": centre, "low": centre, "high": centre})
    if band == "quantile":
        return pd.DataFrame({"centre": centre, "low": grouped.quantile(0.25), "high": grouped.quantile(0.75)})
    ends = pd.DataFrame([_interval(values.to_numpy(), agg) for _, values in grouped], centre.index, ["low", "high"])
    return pd.DataFrame({"centre": centre, **ends})


def _interval(values: np.ndarray, agg: str) -> tuple[float, float]:
    """A 95% interval of the mean or the median of values; of one value, that."""
    if len(values) < 2:
        return float(values[0]), float(values[0])
    if agg == "mean":
        from scipy.stats import t

        half = t.ppf((1 + INTERVAL) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
        return float(values.mean() - half), float(values.mean() + half)
    drawn = np.random.default_rng(0).choice(values, (RESAMPLES, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    return float(low), float(high)


def curves(
    ax: Axes,
    table: pd.DataFrame,
    x: str,
    y: str,
    *,
    by: str | None = None,
    log: str = "",
    names: Mapping[Any, str] | None = None,
    agg: str = "mean",
    band: str = "se",
    among: pd.DataFrame | None = None,
) -> None:
    """Draw y over seeds against x with a band (`summary`: the mean and one standard error), a line for each value of
    `by`.

    The rows of one x and one `by` must differ in their seed only: raises ValueError where two have the same. Rows whose
    y is missing or not finite are left out. log: which axes are logarithmic: "", "x", "y" or "xy". names: what the
    legend calls values of `by`. An x of text, or one that some rows have no value of, is drawn as points with bars. The
    legend is the caller's (`ax.legend(title=…)`). among: the table that this is a part of, of which each value of `by`
    has its look, and each x its place.
    """
    apart(table, [x] if by is None else [x, by], y)
    every = table if among is None else among
    own = every.index.isin(table.index)
    words = not describe.numeric(every[x]) or bool(every[x].isna().any())
    ticks = describe.called(every[x]) if words else []
    table = table.assign(**{x: describe.codes(every[x])[own]}) if words else table
    lines = np.zeros(len(table), int) if by is None else describe.codes(every[by])[own]
    texts = [None] * bool(len(table)) if by is None else describe.called(every[by])
    for index, text in enumerate(texts):
        rows = table[lines == index]
        if rows.empty:
            continue
        value = None if by is None else rows[by].iloc[0]
        points = summary(rows, x, y, agg, band)
        at = np.array(points.index, float)
        centre, low, high = (points[name].to_numpy() for name in ("centre", "low", "high"))
        look = style(value, index)
        label_of = text if by is None else (names or {}).get(value, text)
        series = [label_of or ""] * len(points)
        if words:
            shift = 0.1 * (index - lines.max() / 2)
            bars = [centre - low, high - centre]
            drawn = ax.errorbar(at + shift, centre, bars, label=label_of, markersize=5, **{**look, "linestyle": "none"})
            SHOWN[drawn.lines[0]] = Shown(series, [ticks[place] for place in points.index], centre, low, high)
            continue
        shade = {"color": look["color"], "alpha": 0.2, "linewidth": 0}
        (line,) = ax.plot(at, centre, label=label_of, markersize=4, **look)
        SHOWN[line] = Shown(series, list(points.index), centre, low, high)
        for artist in (line, ax.fill_between(at, low, high, **shade)):
            artist.set_rasterized(len(at) > MOST_POINTS)
    if words:
        ax.set_xticks(range(len(ticks)), list(map(short, ticks)))
        ax.set_xlim(-0.5, len(ticks) - 0.5)
    if "y" in log:
        ax.set_yscale("log")
        numbers(ax.yaxis)
    if "x" in log:
        log_x(ax, every[x])
    if y in GUESSING:
        _guessing(ax, GUESSING[y])
    ax.set_xlabel(label(x))
    ax.set_ylabel(label(y))
    ax.grid(alpha=0.3)


def through(
    ax: Axes, curve: Callable[[np.ndarray], np.ndarray], column: pd.Series, points: int = 50, **look: Any
) -> None:
    """Draw a function of x, such as a law's `predict`, from the least to the largest number of a column, at points that
    are even in log x. look: keywords of `Axes.plot`.
    """
    x = np.geomspace(float(column.min()), float(column.max()), points)
    ax.plot(x, curve(x), **look)


def heat(
    ax: Axes,
    table: pd.DataFrame,
    x: str,
    y: str,
    value: str,
    *,
    scale: Normalize,
    agg: str = "mean",
    among: pd.DataFrame | None = None,
    written: bool = False,
) -> QuadMesh:
    """Draw a column over seeds at each x and y as a map, grey where there is none; what a bar of colours is made of.

    scale: what colours numbers have. among: as of `curves`. written: small maps have their numbers written in them.
    """
    every = table if among is None else among
    own = every.index.isin(table.index)
    columns, rows = (describe.called(every[name]) for name in (x, y))
    at = pd.DataFrame({"row": describe.codes(every[y])[own], "column": describe.codes(every[x])[own]})
    at["value"] = describe.exact(table)[value].to_numpy(float, na_value=np.nan)
    found = at[np.isfinite(at["value"])].groupby(["row", "column"])["value"].agg(agg)
    grid = np.full((len(rows), len(columns)), np.nan)
    if len(found):
        grid[tuple(np.asarray(found.index.to_list()).T)] = found.to_numpy()
    image = grid.size > MOST_POINTS
    shown = ax.pcolormesh(
        np.ma.masked_invalid(grid), norm=scale, cmap="viridis", edgecolors="none" if image else "face", rasterized=image
    )
    series = [f"{label(y)} {name}" for name in rows for _ in columns]
    SHOWN[shown] = Shown(series, columns * len(rows), grid.ravel(), grid.ravel(), grid.ravel(), label(value))
    ax.set_facecolor("#dddddd")  # What was not measured.
    for side, names in ((ax.xaxis, columns), (ax.yaxis, rows)):
        each = max(1, -(-len(names) // 10))
        side.set_ticks(np.arange(len(names))[::each] + 0.5, list(map(short, names[::each])))
    if written and grid.size <= MOST_NUMBERS:
        for (i, j), number in np.ndenumerate(grid):
            if np.isfinite(number):
                look: dict[str, Any] = {"color": "w" if scale(number) < 0.6 else "k", "fontsize": "x-small"}
                ax.text(j + 0.5, i + 0.5, describe.number(float(number), 2), ha="center", va="center", **look)
    ax.set_xlabel(label(x))
    ax.set_ylabel(label(y))
    return shown


def bar(figure: Figure, shown: ScalarMappable, ax: Axes | Sequence[Axes], name: str, **look: Any) -> None:
    """The bar that says which numbers the colours of panels stand for."""
    drawn = figure.colorbar(shown, ax=ax, label=name, **look)
    if isinstance(shown.norm, LogNorm):
        numbers(drawn.ax.yaxis)


class _Written(LogFormatter):
    """Numbers beside a logarithmic axis as they are written, where matplotlib has powers of ten."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def numbers(axis: Axis) -> None:
    axis.set_major_formatter(_Written())
    axis.set_minor_formatter(_Written(labelOnlyBase=False, minor_thresholds=(1.5, 0.4)))


def _guessing(ax: Axes, value: float) -> None:
    """The line of what guessing gives; a linear axis then begins at 0, or noise about it may be all one sees."""
    ax.axhline(value, color="#999999", linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
    if ax.get_yscale() == "linear":
        ax.set_ylim(-0.03 * value, max(1.1 * value, ax.get_ylim()[1]))
    ax.annotate(
        "guessing",
        (1, value),
        xycoords=("axes fraction", "data"),
        xytext=(0, 1.5),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=6,
        color="#777777",
    )


def apart(table: pd.DataFrame, names: Sequence[str], y: str) -> None:
    """Raise ValueError where the rows of a point do not differ in their seed."""
    if "seed" not in table or len(set(describe.groups(table, [*names, "seed"]))) == len(table):
        return
    kept = [*names, "seed"]
    known = describe.settings(table) if "step" in table else []
    others = [name for name in known if not describe.follows(table, name, kept)]
    what = f"rows of one {', '.join(kept)} differ in {', '.join(others) or 'other columns'}"
    raise ValueError(f"{y} against {names[0]}: {what}; allowed: one row for each")


def log_x(ax: Axes, column: pd.Series) -> None:
    """A logarithmic x axis; with ticks at the values themselves where they are few, as many as there is room for."""
    ax.set_xscale("log")
    ticks = np.sort(column.dropna().unique()).astype(float)
    if len(ticks) <= 12:
        texts = [f"{tick:g}" for tick in ticks]
        every = max(1, -(-len(texts) * max(map(len, texts)) // 28))
        ax.set_xticks(ticks[::-1][::every], texts[::-1][::every])
        ax.xaxis.set_minor_locator(NullLocator())


def alt(figure: Figure) -> str:
    """What a figure shows, for a reader who does not see it."""
    named = [ax for ax in figure.axes if ax.get_xlabel() and ax.get_ylabel()]
    if not named:  # Panels that share their labels.
        return f"{figure.get_supylabel()} against {figure.get_supxlabel()}"
    return "; ".join(f"{ax.get_ylabel()} against {ax.get_xlabel()}" for ax in named)


def svg(figure: Figure) -> bytes:
    """The figure as SVG, the same bytes whenever it is drawn."""
    return drawn(figure, "svg")


def save(figure: Figure, name: str, folder: Path) -> list[Path]:
    """Write NAME.png and NAME.pdf into the folder, the same bytes whenever they are drawn; their paths."""
    paths = [folder / f"{name}.png", folder / f"{name}.pdf"]
    for path in paths:
        tables.whole(path, functools.partial(Path.write_bytes, data=drawn(figure, path.suffix[1:])))
    return paths


def drawn(figure: Figure, kind: str) -> bytes:
    """The figure as a file: png, pdf or svg, the same bytes whenever it is drawn."""
    dated = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    file = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "mtfl_jax", "pdf.fonttype": 42}):
        figure.savefig(file, format=kind, dpi=200, metadata=cast(Any, dated[kind]))
    return file.getvalue()
