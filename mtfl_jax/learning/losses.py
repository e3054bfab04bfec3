"""Losses ℓ(F, y) of an output F and a target y, those of the margin m = y F among them, and their mixture over tasks.

At F = 0 each of the built-in ones has a gradient in F proportional to −y where y = ±1, so the first step of the heads
from A = 0 is then the same for all up to a constant.

Source: that many tasks come with differing losses is the motivation in the abstract of arXiv 2307.06887v1; the list is
ours.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float

from mtfl_jax.fields import Field, Rule, number
from mtfl_jax.records import Registry

Margins = Callable[[Float[Array, "*shape"]], Float[Array, "*shape"]]
"""ℓ(m)."""
Pointwise = Callable[[Float[Array, "*shape"], Float[Array, "*shape"]], Float[Array, "*shape"]]
"""ℓ(F, y)."""


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss, elementwise; its settings come as keywords.

    margin: whether `value` is ℓ(m) of the margin m = y F, which means something where y is ±1 alone; else it is
    ℓ(F, y), of any target. bounded: from below, so that training cannot run away.
    """

    name: str
    doc: str
    value: Callable[..., Float[Array, "*shape"]]
    bounded: bool = True
    margin: bool = True
    settings: tuple[Field, ...] = ()
    uses: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()

    def of(self, F: Float[Array, "*shape"], y: Float[Array, "*shape"], **settings: Any) -> Float[Array, "*shape"]:
        """ℓ(F, y), whichever kind it is of."""
        return self.value(y * F, **settings) if self.margin else self.value(F, y, **settings)


@jax.custom_jvp
def _logistic(m: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log(1 + e^−m), whose derivative −1/(1 + e^m) is cheaper than that of its stable form."""
    return jax.nn.softplus(-m)


_logistic.defjvps(lambda tangent, value, m: -jax.nn.sigmoid(-m) * tangent)

MIXTURE = "mixture"
LOSSES: Registry[Loss] = Registry("loss", reserved=(MIXTURE,))
"""The choice of `loss` that gives the tasks those of `losses` in turn."""

LOSSES.register(
    Loss(
        "linear",
        "−yF: hinge inside its margin, where the theory works",
        lambda F, y: -(y * F),
        bounded=False,
        margin=False,
    )
)
LOSSES.register(Loss("hinge", "max(0, 1 − m), m = yF", lambda m: optax.hinge_loss(m, jnp.ones_like(m))))
LOSSES.register(Loss("logistic", "log(1 + e^−m)", _logistic))
LOSSES.register(Loss("squared", "½(1 − m)²", lambda m: optax.l2_loss(m, jnp.ones_like(m))))
LOSSES.register(Loss("exponential", "e^−m", lambda m: jnp.exp(-m)))
LOSSES.register(Loss("mse", "½(F − y)²", lambda F, y: optax.l2_loss(F, y), margin=False))
LOSSES.register(
    Loss(
        "huber",
        "½(F − y)² up to an error of huber_delta, linear beyond (Huber 1964)",
        lambda F, y, huber_delta: optax.huber_loss(F, y, delta=huber_delta),
        margin=False,
        settings=(
            Field(
                "huber_delta",
                "knob",
                number(1e-6, examples=(0.25, 1.0, 3.0)),
                "error from which the huber loss grows linearly",
            ),
        ),
    )
)
# Not the absolute value, whose slope at 0 is 1 in JAX.
LOSSES.register(Loss("mae", "the absolute error of F and y", lambda F, y: (F - y) * jnp.sign(F - y), margin=False))


def pointwise(losses: Sequence[str | Pointwise], F: Float[Array, "n T"], y: Float[Array, "n T"]) -> Float[Array, "n T"]:
    """ℓ_t(F, y). Task t has losses[t mod len(losses)]: a name, or a function of outputs and targets."""
    values = [LOSSES[loss].of if isinstance(loss, str) else loss for loss in losses]
    if len(values) == 1:
        return values[0](F, y)
    out = jnp.zeros_like(F)
    # Each loss sees its own tasks only: one that overflows elsewhere cannot spoil their gradients.
    for i, value in enumerate(values):
        own = slice(i, None, len(values))
        out = out.at[:, own].set(value(F[:, own], y[:, own]))
    return out
