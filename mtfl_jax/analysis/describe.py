"""What a table holds, in words and numbers: the vocabulary of reports, figures and studies.

Three rules hold here for everything that reads a table. A missing setting is a value like another: rows of which one
has it and the other has not are rows of two settings (`codes`). A row that is not ok has no measurements (`measured`).
A measurement that is only known to be at least something is no value (`exact`): it is left out and counted.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from mtfl_jax.names import COLUMN_LABELS, GROUPS, GUESSING, OK, STATUSES

MAIN = ("subspace_distance", "directions_recovered", "task_error", "downstream_error")
"""The measurements that are shown of any table; those that are not built in are shown too."""
MISSING = "—"
"""What is shown where there is no value."""
CENSORED = "{}_censored"
"""The column that is true where a measurement is only known to be at least what stands there."""
_BESIDE = ("status", "diverged_step", "id")
"""Columns that are neither settings nor measurements."""
_DIGITS = (4, 6, 9, 12, 15, 16, 17)


def number(value: object, digits: int = 4) -> str:
    """A value for a person: four significant digits, em dash where missing."""
    if isinstance(value, np.ndarray | list):
        return " ".join(number(float(item)) for item in value)
    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return MISSING
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return str(value)


def texts(column: pd.Series, among: pd.Series | None = None) -> list[str]:
    """Every value of a column of settings as text: numbers with as many digits, from four on, as tell those of `among`
    (by default the column itself) apart.
    """
    every = column if among is None else among
    distinct = [value for value in every.unique() if isinstance(value, float) and value == value]
    for digits in _DIGITS:
        if len({number(value, digits) for value in distinct}) == len(distinct):
            break
    return [number(value, digits) for value in column]


class Estimate(NamedTuple):
    """A mean, its standard error (0 for a single value), of how many values it is, and of how many rows."""

    mean: float
    error: float
    n: int
    of: int

    def __str__(self) -> str:
        if not self.n or not self.error:
            return self._noting(number(self.mean))
        digits = max(0, 1 - math.floor(math.log10(self.error)))
        if digits > 6:
            return self._noting(f"{self.mean:.4g} ± {self.error:.2g}")
        return self._noting(f"{self.mean:.{digits}f} ± {self.error:.{digits}f}")

    def show(self, spec: str) -> str:
        """The mean in a format such as ".1%", a dash where there is none, and of how many rows it is unless of all."""
        return self._noting(format(self.mean, spec) if self.n else MISSING)

    def counted(self) -> str:
        """Of how many it is: 8, or 6 of 8 where some have no value."""
        return str(self.n) if self.n == self.of else f"{self.n} of {self.of}"

    def _noting(self, text: str) -> str:
        return text if self.n in (0, self.of) else f"{text} ({self.counted()})"


def estimate(values: pd.Series) -> Estimate:
    """The mean of those values that are there and finite (NaN if none is), with its standard error."""
    found = values.to_numpy(float, na_value=np.nan)
    count = len(found)
    found = found[np.isfinite(found)]
    if not len(found):
        return Estimate(math.nan, 0.0, 0, count)
    error = found.std(ddof=1) / math.sqrt(len(found)) if len(found) > 1 else 0.0
    return Estimate(float(found.mean()), float(error), len(found), count)


def all_found(rows: pd.DataFrame) -> pd.Series:
    """Whether each row's network found all r directions: 1 or 0, missing where that was not measured."""
    found = rows["directions_recovered"]
    return (found == rows["r"]).astype("Float64").where(found.notna())


def ok(table: pd.DataFrame) -> pd.Series:
    """Which rows have measurements: those whose status is ok. A table without a column `status`, or in which no status
    is of `STATUSES`, is not of `mtfl`, and all its rows count.
    """
    if "status" not in table or not table["status"].isin(STATUSES).any():
        return pd.Series(True, table.index)
    return (table["status"] == OK).fillna(False).astype(bool)


def measurements(table: pd.DataFrame) -> list[str]:
    """The columns that say what was found of a row."""
    names = list(table.columns)
    return [name for name in names[names.index("step") + 1 :] if name not in _BESIDE]


def main_measurements(table: pd.DataFrame, main: Sequence[str]) -> list[str]:
    """Those of `main` that a table has, then the numbers measured that are not built in."""
    mine = [name for name in measurements(table) if name not in COLUMN_LABELS and numeric(table[name])]
    return [name for name in main if name in table] + mine


def guessing(table: pd.DataFrame) -> list[str]:
    """What is to be said of errors that are no better than guessing, within two standard errors of n_test samples."""
    said = []
    for name, guess in GUESSING.items():
        if name not in table or "n_test" not in table:
            continue
        error, n = (table[key].to_numpy(float, na_value=np.nan) for key in (name, "n_test"))
        known = np.isfinite(error)
        lost = int((error[known] > guess - 2 * np.sqrt(guess * (1 - guess) / n[known])).sum())
        if lost:
            rows = "" if len(table) == 1 else f" in {lost} of {int(known.sum())} rows"
            said.append(f"{name} is no better than guessing ({guess:g}){rows}")
    return said


def measured(table: pd.DataFrame, *, bounds: bool = False) -> pd.DataFrame:
    """The table without the measurements of the rows that are not ok, and without those that are censored. Whatever
    reads a table reads this. bounds: with those that are censored, for who fits them as such.
    """
    good = ok(table)
    if not good.all():
        table = table.assign(**{name: table[name].where(good) for name in measurements(table)})
    return table if bounds else exact(table)


def censored(table: pd.DataFrame, name: str) -> pd.Series:
    """Which rows have a measurement of which only that it is at least this much is known, by its `CENSORED`."""
    marks = CENSORED.format(name)
    return table[marks].isin([True]) if marks in table else pd.Series(False, table.index)


def exact(table: pd.DataFrame) -> pd.DataFrame:
    """The table without the values that are censored."""
    marked = {name: censored(table, name) for name in map(str, table) if CENSORED.format(name) in table}
    found = {name: table[name].mask(marks) for name, marks in marked.items() if marks.any()}
    return table.assign(**found) if found else table


def left_out(table: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """A sentence for each measurement of which values are left out, since they are censored."""
    counts = {name: int(censored(table, name).sum()) for name in names}
    return [f"Rows in which {name} is censored: {count}; they are left out." for name, count in counts.items() if count]


def settings(table: pd.DataFrame) -> list[str]:
    """The columns that say what a row is of: the settings, then the step."""
    names = list(table.columns)
    return names[: names.index("step") + 1]


def codes(column: pd.Series) -> np.ndarray:
    """The values of a column numbered from 0 in order (n,), those that are missing last, as one more value."""
    found, distinct = pd.factorize(column, sort=True)
    return np.where(found < 0, len(distinct), found)


def called(column: pd.Series) -> list[str]:
    """What each of the `codes` of a column stands for, as text."""
    first = np.unique(codes(column), return_index=True)[1]
    return texts(column.iloc[first])


def groups(table: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    """The settings of the columns `names` numbered from 0 in order (n,): rows have one number where they agree in
    every one of them, in what is missing too.
    """
    found = np.zeros(len(table), np.int64)
    for name in names:
        own = codes(table[name])
        found = np.unique(found * (own.max(initial=0) + 1) + own, return_inverse=True)[1]
    return found


def varying(table: pd.DataFrame) -> list[str]:
    """The settings that have more than one value in a table, missing being one."""
    return [name for name in settings(table) if codes(table[name]).max(initial=0) > 0]


def follows(table: pd.DataFrame, name: str, others: Sequence[str]) -> bool:
    """Whether rows that agree in `others` agree in `name` too."""
    return int(groups(table, [*others, name]).max(initial=0)) == int(groups(table, others).max(initial=0))


def axes(table: pd.DataFrame) -> list[str]:
    """The settings, seed aside, that vary by themselves: not those that follow from others named before them. Rows
    that agree in all of them differ in their seed only.

    Choices of config groups come first, so that a default which differs between two algorithms is not an axis.
    """
    found: list[str] = []
    for name in sorted(varying(table), key=lambda name: GROUPS.index(name) if name in GROUPS else len(GROUPS)):
        if name != "seed" and not follows(table, name, found):
            found.append(name)
    return found


def sampled(table: pd.DataFrame, axes: Sequence[str]) -> list[tuple[str, str]]:
    """Those of the axes that are of numbers, each with a setting that has a value of its own at each of the axis's,
    neither rising nor falling with it: points of intervals, which move together.
    """
    found = []
    for axis in (name for name in axes if numeric(table[name])):
        for other in varying(table):
            one_each = other not in (axis, "seed") and numeric(table[other]) and follows(table, other, [axis])
            if one_each and follows(table, axis, [other]):
                turns = np.diff(table.drop_duplicates(axis).sort_values(axis)[other].to_numpy(float, na_value=np.nan))
                found += [(axis, other)] * bool((turns > 0).any() and (turns < 0).any())
    return found


def moving(axes: Sequence[str], points: Sequence[tuple[str, str]]) -> list[str]:
    """The axes, and the settings that move with one through points (`sampled`)."""
    return [*axes, *dict.fromkeys(other for _, other in points)]


def telling(table: pd.DataFrame) -> list[str]:
    """The settings that tell a table's rows apart: those that vary, less those that follow from the choices of config
    groups that vary.
    """
    names = varying(table)
    choices = [name for name in names if name in GROUPS]
    return [name for name in names if name in choices or not follows(table, name, choices)]


def numeric(column: pd.Series) -> bool:
    """Whether a column holds numbers (flags are not)."""
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def lists(column: pd.Series) -> bool:
    """Whether a column holds lists, as measurements may."""
    return column.dtype == object and bool(column.map(lambda value: isinstance(value, list | np.ndarray)).any())


def spans_decades(column: pd.Series) -> bool:
    """Whether a column holds positive numbers that differ by a factor of ten or more."""
    if not numeric(column) or column.isna().any():
        return False
    return bool(column.min() > 0) and bool(column.max() >= 10 * column.min())


def seeds(
    table: pd.DataFrame, *, by: Sequence[str] | None = None, counted: pd.Series | None = None, whole: bool = False
) -> str:
    """How many seeds the means of a table are of: one seed, 8 seeds; 4 of 6 seeds where rows are not ok.

    by: the settings whose rows a mean is of, by default all but the seed. counted: which rows have a value, by default
    those that are ok. whole: all rows count, since the caller gives those that are not ok a value.
    """
    count = int(table["seed"].nunique())
    text = "one seed" if count == 1 else f"{count} seeds"
    good = ok(table) if counted is None else counted
    if whole or good.all():
        return text
    at = groups(table, [name for name in varying(table) if name != "seed"] if by is None else by)
    numbers = table["seed"].where(good).groupby(at).nunique()
    there = numbers[numbers > 0]
    if there.empty:
        return f"none of {text}"
    least, most = int(there.min()), int(there.max())
    counts = f"{least} of {text}" if least == most else f"{least} to {most} of {text}"
    lost = f", none at {len(numbers) - len(there)} of {len(numbers)} settings" if len(there) < len(numbers) else ""
    return (text if least == count else counts) + lost


def values(column: pd.Series, most: int = 12, among: pd.Series | None = None) -> str:
    """The distinct values of a column: 0…7 for consecutive integers; of more than `most`, the ends and how many. A dash
    comes last where some are missing; empty where all are. among: as of `texts`.
    """
    distinct = pd.Series(sorted(column.dropna().unique()), dtype=object)
    whole = len(distinct) > 2 and all(isinstance(value, int | np.integer) for value in distinct)
    if distinct.empty:
        return ""
    if whole and distinct.iloc[-1] - distinct.iloc[0] == len(distinct) - 1:
        text = f"{distinct.iloc[0]}…{distinct.iloc[-1]}"
    elif len(distinct) > most:
        shown = texts(distinct, among)
        text = f"{shown[0]}, {shown[1]}, …, {shown[-1]} ({len(distinct)} values)"
    else:
        text = ", ".join(texts(distinct, among))
    return f"{text}, {MISSING}" if column.isna().any() else text
