"""Input laws, in the coordinates where the ground-truth directions are the first r axes.

`gaussian` is x ~ N(0, I_d) with a Haar-distributed M; `rademacher` is the dictionary model x = Q s with
s uniform on {±1}^d, Q Haar and M the first r columns of Q. Initialisation and gradient descent are
rotation-equivariant, so both are computed with M = I[:, :r] and Q = I, exactly in law; optimisers that
are not equivariant get `rotation`.

Source: which laws the paper uses is not known to us (only its abstracts were at hand); both are ours.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Integer, Key

from mtfl_jax.fields import Field, Rule
from mtfl_jax.learning import draws
from mtfl_jax.learning.scalars import IntLike, RealLike
from mtfl_jax.records import Registry


@dataclasses.dataclass(frozen=True)
class Law:
    """Independent coordinates of unit variance.

    draw(key, d, n, **settings): coordinates (rows) of n samples, or of the samples of an array n (columns); entry
    (k, i) depends on key, k and i alone, as the functions of `draws` have it. seconds: the planner's price of an entry.
    """

    name: str
    doc: str
    draw: Callable[..., Float[Array, "d n"]]
    seconds: float
    settings: tuple[Field, ...] = ()
    uses: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()


LAWS: Registry[Law] = Registry("data")
LAWS.register(Law("gaussian", "x ~ N(0, I_d)", draws.normal, seconds=3e-9))
LAWS.register(Law("rademacher", "x = Q s, s uniform on {±1}^d", draws.sign, seconds=1e-9))


def inputs(
    key: Key[Array, ""],
    law: str,
    n: int | Integer[Array, " n"],
    max_d: int,
    *,
    r: IntLike,
    d: IntLike | None = None,
    nuisance_scale: RealLike = 1.0,
    settings: Mapping[str, Any] | None = None,
) -> Float[Array, "n {max_d}"]:
    """n inputs x; of an array n, those samples.

    The first r coordinates carry the labels, the next d - r are multiplied by `nuisance_scale` and those
    from d on (default: none) are zero. The draws of fewer samples or coordinates are the first of those of more.
    `settings` are the law's own.
    """
    x = LAWS[law].draw(key, max_d, n, **(settings or {})).T
    k = jnp.arange(max_d)
    scale = jnp.where(k < r, 1.0, jnp.where(k < (max_d if d is None else d), nuisance_scale, 0.0))
    return x * scale.astype(x.dtype)


def orthants(x: Float[Array, "n d"], r: IntLike, max_r: int) -> Float[Array, "n {max_r}"]:
    """z = sign(Mᵀx) with sign(0) = +1, zero in the columns from r on."""
    z = jnp.where(x[:, :max_r] >= 0, 1.0, -1.0).astype(x.dtype)
    return jnp.where(jnp.arange(max_r) < r, z, 0)


def rotation(key: Key[Array, ""], d: IntLike, max_d: int) -> Float[Array, "{max_d} {max_d}"]:
    """A Haar-distributed Q of the first d coordinates, identity on the others.

    Inputs in the run's own basis are x Qᵀ, weights W Qᵀ.
    """
    g = draws.normal(key, max_d, max_d)
    k = jnp.arange(max_d)
    inside = (k[:, None] < d) & (k < d)
    q, upper = jnp.linalg.qr(jnp.where(inside, g, jnp.eye(max_d, dtype=g.dtype)))
    # QR leaves the columns' signs to the routine; a positive diagonal makes Q Haar.
    return q * jnp.where(jnp.diag(upper) < 0, -1, 1)
