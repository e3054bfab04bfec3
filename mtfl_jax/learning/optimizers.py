"""The optimisers and learning-rate schedules of `joint`, by optax.

Source: ours.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import optax
from jax import Array
from jaxtyping import Float

from mtfl_jax.learning.network import Params
from mtfl_jax.learning.scalars import RealLike
from mtfl_jax.records import Registry


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """`make(lr, momentum, decay, mask)` gives an optax transformation with weight decay on the leaves of `mask`.

    equivariant: it commutes with rotations of the inputs, so that the basis does not bear on it. momentum: it has one.
    unit: its steps do not grow with the gradient, as Adam's.
    """

    name: str
    doc: str
    make: Callable[..., optax.GradientTransformation]
    equivariant: bool = False
    momentum: bool = False
    unit: bool = False

    @property
    def uses(self) -> tuple[str, ...]:
        """The settings that bear on it."""
        return ("momentum",) * self.momentum + ("basis",) * (not self.equivariant)


OPTIMIZERS: Registry[Optimizer] = Registry("optimizer")
"""`adamw` and `lion` decay the weights directly (decoupled), the others through the gradient; what is not set here is
optax's default.
"""


def _coupled(rule: Callable[..., optax.GradientTransformation]) -> Callable[..., optax.GradientTransformation]:
    """`make` of an optimiser that takes λ_w w into the gradient; rule(lr, momentum)."""

    def make(lr: optax.Schedule, momentum: RealLike, decay: RealLike, mask: Any) -> optax.GradientTransformation:
        return optax.chain(optax.add_decayed_weights(decay, mask), rule(lr, momentum))

    return make


OPTIMIZERS.register(
    Optimizer("sgd", "gradient descent", _coupled(lambda lr, momentum: optax.sgd(lr)), equivariant=True)
)
OPTIMIZERS.register(
    Optimizer(
        "momentum",
        "gradient descent with heavy-ball momentum",
        _coupled(lambda lr, momentum: optax.sgd(lr, momentum)),
        equivariant=True,
        momentum=True,
    )
)
OPTIMIZERS.register(
    Optimizer(
        "nesterov",
        "gradient descent with Nesterov's momentum",
        _coupled(lambda lr, momentum: optax.sgd(lr, momentum, nesterov=True)),
        equivariant=True,
        momentum=True,
    )
)
OPTIMIZERS.register(Optimizer("adam", "Adam", _coupled(lambda lr, momentum: optax.adam(lr)), unit=True))
OPTIMIZERS.register(
    Optimizer(
        "adamw",
        "Adam with decoupled weight decay",
        lambda lr, momentum, decay, mask: optax.adamw(lr, weight_decay=decay, mask=mask),
        unit=True,
    )
)
OPTIMIZERS.register(
    Optimizer(
        "nadam",
        "Adam with Nesterov's momentum",
        _coupled(lambda lr, momentum: optax.nadam(lr)),
        unit=True,
    )
)
OPTIMIZERS.register(
    Optimizer("radam", "Adam with a rectified early step", _coupled(lambda lr, momentum: optax.radam(lr)), unit=True)
)
OPTIMIZERS.register(
    Optimizer(
        "amsgrad",
        "Adam with second moments that never fall",
        _coupled(lambda lr, momentum: optax.amsgrad(lr)),
        unit=True,
    )
)
OPTIMIZERS.register(
    Optimizer(
        "adagrad",
        "steps by the sum of squared gradients",
        _coupled(lambda lr, momentum: optax.adagrad(lr)),
        unit=True,
    )
)
OPTIMIZERS.register(
    Optimizer(
        "rmsprop",
        "steps by the running mean of squared gradients",
        _coupled(lambda lr, momentum: optax.rmsprop(lr)),
        unit=True,
    )
)
OPTIMIZERS.register(
    Optimizer(
        "lion",
        "signs of an interpolated momentum, decoupled weight decay",
        lambda lr, momentum, decay, mask: optax.lion(lr, weight_decay=decay, mask=mask),
        unit=True,
    )
)
OPTIMIZERS.register(
    Optimizer(
        "sign_sgd",
        "signs of the gradient",
        _coupled(lambda lr, momentum: optax.sign_sgd(lr)),
        unit=True,
    )
)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate over its peak, by update, in a training of `steps` updates: shape(steps). of_steps: it depends on
    their number, so that a shorter training is not the beginning of a longer one.
    """

    name: str
    doc: str
    shape: Callable[[int], optax.Schedule]
    of_steps: bool = True


SCHEDULES: Registry[Schedule] = Registry("schedule")

SCHEDULES.register(Schedule("constant", "the peak always", lambda steps: optax.constant_schedule(1.0), of_steps=False))
SCHEDULES.register(
    Schedule("linear", "from the peak to zero in a line", lambda steps: optax.linear_schedule(1.0, 0.0, steps))
)
SCHEDULES.register(
    Schedule("cosine", "from the peak to zero in half a cosine", lambda steps: optax.cosine_decay_schedule(1.0, steps))
)


def _warm_up(steps: int) -> optax.Schedule:
    """The warm-up takes a tenth of the updates."""
    rise = -(-steps // 10)
    return optax.warmup_cosine_decay_schedule(1 / rise, 1.0, rise, steps + 1)


SCHEDULES.register(Schedule("warmup_cosine", "up to the peak in a tenth of the updates, then half a cosine", _warm_up))


def optimizer(
    name: str,
    lr: RealLike,
    *,
    schedule: str = "constant",
    steps: int = 1,
    momentum: RealLike = 0.9,
    weight_decay: RealLike = 0.0,
    train_bias: bool = False,
    rotation: Float[Array, "d d"] | None = None,
    factors: tuple[RealLike, RealLike] | None = None,
    clip: RealLike | None = None,
) -> optax.GradientTransformation:
    """The optax transformation of `joint` on `Params`.

    Weight decay acts on W only; b stays fixed unless `train_bias`. An optimiser that is not equivariant works in the
    basis of `rotation` Q: it sees W Qᵀ and its gradient, and its update is rotated back. factors: what the rates of the
    first layer and of the heads are multiplied by. clip: most of the norm of the gradient of all that is trained,
    before weight decay.
    """
    kind, shape = OPTIMIZERS[name], SCHEDULES[schedule].shape(steps)
    only_w = {"W": True, "b": False, "A": False}
    rule = kind.make(lambda count: lr * shape(count), momentum, weight_decay, only_w)
    if clip is not None:
        rule = optax.chain(optax.clip_by_global_norm(cast(float, clip)), rule)
    if not train_bias:
        # No rule here moves a leaf whose gradient is zero.
        rule = optax.chain(optax.masked(optax.set_to_zero(), {"W": False, "b": True, "A": False}), rule)
    if not kind.equivariant and rotation is not None:
        rule = _rotated(rule, rotation)
    if factors is None:
        return rule
    first, heads = factors
    own = {"W": first, "b": first, "A": heads}
    return optax.chain(rule, optax.stateless(lambda steps, _: {name: steps[name] * own[name] for name in steps}))


def _rotated(rule: optax.GradientTransformation, q: Float[Array, "d d"]) -> optax.GradientTransformation:
    def turn(tree: Params, q: Float[Array, "d d"]) -> Params:
        return tree | {"W": tree["W"] @ q}

    def update(grads: Params, state: optax.OptState, params: Params) -> tuple[Params, optax.OptState]:
        updates, state = rule.update(turn(grads, q.T), state, turn(params, q.T))
        return turn(updates, q), state

    return optax.GradientTransformation(lambda params: rule.init(turn(params, q.T)), update)
