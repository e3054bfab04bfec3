"""How initial heads and step sizes go with the width, and step sizes with other sizes.

A parametrisation is a record of exponents. They are of the network as it is, without multipliers: where a source has
F = m^{−a} Σ ã_j σ(w̃_j · x), the head is a = m^{−a} ã, and gradient descent on ã with the rate η is gradient descent on
a with η m^{−2a}, a step of Adam's on ã one on a with η m^{−a}.

Source: the exponents of gradient descent are those of Jacot, Gabriel and Hongler (2018) for `ntk`, of Mei, Montanari
and Nguyen (2018) for `mean_field`, of Yang and Hu, *Tensor Programs IV* (2021, table 1) and *V* (2022, table 3) for
`mup`, which of two layers is `mean_field`. Those of `ntk` for optimisers whose steps do not grow with the gradient are
ours: its features move as under gradient descent.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from mtfl_jax.fields import Field, number, of
from mtfl_jax.learning.program import Cell, Program
from mtfl_jax.learning.scalars import IntLike, RealLike
from mtfl_jax.records import Registry

STANDARD = "standard"


class Exponents(NamedTuple):
    """Of the width, in the rate of the first layer and of the heads."""

    first: float
    heads: float


class Moves(NamedTuple):
    """Exponents of the width with which preactivations and outputs change in a few steps, in theory."""

    preactivations: float
    outputs: float


@dataclasses.dataclass(frozen=True)
class Parametrization:
    """Exponents of the width. heads: in the standard deviation of initial heads, where they are not zero. rates: in
    step sizes that are multiples of the gradient; unit_rates: of optimisers whose steps do not grow with it.
    """

    name: str
    doc: str
    heads: float
    rates: Exponents
    unit_rates: Exponents

    def moves(self, *, unit: bool) -> Moves:
        """What changes how from random heads, and so long as no step is large: a row of W by its rate, times its head
        where steps grow with the gradient; outputs by rows, through heads, or by heads, of which there are `width`.
        """
        rates = self.unit_rates if unit else self.rates
        rows = rates.first if unit else rates.first + self.heads
        return Moves(rows, max(1 + self.heads + rows, 1 + rates.heads))


PARAMETRIZATIONS: Registry[Parametrization] = Registry("parametrization")

PARAMETRIZATIONS.register(
    Parametrization(
        STANDARD,
        "rates as they are",
        heads=-0.5,
        rates=Exponents(0.0, 0.0),
        unit_rates=Exponents(0.0, 0.0),
    )
)
PARAMETRIZATIONS.register(
    Parametrization(
        "ntk",
        "outputs that move and features that do not, as the width grows (Jacot et al. 2018)",
        heads=-0.5,
        rates=Exponents(0.0, -1.0),
        unit_rates=Exponents(-0.5, -1.0),
    )
)
_MEAN_FIELD = PARAMETRIZATIONS.register(
    Parametrization(
        "mean_field",
        "features that move whatever the width (Mei et al. 2018)",
        heads=-1.0,
        rates=Exponents(1.0, -1.0),
        unit_rates=Exponents(0.0, -1.0),
    )
)
PARAMETRIZATIONS.register(
    dataclasses.replace(_MEAN_FIELD, name="mup", doc="μP (Yang and Hu 2021), which of two layers is mean_field")
)


def _power(size: str, of: str) -> Field:
    return Field(
        f"lr_{size}_power",
        "knob",
        number(-4, 4, examples=(-0.5, 0.0, 0.5)),
        f"lr_w and lr are multiplied by {of} to this power",
        neutral=0.0,
    )


SCALING = (
    Field(
        "parametrization",
        "choice",
        of(PARAMETRIZATIONS),
        "powers of the width in initial heads and in all rates; standard: rates as they are",
        neutral=STANDARD,
    ),
    _power("d", "d"),
    _power("n", "n2"),
    _power("width", "width"),
)
"""The settings of how step sizes go with sizes."""


def record(p: Program) -> Parametrization:
    """The program's parametrisation."""
    return PARAMETRIZATIONS[p.parametrization if "parametrization" in p else STANDARD]


def deviation(p: Program, cell: Cell) -> Float[Array, ""]:
    """The standard deviation of initial heads: head_scale width^{exponent}, without the scale where there is none."""
    own = power(cell.width, record(p).heads)
    return cell.head_scale * own if "head_scale" in cell else own


def powers(cell: Cell, rate: RealLike) -> RealLike:
    """A rate, multiplied by the stated powers of d, n2 and width, those sizes relative to 1."""
    for name, size in (("lr_d_power", "d"), ("lr_n_power", "n2"), ("lr_width_power", "width")):
        if name in cell:
            rate = rate * power(getattr(cell, size), getattr(cell, name))
    return rate


def factors(p: Program, cell: Cell, *, unit: bool = False) -> tuple[RealLike, RealLike]:
    """What the rates of the first layer and of the heads are multiplied by, widths being relative to 1. unit: of an
    optimiser whose steps do not grow with the gradient.
    """
    if "parametrization" not in p:
        return 1.0, 1.0
    own = record(p).unit_rates if unit else record(p).rates
    return power(cell.width, own.first), power(cell.width, own.heads)


def power(size: IntLike, exponent: RealLike) -> Float[Array, ""]:
    """size^exponent as a real number."""
    return jnp.asarray(size, jnp.result_type(float)) ** exponent
