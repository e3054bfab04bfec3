"""Where error curves cross a threshold: n*(d), the samples at which the error falls to ε, or m*(d), the neurons."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from mtfl_jax.analysis.columns import column, labels, numbers, ok
from mtfl_jax.analysis.descent import AT_LEAST, AT_MOST, EXACT, Points
from mtfl_jax.analysis.fits import Fit, Settings, check, conclude


class Crossing(NamedTuple):
    """Where an error curve crosses ε: its x, at least that where it `never` does, at most where so `at_start`."""

    value: float
    status: Literal["crossed", "never", "at_start"]


def crossing(x: Sequence[float] | np.ndarray, error: Sequence[float] | np.ndarray, epsilon: float) -> Crossing:
    """The x from which on the error curve (x ascending and positive) is at or below ε, linear in log x between points.

    Where the curve rises above ε again, the later crossing counts. Raises ValueError for a curve that is not one.
    """
    sizes, errors = np.asarray(x, float), np.asarray(error, float)
    if sizes.ndim != 1 or sizes.shape != errors.shape or not len(sizes):
        raise ValueError(f"x, error: shapes {sizes.shape}, {errors.shape}; allowed: two sequences of one length")
    if not (np.diff(sizes) > 0).all() or sizes[0] <= 0 or not np.isfinite([sizes, errors]).all():
        raise ValueError("x, error: allowed: x positive and ascending, and no missing numbers")
    value, kind = _cross(sizes, errors[None], epsilon)
    statuses: dict[int, Literal["crossed", "never", "at_start"]]
    statuses = {EXACT: "crossed", AT_LEAST: "never", AT_MOST: "at_start"}
    return Crossing(float(value[0]), statuses[int(kind[0])])


def crossings(
    table: pd.DataFrame, *, curve: str, error: str, epsilon: float, by: Sequence[str], seed: str | None = "seed"
) -> pd.DataFrame:
    """The `crossing` of each group's error curve, mean over seeds: a row a group, with columns `by`, CURVE_star,
    `censored` (it never crosses: at least that) and `at_start` (at most that). For intervals use `fit_crossings`.
    """
    table = ok(table)
    _curve_rows(table, list(by), curve, error, seed)
    rows = []
    for group, own in table.groupby(list(by), dropna=False):
        mean = own.groupby(curve)[error].mean()
        value, status = crossing(mean.index.to_numpy(float), mean.to_numpy(float), epsilon)
        found = {f"{curve}_star": value, "censored": status == "never", "at_start": status == "at_start"}
        rows.append(dict(zip(by, group, strict=True)) | found)
    return pd.DataFrame(rows)


def _cross(x: np.ndarray, error: np.ndarray, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """`crossing` of the curves error (B, K) at x (K,): values, NaN for curves with a NaN, and kinds, (B,) each."""
    above = error > epsilon
    kind = np.where(above[:, -1], AT_LEAST, np.where(above.any(1), EXACT, AT_MOST))
    crosses, row = kind == EXACT, np.arange(len(error))
    before = np.where(crosses, len(x) - 1 - np.argmax(above[:, ::-1], 1), 0)
    after = np.where(crosses, before + 1, 0)
    fall = error[row, before] - error[row, after]
    share = (error[row, before] - epsilon) / np.where(crosses, fall, 1)
    between = np.exp(np.log(x[before]) + share * np.log(x[after] / x[before]))
    value = np.where(crosses, between, np.where(kind == AT_LEAST, x[-1], x[0]))
    return np.where(np.isnan(error).any(1), np.nan, value), kind


def fit_crossings(
    table: pd.DataFrame,
    x: str,
    *,
    curve: str,
    error: str,
    epsilon: float,
    model: str = "power",
    seed: str = "seed",
    bootstraps: int = 400,
    level: float = 0.95,
    rng: int = 0,
    delta: float | None = None,
    breaks: int | str | None = None,
    free: str | Sequence[str] = (),
) -> Fit:
    """Fit a law to the `crossing` of each x's error curve, mean over seeds: sample complexity against d, say.

    The table has a row for each x, curve and seed. Every bootstrap resample of the seeds has curves, crossings and a
    fit of its own. Curves that never cross are points at least, those that start below epsilon at most, the value
    given. The rest is of `fit`. Raises ValueError as it does, where x, curve and seed do not tell rows apart, and where
    errors are censored, whose mean is not known.
    """
    settings = Settings(bootstraps, level, rng, delta, breaks, free)
    check(model, (x,), settings)
    rows, table = len(table), ok(table)
    of_row = _curve_rows(table, [x], curve, error, seed, key="x")
    seeds = int(of_row.max()) + 1
    sizes, place = np.unique(numbers(table, "x", x), return_inverse=True)
    values = table[error].to_numpy(float)
    curves = []
    for at in range(len(sizes)):
        own = place == at
        steps, step = np.unique(numbers(table[own], "curve", curve), return_inverse=True)
        sums, there = np.zeros((2, len(steps), seeds))
        np.add.at(sums, (step, of_row[own]), values[own])
        np.add.at(there, (step, of_row[own]), 1)
        curves.append((steps, sums, there))

    def crossed(counts: np.ndarray) -> Points:
        found = []
        for steps, sums, there in curves:
            with np.errstate(invalid="ignore"):
                found.append(_cross(steps, (counts @ sums.T) / (counts @ there.T), epsilon))
        log_y, kind = (np.stack(part, -1) for part in zip(*found, strict=True))
        return Points(sizes[None], np.log(log_y), kind)

    def resample(counts: np.ndarray) -> tuple[Points, np.ndarray]:
        points = crossed(counts)
        return points, np.ones(points.log_y.shape)

    whole = crossed(np.ones((1, seeds)))
    points = Points(whole.x, whole.log_y[0], whole.kind[0])
    return conclude(model, x, f"{curve}_star", points, settings, resample, seeds, seeds, rows - len(table))


def _curve_rows(
    table: pd.DataFrame, by: Sequence[str], curve: str, error: str, seed: str | None, key: str = "by"
) -> np.ndarray:
    """The rows' seeds as numbers from 0, once the table is known to hold error curves. key: what gave `by`."""
    for name in by:
        column(table, key, name)
    numbers(table, "curve", curve)
    numbers(table, "error", error, positive=False)
    of_row = np.arange(len(table)) if seed is None else labels(table, seed)
    if seed is not None:
        names = [*by, curve, seed]
        twice = int(table.duplicated(names).sum())
        if twice:
            raise ValueError(f"{key}={','.join(names)}: {twice} rows repeat another's; allowed: one row for each")
    return of_row
