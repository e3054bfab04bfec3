"""The optimum of a law's robust loss, with censored points: many fixed starts that descend together.

Residuals are in log y and count by Huber's loss, which turns linear at `delta`; a censored point counts through Tobit's
likelihood with the residuals' own scale.
"""

from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from mtfl_jax.analysis.models import Model

EXACT, AT_LEAST, AT_MOST = 0, 1, -1
"""What is known of a point's y."""
_AT_ONCE = 1_000_000
"""Starts that descend together times points, for the memory that it takes."""


class Points(NamedTuple):
    """x (variables, n); log y and kind (exact, at least, at most), each (n,) or, a resample a row, (B, n)."""

    x: np.ndarray
    log_y: np.ndarray
    kind: np.ndarray

    def only(self, keep: np.ndarray) -> "Points":
        return Points(self.x[:, keep], self.log_y[..., keep], self.kind[..., keep])

    def distinct(self) -> int:
        """Distinct x that have a point that is not censored."""
        return np.unique(self.x[:, self.kind == EXACT], axis=1).shape[1]


class Solution(NamedTuple):
    """θ (p,), the residuals' scale, where the loss turns linear, and the bounds of the search (2, p)."""

    theta: np.ndarray
    scale: float
    delta: float
    bounds: np.ndarray


def _deviance(residual: np.ndarray, kind: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """What stands in for a residual, its square being twice Tobit's negative log likelihood in units of scale², and
    its derivative. An exact point's is the residual itself.
    """
    censored = kind != EXACT
    if not censored.any():
        return residual, np.ones(())
    z = np.where(censored, residual * kind / scale, 0)
    value = scale * np.sqrt(np.maximum(-2 * special.log_ndtr(-z), 1e-300))
    slope = scale * _hazard(z) / value
    return np.where(censored, kind * value, residual), np.where(censored, slope, 1)


def _hazard(z: np.ndarray) -> np.ndarray:
    """φ(z)/Φ(−z): the mean of a standard normal above z."""
    return np.sqrt(2 / np.pi) / special.erfcx(z / np.sqrt(2))


def descend(
    model: Model,
    points: Points,
    theta: np.ndarray,
    weights: np.ndarray,
    bounds: np.ndarray,
    scale: float,
    delta: float,
    precision: float = 1e-6,
    steps: int = 200,
) -> tuple[np.ndarray, np.ndarray]:
    """Levenberg and Marquardt's descent from theta (B, p), weights (B, n) a row each: where it ends and the loss (B,).

    precision: of log predictions. steps: at most.
    """
    theta, live = np.clip(theta, *bounds), np.arange(len(theta))
    damping = np.full(len(theta), 1e-3)
    resampled = points.log_y.ndim == 2

    def at(rows: np.ndarray, where: np.ndarray) -> tuple[np.ndarray, ...]:
        log_y, kind = (points.log_y[rows], points.kind[rows]) if resampled else (points.log_y, points.kind)
        predicted, jacobian = model.curve(where, points.x)
        value, slope = _deviance(log_y - predicted, kind, scale)
        size = np.abs(value)
        weight = weights[rows] * np.minimum(1, delta / np.maximum(size, 1e-300))
        loss = np.sum(weights[rows] * np.where(size <= delta, value**2 / 2, delta * (size - delta / 2)), -1)
        gradient = np.matmul((weight * value * slope)[:, None], jacobian)[:, 0]
        hessian = np.matmul(np.swapaxes(jacobian * (weight * slope**2)[..., None], 1, 2), jacobian)
        return loss, gradient, hessian

    loss, gradient, hessian = at(live, theta)
    mass = weights.sum(-1)
    for _ in range(steps):
        blocked = (theta[live] <= bounds[0]) & (gradient[live] < 0) | (theta[live] >= bounds[1]) & (gradient[live] > 0)
        size = np.sqrt(np.maximum(np.diagonal(hessian[live], axis1=1, axis2=2), 1e-30))
        scaled = hessian[live] / (size[:, :, None] * size[:, None])
        scaled[blocked] = 0
        np.swapaxes(scaled, 1, 2)[blocked] = 0
        scaled += np.eye(theta.shape[1]) * (damping[live, None, None] + blocked[:, None])
        step = np.linalg.solve(scaled, np.where(blocked, 0, gradient[live] / size)[..., None])[..., 0]
        ahead = np.clip(theta[live] + step / size, *bounds)
        moved = np.sqrt(np.sum(((ahead - theta[live]) * size) ** 2, -1) / mass[live])
        new = at(live, ahead)
        better = new[0] <= loss[live]
        taken = live[better]
        theta[taken] = ahead[better]
        for old, fresh in zip((loss, gradient, hessian), new, strict=True):
            old[taken] = fresh[better]
        damping[live] = np.clip(damping[live] * np.where(better, 0.2, 8), 1e-12, None)
        live = live[(moved > precision) & (damping[live] < 1e12)]
        if not len(live):
            break
    return theta, loss


def _scale(model: Model, points: Points, theta: np.ndarray, scale: float) -> float:
    """Of the residuals: Huber's proposal 2 with squares cut at two scales, a censored point's square its mean."""
    residual = points.log_y - model.curve(theta[None], points.x)[0][0]
    exact = residual[points.kind == EXACT]
    censored = (residual * points.kind)[points.kind != EXACT]
    kept = 0.9205  # The mean of min(z², 4) of a standard normal z.
    for _ in range(50):
        z = censored / scale
        squares = np.sum(np.minimum(exact**2, 4 * scale**2)) / kept + scale**2 * np.sum(1 + z * _hazard(z))
        before, scale = scale, max(np.sqrt(squares / len(residual)), 1e-6)
        if abs(scale - before) <= 1e-4 * before:
            break
    return float(scale)


def solve(model: Model, points: Points, delta: float | None = None) -> Solution:
    """The best fit to all points."""
    exact = points.only(points.kind == EXACT)
    bounds = model.bounds(exact.x, exact.log_y)
    starts = np.clip(model.starts(exact.x, exact.log_y), *bounds)
    ones = np.ones(points.log_y.shape)
    scale = max(0.1 * float(np.std(exact.log_y)), 1e-6)

    def ended(starts: np.ndarray, steps: int) -> np.ndarray:
        """Where descents from the starts end, the best first."""
        found = []
        for own in np.array_split(starts, -(-len(starts) * len(ones) // _AT_ONCE)):
            weights = np.tile(ones, (len(own), 1))
            found.append(descend(model, points, own, weights, bounds, scale, delta or scale, steps=steps))
        ends, losses = (np.concatenate(each) for each in zip(*found, strict=True))
        return ends[np.argsort(losses, kind="stable")]

    theta = ended(ended(starts, 30)[:5], 200)[:1]
    for _ in range(20):
        before, scale = scale, _scale(model, points, theta[0], scale)
        theta, _ = descend(model, points, theta, ones[None], bounds, scale, delta or 1.345 * scale)
        if abs(scale - before) <= 1e-3 * before:
            break
    bend = delta or 1.345 * scale

    def residuals(at: np.ndarray) -> np.ndarray:
        return _deviance(points.log_y - model.curve(at[None], points.x)[0][0], points.kind, scale)[0]

    def slopes(at: np.ndarray) -> np.ndarray:
        predicted, jacobian = model.curve(at[None], points.x)
        slope = _deviance(points.log_y - predicted[0], points.kind, scale)[1]
        return -jacobian[0] * np.reshape(slope, (-1, 1))

    tight = {"xtol": 1e-12, "ftol": 1e-14, "gtol": 1e-14, "x_scale": "jac"}
    found = optimize.least_squares(residuals, theta[0], slopes, tuple(bounds), loss="huber", f_scale=bend, **tight)
    return Solution(model.ordered(found.x[None])[0], scale, bend, bounds)
