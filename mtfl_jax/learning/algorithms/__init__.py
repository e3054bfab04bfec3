"""The algorithms, one file each; importing this registers them."""

from mtfl_jax.learning.algorithms import alternating, joint, one_step, population, references
from mtfl_jax.learning.algorithms.record import ALGORITHMS

__all__ = ["ALGORITHMS", "alternating", "joint", "one_step", "population", "references"]
