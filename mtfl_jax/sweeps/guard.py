"""Jobs of a queue that end with the process which waits for them, also where that is killed and can do nothing more."""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence

_UNLESS_TOLD = 'read -r line || exec "$@"'
"""What a shell does at the end of its input, if nothing was said before."""
SECONDS = 5.0
"""Seconds for which the end of a guard is awaited."""


class Guard:
    """Processes that each have a command to run where this one ends without a word (`let_go`).

    Each is the leader of a session, so that neither Ctrl-C nor a terminal that closes ends it with this one. The pipe
    that it reads is open here alone, as no process that is started later inherits it, and so closes with this process.
    """

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []

    def watch(self, command: Sequence[str]) -> None:
        """Have the command run where this process ends without a word. Raises OSError."""
        process = subprocess.Popen(
            ["sh", "-c", _UNLESS_TOLD, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._started.append(process)

    def let_go(self) -> None:
        """Say that nothing is to be done; of any thread, and any number of times."""
        for process in self._started:
            assert process.stdin is not None
            with contextlib.suppress(OSError, ValueError):  # It is closed, or somebody has ended the process.
                os.write(process.stdin.fileno(), b"\n")

    def _end(self) -> None:
        for process in self._started:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                process.communicate(timeout=SECONDS)


@contextlib.contextmanager
def guarding() -> Iterator[Guard]:
    """A guard that is let go at the end of what is done here; after an exception it does what it is there for."""
    guard = Guard()
    try:
        yield guard
        guard.let_go()
    finally:
        guard._end()


def cancelling(jobs: Sequence[str]) -> list[str]:
    """The command that ends jobs of Slurm by their ids, those of an array together."""
    return ["scancel", *dict.fromkeys(job.partition("_")[0] for job in jobs)]
