"""The studies: a module NAME.py here is what `study=NAME` says of its table.

It has one public function, `findings(table: pd.DataFrame) -> Findings`, of the rows of a folder in any order. It must
take a table that is smaller than the study's own, has diverged rows or lacks measurements, and raises ValueError that
says why where it can say nothing. Modules are imported when asked for.
"""

import importlib
import pkgutil

import pandas as pd

from mtfl_jax.analysis.findings import Findings

PLAIN = "plain"
"""What is said of a table that no study made."""


def known(study: str) -> bool:
    """Whether a study has a module of its own here."""
    return study != PLAIN and study in {module.name for module in pkgutil.iter_modules(__path__)}


def of(study: str, table: pd.DataFrame) -> Findings:
    """The findings of a study; of one that has no module here, and of a single row, the plain ones."""
    name = study if known(study) and len(table) > 1 else PLAIN
    findings: Findings = importlib.import_module(f"{__name__}.{name}").findings(table)
    return findings
