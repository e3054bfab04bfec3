"""The two-layer ReLU network with one shared first layer and one head a task: F_t(x) = a_tᵀ σ(W x + b).

Source: arXiv 2307.06887v1 (abstract) for the network; scales and biases are ours.
"""

from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from mtfl_jax.learning import draws, keys

Params = dict[str, Array]
"""{"W": (width, d), "b": (width,), "A": (T, width)}"""

BIASES = ("zero", "random", "trained")


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


class TwoLayerReLU(nn.Module):
    """F_t(x) = a_tᵀ σ(W x + b) as a flax module; `initialise` draws its parameters."""

    d: int
    width: int
    num_tasks: int

    def setup(self) -> None:
        self.W = self.param("W", nn.initializers.zeros, (self.width, self.d))
        self.b = self.param("b", nn.initializers.zeros, (self.width,))
        self.A = self.param("A", nn.initializers.zeros, (self.num_tasks, self.width))

    def features(self, x: Array) -> Array:
        """σ(W x + b): x (…, n, d) -> (…, n, width)."""
        return nn.relu(_product(x, self.W) + self.b)

    def __call__(self, x: Array) -> Array:
        """Outputs (n, T), of inputs (n, d) shared by the tasks or (T, n, d) of each task's own."""
        h = self.features(x)
        return h @ self.A.T if x.ndim == 2 else jnp.einsum("tnw,tw->nt", h, self.A)


def module(params: Params) -> TwoLayerReLU:
    """The flax module whose parameters have these shapes."""
    (width, d), num_tasks = params["W"].shape, params["A"].shape[0]
    return TwoLayerReLU(d, width, num_tasks)


def outputs(params: Params, x: Array) -> Array:
    """F_t(x): x (n, d) or (T, n, d) -> (n, T)."""
    return cast(Array, module(params).apply({"params": params}, x))


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
