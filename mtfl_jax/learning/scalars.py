"""Numbers that may be traced: the true size or the knob that a function takes beside arrays."""

from jax import Array
from jaxtyping import Integer, Real

IntLike = int | Integer[Array, ""]
"""A whole number, Python's or traced."""

RealLike = float | int | Real[Array, ""]
"""A number, Python's or traced."""
