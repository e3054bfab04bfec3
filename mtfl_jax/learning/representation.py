"""What a representation is like beside its directions: spectra of weights and features, alignments, how far it moved.

Source: each definition is named beside it; on which samples it is taken, and that it is taken of all tasks together, is
ours.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from mtfl_jax.learning import network
from mtfl_jax.learning.activations import ACTIVATIONS
from mtfl_jax.learning.arithmetic import EXACT, Arithmetic
from mtfl_jax.learning.network import Params
from mtfl_jax.learning.probe import normalised
from mtfl_jax.learning.scalars import IntLike

ALIGNMENT_BINS = 10
"""Bins of equal width in [0, 1] that the neurons' alignments are counted in."""


def singular_values(W: Float[Array, "width d"], *, accelerator: bool = False) -> Float[Array, " side"]:
    """The singular values of W, largest first; NaN where W is not finite.

    accelerator: from the smaller Gram matrix, of which a device has a batch at once; values below √ε of the largest are
    rounding there.
    """
    finite = jnp.all(jnp.isfinite(W))
    W = jnp.where(finite, W, 0)
    if not accelerator:
        sigma = jnp.linalg.svd(W, compute_uv=False)
    else:
        # Of unit size, so that squares stay representable.
        largest = jnp.max(jnp.abs(W))
        scale = jnp.where(largest > 0, largest, 1)
        sigma = scale * jnp.sqrt(_eigenvalues(W / scale)[::-1])
    return jnp.where(finite, sigma, jnp.nan)


def participation_ratio(values: Float[Array, " k"]) -> Float[Array, ""]:
    """(Σλ)²/Σλ² of eigenvalues λ ≥ 0: k where k are equal and the others zero, 0 where all are zero.

    Source: the participation ratio of a covariance's eigenvalues, as in neuroscience (Gao et al. 2017).
    """
    largest = jnp.max(values)
    values = values / jnp.where(largest > 0, largest, 1)
    squares = jnp.sum(values**2)
    return jnp.sum(values) ** 2 / jnp.where(squares > 0, squares, 1)


def effective_rank(values: Float[Array, " k"]) -> Float[Array, ""]:
    """exp(−Σ p log p) with p = σ/Σσ, of singular values σ ≥ 0: k where k are equal and the others zero; 0 for zeros.

    Source: Roy & Vetterli 2007, The effective rank.
    """
    total = jnp.sum(values)
    p = values / jnp.where(total > 0, total, 1)
    entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0))
    # NaN stays NaN: a comparison with it is false.
    return jnp.where(total == 0, 0, jnp.exp(entropy) + 0 * total)


def feature_spectrum(h: Float[Array, "max_n width"], n: IntLike) -> Float[Array, " side"]:
    """Eigenvalues of the covariance of the first n feature vectors, smallest first; NaN where they are not finite."""
    finite = jnp.all(jnp.isfinite(h))
    counted = (jnp.arange(len(h)) < n)[:, None]
    h = jnp.where(counted & finite, h, 0)
    centred = jnp.where(counted, h - jnp.sum(h, axis=0) / n, 0)
    return jnp.where(finite, _eigenvalues(centred) / n, jnp.nan)


def _eigenvalues(A: Float[Array, "m k"]) -> Float[Array, " side"]:
    """Those of the smaller of A Aᵀ and Aᵀ A, smallest first; none is below 0."""
    return jnp.maximum(jnp.linalg.eigvalsh(A @ A.T if A.shape[0] <= A.shape[1] else A.T @ A), 0)


def neuron_alignment(W: Float[Array, "width d"], r: IntLike) -> Float[Array, " bins"]:
    """Shares of the neurons whose ‖Mᵀw‖/‖w‖ falls into each of ALIGNMENT_BINS equal parts of [0, 1], M = I[:, :r].

    Rows of zero have no direction and do not count; where all are zero, so are the shares.
    """
    unit = normalised(W)
    used = jnp.any(unit != 0, axis=1)
    cosine = jnp.linalg.norm(jnp.where(jnp.arange(W.shape[1]) < r, unit, 0), axis=1)
    place = jnp.minimum(jnp.floor(ALIGNMENT_BINS * cosine), ALIGNMENT_BINS - 1)
    found = (place[:, None] == jnp.arange(ALIGNMENT_BINS)) & used[:, None]
    return jnp.sum(found, axis=0) / jnp.maximum(jnp.sum(used), 1)


def moved(W: Float[Array, "width d"], start: Float[Array, "width d"]) -> Float[Array, ""]:
    """‖W − W₀‖/‖W₀‖ in Frobenius norms; W₀ is not zero."""
    return jnp.linalg.norm(W - start) / jnp.linalg.norm(start)


def tangent_kernel(
    params: Params,
    x: Float[Array, "n d"],
    num_tasks: IntLike,
    how: Arithmetic = EXACT,
    *,
    train_bias: bool = False,
) -> Float[Array, "n n"]:
    """Θ(x, x') = (1/T) Σ_t ⟨∂F_t(x), ∂F_t(x')⟩ over W and A, and b where it is trained, of F_t = a_tᵀ σ(W x + b).

    The first num_tasks heads count, and the others are zero.

    Source: Jacot, Gabriel & Hongler 2018; the mean over outputs is that of neural-tangents' empirical_ntk_fn with
    trace_axes=(-1,).
    """
    W, b, A = params["W"], params["b"], params["A"]
    h = network.features(params, x, how)
    active = ACTIVATIONS[how.activation].slope(x @ W.T + b) * jnp.sqrt(jnp.sum(A**2, axis=0) / num_tasks)
    return h @ h.T + (active @ active.T) * (x @ x.T + (1 if train_bias else 0))


def alignment(
    K: Float[Array, "max_n max_n"], L: Float[Array, "max_n max_n"], n: IntLike, *, centred: bool = True
) -> Float[Array, ""]:
    """⟨K, L⟩/(‖K‖ ‖L‖) in Frobenius norms over the first n samples, 0 where one of them is zero; centred: of kernels
    whose rows and columns have their means taken out.

    Source: Cortes, Mohri & Rostamizadeh 2012 (centred kernel alignment); uncentred, Cristianini et al. 2001.
    """
    K, L = _counted(K, n, centred), _counted(L, n, centred)
    sizes = jnp.linalg.norm(K) * jnp.linalg.norm(L)
    return jnp.sum(K * L) / jnp.where(sizes > 0, sizes, 1)


def change(K: Float[Array, "max_n max_n"], start: Float[Array, "max_n max_n"], n: IntLike) -> Float[Array, ""]:
    """‖K − K₀‖/‖K₀‖ in Frobenius norms over the first n samples; 0 where K₀ is zero and K too, else infinite."""
    K, start = _counted(K, n, False), _counted(start, n, False)
    difference, size = jnp.linalg.norm(K - start), jnp.linalg.norm(start)
    return jnp.where(difference == 0, 0, difference / size)


def _counted(K: Float[Array, "max_n max_n"], n: IntLike, centred: bool) -> Float[Array, "max_n max_n"]:
    """The kernel of the first n samples, of unit size, centred where asked for, and zero beyond."""
    used = jnp.arange(len(K)) < n
    K = jnp.where(used[:, None] & used, K, 0)
    if not centred:
        return K
    largest = jnp.max(jnp.abs(K))
    K = K / jnp.where(largest > 0, largest, 1)
    K = jnp.where(used, K - jnp.sum(K, axis=1, keepdims=True) / n, 0)
    return jnp.where(used[:, None], K - jnp.sum(K, axis=0, keepdims=True) / n, 0)
