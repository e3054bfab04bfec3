"""The two-layer network with one shared first layer and one head a task: F_t(x) = a_tᵀ σ(W x + b).

Source: arXiv 2307.06887v1 (abstract) for the network; scales and biases are ours.
"""

import functools
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec
from jaxtyping import Float, Key

from mtfl_jax.learning import draws, kernels, keys
from mtfl_jax.learning.activations import ACTIVATIONS
from mtfl_jax.learning.arithmetic import EXACT, KERNELS, Arithmetic, contract
from mtfl_jax.learning.scalars import IntLike, RealLike

Params = dict[str, Float[Array, "..."]]
"""{"W": (width, d), "b": (width,), "A": (T, width)}"""

Inputs = Float[Array, "n d"] | Float[Array, "T n d"]
"""Shared by the tasks, or of each task's own."""

BIASES = ("zero", "random", "trained")

NEURONS = "neurons"
"""The axis of a mesh along which neurons are shared among devices."""


@jax.custom_vjp
def _product(x: Float[Array, "*T n d"], W: Float[Array, "width d"]) -> Float[Array, "*T n width"]:
    """x Wᵀ."""
    return x @ W.T


def _product_forward(
    x: Float[Array, "*T n d"], W: Float[Array, "width d"]
) -> tuple[Float[Array, "*T n width"], tuple[Float[Array, "*T n d"], Float[Array, "width d"]]]:
    return x @ W.T, (x, W)


def _product_backward(
    kept: tuple[Float[Array, "*T n d"], Float[Array, "width d"]], g: Float[Array, "*T n width"]
) -> tuple[Float[Array, "*T n d"], Float[Array, "width d"]]:
    x, W = kept
    # As (xᵀ g)ᵀ and kept so: a CPU takes twice as long for gᵀ x, into which a compiler would turn it.
    product = jax.lax.optimization_barrier(jnp.einsum("...nd,...nw->dw", x, g))
    return g @ W, product.T


_product.defvjp(_product_forward, _product_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rounded(x: Float[Array, "n d"], W: Float[Array, "width d"], precision: str) -> Float[Array, "n width"]:
    """x Wᵀ in a reduced precision, as are the products of its gradients."""
    return contract(x, W, (1, 1), precision).astype(x.dtype)


def _rounded_forward(
    x: Float[Array, "n d"], W: Float[Array, "width d"], precision: str
) -> tuple[Float[Array, "n width"], tuple[Float[Array, "n d"], Float[Array, "width d"]]]:
    return _rounded(x, W, precision), (x, W)


def _rounded_backward(
    precision: str, kept: tuple[Float[Array, "n d"], Float[Array, "width d"]], g: Float[Array, "n width"]
) -> tuple[Float[Array, "n d"], Float[Array, "width d"]]:
    x, W = kept
    return contract(g, W, (1, 0), precision).astype(x.dtype), contract(g, x, (0, 0), precision).astype(W.dtype)


_rounded.defvjp(_rounded_forward, _rounded_backward)


class TwoLayer(nn.Module):
    """F_t(x) = a_tᵀ σ(W x + b) as a flax module; `initialise` draws its parameters."""

    d: int
    width: int
    num_tasks: int
    precision: str
    activation: str

    def setup(self) -> None:
        self.W = self.param("W", nn.initializers.zeros, (self.width, self.d))
        self.b = self.param("b", nn.initializers.zeros, (self.width,))
        self.A = self.param("A", nn.initializers.zeros, (self.num_tasks, self.width))

    def features(self, x: Float[Array, "*T n d"]) -> Float[Array, "*T n width"]:
        """σ(W x + b)."""
        product = _product(x, self.W) if self.precision == "float32" else _rounded(x, self.W, self.precision)
        return ACTIVATIONS[self.activation].value(product + self.b)

    def __call__(self, x: Inputs) -> Float[Array, "n T"]:
        """Outputs, of inputs shared by the tasks or (in float32 only) of each task's own."""
        h = self.features(x)
        if self.precision != "float32":
            return _rounded(h, self.A, self.precision)
        return h @ self.A.T if x.ndim == 2 else jnp.einsum("tnw,tw->nt", h, self.A)


def module(params: Params, how: Arithmetic = EXACT) -> TwoLayer:
    """The flax module whose parameters have these shapes."""
    (width, d), num_tasks = params["W"].shape, params["A"].shape[0]
    return TwoLayer(d, width, num_tasks, how.precision, how.activation)


def outputs(params: Params, x: Inputs, how: Arithmetic = EXACT) -> Float[Array, "n T"]:
    """F_t(x); inputs of each task's own in float32 and plainly only."""
    if how.kernel == "pallas":
        return kernels.outputs(
            params["W"], params["b"], params["A"], x, precision=how.precision, activation=how.activation
        )
    if how.kernel not in KERNELS:
        raise ValueError(f"kernel={how.kernel}: allowed: {', '.join(KERNELS)}")
    return cast(Array, module(params, how).apply({"params": params}, x))


def features(params: Params, x: Float[Array, "n d"], how: Arithmetic = EXACT) -> Float[Array, "n width"]:
    """σ(W x + b), float32 and plainly."""
    exact = Arithmetic(activation=how.activation)
    return cast(Array, module(params, exact).apply({"params": params}, x, method="features"))


def initialise(
    key: Key[Array, ""],
    max_d: int,
    max_width: int,
    max_tasks: int,
    *,
    d: IntLike | None = None,
    width: IntLike | None = None,
    bias: str = "zero",
    bias_scale: RealLike = 1.0,
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
    if bias not in BIASES:
        raise ValueError(f"bias={bias}: allowed: {', '.join(BIASES)}")
    if bias == "random":
        b = bias_scale * (2 * draws.uniform(keys.named(key, "bias"), 1, max_width)[0] - 1)
    return {
        # A factor, not a division: a compiler may turn a division by a constant into another rounding.
        "W": jnp.where(used, rows * (1 / jnp.sqrt(jnp.asarray(d, rows.dtype))), 0),
        "b": jnp.where(neuron, b, 0).astype(rows.dtype),
        "A": jnp.zeros((max_tasks, max_width), rows.dtype),
    }


def spread(params: Params) -> Params:
    """The network with its neurons shared among the devices of the mesh in use: rows of W, entries of b, columns of A.

    A compiler then keeps with them what has an axis of neurons, and adds up over devices what sums over neurons, as
    outputs do.
    """
    axes = {"W": PartitionSpec(NEURONS, None), "b": PartitionSpec(NEURONS), "A": PartitionSpec(None, NEURONS)}
    return {name: jax.lax.with_sharding_constraint(leaf, axes[name]) for name, leaf in params.items()}


def inside_span(params: Params, r: IntLike, d: IntLike) -> Params:
    """The `oracle` network: rows drawn inside span(M), w_j ~ N(0, MMᵀ/r), from an initialised one's draws."""
    W = params["W"]
    scale = jnp.sqrt(jnp.asarray(d, W.dtype) / r)
    return params | {"W": jnp.where(jnp.arange(W.shape[1]) < r, W * scale, 0)}
