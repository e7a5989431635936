"""The parser of every command: what a user got wrong, in one message.

It imports nothing that takes seconds, so that a typo is told at once.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn

from jsonargparse import ArgumentParser

from c2c_lightning.errors import meant, user_message

UNKNOWN_NAME = re.compile(
    r"unrecognized arguments: --([\w.]+)|does not accept option '([\w.]+)'|import path string: (\w+)"
    r"|invalid choice: '(\w+)'|[Oo]ption '(\w+)' is not accepted|has no attribute '(\w+)'"
)


class CommandParser(ArgumentParser):
    """Says what is wrong in one message, with the name that was probably meant.

    Attributes:
        classes: those that a configuration may name, and whose arguments it may misspell.
    """

    classes: ClassVar[Sequence[type]] = ()

    def __init__(self, *args: Any, **kwargs: Any):
        # An abbreviation that fits today is another key's tomorrow.
        super().__init__(*args, **kwargs, allow_abbrev=False)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends the process with the message, without the usage that argparse would print before it."""
        text = user_message(ex) or str(ex or message)
        no_class = re.search(r"Expected a dot import path string: \S+|module '[\w.]+' has no attribute '\w+'", text)
        key = re.search(r'Parser key "([\w.]+)"', text)
        if no_class:
            text = f"{key.group(1)}: {no_class.group()}" if key else no_class.group()
        for groups in UNKNOWN_NAME.findall(text):
            hint = meant(next(filter(None, groups)), self._names())
            text += f"\n{hint}" if hint else ""
        sys.exit(f"error: {text}")

    def _names(self) -> list[str]:
        names = [name for c in self.classes for name in (c.__name__, *inspect.signature(c).parameters)]
        for action in self._actions:
            names += [action.dest, *(action.choices or [])]
            if isinstance(action.choices, dict):
                names += [name for parser in action.choices.values() for name in parser._names()]
        return names
