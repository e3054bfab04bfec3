"""How matrix products are computed: what their factors are rounded to, and in which arrays."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32

PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
"""What the factors of a matrix product are rounded to; its sums are float32."""

AUTO = "auto"
KERNELS = ("plain", "pallas", AUTO)
"""Whether the hidden layer is an array, or made again where it is needed and never in a GPU's main memory; or whichever
was measured to be faster, the former where nothing was.
"""


class Arithmetic(NamedTuple):
    """How a network is computed: one of PRECISIONS, one of KERNELS, and the name of its activation."""

    precision: str = "float32"
    kernel: str = "plain"
    activation: str = "relu"


EXACT = Arithmetic()


def contract(
    a: Float[Array, "_ _"], b: Float[Array, "_ _"], over: tuple[int, int], precision: str
) -> Float[Array, "_ _"]:
    """a and b contracted over one axis of each, their factors rounded to `precision`."""
    dims = (((over[0],), (over[1],)), ((), ()))
    if precision == "bfloat16":
        a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
        return jax.lax.dot_general(a, b, dims, jax.lax.Precision.DEFAULT, jnp.float32)
    if precision == "tensorfloat32":
        # Rounded here so that every backend has the same factors; HIGH then loses nothing of them.
        return jax.lax.dot_general(_tensorfloat32(a), _tensorfloat32(b), dims, jax.lax.Precision.HIGH, jnp.float32)
    if precision != "float32":
        raise ValueError(f"precision={precision}: allowed: {', '.join(PRECISIONS)}")
    return jax.lax.dot_general(a, b, dims, jax.lax.Precision.HIGHEST)


def _tensorfloat32(a: Float[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """a rounded to 10 bits of mantissa, to the nearest, ties to even: by its bits, as kernels can."""
    bits = jax.lax.bitcast_convert_type(a.astype(jnp.float32), jnp.uint32)
    bits = (bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))) & np.uint32(0xFFFFE000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
