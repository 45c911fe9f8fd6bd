"""Writing to the terminal: stdout that may be full or closed, messages that cannot steer it."""

from __future__ import annotations

import os
import sys

from clipsweep.projection.errors import printable


def say(text: str) -> None:
    """Prints a message to stderr; stdout is kept for the one path of the result."""
    sys.stderr.write(escaped(text) + "\n")


def printed(text: str) -> int:
    """Prints to stdout; gives the exit status: 1 where it cannot be written, as on a full disk."""
    if sys.stdout is None:  # the caller closed it
        say("error: stdout: is closed; give it a file")
        return 1
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # is flushed again at exit
        say(f"error: stdout: cannot be written ({error.strerror}); give it another file")
        return 1
    return 0


def escaped(text: str) -> str:
    """Escapes control characters, which names from files may hold; lines stay lines."""
    return "\n".join(printable(line) for line in text.split("\n"))
