"""The command line: which command is meant, and what a user got wrong in one message."""

from __future__ import annotations

import importlib
import inspect
import logging
import re
import sys
import warnings
from collections.abc import Sequence

from jsonargparse import set_parsing_settings

from c2c_lightning.cli.parser import CommandParser, check_keys
from c2c_lightning.errors import UserError, meant, told

# Command: (module and function that runs it, what it does). Imported when needed, for imports take seconds.
COMMANDS = {
    "fit": ("c2c_lightning.cli.fit:run", "train a fuser"),
    "fit-shared": ("c2c_lightning.cli.fit:fit_shared", "train fusers that share models and data side by side"),
    "validate": ("c2c_lightning.cli.fit:run", "validate a checkpoint"),
    "sweep": ("c2c_lightning.cli.sweep:run", "search over configurations, on this machine or a cluster"),
    "test": ("c2c_lightning.cli.test:run", "say what a fuser's cache communication gave, with controls"),
    "read": ("c2c_lightning.cli.read:read", "have the sharer read a text once, for the receiver to answer from"),
    "consolidate": ("c2c_lightning.training.checkpoints:consolidate", "make a sharded checkpoint one file"),
    "convert": ("c2c_lightning.formats.fuser_folder:convert", "import a published fuser, or export one of ours"),
    "report": ("c2c_lightning.evaluation.report.comparison:compare_runs", "lay several evaluations side by side"),
    "lm-eval": ("c2c_lightning.evaluation.harness:lm_eval_command", "run tasks of lm-evaluation-harness on a fuser"),
}
LIGHTNING = ("fit", "validate", "test")
OWN_PARSER = ("sweep",)


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command that the arguments, or what was typed, name; whatever goes wrong ends in one message."""
    for message in ("LeafSpec", "does not have many workers", "in eval mode at the start of training"):
        warnings.filterwarnings("ignore", message=f".*{message}")
    # Lightning advertises its own tracker and registry at every start.
    rank_zero = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    rank_zero.addFilter(lambda record: not re.search("litlogger|litmodels", record.getMessage()))
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    typed = list(sys.argv[1:] if args is None else args)
    words = [arg for arg in typed if not arg.startswith("-")]
    # An option of the command line itself may come first: --config mine.yaml fit
    command = next((word for word in words if word in COMMANDS), words[0] if words else None)
    with told(command or "c2c_lightning"):
        if command is None:
            print(overview())
        else:
            run(command, typed, args)


def run(command: str, typed: list[str], args: Sequence[str] | None) -> None:
    """Hands what was typed to the command; `args` is None where that is the process's own, as LightningCLI wants it."""
    if command not in COMMANDS:
        raise UserError(
            f"{command!r} is none of the commands {', '.join(COMMANDS)}. {meant(command, COMMANDS)}".strip()
        )
    if command in LIGHTNING:
        check_keys(command, typed)
    module, _, name = COMMANDS[command][0].partition(":")
    function = getattr(importlib.import_module(module), name)
    if command in LIGHTNING:
        function(args)
        return
    own = typed[typed.index(command) + 1 :]
    if command in OWN_PARSER:
        function(own)
        return
    # The others are functions whose signature and docstring say what they take; its first argument needs no name.
    parser = CommandParser(prog=f"c2c_lightning {command}", description=COMMANDS[command][1])
    parser.add_function_arguments(function)
    if own and not own[0].startswith("-"):
        own = [f"--{next(iter(inspect.signature(function).parameters))}", *own]
    function(**parser.instantiate_classes(parser.parse_args(joined(own))).as_dict())


def joined(args: list[str]) -> list[str]:
    """The arguments with several values of one option as one list: `--runs a b` as `--runs a,b`."""
    found: list[str] = []
    for arg in args:
        if found and not arg.startswith("--") and ("=" in found[-1] or not found[-1].startswith("--")):
            found[-1] += f",{arg}"
        else:
            found.append(arg)
    return found


def overview() -> str:
    """What can be done, a line for each command."""
    lines = [f"  {name:<12}{what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(["python -m c2c_lightning COMMAND ...; COMMAND --help says more", *lines])
