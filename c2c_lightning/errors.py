"""What a user can get wrong, told apart from what is wrong with the code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Says in one message what is wrong, where it came from, and what to do about it.

    The command line prints the message alone; any other exception keeps its traceback.
    """


def meant(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The end of a message about an unknown name: the known one that is most like it, or else what to do."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean {near[0]}?" if near else otherwise


def first_line(error: Exception) -> str:
    """What other people's exceptions have to say, without the page that may follow."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
