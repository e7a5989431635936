"""`sweep`: what the command line takes, and what `fit` would say of a sweep's configurations.

Ray and all that trains are imported where they are needed, so that a typo in a sweep file is told at once.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import ActionConfigFile

from c2c_lightning.cli.parser import CommandParser
from c2c_lightning.errors import UserError, first_line, user_message
from c2c_lightning.files import read_yaml
from c2c_lightning.runs import RUNS, held, new_folder
from c2c_lightning.sweep.settings import SWEEP_FILE, Asha, Resources, Sweep
from c2c_lightning.sweep.space import Space

if TYPE_CHECKING:
    from c2c_lightning.training import C2CModule

SWEEPS = RUNS / "sweeps"
# What may be another when a sweep is resumed: it changes how much and where, but not what is compared.
MAY_CHANGE = {"trials", "resources", "concurrent", "retries", "engine", "together"}


def run(args: Sequence[str]) -> None:
    """Runs a sweep, or resumes one."""
    # Spelled out, or argparse would take a word after it for the folder, be it another option.
    bare = [arg == "--resume" and after.startswith("-") for arg, after in zip(args, [*args[1:], "-"])]
    args = ["--resume=last" if is_bare else arg for arg, is_bare in zip(args, bare)]
    ours, _ = own_options().parse_known_args(args)
    resumed = find_sweep(ours.resume) if ours.resume else None
    sweep, name = read_sweep(["--config", str(resumed / SWEEP_FILE), *args] if resumed else args)
    space = Space(sweep.space)

    from c2c_lightning.sweep.configuration import check_configurations
    from c2c_lightning.sweep.driver import complete, run_sweep

    sweep = complete(sweep, space)
    if resumed is not None:
        refuse_changes(sweep, resumed)
    sweep = replace(sweep, date=check_configurations(sweep, space, build))
    folder = resumed or new_folder(SWEEPS, name)
    try:
        with held(folder, "sweep"):
            run_sweep(sweep, folder, ours.address)
    except OSError as error:
        raise UserError(
            f"sweep {folder} cannot go on: {error}. Nothing that was trained is lost: when that is mended, go on with "
            f"python -m c2c_lightning sweep --resume {folder}"
        ) from error
    finally:
        if resumed is None and isinstance(sys.exception(), UserError) and not (folder / "trials").exists():
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # other sweeps or runs are there
                SWEEPS.rmdir()
                RUNS.rmdir()


def read_sweep(args: Sequence[str]) -> tuple[Sweep, str]:
    """A sweep as its file and what is typed state it, and the file's name."""
    description = "Searches over configurations; see sweeps/ for examples."
    parser = CommandParser(prog="c2c_lightning sweep", description=description)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="a sweep file")
    parser.add_class_arguments(Sweep)
    parser.add_argument("--resume", nargs="?", help="resume the newest sweep, or the one of this folder")
    parser.add_argument(
        "--address", help="of a Ray cluster that this machine is part of: auto, or head:6379; default $RAY_ADDRESS"
    )
    args, typed = dotted(args)
    config_files, _ = own_options().parse_known_args(args)
    for file in config_files.config:
        if Path(file).exists():  # a missing one is the parser's to name
            read_yaml(Path(file), dict[str, Any], "the sweep file", "Give a file such as those in sweeps/.")
    parsed = parser.parse_args(args)
    # Not by the parser's own instantiate_classes: a sampled value may name a class, and stays a configuration.
    settings = parsed.as_dict()
    for name, values in typed.items():
        settings[name] = {**(settings[name] or {}), **values}
    settings["asha"] = Asha(**settings["asha"]) if settings["asha"] else None
    settings["resources"] = Resources(**settings["resources"])
    name = Path(str(parsed.config[-1])).stem if parsed.config else "sweep"
    return Sweep(**{field.name: settings[field.name] for field in fields(Sweep)}), name


def dotted(args: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Takes `--fixed.KEY VALUE` and `--space.KEY VALUE` out of arguments; the parser would nest the dotted key."""
    left, typed = [], {"fixed": {}, "space": {}}
    words = iter(args)
    for word in words:
        option, _, value = word.partition("=")
        name, _, key = option.removeprefix("--").partition(".")
        if not word.startswith("--") or name not in typed or not key:
            left.append(word)
            continue
        value = value if "=" in word else next(words, "")
        try:
            typed[name][key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"{option} is {value!r}, which is no YAML: {first_line(error)}") from error
    # Required as a whole, and so begun here, which a file then replaces.
    return ["--space={}", *left] if typed["space"] else left, typed


def own_options() -> argparse.ArgumentParser:
    """What is not part of a sweep file, and which files are given."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    parser.add_argument("--resume")
    parser.add_argument("--address")
    return parser


def find_sweep(name: str) -> Path:
    """The folder of a sweep that was begun: a path, or `last` for the newest.

    Raises:
        UserError: there is none.
    """
    if name != "last":
        if not (Path(name) / SWEEP_FILE).exists():
            raise UserError(f"--resume {name}: no sweep was begun there ({SWEEP_FILE} is missing).")
        return Path(name)
    begun = sorted(SWEEPS.glob(f"*/{SWEEP_FILE}"), key=lambda file: file.stat().st_mtime)
    if not begun:
        raise UserError(f"--resume: no sweep was begun in {SWEEPS}/: leave --resume out, or name the sweep's folder.")
    return begun[-1].parent


def refuse_changes(sweep: Sweep, folder: Path) -> None:
    """Raises a UserError if a sweep that is resumed would compare what cannot be compared."""
    before = read_yaml(folder / SWEEP_FILE, dict[str, Any], "the sweep file")
    now = yaml.safe_load(yaml.safe_dump(asdict(sweep)))
    for key in now.keys() - MAY_CHANGE:
        if now[key] != before.get(key):
            raise UserError(
                f"--resume {folder}: it was begun with {key} {before.get(key)}, but now {key} is {now[key]}. Give the "
                "same to go on, or begin another sweep without --resume."
            )


def build(config: Mapping[str, Any]) -> C2CModule:
    """The module of a configuration as `fit` builds it, with its data, but without weights and trainer.

    Raises:
        UserError: the configuration is refused: what `fit` would say.
    """
    from c2c_lightning.cli.fit import WIRING, TrialCLI

    logging.disable(logging.INFO)  # Lightning would say at every build what its seed is
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
            yaml.safe_dump(dict(config), file, sort_keys=False)
            file.flush()
            return TrialCLI(**WIRING, run=False, args=["--config", file.name]).model
    except SystemExit as error:  # how a parser refuses
        raise UserError(str(error.code).removeprefix("error: ").replace(file.name, "the configuration")) from error
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        raise UserError(message) from error
    finally:
        logging.disable(logging.NOTSET)
