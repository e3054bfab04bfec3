"""Run four studies and keep a figure of each for the README: `python scripts/readme_figures.py [STUDY=FOLDER …]`.

A study whose folder is given is not run again: its report there is used. Figures go to scripts/figures/.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FIGURES = {
    "recovery": "recovery",
    "downstream": "downstream",
    "complexity": "complexity",
    "contrastive": "contrastive-features",
}
OUT = Path(__file__).parent / "figures"


def main() -> None:
    """Run what is not given, and copy the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("given", nargs="*", metavar="STUDY=FOLDER")
    folders = dict(text.partition("=")[::2] for text in parser.parse_args().given)
    if unknown := [name for name in folders if name not in FIGURES]:
        parser.error(f"{unknown[0]}: allowed: {', '.join(FIGURES)}")
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for study, figure in FIGURES.items():
            folder = folders.get(study, f"{scratch}/{study}")
            if study not in folders:
                command = [sys.executable, "-m", "mtfl_jax", f"study={study}", f"hydra.run.dir={folder}"]
                subprocess.run(command, check=True)
            shutil.copy(Path(folder) / "report" / f"{figure}.png", OUT / f"{figure}.png")
            print(f"wrote {OUT / figure}.png")


if __name__ == "__main__":
    main()
