"""`steps` updates of W, b and A together by a named optimiser and schedule."""

from typing import Any

from jax import Array
from jaxtyping import Int

from mtfl_jax.fields import Field, number, of, rule
from mtfl_jax.learning import data, keys, updates
from mtfl_jax.learning.algorithms.record import (
    ALGORITHMS,
    IN_STEPS,
    REMOVAL_RULES,
    STEPPED_RULES,
    WHEN_IN_STEPS,
    Algorithm,
    Cost,
    Trained,
    in_steps,
    products,
    seen,
)
from mtfl_jax.learning.bounds import BOUNDS, clip_of
from mtfl_jax.learning.drawing import draw_network, losses_of, step_batch
from mtfl_jax.learning.initial import HEAD_INIT
from mtfl_jax.learning.optimizers import OPTIMIZERS, SCHEDULES, optimizer
from mtfl_jax.learning.parametrizations import SCALING, factors, powers
from mtfl_jax.learning.program import Cell, Program
from mtfl_jax.learning.removal import REMOVE_DEGREE
from mtfl_jax.learning.stopping import STOPPING, WHEN_STOPPING, stops_by_what_means_something
from mtfl_jax.learning.tasks import Tasks


def _run(p: Program, cell: Cell, tasks: Tasks) -> Trained:
    params, losses, rotation = draw_network(p, cell), losses_of(p, cell), None
    if not OPTIMIZERS[p.optimizer].equivariant and p.rotated:
        rotation = data.rotation(keys.stream(cell.seed, "rotation"), cell.d, p.d)
    rule_ = optimizer(
        p.optimizer,
        powers(cell, cell.lr),
        schedule=p.schedule,
        steps=p.steps,
        momentum=cell.momentum if OPTIMIZERS[p.optimizer].momentum else 0.0,
        weight_decay=cell.weight_decay,
        train_bias=p.bias == "trained",
        rotation=rotation,
        factors=factors(p, cell, unit=OPTIMIZERS[p.optimizer].unit) if "parametrization" in p else None,
        clip=clip_of(cell),
    )

    def update(state: updates.State, step: Int[Array, ""]) -> updates.State:
        batch = step_batch(p, cell, tasks, "features", step)
        return updates.joint_update(*state, batch, losses, rule_, p.arithmetic)

    start = params, rule_.init(params)
    return in_steps(p, cell, tasks, update, start, lambda step: step_batch(p, cell, tasks, "features", step))


def _cost(p: Program, step: Any) -> Cost:
    hidden, head = products(p)
    distinct, passed = seen(p, p.n2, step)
    return Cost(distinct, passed, passed * (2 * hidden + 3 * head))


ALGORITHMS.register(
    Algorithm(
        "joint",
        "updates of W, b and A together by a named optax optimizer and schedule",
        _run,
        _cost,
        settings=(
            Field("optimizer", "choice", of(OPTIMIZERS), "optimiser of joint"),
            Field("lr", "knob", number(0), "peak learning rate of joint"),
            Field("schedule", "choice", of(SCHEDULES), "learning-rate schedule of joint"),
            HEAD_INIT,
            *SCALING,
            *BOUNDS,
            REMOVE_DEGREE,
        ),
        uses=(*IN_STEPS, *STOPPING),
        when={**WHEN_IN_STEPS, **WHEN_STOPPING},
        rules=(*STEPPED_RULES, *REMOVAL_RULES, stops_by_what_means_something),
        stepped=True,
        prefix=rule("schedule")(lambda c: not SCHEDULES[c.schedule].of_steps),
    )
)
