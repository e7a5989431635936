"""The keys that a configuration of `fit`, `validate` or `test` may have, read from the source that defines them.

So a misspelt key is told at once: to import what the parser asks takes many seconds.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import yaml

from c2c_lightning.errors import UserError, meant
from c2c_lightning.nested import flatten

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
ANYWHERE = {"class_path", "init_args", "dict_kwargs"}


def check_keys(command: str, args: Sequence[str]) -> None:
    """Raises a UserError for a key of a known section, typed or in a configuration file, that is misspelt."""
    given = list(given_keys(command, args))
    for section, (package, file, name) in SECTIONS[command].items():
        known = {f"{section}.{argument}" for argument in arguments(package, file, name)}
        if not known:  # another version has it elsewhere
            continue
        for where, key in given:
            word = key.removeprefix(f"{section}.").split(".")[0].removesuffix("+")
            if key.startswith(f"{section}.") and f"{section}.{word}" not in known and word not in ANYWHERE:
                raise UserError(
                    f"{where}{section}.{word} is no option of {command}. {meant(f'{section}.{word}', known)}".strip()
                )


def given_keys(command: str, args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Dotted keys, and the file that each stands in, as the beginning of a sentence."""
    for arg, after in zip(args, [*args[1:], ""]):
        key, has_value, value = arg.partition("=")
        if key in ("--config", "-c"):
            file = value if has_value else after
            for key in keys_of(Path(file)):
                yield f"{file}: ", key.removeprefix(f"{command}.")
        elif key.startswith("--"):
            yield "", key.removeprefix("--")


def keys_of(file: Path) -> list[str]:
    """The keys of a configuration file; none of what is no file, which the parser will say."""
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return []
    return [str(key) for key in flatten(config)] if isinstance(config, dict) else []


def arguments(package: str, file: str, name: str) -> set[str]:
    """Those of a class's `__init__`, or the fields of a dataclass."""
    folder = Path(find_spec(package).submodule_search_locations[0])
    tree = ast.parse((folder / file).read_text(encoding="utf-8"))
    body = next((node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), [])
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return {argument.arg for argument in (*node.args.args[1:], *node.args.kwonlyargs)}
    return {node.target.id for node in body if isinstance(node, ast.AnnAssign)}
