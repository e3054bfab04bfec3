"""The multitask objective and the algorithms that decrease it.

L = (1/T) Σ_t L_t with L_t the mean over samples of ℓ_t(y F_t). `how` is how its matrix products are computed.

Source: arXiv 2307.06887: a simple gradient-based multitask algorithm on a two-layer ReLU network (v1), whose
heads are updated first (final). The formulas, the optimisers and the schedules are ours.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mtfl_jax.learning import losses, network
from mtfl_jax.learning.network import EXACT, Arithmetic, Params


class Batch(NamedTuple):
    """Samples of all tasks.

    x: (n, d) inputs shared by the tasks, or (T, n, d) of each task's own; y: (n, T) labels ±1. Where sizes are padded,
    `n` and `num_tasks` are the true ones and y is zero beyond them, which keeps padding out of every gradient.
    """

    x: Array
    y: Array
    n: int | Array
    num_tasks: int | Array


def task_losses(params: Params, batch: Batch, names: Sequence[str], how: Arithmetic = EXACT) -> Array:
    """L_t of every task, (T,); zero for padded tasks."""
    values = losses.margin_losses(names, batch.y * network.outputs(params, batch.x, how))
    n, num_tasks = values.shape
    counted = (jnp.arange(n) < batch.n)[:, None] & (jnp.arange(num_tasks) < batch.num_tasks)
    return jnp.sum(jnp.where(counted, values, 0), axis=0) / batch.n


def objective(params: Params, batch: Batch, names: Sequence[str], how: Arithmetic = EXACT) -> Array:
    """L = (1/T) Σ_t L_t, a scalar."""
    return jnp.sum(task_losses(params, batch, names, how)) / batch.num_tasks


def head_step(
    params: Params, batch: Batch, names: Sequence[str], lr_a: float | Array, how: Arithmetic = EXACT
) -> Params:
    """a_t ← a_t − η_a ∇_{a_t} L_t for every task."""

    def total(A: Array) -> Array:
        # L_t depends on no other head, so the gradient of the sum holds each task's own.
        return jnp.sum(task_losses(params | {"A": A}, batch, names, how))

    return params | {"A": params["A"] - lr_a * jax.grad(total)(params["A"])}


def representation_step(
    params: Params,
    batch: Batch,
    names: Sequence[str],
    lr_w: float | Array,
    shrink: float | Array,
    *,
    train_bias: bool = False,
    how: Arithmetic = EXACT,
) -> Params:
    """W ← (1 − shrink) W − η_w ∇_W L, where shrink = η_w λ_w; a trained bias takes b ← b − η_w ∇_b L."""

    def loss(moved: Params) -> Array:
        return objective(params | moved, batch, names, how)

    moved = {name: params[name] for name in (("W", "b") if train_bias else ("W",))}
    grads = jax.grad(loss)(moved)
    step = {name: moved[name] - lr_w * grads[name] for name in moved}
    # Not step["W"] − shrink W: where shrink is 1, what is forgotten must leave no rounding behind.
    return params | step | {"W": (1 - shrink) * params["W"] - lr_w * grads["W"]}


def alternating_round(
    params: Params,
    heads: Batch,
    features: Batch,
    names: Sequence[str],
    *,
    lr_a: float | Array,
    lr_w: float | Array,
    shrink: float | Array,
    head_steps: int = 1,
    train_bias: bool = False,
    how: Arithmetic = EXACT,
) -> Params:
    """`head_steps` head steps on `heads`, then one representation step on `features` with shrink = η_w λ_w."""
    for _ in range(head_steps):
        params = head_step(params, heads, names, lr_a, how)
    return representation_step(params, features, names, lr_w, shrink, train_bias=train_bias, how=how)


def one_step(
    params: Params,
    heads: Batch,
    features: Batch,
    names: Sequence[str] = ("linear",),
    *,
    lr_a: float | Array = 1.0,
    lr_w: float | Array = 1.0,
    shrink: float | Array = 1.0,
    train_bias: bool = False,
    how: Arithmetic = EXACT,
) -> Params:
    """A⁺ = −η_a ∇_A L(A = 0) on `heads`, then W⁺ = (1 − η_w λ_w) W − η_w ∇_W L(A⁺) on `features`.

    One round from `params` with A = 0; `shrink` is η_w λ_w, and 1 (the default) forgets the initial weights.
    """
    return alternating_round(
        params, heads, features, names, lr_a=lr_a, lr_w=lr_w, shrink=shrink, train_bias=train_bias, how=how
    )


class Optimizer(NamedTuple):
    """`make(lr, momentum, decay, mask)` gives an optax transformation with weight decay on the leaves of `mask`.

    `equivariant`: it commutes with rotations of the inputs.
    """

    make: Callable[..., optax.GradientTransformation]
    equivariant: bool = False


def _coupled(rule: Callable[..., optax.GradientTransformation], equivariant: bool = False) -> Optimizer:
    """An optimiser that takes λ_w w into the gradient; rule(lr, momentum)."""

    def make(
        lr: optax.Schedule, momentum: float | Array, decay: float | Array, mask: Any
    ) -> optax.GradientTransformation:
        return optax.chain(optax.add_decayed_weights(decay, mask), rule(lr, momentum))

    return Optimizer(make, equivariant)


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": _coupled(lambda lr, momentum: optax.sgd(lr), equivariant=True),
    "momentum": _coupled(lambda lr, momentum: optax.sgd(lr, momentum), equivariant=True),
    "nesterov": _coupled(lambda lr, momentum: optax.sgd(lr, momentum, nesterov=True), equivariant=True),
    "adam": _coupled(lambda lr, momentum: optax.adam(lr)),
    "adamw": Optimizer(lambda lr, momentum, decay, mask: optax.adamw(lr, weight_decay=decay, mask=mask)),
    "nadam": _coupled(lambda lr, momentum: optax.nadam(lr)),
    "radam": _coupled(lambda lr, momentum: optax.radam(lr)),
    "amsgrad": _coupled(lambda lr, momentum: optax.amsgrad(lr)),
    "adagrad": _coupled(lambda lr, momentum: optax.adagrad(lr)),
    "rmsprop": _coupled(lambda lr, momentum: optax.rmsprop(lr)),
    "lion": Optimizer(lambda lr, momentum, decay, mask: optax.lion(lr, weight_decay=decay, mask=mask)),
    "sign_sgd": _coupled(lambda lr, momentum: optax.sign_sgd(lr)),
}
"""The optimisers of `joint` by name. `adamw` and `lion` decay the weights directly (decoupled), the others through
the gradient; what is not set here is optax's default."""

SCHEDULES: dict[str, Callable[[int], optax.Schedule]] = {
    "constant": lambda steps: optax.constant_schedule(1.0),
    "linear": lambda steps: optax.linear_schedule(1.0, 0.0, steps),
    "cosine": lambda steps: optax.cosine_decay_schedule(1.0, steps),
    "warmup_cosine": lambda steps: optax.warmup_cosine_decay_schedule(
        1 / -(-steps // 10), 1.0, -(-steps // 10), steps + 1
    ),
}
"""Learning rate over its peak, by update, in a training of `steps` updates; the warm-up takes a tenth of them."""


def optimizer(
    name: str,
    lr: float | Array,
    *,
    schedule: str = "constant",
    steps: int = 1,
    momentum: float | Array = 0.9,
    weight_decay: float | Array = 0.0,
    train_bias: bool = False,
    rotation: Array | None = None,
) -> optax.GradientTransformation:
    """The optax transformation of `joint` on `Params`.

    Weight decay acts on W only; b stays fixed unless `train_bias`. An optimiser that is not equivariant works in the
    basis of `rotation` Q (d, d): it sees W Qᵀ and its gradient, and its update is rotated back.
    """
    kind, shape = OPTIMIZERS[name], SCHEDULES[schedule](steps)
    only_w = {"W": True, "b": False, "A": False}
    rule = kind.make(lambda count: lr * shape(count), momentum, weight_decay, only_w)
    if not train_bias:
        # No rule here moves a leaf whose gradient is zero.
        rule = optax.chain(optax.masked(optax.set_to_zero(), {"W": False, "b": True, "A": False}), rule)
    return rule if kind.equivariant or rotation is None else _rotated(rule, rotation)


def _rotated(rule: optax.GradientTransformation, q: Array) -> optax.GradientTransformation:
    def turn(tree: Params, q: Array) -> Params:
        return tree | {"W": tree["W"] @ q}

    def update(grads: Params, state: optax.OptState, params: Params) -> tuple[Params, optax.OptState]:
        updates, state = rule.update(turn(grads, q.T), state, turn(params, q.T))
        return turn(updates, q), state

    return optax.GradientTransformation(lambda params: rule.init(turn(params, q.T)), update)


def joint_update(
    params: Params,
    state: optax.OptState,
    batch: Batch,
    names: Sequence[str],
    rule: optax.GradientTransformation,
    how: Arithmetic = EXACT,
) -> tuple[Params, optax.OptState]:
    """One update of W, A and a trained b together by `rule` on the gradient of L."""
    grads = jax.grad(objective)(params, batch, names, how)
    updates, state = rule.update(grads, state, params)
    return optax.apply_updates(params, updates), state


State = tuple[Params, optax.OptState]


def finite(params: Params) -> Array:
    """Whether every weight is finite, a scalar."""
    return jnp.all(jnp.asarray([jnp.all(jnp.isfinite(leaf)) for leaf in params.values()]))


def train(
    update: Callable[[State, Array], State], state: State, steps: int, record: Sequence[int]
) -> tuple[Params, Array]:
    """Run update(state, step) for step = 0 … steps − 1 in one scan.

    `record`: increasing update counts in [1, steps]. Returns the parameters after each of them, `Params` whose leaves
    have a leading axis len(record), and the first count whose parameters are not finite, 0 if none.
    """
    slots = jnp.searchsorted(jnp.asarray(record), jnp.arange(1, steps + 1))
    kept = jax.tree.map(lambda leaf: jnp.zeros((len(record), *leaf.shape), leaf.dtype), state[0])
    Carry = tuple[State, Params, Array]

    def body(carry: Carry, at: tuple[Array, Array]) -> tuple[Carry, None]:
        state, kept, diverged = carry
        step, slot = at
        state = update(state, step)
        # Every update writes to the slot of the next recorded count, so what stays there is the recorded one.
        kept = jax.tree.map(lambda all_, leaf: all_.at[slot].set(leaf, mode="drop"), kept, state[0])
        diverged = jnp.where((diverged == 0) & ~finite(state[0]), step + 1, diverged)
        return (state, kept, diverged), None

    start = (state, kept, jnp.zeros((), jnp.int32))
    (_, kept, diverged), _ = jax.lax.scan(body, start, (jnp.arange(steps, dtype=jnp.int32), slots))
    return kept, diverged
