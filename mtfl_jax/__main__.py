"""The commands: each hears signals, and says what it must in a line, before it imports what takes time."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends what follows without a traceback.

import os  # noqa: E402
import sys  # noqa: E402

from mtfl_jax import ends  # noqa: E402


def mtfl() -> None:
    """Entry point `mtfl`."""
    with ends.command("mtfl"), ends.listening("stopped"):
        from mtfl_jax.app import main

        try:
            main()
        except SystemExit as end:
            if isinstance(end.code, int) and end.code > 128:
                # A program that still compiles would hold the process up.
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(end.code)
            raise


def report() -> None:
    """Entry point `mtfl-report`."""
    with ends.command("mtfl-report"):
        from mtfl_jax.analysis.page import main

        main()


def fit() -> None:
    """Entry point `mtfl-fit`."""
    with ends.command("mtfl-fit"):
        from mtfl_jax.analysis.fit_command import main

        main()


def status() -> None:
    """Entry point `mtfl-status`."""
    with ends.command("mtfl-status"):
        from mtfl_jax.analysis.status import main

        main()


if __name__ == "__main__":
    mtfl()
