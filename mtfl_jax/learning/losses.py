"""Losses of the margin m = y F, and their mixture over tasks.

At F = 0 each of the built-in ones has a gradient in F proportional to −y, so the first step of the heads from A = 0 is
the same for all up to a constant.

Source: that many tasks come with differing losses is the motivation in the abstract of arXiv 2307.06887v1; the list is
ours.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float

from mtfl_jax.fields import Field, Rule
from mtfl_jax.records import Registry

Margins = Callable[[Float[Array, "*shape"]], Float[Array, "*shape"]]


@dataclasses.dataclass(frozen=True)
class Loss:
    """ℓ(m), elementwise; its settings come as keywords. bounded: from below, so that training cannot run away."""

    name: str
    doc: str
    value: Callable[..., Float[Array, "*shape"]]
    bounded: bool = True
    settings: tuple[Field, ...] = ()
    uses: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()


@jax.custom_jvp
def _logistic(m: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log(1 + e^−m), whose derivative −1/(1 + e^m) is cheaper than that of its stable form."""
    return jax.nn.softplus(-m)


_logistic.defjvps(lambda tangent, value, m: -jax.nn.sigmoid(-m) * tangent)

MIXTURE = "mixture"
LOSSES: Registry[Loss] = Registry("loss", reserved=(MIXTURE,))
"""The choice of `loss` that gives the tasks those of `losses` in turn."""

LOSSES.register(Loss("linear", "−m: hinge inside its margin, where the theory works", lambda m: -m, bounded=False))
LOSSES.register(Loss("hinge", "max(0, 1 − m)", lambda m: optax.hinge_loss(m, jnp.ones_like(m))))
LOSSES.register(Loss("logistic", "log(1 + e^−m)", _logistic))
LOSSES.register(Loss("squared", "½(1 − m)²", lambda m: optax.l2_loss(m, jnp.ones_like(m))))
LOSSES.register(Loss("exponential", "e^−m", lambda m: jnp.exp(-m)))


def margin_losses(losses: Sequence[str | Margins], margins: Float[Array, "n T"]) -> Float[Array, "n T"]:
    """ℓ_t(m). Task t has losses[t mod len(losses)]: a name, or a function of the margins."""
    values = [LOSSES[loss].value if isinstance(loss, str) else loss for loss in losses]
    if len(values) == 1:
        return values[0](margins)
    out = jnp.zeros_like(margins)
    # Each loss sees its own tasks only: one that overflows elsewhere cannot spoil their gradients.
    for i, value in enumerate(values):
        out = out.at[:, i :: len(values)].set(value(margins[:, i :: len(values)]))
    return out
