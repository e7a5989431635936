"""The parser of the commands that LightningCLI runs."""

from __future__ import annotations

from lightning.pytorch.cli import LightningArgumentParser

from c2c_lightning.command_parser import CommandParser
from c2c_lightning.data import InstructionData, NanoData
from c2c_lightning.fuser import C2CFuser


class Parser(CommandParser, LightningArgumentParser):
    """Knows also the classes that a configuration of `fit` may name."""

    classes = (C2CFuser, InstructionData, NanoData)
