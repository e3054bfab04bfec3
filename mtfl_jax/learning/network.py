"""The two-layer ReLU network with one shared first layer and one head a task: F_t(x) = a_tᵀ σ(W x + b).

Source: arXiv 2307.06887v1 (abstract) for the network; scales and biases are ours.
"""

import functools
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mtfl_jax.learning import draws, keys

Params = dict[str, Array]
"""{"W": (width, d), "b": (width,), "A": (T, width)}"""

BIASES = ("zero", "random", "trained")

PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
"""What the factors of a matrix product are rounded to; its sums are float32."""

KERNELS = ("plain", "pallas")
"""Whether the hidden layer is an array, or made again where it is needed and never in a GPU's main memory."""


class Arithmetic(NamedTuple):
    """How a training computes its matrix products: one of PRECISIONS, one of KERNELS."""

    precision: str = "float32"
    kernel: str = "plain"


EXACT = Arithmetic()


@jax.custom_vjp
def _product(x: Array, W: Array) -> Array:
    """x Wᵀ: x (…, n, d), W (width, d) -> (…, n, width)."""
    return x @ W.T


def _product_forward(x: Array, W: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ W.T, (x, W)


def _product_backward(kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, W = kept
    # As (xᵀ g)ᵀ and kept so: a CPU takes twice as long for gᵀ x, into which a compiler would turn it.
    product = jax.lax.optimization_barrier(jnp.einsum("...nd,...nw->dw", x, g))
    return g @ W, product.T


_product.defvjp(_product_forward, _product_backward)


def contract(a: Array, b: Array, over: tuple[int, int], precision: str) -> Array:
    """a and b contracted over one axis of each, their factors rounded to `precision`."""
    dims = (((over[0],), (over[1],)), ((), ()))
    if precision == "bfloat16":
        a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
        return jax.lax.dot_general(a, b, dims, jax.lax.Precision.DEFAULT, jnp.float32)
    if precision == "tensorfloat32":
        # Rounded here so that every backend has the same factors; HIGH then loses nothing of them.
        return jax.lax.dot_general(_tensorfloat32(a), _tensorfloat32(b), dims, jax.lax.Precision.HIGH, jnp.float32)
    return jax.lax.dot_general(a, b, dims, jax.lax.Precision.HIGHEST)


def _tensorfloat32(a: Array) -> Array:
    """a rounded to 10 bits of mantissa, to the nearest, ties to even: by its bits, as kernels can."""
    bits = jax.lax.bitcast_convert_type(a.astype(jnp.float32), jnp.uint32)
    bits = (bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))) & np.uint32(0xFFFFE000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rounded(x: Array, W: Array, precision: str) -> Array:
    """x Wᵀ in a reduced precision, as are the products of its gradients: x (n, d), W (width, d) -> (n, width)."""
    return contract(x, W, (1, 1), precision).astype(x.dtype)


def _rounded_forward(x: Array, W: Array, precision: str) -> tuple[Array, tuple[Array, Array]]:
    return _rounded(x, W, precision), (x, W)


def _rounded_backward(precision: str, kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, W = kept
    return contract(g, W, (1, 0), precision).astype(x.dtype), contract(g, x, (0, 0), precision).astype(W.dtype)


_rounded.defvjp(_rounded_forward, _rounded_backward)


class TwoLayerReLU(nn.Module):
    """F_t(x) = a_tᵀ σ(W x + b) as a flax module; `initialise` draws its parameters."""

    d: int
    width: int
    num_tasks: int
    precision: str = "float32"

    def setup(self) -> None:
        self.W = self.param("W", nn.initializers.zeros, (self.width, self.d))
        self.b = self.param("b", nn.initializers.zeros, (self.width,))
        self.A = self.param("A", nn.initializers.zeros, (self.num_tasks, self.width))

    def features(self, x: Array) -> Array:
        """σ(W x + b): x (…, n, d) -> (…, n, width)."""
        product = _product(x, self.W) if self.precision == "float32" else _rounded(x, self.W, self.precision)
        return nn.relu(product + self.b)

    def __call__(self, x: Array) -> Array:
        """Outputs (n, T), of inputs (n, d) shared by the tasks or (in float32 only) (T, n, d) of each task's own."""
        h = self.features(x)
        if self.precision != "float32":
            return _rounded(h, self.A, self.precision)
        return h @ self.A.T if x.ndim == 2 else jnp.einsum("tnw,tw->nt", h, self.A)


def module(params: Params, precision: str = "float32") -> TwoLayerReLU:
    """The flax module whose parameters have these shapes."""
    (width, d), num_tasks = params["W"].shape, params["A"].shape[0]
    return TwoLayerReLU(d, width, num_tasks, precision)


def outputs(params: Params, x: Array, how: Arithmetic = EXACT) -> Array:
    """F_t(x): x (n, d) or, in float32 and plainly, (T, n, d) -> (n, T)."""
    if how.kernel == "pallas":
        from mtfl_jax.learning import kernels

        return kernels.outputs(params["W"], params["b"], params["A"], x, how.precision)
    return cast(Array, module(params, how.precision).apply({"params": params}, x))


def features(params: Params, x: Array) -> Array:
    """σ(W x + b): x (n, d) -> (n, width)."""
    return cast(Array, module(params).apply({"params": params}, x, method="features"))


def initialise(
    key: Array,
    max_d: int,
    max_width: int,
    max_tasks: int,
    *,
    d: int | Array | None = None,
    width: int | Array | None = None,
    bias: str = "zero",
    bias_scale: float | Array = 1.0,
) -> Params:
    """w_j ~ N(0, I_d/d), A = 0, and b = 0 (`zero`, `trained`) or uniform on [−bias_scale, bias_scale] (`random`).

    Neuron j's weights depend on the key, j and the coordinate only, so a narrower network or a smaller d has the
    first of a wider one's draws. Sizes of arrays are the padded ones; weights of coordinates from d on and of
    neurons from `width` on are zero and stay zero under every update.
    """
    d = max_d if d is None else d
    width = max_width if width is None else width
    rows = draws.normal(key, max_d, max_width).T
    neuron = jnp.arange(max_width) < width
    used = neuron[:, None] & (jnp.arange(max_d) < d)
    b = jnp.zeros(max_width, rows.dtype)
    if bias == "random":
        b = bias_scale * (2 * draws.uniform(keys.named(key, "bias"), 1, max_width)[0] - 1)
    return {
        # A factor, not a division: a compiler may turn a division by a constant into another rounding.
        "W": jnp.where(used, rows * (1 / jnp.sqrt(jnp.asarray(d, rows.dtype))), 0),
        "b": jnp.where(neuron, b, 0).astype(rows.dtype),
        "A": jnp.zeros((max_tasks, max_width), rows.dtype),
    }


def inside_span(params: Params, r: int | Array, d: int | Array) -> Params:
    """The `oracle` network: rows drawn inside span(M), w_j ~ N(0, MMᵀ/r), from an initialised one's draws."""
    W = params["W"]
    scale = jnp.sqrt(jnp.asarray(d, W.dtype) / r)
    return params | {"W": jnp.where(jnp.arange(W.shape[1]) < r, W * scale, 0)}
