"""Activations σ of the hidden layer.

Source: ReLU is that of arXiv 2307.06887; others come as `extensions`.
"""

import dataclasses
from collections.abc import Callable

import jax
from jax import Array
from jaxtyping import Float

from mtfl_jax.records import Registry


@dataclasses.dataclass(frozen=True)
class Activation:
    """σ, elementwise, and its derivative; `value` must differentiate to `slope`.

    homogeneous: σ(s t) = s σ(t) for s > 0. `name` follows "two_layer_" in the setting `network`. An activation has no
    settings of its own: another slope or scale is another record. exact: sizes that are never padded, ("width",) where
    σ(0) is not 0, so that a neuron that is not used would have a feature.
    """

    name: str
    doc: str
    value: Callable[[Float[Array, "*shape"]], Float[Array, "*shape"]]
    slope: Callable[[Float[Array, "*shape"]], Float[Array, "*shape"]]
    homogeneous: bool = False
    exact: tuple[str, ...] = ()


ACTIVATIONS: Registry[Activation] = Registry("activation")

ACTIVATIONS.register(
    Activation(
        "relu",
        doc="max(0, t)",
        value=jax.nn.relu,
        slope=lambda t: (t > 0).astype(t.dtype),
        homogeneous=True,
    )
)

PREFIX = "two_layer_"
"""What the setting `network` has before the activation's name."""


def of_network(network: str) -> Activation:
    """The activation of a network by its name in configs. Raises LookupError."""
    return ACTIVATIONS[network.removeprefix(PREFIX)]
