"""Whether normalised steps keep the rank of the first layer low."""

import pandas as pd

from mtfl_jax.analysis.findings import Findings, Listing, Statement


def findings(table: pd.DataFrame) -> Findings:
    """The mean effective rank by the power of the normalisation. Raises ValueError where there are no rows."""
    if not len(table):
        raise ValueError("example needs rows: there are none")
    ranks = table.groupby("norm_power")["effective_rank"].agg(["mean", "count"]).reset_index()
    lowest = ranks.loc[ranks["mean"].idxmin(), "norm_power"]
    return Findings(
        "The rank of normalised steps",
        "Steps of one length for all neurons leave a first layer of lower rank.",
        [Statement(bool(lowest == 1), f"The effective rank is lowest at norm_power {lowest:g}.")],
        [],
        [Listing(f"Means of {len(table)} rows", ranks.round(2).astype(str))],
    )
