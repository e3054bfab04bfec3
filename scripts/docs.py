"""Make the manual: `python scripts/docs.py` writes a site into build/docs/site/, which needs no network to be read.

The docs extra has what it takes. The pages of docs/ are copied to build/docs/pages/ with their formulas, $…$ and $$…$$,
as MathML; the reference beside them is written from the records, settings and docstrings, so that it is what the code
says. Then MkDocs builds them.
"""

import argparse
import dataclasses
import importlib
import inspect
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import mtfl_jax
from mtfl_jax import compose, kinds, names, settings
from mtfl_jax.analysis import studies
from mtfl_jax.analysis.models import MODELS, Model
from mtfl_jax.analysis.studies import Study
from mtfl_jax.config import FIELDS
from mtfl_jax.help import WORDS
from mtfl_jax.learning.activations import PREFIX, Activation
from mtfl_jax.learning.algorithms.record import Algorithm
from mtfl_jax.learning.data import Law
from mtfl_jax.learning.initial import HEAD_INITS, HeadInit
from mtfl_jax.learning.losses import Loss
from mtfl_jax.learning.measures import MEASURES, Measure
from mtfl_jax.learning.optimizers import OPTIMIZERS, SCHEDULES, Optimizer, Schedule
from mtfl_jax.learning.parametrizations import PARAMETRIZATIONS, Parametrization
from mtfl_jax.learning.probe import Probe
from mtfl_jax.learning.tasks import Family

ROOT = Path(__file__).parents[1]
DOCS, PAGES = ROOT / "docs", ROOT / "build" / "docs" / "pages"

KIND = {"shape": "size", "knob": "number", "choice": "choice"}
"""What readers call the kinds of a setting: a size changes shapes, a number recompiles nothing, a choice names code."""

BOOKKEEPING = {
    "extensions": "the extensions that the row uses, NAME:HASH; missing where it uses none",
    "draws": "number of the scheme by which seeds give random numbers",
    "schema": "number of the scheme of columns and identities",
    "step": "updates after which it was measured; 0 where nothing is trained",
    "status": f"{' or '.join(names.STATUSES)}: a diverged row has no measurements",
    "diverged_step": "the first recorded step at which something was NaN or infinite",
}
"""What the columns beside settings and measurements are."""


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(columns), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(value: Any) -> str:
    """A value as a command line takes it."""
    words = {None: "null", True: "true", False: "false"}
    text = words.get(value) if value is None or isinstance(value, bool) else None
    return f"`{text or (str(value).replace(' ', '').replace(chr(39), ''))}`"


def users(name: str) -> str:
    """What a setting bears on: the choices that use it, or every row."""
    if name in {field.name for field in settings.ALWAYS}:
        return "every row" if FIELDS[name].when is None else f"by {listed(FIELDS[name].when.reads)}"
    found = []
    for kind in kinds.KINDS:
        own = name.removeprefix(kind.prefix) if name.startswith(kind.prefix) else None
        records = [record for record in kind.registry.values() if own in kinds.names_of(record)]
        what = f"{kind.prefix and 'downstream '}{kind.registry.kind}"
        when = [rule for record in records if (rule := getattr(record, "when", {}).get(own))]
        by = f" (by {listed(sorted(frozenset().union(*(rule.reads for rule in when))))})" if when else ""
        if records and len(records) == len(kind.registry):
            found.append(f"every {what}{by}")
        elif records:
            found.append(f"{what} {listed(record.name for record in records)}{by}")
    return "; ".join(dict.fromkeys(found))


def listed(words: Iterable[str]) -> str:
    """Words as code, with commas."""
    return ", ".join(f"`{word}`" for word in words)


def keys_page() -> str:
    """Every key of a config."""
    defaults = compose.composed({})
    rows = [
        (f"`{name}`", field.doc, code(defaults[name]), field.type.allowed(), KIND[field.kind], users(name))
        for name, field in FIELDS.items()
    ]
    parts = [
        "# Keys",
        "What a cell is made of. A *size* changes shapes of arrays, a *choice* names code, and both are compiled in; a"
        " *number* is traced, and another value of it compiles nothing. Any of them may be an axis of a sweep.",
        table(["key", "meaning", "default", "takes", "kind", "bears on"], rows),
        "## Keys that are not a cell's",
        table(["key", "meaning"], [(f"`{name}`", doc) for name, doc in names.OTHER_KEYS.items()]),
        table(["key", "meaning"], [(f"`sweep.{name}`", doc) for name, doc in names.SWEEP_KEYS.items()]),
        "`hydra.sweeper.split` names axes that make separate jobs, `hydra.sweeper.jobs` is the number of equal shares,"
        " a job each, `hydra.sweeper.detach=true` does not wait for jobs in Slurm's queue, and `hydra.sweeper.params`"
        " holds axes.",
    ]
    return "\n\n".join(parts)


def changes(group: str, choice: str) -> str:
    """The defaults that a choice brings along."""
    plain, chosen = compose.composed({}), compose.composed({group: choice})
    return ", ".join(
        f"`{name}={code(chosen[name])[1:-1]}`" for name in FIELDS if chosen[name] != plain[name] and name != group
    )


def choices_page() -> str:
    """Every choice of every group, and what else is chosen by name."""
    parts = ["# Choices", "`GROUP=CHOICE` picks one; some bring defaults of other keys along."]
    for kind in kinds.KINDS:
        if kind.group:
            docs = {**WORDS, **{record.name: record.doc for record in kind.registry.values()}}
            every = FIELDS[kind.group].type.names or tuple
            rows = [(f"`{name}`", docs[name.removeprefix(PREFIX)], changes(kind.group, name)) for name in every()]
            parts += [f"## {kind.group}", f"{FIELDS[kind.group].doc}.", table(["choice", "what it is", "brings"], rows)]
    for title, registry in (
        ("head_init", HEAD_INITS),
        ("parametrization", PARAMETRIZATIONS),
        ("optimizer", OPTIMIZERS),
        ("schedule", SCHEDULES),
        ("model of mtfl-fit", MODELS),
    ):
        rows = [(f"`{name}`", record.doc) for name, record in registry.items()]
        parts += [f"## {title}", table(["choice", "what it is"], rows)]
    rows = [(f"`{name}`", studies.named(name).doc) for name in studies.built_in()]
    return "\n\n".join([*parts, "## study", table(["choice", "what it shows"], rows)])


def columns_page() -> str:
    """Every column of a table of results."""
    measured = [
        (
            f"`{name}`",
            names.COLUMN_LABELS.get(name, record.label),
            record.doc,
            f"list of {record.type.__name__}" if record.shape else record.type.__name__,
            listed(record.sets),
        )
        for name, record in MEASURES.items()
    ]
    parts = [
        "# Columns",
        "A row is a cell, a value of `n_down` and a recorded step. First stand the settings under their names ([Keys]"
        "(keys.md)), missing where they do not bear on the row; a stored row has an `id` too.",
        table(["column", "meaning"], [(f"`{name}`", BOOKKEEPING[name]) for name in names.BOOKKEEPING]),
        "## Measurements",
        table(["column", "figures call it", "meaning", "type", "with `measure=`"], measured),
    ]
    return "\n\n".join(parts)


def commands_page() -> str:
    """What the commands say of themselves."""
    parts = ["# Commands"]
    environment = {**os.environ, "COLUMNS": "110"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name, place in project["scripts"].items():
        module, _, function = place.partition(":")
        script = f"import sys; sys.argv = ['{name}', '--help']; from {module} import {function} as main; main()"
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
        )
        parts += [f"## {name}", f"```text\n{done.stdout.rstrip()}\n```"]
    return "\n\n".join(parts)


def documented(thing: Any, title: str) -> str:
    """A signature and its docstring, as they stand in the code."""
    signature = re.sub(r"'([\w.|\[\], ]+)'", r"\1", str(inspect.signature(thing)))
    return f"### {title}\n\n```python\n{title}{signature}\n```\n\n```text\n{inspect.getdoc(thing)}\n```"


def python_page() -> str:
    """The Python API, and every module in a line."""
    functions = [(name, getattr(mtfl_jax, name)) for name in mtfl_jax.__all__]
    public = [documented(thing, f"mtfl_jax.{name}") for name, thing in functions if inspect.isfunction(thing)]
    from mtfl_jax.analysis import crossings, fits, laws

    fitted = [
        documented(fits.fit, "mtfl_jax.analysis.fits.fit"),
        documented(crossings.fit_crossings, "mtfl_jax.analysis.crossings.fit_crossings"),
        documented(laws.fit_by, "mtfl_jax.analysis.laws.fit_by"),
    ]
    rows = [(f"`{module.__name__}`", first_sentence(module)) for module in modules() if module.__doc__]
    return "\n\n".join(["# Python", *public, *fitted, "## Modules", table(["module", "what it holds"], rows)])


def modules() -> Iterator[ModuleType]:
    """The modules of the package."""
    for found in pkgutil.walk_packages(mtfl_jax.__path__, "mtfl_jax."):
        if "_hydra" not in found.name and not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def first_sentence(module: ModuleType) -> str:
    """The first paragraph of a module's docstring, in a line."""
    return " ".join((module.__doc__ or "").strip().split("\n\n")[0].split())


RECORDS = (Family, Law, Loss, Activation, HeadInit, Algorithm, Parametrization, Measure, Probe, Optimizer, Schedule)
"""Kinds of records, beside studies and fit models."""


def records_page() -> str:
    """What each kind of record holds."""
    parts = ["# Records", "An extension registers one of these; [Your own science](../how-to/extend.md) shows how."]
    for kind in (*RECORDS, Study, Model):
        rows = [
            (f"`{member.name}`", f"`{member.type}`", "" if required(member) else "optional")
            for member in dataclasses.fields(kind)
        ]
        where = f"`{kind.__module__}.{kind.__name__}`"
        said = inspect.getdoc(kind)
        parts += [f"## {kind.__name__}", where, f"```text\n{said}\n```", table(["member", "type", ""], rows)]
    return "\n\n".join(parts)


def required(member: Any) -> bool:
    """Whether a record must give a member."""
    return member.default is dataclasses.MISSING and member.default_factory is dataclasses.MISSING


REFERENCE = {
    "reference/keys.md": keys_page,
    "reference/choices.md": choices_page,
    "reference/columns.md": columns_page,
    "reference/commands.md": commands_page,
    "reference/python.md": python_page,
    "reference/records.md": records_page,
}
"""Pages that are written from the code."""

CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", re.DOTALL)


def with_formulas(text: str) -> str:
    """Markdown whose formulas outside code are MathML, which browsers show without a script."""
    from latex2mathml.converter import convert

    def shown(found: re.Match[str]) -> str:
        block, inline = found.groups()
        if block:
            return f'<div class="formula">{convert(block.strip(), display="block")}</div>'
        # A line that begins with <math> would be a block of its own.
        return f"<span>{convert(inline)}</span>"

    parts = CODE.split(text)
    return "".join(part if i % 2 else FORMULA.sub(shown, part) for i, part in enumerate(parts))


def write_pages() -> None:
    """Every page into build/docs/pages/."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for path in sorted(DOCS.rglob("*")):
        target = PAGES / path.relative_to(DOCS)
        if path.is_file() and path.suffix != ".yml":
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".md":
                target.write_text(with_formulas(path.read_text(encoding="utf-8")), encoding="utf-8")
            else:
                shutil.copy(path, target)
    for name, page in REFERENCE.items():
        target = PAGES / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page() + "\n", encoding="utf-8")


def main() -> None:
    """Write the pages and build the site; a warning is an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", action="store_true", help="only write build/docs/pages/")
    given = parser.parse_args()
    write_pages()
    if not given.pages:
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--clean", "-f", str(DOCS / "mkdocs.yml")]
        sys.exit(subprocess.run(command, check=False).returncode)
    print(f"wrote {PAGES}")


if __name__ == "__main__":
    main()
