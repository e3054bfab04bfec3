"""Reading the columns of anyone's table, each as what it must be; what is not so is said in one line."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mtfl_jax.analysis import describe
from mtfl_jax.records import guess

NULL = "null"
"""What a condition calls a value that is missing."""


def ok(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that have measurements. Raises ValueError where there are rows and none has."""
    good = describe.ok(table)
    if len(table) and not good.any():
        raise ValueError(f"TABLE={len(table)} rows: every one of them diverged; allowed: one or more that did not")
    return table if good.all() else table[good]


def require(table: pd.DataFrame, key: str, name: str) -> pd.Series:
    """A column of single values. Raises ValueError, as all functions here, that begins with key=name."""
    if name not in table:
        known = list(map(str, table.columns))
        raise ValueError(f"{key}={name}: allowed: the columns {', '.join(known)}{guess(name, known)}")
    if describe.lists(table[name]):
        raise ValueError(f"{key}={name}: a column of lists; allowed: one of numbers or names")
    return table[name]


def column(table: pd.DataFrame, key: str, name: str) -> pd.Series:
    """`require`, of a table that has rows."""
    found = require(table, key, name)
    if table.empty:
        raise ValueError(f"{key}={name}: the table has no rows; allowed: one or more")
    return found


def numbers(table: pd.DataFrame, key: str, name: str, positive: bool = True, bounds: bool = False) -> np.ndarray:
    """A column of finite numbers, positive ones unless said otherwise, (n,) float64. bounds: whether they may be
    censored.
    """
    found = column(table, key, name)
    try:
        values = found.to_numpy(float, na_value=np.nan)
    except (ValueError, TypeError):
        raise ValueError(f"{key}={name}: not a column of numbers; allowed: numbers") from None
    bad = ~np.isfinite(values) | (positive & (values <= 0))
    if bad.any():
        what = "missing, infinite or not positive" if positive else "missing or infinite"
        raise ValueError(f"{key}={name}: {bad.sum()} of {len(bad)} values are {what}; allowed: rows without them")
    marks = 0 if bounds else describe.censored(table, name).sum()
    if marks:
        raise ValueError(f"{key}={name}: {marks} of {len(bad)} values are censored; allowed: rows without them")
    return values


def flags(table: pd.DataFrame, key: str, name: str | None) -> np.ndarray:
    """A column of true and false, (n,); all false for None."""
    if name is None:
        return np.zeros(len(table), bool)
    found = column(table, key, name)
    if found.isna().any() or not found.isin([False, True]).all():
        raise ValueError(f"{key}={name}: not a column of true and false; allowed: true and false, none missing")
    return found.to_numpy(bool)


def labels(table: pd.DataFrame, seed: str) -> np.ndarray:
    """The seed of each row, numbered from 0, (n,)."""
    codes, _ = pd.factorize(column(table, "seed", seed), sort=True)
    if (codes < 0).any():
        raise ValueError(f"seed={seed}: {(codes < 0).sum()} values are missing; allowed: a seed in every row")
    return codes


def chosen(table: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """The rows that meet every COLUMN=VALUE, where a VALUE null is a missing one. Raises ValueError for an unknown
    column or a value that no row has.
    """
    for condition in conditions:
        name, _, text = condition.partition("=")
        if name not in table:
            raise ValueError(f"where={condition}: allowed: COLUMN=VALUE, columns {', '.join(map(str, table.columns))}")
        column = require(table, "where", name)
        if text == NULL and not (column.astype(str) == text).any():
            same = column.isna()
        elif pd.api.types.is_bool_dtype(column):
            same = column.astype(str).str.lower() == text.lower()
        elif pd.api.types.is_numeric_dtype(column):
            same = column == pd.to_numeric(text, errors="coerce")
        else:
            same = column.astype(str) == text
        if not same.any():
            values = [str(value) for value in column.dropna().unique()] + [NULL] * bool(column.isna().any())
            shown = ", ".join(values[:10]) + ", …" * (len(values) > 10)
            raise ValueError(f"where={condition}: no such row; allowed for {name}: {shown}")
        table = table[same.fillna(False).astype(bool)]
    return table
