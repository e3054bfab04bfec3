"""The limit of infinitely many samples of `one_step` with the linear loss on Gaussian inputs.

Both tables of `moments` then become Gaussian integrals.

Source: ours.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float64, Key

from mtfl_jax.learning import draws
from mtfl_jax.learning import tasks as families
from mtfl_jax.learning.activations import ACTIVATIONS, Activation
from mtfl_jax.learning.network import Params
from mtfl_jax.learning.scalars import IntLike, RealLike

MAX_POPULATION_R = 10
"""Largest r of the population limit: it sums over 2^r orthants."""

_NODES = 4096
_POINTS_PER_COORDINATE = {1: 64, 2: 32, 3: 16, 4: 8, 5: 5, 6: 4}


def half_normal_rule(points: int) -> tuple[Float64[np.ndarray, " {points}"], Float64[np.ndarray, " {points}"]]:
    """Gauss quadrature for |g|, g ~ N(0, 1): nodes and weights, exact to degree 2·points − 1.

    Golub and Welsch (1969) on the Jacobi matrix of the discretised measure (Gautschi's Stieltjes procedure).
    """
    t, w = np.polynomial.legendre.leggauss(400)
    u = 6.5 * (t + 1)
    w = w * np.exp(-(u**2) / 2)
    w /= w.sum()
    diagonal, off = np.zeros(points), np.zeros(points)
    before, now = np.zeros_like(u), np.ones_like(u)
    for k in range(points):
        diagonal[k] = w @ (u * now**2)
        after = (u - diagonal[k]) * now - (off[k - 1] if k else 0) * before
        off[k] = math.sqrt(w @ after**2)
        before, now = now, after / off[k]
    nodes, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off[:-1], 1) + np.diag(off[:-1], -1))
    return nodes, vectors[0] ** 2


def half_normal_nodes(key: Key[Array, ""], max_r: int) -> tuple[Float[Array, "P {max_r}"], Float[Array, " P"]]:
    """Nodes and weights for |u|, u ~ N(0, I_r): a tensor Gauss rule up to r = 6, Monte Carlo of
    4096 draws from `key` above. The rule depends on max_r: pass r itself where r <= 6.
    """
    if max_r in _POINTS_PER_COORDINATE:
        nodes, weights = half_normal_rule(_POINTS_PER_COORDINATE[max_r])
        grid = np.stack(np.meshgrid(*[nodes] * max_r, indexing="ij"), axis=-1).reshape(-1, max_r)
        weight = np.prod(np.stack(np.meshgrid(*[weights] * max_r, indexing="ij"), axis=-1), axis=-1).reshape(-1)
        return jnp.asarray(grid, float), jnp.asarray(weight, float)
    return jnp.abs(draws.normal(key, max_r, _NODES)).T, jnp.full((_NODES,), 1 / _NODES)


def population_step(
    key: Key[Array, ""],
    params: Params,
    tables: Float[Array, "T {2**max_r}"],
    *,
    r: IntLike,
    max_r: int,
    num_tasks: IntLike,
    nuisance_scale: RealLike = 1.0,
    signal: RealLike = 1.0,
    lr_a: RealLike = 1.0,
    lr_w: RealLike = 1.0,
    activation: Activation = ACTIVATIONS["relu"],
) -> Params:
    """`one_step` with the linear loss on Gaussian inputs as n1, n2 → ∞, initial weights forgotten.

    tables: truth tables, zero where padded; signal: E[y f_t(z)], i.e. 1 − 2·label_noise. With
    u = Mᵀx and ρ_j = nuisance_scale·‖w_⊥‖, w·x + b is μ + ρ ξ with μ = w_∥·u + b. The means of σ, σ' and σ' ξ over ξ
    are those of the activation's record, for ReLU
      E σ = μ Φ(μ/ρ) + ρ φ(μ/ρ),  E 1[active] = Φ(μ/ρ),  E 1[active] ξ = φ(μ/ρ);
    the average over u runs orthant by orthant over `half_normal_nodes`, so its cost does not depend on d.
    Raises ValueError for an activation whose means are not known.
    """
    means = activation.gaussian
    if means is None:
        raise ValueError(f"activation={activation.name}: its means over a Gaussian have no closed form")
    W, b = params["W"], params["b"]
    along = jnp.arange(W.shape[1]) < r
    parallel = jnp.where(along, W, 0)[:, :max_r]
    perpendicular = jnp.where(along, 0, W)
    length = jnp.linalg.norm(perpendicular, axis=1)
    rho = nuisance_scale * length
    unit = perpendicular / jnp.where(length > 0, length, 1)[:, None]
    size, weight = half_normal_nodes(key, max_r)
    weight = weight / 2**r

    def orthant(
        z: Float[Array, " max_r"],
    ) -> tuple[Float[Array, " width"], Float[Array, "width max_r"], Float[Array, " width"]]:
        u = size * z
        value, slope, across = means(u @ parallel.T + b, rho)
        return weight @ value, jnp.einsum("p,pj,pk->jk", weight, slope, u), weight @ across

    h, s_parallel, s_across = jax.lax.map(orthant, families.all_orthants(r, max_r))
    heads = lr_a * signal * tables @ h
    back = signal * tables.T @ heads / num_tasks
    toward_m = jnp.einsum("zj,zjk->jk", back, s_parallel)
    across = nuisance_scale * jnp.sum(back * s_across, axis=0)
    moved = jnp.pad(toward_m, ((0, 0), (0, W.shape[1] - max_r))) + across[:, None] * unit
    return params | {"W": lr_w * moved, "A": heads}
