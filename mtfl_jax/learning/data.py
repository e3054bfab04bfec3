"""Input laws, in the coordinates where the ground-truth directions are the first r axes.

`gaussian` is x ~ N(0, I_d) with a Haar-distributed M; every other law is x = Q s with Q Haar and M the first r columns
of Q: of `rademacher`, the dictionary model, s is uniform on {±1}^d. Initialisation and gradient descent are
rotation-equivariant, so all are computed with M = I[:, :r] and Q = I, exactly in law; optimisers that are not
equivariant get `rotation`.

Source: which laws the paper uses is not known to us (only its abstracts were at hand), and `gaussian` and `rademacher`
are ours. `dictionary` is after Shi, Wei & Liang 2022: orthonormal patterns φ that are there or not, independently where
labels do not read them. That each is standardised by itself, so that x has unit variance along every pattern, and that
those of the labels are there half of the time, is ours; so is their agreement, without which a parity of them
correlates with no single one. `spiked` is the spiked covariance model (Johnstone 2001): where its spike lies is our
choice and a setting, and so is the order of the eigenvalues of `power_law`. `clusters` has XOR of two Gaussian clusters
a class for its 2-parity (as in Refinetti et al. 2021), here with centres at the corners of a cube: ours.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Integer, Key

from mtfl_jax.fields import ConfigError, Field, Rule, View, flag, integer, number, rule
from mtfl_jax.learning import draws, keys
from mtfl_jax.learning.scalars import IntLike, RealLike
from mtfl_jax.records import Registry


class Inputs(NamedTuple):
    """Inputs x, whose first r coordinates are u = Mᵀx, and coordinates s of whose first r the signs are z: those of x
    too, but of a law that hides them.
    """

    x: Float[Array, "*tasks n d"]
    s: Float[Array, "*tasks n _"]


@dataclasses.dataclass(frozen=True)
class Law:
    """How inputs are drawn: by itself, of independent coordinates of mean 0 and variance 1; a law of others says so.

    draw(key, d, n, **settings): coordinates (rows) of n samples, or of the samples of an array n (columns); entry
    (k, i) depends on key, k and i alone, as the functions of `draws` have it. seconds: the planner's price of an entry.
    sizes: of d and r, the true ones that `draw` takes too, by name; the rows drawn may then be more than d, and those
    from d on are not used. prefix: whether the draw of fewer rows is the beginning of that of more; else all are drawn
    where only the first are wanted. hidden(key, r, n, **settings): coordinates of which the labels read the signs, of
    fewer rows the first ones, where these are not the first of x (None). standard_normal: whether x is N(0, I_d), of
    which the population limit is known.
    """

    name: str
    doc: str
    draw: Callable[..., Float[Array, "d n"]]
    seconds: float
    settings: tuple[Field, ...] = ()
    uses: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    sizes: tuple[str, ...] = ()
    prefix: bool = True
    hidden: Callable[..., Float[Array, "r n"]] | None = None
    standard_normal: bool = False


LAWS: Registry[Law] = Registry("data")
LAWS.register(Law("gaussian", "x ~ N(0, I_d)", draws.normal, seconds=3e-9, standard_normal=True))
LAWS.register(Law("rademacher", "x = Q s, s uniform on {±1}^d", draws.sign, seconds=1e-9))


def _total(x: Float[Array, " rows *columns"]) -> Float[Array, " *columns"]:
    """The sum over rows, neighbours first: rows of zeros at the end leave it as it is, to the bit, where x is selected
    and no product, which a compiler may round together with the sum.
    """
    while len(x) > 1:
        x = jnp.pad(x, [(0, len(x) % 2)] + [(0, 0)] * (x.ndim - 1))
        x = x[::2] + x[1::2]
    return x[0]


def _below(rows: int, size: IntLike) -> Bool[Array, "{rows} 1"]:
    return jnp.arange(rows)[:, None] < size


def _sphere(key: Key[Array, ""], rows: int, n: draws.Columns, d: IntLike) -> Float[Array, "{rows} n"]:
    g = draws.normal(key, rows, n)
    # No g is 0: a normal of `draws` is not.
    return g * jnp.sqrt(jnp.asarray(d, g.dtype) / _total(jnp.where(_below(rows, d), g * g, 0)))


LAWS.register(
    Law("sphere", "x uniform on the sphere of radius √d", _sphere, seconds=4e-9, sizes=("d",), prefix=False),
)


def _biased(
    key: Key[Array, ""], rows: int, n: draws.Columns, bias_probability: RealLike, centred: bool
) -> Float[Array, "{rows} n"]:
    u = draws.uniform(key, rows, n)
    x = jnp.where(u < bias_probability, 1.0, -1.0).astype(u.dtype)
    if not centred:
        return x
    p = jnp.asarray(bias_probability, u.dtype)
    return (x - (2 * p - 1)) / (2 * jnp.sqrt(p * (1 - p)))


LAWS.register(
    Law(
        "biased",
        "x = Q s, s of independent ±1 bits that are +1 with probability bias_probability, as they are or centred",
        _biased,
        seconds=2e-9,
        settings=(
            Field(
                "bias_probability",
                "knob",
                number(0.001, 0.999, examples=(0.1, 0.5, 0.75)),
                "probability of +1 of the bits of data=biased",
            ),
            Field(
                "centred",
                "choice",
                flag(),
                "whether the bits of data=biased are shifted and scaled to mean 0 and variance 1",
            ),
        ),
    )
)


def _spiked(
    key: Key[Array, ""], rows: int, n: draws.Columns, r: IntLike, spike_strength: RealLike, spike_overlap: RealLike
) -> Float[Array, "{rows} n"]:
    g, k = draws.normal(key, rows, n), jnp.arange(rows)[:, None]
    c = jnp.asarray(spike_overlap, g.dtype)
    v = jnp.where(k == 0, c, jnp.where(k == r, jnp.sqrt(1 - c**2), 0))
    along = _total(jnp.where((k == 0) | (k == r), v * g, 0))
    return g + (jnp.sqrt(1 + jnp.asarray(spike_strength, g.dtype)) - 1) * v * along


@rule("spike_overlap", "r", "d")
def _spike_has_a_place(c: View) -> None:
    if c.spike_overlap != 1 and c.r == c.d:
        raise ConfigError("spike_overlap", c.spike_overlap, f"nothing is orthogonal to r={c.r} directions; allowed: 1")


LAWS.register(
    Law(
        "spiked",
        "x ~ N(0, I + θ v vᵀ), v of spike_overlap with the first direction and the rest of it orthogonal to all",
        _spiked,
        seconds=4e-9,
        settings=(
            Field("spike_strength", "knob", number(0, examples=(0.0, 1.0, 9.0)), "θ of data=spiked, I + θ v vᵀ"),
            Field(
                "spike_overlap",
                "knob",
                number(0, 1, examples=(0.0, 0.6, 1.0)),
                "inner product of the spike of data=spiked and the first direction; 0: it is nuisance",
            ),
        ),
        rules=(_spike_has_a_place,),
        sizes=("r",),
        prefix=False,
    )
)


def _power_law(
    key: Key[Array, ""], rows: int, n: draws.Columns, d: IntLike, power_law_exponent: RealLike
) -> Float[Array, "{rows} n"]:
    g = draws.normal(key, rows, n)
    k = jnp.arange(1, rows + 1, dtype=g.dtype)[:, None]
    shares = jnp.where(_below(rows, d), k ** -jnp.asarray(power_law_exponent, g.dtype), 0)
    return g * jnp.sqrt(shares * (d / _total(shares)))


LAWS.register(
    Law(
        "power_law",
        "x ~ N(0, Λ), eigenvalues ∝ k^(−α) of trace d, the directions first",
        _power_law,
        seconds=3e-9,
        settings=(
            Field(
                "power_law_exponent",
                "knob",
                number(-4, 4, examples=(-0.5, 0.0, 1.0)),
                "α of data=power_law: eigenvalues k^(−α), the directions k = 1 … r; below 0 these vary least",
            ),
        ),
        sizes=("d",),
        prefix=False,
    )
)


def _dictionary(
    key: Key[Array, ""],
    rows: int,
    n: draws.Columns,
    r: IntLike,
    num_patterns: IntLike,
    pattern_probability: RealLike,
    pattern_agreement: RealLike,
) -> Float[Array, "{rows} n"]:
    u = draws.uniform(keys.named(key, "patterns"), rows, n)
    agree = draws.uniform(keys.named(key, "agreement"), 1, n) < pattern_agreement
    p = jnp.where(_below(rows, r), 0.5, jnp.asarray(pattern_probability, u.dtype)).astype(u.dtype)
    there = jnp.where(_below(rows, r) & agree, u[:1], u) < p
    standardised = (there.astype(u.dtype) - p) / jnp.sqrt(p * (1 - p))
    return jnp.where(_below(rows, num_patterns), standardised, 0)


@rule("num_patterns", "r", "d")
def _patterns_are_orthonormal(c: View) -> None:
    if not c.r <= c.num_patterns <= c.d:
        raise ConfigError("num_patterns", c.num_patterns, f"allowed: from r={c.r} to d={c.d}")


LAWS.register(
    Law(
        "dictionary",
        "x = M φ with num_patterns orthonormal patterns, φ in {0, 1} standardised; the first r make the labels",
        _dictionary,
        seconds=2e-9,
        settings=(
            Field(
                "num_patterns", "knob", integer(1, examples=(1, 2, 3)), "D of data=dictionary, the number of patterns"
            ),
            Field(
                "pattern_probability",
                "knob",
                number(0.001, 0.999, examples=(0.1, 0.5)),
                "probability of a pattern of data=dictionary that the labels do not read; of one that they do it is ½",
            ),
            Field(
                "pattern_agreement",
                "knob",
                number(0, 1, examples=(0.0, 0.5, 1.0)),
                "share of the samples of data=dictionary in which the labels' patterns are all there or none is",
            ),
        ),
        rules=(_patterns_are_orthonormal,),
        sizes=("r",),
    )
)


def _centres(
    key: Key[Array, ""], rows: int, n: draws.Columns, r: IntLike, cluster_spread: RealLike
) -> Float[Array, "{rows} n"]:
    return jnp.where(_below(rows, r), draws.sign(keys.named(key, "centre"), rows, n), 0)


def _clusters(
    key: Key[Array, ""], rows: int, n: draws.Columns, r: IntLike, cluster_spread: RealLike
) -> Float[Array, "{rows} n"]:
    noise = draws.normal(keys.named(key, "noise"), rows, n)
    return _centres(key, rows, n, r, cluster_spread) + cluster_spread * noise


LAWS.register(
    Law(
        "clusters",
        "x = s + cluster_spread·g, s a corner of {±1}^r in the span of the directions, g ~ N(0, I_d); labels read s",
        _clusters,
        seconds=4e-9,
        settings=(
            Field(
                "cluster_spread",
                "knob",
                number(0, examples=(0.0, 0.3, 1.0)),
                "standard deviation about the centres of data=clusters, in every coordinate",
            ),
        ),
        sizes=("r",),
        hidden=_centres,
    )
)


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

    The first r coordinates are those along the directions, the next d - r are multiplied by `nuisance_scale` and those
    from d on (default: none) are zero. The draws of fewer samples are the first of those of more, and so are those of
    fewer coordinates where the law does not depend on d. `settings` are the law's own.
    """
    sizes = _sizes(LAWS[law], r, max_d if d is None else d)
    x = LAWS[law].draw(key, max_d, n, **sizes, **(settings or {})).T
    k = jnp.arange(max_d)
    scale = jnp.where(k < r, 1.0, jnp.where(k < (max_d if d is None else d), nuisance_scale, 0.0))
    return x * scale.astype(x.dtype)


def _sizes(law: Law, r: IntLike, d: IntLike) -> dict[str, IntLike]:
    return {name: {"r": r, "d": d}[name] for name in law.sizes}


def hidden(
    key: Key[Array, ""],
    law: str,
    n: int | Integer[Array, " n"],
    max_r: int,
    *,
    r: IntLike,
    d: IntLike,
    settings: Mapping[str, Any] | None = None,
) -> Float[Array, "n {max_r}"] | None:
    """The coordinates whose signs are z, of n inputs that `inputs` draws from the same key; None where these are the
    first of x.
    """
    own = LAWS[law]
    return None if own.hidden is None else own.hidden(key, max_r, n, **_sizes(own, r, d), **(settings or {})).T


def orthants(x: Float[Array, "n d"], r: IntLike, max_r: int) -> Float[Array, "n {max_r}"]:
    """z = sign(Mᵀx) with sign(0) = +1, zero in the columns from r on; of hidden coordinates their signs."""
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
