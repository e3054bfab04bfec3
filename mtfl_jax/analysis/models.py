"""The laws that can be fitted: y(x) as records, those built in and those that a user registers.

A fit is of log y, so a law gives log y; its parameters are sought from a model's starts within its bounds.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from scipy import special

from mtfl_jax.records import Registry

SHARPNESS = 0.25
"""Of `broken_power`: fixed, not fitted; its slope changes within a factor of about e^±0.5 of the break."""
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
    places: the positive parameters that are an x, which say nothing where they could be anywhere.
    rates: the exponents that are of x and not of log x.
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
    words: Callable[[Mapping[str, float]], Mapping[str, str]] = lambda parameters: {}

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


def _broken(theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    log_a, before, after, log_break = np.moveaxis(theta, 1, 0)[:, :, None]
    u = np.log(x[0]) - log_break
    bend = SHARPNESS * np.logaddexp(0, u / SHARPNESS)
    gate = special.expit(u / SHARPNESS)
    slope = before + (after - before) * gate
    return log_a + before * u + (after - before) * bend, np.stack([np.ones_like(u), u - bend, bend, -slope], -1)


def _broken_starts(x: np.ndarray, log_y: np.ndarray) -> np.ndarray:
    u, out = np.log(x[0]), []
    slope = np.polyfit(u, log_y, 1)[0]
    for share in (0.2, 0.4, 0.6, 0.8):
        for turn in (-2.0, -0.5, 0.5, 2.0):
            theta = np.array([[0.0, slope - turn / 2, slope + turn / 2, u.min() + share * np.ptp(u)]])
            theta[0, 0] = np.median(log_y - _broken(theta, x)[0])
            out.append(theta[0])
    return np.array(out)


def _broken_bounds(x: np.ndarray, log_y: np.ndarray) -> np.ndarray:
    steep = [-STEEPEST, STEEPEST]
    return np.stack([[-np.inf, np.inf], steep, steep, [np.log(x[0].min()), np.log(x[0].max())]], 1)


def _broken_words(parameters: Mapping[str, float]) -> Mapping[str, str]:
    turn = parameters["exponent_after"] - parameters["exponent_before"]
    return {"sharp": f"{1 / SHARPNESS:g}", "turn": f"{SHARPNESS * turn:.3g}"}


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
BROKEN_POWER = MODELS.register(
    Model(
        name="broken_power",
        doc="two powers of x that meet at a break",
        parameters=("a", "exponent_before", "exponent_after", "break"),
        positive=("a", "break"),
        exponents=("exponent_before", "exponent_after"),
        text="{y} = {a} · ({x}/{break})^{exponent_before} · (1 + ({x}/{break})^{sharp})^{turn}",
        curve=_broken,
        starts=_broken_starts,
        bounds=_broken_bounds,
        places=("break",),
        words=_broken_words,
    )
)
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
