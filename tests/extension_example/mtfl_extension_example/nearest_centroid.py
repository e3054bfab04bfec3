"""A downstream classifier: the class whose mean feature vector is nearer."""

import jax.numpy as jnp
from jax import Array

from mtfl_jax.learning.probe import PROBES, Probe


def _fit(phi: Array, y: Array, n: int | Array) -> tuple[Array, Array]:
    counted = jnp.arange(len(y)) < n

    def mean(of_class: Array) -> tuple[Array, Array]:
        member = (counted & of_class).astype(phi.dtype)
        count = jnp.sum(member)
        return member @ jnp.where(counted[:, None], phi, 0) / jnp.maximum(count, 1), count

    (plus, many), (minus, few) = mean(y > 0), mean(y <= 0)
    both = (many > 0) & (few > 0)
    # Where there is one class only, it is the answer.
    beta = jnp.where(both, 2 * (plus - minus), 0)
    return beta, jnp.where(both, minus @ minus - plus @ plus, jnp.where(many > 0, 1.0, -1.0))


PROBES.register(Probe("nearest_centroid", "the class whose mean feature vector is nearer", _fit))
