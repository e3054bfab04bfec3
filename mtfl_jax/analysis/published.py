"""Numbers that others published, beside ours.

A study of somebody else's setting says what the source found, what this package finds in the same setting, whether the
two agree, and what is not the same in the settings.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import pandas as pd

from mtfl_jax.analysis import describe
from mtfl_jax.analysis.findings import Listing, Statement

ERRORS = 2.0
"""Within how many standard errors of their difference two numbers are the same."""
_SIDES = {"=": "", "≥": "≥ ", "≤": "≤ "}


class Published(NamedTuple):
    """A number of a source.

    what: was measured, and of what. value ± spread: what the source gives, with its standard error; None where it says
    nothing of it. runs: of how many runs it is the mean, 1 where the source does not say: a spread that is not given is
    taken to be that of as many of ours. side: whether the number is an estimate, or a bound that ours must keep.
    differs: what is not as in the source; empty where nothing is known to be.
    """

    what: str
    source: str
    value: float
    spread: float | None = None
    runs: int = 1
    side: Literal["=", "≥", "≤"] = "="
    differs: str = ""

    def text(self) -> str:
        """The number as a reader sees it."""
        spread = f" ± {describe.number(self.spread)}" if self.spread else ""
        return f"{_SIDES[self.side]}{describe.number(self.value)}{spread}"

    def agrees(self, ours: describe.Estimate) -> bool | None:
        """Whether our number is the source's within `ERRORS` standard errors of both; None where it is of fewer than
        two runs, which say nothing of their scatter.
        """
        if ours.n < 2:
            return None
        of_a_run = ours.error * math.sqrt(ours.n)
        spread = of_a_run / math.sqrt(self.runs) if self.spread is None else self.spread
        error = ERRORS * math.hypot(spread, ours.error)
        if self.side == "≥":
            return ours.mean >= self.value - error
        if self.side == "≤":
            return ours.mean <= self.value + error
        return abs(ours.mean - self.value) <= error


def less(first: describe.Estimate, second: describe.Estimate, factor: float = 1.0) -> bool | None:
    """Whether our first number is less than the second over `factor`; None within `ERRORS` standard errors, or where
    either is of fewer than two runs.
    """
    apart = first.mean - second.mean / factor
    error = ERRORS * math.hypot(first.error, second.error / factor)
    return None if min(first.n, second.n) < 2 or abs(apart) <= error else bool(apart < 0)


Beside = Sequence[tuple[Published, describe.Estimate]]
"""Numbers of sources, each with ours: a mean over seeds with its standard error."""

_SAME = {True: "yes", False: "no", None: "cannot tell"}


def listing(beside: Beside) -> Listing:
    """The table of all of them."""
    table = pd.DataFrame(
        {
            "measured": [theirs.what for theirs, _ in beside],
            "source": [theirs.source for theirs, _ in beside],
            "theirs": [theirs.text() for theirs, _ in beside],
            "ours": [str(ours) for _, ours in beside],
            "seeds": [ours.counted() for _, ours in beside],
            "the same": [_SAME[theirs.agrees(ours)] for theirs, ours in beside],
            "what differs": [theirs.differs or describe.MISSING for theirs, _ in beside],
        }
    )
    data = table.assign(
        theirs=[theirs.value for theirs, _ in beside],
        theirs_error=[math.nan if theirs.spread is None else theirs.spread for theirs, _ in beside],
        ours=[ours.mean for _, ours in beside],
        ours_error=[ours.error for _, ours in beside],
    )
    note = (
        f"± are standard errors. The same: within {ERRORS:g} standard errors of the difference, or the bound is kept; a"
        " number whose error the source does not give is taken for one run, as scattered as ours."
    )
    return Listing("What others found", table, data, note)


def statements(beside: Beside) -> list[Statement]:
    """What our numbers say to each of the source's."""
    return [
        Statement(
            theirs.agrees(ours),
            f"{theirs.what}: {ours} here ({ours.counted()} seeds), {theirs.text()} in {theirs.source}.",
        )
        for theirs, ours in beside
    ]
