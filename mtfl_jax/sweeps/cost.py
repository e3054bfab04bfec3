"""What a training costs, by a model of constants and not of measurements, so that the same grid gives the same plan on
every machine. Sizes may be arrays: one call prices many shapes.
"""

from typing import Any

import numpy as np

from mtfl_jax.config import FIELDS
from mtfl_jax.learning.algorithms import ALGORITHMS
from mtfl_jax.learning.algorithms.record import Cost
from mtfl_jax.learning.data import LAWS
from mtfl_jax.learning.drawing import PART
from mtfl_jax.learning.measures import MEASURES, in_set
from mtfl_jax.learning.probe import PROBES
from mtfl_jax.learning.program import Program

COMPILE_SECONDS = 5.0
"""The model's price of one more program."""
GROUP_SECONDS = 1.5
"""The model's price of one more width in a shared pass."""
FLOPS = 1.5e11
"""The model's matrix-product rate, per second."""
FACTOR_SECONDS = 1.5e-10
"""The model's price per n³ of a symmetric eigenproblem."""
ROW_SECONDS = 5e-4
"""The model's price of a row beside its matrix products and eigenproblems."""


def size_names(program: Program) -> tuple[str, ...]:
    """The sizes of a program that may be padded, in the order of the settings."""
    return tuple(name for name, field in FIELDS.items() if field.padded and name in program)


def shape_of(program: Program) -> np.ndarray:
    """The sizes of a program, the values of n_down and how many rows each group has: (1, …)."""
    sizes = (getattr(program, name) for name in size_names(program))
    return np.asarray([[*sizes, *program.n_down, *(count for _, count in program.groups)]])


class _Shapes:
    """Shapes (k, …) taken apart: `p` has arrays (k,) for sizes."""

    def __init__(self, program: Program, shapes: np.ndarray) -> None:
        names, groups = size_names(program), len(program.groups)
        columns = shapes.T.astype(float)
        self.p = program.replace(**dict(zip(names, columns, strict=False)))
        self.n_down = shapes[:, len(names) : shapes.shape[1] - groups].astype(float)
        self.counts = columns[shapes.shape[1] - groups :]
        self.probes = len(program.probes)
        trained = [entry for entry in program.probes if PROBES[entry.probe].tune is not None]
        self.fitted = self.probes - sum(not PROBES[entry.probe].factors for entry in trained)
        passes = [(PROBES[entry.probe].passes(**dict(entry.own)), PROBES[entry.probe].trains) for entry in trained]
        self.passes = sum(count for count, _ in passes)
        self.passes_of_training = sum(count for count, trains in passes if trains)
        self.n_test = self.p.n_test if "n_test" in program else 0 * self.p.d
        algorithm = ALGORITHMS[program.algorithm]
        self.steps = program.steps if algorithm.stepped else 1
        self.cost: Cost = algorithm.cost(self.p, self.steps)
        own = "shared_inputs" in program and not program.shared_inputs
        self.copies: Any = self.p.num_tasks if own else 1

    def rows(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """How many rows of which width a lane measures: pairs of arrays (k,)."""
        if not self.p.groups:
            return [(np.full(self.p.d.shape, float(len(self.p.record))), self.p.width)]
        widths = (np.full(self.p.d.shape, float(width)) for width, _ in self.p.groups)
        return list(zip(self.counts, widths, strict=True))

    def flops(self) -> np.ndarray:
        """Operations of matrix products, of training, measurements and probes."""
        p, inputs = self.p, self.p.d * self.copies
        total = 2 * p.width * p.d * (p.n1 + 2 * p.n2) if p.groups else self.cost.flops
        tested = any("n_test" in record.uses for record in in_set(p.measure))
        if "stop_when" in p:
            read = self.n_test if "n_test" in MEASURES[p.stop_when].uses else self.cost.passed / self.steps
            total = total + self.steps / p.stop_every * read * 2 * p.width * (inputs + p.num_tasks)
        for rows, width in self.rows():
            fitted = self.n_test * self.n_down.shape[1] + self.n_down.sum(axis=1)
            a_row = 2 * p.d * width * (np.minimum(p.d, width) + self.probes * fitted)
            # Each pass a product and its gradient's, and three with the head.
            a_row = a_row + 2 * width * (2 * p.d + 3) * self.passes * self.n_down.sum(axis=1)
            seen = p.n2 if p.groups else self.cost.passed / self.steps
            a_row = a_row + 2 * width * (2 * inputs + 3 * p.num_tasks) * self.passes_of_training * seen
            if p.groups:
                a_row = a_row + 2 * 2**p.r * width * (p.d + 2 * p.num_tasks)
            if tested:
                a_row = a_row + (self.n_test + seen) * 2 * width * (inputs + p.num_tasks)
            total = total + rows * a_row
        return np.asarray(total)


def lane_seconds(program: Program, shapes: np.ndarray) -> np.ndarray:
    """The model's time of one lane at shapes (k, …), each as `shape_of` has it: (k,)."""
    of = _Shapes(program, shapes)
    p = of.p
    fresh = of.n_test + of.probes * of.n_down.max(axis=1, initial=0)
    drawn = of.cost.passed * of.copies * p.d + (1 if p.groups else len(p.record)) * fresh * p.d
    rest = 2.0**p.r * p.num_tasks * 1e-8
    for rows, width in of.rows():
        cubes = np.minimum(p.d, width) ** 3
        cubes = cubes + of.fitted * (np.minimum(of.n_down, width[:, None]) ** 3).sum(axis=1)
        rest = rest + rows * (ROW_SECONDS + cubes * FACTOR_SECONDS)
    return np.asarray(of.flops() / FLOPS + drawn * LAWS[program.data].seconds + rest)


def lane_flops(program: Program) -> float:
    """Matrix-product operations of one lane of a program, measurements and probes included."""
    return float(_Shapes(program, shape_of(program)).flops().item())


def lane_bytes(program: Program) -> float:
    """Bytes that a training on an accelerator reads and writes again and again: the hidden layer of a part of its
    samples with its gradients, weights with theirs, the tables of a shared pass, what probes decompose and train.
    """
    p, width = program, program.width
    numbers = 3 * PART * width + 3 * width * (p.d + p.num_tasks)
    if p.groups:
        numbers += 2**p.r * width * p.d
    if any(PROBES[entry.probe].tune is None or PROBES[entry.probe].factors for entry in p.probes):
        numbers += 3 * min(max(p.n_down), width) ** 2
    if any(PROBES[entry.probe].tune is not None for entry in p.probes):
        numbers += 3 * max(p.n_down) * width + 3 * width * (p.d + 1)
    return 4.0 * numbers
