"""What a study says of its table: a claim, what the data say to it, figures and tables."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

if TYPE_CHECKING:  # matplotlib takes a third of a second to import, and a table without figures needs none
    from matplotlib.figure import Figure

VERDICTS = {True: "supported", False: "not supported", None: "cannot tell"}
"""What the data say to a statement."""


class Statement(NamedTuple):
    """What the data say to one part of the claim: whether they support it (None: they cannot tell), and what was
    measured, in words that hold whatever the verdict.
    """

    supported: bool | None
    text: str


class Drawing(NamedTuple):
    """A figure under its file name, with a caption that says what bands and bars mean and how many seeds there are."""

    name: str
    figure: "Figure"
    caption: str


class Listing(NamedTuple):
    """A table as a reader sees it: column names and cells are shown as they are. `data` has its numbers for a CSV, by
    default as they are shown; the note stands below.
    """

    title: str
    table: pd.DataFrame
    data: pd.DataFrame | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a study says of its table. `claim` is the theory's; statements, drawings and listings are the data's."""

    title: str
    claim: str
    statements: Sequence[Statement] = ()
    drawings: Sequence[Drawing] = ()
    listings: Sequence[Listing] = ()
