"""Losses of the margin m = y F, and their mixture over tasks.

At F = 0 each has a gradient in F proportional to −y, so the first step of the heads from A = 0 is the same for
all up to a constant.

Source: the abstract of arXiv 2307.06887v1 says that tasks come with differing losses; the list is ours.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jax import Array


@jax.custom_jvp
def _logistic(m: Array) -> Array:
    """log(1 + e^−m), whose derivative −1/(1 + e^m) is cheaper than that of its stable form."""
    return jax.nn.softplus(-m)


_logistic.defjvps(lambda tangent, value, m: -jax.nn.sigmoid(-m) * tangent)

LOSSES: dict[str, Callable[[Array], Array]] = {
    "linear": lambda m: -m,
    "hinge": lambda m: optax.hinge_loss(m, jnp.ones_like(m)),
    "logistic": _logistic,
    "squared": lambda m: optax.l2_loss(m, jnp.ones_like(m)),
    "exponential": lambda m: jnp.exp(-m),
}
"""ℓ(m) by name, elementwise: −m, max(0, 1 − m), log(1 + e^−m), ½(1 − m)², e^−m."""


def margin_losses(names: Sequence[str], margins: Array) -> Array:
    """ℓ_t(m) of margins (n, T): (n, T). Task t uses the loss names[t mod len(names)]."""
    if len(names) == 1:
        return LOSSES[names[0]](margins)
    out = jnp.zeros_like(margins)
    # Each loss sees its own tasks only: one that overflows elsewhere cannot spoil their gradients.
    for i, name in enumerate(names):
        out = out.at[:, i :: len(names)].set(LOSSES[name](margins[:, i :: len(names)]))
    return out
