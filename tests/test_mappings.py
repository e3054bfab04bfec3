"""A process of many programs does not run out of memory mappings."""

import mmap
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from mtfl_jax.sweeps import mappings

pytestmark = pytest.mark.skipif(not mappings.held(), reason="the system does not say how many mappings there are")

SWEEP = """
import mmap
import mtfl_jax
from mtfl_jax.sweeps import mappings

held = [mmap.mmap(-1, mmap.PAGESIZE) for _ in range(mappings.allowed() - mappings.held() - 1130)]
sizes = {"d": 4, "r": 2, "width": 4, "num_tasks": 2, "n1": 32, "n2": 32, "measure": "recovery", "probe": "none"}
families = ["balanced", "uniform", "halfspace", "parity"]
rows = mtfl_jax.sweep(data=["gaussian", "rademacher"], tasks=families, moments="never", **sizes)
print(len(rows), "rows")
"""


def test_mappings_are_counted_and_limited():
    before = mappings.held()
    ours = [mmap.mmap(-1, mmap.PAGESIZE) for _ in range(500)]
    assert mappings.held() >= before + 500
    for each in ours:
        each.close()
    assert 0 < mappings.held() < before + 500


def test_room_is_made_by_letting_go_of_programs():
    made = []

    @mappings.kept
    def program(n):
        made.append(n)
        return jax.jit(lambda x: jnp.linalg.svd(jnp.sort(x @ x.T))[1]).lower(jnp.ones((n, n))).compile()

    for n in (2, 3, 2):
        program(n)
    assert made == [2, 3]
    assert not mappings.make_room(share=1.0)
    full = mappings.held()
    assert mappings.make_room(share=0.0)
    assert mappings.held() < full
    program(2)
    assert made == [2, 3, 2]


@pytest.mark.slow
@pytest.mark.skipif(mappings.allowed() > 100_000, reason="so many mappings cannot be used up in a test")
def test_a_sweep_of_many_programs_survives_where_few_fit():
    """Eight programs of some 130 mappings where 600 are free; kept, they end the process by a segmentation fault."""
    process = subprocess.run([sys.executable, "-c", SWEEP], capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr[-2000:]
    assert process.stdout == "8 rows\n"
