"""A law for each value of some columns, as one table; what rows of several settings may not be taken for one law."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mtfl_jax.analysis import describe
from mtfl_jax.analysis.columns import column
from mtfl_jax.analysis.crossings import fit_crossings
from mtfl_jax.analysis.fits import Fit, Settings, check, factor, fit

RESULTS = ("seed", "step", "status")
"""The columns by which a table is known to be of `mtfl`: of any other nobody knows which columns are settings."""
_COUNTS = ("points", "seeds", "censored", "at_most", "diverged")


class Crossing(NamedTuple):
    """What a law is of where it is of the y at which the mean of a column falls to ε."""

    error: str
    epsilon: float


class Group(NamedTuple):
    """The values of the columns that tell groups apart, and the law of the group's rows, or why there is none."""

    values: tuple[Any, ...]
    fit: Fit | None
    why: str

    @property
    def supported(self) -> bool:
        """Whether the data support the law."""
        return self.fit is not None and self.fit.supported


def fit_by(
    table: pd.DataFrame,
    x: str | tuple[str, ...],
    y: str,
    model: str = "power",
    *,
    by: str | Sequence[str] = (),
    pool: str | Sequence[str] = (),
    crossing: tuple[str, float] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Fit a law to the rows of each value of the columns `by`: a row of numbers each, missing where it has no such
    number.

    Columns are those of `by`, then y, x, model, every parameter with its NAME_low and NAME_high, how many points and
    seeds it is of and how many rows are censored, at_most or diverged, the held-out error, and whether the data
    support the law or `why` not, which is also said of rows that cannot be fitted. crossing: (column, ε), for a law of
    the y at which the mean of the column falls to ε. The rest is of `fits.fit` or `crossings.fit_crossings`. Raises
    ValueError as they do for an argument that is wrong for all, and where rows of a results table that are fitted as
    one differ in a setting that is not named: in x, y, `by` or `pool`.

        fit_by(mtfl_jax.load("out/a"), "n2", "subspace_distance", by="d")
    """
    by, pool = _names(by), _names(pool)
    if differ := pooled(table, x, y, by=by, pool=pool, crossing=crossing is not None):
        found = " and ".join(f"{name} = {values}" for name, values in differ.items())
        key = ",".join(_names(x))
        raise ValueError(f"x={key}: rows fitted as one differ in {found}; allowed: these in by or pool, or one value")
    return numbers_of(fit_each(table, x, y, model, by=by, crossing=crossing, **options), by)


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def pooled(
    table: pd.DataFrame,
    x: str | Sequence[str],
    y: str,
    *,
    by: Sequence[str] = (),
    pool: Sequence[str] = (),
    crossing: bool = False,
) -> dict[str, str]:
    """The settings in which rows of a results table differ that one law is fitted to, each with its values as text:
    beside the seed, x, `by`, `pool`, with `crossing` y, and what follows from these. Raises ValueError for a column
    that is not there.
    """
    for key, given in (("x", _names(x)), ("y", (y,)), ("by", by), ("pool", pool)):
        for name in given:
            column(table, key, name)
    if not set(RESULTS) <= set(table.columns):
        return {}
    table = table[describe.ok(table)]
    known = [name for name in (*_names(x), *by, *pool, *([y] if crossing else [])) if name in table]
    others = [name for name in describe.axes(table) if name != y and not describe.follows(table, name, known)]
    return {name: describe.values(table[name]) for name in others}


def fit_each(
    table: pd.DataFrame,
    x: str | tuple[str, ...],
    y: str,
    model: str = "power",
    *,
    by: Sequence[str] = (),
    crossing: tuple[str, float] | None = None,
    **options: Any,
) -> list[Group]:
    """The law of each group of rows that agree in the columns `by`, in the order of their values; of all rows where
    there are none. Raises ValueError for an argument that is wrong for all groups.
    """
    names = _names(x)
    settings = {name: options[name] for name in Settings._fields if name in options}
    check(model, names, Settings(**settings))
    for name in by:
        column(table, "by", name)
        if name in (*names, y):
            raise ValueError(f"by={name}: allowed: columns that the law is not of")
    _require_columns(table, names, y, crossing, options)

    def law(rows: pd.DataFrame) -> Fit:
        if crossing is not None:
            error, epsilon = crossing
            return fit_crossings(rows, names[0], curve=y, error=error, epsilon=epsilon, model=model, **options)
        return fit(rows, x, y, model, **options)

    if not by:
        return [Group((), law(table), "")]
    place = describe.groups(table, by)
    found = []
    for group in range(place.max() + 1):
        rows = table[place == group]
        values = tuple(rows[name].iloc[0] for name in by)
        try:
            own = law(rows)
        except ValueError as error:
            found.append(Group(values, None, str(error)))
        else:
            found.append(Group(values, own, own.why))
    return found


def _require_columns(
    table: pd.DataFrame, x: Sequence[str], y: str, crossing: tuple[str, float] | None, options: Mapping[str, Any]
) -> None:
    """Raise ValueError for a column that is named and not there."""
    named = [*(("x", name) for name in x), ("y" if crossing is None else "curve", y)]
    named += [("error", crossing[0])] if crossing is not None else []
    named += [(key, options[key]) for key in ("censored", "at_most") if options.get(key) is not None]
    named += [("seed", options["seed"])] if options.get("seed", "seed") not in (None, "seed") else []
    for key, name in named:
        column(table, key, name)


def numbers_of(groups: Sequence[Group], by: Sequence[str]) -> pd.DataFrame:
    """The laws as numbers, as `fit_by` gives them. Raises ValueError where `by` has a name that a number has."""
    laws = [group.fit for group in groups if group.fit is not None]
    parameters = list(dict.fromkeys(name for law in laws for name in law.parameters))
    rows = []
    for group in groups:
        law = group.fit
        row: dict[str, Any] = {"y": None, "x": None, "model": None}
        if law is not None:
            row = {"y": law.y, "x": ",".join(_names(law.x)), "model": law.model}
        for name in parameters:
            there = law is not None and name in law.parameters
            low, high = law.intervals[name] if law is not None and there else (np.nan, np.nan)
            row |= {name: law.parameters[name] if law is not None and there else np.nan}
            row |= {f"{name}_low": low, f"{name}_high": high}
        row |= {name: 0 if law is None else getattr(law, name) for name in _COUNTS}
        row |= {"held_out_error": np.nan if law is None else law.held_out_error}
        rows.append(row | {"supported": group.supported, "why": group.why})
    if taken := [name for name in by if name in rows[0]]:
        raise ValueError(f"by={taken[0]}: the law has a number of that name; allowed: a column of another name")
    labels = {name: [group.values[place] for group in groups] for place, name in enumerate(by)}
    return pd.concat([pd.DataFrame(labels, index=range(len(rows))), pd.DataFrame(rows)], axis=1)


def texts_of(groups: Sequence[Group], by: Sequence[str]) -> pd.DataFrame:
    """The laws as cells of text for a reader: the columns of `by`, the model where there are several, the exponents and
    then the other parameters with their intervals, points, held-out error, and whether the data support it.
    """
    laws = [group.fit for group in groups if group.fit is not None]
    models = list(dict.fromkeys(law.model for law in laws))
    exponents = [name for law in laws for name in law.law.exponents]
    parameters = list(dict.fromkeys([*exponents, *(name for law in laws for name in law.parameters)]))

    def cells(law: Fit | None) -> dict[str, str]:
        known = {} if law is None else law.parameters
        row = {"model": describe.MISSING if law is None else law.model} if len(models) > 1 else {}
        row |= {name: law.value(name) if law is not None and name in known else describe.MISSING for name in parameters}
        row |= {"points": describe.MISSING if law is None else str(law.points)}
        return row | {"held-out error": describe.MISSING if law is None else factor(law.held_out_error)}

    labels = [describe.texts(pd.Series([group.values[place] for group in groups])) for place in range(len(by))]
    rows = [
        dict(zip(by, values, strict=True)) | cells(group.fit) | {"supported": "yes" if group.supported else "no"}
        for group, values in zip(groups, zip(*labels, strict=True) if by else [()] * len(groups), strict=True)
    ]
    return pd.DataFrame(rows)


def said_of(groups: Sequence[Group], by: Sequence[str]) -> tuple[str, str]:
    """What the laws are of, and what their intervals are; nothing where there is no law."""
    laws = [group.fit for group in groups if group.fit is not None]
    if not laws:
        return "", ""
    models, seeds = dict.fromkeys(law.model for law in laws), {law.seeds for law in laws}
    each = f" for each {', '.join(by)}" if by else ""
    what = f"{max(seeds)} seeds" if len(seeds) == 1 and 0 not in seeds else "seeds, or rows for want of seeds"
    what = laws[0].resampled() if len(laws) == 1 else what
    about = f"{laws[0].y} against {', '.join(_names(laws[0].x))}{each}: {', '.join(models)}"
    return about, f"{laws[0].level:.0%} intervals, by resampling {what}"


def tex_of(groups: Sequence[Group], by: Sequence[str]) -> str:
    """The laws as a tabular of LaTeX with the rules of booktabs; parameters that the data do not support are dashes."""
    table = texts_of(groups, by)
    quoted = [name for name in table if name not in (*by, "model", "supported")]
    for name in quoted:
        shown = [
            text if group.supported or name == "points" else describe.MISSING
            for group, text in zip(groups, table[name], strict=True)
        ]
        table[name] = [_NUMBER.sub(lambda found: f"${_tex(found[0])}$", text) for text in shown]
    styled = table.style.hide(axis="index").format_index(escape="latex", axis=1)
    styled = styled.format(escape="latex", subset=[name for name in table if name not in quoted])
    columns = "".join("l" if name in (*by, "model", "supported") else "r" for name in table)
    said = "".join(f"% {line}\n" for line in said_of(groups, by) if line)
    return said + str(styled.to_latex(hrules=True, column_format=columns)).replace(describe.MISSING, "---")


_NUMBER = re.compile(r"×?-?(?:inf|nan|\d+(?:\.\d+)?(?:e[+-]\d+)?)")


def _tex(number: str) -> str:
    """A number as TeX's mathematics has it."""
    plain = number.removeprefix("×")
    sign = "\\times " * (plain != number)
    if "inf" in plain:
        return sign + plain.replace("inf", "\\infty")
    mantissa, _, power = plain.partition("e")
    return sign + (f"{mantissa} \\times 10^{{{int(power)}}}" if power else mantissa)
