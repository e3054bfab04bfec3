"""A record of every kind, one file each; `extensions=[mtfl_extension_example]` imports this, which registers them."""

from mtfl_extension_example import (
    alternating_normalised,
    effective_rank,
    laplace,
    logarithmic,
    nearest_centroid,
    random_quadratic,
    smoothed_hinge,
    tanh,
)

__all__ = [
    "alternating_normalised",
    "effective_rank",
    "laplace",
    "logarithmic",
    "nearest_centroid",
    "random_quadratic",
    "smoothed_hinge",
    "tanh",
]
