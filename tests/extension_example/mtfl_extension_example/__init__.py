"""A record of every kind, one file each; `extensions=[mtfl_extension_example]` imports this, which registers them."""

import importlib.util

from mtfl_extension_example import (
    alternating_normalised,
    effective_rank,
    laplace,
    nearest_centroid,
    random_quadratic,
    smoothed_hinge,
    tanh,
)

__all__ = [
    "alternating_normalised",
    "effective_rank",
    "laplace",
    "nearest_centroid",
    "random_quadratic",
    "smoothed_hinge",
    "tanh",
]

if importlib.util.find_spec("mtfl_jax.analysis.models"):
    importlib.import_module("mtfl_extension_example.logarithmic")
