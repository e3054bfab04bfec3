"""The manual: its reference says all that there is, and its formulas are MathML."""

import importlib.util
from pathlib import Path

import pytest

from mtfl_jax.config import FIELDS
from mtfl_jax.kinds import KINDS
from mtfl_jax.learning.measures import MEASURES
from mtfl_jax.names import BOOKKEEPING, OTHER_KEYS, SWEEP_KEYS


@pytest.fixture(scope="module")
def docs():
    spec = importlib.util.spec_from_file_location("docs", Path(__file__).parents[1] / "scripts" / "docs.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_every_key_is_said_with_what_it_takes_and_bears_on(docs):
    rows = {line.split("`")[1]: line for line in docs.keys_page().splitlines() if line.startswith("| `")}
    assert set(FIELDS) | {*OTHER_KEYS} | {f"sweep.{name}" for name in SWEEP_KEYS} == set(rows)
    for name, field in FIELDS.items():
        assert field.doc in rows[name]
        assert field.type.allowed() in rows[name]
        assert not rows[name].endswith("|  |"), f"{name} bears on nothing"


def test_every_choice_is_said_with_what_it_brings(docs):
    page = docs.choices_page()
    for kind in KINDS:
        assert all(f"| {record.doc} |" in page for record in kind.registry.values() if kind.registry is not MEASURES)
    (line,) = [line for line in page.splitlines() if line.startswith("| `alternating`")]
    assert "`loss=logistic`" in line
    assert "`bias=random`" in line


def test_every_column_is_said(docs):
    page = docs.columns_page()
    assert all(f"| `{name}` |" in page for name in [*BOOKKEEPING, *MEASURES])


def test_every_record_and_module_is_said(docs):
    assert "## Family" in docs.records_page()
    page = docs.python_page()
    for name in ("mtfl_jax.sweep(", "mtfl_jax.learning.tasks", "mtfl_jax.sweeps.plan"):
        assert name in page


def test_formulas_are_mathml_outside_code(docs):
    pytest.importorskip("latex2mathml")
    page = docs.with_formulas("an $r$-parity\n\n$$x^2$$\n\n`$HOME`\n\n```\n$x$ $$y$$\n```\n")
    assert page.count("<math") == 2
    assert "`$HOME`" in page
    assert "$x$ $$y$$" in page
    assert '<div class="formula">' in page


def test_the_navigation_has_every_page(docs):
    """As the file lists them, without YAML's help: MkDocs' own tags are not plain YAML's."""
    listed = {line.split("- ")[-1].split(": ")[-1] for line in (docs.DOCS / "mkdocs.yml").read_text().splitlines()}
    pages = {str(path.relative_to(docs.DOCS)) for path in docs.DOCS.rglob("*.md")}
    assert {name for name in listed if name.endswith(".md")} == pages | set(docs.REFERENCE)
