"""K of infinitely many tasks, the expectation of f fᵀ over one task of a family: (2^r, 2^r) float64, orthants
little-endian. NumPy only, so that what reads tables can compare with it.
"""

import itertools
import math
from collections.abc import Callable, Iterable

import numpy as np


def orthants(r: int) -> np.ndarray:
    """Every orthant in index order, (2^r, r) in {±1}."""
    return 2.0 * ((np.arange(2**r)[:, None] >> np.arange(r)) & 1) - 1


def balanced(r: int) -> np.ndarray:
    """(I − 11ᵀ/2^r)·2^r/(2^r − 1): of the functions whose values sum to 0, and of the parities of any subset."""
    m = 2**r
    return (np.eye(m) - 1 / m) * m / (m - 1)


def uniform(r: int) -> np.ndarray:
    """I: of all functions."""
    return np.eye(2**r)


def halfspace(r: int) -> np.ndarray:
    """(2/π) arcsin(z·z'/r): of sign(v·z) with Gaussian v."""
    z = orthants(r)
    return 2 / math.pi * np.arcsin(np.clip(z @ z.T / r, -1, 1))


def parity(size: int = 0) -> Callable[[int], np.ndarray]:
    """The limit, a function of r, of the parities of `size` coordinates; of any non-empty subset for 0."""
    if size == 0:
        return balanced

    def limit(r: int) -> np.ndarray:
        z = orthants(r)
        return _mean(np.prod(z[:, list(members)], axis=1) for members in itertools.combinations(range(r), size))

    return limit


def majority(r: int) -> np.ndarray:
    """A sum over the subsets of odd size: of their majorities."""
    z = orthants(r)
    odd = (members for size in range(1, r + 1, 2) for members in itertools.combinations(range(r), size))
    return _mean(np.sign(z[:, list(members)].sum(axis=1)) for members in odd)


def _mean(functions: Iterable[np.ndarray]) -> np.ndarray:
    tables = np.stack(list(functions))
    return tables.T @ tables / len(tables)
