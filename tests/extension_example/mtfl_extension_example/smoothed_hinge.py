"""A loss with a setting of its own: the hinge with a parabola in place of its corner."""

import jax.numpy as jnp
from jax import Array

from mtfl_jax.fields import Field, number
from mtfl_jax.learning.losses import LOSSES, Loss


def _value(m: Array, smoothing: float | Array) -> Array:
    slack = jnp.maximum(1 - m, 0)
    width = jnp.where(smoothing > 0, smoothing, 1)
    return jnp.where(slack >= smoothing, slack - smoothing / 2, slack**2 / (2 * width))


LOSSES.register(
    Loss(
        "smoothed_hinge",
        "max(0, 1 − m), of which the last `smoothing` before m = 1 is a parabola",
        _value,
        settings=(
            Field(
                "smoothing",
                "knob",
                number(0, examples=(0.0, 0.25, 1.0)),
                "width of the parabola of smoothed_hinge",
                default=0.5,
                label="smoothing of the hinge",
            ),
        ),
    )
)
