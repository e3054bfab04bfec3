"""A measurement: the effective rank of the first layer (Roy and Vetterli 2007)."""

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import xlogy

from mtfl_jax.learning.measures import MEASURES, Measure, Seen


def _effective_rank(seen: Seen) -> Array:
    W = seen.params["W"]
    largest = jnp.max(jnp.abs(W))
    sigma = jnp.linalg.svd(W / jnp.where(largest > 0, largest, 1), compute_uv=False)
    total = jnp.sum(sigma)
    share = sigma / jnp.where(total > 0, total, 1)
    return jnp.where(total > 0, jnp.exp(-jnp.sum(xlogy(share, share))), 0)


MEASURES.register(
    Measure(
        "effective_rank",
        "e to the entropy of the singular values of W over their sum, 0 for W = 0",
        _effective_rank,
        label="effective rank of W",
        sets=("all", "contrastive", "rank"),
    )
)
