"""The parser of the commands that LightningCLI runs."""

from __future__ import annotations

import inspect

from lightning.pytorch.cli import LightningArgumentParser

from c2c_lightning import fuser
from c2c_lightning.cli.parser import CommandParser
from c2c_lightning.data import InstructionData, NanoData

FUSERS = [
    c for c in vars(fuser).values() if inspect.isclass(c) and issubclass(c, fuser.Fuser) and not inspect.isabstract(c)
]


class Parser(CommandParser, LightningArgumentParser):
    """Knows also the classes that a configuration of `fit` may name."""

    classes = (*FUSERS, InstructionData, NanoData)
