"""Numbers of sources beside ours."""

import math

import pandas as pd
import pytest

from mtfl_jax.analysis import describe, published
from mtfl_jax.analysis.published import Published

OURS = describe.estimate(pd.Series([1.0, 2.0, 3.0, 2.0]))  # 2 ± 0.41, of runs that scatter by 0.82


@pytest.mark.parametrize(
    ("theirs", "same"),
    [
        (Published("a", "b", 2.0, 0.0), True),
        (Published("a", "b", 2.8, 0.0), True),
        (Published("a", "b", 2.9, 0.0), False),
        (Published("a", "b", 2.9, 0.3), True),
        (Published("a", "b", 3.8), True),  # A single run, as scattered as ours: within 2 · 0.91.
        (Published("a", "b", 3.9), False),
        (Published("a", "b", 3.2, runs=100), False),
        (Published("a", "b", 2.7, 0.0, side="≥"), True),
        (Published("a", "b", 2.9, 0.0, side="≥"), False),
        (Published("a", "b", 1.2, 0.0, side="≤"), True),
        (Published("a", "b", 1.1, 0.0, side="≤"), False),
    ],
)
def test_numbers_are_the_same_within_two_standard_errors(theirs, same):
    assert OURS.error == pytest.approx(math.sqrt(2 / 3) / 2)
    assert theirs.agrees(OURS) is same


def test_without_numbers_of_ours_there_is_no_verdict():
    for ours in ([math.nan], [1.0]):
        assert Published("a", "b", 1.0, 0.1).agrees(describe.estimate(pd.Series(ours))) is None


def test_the_table_says_all_of_it():
    beside = [
        (Published("test error", "A et al. 2020, Table 1", 0.336, 0.006, differs="the heads start at 0"), OURS),
        (Published("cosine", "B 2021", 0.99, side="≥"), describe.estimate(pd.Series([0.995, 0.997]))),
    ]
    listing = published.listing(beside)
    assert list(listing.table.columns) == ["measured", "source", "theirs", "ours", "seeds", "the same", "what differs"]
    first, second = listing.table.to_dict("records")
    assert (first["theirs"], first["ours"], first["the same"]) == ("0.336 ± 0.006", "2.00 ± 0.41", "no")
    assert (second["theirs"], second["the same"], second["what differs"]) == ("≥ 0.99", "yes", "—")
    assert listing.data["ours"].tolist() == pytest.approx([2.0, 0.996])
    assert [said.supported for said in published.statements(beside)] == [False, True]
