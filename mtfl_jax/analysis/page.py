"""The page of a sweep: report/index.html in its folder, self-contained and made from stored rows only.

What it says comes from the folder alone (the rows, and runs/ for what ran on what), so making it again gives the same
bytes. `mtfl-report` does that, and lays several sweeps side by side.
"""

import datetime
import functools
import json
import re
import sys
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup

from mtfl_jax import names
from mtfl_jax.analysis import comparison, describe, plain, studies
from mtfl_jax.analysis.command import Parser, add_extensions, folder_of, load_extensions
from mtfl_jax.analysis.findings import VERDICTS, Drawing, Findings, Listing
from mtfl_jax.analysis.report import holds_numbers
from mtfl_jax.sweeps import notes, places, tables
from mtfl_jax.sweeps.progress import duration

MOST_ROWS = 300_000
"""A table of more rows is not read: its page says only what runs/ says."""
ALWAYS_APART = ("time", "cells", "rows", "grid")
"""Facts that are of a sweep alone."""
SHOWN = 20
"""Processes, failures and diverged rows listed at most; the others are counted."""

SECTIONS = (
    ("claim", "Claim", ("claim",)),
    ("said", "What the data say", ("statements",)),
    ("figures", "Figures", ("figures",)),
    ("tables", "Tables", ("listings",)),
    ("run", "What was run", ("facts",)),
    ("wrong", "What went wrong", ("failed", "diverged")),
    ("settings", "Settings", ("settings",)),
    ("repeat", "To repeat it", ("commands",)),
)
"""The sections of a sweep: anchor, title, and what there must be some of."""

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
        table = describe.measured(loaded.drop(columns="id"), bounds=True)
    return Sweep(folder.resolve().name, table, rows if table is None else len(table), runs)


def _study(runs: Sequence[Mapping[str, Any]]) -> str:
    return str(runs[-1]["config"]["study"]) if runs else names.NO_STUDY


def write(folder: Path, out: Path | None = None) -> Report:
    """Write the page of a results folder, and its figures as PNG, PDF and CSV, into `out` (by default report/ in it).

    Where a study's own findings cannot be made, the page says so and shows what it shows of any sweep; a page that is
    there stays where the study is not known.
    """
    sweep = read(folder)
    found, problem = _findings(sweep)
    out = folder / "report" if out is None else out
    if problem and not studies.known(sweep.study) and places.there(out / "index.html"):
        return Report(found, [], f"{problem}; {out / 'index.html'} stays as it is")
    places.make(out)
    page = _render(out, [_side(sweep, found, problem)])
    return Report(found, [page, *_saved(found, out)], problem)


def try_write(folder: Path) -> Report:
    """`write`, but where it fails that is the problem: the rows are on disk, and a page can be made again."""
    try:
        return write(folder)
    except Exception as error:
        return Report(None, [], f"no report: {one_line(error)}; mtfl-report {places.quoted(folder)} tries again")


def compare(folders: Sequence[Path], out: Path | None = None) -> list[Path]:
    """Write a page of several results folders side by side, and its figures, into `out` (by default report-A-B-… here);
    the files.
    """
    sweeps = [read(folder) for folder in folders]
    out = Path(f"report-{'-'.join(sweep.name for sweep in sweeps)}"[:200]) if out is None else out
    sweeps = [sweep._replace(name=name) for sweep, name in zip(sweeps, _told_apart(folders), strict=True)]
    rows = max(SHOWN, plain.MOST_ROWS // len(sweeps))
    found = comparison.findings({sweep.name: sweep.table for sweep in sweeps if sweep.table is not None}, rows)
    sides = [(sweep, *_findings(sweep, rows)) for sweep in sweeps]
    places.make(out)
    keys = [f"{number}-" for number in range(1, len(sides) + 1)]
    page = _render(out, [_side(*side, key) for side, key in zip(sides, keys, strict=True)], _together(sweeps, found))
    files = [_saved(own, out, key) for (_, own, _), key in zip(sides, keys, strict=True)]
    return [page, *_saved(found, out), *(path for saved in files for path in saved)]


def _told_apart(folders: Sequence[Path]) -> list[str]:
    """What folders are called so that no two are called the same: as much of their paths as that takes."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        called = ["/".join(own[-count:]) for own in parts]
        if len(set(called)) == len(set(parts)):
            break
    # The same folder may be given twice.
    return [name if name not in called[:place] else f"{name} ({place + 1})" for place, name in enumerate(called)]


def _saved(found: Findings | None, out: Path, key: str = "") -> list[Path]:
    """Write the figures of findings as files whose names begin with `key`; their paths."""
    if found is None or not found.drawings:
        return []
    from mtfl_jax.analysis import figures, inline

    files = []
    for drawing in found.drawings:
        files += figures.save(drawing.figure, f"{key}{drawing.name}", out)
        text = inline.values(drawing.figure).to_csv(index=False, lineterminator="\n")
        files.append(out / f"{key}{drawing.name}.csv")
        tables.whole(files[-1], functools.partial(Path.write_text, data=text, encoding="utf-8"))
    return files


def _findings(sweep: Sweep, rows: int = plain.MOST_ROWS) -> tuple[Findings | None, str | None]:
    """What the study says of its rows, or the plain findings (`rows` in a listing at most) and why it says nothing."""
    if sweep.table is None:
        return None, None
    if sweep.study == names.NO_STUDY or len(sweep.table) < 2:
        return plain.findings(sweep.table, rows), None
    if not studies.known(sweep.study):
        # A report runs no code because a folder names it: the user does, with --extensions.
        if not sweep.runs[-1].get("findings", True):
            return plain.findings(sweep.table, rows), None  # It is a grid and says nothing of its own.
        gives = "mtfl-report FOLDER --extensions MODULE gives them"
        return plain.findings(sweep.table, rows), f"the findings of study {sweep.study} are not here: {gives}"
    return found_by(sweep.study, sweep.table, rows)


def found_by(study: str, table: pd.DataFrame, rows: int = plain.MOST_ROWS) -> tuple[Findings, str | None]:
    """What a study says of its rows, or the plain findings and why it says nothing: a study that fails must not take
    with it what it was to speak of.
    """
    try:
        return studies.of(study, table), None
    except Exception as error:
        problem = f"the findings of study {study} could not be made ({one_line(error)})"
        return plain.findings(table, rows), problem


def one_line(error: Exception) -> str:
    """What kind of error, and what it says, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _render(out: Path, sides: Sequence[Mapping[str, Any]], together: Mapping[str, Any] | None = None) -> Path:
    source = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    shown = [figure for part in [*sides, together or {}] for figure in part.get("figures", ())]
    drawn = sum(len(figure["wide"]) + len(figure["narrow"]) for figure in shown)
    template = environment.from_string(source)

    def page(weight: int) -> str:
        said = f"This page is {weight / 1024:,.0f} KiB, {drawn / 1024:,.0f} of them figures."
        return template.render(sides=sides, together=together, weight=said)

    text = page(len(page(0).encode()))
    path = out / "index.html"
    tables.whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    return path


def _side(sweep: Sweep, found: Findings | None, problem: str | None, key: str = "") -> dict[str, Any]:
    """What the template shows of one sweep. key: what its anchors and the files of its figures begin with."""
    table, failures = sweep.table, _failures(sweep.runs)
    statuses = Counter() if table is None else Counter(table["status"])
    bad = {name: count for name, count in statuses.items() if name != "ok"}
    side = {
        "key": key,
        "name": sweep.name,
        "study": sweep.study,
        "title": found.title if found else "A sweep",
        "claim": found.claim if found else "",
        "part": _part(sweep.runs),
        "problem": problem,
        "too_many": f"{sweep.rows:,} rows are more than a page is made of ({MOST_ROWS:,})." if table is None else None,
        "statements": [(VERDICTS[said.supported], said.text) for said in found.statements] if found else [],
        "figures": _figures(found.drawings, key) if found else [],
        "listings": [_sheet(listing) for listing in found.listings] if found else [],
        "facts": _facts(sweep, statuses),
        "processes": _processes(sweep.runs),
        "settings": [] if table is None else _settings(table),
        "failures": failures[:SHOWN],
        "failed": _count(len(failures), "program") if failures else "",
        "more": max(0, len(failures) - SHOWN),
        "bad": ", ".join(f"{_count(count, 'row')} {name}" for name, count in sorted(bad.items())),
        "diverged": _diverged(table) if table is not None and bad else None,
        "commands": _distinct(map(notes.command, sweep.runs)),
    }
    contents = [(f"{key}{name}", title) for name, title, parts in SECTIONS if any(map(side.get, parts))]
    return side | {"contents": contents}


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


def _figures(drawings: Sequence[Drawing], key: str = "") -> list[dict[str, Any]]:
    """Figures for the template; beside the page their files' names begin with `key`."""
    if not drawings:
        return []
    from mtfl_jax.analysis import inline

    found = []
    for number, drawing in enumerate(drawings, 1):
        svg = inline.inline(drawing.figure, f"{key}f{number}")
        file = urllib.parse.quote(f"{key}{drawing.name}", safe="")
        found.append(
            {
                "name": drawing.name,
                "wide": Markup(svg.wide),
                "narrow": Markup(svg.narrow or ""),
                "inches": svg.inches,
                "caption": drawing.caption,
                "files": [(kind.upper(), f"{file}.{kind}") for kind in ("pdf", "png", "csv")],
            }
        )
    return found


def _sheet(listing: Listing) -> dict[str, Any]:
    """A listing for the template: its title, (name, whether of numbers) a column, its cells as text, and its CSV."""
    columns = [(str(name), holds_numbers(listing.table[name])) for name in listing.table.columns]
    rows = [[describe.number(cell) for cell in cells] for cells in listing.table.itertuples(index=False)]
    data = listing.table if listing.data is None else listing.data
    text = urllib.parse.quote(data.to_csv(index=False, lineterminator="\n"), safe=" ,:;()")
    return {
        "title": listing.title,
        "columns": columns,
        "rows": rows,
        "note": listing.note,
        "file": re.sub(r"[^a-z0-9]+", "-", listing.title.lower()).strip("-")[:40] + ".csv",
        "csv": f"data:text/csv;charset=utf-8,{text}",
    }


def _facts(sweep: Sweep, statuses: Mapping[str, int]) -> list[tuple[str, str]]:
    """What was run, on what and for how long: names and texts."""
    runs = sweep.runs
    counted = ", ".join(f"{count} {name}" for name, count in sorted(statuses.items(), key=lambda item: -item[1]))
    out = [("study", sweep.study), ("rows", f"{sweep.rows:,}" + (f" ({counted})" if counted else ""))]
    if not runs:
        return [*out, ("processes", "not recorded: runs/ is gone")]
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


def _together(sweeps: Sequence[Sweep], found: Findings) -> dict[str, Any]:
    """What the template shows of several sweeps: figure and means of all, then their settings and what they ran on,
    where those differ.
    """
    columns = ["key", *(sweep.name for sweep in sweeps)]
    sheets: list[tuple[str, list[tuple[str, ...]]]] = []
    read_whole = [sweep.table for sweep in sweeps if sweep.table is not None]
    if len(read_whole) == len(sweeps):
        sheets.append(("Settings that differ", comparison.settings_apart(read_whole)))
    facts = [dict(_facts(sweep, {})) for sweep in sweeps]
    keys = [key for key in _distinct(key for side in facts for key in side) if key not in ALWAYS_APART]
    others = [(key, *(side.get(key, describe.MISSING) for side in facts)) for key in keys]
    sheets.append(("Other things that differ", [row for row in others if len(set(row[1:])) > 1]))
    differences = [_sheet(Listing(title, pd.DataFrame(rows, columns=columns))) for title, rows in sheets if rows]
    parts = (
        ("together", "Side by side", found.drawings or found.listings),
        ("differences", "What differs", True),
        *((f"{number}-sweep", sweep.name, True) for number, sweep in enumerate(sweeps, 1)),
    )
    return {
        "figures": _figures(found.drawings),
        "listings": [_sheet(listing) for listing in found.listings],
        "differences": differences,
        "contents": [(name, title) for name, title, there in parts if there],
    }


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def main() -> None:
    """Entry point `mtfl-report`: gather the parts of a sweep and make its page again, or one of several sweeps."""
    parser = Parser("mtfl-report", description="Make the page of a sweep again, or lay several side by side.")
    parser.add_argument("folders", nargs="+", metavar="FOLDER", type=folder_of, help="the folder of a sweep")
    parser.add_argument("--out", type=folder_of, help="where to write; default FOLDER/report, or report-A-B of several")
    add_extensions(parser)
    given = parser.parse_args()
    try:
        if given.extensions:
            load_extensions(parser, given.extensions, [_study(notes.read(folder)) for folder in given.folders])
        if len(given.folders) > 1:
            files, problem = compare(given.folders, given.out), None
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
