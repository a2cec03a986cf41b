"""Errors that a user can put right, and the one line in which a command reports them."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable


class SecondThoughtError(Exception):
    """An error whose message names the thing that is wrong and the remedy."""


class DataError(SecondThoughtError):
    """A dataset file that cannot be read as what it should be."""


def main(run: Callable[[], None]) -> None:
    """Run a command; an error that the user can put right becomes one line on stderr and exit code 2.

    Anything else is a bug and keeps its traceback.
    """
    try:
        run()
    except SecondThoughtError as error:
        _stop(str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = f" while writing {error.filename}" if error.filename else ""
        _stop(f"no space left on the disk{place}: free some and run the command again; finished work is kept")


def _stop(message: str) -> None:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    raise SystemExit(2)
