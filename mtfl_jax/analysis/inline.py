"""A figure as a part of a page: SVG in which whoever points at a point is told its value, once as wide as it is drawn
and once with its panels one above the other, and its values as a table.
"""

import contextlib
import html
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D

from mtfl_jax.analysis import describe, figures

NARROW = 3.9
"""Inches across of what a narrow screen shows."""
MOST_POINTED = 400
"""Places of a figure whose values are said; where there are more, evenly chosen ones."""


class Inline(NamedTuple):
    """A figure as SVG for wide screens, and for narrow ones where that differs; the inches that the first is across."""

    wide: str
    narrow: str | None
    inches: float


def inline(figure: Figure, key: str) -> Inline:
    """The SVG of a figure for a page of which nothing else has identifiers that begin with `key`. A legend of the whole
    figure that has no room on a narrow screen leaves the wide one there too, to be moved.
    """
    wide, inches = _svg(figure, key), float(figure.get_figwidth())
    panels = [ax for ax in figure.axes if ax.get_subplotspec() is not None and ax.axison]
    if len(panels) < 2 and inches <= 1.3 * NARROW:
        return Inline(wide, None, inches)
    with _stacked(figure, panels):
        figure.draw_without_rendering()  # The layout begins from where panels stood before.
        narrow = _svg(figure, f"{key}n")
        cut = any(legend.get_window_extent().width > figure.bbox.width for legend in figure.legends)
    return Inline(wide, None if cut else narrow, inches)


@contextlib.contextmanager
def _stacked(figure: Figure, panels: list[Axes]) -> Iterator[None]:
    """Within, the panels stand one above the other, each as high as it is beside the others."""
    width, height = figure.get_size_inches()
    specs = {ax: spec for ax in figure.axes if (spec := ax.get_subplotspec()) is not None}
    labelled = {ax: (ax.xaxis.get_tick_params(), ax.yaxis.get_tick_params()) for ax in panels}
    rows = next(iter(specs.values())).get_gridspec().nrows
    grid = GridSpec(len(panels), 1, figure)
    try:
        for ax in specs:
            ax.set_subplotspec(grid[panels.index(ax) if ax in panels else 0])
            ax.set_visible(ax in panels)
            ax.set_in_layout(ax in panels)
        for ax in panels:
            ax.tick_params(labelbottom=True, labelleft=True)
        figure.set_size_inches(NARROW, len(panels) * height / rows)
        yield
    finally:
        for ax, spec in specs.items():
            ax.set_subplotspec(spec)
            ax.set_visible(True)
            ax.set_in_layout(True)
        for ax, (x, y) in labelled.items():
            ax.tick_params(labelbottom=x.get("labelbottom", True), labelleft=y.get("labelleft", True))
        figure.set_size_inches(width, height)
        figure.draw_without_rendering()


def _svg(figure: Figure, key: str) -> str:
    """A figure as an element of HTML, with the values of its points."""
    text = figures.svg(figure).decode()
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Names that nothing asks for are left out: matplotlib gives images of the same content one name.
    asked = set(re.findall(r"(?:href=\"|url\()#([^\")]*)", text))
    text = re.sub(r" id=\"([^\"]*)\"", lambda found: f' id="{key}-{found[1]}"' if found[1] in asked else "", text)
    text = re.sub(r"(href=\"|url\()#", rf"\g<1>#{key}-", text)
    head, rest = text.split(">", 1)
    head = re.sub(r" (?:width|height)=\"[^\"]*\"", "", head)
    rest = rest[: rest.rindex("</svg>")]
    values = "".join(_pointed(figure))
    said = html.escape(figures.alt(figure))
    return f'{head} role="img" aria-label="{said}">{rest.strip()}<g class="values">{values}</g></svg>'


def _pointed(figure: Figure) -> Iterator[str]:
    """Shapes that are not seen over the points of a figure that was drawn, with their values as titles."""
    found = list(_shown(figure))
    each = -(-sum(len(shown.value) for _, _, shown in found) // MOST_POINTED)
    for ax, artist, shown in found:
        if isinstance(artist, QuadMesh) and each > 1:
            continue
        shapes = list(_shapes(figure, ax, artist))
        for i in range(0, len(shapes), each):
            if shapes[i] and np.isfinite(shown.value[i]):
                yield f"<{shapes[i]}><title>{html.escape(_said(ax, shown, i))}</title></{shapes[i].split()[0]}>"


def _shown(figure: Figure) -> Iterator[tuple[Axes, Artist, figures.Shown]]:
    """What the artists of a figure show: what is written of them, else where their markers stand."""
    for ax in figure.axes:
        bars = (of for of in ax.containers if isinstance(of, ErrorbarContainer))
        names: dict[Artist, object] = {of.lines[0]: of.get_label() for of in bars}
        for artist in ax.get_children():
            shown = figures.SHOWN.get(artist)
            if shown is None:
                if isinstance(artist, Line2D) and artist.get_marker() not in ("None", "none", "", " ", None):
                    at = np.asarray(artist.get_xydata(), float)
                elif isinstance(artist, PathCollection):
                    at = np.ma.filled(np.ma.asarray(artist.get_offsets(), float), np.nan)
                else:
                    continue
                label = str(names.get(artist, artist.get_label()))
                y = at[:, 1]
                shown = figures.Shown([label if label[:1] != "_" else ""] * len(at), list(at[:, 0]), y, y, y)
            yield ax, artist, shown


def _shapes(figure: Figure, ax: Axes, artist: Artist) -> Iterator[str]:
    """The element at each place of an artist, without its brackets; empty outside its panel."""
    scale, height = 72 / figure.dpi, 72 * figure.get_figheight()

    def seen(points: np.ndarray) -> np.ndarray:
        """Points in pixels from below as points of the SVG from above."""
        return np.column_stack([points[:, 0] * scale, height - points[:, 1] * scale]).round(1)

    if isinstance(artist, QuadMesh):
        corners = np.asarray(artist.get_coordinates())
        low, high = (corners[:-1, :-1].reshape(-1, 2), corners[1:, 1:].reshape(-1, 2))
        ends = (seen(ax.transData.transform(of)) for of in (low, high))
        for (x, y), (right, top) in zip(*ends, strict=True):
            yield f'rect x="{x:g}" y="{top:g}" width="{right - x:.1f}" height="{y - top:.1f}"'
        return
    if isinstance(artist, LineCollection):
        for segment in artist.get_segments():
            points = " ".join(f"{x:g},{y:g}" for x, y in seen(ax.transData.transform(segment)))
            yield f'polyline points="{points}"'
        return
    if isinstance(artist, PathCollection):
        pixels = artist.get_offset_transform().transform(np.ma.filled(artist.get_offsets(), np.nan))
    else:
        pixels = artist.get_transform().transform(np.asarray(artist.get_xydata(), float))  # type: ignore[attr-defined]
    inside = np.isfinite(pixels).all(axis=1)
    inside[inside] = [ax.bbox.padded(5).contains(x, y) for x, y in pixels[inside]]
    for there, (x, y) in zip(inside, seen(np.where(inside[:, None], pixels, 0)), strict=True):
        yield f'circle cx="{x:g}" cy="{y:g}" r="5"' if there else ""


def _said(ax: Axes, shown: figures.Shown, i: int) -> str:
    """What is said of a place: of which series, at which x, the value and its band."""
    x, y = _labels(ax)
    at = describe.number(shown.x[i])
    band = f" [{describe.number(shown.low[i])}, {describe.number(shown.high[i])}]"
    value = f"{shown.name or y} {describe.number(shown.value[i])}{band if shown.low[i] < shown.high[i] else ''}"
    return "; ".join(part for part in (shown.series[i], f"{x} {at}" if at else "", value) if part)


def _labels(ax: Axes) -> tuple[str, str]:
    """What a panel's axes are called, by the figure where panels share it."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return ax.get_xlabel() or figure.get_supxlabel(), ax.get_ylabel() or figure.get_supylabel()


def values(figure: Figure) -> pd.DataFrame:
    """Everything that a figure's points say: a row a point."""
    panels = {ax: place for place, ax in enumerate(figure.axes, 1)}
    columns = ["panel", "title", "of", "against", "series", "x", "value", "low", "high"]
    rows = []
    for ax, _, shown in _shown(figure):
        x, y = _labels(ax)
        for series, at, *numbers in zip(shown.series, shown.x, shown.value, shown.low, shown.high, strict=True):
            rows.append([panels[ax], ax.get_title(), shown.name or y, x, series, at, *map(float, numbers)])
    return pd.DataFrame(rows, columns=columns)
