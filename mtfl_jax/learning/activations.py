"""Activations σ of the hidden layer.

Source: ReLU is that of arXiv 2307.06887. The truncated one is that of Shi, Wei & Liang 2022 (ICLR, §3); He_k are the
probabilists' Hermite polynomials, divided by √k! so that E He_k(g)² = 1 for g ~ N(0, 1). Means over Gaussians are ours.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.stats import norm
from jaxtyping import Float

from mtfl_jax.records import Registry

Elementwise = Callable[[Float[Array, "*shape"]], Float[Array, "*shape"]]
Means = tuple[Float[Array, "*shape"], Float[Array, "*shape"], Float[Array, "*shape"]]


@dataclasses.dataclass(frozen=True)
class Activation:
    """σ, elementwise, and its derivative; `value` must differentiate to `slope`.

    homogeneous: σ(s t) = s σ(t) for s > 0. `name` follows "two_layer_" in the setting `network`. An activation has no
    settings of its own: another slope or scale is another record. exact: sizes that are never padded, ("width",) where
    σ(0) is not 0, so that a neuron that is not used would have a feature. gaussian: a function of μ and ρ ≥ 0 to the
    means of σ(t), σ'(t) and σ'(t) ξ at t = μ + ρ ξ with ξ ~ N(0, 1), which the population limit is made of; None where
    they have no closed form. in_kernels: whether Pallas has on a GPU what σ and σ' are made of, so that `kernel` may be
    other than plain.
    """

    name: str
    doc: str
    value: Elementwise
    slope: Elementwise
    homogeneous: bool = False
    exact: tuple[str, ...] = ()
    gaussian: Callable[[Float[Array, "*#shape"], Float[Array, "*#shape"]], Means] | None = None
    in_kernels: bool = True


ACTIVATIONS: Registry[Activation] = Registry("activation")

PREFIX = "two_layer_"
"""What the setting `network` has before the activation's name."""


def of_network(network: str) -> Activation:
    """The activation of a network by its name in configs. Raises LookupError."""
    return ACTIVATIONS[network.removeprefix(PREFIX)]


def _relu_means(mu: Float[Array, "*#shape"], rho: Float[Array, "*#shape"]) -> Means:
    """μ Φ(μ/ρ) + ρ φ(μ/ρ), Φ(μ/ρ), φ(μ/ρ)."""
    ratio = mu / jnp.where(rho > 0, rho, 1)
    active = jnp.where(rho > 0, norm.cdf(ratio), (mu > 0).astype(mu.dtype))
    density = jnp.where(rho > 0, norm.pdf(ratio), 0)
    return mu * active + rho * density, active, density


def _means(
    mean: Callable[[Float[Array, "*shape"], Float[Array, "*shape"]], Float[Array, "*shape"]],
    mu: Float[Array, "*#shape"],
    rho: Float[Array, "*#shape"],
) -> Means:
    """Of a smooth σ by E σ(μ + ρ ξ), which has E σ' and E σ' ξ for its derivatives in μ and ρ."""
    value, pull = jax.vjp(mean, *jnp.broadcast_arrays(mu, rho))
    return value, *pull(jnp.ones_like(value))


ACTIVATIONS.register(
    Activation(
        "relu",
        doc="max(0, t)",
        value=jax.nn.relu,
        slope=lambda t: (t > 0).astype(t.dtype),
        homogeneous=True,
        gaussian=_relu_means,
    )
)

LEAK = 0.01
"""The slope of `leaky_relu` below 0."""


def _leaky_means(mu: Float[Array, "*#shape"], rho: Float[Array, "*#shape"]) -> Means:
    value, active, density = _relu_means(mu, rho)
    return LEAK * mu + (1 - LEAK) * value, LEAK + (1 - LEAK) * active, (1 - LEAK) * density


ACTIVATIONS.register(
    Activation(
        "leaky_relu",
        doc=f"t above 0 and {LEAK} t below",
        value=lambda t: jnp.where(t > 0, t, LEAK * t),
        slope=lambda t: jnp.where(t > 0, 1, LEAK).astype(t.dtype),
        homogeneous=True,
        gaussian=_leaky_means,
    )
)


def _truncated_means(mu: Float[Array, "*#shape"], rho: Float[Array, "*#shape"]) -> Means:
    below, above = _relu_means(mu, rho), _relu_means(mu - 1, rho)
    return below[0] - above[0], below[1] - above[1], below[2] - above[2]


ACTIVATIONS.register(
    Activation(
        "truncated_relu",
        doc="min(max(0, t), 1)",
        value=lambda t: jnp.where(t > 1, 1, jax.nn.relu(t)),
        slope=lambda t: ((t > 0) & (t <= 1)).astype(t.dtype),
        gaussian=_truncated_means,
    )
)
ACTIVATIONS.register(Activation("tanh", "tanh(t)", value=jnp.tanh, slope=lambda t: 1 - jnp.tanh(t) ** 2))
ACTIVATIONS.register(
    Activation(
        "erf",
        doc="the error function, 2/√π times the integral of e^(−s²) from 0 to t",
        value=jax.lax.erf,
        slope=lambda t: (2 / math.sqrt(math.pi)) * jnp.exp(-(t**2)),
        gaussian=functools.partial(_means, lambda mu, rho: jax.lax.erf(mu / jnp.sqrt(1 + 2 * rho**2))),
        in_kernels=False,
    )
)


def _normal_cdf(t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return (1 + jax.lax.erf(t * math.sqrt(0.5))) / 2


def _normal_pdf(t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jnp.exp(-(t**2) / 2) * (1 / math.sqrt(2 * math.pi))


def _gelu_mean(mu: Float[Array, "*shape"], rho: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """μ Φ(μ/s) + (ρ²/s) φ(μ/s) with s² = 1 + ρ²."""
    s = jnp.sqrt(1 + rho**2)
    return mu * _normal_cdf(mu / s) + rho**2 / s * _normal_pdf(mu / s)


ACTIVATIONS.register(
    Activation(
        "gelu",
        doc="t Φ(t), Φ the normal distribution function (exact, by erf)",
        value=lambda t: t * _normal_cdf(t),
        slope=lambda t: _normal_cdf(t) + t * _normal_pdf(t),
        gaussian=functools.partial(_means, _gelu_mean),
        in_kernels=False,
    )
)
ACTIVATIONS.register(
    Activation(
        "silu",
        doc="t/(1 + e^(−t))",
        value=jax.nn.silu,
        slope=lambda t: jax.nn.sigmoid(t) * (1 + t * jax.nn.sigmoid(-t)),
    )
)
ACTIVATIONS.register(
    Activation(
        "quadratic",
        doc="t², not normalised: E σ(g)² = 3 for g ~ N(0, 1)",
        value=lambda t: t * t,
        slope=lambda t: 2 * t,
        gaussian=functools.partial(_means, lambda mu, rho: mu**2 + rho**2),
    )
)
# By Horner's rule: of an infinite t a sum of powers would be NaN.
ACTIVATIONS.register(
    Activation(
        "he2",
        doc="(t² − 1)/√2, the normalised Hermite polynomial of degree 2",
        value=lambda t: (t * t - 1) * math.sqrt(1 / 2),
        slope=lambda t: math.sqrt(2) * t,
        exact=("width",),
        gaussian=functools.partial(_means, lambda mu, rho: (mu**2 + rho**2 - 1) * math.sqrt(1 / 2)),
    )
)
ACTIVATIONS.register(
    Activation(
        "he3",
        doc="(t³ − 3 t)/√6, the normalised Hermite polynomial of degree 3",
        value=lambda t: t * (t * t - 3) * math.sqrt(1 / 6),
        slope=lambda t: (t * t - 1) * math.sqrt(3 / 2),
        gaussian=functools.partial(_means, lambda mu, rho: mu * (mu**2 + 3 * rho**2 - 3) * math.sqrt(1 / 6)),
    )
)


def _he4_mean(mu: Float[Array, "*shape"], rho: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return (mu**2 * (mu**2 + 6 * rho**2 - 6) + 3 * (rho**2 - 1) ** 2) * math.sqrt(1 / 24)


ACTIVATIONS.register(
    Activation(
        "he4",
        doc="(t⁴ − 6 t² + 3)/√24, the normalised Hermite polynomial of degree 4",
        value=lambda t: ((t * t - 6) * (t * t) + 3) * math.sqrt(1 / 24),
        slope=lambda t: t * (t * t - 3) * math.sqrt(2 / 3),
        exact=("width",),
        gaussian=functools.partial(_means, _he4_mean),
    )
)
