"""A record of every kind, one file each; `extensions=[mtfl_extension_example]` imports this, which registers them."""

from mtfl_extension_example import (
    alternating_normalised,
    arctan,
    effective_rank,
    laplace,
    logarithmic,
    nearest_centroid,
    random_quadratic,
    smoothed_hinge,
)

__all__ = [
    "alternating_normalised",
    "arctan",
    "effective_rank",
    "laplace",
    "logarithmic",
    "nearest_centroid",
    "random_quadratic",
    "smoothed_hinge",
]
