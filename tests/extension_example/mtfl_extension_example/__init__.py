"""A record of every kind, one file each; `extensions=[mtfl_extension_example]` imports this, which registers them."""

from mtfl_extension_example import (
    alternating_normalised,
    arctan,
    effective_rank,
    half_lazy,
    laplace,
    logarithmic,
    nearest_centroid,
    random_quadratic,
    smoothed_hinge,
    uniform_heads,
)

__all__ = [
    "alternating_normalised",
    "arctan",
    "effective_rank",
    "half_lazy",
    "laplace",
    "logarithmic",
    "nearest_centroid",
    "random_quadratic",
    "smoothed_hinge",
    "uniform_heads",
]
