"""Run the notebooks of examples/ anew and keep what they show: `python scripts/examples.py [NAME …]`.

The examples extra has what it takes. Each runs in an empty folder.
"""

import argparse
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"
SECONDS = 600
"""What a cell may take."""


def executed(path: Path, folder: Path) -> nbformat.NotebookNode:
    """A notebook run in a folder, with what its cells show. Raises CellExecutionError where one fails."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=SECONDS, record_timing=False, resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return notebook


def main() -> None:
    """Run those that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="default: all")
    names = parser.parse_args().names or sorted(path.stem for path in EXAMPLES.glob("*.ipynb"))
    for name in names:
        path = EXAMPLES / f"{name}.ipynb"
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(executed(path, Path(folder)), path)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
