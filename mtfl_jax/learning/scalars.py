"""Numbers that may be traced: the true size or the knob that a function takes beside arrays."""

import numpy as np
from jax import Array
from jaxtyping import Integer, Real

IntLike = int | np.integer | Integer[Array, ""]
"""A whole number of Python or NumPy, or a traced one."""

RealLike = float | int | np.floating | np.integer | Real[Array, ""]
"""A number of Python or NumPy, or a traced one."""
