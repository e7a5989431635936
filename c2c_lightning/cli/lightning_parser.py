"""What the commands that LightningCLI runs have in common: their parser, and checks of what Lightning would not check."""

from __future__ import annotations

import inspect
import math
import os
import re
from typing import Any

import lightning as L
import torch
from jsonargparse import Namespace
from jsonargparse.util import import_object
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from c2c_lightning import fuser
from c2c_lightning.cli.parser import CommandParser
from c2c_lightning.data import InstructionData, NanoData
from c2c_lightning.errors import UserError, first_line, user_message
from c2c_lightning.evaluation.benchmarks import QuestionData
from c2c_lightning.nested import flatten

FUSERS = [
    c for c in vars(fuser).values() if inspect.isclass(c) and issubclass(c, fuser.Fuser) and not inspect.isabstract(c)
]


class Parser(CommandParser, LightningArgumentParser):
    """Knows also the classes that a configuration of `fit` may name."""

    classes = (*FUSERS, InstructionData, NanoData, QuestionData)


WIRING: dict[str, Any] = {
    "seed_everything_default": 42,
    "parser_class": Parser,
    "parser_kwargs": {"parser_mode": "omegaconf+"},
    "auto_configure_optimizers": False,
    "load_from_checkpoint_support": False,
}


class CheckedCLI(LightningCLI):
    """A LightningCLI that says in one message what is wrong with seed and trainer, before anything is built."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        command = self.config.get("subcommand") or ""
        config = self.config.get(command, self.config)
        if not 0 <= config.seed_everything < 2**32:
            raise UserError(f"seed_everything is {config.seed_everything}: give a number from 0 to {2**32 - 1}.")
        check_trainer(config.trainer, trains=command in ("", "fit"))
        check_fuser(config.model.get("fuser"))
        check_texts(config)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        if self.subcommand is not None:  # a configuration that is only looked at may be for another machine
            check_devices(self.config[self.subcommand].trainer)
        try:
            return super().instantiate_trainer(**kwargs)
        except (TypeError, ValueError, RuntimeError, ImportError) as error:
            raise UserError(user_message(error) or f"trainer: {first_line(error)}") from error


def check_trainer(trainer: Namespace, trains: bool) -> None:
    """Refuses what Lightning takes without a word, or refuses by traceback."""
    for key in ("accumulate_grad_batches", "val_check_interval", "check_val_every_n_epoch"):
        value = trainer[key]
        if isinstance(value, (int, float)) and not 0 < value < math.inf:
            raise UserError(f"trainer.{key} is {value}: it must be positive.")
    for key, value in vars(trainer).items():
        if isinstance(value, int) and abs(value) > 2**53:
            raise UserError(f"trainer.{key} has {len(str(abs(value)))} digits: nothing is counted that far.")
    for key, least in (("log_every_n_steps", 0), ("num_sanity_val_steps", -1), ("max_steps", -1), ("max_epochs", -1)):
        if (trainer[key] or 0) < least:
            raise UserError(f"trainer.{key} is {trainer[key]}: it must be at least {least}.")
    for key in ("steps", "epochs"):
        least, most = trainer[f"min_{key}"], trainer[f"max_{key}"]
        if least is not None and most is not None and -1 < most < least:
            raise UserError(
                f"trainer.min_{key} is {least}, but trainer.max_{key} is {most}: lower one, or raise the other."
            )
    interval = trainer.val_check_interval
    if isinstance(interval, str) and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", interval):
        raise UserError(f"trainer.val_check_interval is {interval!r}: give a number of batches, or DD:HH:MM:SS.")
    clip = trainer.gradient_clip_val
    if clip is not None and not 0 <= clip < math.inf:
        raise UserError(f"trainer.gradient_clip_val is {clip}: give a positive number, or null for no clipping.")
    for key in ("limit_train_batches", "max_steps", "max_epochs"):
        if trains and trainer[key] == 0:
            raise UserError(f"trainer.{key} is 0, so nothing would be trained: leave it out, or raise it.")


def check_devices(trainer: Namespace) -> None:
    on_cpu = trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not torch.accelerator.is_available())
    cores = os.cpu_count() or 1
    if on_cpu and str(trainer.devices).isdigit() and int(trainer.devices) > cores:
        # Every process would wait for the others at each step.
        raise UserError(f"trainer.devices is {trainer.devices}, but there are {cores} CPU cores: give {cores} at most.")


def check_texts(config: Namespace) -> None:
    """Refuses what would stand for another key's value in the configuration that a run leaves."""
    for key, value in flatten(config.as_dict()).items():
        if "${" in str(value):
            raise UserError(
                f"{key} is {str(value)!r:.200}: a text with ${{ in it cannot be written in a configuration."
            )


def check_fuser(config: Any) -> None:
    """Refuses a class that is no whole fuser; what is named otherwise, such as a folder, is not looked at."""
    path = getattr(config, "class_path", None)
    if path is not None and inspect.isabstract(import_object(path)):
        known = ", ".join(c.__name__ for c in FUSERS)
        raise UserError(f"model.fuser is {path}, which is abstract: give a class derived from it, such as {known}.")
