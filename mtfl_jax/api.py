"""Sweeps from Python: `run`, `sweep` and `study`."""

import base64
import contextlib
import dataclasses
import html
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from yaml import YAMLError

from mtfl_jax import compose, ends, extend, running
from mtfl_jax.analysis import page as pages
from mtfl_jax.analysis import plain, report, studies
from mtfl_jax.analysis.findings import VERDICTS, Findings
from mtfl_jax.fields import ConfigError
from mtfl_jax.names import NO_STUDY
from mtfl_jax.records import guess
from mtfl_jax.sweeps import engine, identity, places, store, tables
from mtfl_jax.sweeps import progress as display
from mtfl_jax.sweeps.grammar import axis_values
from mtfl_jax.sweeps.grid import Grid, zips
from mtfl_jax.sweeps.listeners import Listener, listeners_of, told
from mtfl_jax.sweeps.machine import MEMORY_FRACTION
from mtfl_jax.sweeps.sampling import SAMPLERS, Sampling

MOST_WRITTEN = 20
"""Values of an axis that are written out where a folder says what was run."""
WIDTH = 100
"""Columns of a study's findings in print."""


def sweep(
    *,
    folder: str | os.PathLike[str] | None = None,
    grids: Sequence[Mapping[str, Any]] = (),
    zip: Sequence[Sequence[str]] | Sequence[str] = (),
    where: Sequence[str] | str = (),
    sample: int | None = None,
    sampler: str = SAMPLERS[0],
    sample_seed: int = 0,
    memory_fraction: float = MEMORY_FRACTION,
    moments: str = "auto",
    keep: Sequence[str] | str = (),
    extensions: extend.Extensions = (),
    on_rows: Listener | Sequence[Listener] = (),
    progress: bool = False,
    page: bool = True,
    **axes: Any,
) -> pd.DataFrame:
    """Run the grid of the axes given as keywords and return its rows, in the order of the grid.

    Any key of `mtfl --help` may be an axis: a value, a list, a range, or text in Hydra's grammar. `grids` are
    more axes, of which each in turn makes a grid with those; `zip` names axes that advance together (["d", "n1"], or
    a list of such lists), `where` a condition that cells must meet, such as "width >= 2*d", or several. Axes that are
    intervals, "interval(0,1)" or "tag(log,interval(1e-3,1))", have `sample` points together, by `sampler` (sobol,
    random) and `sample_seed`; those of a smaller `sample` come first.

    With a `folder` the rows are kept there, and what is there already is not run again; it is what `mtfl` makes of a
    folder, with `results.parquet` and, unless `page` is false, a page. `progress` shows a bar. `on_rows` is a function,
    or several, of a DataFrame of new rows, called about once a second in a thread of its own, such as those of
    `mtfl_jax.analysis.trackers`. `keep` names weights of W, b and A that are kept in the folder of every row
    (`mtfl_jax.weights`). `moments` is that of `plan`; `extensions` are modules or .py files that register
    records of your own, which are imported. Ctrl-C finishes what runs and keeps it.

    Raises ConfigError (a ValueError) for a bad key, value or cell, RuntimeError that lists the cells
    that failed, and KeyboardInterrupt that says how much is kept.

        mtfl_jax.sweep(d=[32, 64], r=[2, 4], num_tasks=[1, 16, 64], seed=range(64))
    """
    loaded = extend.load(extensions)
    drawn = Sampling.of(sample, sampler, sample_seed).written()
    said = {"axes": axes, "grids": grids, "zip": zip, "where": where, **drawn}
    grid = Grid.of_sweep(said, compose.composed)
    names = _kept(keep, folder)
    if without := grid.without_effect(axes):
        warnings.warn(without, stacklevel=2)

    def about() -> dict[str, Any]:
        others = {"grids": grids, "zip": zip, "where": where, **(drawn if sample is not None else {}), "folder": folder}
        call = _call("sweep", {**axes, **others, "keep": list(names)})
        return running.about([call], {"study": NO_STUDY, **_written(said)}, loaded)

    how = {"memory_fraction": compose.memory_share(memory_fraction), "moments": compose.moments_of(moments)}
    listeners = listeners_of(on_rows)
    return _run(grid, folder, about, shows=progress, makes_page=page, listeners=listeners, keep=names, **how)


def _kept(keep: Sequence[str] | str, folder: str | os.PathLike[str] | None) -> tuple[str, ...]:
    """`keep` checked. Raises ConfigError."""
    names = compose.keep_of(keep)
    if names and folder is None:
        raise ConfigError("keep", f"[{','.join(names)}]", "allowed with folder=FOLDER, where weights are kept")
    return names


def run(*, extensions: extend.Extensions = (), **values: Any) -> pd.DataFrame:
    """Run one cell and return its rows: one a value of n_down and recorded step.

    Keywords are the keys of `mtfl --help`; config groups take the name of their choice. Columns are the settings,
    `step`, the status and the measurements. Raises ConfigError (a ValueError) that names the key and what is allowed.

        mtfl_jax.run(d=64, r=4, data="gaussian", tasks="balanced", algorithm="one_step", seed=0)
    """
    extend.load(extensions)
    compose.from_keywords(**values)
    axes: dict[str, Any] = {key: [value] for key, value in values.items()}
    return sweep(**axes)


@dataclasses.dataclass(frozen=True)
class Studied:
    """A study's rows, and what it finds in them: claim, statements, listings and figures. Printed, it is what `mtfl`
    prints.
    """

    table: pd.DataFrame
    findings: Findings

    @property
    def figures(self) -> Mapping[str, Any]:
        """The figures by name, as matplotlib has them."""
        return {drawing.name: drawing.figure for drawing in self.findings.drawings}

    def _repr_html_(self) -> str:
        from mtfl_jax.analysis import figures

        found = self.findings
        said = [f"{VERDICTS[own.supported]}: {own.text}" for own in found.statements]
        parts = [
            f"<h3>{html.escape(found.title)}</h3>",
            *(f"<p>{html.escape(text)}</p>" for text in (found.claim, *said)),
        ]
        for drawing in found.drawings:
            source = base64.b64encode(figures.svg(drawing.figure)).decode()
            parts += [f'<img src="data:image/svg+xml;base64,{source}"/>', f"<p>{html.escape(drawing.caption)}</p>"]
        for listing in found.listings:
            parts += [f"<p><b>{html.escape(listing.title)}</b></p>", listing.table.to_html(index=False)]
        return "\n".join(parts)

    def __str__(self) -> str:
        with io.StringIO() as text:
            Console(file=text, width=WIDTH, emoji=False).print(report.findings(self.findings))
            return text.getvalue().rstrip()


def study(
    name: str | os.PathLike[str],
    *,
    size: str = "default",
    folder: str | os.PathLike[str] | None = None,
    memory_fraction: float = MEMORY_FRACTION,
    moments: str = "auto",
    keep: Sequence[str] | str = (),
    progress: bool = False,
    **axes: Any,
) -> Studied:
    """Run a study, as `mtfl study=NAME size=SIZE` does: one that is built in, or a YAML of your own, in a folder
    `study/` with, where it finds anything of its own, NAME.py beside it, whose code is run.

    Axes given as keywords replace the study's; the rest is as in `sweep`. Raises what that raises, and ConfigError for
    a study that is not known.

        found = mtfl_jax.study("quickstart", seed=range(4))
        print(found)
        found.figures["quickstart"].savefig("quickstart.pdf")
    """
    choices = _choices(str(name), size)
    try:
        loaded = extend.load(compose.whole(choices)["extensions"])
        composed = compose.whole(choices)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError("study", name, f"its YAML cannot be read ({pages.one_line(error)})") from None
    called = choices["study"]
    compose.require_study(called, composed["study"])
    said = compose.sweep_of(composed["sweep"], axes)
    said["axes"] |= axes

    def of(own: Mapping[str, str]) -> Mapping[str, Any]:
        return compose.own_keys(compose.whole({**choices, **own}))

    def about() -> dict[str, Any]:
        call = _call("study", {"name": str(name), "size": size, **axes, "folder": folder, "keep": list(how["keep"])})
        return running.about([call], {**composed, **_written(said)}, loaded)

    how: dict[str, Any] = {"memory_fraction": compose.memory_share(memory_fraction)}
    how |= {"moments": compose.moments_of(moments), "keep": _kept(keep, folder)}
    rows = _run(Grid.of_sweep(said, of), folder, about, shows=progress, **how)
    table = rows.drop(columns="id")
    if not studies.known(called):
        return Studied(rows, plain.findings(table))
    found, problem = pages.found_by(called, table)
    if problem:
        warnings.warn(problem, stacklevel=2)
    return Studied(rows, found)


def _choices(name: str, size: str) -> dict[str, str]:
    """What a study and its size are to Hydra. Raises ConfigError where there are none."""
    choices, conf = {"study": name, "size": size}, compose.conf_dir()
    if name.endswith((".yaml", ".yml")):
        path = Path(name).resolve()
        if not path.is_file() or path.parent.name != "study":
            raise ConfigError("study", name, "allowed: a name, or the path of a YAML in a folder study/")
        choices = {"hydra.searchpath": f"['file://{path.parents[1]}']", "study": path.stem, "size": size}
        conf, name = path.parents[1], path.stem
        if path.with_suffix(".py").is_file():
            running.findings_of(name, path.with_suffix(".py"))
    known = sorted({file.stem for file in (conf / "study").glob("*.yaml")} - {NO_STUDY})
    if name not in known:
        raise ConfigError("study", name, f"allowed: {', '.join(known)}{guess(name, known)}")
    sizes = ["default", *(file.stem.removeprefix(f"{name}_") for file in (conf / "study/sizes").glob(f"{name}_*.yaml"))]
    if size not in sizes:
        raise ConfigError("size", size, f"allowed with study={name}: {', '.join(sizes)}")
    return choices


def _run(
    grid: Grid,
    folder: str | os.PathLike[str] | None,
    about: Callable[[], Mapping[str, Any]],
    *,
    shows: bool,
    makes_page: bool = True,
    listeners: Sequence[Listener] = (),
    keep: Sequence[str] = (),
    **how: Any,
) -> pd.DataFrame:
    """Run a grid, into a folder where there is one as `mtfl` does, and return its rows in order. about: what is noted
    of it there.
    """
    sink = store.Memory() if folder is None else store.Folder(folder, keep=keep)
    noting = running.Noting(sink, about()) if isinstance(sink, store.Folder) else None
    # Of the sweep's own, as several threads may sweep.
    console = display.console(sys.stderr)
    with _interrupts() as stop, display.display(console) if shows else contextlib.nullcontext() as show:

        def notify(reached: engine.Progress) -> None:
            if show is not None:
                show(reached)
            if noting is not None:
                noting.runs(reached)

        try:
            with told(sink, listeners, grid.moving()) as heard:
                outcome = engine.execute(grid, heard, stop=stop, notify=notify, **how)
        except BaseException as error:
            if noting is not None:
                with contextlib.suppress(ConfigError):
                    noting.ends("stopped" if isinstance(error, KeyboardInterrupt) else "failed")
            raise
    if noting is not None:
        noting.ends(running.state_of(outcome))
    if outcome.stopped:
        kept = outcome.skipped + outcome.done
        where = "were done; without a folder nothing is kept"
        if folder is not None:
            where = f"are kept in {folder}; the same call goes on"
        raise KeyboardInterrupt(f"{kept} of {outcome.cells} cells {where}")
    if isinstance(sink, store.Folder):
        _finish(sink, outcome, makes_page)
    if outcome.failures:
        raise RuntimeError("\n".join(outcome.failures))
    table = tables.frame(identity.in_order(grid, sink.table()))
    if isinstance(sink, store.Folder):
        table.attrs["folder"] = str(sink.path)
    return table


def _finish(sink: store.Folder, outcome: engine.Progress, makes_page: bool) -> None:
    """Write the table and the page of a folder, where there is more than they are of."""
    new = outcome.done or not places.there(sink.path / tables.RESULTS) or tables.scattered(sink.path)
    if new:
        sink.merge()
    if makes_page and (new or not places.there(sink.path / "report" / "index.html")):
        problem = pages.try_write(sink.path).problem
        if problem:
            warnings.warn(problem, stacklevel=4)


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C has asked to stop; asked twice it interrupts at once. A program's own handler is left alone, and
    threads other than the main one hear nothing.
    """
    came: list[int] = []

    def hear(number: int, frame: Any) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)
        print(ends.SOON, file=sys.stderr)

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, hear)
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# What a folder says of a call


def _call(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as it may be written again, less the arguments that say nothing."""
    given = (f"{key}={_text(value)}" for key, value in arguments.items() if not _empty(value))
    return f"mtfl_jax.{name}({', '.join(given)})"


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | Sequence) and len(value) == 0)


def _text(value: Any) -> str:
    """A value as Python has it; of a long list its ends."""
    if isinstance(value, range):
        return repr(value)
    if isinstance(value, os.PathLike):
        return repr(str(value))
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {_text(own)}' for key, own in value.items())}}}"
    items = _items(value)
    if items is None:
        return repr(value.item() if isinstance(value, np.generic) else value)
    if len(items) > MOST_WRITTEN:
        return f"[{', '.join(map(_text, items[:3]))}, …, {_text(items[-1])}]"
    return f"[{', '.join(map(_text, items))}]"


def _items(value: Any) -> list[Any] | None:
    """The items of a list, an array or a column; None of what is none."""
    if isinstance(value, np.ndarray | pd.Series | pd.Index):
        return list(value.tolist())
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else None


def _written(sweep: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a composed config that say the same as `sweep`: settings that have one value, and itself."""
    axes, where = sweep["axes"], sweep["where"]
    one = {key: own[0] for key in axes if isinstance(own := axis_values(key, axes[key]), list) and len(own) == 1}
    written = {
        "axes": {key: _axis(spec) for key, spec in axes.items() if key not in one},
        "grids": [{key: _axis(spec) for key, spec in own.items()} for own in sweep["grids"]],
        "zip": zips(sweep["zip"]),
        "where": [where] if isinstance(where, str) else list(where),
        "part": None,
    }
    return {**one, "sweep": {**sweep, **written}}


def _axis(spec: Any) -> str:
    """An axis in Hydra's grammar."""
    if isinstance(spec, range):
        return f"range({spec.start},{spec.stop}{f',{spec.step}' if spec.step != 1 else ''})"
    items = _items(spec)
    return str(spec) if items is None else ",".join(_text(item) for item in items)
