"""The page of a sweep: report/index.html in its folder, self-contained and made from stored rows only.

What it says comes from the folder alone (the rows, and runs/ for what ran on what), so making it again gives the same
bytes. `mtfl-report` does that, and lays two sweeps side by side.
"""

import base64
import datetime
import json
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd

from mtfl_jax import names
from mtfl_jax.analysis import describe, plain, studies
from mtfl_jax.analysis.command import Parser, add_extensions, folder_of, load_extensions
from mtfl_jax.analysis.findings import VERDICTS, Findings, Listing
from mtfl_jax.analysis.report import holds_numbers
from mtfl_jax.sweeps import notes, places, tables
from mtfl_jax.sweeps.progress import duration

MOST_ROWS = 300_000
"""A table of more rows is not read: its page says only what runs/ says."""
SHOWN = 20
"""Processes, failures and diverged rows listed at most; the others are counted."""

ALLOWED = "no results there; allowed: the folder of a sweep"


class Sweep(NamedTuple):
    """A results folder as read: its rows (None when too many) and what its processes noted, the first one first."""

    name: str
    table: pd.DataFrame | None
    rows: int
    runs: Sequence[Mapping[str, Any]]

    @property
    def study(self) -> str:
        """The study that was run last."""
        return _study(self.runs)


class Report(NamedTuple):
    """What a study found and the files that say so; `problem` says why the study's own findings could not be made."""

    findings: Findings | None
    files: list[Path]
    problem: str | None


def read(folder: Path) -> Sweep:
    """Read a results folder. Raises FileNotFoundError where there are no results."""
    files = tables.files_of(folder)
    if not files:
        raise FileNotFoundError(f"{folder}: {ALLOWED}")
    runs = notes.read(folder)
    rows = tables.count(files)
    table = None
    if rows <= MOST_ROWS:
        loaded = tables.load(folder)
        names.learn(loaded.attrs.get("labels", {}))
        table = describe.measured(loaded.drop(columns="id"))
    return Sweep(folder.resolve().name, table, rows if table is None else len(table), runs)


def _study(runs: Sequence[Mapping[str, Any]]) -> str:
    return str(runs[-1]["config"]["study"]) if runs else names.NO_STUDY


def write(folder: Path, out: Path | None = None) -> Report:
    """Write the page of a results folder, and its figures as PNG and PDF, into `out` (by default report/ in it).

    Where a study's own findings cannot be made, the page says so and shows what it shows of any sweep; a page that is
    there stays where the study is not known.
    """
    sweep = read(folder)
    found, problem = _findings(sweep)
    out = folder / "report" if out is None else out
    if problem and not studies.known(sweep.study) and places.there(out / "index.html"):
        return Report(found, [], f"{problem}; {out / 'index.html'} stays as it is")
    places.make(out)
    files = [_render(out, [_side(sweep, found, problem)], [])]
    if found is not None and found.drawings:
        from mtfl_jax.analysis import figures

        for drawing in found.drawings:
            files += figures.save(drawing.figure, drawing.name, out)
    return Report(found, files, problem)


def compare(first: Path, second: Path, out: Path | None = None) -> Path:
    """Write a page of two results folders side by side into `out` (by default report-FIRST-SECOND/ here); its path."""
    sweeps = [read(first), read(second)]
    out = Path(f"report-{sweeps[0].name}-{sweeps[1].name}") if out is None else out
    places.make(out)
    return _render(out, [_side(sweep, *_findings(sweep)) for sweep in sweeps], _differences(*sweeps))


def _findings(sweep: Sweep) -> tuple[Findings | None, str | None]:
    """What the study says of its rows, or the plain findings and why it says nothing."""
    if sweep.table is None:
        return None, None
    if sweep.study == names.NO_STUDY or len(sweep.table) < 2:
        return plain.findings(sweep.table), None
    if not studies.known(sweep.study):
        # A report runs no code because a folder names it: the user does, with --extensions.
        if not sweep.runs[-1].get("findings", True):
            return plain.findings(sweep.table), None  # It is a grid and says nothing of its own.
        gives = "mtfl-report FOLDER --extensions MODULE gives them"
        return plain.findings(sweep.table), f"the findings of study {sweep.study} are not here: {gives}"
    try:
        return studies.of(sweep.study, sweep.table), None
    except Exception as error:  # A study that fails must not take the page with it.
        problem = f"the findings of study {sweep.study} could not be made ({one_line(error)})"
        return plain.findings(sweep.table), problem


def one_line(error: Exception) -> str:
    """What kind of error, and what it says, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _render(out: Path, sides: Sequence[Mapping[str, Any]], differences: Sequence[Mapping[str, Any]]) -> Path:
    source = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(source).render(sides=sides, differences=differences)
    path = out / "index.html"
    tables.whole(path, lambda partial: partial.write_text(page, encoding="utf-8"))
    return path


def _side(sweep: Sweep, found: Findings | None, problem: str | None) -> dict[str, Any]:
    """What the template shows of one sweep."""
    table, failures = sweep.table, _failures(sweep.runs)
    statuses = Counter() if table is None else Counter(table["status"])
    bad = {name: count for name, count in statuses.items() if name != "ok"}
    return {
        "name": sweep.name,
        "study": sweep.study,
        "title": found.title if found else "A sweep",
        "claim": found.claim if found else "",
        "part": _part(sweep.runs),
        "problem": problem,
        "too_many": f"{sweep.rows:,} rows are more than a page is made of ({MOST_ROWS:,})." if table is None else None,
        "statements": [(VERDICTS[said.supported], said.text) for said in found.statements] if found else [],
        "figures": _figures(found) if found else [],
        "listings": [_sheet(listing) for listing in found.listings] if found else [],
        "facts": _facts(sweep, statuses),
        "processes": _processes(sweep.runs),
        "settings": [] if table is None else _settings(table),
        "failures": failures[:SHOWN],
        "failed": _count(len(failures), "program") if failures else "",
        "more": max(0, len(failures) - SHOWN),
        "bad": ", ".join(f"{_count(count, 'row')} {name}" for name, count in sorted(bad.items())),
        "diverged": _diverged(table) if table is not None and bad else None,
        "commands": _distinct(shlex.join(run["command"]) for run in sweep.runs),
    }


def _part(runs: Sequence[Mapping[str, Any]]) -> str:
    """That there is more to come, where it is so."""
    said, last = [], notes.latest(runs)
    for state, what in (("stopped", "were left when it was stopped; the same command goes on"), ("running", "to run")):
        left = sum(notes.left(note) for note in last if note["state"] == state)
        said += [f"{left:,} of its cells {what}"] * bool(left)
    return f"Part of the sweep: {'; '.join(said)}." if said else ""


def _failures(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What failed the last time that its grid was run."""
    last = {json.dumps(run["config"], sort_keys=True): run["failures"] for run in runs}
    return [failure for failures in last.values() for failure in failures]


def _count(count: int, name: str) -> str:
    return f"{count} {name}{'s' * (count != 1)}"


def _figures(found: Findings) -> list[dict[str, Any]]:
    if not found.drawings:
        return []
    from mtfl_jax.analysis import figures

    return [
        {
            "source": f"data:image/svg+xml;base64,{base64.b64encode(figures.svg(drawing.figure)).decode()}",
            "inches": drawing.figure.get_figwidth(),
            "alt": figures.alt(drawing.figure),
            "caption": drawing.caption,
        }
        for drawing in found.drawings
    ]


def _sheet(listing: Listing) -> dict[str, Any]:
    """A listing for the template: its title, (name, whether of numbers) a column, and its cells as text."""
    columns = [(str(name), holds_numbers(listing.table[name])) for name in listing.table.columns]
    rows = [[describe.number(cell) for cell in cells] for cells in listing.table.itertuples(index=False)]
    return {"title": listing.title, "columns": columns, "rows": rows}


def _facts(sweep: Sweep, statuses: Mapping[str, int]) -> list[tuple[str, str]]:
    """What was run, on what and for how long: names and texts."""
    runs = sweep.runs
    counted = ", ".join(f"{count} {name}" for name, count in sorted(statuses.items(), key=lambda item: -item[1]))
    out = [("study", sweep.study), ("rows", f"{sweep.rows:,}" + (f" ({counted})" if counted else ""))]
    if not runs:
        return [*out, ("processes", "not recorded: the rows were made from Python, or runs/ is gone")]
    out += [("grid", text) for text in _distinct(_grid(run["config"]["sweep"]) for run in runs) if text]
    out += [("cells", "; ".join(_distinct(f"{run['cells']:,}" for run in runs)))]
    compiling, running = (sum(run[f"{name}_seconds"] for run in runs) for name in ("compile", "run"))
    out += [("time", f"compile {duration(compiling)}, run {duration(running)}, of all processes together")]
    versions = (" ".join(f"{name} {number}" for name, number in run["versions"].items()) for run in runs)
    devices = (", ".join(f"{count} × {name}" for name, count in Counter(run["devices"]).items()) for run in runs)
    out += [("device", "; ".join(_distinct(devices))), ("versions", "; ".join(_distinct(versions)))]
    if extensions := _distinct(text for run in runs for text in run.get("extensions", ())):
        out.append(("extensions", "; ".join(extensions)))
    for name in ("platform", "numerics", "matmul_precision", "draws_schema"):
        out.append((name.replace("_", " "), "; ".join(_distinct(str(run[name]) for run in runs))))
    return out


def _grid(sweep: Mapping[str, Any]) -> str:
    """The axes of a grid, as they were written; of several grids, each in turn and then what they share."""

    def axes(of: Mapping[str, Any] | None) -> str:
        return "; ".join(f"{name} = {_text(axis)}" for name, axis in (of or {}).items())

    grids = [axes(own) for own in sweep.get("grids") or ()]
    parts = [f"{place}) {text}" for place, text in enumerate(grids, 1)]
    shared = axes(sweep["axes"])
    parts += [f"each with {shared}" if grids else shared] if shared else []
    parts += [f"{name} {_text(sweep[name])}" for name in ("zip", "where") if sweep[name]]
    if sweep.get("sample"):
        parts.append(f"sample {sweep['sample']} ({sweep['sampler']}, seed {sweep['sample_seed']})")
    return "; ".join(parts)


def _text(value: Any) -> str:
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)


def _processes(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """How far each process got, the last ones."""
    rows = [
        {
            "started (UTC)": f"{datetime.datetime.fromtimestamp(run['started'], datetime.UTC):%Y-%m-%d\u00a0%H:%M:%S}",
            "state": run["state"],
            "cells": run["cells"],
            "there before": run["skipped"],
            "done": run["done"],
            "programs": run["compiled"],
            "compile": duration(run["compile_seconds"]),
            "run": duration(run["run_seconds"]),
            "in all": duration(run["updated"] - run["started"]),
            "host": run["host"],
        }
        for run in runs[-SHOWN:]
    ]
    title = "Processes" + (f", the last {SHOWN} of {len(runs)}" if len(runs) > SHOWN else "")
    return _sheet(Listing(title, pd.DataFrame(rows))) if rows else None


def _settings(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The settings that vary, and those that are the same for all rows."""
    varying = describe.varying(table)
    same = [name for name in describe.settings(table) if name not in varying and table[name].notna().any()]
    kinds = (("Those that vary", "values", varying), ("The same for all rows", "value", same))
    return [
        _sheet(Listing(title, pd.DataFrame({"key": keys, kind: [describe.values(table[name]) for name in keys]})))
        for title, kind, keys in kinds
        if keys
    ]


def _diverged(table: pd.DataFrame) -> dict[str, Any]:
    """The rows that are not ok, by what tells them apart."""
    bad = ~describe.ok(table)
    shown = table[["status", "diverged_step"]].astype(object)
    told = {name: describe.texts(table[name]) for name in describe.telling(table)}
    rows = pd.concat([pd.DataFrame(told, table.index), shown], axis=1)[bad]
    title = "Rows that are not ok" + (f", the first {SHOWN} of {len(rows)}" if len(rows) > SHOWN else "")
    return _sheet(Listing(title, rows.head(SHOWN)))


def _differences(first: Sweep, second: Sweep) -> list[dict[str, Any]]:
    """What two sweeps differ in: their settings, and what they ran on."""
    columns = ["key", first.name if first.name != second.name else "first", second.name]
    sheets: list[tuple[str, list[tuple[str, ...]]]] = []
    if first.table is not None and second.table is not None:
        sheets.append(("Settings that differ", _settings_apart(first.table, second.table)))
    facts = [dict(_facts(sweep, {})) for sweep in (first, second)]
    keys = [key for key in _distinct([*facts[0], *facts[1]]) if key not in ("time", "cells", "rows", "grid")]
    others = [(key, *(side.get(key, describe.MISSING) for side in facts)) for key in keys]
    sheets.append(("Other things that differ", [row for row in others if row[1] != row[2]]))
    return [_sheet(Listing(title, pd.DataFrame(rows, columns=columns))) for title, rows in sheets if rows]


def _settings_apart(first: pd.DataFrame, second: pd.DataFrame) -> list[tuple[str, ...]]:
    """The settings whose values are not the same in two tables, with the values, and how many rows have the settings of
    no row of the other table.
    """
    keys = _distinct([*describe.settings(first), *describe.settings(second)])
    both = pd.DataFrame({key: _joined(first, second, key) for key in keys})
    here = np.arange(len(both)) < len(first)
    out: list[tuple[str, ...]] = []
    for key in keys:
        codes = describe.codes(both[key])
        alone = [both[key][own & ~np.isin(codes, codes[~own])] for own in (here, ~here)]
        if any(map(len, alone)):
            said = [describe.values(both[key][own], among=both[key]) or describe.MISSING for own in (here, ~here)]
            if said[0] == said[1]:
                only = [describe.values(own, among=both[key]) or describe.MISSING * bool(len(own)) for own in alone]
                said = [f"{text}; only here: {own or 'none'}" for text, own in zip(said, only, strict=True)]
            out.append((key, *said))
    groups = describe.groups(both, keys)
    rows = [int((own & ~np.isin(groups, groups[~own])).sum()) for own in (here, ~here)]
    if any(rows):
        lengths = (len(first), len(second))
        out.append(("rows", *(f"{few:,} of {count:,} only here" for few, count in zip(rows, lengths, strict=True))))
    return out


def _joined(first: pd.DataFrame, second: pd.DataFrame, name: str) -> pd.Series:
    """A column of two tables, one below the other; all missing in a table that has none."""
    parts = [table[name] if name in table else pd.Series(None, table.index, object) for table in (first, second)]
    if parts[0].dtype != parts[1].dtype:
        parts = [part.astype(object) for part in parts]
    return pd.concat(parts, ignore_index=True)


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def main() -> None:
    """Entry point `mtfl-report`: gather the parts of a sweep and make its page again, or one of two sweeps."""
    parser = Parser("mtfl-report", description="Make the page of a sweep again, or lay two sweeps side by side.")
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER", type=folder_of, help="the folder of a sweep; one or two"
    )
    parser.add_argument("--out", type=folder_of, help="where to write; default FOLDER/report, or report-A-B for two")
    add_extensions(parser)
    given = parser.parse_args()
    if len(given.folders) > 2:
        parser.error(f"{given.folders[2]}: one folder too many; allowed: one or two")
    try:
        if given.extensions:
            load_extensions(parser, given.extensions, [_study(notes.read(folder)) for folder in given.folders])
        if len(given.folders) == 2:
            first, second = given.folders
            files, problem = [compare(first, second, given.out)], None
        else:
            # Shares that nobody drives leave their rows in parts.
            merged = [tables.merge(given.folders[0])] if not given.out and tables.scattered(given.folders[0]) else []
            _, files, problem = write(given.folders[0], given.out)
            files = [*merged, *files]
    except OSError as error:
        at = error.filename or given.out or given.folders[0] / "report"
        parser.error(f"{at}: {error.strerror}" if error.strerror else str(error))
    except (ValueError, KeyError) as error:
        parser.error(f"{' '.join(map(str, given.folders))}: a part cannot be read: {error!r}")
    if problem:
        print(f"mtfl-report: {problem}", file=sys.stderr)
    for path in files:
        print(f"wrote {path}")
    if not files:
        sys.exit(1)
