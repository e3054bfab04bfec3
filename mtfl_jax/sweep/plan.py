"""Buckets: cells that share one compiled program. num_tasks is padded to the largest of a bucket."""

from collections.abc import Sequence
from typing import NamedTuple

from mtfl_jax.config import Config
from mtfl_jax.learning.experiment import Program


class Bucket(NamedTuple):
    """A program and the cells (positions in the grid) that it runs."""

    program: Program
    cells: list[int]


def plan(configs: Sequence[Config]) -> list[Bucket]:
    """Buckets of the cells, in order of first appearance."""
    alike: dict[Program, list[int]] = {}
    for i, config in enumerate(configs):
        alike.setdefault(config.program()._replace(num_tasks=0), []).append(i)
    return [
        Bucket(program._replace(num_tasks=max(configs[i].num_tasks for i in cells)), cells)
        for program, cells in alike.items()
    ]
