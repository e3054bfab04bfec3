"""The end of a sweep: its rows in one file, its page, and what it prints."""

from rich.console import Console
from rich.text import Text

from mtfl_jax.analysis import describe, page, report
from mtfl_jax.sweeps import api, store, tables
from mtfl_jax.sweeps.grid import Grid

SHOWN_CELLS = 100_000
"""A table of more cells than this is not read back to be shown."""


def finish(grid: Grid | None, sink: store.Folder, console: Console) -> None:
    """Merge the parts into results.parquet, write the report, and print what its study found, or the rows: the grid's,
    or where there is none all that are there.
    """
    files, found, problem = [sink.merge()], None, None
    try:
        made = page.write(sink.path)
    except Exception as error:  # The results are on disk, and a report can be made again.
        problem = f"no report: {page.one_line(error)}; mtfl-report {sink.path} tries again"
    else:
        found, problem = made.findings, made.problem
        files += made.files
    if found is not None and found.claim:
        console.print(report.findings(found))
    elif tables.count(tables.files_of(sink.path)) <= SHOWN_CELLS if grid is None else len(grid) <= SHOWN_CELLS:
        rows = sink.table() if grid is None else api.in_order(grid, sink.table())
        table = tables.frame(rows).drop(columns="id")
        if grid is None:  # In the order in which jobs wrote them.
            table = table.sort_values(describe.telling(table), ignore_index=True)
        if len(table):
            console.print(report.rows(table))
    if problem is not None:
        console.print(problem, style="yellow", soft_wrap=True, highlight=False, markup=False)
    for path in files:
        console.print(Text.assemble(("wrote", "green"), f" {path}"), soft_wrap=True)
