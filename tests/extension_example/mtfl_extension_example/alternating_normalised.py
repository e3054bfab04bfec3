"""An algorithm with a setting of its own: alternating, each neuron's gradient divided by a power of its length."""

import jax
import jax.numpy as jnp
from jax import Array

from mtfl_jax.fields import Field, number, rule
from mtfl_jax.learning import updates
from mtfl_jax.learning.algorithms.record import ALGORITHMS, IN_STEPS, STEPPED_RULES, Algorithm, Trained
from mtfl_jax.learning.drawing import draw_network, losses_of, step_batch
from mtfl_jax.learning.network import Params
from mtfl_jax.learning.program import Cell, Program
from mtfl_jax.learning.tasks import Tasks


def _normalised(gradient: Params, power: float | Array) -> Params:
    """Each neuron's gradient over the length of its weights' one to this power; a zero gradient stays zero."""
    length = jnp.linalg.norm(gradient["W"], axis=1)
    scale = jnp.where(length > 0, length, 1) ** -power
    return jax.tree.map(lambda leaf: scale.reshape(-1, *[1] * (leaf.ndim - 1)) * leaf, gradient)


def _run(p: Program, cell: Cell, of: Tasks) -> Trained:
    losses, moving = losses_of(p, cell), ("W", "b") if p.bias == "trained" else ("W",)

    def update(state: updates.State, step: Array) -> updates.State:
        params, _ = state
        features = step_batch(p, cell, of, "features", step)
        heads = step_batch(p, cell, of, "heads", step) if p.split_batch else features
        for _ in range(p.head_steps):
            params = updates.head_step(params, heads, losses, cell.lr_a, p.arithmetic)

        def objective(moved: Params) -> Array:
            return updates.objective(params | moved, features, losses, p.arithmetic)

        moved = {name: params[name] for name in moving}
        gradient = _normalised(jax.grad(objective)(moved), cell.norm_power)
        shrunk = moved | {"W": (1 - cell.lr_w * cell.weight_decay) * moved["W"]}
        return params | {name: shrunk[name] - cell.lr_w * gradient[name] for name in moving}, ()

    params, diverged = updates.train(update, (draw_network(p, cell), ()), p.steps, p.record)
    return Trained(params, diverged, lambda step: step_batch(p, cell, of, "features", step - 1))


ALGORITHMS.register(
    Algorithm(
        "alternating_normalised",
        "alternating, each neuron's gradient divided by its length to the power norm_power",
        _run,
        ALGORITHMS["alternating"].cost,
        settings=(
            Field(
                "norm_power",
                "knob",
                number(0, 1, examples=(0.0, 0.5, 1.0)),
                "power of the gradient's length that alternating_normalised divides by",
                default=1.0,
                label="power of the normalisation",
            ),
        ),
        uses=(*IN_STEPS, "lr_a", "lr_w", "n1", "head_steps", "split_batch"),
        when={"n1": rule("split_batch")(lambda c: c.split_batch)},
        rules=STEPPED_RULES,
        stepped=True,
        prefix=rule()(lambda c: True),
        base="alternating",
    )
)
