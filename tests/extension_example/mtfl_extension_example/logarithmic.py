"""A law for fits: y = a + b log x."""

import numpy as np

from mtfl_jax.analysis.models import MODELS, Model

# A fit is of log y, and y must be positive for that.
_LEAST = 1e-12


def _columns(x: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(x[0]), np.log(x[0])], axis=-1)


def _curve(theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    columns = _columns(x)
    y = np.maximum(theta @ columns.T, _LEAST)
    return np.log(y), columns / y[..., None]


MODELS.register(
    Model(
        name="logarithmic",
        doc="linear in log x",
        parameters=("a", "b"),
        positive=(),
        exponents=("b",),
        text="{y} = {a} + {b} · log {x}",
        curve=_curve,
        starts=lambda x, log_y: np.linalg.lstsq(_columns(x), np.exp(log_y), rcond=None)[0][None],
        bounds=lambda x, log_y: np.array([[-np.inf, -np.inf], [np.inf, np.inf]]),
    )
)
