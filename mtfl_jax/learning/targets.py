"""Real-valued tasks: polynomials and small networks of the hidden coordinates u = Mᵀx, and polynomials of their signs.

E y² = 1 where u ~ N(0, I_r), and for tasks of z where its signs are independent and fair; other laws of inputs give
other numbers. Params of a task are a row: what it is made of, one thing after the other.

Source: the functions are the field's, each named beside it; which of them a task draws is ours.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key, Shaped

from mtfl_jax.fields import ConfigError, Field, View, integer, integer_or, number, rule, word
from mtfl_jax.learning import draws, keys
from mtfl_jax.learning.scalars import IntLike, RealLike

MAX_INDICES = 8
"""Most directions of a multi-index task."""
MAX_UNITS = 16
"""Most units of a teacher."""

# Tables of more values than this are sorted to be drawn and looked up to be read. Comparing all values of a shorter
# one, and multiplying it by the orthants' indicators, is exact too and several times as fast.
LOOKED_UP = 64

dot = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def ranks(u: Float[Array, "*rows k"]) -> Int[Array, "*rows k"]:
    """The rank of each entry of u within its row; equal entries rank in order."""
    k = jnp.arange(u.shape[-1])
    if len(k) > LOOKED_UP:
        return jnp.argsort(jnp.argsort(u, axis=-1), axis=-1)
    before = (u[..., None, :] < u[..., :, None]) | ((u[..., None, :] == u[..., :, None]) & (k < k[:, None]))
    return jnp.sum(before, axis=-1)


def parity_labels(params: Shaped[Array, "T r"], z: Float[Array, "n r"]) -> Float[Array, "n T"]:
    """The product of z over the coordinates whose params are 1."""
    negative = dot((z < 0).astype(z.dtype), params.astype(z.dtype).T)
    return 1 - 2 * (negative % 2)


def in_random_order(key: Key[Array, ""], num_tasks: int, r: IntLike, max_r: int) -> Int[Array, "{num_tasks} {max_r}"]:
    """The place of each of the first r coordinates in a random order of a task's own; the others come last."""
    return ranks(jnp.where(jnp.arange(max_r) < r, draws.uniform(key, max_r, num_tasks).T, jnp.inf))


# Polynomials of one or several directions.

HERMITE = tuple(
    Field(
        f"hermite_{k}",
        "knob",
        number(-math.inf, examples=(0.0, 1.0, -0.5)),
        f"coefficient of the Hermite polynomial of degree {k}, normalised",
    )
    for k in (1, 2, 3, 4)
)
DIRECTIONS = Field(
    "directions",
    "knob",
    word({"random": 0, "axis": 1}),
    "directions of an index task: random and orthonormal, or different axes",
)
INDICES = Field("indices", "knob", integer(1, MAX_INDICES, examples=(1, 2, 3)), "directions of each multi-index task")
PRODUCT = Field(
    "hermite_product",
    "knob",
    number(-math.inf, examples=(0.0, 1.0)),
    "coefficient of the product of all directions of a multi-index task",
)


@rule(*(field.name for field in HERMITE))
def some_hermite(c: View) -> None:
    """At least one coefficient is not zero."""
    if not any((c.hermite_1, c.hermite_2, c.hermite_3, c.hermite_4)):
        raise ConfigError("hermite_1", c.hermite_1, "allowed: one of hermite_1 to hermite_4 that is not 0")


@rule(*(field.name for field in HERMITE), PRODUCT.name, INDICES.name, "r")
def indices_fit(c: View) -> None:
    """There are no more indices than directions; their product is no Hermite polynomial of one."""
    if c.indices > c.r:
        raise ConfigError("indices", c.indices, f"allowed: from 1 to r={c.r}")
    if c.hermite_product and c.indices == 1:
        raise ConfigError("hermite_product", c.hermite_product, "allowed with indices=1: 0")
    if not any((c.hermite_1, c.hermite_2, c.hermite_3, c.hermite_4, c.hermite_product)):
        raise ConfigError("hermite_1", c.hermite_1, "allowed: one of hermite_1 to hermite_4, hermite_product not 0")


def hermite(s: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], ...]:
    """he_k(s) = He_k(s)/√k! for k = 1 … 4: of unit variance and uncorrelated for normal s."""
    return (
        s,
        (s**2 - 1) / math.sqrt(2),
        (s**3 - 3 * s) / math.sqrt(6),
        (s**4 - 6 * s**2 + 3) / math.sqrt(24),
    )


def _vectors(
    key: Key[Array, ""], num_tasks: int, count: int, r: IntLike, max_r: int
) -> Float[Array, "{num_tasks} {count} {max_r}"]:
    """`count` standard normal vectors of each task, zero from coordinate r on."""
    v = draws.normal(key, max_r, num_tasks * count).T.reshape(num_tasks, count, max_r)
    return jnp.where(jnp.arange(max_r) < r, v, 0)


def _orthonormal(drawn: Float[Array, "T count max_r"], r: IntLike) -> Float[Array, "T count max_r"]:
    """Each task's vectors made orthonormal in turn; zero from the r-th on, as there are no more directions."""

    def add(i: Int[Array, ""], rows: Float[Array, "T count max_r"]) -> Float[Array, "T count max_r"]:
        v = drawn[:, i]
        for _ in range(2):  # Once leaves rounding where a draw is nearly in the span of those before.
            along = jnp.einsum("tk,tik->ti", v, rows, precision=jax.lax.Precision.HIGHEST)
            v = v - jnp.einsum("ti,tik->tk", along, rows, precision=jax.lax.Precision.HIGHEST)
        length = jnp.linalg.norm(v, axis=1, keepdims=True)
        return rows.at[:, i].set(jnp.where(i < r, v / jnp.where(length > 0, length, 1), 0))

    return jax.lax.fori_loop(0, drawn.shape[1], add, jnp.zeros_like(drawn))


def _frame(
    key: Key[Array, ""], num_tasks: int, r: IntLike, max_r: int, count: int, directions: IntLike
) -> Float[Array, "{num_tasks} {count} {max_r}"]:
    """Orthonormal directions of each task in the first r coordinates, as many of the `count` as r allows."""
    drawn = _vectors(keys.named(key, "index"), num_tasks, MAX_INDICES, r, max_r)[:, :count]
    random = _orthonormal(drawn, r)
    place = in_random_order(keys.named(key, "axes"), num_tasks, r, max_r)
    axes = (place[:, None, :] == jnp.arange(count)[:, None]).astype(drawn.dtype)
    return jnp.where(jnp.asarray(directions) == 1, axes, random)


_COEFFICIENTS = 5


def _index_params(
    frame: Float[Array, "T count max_r"], coefficients: tuple[RealLike, ...], product: RealLike, indices: IntLike
) -> Float[Array, "T _"]:
    """Coefficients that make E y² = 1, then the directions, those from `indices` on zero."""
    c = jnp.stack([jnp.asarray(own, frame.dtype) for own in (*coefficients, product)])
    largest = jnp.max(jnp.abs(c))
    c = c / jnp.where(largest > 0, largest, 1)
    c = c / jnp.linalg.norm(c)
    c = c / jnp.where(jnp.arange(_COEFFICIENTS) < len(coefficients), jnp.sqrt(jnp.asarray(indices, c.dtype)), 1)
    used = (jnp.arange(frame.shape[1]) < indices)[:, None]
    rows = jnp.where(used, frame, 0).reshape(len(frame), -1)
    return jnp.concatenate([jnp.broadcast_to(c, (len(frame), _COEFFICIENTS)), rows], axis=1)


def single_index(
    key: Key[Array, ""],
    num_tasks: int,
    r: IntLike,
    max_r: int,
    *,
    hermite_1: RealLike,
    hermite_2: RealLike,
    hermite_3: RealLike,
    hermite_4: RealLike,
    directions: IntLike,
) -> Float[Array, "{num_tasks} _"]:
    """One direction a task."""
    frame = _frame(key, num_tasks, r, max_r, 1, directions)
    return _index_params(frame, (hermite_1, hermite_2, hermite_3, hermite_4), 0.0, 1)


def multi_index(
    key: Key[Array, ""],
    num_tasks: int,
    r: IntLike,
    max_r: int,
    *,
    hermite_1: RealLike,
    hermite_2: RealLike,
    hermite_3: RealLike,
    hermite_4: RealLike,
    hermite_product: RealLike,
    directions: IntLike,
    indices: IntLike,
) -> Float[Array, "{num_tasks} _"]:
    """`indices` directions a task."""
    frame = _frame(key, num_tasks, r, max_r, min(MAX_INDICES, max_r), directions)
    return _index_params(frame, (hermite_1, hermite_2, hermite_3, hermite_4), hermite_product, indices)


def index_labels(params: Float[Array, "T _"], u: Float[Array, "n max_r"]) -> Float[Array, "n T"]:
    """Σ_i Σ_k c_k he_k(u·v_i) + c Π_i u·v_i, over the directions that are not zero."""
    c, frame = params[:, :_COEFFICIENTS], params[:, _COEFFICIENTS:].reshape(len(params), -1, u.shape[1])
    zeros = jnp.zeros((len(u), len(params)), u.dtype)
    Carry = tuple[Float[Array, "n T"], Float[Array, "n T"]]

    def add(i: Int[Array, ""], carry: Carry) -> Carry:
        v, (total, product) = frame[:, i], carry
        used, s = jnp.any(v != 0, axis=1), dot(u, v.T)
        value = sum(c[:, k] * he for k, he in enumerate(hermite(s)))
        return total + jnp.where(used, value, 0), product * jnp.where(used, s, 1)

    total, product = jax.lax.fori_loop(0, frame.shape[1], add, (zeros, zeros + 1))
    return total + c[:, -1] * product


# Teacher networks.

UNITS = Field("teacher_units", "knob", integer(1, MAX_UNITS, examples=(1, 3, 6)), "hidden units of each teacher")
SHARED = Field(
    "teacher_shared",
    "knob",
    integer(0, MAX_UNITS, examples=(0, 1, 3)),
    "units whose features all teachers have in common, that of the downstream task too",
)
FEATURES = Field(
    "teacher_features",
    "knob",
    word({"random": 0, "orthonormal": 1}),
    "features of each teacher: random directions under normal output weights, or orthonormal ones under ±1/√units",
)


@rule(UNITS.name, FEATURES.name, "r")
def features_fit(c: View) -> None:
    """There are no more orthonormal features than directions."""
    if c.teacher_features == "orthonormal" and c.teacher_units > c.r:
        raise ConfigError(UNITS.name, c.teacher_units, f"allowed with teacher_features=orthonormal: from 1 to r={c.r}")


@rule(UNITS.name, SHARED.name)
def shared_fit(c: View) -> None:
    """A teacher has the units that it shares."""
    if c.teacher_shared > c.teacher_units:
        raise ConfigError("teacher_shared", c.teacher_shared, f"allowed: from 0 to teacher_units={c.teacher_units}")


def teacher(
    key: Key[Array, ""],
    num_tasks: int,
    r: IntLike,
    max_r: int,
    *,
    common: Key[Array, ""],
    teacher_units: IntLike,
    teacher_shared: IntLike,
    teacher_features: IntLike,
) -> Float[Array, "{num_tasks} _"]:
    """Output weights a, then features, the first teacher_shared of them drawn from `common`.

    random: directions at random, a ~ N(0, 1), scaled so that E y² = 1. orthonormal: the same directions made
    orthonormal in turn, a = ±1/√teacher_units, as Lippl and Lindsey 2024 have them.

    E y² = aᵀ K a with K the kernel of max(0, ·) of two unit directions at an angle θ,
    (sin θ + (π − θ) cos θ)/(2π): Cho and Saul 2009, Eq. 6, over 2.
    """
    own = _vectors(keys.named(key, "feature"), num_tasks, MAX_UNITS, r, max_r)
    shared = jnp.arange(MAX_UNITS)[:, None] < jnp.asarray(teacher_shared)
    V = jnp.where(shared, _vectors(common, 1, MAX_UNITS, r, max_r), own)
    orthonormal = jnp.asarray(teacher_features) == 1
    V = jnp.where(orthonormal, _orthonormal(V, r), V / jnp.linalg.norm(V, axis=2, keepdims=True))
    a = draws.normal(keys.named(key, "output"), MAX_UNITS, num_tasks).T
    signs = jnp.where(a >= 0, 1, -1) / jnp.sqrt(jnp.asarray(teacher_units, a.dtype))
    signs = jnp.where(jnp.arange(MAX_UNITS) < teacher_units, signs, 0)
    a = jnp.where(jnp.arange(MAX_UNITS) < teacher_units, a, 0)
    cosine = jnp.clip(jnp.einsum("tik,tjk->tij", V, V, precision=jax.lax.Precision.HIGHEST), -1, 1)
    K = (jnp.sqrt(1 - cosine**2) + (math.pi - jnp.arccos(cosine)) * cosine) / (2 * math.pi)
    square = jnp.einsum("ti,tij,tj->t", a, K, a, precision=jax.lax.Precision.HIGHEST)[:, None]
    a = jnp.where(orthonormal, signs, a / jnp.sqrt(jnp.where(square > 0, square, 1)))
    return jnp.concatenate([a, V.reshape(num_tasks, -1)], axis=1)


def teacher_labels(params: Float[Array, "T _"], u: Float[Array, "n max_r"]) -> Float[Array, "n T"]:
    """Σ_k a_k max(0, u·v_k)."""
    a, V = params[:, :MAX_UNITS], params[:, MAX_UNITS:].reshape(len(params), MAX_UNITS, -1)

    def add(k: Int[Array, ""], total: Float[Array, "n T"]) -> Float[Array, "n T"]:
        return total + a[:, k] * jax.nn.relu(dot(u, V[:, k].T))

    return jax.lax.fori_loop(0, MAX_UNITS, add, jnp.zeros((len(u), len(params)), u.dtype))


# Polynomials of the signs.

DEGREE = Field(
    "degree",
    "knob",
    integer_or(1, {"any": 0, "all": -1}),
    "degree of a task of staircase, monomial or polynomial; any: uniform on 1 to r, all: r",
)


@rule(DEGREE.name, "r")
def degree_fits(c: View) -> None:
    """A polynomial of signs has no more factors than there are directions."""
    if isinstance(c.degree, int) and c.degree > c.r:
        raise ConfigError("degree", c.degree, f"allowed: any, all, or an integer from 1 to r={c.r}")


def _degrees(key: Key[Array, ""], num_tasks: int, r: IntLike, degree: IntLike) -> Int[Array, "{num_tasks} 1"]:
    u = draws.uniform(keys.named(key, "degree"), 1, num_tasks).T
    drawn = jnp.minimum(jnp.floor(u * r).astype(int) + 1, r)
    degree = jnp.asarray(degree)
    return jnp.where(degree == 0, drawn, jnp.where(degree < 0, r, degree))


def monomial(
    key: Key[Array, ""], num_tasks: int, r: IntLike, max_r: int, *, degree: IntLike
) -> Bool[Array, "{num_tasks} {max_r}"]:
    """The coordinates that are multiplied, a random set."""
    place = in_random_order(keys.named(key, "order"), num_tasks, r, max_r)
    return place < _degrees(key, num_tasks, r, degree)


def staircase(
    key: Key[Array, ""], num_tasks: int, r: IntLike, max_r: int, *, degree: IntLike
) -> Int[Array, "{num_tasks} {max_r}"]:
    """The step at which each coordinate joins the product, in a random order; 0 for those that never do."""
    place = in_random_order(keys.named(key, "order"), num_tasks, r, max_r)
    return jnp.where(place < _degrees(key, num_tasks, r, degree), place + 1, 0)


def staircase_labels(params: Shaped[Array, "T r"], z: Float[Array, "n r"]) -> Float[Array, "n T"]:
    """(z_1 + z_1 z_2 + … + z_1⋯z_D)/√D, the coordinates in the task's order (Abbe et al. 2021)."""
    height = jnp.max(params, axis=1)

    def add(j: Int[Array, ""], total: Float[Array, "n T"]) -> Float[Array, "n T"]:
        product = parity_labels((params > 0) & (params <= j), z)
        return total + jnp.where(j <= height, product, 0)

    total = jax.lax.fori_loop(1, z.shape[1] + 1, add, jnp.zeros((len(z), len(params)), z.dtype))
    return total / jnp.sqrt(height)


def polynomial(
    key: Key[Array, ""], num_tasks: int, r: IntLike, max_r: int, *, degree: IntLike
) -> Float[Array, "{num_tasks} {2**max_r}"]:
    """Values at every orthant of Σ_S c_S Π_{k∈S} z_k over the non-empty sets S of at most `degree` coordinates, c_S
    normal and scaled so that Σ c_S² = 1.
    """
    sets = jnp.arange(2**max_r)
    size = jax.lax.population_count(sets)
    there = (size > 0) & (size <= _degrees(key, num_tasks, r, degree)) & (sets < 2**r)
    c = jnp.where(there, draws.normal(keys.named(key, "coefficients"), 2**max_r, num_tasks).T, 0)
    c = c / jnp.linalg.norm(c, axis=1, keepdims=True)
    # Walsh and Hadamard's transform, a coordinate at a time: bit k of an orthant is set where z_k = +1.
    for k in range(max_r):
        pair = c.reshape(num_tasks, -1, 2, 2**k)
        without, with_k = pair[:, :, 0], pair[:, :, 1]
        c = jnp.stack([without - with_k, without + with_k], axis=2).reshape(num_tasks, -1)
    return c
