"""How a network starts beside its first layer's draws: the size of that layer, and the heads.

Source: ours, but for the pairs of `symmetric`, which are the doubling of Chizat, Oyallon and Bach, *On Lazy
Training in Differentiable Programming* (NeurIPS 2019).
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Key

from mtfl_jax.fields import Field, number, of
from mtfl_jax.learning import draws
from mtfl_jax.learning.network import Params
from mtfl_jax.learning.scalars import IntLike, RealLike
from mtfl_jax.records import Registry

ZERO = "zero"

INIT_SCALE = Field(
    "init_scale",
    "knob",
    number(1e-12, examples=(0.25, 1.0, 3.0)),
    "what the initial weights of the first layer are multiplied by",
    neutral=1.0,
)
HEAD_SCALE = Field(
    "head_scale",
    "knob",
    number(0, examples=(0.3, 1.0, 2.5)),
    "initial heads have this standard deviation over √width (parametrization: over another power)",
)


@dataclasses.dataclass(frozen=True)
class HeadInit:
    """Heads at the start. make(params, key, width, deviation): the network with heads, of which those of neurons from
    `width` on are zero; head t of neuron j depends on the key, t and j alone. deviation: of a weight of a head.
    """

    name: str
    doc: str
    make: Callable[[Params, Key[Array, ""], IntLike, RealLike], Params]
    settings: tuple[Field, ...] = ()


HEAD_INITS: Registry[HeadInit] = Registry("head_init")


def _random(params: Params, key: Key[Array, ""], width: IntLike, deviation: RealLike) -> Params:
    A = params["A"]
    drawn = draws.normal(key, *A.shape).astype(A.dtype) * deviation
    return params | {"A": jnp.where(jnp.arange(A.shape[1]) < width, drawn, 0)}


def _paired(leaf: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
    """Of the last axis each odd entry what the even one before it is."""
    return leaf[..., jnp.arange(leaf.shape[-1]) // 2 * 2]


def _symmetric(params: Params, key: Key[Array, ""], width: IntLike, deviation: RealLike) -> Params:
    neuron = jnp.arange(params["A"].shape[1])
    A = _paired(_random(params, key, width, deviation)["A"])
    # The last of an odd number of neurons has no partner.
    whole = neuron < width - width % 2
    sign = jnp.where(neuron % 2 == 0, 1, -1)
    used = neuron < width
    W, b = _paired(params["W"].T).T, _paired(params["b"])
    return {"W": jnp.where(used[:, None], W, 0), "b": jnp.where(used, b, 0), "A": jnp.where(whole, sign * A, 0)}


HEAD_INITS.register(HeadInit(ZERO, "heads of zero", lambda params, key, width, deviation: params))
HEAD_INITS.register(HeadInit("random", "normal heads", _random, (HEAD_SCALE,)))
HEAD_INITS.register(
    HeadInit(
        "symmetric",
        "normal heads of opposite sign for pairs of neurons of the same weights, so that outputs are zero",
        _symmetric,
        (HEAD_SCALE,),
    )
)

HEAD_INIT = Field("head_init", "choice", of(HEAD_INITS), "heads at the start", neutral=ZERO)
