"""K of infinitely many tasks, the expectation of f fᵀ over one task of a family, orthants little-endian.

NumPy only, so that what reads tables can compare with it.
"""

import itertools
import math
from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Float64

Kernel = Float64[np.ndarray, "{2**r} {2**r}"]


def orthants(r: int) -> Float64[np.ndarray, "{2**r} {r}"]:
    """Every orthant in index order, in {±1}."""
    return 2.0 * ((np.arange(2**r)[:, None] >> np.arange(r)) & 1) - 1


def balanced(r: int) -> Kernel:
    """(I − 11ᵀ/2^r)·2^r/(2^r − 1): of the functions whose values sum to 0, and of the parities of any subset."""
    m = 2**r
    return (np.eye(m) - 1 / m) * m / (m - 1)


def uniform(r: int) -> Kernel:
    """I: of all functions."""
    return np.eye(2**r)


def halfspace(r: int) -> Kernel:
    """(2/π) arcsin(z·z'/r): of sign(v·z) with Gaussian v."""
    z = orthants(r)
    return 2 / math.pi * np.arcsin(np.clip(z @ z.T / r, -1, 1))


def parity(size: int = 0) -> Callable[[int], Kernel]:
    """The limit, a function of r, of the parities of `size` coordinates; of any non-empty subset for 0."""
    if size == 0:
        return balanced

    def limit(r: int) -> Kernel:
        z = orthants(r)
        return _mean(np.prod(z[:, list(members)], axis=1) for members in itertools.combinations(range(r), size))

    return limit


def majority(r: int) -> Kernel:
    """A sum over the subsets of odd size: of their majorities."""
    z = orthants(r)
    odd = (members for size in range(1, r + 1, 2) for members in itertools.combinations(range(r), size))
    return _mean(np.sign(z[:, list(members)].sum(axis=1)) for members in odd)


def _mean(functions: Iterable[Float64[np.ndarray, " orthants"]]) -> Float64[np.ndarray, "orthants orthants"]:
    tables = np.stack(list(functions))
    return tables.T @ tables / len(tables)


LIMITS = {"balanced": balanced, "uniform": uniform, "halfspace": halfspace, "majority": majority}
"""The limits, functions of r, of the families that have one for each r."""
