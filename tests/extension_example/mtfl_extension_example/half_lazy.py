"""A parametrisation half-way from ntk to mean_field: parametrization=half_lazy."""

from mtfl_jax.learning.parametrizations import PARAMETRIZATIONS, Exponents, Parametrization

PARAMETRIZATIONS.register(
    Parametrization(
        "half_lazy",
        "outputs that move and features that move as width^(-1/4)",
        heads=-0.75,
        rates=Exponents(0.5, -1.0),
        unit_rates=Exponents(-0.25, -1.0),
    )
)
