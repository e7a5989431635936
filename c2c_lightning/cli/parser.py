"""The parser of every command: what a user got wrong, in one message.

It imports nothing that takes seconds, so that a typo is told at once. What the parser of `fit`, `validate` and `test`
asks does take seconds: `check_keys` reads the keys that they may have from the source that defines them, and looks
for the files and models that are named.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace

from c2c_lightning.errors import UserError, first_line, meant, user_message
from c2c_lightning.files import PATHS, find_path
from c2c_lightning.nested import flatten

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
TRAINER = ("lightning", "pytorch/trainer/trainer.py", "Trainer")
TRAINING = {
    "model": ("c2c_lightning", "training/module.py", "C2CModule"),
    "model.gate": ("c2c_lightning", "fuser/gate.py", "GateConfig"),
    "model.optimizer": ("c2c_lightning", "training/optimizer.py", "OptimizerConfig"),
    "trainer": TRAINER,
}
TESTING = {"model": ("c2c_lightning", "evaluation/asking/module.py", "Evaluation"), "trainer": TRAINER}
# Section of a configuration: (package, file in it, class that has its keys). What lies elsewhere is the parser's.
SECTIONS = {"fit": TRAINING, "validate": TRAINING, "test": TESTING}
DATA = {
    "InstructionData": ("c2c_lightning", "data/datamodule.py", "InstructionData"),
    "NanoData": ("c2c_lightning", "data/nano.py", "NanoData"),
    "QuestionData": ("c2c_lightning", "evaluation/benchmarks/question_data.py", "QuestionData"),
}
ANYWHERE = {"class_path", "init_args", "dict_kwargs"}


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
        except UserError:
            raise
        except (ValueError, RecursionError) as error:
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


def check_keys(command: str, args: Sequence[str]) -> None:
    """Raises a UserError for what is misspelt, typed or in a configuration file: its path, a key, a model's path."""
    given = list(given_values(command, args))
    for section, (package, file, name) in SECTIONS[command].items():
        known = {f"{section}.{argument}" for argument in arguments(package, file, name)}
        if not known:  # another version has it elsewhere
            continue
        for where, key, _ in given:
            word = key.removeprefix(f"{section}.").split(".")[0].removesuffix("+")
            if key.startswith(f"{section}.") and f"{section}.{word}" not in known and word not in ANYWHERE:
                raise UserError(
                    f"{where}{section}.{word} is no option of {command}. {meant(f'{section}.{word}', known)}".strip()
                )

    last = {key: (where, value) for where, key, value in given}  # which wins over those before it
    if command == "test":
        where, fuser = last.get("model.fuser", ("", None))
        if isinstance(fuser, str) and fuser.startswith(PATHS) and "${" not in fuser:
            find_path(fuser, f"{where}fuser")
    else:
        check_data(given)
        for key in ("model.receiver", "model.sharers"):
            where, value = last.get(key, ("", None))
            for name in value if isinstance(value, list) else [value]:
                if isinstance(name, str) and "${" not in name:
                    find_path(name, f"{where}model")


def check_data(given: Sequence[tuple[str, str, Any]]) -> None:
    """Raises a UserError for an argument that none of the data classes has which are named."""
    given_classes = [str(value) for _, key, value in given if key in ("data", "data.class_path")]
    named = {re.sub(r"^c2c_lightning\.([\w.]+\.)?", "", name) for name in given_classes}
    if not named or named - DATA.keys():  # those of a class of the user's own are the parser's to judge
        return
    known = set().union(*(arguments(*DATA[name]) for name in named))
    for where, key, _ in given:
        word = key.removeprefix("data.init_args.").removeprefix("data.").split(".")[0].removesuffix("+")
        if key.startswith("data.") and word not in known | ANYWHERE | {"help"}:
            hint = meant(word, known)
            raise UserError(f"{where}{key} is no option of {' or '.join(sorted(named))}. {hint}".strip())


def given_values(command: str, args: Sequence[str]) -> Iterator[tuple[str, str, Any]]:
    """The file that a value stands in, as the beginning of a sentence, its dotted key, and the value."""
    for arg, after in zip(args, [*args[1:], ""]):
        key, has_value, value = arg.partition("=")
        value = value if has_value else after
        if key in ("--config", "-c"):
            for name, found in values_of(value).items():
                yield f"{value}: ", name.removeprefix(f"{command}."), found
        elif key.startswith("--"):
            with suppress(ValueError, RecursionError, yaml.YAMLError):
                value = yaml.safe_load(value)
            yield "", key.removeprefix("--"), value


def values_of(file: str) -> dict[str, Any]:
    """A configuration file's values by dotted key; none of what is no configuration, which the parser will say.

    Raises:
        UserError: there is no such file.
    """
    try:
        config = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        return {str(key): value for key, value in flatten(config).items()} if isinstance(config, dict) else {}
    except FileNotFoundError as error:
        if set("{}:\n") & set(file):  # the configuration itself
            return {}
        raise UserError(f"--config {file!r}: no such file.") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}


def arguments(package: str, file: str, name: str) -> set[str]:
    """Those of a class's `__init__`, or the fields of a dataclass."""
    folder = Path(find_spec(package).submodule_search_locations[0])
    tree = ast.parse((folder / file).read_text(encoding="utf-8"))
    body = next((node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), [])
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return {argument.arg for argument in (*node.args.args[1:], *node.args.kwonlyargs)}
    return {node.target.id for node in body if isinstance(node, ast.AnnAssign)}
