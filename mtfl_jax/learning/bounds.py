"""What keeps steps and weights within bounds: gradients of a norm at most, and rows of W of the norm they had.

Source: clipping by the global norm is that of Pascanu, Mikolov and Bengio (2013) as optax defines it; that rows are
brought back to their initial norms, and not reparametrised, is ours.
"""

from collections.abc import Callable
from typing import TypeVar, cast

import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, Int

from mtfl_jax.fields import Field, flag, number, optional
from mtfl_jax.learning.network import Params
from mtfl_jax.learning.program import Cell
from mtfl_jax.learning.scalars import RealLike

BOUNDS = (
    Field(
        "clip",
        "knob",
        optional(number(1e-12, examples=(0.05, 1.0))),
        "most of the norm of a step's gradient, of all that it moves together; null: whatever it is",
        neutral=None,
    ),
    Field(
        "weight_norm",
        "choice",
        flag(),
        "whether each step ends with the rows of W at their initial norms",
        neutral=False,
    ),
)
"""The settings of bounds."""


def clip_of(cell: Cell) -> RealLike | None:
    """What gradients of the cell are clipped to, None where they are not."""
    return cell.clip if "clip" in cell else None


def clipped(gradient: Params, most: RealLike | None) -> Params:
    """The gradient, scaled where its norm over all leaves is not below `most` so that it is that."""
    if most is None:
        return gradient
    return cast(Params, optax.clip_by_global_norm(cast(float, most)).update(gradient, optax.EmptyState())[0])


Own = TypeVar("Own")


def with_norms(
    update: Callable[[tuple[Params, Own], Int[Array, ""]], tuple[Params, Own]], W: Float[Array, "width d"]
) -> Callable[[tuple[Params, Own], Int[Array, ""]], tuple[Params, Own]]:
    """`update` followed by a rescaling of the rows of W to the norms of those given; a row of zero stays."""
    norms = jnp.linalg.norm(W, axis=1)

    def updated(state: tuple[Params, Own], step: Int[Array, ""]) -> tuple[Params, Own]:
        params, own = update(state, step)
        now = jnp.linalg.norm(params["W"], axis=1)
        factor = jnp.where(now > 0, norms / jnp.where(now > 0, now, 1), 1)
        return params | {"W": params["W"] * factor[:, None]}, own

    return updated
