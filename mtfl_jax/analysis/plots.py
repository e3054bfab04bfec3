"""A figure of any table: lines over a setting, a map of two settings, points of two measurements, all settings side by
side. What is not said is chosen from what varies, and rows that differ in anything but their seed are never averaged.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from mtfl_jax.analysis import describe, figures, fits, folders
from mtfl_jax.analysis.columns import chosen, require
from mtfl_jax.records import guess
from mtfl_jax.sweeps import tables


class Size(NamedTuple):
    """Inches across, points of the text, and how many panels stand beside each other."""

    width: float
    font: float
    panels: int


KINDS = ("line", "heat", "scatter")
SIZES = {"column": Size(3.4, 8, 2), "page": Size(7.0, 9, 3), "slide": Size(10.0, 14, 3)}
"""A column and a page of a paper, and a slide."""
MOST_PANELS = 12
MOST_SETTINGS = 200
"""Settings side by side are at most so many lines."""
FOLDER = "folder"
"""The setting that tells several tables apart."""

Tables = pd.DataFrame | Mapping[str, pd.DataFrame] | str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A table, tables by name, or the folders of sweeps."""


Panels = Sequence[tuple[Axes, pd.DataFrame]]
"""Axes, and the rows that each is of."""


class How(NamedTuple):
    """How columns are drawn, as `plot` has it."""

    log: str
    agg: str
    band: str
    fit: str | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a figure is of: the columns that its parts are of, and its rows."""

    table: pd.DataFrame
    whole: pd.DataFrame
    """The same rows, and perhaps others, with the values that are censored, which a law counts as such."""
    kind: str
    x: str
    y: str
    color: str | None
    facet: str | None
    notes: Sequence[str] = ()
    """What was left out of it, in sentences."""

    @property
    def measured(self) -> str:
        """What is averaged over seeds, or would be."""
        return str(self.color) if self.kind == "heat" else self.y


def plot(
    table: Tables,
    *,
    x: str | None = None,
    y: str | None = None,
    color: str | None = None,
    facet: str | None = None,
    kind: str | None = None,
    log: str | None = None,
    agg: str = "mean",
    band: str | None = None,
    fit: str | None = None,
    size: str = "page",
    where: Sequence[str] | str = (),
) -> Figure:
    """A figure of a table; its caption is `figure.get_label()`. Everything may be left out.

    table: rows, rows by name, or the folders of sweeps, of which several are told apart as `folder`. x, y, color,
    facet: columns. kind: `line` (y over seeds against x, a line for each color), `heat` (color over seeds at each x and
    y), or `scatter` (a point a row). A facet is a panel for each value. log: which scales are logarithmic, of x, y and
    c; by default those that span a decade. agg: `mean` or `median` over seeds; band: `se` (one standard error), `ci`
    (a 95% interval), `quantile` (the quarters) or `none`. fit: a law of `mtfl-fit`, for each line. size: column, page
    or slide. where: "COLUMN=VALUE", rows to keep. Raises ValueError, which begins with the argument and its value.

        mtfl_jax.plot("out/a", x="n2", y="num_tasks", color="subspace_distance", facet="d").savefig("fig.pdf")
    """
    for key, value, allowed in (
        ("kind", kind, (None, *KINDS)),
        ("agg", agg, figures.AGGREGATES),
        ("band", band, (None, *figures.BANDS)),
        ("size", size, tuple(SIZES)),
    ):
        _require(key, value, allowed)
    where = [where] if isinstance(where, str) else where
    for condition in where:
        if not isinstance(condition, str):
            raise ValueError(f"where={condition}: allowed: COLUMN=VALUE")
    if set(log or "") - set("xyc"):
        raise ValueError(f"log={log}: allowed: letters of xyc")
    plan = planned(gathered(table), x=x, y=y, color=color, facet=facet, kind=kind, where=where)
    return draw(plan, log=log, agg=agg, band=band, fit=fit, size=size)


def draw(
    plan: Plan,
    *,
    log: str | None = None,
    agg: str = "mean",
    band: str | None = None,
    fit: str | None = None,
    size: str = "page",
) -> Figure:
    """The figure of a plan, as `plot` has it."""
    band = band or ("se" if agg == "mean" else "quantile")
    if band == "se" and agg != "mean":
        raise ValueError(f"band={band}: allowed with agg={agg}: ci, quantile, none")
    if fit is not None and plan.kind != "line":
        raise ValueError(f"fit={fit}: allowed with kind=line")
    for letter, name in (("x", plan.x), ("y", plan.y), ("c", plan.color)):
        if letter in (log or "") and name is not None and not _positive(plan.table[name]):
            raise ValueError(f"log={log}: {name} has no positive numbers; allowed: letters of columns that have some")
    look = SIZES[size]
    with mpl.rc_context({"font.size": look.font, "axes.spines.top": False, "axes.spines.right": False}):
        figure, panels = _panels(plan, look)
        by_kind = {"line": _lines, "heat": _maps, "scatter": _points}[plan.kind]
        by_kind(plan, figure, panels, How(ratios(plan) if log is None else log, agg, band, fit))
        _named(figure, panels, plan, look)
    figure.set_label(caption(plan, agg, band))
    return figure


def _positive(column: pd.Series) -> bool:
    return describe.numeric(column) and bool((column.astype(float) > 0).any())


def beside(plan: Plan, measured: Sequence[str]) -> Figure:
    """The lines of a plan for several measurements, a panel for each; its caption is `figure.get_label()`."""
    figure, panels = figures.panels(len(measured), columns=2 if len(measured) == 4 else 3)
    for ax, name in zip(panels, measured, strict=True):
        log = ratios(dataclasses.replace(plan, y=name))
        figures.curves(ax, plan.table, plan.x, name, by=plan.color, log=log)
    if plan.color is not None:
        panels[0].legend(title=plan.color, fontsize=7, title_fontsize=8)
    seeds = _seeds(plan.table)
    means = "One seed." if seeds == "one seed" else f"Means of {seeds}; bands and bars are one standard error."
    lines = f"Against {plan.x}{f', a line for each {plan.color}' if plan.color else ''}."
    figure.set_label(" ".join([lines, means, *plan.notes, *describe.left_out(plan.table, measured)]))
    return figure


def parallel(table: pd.DataFrame, axes: Sequence[str], measured: str) -> Figure:
    """Every setting of several axes as a line through its values, coloured by the mean of a measurement, which is the
    last axis; its caption is `figure.get_label()`.

    Lines of one value lie beside each other in the order of their means, so that colours show what the value does.
    """
    means = averages(table, axes, measured).sort_values(kind="stable")
    if (count := len(means)) > MOST_SETTINGS:
        means = means.iloc[np.linspace(0, count - 1, MOST_SETTINGS).round().astype(int)]
    mean, first = means.to_numpy(), np.unique(describe.groups(table, axes), return_index=True)[1][means.index]
    least, most = mean.min(), mean.max()
    log = pd.api.types.is_float_dtype(table[measured]) and describe.spans_decades(means)
    scale: Normalize = LogNorm(least, most) if log else Normalize(least, most)
    with mpl.rc_context({"font.size": 9}):
        figure = figures.Picture(figsize=(max(4.5, 1.3 * len(axes) + 2.0), 3.8), layout="constrained")
        ax = figure.add_subplot(frame_on=False)
        at = np.empty((len(mean), len(axes) + 1))
        for place, name in enumerate(axes):
            texts, codes = describe.called(table[name]), describe.codes(table[name])[first]
            for code, text in enumerate(texts):
                own = np.flatnonzero(codes == code)
                # The middle of the value's share of the axis, and the lines that have it spread over half of that.
                middle, spread = (code + 0.5) / len(texts), np.linspace(-0.25, 0.25, len(own)) if len(own) > 1 else 0
                at[own, place] = middle + spread / len(texts)
                if len(texts) <= MOST_PANELS or code % -(-len(texts) // MOST_PANELS) == 0:
                    ax.annotate(
                        figures.short(text),
                        (place, middle),
                        (-4, 0),
                        textcoords="offset points",
                        ha="right",
                        va="center",
                        bbox={"facecolor": "w", "alpha": 0.85, "linewidth": 0, "pad": 1},
                    )
            ax.axvline(place, color="#555555", linewidth=0.8)
        at[:, -1] = scale(mean) if least < most else 0.5
        # Without its lightest part, which is not seen on white.
        dark = ListedColormap(mpl.colormaps["viridis"](np.linspace(0, 0.9, 256)))
        places = [np.column_stack([np.arange(at.shape[1]), line]) for line in at]
        lines = LineCollection(places, norm=scale, cmap=dark, linewidths=1.2)
        lines.set_array(mean)
        ax.add_collection(lines)
        ax.set(xlim=(-0.5, len(axes)), ylim=(0, 1), yticks=[])
        ax.set_xticks(range(len(axes)), axes, rotation=20 if len(axes) > 3 else 0)
        ax.tick_params(length=0)
        figures.bar(figure, lines, ax, figures.label(measured), pad=0)
    told = [describe.texts(table[name].iloc[first], table[name]) for name in axes]
    series = [
        ", ".join(f"{name} = {text}" for name, text in zip(axes, own, strict=True)) for own in zip(*told, strict=True)
    ]
    figures.SHOWN[lines] = figures.Shown(series, [""] * len(mean), mean, mean, mean, figures.label(measured))
    part = f" {MOST_SETTINGS} of {count} settings, evenly by it, are shown." if count > MOST_SETTINGS else ""
    part += "".join(f" {said}" for said in describe.left_out(table, [measured]))
    figure.set_label(
        f"Every setting of {', '.join(axes)} as a line through its values, coloured by {figures.label(measured)}, at"
        f" which it ends; lines of one value lie in the order of that. Means of {describe.seeds(table)}.{part}"
    )
    return figure


def gathered(given: Tables) -> pd.DataFrame:
    """One table of all; several have a setting `folder` of what they are called."""
    if isinstance(given, pd.DataFrame):
        return given
    if isinstance(given, str | os.PathLike):
        given = [given]
    if not isinstance(given, Mapping):
        given = {str(folder): tables.load(folders.named(folder)) for folder in given}
    if not given:
        raise ValueError(f"table={given}: allowed: a table, or one or more folders")
    if len(given) == 1:
        return next(iter(given.values()))
    names = list(given)
    # What all paths begin with says nothing.
    common = os.path.commonpath(names) if all("/" in name for name in names) else ""
    short = [os.path.relpath(name, common) if common else name for name in names]
    parts = [table.assign(**{FOLDER: name}) for name, table in zip(short, given.values(), strict=True)]
    # A setting that only a later table has stands with the settings.
    settings = [name for part in parts if "step" in part for name in describe.settings(part)[:-1]]
    columns = dict.fromkeys([FOLDER, *settings, *(name for part in parts for name in part)])
    return pd.concat(parts, ignore_index=True)[list(columns)]


def planned(
    table: pd.DataFrame,
    *,
    x: str | None = None,
    y: str | None = None,
    color: str | None = None,
    facet: str | None = None,
    kind: str | None = None,
    where: Sequence[str] = (),
    hold: bool = False,
    panels: bool = True,
) -> Plan:
    """What a figure is of, with what was not said. Raises ValueError where rows would be averaged that differ in
    something else than their seed.

    hold: then other settings are held at their most common values, and of too many lines some are kept; `notes` says
    so. panels: whether what was not said may be a facet.
    """
    table = chosen(table, where).reset_index(drop=True)
    if "step" not in table:
        raise ValueError(f"table={len(table)} rows: no column step; allowed: a table of mtfl")
    for key, name in (("x", x), ("y", y), ("color", color), ("facet", facet)):
        if name is not None:
            require(table, key, name)
    whole = describe.measured(table, bounds=True)
    table, given = describe.exact(whole), [name for name in (x, y, color, facet) if name is not None]
    settings, measurements = describe.settings(table), describe.measurements(table)
    numbers = [name for name in measurements if describe.numeric(table[name]) and describe.estimate(table[name]).n]
    if not numbers:
        raise ValueError(f"table={len(table)} rows: nothing was measured; allowed: rows that are ok")
    main = next((name for name in describe.MAIN if name in numbers), numbers[0])
    if kind is None:
        kind = "scatter" if x in measurements else "heat" if y in settings and y is not None else "line"
    if color is None and kind == "line" and FOLDER in describe.varying(table) and FOLDER not in given:
        color = FOLDER
    fixed = [name for name in (x, y, color, facet) if name in settings and name is not None]
    free = [name for name in describe.axes(table) if name not in fixed and not describe.follows(table, name, fixed)]
    sizes = {name: int(describe.codes(table[name]).max(initial=0)) + 1 for name in free}
    # An axis that has no value in some rows has no place for them; it is drawn as names.
    numeric = {name: describe.numeric(table[name]) and not table[name].isna().any() for name in free}
    # Of as many values, those that differ most.
    wide = {name: describe.spans_decades(table[name]) for name in free}
    longest = sorted(free, key=lambda name: (numeric[name], sizes[name], wide[name]), reverse=True)

    def take(names: Sequence[str], key: str) -> str:
        if not names:
            raise ValueError(f"{key}=null: nothing else varies; allowed: a column")
        free.remove(names[0])
        return names[0]

    if kind == "scatter":
        others = [name for name in numbers if name not in given]
        y = y or (main if main != x else others[0])
        x = x or next((name for name in others if name != y), None)
        if x is None:
            raise ValueError("x=null: only one measurement; allowed: a column")
    else:
        x = x or take(longest, "x")
        if kind == "heat":
            y = y or take([name for name in longest if name in free], "y")
            color = color or main
        y = y or main
    # Names before numbers, few before many.
    short = sorted(free, key=lambda name: (numeric[name], sizes[name]))
    if color is None and short:
        color = take(short, "color")
    short = [name for name in short if name in free]
    if panels and facet is None and short and kind != "scatter" and sizes[short[0]] <= MOST_PANELS:
        facet = take(short, "facet")
    if table[x].isna().all():
        raise ValueError(f"x={x}: no row has it; allowed: a column that some row has")
    plan = Plan(table, whole, kind, cast(str, x), cast(str, y), color, facet)
    if hold:
        plan = _held(plan, _others(plan, settings, free))
    _check(plan, settings, free)
    return plan


def _others(plan: Plan, settings: Sequence[str], free: Sequence[str]) -> list[str]:
    """The settings in which rows of one point differ."""
    kept = [name for name in (plan.x, plan.y, plan.color, plan.facet) if name is not None and name in settings]
    return [name for name in free if not describe.follows(plan.table, name, kept)]


def _held(plan: Plan, others: Sequence[str]) -> Plan:
    """The plan of those rows whose `others` have one value each, that of most lines and then of most measurements; and
    of as many lines as can be told apart.
    """
    table, notes = plan.table, []
    if others:
        group = describe.groups(table, others)
        there = np.isfinite(table[plan.measured].to_numpy(float, na_value=np.nan))
        counts = np.bincount(group, there)
        if plan.color is not None and plan.kind == "line":
            pairs = np.unique([group[there], describe.codes(table[plan.color])[there]], axis=1)
            counts += np.bincount(pairs[0], minlength=len(counts)) * (len(table) + 1)
        most = np.flatnonzero(counts == counts.max())[-1]
        first = [int(np.argmax(group == most))]
        named = [f"{name} = {describe.texts(table[name].iloc[first], table[name])[0]}" for name in others]
        table = table[group == most]
        notes.append(f"Shown where {', '.join(named)}.")
    if plan.kind == "line" and plan.color is not None:
        places = describe.codes(table[plan.color])
        if places.max() >= figures.MOST_LINES:
            few = np.linspace(0, places.max(), figures.MOST_LINES).round().astype(int)
            table = table[np.isin(places, few)]
            notes.append(f"{len(few)} of {places.max() + 1} values of {plan.color} are shown.")
    diverged = int((~describe.ok(table)).sum())
    notes += [f"Rows that diverged: {diverged}; they are left out."] * bool(diverged)
    return dataclasses.replace(plan, table=table, notes=notes)


def ratios(plan: Plan) -> str:
    """Which of x, y and c (colour) are logarithmic where nothing is said: those whose numbers span a decade."""
    table = plan.table
    if plan.kind == "scatter":
        return "".join(
            letter for letter, name in zip("xy", (plan.x, plan.y), strict=True) if describe.spans_decades(table[name])
        )
    names = [plan.x, plan.y, plan.facet] if plan.kind == "heat" else [plan.x, plan.color, plan.facet]
    means = averages(table, [name for name in names if name is not None], plan.measured)
    # Counts are no ratios.
    measured = pd.api.types.is_float_dtype(table[plan.measured]) and describe.spans_decades(means)
    if plan.kind == "heat":
        return "c" * measured
    return "x" * describe.spans_decades(table[plan.x]) + "y" * measured


def averages(table: pd.DataFrame, names: Sequence[str], measured: str) -> pd.Series:
    """The means of what is finite at each setting of the columns `names`, by the number of the setting."""
    values = table[measured].astype(float)
    return values.where(np.isfinite(values)).groupby(describe.groups(table, names)).mean().dropna()


def _check(plan: Plan, settings: Sequence[str], free: Sequence[str]) -> None:
    """Raise ValueError for columns that cannot be what they are to be."""
    table = plan.table
    measured, key = table[plan.measured], "color" if plan.kind == "heat" else "y"
    if not describe.numeric(measured):
        raise ValueError(f"{key}={plan.measured}: not a column of numbers; allowed: a measurement")
    if not describe.estimate(measured).n:
        raise ValueError(f"{key}={plan.measured}: no row has it; allowed: what was measured")
    if plan.facet is not None and (count := describe.codes(table[plan.facet]).max(initial=0) + 1) > MOST_PANELS:
        raise ValueError(f"facet={plan.facet}: {count} values; allowed: at most {MOST_PANELS}, --where keeps some")
    if plan.kind == "scatter":
        if not describe.numeric(table[plan.x]):
            raise ValueError(f"x={plan.x}: not a column of numbers; allowed with kind=scatter: numbers")
        return
    if others := _others(plan, settings, free):
        said = "; ".join(f"{name} = {describe.values(table[name])}" for name in others)
        ways = "allowed: one of them by where=COLUMN=VALUE, or as color or facet"
        raise ValueError(f"x={plan.x}: rows of one point differ in {said}; {ways}")


def _require(key: str, value: Any, allowed: Sequence[Any]) -> None:
    if value not in allowed:
        words = ", ".join(str(one) for one in allowed if one is not None)
        raise ValueError(f"{key}={value}: allowed: {words}{guess(str(value), [str(one) for one in allowed])}")


def caption(plan: Plan, agg: str, band: str) -> str:
    """What a figure shows, in sentences."""
    words = {"se": "one standard error", "ci": "a 95% interval", "quantile": "the middle half of the seeds"}
    each = f", a panel for each {plan.facet}" if plan.facet else ""
    if plan.kind == "scatter":
        colored = f", coloured by {plan.color}" if plan.color else ""
        what = f"{figures.label(plan.y)} against {figures.label(plan.x)}, a point a row{colored}{each}."
        return " ".join([what, *describe.left_out(plan.table, [plan.x, plan.y])])
    seeds = _seeds(plan.table) if "seed" in plan.table else "all rows"
    several = "One seed." if seeds == "one seed" else f"{agg.capitalize()} of {seeds}"
    notes = [*plan.notes, *describe.left_out(plan.table, [plan.measured])]
    if plan.kind == "heat":
        what = f"{figures.label(plan.measured)} by {plan.x} and {plan.y}{each}."
        return " ".join([what, f"{several.removesuffix('.')}.", *notes])
    lines = f", a line for each {plan.color}" if plan.color else ""
    what = f"{figures.label(plan.y)} against {figures.label(plan.x)}{lines}{each}."
    bands = f"; bands are {words[band]}." if band != "none" and seeds != "one seed" else "."
    return " ".join([what, f"{several.removesuffix('.')}{bands}", *notes])


def _seeds(table: pd.DataFrame) -> str:
    """How many seeds means are of, for each of several folders where that differs."""
    if FOLDER not in table:
        return describe.seeds(table)
    each = {name: describe.seeds(own) for name, own in table.groupby(FOLDER, sort=False)}
    several = len(set(each.values())) > 1
    return ", ".join(f"{name!s}: {seeds}" for name, seeds in each.items()) if several else next(iter(each.values()))


# Drawing


def _panels(plan: Plan, look: Size) -> tuple[Figure, Panels]:
    """A figure, and its panels with the rows of each; they share their scales."""
    table = plan.table
    parts = [("", table)]
    if plan.facet is not None:
        codes, names = describe.codes(table[plan.facet]), describe.called(table[plan.facet])
        parts = [(f"{plan.facet} = {name}", table[codes == i]) for i, name in enumerate(names)]
    columns = min(len(parts), look.panels)
    rows = -(-len(parts) // columns)
    width = look.width if columns > 1 else min(look.width, 5.0)
    # A map's bar of colours has its label along its side.
    least = 0.28 * look.font if plan.kind == "heat" and rows == 1 else 1.6
    figure = figures.Picture(figsize=(width, rows * max(0.8 * width / columns, least)), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for ax in grid[len(parts) :]:
        ax.remove()
    found = []
    for i, ((title, own), ax) in enumerate(zip(parts, grid, strict=False)):
        ax.set_title(title, fontsize="medium")
        # Numbers stand at the rim, also above a place that the last row leaves empty.
        ax.tick_params(labelbottom=i + columns >= len(parts), labelleft=i % columns == 0)
        found.append((ax, own))
    return figure, found


def _named(figure: Figure, panels: Panels, plan: Plan, look: Size) -> None:
    """Name the axes, those of several panels once; numbers across that have no room are left out."""
    x, y = figures.label(plan.x), figures.label(plan.y)
    room = 0.72 * figure.get_figwidth() / min(len(panels), look.panels)
    first = panels[0][0]  # They share their ticks.
    if isinstance(first.xaxis.get_major_locator(), FixedLocator):
        ticks = list(first.get_xticks())
        texts = first.xaxis.get_major_formatter().format_ticks(ticks)
        every = max(1, math.ceil(sum(0.6 * (len(text) + 1.5) for text in texts) * look.font / 72 / room))
        first.set_xticks(ticks[::-1][::every][::-1], texts[::-1][::every][::-1])
    for ax, _ in panels:
        ax.set_xlabel(x if len(panels) == 1 else "")
        ax.set_ylabel(y if len(panels) == 1 else "")
    if len(panels) > 1:
        figure.supxlabel(x, fontsize="medium")
        figure.supylabel(y, fontsize="medium")


def _lines(plan: Plan, figure: Figure, panels: Panels, how: How) -> None:
    every = None if plan.color is None else describe.called(plan.table[plan.color])
    if every is not None and len(every) > figures.MOST_LINES:
        allowed = f"allowed: at most {figures.MOST_LINES}, --where keeps some; or kind=heat"
        raise ValueError(f"color={plan.color}: {len(every)} values; {allowed}")
    for ax, own in panels:
        figures.curves(
            ax, own, plan.x, plan.y, by=plan.color, log=how.log, agg=how.agg, band=how.band, among=plan.table
        )
        if how.fit is not None:
            _laws(ax, own, plan, how.fit)
    look: dict[str, Any] = {"title": plan.color, "fontsize": "small", "title_fontsize": "small"}
    if how.fit is not None and len(panels) == 1:
        figure.legend(loc="outside upper center", **look)  # Laws are long: they would cover lines.
    elif plan.color is not None or how.fit is not None:
        for ax, _ in panels if how.fit is not None else panels[:1]:
            ax.legend(**look)


def _laws(ax: Axes, own: pd.DataFrame, plan: Plan, model: str) -> None:
    """A fitted law over each line, and in the legend its exponents."""
    own = plan.whole.loc[own.index]
    own = own[own[plan.y].notna() & own[plan.x].notna()]
    if not describe.numeric(own[plan.x]) or own.empty:
        raise ValueError(f"fit={model}: {plan.x} has no numbers where {plan.y} was measured; allowed: x of numbers")
    codes = np.zeros(len(own), int) if plan.color is None else describe.codes(own[plan.color])
    lines = [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")] or ax.get_lines()[:1]
    for code, line in zip(np.unique(codes), lines, strict=False):
        rows = own[codes == code]
        try:
            law = fits.fit(rows, plan.x, plan.y, model=model, seed="seed" if "seed" in rows else None)
        except ValueError as error:
            raise ValueError(f"fit={model}: {str(error).removeprefix(f'model={model}: ')}") from None
        ends = rows[plan.x].to_numpy(float)
        at = np.geomspace(ends.min(), ends.max(), 100) if ends.min() > 0 else np.linspace(ends.min(), ends.max(), 100)
        ax.plot(at, law.predict(at), color="black", linewidth=0.8, linestyle="--", zorder=3)
        name = "" if plan.color is None else f"{line.get_label()}: "
        line.set_label(f"{name}{law.exponents()}{'' if law.supported else ' (not supported)'}")


def _scale(least: float, most: float, how: How) -> Normalize:
    """What colours numbers between two ends have."""
    return LogNorm(least, most) if "c" in how.log and least > 0 else Normalize(least, most)


def _maps(plan: Plan, figure: Figure, panels: Panels, how: How) -> None:
    means = averages(plan.table, [name for name in (plan.x, plan.y, plan.facet) if name is not None], plan.measured)
    scale, shown = _scale(means.min(), means.max(), how), None
    for ax, own in panels:
        shown = figures.heat(
            ax,
            own,
            plan.x,
            plan.y,
            plan.measured,
            scale=scale,
            agg=how.agg,
            among=plan.table,
            written=len(panels) <= 2,
        )
    assert shown is not None
    figures.bar(figure, shown, [ax for ax, _ in panels], figures.label(plan.measured))


def _points(plan: Plan, figure: Figure, panels: Panels, how: How) -> None:
    column = None if plan.color is None else plan.table[plan.color]
    names = [] if column is None else describe.called(column)
    graded = column is not None and describe.numeric(column) and len(names) > figures.MOST_LINES
    if len(names) > figures.MOST_LINES and not graded:
        raise ValueError(f"color={plan.color}: {len(names)} values; allowed: at most {figures.MOST_LINES}, or numbers")
    shown = None
    for ax, own in panels:
        of: dict[str, Any] = {"s": 12, "linewidths": 0, "alpha": 0.8, "rasterized": len(own) > figures.MOST_POINTS}
        if graded and column is not None:
            values = own[plan.color].to_numpy(float, na_value=np.nan)
            scale = _scale(column.min(), column.max(), how)
            shown = ax.scatter(own[plan.x], own[plan.y], c=values, norm=scale, cmap="viridis", **of)
        else:
            kept = plan.table.index.isin(own.index)
            codes = np.zeros(len(own), int) if column is None else describe.codes(column)[kept]
            for i, name in enumerate(names or [""]):
                rows = own[codes == i]
                look = figures.style(rows[plan.color].iloc[0] if len(rows) and plan.color else None, i)
                ax.scatter(rows[plan.x], rows[plan.y], color=look["color"], marker=look["marker"], label=name, **of)
        for side in sorted(set(how.log) & set("xy")):
            getattr(ax, f"set_{side}scale")("log")
        ax.grid(alpha=0.3)
    if shown is not None:
        figures.bar(figure, shown, [ax for ax, _ in panels], figures.label(str(plan.color)))
    elif plan.color is not None:
        panels[0][0].legend(title=plan.color, fontsize="small", title_fontsize="small")
