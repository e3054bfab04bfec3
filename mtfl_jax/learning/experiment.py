"""One cell of a sweep as a pure function: draw the tasks, train, measure, probe.

`Program` is everything that fixes the compiled program (names and padded sizes), `Cell` everything that does not
(true sizes and knobs). `experiment` maps (Program, Cell) to measurements and composes with `jax.jit` and `jax.vmap`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int

from mtfl_jax.learning import updates
from mtfl_jax.learning.algorithms import ALGORITHMS
from mtfl_jax.learning.drawing import draw_tasks
from mtfl_jax.learning.measuring import measure
from mtfl_jax.learning.network import Params
from mtfl_jax.learning.program import Cell, Program
from mtfl_jax.learning.scalars import IntLike
from mtfl_jax.learning.updates import Samples


def experiment(p: Program, cell: Cell) -> dict[str, Any]:
    """The measurements of one training; each value has a leading axis over p.record (length 1 without training steps),
    or over the rows of a shared pass.

    `diverged_step` is the first step whose network was not finite, 0 at records before it; `taken`, of trainings that
    may stop, the updates that were made. Where `p.keep`, `network` has the networks themselves: W, b and A.
    """
    algorithm = ALGORITHMS[p.algorithm]
    if p.groups:
        assert algorithm.shared is not None
        return algorithm.shared.run(p, cell)
    of = draw_tasks(p, cell)
    trained = algorithm.run(p, cell, of)
    if not algorithm.stepped:
        alone = jax.tree.map(lambda leaf: leaf[0], trained.params)
        out = measure(p, cell, of, alone, trained.batch(p.record[0])) | {"diverged_step": trained.diverged}
        out = jax.tree.map(lambda leaf: leaf[None], out)
        return out | {"network": trained.params} if p.keep else out

    def recorded(at: tuple[Params, Int[Array, ""]]) -> dict[str, Array]:
        params, step = at
        return measure(p, cell, of, params, trained.batch(step), step=step, stopped=trained.stopped)

    record = jnp.asarray(p.record)
    out = jax.lax.map(recorded, (trained.params, record))
    diverged = jnp.where((trained.diverged > 0) & (record >= trained.diverged), trained.diverged, 0)
    out = out | {"diverged_step": diverged}
    if trained.stopped is not None:
        out["taken"] = updates.taken(trained.stopped, record)
    return out | {"network": trained.params} if p.keep else out


def samples(p: Program, cell: Cell, step: IntLike) -> Samples | None:
    """The samples of the update that ends at count `step`, as the training of `experiment` sees them; None where an
    algorithm sees none.
    """
    return ALGORITHMS[p.algorithm].run(p, cell, draw_tasks(p, cell)).batch(step)


def costs(p: Program, step: int) -> dict[str, int | float]:
    """num_params, train_samples and train_flops after `step` updates, for a program of true sizes.

    num_params counts what the learner holds: W, A and a bias that is random or trained. train_samples counts the
    distinct inputs seen, train_flops the operations of the updates' matrix products.
    """
    found = ALGORITHMS[p.algorithm].cost(p, step)
    copies = p.num_tasks if "shared_inputs" in p and not p.shared_inputs else 1
    num_params = p.width * (p.d + p.num_tasks + (p.bias != "zero"))
    return {"num_params": num_params, "train_samples": found.samples * copies, "train_flops": float(found.flops)}
