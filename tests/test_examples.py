"""The notebooks of examples/: they run from top to bottom, and show what they are kept with."""

import importlib
import importlib.util
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "examples").glob("*.ipynb"))

if os.environ.get("MTFL_REQUIRE_EXAMPLES") != "1":
    pytest.skip("run where MTFL_REQUIRE_EXAMPLES=1 asks for it", allow_module_level=True)

nbformat = importlib.import_module("nbformat")

spec = importlib.util.spec_from_file_location("examples", ROOT / "scripts" / "examples.py")
examples = importlib.util.module_from_spec(spec)
spec.loader.exec_module(examples)


def shown(notebook):
    """The texts and tables that cells show, less those of progress, whose times are of the moment."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            text = output.get("text") or data.get("text/plain", "")
            found += [text] * (" cells" not in text)
    return found


def test_there_are_three():
    assert NOTEBOOKS == ["first_sweep", "own_task_family", "scaling_law"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name, tmp_path):
    kept = nbformat.read(ROOT / "examples" / f"{name}.ipynb", as_version=4)
    done = examples.executed(ROOT / "examples" / f"{name}.ipynb", tmp_path)
    outputs = [output for cell in done.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    # It shows as many things as are kept, and the same numbers but for the last digits and what it ran on.
    assert len(shown(done)) == len(shown(kept))
    assert shown(done)[0].split()[:4] == shown(kept)[0].split()[:4]
