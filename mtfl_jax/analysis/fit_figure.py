"""The figure of fitted laws: what each was fitted to, its curve, and what was held out."""

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtfl_jax.analysis import describe, figures
from mtfl_jax.analysis.descent import AT_LEAST, AT_MOST, EXACT
from mtfl_jax.analysis.fits import Fit, Seen
from mtfl_jax.analysis.laws import Group

_BOUNDS = {AT_LEAST: (r"$\uparrow$", "up says at least"), AT_MOST: (r"$\downarrow$", "down says at most")}
"""The markers of points that are bounds, and what they say."""

_WIDTH = 60
"""Letters in a line of the legend."""


class _Drawn(NamedTuple):
    """A law, what the legend calls it, and its points."""

    name: str
    law: Fit
    seen: Seen

    @property
    def fitted(self) -> bool:
        return not np.isnan(list(self.law.parameters.values())).any()


def draw(groups: Sequence[Group], by: Sequence[str] = ()) -> Figure:
    """The laws of `laws.fit_each`, a colour each; the caption is `figure.get_label()`.

    Points are what was fitted, at each x the geometric mean of the seeds with its interval, hollow where they were held
    out; of a law of several variables they are the y that was measured against the law's. Raises ValueError where no
    group has a law, or more have one than can be told apart.
    """
    columns = [describe.texts(pd.Series([group.values[place] for group in groups])) for place in range(len(by))]
    names = [", ".join(values) for values in zip(*columns, strict=True)] if by else [""]
    fitted = [(name, group.fit) for name, group in zip(names, groups, strict=True) if group.fit is not None]
    if not 1 <= len(fitted) <= figures.MOST_LINES:
        raise ValueError(f"plot={len(fitted)} laws: allowed: 1 to {figures.MOST_LINES}, --where keeps some")
    found = [_Drawn(name, law, law.seen()) for name, law in fitted]
    first = found[0].law
    figure, (ax,) = figures.panels(1)
    figure.set_size_inches(5.0, 4.0)
    for index, own in enumerate(found):
        (_measured if first.law.variables > 1 else _curve)(ax, own, index)
    ax.set_yscale("log")
    figures.numbers(ax.yaxis)
    every = pd.Series(np.concatenate([own.seen.x[0] for own in found]))
    if first.law.variables > 1:
        ends = [choose(choose(own.seen.y) for own in found) for choose in (min, max)]
        ax.plot(ends, ends, color="black", linewidth=0.8, zorder=0)
        ax.set_xscale("log")
        figures.numbers(ax.xaxis)
    elif all(own.law.law.logarithmic for own in found) and describe.spans_decades(every):
        figures.log_x(ax, every)
    ax.set_xlabel(_across(first))
    ax.set_ylabel(figures.label(first.y))
    ax.grid(alpha=0.3)
    figure.legend(loc="outside upper center", title=", ".join(by) or None, fontsize="small", title_fontsize="small")
    figure.set_label(_caption(found, by))
    return figure


def _across(law: Fit) -> str:
    return figures.label(law.x) if isinstance(law.x, str) else f"{figures.label(law.y)} by the law"


def _said(own: _Drawn) -> str:
    """What the legend says of a law."""
    said = own.law.exponents() if own.fitted else "nothing fitted"
    doubt = "" if own.law.supported or not own.fitted else " (not supported)"
    text = f"{own.name}: {said}{doubt}" if own.name else f"{said}{doubt}"
    # A line ends after a comma only.
    return textwrap.fill(text.replace(" ", "\xa0").replace(",\xa0", ", "), _WIDTH)


def _curve(ax: Axes, own: _Drawn, index: int) -> None:
    """The points of a law of one variable and its curve."""
    x = own.seen.x[0]
    _points(ax, own.seen, x, index, 4.5)
    line = (np.geomspace if own.law.law.logarithmic else np.linspace)(x.min(), x.max(), 200)
    y = own.law.predict(line) if own.fitted else np.full(len(line), np.nan)
    ax.plot(line, y, color=figures.style(None, index)["color"], linewidth=1.1, label=_said(own))


def _measured(ax: Axes, own: _Drawn, index: int) -> None:
    """The points of a law of several variables, at the y that it gives."""
    if own.fitted:
        _points(ax, own.seen, own.law.predict(own.seen.x), index, 3)
    look = figures.style(None, index)
    ax.plot([], [], color=look["color"], marker=look["marker"], markersize=4, linestyle="none", label=_said(own))


def _points(ax: Axes, seen: Seen, at: np.ndarray, index: int, size: float) -> None:
    look = figures.style(None, index)
    for held in (False, True):
        own = (seen.kind == EXACT) & (seen.held_out == held)
        bars = np.stack([seen.y - seen.low, seen.high - seen.y])[:, own]
        of: dict[str, Any] = {"color": look["color"], "marker": look["marker"], "linestyle": "none"}
        of["markerfacecolor"] = "white" if held else look["color"]
        known = None if np.isnan(bars).any() else bars.clip(0)
        ax.errorbar(at[own], seen.y[own], known, markersize=size, elinewidth=0.9, **of)
    for kind, (marker, _) in _BOUNDS.items():
        own = seen.kind == kind
        ax.plot(at[own], seen.y[own], color=look["color"], marker=marker, linestyle="none", markersize=8, alpha=0.7)


def _caption(found: Sequence[_Drawn], by: Sequence[str]) -> str:
    """What the figure shows, in sentences."""
    first = found[0].law
    models = ", ".join(dict.fromkeys(own.law.model for own in found))
    each = f", a colour for each {', '.join(by)}" if by else ""
    resampled = {own.law.resampled() for own in found}
    what = resampled.pop() if len(resampled) == 1 else "seeds, or rows for want of seeds"
    said = [
        f"{figures.label(first.y)} against {_across(first)}{each}: {models}.",
        f"Points are geometric means with {first.level:.0%} intervals by resampling {what}.",
        "Hollow ones were held out to tell the error of predicting them; the law that is drawn has them too.",
    ]
    bounds = [words for kind, (_, words) in _BOUNDS.items() if any((own.seen.kind == kind).any() for own in found)]
    said += [f"An arrow {', one '.join(bounds)}."] * bool(bounds)
    diverged = sum(own.law.diverged for own in found)
    said += [f"Rows that diverged: {diverged}; they are left out."] * bool(diverged)
    return " ".join(said)
