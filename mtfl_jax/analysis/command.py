"""What the commands that read tables share."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd

import mtfl_jax
from mtfl_jax.analysis import folders, studies
from mtfl_jax.fields import ConfigError
from mtfl_jax.sweeps import places, tables

PICTURES = (".pdf", ".png", ".svg")
"""What the names of figures end in."""


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, and exits with 2."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description=description)
        self.add_argument("--version", action="version", version=f"mtfl_jax {mtfl_jax.__version__}")

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """As argparse's; a folder that is no option's is read, and may be `latest`."""
        if options.get("type") is folder_of and not names[0].startswith("-"):
            options["type"] = _sweep_of
        return super().add_argument(*names, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def folder_of(text: str) -> Path:
    """The folder that an argument names."""
    try:
        return places.place(text, "FOLDER")
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _sweep_of(text: str) -> Path:
    """The folder of a sweep that an argument names, or the newest one where it says `latest`."""
    try:
        return folders.named(text, "FOLDER")
    except (ConfigError, OSError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_where(parser: argparse.ArgumentParser, help: str) -> None:
    """The option `--where`, as `columns.chosen` takes it."""
    parser.add_argument("--where", action="append", default=[], metavar="COLUMN=VALUE", help=help)


def add_extensions(parser: argparse.ArgumentParser) -> None:
    """The option `--extensions`."""
    parser.add_argument(
        "--extensions",
        nargs="+",
        action="extend",
        default=[],
        metavar="MODULE_OR_PATH",
        help="modules or .py files of your own, which are run: their studies and laws are then known",
    )


def load_extensions(parser: argparse.ArgumentParser, given: Sequence[str], of: Sequence[str] = ()) -> None:
    """Run the modules and files of `--extensions`. A file NAME.py whose NAME is one of the studies `of` and not known
    is run as that study's findings. What is wrong is said in one line, and the command ends.
    """
    unknown = {f"{study}.py": study for study in of if not studies.known(study)}
    modules = [name for name in given if Path(name).name not in unknown]
    try:
        if modules:
            from mtfl_jax import extend

            extend.load(modules)
        for path in (Path(name) for name in given if name not in modules):
            studies.from_file(unknown[path.name], path)
    except Exception as error:  # Whatever a user's module raises.
        parser.error(f"--extensions={' '.join(given)}: {type(error).__name__}: {' '.join(str(error).split())}")


def keep(key: str, out: Path, content: bytes) -> None:
    """Write a file that an argument names, whole. Raises ValueError where it cannot be written."""
    try:
        tables.whole(out, lambda partial: partial.write_bytes(content))
    except OSError as error:
        raise ValueError(f"{key}={out}: {error.strerror or error}; allowed: a file that can be written") from None


def read(path: str) -> pd.DataFrame:
    """The table of a CSV or Parquet file, or of a results folder. Raises ValueError where there is none."""
    try:
        where = folders.named(path, "TABLE")
        with places.reached(where):
            folder = where.is_dir()
        if folder:
            return tables.load(where)
        if where.suffix in (".parquet", ".pq"):
            return pd.read_parquet(path)
        if ".csv" in where.suffixes[-2:]:
            return pd.read_csv(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ValueError(f"TABLE={path}: {reason}; allowed: a CSV or Parquet file, or a results folder") from None
    raise ValueError(f"TABLE={path}: allowed: a name that ends in .csv or .parquet, or a results folder")
