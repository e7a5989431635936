"""The parser of every command: what a user got wrong, in one message.

It imports nothing that takes seconds, so that a typo is told at once.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn

from jsonargparse import ArgumentParser, Namespace

from c2c_lightning.errors import UserError, first_line, meant, user_message

UNKNOWN_NAME = re.compile(
    r"unrecognized arguments: --([\w.]+)|does not accept option '([\w.]+)'|import path string: (\w+)"
    r"|invalid choice: '(\w+)'|[Oo]ption '(\w+)' is not accepted|has no attribute '(\w+)'"
)
NO_MAPPING = re.compile("Problems parsing config|Unexpected config")
NO_UNION_MEMBER = re.compile(
    r'Parser key "([\w.]+)":\s+Does not validate against any of the Union.*?\n  Errors:\n(.*)\n  Given value type:.*?'
    r"Given value: (.*)",
    re.DOTALL,
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

    def parse_args(self, *args: Any, **kwargs: Any) -> Namespace:
        try:
            return super().parse_args(*args, **kwargs)
        except OverflowError as error:
            raise UserError(f"a number of the configuration is too large: {error}.") from error
        except Exception as error:
            if not type(error).__module__.startswith(("omegaconf", "antlr4")):
                raise
            key = f"{error.full_key}: " if getattr(error, "full_key", None) else ""
            raise UserError(
                f"{key}{first_line(error)}. In a configuration ${{key}} stands for another key's value, and "
                "${oc.env:NAME} for an environment variable's."
            ) from error

    def parse_path(self, path: str | os.PathLike, *args: Any, **kwargs: Any) -> Namespace:
        try:
            return super().parse_path(path, *args, **kwargs)
        except (UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"{path} is no configuration: {first_line(error)}.") from error
        except SystemExit as refused:
            if not NO_MAPPING.search(str(refused.code)):
                raise
            said = re.sub(r'\s*(in "<unicode string>", |\n)\s*', " ", str(refused.code)).removeprefix("error: ")
            sys.exit(f"error: {path} is no configuration: {said:.300}")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends the process with the message, without the usage that argparse would print before it."""
        text = said = user_message(ex) or str(ex or message)
        no_class = re.search(r"Expected a dot import path string: \S+|module '[\w.]+' has no attribute '\w+'", text)
        key = re.search(r'Parser key "([\w.]+)"', text)
        no_member = NO_UNION_MEMBER.search(text)
        if no_class:
            text = f"{key.group(1)}: {no_class.group()}" if key else no_class.group()
        elif no_member:
            name, reasons, value = no_member.groups()
            lines = [line.removeprefix("    - ") for line in reasons.splitlines() if line.startswith("    - ")]
            text = f"{name} is {value:.200}: {'; '.join(lines)}."
            if "subclass" in reasons:
                text += " Give {class_path: ..., init_args: {...}}."
        for groups in UNKNOWN_NAME.findall(said):
            hint = meant(next(filter(None, groups)), self._names())
            text += f"\n{hint}" if hint else ""
        sys.exit(f"error: {text[:2000]}")

    def _names(self) -> list[str]:
        names = [name for c in self.classes for name in (c.__name__, *inspect.signature(c).parameters)]
        for action in self._actions:
            names += [action.dest, *(action.choices or [])]
            if isinstance(action.choices, dict):
                names += [name for parser in action.choices.values() for name in parser._names()]
        return names
