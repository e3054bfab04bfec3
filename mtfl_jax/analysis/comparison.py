"""Several tables against each other: their main measurements overlaid, the differences of their means, and the settings
that differ.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mtfl_jax.analysis import describe, plain
from mtfl_jax.analysis.describe import MISSING, Estimate
from mtfl_jax.analysis.findings import Drawing, Findings, Listing


def findings(tables: Mapping[str, pd.DataFrame], rows: int = plain.MOST_ROWS) -> Findings:
    """What tables by name show beside each other; no claim. rows: of the listing of means at most."""
    from mtfl_jax.analysis import plots

    known = {name: describe.measured(table) for name, table in tables.items() if len(table)}
    if len(known) < 2:
        return Findings("Nothing to compare", "")
    both = plots.gathered(known)
    measured = plain.main(both)
    # Settings by which rows are of the same: not those that a table has its own value of.
    axes = [name for name in describe.axes(both) if not describe.follows(both, name, [plots.FOLDER])]
    if not measured:
        return Findings("Nothing to compare", "")
    over: dict[str, Any] = {"color": plots.FOLDER} if axes else {"x": plots.FOLDER}
    plan = plots.planned(both, kind="line", y=measured[0], hold=True, panels=False, **over)
    figure = plots.beside(plan, measured)
    listing = _means(both, list(known), axes, measured, rows)
    drawing = Drawing("comparison", figure, str(figure.get_label()))
    return Findings("Side by side", "", (), [drawing], [listing])


class Difference(NamedTuple):
    """A mean less another, with its standard error, and of how many pairs of one seed it is (0: not paired)."""

    found: Estimate
    pairs: int


def difference(first: pd.Series, second: pd.Series) -> Difference:
    """The mean of `second` less that of `first`, numbers by their seed: of the seeds that both have where that makes
    pairs enough to tell an error, or where each has one, the same; else of all.
    """
    first, second = (of[np.isfinite(of.to_numpy(float, na_value=np.nan))].astype(float) for of in (first, second))
    shared = first.index.intersection(second.index)
    if len(shared) > 1 or len(shared) == len(first) == len(second):
        return Difference(describe.estimate(second[shared] - first[shared]), len(shared))
    one, other = describe.estimate(first), describe.estimate(second)
    n = min(one.n, other.n)
    # Of one seed alone the error is not known, and so not that of the difference.
    error = math.hypot(one.error, other.error) if n > 1 else 0.0
    return Difference(Estimate(other.mean - one.mean, error, n, n), 0)


def _means(
    both: pd.DataFrame, names: Sequence[str], axes: Sequence[str], measured: Sequence[str], most: int
) -> Listing:
    """Means of each table and the others' differences from the first, a row a measurement and setting."""
    from mtfl_jax.analysis.plots import FOLDER

    group = describe.groups(both, axes)
    several = both[FOLDER].groupby(group).nunique().to_numpy() > 1
    # Settings that several tables have come first.
    order = np.argsort(~several, kind="stable")[: max(1, most // len(measured))]
    place = [both[group == number] for number in order]
    head = both.iloc[[own.index[0] for own in place]]
    told = list(zip(*(describe.texts(head[name], both[name]) for name in axes), strict=True)) or [()]
    rows, numbers = [], []
    pairs: dict[str, set[int]] = {name: set() for name in names[1:]}
    for name in measured:
        for texts, own in zip(told, place, strict=True):
            parts = {of: own[own[FOLDER] == of].set_index("seed")[name] for of in names}
            means = {of: describe.estimate(part) for of, part in parts.items()}
            apart = {of: difference(parts[names[0]], parts[of]) for of in names[1:]}
            rows.append([name, *texts, *map(str, means.values()), *(str(of.found) for of in apart.values())])
            row: dict[str, Any] = {"measurement": name, **own[list(axes)].iloc[0]}
            for of, mean in means.items():
                row |= {of: mean.mean, f"{of}_error": mean.error, f"{of}_n": mean.n}
            for of, less in apart.items():
                key = f"{of} - {names[0]}"
                row |= {key: less.found.mean, f"{key}_error": less.found.error, f"{key}_pairs": less.pairs}
                if less.found.n:
                    pairs[of].add(less.pairs)
            numbers.append(row)
    columns = ["measurement", *axes, *names, *(f"{name} − {names[0]}" for name in names[1:])]
    part = f", the first {len(order)} of {len(several)} settings" if len(order) < len(several) else ""
    title = f"Means ± standard error, and differences from {names[0]}{part}"
    paired = (_paired(name, names[0], found) for name, found in pairs.items())
    note = " ".join([*paired, *describe.left_out(both, measured)])
    return Listing(title, pd.DataFrame(rows, columns=columns), pd.DataFrame(numbers), note)


def _paired(name: str, first: str, pairs: set[int]) -> str:
    """How differences from the first table were taken."""
    if not pairs:
        return f"{name} and {first} share no setting."
    counts = sorted(pairs - {0})
    seeds = f"{counts[0]}{f' to {counts[-1]}' * (len(counts) > 1)} shared seed{'s' * (counts != [1])}" if counts else ""
    if not counts:
        return f"{name} − {first} is of means, as they share too few seeds for pairs."
    return f"{name} − {first} is paired by {seeds}{', or of means where they share too few' * (0 in pairs)}."


def settings_apart(tables: Sequence[pd.DataFrame]) -> list[tuple[str, ...]]:
    """The settings whose values are not the same in all tables, with the values, and how many rows have the settings of
    no row of another table. Where a table has no rows, it has no settings either: only how many rows there are.
    """
    if not all(map(len, tables)):
        return [("rows", *(f"{len(table):,}" for table in tables))]
    keys = list(dict.fromkeys(name for table in tables for name in describe.settings(table)))
    every = pd.DataFrame({key: _joined(tables, key) for key in keys})
    of = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    out: list[tuple[str, ...]] = []
    for key in keys:
        codes = describe.codes(every[key])
        own = [set(codes[of == place]) for place in range(len(tables))]
        shared = set.intersection(*own)
        if all(values == shared for values in own):
            continue
        said = [describe.values(part, among=every[key]) or MISSING for part in _parts(every[key], of, len(tables))]
        if len(set(said)) < len(set(map(frozenset, own))):
            only = _parts(every[key], of, len(tables), ~np.isin(codes, list(shared)))
            texts = [describe.values(part, among=every[key]) or MISSING * bool(len(part)) for part in only]
            said = [f"{text}; not in all: {some or 'none'}" for text, some in zip(said, texts, strict=True)]
        out.append((key, *said))
    group = describe.groups(every, keys)
    own = [set(group[of == place]) for place in range(len(tables))]
    others = [set().union(*(own[:place] + own[place + 1 :])) for place in range(len(tables))]
    alone = [int((~np.isin(group[of == place], list(others[place]))).sum()) for place in range(len(tables))]
    if any(alone):
        counted = zip(alone, map(len, tables), strict=True)
        out.append(("rows", *(f"{few:,} of {count:,} only here" for few, count in counted)))
    return out


def _parts(column: pd.Series, of: np.ndarray, count: int, kept: np.ndarray | bool = True) -> Iterator[pd.Series]:
    """The rows of each of `count` tables in a column of all."""
    for place in range(count):
        yield column[(of == place) & kept]


def _joined(tables: Sequence[pd.DataFrame], name: str) -> pd.Series:
    """A column of tables, one below the other; all missing in a table that has none."""
    parts = [table[name] if name in table else pd.Series(None, table.index, object) for table in tables]
    if len({part.dtype for part in parts}) > 1:
        parts = [part.astype(object) for part in parts]
    return pd.concat(parts, ignore_index=True)
