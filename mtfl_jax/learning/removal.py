"""Targets without their Hermite components of degree 0, or of 0 and 1, as the samples themselves estimate them.

Source: Damian, Lee and Soltanolkotabi, *Neural Networks can Learn Representations with Gradient Descent* (COLT 2022),
algorithm 1: y − α − β·x with α the mean of y and β that of y x. For inputs of unit covariance these are the components;
what other laws lose by them is no component of theirs. That each step's samples have moments of their own is ours.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from mtfl_jax.fields import Field, one_of
from mtfl_jax.learning.scalars import IntLike
from mtfl_jax.learning.updates import Batch, Parts, Samples, counted, summed

NONE, CONSTANT, LINEAR = REMOVALS = ("none", "constant", "linear")

REMOVE_DEGREE = Field(
    "remove_degree",
    "choice",
    one_of(*REMOVALS),
    "components that training labels lose: of degree 0 (constant), or of 0 and 1 (linear)",
    neutral=NONE,
)

DOWN_REMOVE_DEGREE = Field(
    "down_remove_degree",
    "choice",
    one_of(*REMOVALS),
    "components that downstream labels lose before a probe is fitted, and its outputs get back: as of remove_degree",
    neutral=NONE,
)


def moments(
    degree: str, x: Float[Array, "max_n d"], y: Float[Array, " max_n"], n: IntLike
) -> tuple[Float[Array, ""], Float[Array, " d"]]:
    """α and β of the first n samples: the means of y and of y x, β being 0 where `degree` is not linear."""
    y = jnp.where(jnp.arange(len(y)) < n, y, 0)
    linear = y @ x / n
    return jnp.sum(y) / n, linear if degree == LINEAR else jnp.zeros_like(linear)


def without(degree: str, batch: Samples) -> Samples:
    """Samples whose labels lack the components up to `degree`, one of REMOVALS, by their own moments."""
    if degree == NONE:
        return batch

    def of_part(part: Batch) -> tuple[Float[Array, " max_tasks"], Float[Array, "max_tasks d"]]:
        shared = part.x.ndim == 2
        mean = jnp.sum(part.y, axis=0) / part.n
        linear = jnp.einsum("nt,nd->td" if shared else "nt,tnd->td", part.y, part.x) / part.n
        return mean, linear if degree == LINEAR else jnp.zeros_like(linear)

    mean, linear = summed(of_part, batch)

    def removed(part: Batch) -> Batch:
        fitted = jnp.einsum("nd,td->nt" if part.x.ndim == 2 else "tnd,td->nt", part.x, linear)
        used = counted(part)
        return part._replace(y=jnp.where(used, part.y - mean - fitted, 0), counted=used)

    return (
        removed(batch)
        if isinstance(batch, Batch)
        else Parts(lambda i: removed(batch.of(i)), batch.number, batch.num_tasks)
    )
