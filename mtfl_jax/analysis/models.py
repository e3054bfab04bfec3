"""The laws that can be fitted: y(x) as records, those built in and those that a user registers.

A fit is of log y, so a law gives log y; its parameters are sought from a model's starts within its bounds.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Mapping

import numpy as np
from scipy import special

from mtfl_jax.records import Registry

SHARPNESS = 0.25
"""Of the breaks of `broken_power` where it is not sought: a slope changes within a factor of about e^±0.5."""
SHARPNESSES = (0.02, 2.0)
"""Between these it is sought."""
FREE = ("floor", "sharpness")
"""What `broken_power` may have as parameters beside its exponents and breaks."""
MOST_BREAKS = 4
"""So many are tried where their number is to be chosen."""
_STARTS = 40
"""Of the many places that breaks may have, a search starts from so many."""
SMALLEST_FLOOR = 1e-4
"""Floors are sought down to this share of the smallest y; a floor below ten times that is called absent."""
STEEPEST = 10.0
"""Exponents of the models with more than two parameters are sought within ± this."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A law log y = curve(θ, x). x is (variables, n) and θ (B, p), the logarithms of `positive` parameters among it.

    text: the law with each parameter's name in braces, {y}, {x} (of several variables {x}, {x2}, …) and what `words`
        makes of the parameters' values.
    curve: log y (B, n) and its derivatives (B, n, p).
    starts, bounds: from x and log y (n,), θ's (K, p) and (2, p).
    exponents: parameters whose intervals say what the law is worth, a rate or a slope too; the last is the one at
        large x.
    logarithmic: whether x must be positive, since the law takes its logarithm.
    floors: the positive parameters that the law falls to, absent where they are near the least value sought.
    places: the positive parameters that say nothing where they could be anywhere in their bounds, as an x can.
    rates: the exponents that are of x and not of log x.
    turns: pairs of exponents, before and after a break, which there is no sign of where they may be the same.
    ordered: θ (B, p) of the same curves with what could change places in order.
    """

    name: str
    doc: str
    parameters: tuple[str, ...]
    positive: tuple[str, ...]
    exponents: tuple[str, ...]
    text: str
    curve: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
    starts: Callable[[np.ndarray, np.ndarray], np.ndarray]
    bounds: Callable[[np.ndarray, np.ndarray], np.ndarray]
    variables: int = 1
    logarithmic: bool = True
    floors: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    rates: tuple[str, ...] = ()
    turns: tuple[tuple[str, str], ...] = ()
    words: Callable[[Mapping[str, float]], Mapping[str, str]] = lambda parameters: {}
    ordered: Callable[[np.ndarray], np.ndarray] = lambda theta: theta

    def logged(self) -> np.ndarray:
        """Which parameters θ holds the logarithm of, (p,)."""
        return np.array([name in self.positive for name in self.parameters])


AUTO, CONSTANT_NAME = "auto", "constant"
"""What is no model's name: the choice among those of one variable, and what every law is held against."""


def _check(model: Model) -> None:
    for member in ("positive", "exponents", "floors", "places", "rates"):
        strange = set(getattr(model, member)) - set(model.parameters)
        if strange:
            allowed = f"allowed: {', '.join(model.parameters)}"
            raise ValueError(f"model={model.name}: {member}={', '.join(sorted(strange))}; {allowed}")
    if not {*model.floors, *model.places} <= set(model.positive):
        raise ValueError(f"model={model.name}: floors and places are positive; allowed: {', '.join(model.positive)}")


MODELS: Registry[Model] = Registry("model", _check, reserved=(AUTO, CONSTANT_NAME))
"""The laws by name; those of one variable from the simplest to the richest, then a user's."""


def unbounded(parameters: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The bounds of a law whose parameters may be anything."""
    return lambda x, log_y: np.array([[-np.inf] * parameters, [np.inf] * parameters])


def linear(of_x: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray, np.ndarray], tuple]:
    """The curve of a law of one variable that is linear in θ: log y = of_x(x) θ, of_x(x) being (n, p)."""

    def curve(theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        columns = of_x(x[0])
        return theta @ columns.T, np.broadcast_to(columns, (len(theta), *columns.shape))

    return curve


def least_squares(of_x: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The one start that a law linear in θ needs."""
    return lambda x, log_y: np.linalg.lstsq(of_x(x[0]), log_y, rcond=None)[0][None]


def _of_power(x: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(x), np.log(x)], -1)


def _of_exponential(x: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(x), x], -1)


def _of_constant(x: np.ndarray) -> np.ndarray:
    return np.ones((len(x), 1))


def _terms(theta: np.ndarray, x: np.ndarray, sign: float) -> tuple[np.ndarray, np.ndarray]:
    """log of e^θ₀ + Σ_v e^θ_{1+v} x_v^{±θ_{1+V+v}}, the sign given."""
    u, variables = np.log(x), len(x)
    scale, exponent = theta[:, 1 : 1 + variables, None], theta[:, 1 + variables :, None]
    floor = np.broadcast_to(theta[:, :1, None], (len(theta), 1, u.shape[1]))
    logs = np.concatenate([floor, scale + sign * exponent * u], 1)
    total = special.logsumexp(logs, axis=1)
    share = np.exp(logs - total[:, None])
    return total, np.moveaxis(np.concatenate([share, sign * share[:, 1:] * u], 1), 1, 2)


def _floors(log_y: np.ndarray) -> np.ndarray:
    return np.array([log_y.min() + np.log(SMALLEST_FLOOR), log_y.max()])


def _floor_starts(x: np.ndarray, log_y: np.ndarray) -> np.ndarray:
    u, out = np.log(x[0]), []
    for share in (0.02, 0.5, 0.95):
        above = np.log(np.exp(log_y) - share * np.exp(log_y.min()))
        for b in (-3.0, -2.0, -1.0, -0.5, -0.25, 0.25, 0.5, 1.0, 2.0, 3.0):
            out.append([log_y.min() + np.log(share), np.median(above - b * u), b])
    return np.array(out)


def _floor_bounds(x: np.ndarray, log_y: np.ndarray) -> np.ndarray:
    return np.stack([_floors(log_y), [-np.inf, np.inf], [-STEEPEST, STEEPEST]], 1)


@dataclasses.dataclass(frozen=True)
class _Broken:
    """Powers of x that meet at breaks, above a floor if there is one: Caballero et al.'s broken neural scaling law.

    y = c + a (x/b₁)^e₀ Π_i (1 + (x/b_i)^(1/s_i))^(s_i (e_i − e_{i−1})), a sharpness s_i being its f_i:
    the less, the sharper. θ is log c, log a, e₀, …, log b₁, …, log s₁, …, as far as these are parameters.
    """

    breaks: int
    floor: bool
    sharpness: bool

    def split(self, theta: np.ndarray) -> list[np.ndarray]:
        """log a (B,), the exponents (B, breaks + 1), log b and log s (B, breaks)."""
        theta, k = theta[:, int(self.floor) :], self.breaks
        sharp = theta[:, 2 * k + 2 :] if self.sharpness else np.full((len(theta), k), np.log(SHARPNESS))
        return [theta[:, 0], theta[:, 1 : k + 2], theta[:, k + 2 : 2 * k + 2], sharp]

    def curve(self, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        log_a, exponents, places, sharp = (part[..., None] for part in self.split(theta))
        turns, sharp = np.diff(exponents, axis=1), np.exp(sharp)
        beyond = np.log(x[0]) - places
        bends, gates = sharp * np.logaddexp(0, beyond / sharp), special.expit(beyond / sharp)
        power = log_a + exponents[:, 0] * beyond[:, 0] + (turns * bends).sum(1)
        of_exponents = np.concatenate([beyond[:, :1], bends], 1)
        of_exponents[:, :-1] -= bends
        of_places = -turns * gates
        of_places[:, 0] -= exponents[:, 0]
        of_sharp = turns * (bends - beyond * gates)
        parts = [np.ones_like(power)[:, None], of_exponents, of_places, *[of_sharp] * self.sharpness]
        slopes = np.concatenate(parts, 1)
        if self.floor:
            total = np.logaddexp(theta[:, :1], power)
            slopes = np.concatenate([np.exp(theta[:, :1] - total)[:, None], slopes * np.exp(power - total)[:, None]], 1)
            power = total
        return power, np.moveaxis(slopes, 1, 2)

    def starts(self, x: np.ndarray, log_y: np.ndarray) -> np.ndarray:
        """The places of breaks spread over x, each choice with the exponents of least squares; the best of them."""
        u, place, counts = np.unique(np.log(x[0]), return_inverse=True, return_counts=True)
        means = np.bincount(place, log_y) / counts
        k, grid = self.breaks, np.quantile(u, np.linspace(0, 1, max(8, self.breaks + 2) + 2)[1:-1])
        found, errors = [], []
        for share in (0.02, 0.5, 0.95) if self.floor else (0.0,):
            above = np.log(np.exp(means) - share * np.exp(log_y.min()))
            for places in itertools.combinations(grid, k):
                for sharp in (0.1, 0.7) if self.sharpness else (SHARPNESS,):
                    bends = [sharp * np.logaddexp(0, (u - place) / sharp) for place in places]
                    columns = np.stack([np.ones_like(u), u - places[0], *bends], 1)
                    best = np.linalg.lstsq(columns, above, rcond=None)[0]
                    errors.append(np.abs(above - columns @ best).sum())
                    floor = [log_y.min() + np.log(share)] if self.floor else []
                    sharps = [np.log(sharp)] * (k * self.sharpness)
                    found.append([*floor, best[0], *np.cumsum(best[1:]), *places, *sharps])
        return np.array(found)[np.argsort(errors, kind="stable")[:_STARTS]]

    def bounds(self, x: np.ndarray, log_y: np.ndarray) -> np.ndarray:
        k, free, steep = self.breaks, [-np.inf, np.inf], [-STEEPEST, STEEPEST]
        places, sharp = np.log([x[0].min(), x[0].max()]), np.log(SHARPNESSES)
        floor = [_floors(log_y)] * self.floor
        return np.stack([*floor, free, *[steep] * (k + 1), *[places] * k, *[sharp] * (k * self.sharpness)], 1)

    def ordered(self, theta: np.ndarray) -> np.ndarray:
        log_a, exponents, places, sharp = self.split(theta)
        order = np.argsort(places, axis=1, kind="stable")
        turns, sorted_, sharp = (np.take_along_axis(of, order, 1) for of in (np.diff(exponents), places, sharp))
        first = exponents[:, :1]
        log_a = log_a + first[:, 0] * (sorted_[:, 0] - places[:, 0])
        exponents = np.concatenate([first, first + np.cumsum(turns, 1)], 1)
        parts = [theta[:, : int(self.floor)], log_a[:, None], exponents, sorted_, *[sharp] * self.sharpness]
        return np.concatenate(parts, 1)


@functools.cache
def _broken(breaks: int, floor: bool, sharpness: bool) -> Model:
    law = _Broken(breaks, floor, sharpness)
    one = breaks == 1
    at = [""] if one else [f"_{place}" for place in range(1, breaks + 1)]
    exponents = ["exponent_before", "exponent_after"] if one else [f"exponent_{i}" for i in range(breaks + 1)]
    places, sharp = [f"break{i}" for i in at], [f"sharpness{i}" for i in at] * sharpness

    def words(parameters: Mapping[str, float]) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for i, (before, after) in zip(at, itertools.pairwise(exponents), strict=True):
            width = parameters[f"sharpness{i}"] if sharpness else SHARPNESS
            turn = width * (parameters[after] - parameters[before])
            found |= {f"sharp{i}": f"{1 / width:.3g}", f"turn{i}": f"{turn:.3g}"}
        return found

    ratio = f"({{x}}/{{{places[0]}}})^{{{exponents[0]}}}"
    turns = [f"(1 + ({{x}}/{{break{i}}})^{{sharp{i}}})^{{turn{i}}}" for i in at]
    more = [f"{breaks} breaks"] * (not one) + ["floor"] * floor + ["sharpness"] * sharpness
    meet = "two powers of x that meet at a break" if one else f"{breaks + 1} powers of x that meet at {breaks} breaks"
    return Model(
        name=BROKEN + (f" ({', '.join(more)})" if more else ""),
        doc=meet + " above a floor" * floor,
        parameters=("c",) * floor + ("a", *exponents, *places, *sharp),
        positive=("c",) * floor + ("a", *places, *sharp),
        exponents=tuple(exponents),
        text="{y} = " + "{c} + " * floor + " · ".join(["{a}", ratio, *turns]),
        curve=law.curve,
        starts=law.starts,
        bounds=law.bounds,
        floors=("c",) * floor,
        places=(*places, *sharp),
        turns=tuple(itertools.pairwise(exponents)),
        words=words,
        ordered=law.ordered,
    )


BROKEN = "broken_power"
"""The law that may have as many breaks as are asked for."""


def broken(breaks: int, free: Collection[str] = ()) -> Model:
    """The law of so many breaks, with parameters that are of `FREE`; of none `power` or `power_floor`."""
    floor, sharpness = (name in free for name in FREE)
    if not breaks:
        return POWER_FLOOR if floor else POWER
    return _broken(breaks, floor, sharpness)


def _sum_starts(x: np.ndarray, log_y: np.ndarray) -> np.ndarray:
    u, out = np.log(x), []
    for share in (0.1, 0.5, 0.95):
        half = np.log((np.exp(log_y) - share * np.exp(log_y.min())) / 2)
        for alpha in (0.2, 0.5, 1.0):
            for beta in (0.2, 0.5, 1.0):
                scales = [np.median(half + alpha * u[0]), np.median(half + beta * u[1])]
                out.append([log_y.min() + np.log(share), *scales, alpha, beta])
    return np.array(out)


def _sum_bounds(x: np.ndarray, log_y: np.ndarray) -> np.ndarray:
    free, steep = [-np.inf, np.inf], [0.0, STEEPEST]
    return np.stack([_floors(log_y), free, free, steep, steep], 1)


POWER = MODELS.register(
    Model(
        name="power",
        doc="a power of x",
        parameters=("a", "exponent"),
        positive=("a",),
        exponents=("exponent",),
        text="{y} = {a} · {x}^{exponent}",
        curve=linear(_of_power),
        starts=least_squares(_of_power),
        bounds=unbounded(2),
    )
)
EXPONENTIAL = MODELS.register(
    Model(
        name="exponential",
        doc="exponential in x",
        parameters=("a", "rate"),
        positive=("a",),
        exponents=("rate",),
        text="{y} = {a} · e^({rate}·{x})",
        curve=linear(_of_exponential),
        starts=least_squares(_of_exponential),
        bounds=unbounded(2),
        logarithmic=False,
        rates=("rate",),
    )
)
POWER_FLOOR = MODELS.register(
    Model(
        name="power_floor",
        doc="a power of x above a floor",
        parameters=("c", "a", "exponent"),
        positive=("c", "a"),
        exponents=("exponent",),
        text="{y} = {c} + {a} · {x}^{exponent}",
        curve=lambda theta, x: _terms(theta, x, 1),
        starts=_floor_starts,
        bounds=_floor_bounds,
        floors=("c",),
    )
)
BROKEN_POWER = MODELS.register(broken(1))
SUM = MODELS.register(
    Model(
        name="sum",
        doc="a floor and a power of each of two variables",
        parameters=("E", "A", "B", "alpha", "beta"),
        positive=("E", "A", "B"),
        exponents=("alpha", "beta"),
        text="{y} = {E} + {A}/{x}^{alpha} + {B}/{x2}^{beta}",
        curve=lambda theta, x: _terms(theta, x, -1),
        starts=_sum_starts,
        bounds=_sum_bounds,
        variables=2,
        floors=("E",),
    )
)
CONSTANT = Model(
    name=CONSTANT_NAME,
    doc="the same at every x: what every law is held against, and no law itself",
    parameters=("a",),
    positive=("a",),
    exponents=(),
    text="{y} = {a}",
    curve=linear(_of_constant),
    starts=least_squares(_of_constant),
    bounds=unbounded(1),
    logarithmic=False,
)
