"""`steps` rounds of head_steps head steps and one representation step."""

from typing import Any

from jax import Array
from jaxtyping import Int

from mtfl_jax.fields import ConfigError, Field, Rule, View, flag, integer, rule
from mtfl_jax.learning import updates
from mtfl_jax.learning.algorithms.record import (
    ALGORITHMS,
    IN_STEPS,
    REMOVAL_RULES,
    STEPPED_RULES,
    WHEN_IN_STEPS,
    Algorithm,
    Cost,
    Seen,
    Trained,
    in_steps,
    products,
    seen,
)
from mtfl_jax.learning.bounds import BOUNDS, clip_of
from mtfl_jax.learning.drawing import BATCHES, draw_network, losses_of, step_batch
from mtfl_jax.learning.initial import HEAD_INIT
from mtfl_jax.learning.parametrizations import SCALING, factors, powers
from mtfl_jax.learning.program import Cell, Program
from mtfl_jax.learning.removal import REMOVE_DEGREE
from mtfl_jax.learning.stopping import STOPPING, WHEN_STOPPING, stops_by_what_means_something
from mtfl_jax.learning.tasks import Tasks


def _run(p: Program, cell: Cell, of: Tasks) -> Trained:
    losses = losses_of(p, cell)
    first, own_heads = factors(p, cell)
    lr_a, lr_w = cell.lr_a * own_heads, powers(cell, cell.lr_w) * first

    def update(state: updates.State, step: Int[Array, ""]) -> updates.State:
        features = step_batch(p, cell, of, "features", step)
        heads = step_batch(p, cell, of, "heads", step) if p.split_batch else features
        moved = updates.alternating_round(
            state[0],
            heads,
            features,
            losses,
            lr_a=lr_a,
            lr_w=lr_w,
            shrink=lr_w * cell.weight_decay,
            head_steps=p.head_steps,
            train_bias=p.bias == "trained",
            how=p.arithmetic,
            clip=clip_of(cell),
        )
        return moved, state[1]

    return in_steps(
        p, cell, of, update, (draw_network(p, cell), ()), lambda step: step_batch(p, cell, of, "features", step)
    )


def _cost(p: Program, step: Any) -> Cost:
    hidden, head = products(p)
    features = seen(p, p.n2, step)
    own = seen(p, p.n1, step) if p.split_batch else Seen(0, 0)
    # The hidden layer of the heads' samples, unless they are the representation's; then two products a head step.
    heads = own.passed * hidden + (own if p.split_batch else features).passed * 2 * head * p.head_steps
    flops = features.passed * (2 * hidden + 2 * head) + heads
    return Cost(features.distinct + own.distinct, features.passed + own.passed, flops)


@rule("samples", "batch", "split_batch", "n1")
def _heads_have_batches(c: View) -> None:
    if c.samples == BATCHES and c.split_batch and c.batch > c.n1:
        raise ConfigError("batch", c.batch, f"allowed: from 1 to n1={c.n1}")


SPLIT: Rule = rule("split_batch")(lambda c: c.split_batch)
ALWAYS: Rule = rule()(lambda c: True)

ALGORITHMS.register(
    Algorithm(
        "alternating",
        "rounds of head_steps head steps and one representation step on the same n2 samples",
        _run,
        _cost,
        settings=(
            Field("head_steps", "choice", integer(1, examples=(1, 2)), "head steps a round"),
            Field("split_batch", "choice", flag(), "whether the heads get n1 samples of their own"),
            HEAD_INIT,
            *SCALING,
            *BOUNDS,
            REMOVE_DEGREE,
        ),
        uses=(*IN_STEPS, *STOPPING, "lr_a", "lr_w", "n1"),
        when={**WHEN_IN_STEPS, **WHEN_STOPPING, "n1": SPLIT},
        rules=(*STEPPED_RULES, *REMOVAL_RULES, stops_by_what_means_something, _heads_have_batches),
        stepped=True,
        prefix=ALWAYS,
    )
)
