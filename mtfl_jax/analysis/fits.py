"""Laws fitted to tables: power laws and their kin, with intervals, a held-out check and a verdict.

How a fit is made, whatever the model:

- **Loss**: Huber's, of residuals in log y, so a law is of the typical (geometric mean) y and errors are factors. It
  turns linear at 1.345 scales of the residuals (Huber's proposal 2), or at `delta`.
- **Censored points** count through Tobit's likelihood with that same scale: a point known to be at least (at most) y
  pulls the law up (down) by as much as the law makes that improbable. In simulations (16 seeds, 33% of the points
  above a ceiling, log noise 0.3 a seed and 0.5 a row) 95% intervals of the exponent covered it in 95%; in 82% with a
  loss that is zero wherever the law satisfies the bound, in 63% without those points.
- **Optimum**: many fixed starts descend together, and `scipy.optimize.least_squares` ends the best one's descent.
- **Intervals**: bootstrap clustered by seed, since the rows of a seed share randomness: seeds are resampled with
  replacement with all their rows, and each resample's fit starts from the whole's. Percentiles are stretched about
  the estimate by √(S/(S−1)) t_{S−1}/z: so 95% intervals of an exponent covered it in 92% to 96% of simulated tables
  with 4 to 32 seeds, without it in 79% to 82% of those with 4. They hold for the model as chosen.
- **Digits** of a parameter follow its interval: two of half its width.
- **Held-out error**: the law fitted to the smaller x predicts the largest third of the distinct x (at least one);
  the root-mean-square log residual there, next to what a constant gives. Of the censored points only those count
  that the law contradicts.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from mtfl_jax.analysis import describe
from mtfl_jax.analysis.columns import flags, labels, numbers, ok
from mtfl_jax.analysis.descent import AT_LEAST, AT_MOST, EXACT, Points, Solution, descend, solve
from mtfl_jax.analysis.models import AUTO, BROKEN, CONSTANT, FREE, MODELS, MOST_BREAKS, Model, broken

UNPLACED = 2.97 / 1.96
"""By how much the interval of a change is wider where its place was sought too (Andrews 1993, the largest of t)."""
MOST_DIGITS = 6
"""Of a parameter: the searches end at a millionth."""
_ROUNDING = 1e-9
"""An exponent that changes log y by less over all points is 0."""


class Seen(NamedTuple):
    """What a law was fitted to, as points: x (variables, k), and at each the typical y, the ends of its interval, NaN
    where there is none, what is known of it, and whether it was held out, (k,) each.
    """

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    kind: np.ndarray
    held_out: np.ndarray


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted law, of the record `law`. `seeds` is 0 where rows were resampled in their stead; `censored` points are
    known to be at least their y, `at_most` ones at most; `diverged` rows of the table were left out. `held_out` holds
    the error of every model compared, always with `constant`. `supported` is False where the data cannot carry the law,
    for the reasons in `why`; parameters are then not to be quoted, and are NaN where there was nothing to fit. `seen`
    gives its points.
    """

    law: Model = dataclasses.field(repr=False)
    x: str | tuple[str, ...]
    y: str
    parameters: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    points: int
    seeds: int
    censored: int
    at_most: int
    held_out: Mapping[str, float]
    supported: bool
    why: str
    diverged: int
    level: float
    seen: Callable[[], Seen] = dataclasses.field(repr=False, compare=False)

    @property
    def model(self) -> str:
        """The law's name."""
        return self.law.name

    @property
    def held_out_error(self) -> float:
        """Root-mean-square log residual of the predicted largest x; NaN where nothing could be held out."""
        return self.held_out[self.model]

    def predict(self, x: Any) -> np.ndarray:
        """The law's y (n,) at x (n,), or at one such a variable for a law of several."""
        model = self.law
        sizes = np.asarray(x, float)
        values = np.array([self.parameters[name] for name in model.parameters])
        theta = np.log(values, where=model.logged(), out=values.copy())
        at = sizes.reshape(model.variables, -1)
        return np.exp(model.curve(theta[None], at)[0][0]).reshape(sizes.shape[model.variables > 1 :])

    def formula(self) -> str:
        """The law as text, such as "n_star = 3.1 · d^2.04"; a dash where nothing was fitted."""
        if np.isnan(list(self.parameters.values())).any():
            return "—"
        names = (self.x,) if isinstance(self.x, str) else self.x
        words = {name: self._texts(name)[0] for name in self.parameters}
        words |= self.law.words(self.parameters)
        words |= {f"x{place}" if place > 1 else "x": name for place, name in enumerate(names, 1)}
        return self.law.text.format(y=self.y, **words)

    def exponents(self) -> str:
        """The exponents or the rate, each with its interval."""
        return ", ".join(f"{name} {self.value(name)}" for name in self.law.exponents)

    def value(self, name: str) -> str:
        """A parameter with its interval, as text."""
        value, low, high = self._texts(name)
        return f"{value} ({low} to {high})"

    def _texts(self, name: str) -> tuple[str, str, str]:
        return texts(self.parameters[name], *self.intervals[name])

    def resampled(self) -> str:
        """What the intervals come from resampling, as text."""
        return f"{self.seeds} seeds" if self.seeds else f"{self.points} rows, for want of seeds"

    def left_out(self) -> str:
        """How many rows were left out, as text; empty where none was."""
        return f"left out: {self.diverged} row{'s' * (self.diverged != 1)} that diverged" if self.diverged else ""

    def sentence(self) -> str:
        """The law, its exponents with their intervals and what carries them, in one line."""
        lost = f"; {self.left_out()}" if self.diverged else ""
        if not self.supported:
            return f"{self.y}: the data do not support {self.model}: {self.why}{lost}"
        return (
            f"{self.formula()}: {self.exponents()}, {self.level:.0%} interval by resampling {self.resampled()};"
            f" held-out error {factor(self.held_out_error)}, of a constant {factor(self.held_out[CONSTANT.name])}{lost}"
        )


def texts(value: float, low: float, high: float) -> tuple[str, str, str]:
    """A number and the ends of its interval as text, all to two digits of half the interval's width, three where it has
    none; where 0 is not inside, a number much smaller than that has two digits of its own.
    """
    half = (high - low) / 2

    def text(number: float) -> str:
        if not math.isfinite(number) or not number:
            return f"{number + 0.0:g}"
        first, digits = math.floor(math.log10(abs(number))), 3
        if math.isfinite(half) and half > 0:
            digits = min(first - math.floor(math.log10(half)) + 2, MOST_DIGITS)
            digits = digits if low < 0 < high else max(digits, 2)
        rounded = round(number, digits - 1 - first) + 0.0
        plain = rounded == 0 or 1e-4 <= abs(rounded) < 1e6
        return np.format_float_positional(rounded, trim="-") if plain else np.format_float_scientific(rounded, trim="-")

    return text(value), text(low), text(high)


def factor(error: float) -> str:
    """A log error as the factor it is: ×1.08; a dash where there is none."""
    return "—" if np.isnan(error) else f"×{np.exp(error):.3g}"


def table_of(fits: Mapping[str, Fit]) -> pd.DataFrame:
    """The fits as cells of text, a row each under its name: law, exponents with intervals, counts, error, verdict."""
    return pd.DataFrame(
        [
            {
                "what": name,
                "law": fit.formula(),
                "exponent": fit.exponents(),
                "points": f"{fit.points}; {fit.left_out()}" if fit.diverged else str(fit.points),
                "seeds": str(fit.seeds) if fit.seeds else "—",
                "censored": str(fit.censored + fit.at_most),
                "held-out error": factor(fit.held_out_error),
                "supported": "yes" if fit.supported else f"no: {fit.why}",
            }
            for name, fit in fits.items()
        ]
    )


def fit(
    table: pd.DataFrame,
    x: str | tuple[str, ...],
    y: str,
    model: str = "power",
    *,
    seed: str | None = "seed",
    censored: str | None = None,
    at_most: str | None = None,
    bootstraps: int = 400,
    level: float = 0.95,
    rng: int = 0,
    delta: float | None = None,
    breaks: int | str | None = None,
    free: str | Sequence[str] = (),
) -> Fit:
    """Fit a law y(x) to the rows of a table.

    x: a column, or as many as the model has variables. Rows that diverged are left out. model: of MODELS, or `auto`:
    the one of one variable with the least held-out error, a simpler one on near ties. seed: the column whose values
    are resampled; rows are, where the table has no column `seed` or fewer than two seeds, or with None. censored,
    at_most: columns of true and false that mark rows whose true y is at least, at most, the y given; where a table has
    them, columns Y_censored or else `censored`, and `at_start`, are these. delta: where the loss turns linear in log y,
    by default 1.345 scales of the residuals; 1e-3 is that of scaling laws of language models (Hoffmann et al. 2022).
    breaks: of model broken_power, how many, or `auto`: the number with the least held-out error. free: what it has as
    parameters beside, of `floor` and `sharpness`. Raises ValueError, in one line that names the
    argument, its value and what is allowed, for what cannot be read as such, above all for a y that is missing,
    infinite or not positive.
    """
    names = (x,) if isinstance(x, str) else tuple(x)
    settings = Settings(bootstraps, level, rng, delta, breaks, free)
    check(model, names, settings)
    logged = model != AUTO and MODELS[model].logarithmic
    censored, at_most = marked(table, y, censored, at_most)
    whole, table = len(table), ok(table)
    sizes = np.stack([numbers(table, "x", name, positive=logged) for name in names])
    log_y = np.log(numbers(table, "y", y, bounds=True))
    low, high = flags(table, "censored", censored), flags(table, "at_most", at_most)
    if (low & high).any():
        both = f"{np.sum(low & high)} rows are also marked by {censored}"
        raise ValueError(f"at_most={at_most}: {both}; allowed: one mark a row")
    points = Points(sizes, log_y, np.where(low, AT_LEAST, np.where(high, AT_MOST, EXACT)))
    known = seed is not None and (seed != "seed" or seed in table)
    of_row = labels(table, str(seed)) if known else np.zeros(len(table), int)
    seeds = int(of_row.max()) + 1
    if seeds < 2:
        of_row = np.arange(len(table))

    def resample(counts: np.ndarray) -> tuple[Points, np.ndarray]:
        return points, counts[:, of_row].astype(float)

    units = int(of_row.max()) + 1
    return conclude(model, x, y, points, settings, resample, seeds if seeds > 1 else 0, units, whole - len(table))


def marked(table: pd.DataFrame, y: str, censored: str | None, at_most: str | None) -> tuple[str | None, str | None]:
    """The columns that mark the rows whose y is at least and at most what is given: those named, else those there."""
    own = describe.CENSORED.format(y)
    unasked = own if own in table else "censored" if "censored" in table else None
    return censored or unasked, at_most or ("at_start" if "at_start" in table else None)


class Settings(NamedTuple):
    """How laws are fitted, as `fit` has it."""

    bootstraps: int = 400
    level: float = 0.95
    rng: int = 0
    delta: float | None = None
    breaks: int | str | None = None
    free: str | Sequence[str] = ()

    def freed(self) -> tuple[str, ...]:
        return (self.free,) if isinstance(self.free, str) else tuple(self.free)


def check(model: str, x: Sequence[str], settings: Settings) -> None:
    if model != AUTO and model not in MODELS:
        raise ValueError(f"model={model}: allowed: {AUTO}, {', '.join(MODELS)}")
    variables = 1 if model == AUTO else MODELS[model].variables
    if len(x) != variables:
        raise ValueError(f"x={','.join(x)}: allowed: {variables} column{'s' * (variables > 1)} for model={model}")
    if settings.bootstraps < 20:
        raise ValueError(f"bootstraps={settings.bootstraps}: allowed: an integer from 20")
    if not 0 < settings.level < 1:
        raise ValueError(f"level={settings.level}: allowed: above 0, below 1")
    if settings.delta is not None and not settings.delta > 0:
        raise ValueError(f"delta={settings.delta}: allowed: above 0")
    breaks = settings.breaks
    if breaks not in (None, AUTO) and (not isinstance(breaks, int) or isinstance(breaks, bool) or breaks < 1):
        raise ValueError(f"breaks={breaks}: allowed: {AUTO}, an integer from 1")
    if strange := [name for name in settings.freed() if name not in FREE]:
        raise ValueError(f"free={strange[0]}: allowed: {', '.join(FREE)}")
    for key, given in (("breaks", breaks), ("free", ",".join(settings.freed()))):
        if given and model != BROKEN:
            raise ValueError(f"{key}={given}: allowed with model={BROKEN}")


def _candidates(model: str, settings: Settings, points: Points) -> list[Model]:
    """The laws among which the held-out error chooses, from the simplest to the richest."""
    if model == AUTO:
        positive = (points.x > 0).all()
        return [law for law in MODELS.values() if law.variables == 1 and (positive or not law.logarithmic)]
    if model != BROKEN:
        return [MODELS[model]]
    breaks = range(MOST_BREAKS + 1) if settings.breaks == AUTO else [int(settings.breaks or 1)]
    return [broken(count, settings.freed()) for count in breaks]


def _held_out(points: Points) -> np.ndarray:
    """Which points have one of the largest third (at least one) of the distinct x that are not all censored, (n,)."""
    held = np.zeros(points.x.shape[1], bool)
    for sizes in points.x:
        values = np.unique(sizes[points.kind == EXACT])
        held |= sizes >= values[-max(1, len(values) // 3)] if len(values) else True
    return held


def _held_out_error(model: Model, points: Points, delta: float | None) -> float:
    held = _held_out(points)
    smaller, larger = points.only(~held), points.only(held)
    if smaller.distinct() < len(model.parameters):
        return np.nan
    solution = solve(model, smaller, delta)
    residual = larger.log_y - model.curve(solution.theta[None], larger.x)[0][0]
    contradicted = (larger.kind == EXACT) | (residual * larger.kind > 0)
    return float(np.sqrt(np.mean(residual[contradicted] ** 2)))


def _choose(laws: Sequence[Model], points: Points, delta: float | None) -> tuple[Model, dict[str, float]]:
    """The law with the least held-out error, a simpler one where it is within 5% (and 0.005), and all errors."""
    errors = {law.name: _held_out_error(law, points, delta) for law in laws}
    limit = 1.05 * min((error for error in errors.values() if error == error), default=np.inf) + 0.005
    close = [law for law in laws if errors[law.name] <= limit] or laws[:1]
    return min(close, key=lambda law: (len(law.parameters), errors[law.name])), errors


def conclude(
    model: str,
    x: str | tuple[str, ...],
    y: str,
    points: Points,
    settings: Settings,
    resample: Callable[[np.ndarray], tuple[Points, np.ndarray]],
    seeds: int,
    units: int,
    diverged: int,
) -> Fit:
    """The fit to the points, from the resamples that counts (B, units) of seeds or rows give, and its verdict."""
    law, held_out = _choose(_candidates(model, settings, points), points, settings.delta)
    held_out[CONSTANT.name] = _held_out_error(CONSTANT, points, settings.delta)
    theta = low = high = np.full(len(law.parameters), np.nan)
    reasons = _lacking(law, x, points)
    if points.distinct() >= len(law.parameters):
        solution = solve(law, points, settings.delta)
        ends = _bootstrap(law, solution, settings, resample, units) if units > 1 else solution.theta[None][:0]
        stretch = _stretch(units, units - 1 if seeds else units - len(law.parameters), settings.level)
        low, high = _interval(solution.theta, ends, settings.level, stretch)
        absent = np.isin(law.parameters, law.floors) & (low <= solution.bounds[0] + np.log(10))
        theta, low, high = _settled(law, points, solution.theta, np.where(absent, -np.inf, low), high)
        reasons += _undetermined(law, points, solution, low, high)
        reasons += _straight(law, solution.theta, ends, settings.level, stretch)
        if units < 2:
            reasons.append("one seed gives no intervals")
        elif len(ends) < 0.9 * settings.bootstraps:
            lost = settings.bootstraps - len(ends)
            reasons.append(f"{lost} of {settings.bootstraps} resamples have too few points that are not censored")
    with np.errstate(over="ignore", under="ignore"):
        theta, low, high = (np.where(law.logged(), np.exp(at), at) for at in (theta, low, high))
    intervals = {name: (float(low[at]), float(high[at])) for at, name in enumerate(law.parameters)}
    away = any(low > 0 or high < 0 for low, high in (intervals[name] for name in law.exponents))
    if away and held_out[law.name] > 1.001 * held_out[CONSTANT.name] + 1e-6:
        errors = f"{factor(held_out[law.name])} against {factor(held_out[CONSTANT.name])}"
        reasons.append(f"a constant predicts the largest x better ({errors})")
    return Fit(
        law=law,
        x=x,
        y=y,
        parameters=dict(zip(law.parameters, theta.tolist(), strict=True)),
        intervals=intervals,
        points=len(points.log_y),
        seeds=seeds,
        censored=int(np.sum(points.kind == AT_LEAST)),
        at_most=int(np.sum(points.kind == AT_MOST)),
        held_out=held_out,
        supported=not reasons,
        why="; ".join(reasons),
        diverged=diverged,
        level=settings.level,
        seen=functools.partial(_seen, points, settings, resample, units),
    )


def _settled(law: Model, points: Points, *theta: np.ndarray) -> list[np.ndarray]:
    """Parameters and the ends of their intervals (p,) with exponents 0 that only rounding keeps from it."""
    worth = np.ptp(law.curve(theta[0][None], points.x)[1][0], axis=0)
    worth[~np.isin(law.parameters, law.exponents)] = np.inf
    return [np.where(np.abs(at) < _ROUNDING / np.maximum(worth, 1e-300), 0.0, at) for at in theta]


def _stretch(units: int, freedom: int, level: float) -> float:
    """By which the ends of an interval are moved from the estimate."""
    tail = (1 - level) / 2
    return float(np.sqrt(units / max(units - 1, 1)) * stats.t.isf(tail, max(freedom, 1)) / stats.norm.isf(tail))


def _seen(
    points: Points,
    settings: Settings,
    resample: Callable[[np.ndarray], tuple[Points, np.ndarray]],
    units: int,
) -> Seen:
    """The points that a figure shows: at each x the geometric mean of the y that are known, with its interval by
    resampling, stretched as a parameter's, and every y that is a bound.
    """
    exact, bounds = np.flatnonzero(points.kind == EXACT), np.flatnonzero(points.kind != EXACT)
    x, place, counts = np.unique(points.x[:, exact], axis=1, return_inverse=True, return_counts=True)
    order, starts = np.argsort(place.ravel(), kind="stable"), np.cumsum(counts) - counts

    def means(found: Points, weights: np.ndarray) -> np.ndarray:
        """Of each resample at each x (B, k), NaN where it has none."""
        kind, log_y = (np.broadcast_to(of, weights.shape)[:, exact[order]] for of in (found.kind, found.log_y))
        there = weights[:, exact[order]] * (kind == EXACT)
        total = np.add.reduceat(there, starts, axis=1)
        sums = np.add.reduceat(np.where(there > 0, there * log_y, 0), starts, axis=1)
        return np.divide(sums, total, out=np.full(total.shape, np.nan), where=total > 0)

    log_y, ends = np.empty(0), np.empty((2, 0))
    if len(exact):
        log_y = means(points, np.ones((1, len(points.log_y))))[0]
        ends = np.full((2, len(log_y)), np.nan)
    if len(exact) and units > 1:
        tail, drawn = (1 - settings.level) / 2, _resamples(settings, units, resample)
        found = np.concatenate([means(*each) for each in drawn])
        of = [np.quantile(own[np.isfinite(own)], [tail, 1 - tail]) for own in found.T]
        ends = log_y + _stretch(units, units - 1, settings.level) * (np.stack(of, 1) - log_y)
    every = np.concatenate([x, points.x[:, bounds]], 1)
    kind = np.concatenate([np.full(len(log_y), EXACT), points.kind[bounds]])
    unknown = np.full((2, len(bounds)), np.nan)
    y, low, high = np.exp(np.concatenate([[log_y, *ends], [points.log_y[bounds], *unknown]], 1))
    return Seen(every, y, low, high, kind, _held_out(Points(every, np.log(y), kind)))


def _resamples(
    settings: Settings, units: int, resample: Callable[[np.ndarray], tuple[Points, np.ndarray]]
) -> Iterator[tuple[Points, np.ndarray]]:
    """Points and their weights (B, n) of all resamples, some at a time."""
    counts = np.random.default_rng(settings.rng).multinomial(units, np.full(units, 1 / units), settings.bootstraps)
    at_once = max(1, 100_000 // resample(counts[:1])[1].shape[1])
    for first in range(0, len(counts), at_once):
        yield resample(counts[first : first + at_once])


def _interval(value: np.ndarray, ends: np.ndarray, level: float, stretch: float) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the intervals of values (p,) from those of the resamples (B, p), NaN without any."""
    if not len(ends):
        return np.full(len(value), np.nan), np.full(len(value), np.nan)
    low, high = value + stretch * (np.quantile(ends, [(1 - level) / 2, (1 + level) / 2], axis=0) - value)
    return low, high


def _straight(law: Model, theta: np.ndarray, ends: np.ndarray, level: float, stretch: float) -> list[str]:
    """Which breaks there is no sign of: where the exponents before and after may be the same."""
    reasons = []
    for one, other in law.turns:
        before, after = law.parameters.index(one), law.parameters.index(other)
        turn, turns = theta[[after]] - theta[before], ends[:, [after]] - ends[:, [before]]
        low, high = _interval(turn, turns, level, UNPLACED * stretch)
        if low[0] <= 0 <= high[0]:
            reasons.append(f"there is no sign of a break between {one} and {other}")
    return reasons


def _bootstrap(
    law: Model, solution: Solution, settings: Settings, resample: Callable[[np.ndarray], Any], units: int
) -> np.ndarray:
    """The θ of every resample that has as many distinct x as parameters and no gap, (up to bootstraps, p)."""
    ends = []
    for points, weights in _resamples(settings, units, resample):
        places = np.unique(points.x, axis=1, return_inverse=True)[1].ravel()
        order = np.argsort(places, kind="stable")
        starts = np.flatnonzero(np.diff(places[order], prepend=-1))
        there = np.logical_or.reduceat(((weights > 0) & (points.kind == EXACT))[:, order], starts, axis=1)
        good = (there.sum(1) >= len(law.parameters)) & np.isfinite(points.log_y).all(-1)
        if points.log_y.ndim == 2:
            points = Points(points.x, points.log_y[good], points.kind[good])
        theta = np.tile(solution.theta, (int(good.sum()), 1))
        ends.append(descend(law, points, theta, weights[good], solution.bounds, solution.scale, solution.delta)[0])
    return law.ordered(np.concatenate(ends))


def _lacking(law: Model, x: str | tuple[str, ...], points: Points) -> list[str]:
    """Why the points cannot carry the model whatever it is fitted to."""
    reasons = []
    names = (x,) if isinstance(x, str) else x
    exact = points.only(points.kind == EXACT)
    censored = len(points.log_y) - len(exact.log_y)
    if 2 * censored > len(points.log_y):
        reasons.append(f"{censored} of {len(points.log_y)} points are censored")
    size, smaller = len(law.parameters), points.only(~_held_out(points)).distinct()
    if smaller < size:
        without = f"{points.distinct()} distinct {' and '.join(names)}, {smaller} without the largest"
        reasons.append(f"{without}; {law.name} has {size} parameters")
    for name, sizes in zip(names, exact.x, strict=True):
        if len(sizes) and sizes.min() > 0 and sizes.max() < 2 * sizes.min():
            reasons.append(f"{name} spans a factor of {sizes.max() / sizes.min():.3g} only, less than 2")
    if law.variables > 1 and not reasons:
        together = np.corrcoef(np.log(exact.x) if law.logarithmic else exact.x)
        if (np.abs(together[np.triu_indices(law.variables, 1)]) > 0.999).any():
            reasons.append(f"{' and '.join(names)} go together, so their terms cannot be told apart")
    return reasons


def _undetermined(law: Model, points: Points, solution: Solution, low: np.ndarray, high: np.ndarray) -> list[str]:
    """Why the parameters found say nothing; low and high are their intervals, (p,) each."""
    reasons = []
    x = points.x[:, points.kind == EXACT]
    slopes = law.curve(solution.theta[None], x)[1][0]
    sizes = np.linalg.norm(slopes, axis=0)
    if sizes.min() < 1e-12 or np.linalg.svd(slopes / sizes, compute_uv=False)[-1] < 1e-6:
        reasons.append("the points cannot tell its parameters apart")
    for at, name in enumerate(law.parameters):
        value, wide = solution.theta[at], high[at] - low[at]
        # A rate's worth is that of the exponent with the same change over the range of x.
        worth = np.ptp(x[0]) / np.log(x[0].max() / x[0].min()) if name in law.rates and (x > 0).all() else 1
        if name in law.floors and value <= solution.bounds[0, at] + np.log(10):
            reasons.append(f"there is no sign of a floor {name}")
        elif name in law.places and np.isfinite(wide) and wide > np.ptp(solution.bounds[:, at]) / 2:
            _, *ends = texts(*np.exp([value, low[at], high[at]]))
            reasons.append(f"the {name} could be anywhere from {' to '.join(ends)}")
        elif not solution.bounds[0, at] + 1e-3 < value < solution.bounds[1, at] - 1e-3:
            reasons.append(f"{name} is at the limit of its search")
        elif name in law.exponents and wide * worth > 1 and wide > abs(value):
            _, *ends = texts(value, low[at], high[at])
            reasons.append(f"the interval of {name}, {' to '.join(ends)}, says nothing")
    return reasons
