"""The network's outputs and their gradients by Pallas kernels that keep the hidden layer out of main memory.

A tile of the hidden layer is made in a processor's own memory, used, and made again for the gradients: 2 n d width
operations more than keeping it, against writing and reading n × width numbers several times. On a GPU and a TPU these
are kernels, elsewhere the same formulas in plain JAX.

Source: the rematerialised tiles are those of FlashAttention (Dao et al. 2022), here for a hidden layer; ours otherwise.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import CustomVJPPrimal
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Float

from mtfl_jax.learning.activations import ACTIVATIONS
from mtfl_jax.learning.arithmetic import contract
from mtfl_jax.learning.scalars import IntLike

TILE = 64
"""Samples, and neurons, of a tile."""
LEAST = 16
"""Least side of a matrix product in a kernel."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def outputs(
    W: Float[Array, "width d"],
    b: Float[Array, " width"],
    A: Float[Array, "T width"],
    x: Float[Array, "n d"],
    precision: str = "float32",
    interpret: bool = False,
    activation: str = "relu",
) -> Float[Array, "n T"]:
    """F_t(x) = a_tᵀ σ(W x + b).

    Differentiable in W, b and A, once, and not in x. `interpret` runs the kernels' own code on any backend.
    """
    return _by_platform(_forward, _plain_forward, interpret, precision, activation)(W, b, A, x)


def _outputs_forward(
    W: CustomVJPPrimal,
    b: CustomVJPPrimal,
    A: CustomVJPPrimal,
    x: CustomVJPPrimal,
    precision: str,
    interpret: bool,
    activation: str,
) -> tuple[Float[Array, "n T"], Any]:
    if x.perturbed:
        raise ValueError("kernels.outputs has no gradient in x")
    values = (W.value, b.value, A.value, x.value)
    # None is a leaf's absence, known when the gradient is built: what nobody asks for is not computed.
    wanted = (True if A.perturbed else None, True if W.perturbed or b.perturbed else None)
    return outputs(*values, precision, interpret, activation), (values, wanted)


def _outputs_backward(precision: str, interpret: bool, activation: str, kept: Any, g: Any) -> tuple[Array | None, ...]:
    (W, b, A, x), (heads, representation) = kept
    if isinstance(g, jax.custom_derivatives.SymbolicZero):
        return None, None, None, None
    dA = dW = db = None
    if heads is not None:
        dA = _by_platform(_head_gradient, _plain_head_gradient, interpret, precision, activation)(W, b, x, g)
    if representation is not None:
        dW, db = _by_platform(_gradient, _plain_gradient, interpret, precision, activation)(W, b, A, x, g)
    return dW, db, dA, None


outputs.defvjp(_outputs_forward, _outputs_backward, symbolic_zeros=True)


def _by_platform(kernel: Any, plain: Any, interpret: bool, precision: str, activation: str) -> Any:
    """The kernel where there is one, the plain formula elsewhere."""
    kernel = functools.partial(kernel, precision=precision, activation=activation)
    if interpret:
        return functools.partial(kernel, options={"interpret": True})
    gpu = functools.partial(kernel, options={"compiler_params": triton.CompilerParams()})
    default = functools.partial(plain, precision=precision, activation=activation)
    # A TPU has no TensorFloat-32.
    tpu = default if precision == "tensorfloat32" else functools.partial(kernel, options={})
    return functools.partial(jax.lax.platform_dependent, cuda=gpu, rocm=gpu, tpu=tpu, default=default)


def _hidden(
    x: Float[Array, "n d"], W: Float[Array, "width d"], b: Float[Array, " width"], precision: str
) -> Float[Array, "n width"]:
    return contract(x, W, (1, 1), precision).astype(x.dtype) + b


def _features(
    x: Float[Array, "n d"], W: Float[Array, "width d"], b: Float[Array, " width"], precision: str, activation: str
) -> Float[Array, "n width"]:
    return ACTIVATIONS[activation].value(_hidden(x, W, b, precision))


def _plain_forward(
    W: Float[Array, "width d"],
    b: Float[Array, " width"],
    A: Float[Array, "T width"],
    x: Float[Array, "n d"],
    *,
    precision: str,
    activation: str,
) -> Float[Array, "n T"]:
    return contract(_features(x, W, b, precision, activation), A, (1, 1), precision).astype(x.dtype)


def _plain_head_gradient(
    W: Float[Array, "width d"],
    b: Float[Array, " width"],
    x: Float[Array, "n d"],
    g: Float[Array, "n T"],
    *,
    precision: str,
    activation: str,
) -> Float[Array, "T width"]:
    return contract(g, _features(x, W, b, precision, activation), (0, 0), precision).astype(x.dtype)


def _plain_gradient(
    W: Float[Array, "width d"],
    b: Float[Array, " width"],
    A: Float[Array, "T width"],
    x: Float[Array, "n d"],
    g: Float[Array, "n T"],
    *,
    precision: str,
    activation: str,
) -> tuple[Float[Array, "width d"], Float[Array, " width"]]:
    back = contract(g, A, (1, 0), precision).astype(x.dtype)
    back = back * ACTIVATIONS[activation].slope(_hidden(x, W, b, precision))
    return contract(back, x, (0, 0), precision).astype(x.dtype), jnp.sum(back, axis=0)


def _padded(a: Float[Array, "_ _"], *multiples: int) -> Float[Array, "_ _"]:
    """a with zeros at the ends, its sides multiples of those numbers; a side of 0 becomes a power of two."""
    sides = [
        -(-size // of) * of if of else max(LEAST, 1 << (size - 1).bit_length())
        for size, of in zip(a.shape, multiples, strict=True)
    ]
    return jnp.pad(a, [(0, side - size) for size, side in zip(a.shape, sides, strict=True)])


def _whole(shape: tuple[int, ...]) -> pl.BlockSpec:
    return pl.BlockSpec(shape, lambda i: (0,) * len(shape))


def _rows(shape: tuple[int, ...]) -> pl.BlockSpec:
    """The i-th TILE rows."""
    return pl.BlockSpec((TILE, *shape[1:]), lambda i: (i,) + (0,) * (len(shape) - 1))


def _forward(
    W: Float[Array, "width d"],
    b: Float[Array, " width"],
    A: Float[Array, "T width"],
    x: Float[Array, "n d"],
    *,
    precision: str,
    activation: str,
    options: dict[str, Any],
) -> Float[Array, "n T"]:
    """A tile of samples a program, over all tiles of neurons."""
    n, num_tasks = x.shape[0], A.shape[0]
    W, b, A, x = _padded(W, TILE, 0), _padded(b[:, None], TILE, 1), _padded(A.T, TILE, 0), _padded(x, TILE, 0)

    def kernel(W: Any, b: Any, A: Any, x: Any, out: Any) -> None:
        samples = x[...]

        def tile(k: IntLike, found: Float[Array, "_ _"]) -> Float[Array, "_ _"]:
            at = pl.ds(k * TILE, TILE)
            h = _features(samples, W[at, :], b[at, 0], precision, activation)
            return found + contract(h, A[at, :], (1, 0), precision)

        out[...] = jax.lax.fori_loop(0, W.shape[0] // TILE, tile, jnp.zeros(out.shape, out.dtype))

    found = pl.pallas_call(
        kernel,
        grid=(x.shape[0] // TILE,),
        in_specs=[_whole(W.shape), _whole(b.shape), _whole(A.shape), _rows(x.shape)],
        out_specs=_rows((x.shape[0], A.shape[1])),
        out_shape=jax.ShapeDtypeStruct((x.shape[0], A.shape[1]), x.dtype),
        **options,
    )(W, b, A, x)
    return found[:n, :num_tasks]


def _head_gradient(
    W: Float[Array, "width d"],
    b: Float[Array, " width"],
    x: Float[Array, "n d"],
    g: Float[Array, "n T"],
    *,
    precision: str,
    activation: str,
    options: dict[str, Any],
) -> Float[Array, "T width"]:
    """gᵀ h: a tile of neurons a program, over all tiles of samples."""
    width, num_tasks = W.shape[0], g.shape[1]
    W, b, x, g = _padded(W, TILE, 0), _padded(b[:, None], TILE, 1), _padded(x, TILE, 0), _padded(g, TILE, 0)

    def kernel(W: Any, b: Any, x: Any, g: Any, out: Any) -> None:
        weights, biases = W[...], b[:, 0]

        def tile(k: IntLike, found: Float[Array, "_ _"]) -> Float[Array, "_ _"]:
            at = pl.ds(k * TILE, TILE)
            h = _features(x[at, :], weights, biases, precision, activation)
            return found + contract(h, g[at, :], (0, 0), precision)

        out[...] = jax.lax.fori_loop(0, x.shape[0] // TILE, tile, jnp.zeros(out.shape, out.dtype))

    shape = (W.shape[0], g.shape[1])
    found = pl.pallas_call(
        kernel,
        grid=(W.shape[0] // TILE,),
        in_specs=[_rows(W.shape), _rows(b.shape), _whole(x.shape), _whole(g.shape)],
        out_specs=_rows(shape),
        out_shape=jax.ShapeDtypeStruct(shape, x.dtype),
        **options,
    )(W, b, x, g)
    return found[:width, :num_tasks].T


def _gradient(
    W: Float[Array, "width d"],
    b: Float[Array, " width"],
    A: Float[Array, "T width"],
    x: Float[Array, "n d"],
    g: Float[Array, "n T"],
    *,
    precision: str,
    activation: str,
    options: dict[str, Any],
) -> tuple[Float[Array, "width d"], Float[Array, " width"]]:
    """((g A) ∘ 1[h > 0])ᵀ x and its sum over samples: a tile of neurons a program, over all tiles of samples."""
    width, d = W.shape
    W, b, A = _padded(W, TILE, 0), _padded(b[:, None], TILE, 1), _padded(A.T, TILE, 0)
    x, g = _padded(x, TILE, 0), _padded(g, TILE, 0)

    def kernel(W: Any, b: Any, A: Any, x: Any, g: Any, dW: Any, db: Any) -> None:
        weights, biases, heads = W[...], b[:, 0], A[...]

        def tile(
            k: IntLike, found: tuple[Float[Array, "neurons d"], Float[Array, " neurons"]]
        ) -> tuple[Float[Array, "neurons d"], Float[Array, " neurons"]]:
            at = pl.ds(k * TILE, TILE)
            samples = x[at, :]
            back = contract(g[at, :], heads, (1, 1), precision).astype(samples.dtype)
            back = back * ACTIVATIONS[activation].slope(_hidden(samples, weights, biases, precision))
            return found[0] + contract(back, samples, (0, 0), precision), found[1] + jnp.sum(back, axis=0)

        start = (jnp.zeros(dW.shape, dW.dtype), jnp.zeros(TILE, db.dtype))
        dW[...], db[:, 0] = jax.lax.fori_loop(0, x.shape[0] // TILE, tile, start)

    dW, db = pl.pallas_call(
        kernel,
        grid=(W.shape[0] // TILE,),
        in_specs=[_rows(W.shape), _rows(b.shape), _rows(A.shape), _whole(x.shape), _whole(g.shape)],
        out_specs=[_rows(W.shape), _rows(b.shape)],
        out_shape=[jax.ShapeDtypeStruct(a.shape, x.dtype) for a in (W, b)],
        **options,
    )(W, b, A, x, g)
    return dW[:width, :d], db[:width, 0]
