"""What a table holds, in words and numbers: the vocabulary of reports, figures and studies."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

CHOICES = ("algorithm", "data", "tasks", "network", "loss", "probe")
"""Settings that are a choice of a config group; others often follow from them."""


def number(value: object) -> str:
    """A value for a person: four significant digits, em dash where missing."""
    if isinstance(value, np.ndarray):
        return " ".join(number(float(item)) for item in value)
    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return "—"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


class Estimate(NamedTuple):
    """A mean, its standard error (0 for a single value) and of how many values it is."""

    mean: float
    error: float
    n: int

    def __str__(self) -> str:
        if not self.n or not self.error:
            return number(self.mean)
        digits = max(0, 1 - math.floor(math.log10(self.error)))
        if digits > 6:
            return f"{self.mean:.4g} ± {self.error:.2g}"
        return f"{self.mean:.{digits}f} ± {self.error:.{digits}f}"


def estimate(values: pd.Series) -> Estimate:
    """The mean of those values that are there and finite (NaN if none is), with its standard error."""
    found = values.to_numpy(float, na_value=np.nan)
    found = found[np.isfinite(found)]
    if not len(found):
        return Estimate(math.nan, 0.0, 0)
    error = found.std(ddof=1) / math.sqrt(len(found)) if len(found) > 1 else 0.0
    return Estimate(float(found.mean()), float(error), len(found))


def settings(table: pd.DataFrame) -> list[str]:
    """The columns that say what a row is of: the settings, then the step."""
    names = list(table.columns)
    return names[: names.index("step") + 1]


def varying(table: pd.DataFrame) -> list[str]:
    """The settings that have more than one value in a table."""
    return [name for name in settings(table) if table[name].nunique() > 1]


def axes(table: pd.DataFrame) -> list[str]:
    """The settings, seed aside, that vary by themselves: not those that follow from others named before them.

    Choices of config groups come first, so that a default which differs between two algorithms is not an axis.
    """
    found: list[str] = []
    for name in sorted(varying(table), key=lambda name: CHOICES.index(name) if name in CHOICES else len(CHOICES)):
        by = table.groupby(found, dropna=False)[name].nunique(dropna=False).max() if found else 2
        if name != "seed" and by > 1:
            found.append(name)
    return found


def numeric(column: pd.Series) -> bool:
    """Whether a column holds numbers (flags are not)."""
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def seeds(table: pd.DataFrame) -> str:
    """How many seeds a table has: one seed, 8 seeds."""
    count = table["seed"].nunique()
    return "one seed" if count == 1 else f"{count} seeds"


def values(column: pd.Series, most: int = 12) -> str:
    """The distinct values of a column: 0…7 for consecutive integers; of more than `most`, the ends and how many."""
    found = sorted(column.dropna().unique())
    whole = len(found) > 2 and all(isinstance(value, int | np.integer) for value in found)
    if whole and found[-1] - found[0] == len(found) - 1:
        text = f"{found[0]}…{found[-1]}"
    elif len(found) > most:
        text = f"{number(found[0])}, {number(found[1])}, …, {number(found[-1])} ({len(found)} values)"
    else:
        text = ", ".join(number(value) for value in found)
    return text
