"""What a user can get wrong, told apart from what is wrong with the code, and how a command says either."""

from __future__ import annotations

import difflib
import errno
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from numbers import Integral

TRACEBACK = "C2C_TRACEBACK"
# OSErrors without a file's name that are nevertheless about a place the user chose. Connections are not.
ABOUT_A_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


class UserError(ValueError):
    """Says in one message what is wrong, where it came from, and what to do about it."""


@contextmanager
def told(command: str) -> Iterator[None]:
    """Ends a command that fails with one message and exit code 1.

    A user's error begins with `error:`. Anything unforeseen is named with the command and its kind; its traceback
    goes into a file, or to the terminal where $C2C_TRACEBACK is set.
    """
    try:
        yield
    except KeyboardInterrupt:  # before anything was begun that could be resumed
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and output_is_closed("\n"):
            sys.exit(128 + signal.SIGPIPE)
        message = user_message(error)
        if message is not None:
            sys.exit(f"error: {message}")
        if os.environ.get(TRACEBACK):
            raise
        where = f"{TRACEBACK}=1 shows the traceback"
        with suppress(OSError):
            descriptor, file = tempfile.mkstemp(".txt", "c2c_lightning-traceback-")
            with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as kept:
                traceback.print_exception(error, file=kept)
            where += f", {file} keeps it"
        # Not `error:`, by which a sweep knows a trial that would be refused again.
        sys.exit(f"unexpected error in {command}: {type(error).__name__}: {first_line(error)} ({where})")
    finally:
        output_is_closed()  # or Python would find it at its end


def output_is_closed(more: str = "") -> bool:
    """Prints more; whether nobody reads it any more, as behind `| head`. Then the rest is dropped."""
    try:
        print(more, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def user_message(error: BaseException | None) -> str | None:
    """What we said when we refused something, however often it was raised on from it; None for a bug.

    A bug met while a refusal was handled has it as context, not as cause, and keeps its traceback.
    """
    # Takes seconds to import, and whoever raised it has done so.
    lightning = sys.modules.get("lightning.fabric.utilities.exceptions")
    while error is not None:
        if isinstance(error, UserError) or (lightning and isinstance(error, lightning.MisconfigurationException)):
            return str(error)
        if isinstance(error, OSError) and (error.filename is not None or error.errno in ABOUT_A_PLACE):
            files = [str(file) for file in (error.filename, error.filename2) if file is not None]
            return f"{' -> '.join(files) or 'a file'}: {error.strerror or error}."
        error = error.__cause__
    return None


def check_at_least(least: int, name: str = "{}", **values: int | None) -> None:
    """Refuses settings that are too small; `name` puts each key into the words of the message. None is not looked at."""
    for key, value in values.items():
        if value is None:
            continue
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise UserError(f"{name.format(key)} is {value!r}: it must be a whole number, at least {least}.")
        if value < least:
            raise UserError(f"{name.format(key)} is {value}: it must be at least {least}.")


def meant(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The end of a message about an unknown name: the known one that is most like it, or else what to do."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean {near[0]}?" if near else otherwise


def first_line(error: BaseException) -> str:
    """What other people's exceptions have to say, without the page that may follow."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
