"""The points of axes that are intervals: a Sobol sequence or random numbers, of which fewer are the first of more."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtfl_jax.config import FIELDS
from mtfl_jax.fields import ConfigError, integer, one_of
from mtfl_jax.sweeps.grammar import Interval

SAMPLERS = ("sobol", "random")
DIGITS = 6
"""Significant digits of a point, that a table and a command line may say it whole."""
_BITS = 30
"""Of a point of SciPy's Sobol sequence."""


class Sampling(NamedTuple):
    """How many points intervals have (None: they may not be axes), by which sampler and seed."""

    size: int | None = None
    sampler: str = SAMPLERS[0]
    seed: int = 0

    @classmethod
    def of(cls, size: Any, sampler: Any, seed: Any) -> "Sampling":
        """`sweep.sample`, `sweep.sampler` and `sweep.sample_seed` checked. Raises ConfigError."""
        return cls(
            None if size is None else integer(1, 2**_BITS).parse("sweep.sample", size),
            str(one_of(*SAMPLERS).parse("sweep.sampler", sampler)),
            integer(0).parse("sweep.sample_seed", seed),
        )

    def written(self) -> dict[str, Any]:
        """What `of` takes, by its names."""
        return {"sample": self.size, "sampler": self.sampler, "sample_seed": self.seed}


PLAIN = Sampling()
"""Of a grid without intervals."""


def sampled(values: Mapping[str, list[Any] | Interval], how: Sampling) -> dict[str, list[Any]]:
    """The values of axes; those that are intervals have `how.size` points, and advance together through them.

    The k-th point depends on the seed, on k and on the names of these axes, on nothing else: not on the size, on the
    order of the axes, or on the version of a library. Of `random` every axis depends on its own name alone; of `sobol`
    the axes are the dimensions in the order of their names, each shifted by its name and the seed (a digital shift,
    which keeps the points' even spread). Raises ConfigError.
    """
    intervals = {key: own for key, own in values.items() if isinstance(own, Interval)}
    if not intervals:
        return {key: own for key, own in values.items() if not isinstance(own, Interval)}
    if how.size is None:
        key = next(iter(intervals))
        raise ConfigError(key, intervals[key].text, "allowed with sweep.sample=N, the number of its points")
    names = sorted(intervals)
    shares = (_sobol if how.sampler == "sobol" else _random)(names, how.size, how.seed)
    return {key: _spread(key, own, shares[key]) if isinstance(own, Interval) else own for key, own in values.items()}


def _sobol(names: Sequence[str], size: int, seed: int) -> dict[str, np.ndarray]:
    from scipy.stats import qmc  # It takes a second.

    # SciPy's own scrambling may change with its version. Counts other than powers of two begin one that is.
    whole = qmc.Sobol(len(names), scramble=False, bits=_BITS).random_base2((size - 1).bit_length())[:size]
    places = (whole * 2.0**_BITS).astype(np.int64)
    return {name: ((places[:, i] ^ _number(name, seed) % 2**_BITS) + 0.5) / 2.0**_BITS for i, name in enumerate(names)}


def _random(names: Sequence[str], size: int, seed: int) -> dict[str, np.ndarray]:
    # The bits of NumPy's generators stay as they are, what is made of them may not.
    bits = {name: np.random.Philox(key=_number(name, seed)).random_raw(size) for name in names}
    return {name: ((own >> np.uint64(11)).astype(float) + 0.5) / 2.0**53 for name, own in bits.items()}


def _number(name: str, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest(), "little")


def _spread(key: str, interval: Interval, shares: np.ndarray) -> list[Any]:
    """Points of an interval, from shares (n,) in (0, 1)."""
    low, high, whole = interval.low, interval.high, FIELDS[key].type.column is int
    # Each of the integers has a step of its own.
    ends = np.asarray([low - 0.5, high + 0.5] if whole else [low, high])
    start, stop = np.log(ends) if interval.log else ends
    found = start + shares * (stop - start)
    found = (np.exp(found) if interval.log else found).tolist()
    if whole:
        return [min(max(round(point), int(low)), int(high)) for point in found]
    return [min(max(float(f"{point:.{DIGITS}g}"), low), high) for point in found]
