"""The command `mtfl` and those that read its folders.

What each does is imported inside `ends.command`: imports take a second, in which it may be told to stop.
"""

from mtfl_jax import ends


def main() -> None:
    """Entry point `mtfl`."""
    with ends.command("mtfl"):
        from mtfl_jax import app

        app.main()


def report() -> None:
    """Entry point `mtfl-report`."""
    with ends.command("mtfl-report"):
        from mtfl_jax.analysis import page

        page.main()


def status() -> None:
    """Entry point `mtfl-status`."""
    with ends.command("mtfl-status"):
        from mtfl_jax.analysis import status

        status.main()


def fit() -> None:
    """Entry point `mtfl-fit`."""
    with ends.command("mtfl-fit"):
        from mtfl_jax.analysis import fit_command

        fit_command.main()


def plot() -> None:
    """Entry point `mtfl-plot`."""
    with ends.command("mtfl-plot"):
        from mtfl_jax.analysis import plot_command

        plot_command.main()


def clean() -> None:
    """Entry point `mtfl-clean`."""
    with ends.command("mtfl-clean"):
        from mtfl_jax.analysis import clean

        clean.main()


def track() -> None:
    """Entry point `mtfl-track`."""
    with ends.command("mtfl-track"):
        from mtfl_jax.analysis import track_command

        track_command.main()


if __name__ == "__main__":
    main()
